"""Train many networks, each on its own random order of its data."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import cos, pi
from pathlib import Path

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from geoflow.choices import choose
from geoflow.outputs import Outputs, outputs_of
from geoflow.population import WideProducts
from geoflow.randomness import randomness, seed_global
from geoflow.zoo.halfway import PART, Halfway, State, digest_of
from geoflow.zoo.initial import INITS
from geoflow.zoo.tasks import Task

COMMON = -1  # the number of the run that trains a common start

# name: factor of the learning rate after `passed` epochs of `epochs` and a share of the next one
SCHEDULES: dict[str, Callable[[int, float, int], float]] = {
    "constant": lambda passed, share, epochs: 1.0,
    "cosine": lambda passed, share, epochs: _cosine(passed / epochs),  # one rate for every epoch
    "cosine_by_step": lambda passed, share, epochs: _cosine((passed + share) / epochs),  # one rate for every step, for few epochs
}


def _cosine(done: float) -> float:
    return (1 + cos(pi * done)) / 2


def train_zoo(
    build: Callable[[], nn.Module],
    task: Task,
    *,
    runs: int,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    seed: int,
    first: int = 0,
    snapshots: int = 1,
    every: int = 1,
    schedule: str = "constant",
    init: str = "torch",
    start: State | None = None,
    examples: int | None = None,
    together: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
) -> State:
    """Train `runs` networks made by `build` with AdamW. Return their state dicts on the CPU, every entry [runs, snapshots, ...].

    The last snapshot is the state at the end. The others come every `every` epochs before it, `snapshots` in all. Each run shuffles the
    data anew in each epoch. Examples that do not fill a batch are left out. `schedule` names a row of `SCHEDULES`, which gives the learning
    rate, and `init` one of `INITS`, which draws the initial weights. With `examples`, each run trains on that many examples, which it draws
    from the data with replacement. With the state dict `start`, all runs begin there. Each run has its own buffers, such as the statistics
    of batch norm.

    Runs are numbered from `first`. Initial weights, data and shuffles of a run depend on `seed` and its number only. So a run is the same,
    up to rounding, whichever runs are trained beside it. Dropout's masks are an exception: they are drawn for all runs that are trained at
    once. `together` runs (by default all) are trained at once by vmap, and 1 means one after the other. torch's global generators are left
    as found. With the path `checkpoint`, runs under training are kept in files whose names begin with it, every 20 seconds and at the end.
    An interrupted training continues from them. `forget` in halfway.py removes them.

    Raises ValueError for settings that do not fit together. Raises FloatingPointError with the numbers of the runs whose loss is not
    finite.

    >>> from geoflow.zoo.networks import mlp
    >>> from geoflow.zoo.tasks import load_task
    >>> states = train_zoo(lambda: mlp(4, [5], 3), load_task("iris"), runs=6, epochs=3, batch=20, lr=1e-2, weight_decay=0.0,
    ...                    seed=0, snapshots=2, progress=False)
    >>> states["0.weight"].shape
    torch.Size([6, 2, 5, 4])
    """
    together, count = runs if together is None else together, len(task.x_train) if examples is None else examples
    _check(runs, epochs, batch, snapshots, every, schedule, init, together, count)
    device, last = torch.device(device), first + runs
    settings = {"epochs": epochs, "batch": batch, "lr": lr, "weight_decay": weight_decay, "schedule": schedule}
    settings |= {"examples": examples, "init": init}
    plain = settings | {"seed": seed, "snapshots": snapshots, "every": every}
    settings |= {"kept": range(epochs - (snapshots - 1) * every, epochs + 1, every), "start": start}
    kind, batches = outputs_of(task.outputs), Batches(task.x_train.to(device), task.y_train.to(device))
    name = f"runs {first} to {last - 1}" if first >= 0 else "common start"
    bar = tqdm(total=-(-runs // together) * epochs, desc=name, unit="epoch", disable=not progress)
    with bar, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _check_outputs(build(), task)
        if checkpoint is not None:
            plain |= {"network": repr(build()), "data": digest_of(task.x_train, task.y_train, *(start or {}).values())}
        states = []
        for number in range(first, last, together):
            crowd = range(number, min(number + together, last))
            path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{number}{PART}")
            halfway = Halfway(path, plain | {"first": number, "last": crowd.stop})
            states.append(_train_crowd(build, kind, batches, crowd, seed, device, bar, halfway, **settings))
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def _train_crowd(
    build: Callable[[], nn.Module],
    kind: Outputs,
    batches: "Batches",
    numbers: range,
    seed: int,
    device: torch.device,
    bar: tqdm,
    halfway: Halfway,
    *,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    schedule: str,
    kept: range,
    init: str,
    start: State | None,
    examples: int | None,
) -> State:
    """Train the runs of these numbers at once, and return their snapshots [runs, snapshots, ...].

    Seeds torch's global generators.
    """
    generators = [randomness(seed, f"run {number}") for number in numbers]
    network, state = initial_states(build, generators, device, start, init)
    data = None if examples is None else drawn_data(generators, len(batches.x), examples).to(device)
    seed_global(_seed(randomness(seed, f"masks of runs from {numbers.start}")), device)
    network.train()
    optimizer = torch.optim.AdamW([v for v in state.values() if v.requires_grad], lr=lr, weight_decay=weight_decay, fused=True)
    snapshots: list[State] = []
    done = halfway.resume(state, optimizer, generators, snapshots)
    bar.update(done)
    for epoch in range(done + 1, epochs + 1):
        count = len(batches.x) if examples is None else examples
        for number, places in enumerate(shuffled_batches(generators, count, batch, device)):
            optimizer.param_groups[0]["lr"] = lr * SCHEDULES[schedule](epoch - 1, number / (count // batch), epochs)
            rows = places if data is None else data.gather(1, places.long())
            losses = step(network, state, optimizer, kind, *batches(rows))
        _check_finite(losses, epoch, numbers.start)
        bar.set_postfix(loss=f"{losses.mean():.3f}", refresh=False)
        bar.update()
        if epoch in kept:
            snapshots.append({name: value.detach().to("cpu", copy=True) for name, value in state.items()})
        halfway.keep(epoch, state, optimizer, generators, snapshots, last=epoch == epochs)
    return {name: torch.stack([one[name] for one in snapshots], 1) for name in state}


def common_start(build: Callable[[], nn.Module], task: Task, *, epochs: int, seed: int, progress: bool = True, **settings) -> State:
    """Train one network on all the data for `epochs`, and return its state dict. The runs of a zoo can begin there.

    Other settings are those of `train_zoo`. The learning rate is constant, because each run lowers it in its own way.
    """
    settings = {**settings, "schedule": "constant", "examples": None, "snapshots": 1, "every": 1, "together": 1}
    states = train_zoo(build, task, runs=1, first=COMMON, epochs=epochs, seed=seed, progress=progress, **settings)
    return {name: value[0, 0] for name, value in states.items()}


def initial_states(
    build: Callable[[], nn.Module],
    generators: Sequence[torch.Generator],
    device: torch.device,
    start: State | None = None,
    init: str = "torch",
) -> tuple[nn.Module, State]:
    """Return a network for the forward pass, and the stacked states [runs, ...] of newly built networks.

    `init` names a row of INITS, which draws their weights. With `start`, every state is a copy of it. Seeds torch's global generators.
    """
    networks = []
    for generator in generators:
        seed_global(_seed(generator), device)
        networks.append(build())
        INITS[init](networks[-1])
        if start is not None:
            networks[-1].load_state_dict(start)
    parameters, buffers = stack_module_state(networks)
    state = {name: value.detach().to(device).requires_grad_() for name, value in parameters.items()}
    return networks[0].to(device), state | {name: value.to(device) for name, value in buffers.items()}


def shuffled_batches(
    generators: Sequence[torch.Generator], examples: int, batch: int, device: str | torch.device = "cpu"
) -> Iterator[Int[Tensor, "runs batch"]]:
    """Return the rows of one epoch's batches, with an independent shuffle for each run.

    Examples that do not fill a batch are left out.
    """

    def orders(some: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randperm(examples, generator=generator, dtype=torch.int32) for generator in some])

    threads = torch.get_num_threads()
    share = -(-len(generators) // threads)
    parts = [generators[first : first + share] for first in range(0, len(generators), share)]
    with ThreadPoolExecutor(threads) as pool:
        shuffled = torch.cat(list(pool.map(orders, parts)))
    return iter(shuffled[:, : examples // batch * batch].to(device).split(batch, 1))


def drawn_data(generators: Sequence[torch.Generator], available: int, examples: int) -> Int[Tensor, "runs examples"]:
    """Draw the rows of each run's own data with replacement, which is a bootstrap sample."""
    draws = [torch.randint(available, (examples,), generator=generator, dtype=torch.int32) for generator in generators]
    return torch.stack(draws)


