"""Turn the kept runs of a study into the tables of its page. Each cell is a mean over seeds."""

from collections.abc import Mapping, Sequence

import pandas as pd

from geoflow.evaluation.growing import columns_of
from geoflow.outputs import Outputs, outputs_of
from geoflow.zoo.tasks import TASKS

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


def outputs_in(runs: pd.DataFrame) -> str:
    """Return what the outputs of the networks of most runs mean: a row of OUTPUTS."""
    return TASKS[runs["config.task"].mode()[0]].outputs


def titles(outputs: str) -> list[str]:
    """Return the titles of the two scores that tables show, such as accuracy and NLL."""
    kind = outputs_of(outputs)
    return [kind.columns[score].title for score in kind.main]


def mean_of(runs: pd.DataFrame, kind: str, score: str) -> float:
    """Return the mean of a score, such as NLL, over runs of a kind of networks: zoo, generated or a baseline."""
    kind = kind if kind in ("zoo", "generated") else f"baselines.{kind}"
    return runs[f"{kind}.{score}.mean"].mean(skipna=False)


def scores(runs: pd.DataFrame, kind: str) -> str:
    """Return the two main scores of a kind of networks, such as accuracy / NLL."""
    return " / ".join(three(mean_of(runs, kind, score)) for score in outputs_of(outputs_in(runs)).main)


def best(runs: pd.DataFrame, names: Sequence[str] = BASELINES) -> str:
    """Return the baseline with the lowest NLL among those that all runs measured. Among several within TIE it is the first."""
    known = [name for name in names if f"baselines.{name}.nll.mean" in runs]
    losses = pd.Series({name: mean_of(runs, name, "nll") for name in known}).dropna()
    return losses.index[losses <= losses.min() + TIE][0]


