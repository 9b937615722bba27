"""Novelty, baselines and scores of networks in files: the values are those of memory."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from geoflow import Flow, evaluate, fit, spec_of
from geoflow.appending import appending_networks
from geoflow.canonical import canonicalize, gathering, matching
from geoflow.canonical.large import Steps
from geoflow.evaluation import keeping, measuring
from geoflow.evaluation import novelty as distances
from geoflow.evaluation.baselines import BASELINES, baseline
from geoflow.evaluation.baselines_in_files import IN_FILES, baseline_in_file
from geoflow.evaluation.keeping import IN_MEMORY, InFiles
from geoflow.evaluation.large import place_large
from geoflow.evaluation.metrics import disagreement, pooled_scores
from geoflow.evaluation.novelty import by_layer, neighbours_of, novelty, spread
from geoflow.evaluation.ruler import Ruler, fit_ruler
from geoflow.evaluation.scoreboard import scoreboard
from geoflow.frame import metric_frame
from geoflow.graph import graph_of
from geoflow.statistics import log_variances, variances_of
from geoflow.zoo.large import open_zoo
from geoflow.zoo.own import own_task


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture(scope="module")
def x():
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def spec(x):
    return spec_of(build(), x)


@pytest.fixture(scope="module")
def thetas(spec):
    generator = torch.Generator().manual_seed(1)
    thetas = torch.randn(spec.weights, generator=generator) + 0.4 * torch.randn(8, spec.weights, generator=generator)
    thetas[:, variances_of(spec)] = thetas[:, variances_of(spec)].abs() + 0.1
    return thetas


def to_file(path, spec, thetas):
    with appending_networks(path, spec, thetas.dtype) as file:
        file.add(thetas)
    return open_zoo(path, spec).thetas


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(gathering, "STARTS", 2)
    monkeypatch.setattr(matching, "CHUNK", 200)
    monkeypatch.setattr(distances, "WORK", 100)  # several blocks of columns
    monkeypatch.setattr(distances, "RUNS", 3)


@pytest.mark.parametrize("metric", [True, False])
def test_the_ruler_and_novelty_are_those_of_memory(metric, spec, thetas, x, tmp_path, monkeypatch):
    frame = {"frame": metric_frame(graph_of(spec), x)} if metric else {}
    zoo, run_of = to_file(tmp_path / "zoo.safetensors", spec, thetas[:6]), torch.tensor([0, 0, 1, 2, 3, 4])
    usual = fit_ruler(spec, thetas[:6], **frame)
    ruler = fit_ruler(spec, zoo, **frame, match=Steps(tmp_path / "steps", progress=False).match)
    assert ruler.scale.allclose(usual.scale, rtol=1e-4) and ruler.reference.allclose(usual.reference, atol=1e-4)
    new = thetas[6:] + 0.1
    placed, others = place_large(ruler, zoo, tmp_path / "placed.safetensors", False), to_file(tmp_path / "new.safetensors", spec, new)
    made = place_large(ruler, others, tmp_path / "made.safetensors", progress=False)
    assert placed[:].allclose(usual.place(thetas[:6]), atol=1e-4)
    assert spread(placed) == pytest.approx(spread(placed[:]), rel=1e-4)
    found, wanted = (neighbours_of(one, two, one, run_of, spec) for one, two in ((made, placed), (made[:], placed[:])))
    assert found.keys() == wanted.keys() and all(found[name].allclose(wanted[name], atol=1e-5) for name in wanted)
    assert novelty(found) == pytest.approx(novelty(wanted), rel=1e-4)
    assert by_layer(spec, made, placed, run_of) == pytest.approx(by_layer(spec, made[:], placed[:], run_of), rel=1e-3)
    monkeypatch.setattr(Ruler, "place", lambda *given: pytest.fail("it was placed before"))
    assert place_large(ruler, zoo, tmp_path / "placed.safetensors", False)[:].equal(placed[:])
    with pytest.raises(ValueError, match=r"placed\.safetensors says another 'placed' of itself"):
        place_large(ruler, others, tmp_path / "placed.safetensors", progress=False)


def test_the_ruler_of_a_file_needs_no_folder(spec, thetas, tmp_path):
    """The networks have free signs, which are found for a few networks at a time."""
    usual, ruler = fit_ruler(spec, thetas), fit_ruler(spec, to_file(tmp_path / "zoo.safetensors", spec, thetas))
    assert ruler.scale.allclose(usual.scale, rtol=1e-4) and ruler.reference.allclose(usual.reference, atol=1e-4)


def test_an_interrupted_placing_goes_on(spec, thetas, tmp_path, monkeypatch):
    ruler, zoo, calls, place = fit_ruler(spec, thetas), to_file(tmp_path / "zoo.safetensors", spec, thetas), [], Ruler.place

    def counted(self, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return place(self, rows)

    monkeypatch.setattr(Ruler, "place", counted)
    with pytest.raises(KeyboardInterrupt):
        place_large(ruler, zoo, tmp_path / "placed.safetensors", progress=False)
    found = place_large(ruler, zoo, tmp_path / "placed.safetensors", progress=False)
    assert sum(calls) - calls[2] == 8 and found[:].allclose(place(ruler, thetas), atol=1e-5)


@pytest.fixture(scope="module")
def flow(spec, thetas) -> Flow:
    return fit(spec, thetas, latent="pca", iterations=1, batch=4, progress=False)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_in_files_are_those_of_memory(name, flow, spec, thetas, tmp_path):
    assert IN_FILES.keys() == BASELINES.keys()
    canonical = canonicalize(spec, thetas, flow.reference).theta
    zoo, count = to_file(tmp_path / "zoo.safetensors", spec, canonical), 300 if name in ("gaussian", "noised") else 7

    def made(path):
        return baseline_in_file(name, flow, zoo, count, torch.Generator().manual_seed(0), path, progress=False)

    wanted = baseline(name, flow, canonical, count, torch.Generator().manual_seed(0))
    found = made(tmp_path / "made.safetensors")
    assert found.shape == tuple(wanted.shape)
    if count == 7:
        assert found[:].allclose(wanted, atol=1e-4)
    else:  # other noise of the same distribution
        one, other = (log_variances(some, variances_of(spec)) for some in (found[:], wanted))
        usual = other.std(0) + 1e-3  # some weights never vary
        assert ((one.mean(0) - other.mean(0)) / usual).abs().max() < 0.4 and ((one.std(0) - other.std(0)) / usual).abs().max() < 0.4
        assert not found[:].allclose(wanted, atol=0.1) and made(tmp_path / "again.safetensors")[:].equal(found[:])
    assert made(tmp_path / "made.safetensors")[:].equal(found[:])  # it was finished before
    assert open_zoo(tmp_path / "made.safetensors", spec).thetas[:].equal(found[:])


def test_a_finished_baseline_is_not_taken_for_one_of_another_zoo_flow_or_seed(flow, spec, thetas, tmp_path):
    zoo, other = (to_file(tmp_path / f"{name}.safetensors", spec, some) for name, some in (("zoo", thetas), ("other", thetas + 1)))

    def made(name, flow, zoo, count, seed):
        return baseline_in_file(name, flow, zoo, count, torch.Generator().manual_seed(seed), tmp_path / "made.safetensors", False)[:]

    first, another = made("retrieval", flow, zoo, 3, 0), replace(flow, reference=flow.reference + 1)
    given = ("noised", flow, zoo, 3, 0), ("retrieval", another, zoo, 3, 0), ("retrieval", flow, other, 3, 0)
    for one in (*given, ("retrieval", flow, zoo, 2, 0), ("retrieval", flow, zoo, 3, 1)):
        with pytest.raises(ValueError, match=r"made\.safetensors says another 'points' of itself"):
            made(*one)
    assert made("retrieval", flow, zoo, 3, 0).equal(first)


def test_networks_that_change_as_they_are_read_have_no_columns(spec, thetas, tmp_path):
    doubled = to_file(tmp_path / "zoo.safetensors", spec, thetas).to(torch.double)
    with pytest.raises(TypeError, match="have no columns"):
        spread(doubled)


def test_a_scoreboard_in_files_is_that_of_memory(spec, thetas, x, tmp_path, monkeypatch):
    """Baselines of noise have other noise. All else is equal, and the same call again draws and measures nothing.

    The networks are near each other. Far ones have gains of both signs, whose mean may be 0 up to rounding, which no comparison survives.
    """
    thetas = thetas[:1].lerp(thetas, 0.25)
    files = [to_file(tmp_path / f"{name}.safetensors", spec, some) for name, some in (("new", thetas[:3] + 0.1), ("held", thetas[6:]))]
    (new, held), _ = files, to_file(tmp_path / "zoo.safetensors", spec, thetas[:6])
    zoo = replace(open_zoo(tmp_path / "zoo.safetensors", spec), snapshots=2)
    flow = fit(spec, zoo.thetas, x, latent="pca", iterations=1, batch=4, progress=False)
    data, paths = own_task(x, torch.arange(20) % 3, x + 1, torch.arange(20) % 3), torch.randn(4, 3, 5)

    def board(keep):
        return scoreboard(build(), spec, zoo, new, data, flow, held, seen=x, paths=paths, keep=keep)

    found = board(InFiles(tmp_path / "board"))
    runs = zoo.thetas[:].view(3, 2, -1)
    wanted = scoreboard(build(), spec, runs, new[:], data, flow, held[:], seen=x, paths=paths)
    assert found.figures.keys() == wanted.figures.keys() == {"scores", "distances", "loss", "weights"}
    for part in ("zoo", "generated", "novelty", "recalibrated", "parameters"):
        assert flat(found.metrics[part]) == pytest.approx(flat(wanted.metrics[part]), rel=1e-3, abs=1e-5), part
    for name in ("mean_network", "rescaled_mean"):
        one, other = (flat(board.metrics["baselines"][name]) for board in (found, wanted))
        assert one == pytest.approx(other, rel=1e-2, abs=1e-3), name
    assert found.metrics["diversity"]["zoo"]["distance"] == pytest.approx(wanted.metrics["diversity"]["zoo"]["distance"], rel=1e-3)
    assert flat(found.metrics["ensemble"]["generated"]) == pytest.approx(flat(wanted.metrics["ensemble"]["generated"]), rel=1e-3)
    pair, usual = (board.metrics["pairwise"]["generated_zoo"] for board in (found, wanted))
    assert (
        pair["wasserstein"] is None
        and usual["wasserstein"] > 0
        and pair["jensen_shannon"] == pytest.approx(usual["jensen_shannon"], rel=1e-2)
    )
    assert not list((tmp_path / "board").glob("gaussian.networks*")), "a baseline is deleted once it is measured"
    monkeypatch.setattr(keeping, "baseline_in_file", lambda *given: pytest.fail("it was measured before"))
    monkeypatch.setattr(measuring, "neighbours_of", lambda *given: pytest.fail("it was measured before"))
    assert flat(board(InFiles(tmp_path / "board")).metrics) == pytest.approx(flat(found.metrics), rel=1e-6)
    with pytest.raises(ValueError, match=r"neighbours\.found\.safetensors was found for other networks or data"):
        scoreboard(build(), spec, zoo, new, replace(data, x_test=x), flow, held, seen=x, keep=InFiles(tmp_path / "board"))
    for change in ({"heldout": None}, {"zoo": replace(zoo, snapshots=3)}, {"generator": torch.Generator().manual_seed(1)}):
        given = {"zoo": zoo, "heldout": held, "seen": x, "keep": InFiles(tmp_path / "board")} | change
        with pytest.raises(ValueError, match=r"was found for other networks or data, or with other random numbers\. Delete"):
            scoreboard(build(), spec, samples=new, data=data, flow=flow, **given)


def test_networks_in_files_and_in_memory_are_not_mixed(spec, thetas, x, tmp_path):
    new, data = to_file(tmp_path / "new.safetensors", spec, thetas[:3]), own_task(x, torch.arange(20) % 3, x, torch.arange(20) % 3)
    to_file(tmp_path / "zoo.safetensors", spec, thetas)
    zoo, files = open_zoo(tmp_path / "zoo.safetensors", spec), InFiles(tmp_path / "board")
    for some, other, keep in (
        (thetas, new, files),
        (zoo, new[:], files),
        (zoo, new, files),
        (zoo, new, IN_MEMORY),
        (thetas, new[:], files),
    ):
        with pytest.raises(ValueError, match=r"keep=InFiles\(folder\)"):
            scoreboard(build(), spec, some, other, data, keep=keep)


def flat(value) -> list[float]:
    return [x for one in value.values() for x in flat(one)] if isinstance(value, dict) else [value or 0.0]


def test_scores_of_files_are_those_of_memory(spec, thetas, x, tmp_path):
    zoo, y = to_file(tmp_path / "zoo.safetensors", spec, thetas), torch.arange(20) % 3
    for network in (build(), build().double()):
        one, other = (evaluate(network, spec, some, x, y) for some in (zoo, thetas))
        assert one.nll.equal(other.nll) and one.accuracy.equal(other.accuracy)
    one, other = (pooled_scores(build(), spec, some, x, y) for some in (zoo, thetas))
    assert all(one[pool].nll.equal(other[pool].nll) for pool in ("linear", "log"))
    assert disagreement(build(), spec, zoo, x) == disagreement(build(), spec, thetas, x)
