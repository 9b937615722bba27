"""List the studies of results/, with the question of each and the runs that answer it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Arguments = tuple[str, ...]  # what follows `run.py with`


@dataclass(frozen=True)
class Row:
    """Describe runs that differ only in their seed. If `flow` is set, the trained flow of the first seed is kept."""

    arguments: Arguments
    seeds: tuple[int, ...] = (0,)
    flow: bool = False

    def runs(self) -> Iterator[tuple[int, Arguments]]:
        """Yield each seed with all arguments of its run."""
        for seed in self.seeds:
            yield seed, (*self.arguments, f"seed={seed}")


@dataclass(frozen=True)
class Study:
    """Describe a study by its title, its question, and the rows of its table by their labels.

    `answer` names the file in templates/ that holds the answer. By default it has the name of the study. The answer is shown as soon as a
    run of every row in `about` is kept.
    """

    title: str
    question: str
    rows: Mapping[str, Row]
    about: tuple[str, ...] = ()
    answer: str = ""

    def runs(self) -> Iterator[tuple[str, int, Arguments]]:
        """Yield label, seed and arguments of all runs, in the order in which they are made."""
        for label, row in self.rows.items():
            for seed, arguments in row.runs():
                yield label, seed, arguments


TEMPLATES = Path(__file__).resolve().parent / "templates"
THREE = (0, 1, 2)
FLOWS = ("geometric", "euclidean", "normalized", "geometric_polar")
COUPLINGS = ("independent", "ot", "equivariant_ot")

ABLATION = ("digits", "iterations=1000", "sharpness=0.0")
ABLATIONS: dict[str, Arguments] = {
    "default settings": (),
    "metric=weights": ("metric=weights",),
    "prediction=velocity": ("prediction=velocity",),
    "prediction=endpoint": ("prediction=endpoint",),
    "weighting=uniform": ("weighting=uniform",),
    "time=beta": ("time=beta",),
    "coupling=ot": ("coupling=ot",),
    "coupling=equivariant_ot": ("coupling=equivariant_ot",),
    "velocity=identified": ("velocity=identified",),
    "velocity=mlp": ("velocity=mlp",),
    "align=False": ("align=False",),
    "align=False velocity=identified": ("align=False", "velocity=identified"),
    "align=False velocity=mlp": ("align=False", "velocity=mlp"),
    **{f"flow={flow}": (f"flow={flow}",) for flow in FLOWS[1:]},
    "sizes.node=32": ("sizes.node=32",),
    "sizes.node=128": ("sizes.node=128",),
    "sizes.components=16": ("sizes.components=16",),
    "sharpness=0.2": ("sharpness=0.2",),
    **{f"runs={runs} batch=24": (f"runs={runs}", "batch=24") for runs in (32, 128, 512)},
    "batch=24": ("batch=24",),
    "runs=4096": ("runs=4096",),
    "runs=32 batch=24 iterations=8000": ("runs=32", "batch=24", "iterations=8000"),
}
CORE = ("runs=1024", "iterations=6000", "batch=64")  # takes half an hour on one CPU core
SHORT = ("mnist", "runs=1024", "iterations=1200", "batch=64", "sharpness=0.0", "zoo.seed=0")  # takes seven minutes
SEEDED = {(flow, "independent") for flow in FLOWS[:3]} | {("geometric", "equivariant_ot")}  # these have three seeds each
ZOOS: dict[str, Arguments] = {
    **{f"{runs:,} runs": (f"runs={runs}",) for runs in (64, 256, 1024, 4096)},
    "50 runs, 16 snapshots of each": ("runs=50", "snapshots=16", "zoo.epochs=20", "zoo.schedule=constant", "zoo.lr=5e-3"),
}
# the usual recipe for zoos of MNIST, so that all rows but one compare on one zoo
PIXELS = ("zoo.epochs=10", "zoo.batch=128", "zoo.lr=0.02", "zoo.weight_decay=0.03", "zoo.schedule=cosine", "zoo.init=torch")
# changes to the published recipe for flows
DEEPWEIGHTFLOW: dict[str, Arguments] = {
    "DeepWeightFlow, as published": (),
    "DeepWeightFlow, align=False": ("align=False",),
    "DeepWeightFlow, width 64": ("sizes.width=64",),
    "DeepWeightFlow, width 64, align=False": ("sizes.width=64", "align=False"),
    "DeepWeightFlow, 1,500 steps": ("iterations=1500",),
    "DeepWeightFlow, 600 steps": ("iterations=600",),
    "DeepWeightFlow, 10,000 steps, noise as wide as the zoo": ("iterations=10000", "spread=1.0", "pool=None"),
}
# the flow sees 100 runs; a short training and sampling from time 0 leave few copies
FEW = ("mnist32", "zoo.seed=0", "runs=114", "velocity=identified", "iterations=500", "batch=32", "start=0", "sharpness=0", "count=64")


def _from_one_start(title: str, networks: str, configuration: str, flow: bool) -> Study:
    label = "400 steps of 16"
    return Study(
        f"{title} from one common start",
        f"Are {networks} generated well where all runs begin with one network?",
        {label: Row((configuration, "zoo.seed=0"), THREE, flow)},
        about=(label,),
        answer="one_start",
    )


STUDIES: dict[str, Study] = {
    "main_job": Study(
        "Digits and breast cancer",
        "Does a flow generate networks that are as good as trained ones, and new?",
        {
            "digits, geometric": Row(("digits",), THREE),
            **{f"breast cancer, {flow}": Row(("breast_cancer", f"flow={flow}"), THREE) for flow in FLOWS},
        },
        about=("digits, geometric", "breast cancer, geometric"),
    ),
    "splits": Study(
        "Breast cancer, 20 random splits",
        "Does the result on breast cancer depend on how the data are split?",
        {"geometric": Row(("breast_cancer",), tuple(range(20)))},
        about=("geometric",),
    ),
    "diabetes": Study(
        "Diabetes, a target that is a number",
        "Are networks generated well that predict a number, and how sure they are?",
        {"1,000 steps of 32": Row(("task=diabetes",), THREE)},
        about=("1,000 steps of 32",),
    ),
    "mnist": Study(
        "MNIST, 784-10-10",
        "Does it work at the size of images?",
        {
            "1,024 runs, 6,000 steps of 64": Row(("mnist", "zoo.seed=0", *CORE), THREE, flow=True),
            "the same, coupling=equivariant_ot": Row(("mnist", "zoo.seed=0", *CORE, "coupling=equivariant_ot")),
            "4,096 runs, 12,000 steps of 128": Row(("mnist", "zoo.seed=0"), THREE),
        },
        about=("1,024 runs, 6,000 steps of 64",),
    ),
    "sizes": Study(
        "MNIST, one flow for several sizes of networks",
        "Does one flow generate networks of several widths and depths, and of sizes that it never saw?",
        {
            f"{title}, 256 runs each": Row(("mnist", f"hidden={hidden}", "runs=256", "iterations=3000", "batch=64", "zoo.seed=0"))
            for title, hidden in (("widths 6, 10 and 16", "[[6],[10],[16]]"), ("one, two and three layers", "[[16],[8,8],[16,16,16]]"))
        },
        about=("widths 6, 10 and 16, 256 runs each", "one, two and three layers, 256 runs each"),
    ),
    "conditions": Study(
        "Asking a flow for a level of the loss, or for a data set",
        "Do generated networks have what was asked for?",
        {
            "digits, asked for an NLL": Row(("digits", "condition=nll", "runs=512", "snapshots=20", "zoo.every=2")),
            "MNIST and Fashion-MNIST, asked for one": Row(
                ("mnist", "task=mnist,fashion", "condition=task", "runs=512", "iterations=6000", "batch=64", "zoo.seed=0")
            ),
        },
        about=("digits, asked for an NLL", "MNIST and Fashion-MNIST, asked for one"),
    ),
    "fashion": Study(
        "Fashion-MNIST, 784-10-10",
        "How good are generated networks on a harder data set?",
        {
            "1,024 runs, 12,000 steps of 64": Row(("fashion", "zoo.seed=0", "runs=1024", "batch=64"), THREE),
            "100 runs, 12,000 steps of 64": Row(("fashion", "zoo.seed=0", "batch=64", "runs=100")),
            "4,096 runs, 12,000 steps of 128": Row(("fashion", "zoo.seed=0"), THREE),
        },
        about=("1,024 runs, 12,000 steps of 64", "100 runs, 12,000 steps of 64"),
    ),
    "mnist32": Study(
        "MNIST, 784-32-32-10",
        "Does it work for the larger networks of DeepWeightFlow?",
        {
            "1,000 runs, 3,000 steps of 64": Row(("mnist32", "zoo.seed=0", "iterations=3000"), THREE, flow=True),
            "100 runs, 3,000 steps of 64": Row(("mnist32", "zoo.seed=0", "iterations=3000", "runs=100")),
            "1,000 runs, 8,000 steps of 64": Row(("mnist32", "zoo.seed=0"), THREE),
        },
        about=("1,000 runs, 3,000 steps of 64", "100 runs, 3,000 steps of 64"),
    ),
    "deepweightflow": Study(
        "100 networks 784-32-32-10, DeepWeightFlow among others",
        "Can new and good networks be made from 100 trained ones? What does the published recipe of DeepWeightFlow make?",
        {label: Row(("deepweightflow", "zoo.seed=0", *PIXELS, *changes)) for label, changes in DEEPWEIGHTFLOW.items()}
        | {
            "DeepWeightFlow, with its own recipe for the zoo": Row(("deepweightflow", "zoo.seed=0")),
            "geoflow, polish=0": Row(FEW, THREE),
            "geoflow, polish=128": Row((*FEW, "polish=128"), THREE),
        },
        about=(
            "DeepWeightFlow, as published",
            "DeepWeightFlow, align=False",
            "DeepWeightFlow, 600 steps",
            "DeepWeightFlow, 10,000 steps, noise as wide as the zoo",
            "geoflow, polish=0",
            "geoflow, polish=128",
        ),
    ),
    "batch_norm": Study(
        "Digits, 64-10-10 with batch norm",
        "Are networks with batch norm generated well?",
        {"BatchNorm1d behind the hidden layer": Row(("digits", "norm=batch"), THREE)},
        about=("BatchNorm1d behind the hidden layer",),
    ),
    "residual_mlp": Study(
        "Digits, a residual MLP with layer norm",
        "Are networks with skip connections and layer norm generated well from independent starts?",
        {"3,000 steps of 32": Row(("residual_mlp",), THREE)},
        about=("3,000 steps of 32",),
    ),
    "cnn": Study(
        "MNIST at 14x14 pixels, a CNN",
        "Are convolutional networks generated well from independent starts?",
        {"4,000 steps of 64": Row(("cnn14", "zoo.seed=0"), THREE)},
        about=("4,000 steps of 64",),
    ),
    "resnet": _from_one_start("MNIST at 14x14 pixels, a ResNet", "ResNets with batch norm", "resnet14", flow=True),
    "vit": _from_one_start("MNIST at 14x14 pixels, a vision transformer", "vision transformers", "vit14", flow=False),
    "bert": _from_one_start("Sentiment of film reviews, a BERT", "language models", "bert", flow=False),
    "independent": Study(
        "Digits as images, a ResNet and a vision transformer from independent starts",
        "How far do flows come on deep networks whose runs have nothing in common?",
        {
            f"{title}, {runs} runs": Row(("deep", f"network={network}", f"runs={runs}", "zoo.seed=0"))
            for network, title in (("resnet", "ResNet"), ("vit", "ViT"))
            for runs in (576, 192, 64)
        }
        | {"ViT, 192 runs, a third of the steps": Row(("deep", "network=vit", "runs=192", "iterations=500", "zoo.seed=0"))},
        about=("ResNet, 576 runs", "ViT, 576 runs"),
    ),
    "zoos": Study(
        "How many networks a flow needs",
        "How many training runs does a flow need before it stops copying them?",
        {label: Row(("mnist", "iterations=3000", "batch=48", *zoo)) for label, zoo in ZOOS.items()},
        about=("64 runs", "1,024 runs", "50 runs, 16 snapshots of each"),
    ),
    "couplings": Study(
        "Flows and couplings",
        "Which flow and which coupling are best after a short training?",
        {
            f"{flow}, {coupling}": Row(
                (*SHORT, f"flow={flow}", f"coupling={coupling}"),
                THREE if (flow, coupling) in SEEDED else (0,),
            )
            for flow in FLOWS
            for coupling in COUPLINGS
        },
        about=tuple(f"{flow}, {coupling}" for flow in FLOWS[:3] for coupling in ("independent", "equivariant_ot")),
    ),
    "ablations": Study(
        "Which settings matter",
        "What does each default setting contribute? One change at a time to a short training on the digits.",
        {label: Row((*ABLATION, *change)) for label, change in ABLATIONS.items()},
        about=tuple(ABLATIONS),
    ),
}
