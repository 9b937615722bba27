"""Say what can be set: every option with its default, the named configurations, and the checks before a run begins.

The comment behind an option, or behind a named configuration, is what `run.py help` and the documentation say of it.
"""

# ruff: noqa: F841  Sacred reads the local variables of config functions; a docstring would be one of them

import shutil

from lab.allowed import BATCH, FURTHER
from lab.collect import cache_of
from lab.folder import ROOT, RunFolder, check_library, probe
from lab.options import check_keys, complete, plainly
from lab.program import Program
from sacred import SETTINGS
from sacred.utils import apply_backspaces_and_linefeeds

import geoflow

SETTINGS.CAPTURE_MODE = "sys"  # the default captures by file descriptors, which hides the terminal from the progress bars
ex = Program("geoflow", base_dir=ROOT, save_git_info=shutil.which("git") is not None)
ex.captured_out_filter = apply_backspaces_and_linefeeds
ex.observers.append(RunFolder(ROOT / "runs"))
ex.said_in = __file__


@ex.config
def config():
    # the network and its zoo; None: the task's default, or what the checkpoint was made for
    task = None  # the data, or several with commas between them for `condition=task`; default: breast_cancer, or the network's
    network = None  # the kind of network, or a function of your own that builds one; default: mlp
    hidden = None  # of an mlp: widths of the hidden layers, or a list of such lists for several architectures; default: [16, 16]
    activation = None  # of an mlp: the function behind each hidden layer; default: relu
    norm = None  # of an mlp: the layer behind each hidden linear layer; default: none
    width = None  # of the other networks: units, channels of the first stage, or of the stream; default: the network's
    depth = None  # of residual_mlp, resnet, vit and bert: blocks, of a resnet in each stage; default: the network's
    runs = None  # independent training runs
    snapshots = None  # networks kept from each run
    zoo = {
        "epochs": None,  # passes through the training data
        "batch": None,  # examples in a step
        "lr": None,  # learning rate
        "weight_decay": None,  # weight decay
        "every": None,  # epochs between two snapshots of a run
        "schedule": None,  # how the learning rate falls
        "origin": None,  # whether each run has a start of its own, or all begin with one network
        "common": None,  # with `zoo.origin=shared`: epochs that the common start is trained for
        "examples": None,  # examples that a run draws with replacement, in place of all the data
        "init": None,  # how initial weights are drawn: as the layers of torch do, or by He with biases of 0
        "seed": None,  # random numbers of the zoo; default: the run's seed
        "folder": None,  # networks that are trained already, one in a file, in place of training; default: none
        "entry": None,  # with `zoo.folder`: what to read from checkpoints that hold several networks; default: none
    }
    heldout = 0.125  # share of the runs that the flow does not see
    part = "test"  # what is scored; `validation` takes a quarter of the training data from zoo and flow, to choose settings on
    # the flow
    flow = "geometric"  # how the flow sees a zoo
    metric = None  # what measures the length of a row of weights on the inputs; default: inputs, and weights where they are sentences
    align = True  # whether the flow sees the units of every network in the order of the zoo's centre, or as they came
    velocity = "auto"  # the kind of field; `auto` takes `identified` for zoos from one common start, else `transformer`
    coupling = "independent"  # how noise is paired with networks
    time = "uniform"  # how the times of training are drawn
    prediction = "preconditioned"  # what the field predicts
    weighting = "balanced"  # weights of the loss, over the times
    latent = "none"  # the space of the flow: `pca` takes the principal components of the zoo, with `velocity=mlp`
    components = None  # of `latent=pca`: their number, or a share of the variance such as .99; default: all, one fewer than networks
    spread = 1.0  # standard deviation of the noise in flat coordinates, where those of the zoo have 1
    pool = None  # noise samples that are drawn once for the whole training; default: new ones in every step
    jitter = 0.0  # standard deviation by which paths are moved aside at random, where the zoo's coordinates have 1
    dropout = 0.0  # of `velocity=mlp`: share of its hidden units that are dropped in a training step
    optimizer = "muon"  # what trains the flow: `muon` for hidden matrices with AdamW for the rest, or `adamw` for all
    recompute = "nothing"  # what of a transformer is computed again for the gradient: `layers` takes less memory and more time
    condition = "none"  # what the flow is told of each network: its NLL on training data, or its task; `sample` can then ask for it
    condition_dropout = 0.1  # share of the networks in a training step that the flow is told nothing of
    sizes = {
        "layers": None,  # layers of the transformer
        "node": None,  # width of the state of a unit
        "edge": None,  # width of the state of an edge
        "edge_hidden": None,  # width of the hidden layer that updates an edge
        "heads": None,  # heads of the attention
        "components": None,  # principal axes of an input that the field sees
        "width": None,  # of `velocity=mlp`: width of the first hidden layer
    }
    iterations = 1000  # training steps of the flow
    batch = None  # networks in a training step; default: 32, or all that the flow sees where they are fewer
    lr = 4e-3  # learning rate of the flow
    weight_decay = 1e-3  # weight decay of the flow
    ema = 0.999  # decay of the moving average over the flow's weights
    every = 250  # iterations between checkpoints
    # new networks
    count = None  # new networks, and of `density` the networks of each kind; default: 256, of `density` 64
    solver = None  # method that integrates the flow
    steps = None  # steps of the solver
    start = None  # the time that sampling begins at, on paths from noise to the centre of the aligned zoo
    sharpness = None  # how far sampling goes beyond what the flow learned, away from a Gaussian zoo: better networks, less diverse
    recalibrate = None  # whether running statistics are measured anew, where there are any
    ask = None  # of a flow with `condition=nll`: the NLL on training data that new networks should have; default: spread as in the zoo
    condition_strength = None  # how much the condition counts: not at all at 0, as it was learned at 1, and more beyond
    guidance = 0.0  # strength of the pull towards a low loss on labelled examples
    guiding = {
        "at": "point",  # where its gradient is taken
        "unit": "velocity",  # what its gradient is measured by: `velocity` serves every task with one strength
        "schedule": "constant",  # how its strength changes with time
        "yields": False,  # whether the flow stands still in coordinates where it would raise the loss
        "repeats": 1,  # gradients in each step of the solver
        "examples": None,  # training examples whose labels are seen; default: all
        "batch": 1000,  # random examples for each gradient, or all where there are fewer
    }
    tuning = {
        "steps": 512,  # of `finetune`: training steps
        "level": 0.8,  # of `finetune`: the accuracy (of real targets R²) whose first step is reported
    }
    yardstick = 16  # for `transfer` and `widths`: networks that are trained to compare with, by the recipe of the zoo; 0 for none
    widths = [4, 6, 8, 10, 16, 32, 64, 128, 256]  # for `widths`: units of a layer
    depths = [1, 2, 3]  # for `widths`: numbers of hidden layers, or of blocks
    probes = None  # of `density`: random directions for the divergence, 0 for the exact one; default: 0 up to 64 dimensions, else 2
    checkpoint = None  # for the commands on a saved flow: a run folder or a `flow.safetensors`; default: none
    # where and with which random numbers
    device = "auto"  # where to compute
    seed = 0  # data split, zoo, flow and samples
    cache = ".cache"  # folder of zoos, and of trainings under way


