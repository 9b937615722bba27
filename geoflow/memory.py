"""Find out how much memory is free, so that what does not fit is refused before it is made."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# version of Linux control groups: their folder, and the files of limit and use, and the entry of memory.stat that the kernel gives back
CONTROL = {
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("", "memory.max", "memory.current", "inactive_file"),
}


def free_bytes(device: str | torch.device = "cpu", proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the bytes that this process can still take on a device, or None if the system does not say.

    On a CPU that is what the machine has available, within the limit of the process and the limits of its control groups. Without Linux it
    is all memory of the machine. Swap does not count. `proc` and `cgroups` are folders of Linux.

    >>> free_bytes("meta") is None
    True
    """
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for its next tensors
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    return min([*_of_machine(proc), *_of_process(proc), *_of_groups(proc, cgroups)], default=None)


def check_free(needed: int, what: str, cure: str, device: str | torch.device = "cpu") -> None:
    """Raise ValueError if a device has fewer free bytes than `needed`. The message says `what` needs them, and names the cure."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(f"{what} takes {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free on {device}. {cure}")


def _of_machine(proc: Path) -> Iterator[int]:
    said = _entries(proc / "meminfo")
    if "MemAvailable:" in said:
        yield 1024 * said["MemAvailable:"]
    elif hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_process(proc: Path) -> Iterator[int]:
    """The address space that `ulimit -v` leaves."""
    for line in _lines(proc / "self/limits"):
        soft = line.removeprefix("Max address space").split()[0] if line.startswith("Max address space") else ""
        if soft.isdigit():
            yield int(soft) - 1024 * _entries(proc / "self/status")["VmSize:"]


def _of_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each group of the process leaves, from its own up to the root. Inside a container, the root is often all that it sees."""
    for line in _lines(proc / "self/cgroup"):
        _, name, path = line.split(":", 2)
        if name not in CONTROL:
            continue
        folder, limit, use, given_back = CONTROL[name]
        own = cgroups / folder / path.strip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(cgroups / folder) and "".join(_lines(group / limit)).isdigit():
                used = int("".join(_lines(group / use)))
                yield int("".join(_lines(group / limit))) - used + _entries(group / "memory.stat").get(given_back, 0)


def _entries(path: Path) -> dict[str, int]:
    """The lines of a file that begin with a name and a whole number."""
    rows = [line.split() for line in _lines(path)]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
