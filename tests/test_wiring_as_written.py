"""Hold the tracing against networks as people write them: what is declared is true, and what is plain to see is declared."""

import copy
from dataclasses import replace

import pytest
import torch
from networks import Written, learned
from torch import nn
from torch.nn.functional import batch_norm, conv2d, layer_norm, linear, normalize, scaled_dot_product_attention

import geoflow
from geoflow.frame import metric_frame
from geoflow.spec import Piece
from geoflow.wiring import check_spec, spec_of
from geoflow.wiring.check import RoundedTo

Conv1d, Conv2d, Linear, Sequential = nn.Conv1d, nn.Conv2d, nn.Linear, nn.Sequential


def row(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def between(function, width=6):
    """What stands between two linear layers."""
    return lambda: Written(lambda s, x: s.o(function(s.a(x))), a=Linear(5, width), o=Linear(width, 2))


def prompted(s, x):
    h = torch.cat([s.p.expand(len(x), -1, -1), s.e(x)], 1)
    for q, k, v in zip(s.q, s.k, s.v, strict=True):
        h = h + scaled_dot_product_attention(q(h), k(h), v(h), is_causal=True)
    return s.o(h)[:, 3:]


def three(width=6, count=2):
    return nn.ModuleList(Linear(width, width) for _ in range(count))


def heads(s, x, **named):
    q, k, v = (part(x).unflatten(-1, (-1, 3)).transpose(1, 2) for part in (s.q, s.k, s.v))
    return s.o(scaled_dot_product_attention(q, k, v, **named).transpose(1, 2).flatten(2))


def from_zeros(step):
    def forward(s, x):
        h = c = torch.zeros(len(x), 4).to(x)
        for t in range(3):
            h, c = step(s, x[:, t], h, c)
        return s.o(h)

    return forward


def lstm(s, x, h, c):
    i, f, g, o = (s.i(x) + s.h(h)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def frozen(s, x):
    with torch.no_grad():
        h = s.a(x).relu()
    return s.o(h)


def cast(s, x):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        h, gate = s.a(x).chunk(2, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False), torch.enable_grad():
        h = s.b(h.relu() * gate)
    return s.o(h.relu())


def recurrent(kind, *starts, layers=2):
    def forward(s, x):
        start = tuple(getattr(s, name).expand(-1, len(x), -1).contiguous() for name in starts)
        return s.o(s.layer(x, start if len(start) > 1 else start[0])[0][:, -1])

    parts = {name: learned(layers, 1, 4) for name in starts}
    return lambda: Written(forward, layer=kind(3, 4, layers, batch_first=True), o=Linear(4, 2), **parts)


def alike(function, part):
    """One vector of units at four positions, something between, and learned places, which tell the positions apart."""

    def forward(s, x):
        return s.o((function(s, s.a(x).unsqueeze(1).expand(-1, 4, -1)) + s.p).relu().mean(1))

    return lambda: Written(forward, a=Linear(5, 6), n=part(), p=learned(4, 6), o=Linear(6, 2))


def context(join, width):
    """Every position with what is the same at all of them."""

    def forward(s, x):
        h = s.a(x).relu()
        return s.o((s.b(join(h, h.mean(1, keepdim=True).expand(-1, 4, -1))) + s.p).relu().mean(1))

    return lambda: Written(forward, a=Linear(5, 6), b=Linear(width, 3), p=learned(4, 3), o=Linear(3, 2))


def asked_by_one(s, x):
    """One learned query at every position; it is the mask that tells them apart."""
    mask = torch.ones(4, 4).tril().bool()
    return s.o((scaled_dot_product_attention(s.q.expand(len(x), 4, -1), s.k(x), s.v(x), attn_mask=mask) + s.p).relu().mean(1))


def decoder(s, x):
    """One vector of units at every pixel, which the padding of a convolution and learned places tell apart."""
    return s.o((s.c(s.a(x)[:, :, None, None].expand(-1, -1, 4, 4)).relu() + s.p).relu()).mean((2, 3))


def beside_places(s, x):
    return s.o(torch.cat([s.a(x)[:, :, None, None].expand(-1, -1, 4, 4), s.p.expand(len(x), -1, -1, -1)], 1)).mean((2, 3))


def causal(s, x):
    return s.o((s.q(x) @ s.k(x).mT).masked_fill(s.mask == 0, -torch.inf).softmax(-1) @ s.v(x))


# name: (network, inputs, sizes of the groups of (permutation, scaling, sign), derived by hand)
CASES = {
    "relu as max with zeros": (between(lambda h: torch.max(h, torch.zeros_like(h))), row(3, 5), ([6], [6], [])),
    "relu as max with a number": (between(lambda h: torch.max(h, torch.tensor(0.0).to(h))), row(3, 5), ([6], [6], [])),
    "relu as clamp": (between(lambda h: h.clamp(min=0)), row(3, 5), ([6], [6], [])),
    "relu as maximum": (between(lambda h: torch.maximum(h, torch.full_like(h, 0.0))), row(3, 5), ([6], [6], [])),
    "odd clamp": (between(lambda h: h.clamp(-2, 2)), row(3, 5), ([6], [], [6])),
    "min with other numbers": (between(lambda h: torch.min(h, torch.arange(6.0).to(h))), row(3, 5), ([], [], [])),
    "max with one number": (between(lambda h: torch.maximum(h, torch.full_like(h, 0.3))), row(3, 5), ([6], [], [])),
    "maximum of two": (
        lambda: Written(lambda s, x: s.o(torch.max(s.a(x), s.b(x))), a=Linear(5, 6), b=Linear(5, 6), o=Linear(6, 2)),
        row(3, 5), ([6], [6], []),
    ),
    "normalize": (between(lambda h: normalize(h.relu(), dim=-1)), row(3, 5), ([6], [], [])),
    "centred by expand": (between(lambda h: h - h.mean(-1, keepdim=True).expand_as(h)), row(3, 5), ([6], [], [])),
    "sum from zero": (between(lambda h: sum([h.relu(), (2 * h).relu()])), row(3, 5), ([6], [6], [])),
    "zeros beside units": (between(lambda h: torch.cat([h.relu(), h.new_zeros(3, 2)], 1)[:, :6]), row(3, 5), ([6], [6], [])),
    "places by numbers": (between(lambda h: h[:, [2, 0, 1, 5, 4, 3]]), row(3, 5), ([], [], [])),
    "pixel shuffle to one channel": (
        lambda: Sequential(Conv2d(1, 5, 3, padding=1), nn.Tanh(), Conv2d(5, 4, 3, padding=1), nn.PixelShuffle(2)),
        row(2, 1, 6, 6), ([5], [], [5]),
    ),
    "pixel shuffle to colours": (
        lambda: Sequential(Conv2d(1, 5, 3, padding=1), nn.Tanh(), Conv2d(5, 12, 3, padding=1), nn.PixelShuffle(2)),
        row(2, 1, 6, 6), ([5], [], [5]),
    ),
    "pixel shuffle of one hidden channel": (
        lambda: Sequential(Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.PixelShuffle(2), Conv2d(1, 2, 3)), row(2, 1, 6, 6), ([], [], []),
    ),
    "pixel shuffle of two": (
        lambda: Sequential(Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.PixelShuffle(2), Conv2d(2, 2, 3)), row(2, 1, 6, 6), ([2], [], [2]),
    ),
    "learned start of two layers": (recurrent(nn.GRU, "h"), row(2, 5, 3), ([4], [], [4])),
    "learned start of an LSTM": (recurrent(nn.LSTM, "h", "c"), row(2, 5, 3), ([4], [], [4])),
    "learned start of one layer": (recurrent(nn.GRU, "h", layers=1), row(2, 5, 3), ([4], [], [4])),
    "recurrence by cat from zeros": (
        lambda: Written(from_zeros(lambda s, x, h, c: (s.a(torch.cat([x, h], 1)).tanh(), c)), a=Linear(7, 4), o=Linear(4, 2)),
        row(2, 3, 3), ([4], [], [4]),
    ),
    "recurrence by product from zeros": (
        lambda: Written(from_zeros(lambda s, x, h, c: ((s.a(x) + h @ s.w).tanh(), c)), a=Linear(3, 4), w=learned(4, 4), o=Linear(4, 2)),
        row(2, 3, 3), ([4], [], [4]),
    ),
    "LSTM written out": (lambda: Written(from_zeros(lstm), i=Linear(3, 16), h=Linear(4, 16), o=Linear(4, 2)), row(2, 3, 3), ([4], [], [4])),
    "learned prompt, causal": (
        lambda: Written(prompted, e=Linear(5, 6), p=learned(1, 3, 6), q=three(), k=three(), v=three(), o=Linear(6, 2)),
        row(2, 4, 5), ([6], [6], [6]),  # the stream, to which values belong; queries of two layers have linear maps
    ),
    "mask of the state": (
        lambda: Written(
            lambda s, x: s.o(scaled_dot_product_attention(s.q(x), s.k(x), s.v(x), attn_mask=s.mask)),
            q=Linear(5, 4), k=Linear(5, 4), v=Linear(5, 3), mask=torch.zeros(4, 4), o=Linear(3, 2),
        ),
        row(2, 4, 5), ([], [], []),  # all is in linear maps: see LINEAR
    ),
    "infinite mask": (
        lambda: Written(
            lambda s, x: s.o((s.q(x) @ s.k(x).mT + s.mask).softmax(-1) @ s.v(x)),
            q=Linear(5, 4), k=Linear(5, 4), v=Linear(5, 3), mask=torch.full((4, 4), -torch.inf).triu(1), o=Linear(3, 2),
        ),
        row(2, 4, 5), ([], [], []),  # all is in linear maps: see LINEAR
    ),
    "grouped queries": (
        lambda: Written(lambda s, x: heads(s, x, enable_gqa=True), q=Linear(5, 12), k=Linear(5, 6), v=Linear(5, 6), o=Linear(12, 2)),
        row(2, 4, 5), None,
    ),
    "table of positions": (
        lambda: Written(lambda s, x: s.o((s.a(x) + s.pos[:, : x.shape[1]]).relu()), a=Linear(5, 6), pos=learned(1, 9, 6), o=Linear(6, 2)),
        row(2, 4, 5), ([6], [6], []),
    ),
    "rows of a table of positions": (
        lambda: Written(lambda s, x: s.o((s.a(x) + s.pos[: x.shape[1]]).relu()), a=Linear(5, 6), pos=learned(9, 6), o=Linear(6, 2)),
        row(2, 4, 5), ([6], [6], []),
    ),
    "rows of a table without its first": (
        lambda: Written(lambda s, x: s.o((s.a(x) + s.pos[1 : x.shape[1] + 1]).relu()), a=Linear(5, 6), pos=learned(10, 6), o=Linear(6, 2)),
        row(2, 4, 5), ([6], [6], []),
    ),
    "positions of channels": (
        lambda: Written(lambda s, x: s.o((s.c(x) + s.pos).relu().mean((2, 3))), c=Conv2d(1, 4, 3), pos=learned(1, 4, 4, 4), o=Linear(4, 2)),
        row(2, 1, 6, 6), ([4], [4], []),
    ),
    "rows of a table by numbers": (
        lambda: Written(lambda s, x: s.o((s.a(x) + s.w[torch.tensor([1, 0, 1])]).relu()), a=Linear(5, 6), w=learned(2, 6), o=Linear(6, 2)),
        row(3, 5), ([6], [6], []),
    ),
    "weights among the outputs": (
        lambda: Written(lambda s, x: (s.o(s.a(x).relu()), s.a.weight), a=Linear(5, 6), o=Linear(6, 2)), row(3, 5), ([], [], []),
    ),
    "padding with a number": (
        lambda: Sequential(Conv1d(1, 4, 1), nn.ConstantPad1d(1, 5.0), Conv1d(4, 2, 3)), row(3, 1, 5), ([4], [], []),
    ),
    "adaptive max pooling": (
        lambda: Sequential(Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), Linear(4, 2)),
        row(2, 1, 6, 6), ([4], [4], []),
    ),
    "max over positions": (
        lambda: Written(lambda s, x: s.o(s.c(x).relu().max(-1)[0]), c=Conv1d(3, 6, 1), o=Linear(6, 2)), row(2, 3, 7), ([6], [6], []),
    ),
    "where the max is": (
        lambda: Written(lambda s, x: s.o(s.c(x).max(-1)[1].to(x)), c=Conv1d(3, 6, 1), o=Linear(6, 2)), row(2, 3, 7), ([], [], []),
    ),
    "one number of all units": (
        lambda: Written(lambda s, x: s.a(x).relu() @ s.w, a=Linear(5, 6), w=learned(6)), row(3, 5), ([6], [6], []),
    ),
    "parts under autocast": (lambda: Written(cast, a=Linear(5, 12), b=Linear(6, 4), o=Linear(4, 2)), row(3, 5), ([4, 6], [4, 6], [])),
    "mask of units": (
        lambda: Written(lambda s, x: s.o(s.a(x).relu() * s.mask), a=Linear(5, 6), mask=torch.tensor([1.0, 1, 1, 0, 0, 0]), o=Linear(6, 2)),
        row(3, 5), ([], [6], []),
    ),
    "mask in the state": (
        lambda: Written(causal, q=Linear(5, 4), k=Linear(5, 4), v=Linear(5, 3), mask=torch.ones(4, 4).tril(), o=Linear(3, 2)),
        row(2, 4, 5), ([], [], []),  # all is in linear maps: see LINEAR
    ),
    "fixed table of positions": (
        lambda: Written(lambda s, x: s.o((s.a(x) + s.pe[:, :4]).relu()), a=Linear(5, 6), pe=torch.randn(1, 9, 6), o=Linear(6, 2)),
        row(2, 4, 5), ([], [], []),
    ),
    "fixed features": (
        lambda: Written(lambda s, x: s.o(s.a(linear(x, s.w).cos()).relu()), w=torch.randn(7, 5), a=Linear(7, 6), o=Linear(6, 2)),
        row(3, 5), ([6], [6], []),
    ),
    "fixed kernel": (
        lambda: Written(
            lambda s, x: s.b(conv2d(s.a(x).relu(), s.w.expand(4, 1, 3, 3), groups=4)).mean((2, 3)),
            a=Conv2d(1, 4, 3), w=torch.rand(1, 1, 3, 3), b=Conv2d(4, 2, 1),
        ),
        row(2, 1, 8, 8), ([4], [], []),  # a blur of every channel alike
    ),
    "norm with fixed zeros for a bias": (
        lambda: Written(
            lambda s, x: s.o(layer_norm(s.a(x), (6,), s.g, s.b).relu()),
            a=Linear(5, 6), g=learned(6), b=torch.zeros(6), o=Linear(6, 2),
        ),
        row(3, 5), ([6], [6], []),
    ),
    "one vector along a GRU": (alike(lambda s, h: s.n(h)[0], lambda: nn.GRU(6, 6, batch_first=True)), row(2, 5), ([6, 6], [6], [6])),
    "one vector repeated along an LSTM": (
        alike(lambda s, h: s.n(h[:, :1].repeat(1, 4, 1))[0], lambda: nn.LSTM(6, 6, batch_first=True)), row(2, 5), ([6, 6], [6], [6]),
    ),
    "one vector with a gain per position": (alike(lambda s, h: h * s.n, lambda: learned(4, 1)), row(2, 5), ([6], [6], [])),
    "one vector with gains of its own": (alike(lambda s, h: h * s.n, lambda: learned(4, 6)), row(2, 5), ([6], [6, 6], [6])),
    "one vector with places twice": (alike(lambda s, h: h + s.n, lambda: learned(4, 6)), row(2, 5), ([4, 6], [6], [])),
    "one vector normalised by position": (alike(lambda s, h: s.n(h), lambda: nn.BatchNorm1d(4)), row(2, 5), ([6], [], [])),
    "one vector normalised with all": (alike(lambda s, h: s.n(h), lambda: nn.LayerNorm([4, 6])), row(2, 5), ([6], [6], [])),
    "one vector with slopes per position": (alike(lambda s, h: s.n(h), lambda: nn.PReLU(4)), row(2, 5), ([6], [6], [])),
    "one query, masked": (
        lambda: Written(asked_by_one, q=learned(1, 1, 6), k=Linear(5, 6), v=Linear(5, 6), p=learned(4, 6), o=Linear(6, 2)),
        row(2, 4, 5), ([6], [6], []),  # the query and keys have linear maps
    ),
    "context beside every position": (context(lambda h, c: torch.cat([h, c], -1), 12), row(2, 4, 5), ([3, 6], [3, 6], [])),
    "context stacked on every position": (context(lambda h, c: torch.stack([h, c], -1).sum(-1), 6), row(2, 4, 5), ([3, 6], [3, 6], [])),
    "one vector beside places": (
        lambda: Written(beside_places, a=Linear(5, 6), p=learned(1, 2, 4, 4), o=Conv2d(8, 2, 1)), row(2, 5), None,
    ),
    "one vector at every pixel": (
        lambda: Written(decoder, a=Linear(5, 6), c=Conv2d(6, 3, 3, padding=1), p=learned(1, 3, 4, 4), o=Conv2d(3, 2, 1)),
        row(2, 5), ([3, 6], [3, 6], [6]),
    ),
    "frozen part": (lambda: Written(frozen, a=Linear(5, 6), o=Linear(6, 2)), row(3, 5), ([6], [6], [])),
}  # fmt: skip
# name: the (heads, width) of the groups of linear maps; networks without queries and keys have none
LINEAR = {
    "learned prompt, causal": [(1, 6), (1, 6)],
    "mask of the state": [(1, 3), (1, 4)],
    "infinite mask": [(1, 3), (1, 4)],
    "grouped queries": [(2, 3), (2, 3)],
    "mask in the state": [(1, 3), (1, 4)],
    "one query, masked": [(1, 6)],
}


def traced(name):
    build, x, _ = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build().double().eval()
    return network, spec_of(network, x), x


@pytest.mark.parametrize("name", CASES)
def test_what_is_declared_is_true_and_nothing_plain_is_missed(name):
    network, spec, x = traced(name)
    for seed in range(4):
        assert check_spec(network, spec, x, torch.Generator().manual_seed(seed)) < 1e-11
    expected = CASES[name][2]
    if expected is not None:
        assert tuple(sorted(spec.groups(symmetry).values()) for symmetry in ("permutation", "scaling", "sign")) == expected
    assert sorted(spec.linear.values()) == LINEAR.get(name, [])
    geoflow.graph_of(spec)
    theta = geoflow.pack(spec, network.state_dict())
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in geoflow.unpack(spec, theta).items())


