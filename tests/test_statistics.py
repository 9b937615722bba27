"""Running statistics: what each norm reads, whatever they were before; variances as logarithms."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import geoflow
from geoflow import apply_symmetry, pack, random_symmetry, recalibrate, spec_of, unpack
from geoflow.descent import by_batch, descend
from geoflow.objectives import task_objective
from geoflow.population import itself
from geoflow.statistics import STATISTICS, exp_variances, log_variances, statistics_of, variances_of
from tests.keeping import Keeping
from tests.networks import NETWORKS, mlp, row

EXAMPLES = 23  # divided by no batch below


class ByHand(nn.Module):
    """Batch norm by its function, on two parts of a buffer of its own."""

    def __init__(self, call=F.batch_norm):
        super().__init__()
        self.first, self.last, self.call = nn.Linear(5, 4), nn.Linear(4, 2), call
        self.register_buffer("kept", torch.cat([torch.zeros(4), torch.ones(4)]))

    def forward(self, x):
        return self.last(self.call(self.first(x), self.kept[:4], self.kept[4:]))


def volumes() -> nn.Module:
    last = [nn.Conv3d(3, 2, 2), nn.SyncBatchNorm(2), nn.Flatten(), nn.Linear(2, 2)]
    return nn.Sequential(nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.ReLU(), *last)


def instances() -> nn.Module:
    norms = [nn.InstanceNorm2d(4, track_running_stats=True), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)]
    return nn.Sequential(nn.Conv2d(1, 4, 3), norms[0], nn.ReLU(), nn.Conv2d(4, 3, 3), norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def sequences() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))


def called() -> nn.Module:
    return ByHand(lambda x, mean, variance: torch.batch_norm(x, None, None, mean, variance, False, 0.1, 1e-5, False))


OF_THE_LIST = ("mlp batch norm", "mlp plain batch norm", "cnn batch norm after flatten", "resnet", "densenet", "mobile")
CASES = {
    **{name: NETWORKS[name] for name in OF_THE_LIST},
    "dropout": (dropout, row(3, 5)),
    "sequences": (sequences, row(2, 2, 8)),
    "volumes and SyncBatchNorm": (volumes, row(2, 1, 3, 3, 3)),
    "instances": (instances, row(2, 1, 6, 6)),
    "by hand": (ByHand, row(3, 5)),
    "torch.batch_norm": (called, row(3, 5)),
}


@cache
def traced(name):
    build, example = CASES[name]
    torch.manual_seed(0)
    network = build().double()
    return network, spec_of(network, example().double()), example().shape[1:]


def population(name, generator, nets=3):
    """A network of the case in double precision, its table, networks with any statistics, and training inputs."""
    network, spec, shape = traced(name)
    thetas = pack(spec, network.state_dict()) + 0.3 * torch.rand(nets, spec.weights, generator=generator, dtype=torch.float64)
    return network, spec, thetas, 3 * torch.randn(EXAMPLES, *shape, generator=generator, dtype=torch.float64) + 1


def what_norms_read(network, x):
    """By call, what each norm with running statistics reads in evaluation mode, and the statistics that it has."""
    found = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (F.batch_norm, F.instance_norm, torch.batch_norm):
                place = 3 if func is torch.batch_norm else 1
                mean, variance = args[place : place + 2] or (kwargs["running_mean"], kwargs["running_var"])
                found.append((func, args[0], mean, variance))
            return func(*args, **(kwargs or {}))

    with Watch(), torch.no_grad():
        network(x)
    return found


@pytest.mark.parametrize("name", CASES)
def test_statistics_are_those_of_what_each_norm_reads_in_evaluation_mode(name, generator):
    network, spec, thetas, x = population(name, generator)
    for theta in recalibrate(network, spec, thetas, x):
        calls = what_norms_read(itself(network, unpack(spec, theta)), x)
        assert calls
        for func, read, mean, variance in calls:
            over = [0, *range(2, read.ndim)]
            if func is F.instance_norm:
                expected = read.mean(over), read.flatten(2).var(2).mean(0)
            else:
                expected = read.mean(over), read.transpose(0, 1).flatten(1).var(1)
            torch.testing.assert_close((mean, variance), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [2, 5, 22])
def test_it_is_all_the_same_how_examples_are_cut_and_ordered(name, batch, generator):
    network, spec, thetas, x = population(name, generator, nets=1)
    whole = recalibrate(network, spec, thetas, x)
    order = torch.randperm(len(x), generator=generator)
    torch.testing.assert_close(recalibrate(network, spec, thetas, x[order], batch=batch), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_only_statistics_change_and_the_old_ones_do_not_matter(name, generator):
    network, spec, thetas, x = population(name, generator)
    before = copy.deepcopy(network.state_dict())
    index = statistics_of(spec)
    others = torch.ones(spec.weights, dtype=torch.bool).index_fill(0, index, False)
    network = copy.deepcopy(network).train()
    found = recalibrate(network, spec, thetas, x)
    assert torch.equal(found[:, others], thetas[:, others]) and not torch.isclose(found[:, index], thetas[:, index]).any()
    thetas[:, index] += torch.rand(len(index), generator=generator).double()
    assert torch.equal(recalibrate(network, spec, thetas, x), found), "bit for bit"
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_training_by_batches_is_that_of_torch(name, generator):
    """Two steps of Adam, beside torch's on a module whose norms are in training mode. Running statistics stay as they were."""
    network, spec, thetas, x = population(name, generator, nets=2)
    y = torch.randint(2, (EXAMPLES,), generator=generator)
    found = descend(spec, thetas, by_batch(task_objective(network, x, y)), 2, 0.01, falling=False)
    index = statistics_of(spec)
    learned = torch.ones(spec.weights, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(found[:, index], thetas[:, index])
    for theta, after in zip(thetas, found, strict=True):
        module = itself(network, unpack(spec, theta))
        for one in module.modules():
            one.train(not isinstance(one, nn.Dropout))
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        for _ in range(2):
            optimizer.zero_grad()
            with InTraining():
                F.cross_entropy(module(x), y).backward()
            optimizer.step()
        torch.testing.assert_close(after[learned], pack(spec, module.state_dict())[learned], rtol=1e-6, atol=1e-8)


class InTraining(torch.overrides.TorchFunctionMode):
    """Norms that are called by hand say themselves that they are not in training."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.batch_norm:
            args = (*args[:5], True, *args[6:])
        elif func is F.batch_norm:
            kwargs = {**kwargs, "training": True}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mlp batch norm", "resnet", "dropout", "instances"])
def test_it_is_torch_in_training_mode_without_momentum(name, generator):
    """Norms in training mode, all else in evaluation mode, all examples in one batch. There torch normalises by biased variances, which
    statistics of later norms hear of: by n / (n - 1) for n entries of a channel."""
    network, spec, thetas, x = population(name, generator, nets=1)
    (found,) = recalibrate(network, spec, thetas, x)
    reference = itself(network, unpack(spec, thetas[0]))
    for module in reference.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.momentum = None if isinstance(module, nn.modules.batchnorm._BatchNorm) else 1.0  # which instance norms take for 0
            module.reset_running_stats()
            module.train()
    reference(x)
    expected = pack(spec, reference.state_dict())
    one_norm = name in ("mlp batch norm", "dropout")
    if name != "instances":  # a later instance norm hears of running statistics in place of each example's own
        torch.testing.assert_close(found, expected, rtol=1e-10 if one_norm else 2 / EXAMPLES, atol=1e-10 if one_norm else 1e-2)
    first = {"resnet": "1", "instances": "1"}.get(name, "1" if name == "mlp batch norm" else "2")
    for one in STATISTICS:
        torch.testing.assert_close(unpack(spec, found)[f"{first}.{one}"], unpack(spec, expected)[f"{first}.{one}"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp batch norm", "resnet", "mobile"])
def test_symmetries_carry_over(name, generator):
    network, spec, thetas, x = population(name, generator, nets=1)
    symmetry = random_symmetry(spec, generator)
    moved = apply_symmetry(spec, recalibrate(network, spec, thetas, x), symmetry)
    torch.testing.assert_close(recalibrate(network, spec, apply_symmetry(spec, thetas, symmetry), x), moved, rtol=1e-8, atol=1e-8)


class Twice(nn.Module):
    """One norm, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.norm(self.last(self.norm(self.first(x)).relu()))


def test_a_norm_that_is_used_twice_keeps_the_average(generator):
    network = Twice().double()
    spec, x = spec_of(network, torch.zeros(3, 5).double()), torch.randn(EXAMPLES, 5, generator=generator).double()
    found = unpack(spec, recalibrate(network, spec, pack(spec, network.state_dict())[None], x)[0])
    with torch.no_grad():
        first = network.first(x)
        last = network.last(F.batch_norm(first, first.mean(0), first.var(0)).relu())
    torch.testing.assert_close(found["norm.running_mean"], (first.mean(0) + last.mean(0)) / 2)
    torch.testing.assert_close(found["norm.running_var"], (first.var(0) + last.var(0)) / 2)


@pytest.mark.parametrize(
    "build", [lambda: mlp(5, 4, 2), lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))]
)
def test_networks_without_running_statistics_come_back_as_they_are(build, generator):
    spec = spec_of(build(), torch.zeros(3, 5))
    thetas = torch.randn(3, spec.weights, generator=generator)
    found = recalibrate(build(), spec, thetas, torch.randn(7, 5, generator=generator))
    assert torch.equal(found, thetas) and found.data_ptr() != thetas.data_ptr()


