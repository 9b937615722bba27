"""One flow for several architectures: pooled statistics, one field, and each zoo's own centre."""

import pytest
import torch

from geoflow import Flow, apply_symmetry, canonicalize, fit, graph_of, random_symmetry, sample, spec_of
from geoflow.chart import Chart
from geoflow.charting import fit_charts
from geoflow.checkpoint import Progress
from geoflow.coordinates import FLOWS
from geoflow.files import read_tensors, write_tensors
from geoflow.frame import metric_frame
from geoflow.symmetry import Symmetry
from geoflow.training import next_zoo, prepare, train
from geoflow.velocity import RelationalTransformer
from geoflow.zoo.networks import mlp

HIDDEN = ([4], [7], [5, 3])
SIZES = {"layers": 1, "node": 16, "edge": 8, "edge_hidden": 8}
FITTED = {"iterations": 4, "batch": 5, "sizes": SIZES, "progress": False}
CONFIG = {"flow": "geometric", "align": True, "velocity": "transformer", "coupling": "independent", "time": "uniform"}
CONFIG |= {"prediction": "preconditioned", "weighting": "balanced", "sizes": SIZES, "iterations": 8, "batch": 5}
CONFIG |= {"lr": 1e-3, "weight_decay": 1e-3, "ema": 0.9, "seed": 0}


def spec_for(hidden, features=3, activation="relu", norm="none"):
    return spec_of(mlp(features, hidden, 2, activation, norm=norm), torch.zeros(2, features))


@pytest.fixture
def specs():
    return [spec_for(hidden) for hidden in HIDDEN]


@pytest.fixture
def zoos(specs, generator):
    return [torch.randn(count, spec.weights, generator=generator) for count, spec in zip((20, 12, 9), specs, strict=True)]


@pytest.fixture
def x(generator):
    return torch.randn(40, 3, generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flow", FLOWS)
def test_one_zoo_among_several_is_the_flow_of_today(flow, specs, zoos, x):
    plain, listed = fit(specs[0], zoos[0], x, flow=flow, **FITTED), fit(specs[:1], zoos[:1], x, flow=flow, **FITTED)
    assert plain.losses == listed.losses and plain.config == listed.config
    assert torch.equal(sample(plain, 3, steps=3, generator=seeded()), sample(listed, 3, steps=3, generator=seeded()))


@pytest.mark.parametrize("flow", FLOWS)
def test_statistics_are_those_of_all_coordinates_of_a_role(flow, specs, zoos, x):
    """Against the values themselves, in float64; a role of one architecture is that one's."""
    base = metric_frame(graph_of(specs[0]), x)
    recipe = FLOWS[flow]
    canonical = [canonicalize(spec, zoo, balance=recipe.balance, frame=base).theta for spec, zoo in zip(specs, zoos, strict=True)]
    charts = fit_charts(specs, recipe, canonical, base)
    assert all(chart.statistics == charts[0].statistics and chart.frame is charts[0].frame for chart in charts)
    raw = [chart.raw(chart.frame.turn(chart.graph, zoo)).double() for chart, zoo in zip(charts, canonical, strict=True)]
    values = {}
    for chart, one in zip(charts, raw, strict=True):
        for role, index in chart.roles.items():
            values.setdefault(role, []).append(one[:, index].flatten())
    assert values.keys() == charts[0].statistics.keys()
    for role, (mean, std) in charts[0].statistics.items():
        together = torch.cat(values[role])
        assert mean == pytest.approx(together.mean().item(), abs=1e-5) and std == pytest.approx(together.std().item(), rel=1e-4)
    (moments,) = charts[0].frame.moments.values()
    points = [chart.point(zoo) * chart.scale for chart, zoo in zip(charts, canonical, strict=True)]
    rows = torch.cat([one[:, chart.graph.blocks[0].index[..., 0]].flatten(0, 1) for chart, one in zip(charts, points, strict=True)])
    assert len(rows) == 20 * 4 + 12 * 7 + 9 * 5
    assert torch.allclose(moments[0, :, 0], rows.mean(0), atol=1e-5)
    outside = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows)  # along principal axes nothing varies together
    assert (outside - outside.diag().diag()).abs().max() < 1e-4 * outside.diag().max()


def test_every_zoo_has_its_own_centre(specs, zoos, x):
    flow, points = prepare(specs, zoos, CONFIG, x)
    base = metric_frame(graph_of(specs[0]), x)
    for spec, zoo, one in zip(specs, zoos, points, strict=True):
        own, alone = flow.of(spec), canonicalize(spec, zoo, frame=base)
        assert own.spec == spec and torch.equal(own.reference, alone.reference)
        assert torch.allclose(own.canonical(zoo), alone.theta, atol=1e-5)
        assert torch.allclose(own.chart.point(alone.theta), one, atol=1e-5)
        assert own.field is flow.field and {chart.spec for chart in own.charts} == {chart.spec for chart in flow.charts}
    assert flow.spec == specs[0] and [chart.spec for chart in flow.charts] == specs


