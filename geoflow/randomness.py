"""Draw the random numbers of each phase of the work from a stream of its own."""

import hashlib

import torch


def randomness(seed: int, phase: str) -> torch.Generator:
    """A generator on the CPU whose numbers are independent of those of the other phases of the same seed.

    >>> import torch
    >>> a, b = (torch.rand(1, generator=randomness(0, phase)) for phase in ("noise", "split"))
    >>> bool(a != b)
    True
    """
    number = hashlib.sha256(f"{phase} {seed}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(number))
