"""Build networks by a function in a file of your own."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from inspect import isclass, isroutine
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from geoflow.examples import Examples, arguments, leading
from geoflow.files import file_digest


@dataclass(frozen=True)
class Builder:
    """A function without arguments that returns a network: `name` in the file `path`. Call it to build one, with new initial weights.

    `digest` is the sha256 of the file.
    """

    path: Path
    name: str
    digest: str
    function: Callable[[], nn.Module] = field(compare=False)

    def __call__(self) -> nn.Module:
        """Build a network. Raises ValueError if the function fails, or returns something else."""
        try:
            network = self.function()
        except Exception as error:
            cure = f" Write one without arguments, such as def build(): return {self.name}(8)." if isinstance(error, TypeError) else ""
            raise ValueError(f"{self} fails when it is called without arguments ({_said(error)}).{cure}") from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"{self} returns a {type(network).__name__}, not a torch.nn.Module. Does it end with return?")
        return network

    def __str__(self) -> str:
        return f"{self.path.name}:{self.name}"


def builder_of(reference: str) -> Builder:
    """Return the builder that `reference`, such as "my_networks.py:build", names. A class that takes no arguments is a builder too.

    The file runs once, as an import does, and again if it has changed.

    Raises FileNotFoundError if there is no file, and ValueError if the file cannot be imported or has no such function. The message lists
    the functions that it has.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lines = "from torch import nn", "def build():", "    return nn.Linear(4, 3)"
    ...     _ = Path(folder, "my_networks.py").write_text("\\n".join(lines))
    ...     builder_of(f"{folder}/my_networks.py:build")()
    Linear(in_features=4, out_features=3, bias=True)
    """
    file, colon, name = reference.rpartition(":")
    path = Path(file if colon else reference).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. A network of your own is named as my_networks.py:build, by file and function.")
    digest = file_digest(path)
    module = _module(path.absolute(), digest)
    found = vars(module).get(name)
    if isinstance(found, nn.Module):
        raise ValueError(f"{name!r} in {path} is one network, and each needs its own. Write a function: def build(): return ...")
    if not callable(found):
        listed = ", ".join(_functions(module)) or "none"
        asked = f"{path} has no function {name!r}" if colon else f"{reference} names no function"
        raise ValueError(f"{asked}. Its functions: {listed}. Name one, such as {path.name}:build.")
    return Builder(path, name, digest, found)


@torch.no_grad()
def answer(network: nn.Module, x: Examples, who: str) -> Any:
    """Return what a network gives for the examples x in evaluation mode, which it is left in.

    Raises ValueError if it does not take them. The message names the network, as `who`, and the shape of an example.
    """
    given, named = arguments(network.eval(), x)
    try:
        return network(*given, **named)
    except Exception as error:
        shapes = " and ".join(str(list(part.shape[1:])) for part in (*given, *named.values()))
        raise ValueError(f"{who} does not take examples of shape {shapes} in {leading(x).dtype} ({_said(error)}).") from error


@cache
def _module(path: Path, digest: str) -> ModuleType:
    """Run a file as a module of its own. The digest makes a changed file another module."""
    module = ModuleType(f"{path.stem}_{digest[:8]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ValueError(f"{path} cannot be imported ({_said(error)}).{_cure(path, error)}") from error
    return module


def _functions(module: ModuleType) -> list[str]:
    """Return the names of the functions and networks that a file defines."""
    own = {name: one for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__ and name[0] != "_"}
    return [name for name, one in own.items() if isroutine(one) or (isclass(one) and issubclass(one, nn.Module))]


def _cure(path: Path, error: BaseException) -> str:
    beside = [path.parent / f"{error.name}.py", path.parent / str(error.name)] if isinstance(error, ModuleNotFoundError) else []
    return f" It lies beside it: set PYTHONPATH={path.parent}." if any(one.exists() for one in beside) else ""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
