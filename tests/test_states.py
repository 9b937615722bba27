"""pack takes networks as people keep them, opens only what fits, and says so. unpack gives each network back whole."""

import io
import warnings
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from geoflow import pack, spec_of, unpack
from geoflow.spec import NetworkSpec
from geoflow.vector import metadata_of


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def without(name: str, state: dict) -> dict:
    return {key: value for key, value in state.items() if key != name}


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


class Within(nn.Module):
    """A network as a part of another module, as a trainer keeps it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


WRAPPED = {
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled": lambda net: prefixed("_orig_mod.", net.state_dict()),
    "compiled and parallel": lambda net: prefixed("module._orig_mod.", net.state_dict()),
    "a compiled part": lambda net: {k.replace("0.", "0._orig_mod."): v for k, v in net.state_dict().items()},
    "averaged": lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(),
    "sharded": lambda net: prefixed("_fsdp_wrapped_module.", net.state_dict()),
    "a trainer's": lambda net: Within(net).state_dict(),
    "a trainer's, parallel": lambda net: nn.DataParallel(Within(net)).state_dict(),
    "a checkpoint": lambda net: {"epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "state_dict": net.state_dict()},
    "a checkpoint of a parallel network": lambda net: {"model": nn.DataParallel(net).state_dict(), "args": {"lr": 0.1}},
    "a checkpoint in a checkpoint": lambda net: {"state": {"model": net.state_dict()}, "step": 1},
    "a checkpoint of a module": lambda net: {"network": net},
    "a parallel module": lambda net: nn.DataParallel(net),
    "beside a larger student": lambda net: {"teacher": net.state_dict(), "student": {k: v[None] for k, v in net.state_dict().items()}},
}  # fmt: skip
AS_THEY_ARE = {
    "state dict": lambda net: net.state_dict(),
    "module": lambda net: net,
    "plain dict": lambda net: dict(net.state_dict()),
    "numpy": lambda net: {name: value.numpy() for name, value in net.state_dict().items()},
    "numpy that cannot be written to": lambda net: {name: np.broadcast_to(value, value.shape) for name, value in net.state_dict().items()},
    "parameters with gradients": lambda net: net.state_dict(keep_vars=True),
}


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    return spec_of(build(), torch.zeros(2, 4))


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_what_wraps_a_network_is_opened_and_said(wrap, spec):
    networks = [build() for _ in range(3)]
    expected = pack(spec, [network.state_dict() for network in networks])
    with pytest.warns(UserWarning, match="^Read the state dict ") as seen:
        assert torch.equal(pack(spec, wrap(networks[0])), expected[0])
    assert len(seen) == 1
    with pytest.warns(UserWarning, match="^Read 3 of 4 state dicts ") as seen:  # one line for all
        found = pack(spec, [*(wrap(network) for network in networks), networks[0].state_dict()])
    assert torch.equal(found, expected[[0, 1, 2, 0]]) and len(seen) == 1 and "\n" not in str(seen[0].message)


@pytest.mark.parametrize("form", AS_THEY_ARE.values(), ids=AS_THEY_ARE)
@pytest.mark.parametrize(
    "many", [list, tuple, iter, lambda networks: (one for one in networks), lambda networks: dict(enumerate(networks)).values()]
)
def test_forms_of_a_network_are_packed_without_a_word(form, many, spec):
    networks = [build() for _ in range(3)]
    expected = torch.stack([pack(spec, network.state_dict()) for network in networks])
    assert torch.equal(pack(spec, form(networks[1])).detach(), expected[1])
    assert torch.equal(pack(spec, many([form(network) for network in networks])).detach(), expected)


def test_a_table_of_a_wrapped_network_takes_the_network_itself():
    network = build()
    spec = spec_of(nn.DataParallel(network), torch.zeros(2, 4))
    with pytest.warns(UserWarning, match=r"with '0\.weight' taken as 'module\.0\.weight'"):
        found = pack(spec, network)
    assert torch.equal(found, pack(spec, nn.DataParallel(network)))


def test_a_name_that_is_a_part_of_the_network_is_no_wrapper():
    """This architecture has a part called `module`, and its parallel form has one more."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(4, 2)

        def forward(self, x):
            return self.module(x)

    network = Part()
    spec = spec_of(network, torch.zeros(1, 4))
    theta = pack(spec, network.state_dict())
    with pytest.warns(UserWarning, match="with 'module.module.weight' taken as 'module.weight'"):
        assert torch.equal(pack(spec, nn.DataParallel(network).state_dict()), theta)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {"model": state, "ema": dict(state)}, r"Several entries .* fit the spec: \['model'\], \['ema'\]"),
        (lambda state: prefixed("module.", without("3.bias", state)), "entry '3.bias' is missing"),
        (lambda state: without("3.bias", state), "entry '3.bias' is missing"),
        (lambda state: prefixed("module.", state | {"4.bias": torch.zeros(1)}), "entries \\['4.bias'\\] are unknown"),
        (lambda state: {"model": state | {"4.bias": torch.zeros(1)}}, "entries \\['4.bias'\\] are unknown"),
        (lambda state: {"model": prefixed("net.", state) | {"loss.a": torch.zeros(1)}}, "entries \\['loss.a'\\] are unknown"),
        (lambda state: state | {"0.bias": torch.zeros(8, dtype=torch.int)}, "'0.bias' holds torch.int32, not decimal numbers"),
        (lambda state: state | {"0.bias": torch.zeros(8, dtype=torch.cfloat)}, "'0.bias' holds torch.complex64, not decimal numbers"),
        (lambda state: {"model": state | {"0.weight": torch.zeros(8, 5)}}, r"'0.weight' has shape \(8, 5\), the traced network \(8, 4\)"),
        (lambda state: {"a.0.weight": state["0.weight"], **without("0.weight", state)}, "entry '0.weight' is missing"),
        (lambda state: state | {"0.bias": "zeros"}, "'0.bias' is a str, not a tensor"),
        (lambda state: {1: state["0.weight"]}, "keys that are no names"),
        (lambda state: iter([]), "The zoo is empty"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_never_opened(change, words, spec):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=words):
        warnings.simplefilter("error")
        pack(spec, change(build().state_dict()))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head, self.more = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False), nn.Linear(6, 11, bias=False)
        self.head.weight = self.more.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = self.embedding(tokens).relu()
        return self.head(hidden) + self.more(hidden)


