"""Give each phase of a run its own stream of random numbers."""

import hashlib

import torch


def randomness(seed: int, phase: str) -> torch.Generator:
    """A generator on the CPU for one phase of a run, such as "noise". Phases of the same seed have independent numbers.

    >>> import torch
    >>> a, b = (torch.rand(1, generator=randomness(0, phase)) for phase in ("noise", "split"))
    >>> bool(a != b)
    True
    """
    number = hashlib.sha256(f"{phase} {seed}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(number))


def seed_global(seed: int, device: str | torch.device = "cpu") -> None:
    """Seed torch's global generators of the CPU and of one device. (`torch.manual_seed` would seed those of every GPU.)

    >>> import torch
    >>> seed_global(3)
    >>> torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(3)))
    True
    """
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
