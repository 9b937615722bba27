"""Say what each page of results/ is about, and what is asked of its runs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan

from tables import UNKNOWN, log_pool, novelty_of, small_ensemble

from geoflow.chart import FLOWS

BEATEN = ("mean_network", "rescaled_mean", "interpolation", "gaussian", "pca_gaussian")  # whose NLL generated digits networks must be below


@dataclass(frozen=True)
class Page:
    """A table in results/: its title, the tasks that it is for, with the settings that all its runs on a task have in common, which demands
    a run falls short of, and how to read it."""

    text: str
    tasks: Mapping[str, Mapping]
    missed: Callable[[Mapping], list[str]]
    note: str


def missed_of_the_main_job(metrics: Mapping) -> list[str]:
    """What is asked of breast cancer and digits."""
    zoo, new, digits = metrics["zoo"], metrics["generated"], metrics["task"] == "digits"
    least = 0.94 if digits else zoo["accuracy"]["mean"] - 0.01
    most = 0.20 if digits else (1.2 if FLOWS[metrics["flow"]].spheres else 1.4) * zoo["nll"]["mean"]
    found = _short(new["accuracy"]["mean"], least, "accuracy") + _over(new["nll"]["mean"], most, "NLL")
    found += _outside(novelty_of(metrics, "ratio"), 0.7, 1.5, "novelty")
    if digits:
        found += [] if small_ensemble(metrics, "generated")["accuracy"] >= zoo["accuracy"]["mean"] else ["ensemble"]
        found += [f"NLL > {name}" for name in BEATEN if new["nll"]["mean"] >= metrics["baselines"].get(name, UNKNOWN)["nll"]["mean"]]
    return found


def missed_of_a_split(metrics: Mapping) -> list[str]:
    """What is asked of breast cancer."""
    return _over(metrics["generated"]["nll"]["mean"], 1.05 * metrics["zoo"]["nll"]["mean"], "NLL")


def missed_of_fashion(metrics: Mapping) -> list[str]:
    """What is asked of 784-10-10 on Fashion-MNIST."""
    return _short(metrics["generated"]["accuracy"]["mean"], metrics["zoo"]["accuracy"]["mean"] - 0.01, "accuracy")


def missed_of_mnist32(metrics: Mapping) -> list[str]:
    """What is asked of 784-32-32-10 on MNIST."""
    return _short(metrics["generated"]["accuracy"]["mean"], 0.96, "accuracy") + _outside(novelty_of(metrics, "ratio"), 0.8, 1.3, "novelty")


def missed_of_mnist(metrics: Mapping) -> list[str]:
    """What is asked of 784-10-10 on MNIST; of its ensembles, where both were measured, of the log pool."""
    measured = "log_pool" in small_ensemble(metrics, "generated")
    pool = log_pool if measured else small_ensemble
    new, ensemble, zoo = metrics["generated"], pool(metrics, "generated"), pool(metrics, "zoo")
    found = _short(new["accuracy"]["mean"], 0.92, "accuracy") + _over(new["nll"]["mean"], 0.30, "NLL")
    found += _over(new["accuracy"]["std"], 0.02, "std") + _outside(novelty_of(metrics, "ratio"), 0.8, 1.3, "novelty")
    found += _short(ensemble["accuracy"], max(0.955, zoo["accuracy"] - 0.005), "ensemble accuracy")
    return found + (_over(ensemble["ece"], new["ece"]["mean"], "log pool ECE") if measured else ["log pool not measured"])


def near_the_zoo(
    below: float,
    nll: float | None = None,
    novelty: tuple[float, float] | None = None,
    copies: float | None = None,
    ahead: Iterable[str] = (),
) -> Callable[[Mapping], list[str]]:
    """What is asked of networks beside their own zoo: how far `below` the zoo's accuracy theirs may be, how many times the zoo's `nll` they
    may have, from where to where the `novelty` may lie, how many `copies` there may be, and which baselines they must be `ahead` of in
    accuracy."""

    def missed(metrics: Mapping) -> list[str]:
        zoo, new, found = metrics["zoo"], metrics["generated"], metrics["novelty"]
        accuracy = {name: one["accuracy"]["mean"] for name, one in {"": new, **metrics["baselines"]}.items()}
        short = _short(accuracy[""], zoo["accuracy"]["mean"] - below, "accuracy")
        short += _over(new["nll"]["mean"], nll * zoo["nll"]["mean"], "NLL") if nll else []
        short += _outside(found["ratio"], *novelty, "novelty") if novelty else []
        short += _over(found["copies"], copies, "copies") if copies is not None else []
        return short + [f"accuracy < {name}" for name in ahead if accuracy[""] <= accuracy.get(name, float("nan"))]

    return missed


def _short(value: float, least: float, name: str) -> list[str]:
    return [] if value >= least else [f"{name} < {least:.4f}"]


def _over(value: float, most: float, name: str) -> list[str]:
    return [] if value <= most else [f"{name} > {most:.4f}"]


def _outside(value: float, least: float, most: float, name: str) -> list[str]:
    return [f"{name} not measured"] if isnan(value) else [] if least <= value <= most else [name]




def _mlp(*hidden: int) -> dict:
    return {"network": "mlp", "norm": "none", "hidden": [*hidden]}


FROM_ONE_START = near_the_zoo(0.005, nll=1.15, novelty=(0.85, float("inf")), copies=0.05)
ASKED_FROM_ONE_START = (
    "Asked for: accuracy within .005 of the zoo, NLL at most 1.15 times the zoo's, novelty at least .85, copies at most .05."
)
NOTHING_ASKED = "Nothing is asked of these runs."
PAGES: dict[str, Page] = {
    "main_job": Page(
        "The main job, measured: breast cancer and digits", {"breast_cancer": _mlp(16, 16), "digits": _mlp(10)}, missed_of_the_main_job,
        "Asked for: novelty from .7 to 1.5; of breast cancer accuracy within .01 of the zoo and NLL at most 1.2 times the "
        "zoo's (1.4 of flat flows); of digits accuracy .94, NLL .20 and below the baselines' but noised and copied networks, an "
        "ensemble as accurate as the zoo. Settings were chosen on validation parts of splits of the same examples.",
    ),
    "ablations": Page(
        "What carries it: one change each to a short training on digits (64-10-10)", {"digits": _mlp(10)}, lambda metrics: [],
        f"{NOTHING_ASKED} One seed each: differences of accuracy below .005 may be chance (benchmarks/NOTES.md).",
    ),
    "mnist": Page(
        "MNIST, 784-10-10: single generated networks without fine-tuning", {"mnist": _mlp(10)}, missed_of_mnist,
        "Asked for: accuracy .92 with a standard deviation of at most .02, NLL .30, novelty from .8 to 1.3; of the log pool "
        "accuracy .955 and within .005 of the zoo's, ECE below the single networks'. The average of probabilities is not as "
        "well calibrated, nor is the zoo's.",
    ),
    "fashion": Page(
        "Fashion-MNIST, 784-10-10: single generated networks without fine-tuning", {"fashion": _mlp(10)}, missed_of_fashion,
        "Asked for: accuracy within .01 of the zoo.",
    ),
    "mnist32": Page(
        "MNIST, 784-32-32-10: single generated networks without fine-tuning", {"mnist": _mlp(32, 32)}, missed_of_mnist32,
        "Asked for: accuracy .96, novelty from .8 to 1.3.",
    ),
    "zoos": Page(
        "Where memorising ends: short trainings on zoos of MNIST, 784-10-10", {"mnist": _mlp(10)}, lambda metrics: [], NOTHING_ASKED,
    ),
    "couplings": Page(
        "Flows and couplings: short trainings on MNIST, 784-10-10", {"mnist": _mlp(10)}, lambda metrics: [], NOTHING_ASKED,
    ),
    "splits": Page(
        "Breast cancer, 30-16-16-2, over splits of the data (complete with 20)", {"breast_cancer": _mlp(16, 16)}, missed_of_a_split,
        "Asked for: NLL at most 1.05 times the zoo's. Settings were chosen on validation parts of other splits of the same 569 examples.",
    ),
    "batch_norm": Page(
        "Batch norm: digits, 64-10-10 with BatchNorm1d behind the hidden layer", {"digits": _mlp(10) | {"norm": "batch"}},
        near_the_zoo(0.012, nll=1.3), "Asked for: accuracy within .012 of the zoo, NLL at most 1.3 times the zoo's.",
    ),
    "residual_mlp": Page(
        "Skips and layer norm: digits, a residual MLP with two pre-norm blocks of width 16", {"digits": {"network": "residual_mlp"}},
        near_the_zoo(0.03, nll=1.6, ahead=("mean_network", "rescaled_mean")),
        "Asked for: accuracy within .03 of the zoo and above the mean network's, NLL at most 1.6 times the zoo's.",
    ),
    "cnn": Page(
        "Convolutions: MNIST at 14x14, two convolutions and a hidden layer, independent runs", {"mnist14": {"network": "cnn"}},
        near_the_zoo(0.012, nll=1.4, novelty=(0.85, 1.2), copies=0.05),
        "Asked for: accuracy within .012 of the zoo, NLL at most 1.4 times the zoo's, novelty from .85 to 1.2, copies at most .05.",
    ),
    "resnet": Page(
        "A ResNet with batch norm: MNIST at 14x14, runs from one common start", {"mnist14": {"network": "resnet"}}, FROM_ONE_START,
        ASKED_FROM_ONE_START,
    ),
    "vit": Page(
        "A vision transformer: MNIST at 14x14, runs from one common start", {"mnist14": {"network": "vit"}}, FROM_ONE_START,
        ASKED_FROM_ONE_START,
    ),
    "bert": Page(
        "A BERT: sentiment of film reviews (SST-2), runs from one common start", {"sst2": {"network": "bert"}},
        near_the_zoo(0.01, copies=0.05), "Asked for: accuracy within .01 of the zoo, copies at most .05.",
    ),
    "independent": Page(
        "A ResNet and a vision transformer from independent starts: digits as 8x8 images",
        {"digits": {"zoo.origin": "independent", "hidden": None}},
        near_the_zoo(1.0, copies=0.1, ahead=("mean_network", "rescaled_mean", "interpolation", "gaussian", "pca_gaussian")),
        "Asked for: accuracy above that of means, interpolated networks and Gaussians, copies at most .10.",
    ),
}  # fmt: skip
