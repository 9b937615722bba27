"""The scores of a network are its own: they do not depend on which networks or examples are evaluated beside it."""

from dataclasses import fields

import pytest
import torch
from torch import nn

from geoflow import evaluate, pack, population, spec_of, unpack
from geoflow.evaluation import predictions
from geoflow.evaluation.metrics import Scores, disagreement, ensemble_scores, pooled_scores, scores
from geoflow.population import itself
from tests.keeping import Company, Keeping
from tests.networks import NETWORKS

NETS, EXAMPLES = 5, 24
# where a table stays, and whether the network was used before; one that keeps it forever is then wrong by itself, whatever is loaded
KEPT = [(keep, used) for keep in ("no", "forward", "eval", "forever") for used in (False, True) if (keep, used) != ("forever", True)]
MIXES = {
    "batch norm": nn.BatchNorm1d(5, affine=False, track_running_stats=False),
    "the mean of the batch": lambda x: x - x.mean(0),
    "the largest of the batch": lambda x: x / x.abs().max(),
    "what came before": lambda x: x.cumsum(0),
    "the place in the batch": lambda x: x * torch.arange(len(x))[:, None].to(x),
    "attention over the batch": lambda x: (x @ x.T).softmax(-1) @ x,  # as of layers that expect the batch on the second axis
}
ASKED = {
    "evaluate": lambda *given, **more: evaluate(*given, **more).nll,
    "ensemble_scores": lambda *given, **more: ensemble_scores(*given, **more).nll,
    "pooled_scores": lambda *given, **more: pooled_scores(*given, **more)["log"].nll,
    "disagreement": lambda network, spec, thetas, x, y, **more: torch.tensor(disagreement(network, spec, thetas, x, **more)),
}


@pytest.fixture
def data(generator):
    return torch.randn(EXAMPLES, 5, generator=generator), torch.randint(3, (EXAMPLES,), generator=generator)


def several(network, spec, generator, nets=NETS):
    theta = pack(spec, network.state_dict())
    return theta + 0.3 * torch.randn(nets, len(theta), generator=generator, dtype=theta.dtype).abs()


def close(found: Scores, expected: Scores) -> None:
    for field in fields(Scores):
        torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name), atol=2e-5, rtol=1e-4)


def part(found: Scores, which) -> Scores:
    return Scores(*(getattr(found, field.name)[which] for field in fields(Scores)))


def classifies(name) -> bool:
    """Whether a network reads one tensor and gives logits. tests/test_forms.py has the others."""
    build, example = NETWORKS[name]
    if not isinstance(x := example(), torch.Tensor):
        return False
    with torch.no_grad():
        out = build().eval()(x)
    return isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] > 1


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap has no rule of its own for recurrent cells and fused attention
@pytest.mark.parametrize("name", [name for name in NETWORKS if classifies(name)])
def test_scores_are_those_of_the_network_loaded_and_alone(name, generator):
    build, example = NETWORKS[name]
    network, example = build(), example()
    spec = spec_of(network, example)
    thetas, shape = several(network, spec, generator), (EXAMPLES, *example.shape[1:])
    x = torch.randn(shape, generator=generator) if example.is_floating_point() else example.repeat(EXAMPLES, 1)[:EXAMPLES]
    with torch.no_grad():
        logits = torch.stack([itself(network, unpack(spec, theta))(x) for theta in thetas])
    y = torch.randint(logits.shape[-1], (EXAMPLES,), generator=generator)
    found = evaluate(network, spec, thetas, x, y)
    close(found, scores(logits.log_softmax(-1), y))
    order, some = torch.randperm(NETS, generator=generator), torch.randperm(EXAMPLES, generator=generator)[:9]
    close(evaluate(network, spec, thetas[order], x, y), part(found, order))
    close(evaluate(network, spec, thetas[2:3], x, y), part(found, slice(2, 3)))
    close(evaluate(network, spec, thetas, x[some], y[some]), scores(logits[:, some].log_softmax(-1), y[some]))


