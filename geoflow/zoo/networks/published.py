"""Build networks of published shapes, for which many checkpoints exist."""

from geoflow.zoo.networks.convolutional import ResNet
from geoflow.zoo.networks.transformers import Bert, ViT, smallest_patch

LARGE = 64  # rows and columns from which an image counts as large
HEAD = 64  # units of an attention head
WORDS, PLACES = 30_522, 512  # vocabulary of BERT, and tokens of its longest text


def resnet18(shape: tuple[int, int, int], classes: int, width: int = 64, depth: int = 2) -> ResNet:
    """Build ResNet-18: four stages of `width` to 8 `width` channels, each with `depth` basic blocks (He et al. 2016).

    On images of at least LARGE rows and columns it begins with a convolution of 7 x 7 and pooling, as torchvision's does. On smaller ones
    it begins with one of 3 x 3, as is usual for CIFAR-10. It maps images [batch, *shape] to logits [batch, classes]. Its entries have the
    names and shapes of torchvision's.

    >>> import torch
    >>> with torch.device("meta"):
    ...     network = resnet18((3, 224, 224), 1000)
    >>> sum(p.numel() for p in network.parameters())  # as published
    11689512
    """
    return ResNet(shape, classes, width, depth, stages=4, stem="large" if min(shape[1:]) >= LARGE else "small")


def vit_small(shape: tuple[int, int, int], classes: int, width: int = 384, depth: int = 12) -> ViT:
    """Build ViT-S/16: a vision transformer with heads of HEAD units, and hidden layers of 4 `width` (Touvron et al. 2021).

    Patches have 16 pixels a side. On images below LARGE rows or columns they have 4, or what `smallest_patch` gives if 4 do not fill the
    image. It maps images [batch, *shape] to logits [batch, classes]. A width that HEAD does not divide has fewer, wider heads. Raises
    ValueError if these cannot share it evenly.

    >>> import torch
    >>> with torch.device("meta"):
    ...     network = vit_small((3, 224, 224), 1000)
    >>> sum(p.numel() for p in network.parameters())  # as published
    22050664
    """
    rows, columns = shape[1:]
    usual = 16 if min(rows, columns) >= LARGE else 4
    patch = smallest_patch(rows, columns) if rows % usual or columns % usual else usual
    return ViT(shape, classes, width, depth, _heads(width), patch, ratio=4)


def bert_base(vocabulary: int, tokens: int, classes: int, width: int = 768, depth: int = 12) -> Bert:
    """Build BERT-base: a transformer of sentences with heads of HEAD units, and hidden layers of 4 `width` (Devlin et al. 2019).

    It maps tokens [batch, tokens] to logits [batch, classes]. Of its two segments it uses the first. A width that HEAD does not divide has
    fewer, wider heads. Raises ValueError if these cannot share it evenly.

    >>> import torch
    >>> with torch.device("meta"):
    ...     network = bert_base(WORDS, PLACES, 2)
    >>> sum(p.numel() for p in network.parameters()) - (768 * 2 + 2)  # without the classifier, as published
    109482240
    """
    return Bert(vocabulary, tokens, classes, width, depth, _heads(width), ratio=4, segments=2)


def _heads(width: int) -> int:
    return max(1, width // HEAD)
