"""Score finished runs of the main job again, with the scores and baselines of today.

.venv/bin/python experiments/rescore.py runs/3 runs/4     writes their metrics.json, report.md and figures anew; networks and times stay

Figures that show the paths of the sampling stay as they are.
"""

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from lab.architectures import architectures_of
from lab.checks import device_of
from lab.collect import Collected, collect_each, fitted_to
from lab.draw import measuring_examples, own_flow
from lab.folder import commit, flow_file, read_json, read_samples, samples_file, today, write_json

from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.report import write_overview, write_report
from geoflow.evaluation.scoreboard import Scoreboard, scoreboard
from geoflow.evaluation.tables import metrics_table
from geoflow.flow import Flow
from geoflow.randomness import randomness


def rescore(run: Path, device: str) -> dict:
    """Score the networks of a run folder by the scoreboard as it is today. Write the metrics, and return them."""
    old, config = (read_json(run / name) for name in ("metrics.json", "config.json"))
    config = today(config)
    flow, found = Flow.load(flow_file(str(run)), device), collect_each(config, device)
    if not fitted_to(flow, found):
        raise ValueError(f"{run}: the zoo of its configuration is not the one that its flow was fitted to.")
    new = {"rescored": {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit()}}
    blocks, olds = {}, old.get("architectures", {"": old})
    for label, one in found.items():
        board = rescored(own_flow(flow, one), one, run, label, config, device)
        blocks[label] = {**board.metrics} | {name: value for name, value in olds[label].items() if name not in board.metrics}
        save_figures(run / label / "figures", board.figures)
        write_report(run / label, old | blocks[label] | new | {"flow": config["flow"]}, {**config, **architectures_of(config)[label]})
    metrics = old | blocks.get("", {"architectures": blocks}) | new | {"flow": config["flow"]}
    write_json(run / "metrics.json", metrics)
    if "" not in blocks:
        write_overview(run, metrics)
    return metrics


def rescored(flow: Flow, found: Collected, run: Path, label: str, config: Mapping, device: str) -> Scoreboard:
    """Return the scores of today, and figures, of the saved networks of one architecture."""
    samples, seen = read_samples(samples_file(str(run), label)), measuring_examples(found.spec, found.task, config, config["seed"])
    return scoreboard(
        found.network, found.spec, found.fitted, samples.thetas, found.task, flow, found.heldout.networks,
        seen=seen, generator=randomness(config["seed"], "evaluate"), device=device,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    options = parser.parse_args()
    for run in options.runs:
        if not all((run / name).exists() for name in ("metrics.json", "flow.safetensors", "samples.safetensors")):
            parser.error(f"{run} is no finished run of the main job: it lacks metrics.json, flow.safetensors or samples.safetensors.")
        print(run, metrics_table(rescore(run, device_of("auto"))), sep="\n\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main()
