"""Draw networks from a saved flow, and score them."""

from collections.abc import Mapping

from configuration import ex
from lab.architectures import architectures_of, label_of, network_settings, own_label
from lab.checks import device_of
from lab.collect import network_for, task_for
from lab.draw import (
    asked_for,
    generate,
    guidance_of,
    load_flow,
    measuring_examples,
    recalibrates,
    reopen,
    sampling_settings,
)
from lab.folder import Samples, described, flow_file, read_samples, samples_file, save_samples
from lab.levels import levels
from lab.options import plainly
from lab.own import check_table, is_function
from lab.yardstick import recipe_of, with_trained
from sacred.run import Run

from geoflow.evaluation.exam import Exam, score
from geoflow.evaluation.scoreboard import recalibrated
from geoflow.guidance import Diverged, no_guidance
from geoflow.wiring import spec_of
from uses.writing import folder_of, report, timed


@ex.command
@plainly()
def sample(_config, _run):
    """Draw new networks from the flow of checkpoint=runs/3."""
    folder = folder_of(_run)
    flow, made_for = load_flow(_config), described(_config["checkpoint"])
    network, spec, task, seen = None, flow.charts[chart_of(made_for, _config)].spec, None, None  # without data
    if _config["guidance"] or _config["polish"]:
        flow, network, spec, task = reopen(_config)
    elif recalibrates(spec, _config):
        try:
            flow, network, spec, task = reopen(_config)
        except OSError as error:
            print(f"The running statistics are as the flow drew them, not measured anew: {error}")
    if task is not None:
        seen = measuring_examples(spec, task, _config, flow.config["seed"])
    made = dict(flow.config) | network_settings(_config) | sampling_settings(_config) | recalibrated(spec, seen) | asked_for(flow, _config)
    guidance = guidance_of(network, task, _config) if _config["guidance"] else no_guidance
    try:
        thetas, _ = generate(flow, network, spec, task, _config, guidance)
    except Diverged as error:
        save_samples(folder / "samples.safetensors", Samples(error.thetas.cpu(), spec, made))
        raise Diverged(
            f"{error} {len(error.thetas)} of {_config['count']} networks were finished before, and are kept in {folder}."
        ) from error
    save_samples(folder / "samples.safetensors", Samples(thetas, spec, made))
    print(f"{len(thetas)} networks of {spec.weights} parameters written to {folder / 'samples.safetensors'}")


@ex.command
@plainly()
def evaluate(_config, _run):
    """Score the saved samples of checkpoint=runs/3 on the test set; where there are none, newly drawn ones."""
    label = own_label(described(_config["checkpoint"]), _config)
    saved, seconds = samples_file(_config["checkpoint"], label), {}
    if not saved.exists():
        print(f"{_config['checkpoint']} comes without samples, so evaluate draws {_config['count']} new networks from its flow.")
        return score_new_networks(_config, _run)
    print(f"The samples of {saved}:")
    samples = read_samples(saved)
    with timed(seconds, "evaluate"):
        task = task_for(*(samples.config[name] for name in ("task", "seed", "part", "network")))
        network = network_for(task, samples.config)
        if is_function(samples.config["network"]):
            check_table(samples.config["network"], spec_of(network, task.x_train[:2]), samples.spec)
        exam = Exam(network, samples.spec, task, device_of(_config["device"]))
        metrics = score(exam, samples.thetas) | {"recalibrated": samples.config.get("recalibrated")}
        metrics |= {name: samples.config[name] for name in ("extrapolated",) if name in samples.config}
    if _config["condition"] == "nll" and flow_file(_config["checkpoint"]).exists():
        with timed(seconds, "levels"):
            config = {**_config, "count": len(samples.thetas)}
            metrics["condition"] = levels(*reopen(config), config, device_of(config["device"]))
    return report(metrics | {"time": seconds}, samples, folder_of(_run))


@ex.command
@plainly()
def transfer(_config, _run):
    """Draw networks of another architecture or for other data from the flow of checkpoint=runs/3, and score them beside trained ones."""
    score_new_networks(_config, _run, beside_trained=_config["yardstick"] > 0)


def chart_of(made_for: Mapping, config: Mapping) -> int:
    """Return the number of the flow's chart that the configuration's network has. Several tasks share one."""
    kinds: list[Mapping] = []
    for own in architectures_of(made_for).values():
        kind = {**own, "task": None}
        kinds += [] if kind in kinds else [kind]
    return kinds.index({**network_settings(config), "task": None})


def score_new_networks(config: Mapping, run: Run, beside_trained: bool = False) -> None:
    """Draw networks, and write and show their scores. With `beside_trained` also those of trained networks, and of the flow's own."""
    folder, seconds = folder_of(run), {}
    with timed(seconds, "sample"):
        flow, network, spec, task = reopen(config)
        thetas, _ = generate(flow, network, spec, task, config, guidance_of(network, task, config))
        made = recalibrated(spec, measuring_examples(spec, task, config, flow.config["seed"])) | asked_for(flow, config)
        samples = Samples(thetas, spec, dict(flow.config) | network_settings(config) | sampling_settings(config) | made)
        save_samples(folder / "samples.safetensors", samples)
    with timed(seconds, "evaluate"):
        metrics = score(Exam(network, spec, task, device_of(config["device"])), thetas) | made
    if beside_trained and (recipe := recipe_of(config)) is not None:
        with timed(seconds, "yardstick"):
            metrics = with_trained(metrics, thetas, config, recipe)
            own = list(architectures_of(recipe).values())
            changed = [name for name in network_settings(config) if any(one[name] != config[name] for one in own)]
            metrics["own"] = {f"own {label_of({name: one[name] for name in changed})}": scored({**config, **one}, recipe) for one in own}
    report(metrics | {"time": seconds}, samples, folder)


def scored(config: Mapping, recipe: Mapping) -> dict:
    """Return the scores of networks that the saved flow draws for a configuration, and of trained ones."""
    flow, network, spec, task = reopen(config)
    thetas, _ = generate(flow, network, spec, task, config)
    return with_trained(score(Exam(network, spec, task, device_of(config["device"])), thetas), thetas, config, recipe)
