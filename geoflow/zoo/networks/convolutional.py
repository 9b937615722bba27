"""Build convolutional networks, plain and residual, written as torchvision's are."""

from jaxtyping import Float
from torch import Tensor, nn

from geoflow.choices import choose

# first layers of a ResNet: size and stride of the convolution, and whether the images are pooled to half the size behind it
STEMS = {"small": (3, 1, False), "large": (7, 2, True)}


def cnn(shape: tuple[int, int, int], classes: int, width: int = 8) -> nn.Sequential:
    """Build a network of two convolutions, each with pooling to half the size, and one hidden layer.

    The convolutions have `width` and 2 `width` channels, the hidden layer 4 `width` units. It maps images [batch, *shape] to logits [batch,
    classes], where shape is (channels, rows, columns). Raises ValueError for images of fewer than 4 rows or columns.

    >>> import torch
    >>> network = cnn((1, 14, 14), 10)
    >>> network(torch.zeros(5, 1, 14, 14)).shape, sum(p.numel() for p in network.parameters())
    (torch.Size([5, 10]), 6218)
    """
    channels, rows, columns = shape
    if min(rows, columns) < 4:
        raise ValueError(f"A cnn halves images twice, and these have {rows} x {columns} pixels. Pass images of at least 4 x 4.")
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (rows // 4) * (columns // 4), 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, classes),
    )


class ResNet(nn.Module):
    """A residual network of some stages, each with `depth` basic blocks (He et al. 2016).

    The stages have `width`, 2 `width`, 4 `width` channels and so on. All but the first halve the image. `stem` names the first layers, a
    row of STEMS. It maps images [batch, *shape] to logits [batch, classes], where shape is (channels, rows, columns).

    >>> import torch
    >>> network = ResNet((1, 14, 14), 10)
    >>> network(torch.zeros(5, 1, 14, 14)).shape, sum(p.numel() for p in network.parameters())
    (torch.Size([5, 10]), 5142)
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 4, depth: int = 1, stages: int = 3, stem: str = "small"):
        super().__init__()
        kernel, stride, pools = choose("stem", stem, STEMS)
        self.conv1 = nn.Conv2d(shape[0], width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if pools else None
        self.stages = [f"layer{number}" for number in range(1, stages + 1)]
        for number, name in enumerate(self.stages):
            inward, outward = width * 2 ** max(number - 1, 0), width * 2**number
            self.add_module(name, _stage(inward, outward, depth, stride=2 if number else 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width * 2 ** (stages - 1), classes)

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch classes"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = x if self.maxpool is None else self.maxpool(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.flatten(self.avgpool(x)))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + conv(relu(conv(x)))), with batch norm after each convolution."""

    def __init__(self, inward: int, outward: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outward)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outward, outward, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outward)
        same = inward == outward and stride == 1
        self.downsample = None if same else nn.Sequential(nn.Conv2d(inward, outward, 1, stride, bias=False), nn.BatchNorm2d(outward))

    def forward(self, x: Float[Tensor, "batch inward rows columns"]) -> Float[Tensor, "batch outward rows_ columns_"]:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


def _stage(inward: int, outward: int, depth: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inward, outward, stride)
    return nn.Sequential(first, *(BasicBlock(outward, outward, 1) for _ in range(depth - 1)))