@pytest.mark.parametrize("keep", ["forward", "eval", "forever"])
def test_tables_that_modules_keep_are_those_of_each_network(keep, generator):
    plain, x = nn.Sequential(Keeping(), nn.BatchNorm1d(3), nn.Linear(3, 2)), torch.randn(EXAMPLES, 5, generator=generator)
    spec = spec_of(plain, x)
    thetas = pack(spec, plain.state_dict()) + 0.3 * torch.rand(3, spec.weights, generator=generator)
    network = nn.Sequential(Keeping(keep), nn.BatchNorm1d(3), nn.Linear(3, 2))
    torch.testing.assert_close(recalibrate(network, spec, thetas, x), recalibrate(plain, spec, thetas, x))


def test_a_network_that_overflows_comes_back_as_it_came(generator):
    network, spec, thetas, x = population("mlp batch norm", generator)
    thetas[1, :20] = 1e300
    found = recalibrate(network, spec, thetas, 1e10 * x)
    assert torch.equal(found[1], thetas[1]) and found.isfinite().all()
    assert torch.equal(found[[0, 2]], recalibrate(network, spec, thetas[[0, 2]], 1e10 * x)) and not torch.equal(found[0], thetas[0])


def test_precision_is_kept_far_from_zero(generator):
    """The mean is a thousand standard deviations: squares less the squared mean would lose all of float32."""
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    spec, x = spec_of(network, torch.zeros(3, 3)), 1000 + torch.randn(5000, 3, generator=generator)
    for batch in (100, 5000):
        found = unpack(spec, recalibrate(network, spec, pack(spec, network.state_dict())[None], x, batch=batch)[0])
        torch.testing.assert_close(found["0.running_var"], x.double().var(0).float(), rtol=1e-4, atol=0)


