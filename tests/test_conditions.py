"""What a flow is told of its networks: it follows it, can do without, and says where it was never told so."""

import pytest
import torch
from scipy.stats import kstest, spearmanr

from geoflow import Flow, fit, graph_of, sample, spec_of
from geoflow.checkpoint import Progress
from geoflow.conditions import Labels, Numbers, fit_conditions, from_record, to_record
from geoflow.training import prepare, train
from geoflow.velocity import VELOCITIES, build_field
from geoflow.zoo.networks import mlp

SIZES = {"layers": 1, "node": 16, "edge": 8, "edge_hidden": 8}
CONFIG = {"flow": "geometric", "align": True, "velocity": "transformer", "coupling": "independent", "time": "uniform"}
CONFIG |= {"prediction": "preconditioned", "weighting": "balanced", "sizes": SIZES, "iterations": 6, "batch": 5}
CONFIG |= {"lr": 1e-3, "weight_decay": 1e-3, "ema": 0.9, "seed": 0, "condition_dropout": 0.3}
LEARNING = {"flow": "euclidean", "velocity": "mlp", "sizes": {"width": 64}, "iterations": 400, "batch": 64, "lr": 3e-3, "progress": False}


@pytest.fixture
def spec():
    return spec_of(mlp(3, [4], 2), torch.zeros(1, 3))


@pytest.fixture
def thetas(spec, generator):
    return torch.randn(20, spec.weights, generator=generator)


@pytest.fixture
def numbers(generator):
    return torch.randn(20, 2, generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randomise(field):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.fixture(scope="module")
def linear():
    """The table of a linear map of two numbers, whose weights have no symmetry."""
    return spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))


@pytest.fixture(scope="module")
def level(linear):
    """A flow for networks whose weights lie around a level that the flow is told."""
    generator = seeded()
    levels = torch.rand(400, 1, generator=generator) * 4 - 2
    return fit(linear, levels + 0.1 * torch.randn(400, 3, generator=generator), conditions=levels, **LEARNING)


def test_asked_numbers_are_reached_in_their_order(level):
    """Five levels over the range: the mean of the weights follows, and nearly all pairs of networks are in order."""
    asked = torch.linspace(-1.8, 1.8, 5).repeat_interleave(20)
    drawn = sample(level, 100, steps=30, condition=asked, generator=seeded(1)).mean(1)
    assert spearmanr(asked, drawn).statistic > 0.95
    means = drawn.view(5, 20).mean(1)
    assert means.tolist() == pytest.approx(torch.linspace(-1.8, 1.8, 5).tolist(), abs=0.3)
    free = sample(level, 100, steps=30, generator=seeded(1)).mean(1)
    assert abs(spearmanr(asked, free).statistic) < 0.4 and free.std() > 0.8  # without a condition all levels come


def test_asked_labels_are_reached(linear):
    generator = seeded()
    labels = torch.arange(300) % 3
    centres = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    flow = fit(linear, centres[labels] + 0.1 * torch.randn(300, 3, generator=generator), conditions=labels, **LEARNING)
    for label in range(3):
        drawn = sample(flow, 40, steps=30, condition=label, generator=seeded(1))
        assert (torch.cdist(drawn, centres).argmin(1) == label).float().mean() > 0.9
    mixed = sample(flow, 30, steps=30, condition=torch.arange(30) % 3, generator=seeded(1), batch=7)
    assert (torch.cdist(mixed, centres).argmin(1) == torch.arange(30) % 3).float().mean() > 0.9


@pytest.mark.parametrize("velocity", VELOCITIES)
def test_a_new_field_that_takes_conditions_is_the_one_that_does_not(velocity, spec, generator):
    graph = graph_of(spec)
    plain, told = (seeded_field(graph, velocity, features) for features in (0, 2))
    state = told.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    x, t = torch.randn(5, graph.size, generator=generator), torch.rand(5, generator=generator)
    condition = torch.randn(5, 3, generator=generator)
    for _ in range(2):
        assert torch.equal(told(graph, x, t, condition), told(graph, x, t)) and torch.equal(told(graph, x, t), plain(graph, x, t))
        for field in (plain, told):  # the heads and all else move, and the condition's last layer stays zero
            torch.manual_seed(1)
            with torch.no_grad():
                for name, parameter in field.named_parameters():
                    if not name.startswith("told"):
                        parameter.add_(torch.randn_like(parameter) * 0.1)
    randomise(told)
    assert not torch.allclose(told(graph, x, t, condition), told(graph, x, t))
    condition[:, -1] = 0  # not told
    assert torch.equal(told(graph, x, t, condition), told(graph, x, t))


