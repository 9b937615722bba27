"""Compute the predictions of many networks, each as if it ran by itself."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from geoflow.outputs import outputs_of
from geoflow.population import Rims, check_population, copy_of, faster_together, itself, run
from geoflow.spec import NetworkSpec
from geoflow.vector import State, unpack
from geoflow.wiring.check import RoundedTo

PART = 1000  # examples in work at once; the activations of a few hundred networks then fit the cache
FEW = 8  # examples in the checks

Predict = Callable[[Tensor], Float[Tensor, "_nets _examples ..."]]


def predictors(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "..."],
    x: Shaped[Tensor, "examples ..."],
    batch: int,
    batch_size: int | None,
    prediction: Callable[[Tensor, int], Tensor],
) -> Iterator[Predict]:
    """Yield one function for each chunk of the networks. It gives their predictions on some of the examples x.

    `prediction` turns outputs, whose units lie on an axis, into predictions, such as log-probabilities (see `geoflow.outputs.Outputs`).
    `batch` bounds the pairs of a network and an example in work at once. As a check, two networks are first loaded and run one by one, as a
    user would do it. They see the first `batch_size` examples, or a FEW of all. Then they are run together. If the outputs differ, all
    networks run one by one. This happens with modules that keep tables of their weights, and with operations that vmap does not know.
    Networks also run one by one where this is faster (see `faster_together`).

    Raises ValueError if thetas or x are empty, and for weights that are not finite or not of this network. Also raises it for outputs that
    are no tensor and, without `batch_size`, if the output for an example depends on the examples beside it.
    """
    check_population(network, spec, thetas)
    if len(x) == 0:
        raise ValueError("There is no example to evaluate on: x is empty.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"{batch_size=} must be at least 1 example, or None.")
    pair = torch.stack([thetas[0], thetas[-1]])
    some = x[torch.linspace(0, len(x) - 1, min(FEW, len(x))).long().to(x.device)] if batch_size is None else x[:batch_size]
    alone = [itself(network, unpack(spec, theta)) for theta in pair]
    with RoundedTo() as rounded:
        expected = torch.stack([_outputs(one, some) for one in alone])
    tolerance = max(torch.finfo(dtype).eps for dtype in (expected.dtype, rounded.dtype)) ** 0.5
    if batch_size is None:
        _check_company(alone, some, expected, tolerance)
    empty = _without_weights(network, spec).to(thetas.device)
    if not (faster_together(network, x) and _together(empty, _states(spec, pair), some, expected, tolerance)):
        return (partial(_one, prediction, itself(network, unpack(spec, theta))) for theta in thetas)
    rims = Rims()  # shared by all chunks, because they have the same examples
    chunks = thetas.split(max(1, batch // min(batch_size or PART, len(x))))
    return (partial(_all, prediction, empty, _states(spec, chunk), rims) for chunk in chunks)


def predicted(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Shaped[Tensor, "examples ..."],
    outputs: str = "classes",
    batch: int = 2 * 10**5,
) -> Float[Tensor, "nets examples units"]:
    """Return the predictions of all networks on all examples, such as log-probabilities. Raises ValueError as `predictors` does.

    `outputs` names the kind of outputs, a row of OUTPUTS. `batch` is that of `predictors`.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> predicted(network, spec, torch.zeros(1, 6), torch.eye(2)).exp()
    tensor([[[0.5000, 0.5000],
             [0.5000, 0.5000]]])
    """
    chunks = predictors(network, spec, thetas, x, batch, None, outputs_of(outputs).prediction)
    return torch.cat([torch.cat([predict(part) for part in divided(x, None)], 1) for predict in chunks])


def divided(x: Shaped[Tensor, "examples ..."], batch_size: int | None) -> tuple[Shaped[Tensor, "_part ..."], ...]:
    """Split the examples, in their order, into parts of `batch_size`, or into parts that run fast."""
    return x.split(batch_size or PART)


def _states(spec: NetworkSpec, thetas: Tensor) -> State:
    return {name: value.contiguous() for name, value in unpack(spec, thetas).items()}


def _one(prediction: Callable, network: nn.Module, x: Tensor) -> Tensor:
    return prediction(network(x), -1).unsqueeze(0)


def _all(prediction: Callable, network: nn.Module, states: State, rims: Rims, x: Tensor) -> Tensor:
    outputs = run(network, states, x, rims).movedim(-1, 1).contiguous()  # examples innermost, so sums over units are fast
    return prediction(outputs, 1).movedim(1, -1)


def _outputs(network: nn.Module, x: Tensor) -> Tensor:
    outputs = network(x)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"{type(network).__name__} gives a {type(outputs).__name__}, not a tensor of outputs [examples, units]. Wrap it in a module "
            "that returns the outputs only."
        )
    return outputs


def _without_weights(network: nn.Module, spec: NetworkSpec) -> nn.Module:
    """Return a copy with all weights 0.

    If it used its own weights instead of those it is given, its outputs would show it.
    """
    empty = copy_of(network)
    state = empty.state_dict(keep_vars=True)
    for tensor in spec.tensors:
        state[tensor.name].detach().zero_()
    return empty.train().eval()


def _together(network: nn.Module, states: State, x: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether networks give together what each gave alone."""
    try:
        found = run(network, states, x)
    except RuntimeError:  # vmap cannot run it; the network alone could
        return False
    return found.shape == expected.shape and bool(_alike(found, expected, tolerance).all())


def _check_company(networks: list[nn.Module], x: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise ValueError if the output for an example changes when other examples, in another order, are in its batch."""
    examples = torch.arange(len(x), device=x.device)
    for half in examples.tensor_split(min(2, len(x))):
        rows = torch.cat([half.flip(0), half[:1]])
        found = torch.stack([one(x[rows]) for one in networks])
        if not _alike(found, expected[:, rows], tolerance).all():
            raise ValueError(
                f"What {type(networks[0]).__name__} says of an example depends on the other examples of its batch, so its scores would "
                "depend on how examples are divided. Give its norms running statistics (track_running_stats=True, then "
                "geoflow.recalibrate); or pass batch_size=..., to score it on batches of this many examples in their order, as a loader "
                "gives them."
            )


def _alike(found: Tensor, expected: Tensor, tolerance: float) -> Bool[Tensor, " nets"]:
    """Return for each network whether outputs are equal up to rounding, relative to the largest.

    Outputs that are not finite do not count.
    """
    finite = expected.isfinite()
    scale = expected.abs().masked_fill(~finite, 0).flatten(1).amax(1).clamp_min(tolerance)  # smaller outputs change no score
    off = (found - expected).abs().masked_fill(~finite, 0).flatten(1).amax(1)
    return off <= tolerance * scale
