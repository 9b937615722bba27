"""Build transformers of images (written as torchvision's are) and of sentences (as Hugging Face's are)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from geoflow.zoo.sentences import PADDING

MOST_PATCHES = 49


class ViT(nn.Module):
    """A vision transformer: `depth` pre-norm blocks on a class token and the patches of an image (Dosovitskiy et al. 2021).

    It maps images [batch, *shape] to logits [batch, classes], where shape is (channels, rows, columns). Patches are squares of `patch`
    pixels a side. By default they are the smallest that cut the image into at most MOST_PATCHES parts. The hidden layers have `ratio` times
    `width` units. Raises ValueError if no such squares fill the image, and if `heads` does not divide `width`.

    >>> network = ViT((1, 14, 14), 10)
    >>> network(torch.zeros(5, 1, 14, 14)).shape, sum(p.numel() for p in network.parameters())
    (torch.Size([5, 10]), 5546)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        width: int = 16,
        depth: int = 2,
        heads: int = 2,
        patch: int | None = None,
        ratio: int = 2,
    ):
        super().__init__()
        channels, rows, columns = shape
        patch = smallest_patch(rows, columns) if patch is None else patch
        _check_heads(width, heads)
        self.conv_proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.empty(1, 1 + rows // patch * (columns // patch), width).normal_(std=0.02))
        self.layers = nn.Sequential(*(PreNormBlock(width, heads, ratio) for _ in range(depth)))
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch classes"]:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.ln(self.layers(x + self.pos_embedding))
        return self.head(x[:, 0])


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), and then x + mlp(norm(x)), with `ratio` times as many units inside the mlp."""

    def __init__(self, width: int, heads: int, ratio: int = 2):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.self_attention = PackedAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.self_attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PackedAttention(nn.Module):
    """Multi-head attention with one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        return self.out_proj(x)


class Bert(nn.Module):
    """A classifier of sentences: embeddings, `depth` post-norm blocks and a pooled first token (Devlin et al. 2019).

    It maps tokens [batch, tokens] to logits [batch, classes], for at most `tokens` of them. PADDING fills the ends of short sentences. The
    hidden layers have `ratio` times `width` units. With `segments`, a sentence has the embedding of the first of them. Raises ValueError if
    `heads` does not divide `width`.

    >>> network = Bert(vocabulary=2000, tokens=32, classes=2)
    >>> network(torch.tensor([[1, 5, 9] + [PADDING] * 29])).shape, sum(p.numel() for p in network.parameters())
    (torch.Size([1, 2]), 37298)
    """

    def __init__(
        self,
        vocabulary: int,
        tokens: int,
        classes: int,
        width: int = 16,
        depth: int = 2,
        heads: int = 2,
        ratio: int = 2,
        segments: int = 0,
    ):
        super().__init__()
        _check_heads(width, heads)
        self.embeddings = Embeddings(vocabulary, tokens, width, segments)
        self.layer = nn.ModuleList(PostNormBlock(width, heads, ratio) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch classes"]:
        mask = (tokens != PADDING)[:, None, None, :]
        x = self.embeddings(tokens)
        for layer in self.layer:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class Embeddings(nn.Module):
    """The normalised sum of the embeddings of a token, of its place and, if there are segments, of the first segment."""

    def __init__(self, vocabulary: int, tokens: int, width: int, segments: int = 0):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(tokens, width)
        self.token_type_embeddings = nn.Embedding(segments, width) if segments else None
        self.LayerNorm = nn.LayerNorm(width)
        for embedding in filter(None, (self.word_embeddings, self.position_embeddings, self.token_type_embeddings)):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.word_embeddings(tokens) + self.position_embeddings(places)
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings(torch.zeros_like(places))
        return self.LayerNorm(x)


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), and then norm(x + mlp(x)), with `ratio` times as many units inside the mlp."""

    def __init__(self, width: int, heads: int, ratio: int = 2):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.intermediate = nn.Linear(width, ratio * width)
        self.act = nn.GELU()
        self.output = nn.Linear(ratio * width, width)
        self.output_norm = nn.LayerNorm(width)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"

    def forward(self, x: Float[Tensor, "batch tokens width"], mask: Tensor) -> Float[Tensor, "batch tokens width"]:
        q, k, v = (layer(x).view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.dense(attended))
        return self.output_norm(x + self.output(self.act(self.intermediate(x))))


def smallest_patch(rows: int, columns: int) -> int:
    """Return the side of the smallest square patches that cut an image into at most MOST_PATCHES parts."""
    for patch in range(1, min(rows, columns) + 1):
        if rows % patch == columns % patch == 0 and rows // patch * (columns // patch) <= MOST_PATCHES:
            return patch
    raise ValueError(f"No square patches cut an image of {rows} x {columns} pixels into at most {MOST_PATCHES}. Crop or pad it.")


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width={width} cannot be divided between {heads} heads. Choose a multiple of {heads}.")
