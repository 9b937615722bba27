"""Tell in words and tables what a run did."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from geoflow.files import whole

COLUMNS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}
DIVERSITY = {"distance": ".4g", "disagreement": ".4f"}

CAPTIONS = {
    "scores": "Accuracy and negative log-likelihood of single networks; the vertical line is the mean.",
    "loss": "Loss of the flow during training.",
    "weights": "Zoo, generated networks and sampling paths in the zoo's principal components.",
    "distances": "Distance to the nearest training network; copies would lie at 0.",
}


def metrics_table(metrics: Mapping) -> str:
    """The scores of metrics.json as plain text, aligned: one row for the zoo (if it is there), the generated networks, each baseline
    and the ensembles (named zoo or generated; behind "_" may stand what sets one apart): average probabilities, and average
    log-probabilities where "log_pool" holds their scores.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}, "ece": {"mean": 0.05, "std": 0.0}}
    >>> print(metrics_table({"zoo": one, "generated": one, "baselines": {}, "ensemble": {}}))
                    accuracy            NLL            ECE
    zoo        0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    generated  0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    """
    return _aligned(_rows(metrics))


def scores_table(scores: Mapping[str, Mapping]) -> str:
    """Accuracy, NLL and ECE of named sets of networks, each as `summary` gives them, as plain text.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}, "ece": {"mean": 0.05, "std": 0.0}}
    >>> print(scores_table({"8 steps": one}))
                  accuracy            NLL            ECE
    8 steps  0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    """
    return _aligned(_single(scores))


def diversity_table(found: Mapping[str, Mapping[str, float | None]]) -> str:
    """How far two networks of named sets are from each other, and how often they predict different classes, as plain text.

    >>> print(diversity_table({"zoo": {"distance": 30.5, "disagreement": 0.0421}}))
         distance  disagreement
    zoo      30.5        0.0421
    """
    rows = ([name, *(_number(one[key], form) for key, form in DIVERSITY.items())] for name, one in found.items())
    return _aligned(rows, DIVERSITY)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _aligned(rows: Iterable[list[str]], titles: Iterable[str] = COLUMNS.values()) -> str:
    rows = [["", *titles], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in rows]
    return "\n".join(lines)


def write_report(folder: str | Path, metrics: Mapping, config: Mapping) -> Path:
    """Write `folder`/report.md from metrics.json's content: table, novelty, times, configuration and the figures of `folder`/figures."""
    folder = Path(folder)
    layers = {f"ratio of layer {name}": ratio for name, ratio in metrics["novelty"]["layers"].items()}
    found = {name: value for name, value in (metrics["novelty"] | layers).items() if name != "layers"}
    novelty = [[name.replace("_", " "), "-" if value is None else f"{value:.4g}"] for name, value in found.items()]
    diversity = [[name, *(_number(one[key], form) for key, form in DIVERSITY.items())] for name, one in metrics["diversity"].items()]
    part = f"{config.get('part', 'test')} part of the data"
    times = [[name, f"{seconds:.1f}"] for name, seconds in metrics["time"].items()]
    parts = [
        f"# {metrics['flow']} flow on {metrics['task']}, seed {metrics['seed']}",
        f"Networks of {metrics['parameters']:,} parameters. Scores on the {part}: mean ± standard deviation over single networks.",
        _markdown(["networks", *COLUMNS.values()], _rows(metrics)),
        *_statistics(metrics.get("recalibrated")),
        "## Novelty\n\nMedians of the distances to the nearest training run, each layer counting the same; 1 is the root mean square "
        "distance of two training networks. The ratio is generated to train over zoo leave one out: near 0 for copies of training "
        "networks, near 1 for networks as new as another training run; of a layer by itself it is near 0 where that is copied. The share "
        "*copies* of the generated networks stands out to one run: is so much nearer to it than to the next ones as 1 of 100 training "
        "networks is to another run. *spread* is how far two generated networks are from each other, in units of two of the zoo.",
        _markdown(["", "value"], novelty),
        "## Diversity\n\nTwo different networks: the root mean square of their distance in the flow's canonical weights, and how often "
        "they predict different classes.",
        _markdown(["networks", "distance", "disagreement"], diversity),
        "## Time",
        _markdown(["phase", "seconds"], times),
        *_figures(folder),
        "## Configuration\n\n```json\n" + json.dumps(config, indent=2, sort_keys=True, default=str) + "\n```",
    ]
    path = folder / "report.md"
    with whole(path) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _statistics(examples: int | None) -> list[str]:
    """A line on running statistics, of networks that have any."""
    if examples is None:
        return []
    if not examples:
        return ["Running statistics of the generated networks and of the baselines were not measured anew."]
    return [f"Running statistics of the generated networks and of the baselines were measured anew on {examples:,} training inputs; the "
            "zoo's networks keep theirs."]  # fmt: skip


def _rows(metrics: Mapping) -> Iterator[list[str]]:
    """Name, accuracy, NLL and ECE of every set of networks."""
    yield from _single({name: metrics[name] for name in ("zoo", "generated") if name in metrics} | dict(metrics["baselines"]))
    for name, scores in metrics["ensemble"].items():
        for one, how in ((scores, ""), (scores.get("log_pool"), ", log pool")):
            if one:
                yield [f"ensemble of {scores['n']} {name.split('_')[0]}{how}", *(f"{one[c]:.3f}" + " " * len(" ± 0.000") for c in COLUMNS)]


def _single(scores: Mapping[str, Mapping]) -> Iterator[list[str]]:
    for name, one in scores.items():
        yield [name.replace("_", " "), *(f"{one[c]['mean']:.3f} ± {one[c]['std']:.3f}" for c in COLUMNS)]


def _markdown(header: list[str], rows) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *([cell.strip() for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures(folder: Path) -> list[str]:
    found = [name for name in CAPTIONS if (folder / "figures" / f"{name}.png").exists()]
    return ["## Figures", *(f"![{CAPTIONS[name]}](figures/{name}.png)\n\n*{CAPTIONS[name]}*" for name in found)] if found else []