def quality(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the main table of a page, with a line for each label. Scores are the two main ones, such as accuracy / NLL."""
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
    zoo, outputs = runs.iloc[0]["diversity.zoo.distance"], outputs_in(runs)
    return pd.DataFrame(
        {
            "sharpness": sharpness,
            " / ".join(titles(outputs)): _pair(one["generated"], outputs),
            "NLL on training data": three(one["training"]["nll"]["mean"]),
            "distance of two, zoo: 1": three(one["diversity"]["generated"]["distance"] / zoo),
        }
        for sharpness, one in found["sharpness"].items()
    )


def by_time(found: Mapping, outputs: str) -> pd.DataFrame:
    """Return a table of networks of the zoo that a flow made anew from times on their paths, and of the LOST layers that cost most."""
    kind, title = outputs_of(outputs), " / ".join(titles(outputs))
    lines = [{"made anew from": "the networks themselves", title: _pair(found["zoo"], outputs), "layers that cost most alone": ""}]
    for time, one in found["whole"].items():
        alone = found["layers"].get(time, {})
        worst = _worst_first(alone, kind)[:LOST]
        named = ", ".join(f"{layer or 'the rest'} {_pair(alone[layer], outputs)}" for layer in worst)
        lines.append({"made anew from": f"t = {time}", title: _pair(one, outputs), "layers that cost most alone": named})
    return pd.DataFrame(lines)


def _worst_first(alone: Mapping[str, Mapping], kind: Outputs) -> list[str]:
    score = kind.main[0]
    return sorted(alone, key=lambda layer: alone[layer][score]["mean"], reverse=not kind.columns[score].higher)


def _pair(summary: Mapping, outputs: str) -> str:
    return " / ".join(three(summary[score]["mean"]) for score in outputs_of(outputs).main)


def by_level(found: Mapping, outputs: str) -> pd.DataFrame:
    """Return a table of the levels of the NLL that new networks were asked for, and of what they reached."""
    return pd.DataFrame(
        {
            "asked NLL, training": three(one["asked"]),
            "reached": f"{three(one['reached']['mean'])} ± {three(one['reached']['std'])}",
            f"{' / '.join(titles(outputs))}, test": _pair(one["test"], outputs),
        }
        for one in found["levels"]
    )


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


def transfers(found: Sequence[Mapping]) -> pd.DataFrame:
    """Return a table of the networks that a flow made with other widths, or for another task."""
    return pd.DataFrame(
        {
            "task": one["task"],
            "hidden": "-".join(map(str, one["hidden"])),
            "parameters": f"{one['parameters']:,}",
            "networks": one["count"],
            " / ".join(titles(TASKS[one["task"]].outputs)): _pair(one["generated"], TASKS[one["task"]].outputs),
        }
        | ({"trained": _pair(one["trained"])} if "trained" in one else {})
        for one in sorted(found, key=lambda one: (one["task"] != "mnist", one["parameters"]))
    )


def of_ensembles(found: Mapping) -> pd.DataFrame:
    """Return a table of what posterior.json says of single networks, of the size that its figures show, and of the largest ensembles."""
    several, outside, columns = found["ensembles"], found["outside"], columns_of(found.get("outputs", "classes"))
    largest = max(int(size) for pools in several.values() for by_size in pools.values() for size in by_size)
    lines = []
    for size in dict.fromkeys(("1", str(found["shown"]), str(largest))):
        for pool in ("linear", "log") if size != "1" else ("linear",):
            for kind in (kind for kind, pools in several.items() if size in pools[pool]):
                scored = {column.title: three(several[kind][pool][size][score]["mean"]) for score, column in columns.items()}
                told = {f"AUROC {other}": _told(of[kind][pool]["auroc"][size]) for other, of in outside.items()}
                lines.append({"networks": f"{size} {kind}" + (f", {pool} pool" if size != "1" else "")} | scored | told)
    return pd.DataFrame(lines)


def of_rivals(found: Mapping) -> pd.DataFrame:
    """Return a table of what rivals.json says of the ways to get an ensemble. Scores are of the pool with the lower NLL."""
    lines, columns = [], {name: column for name, column in columns_of(found.get("outputs", "classes")).items() if name != "area"}
    for name, one in found["rivals"].items():
        pool = min((pool for pool in ("linear", "log") if pool in one), key=lambda pool: one[pool]["nll"]["mean"])
        scored = {column.title: three(one[pool][score]["mean"]) for score, column in columns.items()}
        lines.append({"networks": name, "pool": pool if one["members"] > 1 else "-"} | scored | {"seconds": f"{one['seconds']:.3g}"})
    return pd.DataFrame(lines)


def _told(auroc: Mapping) -> str:
    return " / ".join(three(one["mean"]) for one in auroc.values())


def by_way(found: Mapping) -> pd.DataFrame:
    """Return a table of ways to guide one flow, and of training with as many gradients."""
    settings, outputs = {"guided": "strength", "Adam": "learning rate"}, TASKS[found["task"]].outputs
    return pd.DataFrame(
        {
            "networks": name,
            "setting": next((f"{what} {one['chosen']:g}" for begin, what in settings.items() if name.startswith(begin)), ""),
            " / ".join(titles(outputs)): _pair(one["test"], outputs) if one["test"] else "diverged",
            "minutes": f"{one['seconds'] / 60:.1f}" if "seconds" in one else "",
        }
        for name, one in found["ways"].items()
    )


def by_start(found: Mapping) -> pd.DataFrame:
    """Return a table of trainings from several starts: scores at the beginning and at the end, and when a level was reached."""
    outputs = TASKS[found["task"]].outputs
    return pd.DataFrame(
        {
            "start": name,
            "learning rate": f"{one['lr']:g}",
            "before": _pair(one["scores"]["0"], outputs),
            f"after {list(one['scores'])[-1]} steps": _pair(list(one["scores"].values())[-1], outputs),
            f"steps to {three(found['level'])}": "-" if one["reached"] is None else one["reached"],
        }
        for name, one in found["starts"].items()
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