@pytest.mark.parametrize(("keep", "used"), KEPT)
def test_tables_that_modules_keep_are_those_of_each_network(keep, used, data, generator):
    x, y = data
    spec = spec_of(Keeping(), x)
    network = Keeping(keep)
    if used:
        with torch.no_grad():
            network.eval()(x)
    thetas = several(network, spec, generator)
    plain = Keeping()
    logits = []
    for theta in thetas:
        plain.load_state_dict(unpack(spec, theta))
        logits.append(plain(x).detach())
    expected = scores(torch.stack(logits).log_softmax(-1), y)
    for _ in range(2):
        close(evaluate(network, spec, thetas, x, y), expected)
    close(evaluate(network, spec, thetas.flip(0), x, y), part(expected, [4, 3, 2, 1, 0]))
    close(evaluate(network, spec, thetas, x, y, batch=EXAMPLES), expected)  # one network after the other
    own = pack(spec, network.state_dict())[None]
    close(evaluate(network, spec, own, x, y), evaluate(Keeping(), spec, own, x, y))
    expected = scores(torch.stack(logits).softmax(-1).mean(0).log(), y)
    close(ensemble_scores(network, spec, thetas, x, y), expected)
    close(pooled_scores(network, spec, thetas, x, y)["linear"], expected)
    assert disagreement(network, spec, thetas, x) == disagreement(Keeping(), spec, thetas, x)


def test_a_table_that_is_right_for_the_networks_that_are_looked_at_is_not_kept_for_the_others(data, generator):
    x, y = data
    network, spec = Keeping("eval").eval(), spec_of(Keeping(), x)
    own = pack(spec, network.state_dict())[None]
    thetas = torch.cat([own, several(network, spec, generator), own])
    close(evaluate(network, spec, thetas, x, y), evaluate(Keeping(), spec, thetas, x, y))


def test_a_table_that_cannot_be_copied_is_named(data, generator):
    """Under gradients it is a tensor that depends on others."""
    x, y = data
    network, spec = Keeping("forward").eval(), spec_of(Keeping(), x)
    network(x)
    with pytest.raises(ValueError, match=r"Keeping cannot be copied: .* network\.train\(\) drops it"):
        evaluate(network, spec, several(network, spec, generator), x, y)
    evaluate(network.train(), spec, several(network, spec, generator), x, y)