class Batches:
    """A lookup of the examples of every run's rows.

    It gathers them into one buffer, because a new buffer for each step would cost more than the copy itself.
    """

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y, self.buffer = x, y, x.new_empty(0)

    def __call__(self, rows: Int[Tensor, "runs batch"]) -> tuple[Shaped[Tensor, "runs batch ..."], Shaped[Tensor, "runs batch ..."]]:
        """Return the inputs, which are valid until the next call, and the targets."""
        flat = rows.flatten()
        if len(self.buffer) != len(flat):
            self.buffer = self.x.new_empty(len(flat), *self.x.shape[1:])
        x = torch.index_select(self.x, 0, flat, out=self.buffer)  # four times as fast as x[rows]
        return x.unflatten(0, rows.shape), self.y.index_select(0, flat).unflatten(0, rows.shape)


def step(
    network: nn.Module, state: State, optimizer, kind: Outputs, x: Shaped[Tensor, "runs batch ..."], y: Shaped[Tensor, "runs batch ..."]
) -> Float[Tensor, " runs"]:
    """Do one step of every run on its own batch, and return the losses before the step."""
    optimizer.zero_grad()
    if len(x) == 1:  # without vmap, which is slower for one run
        outputs = functional_call(network, {name: value[0] for name, value in state.items()}, (x[0],))[None]
    else:
        with WideProducts(), sdpa_kernel(SDPBackend.MATH):  # under vmap, fused attention runs once for every run
            outputs = vmap(partial(functional_call, network), randomness="different")(state, x)
    losses = kind.nll(outputs, y).mean(1)
    losses.sum().backward()  # runs share no parameters, so each gets its own gradient
    optimizer.step()
    return losses.detach()


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _check(runs: int, epochs: int, batch: int, snapshots: int, every: int, schedule: str, init: str, together: int, examples: int) -> None:
    choose("schedule", schedule, SCHEDULES)
    choose("init", init, INITS)
    counts = {"runs": runs, "epochs": epochs, "batch": batch, "snapshots": snapshots, "every": every, "together": together}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if batch > examples:
        raise ValueError(f"batch={batch} is more than the {examples} training examples. Choose batch <= {examples}.")
    if (snapshots - 1) * every >= epochs:
        raise ValueError(f"snapshots={snapshots} every {every} epochs do not fit into {epochs} epochs. Train longer or keep fewer.")


@torch.no_grad()
def _check_outputs(network: nn.Module, task: Task) -> None:
    outputs_of(task.outputs).check(task.x_train, task.y_train)
    if not task.accepts(units := network.eval()(task.x_train[:1]).shape[-1]):
        raise ValueError(
            f"The network gives {units} outputs, and the task {task.name} needs {task.units}. Build it with task.units outputs."
        )


def _check_finite(losses: Float[Tensor, " runs"], epoch: int, first: int) -> None:
    if bad := (first + (~losses.isfinite()).nonzero().flatten()).tolist():
        raise FloatingPointError(
            f"The loss of run {', '.join(map(str, bad[:10]))} is not finite in epoch {epoch}. Lower lr or check the data."
        )
