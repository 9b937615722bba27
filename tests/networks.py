"""List the networks that the tests share, by name, each with an example of its input."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = tuple[Callable[[], nn.Module], Callable[[], Tensor | tuple]]


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """x + f(x), with a map on the shortcut if one is given."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.branch(x)


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class OfFunction:
    """The forward pass of a Written module, with the names of its inputs."""

    def __get__(self, module, owner=None):
        return self if module is None else partial(module.function, module)


class Written(nn.Module):
    """A forward pass as a function of the module and its inputs; parts are modules, parameters and buffers."""

    forward = OfFunction()

    def __init__(self, function: Callable, **parts: object):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if type(part) is Tensor:
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def basic_block(n_in: int, n_out: int, stride: int = 1) -> nn.Module:
    branch = nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True),
        nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out),
    )  # fmt: skip
    same = n_in == n_out and stride == 1
    return Residual(branch, None if same else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)))


def resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    blocks = [basic_block(4, 4), nn.ReLU(inplace=True), basic_block(4, 6, 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


def option_a_resnet() -> nn.Module:
    """The shortcut subsamples and pads its channels with zeros."""
    shortcut = Apply(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
    branch = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1))
    return nn.Sequential(nn.Conv2d(1, 4, 3), Residual(branch, shortcut), nn.ReLU(), Apply(lambda x: x.mean((2, 3))), nn.Linear(6, 2))


def group_norm_net() -> nn.Module:
    blocks = [nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.GroupNorm(1, 4), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Conv2d(4, 4, 1), nn.GroupNorm(4, 4), nn.Flatten(), nn.Linear(64, 3))


def pre_norm() -> nn.Module:
    block = [nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)]
    return nn.Sequential(nn.Linear(5, 6), Residual(nn.Sequential(*block)), Residual(mlp(6, 8, 6)), nn.LayerNorm(6), nn.Linear(6, 2))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Concat(nn.Module):
    """Two branches side by side, added to a plain one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(5, 3), nn.Linear(5, 4), nn.Linear(5, 7), nn.Linear(12, 2)

    def forward(self, x):
        both = torch.cat([self.a(x).relu(), self.b(x).tanh()], -1)
        return self.out(torch.cat([both + self.c(x), x], -1))


class Repeated(nn.Module):
    """One layer used twice, and an input read twice."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.skip, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.again(F.relu(self.again(F.relu(self.first(x)))))
        return self.out(F.relu(h) * torch.sigmoid(self.skip(F.dropout(x, training=False))))


