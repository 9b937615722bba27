"""Turn the kept runs of a study into the tables of its page. Each cell is a mean over seeds."""

from collections.abc import Mapping, Sequence

import pandas as pd

LOST = 3  # layers that are named for a time
TIE = 5e-4  # nats by which two baselines may differ by chance
MEANS = ("mean_network", "rescaled_mean")
BASELINES = (*MEANS, "interpolation", "gaussian", "pca_gaussian", "noised")  # without retrieval, which copies by design
KINDS = {"heldout": "held-out", "gaussian": "Gaussian of each weight"}
NAMES = {"mean_network": "mean", "rescaled_mean": "rescaled mean", "pca_gaussian": "Gaussian on components", "gaussian": "Gaussian"}


def by_label(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the runs of each label, in the order of the table."""
    return {label: runs for label, runs in frame.groupby(level="label", sort=False)}


def three(value: float) -> str:
    """Write a number with three decimals and without the 0 before the point. A missing number is a dash."""
    return "-" if pd.isna(value) else f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def mean_of(runs: pd.DataFrame, kind: str, score: str) -> float:
    """Return the mean accuracy, NLL or ECE over runs of a kind of networks: zoo, generated or a baseline."""
    kind = kind if kind in ("zoo", "generated") else f"baselines.{kind}"
    return runs[f"{kind}.{score}.mean"].mean(skipna=False)


def scores(runs: pd.DataFrame, kind: str) -> str:
    """Return accuracy / NLL of a kind of networks."""
    return " / ".join(three(mean_of(runs, kind, score)) for score in ("accuracy", "nll"))


def best(runs: pd.DataFrame, names: Sequence[str] = BASELINES) -> str:
    """Return the baseline with the lowest NLL among those that all runs measured. Among several within TIE it is the first."""
    known = [name for name in names if f"baselines.{name}.nll.mean" in runs]
    losses = pd.Series({name: mean_of(runs, name, "nll") for name in known}).dropna()
    return losses.index[losses <= losses.min() + TIE][0]


def quality(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the main table of a page, with a line for each label. Scores are accuracy / NLL."""
    lines = []
    for label, runs in by_label(frame).items():
        top = best(runs)
        lines.append(
            {
                "runs": label,
                "seeds": _seeds(runs),
                "zoo": scores(runs, "zoo"),
                "generated": scores(runs, "generated"),
                "better mean": scores(runs, best(runs, MEANS)),
                "best baseline (novelty)": f"{NAMES.get(top, top)} {scores(runs, top)} ({novelty(runs, top)})",
                "novelty, copies": f"{novelty(runs)}, {three(runs['novelty.copies'].mean())}",
                "minutes": f"{runs['minutes.train'].mean():.0f}",
            }
        )
    return pd.DataFrame(lines)


def novelty(runs: pd.DataFrame, baseline: str | None = None) -> str:
    column = "novelty.ratio" if baseline is None else f"baselines.{baseline}.novelty"
    return f"{runs[column].mean():.2f}".removeprefix("0")


def by_sharpness(found: Mapping, runs: pd.DataFrame) -> pd.DataFrame:
    """Return a table of what the networks of one flow gain by sharpness, and how alike they become."""
    zoo = runs.iloc[0]["diversity.zoo.distance"]
    return pd.DataFrame(
        {
            "sharpness": sharpness,
            "accuracy / NLL": _pair(one["generated"]),
            "NLL on training data": three(one["training"]["nll"]["mean"]),
            "distance of two, zoo: 1": three(one["diversity"]["generated"]["distance"] / zoo),
        }
        for sharpness, one in found["sharpness"].items()
    )


def by_time(found: Mapping) -> pd.DataFrame:
    """Return a table of networks of the zoo that a flow made anew from times on their paths, and of the LOST layers that cost most."""
    lines = [{"made anew from": "the networks themselves", "accuracy / NLL": _pair(found["zoo"]), "layers that cost most alone": ""}]
    for time, one in found["whole"].items():
        alone = found["layers"].get(time, {})
        worst = sorted(alone, key=lambda layer: alone[layer]["accuracy"]["mean"])[:LOST]
        named = ", ".join(f"{layer or 'the rest'} {_pair(alone[layer])}" for layer in worst)
        lines.append({"made anew from": f"t = {time}", "accuracy / NLL": _pair(one), "layers that cost most alone": named})
    return pd.DataFrame(lines)


def by_density(found: Mapping) -> pd.DataFrame:
    """Return a table of how probable each kind of networks is under one flow."""
    return pd.DataFrame(
        {
            "networks": KINDS.get(name, NAMES.get(name, name.replace("_", " "))),
            "count": one["networks"],
            "median, nats": f"{one['median']:.1f}",
            "per weight": f"{one['per_weight']:.3f}",
            "standard deviation": "-" if one["std"] is None else f"{one['std']:.1f}",
            "AUROC against held-out": three(one["auroc"]),
        }
        for name, one in found["sets"].items()
    )


def _pair(summary: Mapping) -> str:
    return " / ".join(three(summary[score]["mean"]) for score in ("accuracy", "nll"))


def transfers(found: Sequence[Mapping]) -> pd.DataFrame:
    """Return a table of the networks that a flow made with other widths, or for another task."""
    return pd.DataFrame(
        {
            "task": one["task"],
            "hidden": "-".join(map(str, one["hidden"])),
            "parameters": f"{one['parameters']:,}",
            "networks": one["count"],
            "accuracy / NLL": _pair(one["generated"]),
        }
        for one in sorted(found, key=lambda one: (one["task"] != "mnist", one["parameters"]))
    )


def machine(frame: pd.DataFrame) -> str:
    """Say which devices computed the runs, and which commits made them."""
    on = ", ".join(sorted({f"{threads:.0f} thread{'s' * (threads > 1)} of {cpu}" if device == "cpu" else device
                           for device, threads, cpu in _columns(frame, "ran.device", "ran.threads", "ran.cpu")}))  # fmt: skip
    return f"{on}; commits {', '.join(sorted({commit[:7] for (commit,) in _columns(frame, 'ran.commit')}))}"


def _columns(frame: pd.DataFrame, *names: str):
    return frame[list(names)].itertuples(index=False, name=None)


def _seeds(runs: pd.DataFrame) -> str:
    seeds = runs.index.get_level_values("seed").tolist()
    return ", ".join(map(str, seeds)) if len(seeds) < 5 else f"{seeds[0]} to {seeds[-1]}"