@pytest.mark.parametrize("kept", [["embedding"], ["head"], ["more"], ["embedding", "more"], ["head", "more"]])
def test_one_name_of_tied_entries_is_enough(kept):
    network = Tied()
    spec, state = spec_of(network, torch.tensor([[1, 2]])), network.state_dict()
    assert torch.equal(pack(spec, {f"{name}.weight": state[f"{name}.weight"] for name in kept}), pack(spec, state))
    with pytest.raises(ValueError, match="are one tensor in the traced network, but not here"):
        pack(spec, state | {"head.weight": state["head.weight"] + 1})
    with pytest.raises(ValueError, match=r"is missing"):
        pack(spec, {})


def test_what_save_model_leaves_of_tied_entries_is_packed(tmp_path):
    network = Tied()
    spec = spec_of(network, torch.tensor([[1, 2]]))
    save_model(network, str(tmp_path / "tied.safetensors"))
    assert len(left := load_file(tmp_path / "tied.safetensors")) == 1
    assert torch.equal(pack(spec, left), pack(spec, network))


class Auxiliary(nn.Module):
    """Its second head is used in training only."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.body(x).relu()
        return (self.head(hidden), self.auxiliary(hidden)) if self.training else self.head(hidden)


def test_entries_that_a_weight_vector_does_not_hold_are_said():
    network = Auxiliary()
    spec = spec_of(network, torch.zeros(1, 4))
    pack(spec, network)
    pack(spec, network.half())  # the same numbers, but for rounding
    others = [Auxiliary() for _ in range(3)]
    with pytest.warns(UserWarning, match=r"'auxiliary.weight' and 1 more entries .* does not read them") as seen:
        pack(spec, others)
    assert len(seen) == 1


def test_counters_that_differ_are_no_news(spec):
    network = build()
    network(torch.randn(5, 4))
    assert network[1].num_batches_tracked == 1
    pack(spec, network)


# unpack


def bytes_of(state) -> int:
    torch.save(state, file := io.BytesIO())
    return len(file.getvalue())


@pytest.mark.parametrize("nets", [1, 1000])
def test_a_saved_network_is_as_large_as_one_network(nets, spec):
    thetas = torch.randn(nets, spec.weights)
    for state in (unpack(spec, thetas[0]), unpack(spec, thetas[-1].double()), dict(unpack(spec, thetas[nets // 2]))):
        assert bytes_of(state) < 1.1 * bytes_of(build().to(next(iter(state.values()))).state_dict())


def test_entries_share_no_memory_with_the_vector_or_each_other_unless_they_are_tied(spec):
    theta = torch.randn(spec.weights)
    state = unpack(spec, theta)
    assert len({value.untyped_storage().data_ptr() for value in state.values()} | {theta.untyped_storage().data_ptr()}) == len(state) + 1
    state["0.weight"].zero_()
    assert not (theta == 0).any()
    tied = spec_of(Tied(), torch.tensor([[1, 2]]))
    state = unpack(tied, torch.randn(tied.weights))
    assert len({value.data_ptr() for value in state.values()}) == 1


def test_gradients_go_through_unpack(spec):
    theta = torch.randn(2, spec.weights, requires_grad=True)
    learned = [tensor.name for tensor in spec.tensors]
    sum(unpack(spec, theta)[name].sum() for name in learned).backward()
    assert torch.equal(theta.grad, torch.ones_like(theta))


class Versioned(nn.Linear):
    """Refuses a state dict that does not say its version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError("no version")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_the_versions_of_modules_come_back():
    network = Versioned(4, 2)
    traced = spec_of(network, torch.zeros(1, 4))
    theta = pack(traced, network)
    with pytest.raises(ValueError, match="no version"):
        network.load_state_dict(dict(unpack(traced, theta)))
    spec = replace(traced, metadata=metadata_of(network.state_dict()))
    for one in (spec, NetworkSpec.from_json(spec.to_json(), spec.rest)):
        network.load_state_dict(unpack(one, theta))
        assert unpack(one, theta)._metadata == network.state_dict()._metadata
        assert isinstance(unpack(one, theta), OrderedDict)
    assert NetworkSpec.from_json(replace(spec, metadata={"": {"version": 2, "more": object()}}).to_json(), {}).metadata == {
        "": {"version": 2}
    }