class Sign(torch.autograd.Function):
    """vmap has no rule for it."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_what_vmap_does_not_know_runs_alone(data, generator):
    x, y = data
    network, spec = Company(Sign.apply), spec_of(Company(), x)
    thetas = several(network, spec, generator)
    close(evaluate(network, spec, thetas, x, y), evaluate(Company(torch.sign), spec, thetas, x, y))


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_an_answer_that_depends_on_the_batch_is_refused(ask, mix, data, generator):
    x, y = data
    network, spec = Company(mix), spec_of(Company(), x)
    thetas = several(network, spec, generator)
    for some in (slice(None), slice(0, 2)):
        with pytest.raises(ValueError, match=r"Company says of an example depends on the other examples .*track_running_stats.*batch_size"):
            ask(network, spec, thetas, x[some], y[some])


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("batch_size", [7, EXAMPLES, 100])
def test_with_a_batch_size_it_is_scored_as_with_a_loader(batch_size, ask, mix, data, generator):
    x, y = data
    network, spec, plain = Company(mix), spec_of(Company(), x), Company()
    thetas = several(network, spec, generator)
    mixed = torch.cat([mix(batch) for batch in x.split(batch_size)])
    torch.testing.assert_close(ask(network, spec, thetas, x, y, batch_size=batch_size), ask(plain, spec, thetas, mixed, y))


def test_batch_statistics_never_give_another_number_without_a_word():
    """The network itself is right in all of 2,000 examples; on examples sorted by class and cut it would be right in 42 %."""
    network = nn.Sequential(nn.BatchNorm1d(1, affine=False, track_running_stats=False), nn.Linear(1, 2)).eval()
    network.load_state_dict({"1.weight": torch.tensor([[-9.0], [9.0]]), "1.bias": torch.zeros(2)})
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > x.mean()).long()
    spec = spec_of(network, x[:4])
    theta = pack(spec, network.state_dict())[None]
    with pytest.raises(ValueError, match="depends on the other examples of its batch"):
        evaluate(network, spec, theta, x, y)
    assert evaluate(network, spec, theta, x, y, batch_size=2000).accuracy == 1


@pytest.mark.parametrize("examples", [1, 2, 3, EXAMPLES])
def test_a_network_that_looks_at_single_examples_passes(examples, data, generator):
    x, y = (one[:examples] for one in data)
    network, spec = Company(nn.LayerNorm(5, elementwise_affine=False)), spec_of(Company(), x)
    thetas = several(network, spec, generator)
    torch.testing.assert_close(
        evaluate(network, spec, thetas, x, y).nll, evaluate(Company(), spec, thetas, network.mix(x), y).nll, atol=1e-5, rtol=1e-5
    )


class Coarse(nn.Module):
    """Computes in half the precision that it says."""

    def __init__(self, depth: int = 6):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 64), *[nn.Linear(64, 64) for _ in range(depth)], nn.Linear(64, 3))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.layers(x).float()


@pytest.mark.parametrize("factor", [1e-6, 1, 1e6])
def test_rounding_is_no_company(factor, data, generator):
    """Products of other sizes round otherwise: to 8 bits here, though inputs and outputs have 24."""
    x, y = data
    network = Coarse()
    spec = spec_of(network, x)
    thetas = several(network, spec, generator)
    thetas[:, -3 * 65 :] *= factor
    with torch.no_grad():
        logits = torch.stack([itself(network, unpack(spec, theta))(x) for theta in thetas])
    found = evaluate(network, spec, thetas, x, y)
    off = (found.nll - scores(logits.log_softmax(-1), y).nll).abs()
    assert (off <= 0.05 * logits.abs().amax((1, 2)) + 1e-6).all()  # some steps of 2^-8 of the largest logit


class Kernels(Company):
    """Computes in bfloat16, and for even and odd batches by two kernels that round differently."""

    def forward(self, x):
        return super().forward(x).bfloat16().float() * (1 + len(x) % 2 * 2**-9)


def test_kernels_for_batches_of_other_sizes_are_no_company(data, generator):
    x, y = data
    network, spec = Kernels(), spec_of(Company(), x)
    thetas = several(network, spec, generator)
    torch.testing.assert_close(evaluate(network, spec, thetas, x, y).nll, evaluate(Company(), spec, thetas, x, y).nll, rtol=0.02, atol=0.02)


def test_a_network_that_overflows_hides_no_dependence(data, generator):
    x, y = data
    network, spec = Company(MIXES["the mean of the batch"]), spec_of(Company(), x)
    thetas = several(network, spec, generator)
    thetas[0] = 1e30
    with pytest.raises(ValueError, match="depends on the other examples"):
        evaluate(network, spec, thetas, 1e9 * x, y)


def test_the_checks_look_at_a_few_examples_of_two_networks(data, generator):
    """What they cost: rows that pass the network in all, besides one pass of all examples together."""
    rows = []

    def count(x):
        rows.append(len(x))
        return x

    x, y = (one.repeat_interleave(40, 0) for one in data)
    network, spec = nn.Sequential(Company(count), nn.Dropout()), spec_of(nn.Sequential(Company(), nn.Dropout()), x[:2])
    evaluate(network, spec, several(network, spec, generator, 100), x, y)
    assert len(x) <= sum(rows) <= len(x) + 50


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_of_no_example_is_an_error(batch_size, data, generator):
    x, y = data
    network, spec = Company(), spec_of(Company(), x)
    with pytest.raises(ValueError, match="must be at least 1 example, or None"):
        evaluate(network, spec, several(network, spec, generator), x, y, batch_size=batch_size)


def test_outputs_that_are_no_tensor_are_named(data, generator):
    class Named(Company):
        def forward(self, x):
            return {"logits": super().forward(x).argmax(-1)}

    x, y = data
    network, spec = Named(), spec_of(Company(), x)
    with pytest.raises(ValueError, match=r"Named gives a dict without a tensor of outputs \[examples, units\]: its entries are 'logits'"):
        evaluate(network, spec, several(network, spec, generator), x, y)


@pytest.mark.parametrize(("keep", "copies"), [("no", False), ("forever", True)])
def test_one_copy_runs_all_networks_unless_it_keeps_something_of_earlier_weights(keep, copies, data, generator, monkeypatch):
    x, y = data
    spec = spec_of(Keeping(), x)
    thetas = several(Keeping(), spec, generator, 30)
    made, copy_of = [], population.copy_of
    monkeypatch.setattr(population, "copy_of", lambda network: made.append(network) or copy_of(network))
    monkeypatch.setattr(predictions, "faster_together", lambda network, x: False)  # as for a convolution on a CPU
    close(evaluate(Keeping(keep), spec, thetas, x, y), evaluate(Keeping(), spec, thetas, x, y))
    assert len(made) == 2 + 2 + 30 * copies  # two of each call run alone, as a check
