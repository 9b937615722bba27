"""Lay out the kept runs of a page as tables: quality, what they are held against, what sharpness does and transfers give; zoo sizes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from statistics import mean

from geoflow.flow import BEFORE as FITTED_BEFORE

# what sets runs of one task and flow apart, besides the seed
SETTINGS = (
    "metric", "align", "velocity", "coupling", "prediction", "weighting", "time", "runs", "iterations", "batch", "lr", "steps", "start",
    "sharpness",
)  # fmt: skip
SHOWN = (*SETTINGS, "snapshots")
LEAST_SIZES = 3  # of zoos, for a picture over them
BEFORE = {"start": 0.0, **FITTED_BEFORE}  # how runs that are older than an option were made
# what a kept run's folder holds: "metrics", "config", "ran", and where they were measured "curve" (over steps) and "sharpness"
Run = Mapping

UNKNOWN = {"nll": {"mean": float("nan")}}  # of a run older than a baseline
# title: (its value in metrics.json, format)
Columns = dict[str, tuple[Callable[[dict], float], str]]
QUALITY: Columns = {
    "zoo accuracy": (lambda m: m["zoo"]["accuracy"]["mean"], ".4f"),
    "accuracy": (lambda m: m["generated"]["accuracy"]["mean"], ".4f"),
    "its std": (lambda m: m["generated"]["accuracy"]["std"], ".3f"),
    "zoo NLL": (lambda m: m["zoo"]["nll"]["mean"], ".4f"),
    "NLL": (lambda m: m["generated"]["nll"]["mean"], ".4f"),
    "NLL / zoo": (lambda m: m["generated"]["nll"]["mean"] / m["zoo"]["nll"]["mean"], ".3f"),
    "ECE": (lambda m: m["generated"]["ece"]["mean"], ".3f"),
    "ensemble accuracy": (lambda m: small_ensemble(m, "generated")["accuracy"], ".4f"),
    "zoo ensemble": (lambda m: small_ensemble(m, "zoo")["accuracy"], ".4f"),
    "ensemble ECE": (lambda m: small_ensemble(m, "generated")["ece"], ".3f"),
    "log pool": (lambda m: log_pool(m, "generated")["accuracy"], ".4f"),
    "zoo log pool": (lambda m: log_pool(m, "zoo")["accuracy"], ".4f"),
    "log pool ECE": (lambda m: log_pool(m, "generated")["ece"], ".3f"),
    "novelty": (lambda m: novelty_of(m, "ratio"), ".3f"),
    "of a layer": (lambda m: min(m["novelty"].get("layers", {"": float("nan")}).values()), ".3f"),
    "copies": (lambda m: novelty_of(m, "copies"), ".3f"),
}
BESIDE: Columns = {
    "NLL": QUALITY["NLL"],
    "mean network NLL": (lambda m: m["baselines"]["mean_network"]["nll"]["mean"], ".3f"),
    "rescaled mean NLL": (lambda m: m["baselines"].get("rescaled_mean", UNKNOWN)["nll"]["mean"], ".3f"),
    "interpolation NLL": (lambda m: m["baselines"]["interpolation"]["nll"]["mean"], ".3f"),
    "Gaussian NLL": (lambda m: m["baselines"]["gaussian"]["nll"]["mean"], ".3f"),
    "components NLL": (lambda m: m["baselines"]["pca_gaussian"]["nll"]["mean"], ".3f"),
    "noised NLL": (lambda m: m["baselines"]["noised"]["nll"]["mean"], ".3f"),
    "interpolation novelty": (lambda m: baseline_novelty(m, "interpolation"), ".2f"),
    "noised novelty": (lambda m: baseline_novelty(m, "noised"), ".2f"),
    "spread / zoo": (lambda m: novelty_of(m, "spread"), ".3f"),
    "disagreement / zoo": (lambda m: diversity(m, "disagreement"), ".3f"),
    "minutes": (lambda m: (m["time"]["train"] + m["time"]["sample"]) / 60, ".1f"),
}
# of networks without a zoo at hand, whose ruler is not known: distances are those in the flow's own canonical weights
BY_SHARPNESS = {
    title: QUALITY[title]
    for title in ("accuracy", "its std", "NLL", "ECE", "ensemble accuracy", "ensemble ECE", "log pool", "log pool ECE")
} | {
    "distance / zoo": (lambda m: diversity(m, "distance"), ".3f"),
    "disagreement / zoo": BESIDE["disagreement / zoo"],
}


def small_ensemble(metrics: Mapping, name: str) -> Mapping:
    """The scores of the ensemble of 64 networks, or of all where no more were drawn or the run is older than that figure."""
    return metrics["ensemble"].get(f"{name}_64", metrics["ensemble"][name])


def log_pool(metrics: Mapping, name: str) -> Mapping:
    """The scores of the same ensemble where log-probabilities are averaged, not probabilities; NaN for a run older than that figure."""
    return small_ensemble(metrics, name).get("log_pool", defaultdict(lambda: float("nan")))


def novelty_of(metrics: Mapping, name: str) -> float:
    """A figure of how new the generated networks are; NaN for a run that was measured before each layer counted the same."""
    found = metrics["novelty"].get(name) if "copies" in metrics["novelty"] else None
    return float("nan") if found is None else found


def diversity(metrics: Mapping, name: str) -> float:
    """How much two generated networks differ, in units of two of the zoo; NaN for a run older than that figure, or of one network."""
    found = metrics.get("diversity")
    return found["generated"][name] / found["zoo"][name] if found and found["generated"][name] is not None else float("nan")


def baseline_novelty(metrics: Mapping, name: str) -> float:
    """The novelty ratio of a baseline; NaN for a run that was measured before each layer counted the same."""
    return metrics["baselines"][name]["novelty"] if "copies" in metrics["novelty"] else float("nan")


def zoo_seed(config: Mapping) -> int:
    """The seed of a run's zoo: the run's own where none is named."""
    return config["zoo"].get("seed", config["seed"])


def quality_table(runs: Sequence[Run], missed: Callable[[Mapping], list[str]]) -> str:
    """How good and how new the networks of every run are, with the mean over seeds below each group of settings."""
    return _table(runs, QUALITY, {"missed": lambda run: ", ".join(missed(run["metrics"])) or "-"})


def beside_table(runs: Sequence[Run]) -> str:
    """The same runs beside the baselines, how much their networks differ, and what they cost."""
    return _table(runs, BESIDE, {"on": lambda run: place(run["ran"]), "commit": commits})


def commits(run: Run) -> str:
    """The commit that made a run, and the one that scored it again; a + says that files had changed since."""
    several = ["".join(run["ran"]["commit"]), *([run["metrics"]["rescored"]["commit"]] if "rescored" in run["metrics"] else [])]
    return ", scored ".join(commit[:7] + "+" * commit.endswith("+") for commit in several)


def ahead_table(runs: Sequence[Run]) -> str:
    """For each flow in how many runs its networks have a lower mean NLL than the zoo, and than each baseline."""
    names = list(dict.fromkeys(name for run in runs for name in run["metrics"]["baselines"]))
    lines = [["task", "flow", "runs", "zoo", *(name.replace("_", " ") for name in names)]]
    by_flow = defaultdict(list)
    for run in runs:
        by_flow[run["config"]["task"], run["config"]["flow"]].append(run["metrics"])
    for (task, flow), several in sorted(by_flow.items()):
        cells = [_ahead(several, [m["zoo"] for m in several])]
        cells += [_ahead(several, [m["baselines"].get(name, UNKNOWN) for m in several]) for name in names]
        lines.append([task, flow, str(len(several)), *cells])
    return markdown(lines)


def _ahead(several: Sequence[Mapping], others: Sequence[Mapping]) -> str:
    known = [(m["generated"]["nll"]["mean"], one["nll"]["mean"]) for m, one in zip(several, others, strict=True) if one is not UNKNOWN]
    count = sum(new < other for new, other in known)
    return f"{count}" if len(known) == len(several) else f"{count} of {len(known)}"


def sharpness_table(name: str, run: Run) -> str:
    """What a flow's networks gain by sharpness, and how alike they become; the zoo beside them."""
    m, found = run["metrics"], BEFORE | run["sharpness"]
    zoo = {"generated": m["zoo"], "ensemble": {"generated": small_ensemble(m, "zoo")}, "diversity": {"generated": m["diversity"]["zoo"]}}
    lines = [["sharpness", *BY_SHARPNESS, "NLL on training data"]]
    for sharpness, one in {**found["sharpness"], "zoo": zoo}.items():
        as_a_run = _beside_the_zoo(run, one)
        training = f"{one['training']['nll']['mean']:.4f}" if "training" in one else "-"
        lines.append([sharpness, *(_number(value(as_a_run), form) for value, form in BY_SHARPNESS.values()), training])
    begun = f" from time {found['start']:g} on" if found["start"] else ""
    return f"""## By sharpness: {name} ({found["count"]} networks, {found["steps"]} steps{begun})

*distance* is in the flow's own canonical weights, without a ruler: nearly all of it is that of last layers, in pictures too.

{markdown(lines)}

"""


