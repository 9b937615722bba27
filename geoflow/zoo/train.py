"""Train many networks at once, each from its own start and in its own order of the data."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import cos, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from geoflow.choices import choose
from geoflow.population import WideProducts
from geoflow.randomness import randomness, seed_global
from geoflow.zoo.tasks import Task

State = dict[str, Tensor]

# name: factor of the learning rate at the share of the training that is done
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + cos(pi * done)) / 2,
}


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
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> State:
    """Train `runs` networks made by `build` with AdamW; return their state dicts, every entry [runs, snapshots, ...], on the CPU.

    The snapshots are the states after the last `snapshots` multiples of `every` epochs, counted back from the end. Each epoch shuffles
    the data anew for each run, leaves out the rest of the division by `batch`, and has the learning rate that `schedule` (of SCHEDULES)
    gives it. Buffers such as batch norm's statistics are each run's own. The runs are numbered from `first`; start and shuffles of a run
    come from `seed` and its number alone, so it is the same, but for rounding, whichever runs are trained beside it (dropout's masks are
    drawn for all of them together). torch's global generators are left as found.

    Raises ValueError for settings that do not fit together, FloatingPointError naming the runs whose loss is not finite.

    >>> from geoflow.zoo.networks import mlp
    >>> from geoflow.zoo.tasks import load_task
    >>> states = train_zoo(lambda: mlp(4, [5], 3), load_task("iris"), runs=6, epochs=3, batch=20, lr=1e-2, weight_decay=0.0,
    ...                    seed=0, snapshots=2, progress=False)
    >>> states["0.weight"].shape
    torch.Size([6, 2, 5, 4])
    """
    _check(runs, epochs, batch, snapshots, every, schedule, len(task.x_train))
    device = torch.device(device)
    batches = Batches(task.x_train.to(device), task.y_train.to(device))
    keep = range(epochs - (snapshots - 1) * every, epochs + 1, every)
    kept = []
    generators = [randomness(seed, f"run {number}") for number in range(first, first + runs)]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network, state = initial_states(build, generators, device)
        seed_global(_seed(randomness(seed, f"masks of runs from {first}")), device)
        network.train()
        optimizer = torch.optim.AdamW([v for v in state.values() if v.requires_grad], lr=lr, weight_decay=weight_decay, fused=True)
        bar = tqdm(range(1, epochs + 1), desc=f"runs {first} to {first + runs - 1}", unit="epoch", disable=not progress)
        for epoch in bar:
            optimizer.param_groups[0]["lr"] = lr * SCHEDULES[schedule]((epoch - 1) / epochs)
            for rows in shuffled_batches(generators, len(task.x_train), batch, device):
                losses = step(network, state, optimizer, *batches(rows))
            _check_finite(losses, epoch, first)
            bar.set_postfix(loss=f"{losses.mean():.3f}", refresh=False)
            if epoch in keep:
                kept.append({name: value.detach().to("cpu", copy=True) for name, value in state.items()})
    return {name: torch.stack([one[name] for one in kept], 1) for name in state}


def initial_states(build: Callable[[], nn.Module], generators: Sequence[torch.Generator], device: torch.device) -> tuple[nn.Module, State]:
    """A network to run the forward pass of, and the stacked states [runs, ...] of freshly built ones; seeds torch's global generators."""
    networks = []
    for generator in generators:
        seed_global(_seed(generator), device)
        networks.append(build())
    parameters, buffers = stack_module_state(networks)
    state = {name: value.detach().to(device).requires_grad_() for name, value in parameters.items()}
    return networks[0].to(device), state | {name: value.to(device) for name, value in buffers.items()}


def shuffled_batches(
    generators: Sequence[torch.Generator], examples: int, batch: int, device: str | torch.device = "cpu"
) -> Iterator[Int[Tensor, "runs batch"]]:
    """The rows of one epoch's batches: an independent shuffle per run, without the rest of the division by `batch`."""

    def orders(some: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randperm(examples, generator=generator, dtype=torch.int32) for generator in some])

    threads = torch.get_num_threads()
    share = -(-len(generators) // threads)
    parts = [generators[first : first + share] for first in range(0, len(generators), share)]
    with ThreadPoolExecutor(threads) as pool:
        shuffled = torch.cat(list(pool.map(orders, parts)))
    return iter(shuffled[:, : examples // batch * batch].to(device).split(batch, 1))


class Batches:
    """The examples of every run's rows, gathered into one buffer: a fresh one for each step would cost more than the copy itself."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y, self.buffer = x, y, x.new_empty(0)

    def __call__(self, rows: Int[Tensor, "runs batch"]) -> tuple[Float[Tensor, "runs batch ..."], Int[Tensor, "runs batch"]]:
        """Inputs (until the next call) and labels."""
        flat = rows.flatten()
        if len(self.buffer) != len(flat):
            self.buffer = self.x.new_empty(len(flat), *self.x.shape[1:])
        x = torch.index_select(self.x, 0, flat, out=self.buffer)  # four times as fast as x[rows]
        return x.unflatten(0, rows.shape), self.y.index_select(0, flat).view(rows.shape)


def step(
    network: nn.Module, state: State, optimizer, x: Float[Tensor, "runs batch ..."], y: Int[Tensor, "runs batch"]
) -> Float[Tensor, " runs"]:
    """One step of every run on its own batch; the losses before the step."""
    optimizer.zero_grad()
    with WideProducts():
        logits = vmap(partial(functional_call, network), randomness="different")(state, x)
    losses = cross_entropy(logits.movedim(-1, 1), y, reduction="none").mean(1)
    losses.sum().backward()  # the runs share no parameter, so the gradient of the sum is each run's own
    optimizer.step()
    return losses.detach()


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _check(runs: int, epochs: int, batch: int, snapshots: int, every: int, schedule: str, examples: int) -> None:
    choose("schedule", schedule, SCHEDULES)
    for name, value in {"runs": runs, "epochs": epochs, "batch": batch, "snapshots": snapshots, "every": every}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if batch > examples:
        raise ValueError(f"batch={batch} is more than the {examples} training examples. Choose batch <= {examples}.")
    if (snapshots - 1) * every >= epochs:
        raise ValueError(f"snapshots={snapshots} every {every} epochs do not fit into {epochs} epochs. Train longer or keep fewer.")


def _check_finite(losses: Float[Tensor, " runs"], epoch: int, first: int) -> None:
    if bad := (first + (~losses.isfinite()).nonzero().flatten()).tolist():
        raise FloatingPointError(
            f"The loss of run {', '.join(map(str, bad[:10]))} is not finite in epoch {epoch}. Lower lr or check the data."
        )
