"""Show how geoflow sees a network of your own: `python -m geoflow inspect my_networks.py:build --input 3,32,32`."""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoflow.describe import describe
from geoflow.spec import NetworkSpec
from geoflow.wiring import check_spec, spec_of
from geoflow.zoo.builders import answer, builder_of

EXAMPLES = 2  # in the batch that the network is traced with


def main(words: Sequence[str] | None = None) -> None:
    """Answer a command line. A mistake is said in a line on stderr, with exit status 1."""
    asked = _parser().parse_args(words)
    try:
        print(inspected(asked.network, asked.input, asked.data, asked.tokens))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


def inspected(reference: str, shapes: Sequence[Sequence[int]] | None, data: str | None = None, tokens: bool = False) -> str:
    """Return the table of the network that "file.py:function" builds, for inputs of these shapes or for those of an .npz file.

    Raises ValueError if the network cannot be traced, or takes no such input.
    """
    network, example = builder_of(reference)(), _example(shapes, data, tokens)
    answer(network, example, reference)  # torch.export would say it in a page
    spec = spec_of(network, example)
    read = " and ".join(str(list(one.shape[1:])) for one in (example if isinstance(example, tuple) else (example,)))
    return f"{reference}, for inputs {read}\n\n{describe(spec)}\n\n{_checked(network, spec, example)}"


def _checked(network: nn.Module, spec: NetworkSpec, example: Tensor | tuple) -> str:
    """Say by how much random symmetries change the output. Raises ValueError if they do."""
    change = check_spec(network, spec, example, torch.Generator().manual_seed(0))
    return f"Checked: a random element of all symmetries changes the output by {change:.1g} of its size, which is rounding."


def _example(shapes: Sequence[Sequence[int]] | None, data: str | None, tokens: bool) -> Tensor | tuple[Tensor, ...]:
    if (shapes is None) == (data is None):
        raise ValueError("Say what the network reads: --input 3,32,32 (the shape of one example), or --data my_data.npz.")
    if data is not None:
        if tokens:
            raise ValueError("--tokens goes with --input. A file tells by itself what its examples are.")
        from geoflow.zoo.own import read_task  # scikit-learn is slow to import

        return read_task(data).x_train[:EXAMPLES]
    examples = [torch.zeros(EXAMPLES, *shape, dtype=torch.long if tokens else torch.float32) for shape in shapes]
    return examples[0] if len(examples) == 1 else tuple(examples)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m geoflow", description="Show how geoflow sees a network of your own.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="print sites, groups, tensors, and what no symmetry moves, with the reason")
    inspect.add_argument("network", metavar="FILE.py:FUNCTION", help="a function without arguments that returns a torch.nn.Module")
    inspect.add_argument("--input", type=_shape, action="append", metavar="3,32,32", help="the shape of one example; again for more inputs")
    inspect.add_argument("--data", metavar="my_data.npz", help="a file with the array x_train, in place of --input")
    inspect.add_argument("--tokens", action="store_true", help="all inputs are whole numbers, in place of decimal ones")
    return parser


def _shape(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",") if size]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 3,32,32") from error
    if min(sizes, default=1) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a size below 1")
    return sizes


if __name__ == "__main__":
    main()