def transfer_table(name: str, run: Run) -> str:
    """What a flow makes of networks that it never saw: other widths, or another task; nothing where none was kept."""
    found = [one for file, one in run.items() if file.startswith("transfer-")]
    columns = {title: BY_SHARPNESS[title] for title in BY_SHARPNESS if "/ zoo" not in title}
    lines = [["task", "hidden layers", "parameters", "networks", "steps", "sharpness", *columns]]
    for one in sorted(found, key=lambda one: (one["task"], one["parameters"])):
        how = [one["task"], "-".join(map(str, one["hidden"])), *(str(one[key]) for key in ("parameters", "count", "steps", "sharpness"))]
        lines.append([*how, *(_number(value(one), form) for value, form in columns.values())])
    return f"## Transfer, without training: networks that the flow of {name} never saw\n\n{markdown(lines)}\n\n" if found else ""


def by_distance(run: Run) -> list[tuple[float, Mapping]]:
    """For each sharpness of a flow the distance of two of its networks, in units of the zoo, and their scores."""
    return [(diversity(_beside_the_zoo(run, one), "distance"), one["generated"]) for one in run["sharpness"]["sharpness"].values()]


def by_size(runs: Sequence[Run]) -> dict[str, dict[str, list[tuple[int, Mapping, Mapping, Mapping]]]]:
    """By task and kind of training, over the number of training runs in the zoo: (that number, novelty, scores of the generated, scores
    of the zoo). Only of runs that differ in nothing but this, with three numbers or more, and in how long they trained; not of those
    older than `copies`."""
    alike, lines = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for run in (run for run in runs if "copies" in run["metrics"]["novelty"]):
        others = {name: value for name, value in _settings(run).items() if name not in ("runs", "iterations", "ensembles of")}
        alike[run["config"]["task"], run["config"]["flow"], run["metrics"]["seed"], *others.items()].append(run)
    for (task, flow, seed, *_), group in alike.items():
        if len({run["config"]["runs"] for run in group}) >= LEAST_SIZES:
            for run in sorted(group, key=lambda run: (run["config"]["iterations"], run["config"]["runs"])):
                m, config = run["metrics"], run["config"]
                point = (config["runs"], m["novelty"], m["generated"], m["zoo"])
                lines[task][f"{flow}, {config['iterations']} iterations, seed {seed}"].append(point)
    return lines


