"""Flows of zoos in files: every step gives what it gives in memory, and goes on where it was interrupted."""

import os
from collections import namedtuple
from functools import cache

import pytest
import torch
from torch import nn

from geoflow import Flow, apply_symmetry, canonicalize, evaluate, fit, random_symmetry, sample, spec_of
from geoflow.appending import appending_networks
from geoflow.canonical import gathering, matching
from geoflow.canonical import large as aligning
from geoflow.canonical.large import canonicalize_large
from geoflow.frame import UNTURNED, metric_frame
from geoflow.graph import graph_of
from geoflow.guidance import Diverged
from geoflow.latent import large as charting
from geoflow.latent import pca
from geoflow.sampling import SOLVERS
from geoflow.statistics import variances_of
from geoflow.stored import Stored
from geoflow.training import prepare
from geoflow.writing import Writer
from geoflow.zoo.large import open_zoo
from tests.networks import NETWORKS

CONFIG = {"flow": "geometric", "align": True, "velocity": "mlp", "coupling": "independent", "time": "uniform", "weighting": "balanced"}
CONFIG |= {"prediction": "preconditioned", "sizes": {"width": 16}, "iterations": 6, "batch": 4, "lr": 1e-3, "weight_decay": 1e-3}
CONFIG |= {"ema": 0.9, "seed": 0, "latent": "pca"}
SMALL = {"iterations": 2, "batch": 4, "progress": False, "latent": "pca"}
Case = namedtuple("Case", "build x")


class Stop(Exception):
    """What interrupts."""


def residual() -> nn.Module:
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.inner, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.norm(self.first(x)).relu()
            return self.last(x + self.inner(x).tanh())

    return Residual()


CASES = {
    "relu and tanh": Case(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(9, 4)
    ),
    "residual and batch norm": Case(residual, torch.randn(9, 4)),
    "convolutions": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), torch.randn(9, 2, 4, 4)
    ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cache
def zoo_in_memory(case: Case, nets: int) -> tuple:
    """A table, and independent networks near a common one, in random orders."""
    torch.manual_seed(0)
    spec, generator = spec_of(case.build(), case.x), torch.Generator().manual_seed(1)
    thetas = torch.randn(spec.weights, generator=generator) + 0.4 * torch.randn(nets, spec.weights, generator=generator)
    thetas[:, variances_of(spec)] = thetas[:, variances_of(spec)].abs() + 0.1
    return spec, torch.stack([apply_symmetry(spec, theta, random_symmetry(spec, generator, torch.float32)) for theta in thetas])


def zoo_of(case: Case, path, nets: int = 6, dtype=torch.float32) -> tuple:
    """The table, the zoo, and the zoo in a file."""
    spec, thetas = zoo_in_memory(case, nets)
    with appending_networks(path, spec, dtype) as file:
        file.add(thetas)
    return spec, thetas.to(dtype), open_zoo(path, spec).thetas


@pytest.fixture(autouse=True)
def fewer_starts(monkeypatch):
    monkeypatch.setattr(gathering, "STARTS", 2)


# Canonical form


