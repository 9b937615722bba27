"""Know running means and variances for what they are: variances as logarithms, both measured anew on data."""

from collections.abc import Callable, Sequence
from math import ceil

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from geoflow.population import check_population, itself
from geoflow.spec import NetworkSpec
from geoflow.vector import unpack

STATISTICS = ("running_mean", "running_var")
TINY_VARIANCE = 1e-8  # keeps the logarithm of a variance finite

Moments = tuple[int, Tensor, Tensor]  # of a part of the examples: how much it counts, its mean and its spread, both [channels]


def statistics_of(spec: NetworkSpec, kinds: Sequence[str] = STATISTICS) -> Int[Tensor, " entries"]:
    """Which entries of a weight vector are running means and variances.

    >>> import torch, geoflow
    >>> statistics_of(geoflow.spec_of(torch.nn.BatchNorm1d(2), torch.zeros(3, 2)))  # behind two gains and two biases
    tensor([4, 5, 6, 7])
    """
    ranges = [
        torch.arange(offset, offset + tensor.numel)
        for tensor, offset in zip(spec.tensors, spec.offsets, strict=True)
        if tensor.kind in kinds
    ]
    return torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.long)


def variances_of(spec: NetworkSpec) -> Int[Tensor, " entries"]:
    """Which entries of a weight vector are running variances."""
    return statistics_of(spec, ("running_var",))


def log_variances(theta: Float[Tensor, "*batch weights"], variances: Int[Tensor, " entries"]) -> Float[Tensor, "*batch weights"]:
    """Weight vectors with log(v + TINY_VARIANCE) in place of each variance v; NaN for a negative one."""
    if not len(variances):
        return theta
    return theta.index_copy(-1, variances.to(theta.device), (theta[..., variances] + TINY_VARIANCE).log())


def exp_variances(theta: Float[Tensor, "*batch weights"], variances: Int[Tensor, " entries"]) -> Float[Tensor, "*batch weights"]:
    """What `log_variances` was made of; variances come out at 0 or above.

    >>> theta = torch.tensor([2.0, 9.0])
    >>> exp_variances(log_variances(theta, torch.tensor([1])), torch.tensor([1]))
    tensor([2., 9.])
    """
    if not len(variances):
        return theta
    return theta.index_copy(-1, variances.to(theta.device), (theta[..., variances].exp() - TINY_VARIANCE).clamp_min(0))


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Shaped[Tensor, "examples ..."],
    batch: int = 4096,
    progress: bool = False,
) -> Float[Tensor, "nets weights"]:
    """The networks with running means and variances measured anew on `x`, which must be TRAINING inputs; all other weights stay.

    New statistics are those of what each norm reads in evaluation mode, when all norms before it have theirs: mean and unbiased variance
    over all of x, as torch keeps them. (Instance norms keep the average over examples, as torch does. A norm that is used several times
    keeps the average over its uses.) With all of x in one batch this is torch's training mode with momentum=None, dropout and all else in
    evaluation mode. `batch` bounds the examples in work at once, not the result: with several batches, torch would normalise each by
    statistics of its own while it measures. Here each norm is measured on all batches before the next one, which costs a pass through the
    layers before it. Networks without running statistics come back as they are, and so does one whose activations overflow on x.

    Networks run one after the other: on a CPU vmap is slower (README of benchmarks). `network` gives the forward pass, not weights.

    Raises ValueError for no network, weights that are not finite or not of this network, fewer than two examples, inputs that the network
    does not take, and statistics that no batch_norm or instance_norm of torch reads.

    >>> import torch, geoflow
    >>> network = torch.nn.BatchNorm1d(2, affine=False)
    >>> spec = geoflow.spec_of(network, torch.zeros(3, 2))
    >>> theta = geoflow.pack(spec, network.state_dict())[None]
    >>> geoflow.recalibrate(network, spec, theta, torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    tensor([[2., 5., 2., 0.]])
    """
    check_population(network, spec, thetas)
    if len(x) < 2:
        raise ValueError(f"x holds {len(x)} examples, and a variance needs at least 2: pass some hundred training inputs or more.")
    if batch < 2:
        raise ValueError(f"batch={batch} must be at least 2 examples.")
    index = statistics_of(spec)
    if not len(index):
        return thetas.clone()
    _check_inputs(itself(network, unpack(spec, thetas[0])), x)
    parts, found = x.tensor_split(ceil(len(x) / batch)), thetas.clone()
    for theta in tqdm(found, desc="recalibrating", unit="network", disable=not progress):
        measured = _measured(itself(network, unpack(spec, theta)), spec, parts).to(theta)
        if measured.isfinite().all():
            theta[index.to(theta.device)] = measured
    return found


