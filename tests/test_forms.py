"""evaluate takes networks in the forms in which people have them, and gives each the scores that it has by itself."""

from collections import UserDict, namedtuple
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from geoflow import evaluate, pack, spec_of, unpack
from geoflow.evaluation.diversity import mistakes
from geoflow.evaluation.growing import scores_by_size
from geoflow.evaluation.metrics import disagreement, ensemble_scores, pooled_scores
from geoflow.evaluation.posterior import graded
from geoflow.evaluation.predictions import predicted
from geoflow.objectives import task_objective

NETS, EXAMPLES = 4, 21


class Net(nn.Module):
    """Two layers. `form` says what is returned, of the logits and the hidden layer."""

    def __init__(self, form=lambda out, hidden: out, units: int = 3):
        super().__init__()
        self.first, self.last, self.form = nn.Linear(4, 8), nn.Linear(8, units), form

    def forward(self, x):
        hidden = self.first(x).tanh()
        return self.form(self.last(hidden), hidden)


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor | None = None


Pair = namedtuple("Pair", ["hidden", "logits"])
FORMS = {
    "dict": lambda out, hidden: {"logits": out},
    "dict with None": lambda out, hidden: {"logits": out, "loss": None},
    "dict with a loss": lambda out, hidden: {"loss": out.sum(), "predictions": out},
    "dict with logits and more": lambda out, hidden: {"hidden": hidden, "logits": out},
    "dict with the hidden layers in a tuple": lambda out, hidden: {"scores": out, "states": (hidden, hidden)},
    "mapping": lambda out, hidden: UserDict({"scores": out}),
    "dataclass": lambda out, hidden: Result(out, hidden),
    "tuple of one": lambda out, hidden: (out,),
    "tuple with images": lambda out, hidden: (hidden[:, None, None], out),
    "list": lambda out, hidden: [out, None],
    "named tuple": lambda out, hidden: Pair(hidden, out),
    "the same twice": lambda out, hidden: (out, out),
}
CHOSEN = {
    "name": (lambda out, hidden: {"hidden": hidden, "scores": out}, "scores"),
    "name against the default": (lambda out, hidden: {"logits": hidden, "scores": out}, "scores"),
    "place": (lambda out, hidden: (hidden, out), 1),
    "field": (lambda out, hidden: Result(hidden, out), "hidden"),
    "name of a named tuple": (lambda out, hidden: Pair(out, hidden), "hidden"),
    "place in a named tuple": (lambda out, hidden: Pair(out, hidden), 0),
    "function": (lambda out, hidden: {"heads": [hidden, out]}, lambda result: result["heads"][1]),
}
ASKED = {
    "evaluate": lambda *given, **how: evaluate(*given, **how).nll,
    "ensemble_scores": lambda *given, **how: ensemble_scores(*given, **how).nll,
    "pooled_scores": lambda *given, **how: pooled_scores(*given, **how)["log"].nll,
    "disagreement": lambda *given, **how: torch.tensor(disagreement(*given[:4], **how)),
    "predicted": lambda *given, **how: predicted(*given[:4], **how),
    "scores_by_size": lambda *given, **how: scores_by_size(*given, **how)["linear"][2].nll,
    "graded": lambda *given, **how: graded(*given, **how)["log"][4].nll,
}


@pytest.fixture
def data(generator):
    return torch.randn(EXAMPLES, 4, generator=generator), torch.randint(3, (EXAMPLES,), generator=generator)


def several(spec, generator, nets=NETS):
    return torch.randn(nets, spec.weights, generator=generator)


def alike(found, expected, **tolerance):
    for field in fields(found):
        torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name), **tolerance)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_outputs_are_found_in_what_a_network_returns(form, data, generator):
    x, y = data
    thetas = several(spec := spec_of(Net(), x), generator)
    alike(evaluate(Net(form), spec, thetas, x, y), evaluate(Net(), spec, thetas, x, y))