@pytest.mark.parametrize("name", ["table of positions", "rows of a table of positions", "rows of a table without its first"])
def test_positions_that_the_example_did_not_reach_stay_as_they_are(name):
    """check_spec sees the length of the example only; the canonical form must serve the longest."""
    network, spec, _ = traced(name)
    other = traced(name)[0]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=parameter.dtype))
    canonical = geoflow.canonicalize(spec, geoflow.pack(spec, [other.state_dict(), network.state_dict()])).theta[1]
    longest = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = torch.func.functional_call(network, geoflow.unpack(spec, canonical), longest)
    assert not torch.equal(canonical, geoflow.pack(spec, network.state_dict()))
    torch.testing.assert_close(moved, network(longest), rtol=0, atol=1e-12)


def test_rows_that_nothing_uses_do_not_keep_the_inputs_from_being_turned():
    spec = spec_of(Written(lambda s, x: s.o(linear(x, s.w[:4]).relu()), w=learned(7, 5), o=Linear(4, 2)), torch.zeros(1, 5))
    assert metric_frame(geoflow.graph_of(spec), torch.eye(5)).axes  # it raises where there is no such input


def test_a_parameter_that_is_returned_is_a_weight_like_all_others():
    def policy():
        return Written(lambda s, x: (s.o(s.a(x).tanh()), s.spread), a=Linear(5, 6), o=Linear(6, 2), spread=learned(2))

    first, second = policy(), policy()
    spec = spec_of(first, torch.zeros(1, 5))
    assert torch.equal(geoflow.unpack(spec, geoflow.pack(spec, second.state_dict()))["spread"], second.spread)


