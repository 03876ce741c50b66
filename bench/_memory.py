"""Free memory, and the peak that a call adds to it."""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench._harness import Call

_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: str) -> int:
    """Memory that can still be allocated: of the GPU, or of this machine within its control group's limit."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    available = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or its limit reads "max"
        return available
    return min(available, limit - used)


def resident_bytes(device: str) -> int:
    """What this process holds now; memory that was freed is handed back to the system first."""
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _kilobytes(_STATUS, "VmRSS")


def peak_during(function: Callable[[], Any], device: str) -> tuple[int, Any]:
    """(the most bytes this process held while ``function`` ran, its value)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        value = function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), value
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is held now
    except OSError:
        return _sampled_peak(function)
    value = function()
    return _kilobytes(_STATUS, "VmHWM"), value


def peaks_of(call: Call, modes: Iterable[str], base: int, device: str) -> dict[str, int]:
    """Bytes at the peak of each mode over ``base`` and over its results (outputs and gradients).

    ``base`` is what was held before the provider's first call on this input, so that scratch it keeps counts.
    """
    peaks = {}
    for mode in modes:
        resident_bytes(device)  # hands back what the mode before has freed
        peak, results = peak_during(call.forward if mode == "forward" else call.both, device)
        outputs = (results,) if mode == "forward" else results
        peaks[mode] = max(0, peak - base - sum(map(_bytes, outputs)))
        del results, outputs
    return peaks


def _bytes(results: Any) -> int:
    """Size of a tensor, an array, or a tuple of them; a plain number counts as nothing."""
    if isinstance(results, tuple | list):
        return sum(map(_bytes, results))
    return int(getattr(results, "nbytes", 0))


def _sampled_peak(function: Callable[[], Any]) -> tuple[int, Any]:
    """As :func:`peak_during` where the kernel's own mark cannot be reset: looks every millisecond."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _kilobytes(_STATUS, "VmRSS"))
            time.sleep(1e-3)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        value = function()
    finally:
        done.set()
        watcher.join()
    return max(peak, _kilobytes(_STATUS, "VmRSS")), value


@contextlib.contextmanager
def peak_anonymous(every: float = 2e-3) -> Iterator[list[int]]:
    """A list that holds, after the block, the most bytes of anonymous memory that the block added.

    Pages of a mapped file do not count: they can be dropped at any time. It looks once in ``every`` seconds, which
    takes time from a block that is busy in Python.
    """
    before = _kilobytes(_STATUS, "RssAnon")
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            peak[0] = max(peak[0], _kilobytes(_STATUS, "RssAnon") - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _kilobytes(path: Path, name: str) -> int:
    """A figure of a file under /proc, in bytes."""
    match = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{path} has no line {name}; peak memory is measured on Linux only")
    return 1024 * int(match[1])