@pytest.mark.parametrize(("form", "output"), CHOSEN.values(), ids=CHOSEN)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_output_names_the_entry(ask, form, output, data, generator):
    x, y = data
    thetas = several(spec := spec_of(Net(), x), generator)
    torch.testing.assert_close(ask(Net(form), spec, thetas, x, y, output=output), ask(Net(), spec, thetas, x, y))


@pytest.mark.parametrize(
    ("form", "output", "words"),
    [
        (lambda out, hidden: (out, hidden), None, r"gives a tuple with several tensors .*output=.*0 \(torch.float32 of shape \(8, 3\)\)"),
        (lambda out, hidden: {"a": out, "b": hidden}, None, "gives a dict with several tensors .*'a' .*'b'"),
        (lambda out, hidden: {"classes": out.argmax(1)}, None, r"gives a dict without a tensor of outputs .*'classes' \(torch.int64"),
        (lambda out, hidden: None, None, "gives a NoneType without a tensor of outputs"),
        (lambda out, hidden: {"a": out}, "logits", "returns no entry 'logits': its entries are 'a'"),
        (lambda out, hidden: (out, hidden), 2, "returns no entry 2: its entries are 0"),
        (lambda out, hidden: (out, None), 1, "gives a NoneType, not a tensor of outputs"),
        (lambda out, hidden: out[:, :, None], None, r"gives torch.float32 of shape \(8, 3, 1\), not a tensor of outputs"),
        (lambda out, hidden: out, lambda result: result.argmax(1), "gives torch.int64"),
    ],
)  # fmt: skip
def test_where_it_is_not_clear_that_is_said(form, output, words, data, generator):
    x, y = data
    spec = spec_of(Net(), x)
    with pytest.raises(ValueError, match=f"Net {words}"):
        evaluate(Net(form), spec, several(spec, generator), x, y, output=output)


# What networks read