def test_progress_is_shown_on_demand(generator, capsys):
    network, spec, thetas, x = population("mlp batch norm", generator)
    recalibrate(network, spec, thetas, x)
    assert capsys.readouterr().err == ""
    recalibrate(network, spec, thetas, x, progress=True)
    assert "recalibrating: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": lambda x: x[:0]}, "x must hold at least 2 examples, for a variance, not 0"),
        ({"x": lambda x: x[:1]}, "for a variance, not 1"),
        ({"x": lambda x: x[:, :3]}, r"Sequential does not take x of shape \(23, 3\) and torch.float64: mat1 and mat2"),
        ({"x": lambda x: x.long()}, r"does not take x of shape \(23, 5\) and torch.int64"),
        ({"x": lambda x: x.float()}, "float32"),
        ({"thetas": lambda thetas: thetas[:0]}, "thetas is empty"),
        ({"thetas": lambda thetas: thetas[:, 1:]}, "Trace the network of the population"),
        ({"thetas": lambda thetas: thetas / 0}, "Network 0 of the population holds NaN or Inf"),
        ({"batch": lambda _: 1}, "batch=1 must be at least 2"),
        ({"network": lambda _: mlp(5, 9, 2)}, "two architectures"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_named(change, words, generator):
    network, spec, thetas, x = population("mlp batch norm", generator)
    given = {"network": network, "spec": spec, "thetas": thetas, "x": x, "batch": 9}
    with pytest.raises(ValueError, match=words):
        recalibrate(**given | {name: make(given[name]) for name, make in change.items()})


def test_statistics_that_no_norm_reads_are_named():
    network = ByHand(lambda x, mean, variance: F.batch_norm(x, mean.double().float(), variance.double().float()))
    spec = spec_of(network, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="'kept' cannot be measured: no batch_norm or instance_norm of torch reads it"):
        recalibrate(network, spec, pack(spec, network.state_dict())[None], torch.randn(9, 5))


def test_variances_go_to_logarithms_and_back(generator):
    theta, index = torch.rand(4, 9, generator=generator, dtype=torch.float64), torch.tensor([2, 7])
    theta[0, 2] = 0
    logs = log_variances(theta, index)
    torch.testing.assert_close(exp_variances(logs, index), theta, rtol=1e-12, atol=1e-15)
    assert (exp_variances(logs - 100, index)[:, index] >= 0).all() and log_variances(-theta, index)[1:, index].isnan().all()
    assert log_variances(theta, index[:0]) is theta and exp_variances(theta, index[:0]) is theta


def test_the_chart_and_the_statistics_share_their_logarithms(generator):
    _, spec, thetas, _ = population("mlp batch norm", generator, nets=20)
    flow = geoflow.fit(spec, thetas, flow="euclidean", iterations=1, batch=4, progress=False)
    index = variances_of(spec)
    raw = flow.chart.raw(thetas)[:, : spec.weights][:, index]
    torch.testing.assert_close(raw, log_variances(thetas, index)[:, index])