@each
@pytest.mark.parametrize(("at_once", "balance", "turned"), [(10, True, True), (200, True, False), (2**24, False, True)])
def test_the_canonical_form_is_that_of_memory(case, balance, turned, at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "CHUNK", at_once)
    spec, thetas, zoo = zoo_of(case, tmp_path / "zoo.safetensors")
    frame = metric_frame(graph_of(spec), case.x) if turned else UNTURNED
    wanted = canonicalize(spec, thetas, balance=balance, frame=frame)
    found = canonicalize_large(spec, zoo, tmp_path / "canonical.safetensors", None, balance, frame, progress=False)
    assert isinstance(found.theta, Stored) and found.theta.shape == tuple(thetas.shape)
    assert found.theta[:].allclose(wanted.theta, atol=1e-5) and found.reference.allclose(wanted.reference, atol=1e-5)
    network = case.build().eval()
    assert evaluate(network, spec, found.theta, case.x, torch.arange(9) % 3).nll.allclose(
        evaluate(network, spec, thetas, case.x, torch.arange(9) % 3).nll, atol=1e-4
    )
    others = canonicalize_large(spec, zoo, tmp_path / "others.safetensors", thetas[3], balance, frame, progress=False)
    assert others.theta[:].allclose(canonicalize(spec, thetas, thetas[3], balance, frame).theta, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canonical.safetensors", "others.safetensors", "zoo.safetensors"]


def test_half_precision_is_aligned_in_single_precision(tmp_path):
    spec, thetas, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors", dtype=torch.half)
    wanted = canonicalize(spec, thetas.float()).theta
    for dtype, rounding in ((None, 1e-3), (torch.float32, 1e-5)):
        found = canonicalize_large(spec, zoo, tmp_path / f"{dtype}.safetensors", dtype=dtype, progress=False).theta
        assert found.dtype == (dtype or torch.half) and found[:].float().allclose(wanted, rtol=rounding, atol=rounding)


@pytest.mark.parametrize(("where", "stop"), [("match_units", 0), ("match_units", 7), ("apply_symmetry", 0), ("apply_symmetry", 4)])
def test_an_interrupted_alignment_goes_on(stop, where, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "CHUNK", 10)
    spec, _, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    path, calls, work = tmp_path / "canonical.safetensors", [], getattr(aligning, where)
    wanted = canonicalize_large(spec, zoo, tmp_path / "whole.safetensors", progress=False)

    def counted(*given):
        calls.append(1)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return work(*given)

    monkeypatch.setattr(aligning, where, counted)
    with pytest.raises(KeyboardInterrupt):
        canonicalize_large(spec, zoo, path, progress=False)
    before = len(calls)
    found = canonicalize_large(spec, zoo, path, progress=False)
    assert found.theta[:].equal(wanted.theta[:]) and found.reference.equal(wanted.reference)
    monkeypatch.setattr(aligning, where, lambda *given: pytest.fail("all is done"))
    assert canonicalize_large(spec, zoo, path, progress=False).theta[:].equal(wanted.theta[:])
    if where == "apply_symmetry":
        assert len(calls) - before == 6 - stop  # networks that were written are not made again


def test_another_zoo_or_form_is_not_taken_for_this_one(tmp_path):
    spec, thetas, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    _, _, more = zoo_of(CASES["relu and tanh"], tmp_path / "more.safetensors", nets=7)
    path = tmp_path / "canonical.safetensors"
    canonicalize_large(spec, zoo, path, progress=False)
    for other, how in ((more, {}), (zoo, {"balance": False}), (zoo, {"reference": thetas[0]})):
        with pytest.raises(ValueError, match=r"canonical\.safetensors says another 'canonical' of itself"):
            canonicalize_large(spec, other, path, **how, progress=False)


def test_a_broken_network_is_named_before_work_begins(tmp_path, monkeypatch):
    spec, thetas, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    monkeypatch.setattr(aligning, "gathered", lambda *given: pytest.fail("work began"))
    broken = thetas.index_put((torch.tensor([5]), torch.tensor([0])), torch.tensor([torch.nan]))
    monkeypatch.setattr(Stored, "take", lambda self, nets: broken[list(nets)])
    with pytest.raises(ValueError, match=r"Network 5 of the zoo holds NaN or Inf in '0\.weight'"):
        canonicalize_large(spec, zoo, tmp_path / "canonical.safetensors", progress=False)


# Flows


@each
@pytest.mark.parametrize(
    ("flow", "align", "metric"), [("geometric", True, True), ("euclidean", True, False), ("geometric_polar", False, True)]
)
def test_a_flow_of_a_file_has_the_coordinates_of_one_of_memory(case, flow, align, metric, tmp_path):
    spec, thetas, zoo = zoo_of(case, tmp_path / "zoo.safetensors")
    for inputs in [case.x if metric else None]:
        config = CONFIG | {"flow": flow, "align": align}
        (large, points), (usual, wanted) = (prepare(spec, given, config, inputs) for given in (zoo, thetas))
        one, other = large.chart.chart, usual.chart.chart
        assert one.statistics.keys() == other.statistics.keys()
        for role, pair in one.statistics.items():
            assert pair == pytest.approx(other.statistics[role], rel=1e-4, abs=1e-5)
        for name, axes in other.frame.axes.items():
            assert one.frame.axes[name].allclose(axes, atol=1e-3)
        for name, moments in other.frame.moments.items():
            assert one.frame.moments[name].allclose(moments, atol=1e-3)
        assert torch.pdist(points).allclose(torch.pdist(wanted), rtol=1e-3)
        assert large.chart.theta(points).allclose(usual.chart.theta(wanted), atol=1e-4)
        assert large.reference.allclose(usual.reference, atol=1e-4) and large.config == usual.config


@pytest.mark.parametrize(("flow", "dtype"), [("geometric", torch.float32), ("euclidean", torch.half)])
def test_what_is_drawn_into_a_file_is_what_is_drawn(flow, dtype, tmp_path):
    case = CASES["residual and batch norm"]
    spec, _, zoo = zoo_of(case, tmp_path / "zoo.safetensors", dtype=dtype)
    made = fit(spec, zoo, flow=flow, **SMALL)
    made.save(tmp_path / "flow.safetensors")
    for one in (made, Flow.load(tmp_path / "flow.safetensors")):
        new = sample(one, 7, steps=3, generator=torch.Generator().manual_seed(0))
        path = tmp_path / f"new-{one is made}.safetensors"
        drawn = sample(one, 7, steps=3, generator=torch.Generator().manual_seed(0), into=path)
        assert drawn.dtype == dtype and drawn[:].float().allclose(new.float(), rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 1e-2)
        assert open_zoo(path, spec).thetas[:].equal(drawn[:]) and not path.with_suffix(".points.safetensors").exists()
        scores = evaluate(case.build(), spec, drawn, case.x, torch.arange(9) % 3)
        assert scores.nll.equal(evaluate(case.build(), spec, drawn[:], case.x, torch.arange(9) % 3).nll)
    with pytest.raises(ValueError, match="says another 'points' of itself"):
        sample(made, 7, steps=2, generator=torch.Generator().manual_seed(0), into=path)


def test_other_flows_draw_into_files_too(tmp_path):
    spec, thetas, _ = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    flow = fit(spec, thetas, iterations=1, batch=4, sizes={"layers": 1, "node": 16}, velocity="transformer", progress=False)
    how = {"steps": 2, "batch": 3}
    new = sample(flow, 7, **how, generator=torch.Generator().manual_seed(0))
    drawn = sample(flow, 7, **how, generator=torch.Generator().manual_seed(0), into=tmp_path / "new.safetensors")
    assert drawn[:].allclose(new, atol=1e-6)


@pytest.mark.parametrize("stop", [0, 4])
def test_an_interrupted_preparation_goes_on_with_the_points_that_it_has(stop, tmp_path, monkeypatch):
    case, left = CASES["residual and batch norm"], [stop]
    spec, thetas, zoo = zoo_of(case, tmp_path / "zoo.safetensors")
    wanted = prepare(spec, thetas, CONFIG)[1]

    def counted(chart, theta):
        left[0] -= 1
        if left[0] == -1:
            raise Stop
        return work(chart, theta)

    work = charting.Chart.point
    monkeypatch.setattr(charting.Chart, "point", counted)
    with pytest.raises(Stop):
        prepare(spec, zoo, CONFIG)
    monkeypatch.setattr(charting, "fit_chart_large", lambda *given: pytest.fail("the chart was kept"))
    left[0] = 6 - stop
    assert torch.pdist(prepare(spec, zoo, CONFIG)[1]).allclose(torch.pdist(wanted), rtol=1e-3)
    assert left[0] == 0


def test_an_interrupted_drawing_goes_on(tmp_path, monkeypatch):
    spec, _, zoo = zoo_of(CASES["residual and batch norm"], tmp_path / "zoo.safetensors")
    flow, path, left = fit(spec, zoo, **SMALL), tmp_path / "new.safetensors", [4]
    theta = charting.Chart.theta

    def counted(chart, x):
        left[0] -= 1
        if left[0] == -1:
            raise Stop
        return theta(chart, x)

    def draw(into):
        return sample(flow, 7, steps=3, generator=torch.Generator().manual_seed(0), into=into)

    monkeypatch.setattr(charting.Chart, "theta", counted)
    with pytest.raises(Stop):
        draw(path)
    assert len(open_zoo(path).thetas) == 4
    left[0] = 3
    made = draw(path)
    monkeypatch.undo()
    assert made[:].equal(draw(tmp_path / "whole.safetensors")[:])


def test_a_disk_without_room_is_said_before_drawing(tmp_path, monkeypatch):
    spec, _, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    flow, Room = fit(spec, zoo, **SMALL), namedtuple("Room", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda folder: Room(1, 1000))
    with pytest.raises(OSError, match=r"new\.safetensors needs .* GB, and the disk has 0\.0 GB free"):
        sample(flow, 7, steps=2, into=tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_a_drawing_makes_its_folder_and_needs_no_room_for_what_it_has(tmp_path, monkeypatch):
    spec, _, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    flow, Room, path = fit(spec, zoo, **SMALL), namedtuple("Room", "f_bavail f_frsize"), tmp_path / "new" / "folder" / "new.safetensors"

    def draw():
        return sample(flow, 3, steps=2, generator=torch.Generator().manual_seed(0), into=path)[:]

    theta, left = charting.Chart.theta, [2]

    def stopped(chart, x):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return theta(chart, x)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(charting.Chart, "theta", stopped)
        draw()
    needed = 4 * (3 * flow.chart.chart.graph.size + spec.weights)  # the points of all, and the one network that is missing
    monkeypatch.setattr(os, "statvfs", lambda folder: Room(needed - 1, 1))
    with pytest.raises(OSError, match=r"new\.safetensors needs"):
        draw()
    monkeypatch.setattr(os, "statvfs", lambda folder: Room(needed, 1))
    made = draw()
    monkeypatch.setattr(os, "statvfs", lambda folder: Room(0, 1))
    monkeypatch.setattr(charting.Chart, "theta", lambda chart, x: pytest.fail("all networks are there"))
    assert draw().equal(made) and [file.name for file in path.parent.iterdir()] == ["new.safetensors"]


@pytest.mark.parametrize("memory", [True, False])
def test_many_networks_of_a_small_zoo_are_written_in_small_blocks(memory, tmp_path, monkeypatch):
    spec, thetas, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    flow, widest, write = fit(spec, thetas if memory else zoo, **SMALL), [], Writer.write
    monkeypatch.setattr(pca, "BLOCK", 2**10)
    monkeypatch.setattr(Writer, "write", lambda self, block: widest.append(block.nbytes) or write(self, block))
    new = sample(flow, 100, steps=1, generator=torch.Generator().manual_seed(0))
    drawn = sample(flow, 100, steps=1, generator=torch.Generator().manual_seed(0), into=tmp_path / "new.safetensors")
    assert max(widest) <= 2**10 and drawn[:].allclose(new, atol=1e-5)


def test_a_list_of_one_zoo_may_lie_in_a_file(tmp_path):
    spec, _, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    one, other = fit([spec], [zoo], **SMALL), fit(spec, zoo, **SMALL)
    assert one.losses == other.losses and one.chart.pca.variances.equal(other.chart.pca.variances)


@pytest.mark.parametrize("memory", [True, False])
def test_one_network_in_several_orders_is_no_zoo(memory, tmp_path, recwarn):
    """All components are rounding then. Networks that differ by a thousandth of their spread are fine."""
    spec, (one, *_) = zoo_in_memory(CASES["relu and tanh"], 6)
    generator = torch.Generator().manual_seed(1)
    for noise, warned in ((1e-3, 0), (0.0, 1)):
        symmetries = [random_symmetry(spec, generator, torch.float32) for _ in range(6)]
        zoo = torch.stack([apply_symmetry(spec, one + noise * torch.randn(len(one), generator=generator), g) for g in symmetries])
        with appending_networks(tmp_path / f"{noise}.safetensors", spec, torch.float32) as file:
            file.add(zoo)
        fit(spec, zoo if memory else open_zoo(tmp_path / f"{noise}.safetensors").thetas, **SMALL)
        assert sum("components may be rounding" in str(one.message) for one in recwarn) == warned


def test_networks_appended_while_a_flow_is_fitted_change_nothing(tmp_path, monkeypatch):
    spec, thetas, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    wanted, work = prepare(spec, thetas, CONFIG)[0].chart, charting.fit_chart_large

    def beside_another(*given):
        with appending_networks(zoo.path, spec, torch.float32) as file:
            file.add(thetas[:1] + 1)
        return work(*given)

    monkeypatch.setattr(charting, "fit_chart_large", beside_another)
    found = prepare(spec, zoo, CONFIG)[0].chart
    assert found.pca.variances.allclose(wanted.pca.variances, rtol=1e-3)
    monkeypatch.setattr(charting, "fit_chart_large", lambda *given: pytest.fail("the chart of the same six networks is kept"))
    assert prepare(spec, zoo, CONFIG)[0].chart.pca.variances.equal(found.pca.variances)


def test_a_drawing_that_diverges_holds_no_points_as_networks(tmp_path, monkeypatch):
    spec, _, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    flow = fit(spec, zoo, **SMALL)
    monkeypatch.setitem(SOLVERS, "broken", lambda v, x, t, h, manifold: x.index_fill(0, torch.tensor([0]), torch.nan))
    for into, held in ((None, 2), (tmp_path / "new.safetensors", None)):
        with pytest.raises(Diverged, match="1 of 3 networks came out with NaN") as caught:
            sample(flow, 3, steps=1, solver="broken", into=into)
        assert caught.value.thetas is held or caught.value.thetas.shape == (held, spec.weights)
    assert not (tmp_path / "new.safetensors").exists()


def test_what_a_file_cannot_serve_is_refused_before_work_begins(tmp_path, monkeypatch):
    spec, thetas, zoo = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    other = spec_of(nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)), torch.zeros(1, 4))
    monkeypatch.setattr(Stored, "take", lambda *given: pytest.fail("the zoo was read"))
    for table, options, said in (
        (spec, {"components": 6}, "components=6: 6 networks have at most 5 components"),
        (spec, {"latent": "none"}, r"A zoo in a file needs latent=pca: .*pass thetas\[:\]"),
        (spec, {"batch": 7}, "batch=7 is more than the 6 networks"),
        (other, {}, f"has vectors of {spec.weights} weights, the spec {other.weights}"),
    ):
        with pytest.raises(ValueError, match=said):
            fit(table, zoo, **{**SMALL, **options})
    with pytest.raises(ValueError, match=r"not changed or in part\. Pass open_zoo\(path\)\.thetas"):
        fit(spec, zoo.split(4)[0], **SMALL)
    with pytest.raises(ValueError, match="components=6: 6 networks have at most 5"):
        fit(spec, thetas, **{**SMALL, "components": 6})


def test_a_dead_unit_is_named_by_its_network(tmp_path):
    spec, thetas, _ = zoo_of(CASES["relu and tanh"], tmp_path / "zoo.safetensors")
    thetas = thetas.clone()
    thetas[4, :4] = 0
    with appending_networks(tmp_path / "dead.safetensors", spec, torch.float32) as file:
        file.add(thetas)
    with pytest.raises(ValueError, match="Network 4 has a dead unit at '0'"):
        prepare(spec, open_zoo(tmp_path / "dead.safetensors").thetas, CONFIG)


@pytest.mark.parametrize("name", ["resnet", "transformer", "gru"])
def test_networks_of_every_family_are_aligned_as_in_memory(name, tmp_path):
    make, example = NETWORKS[name]
    spec, thetas, zoo = zoo_of(Case(make, example()), tmp_path / "zoo.safetensors", nets=3)
    wanted = canonicalize(spec, thetas).theta
    found = canonicalize_large(spec, zoo, tmp_path / "canonical.safetensors", progress=False).theta[:]
    assert found.allclose(wanted, rtol=1e-4, atol=1e-4)
