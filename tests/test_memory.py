"""What does not fit into memory is refused before it is made, and a step can be made to take less."""

import sys

import pytest
import torch

from geoflow import fit, graph_of, memory, spec_of
from geoflow.checkpoint import COPIES
from geoflow.memory import check_free, free_bytes
from geoflow.training import prepare, train
from geoflow.velocity import RECOMPUTE, VELOCITIES, build_field, count_parameters
from geoflow.zoo.networks import mlp
from tests.networks import NETWORKS

SMALL = {"layers": 3, "node": 8, "edge": 4, "edge_hidden": 8, "heads": 2}
MACHINE = {"meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", "self/cgroup": "", "self/limits": ""}
OLD, NEW = "9:memory:/jobs/one\n1:cpu:/\n", "0::/jobs/one\n"
LIMITED = "Limit Soft Hard Units\nMax address space 5000000 unlimited bytes\nMax open files 9 9 files\n"
# what Linux says: files of /proc, files of the control groups, and the free bytes
LINUX = {
    "no limit": ({}, {}, 8000 * 1024),
    "no limit said": ({"self/cgroup": NEW}, {"jobs/one/memory.max": "max", "jobs/one/memory.current": "5"}, 8000 * 1024),
    "version 2": ({"self/cgroup": NEW}, {"jobs/one/memory.max": "5000\n", "jobs/one/memory.current": "1000\n"}, 4000),
    "a limit above": ({"self/cgroup": NEW}, {"jobs/memory.max": "5000", "jobs/memory.current": "4500"}, 500),
    "given back": (
        {"self/cgroup": NEW},
        {"jobs/one/memory.max": "5000", "jobs/one/memory.current": "4500", "jobs/one/memory.stat": "anon 9\ninactive_file 300\n"},
        800,
    ),
    "version 1": (
        {"self/cgroup": OLD},
        {"memory/jobs/one/memory.limit_in_bytes": "7000", "memory/jobs/one/memory.usage_in_bytes": "1000"},
        6000,
    ),
    "a container": ({"self/cgroup": NEW}, {"memory.max": "600", "memory.current": "100"}, 500),
    "ulimit -v": ({"self/limits": LIMITED, "self/status": "Name: python\nVmSize: 2000 kB\n"}, {}, 5000000 - 2000 * 1024),
}


@pytest.mark.parametrize(("said", "groups", "free"), LINUX.values(), ids=LINUX)
def test_free_memory_is_what_the_tightest_limit_leaves(said, groups, free, tmp_path):
    for folder, files in (("proc", MACHINE | said), ("groups", groups)):
        for name, text in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
    assert free_bytes("cpu", tmp_path / "proc", tmp_path / "groups") == free


def test_this_machine_has_memory_and_unknown_devices_refuse_nothing(tmp_path):
    assert free_bytes() > 2**20
    assert sys.platform == "win32" or free_bytes("cpu", tmp_path, tmp_path) > 2**20  # without /proc
    check_free(2**80, "A test", "None.", "meta")


@pytest.mark.parametrize("velocity", VELOCITIES)
def test_parameters_are_counted_without_making_them(velocity):
    graph = graph_of(spec_of(mlp(5, [4], 2), torch.zeros(1, 5)))
    field = build_field([graph], velocity, {})
    assert count_parameters([graph], velocity, {}) == sum(parameter.numel() for parameter in field.parameters())


@pytest.mark.parametrize(
    ("velocity", "sizes", "said"),
    [
        (
            "mlp",
            {"width": 10**6},
            r"sizes.width=1000000 has 1,000,\d{3},\d{3},\d{3} .* 34 coord.* takes 28,00.* free on cpu. Choose latent=pca",
        ),
        ("transformer", {"node": 10**6}, r"velocity=transformer with .*sizes.node=1000000 .*Choose smaller sizes"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_with_numbers_and_the_cure(velocity, sizes, said):
    spec = spec_of(mlp(5, [4], 2), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=said):
        fit(spec, torch.randn(9, spec.weights), velocity=velocity, sizes=sizes, batch=4, iterations=1, progress=False)


def test_the_limit_is_exact(monkeypatch):
    spec = spec_of(mlp(5, [4], 2), torch.zeros(1, 5))
    needed = 4 * COPIES * count_parameters([graph_of(spec)], "mlp", {})
    options = {"flow": "euclidean", "velocity": "mlp", "batch": 4, "iterations": 1, "progress": False}
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    fit(spec, torch.randn(9, spec.weights), **options)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ValueError, match="Choose latent=pca"):
        fit(spec, torch.randn(9, spec.weights), **options)


def gradients(graph, recompute):
    """Loss, gradients, and the numbers that autograd keeps for them."""
    torch.manual_seed(0)
    field = build_field([graph], "transformer", SMALL, recompute=recompute).train()
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, t, kept = torch.randn(3, graph.size), torch.rand(3), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = field(graph, x, t).square().mean()
    kept = sum(size for size, _ in kept.values())
    return loss.detach(), torch.autograd.grad(loss, list(field.parameters()), materialize_grads=True), kept


@pytest.mark.parametrize("name", ["mlp tanh", "resnet", "lstm"])
def test_layers_that_are_computed_again_give_the_same_gradients_and_keep_less(name):
    make, example = NETWORKS[name]
    graph = graph_of(spec_of(make(), example()))
    (loss, plain, most), (again, recomputed, least) = (gradients(graph, recompute) for recompute in RECOMPUTE)
    assert loss == again and least < 0.6 * most
    for one, other in zip(plain, recomputed, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6 * one.abs().max().item())
    assert any(one.abs().max() > 1e-3 for one in plain)


def test_a_training_may_go_on_with_the_other_choice(tmp_path):
    spec = spec_of(mlp(5, [4], 2), torch.zeros(1, 5))
    thetas, path = torch.randn(9, spec.weights, generator=torch.Generator().manual_seed(0)), tmp_path / "training.safetensors"
    config = {
        "flow": "euclidean", "align": True, "velocity": "transformer", "coupling": "independent", "time": "uniform", "lr": 1e-3,
        "weighting": "balanced", "prediction": "preconditioned", "sizes": SMALL, "iterations": 4, "batch": 4, "weight_decay": 0.0,
        "ema": 0.9, "seed": 0,
    }  # fmt: skip
    whole, again = (train(*prepare(spec, thetas, config | {"recompute": how}), progress=False) for how in RECOMPUTE)
    assert torch.allclose(torch.tensor(whole.losses), torch.tensor(again.losses), rtol=1e-5)
    train(*prepare(spec, thetas, config), checkpoint=path, every=4, progress=False)
    assert train(*prepare(spec, thetas, config | {"recompute": "layers"}), checkpoint=path, progress=False).losses == whole.losses


@pytest.mark.parametrize(
    ("recompute", "said"), [("layers", "recompute=layers serves velocity=transformer"), ("all", "Known: nothing, layers")]
)
def test_what_cannot_be_computed_again_is_named(recompute, said):
    spec = spec_of(mlp(5, [4], 2), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=said):
        fit(spec, torch.randn(9, spec.weights), velocity="mlp", recompute=recompute, batch=4, iterations=1, progress=False)
