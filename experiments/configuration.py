"""Say what can be set: every option with its default, the named configurations, and the checks before a run begins."""

# ruff: noqa: F841  Sacred reads the local variables of config functions; a docstring would be one of them

import shutil
from dataclasses import fields

from lab.collect import cache_of
from lab.folder import ROOT, RunFolder, check_library, probe
from lab.options import FURTHER, check_keys, complete, plainly
from sacred import SETTINGS, Experiment
from sacred.utils import apply_backspaces_and_linefeeds

import geoflow
from geoflow.velocity import VELOCITIES

SIZES = dict.fromkeys(part.name for velocity in VELOCITIES.values() for part in fields(velocity.Sizes))  # all that any velocity has

SETTINGS.CAPTURE_MODE = "sys"  # the default captures by file descriptors, which hides the terminal from the progress bars
ex = Experiment("geoflow", base_dir=ROOT, save_git_info=shutil.which("git") is not None)
ex.captured_out_filter = apply_backspaces_and_linefeeds
ex.observers.append(RunFolder(ROOT / "runs"))


@ex.config
def config():
    # the network and its zoo; None: the task's default, or what the checkpoint was made for
    task = None  # breast_cancer, digits, iris, wine, mnist, fashion, mnist14, fashion14 or sst2; default: breast_cancer, or the network's
    network = None  # mlp, residual_mlp, cnn, resnet, vit or bert; default: mlp
    hidden = None  # of an mlp: widths of the hidden layers; default: [16, 16]
    activation = None  # of an mlp: relu, tanh or gelu; default: relu
    norm = None  # of an mlp: none or batch, behind each hidden layer; default: none
    width = None  # of the other networks: units, channels of the first stage, or of the stream; default: the network's
    depth = None  # of residual_mlp, resnet, vit and bert: blocks, of a resnet in each stage; default: the network's
    runs = None  # independent training runs
    snapshots = None  # networks kept from each
    zoo = dict.fromkeys(  # their training
        ("epochs", "batch", "lr", "weight_decay", "every", "schedule", "origin", "common", "examples", "seed")
    )
    heldout = 0.125  # share of the runs that the flow does not see
    part = "test"  # what is scored: test, or validation, a quarter of the training data taken from zoo and flow, to choose settings on
    # the flow
    flow = "geometric"  # euclidean, normalized, geometric or geometric_polar
    metric = None  # inputs or weights: how long a row of weights on the inputs is; default: inputs, and weights where they are sentences
    align = True  # whether the flow sees the units of every network in the order of the zoo's centre, or as they came
    velocity = "auto"  # transformer, identified, mlp, or auto: identified for zoos from one common start, else transformer
    coupling = "independent"  # independent, ot or equivariant_ot
    time = "uniform"  # uniform or beta
    prediction = "preconditioned"  # preconditioned, velocity or endpoint
    weighting = "balanced"  # balanced or uniform: over t
    sizes = dict(SIZES)  # of the velocity: layers, node, edge, edge_hidden, heads, components; of mlp: width
    iterations = 1000
    batch = 32
    lr = 4e-3
    weight_decay = 1e-3
    ema = 0.999
    every = 250  # iterations between checkpoints
    # new networks
    count = 256
    solver = None  # euler, midpoint, heun or rk4; these four by default as the checkpoint's run has them, else euler, 100, 0, 0
    steps = None
    start = None  # the time that sampling begins at, so far from noise towards the centre of the aligned zoo
    sharpness = None  # how far to go beyond what the flow learned, away from a Gaussian zoo: better networks, less diverse
    recalibrate = None  # auto or never: measure running statistics anew, where the network has any; default: as the checkpoint, else auto
    guidance = 0.0  # strength of the pull towards a low training loss
    checkpoint = None  # for the further commands: a run folder or a flow.safetensors
    # where and with which random numbers
    device = "auto"  # auto, cpu or cuda
    seed = 0
    cache = ".cache"  # zoos, and trainings under way


DEFAULTS = config()


@ex.named_config  # everything once, in seconds
def smoke():
    task = "iris"
    hidden = [5]
    runs = 12
    snapshots = 2
    zoo = {"epochs": 12, "batch": 16, "lr": 1e-2, "weight_decay": 0.1, "every": 1, "schedule": "constant"}
    iterations = 20
    batch = 8
    count = 8
    steps = 5


@ex.named_config  # 30-16-16-2, the default job: a narrower field, trained for longer
def breast_cancer():
    task = "breast_cancer"
    hidden = [16, 16]
    sizes = {"node": 32, "edge": 8, "edge_hidden": 16}
    iterations = 2000
    batch = 64
    sharpness = 0.1


@ex.named_config  # 64-10-10, small and hard: the mean of aligned networks has twice the NLL of the zoo
def digits():
    task = "digits"
    hidden = [10]
    iterations = 3000
    batch = 64
    sharpness = 0.1


for images, own in (("mnist", {}), ("fashion", {"start": 0.03})):  # 784-10-10, the networks of the thesis
    large = {"sizes": {"node": 112, "components": 96}, "iterations": 12000, "batch": 128, "lr": 3e-3, "sharpness": 1.0}
    ex.add_named_config(images, {"task": images, "hidden": [10], **large, **own})


@ex.named_config  # 784-32-32-10, the networks of DeepWeightFlow
def mnist32():
    task = "mnist"
    hidden = [32, 32]
    runs = 1000
    sizes = {"node": 112, "components": 128}
    iterations = 8000
    batch = 64
    lr = 3e-3
    start = 0.1
    sharpness = 1.5


@ex.named_config  # two pre-norm blocks of width 16 on the digits
def residual_mlp():
    network = "residual_mlp"
    task = "digits"
    iterations = 3000
    sizes = {"layers": 8}  # as deep as the network: four see too little of it
    sharpness = 0.5


@ex.named_config  # two convolutions and a hidden layer
def cnn14():
    network = "cnn"
    task = "mnist14"
    runs = 1170
    iterations = 4000
    batch = 64
    count = 128


# from one common start: the Gaussian of every coordinate is a good beginning, so few steps suffice
for named, own in {"resnet14": ("resnet", "mnist14"), "vit14": ("vit", "mnist14"), "bert": ("bert", "sst2")}.items():
    one_start = {"iterations": 400, "batch": 16, "solver": "midpoint", "steps": 50, "count": 64}
    ex.add_named_config(named, dict(zip(("network", "task"), own, strict=True)) | one_start)


@ex.named_config  # a ResNet (or network=vit) whose runs have nothing in common
def deep():
    network = "resnet"
    task = "digits"
    iterations = 1500
    count = 128


@ex.option_hook
def known_keys(options):
    """Sacred's own answer to an unknown key suggests nothing."""
    check_keys(options.get("UPDATE") or (), DEFAULTS)


@ex.option_hook
def one_folder(options):
    """-F names the folder of the runs in place of runs/; two observers would dispute the run's number."""
    ex.observers[:] = [RunFolder(options.get("--file_storage") or ROOT / "runs")]
    options["--file_storage"] = None


@ex.config_hook
def checked(config, command_name, logger):
    """Everything that can be seen to be wrong is seen before a run begins."""
    with plainly():
        completed = complete(config, command_name, DEFAULTS)
        if command_name in ("main", *FURTHER):
            check_library(geoflow.__file__)
            probe(ex.observers[0].basedir, "Choose another folder for the runs: python experiments/run.py -F /a/folder with ...")
            probe(cache_of(config), "Choose another: cache=/a/folder.")
    return completed
