"""Rows on threads, with results that do not depend on how many threads there are.

Rows are cut into blocks by their number alone. Threads take blocks in order; what a block adds to a shared
sum is committed in the order of the blocks, whichever thread finished first. Kernels are Numba functions that
release the GIL, so that threads which call Python suffice: torch's own where they can be had (``_openmp.py``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from fastdc.kernels._openmp import has_team, run_team

LARGEST_BLOCK = 16384  # rows; small enough to balance threads, large enough to hide a Python call
SHORTEST_BLOCK = 200_000.0  # nanoseconds; in shorter ones threads mostly wait for each other's Python


def block_rows(n_rows: int, multiple: int = 64, largest: int = LARGEST_BLOCK, row_ns: float | None = None) -> int:
    """Rows in a block: a multiple of ``multiple`` that depends on the arguments alone; 16 blocks or so.

    ``row_ns`` is about the nanoseconds that a row takes on one thread: of little work there are fewer blocks.
    """
    wanted = max(-(-n_rows // 16), 0 if row_ns is None else int(SHORTEST_BLOCK / row_ns))
    return max(multiple, min(largest, -(-wanted // multiple) * multiple))


def distances_ns(n_features: int, n_clusters: int) -> float:
    """About the nanoseconds that a row's distances to all centers take, with what follows from them."""
    return n_clusters * (n_features + 32) / 10


def blocks(n_rows: int, rows: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each block of ``rows`` rows."""
    for start in range(0, n_rows, rows):
        yield start, min(start + rows, n_rows)


def n_workers(n_blocks: int) -> int:
    """Threads worth starting: what torch is set to, at most one a block."""
    return max(1, min(torch.get_num_threads(), n_blocks))


def run_blocks(
    n_rows: int,
    rows: int,
    work: Callable[[int, int, int], None],
    commit: Callable[[int], None] | None = None,
) -> None:
    """Call ``work(worker, start, stop)`` for each block, then ``commit(worker)`` in the order of the blocks.

    ``worker`` numbers the thread, from 0 to ``n_workers(n_blocks) - 1``, so that each can own its scratch.
    ``commit`` runs on one thread at a time. An exception in either ends all workers and is raised here.
    """
    todo = list(blocks(n_rows, rows))
    workers = n_workers(len(todo))
    if workers == 1:
        for start, stop in todo:
            work(0, start, stop)
            if commit is not None:
                commit(0)
        return
    shift = _Shift(todo, work, commit)
    if has_team():
        run_team(workers, shift.run)
    else:
        _run_pool(workers, shift.run)
    shift.reraise()


def _run_pool(size: int, work: Callable[[int], None]) -> None:
    """Call ``work(worker)`` for each worker, on threads of Python's."""
    helpers = [_pool(size - 1).submit(work, worker) for worker in range(1, size)]
    try:
        work(0)
    finally:
        for helper in helpers:
            # One that has not begun has nothing left to do, and may never begin: inside a call of run_blocks
            # all threads of the pool can be waiting for helpers of their own.
            if not helper.cancel():
                helper.exception()  # waits; work itself does not raise


class _Shift:
    """The blocks of one call, and whose turn it is to commit."""

    def __init__(
        self,
        todo: list[tuple[int, int]],
        work: Callable[[int, int, int], None],
        commit: Callable[[int], None] | None,
    ) -> None:
        self.todo, self.work, self.commit = todo, work, commit
        self.taken = 0
        self.committed = 0
        self.error: BaseException | None = None
        self.turn = threading.Condition()

    def run(self, worker: int) -> None:
        try:
            while (block := self._take()) is not None:
                self.work(worker, *self.todo[block])
                if self.commit is not None:
                    self._commit_in_turn(worker, block)
        except BaseException as error:  # noqa: BLE001 - an interrupt too must stop the other workers
            with self.turn:
                self.error = self.error or error
                self.turn.notify_all()

    def _take(self) -> int | None:
        with self.turn:
            if self.error is not None or self.taken == len(self.todo):
                return None
            self.taken += 1
            return self.taken - 1

    def _commit_in_turn(self, worker: int, block: int) -> None:
        assert self.commit is not None
        with self.turn:
            self.turn.wait_for(lambda: self.committed == block or self.error is not None)
            if self.error is None:
                self.commit(worker)
                self.committed += 1
                self.turn.notify_all()

    def reraise(self) -> None:
        if self.error is not None:
            raise self.error


_executor: ThreadPoolExecutor | None = None
_executor_size = 0
_executor_lock = threading.Lock()


def _pool(size: int) -> ThreadPoolExecutor:
    """At least ``size`` helper threads, kept between calls."""
    global _executor, _executor_size
    with _executor_lock:
        if _executor is None or _executor_size < size:
            _executor = ThreadPoolExecutor(size, thread_name_prefix="fastdc")
            _executor_size = size
        return _executor


def _forget_pool() -> None:
    """After a fork the child has none of its parent's threads."""
    global _executor, _executor_size, _executor_lock
    _executor, _executor_size, _executor_lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
