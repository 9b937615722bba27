"""The frame of inputs: every symmetry survives it, lengths mean what they should, and the flow of a Gaussian zoo is exact."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from geoflow import FLOWS, Flow, apply_symmetry, canonicalize, fit, graph_of, pack, permute, random_symmetry, sample, spec_of
from geoflow.canonical import sphere_rows
from geoflow.charting import fit_chart
from geoflow.examples import in_precision
from geoflow.files import read_tensors, write_tensors
from geoflow.flow import build_flow, gaussian
from geoflow.frame import RIDGE, Frame, fit_moments, metric_frame, principal_frame
from geoflow.graph import leading, plain_inputs
from geoflow.paths import geodesic
from geoflow.sources import noise
from geoflow.training import prepare
from geoflow.velocity import RelationalTransformer
from geoflow.wiring.check import outputs_of
from geoflow.zoo.networks import mlp
from tests.networks import NETWORKS

CONFIG = {"align": True, "velocity": "transformer", "prediction": "preconditioned", "weighting": "balanced"}
CONFIG |= {"sizes": {"layers": 1, "node": 16}, "seed": 0}
FITTED = CONFIG | {"flow": "geometric", "coupling": "independent", "time": "uniform", "iterations": 1, "batch": 4, "lr": 1e-3}
FITTED |= {"weight_decay": 0.0, "ema": 0.9}


class TwoTowers(torch.nn.Module):
    """Two inputs whose weights play one role."""

    def __init__(self, left: int, right: int):
        super().__init__()
        self.left, self.right, self.out = torch.nn.Linear(left, 6), torch.nn.Linear(right, 6), torch.nn.Linear(6, 2)

    def forward(self, x, y):
        return self.out(torch.tanh(self.left(x) + self.right(y)))


def two_towers(left: int, right: int):
    return spec_of(TwoTowers(left, right), (torch.zeros(1, left), torch.zeros(1, right)))


@pytest.fixture
def spec():
    return spec_of(mlp(12, [4], 3), torch.zeros(1, 12))


@pytest.fixture
def skewed(spec, generator):
    """A zoo whose rows of the first layer spread from .1 to 1.2 along axes of their own, around a mean that is not zero."""
    axes = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    thetas = torch.randn(4000, spec.weights, generator=generator)
    rows = torch.randn(4000, 4, 12, generator=generator) * torch.linspace(1.2, 0.1, 12) + 0.5
    thetas[:, graph_of(spec).blocks[0].index[..., 0]] = rows @ axes.T
    return thetas, axes


@pytest.mark.parametrize("name", NETWORKS)
def test_turning_is_an_isometry_that_commutes_with_permutations(name, generator):
    make, example = NETWORKS[name]
    spec = spec_of(make(), example())
    graph = graph_of(spec)
    x = torch.randn(6, graph.size, generator=generator, dtype=torch.float64)
    frame = principal_frame([graph], [x], Frame())
    turned = frame.turn(graph, x)
    assert torch.allclose(frame.turn_back(graph, turned), x, atol=1e-12)
    assert torch.allclose(turned @ turned.T, x @ x.T, atol=1e-9)
    several = any(block.index.shape[1] > 1 for blocks in plain_inputs(graph).values() for block in blocks)
    assert several == (not torch.equal(turned, x))
    move = random_symmetry(spec, generator).permutations
    assert torch.allclose(frame.turn(graph, permute(spec, x, move)), permute(spec, turned, move), atol=1e-12)


def test_the_axes_are_those_of_the_zoo_widest_first(spec, skewed):
    thetas, axes = skewed
    graph = graph_of(spec)
    frame = principal_frame([graph], [thetas], Frame())
    assert (frame.axes["input0"].T @ axes).abs().diagonal().min() > 0.97
    mean, spread = next(iter(fit_moments([graph], [frame.turn(graph, thetas)]).values()))
    assert torch.allclose(spread[:, 0], torch.linspace(1.2, 0.1, 12), rtol=0.03, atol=1e-3)
    assert torch.allclose(mean[:, 0].square().sum(), torch.tensor(12 * 0.25), rtol=0.03)


def test_a_direction_that_a_small_zoo_never_took_is_not_impossible(spec, generator):
    graph, x = graph_of(spec), torch.randn(2, spec.weights, generator=generator)
    frame = principal_frame([graph], [x], Frame())
    assert next(iter(fit_moments([graph], [frame.turn(graph, x)]).values()))[1].min() > 0.1


@pytest.mark.parametrize(("left", "right"), [(4, 4), (5, 3)])
def test_two_inputs_of_one_role_have_means_and_spreads_of_their_own(left, right, generator, tmp_path):
    spec = two_towers(left, right)
    thetas = torch.randn(64, spec.weights, generator=generator)
    narrow, wide = (block.index[..., 0] for block in graph_of(spec).blocks[:2])
    thetas[:, narrow] = 3 + 0.01 * thetas[:, narrow]
    flow, points = prepare(spec, thetas, FITTED)
    mean, spread = flow.chart.moments
    seen = points * flow.chart.scale
    for index in (narrow, wide):
        assert torch.allclose(mean[index], seen[:, index].mean((0, 1)).expand(index.shape), atol=1e-5)
    assert spread[narrow].max() < 0.1 * spread[wide].min()
    flow.save(tmp_path / "flow.safetensors")
    assert torch.equal(Flow.load(tmp_path / "flow.safetensors").chart.moments, flow.chart.moments)


@pytest.mark.parametrize("format", ["geoflow-5", "geoflow-6"])
def test_moments_from_before_they_were_told_apart_by_input_are_those_of_every_input(format, spec, generator, tmp_path):
    for made in (spec, two_towers(4, 4)):
        thetas = torch.randn(40, made.weights, generator=generator)
        flow, _ = prepare(made, thetas, FITTED)
        flow.save(tmp_path / "flow.safetensors")
        tensors, metadata = read_tensors(tmp_path / "flow.safetensors")
        older = {name.replace("moments.input0 ", "moments."): value for name, value in tensors.items()}
        older = {name: value for name, value in older.items() if "input1 " not in name}
        write_tensors(tmp_path / "older.safetensors", older, metadata | {"format": format})
        read = Flow.load(tmp_path / "older.safetensors").chart.moments
        first, *others = (blocks[0].index for blocks in plain_inputs(flow.chart.graph).values())
        assert torch.equal(read[:, first], flow.chart.moments[:, first])
        assert all(torch.equal(read[:, other], read[:, first]) for other in others)


@pytest.mark.parametrize("metric", [False, True])
def test_a_frame_lies_on_the_cpu_wherever_the_zoo_does(metric, spec, generator, monkeypatch):
    graph = graph_of(spec)
    base = metric_frame(graph, torch.randn(30, 12, generator=generator)) if metric else Frame()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        rows, axes = (torch.empty(*shape, device="meta") for shape in ((24, 12, 1), (12, 12)))
        rows, axes = (FakeTensor(mode, part, torch.device("cuda:0")) for part in (rows, axes.double()))
        monkeypatch.setattr("geoflow.frame._rows_by_input", lambda graphs, points: {"input0": {"weight": rows}})
        monkeypatch.setattr("geoflow.frame._principal_axes", lambda rows: axes)
        x = torch.empty(6, graph.size)
        found = [*principal_frame([graph], [x], base).axes.values(), *fit_moments([graph], [x]).values()]
    assert {(part.device.type, part.dtype) for part in found} == {("cpu", torch.float32)}


@pytest.fixture
def inputs(generator):
    """Examples whose units vary together, and one that never varies from 0."""
    examples = torch.randn(500, 12, generator=generator, dtype=torch.float64) @ torch.randn(12, 12, generator=generator).double() + 1
    examples[:, 3] = 0
    return examples


def test_lengths_in_the_metric_are_what_rows_make_of_the_inputs(spec, inputs, generator):
    graph = graph_of(spec)
    theta = torch.randn(5, spec.weights, generator=generator, dtype=torch.float64)
    index = graph.blocks[0].index[..., 0]
    frame = metric_frame(graph, inputs)
    lengths = frame.turn(graph, theta)[:, index].square().sum(-1)
    ridge = RIDGE * inputs.square().mean() * theta[:, index].square().sum(-1)
    assert torch.allclose(lengths, (theta[:, index] @ inputs.T).square().mean(-1) + ridge)
    assert torch.allclose(frame.turn_back(graph, frame.turn(graph, theta)), theta, atol=1e-12)
    images = metric_frame(graph, inputs.reshape(-1, 3, 4))  # a network that flattens them
    assert torch.equal(images.axes["input0"], frame.axes["input0"])
    positions = metric_frame(graph, inputs.reshape(50, 10, 12).mT)  # 12 channels at 10 places
    assert torch.allclose(positions.axes["input0"], frame.axes["input0"])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_canonical_in_a_metric_compute_what_they_did(name, generator):
    """Rows are of length 1 in the metric, and canonical forms of one network's copies are one."""
    make, example = NETWORKS[name]
    network, x = make().double().eval(), in_precision(example(), torch.float64)
    spec = spec_of(network, x)
    graph = graph_of(spec)
    sizes = {key: blocks[0].index.shape[1] for key, blocks in plain_inputs(graph).items()}
    matrices = {key: torch.randn(n, n, generator=generator, dtype=torch.float64) + 3 * torch.eye(n) for key, n in sizes.items()}
    frame = Frame(matrices)
    theta = pack(spec, network.state_dict())[None].repeat(3, 1)
    theta[1:] += 0.1 * torch.randn(2, spec.weights, generator=generator, dtype=torch.float64).abs()
    before, canonical = theta[0], canonicalize(spec, theta, frame=frame)
    expected, found = (outputs_of(network, spec, one, x) for one in (before, canonical.theta[0]))
    assert torch.allclose(found, expected, atol=1e-8)
    turned = frame.turn(graph, canonical.theta)
    for rows in sphere_rows(spec):
        assert torch.allclose(turned[:, rows].norm(dim=-1), torch.ones(3, len(rows), dtype=torch.float64))
    move = random_symmetry(spec, generator)
    again = canonicalize(spec, apply_symmetry(spec, before[None], move), canonical.reference, frame=frame)
    assert torch.allclose(again.theta[0], canonical.theta[0], rtol=1e-7, atol=1e-9)


