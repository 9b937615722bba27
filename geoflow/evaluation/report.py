"""Write the results of a run as tables and as a report."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from geoflow.files import whole
from geoflow.outputs import Outputs, outputs_of

DIVERSITY = {"distance": ".4g", "disagreement": ".4f"}
DENSITIES = {"networks": "d", "median": ".1f", "per_weight": ".3f", "std": ".1f", "standard_error": ".1f", "auroc": ".3f"}

PAIRS = {"iou": "max IoU of mistakes", "jensen_shannon": "JS distance of predictions", "wasserstein": "Wasserstein distance of weights"}
OF_TWO = {"generated_generated": "generated, generated", "generated_zoo": "generated, zoo", "zoo_zoo": "zoo, zoo"}

CAPTIONS = {
    "scores": "{main} of single networks. Vertical lines mark the means. Good networks lie as the zoo's do.",
    "loss": "Loss of the flow at each training step, and its running mean. It shows whether the training has settled.",
    "weights": "Zoo, generated networks and sampling paths in the plane of the zoo's principal components. Generated networks should "
    "spread as the zoo does.",
    "distances": "Distance to the nearest training run. Copies lie at 0. New networks lie where training networks lie from other runs.",
}
NAMES = {  # key of the novelty in metrics.json: its row in the report
    "generated_to_train": "distance of a generated network to the nearest training run",
    "heldout_to_train": "distance of a held-out network to the nearest training run",
    "zoo_leave_one_out": "distance of a training network to the nearest other run",
    "ratio": "novelty",
}


def metrics_table(metrics: Mapping) -> str:
    """Return the scores of metrics.json as aligned plain text.

    The rows are the zoo (if it is there), the generated networks, each baseline and the ensembles. An ensemble averages probabilities. With
    `log_pool`, a second row has the scores for averaged log-probabilities. Ensembles are named zoo or generated. A suffix behind "_" may
    tell several apart. The columns are those of the kind of outputs that `metrics["outputs"]` names. Without it they are those of classes.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}, "ece": {"mean": 0.05, "std": 0.0}}
    >>> print(metrics_table({"zoo": one, "generated": one, "baselines": {}, "ensemble": {}}))
                    accuracy            NLL            ECE
    zoo        0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    generated  0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    """
    kind = _kind(metrics)
    return aligned(_rows(metrics, kind), _titles(kind))


def scores_table(scores: Mapping[str, Mapping], outputs: str = "classes") -> str:
    """Return the scores of named sets of networks as plain text. The scores come from `summary`.

    `outputs` names the kind of outputs, a row of OUTPUTS. For classes the scores are accuracy, NLL and ECE.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}, "ece": {"mean": 0.05, "std": 0.0}}
    >>> print(scores_table({"8 steps": one}))
                  accuracy            NLL            ECE
    8 steps  0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    """
    kind = outputs_of(outputs)
    return aligned(_single(scores, kind), _titles(kind))


def diversity_table(found: Mapping[str, Mapping[str, float | None]], outputs: str = "classes") -> str:
    """Return as plain text how far apart two networks of each set are, in their weights and in their predictions.

    `outputs` names the kind of outputs, a row of OUTPUTS. For classes, predictions are apart where they are different classes.

    >>> print(diversity_table({"zoo": {"distance": 30.5, "disagreement": 0.0421}}))
         distance  disagreement
    zoo      30.5        0.0421
    """
    return aligned(_apart(found), ["distance", outputs_of(outputs).apart.title])


def _apart(found: Mapping[str, Mapping[str, float | None]]) -> list[list[str]]:
    return [[name, *(_number(one[key], form) for key, form in DIVERSITY.items())] for name, one in found.items()]


def _kind(metrics: Mapping) -> Outputs:
    return outputs_of(metrics.get("outputs", "classes"))


def _titles(kind: Outputs) -> list[str]:
    return [column.title for column in kind.columns.values()]


def densities_table(found: Mapping[str, Mapping]) -> str:
    """Return as plain text what `geoflow.evaluation.densities.compare` found, with the log-densities in nats.

    >>> one = {"networks": 8, "median": 1012.31, "per_weight": 1.332, "std": 21.4, "standard_error": 1.2, "auroc": 0.5}
    >>> print(densities_table({"heldout": one, "mean_network": one | {"networks": 1, "std": None}}))
                  networks  median  per weight   std  standard error  AUROC
    heldout              8  1012.3       1.332  21.4             1.2  0.500
    mean_network         1  1012.3       1.332     -             1.2  0.500
    """
    rows = ([name, *(_number(one[key], form) for key, form in DENSITIES.items())] for name, one in found.items())
    titles = ("AUROC" if key == "auroc" else key.replace("_", " ") for key in DENSITIES)
    return aligned(rows, titles)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def aligned(rows: Iterable[list[str]], titles: Iterable[str]) -> str:
    """Return rows as plain text, each with a name and cells. The columns stand below their titles."""
    rows = [["", *titles], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in rows]
    return "\n".join(lines)


def write_report(folder: str | Path, metrics: Mapping, config: Mapping) -> Path:
    """Write `folder`/report.md from the content of metrics.json, and return its path.

    It has tables of scores, novelty, diversity and times, the figures of `folder`/figures, and the configuration.
    """
    folder, kind = Path(folder), _kind(metrics)
    layers = {f"novelty of layer {name}": ratio for name, ratio in metrics["novelty"]["layers"].items()}
    found = {name: value for name, value in (metrics["novelty"] | layers).items() if name != "layers"}
    novelty = [[NAMES.get(name, name), "-" if value is None else f"{value:.4g}"] for name, value in found.items()]
    part = f"{config.get('part', 'test')} part of the data"
    times = [[name, f"{seconds:.1f}"] for name, seconds in metrics["time"].items()]
    parts = [
        f"# {metrics['flow']} flow on {metrics['task']}, seed {metrics['seed']}",
        f"The networks have {metrics['parameters']:,} parameters. Scores are measured on the {part}. They are the mean ± standard "
        f"deviation over single networks. {kind.said}{_units(metrics)}",
        _markdown(["networks", *_titles(kind)], _rows(metrics, kind)),
        *_statistics(metrics.get("recalibrated")),
        "## Novelty\n\nAre the networks new? Distances are medians. Every layer has the same share of them. Two training networks are 1 "
        "apart (root mean square).\n\n"
        "- *novelty* is the distance of generated networks divided by that of training networks. It is near 0 for copies, and near 1 for "
        "networks as new as another training run. *novelty of layer* is the same for one layer alone.\n"
        "- *copies* is the share of generated networks that are suspiciously close to one training run. For really new networks it is "
        ".01.\n"
        "- *spread* is the distance between two generated networks, divided by that between two networks of the zoo. Below 1 they are too "
        "much alike.",
        _markdown(["", "value"], novelty),
        "## Diversity\n\nHow different are two networks of one set? *distance* is their root mean square distance in the flow's canonical "
        f"weights. *{kind.apart.title}* is {kind.apart.words}.",
        _markdown(["networks", "distance", kind.apart.title], _apart(metrics["diversity"])),
        *_pairs(metrics.get("pairwise")),
        "## Time",
        _markdown(["phase", "seconds"], times),
        *_figures(folder, kind),
        "## Configuration\n\n```json\n" + json.dumps(config, indent=2, sort_keys=True, default=str) + "\n```",
    ]
    path = folder / "report.md"
    with whole(path) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _units(metrics: Mapping) -> str:
    """Return what the unit of each real target is."""
    units = ", ".join(f"{target['deviation']:.4g} for {target['name']}" for target in metrics.get("targets", ()))
    return units and f" Targets are counted in standard deviations of the training part: {units}."


def _statistics(examples: int | None) -> list[str]:
    """Return a line on running statistics, for networks that have any."""
    if examples is None:
        return []
    if not examples:
        return ["Running statistics of the generated networks and of the baselines were not measured anew."]
    return [f"Running statistics of the generated networks and of the baselines were measured anew on {examples:,} training inputs; the "
            "zoo's networks keep theirs."]  # fmt: skip


def _pairs(found: Mapping[str, Mapping] | None) -> list[str]:
    """Return the part on pairs of networks. Runs that were scored before it was measured have none."""
    if found is None:
        return []
    rows = [
        [words, str(found[pair]["against"]), *(_number(found[pair][measure], ".4f") for measure in PAIRS)] for pair, words in OF_TWO.items()
    ]
    return [
        "## Pairs of networks\n\nThe measures of the literature between two generated networks, between a generated network and the zoo, "
        "and between two networks of the zoo from different runs.\n\n"
        "- *max IoU of mistakes* is the share of mistakes that a network has in common with the most similar other one. A copy has 1, and "
        "new networks have what networks of the zoo have. It grows with the number of others, so compare rows with the same number.\n"
        "- *JS distance of predictions* is the mean Jensen-Shannon distance of two predictions, from 0 (equal) to 1. If it is below the "
        "zoo's, generated networks are too much alike.\n"
        "- *Wasserstein distance of weights* compares the sorted weights of balanced networks. It says whether weights are as large as the "
        "zoo's, and nothing about copies.",
        _markdown(["networks", "others", *PAIRS.values()], rows),
    ]


def _rows(metrics: Mapping, kind: Outputs) -> Iterator[list[str]]:
    """Yield the name and the scores of every set of networks."""
    yield from _single({name: metrics[name] for name in ("zoo", "generated") if name in metrics} | dict(metrics["baselines"]), kind)
    for name, scores in metrics["ensemble"].items():
        for one, how in ((scores, ""), (scores.get("log_pool"), ", log pool")):
            if one:
                numbers = (f"{one[column]:.3f}" + " " * len(" ± 0.000") for column in kind.columns)
                yield [f"ensemble of {scores['n']} {name.split('_')[0]}{how}", *numbers]


def _single(scores: Mapping[str, Mapping], kind: Outputs) -> Iterator[list[str]]:
    for name, one in scores.items():
        yield [name.replace("_", " "), *(f"{one[c]['mean']:.3f} ± {one[c]['std']:.3f}" for c in kind.columns)]


def _markdown(header: list[str], rows) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *([cell.strip() for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures(folder: Path, kind: Outputs) -> list[str]:
    first, second = (kind.columns[field].words for field in kind.main)
    said = {name: caption.format(main=f"{first[0].upper()}{first[1:]} and {second}") for name, caption in CAPTIONS.items()}
    found = [name for name in said if (folder / "figures" / f"{name}.png").exists()]
    return ["## Figures", *(f"![{said[name]}](figures/{name}.png)\n\n*{said[name]}*" for name in found)] if found else []