def _beside_the_zoo(run: Run, one: Mapping) -> dict:
    """What one sharpness gave, with how much two networks of the run's zoo differ."""
    return one | {"diversity": run["metrics"]["diversity"] | one["diversity"]}


def groups(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Runs that differ in nothing but their seed, by task, flow and in which settings they are not as most runs of their task."""
    most, found = usual(runs), defaultdict(list)
    for run in runs:
        settings = _settings(run)
        others = [f"{name} {settings.get(name, '-')}" for name, value in most[run["config"]["task"]].items() if settings.get(name) != value]
        others = [one for one in others if not (one.startswith("sizes.") and one.endswith(" -"))]  # another velocity has other sizes
        found[run["metrics"]["task"], run["config"]["flow"], ", ".join(others) or "-"].append(run)
    return {key: sorted(found[key], key=lambda run: run["metrics"]["seed"]) for key in sorted(found)}


def usual(runs: Sequence[Run]) -> dict[str, dict[str, str | None]]:
    """By task, the settings in which its runs differ, as most runs have them; None where no value is the most frequent."""
    by_task = defaultdict(list)
    for run in runs:
        by_task[run["config"]["task"]].append(_settings(run))
    found = {}
    for task, several in by_task.items():
        names = dict.fromkeys(name for settings in several for name in settings)
        counts = {name: Counter(settings.get(name) for settings in several) for name in names}
        found[task] = {name: _most_frequent(count) for name, count in counts.items() if len(count) > 1}
    return found


def _most_frequent(count: Counter) -> str | None:
    (first, times), (_, next_times) = count.most_common(2)
    return first if times > next_times else None


def _table(runs: Sequence[Run], columns: Columns, words: dict[str, Callable[[Run], str]]) -> str:
    lines = [["task", "flow", "settings", "seed", *columns, *words]]
    for names, group in groups(runs).items():
        for run in group:
            zoo, seed = zoo_seed(run["config"]), run["metrics"]["seed"]
            numbers = [_number(value(run["metrics"]), form) for value, form in columns.values()]
            lines.append([*names, f"{seed}" if zoo == seed else f"{seed}, zoo {zoo}", *numbers, *(word(run) for word in words.values())])
        if len(group) > 1:
            means = [_number(mean(value(run["metrics"]) for run in group), form) for value, form in columns.values()]
            lines.append([*names, "mean", *means, *("" for _ in words)])
    return markdown(lines)


def _settings(run: Run) -> dict[str, str]:
    """The settings of a run that may set it apart, by name; sizes by their own."""
    config = BEFORE | run["config"]
    sizes = {f"sizes.{name}": size for name, size in config.get("sizes", {}).items()}
    settings = {name: config.get(name) for name in SHOWN} | sizes
    settings |= {"ensembles of": small_ensemble(run["metrics"], "generated")["n"]}
    return {name: str(value) for name, value in settings.items() if value is not None}


def markdown(lines: list[list[str]]) -> str:
    head, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _number(value: float, form: str) -> str:
    return "-" if isnan(value) else format(value, form)


def place(ran: Mapping) -> str:
    """What computed a run: a GPU, or so many threads of a processor."""
    device, threads = ran.get("device", "cpu"), ran.get("threads", "?")
    return f"{threads} CPU thread{'s' * (threads != 1)}" if device == "cpu" else device
