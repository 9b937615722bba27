"""Train a zoo, fit a flow to it, make new networks, and score them: the main job."""

from collections.abc import Mapping
from pathlib import Path

import torch
from configuration import ex
from lab.advice import advice
from lab.architectures import architectures_of
from lab.checks import device_name, device_of
from lab.collect import Collected, at_terminal, cache_of, collect_each, join
from lab.draw import generate, guidance_of, measuring_examples, own_flow, sampling_settings
from lab.folder import Samples, commit, save_samples, write_json
from lab.levels import levels
from lab.options import flow_settings, plainly
from lab.own import files_of, unmeasured
from lab.reading import is_read

from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.report import write_overview, write_report
from geoflow.evaluation.scoreboard import recalibrated, scoreboard
from geoflow.evaluation.tables import levels_table, metrics_table
from geoflow.flow import Flow
from geoflow.randomness import randomness
from geoflow.training import AUTO, prepare, train
from geoflow.zoo.store import digest
from uses.writing import folder_of, timed

ORDER = {"shared": "one common start, and their units in one order", "independent": "starts of their own, and their units in any order"}


@ex.main
@plainly()
def main(_config, _run):
    """Train a zoo, fit a flow to it, make new networks, and say how good and how new they are."""
    folder, seconds = folder_of(_run), {}
    device, settings = device_of(_config["device"]), flow_settings(_config) | files_of(_config)
    _run.info |= {"device": device_name(device), "threads": torch.get_num_threads(), "torch": str(torch.__version__), "commit": commit()}

    if not is_read(_config) and all(unmeasured(one["network"], one["task"]) for one in architectures_of(_config).values()):
        print(f"There is no recipe for zoos of this network on these data. The usual one is taken: {recipe(_config)}.")
    with timed(seconds, "collect"):
        found = collect_each(_config, device)
    if not is_read(_config):
        velocity, origin = _config["velocity"], _config["zoo"]["origin"]
        print(f"velocity={velocity} for networks with {ORDER[origin]} (zoo.origin={origin}).")
    with timed(seconds, "prepare"):
        joined = join(found, _config, device)
        inputs = joined.inputs if _config["metric"] == "inputs" else None
        untrained, points = prepare(joined.specs, joined.zoos, settings, inputs, joined.conditions, device=device)
    if settings["velocity"] == AUTO:
        print(untrained.config["reason"])
    chosen = {name: untrained.config[name] for name in ("velocity", "sizes")}
    with timed(seconds, "train"):
        checkpoint = checkpoint_of(_config, found, settings)
        if checkpoint.exists():
            print(f"Going on with the interrupted training of {checkpoint}.")
        flow = train(untrained.to(device), points, checkpoint, _config["every"], at_terminal(), joined.conditions)
        flow.save(folder / "flow.safetensors")

    tasks = list(dict.fromkeys(one.task.name for one in found.values()))
    common = {"time": seconds, "flow": _config["flow"], "task": tasks if len(tasks) > 1 else tasks[0], "seed": _config["seed"]}
    blocks, advised = {}, []
    for label, one in found.items():
        config = {**_config, **chosen, **architectures_of(_config)[label]}
        blocks[label] = draw_and_score(own_flow(flow, one), one, config, folder / label, seconds)
        advised += advice(blocks[label], _config, _run.meta_info["named_configs"])
        write_report(folder / label, blocks[label] | common | {"task": one.task.name}, config)
    metrics = blocks[""] | common if "" in blocks else {"architectures": blocks} | common
    write_json(folder / "metrics.json", metrics)
    if "" not in blocks:
        write_overview(folder, metrics)
    checkpoint.unlink(missing_ok=True)
    asked = [levels_table(one["condition"], one.get("outputs", "classes")) for one in blocks.values() if "condition" in one]
    print(metrics_table(metrics), *asked, *dict.fromkeys(advised), f"Written to {folder}", sep="\n\n")


def recipe(config: Mapping) -> str:
    """Return how the zoo of a configuration is trained, as one types it."""
    shown = {name: config[name] for name in ("runs", "snapshots")}
    shown |= {f"zoo.{name}": config["zoo"][name] for name in ("epochs", "batch", "lr", "weight_decay")}
    return " ".join(f"{name}={value}" for name, value in shown.items())


def checkpoint_of(config: Mapping, found: Mapping[str, Collected], settings: Mapping) -> Path:
    """Return where the state of this training is kept while it is under way. The name holds a digest of all that decides it."""
    zoos, task = [one.fitted.configuration for one in found.values()], "-".join(dict.fromkeys(one.task.name for one in found.values()))
    training = digest({"zoo": zoos if len(zoos) > 1 else zoos[0], "heldout": config["heldout"], "flow": settings})
    return cache_of(config) / f"flow-{task}-{training[:16]}.safetensors"


def draw_and_score(flow: Flow, found: Collected, config: Mapping, folder: Path, seconds: dict[str, float]) -> dict:
    """Make new networks of one architecture, and write them and the figures into a folder. Return what metrics.json says of them."""
    task, network, spec, seed = found.task, found.network, found.spec, config["seed"]
    with timed(seconds, "sample"):
        thetas, paths = generate(flow, network, spec, task, config, guidance_of(network, task, config))
        seen = measuring_examples(spec, task, config, seed)
        made = flow_settings(config) | files_of(config) | sampling_settings(config) | recalibrated(spec, seen)
        save_samples(folder / "samples.safetensors", Samples(thetas, spec, made))
    with timed(seconds, "evaluate"):
        board = scoreboard(
            network, spec, found.fitted, thetas, task, flow, found.heldout.networks, seen=seen, paths=paths,
            generator=randomness(seed, "evaluate"), device=device_of(config["device"]),
        )  # fmt: skip
        metrics = dict(board.metrics)
        save_figures(folder / "figures", board.figures)
        if config["condition"] == "nll":
            metrics["condition"] = levels(flow, network, spec, task, config, device_of(config["device"]))
    return metrics