def _measured(network: nn.Module, spec: NetworkSpec, parts: Sequence[Tensor]) -> Float[Tensor, " entries"]:
    """The statistics of one network, in the order of its weight vector; they are written into the network, too."""
    measuring, complete = Measuring(len(parts)), False
    while not complete:
        measuring.parts = []
        for part in parts:
            complete = measuring.passes(network, part)
    measuring.write()
    state = network.state_dict(keep_vars=True)
    tensors = [tensor for tensor in spec.tensors if tensor.kind in STATISTICS]
    for tensor in tensors:
        if state[tensor.name].untyped_storage().data_ptr() not in measuring.storages:
            raise ValueError(
                f"{tensor.name!r} cannot be measured: no batch_norm or instance_norm of torch reads it as it runs. Leave its networks as "
                "they are, or call torch.nn.functional.batch_norm on the buffers themselves, not on copies of them."
            )
    return torch.cat([state[t.name][t.start : t.start + t.shape[0]].flatten() for t in tensors])


def _check_inputs(network: nn.Module, x: Tensor) -> None:
    try:
        network(x[:2])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"{type(network).__name__} does not take x of shape {tuple(x.shape)} and {x.dtype}: {reason}. "
            "Pass training inputs, stacked along their first axis."
        ) from error


def _of_batch(x: Tensor) -> Moments:
    """Entries per channel, their mean, and their summed squared deviations from it: two passes, for one would cancel."""
    axes = [0, *range(2, x.ndim)]
    mean = x.mean(axes, keepdim=True)
    return x.numel() // x.shape[1], mean.flatten().double(), (x - mean).square_().sum(axes).double()


def _join_batch(counts: Tensor, means: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of all parts together (Chan, Golub and LeVeque, 1983)."""
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return mean, (spreads + counts * (means - mean).square()).sum(0) / (total - 1)


def _of_instances(x: Tensor) -> Moments:
    """Examples, and over them the average of each one's mean and unbiased variance."""
    variance, mean = torch.var_mean(x.flatten(2), 2)
    return len(x), mean.mean(0).double(), variance.mean(0).double()


def _join_instances(counts: Tensor, means: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = ((counts * values).sum(0) / counts.sum() for values in (means, spreads))
    return mean, variance


BATCH, INSTANCES = (_of_batch, _join_batch), (_of_instances, _join_instances)
OF_MODULES = ("input", "running_mean", "running_var", "weight", "bias", "own", "momentum", "eps")
OF_TORCH = ("input", "weight", "bias", "running_mean", "running_var", "own", "momentum", "eps", "cudnn_enabled")
# function: its arguments in their order, its name for `own` (whether it uses statistics of its input) and the default; how it is measured
NORMS: dict[Callable, tuple[tuple[str, ...], str, bool, tuple[Callable, Callable]]] = {
    F.batch_norm: (OF_MODULES, "training", False, BATCH),
    torch.batch_norm: (OF_TORCH, "training", False, BATCH),
    F.instance_norm: (OF_MODULES, "use_input_stats", True, INSTANCES),
    torch.instance_norm: (OF_TORCH, "use_input_stats", True, INSTANCES),
}


class _Enough(BaseException):
    """A norm waits for other parts of the examples. No error, which a network might handle."""


class Measuring(TorchFunctionMode):
    """Measure the norms of a network in the order in which they run; those that are known already normalise by what was measured.

    `parts` holds what was seen of the first norm that is not known, `count` parts make it known, `storages` are those that were written.
    """

    def __init__(self, count: int):
        super().__init__()
        self.count, self.parts, self.known, self.calls, self.storages = count, [], [], 0, set()

    def passes(self, network: nn.Module, x: Tensor) -> bool:
        """Run the network as far as its norms are known, or become so; whether that is to its end."""
        self.calls = 0
        try:
            with self:
                network(x)
        except _Enough:
            return False
        return True

    def write(self) -> None:
        """Give every pair of buffers the average of what was measured for it."""
        uses: dict[tuple, list] = {}
        for use in self.known:
            uses.setdefault(tuple((buffer.data_ptr(), buffer.shape) for buffer, _ in use), []).append(use)
        for several in uses.values():
            for same in zip(*several, strict=True):  # the mean, then the variance, in all uses
                same[0][0].copy_(torch.stack([value for _, value in same]).mean(0))
                self.storages.add(same[0][0].untyped_storage().data_ptr())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in NORMS:
            return func(*args, **(kwargs or {}))
        names, own, default, how = NORMS[func]
        given = dict(zip((own if name == "own" else name for name in names), args, strict=False)) | (kwargs or {})
        if given.get("running_mean") is None or given.get(own, default):
            return func(**given)
        if self.calls == len(self.known):
            self._measure(given["input"], (given["running_mean"], given["running_var"]), *how)
        mean, variance = (value.to(buffer) for buffer, value in self.known[self.calls])
        self.calls += 1
        return func(**given | {"running_mean": mean, "running_var": variance})

    def _measure(self, x: Tensor, buffers: tuple[Tensor, Tensor], of: Callable, join: Callable) -> None:
        self.parts.append(of(x.to(torch.promote_types(x.dtype, torch.float32))))
        if len(self.parts) < self.count:
            raise _Enough
        counts, means, spreads = zip(*self.parts, strict=True)
        counts = torch.tensor(counts, dtype=torch.double, device=x.device)[:, None]
        self.known.append(tuple(zip(buffers, join(counts, torch.stack(means), torch.stack(spreads)), strict=True)))
        self.parts = []