class Free(nn.Module):
    """Parameters outside layers: a matrix, positions, a layer scale, a class token."""

    def __init__(self):
        super().__init__()
        self.matrix, self.offset = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
        self.places, self.scale = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))
        self.token, self.temperature = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.ones(()))
        self.branch, self.out = mlp(6, 7, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = x @ self.matrix + self.offset
        h = torch.cat([self.token.expand(len(x), -1, -1), h], 1)[:, :4] + self.places
        h = h + self.scale * self.branch(h)
        return self.out(h.mean(1)) * self.temperature


class Lazy(nn.Module):
    """Unused entries, counters, constants and buffers."""

    def __init__(self):
        super().__init__()
        self.layer, self.out, self.unused = nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(3, 3)
        self.register_buffer("steps", torch.zeros(2, dtype=torch.long))
        self.register_buffer("mean", torch.linspace(-1, 1, 5))  # the same in every network
        self.register_buffer("width", torch.full((4,), 2.0), persistent=False)

    def forward(self, x):
        return self.out(torch.relu(self.layer(x - self.mean)) / self.width) + 1


class Tied(nn.Module):
    """A language model whose last layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.mlp, self.head = nn.Embedding(11, 6), nn.LayerNorm(6), mlp(6, 8, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        h = self.embedding(tokens)
        return self.head(h + self.mlp(self.norm(h)))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.tokens, self.features = mlp(tokens, 7, tokens, activation=nn.GELU), mlp(width, 8, width, activation=nn.GELU)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x):
        x = x + self.tokens(self.norms[0](x).mT).mT
        return x + self.features(self.norms[1](x))


class TokenMixing(nn.Module):
    """Gains and offsets for every token and channel, tokens mixed by their place; channels are inputs, or units of a layer."""

    def __init__(self, enter: nn.Module, tokens: int, width: int, residual: bool):
        super().__init__()
        self.enter, self.norm, self.mix, self.out = enter, nn.LayerNorm([tokens, width]), nn.Linear(tokens, tokens), nn.Linear(width, 2)
        self.residual = residual

    def forward(self, x):
        x = self.enter(x)
        mixed = self.mix(self.norm(x).mT).mT
        return self.out((x + mixed if self.residual else mixed.tanh()).mean(1))


def mixer() -> nn.Module:
    patches = nn.Sequential(nn.Conv2d(1, 6, 2, 2), nn.Flatten(2), Apply(lambda x: x.mT))
    return nn.Sequential(patches, MixerBlock(9, 6), Apply(lambda x: x.mean(1)), nn.Linear(6, 2))


class Attention(nn.Module):
    """Multi-head attention from a packed projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class OneHead(nn.Module):
    """Attention with one head, without any view."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(n, m) for n, m in ((5, 4), (5, 4), (5, 6), (6, 2)))

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True))


class MultiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.attention, self.out = nn.Linear(5, 6), nn.MultiheadAttention(6, 3, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        h = self.up(x)
        return self.out(h + self.attention(h, h, h, need_weights=False)[0])


class Recurrent(nn.Module):
    """The mean over the steps of a recurrent layer."""

    def __init__(self, layer: nn.Module, width: int):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 2)

    def forward(self, x):
        return self.out(self.layer(x)[0].mean(1))


class Unrolled(nn.Module):
    """A recurrent network written out, step by step."""

    def __init__(self, cell: nn.Module | None = None):
        super().__init__()
        self.cell, self.enter, self.again, self.out = cell, nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            h = self.cell(step, h) if self.cell else torch.tanh(self.enter(step) + self.again(h))
        return self.out(h)


class TiedAutoencoder(nn.Module):
    """The decoder is the transposed encoder: its hidden factors are pinned."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return F.linear(torch.relu(F.linear(x, self.weight, self.bias)), self.weight.T)


class SharedKeys(nn.Module):
    """Attention in four heads that share two heads of keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(n, m) for n, m in ((5, 12), (5, 6), (5, 6), (12, 2)))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (one.repeat_interleave(2, 1) for one in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.out = nn.Conv2d(1, 3, 3), nn.Linear(7, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 2, 3, padding=1)) for n in (3, 5))

    def forward(self, x):
        x = self.enter(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.out(x.mean((2, 3)))


class UNet(nn.Module):
    """Down, up, and a concatenated skip."""

    def __init__(self):
        super().__init__()
        self.enter, self.down, self.up = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 3, 2, 1), nn.ConvTranspose2d(5, 4, 2, 2)
        self.out = nn.Conv2d(10, 1, 1)

    def forward(self, x):
        h = F.leaky_relu(self.enter(x))
        low = F.leaky_relu(self.down(h))
        return self.out(torch.cat([F.relu(self.up(low)), h, F.interpolate(h[:, :2], scale_factor=1), h[:, 2:]], 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 3, 1), nn.SiLU(), nn.Conv2d(3, channels, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.gate(x)


def mobile() -> nn.Module:
    """An inverted residual with depthwise convolution, squeeze and excitation."""
    branch = [nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish()]
    block = Residual(nn.Sequential(*branch, SqueezeExcite(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)))
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2))


def grouped() -> nn.Module:
    layers = [nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 6, 1, groups=3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 2))


def depthwise() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Tanh()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))


def two_tanh() -> nn.Module:
    """Channels with one order and two signs: before a depthwise convolution without bias, and after it."""
    layers = [nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.Tanh(), nn.Conv2d(6, 6, 1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(6, 2, 1))


class LearnedGain(nn.Module):
    """Units with one order and two signs: before a learned gain, and after it."""

    def __init__(self):
        super().__init__()
        self.enter, self.gain, self.inner, self.out = nn.Linear(5, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(torch.tanh(self.enter(x)) * self.gain)))


def projections(width: int = 8) -> dict[str, nn.Module]:
    return {name: nn.Linear(width, width) for name in "qkvo"}


def two_heads(s: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (s.q, s.k, s.v))
    return s.o(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def relative_bias(s, x):
    """Every head adds a learned number for each distance of two tokens."""
    place = torch.arange(x.shape[1])
    return two_heads(s, x, s.table[:, place[:, None] - place[None] + x.shape[1] - 1][None])


def masked_by_input(s, tokens, mask):
    """The mask of the tokens is indexed by tensors, as in transformers."""
    mask = mask[torch.arange(len(tokens))[:, None], torch.arange(tokens.shape[1])[None]].bool()
    return two_heads(s, s.e(tokens), mask[:, None, None].expand(-1, 1, tokens.shape[1], -1))


def filled(s, x):
    """A mask that is filled in place through views."""
    mask = x.new_zeros(6)
    mask[:2] = 1
    mask[3:].add_(2)
    return s.o(s.a(x * mask[:5]).relu())


def part_by_part(s, x):
    """Slices of a bias, of units and of zeros are changed in place."""
    bias, h, wide = s.b.clone(), s.a(x).relu(), x.new_zeros(len(x), 6)
    bias[2:4].zero_()
    h[:, 1:3].mul_(2)
    wide[:, :3] = s.c(x).relu()
    return s.o((F.linear(h, s.w, bias) + wide).relu())


def keyword(s, x, *, mask=None, extra):
    """Inputs by keyword, one of them a dict; a dict and an object as outputs."""
    h = s.a(x).relu() * mask
    return {"out": s.o(h + s.a(extra["again"])), "kept": object()}


@dataclass
class Returned:
    """What a network may return. The cache is no output."""

    logits: Tensor
    cache: object


class Cache:
    def __init__(self, values: Tensor):
        self.values = values


def cached(s, x):
    h = s.a(x).relu()
    return Returned(s.o(h), Cache(h))


class KeptBias(nn.Module):
    """A bias that is computed once and kept, until training begins."""

    def __init__(self):
        super().__init__()
        self.a, self.o, self.table, self.kept = nn.Linear(5, 4), nn.Linear(4, 2), learned(4), {}

    def train(self, mode: bool = True):
        self.kept = {} if mode else self.kept
        return super().train(mode)

    def forward(self, x):
        bias = self.table * 2 if self.training else self.kept.setdefault("bias", self.table * 2)
        return self.o((self.a(x) + bias).relu())


class RootMeanSquare(nn.Module):
    """RMSNorm as language models write it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = learned(width)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotated(s, x):
    """Attention with one head whose queries and keys are rotated in pairs by their place."""
    angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
    turned = [h * angle.cos() + torch.cat([-h[..., 2:], h[..., :2]], -1) * angle.sin() for h in (s.q(x), s.k(x))]
    return s.o(F.scaled_dot_product_attention(*turned, s.v(x)))


def normed_queries(s, x):
    """Queries and keys are normalised in every head, with one gain for all heads."""
    q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (s.q, s.k, s.v))
    q, k = F.rms_norm(q, (4,), s.g), F.rms_norm(k, (4,), s.h)
    return s.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def talking_heads(s, x):
    """Every head weighs tokens by a mixture of the scores of all heads."""
    q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (s.q, s.k, s.v))
    scores = s.t((q @ k.mT / 2).softmax(-1).movedim(1, -1)).movedim(-1, 1)
    return s.o((scores @ v).transpose(1, 2).flatten(2))


