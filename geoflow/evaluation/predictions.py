"""Compute the predictions of many networks, each as if it ran by itself."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from geoflow.examples import Examples, arguments, in_precision, leading, parts_of, precision, rows
from geoflow.outputs import outputs_of
from geoflow.outputs.reading import Output, Read, reader
from geoflow.population import Rims, check_population, copy_of, faster_together, itself, run
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks, Rows
from geoflow.vector import State, metadata_of, unpack, with_metadata
from geoflow.wiring.check import RoundedTo

PART = 1000  # examples in work at once; the activations of a few hundred networks then fit the cache
FEW = 8  # examples in the checks

Predict = Callable[[Tensor], Float[Tensor, "_nets _examples ..."]]


def predictors(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "..."] | Rows,
    x: Examples,
    batch: int,
    batch_size: int | None,
    prediction: Callable[[Tensor, int], Tensor],
    output: Output = None,
) -> Iterator[Predict]:
    """Yield one function for each chunk of the networks. It gives their predictions on some of the examples x.

    `prediction` turns outputs, whose units lie on an axis, into predictions, such as log-probabilities (see `geoflow.outputs.Outputs`).
    `output` names the entry of what the networks return that holds the outputs (see `reader`). x is a tensor, or several as in
    `geoflow.examples`. Real inputs are taken in the precision of the weights. Weights in half precision are taken in single precision,
    unless the inputs are in half precision too.

    `batch` bounds the pairs of a network and an example in work at once. As a check, two networks are first loaded and run one by one, as a
    user would do it. They see the first `batch_size` examples, or a FEW of all. Then they are run together. If the outputs differ, all
    networks run one by one. This happens with modules that keep tables of their weights, and with operations that vmap does not know.
    Networks also run one by one where this is faster (see `faster_together`). A function must then be called before the next one is, or
    after it, but not at the same time.

    Raises ValueError if thetas or x are empty, and for weights that are not finite or not of this network. Also raises it for inputs that
    the network does not take and for outputs that are no tensor. Without `batch_size`, it raises it if the output for an example depends on
    the examples beside it.
    """
    check_population(network, spec, thetas)
    if (examples := len(leading(x))) == 0:
        raise ValueError("There is no example to evaluate on: x is empty.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"{batch_size=} must be at least 1 example, or None.")
    dtype = precision(x, thetas)
    pair = torch.stack([thetas[0], thetas[-1]]).to(dtype)
    few = min(FEW if batch_size is None else batch_size, examples)
    places = torch.linspace(0, examples - 1, few).long() if batch_size is None else torch.arange(few)
    some = in_precision(rows(x, places), dtype)
    alone = [itself(network, unpack(spec, theta)) for theta in pair]
    with RoundedTo() as rounded:
        returned = [_returned(one, some) for one in alone]
    read = reader(returned[0], len(places), output, type(network).__name__)
    expected = torch.stack([read(one) for one in returned])
    tolerance = max(torch.finfo(dtype).eps for dtype in (expected.dtype, rounded.dtype)) ** 0.5
    if batch_size is None:
        _check_company(alone, some, expected, tolerance, read)
    empty = _without_weights(network, spec).to(thetas.device)
    if not (faster_together(network, x) and _together(empty, unpack(spec, pair), some, expected, tolerance, read)):
        load = _loader(network, spec, empty.to(dtype), pair, some, expected, tolerance, read)
        return (partial(_one, prediction, read, load(theta.to(dtype))) for theta in thetas)
    rims = Rims()  # shared by all chunks, because they have the same examples
    chunks = thetas.split(max(1, batch // min(batch_size or PART, examples)))
    return (partial(_all, prediction, read, dtype, empty, unpack(spec, chunk[:].to(dtype)), rims) for chunk in chunks)


def predicted(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Networks,
    x: Examples,
    outputs: str = "classes",
    batch: int = 2 * 10**5,
    output: Output = None,
) -> Float[Tensor, "nets examples units"]:
    """Return the predictions of all networks on all examples, such as log-probabilities. Raises ValueError as `predictors` does.

    `outputs` names the kind of outputs, a row of OUTPUTS. `batch` and `output` are those of `predictors`.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> predicted(network, spec, torch.zeros(1, 6), torch.eye(2)).exp()
    tensor([[[0.5000, 0.5000],
             [0.5000, 0.5000]]])
    """
    chunks = predictors(network, spec, thetas, x, batch, None, outputs_of(outputs).prediction, output)
    return torch.cat([torch.cat([predict(part) for part in divided(x, None)], 1) for predict in chunks])


def divided(x: Examples, batch_size: int | None) -> tuple[Examples, ...]:
    """Split the examples, in their order, into parts of `batch_size`, or into parts that run fast."""
    return parts_of(x, batch_size or PART)


def call(network: nn.Module, x: Examples) -> Any:
    """Return what a network returns for some examples."""
    args, kwargs = arguments(network, x)
    return network(*args, **kwargs)


def _one(prediction: Callable, read: Read, loaded: Callable[[], tuple[nn.Module, torch.dtype]], x: Examples) -> Tensor:
    network, dtype = loaded()
    return prediction(read(call(network, in_precision(x, dtype))), -1).unsqueeze(0)


def _loader(
    network: nn.Module, spec: NetworkSpec, one: nn.Module, pair: Tensor, some: Examples, expected: Tensor, tolerance: float, read: Read
) -> Callable[[Tensor], Callable[[], tuple[nn.Module, torch.dtype]]]:
    """Return the function that loads a network when it is called.

    To copy a small network takes longer than to run it. So one copy gets the weights of each network in turn. As a check, the copy `one`
    first runs without weights, and then with those of the two networks that ran alone. If it keeps anything of earlier weights, each
    network gets a copy.
    """

    def reload(theta: Tensor) -> tuple[nn.Module, torch.dtype]:
        one.load_state_dict(with_metadata(unpack(spec, theta), metadata))
        return one.train().eval(), theta.dtype

    metadata = metadata_of(one.state_dict())
    try:
        call(one, some)
        found = torch.stack([read(call(reload(theta)[0], some)) for theta in pair])
    except (RuntimeError, ValueError, TypeError, AttributeError):  # it does not run without weights, or twice
        found = expected * torch.nan
    if _alike(found, expected, tolerance).all():
        return lambda theta: partial(reload, theta)
    return lambda theta: partial(lambda own: (own, theta.dtype), itself(network, unpack(spec, theta)))


def _all(prediction: Callable, read: Read, dtype: torch.dtype, network: nn.Module, states: State, rims: Rims, x: Examples) -> Tensor:
    outputs = run(network, states, in_precision(x, dtype), rims, read)
    outputs = outputs.movedim(-1, 1).contiguous()  # examples innermost, so sums over units are fast
    return prediction(outputs, 1).movedim(1, -1)


def _returned(network: nn.Module, x: Examples) -> Any:
    try:
        return call(network, x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError, KeyError) as error:
        reason, given = str(error).strip().split("\n")[0].rstrip("."), leading(x).dtype
        cure = " Images as bytes must be made real as in training, often by x / 255." if given is torch.uint8 else ""
        raise ValueError(
            f"{type(network).__name__} does not take x, whose first tensor holds {given} of shape {tuple(leading(x).shape)}: {reason}."
            f"{cure} Pass the inputs as the forward pass reads them: a tensor, a tuple of several, or a dict by name."
        ) from error


def _without_weights(network: nn.Module, spec: NetworkSpec) -> nn.Module:
    """Return a copy with all weights 0.

    If it used its own weights instead of those it is given, its outputs would show it.
    """
    empty = copy_of(network)
    state = empty.state_dict(keep_vars=True)
    for tensor in spec.tensors:
        state[tensor.name].detach().zero_()
    return empty.train().eval()


def _together(network: nn.Module, states: State, x: Examples, expected: Tensor, tolerance: float, read: Read) -> bool:
    """Return whether networks give together what each gave alone."""
    try:
        found = run(network, states, x, read=read)
    except (RuntimeError, TypeError, ValueError, AttributeError):  # vmap cannot run it; the network alone could
        return False
    return found.shape == expected.shape and bool(_alike(found, expected, tolerance).all())


def _check_company(networks: list[nn.Module], x: Examples, expected: Tensor, tolerance: float, read: Read) -> None:
    """Raise ValueError if the output for an example changes when other examples, in another order, are in its batch."""
    count = expected.shape[1]
    for half in torch.arange(count).tensor_split(min(2, count)):
        order = torch.cat([half.flip(0), half[:1]])
        found = torch.stack([read(call(one, rows(x, order))) for one in networks])
        if not _alike(found, expected[:, order.to(expected.device)], tolerance).all():
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
