"""Generate the weights of neural networks by flow matching."""

from importlib import import_module

from geoflow.canonical import canonicalize
from geoflow.coordinates import FLOWS
from geoflow.density import log_prob
from geoflow.evaluation.merging import align_to, barrier, merge
from geoflow.evaluation.metrics import evaluate
from geoflow.flow import Flow
from geoflow.graph import graph_of
from geoflow.guidance import guide, task_guidance
from geoflow.pyg import to_pyg
from geoflow.sampling import sample
from geoflow.statistics import recalibrate
from geoflow.symmetry import apply_symmetry, permute, random_symmetry, rescale
from geoflow.training import fit
from geoflow.vector import pack, unpack
from geoflow.wiring import check_spec, rule, spec_of
from geoflow.zoo.files import read_networks, write_networks

__all__ = [
    "FLOWS",
    "Flow",
    "align_to",
    "apply_symmetry",
    "barrier",
    "canonicalize",
    "check_spec",
    "evaluate",
    "fit",
    "graph_of",
    "guide",
    "log_prob",
    "merge",
    "own_task",
    "pack",
    "permute",
    "random_symmetry",
    "read_networks",
    "recalibrate",
    "rescale",
    "rule",
    "sample",
    "scoreboard",
    "spec_of",
    "task_guidance",
    "to_pyg",
    "unpack",
    "write_networks",
]

# matplotlib and scikit-learn, which only these need, are slow to import
LATER = {"own_task": "geoflow.zoo.own", "scoreboard": "geoflow.evaluation.scoreboard"}


def __getattr__(name: str) -> object:
    if name in LATER:
        return getattr(import_module(LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