def every_other_copy(s, x):
    """Queries, keys and values lie along an axis that is cut by steps of two, and each of the two copies that are left is read."""
    both = s.a(x).unflatten(-1, (3, 2, 3))[:, :, ::2]
    q, v = (both[:, :, i].transpose(1, 2) for i in range(2))
    return s.o(F.scaled_dot_product_attention(q, q, v).transpose(1, 2).flatten(2))


def gain_of_copies(s, x):
    """Queries, keys and values are multiplied by one gain for each unit of a head before they are told apart."""
    q, k, v = (s.a(x).unflatten(-1, (3, 2, 3)) * s.g).permute(2, 0, 3, 1, 4)
    return s.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def slopes(s, x):
    """Every head has a given bias of its own, so that no two of them can be exchanged."""
    place = torch.arange(x.shape[1], dtype=x.dtype)
    return two_heads(s, x, (place - place[:, None])[None, None] * torch.tensor([0.5, 0.25], dtype=x.dtype)[:, None, None])


def expanded_keys(s, x):
    """Four heads of queries share two of keys and values, which are repeated by views, in plain operations."""
    q, k, v = (part(x).unflatten(-1, (-1, 3)).transpose(1, 2) for part in (s.q, s.k, s.v))
    k, v = (one[:, :, None].expand(-1, -1, 2, -1, -1).reshape(q.shape) for one in (k, v))
    return s.o(((q @ k.mT / 3**0.5).softmax(-1) @ v).transpose(1, 2).reshape(*x.shape[:2], -1))


