"""Handle running means and variances of norms: take variances by their logarithm, and measure both anew on data."""

from collections.abc import Callable, Sequence
from math import ceil

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from geoflow.examples import precision
from geoflow.population import check_population, itself
from geoflow.spec import NetworkSpec
from geoflow.vector import unpack

STATISTICS = ("running_mean", "running_var")
TINY_VARIANCE = 1e-8  # keeps the logarithm of a variance finite

Moments = tuple[int, Tensor, Tensor]  # of some examples: their count, mean [channels] and spread [channels]


def statistics_of(spec: NetworkSpec, kinds: Sequence[str] = STATISTICS) -> Int[Tensor, " entries"]:
    """Return which entries of a weight vector are running means and variances.

    >>> import torch, geoflow
    >>> statistics_of(geoflow.spec_of(torch.nn.BatchNorm1d(2), torch.zeros(3, 2)))  # after two gains and two biases
    tensor([4, 5, 6, 7])
    """
    ranges = [
        torch.arange(offset, offset + tensor.numel)
        for tensor, offset in zip(spec.tensors, spec.offsets, strict=True)
        if tensor.kind in kinds
    ]
    return torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.long)


def variances_of(spec: NetworkSpec) -> Int[Tensor, " entries"]:
    """Return which entries of a weight vector are running variances."""
    return statistics_of(spec, ("running_var",))


def log_variances(theta: Float[Tensor, "*batch weights"], variances: Int[Tensor, " entries"]) -> Float[Tensor, "*batch weights"]:
    """Replace each variance v of the weight vectors by log(v + TINY_VARIANCE). A negative variance gives NaN."""
    if not len(variances):
        return theta
    return theta.index_copy(-1, variances.to(theta.device), (theta[..., variances] + TINY_VARIANCE).log())


def exp_variances(theta: Float[Tensor, "*batch weights"], variances: Int[Tensor, " entries"]) -> Float[Tensor, "*batch weights"]:
    """Undo `log_variances`. All variances come out as at least 0.

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
    """Return the networks with running means and variances measured anew on `x`. All other weights stay the same.

    `x` must be TRAINING inputs. Each norm is measured in evaluation mode, after all norms before it have their new statistics. These are
    the mean and the unbiased variance over all of x, as torch keeps them. Instance norms keep the average over examples, as in torch. A
    norm that is used several times keeps the average over its uses.

    `batch` bounds the examples in work at once, and does not change the result. To this end each norm is measured on all batches before the
    next norm is. If x is cut into batches, every norm needs another pass through the layers before it. torch itself, in training mode with
    momentum=None, normalises by the statistics of each batch while it measures. Its later norms then depend on how x is cut.

    Networks without running statistics come back unchanged. So does a network whose activations overflow on x. `network` gives the forward
    pass, not weights. Networks run one after the other. vmap took three times as long on a CPU (ResNet of 19,810 weights, 2,000 images of
    14x14).

    Raises ValueError if there is no network, if weights are not finite or not of this network, and for fewer than two examples. Also raises
    it for inputs that the network does not take, and for statistics that no batch_norm or instance_norm of torch reads.

    >>> import torch, geoflow
    >>> network = torch.nn.BatchNorm1d(2, affine=False)
    >>> spec = geoflow.spec_of(network, torch.zeros(3, 2))
    >>> theta = geoflow.pack(spec, network.state_dict())[None]
    >>> geoflow.recalibrate(network, spec, theta, torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    tensor([[2., 5., 2., 0.]])
    """
    check_population(network, spec, thetas)
    if len(x) < 2:
        raise ValueError(f"x must hold at least 2 examples, for a variance, not {len(x)}. Pass some hundred training inputs or more.")
    if batch < 2:
        raise ValueError(f"batch={batch} must be at least 2 examples.")
    index = statistics_of(spec)
    if not len(index):
        return thetas.clone()
    dtype = precision(x, thetas)
    _check_inputs(itself(network, unpack(spec, thetas[0].to(dtype))), x)
    parts, found = x.tensor_split(ceil(len(x) / batch)), thetas.clone()
    for theta in tqdm(found, desc="recalibrating", unit="network", disable=not progress):
        measured = _measured(itself(network, unpack(spec, theta.to(dtype))), spec, parts).to(theta)
        if measured.isfinite().all():
            theta[index.to(theta.device)] = measured
    return found


def _measured(network: nn.Module, spec: NetworkSpec, parts: Sequence[Tensor]) -> Float[Tensor, " entries"]:
    """Return the statistics of one network, in the order of its weight vector.

    They are also written into the network.
    """
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
                f"{tensor.name!r} cannot be measured: no batch_norm or instance_norm of torch reads it as it runs. Call "
                "torch.nn.functional.batch_norm on the buffers themselves, not on copies, or leave these networks as they are."
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
    """Return the entries per channel, their mean, and the sum of their squared deviations from it.

    It takes two passes over x, because one pass would lose digits by cancellation.
    """
    axes = [0, *range(2, x.ndim)]
    mean = x.mean(axes, keepdim=True)
    return x.numel() // x.shape[1], mean.flatten().double(), (x - mean).square_().sum(axes).double()


def _join_batch(counts: Tensor, means: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of all parts together (Chan, Golub and LeVeque, 1983)."""
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return mean, (spreads + counts * (means - mean).square()).sum(0) / (total - 1)


def _of_instances(x: Tensor) -> Moments:
    """Return the number of examples, and the averages over them of each one's mean and unbiased variance."""
    variance, mean = torch.var_mean(x.flatten(2), 2)
    return len(x), mean.mean(0).double(), variance.mean(0).double()


def _join_instances(counts: Tensor, means: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
    """Return the averages of means and of variances over all parts."""
    mean, variance = ((counts * values).sum(0) / counts.sum() for values in (means, spreads))
    return mean, variance


BATCH, INSTANCES = (_of_batch, _join_batch), (_of_instances, _join_instances)
OF_MODULES = ("input", "running_mean", "running_var", "weight", "bias", "own", "momentum", "eps")
OF_TORCH = ("input", "weight", "bias", "running_mean", "running_var", "own", "momentum", "eps", "cudnn_enabled")
# function: its arguments in order; its name for `own` (whether it uses statistics of its input); the default of that; how it is measured
NORMS: dict[Callable, tuple[tuple[str, ...], str, bool, tuple[Callable, Callable]]] = {
    F.batch_norm: (OF_MODULES, "training", False, BATCH),
    torch.batch_norm: (OF_TORCH, "training", False, BATCH),
    F.instance_norm: (OF_MODULES, "use_input_stats", True, INSTANCES),
    torch.instance_norm: (OF_TORCH, "use_input_stats", True, INSTANCES),
}


class _Enough(BaseException):
    """A signal that a norm waits for other parts of the examples. It is no error, because a network might catch errors."""


class Measuring(TorchFunctionMode):
    """Measure the norms of a network in the order in which they run. Norms that were measured normalise by their new statistics.

    `parts` holds what was seen of the first unmeasured norm, and `count` parts complete it. `storages` are the buffers that were written.
    """

    def __init__(self, count: int):
        super().__init__()
        self.count, self.parts, self.known, self.calls, self.storages = count, [], [], 0, set()

    def passes(self, network: nn.Module, x: Tensor) -> bool:
        """Run the network until it needs a norm that cannot be completed yet. Return whether it ran to its end."""
        self.calls = 0
        try:
            with self:
                network(x)
        except _Enough:
            return False
        return True

    def write(self) -> None:
        """Write into every pair of buffers the average of what was measured for it."""
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
