"""Draw networks from a saved flow, and score them."""

from collections.abc import Mapping

from configuration import ex
from lab.architectures import network_settings
from lab.assess import Exam, score
from lab.collect import network_for, task_for
from lab.draw import generate, guidance_of, load_flow, measuring_examples, recalibrated, recalibrates, reopen, sampling_settings
from lab.folder import Samples, read_samples, samples_file, save_samples
from lab.options import device_of, plainly
from sacred.run import Run

from geoflow.guidance import Diverged, no_guidance
from uses.writing import folder_of, report, timed


@ex.command
@plainly()
def sample(_config, _run):
    """Draw new networks from the flow of checkpoint=runs/3."""
    folder = folder_of(_run)
    flow = load_flow(_config)
    network, spec, task, seen = None, flow.spec, None, None  # without data
    if _config["guidance"]:
        flow, network, spec, task = reopen(_config)
    elif recalibrates(spec, _config):
        try:
            flow, network, spec, task = reopen(_config)
        except OSError as error:
            print(f"The running statistics are as the flow drew them, not measured anew: {error}")
    if task is not None:
        seen = measuring_examples(spec, task, _config, flow.config["seed"])
    made = dict(flow.config) | sampling_settings(_config) | recalibrated(spec, seen)
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
    saved, seconds = samples_file(_config["checkpoint"]), {}
    if not saved.exists():
        print(f"{_config['checkpoint']} comes without samples, so evaluate draws {_config['count']} new networks from its flow.")
        return score_new_networks(_config, _run)
    print(f"The samples of {saved}:")
    samples = read_samples(saved)
    with timed(seconds, "evaluate"):
        task = task_for(*(samples.config[name] for name in ("task", "seed", "part", "network")))
        exam = Exam(network_for(task, samples.config), samples.spec, task, device_of(_config["device"]))
        metrics = score(exam, samples.thetas) | {"recalibrated": samples.config.get("recalibrated")}
    return report(metrics | {"time": seconds}, samples, folder_of(_run))


@ex.command
@plainly()
def transfer(_config, _run):
    """Draw networks of another architecture, or for another data set, from the flow of checkpoint=runs/3, and score them."""
    score_new_networks(_config, _run)


def score_new_networks(config: Mapping, run: Run) -> None:
    folder, seconds = folder_of(run), {}
    with timed(seconds, "sample"):
        flow, network, spec, task = reopen(config)
        thetas, _ = generate(flow, network, spec, task, config, guidance_of(network, task, config))
        made = recalibrated(spec, measuring_examples(spec, task, config, flow.config["seed"]))
        samples = Samples(thetas, spec, dict(flow.config) | network_settings(config) | sampling_settings(config) | made)
        save_samples(folder / "samples.safetensors", samples)
    with timed(seconds, "evaluate"):
        metrics = score(Exam(network, spec, task, device_of(config["device"])), thetas) | made
    report(metrics | {"time": seconds}, samples, folder)