def test_a_flow_with_a_metric_brings_networks_to_its_form_and_back(spec, skewed, inputs, tmp_path):
    flow, points = prepare(spec, skewed[0][:40], FITTED, inputs.float())
    assert torch.allclose(flow.chart.point(flow.canonical(skewed[0][:40])), points, atol=1e-4)
    assert flow.chart.moments[0].abs().max() > 0
    flow.save(tmp_path / "flow.safetensors")
    read = Flow.load(tmp_path / "flow.safetensors")
    assert torch.equal(read.chart.theta(points), flow.chart.theta(points))
    assert torch.equal(read.canonical(skewed[0][:5]), flow.canonical(skewed[0][:5]))


@pytest.mark.parametrize(
    ("name", "shape", "axis"), [("gru", (7, 3), -1), ("attention", (4, 5), -1), ("resnet", (3, 6, 7), 1), ("conv1d", (2, 5), 1)]
)
def test_the_metric_is_that_of_the_axis_that_has_as_many_entries_as_there_are_units(name, shape, axis, generator):
    make, example = NETWORKS[name]
    graph = graph_of(spec_of(make(), example()))
    examples = torch.randn(50, *shape, generator=generator)
    rows = examples.movedim(axis, -1).flatten(0, -2)
    assert torch.allclose(metric_frame(graph, examples).axes["input0"], metric_frame(graph, rows).axes["input0"])