class Tokens(nn.Module):
    """A bag of words with a mask. Both may come by name."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, tokens, mask=None, *, scale: float = 1.0):
        found = self.embedding(tokens)
        found = found if mask is None else found * mask[..., None]
        return self.head(scale * found.sum(1).tanh())


class OfDict(nn.Module):
    """One input, which is a dict."""

    def __init__(self):
        super().__init__()
        self.network = Tokens()

    def forward(self, batch):
        return self.network(batch["tokens"], batch["mask"])


def of_tokens(generator):
    spec = spec_of(Tokens(), torch.zeros(1, 6).long())
    tokens, mask = torch.randint(7, (EXAMPLES, 6), generator=generator), torch.rand(EXAMPLES, 6, generator=generator)
    return spec, several(spec, generator), tokens, mask, torch.randint(3, (EXAMPLES,), generator=generator)


READ = {
    "several": lambda tokens, mask: (Tokens(), (tokens, mask)),
    "by name": lambda tokens, mask: (Tokens(), {"mask": mask, "tokens": tokens}),
    "by name, with a setting": lambda tokens, mask: (Tokens(), {"tokens": tokens, "mask": mask, "scale": 1.0}),
    "mapping": lambda tokens, mask: (Tokens(), UserDict(tokens=tokens, mask=mask)),
    "mask in double precision": lambda tokens, mask: (Tokens(), (tokens, mask.double())),
    "tokens in 32 bits": lambda tokens, mask: (Tokens(), (tokens.int(), mask)),
    "dict": lambda tokens, mask: (OfDict(), {"mask": mask, "tokens": tokens, "index": torch.arange(EXAMPLES)}),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize("batch_size", [None, 8])
def test_inputs_come_as_the_forward_pass_reads_them(read, batch_size, generator):
    spec, thetas, tokens, mask, y = of_tokens(generator)
    network, x = read(tokens, mask)
    logits = []
    for theta in thetas:
        plain = Tokens()
        plain.load_state_dict(unpack(spec, theta))
        logits.append(plain(tokens, mask).detach())
    logits = torch.stack(logits)
    spec = spec if isinstance(network, Tokens) else spec_of_dict(spec)
    found = evaluate(network, spec, thetas, x, y, batch_size=batch_size)
    torch.testing.assert_close(found.accuracy, (logits.argmax(-1) == y).float().mean(1))
    torch.testing.assert_close(found.nll, torch.stack([nn.functional.cross_entropy(one, y) for one in logits]))
    alike(evaluate(network, spec, thetas[1:2], x, y), type(found)(*(getattr(found, f.name)[1:2] for f in fields(found))))


def spec_of_dict(spec):
    """The table of Tokens, with the names of OfDict."""
    return replace(spec, tensors=tuple(replace(tensor, name=f"network.{tensor.name}") for tensor in spec.tensors))


@pytest.mark.parametrize(("change", "words"), [
    (lambda tokens, mask: (tokens, mask[:5]), r"hold 21, 5 examples"),
    (lambda tokens, mask: {"tokens": tokens, "scale": 2.0, "mask": mask[1:]}, r"hold 21, 20 examples"),
    (lambda tokens, mask: {"words": tokens}, "Tokens does not take x.*: .*Pass the inputs as the forward pass reads them"),
    (lambda tokens, mask: tokens.float(), r"Tokens does not take x, whose first tensor holds torch.float32 of shape \(8, 6\)"),
    (lambda tokens, mask: tokens + 7, "Tokens does not take x.*: index out of range"),
    (lambda tokens, mask: tokens.to(torch.uint8), "Tokens does not take x.*uint8"),
    (lambda tokens, mask: {}, "x holds no tensor"),
    (lambda tokens, mask: (tokens[:0], mask[:0]), "x is empty"),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_named(change, words, generator):
    spec, thetas, tokens, mask, y = of_tokens(generator)
    with pytest.raises(ValueError, match=words):
        evaluate(Tokens(), spec, thetas, change(tokens, mask), y)


def test_an_answer_that_depends_on_other_examples_of_a_dict_is_refused(generator):
    class Company(Tokens):
        def forward(self, tokens, mask):
            return super().forward(tokens, mask - mask.mean(0))

    spec, thetas, tokens, mask, y = of_tokens(generator)
    with pytest.raises(ValueError, match="depends on the other examples of its batch"):
        evaluate(Company(), spec, thetas, {"tokens": tokens, "mask": mask}, y)
    evaluate(Company(), spec, thetas, {"tokens": tokens, "mask": mask}, y, batch_size=EXAMPLES)


# Precision


@pytest.mark.parametrize("kind", ["rows", "images"])
@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("inputs", [torch.float16, torch.float32, torch.float64])
def test_scores_are_in_the_precision_of_the_weights_or_single(kind, weights, inputs, generator):
    images = kind == "images"
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)) if images else Net()
    x = torch.randn(EXAMPLES, *((1, 3, 3) if images else (4,)), generator=generator).to(inputs)
    spec = spec_of(network, x[:1].float())
    y, thetas = torch.randint(3, (EXAMPLES,), generator=generator), several(spec, generator).to(weights)
    expected = evaluate(network, spec, thetas.double(), x.double(), y)
    exact = torch.promote_types(weights, torch.float32) if weights != inputs else weights
    found = evaluate(network, spec, thetas, x, y)
    tolerance = {torch.float16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-6}[exact]
    torch.testing.assert_close(found.nll.double(), expected.nll, atol=tolerance, rtol=tolerance)
    assert network.state_dict()[spec.tensors[0].name].dtype == torch.float32  # the caller's network is as it was


@pytest.mark.parametrize("labels", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ask", [ASKED[name] for name in ("evaluate", "ensemble_scores", "pooled_scores", "scores_by_size", "graded")])
def test_labels_may_be_any_whole_numbers(ask, labels, data, generator):
    x, y = data
    thetas = several(spec := spec_of(Net(), x), generator)
    torch.testing.assert_close(ask(Net(), spec, thetas, x, y.to(labels)), ask(Net(), spec, thetas, x, y))
    assert torch.equal(mistakes(Net(), spec, thetas, x, y.to(labels)), mistakes(Net(), spec, thetas, x, y))


def test_a_network_that_reads_bytes_gets_bytes(data, generator):
    class OfBytes(Net):
        def forward(self, x):
            return super().forward(x.float() / 255)

    x, y = torch.randint(256, (EXAMPLES, 4), generator=generator).to(torch.uint8), data[1]
    thetas = several(spec := spec_of(Net(), x.float()), generator)
    alike(evaluate(OfBytes(), spec, thetas, x, y), evaluate(Net(), spec, thetas, x / 255, y))


# One logit for two classes


@pytest.mark.parametrize("shape", [lambda out, hidden: out, lambda out, hidden: out.squeeze(-1), lambda out, hidden: {"logit": out}])
@pytest.mark.parametrize("labels", [torch.int64, torch.uint8, torch.bool])
def test_one_logit_tells_two_classes_apart(shape, labels, data, generator):
    x, y = data[0], (data[0].sum(1) > 0).long()
    network = Net(shape, 1)
    thetas = several(spec := spec_of(network, x), generator)
    logits = predicted_logits(thetas, x)
    found = evaluate(network, spec, thetas, x, y.to(labels))
    torch.testing.assert_close(found.accuracy, ((logits > 0) == y).float().mean(1))
    torch.testing.assert_close(found.nll, binary_cross_entropy_with_logits(logits, y.expand(NETS, -1).float(), reduction="none").mean(1))
    pooled = ensemble_scores(network, spec, thetas, x, y.to(labels))
    torch.testing.assert_close(pooled.accuracy, ((logits.sigmoid().mean(0) > 0.5) == y).float().mean())
    with pytest.raises(ValueError, match="y holds classes 0 to 2, but the network tells 2 apart"):
        evaluate(network, spec, thetas, x, data[1])


def predicted_logits(thetas, x):
    first, bias, last, end = thetas.split([32, 8, 8, 1], 1)
    hidden = (torch.einsum("nhi,ei->neh", first.unflatten(1, (8, 4)), x) + bias[:, None]).tanh()
    return torch.einsum("neh,nh->ne", hidden, last) + end


def test_one_logit_that_is_sure_is_not_infinitely_wrong(generator):
    network, x = nn.Linear(1, 1), torch.tensor([[-500.0], [500.0]])
    theta = pack(spec := spec_of(network, x), {"weight": torch.ones(1, 1), "bias": torch.zeros(1)})[None]
    assert evaluate(network, spec, theta, x, torch.tensor([0, 1])).nll == 0
    assert evaluate(network, spec, theta, x, torch.tensor([1, 0])).nll == 500


def test_guidance_by_one_logit_is_by_the_binary_cross_entropy(data, generator):
    x, y = data[0], (data[0].sum(1) > 0).long()
    network = nn.Linear(4, 1)
    weight = torch.randn(1, 4, generator=generator, requires_grad=True)
    loss = task_objective(network, x, y)({"weight": weight[None], "bias": torch.zeros(1, 1)})
    expected = binary_cross_entropy_with_logits((x @ weight.T).squeeze(1), y.float())
    torch.testing.assert_close(loss, expected[None])
    torch.testing.assert_close(*(torch.autograd.grad(one.sum(), weight, retain_graph=True)[0] for one in (loss, expected)))


def test_real_labels_are_refused_with_the_cure(data, generator):
    x, y = data
    thetas = several(spec := spec_of(Net(), x), generator)
    with pytest.raises(ValueError, match=r"Class indices are whole numbers: y\.long\(\)"):
        evaluate(Net(), spec, thetas, x, y.float())
    with pytest.raises(ValueError, match=r'outputs="gaussian"\.$'):
        evaluate(Net(), spec, thetas, x, y + 0.5)