def chunked(s, x):
    """Queries, keys and values are chunks of one layer."""
    q, k, v = (one.unflatten(-1, (2, 3)) for one in s.a(x).chunk(3, -1))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 3**0.5
    return s.o(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2))


def gain_of_heads(s, x):
    """The result of every head has a learned factor."""
    q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (s.q, s.k, s.v))
    return s.o((F.scaled_dot_product_attention(q, k, v) * s.g).transpose(1, 2).flatten(2))


def temperatures(s, x):
    """Every head has a learned temperature."""
    q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (s.q, s.k, s.v))
    return s.o(((q @ k.mT * s.g).softmax(-1) @ v).transpose(1, 2).flatten(2))


def key_for_all(s, x):
    """One learned key, whose value is zero, serves all heads."""
    q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (s.q, s.k, s.v))
    k, v = (torch.cat([one.expand(2, 2, 1, 4), of], 2) for one, of in ((s.g, k), (torch.zeros(4, dtype=x.dtype), v)))
    return s.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def between_heads(s, x):
    """The heads of one token read each other, in the place of the tokens."""
    q, k, v = s.a(x).unflatten(-1, (3, 2, 3)).unbind(2)
    return s.o(F.scaled_dot_product_attention(q, k, v).flatten(2))


def between_heads_by_products(s, x):
    """The same, with weights that multiply values element by element."""
    q, k, v = s.a(x).unflatten(-1, (3, 2, 3)).unbind(2)
    return s.o(((q @ k.mT).softmax(-1)[..., None] * v[:, :, None]).sum(3).flatten(2))


def one_mixture(s, x):
    """One layer mixes the heads of scores and those of values."""
    q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (s.q, s.k, s.v))
    scores = q @ k.mT
    scores, v = (one + s.t(one.movedim(1, -1)).movedim(-1, 1) for one in (scores, v))
    return s.o((scores.softmax(-1) @ s.t(v.movedim(1, -1)).movedim(-1, 1)).transpose(1, 2).flatten(2))


