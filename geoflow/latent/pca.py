"""Find the principal components of few networks with many weights, and make networks from components."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.choices import choose
from geoflow.stored import BLOCK, Matrix, Stored, blocks, stored
from geoflow.writing import writing

PART = 2**11  # columns that are centred and multiplied at once, so that they stay in the cache; 1.4 times as fast as 2^13
MORE = 10  # directions that a random search takes beyond those asked for
SWEEPS = 4  # products with the Gram matrix in a random search
Square = Float[Tensor, "nets nets"]


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components of a matrix of networks, in the dual form: the matrix itself takes the place of a basis.

    Let X [nets, size] be the networks minus their mean m. The Gram matrix X X^T is only [nets, nets], and its eigenvectors u_k and
    eigenvalues l_k give everything. The k-th axis is X^T u_k / sqrt(l_k). So a network with the components z is

        m + X^T a,    a = sum_k z_k u_k / sqrt(l_k)

    which is the mean plus a weighted sum of the centred networks. No basis of the size weights x components is ever made. One pass over
    a file, in blocks of columns, makes any number of networks.

    - `vectors` [nets, components] holds the u_k, with lengths of 1 and sums of 0.
    - `variances` [components] are l_k / (nets - 1), the largest first.
    - `total` is the variance of all coordinates together.
    - `columns` is the width of a block. None stands for the default of `blocks`.

    Results have the precision and the device of the argument.

    >>> import torch
    >>> zoo = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    >>> pca = fit_pca(zoo, 1)
    >>> pca.explained, pca.decode(pca.encode(zoo)).allclose(zoo, atol=1e-6)
    (tensor([1.], dtype=torch.float64), True)
    """

    matrix: Matrix
    vectors: Float[Tensor, "nets components"]
    variances: Float[Tensor, " components"]
    total: float
    columns: int | None = None

    @property
    def explained(self) -> Float[Tensor, " components"]:
        """Return the share of the total variance that each component has."""
        return self.variances / self.total

    @property
    def lengths(self) -> Float[Tensor, " components"]:
        """Return sqrt(l_k), the length of each component over all networks."""
        return (self.variances * (len(self.vectors) - 1)).sqrt()

    @property
    def own(self) -> Float[Tensor, "nets components"]:
        """Return the components of the networks themselves. This needs no pass over the matrix."""
        return self.vectors * self.lengths

    def encode(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch components"]:
        """Return the components of networks, in one pass over the matrix. What lies outside the span of the zoo is lost."""
        flat, first = x.reshape(-1, x.shape[-1]), 0
        products = torch.zeros(len(flat), len(self.vectors), dtype=torch.double, device=x.device)
        for part in parts(self.matrix, self.columns):
            part, some = part.to(x), flat[:, first : first + part.shape[1]]
            mean, first = part.mean(0), first + part.shape[1]
            products += (some - mean) @ (part - mean).T
        z = products @ (self.vectors / self.lengths).to(products)
        return z.to(x.dtype).reshape(*x.shape[:-1], z.shape[-1])

    def decode(self, z: Float[Tensor, "*batch components"]) -> Float[Tensor, "*batch size"]:
        """Return the networks with these components, in one pass over the matrix."""
        shares = self.shares(z)
        return torch.cat([shares @ part.to(z) for part in parts(self.matrix, self.columns)], -1)

    def shares(self, z: Float[Tensor, "*batch components"]) -> Float[Tensor, "*batch nets"]:
        """Return what each network of the matrix contributes to the networks with components z. The sum over the matrix is 1.

        The mean is contained in it: m + X^T a is the sum of the networks themselves, with the weights a + 1 / nets.
        """
        a = z.to(self.vectors.dtype) / self.lengths.to(z.device) @ self.vectors.T.to(z.device)
        return (a + 1 / len(self.vectors)).to(z.dtype)

    def write(
        self, path: str | Path, z: Float[Tensor, "nets components"], dtype: torch.dtype | None = None, name: str = "thetas"
    ) -> Stored:
        """Write the networks with these components to a safetensors file as one matrix, in one pass. Return it, opened.

        `dtype` is by default that of the zoo's matrix. Raises OSError if the disk has too little room, and ValueError for a weight that the
        precision cannot hold.
        """
        shares = self.shares(z.to(torch.promote_types(self.matrix.dtype, torch.float32)))
        return write_sums(path, self.matrix, shares, self.matrix.dtype if dtype is None else dtype, name, self.columns)


def fit_pca(
    matrix: Matrix,
    components: float | None = None,
    *,
    method: str = "exact",
    columns: int | None = None,
    generator: torch.Generator | None = None,
) -> PCA:
    """Find the principal components of networks [nets, size], in one pass over the matrix. It is a tensor, or `stored` in a file.

    - `components` is their number, at most nets - 1. A share below 1, such as .99, takes as many as have this share of the total variance.
      By default all are taken.
    - `method` is "exact", or "random" for thousands of networks. A random search finds the first components only. It is close to exact
      where the variances fall fast (Halko et al. 2011). `generator` draws its directions.
    - `columns` is the width of a block. By default it is that of `blocks`. Results differ by rounding only.

    Products are computed in twice the precision that the matrix is stored in, at most float64, and summed in float64. Rounding in float32
    is about 1e-7 of the largest variance, so in a zoo of half precision components with smaller variances are noise.

    Raises ValueError for a number of components that the networks do not have, for fewer than 2 networks, for networks that are all equal,
    and for NaN or Inf.

    >>> zoo = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    >>> fit_pca(zoo).variances.shape, fit_pca(zoo, 0.5).variances.shape
    (torch.Size([5]), torch.Size([2]))
    >>> fit_pca(zoo, 6)
    Traceback (most recent call last):
    ValueError: components=6: 6 networks have at most 5 components. Ask for fewer, or train more networks.
    """
    nets, _ = matrix.shape
    find = choose("method", method, METHODS)
    check_components(components, nets)
    products = _checked(gram(matrix, columns), matrix)
    values, vectors = find(products, products.trace().item(), components, generator)
    rank = int((values > nets * torch.finfo(values.dtype).eps * values[0]).sum())
    count = _count(values, products.trace().item(), components, min(rank, nets - 1))
    return PCA(matrix, vectors[:, :count], values[:count] / (nets - 1), products.trace().item() / (nets - 1), columns)


def check_components(components: float | None, nets: int | None = None) -> None:
    """Raise ValueError for what is no number of components and no share of the variance, or for more than `nets` networks have."""
    if components is None:
        return
    if isinstance(components, bool) or not isinstance(components, int | float) or components <= 0:
        raise ValueError(f"components={components} must be a whole number from 1 on, or a share of the variance such as .99.")
    if isinstance(components, float) and components >= 1:
        raise ValueError(f"components={components}: a share of the variance is below 1. For a number of components give a whole number.")
    if nets is not None and components > nets - 1:
        raise ValueError(
            f"components={components}: {nets} networks have at most {nets - 1} components. Ask for fewer, or train more networks."
        )


def parts(matrix: Matrix, columns: int | None = None) -> Iterator[Float[Tensor, "nets _columns"]]:
    """Yield a matrix in parts of at most PART columns, which fit the cache."""
    for block in blocks(matrix, columns):
        yield from block.split(PART, 1)


def write_sums(
    path: str | Path, matrix: Matrix, shares: Float[Tensor, "made nets"], dtype: torch.dtype, name: str, columns: int | None = None
) -> Stored:
    """Write sums of the networks of a matrix, each weighted by its shares, to a safetensors file, in one pass. Return them, opened.

    By default a block of the sums has at most BLOCK bytes too.
    """
    columns = columns or max(1, BLOCK // (max(len(shares), len(matrix)) * max(matrix.dtype.itemsize, dtype.itemsize)))
    with writing(path, name, (len(shares), matrix.shape[1]), dtype) as writer:
        for block in blocks(matrix, columns):
            made = torch.empty(len(shares), block.shape[1], dtype=dtype)
            for here, part in zip(made.split(PART, 1), block.split(PART, 1), strict=True):
                here.copy_(shares @ part.to(shares))
            writer.write(made)
    return stored(path, name)


def gram(matrix: Matrix, columns: int | None = None) -> Square:
    """Return the inner products of all pairs of networks minus their mean, in float64, in one pass.

    >>> gram(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    wide = torch.float32 if matrix.dtype.itemsize < 4 else torch.float64
    total = torch.zeros(matrix.shape[0], matrix.shape[0], dtype=torch.double)
    for part in parts(matrix, columns):
        part = part.to("cpu", wide, copy=True)
        part = part.sub_(part.mean(0)).numpy()
        total += torch.from_numpy(part @ part.T)  # numpy sees one matrix twice, and computes half of the products
    total -= total.mean(0)  # the means are rounded alike for all networks, and this takes their rounding away
    return total - total.mean(1, keepdim=True)


def _checked(products: Square, matrix: Matrix) -> Square:
    """Return a Gram matrix. Raises ValueError if networks hold NaN or Inf, and if there are no two different ones."""
    nets = len(products)
    if not products.isfinite().all():
        broken = torch.zeros(nets, dtype=torch.bool)
        for part in parts(matrix):
            broken |= ~part.isfinite().all(1).cpu()
        raise ValueError(
            f"Network {broken.tolist().index(True)} holds NaN or Inf ({int(broken.sum())} of {nets} do). Remove such networks."
        )
    if nets < 2 or products.trace() <= 0:
        raise ValueError(f"Principal components need at least 2 different networks, and there are {nets}, all equal. Train more.")
    return products


def _exact(products: Square, total: float, components: float | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(products)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _random(products: Square, total: float, components: float | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors in the span of G^SWEEPS on random directions.

    For a share of the variance the number of directions is doubled until they have it.
    """
    nets = len(products)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    wanted = nets - 1 if components is None else components if isinstance(components, int) else 1
    while True:
        width = min(nets, wanted + MORE)
        span = torch.randn(nets, width, generator=generator, dtype=products.dtype)
        for _ in range(SWEEPS):
            span = torch.linalg.qr(products @ span).Q
        values, within = torch.linalg.eigh(span.T @ products @ span)
        values = values.flip(0).clamp_min(0)
        if width == nets or not isinstance(components, float) or values[:wanted].sum() >= components * total:
            return values, span @ within.flip(1)
        wanted *= 2


# name: how eigenvalues and eigenvectors of a Gram matrix are found, the largest first
METHODS: dict[str, Callable] = {"exact": _exact, "random": _random}


def _count(values: Float[Tensor, " found"], total: float, components: float | None, rank: int) -> int:
    """Return how many components are meant. Raises ValueError if the networks span fewer directions."""
    if components is None:
        return rank
    if isinstance(components, int):
        if components > rank:
            raise ValueError(f"components={components}: these networks span only {rank} directions. Are there copies? Ask for {rank}.")
        return components
    return min(rank, int((values.cumsum(0) < components * total).sum()) + 1)