@pytest.mark.parametrize("number", range(3))
def test_the_field_moves_with_the_permutations_of_each_architecture(number, specs, generator):
    """v(g x) = g v(x) to 1e-5 in float32."""
    first, *others = (graph_of(spec) for spec in specs)
    field, graph = RelationalTransformer(first, RelationalTransformer.Sizes(**SIZES), *others), graph_of(specs[number])
    randomise(field)
    x, t = torch.randn(3, graph.size, generator=generator), torch.rand(3, generator=generator)
    move = Symmetry(random_symmetry(graph.spec, generator).permutations)
    v = field(graph, x, t)
    moved = apply_symmetry(graph.spec, v, move)
    assert (field(graph, apply_symmetry(graph.spec, x, move), t) - moved).abs().max() <= 1e-5 * max(1, v.abs().max())
    assert (moved - v).abs().max() > 1e-2


def randomise(field):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def test_a_stopped_training_goes_on_with_the_same_architectures(specs, zoos, tmp_path):
    path, seen = tmp_path / "checkpoint.safetensors", {"whole": [], "parts": []}
    step = Progress.step

    def watched(kind, stop=None):
        def one(self, x_0, x_1, t, lr, which=0):
            if self.iteration == stop:
                raise KeyboardInterrupt
            seen[kind].append(which)
            assert x_1.shape[1] == self.flow.charts[which].graph.size
            return step(self, x_0, x_1, t, lr, which)

        return one

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "step", watched("whole"))
        whole = train(*prepare(specs, zoos, CONFIG), progress=False)
        patch.setattr(Progress, "step", watched("parts", stop=4))
        with pytest.raises(KeyboardInterrupt):
            train(*prepare(specs, zoos, CONFIG), checkpoint=path, every=4, progress=False)
        patch.setattr(Progress, "step", watched("parts"))
        resumed = train(*prepare(specs, zoos, CONFIG), checkpoint=path, every=4, progress=False)
    assert seen["parts"] == seen["whole"] and len({*seen["whole"]}) == 3
    assert resumed.losses == whole.losses
    pairs = zip(whole.field.state_dict().values(), resumed.field.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(ValueError, match="another training"):
        train(*prepare(specs[:2], zoos[:2], CONFIG), checkpoint=path, progress=False)


def test_each_network_comes_equally_often():
    drawn, generator = [0, 0, 0], seeded()
    for _ in range(6000):
        drawn[next_zoo([10, 20, 30], generator)] += 1
    assert drawn == pytest.approx([1000, 2000, 3000], rel=0.1)  # 3 standard deviations


def test_a_flow_for_several_is_saved_and_samples_all_of_them_and_others(specs, zoos, x, tmp_path):
    flow = fit(specs, zoos, x, **FITTED)
    flow.save(tmp_path / "flow.safetensors")
    read = Flow.load(tmp_path / "flow.safetensors")
    assert read.spec == specs[0] and [chart.spec for chart in read.charts] == specs
    unseen = [spec_for([9]), spec_for([2, 2]), spec_for([4, 4, 4])]
    for spec in (None, *specs, *unseen):
        made, again = (sample(one, 3, spec=spec, steps=2, generator=seeded()) for one in (flow, read))
        assert made.shape == (3, (spec or specs[0]).weights) and torch.equal(made, again)
    assert all(flow.knows(spec) for spec in specs) and not any(flow.knows(spec) for spec in unseen)
    for spec in specs:
        assert torch.equal(read.of(spec).reference, flow.of(spec).reference)
        early, late = (sample(read, 2, spec=spec, steps=2, start=start, generator=seeded()) for start in (0.0, 0.5))
        assert not torch.equal(early, late)
    with pytest.raises(ValueError, match="was not fitted to networks of 56 weights"):
        flow.of(unseen[0])
    with pytest.raises(ValueError, match="another architecture has other units"):
        sample(flow, 2, spec=unseen[0], start=0.1)


def test_flows_from_before_there_were_several_are_read(specs, zoos, tmp_path):
    flow = fit(specs[0], zoos[0], **FITTED)
    flow.save(tmp_path / "flow.safetensors")
    tensors, metadata = read_tensors(tmp_path / "flow.safetensors")
    older = {name: value for name, value in metadata.items() if name != "others"} | {"format": "geoflow-8"}
    write_tensors(tmp_path / "older.safetensors", tensors, older)
    read = Flow.load(tmp_path / "older.safetensors")
    assert read.others == () and torch.equal(sample(flow, 2, steps=2, generator=seeded()), sample(read, 2, steps=2, generator=seeded()))


def test_running_statistics_and_the_norms_wires_are_shared(generator):
    specs = [spec_for(hidden, norm="batch") for hidden in HIDDEN]
    zoos = [torch.rand(9, spec.weights, generator=generator) + 0.1 for spec in specs]
    flow = fit(specs, zoos, **FITTED)
    assert flow.field.wires and sample(flow, 2, spec=spec_for([6, 2], norm="batch"), steps=2).isfinite().all()


def test_without_alignment_every_zoo_stays_in_its_order(specs, zoos):
    (_, aligned), (_, own) = (prepare(specs, zoos, CONFIG | {"align": align}) for align in (True, False))
    assert all(one.shape == other.shape and not torch.allclose(one, other) for one, other in zip(aligned, own, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"specs": [], "zoos": []}, "0 tables and 0 zoos: pass one table for each zoo"),
        ({"zoos": 1}, "2 tables and 1 zoos"),
        ({"second": ([4], 3, "relu")}, "Zoos 1 and 2 are of one architecture: pass them as one, by torch.cat"),
        ({"second": ([7], 5, "relu")}, "'input0' has 3 units in zoo 1 and 5 in zoo 2"),
        ({"second": ([7], 3, "tanh")}, "knows the role 'weight:hidden<input:1' as flat coordinates, not on spheres"),
        ({"batch": 13}, "batch=13 is more than the 12 networks of zoo 2 of 2"),
        ({"velocity": "identified"}, "velocity=identified tells units by their place, and the units of 2 architectures have no common"),
        ({"velocity": "mlp", "sizes": {}}, "velocity=mlp tells units by their place"),
    ],
    ids=str,
)
def test_what_no_flow_can_serve_together_is_said(change, message, generator):
    change = dict(change)
    hidden, features, activation = change.pop("second", ([7], 3, "relu"))
    specs = change.pop("specs", [spec_for([4]), spec_for(hidden, features, activation)])
    zoos = [torch.randn(count, spec.weights, generator=generator) for count, spec in zip((20, 12), specs, strict=False)]
    zoos = zoos[: change.pop("zoos")] if isinstance(change.get("zoos"), int) else change.pop("zoos", zoos)
    with pytest.raises(ValueError, match=message):
        fit(specs, zoos, **FITTED | change)