def seeded_field(graph, velocity, features):
    torch.manual_seed(0)
    return build_field([graph], velocity, {} if velocity == "mlp" else SIZES, features)


def test_strength_goes_from_no_condition_through_it_and_beyond(spec, thetas, numbers):
    flow, points = prepare(spec, thetas, CONFIG, conditions=numbers)
    randomise(flow.field)
    t, condition = torch.tensor(0.4), flow.conditions.encode(numbers, 20)
    free, asked = flow.velocity(flow.chart)(points, t), flow.velocity(flow.chart, condition=condition)(points, t)
    assert not torch.allclose(free, asked)
    for strength in (0.0, 0.5, 1.0, 3.0):
        found = flow.velocity(flow.chart, condition=condition, condition_strength=strength)(points, t)
        assert torch.allclose(found, free + strength * (asked - free), atol=1e-4)
    drawn = [sample(flow, 3, steps=2, condition=numbers[0], condition_strength=w, generator=seeded()) for w in (0.0, 1.0, 2.0)]
    assert torch.allclose(drawn[0], sample(flow, 3, steps=2, generator=seeded()), atol=1e-6)
    assert not torch.allclose(drawn[1], drawn[2])


def test_each_network_has_its_own_condition_however_they_are_batched(spec, thetas, numbers):
    flow, _ = prepare(spec, thetas, CONFIG, conditions=numbers)
    randomise(flow.field)
    whole = sample(flow, 7, steps=2, condition=numbers[:7], generator=seeded())
    assert torch.allclose(whole, sample(flow, 7, steps=2, condition=numbers[:7], generator=seeded(), batch=3), atol=1e-5)
    turned = sample(flow, 7, steps=2, condition=numbers[:7].flip(0), generator=seeded())
    assert torch.allclose(turned[3], whole[3], atol=1e-5) and not torch.allclose(turned[0], whole[0])


