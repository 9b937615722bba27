"""Save the whole state of a training, so that it can be interrupted and continued with the same result."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.coordinates import Coordinates
from geoflow.files import read_tensors, under, write_tensors
from geoflow.flow import Flow
from geoflow.muon import Muon
from geoflow.paths import geodesic
from geoflow.randomness import randomness, seed_global
from geoflow.recording import Recorded

FORMAT = "geoflow-training-8"  # increased whenever older saved states become unreadable
# tensors of the size of all parameters that a step holds at once: those given, trained and averaged, two gradients, two moments of AdamW
COPIES = 7
CLIP = 1.0  # largest norm of the gradient
MATRICES_RATE = 3  # learning rate of the hidden matrices, relative to the others
EMA_WARMUP = 10  # after n steps the average keeps at most (n + 1) / (n + 10) of itself; in short trainings it covers the last tenth


class Progress:
    """A training in progress: the flow, the moving average of its field, the optimizers and the random generator.

    `points` is the fingerprint of the coordinates that it learns from. A saved state of other coordinates is refused.

    With optimizer=muon, Muon (Jordan et al. 2024) trains the matrices of the hidden layers, `field.layers`. Its steps are orthogonal
    matrices that are as large as AdamW's steps. AdamW trains all other parameters: vectors, and the maps from and to coordinates.
    """

    def __init__(self, flow: Flow, points: str | list[str] = ""):
        self.points = points
        self.flow = replace(flow, field=deepcopy(flow.field).train(), losses=[])
        self.ema = deepcopy(flow.field)
        matrices = OPTIMIZERS[flow.config["optimizer"]]
        self.parameters = in_order(self.flow.field, matrices)
        self.weights, self.average = (in_one(field, matrices) for field in (self.flow.field, self.ema))
        self.weights.grad = torch.zeros_like(self.weights)
        *stacks, self.rest = in_stacks(self.flow.field, self.weights, matrices)
        decay = flow.config["weight_decay"]
        self.muon = Muon(stacks, decay)
        self.adamw = torch.optim.AdamW([self.rest], weight_decay=decay, fused=True, capturable=self.rest.is_cuda)
        self.descend = [Recorded(partial(self._descend, chart)) for chart in flow.charts]
        self.generator = randomness(flow.config["seed"], "training")

    @property
    def iteration(self) -> int:
        """The number of steps done."""
        return len(self.flow.losses)

    def step(
        self,
        x_0: Float[Tensor, "nets size"],
        x_1: Float[Tensor, "nets size"],
        t: Float[Tensor, " nets"],
        lr: float,
        which: int = 0,
        condition: Float[Tensor, "nets _features"] | None = None,
    ) -> float:
        """Do one step on the loss from x_0 to x_1 at times t. Return the loss before the step. `which` of the flow's charts they lie on.

        `condition` is what the field is told of the networks x_1, encoded.

        Raises FloatingPointError if the loss is not finite.
        """
        done = self.iteration + 1
        decay = min(self.flow.config["ema"], (done + 1) / (done + EMA_WARMUP))
        told = () if condition is None else (condition,)
        with self._masks():
            loss = self.descend[which](x_0, x_1, t, self.weights.new_tensor([lr, 1 - decay]), *told).item()
        if not loss < float("inf"):
            raise FloatingPointError(f"The loss of the flow is {loss} at iteration {self.iteration}. Lower lr.")
        self.flow.losses.append(loss)
        return loss

    def _descend(
        self, chart: Coordinates, x_0: Tensor, x_1: Tensor, t: Tensor, rates: Float[Tensor, "2"], condition: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """Do the part of a step that runs on the GPU.

        `rates` are the learning rate and the weight of the new parameters in the moving average.
        """
        loss = self.flow.matching_loss(*geodesic(chart.manifold, x_0, x_1, t), t, chart, condition)
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        torch.cat([gradient.flatten() for gradient in gradients], out=self.weights.grad)
        with torch.no_grad():
            lr, taken = rates.unbind()
            nn.utils.clip_grad_norm_(self.weights, CLIP)
            self.adamw.param_groups[0]["lr"] = lr
            self.adamw.step()
            self.muon.step(MATRICES_RATE * lr)
            self.average.lerp_(self.weights, taken)
        return loss.detach()

    @contextmanager
    def _masks(self) -> Iterator[None]:
        """Let dropout draw its masks from the training's own random numbers, so that an interrupted training goes on with the same ones."""
        if not self.flow.config["dropout"]:
            yield
            return
        device = self.weights.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_global(int(torch.randint(2**62, (), generator=self.generator)), device)
            yield

    def averaged(self) -> Flow:
        """Return the flow with the averaged weights."""
        return replace(self.flow, field=deepcopy(self.ema).eval())

    def _asked(self) -> str:
        """Return what must be the same to go on, as text: points and configuration. What does not change the result may differ."""
        config = {name: value for name, value in self.flow.config.items() if name not in ("reason", "recompute")}
        return json.dumps({"points": self.points, **config}, sort_keys=True)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file. A crash leaves the old file or the new one."""
        tensors = {f"field.{k}": v for k, v in self.flow.field.state_dict().items()} | {
            f"ema.{k}": v for k, v in self.ema.state_dict().items()
        }
        tensors |= {f"adamw.{key}": value for key, value in self.adamw.state[self.rest].items()}
        tensors |= {f"muon.{number}": momentum for number, momentum in enumerate(self.muon.momenta)}
        tensors |= {"generator": self.generator.get_state(), "losses": torch.tensor(self.flow.losses, dtype=torch.float64)}
        metadata = {"format": FORMAT, "config": self._asked()}
        write_tensors(path, tensors, metadata)

    def resume(self, path: str | Path) -> None:
        """Continue from a file that `save` wrote, if it exists.

        Raises ValueError if the file is corrupt or belongs to another training.
        """
        if not Path(path).exists():
            return
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT or metadata.get("config") != self._asked():
            raise ValueError(f"Checkpoint {path} belongs to another training, or to another version. Delete or move it.")
        for prefix, module in (("field.", self.flow.field), ("ema.", self.ema)):
            module.load_state_dict(under(prefix, tensors))
        self.generator.set_state(tensors["generator"])
        self.flow.losses[:] = tensors["losses"].tolist()
        self.adamw.load_state_dict(self.adamw.state_dict() | {"state": {0: under("adamw.", tensors)}})
        for number, momentum in enumerate(self.muon.momenta):
            momentum.copy_(tensors[f"muon.{number}"])


def hidden_matrices(field: nn.Module) -> list[nn.Parameter]:
    """Return the matrices of the hidden layers, sorted by shape."""
    return sorted((parameter for parameter in field.layers.parameters() if parameter.ndim == 2), key=lambda matrix: matrix.shape)


Matrices = Callable[[nn.Module], list[nn.Parameter]]
# name: the parameters of a field that Muon trains, sorted by shape; AdamW trains all others
OPTIMIZERS: dict[str, Matrices] = {"muon": hidden_matrices, "adamw": lambda field: []}


def in_order(field: nn.Module, matrices: Matrices = hidden_matrices) -> list[nn.Parameter]:
    """Return all parameters, those of Muon first."""
    chosen = matrices(field)
    first = {id(matrix) for matrix in chosen}
    return [*chosen, *(parameter for parameter in field.parameters() if id(parameter) not in first)]


def in_stacks(field: nn.Module, whole: nn.Parameter, matrices: Matrices = hidden_matrices) -> list[nn.Parameter]:
    """Return views of `whole` and of its gradient: a stack [matrices, rows, columns] for each shape of Muon's matrices, then the rest."""
    shapes = [(len(list(same)), *shape) for shape, same in groupby(matrix.shape for matrix in matrices(field))]
    sizes = [prod(shape) for shape in shapes]
    shapes, sizes = [*shapes, (-1,)], [*sizes, len(whole) - sum(sizes)]
    stacks = []
    for part, gradient, shape in zip(whole.detach().split(sizes), whole.grad.split(sizes), shapes, strict=True):
        stacks.append(nn.Parameter(part.view(shape)))
        stacks[-1].grad = gradient.view(shape)
    return stacks


def in_one(field: nn.Module, matrices: Matrices = hidden_matrices) -> nn.Parameter:
    """Move all parameters of a field into one vector, ordered as by `in_order`. They become views of it.

    Clipping, AdamW and the moving average then need one operation each, instead of one for every parameter. All parameters must be
    trainable.
    """
    parameters = in_order(field, matrices)
    assert all(parameter.requires_grad for parameter in parameters), "AdamW would let a frozen parameter decay"
    whole = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    for parameter, part in zip(parameters, whole.detach().split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.data = part.view_as(parameter)
    return whole