def row(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.zeros(shape)


def tokens() -> Tensor:
    return torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


NETWORKS: dict[str, Case] = {
    "mlp": (lambda: mlp(30, 16, 16, 2), row(3, 30)),
    "mlp one by one": (lambda: mlp(1, 1, 1), row(1, 1)),
    "mlp tanh": (lambda: mlp(5, 4, 6, 2, activation=nn.Tanh), row(3, 5)),
    "mlp gelu": (lambda: mlp(5, 4, 6, 2, activation=nn.GELU), row(3, 5)),
    "mlp leaky": (lambda: mlp(5, 4, 6, 2, activation=nn.LeakyReLU), row(3, 5)),
    "mlp prelu": (lambda: mlp(5, 4, 4, 2, activation=lambda: nn.PReLU(4)), row(3, 5)),
    "mlp one slope": (lambda: mlp(5, 4, 6, 2, activation=nn.PReLU), row(3, 5)),
    "mlp linear": (lambda: mlp(5, 4, 6, 2, activation=nn.Identity), row(3, 5)),
    "mlp deep": (lambda: mlp(5, *[6] * 8, 2), row(3, 5)),
    "mlp softsign": (lambda: mlp(5, 4, 6, 2, activation=nn.Softsign), row(3, 5)),
    "mlp tanhshrink": (lambda: mlp(5, 4, 6, 2, activation=nn.Tanhshrink), row(3, 5)),
    "mlp hardtanh": (lambda: mlp(5, 4, 6, 2, activation=nn.Hardtanh), row(3, 5)),
    "mlp batch norm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)), row(3, 5)),
    "mlp plain batch norm": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 2)),
        row(3, 5),
    ),
    "mlp dropout": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.ReLU(inplace=True), nn.Dropout1d(), nn.Linear(4, 2)),
        row(3, 5),
    ),
    "mlp squeezed": (lambda: nn.Sequential(mlp(5, 4, 1, activation=nn.PReLU), nn.Flatten(0)), row(3, 5)),
    "mlp summed": (lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(), Apply(lambda x: x.sum(-1))), row(3, 5)),
    "image mlp": (lambda: nn.Sequential(nn.Flatten(), mlp(49, 6, 2)), row(2, 1, 7, 7)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, stride=2), nn.Tanh(), nn.Flatten(), mlp(20, 6, 2)
        ),
        row(2, 1, 12, 12),
    ),
    "cnn one channel": (lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)), row(1, 1, 6, 6)),
    "cnn batch norm after flatten": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
        row(2, 1, 4, 4),
    ),
    "cnn channels last": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Apply(lambda x: x.permute(0, 2, 3, 1).flatten(1)), nn.Linear(16, 2)),
        row(2, 1, 4, 4),
    ),
    "cnn unflatten": (
        lambda: nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Unflatten(1, (3, 2, 2)), nn.ConvTranspose2d(3, 2, 3)),
        row(2, 5),
    ),
    "cnn grouped": (grouped, row(2, 2, 8, 8)),
    "cnn depthwise": (depthwise, row(2, 1, 8, 8)),
    "cnn two tanh": (two_tanh, row(2, 1, 7, 7)),
    "learned gain": (LearnedGain, row(3, 5)),
    "cnn instance norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        row(2, 1, 8, 8),
    ),
    "cnn layer norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.LayerNorm([4, 6, 6]), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)),
        row(2, 1, 8, 8),
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.ELU(), nn.AvgPool1d(2), nn.Conv1d(4, 3, 2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(6, 2)
        ),
        row(2, 2, 8),
    ),
    "resnet": (resnet, row(2, 3, 8, 8)),
    "resnet padded": (option_a_resnet, row(2, 1, 8, 8)),
    "group norm": (group_norm_net, row(2, 2, 8, 8)),
    "pre norm": (pre_norm, row(3, 5)),
    "rms norm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4), nn.ReLU(), nn.Linear(4, 2)), row(3, 5)),
    "swiglu": (lambda: nn.Sequential(nn.Linear(4, 6), Residual(SwiGLU(6, 5)), nn.Linear(6, 2)), row(3, 4)),
    "glu": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GLU(), nn.Linear(3, 2)), row(3, 4)),
    "concat": (Concat, row(3, 5)),
    "repeated": (Repeated, row(3, 5)),
    "free": (Free, row(2, 6, 5)),
    "lazy": (Lazy, row(3, 5)),
    "tied": (Tied, tokens),
    "mixer": (mixer, row(2, 1, 6, 6)),
    "token mixing": (lambda: TokenMixing(nn.Linear(5, 6), 4, 6, True), row(2, 4, 5)),
    "token mixing alone": (lambda: TokenMixing(nn.Linear(5, 6), 4, 6, False), row(2, 4, 5)),
    "token mixing of inputs": (lambda: TokenMixing(nn.Identity(), 4, 6, True), row(2, 4, 6)),
    "attention": (lambda: nn.Sequential(nn.Linear(5, 6), Residual(Attention(6, 3)), nn.LayerNorm(6), nn.Linear(6, 2)), row(2, 4, 5)),
    "attention one head": (OneHead, row(2, 4, 5)),
    "attention multi head": (MultiHead, row(2, 4, 5)),
    "transformer": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 2)),
        row(2, 4, 5),
    ),
    "rnn": (lambda: Recurrent(nn.RNN(3, 4, 2, batch_first=True), 4), row(2, 5, 3)),
    "rnn relu": (lambda: Recurrent(nn.RNN(3, 4, nonlinearity="relu", batch_first=True), 4), row(2, 5, 3)),
    "lstm": (lambda: Recurrent(nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True), 8), row(2, 5, 3)),
    "gru": (lambda: Recurrent(nn.GRU(3, 4, batch_first=True, bias=False), 4), row(2, 5, 3)),
    "unrolled": (Unrolled, row(2, 3, 3)),
    "gru cell": (lambda: Unrolled(nn.GRUCell(3, 4)), row(2, 3, 3)),
    "tied autoencoder": (TiedAutoencoder, row(3, 6)),
    "shared keys": (SharedKeys, row(2, 4, 5)),
    "densenet": (DenseNet, row(2, 1, 6, 6)),
    "pixel shuffle": (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(2, 1, 1)), row(2, 1, 5, 5)),
    "unet": (UNet, row(2, 1, 6, 6)),
    "split with a one": (
        lambda: Written(lambda s, x: s.b(s.a(x).reshape(-1, 2, 1, 2).flatten(1)), a=nn.Linear(5, 4), b=nn.Linear(4, 2)),
        row(2, 5),
    ),
    "mask for all heads": (
        lambda: Written(lambda s, x: two_heads(s, x, torch.ones(x.shape[1], x.shape[1]).tril()[None, None]), **projections()),
        row(2, 4, 8),
    ),
    "relative bias": (lambda: Written(relative_bias, table=learned(2, 13), **projections()), row(2, 7, 8)),
    "mask of inputs": (
        lambda: Written(masked_by_input, e=nn.Embedding(11, 8), **projections()),
        lambda: (tokens(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])),
    ),
    "gather of inputs": (
        lambda: Written(
            lambda s, i: s.o(s.e(torch.gather(s.t.expand(len(i), -1), 1, i)).relu().mean(1)),
            e=nn.Embedding(11, 6),
            o=nn.Linear(6, 2),
            t=torch.arange(11).flip(0)[None],
        ),
        tokens,
    ),
    "gather of units": (
        lambda: Written(
            lambda s, i: s.o(s.e(i).relu().gather(1, (i % 2)[..., None].expand(-1, -1, 6)).mean(1)),
            e=nn.Embedding(11, 6),
            o=nn.Linear(6, 2),
        ),
        tokens,
    ),
    "last token": (
        lambda: Written(lambda s, i: s.o(s.e(i).relu()[torch.arange(len(i)), i.argmax(-1)]), e=nn.Embedding(11, 6), o=nn.Linear(6, 2)),
        tokens,
    ),
    "dropout of a constant": (
        lambda: Written(
            lambda s, x: s.o(s.a(x + s.d(s.pe)).relu()), a=nn.Linear(5, 4), o=nn.Linear(4, 2), d=nn.Dropout(), pe=torch.arange(5.0)
        ),
        row(3, 5),
    ),
    "constant in place": (lambda: Written(filled, a=nn.Linear(5, 4), o=nn.Linear(4, 2)), row(3, 5)),
    "in place in parts": (
        lambda: Written(part_by_part, a=nn.Linear(5, 6), c=nn.Linear(5, 3), o=nn.Linear(6, 2), w=learned(6, 6), b=learned(6)),
        row(40, 5),  # with fewer examples, some of its units are 0 on all of them
    ),
    "joined bias": (
        lambda: Written(
            lambda s, x: s.o(F.linear(x, s.w, torch.cat([s.b, torch.zeros(2), s.c])).relu()),
            w=learned(6, 5),
            b=learned(2),
            c=learned(2),
            o=nn.Linear(6, 2),
        ),
        row(20, 5),
    ),
    "kernel seen through views": (
        lambda: Written(
            lambda s, x: s.o(F.conv1d(s.a(x).mT, s.c.weight.squeeze(1).unsqueeze(1), groups=4).relu().mT),
            a=nn.Linear(5, 4),
            c=nn.Conv1d(4, 4, 2, groups=4),
            o=nn.Linear(4, 2),
        ),
        row(2, 7, 5),
    ),
    "product of batches": (
        lambda: Written(
            lambda s, x: s.o(torch.baddbmm(s.m.new_zeros(1, 1, 4), s.q(x), s.k(x).mT, beta=1.0, alpha=0.5).softmax(-1) @ s.v(x)),
            q=nn.Linear(5, 4),
            k=nn.Linear(5, 4),
            v=nn.Linear(5, 3),
            o=nn.Linear(3, 2),
            m=torch.zeros(1),
        ),
        row(2, 4, 5),
    ),
    "sum with a product": (
        lambda: Written(
            lambda s, x: s.o(torch.addcmul(s.c, s.g, s.a(x)).relu()), a=nn.Linear(5, 4), g=learned(4), c=learned(4), o=nn.Linear(4, 2)
        ),
        row(3, 5),
    ),
    "keywords": (
        lambda: Written(keyword, a=nn.Linear(5, 4), o=nn.Linear(4, 2)),
        lambda: {"x": torch.zeros(3, 5), "mask": torch.zeros(3, 1), "extra": {"again": torch.zeros(3, 5)}},
    ),
    "cache among outputs": (lambda: Written(cached, a=nn.Linear(5, 4), o=nn.Linear(4, 2)), row(3, 5)),
    "kept bias": (KeptBias, row(3, 5)),
    "root mean square": (
        lambda: nn.Sequential(
            nn.Linear(5, 6), Residual(nn.Sequential(RootMeanSquare(6), mlp(6, 8, 6))), RootMeanSquare(6), nn.Linear(6, 2)
        ),
        row(3, 5),
    ),
    "rotary": (lambda: Written(rotated, q=nn.Linear(5, 4), k=nn.Linear(5, 4), v=nn.Linear(5, 3), o=nn.Linear(3, 2)), row(2, 4, 5)),
    "windows": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Unfold(2), nn.Conv1d(16, 2, 1)), row(2, 1, 6, 6)),
    "windows added": (lambda: nn.Sequential(nn.Conv1d(2, 12, 1), nn.ReLU(), nn.Fold((4, 4), 2), nn.Conv2d(3, 2, 1)), row(2, 2, 9)),
    "pixel unshuffle": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(16, 2, 1)), row(2, 1, 6, 6)),
    "channel shuffle": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ChannelShuffle(2), nn.Conv2d(6, 6, 1, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1)
        ),
        row(2, 1, 5, 5),
    ),
    "transposed in groups": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        row(2, 1, 5, 5),
    ),
    "transposed depthwise": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 8, 2, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1)),
        row(2, 1, 5, 5),
    ),
    "bilinear": (
        lambda: Written(
            lambda s, x: s.o(s.m(s.a(x).relu(), x).relu()),
            a=nn.Linear(5, 3),
            m=nn.Bilinear(3, 5, 6),
            o=nn.Linear(6, 2),
        ),
        row(3, 5),
    ),
    "bag of embeddings": (lambda: nn.Sequential(nn.EmbeddingBag(11, 6), nn.ReLU(), nn.Linear(6, 2)), tokens),
    "einsum with an ellipsis": (
        lambda: Written(
            lambda s, x: s.o(torch.einsum("...ij,...kj->...ik", s.q(x), s.k(x)).softmax(-1) @ torch.einsum("...i,ji->...j", x, s.w)),
            q=nn.Linear(5, 4),
            k=nn.Linear(5, 4),
            w=learned(3, 5),
            o=nn.Linear(3, 2),
        ),
        row(2, 4, 5),
    ),
    "projected lstm": (lambda: Recurrent(nn.LSTM(3, 4, 2, proj_size=3, batch_first=True), 3), row(2, 5, 3)),
    "masked encoder": (
        lambda: Written(
            lambda s, x: s.o(s.t(s.a(x), mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype), is_causal=True)),
            a=nn.Linear(5, 6),
            o=nn.Linear(6, 2),
            t=nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2, enable_nested_tensor=False),
        ),
        row(2, 4, 5),
    ),
    "mobile": (mobile, row(2, 1, 9, 9)),
    "normed queries": (lambda: Written(normed_queries, g=learned(4), h=learned(4), **projections()), row(2, 5, 8)),
    "slopes of heads": (lambda: Written(slopes, **projections()), row(2, 5, 8)),
    "expanded keys": (
        lambda: Written(expanded_keys, q=nn.Linear(5, 12), k=nn.Linear(5, 6), v=nn.Linear(5, 6), o=nn.Linear(12, 2)),
        row(2, 4, 5),
    ),
    "low rank pair": (
        lambda: Written(
            lambda s, x: s.o((s.w(x) + 0.5 * s.b(s.a(x))).relu()),
            w=nn.Linear(5, 6),
            a=nn.Linear(5, 2, bias=False),
            b=nn.Linear(2, 6, bias=False),
            o=nn.Linear(6, 2),
        ),
        row(20, 5),
    ),
    "talking heads": (lambda: Written(talking_heads, t=nn.Linear(2, 2), **projections()), row(2, 5, 8)),
    "every other copy": (lambda: Written(every_other_copy, a=nn.Linear(5, 18), o=nn.Linear(6, 2)), row(2, 4, 5)),
    "gain of copies": (lambda: Written(gain_of_copies, a=nn.Linear(5, 18), g=learned(3), o=nn.Linear(6, 2)), row(2, 4, 5)),
    "gain of heads": (lambda: Written(gain_of_heads, g=learned(2, 1, 1), **projections()), row(2, 5, 8)),
    "temperatures of heads": (lambda: Written(temperatures, g=learned(2, 1, 1), **projections()), row(2, 5, 8)),
    "one key for all heads": (lambda: Written(key_for_all, g=learned(4), **projections()), row(2, 5, 8)),
    "between heads": (lambda: Written(between_heads, a=nn.Linear(5, 18), o=nn.Linear(6, 2)), row(2, 4, 5)),
    "between heads by products": (lambda: Written(between_heads_by_products, a=nn.Linear(5, 18), o=nn.Linear(6, 2)), row(2, 4, 5)),
    "one mixture of heads": (lambda: Written(one_mixture, t=nn.Linear(2, 2, bias=False), **projections()), row(2, 5, 8)),
    "chunked projections": (lambda: Written(chunked, a=nn.Linear(5, 18), o=nn.Linear(6, 2)), row(2, 4, 5)),
}