def test_a_stopped_training_is_told_the_same(spec, thetas, numbers, tmp_path):
    """The conditions that are dropped come from the generator of the training."""
    path, step, seen = tmp_path / "checkpoint.safetensors", Progress.step, []

    def interrupted(self, *arguments):
        if self.iteration == 4:
            raise KeyboardInterrupt
        seen.append(arguments[-1])
        return step(self, *arguments)

    whole = train(*prepare(spec, thetas, CONFIG, conditions=numbers), progress=False, conditions=numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(*prepare(spec, thetas, CONFIG, conditions=numbers), path, 2, False, numbers)
    resumed = train(*prepare(spec, thetas, CONFIG, conditions=numbers), path, 2, False, numbers)
    assert resumed.losses == whole.losses
    told = torch.cat([one[:, -1] for one in seen])
    assert {*told.tolist()} == {0.0, 1.0} and all((one[one[:, -1] == 0] == 0).all() for one in seen)
    with pytest.raises(ValueError, match="another training"):
        train(*prepare(spec, thetas, CONFIG, conditions=numbers * 2), path, 2, False, numbers * 2)


def test_flows_with_conditions_are_saved_and_those_without_say_nothing_of_them(spec, thetas, numbers, tmp_path):
    common = {"iterations": 2, "batch": 4, "progress": False}
    told, untold = fit(spec, thetas, conditions=numbers, **common), fit(spec, thetas, **common)
    told.save(tmp_path / "flow.safetensors")
    read = Flow.load(tmp_path / "flow.safetensors")
    first, second = (sample(one, 3, steps=2, condition=numbers[0], generator=seeded()) for one in (told, read))
    assert torch.equal(first, second) and read.conditions == told.conditions
    assert untold.conditions is None and not {"conditions", "told", "condition_dropout"} & set(untold.config)


def test_several_zoos_have_conditions_on_one_scale(generator):
    specs = [spec_of(mlp(3, hidden, 2), torch.zeros(1, 3)) for hidden in ([4], [6])]
    zoos = [torch.randn(count, spec.weights, generator=generator) for count, spec in zip((12, 9), specs, strict=True)]
    levels = [torch.randn(12, 1, generator=generator), 3 + torch.randn(9, 1, generator=generator)]
    flow = fit(specs, zoos, conditions=levels, iterations=3, batch=4, progress=False)
    assert flow.conditions.mean[0] == pytest.approx(torch.cat(levels).mean().item(), abs=1e-6)
    assert sample(flow, 2, spec=specs[1], steps=2, condition=3.0).shape == (2, specs[1].weights)


def test_extrapolation_is_said_with_the_range(level):
    low, high = level.conditions.low[0], level.conditions.high[0]
    with pytest.warns(UserWarning, match=rf"conditions of 1 of 3 networks lie outside .* {low:.4g} to {high:.4g}.* an extrapolation"):
        sample(level, 3, steps=1, condition=torch.tensor([0.0, 5.0, high]))


@pytest.mark.parametrize("conditions", [Numbers((0.1, 2.0), (1.0, 3.0), ((-1.0, 0.0), (1.0, 9.0))), Labels(3)])
def test_what_is_recorded_comes_back(conditions):
    assert from_record(to_record(conditions)) == conditions


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (torch.randn(19, 2), r"Conditions of 20 networks are floating numbers \[20, features\]"),
        (torch.randn(20), r"not \[20\] of torch.float32"),
        (torch.zeros(20, 1), "Feature 0 of the conditions is the same for all networks"),
        (torch.full((20, 1), float("nan")), "NaN or Inf"),
        (torch.zeros(20, dtype=torch.long), r"at least two, each of some network. These are \[0\]"),
        (torch.arange(20) % 2 * 2, r"These are \[0, 2\]"),
        ([torch.randn(20, 1), torch.randn(20, 1)], "conditions for 2 zoos, and 1 zoos"),
    ],
)
def test_conditions_that_say_nothing_are_refused(conditions, message, spec, thetas):
    with pytest.raises(ValueError, match=message):
        fit(spec, thetas, conditions=conditions, iterations=1, batch=4, progress=False)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"condition": torch.zeros(2)}, "A condition for 3 networks has 1 finite numbers for each or for all"),
        ({"condition": torch.zeros(3, 2)}, r"not \[3, 2\]"),
        ({"condition": float("nan")}, "finite"),
        ({"condition": 0.0, "condition_strength": -1.0}, "condition_strength=-1.0 must be a number of at least 0"),
    ],
)
def test_conditions_that_cannot_be_asked_are_refused(asked, message, level):
    with pytest.raises(ValueError, match=message):
        sample(level, 3, steps=1, **asked)


def test_unknown_labels_and_flows_without_conditions_are_named(spec, thetas):
    labelled, _ = prepare(spec, thetas, CONFIG, conditions=torch.arange(20) % 2)
    with pytest.raises(ValueError, match=r"knows the labels 0 to 1, not \[2\]"):
        sample(labelled, 3, steps=1, condition=2)
    with pytest.raises(ValueError, match="one whole number for each or for all"):
        sample(labelled, 3, steps=1, condition=0.5)
    plain, _ = prepare(spec, thetas, {name: value for name, value in CONFIG.items() if name != "condition_dropout"})
    with pytest.raises(ValueError, match="fitted without conditions"):
        sample(plain, 3, steps=1, condition=0.5)
    with pytest.raises(ValueError, match=r"condition_dropout=1\.0 must be a share from 0 to below 1"):
        fit(spec, thetas, conditions=torch.arange(20) % 2, condition_dropout=1.0, iterations=1, batch=4, progress=False)


def test_the_scale_is_that_of_all_networks():
    parts = [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])]
    found = fit_conditions(parts, [2, 1])
    assert (found.mean, found.low, found.high) == ((3.0,), (1.0,), (6.0,)) and found.std[0] == pytest.approx(7**0.5)


def test_quantiles_are_those_of_the_networks(generator):
    numbers = torch.randn(1000, 2, generator=generator).exp()
    found, shares = Numbers.fit([numbers[:300], numbers[300:]]), torch.rand(2000, generator=generator)
    assert torch.allclose(found.at(torch.linspace(0, 1, 33)), numbers.quantile(torch.linspace(0, 1, 33), 0), rtol=1e-4)
    drawn = found.at(shares)  # numbers drawn so are spread as those of the networks
    assert not found.outside(drawn).any()
    for feature in range(2):
        assert kstest(drawn[:, feature], numbers[:, feature]).statistic < 0.06  # 1.4 / root 667, at 5 percent