CONSTANTS = {"mask of units": "mask", "mask in the state": "mask", "fixed table of positions": "pe", "fixed features": "w"}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_of_the_state_are_what_they_were_in_every_network(name):
    network, spec, x = traced(name)
    constant = CONSTANTS[name]
    assert spec.constants == (constant,) and constant not in {tensor.name for tensor in spec.tensors}
    theta = geoflow.pack(spec, network.state_dict()) + torch.randn(5, spec.weights, generator=torch.Generator().manual_seed(0)).double()
    states = geoflow.unpack(spec, geoflow.canonicalize(spec, theta).theta)
    assert torch.equal(states[constant], spec.rest[constant].expand_as(states[constant]))
    geoflow.pack(spec, states)
    rounded = spec_of(copy.deepcopy(network).float(), x.float())
    check_spec(network, rounded, x, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("change", [lambda mask: mask.flip(0), lambda mask: mask[:3]])
def test_a_zoo_whose_constants_differ_is_refused(change, stacked):
    network, spec, _ = traced("mask of units")
    mask = change(network.mask)
    other = network.state_dict() | {"mask": mask}
    zoo = [network.state_dict() if mask.shape == network.mask.shape else other, other]
    states = {name: torch.stack([state[name] for state in zoo]) for name in other} if stacked else zoo
    with pytest.raises(ValueError, match="'mask' is a constant of the forward pass"):
        geoflow.pack(spec, states)


def test_statistics_of_a_normalisation_are_no_constants_wherever_it_stands():
    def forward(s, x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            h = s.n(s.a(x))
        return s.o(batch_norm(h, s.mean[:6], s.variance[:6]).relu())

    statistics = {"mean": torch.zeros(8), "variance": torch.ones(8)}
    spec = spec_of(Written(forward, a=Linear(5, 6), n=nn.BatchNorm1d(6), o=Linear(6, 2), **statistics), torch.zeros(2, 5))
    assert spec.constants == () and set(spec.rest) == {"n.num_batches_tracked"}


def test_a_constant_without_values_is_refused():
    with torch.device("meta"):
        network = Written(lambda s, x: s.a(x) * s.mask, a=Linear(5, 6), mask=torch.ones(6))
    with pytest.raises(ValueError, match="'mask' is a constant of the network, and on the meta device"):
        spec_of(network, torch.zeros(1, 5, device="meta"))


def test_the_weight_of_a_recurrence_reads_the_units_that_it_writes():
    """Not the zeros that stand in their place in the first step."""
    _, spec, _ = traced("recurrence by cat from zeros")
    (weight,) = (tensor for tensor in spec.tensors if tensor.name == "a.weight")
    read = [spec.sites[piece.reads] for piece in weight.axes[1]]
    assert [site.role for site in read] == ["input", "hidden"] and read[1].name == "a"


def test_networks_on_the_meta_device_have_weights_of_their_own():
    with torch.device("meta"):
        network = Sequential(Linear(4, 4), nn.ReLU(), Linear(4, 4))
    spec = spec_of(network, torch.zeros(1, 4, device="meta"))
    assert [tensor.name for tensor in spec.tensors] == ["0.weight", "0.bias", "2.weight", "2.bias"] and not spec.aliases


def test_what_cannot_be_traced_says_why():
    def broadcast(s, x):
        return torch.einsum("abd,abd->ad", s.a(x), s.a(x).mean(1, keepdim=True))

    with pytest.raises(ValueError, match="axes of different lengths, 3 and 1"):
        spec_of(Written(broadcast, a=Linear(5, 6)).double(), row(2, 3, 5))

    class Noted(Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match="'_extra_state' of the state dict is a dict"):
        spec_of(Noted(3, 2), torch.zeros(1, 3))


def test_a_learned_complex_parameter_is_refused():
    """Its values would stay those of the traced network in every other."""
    network = Written(
        lambda s, x: s.o((s.a(x) * s.w).abs()), a=Linear(5, 6), w=nn.Parameter(torch.randn(6, dtype=torch.cfloat)), o=Linear(6, 2)
    )
    with pytest.raises(ValueError, match=r"'w' is learned and has the type torch\.complex64"):
        spec_of(network, torch.zeros(1, 5))


def test_whole_numbers_are_constants_although_they_are_parameters():
    order = nn.Parameter(torch.arange(6).flip(0), requires_grad=False)
    network = Written(lambda s, x: s.o(s.a(x).relu()[:, s.i]), a=Linear(5, 6), i=order, o=Linear(6, 2))
    assert spec_of(network, torch.zeros(1, 5)).constants == ("i",)


def rounded_inside():
    """A norm as language models have it, in float32 whatever it is given."""

    def norm(s, h):
        wide = h.float()
        return (wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()).type_as(h) * s.g

    def forward(s, x):
        return s.o(norm(s, s.a(x)).relu())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Written(forward, a=Linear(4, 5), g=learned(5), o=Linear(5, 3))


def test_a_right_table_of_a_network_that_rounds_inside_is_not_refused():
    network = rounded_inside()
    spec = spec_of(network, torch.zeros(1, 4))
    changes = [check_spec(network, spec, torch.zeros(3, 4), torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert max(changes) > 1e-8  # more than float64 would do
    assert max(changes) < 1e-6


def test_a_wrong_table_of_a_network_that_rounds_inside_is_refused():
    network = rounded_inside()
    spec = spec_of(network, torch.zeros(1, 4))
    for index, tensor in enumerate(spec.tensors[:3]):  # what writes the units of the norm, and its gain
        blind = replace(tensor, axes=((Piece(tensor.shape[0]),), *tensor.axes[1:]))
        wrong = replace(spec, tensors=(*spec.tensors[:index], blind, *spec.tensors[index + 1 :]))
        for seed in range(4):
            with pytest.raises(ValueError, match="a declared symmetry changes its output by"):
                check_spec(network, wrong, torch.zeros(3, 4), torch.Generator().manual_seed(seed))


def test_a_precision_that_hides_a_wrong_table_is_named():
    network = between(lambda h: h.bfloat16().relu().to(h.dtype))()
    spec = spec_of(network, torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"cast to torch\.bfloat16 may explain that"):
        check_spec(network, spec, torch.zeros(3, 5), torch.Generator().manual_seed(0))


def test_constants_of_a_coarser_precision_round_nothing():
    """They are what they are, and the check stays as sharp."""
    network = between(lambda h: h.relu() * torch.full((6,), 1 / 3))().double()
    with RoundedTo() as rounded:
        network(row(3, 5))
    assert rounded.dtype == torch.float64


def test_a_network_without_finite_outputs_cannot_be_checked():
    network = Written(lambda s, x: s.a(x).relu().log() * float("nan"), a=Linear(5, 6))
    spec = spec_of(network, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="no finite output for normal inputs"):
        check_spec(network, spec, torch.zeros(3, 5), torch.Generator().manual_seed(0))
