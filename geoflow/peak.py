"""Measure the most memory that a process holds while something runs."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EVERY = 0.05  # seconds between two looks
STATM = Path("/proc/self/statm")


@dataclass
class Peak:
    """The most bytes that the process has held so far."""

    held: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Give a `Peak` that grows while the block runs. Pages of files that are only read do not count, because the system can drop them.

    Where the system does not tell this, as outside Linux, it is the most memory since the process began.

    >>> with peak_memory() as peak:
    ...     held = bytearray(10**6)
    >>> peak.held > 10**6
    True
    """
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak.held = max(peak.held, _held())
            done.wait(EVERY)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.held = max(peak.held, _held())


def _held() -> int:
    import resource  # only Unix has it

    if not STATM.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
    resident, shared = map(int, STATM.read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
