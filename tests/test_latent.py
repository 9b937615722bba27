"""Principal components in the dual form: the same as the primal ones, from any storage, and exact refusals."""

from collections import namedtuple

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA as Primal

from geoflow import stored as storage
from geoflow.files import write_tensors
from geoflow.latent.pca import fit_pca, gram
from geoflow.stored import blocks, stored
from geoflow.writing import writing


def falling(nets: int, size: int) -> torch.Tensor:
    """Networks whose variances fall by a factor of 4 from one direction to the next."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(size, nets, generator=generator)).Q.T
    return torch.randn(nets, nets, generator=generator) * 0.5 ** torch.arange(nets) @ directions


CASES = {
    "independent networks": torch.randn(20, 57, generator=torch.Generator().manual_seed(1)),
    "networks far from zero": 300 + torch.randn(12, 40, generator=torch.Generator().manual_seed(2)),
    "falling variances": falling(9, 31),
    "a table of data": torch.from_numpy(load_breast_cancer().data).float(),  # 569 rows of 30 columns, whose scales differ by 10^5
    "its columns": torch.from_numpy(load_breast_cancer().data.T).float().contiguous(),
    "double precision": torch.randn(7, 30, generator=torch.Generator().manual_seed(3)).double(),
}
each = pytest.mark.parametrize("zoo", CASES.values(), ids=CASES)


def close(found: torch.Tensor, wanted, rtol: float = 1e-5) -> bool:
    """Whether all entries agree, relative to the largest one."""
    wanted = torch.as_tensor(wanted).to(found)
    return bool(((found - wanted).abs() <= rtol * wanted.abs().max()).all())


def up_to_signs(found: torch.Tensor, wanted) -> torch.Tensor:
    wanted = torch.as_tensor(wanted).to(found)
    return found * (found * wanted).sum(0).sign()


@each
def test_it_is_the_pca_of_scikit_learn(zoo):
    count = min(len(zoo) - 1, zoo.shape[1], 6)
    primal, dual = Primal(count, svd_solver="full").fit(zoo.double().numpy()), fit_pca(zoo, count)
    assert close(dual.variances, primal.explained_variance_)
    assert close(dual.explained, primal.explained_variance_ratio_)
    components = primal.transform(zoo.double().numpy())
    assert close(up_to_signs(dual.own, components), components)
    some = zoo.double()[:3] * 1.1 + 0.1
    assert close(up_to_signs(dual.encode(some), primal.transform(some.numpy())), primal.transform(some.numpy()))
    assert close(dual.decode(dual.encode(some)), primal.inverse_transform(primal.transform(some.numpy())))


@each
def test_all_components_give_back_the_networks_and_fewer_do_not(zoo):
    pca = fit_pca(zoo)
    assert len(pca.variances) == min(len(zoo) - 1, zoo.shape[1])
    assert pca.explained.sum().item() == pytest.approx(1)
    exact = 1e-5 if zoo.dtype == torch.float32 else 1e-12
    assert close(pca.decode(pca.own.to(zoo)), zoo, exact)
    few = fit_pca(zoo, len(pca.variances) // 2)
    lost = (few.decode(few.own.double()) - zoo).square().sum() / (len(zoo) - 1)  # what is lost is the variance of the rest
    assert lost.item() == pytest.approx(few.total - few.variances.sum().item(), rel=1e-3)


@each
def test_the_components_of_the_zoo_need_no_pass(zoo):
    pca = fit_pca(zoo, 3)
    assert close(pca.encode(zoo.double()), pca.own)


@each
@pytest.mark.parametrize("columns", [1, 7, 10_000])
def test_blocks_change_nothing(zoo, columns):
    whole, cut = fit_pca(zoo, 4), fit_pca(zoo, 4, columns=columns)
    signs = (cut.vectors * whole.vectors).sum(0).sign()
    assert close(cut.variances, whole.variances, 1e-12) and close(cut.decode(signs.diag()), whole.decode(torch.eye(4).double()), 1e-9)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [None, 11])
def test_a_file_is_as_good_as_memory(tmp_path, dtype, columns):
    zoo = CASES["independent networks"].to(dtype)
    write_tensors(tmp_path / "zoo.safetensors", {"thetas": zoo.unflatten(0, (10, 2)), "other": torch.zeros(3)}, {"made": "here"})
    from_file = fit_pca(stored(tmp_path / "zoo.safetensors"), 5, columns=columns)
    exact = fit_pca(zoo.double(), 5)
    assert close(from_file.variances, exact.variances, 1e-5 if dtype.itemsize < 4 else 1e-12)
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    mirrored = z * (exact.vectors * from_file.vectors).sum(0).sign()
    assert close(from_file.decode(mirrored), exact.decode(z), 1e-4 if dtype.itemsize < 4 else 1e-10)


@pytest.mark.parametrize("dtype", [torch.half, torch.float32, None])
def test_many_networks_are_written_in_one_pass(tmp_path, dtype, monkeypatch):
    zoo = CASES["independent networks"]
    write_tensors(tmp_path / "zoo.safetensors", {"thetas": zoo}, {})
    pca = fit_pca(stored(tmp_path / "zoo.safetensors"), columns=10)
    passes = []
    monkeypatch.setattr("geoflow.latent.pca.blocks", lambda *given: passes.append(given) or blocks(*given))
    z = torch.randn(50, 19, generator=torch.Generator().manual_seed(0))
    made = pca.write(tmp_path / "new.safetensors", z, dtype)
    assert len(passes) == 1 and made.shape == (50, 57) and made.dtype == (dtype or torch.float32)
    assert torch.cat(list(blocks(made)), 1).allclose(pca.decode(z).to(made.dtype), atol=1e-5)


@pytest.mark.parametrize("columns", [1, 5, None])
def test_what_is_written_is_read(tmp_path, columns):
    zoo = CASES["falling variances"].half()
    with writing(tmp_path / "a.safetensors", "thetas", zoo.shape, zoo.dtype) as writer:
        for block in zoo.split(4, 1):
            writer.write(block)
    assert torch.cat([block.clone() for block in blocks(stored(tmp_path / "a.safetensors"), columns)], 1).equal(zoo)


def test_only_the_span_of_the_zoo_is_reached_and_shares_add_up_to_one():
    zoo = CASES["networks far from zero"].double()
    pca = fit_pca(zoo, 5)
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double()
    assert close(pca.shares(z).sum(1), torch.ones(4), 1e-12) and close(pca.decode(z), pca.shares(z) @ zoo, 1e-12)
    aside = torch.linalg.qr(torch.cat([zoo - zoo.mean(0), torch.ones(1, 40)]).T).Q[:, -1]  # orthogonal to all differences
    assert close(pca.encode(zoo[0] + 5 * aside), pca.encode(zoo[0]), 1e-9)


def test_leading_axes_are_free():
    pca = fit_pca(CASES["independent networks"], 3)
    z = torch.randn(2, 4, 3)
    assert pca.decode(z).shape == (2, 4, 57) and pca.encode(pca.decode(z)).allclose(z, atol=1e-4)
    assert pca.decode(z[0, 0]).shape == (57,)


def test_networks_have_gradients_in_their_components():
    pca, z = fit_pca(CASES["double precision"], 2), torch.zeros(2, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(pca.decode(z)[5], z)
    assert close(gradient, torch.tensor([pca.decode(step)[5] - pca.decode(step * 0)[5] for step in torch.eye(2).double()]), 1e-9)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("method", ["exact", "random"])
def test_a_share_of_the_variance_takes_as_few_as_have_it(share, method):
    pca = fit_pca(CASES["falling variances"], share, method=method)
    assert pca.explained.sum() >= share > pca.explained[:-1].sum()


def test_a_random_search_finds_the_first_components_and_the_whole_variance(generator):
    zoo = falling(80, 200)
    exact, random = fit_pca(zoo, 6), fit_pca(zoo, 6, method="random", generator=generator)
    assert close(random.variances, exact.variances) and random.total == exact.total
    assert close((random.vectors * exact.vectors).sum(0).abs(), torch.ones(6))


Refusal = namedtuple("Refusal", "zoo components said")
GOOD = CASES["double precision"]  # 7 networks
REFUSALS = [
    Refusal(GOOD, 7, "components=7: 7 networks have at most 6 components"),
    Refusal(GOOD, 0, "components=0 must be a whole number"),
    Refusal(GOOD, True, "components=True must be"),
    Refusal(GOOD, 1.0, "a share of the variance is below 1"),
    Refusal(GOOD[:1], None, "at least 2 different networks, and there are 1"),
    Refusal(GOOD[:1].expand(4, -1), None, "there are 4, all equal"),
    Refusal(torch.cat([GOOD, GOOD[:2]]), 7, "span only 6 directions. Are there copies"),
    Refusal(GOOD.index_fill(0, torch.tensor([2, 5]), float("nan")), 3, r"Network 2 holds NaN or Inf.*\(2 of 7 do\)"),
]


@pytest.mark.parametrize(("zoo", "components", "said"), REFUSALS)
def test_refusals_say_the_number(zoo, components, said):
    with pytest.raises(ValueError, match=said):
        fit_pca(zoo, components)


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match=r"Unknown method 'svd'\. Known: exact, random"):
        fit_pca(GOOD, method="svd")


def test_a_cut_or_foreign_file_is_named_before_work_begins(tmp_path):
    good, cut, foreign = (tmp_path / f"{name}.safetensors" for name in ("good", "cut", "foreign"))
    write_tensors(good, {"thetas": GOOD, "others": GOOD.clone(), "labels": torch.zeros(3, 2, dtype=torch.long)}, {})
    cut.write_bytes(good.read_bytes()[:-8])
    foreign.write_bytes(b"a letter " * 100)
    for path in (cut, foreign):
        with pytest.raises(ValueError, match=rf"{path.stem}\.safetensors is cut short or no safetensors file"):
            stored(path)
    with pytest.raises(ValueError, match=r"good.safetensors should hold one matrix.*It holds .*others \[7, 30\] of F64"):
        stored(good)
    with pytest.raises(ValueError, match="a matrix 'labels' of float16"):
        stored(good, "labels")
    with pytest.raises(FileNotFoundError):
        stored(tmp_path / "none.safetensors")
    matrix = stored(good, "thetas")
    good.write_bytes(good.read_bytes()[: matrix.start + 100])
    with pytest.raises(ValueError, match="was cut while it was read"):
        gram(matrix)


def test_a_full_disk_and_a_weight_too_large_leave_no_file(tmp_path, monkeypatch):
    pca = fit_pca(GOOD * 1e5)
    with pytest.raises(ValueError, match=r"too large for torch.float16. Write the networks in float32"):
        pca.write(tmp_path / "new.safetensors", pca.own, torch.half)
    with pytest.raises(ValueError, match=r"dtype=torch.int64 cannot be written. Choose one of torch.float16"):
        pca.write(tmp_path / "new.safetensors", pca.own, torch.long)
    Room = namedtuple("Room", "f_bavail f_frsize")
    monkeypatch.setattr(storage.os, "statvfs", lambda folder: Room(1, 1000))
    with pytest.raises(OSError, match=r"new.safetensors needs 0.0 GB, and the disk has 0.0 GB free"):
        pca.write(tmp_path / "new.safetensors", pca.own)
    assert not list(tmp_path.iterdir())
