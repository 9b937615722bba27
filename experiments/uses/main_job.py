"""Train a zoo, fit a flow to it, make new networks, and score them: the main job."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from configuration import ex
from lab.advice import advice
from lab.architectures import architectures_of
from lab.checks import device_name, device_of
from lab.collect import Collected, at_terminal, cache_of, collect_each, collect_sparing, join
from lab.draw import generate, generate_in_file, guidance_of, measuring_examples, own_flow, sampling_settings
from lab.folder import Samples, commit, save_samples, write_json
from lab.in_files import with_points_beside
from lab.levels import levels
from lab.options import flow_settings, plainly
from lab.own import files_of, unmeasured
from lab.reading import is_read
from torch import Tensor

from geoflow.canonical import Canonical
from geoflow.coordinates import FLOWS
from geoflow.evaluation.keeping import InFiles
from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.report import write_overview, write_report
from geoflow.evaluation.scoreboard import recalibrated, scoreboard
from geoflow.evaluation.tables import levels_table, metrics_table
from geoflow.flow import Flow
from geoflow.frame import UNTURNED, metric_frame
from geoflow.graph import graph_of
from geoflow.latent.large import canonical_beside
from geoflow.randomness import randomness
from geoflow.training import AUTO, prepare, train
from geoflow.zoo.files import write_missing
from geoflow.zoo.large import LargeZoo
from geoflow.zoo.store import digest
from uses.writing import folder_of, timed

NETWORKS = "networks"  # the folder of new networks in that of a run whose zoo is kept in files
IN_FILES = {"collect": "read", "prepare": "latent", "train": "fit", "sample": "generate"}  # what these phases are called there
ORDER = {"shared": "one common start, and their units in one order", "independent": "starts of their own, and their units in any order"}


@ex.main
@plainly()
def main(_config, _run):
    """Train a zoo, fit a flow to it, make new networks, and say how good and how new they are."""
    folder, seconds, memory = folder_of(_run), {}, {}
    device, settings = device_of(_config["device"]), flow_settings(_config) | files_of(_config)
    _run.info |= {"device": device_name(device), "threads": torch.get_num_threads(), "torch": str(torch.__version__), "commit": commit()}

    if not is_read(_config) and all(unmeasured(one["network"], one["task"]) for one in architectures_of(_config).values()):
        print(f"There is no recipe for zoos of this network on these data. The usual one is taken: {recipe(_config)}.")
    with timed(seconds, "collect", memory):
        found = collect_each(_config, device, alone=collect_sparing)
        joined = join(found, _config, device)
        inputs = joined.inputs if _config["metric"] == "inputs" else None
        zoo = next(iter(found.values())).fitted
    if not is_read(_config):
        velocity, origin = _config["velocity"], _config["zoo"]["origin"]
        print(f"velocity={velocity} for networks with {ORDER[origin]} (zoo.origin={origin}).")
    if large := isinstance(zoo, LargeZoo):
        with timed(seconds, "align", memory):
            canonical = aligned(zoo, inputs, _config)
    with timed(seconds, "prepare", memory):
        untrained, points = prepare(joined.specs, joined.zoos, settings, inputs, joined.conditions, progress=large and at_terminal())
    if settings["velocity"] == AUTO:
        print(untrained.config["reason"])
    chosen = {name: untrained.config[name] for name in ("velocity", "sizes")}
    with timed(seconds, "train", memory):
        checkpoint = checkpoint_of(_config, found, settings)
        if checkpoint.exists():
            print(f"Going on with the interrupted training of {checkpoint}.")
        flow = train(untrained.to(device), points, checkpoint, _config["every"], at_terminal(), joined.conditions)
        flow = with_points_beside(flow, folder)
        flow.save(folder / "flow.safetensors")

    tasks = list(dict.fromkeys(one.task.name for one in found.values()))
    common = {"flow": _config["flow"], "task": tasks if len(tasks) > 1 else tasks[0], "seed": _config["seed"]}
    blocks, advised = {}, []
    for label, one in found.items():
        config = {**_config, **chosen, **architectures_of(_config)[label]}
        if large:
            blocks[label], work = draw_and_score_in_files(flow, one, canonical, config, folder, checkpoint.stem, seconds, memory)
        else:
            blocks[label] = draw_and_score(own_flow(flow, one), one, config, folder / label, seconds, memory)
        common |= {"time": renamed(seconds, large), "memory": renamed(memory, large)}
        advised += advice(blocks[label], _config, _run.meta_info["named_configs"])
        write_report(folder / label, blocks[label] | common | {"task": one.task.name}, config)
    metrics = blocks[""] | common if "" in blocks else {"architectures": blocks} | common
    write_json(folder / "metrics.json", metrics)
    if "" not in blocks:
        write_overview(folder, metrics)
    checkpoint.unlink(missing_ok=True)
    if large:
        shutil.rmtree(work)
    asked = [levels_table(one["condition"], one.get("outputs", "classes")) for one in blocks.values() if "condition" in one]
    print(metrics_table(metrics), *asked, *dict.fromkeys(advised), f"Written to {folder}", sep="\n\n")


def renamed(phases: Mapping[str, float], large: bool) -> dict[str, float]:
    """Return what was measured of each phase. Beside a zoo in files some phases have other names."""
    return {IN_FILES.get(phase, phase) if large else phase: value for phase, value in phases.items()}


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


def aligned(zoo: LargeZoo, inputs: Tensor | None, config: Mapping) -> Canonical:
    """Return the canonical form of a zoo in a file, which `prepare` then finds beside the zoo."""
    frame = UNTURNED if inputs is None else metric_frame(graph_of(zoo.spec), inputs)
    return canonical_beside(zoo.spec, zoo.thetas, FLOWS[config["flow"]], config["align"], frame, at_terminal())


def draw_and_score(
    flow: Flow, found: Collected, config: Mapping, folder: Path, seconds: dict[str, float], memory: dict[str, float]
) -> dict:
    """Make new networks of one architecture, and write them and the figures into a folder. Return what metrics.json says of them."""
    task, network, spec, seed = found.task, found.network, found.spec, config["seed"]
    with timed(seconds, "sample", memory):
        thetas, paths = generate(flow, network, spec, task, config, guidance_of(network, task, config))
        seen = measuring_examples(spec, task, config, seed)
        made = flow_settings(config) | files_of(config) | sampling_settings(config) | recalibrated(spec, seen)
        save_samples(folder / "samples.safetensors", Samples(thetas, spec, made))
    with timed(seconds, "evaluate", memory):
        board = scoreboard(
            network, spec, found.fitted, thetas, task, flow, found.heldout.networks, seen=seen, paths=paths,
            generator=randomness(seed, "evaluate"), device=device_of(config["device"]),
        )  # fmt: skip
        metrics = dict(board.metrics)
        save_figures(folder / "figures", board.figures)
        if config["condition"] == "nll":
            metrics["condition"] = levels(flow, network, spec, task, config, device_of(config["device"]))
    return metrics


def draw_and_score_in_files(
    flow: Flow, found: Collected, canonical: Canonical, config: Mapping, folder: Path, training: str, seconds: dict, memory: dict
) -> tuple[dict, Path]:
    """Do what `draw_and_score` does beside a zoo in a file. `canonical` is its canonical form, and `training` names that of the flow.

    What is made on the way lies in a folder beside the zoo, so the same command goes on after an interruption. This folder is returned too.
    The new networks become state dicts.
    """
    task, network, spec, seed = found.task, found.network, found.spec, config["seed"]
    drawn = digest({"training": training, "count": config["count"], **sampling_settings(config)})
    work, progress = found.fitted.thetas.path.parent / f"new-{drawn[:16]}", at_terminal()
    with timed(seconds, "sample", memory):
        thetas, paths = generate_in_file(flow, network, spec, task, config, guidance_of(network, task, config), work)
    with timed(seconds, "write", memory):
        write_missing(work / NETWORKS, spec, thetas, progress)
    with timed(seconds, "evaluate", memory):
        keep = InFiles(work / "board", {"zoo": canonical.theta} if config["align"] else {}, progress)
        board = scoreboard(
            network, spec, found.fitted, thetas, task, flow, found.heldout.thetas, seen=measuring_examples(spec, task, config, seed),
            paths=paths, generator=randomness(seed, "evaluate"), device=device_of(config["device"]), keep=keep,
        )  # fmt: skip
        save_figures(folder / "figures", board.figures)
    shutil.move(work / NETWORKS, folder / NETWORKS)
    return dict(board.metrics), work
