"""Work of ours on the threads that torch's operators run on.

Between two operators those threads wait in a loop, for some milliseconds, so that the next one starts at once. They
hold the cores against any other thread: a kernel that follows an operator on threads of its own would run at half
its speed. On the same threads it starts as fast as an operator does.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False


@cache
def _start() -> Any:
    """``GOMP_parallel`` of the OpenMP that torch is linked with, or None where there is none or it has no such name."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        start = ctypes.CDLL(str(library)).GOMP_parallel  # loaded already: torch's own, whatever else is in the process
    except (OSError, AttributeError):
        return None
    start.argtypes, start.restype = (_Function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return start


def has_team() -> bool:
    """Whether :func:`run_team` can be called: not without torch's OpenMP, nor in a forked process, where it hangs."""
    return not _forked and _start() is not None


def run_team(size: int, work: Callable[[int], None]) -> None:
    """Call ``work(worker)`` for workers 0 to size - 1 or for the first of them, each on a thread of torch's.

    Fewer workers are called inside a parallel region of torch's or where OpenMP gives fewer threads. ``work`` must
    not raise.
    """
    numbers = itertools.count()

    def call(_: Any) -> None:
        worker = next(numbers)
        if worker < size:
            work(worker)

    # always as many threads as torch's operators take: another number would end some and begin others
    _start()(_Function(call), None, max(size, torch.get_num_threads()), 0)


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
