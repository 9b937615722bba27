"""Write the report of a run."""

import json
from collections.abc import Mapping
from pathlib import Path

from geoflow.evaluation.tables import apart_rows, kind_of, levels_rows, levels_titles, number, rows_of, titles_of
from geoflow.files import whole
from geoflow.outputs import Outputs

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


def write_report(folder: str | Path, metrics: Mapping, config: Mapping) -> Path:
    """Write `folder`/report.md from the content of metrics.json, and return its path.

    It has tables of scores, novelty and diversity, the figures of `folder`/figures, and the configuration. A run of the main job also tells
    its flow, task, seed and times.
    """
    folder, kind = Path(folder), kind_of(metrics)
    layers = {f"novelty of layer {name}": ratio for name, ratio in metrics["novelty"]["layers"].items()}
    found = {name: value for name, value in (metrics["novelty"] | layers).items() if name != "layers"}
    novelty = [[NAMES.get(name, name), "-" if value is None else f"{value:.4g}"] for name, value in found.items()]
    part = f"{config.get('part', 'test')} part of the data"
    times, held = metrics.get("time", {}), metrics.get("memory")
    phases = [[name, f"{seconds:.1f}", *([] if held is None else [number(held.get(name), ".2f")])] for name, seconds in times.items()]
    of_phases = ["phase", "seconds", *([] if held is None else ["most memory, GB"])]
    title = "{flow} flow on {task}, seed {seed}".format_map(metrics) if "seed" in metrics else "Generated networks beside their zoo"
    parts = [
        f"# {title}",
        f"The networks have {metrics['parameters']:,} parameters. Scores are measured on the {part}. They are the mean ± standard "
        f"deviation over single networks. {kind.said}{_units(metrics)}",
        _markdown(["networks", *titles_of(kind)], rows_of(metrics)),
        *_statistics(metrics.get("recalibrated")),
        *_asked(metrics.get("condition"), kind),
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
        _markdown(["networks", "distance", kind.apart.title], apart_rows(metrics["diversity"])),
        *_pairs(metrics.get("pairwise")),
        *(["## Time", _markdown(of_phases, phases)] if times else []),
        *_figures(folder, kind),
        *(["## Configuration\n\n```json\n" + json.dumps(config, indent=2, sort_keys=True, default=str) + "\n```"] if config else []),
    ]
    path = folder / "report.md"
    with whole(path) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def write_overview(folder: str | Path, metrics: Mapping) -> Path:
    """Write `folder`/report.md for a flow of several architectures: their scores, and links to the report of each. Return its path."""
    path, kind = Path(folder) / "report.md", kind_of(metrics)
    links = [f"- [{label}](<{label}/report.md>)" for label in metrics["architectures"]]
    parts = [
        f"# {metrics['flow']} flow on {metrics['task']}, seed {metrics['seed']}, for {len(links)} architectures",
        "One flow was fitted to all of them. Scores are the mean ± standard deviation over single networks.",
        _markdown(["networks", *titles_of(kind)], rows_of(metrics)),
        "\n".join(links),
    ]
    with whole(path) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _asked(found: Mapping | None, kind: Outputs) -> list[str]:
    """Return a section on asked levels, for a flow that was told the NLL of its networks."""
    if found is None:
        return []
    return [
        f"## Asked levels\n\nThe flow was asked for {found['networks']} networks of each of these levels of the NLL on training data. The "
        f"rank correlation of asked and reached levels is {found['rank_correlation']:.2f}.",
        _markdown(levels_titles(kind), levels_rows(found, kind)),
    ]


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
        [words, str(found[pair]["against"]), *(number(found[pair][measure], ".4f") for measure in PAIRS)] for pair, words in OF_TWO.items()
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


def _markdown(header: list[str], rows) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *([cell.strip() for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures(folder: Path, kind: Outputs) -> list[str]:
    first, second = (kind.columns[field].words for field in kind.main)
    said = {name: caption.format(main=f"{first[0].upper()}{first[1:]} and {second}") for name, caption in CAPTIONS.items()}
    found = [name for name in said if (folder / "figures" / f"{name}.png").exists()]
    return ["## Figures", *(f"![{said[name]}](figures/{name}.png)\n\n*{said[name]}*" for name in found)] if found else []
