"""Train a zoo, fit a flow to it, make new networks, and score them: the main job."""

import torch
from configuration import ex
from lab.advice import advice
from lab.assess import Exam, assess
from lab.collect import at_terminal, cache_of, collect
from lab.draw import generate, guidance_of, measuring_examples, recalibrated, sampling_settings
from lab.folder import Samples, commit, save_samples, write_json
from lab.options import device_name, device_of, flow_settings, plainly

from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.report import metrics_table, write_report
from geoflow.randomness import randomness
from geoflow.training import prepare, train
from geoflow.zoo.store import digest
from uses.writing import folder_of, timed


@ex.main
@plainly()
def main(_config, _run):
    """Train a zoo, fit a flow to it, make new networks, and say how good and how new they are."""
    folder, seconds = folder_of(_run), {}
    device, seed, settings = device_of(_config["device"]), _config["seed"], flow_settings(_config)
    _run.info |= {"device": device_name(device), "threads": torch.get_num_threads(), "torch": str(torch.__version__), "commit": commit()}

    with timed(seconds, "collect"):
        found = collect(_config, device)
        task, network, spec, fitted = found.task, found.network, found.spec, found.fitted
    order = {"shared": "one common start, and their units in one order", "independent": "starts of their own, and their units in any order"}
    velocity, origin = _config["velocity"], _config["zoo"]["origin"]
    print(f"velocity={velocity} for networks with {order[origin]} (zoo.origin={origin}).")
    with timed(seconds, "prepare"):
        untrained, points = prepare(spec, fitted.networks, settings, task.numbers if _config["metric"] == "inputs" else None)
    with timed(seconds, "train"):
        training = digest({"zoo": fitted.configuration, "heldout": _config["heldout"], "flow": settings})
        checkpoint = cache_of(_config) / f"flow-{task.name}-{training[:16]}.safetensors"
        if checkpoint.exists():
            print(f"Going on with the interrupted training of {checkpoint}.")
        flow = train(untrained.to(device), points.to(device), checkpoint, _config["every"], at_terminal())
        flow.save(folder / "flow.safetensors")
    with timed(seconds, "sample"):
        thetas, paths = generate(flow, network, spec, task, _config, guidance_of(network, task, _config))
        seen = measuring_examples(spec, task, _config, seed)
        made = settings | sampling_settings(_config) | recalibrated(spec, seen)
        save_samples(folder / "samples.safetensors", Samples(thetas, spec, made))
    with timed(seconds, "evaluate"):
        exam = Exam(network, spec, task, device)
        metrics, figures = assess(exam, flow, fitted, found.heldout, thetas, paths, randomness(seed, "evaluate"), seen)
        save_figures(folder / "figures", figures)

    metrics |= {"time": seconds, "flow": _config["flow"], "task": task.name, "seed": seed, "parameters": spec.weights}
    write_json(folder / "metrics.json", metrics)
    write_report(folder, metrics, _config)
    checkpoint.unlink(missing_ok=True)
    advised = advice(metrics, _config, _run.meta_info["named_configs"])
    print(metrics_table(metrics), *advised, f"Written to {folder}", sep="\n\n")