def test_square_examples_are_not_guessed_at(generator):
    make, example = NETWORKS["gru"]
    graph, steps = graph_of(spec_of(make(), example())), torch.randn(50, 3, 3, generator=generator)
    with pytest.raises(ValueError, match=r"two axes of 3 .*'input0'.* \[examples \* steps, 3\]"):
        metric_frame(graph, steps)
    frame = metric_frame(graph, steps.flatten(0, 1))
    squares = frame.axes["input0"] @ frame.axes["input0"].T
    assert torch.allclose(squares.diagonal(), steps.double().square().mean((0, 1)), rtol=0.2)


@pytest.mark.parametrize(("left", "right"), [(4, 4), (5, 3)])
def test_examples_of_several_inputs_come_by_name(left, right, generator):
    spec = two_towers(left, right)
    one, other = (torch.randn(50, units, generator=generator) for units in (left, right))
    frame = metric_frame(graph_of(spec), {"input0": one, "input1": 3 * other})
    for name, examples in (("input0", one), ("input1", 3 * other)):
        squares = frame.axes[name] @ frame.axes[name].T
        ridge = RIDGE * examples.double().square().mean() * torch.eye(len(squares))
        assert torch.allclose(squares, examples.double().T @ examples.double() / 50 + ridge)
    thetas = torch.randn(20, spec.weights, generator=generator)
    flow = prepare(spec, thetas, FITTED, {"input0": one, "input1": 3 * other})[0]
    assert flow.config["inputs"].keys() == {"input0", "input1"}
    assert metric_frame(graph_of(spec), {"input1": other}).axes.keys() == {"input1"} and not metric_frame(graph_of(spec), {}).axes
    with pytest.raises(ValueError, match="Unknown input 'x'\\. Known: input0, input1"):
        metric_frame(graph_of(spec), {"x": one})
    with pytest.raises(ValueError, match=r"Input 'input1' has not the shape \[7\]"):
        metric_frame(graph_of(spec), {"input0": one, "input1": torch.randn(50, 7)})


