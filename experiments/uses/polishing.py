"""Train new networks for a few steps, and score how good they become and how new they stay."""

from configuration import ex
from lab.architectures import own_label
from lab.checks import device_of
from lab.collect import another_zoo, at_terminal, collect_each, fitted_to, made_with
from lab.draw import POLISH, generate, labelled_examples, own_flow, polished, reopen
from lab.folder import write_json
from lab.labels import fresh_networks
from lab.options import plainly
from tqdm import tqdm

from geoflow.evaluation.baselines import baseline
from geoflow.evaluation.comparisons import plot_frontier
from geoflow.evaluation.exam import Exam
from geoflow.evaluation.measuring import ruler_of
from geoflow.evaluation.metrics import summary
from geoflow.evaluation.novelty import nearest_runs, novelty
from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.tables import new_and_good_table
from geoflow.randomness import randomness
from uses.writing import folder_of

BASELINES = ("interpolation", "noised", "gaussian")  # which baselines are trained as well


@ex.command
@plainly()
def polish(_config, _run):
    """Score what the flow of checkpoint=runs/3 draws, baselines and random networks after a few training steps, up to polish=64."""
    folder, device, made = folder_of(_run), device_of(_config["device"]), made_with(_config)
    flow, network, spec, task = reopen(_config)
    each = collect_each(made, device)
    if not fitted_to(flow, each):
        print(another_zoo(made))
    own, count = each[own_label(made, _config)], _config["count"]
    flow, zoo = own_flow(flow, own), own.fitted
    canonical, exam = flow.canonical(zoo.networks), Exam(network, spec, task, device)
    generator = randomness(_config["seed"], "evaluate")
    starts = {"generated networks": generate(flow, network, spec, task, {**_config, "polish": 0})[0]}
    starts |= {f"baseline: {name}": baseline(name, flow, canonical, count, generator) for name in BASELINES}
    starts["random networks"] = fresh_networks(task, _config, spec, count)

    ruler = ruler_of(exam, zoo.networks)
    placed = ruler.place(zoo.networks)
    usual = nearest_runs(placed, placed, zoo.run_of, zoo.run_of, spec)
    steps, found, examples = numbers(_config["polish"]), {name: {} for name in starts}, labelled_examples(task, _config)
    for name, start, some in tqdm([(*one, some) for one in starts.items() for some in steps], disable=not at_terminal()):
        thetas = polished(network, spec, start.to(device), task, examples, {**_config, "polish": some}, flow.config["seed"]).cpu()
        near = nearest_runs(ruler.place(thetas), placed, zoo.run_of, spec=spec)
        new = novelty({"generated_to_train": near, "zoo_leave_one_out": usual})
        found[name][some] = summary(exam.single(thetas)) | {"novelty": new["ratio"], "copies": new["copies"]}
    how = {name: _config[name] for name in ("task", "network", "flow", "solver", "steps", "start", "sharpness", "count", "seed")}
    how |= {"lr": POLISH, "batch": _config["guiding"]["batch"], "examples": _config["guiding"]["examples"]}
    lines = {name: [(one["novelty"], one["copies"], one) for one in row.values()] for name, row in found.items()}
    zoo_scores = summary(exam.single(zoo.networks))
    write_json(folder / "polish.json", how | {"zoo": zoo_scores, "starts": found})
    save_figures(folder / "figures", {"polish": plot_frontier(lines, zoo_scores, outputs=task.outputs)})
    rows = {f"{name}, {some} steps": one for name, row in found.items() for some, one in row.items()}
    print(new_and_good_table(rows, task.outputs), f"Written to {folder}", sep="\n\n")


def numbers(last: int) -> list[int]:
    """Return the numbers of steps that are tried: 0, the powers of 4 below the last, and the last."""
    return [0, *(4**n for n in range(12) if 4**n < last), last]
