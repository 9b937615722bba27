"""Keep the whole state of a training, so that it can stop at any moment and go on as if it had not."""

import json
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from geoflow.files import read_tensors, under, write_tensors
from geoflow.flow import Flow
from geoflow.randomness import randomness

FORMAT = "geoflow-training-4"  # counted up whenever a saved state no longer fits
EMA_WARMUP = 10  # after n steps the average keeps (n + 1) / (n + 10) of itself at most: about the last tenth of a short training


class Progress:
    """A training under way: the flow, the moving average of its field, the optimizer, the random numbers to come."""

    def __init__(self, flow: Flow):
        self.flow = Flow(flow.chart, deepcopy(flow.field), flow.reference, flow.config)
        self.ema = deepcopy(flow.field)
        self.weights, self.average = in_one(self.flow.field), in_one(self.ema)
        gather_gradients(self.flow.field, self.weights)
        self.optimizer = torch.optim.AdamW([self.weights], weight_decay=flow.config["weight_decay"], fused=True)
        self.generator = randomness(flow.config["seed"], "training")

    @property
    def iteration(self) -> int:
        """How many steps are done."""
        return len(self.flow.losses)

    @torch.no_grad()
    def step(self, loss: float) -> None:
        """Count an iteration. Raises FloatingPointError where the loss is not finite."""
        if not loss < float("inf"):
            raise FloatingPointError(f"The flow's loss is {loss} at iteration {self.iteration}. Lower lr.")
        self.flow.losses.append(loss)
        decay = min(self.flow.config["ema"], (self.iteration + 1) / (self.iteration + EMA_WARMUP))
        self.average.lerp_(self.weights, 1 - decay)

    def averaged(self) -> Flow:
        """The flow with the averaged weights."""
        return Flow(self.flow.chart, deepcopy(self.ema), self.flow.reference, self.flow.config, self.flow.losses)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file; a crash leaves the old file or the new one."""
        tensors = {f"field.{k}": v for k, v in self.flow.field.state_dict().items()} | {
            f"ema.{k}": v for k, v in self.ema.state_dict().items()
        }
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizer.state[self.weights].items()}
        tensors |= {"generator": self.generator.get_state(), "losses": torch.tensor(self.flow.losses, dtype=torch.float64)}
        metadata = {"format": FORMAT, "config": json.dumps(dict(self.flow.config), sort_keys=True)}
        write_tensors(path, tensors, metadata)

    def resume(self, path: str | Path) -> None:
        """Go on from a file that `save` wrote, if there is one. Raises ValueError if it is corrupt or of another training."""
        if not Path(path).exists():
            return
        tensors, metadata = read_tensors(path)
        config = json.dumps(dict(self.flow.config), sort_keys=True)
        if metadata.get("format") != FORMAT or metadata.get("config") != config:
            raise ValueError(f"Checkpoint {path} belongs to another training, or to another version. Delete or move it.")
        for prefix, module in (("field.", self.flow.field), ("ema.", self.ema)):
            module.load_state_dict(under(prefix, tensors))
        self.generator.set_state(tensors["generator"])
        self.flow.losses[:] = tensors["losses"].tolist()
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": {0: under("optimizer.", tensors)}})


def in_one(module: nn.Module) -> nn.Parameter:
    """All parameters of a module, which must be learned ones, laid into one; they become views of it.

    Clipping, AdamW and the moving average then take one operation each, not one for every parameter.
    """
    parameters = list(module.parameters())
    assert all(parameter.requires_grad for parameter in parameters), "AdamW would let a frozen parameter decay"
    whole = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    for parameter, part in zip(parameters, whole.detach().split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.data = part.view_as(parameter)
    return whole


def gather_gradients(module: nn.Module, whole: nn.Parameter) -> None:
    """Make the gradients of a module's parameters views of that of `whole`. Set it to zero there: module.zero_grad() would part them."""
    parameters, whole.grad = list(module.parameters()), torch.zeros_like(whole)
    for parameter, part in zip(parameters, whole.grad.split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