def test_one_tensor_is_not_taken_for_the_examples_of_two_inputs():
    with pytest.raises(ValueError, match=r"could be of input0 \(x\) and input1 \(y\): .* \{'input0': \.\.\.\}"):
        metric_frame(graph_of(two_towers(4, 4)), torch.randn(50, 4))
    assert metric_frame(graph_of(two_towers(5, 3)), torch.randn(50, 3)).axes.keys() == {"input1"}


def test_examples_that_no_input_reads_are_refused(spec):
    with pytest.raises(ValueError, match=r"No input has the shape \[7\] of these examples; .*'input0': 12"):
        metric_frame(graph_of(spec), torch.randn(5, 7))
    for nothing in (torch.zeros(0, 12), torch.zeros(5, 12), torch.full((5, 12), float("nan"))):
        with pytest.raises(ValueError, match="examples of inputs measure nothing"):
            metric_frame(graph_of(spec), nothing)


@pytest.mark.parametrize("flow", FLOWS)
def test_a_flow_that_learned_nothing_draws_the_gaussian_of_the_rows(flow, spec, skewed, generator):
    """The heads begin at zero, so an untrained flow is the exact one: mean and covariance of the rows are the zoo's own."""
    canonical = canonicalize(spec, skewed[0], balance=FLOWS[flow].balance)
    chart = fit_chart(spec, FLOWS[flow], canonical.theta)
    untrained = build_flow(chart, canonical.reference, CONFIG | {"flow": flow})
    new = sample(untrained, 4000, steps=64, generator=generator)
    index = graph_of(spec).blocks[0].index[..., 0]
    rows, expected = (part[:, index].flatten(0, 1) for part in (new, canonical.theta))
    scale = expected.T.cov().norm()
    assert (rows.mean(0) - expected.mean(0)).norm() < 0.1 * expected.mean(0).norm()
    assert (rows.T.cov() - expected.T.cov()).norm() < 0.12 * scale


