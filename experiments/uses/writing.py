"""Write what a command found into the folder of its run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from lab.checks import InputError
from lab.folder import RunFolder, Samples, write_json
from lab.own import title_of
from sacred.run import Run

from geoflow.evaluation.tables import levels_table, metrics_table
from geoflow.peak import peak_memory

GB = 10**9


def report(metrics: dict, samples: Samples, folder: Path) -> None:
    """Write and show the scores of generated networks alone."""
    metrics |= {"flow": samples.config["flow"], "task": title_of(samples.config["task"]), "seed": samples.config["seed"]}
    metrics |= {"parameters": samples.spec.weights}
    write_json(folder / "metrics.json", metrics)
    asked = [levels_table(metrics["condition"], metrics.get("outputs", "classes"))] if "condition" in metrics else []
    beyond = ["These networks were asked for beyond what the flow saw: an extrapolation."] if metrics.get("extrapolated") else []
    print(metrics_table(metrics), *asked, *beyond, f"Written to {folder}", sep="\n\n")


def folder_of(run: Run) -> Path:
    """The folder of this run. Raises InputError where Sacred was told to keep none."""
    folders = [observer.dir for observer in run.observers if isinstance(observer, RunFolder)]
    if not folders:
        raise InputError("This command writes a run folder: leave out --unobserved.")
    return Path(folders[0])


@contextmanager
def timed(seconds: dict[str, float], phase: str, memory: dict[str, float] | None = None) -> Iterator[None]:
    """Add the time that the block takes to those of its phase. `memory` is told the most GB that the process has held in it."""
    start = perf_counter()
    with peak_memory() as peak:
        yield
    seconds[phase] = seconds.get(phase, 0.0) + perf_counter() - start
    if memory is not None:
        memory[phase] = max(memory.get(phase, 0.0), peak.held / GB)