def test_shared_slopes_must_be_as_many_everywhere(generator):
    def net(slopes):
        return torch.nn.Sequential(torch.nn.Linear(3, 4), *(torch.nn.PReLU() for _ in range(slopes)), torch.nn.Linear(4, 2))

    specs = [spec_of(net(slopes), torch.zeros(2, 3)) for slopes in (1, 2)]
    zoos = [torch.rand(9, spec.weights, generator=generator) for spec in specs]
    with pytest.raises(ValueError, match=r"has 1 weights that belong to no unit.* and another 2"):
        fit(specs, zoos, flow="euclidean", **FITTED)


def test_the_field_is_told_the_widths_where_it_sees_several(specs, generator):
    """A new field predicts as one that is not told; then it can tell one width from another that looks the same from inside."""
    first, *others = (graph_of(spec) for spec in specs)
    told, untold = RelationalTransformer(first, RelationalTransformer.Sizes(**SIZES), *others), RelationalTransformer(first)
    assert untold.width is None and (told.width.weight == 0).all() and (told.width.bias == 0).all()
    randomise(told)
    x, t = torch.randn(3, first.size, generator=generator), torch.rand(3, generator=generator)
    before = told(first, x, t)
    with torch.no_grad():
        told.width.weight.zero_()
        told.width.bias.zero_()
    assert (told(first, x, t) - before).abs().max() > 1e-3


@pytest.mark.parametrize("power", [0.3, 0.5, 0.8, 1.0])
def test_weights_that_shrink_by_a_power_of_the_fan_in_have_one_size_at_every_width(power, generator):
    """The planted power comes back, up to the prior, and an unseen width is standardised too."""
    recipe = FLOWS["euclidean"]

    def zoo(width):
        spec = spec_for([width])
        thetas = torch.randn(200, spec.weights, generator=generator)
        outer = graph_of(spec).blocks[1].index
        thetas[:, outer] *= width**-power
        return spec, thetas, outer

    (first, some, _), (second, others, _), (unseen, new, outer) = (zoo(width) for width in (4, 16, 256))
    charts = fit_charts([first, second], recipe, [some, others])
    assert charts[0].powers["weight:output<hidden:1"] == pytest.approx(power - 0.5, abs=0.03)
    there = Chart(unseen, recipe, charts[0].statistics, charts[0].frame, powers=charts[0].powers)
    assert there.point(new)[:, outer].std().item() == pytest.approx(1, rel=0.12)  # of a factor of 16, .03 of the power
    assert fit_charts([first], recipe, [some])[0].powers == {}


def test_widths_that_hardly_differ_show_no_power(generator):
    specs = [spec_for([15]), spec_for([16])]
    zoos = [torch.randn(20, spec.weights, generator=generator) * factor for spec, factor in zip(specs, (1.0, 0.9), strict=True)]
    charts = fit_charts(specs, FLOWS["euclidean"], zoos)
    assert abs(charts[0].powers["weight:output<hidden:1"]) < 0.3  # the slope between the two is 1.6