@pytest.mark.parametrize("flow", FLOWS)
def test_the_gaussian_velocity_is_the_regression_of_velocities_on_points(flow, spec, skewed, generator):
    """What is left after it has the stated size, and is uncorrelated with the point."""
    theta = canonicalize(spec, skewed[0], balance=FLOWS[flow].balance).theta
    chart = fit_chart(spec, FLOWS[flow], theta)
    x_1, coordinates = chart.point(theta), graph_of(spec).blocks[0].index[..., 0]
    for time in (0.2, 0.5, 0.9):
        t = torch.full((len(x_1),), time)
        x_t, dx_t = geodesic(chart.manifold, noise(chart, len(x_1), generator), x_1, t)
        standard, mean, rest = gaussian(x_t, t, chart)
        # on a sphere of 12 coordinates noise is not quite orthogonal to data, which the narrowest axes feel
        axes = slice(6 if FLOWS[flow].spheres else None)
        left = ((dx_t * chart.scale - mean) / rest)[:, coordinates].flatten(0, 1)[:, axes]
        seen = standard[:, coordinates].flatten(0, 1)[:, axes]
        assert left.std(0).sub(1).abs().max() < 0.08 and seen.std(0).sub(1).abs().max() < 0.08
        assert (left * seen).mean(0).abs().max() < 0.08


def test_what_a_field_does_not_see_it_neither_hears_nor_moves(spec, generator):
    graph = graph_of(spec)
    torch.manual_seed(0)
    field = RelationalTransformer(graph, RelationalTransformer.Sizes(layers=1, node=16, components=5))
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    unseen = graph.blocks[0].index[:, 5:].flatten()
    assert leading(graph, 5).unseen.tolist() == unseen.tolist() and leading(graph, 12) is graph
    x, t = torch.randn(2, graph.size, generator=generator), torch.tensor([0.3, 0.6])
    v, changed = field(graph, x, t), x.clone()
    changed[:, unseen] += 1
    assert torch.equal(field(graph, changed, t), v)
    seen = torch.ones(graph.size, dtype=torch.bool)
    seen[unseen] = False
    assert (v[:, unseen] == 0).all() and (v[:, seen] != 0).all()


def test_networks_come_whole_from_few_components(spec, skewed, generator):
    few = fit(spec, skewed[0], sizes={"layers": 1, "node": 16, "components": 3}, iterations=2, batch=8, progress=False)
    theta = sample(few, 5, steps=4, generator=generator)
    assert theta.shape == (5, spec.weights) and torch.linalg.matrix_rank(theta[:, :48].reshape(20, 12)) == 12


@pytest.mark.parametrize("prediction", ["velocity", "endpoint"])
def test_a_prediction_that_cannot_place_the_unseen_is_refused(prediction, spec, skewed):
    with pytest.raises(ValueError, match=r"sizes\.components=12"):
        fit(spec, skewed[0], prediction=prediction, sizes={"components": 5}, iterations=1, progress=False)
    fit(spec, skewed[0], prediction=prediction, sizes={"components": 12, "layers": 1}, iterations=1, progress=False)


def test_another_number_of_inputs_is_another_task(spec, skewed):
    flow = fit(spec, skewed[0], sizes={"layers": 1, "node": 16}, iterations=1, batch=4, progress=False)
    with pytest.raises(ValueError, match="12 units of 'input0', not for 9"):
        sample(flow, 1, spec=spec_of(mlp(9, [4], 3), torch.zeros(1, 9)), steps=1)


def test_inputs_with_a_gain_or_a_residual_link_of_their_own_are_left_as_they_are():
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Linear(6, 6)

        def forward(self, x):
            return x + self.mix(x)

    assert not plain_inputs(graph_of(spec_of(Residual(), torch.zeros(1, 6))))
    assert not plain_inputs(graph_of(spec_of(torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 2)), torch.zeros(1, 6))))


class Tokens(torch.nn.Module):
    """Embeds tokens, as a language model does."""

    def __init__(self, tokens: int, width: int = 6):
        super().__init__()
        self.embedding, self.out = torch.nn.Embedding(tokens, width), torch.nn.Linear(width, 2)

    def forward(self, x):
        return self.out(self.embedding(x).relu().mean(1))


