"""Place networks of a file on a ruler, or measure their running statistics anew, one by one in a second file."""

import json
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from tqdm import tqdm

from geoflow.appending import THETAS, appending, write_networks_of
from geoflow.canonical.matching import parts_of
from geoflow.evaluation.ruler import Ruler
from geoflow.fingerprints import digest_of
from geoflow.latent.large import single
from geoflow.spec import NetworkSpec
from geoflow.statistics import recalibrate
from geoflow.stored import Stored, stored


def place_large(ruler: Ruler, zoo: Stored, path: str | Path, progress: bool = True) -> Stored:
    """Write what `Ruler.place` gives for the networks of a file to another file, and return it, opened.

    `nearest_runs`, `neighbours_of`, `by_layer` and `spread` take the result. After an interruption the same call goes on. Raises ValueError
    for a file at `path` that belongs to another zoo or ruler.

    >>> import tempfile, torch, geoflow
    >>> from geoflow.evaluation.ruler import fit_ruler
    >>> from geoflow.files import write_tensors
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> thetas = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(f"{folder}/zoo.safetensors", {"thetas": thetas}, {})
    ...     zoo = stored(f"{folder}/zoo.safetensors")
    ...     placed = place_large(fit_ruler(spec, zoo), zoo, f"{folder}/placed.safetensors", progress=False)
    ...     print(placed[:].allclose(fit_ruler(spec, thetas).place(thetas), atol=1e-5))
    True
    """
    spec, dtype = ruler.spec, torch.promote_types(zoo.dtype, torch.float32)
    form = {"scale": ruler.scale, "reference": ruler.reference, "frame": ruler.frame.axes}
    with appending(path, THETAS, spec.weights, dtype, {"placed": json.dumps([zoo.mark(), digest_of(form)])}, expected=len(zoo)) as file:
        for part in tqdm(parts_of(spec, len(zoo)), desc="place networks", disable=not progress):
            if len(file) < min(part.stop, len(zoo)):
                file.add(ruler.place(zoo[max(part.start, len(file)) : part.stop].to(dtype)))
    return stored(path, THETAS)


def recalibrate_large(
    network: nn.Module, spec: NetworkSpec, zoo: Stored, x: Shaped[Tensor, "examples ..."], path: str | Path, progress: bool = True
) -> Stored:
    """Write what `recalibrate` gives for the networks of a file to another file, and return it, opened. They run on the device of `x`.

    After an interruption the same call goes on. Raises ValueError as `recalibrate` does, and for a file at `path` that belongs to another
    zoo or other inputs.
    """
    key = digest_of({"networks": zoo.mark(), "x": x})

    def made(number: int) -> Tensor:
        return recalibrate(network, spec, single(zoo[number])[None].to(x.device), x)[0]

    return write_networks_of(spec, Path(path), key, len(zoo), zoo.dtype, made, progress)
