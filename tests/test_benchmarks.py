"""The benchmarks measure what they say, and the kept results agree with their own bounds."""

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_kept_rows_hold_what_they_say(path):
    from workloads import WORKLOADS, Row

    rows = json.loads(path.read_text())["rows"]
    assert {row["name"] for row in rows} <= set(WORKLOADS)
    for row in rows:
        said = {key: value for key, value in row.items() if key not in ("holds", "name", "date", "commit")}
        assert Row(**said).holds == row["holds"]


def test_a_bound_cuts_both_ways():
    from workloads import Row, faster

    assert faster("a", "b", (1.0, 3.0), "s", 3).holds and not faster("a", "b", (1.0, 2.9), "s", 3).holds
    assert not Row("a", "b", 1.2, 1.0, "s", 1.2, "<= 1.15").holds


def test_work_of_a_product_and_a_broadcast_sum_is_counted():
    from measure import Machine, count

    a, b = torch.randn(3, 4), torch.randn(4, 5)
    work = count(lambda: (a @ b).T + torch.ones(1, 1).expand(5, 3))
    product, ones, total = 4 * (12 + 20 + 15), 4, 4 * (15 + 1 + 15)
    assert (work.flops, work.bytes) == (2 * 3 * 4 * 5, product + ones + total)
    assert work.bound(Machine(flops=60, bytes=1e9)) == pytest.approx(2, abs=1e-3)


def test_the_most_memory_at_once_is_found():
    from measure import peak_bytes

    def two_of_three():
        a = torch.empty(2**18)
        b = a + 1
        del a
        return b + 1

    assert 2 * 2**20 <= peak_bytes(two_of_three, "cpu") < 2 * 2**20 + 4096


def test_the_other_ways_do_the_same_work():
    from dense import DenseTransformer
    from others import align_one_by_one, evaluate_one_by_one
    from workloads import fresh

    from geoflow import evaluate, graph_of, unpack
    from geoflow.canonical import align
    from geoflow.zoo.networks import mlp

    architecture = (6, (5, 4), 3)
    spec, thetas = fresh(architecture, 8)
    graph = graph_of(spec)
    assert DenseTransformer(8, 2, 2)(graph, thetas, torch.rand(8)).shape == thetas.shape
    x, y = torch.randn(20, 6), torch.randint(3, (20,))
    alone = evaluate_one_by_one(mlp(*architecture), [unpack(spec, theta) for theta in thetas], x, y)
    together = evaluate(mlp(*architecture), spec, thetas, x, y)
    assert torch.allclose(torch.stack([scores.nll for scores in alone]), together.nll, atol=1e-6)
    thetas = thetas.double()
    arrays = [[part.numpy() for part in unpack(spec, theta).values()] for theta in thetas]
    reached = torch.from_numpy(align_one_by_one(arrays[1:], arrays[0])[1])
    ours = align(spec, thetas[1:], thetas[0])[0] @ thetas[0]
    assert (reached > thetas[1:] @ thetas[0]).all() and (ours - reached).abs().max() < 0.2 * reached.abs().max()


def test_the_dense_field_moves_with_the_permutations(generator):
    """It is a fair rival: a relational transformer of the same symmetry, every weight of the input in its output."""
    from dense import DenseTransformer
    from workloads import fresh

    from geoflow import graph_of, permute

    spec, thetas = fresh((4, (3,), 2), 2)
    field, t = DenseTransformer(8, 2, 2), torch.rand(2)
    order = {group: torch.randperm(size, generator=generator) for group, size in spec.groups("permutation").items()}
    moved = field(graph_of(spec), permute(spec, thetas, order), t)
    assert torch.allclose(moved, permute(spec, field(graph_of(spec), thetas, t), order), atol=1e-5)


def test_the_list_of_public_models_is_long_and_names_each_once():
    from public_models import models

    names = [model.name for model in models()]
    assert len(names) == len(set(names)) >= 180
    assert {model.family for model in models()} >= {"timm", "torchvision", "transformers, text", "transformers, images"}


def test_coverage_counts_by_family_and_keeps_the_reasons(monkeypatch, tmp_path):
    import coverage

    rows = [
        {"name": "a", "family": "x", "outcome": "sound", "trace_s": 1.0, "check_s": 2.0},
        {"name": "b", "family": "x", "outcome": "refused", "message": "no rule"},
        {"name": "c", "family": "y", "outcome": "wrong", "trace_s": 3.0, "message": "differs"},
        {"name": "d", "family": "y", "outcome": "crashed", "message": "boom"},
    ]
    lines = coverage.table(rows).splitlines()
    assert "| x | 2 | 1 (50%) | 1 | 1 | 0 | 1.0 | 2.0 |" in lines
    assert "| y | 2 | 1 (50%) | 0 | 0 | 2 | 3.0 | 0.0 |" in lines
    assert "| all | 4 | 2 (50%) | 1 | 1 | 2 | 3.0 | 2.0 |" in lines
    assert lines[-3:] == ["| b | refused | no rule |", "| c | wrong | differs |", "| d | crashed | boom |"]
    monkeypatch.setattr(coverage, "LINES", tmp_path / "lines.jsonl")
    assert coverage.read_lines() == {}
    coverage.LINES.write_text("\n".join(map(json.dumps, [rows[1], rows[1] | {"outcome": "sound"}])))
    assert coverage.read_lines()["b"]["outcome"] == "sound"


def test_a_model_is_measured_alone_and_a_crash_is_a_row():
    import coverage
    from public_models import Model

    def example(network, batch, generator):
        return (torch.randn(batch, 3, generator=generator),)

    def broken():
        raise KeyError("missing")

    row = coverage.alone(Model("net", "some", lambda: torch.nn.Linear(3, 2), example))
    assert row["outcome"] == "sound" and row["change"] < 1e-12 and row["parameters"] == 8
    refused = coverage.alone(Model("net", "some", lambda: torch.nn.Sequential(torch.nn.Linear(3, 2), Sorted()), example))
    assert refused["outcome"] == "refused" and "aten.sort" in refused["message"]
    assert coverage.alone(Model("net", "some", broken, example))["message"] == "KeyError: 'missing'"


class Sorted(torch.nn.Module):
    def forward(self, x):
        return x.sort(-1)[0]


def test_principal_components_on_disk_are_measured_and_nothing_is_left(tmp_path):
    from latent import measure

    read, written, memory = measure(tmp_path, nets=5, weights=20_000, written=3, dtype=torch.half, rounds=1)
    assert min(read.ours, read.other, written.ours, written.other) > 0 and memory.must == "<= 1"
    assert [path.name for path in tmp_path.iterdir()] == ["zoo.safetensors"]


def test_matching_by_spectra_finds_heads_and_units_in_another_order():
    """One order of heads, and one of the units of each head, for queries, keys and values alike."""
    from others import heads_by_spectra

    from geoflow import apply_symmetry
    from geoflow.symmetry import Symmetry
    from geoflow.wiring import spec_of
    from tests.networks import NETWORKS

    build, example = NETWORKS["mask for all heads"]
    spec = spec_of(build(), example())
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(spec.weights, generator=generator, dtype=torch.float64)
    orders = torch.stack([torch.eye(4).double()[torch.randperm(4, generator=generator)] for _ in range(2)])
    (home,) = spec.groups("permutation")
    moved = apply_symmetry(spec, theta, Symmetry({home: torch.tensor([1, 0])}, linear=dict.fromkeys(spec.linear, orders)))
    assert not torch.allclose(moved, theta)
    assert torch.allclose(heads_by_spectra(spec, moved, theta), theta)