def test_the_metric_of_tokens_is_that_of_ones_where_they_stand(generator):
    graph = graph_of(spec := spec_of(Tokens(9), torch.zeros(1, 4, dtype=torch.long)))
    tokens = torch.randint(8, (50, 4), generator=generator) ** 2 // 8  # small ones are frequent, and the last never comes
    frame, full = metric_frame(graph, tokens), metric_frame(graph, torch.nn.functional.one_hot(tokens, 9).double())
    assert frame.axes["input0"].shape == (9,) and full.axes["input0"].allclose(frame.axes["input0"].diag(), atol=1e-12)
    theta = torch.randn(5, spec.weights, generator=generator, dtype=torch.float64)
    assert frame.turn(graph, theta).allclose(full.turn(graph, theta)) and not frame.turn(graph, theta).allclose(theta)
    assert frame.turn_back(graph, frame.turn(graph, theta)).allclose(theta)
    assert frame.log_det(graph).allclose(full.log_det(graph))
    turned, wanted = (principal_frame([graph], [one.turn(graph, theta)], one).axes["input0"].abs() for one in (frame, full))
    assert turned.allclose(wanted, atol=1e-9)
    for refused in (tokens + 9, tokens - 1):
        with pytest.raises(ValueError, match=r"No input has the shape \[4\]"):
            metric_frame(graph, refused)


def test_whole_numbers_that_could_be_tokens_or_values_are_refused(generator):
    graph = graph_of(spec_of(Tokens(9), torch.zeros(1, 4, dtype=torch.long)))
    tokens = torch.randint(9, (50, 9), generator=generator)
    for unclear in (tokens, tokens.int(), torch.nn.functional.one_hot(tokens, 9)):
        with pytest.raises(ValueError, match=r"could be tokens or values of 9 units\. Pass tokens as examples\.flatten\(\)"):
            metric_frame(graph, unclear)
    assert metric_frame(graph, tokens.flatten()).axes["input0"].shape == (9,)
    assert metric_frame(graph, tokens.float()).axes["input0"].shape == (9, 9)


@pytest.mark.parametrize("tokens", [True, False])
def test_wide_inputs_are_stretched_and_not_turned(tokens, generator, monkeypatch, tmp_path):
    monkeypatch.setattr("geoflow.frame.WIDE", 8)
    spec = spec_of(Tokens(9), torch.zeros(1, 4, dtype=torch.long)) if tokens else spec_of(mlp(9, [4], 3), torch.zeros(1, 9))
    inputs = torch.randint(9, (50, 4), generator=generator) if tokens else torch.randn(50, 9, generator=generator)
    thetas = torch.randn(12, spec.weights, generator=generator)
    for seen in (inputs, None):
        flow, points = prepare(spec, thetas, FITTED | {"flow": "normalized"}, seen)
        axes = flow.chart.frame.axes["input0"]
        assert axes.shape == (9,) and (seen is not None or axes.eq(1).all())
        index = plain_inputs(flow.chart.graph)["input0"][0].index
        assert flow.chart.moments[0][index].allclose(points[:, index].mean((0, 1)).expand(index.shape), atol=1e-5)
        flow.save(tmp_path / "flow.safetensors")
        assert Flow.load(tmp_path / "flow.safetensors").chart.theta(points).equal(flow.chart.theta(points))
    if not tokens:
        squares = inputs.double().square().mean(0)
        assert metric_frame(graph_of(spec), inputs).axes["input0"].allclose((squares + RIDGE * squares.mean()).sqrt())


def test_the_frame_of_thirty_thousand_tokens_needs_no_matrix_of_them(generator, monkeypatch):
    graph = graph_of(spec := spec_of(Tokens(30_522, 8), torch.zeros(1, 4, dtype=torch.long)))
    largest, empty = [0], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: largest.append(len(x)) or empty(x))
    frame = metric_frame(graph, torch.randint(30_522, (100, 16), generator=generator))
    x = torch.randn(2, spec.weights, generator=generator)
    turned = principal_frame([graph], [frame.turn(graph, x)], frame)
    assert turned.axes["input0"].equal(frame.axes["input0"]) and max(largest) == 0
    assert next(iter(fit_moments([graph], [x]).values())).shape == (2, 30_522, 1)