DEFAULTS = config()


@ex.named_config  # everything once, in seconds; its networks are meant to be poor
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


@ex.named_config  # the default job, 30-16-16-2, with a narrower field and longer training
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


large = {"hidden": [10], "sizes": {"node": 112, "components": 96}, "iterations": 12000, "batch": 128, "lr": 3e-3, "sharpness": 1.0}
ex.add_named_config("mnist", {"task": "mnist", **large})  # 784-10-10, the networks of the thesis
ex.add_named_config("fashion", {"task": "fashion", **large, "start": 0.03})  # 784-10-10 on Fashion-MNIST


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


@ex.named_config  # DeepWeightFlow as published: components of 100 networks 784-32-32-10, an MLP, and 100 fixed samples of narrow noise
def deepweightflow():
    task = "mnist"
    hidden = [32, 32]
    runs = 114  # the flow sees 100
    zoo = {"epochs": 5, "batch": 64, "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant", "init": "he"}
    flow = "euclidean"
    metric = "weights"
    latent = "pca"
    components = 99
    velocity = "mlp"
    sizes = {"width": 512}
    prediction = "velocity"
    weighting = "uniform"
    spread = 0.0077  # its noise has .01 and its paths .001, in the units of components whose standard deviation is 1.3 here
    pool = 100
    jitter = 0.00077
    dropout = 0.1
    optimizer = "adamw"
    iterations = 30000
    batch = 8
    lr = 5e-4
    weight_decay = 1e-5
    ema = 0.0
    count = 100
    solver = "rk4"
    steps = 99


@ex.named_config  # two pre-norm blocks of width 16 on the digits
def residual_mlp():
    network = "residual_mlp"
    task = "digits"
    iterations = 3000
    sizes = {"layers": 8}  # as deep as the network: four see too little of it
    sharpness = 0.5


@ex.named_config  # two convolutions and a hidden layer on MNIST of 14 x 14 pixels
def cnn14():
    network = "cnn"
    task = "mnist14"
    runs = 1170
    iterations = 4000
    batch = 64
    count = 128


# from one common start the Gaussian of every coordinate is a good beginning, so few steps suffice
one_start = {"iterations": 400, "batch": 16, "solver": "midpoint", "steps": 50, "count": 64}
ex.add_named_config("resnet14", {"network": "resnet", "task": "mnist14", **one_start})  # a ResNet whose runs have one common start
ex.add_named_config("vit14", {"network": "vit", "task": "mnist14", **one_start})  # a ViT whose runs have one common start
ex.add_named_config("bert", {"network": "bert", "task": "sst2", **one_start})  # a BERT whose runs have one common start


@ex.named_config  # a ResNet (or network=vit) whose runs have nothing in common
def deep():
    network = "resnet"
    task = "digits"
    iterations = 1500
    count = 128


@ex.named_config  # guidance to data that are not the flow's own, such as `task=fashion`
def elsewhere():
    guidance = 30.0
    guiding = {"unit": "average", "schedule": "falling", "yields": True, "repeats": 8}
    steps = 64


@ex.option_hook
def known_keys(options):
    """Sacred's own answer to an unknown key suggests nothing."""
    check_keys(options.get("UPDATE") or (), DEFAULTS)


@ex.option_hook
def one_folder(options):
    """-F names the folder of the runs in place of runs/. Two observers would give a run two numbers."""
    ex.observers[:] = [RunFolder(options.get("--file_storage") or ROOT / "runs")]
    options["--file_storage"] = None


@ex.config_hook
def checked(config, command_name, logger):
    """Find what is wrong in the options before a run begins."""
    with plainly():
        completed = complete(config, command_name, DEFAULTS)
        if command_name == "main" and config["batch"] is None and (fits := completed["batch"]) < BATCH:
            print(f"batch={fits}, not {BATCH}, because the zoo gives the flow {fits} networks.")
        if command_name in ("main", *FURTHER):
            check_library(geoflow.__file__)
            probe(ex.observers[0].basedir, "Choose another folder for the runs: .venv/bin/python experiments/run.py -F /a/folder with ...")
            probe(cache_of(config), "Choose another: cache=/a/folder.")
    return completed
