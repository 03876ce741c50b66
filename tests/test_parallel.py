"""run_blocks: every block once, commits in order, the same result for any threads, errors that stop it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import numpy as np
import pytest
import torch

from fastdc.kernels import _openmp, _parallel
from fastdc.kernels._parallel import SHORTEST_BLOCK, block_rows, blocks, n_workers, run_blocks


@pytest.fixture(params=["threads of torch", "threads of python"], autouse=True)
def whose_threads(request, monkeypatch):
    if request.param == "threads of python":
        monkeypatch.setattr(_parallel, "has_team", lambda: False)
    elif not _openmp.has_team():
        pytest.skip("torch has no OpenMP that can be called here")


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 1000, 10**6, 10**9])
@pytest.mark.parametrize("multiple", [1, 64])
def test_block_rows_is_a_bounded_multiple(n_rows, multiple):
    rows = block_rows(n_rows, multiple)
    assert rows % multiple == 0
    assert multiple <= rows <= max(multiple, _parallel.LARGEST_BLOCK)


def test_block_rows_gives_sixteen_blocks_to_share():
    assert len(list(blocks(100_000, block_rows(100_000)))) >= 16


def test_block_rows_ignores_the_threads(n_threads):
    assert [block_rows(n) for n in (10, 10_000, 10**7)] == [64, 640, _parallel.LARGEST_BLOCK]


@pytest.mark.parametrize("row_ns", [0.01, 1.0, 42.0, 1e9])
def test_blocks_of_little_work_are_few(row_ns):
    rows = block_rows(10_000, row_ns=row_ns)
    assert rows == _parallel.LARGEST_BLOCK or rows * row_ns >= SHORTEST_BLOCK - 64 * row_ns
    assert rows >= block_rows(10_000)


@pytest.mark.parametrize(("n_rows", "rows"), [(0, 4), (1, 4), (4, 4), (9, 4)])
def test_blocks_cover_every_row_once(n_rows, rows):
    assert [i for start, stop in blocks(n_rows, rows) for i in range(start, stop)] == list(range(n_rows))


def test_every_block_runs_once_and_commits_come_in_order(n_threads):
    held, committed, started = {}, [], []

    def work(worker, start, stop):
        started.append((start, stop))
        time.sleep(0.002 if start % 20 == 0 else 0.0)  # later blocks overtake earlier ones
        held[worker] = start

    run_blocks(203, 10, work, commit=lambda worker: committed.append(held[worker]))
    assert sorted(started) == list(blocks(203, 10))
    assert committed == list(range(0, 203, 10))


def test_float_sums_have_the_same_bits_for_any_thread_count(set_threads):
    x = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)

    def total():
        partial, result = {}, np.zeros(1, np.float32)

        def work(worker, start, stop):
            partial[worker] = x[start:stop].sum()

        def commit(worker):
            result[0] += partial[worker]

        run_blocks(len(x), 64, work, commit)
        return result.tobytes()

    bits = set()
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        bits.add(total())
    assert len(bits) == 1


def test_workers_are_numbered_below_n_workers(n_threads):
    seen = set()
    run_blocks(400, 10, lambda worker, start, stop: seen.add(worker))
    assert seen <= set(range(n_workers(40)))
    assert n_workers(40) == n_threads
    assert n_workers(1) == 1
    assert n_workers(0) == 1


def test_no_two_threads_share_a_worker_number(n_threads):
    busy, clashes = set(), []

    def work(worker, start, stop):
        if worker in busy:
            clashes.append(worker)
        busy.add(worker)
        time.sleep(0.001)
        busy.discard(worker)

    run_blocks(300, 10, work)
    assert clashes == []


def test_no_rows_means_no_calls(n_threads):
    run_blocks(0, 10, pytest.fail, commit=pytest.fail)


@pytest.mark.parametrize("fails_in", ["work", "commit"])
def test_an_error_ends_all_workers_and_is_raised(n_threads, fails_in):
    started, committed = [], []

    def work(worker, start, stop):
        started.append(start)
        time.sleep(0.001)
        if fails_in == "work" and start == 50:
            raise KeyError("block 5")

    def commit(worker):
        if fails_in == "commit" and len(committed) == 5:
            raise KeyError("block 5")
        committed.append(worker)

    with pytest.raises(KeyError, match="block 5"):
        run_blocks(10_000, 10, work, commit)
    assert len(started) < 100  # of 1000 blocks
    assert len(committed) == 5 if fails_in == "commit" else len(committed) <= 5


def test_an_interrupt_is_raised_after_the_workers_stopped(n_threads):
    running = []

    def work(worker, start, stop):
        running.append(1)
        try:
            if start == 30:
                raise KeyboardInterrupt
            time.sleep(0.002)
        finally:
            running.pop()

    with pytest.raises(KeyboardInterrupt):
        run_blocks(500, 10, work)
    assert running == []


def test_the_next_call_works_after_an_error(n_threads):
    with pytest.raises(ZeroDivisionError):
        run_blocks(100, 10, lambda worker, start, stop: 1 // 0)
    seen = []
    run_blocks(100, 10, lambda worker, start, stop: seen.append(start))
    assert sorted(seen) == list(range(0, 100, 10))


def test_calls_from_several_threads_do_not_disturb_each_other(set_threads):
    set_threads(3)
    results = [[] for _ in range(4)]

    def call(mine):
        held = {}
        run_blocks(
            1000,
            10,
            lambda worker, start, stop: held.__setitem__(worker, start),
            commit=lambda worker: mine.append(held[worker]),
        )

    threads = [threading.Thread(target=call, args=(mine,)) for mine in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == [list(range(0, 1000, 10))] * 4


def test_a_call_inside_a_call_ends(n_threads):
    seen = []

    def inner(start, a):
        time.sleep(0.001)  # long enough for every thread of the pool to be inside a call of its own
        seen.append((start, a))

    def outer(worker, start, stop):
        time.sleep(0.01)
        run_blocks(40, 10, lambda w, a, b: inner(start, a))

    run_blocks(40, 10, outer)
    assert sorted(seen) == [(i, j) for i in range(0, 40, 10) for j in range(0, 40, 10)]


def test_workers_run_on_the_threads_of_torch(set_threads, whose_threads):
    if not _openmp.has_team():
        pytest.skip("torch has no OpenMP that can be called here")
    set_threads(3)

    def threads():
        seen = set()
        met = threading.Barrier(3, timeout=60)
        _openmp.run_team(3, lambda worker: (met.wait(), seen.add(threading.get_native_id())))
        return seen

    first = threads()
    assert len(first) == 3
    assert threading.get_native_id() in first
    torch.rand(1 << 20).exp_()
    assert threads() == first  # neither ended nor begun anew


def _sum_in_child(queue):
    parts = []
    run_blocks(1000, 10, lambda worker, start, stop: parts.append(sum(range(start, stop))))
    queue.put(sum(parts))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_T45_fork_after_parallel_work(set_threads):
    set_threads(3)
    run_blocks(1000, 10, lambda worker, start, stop: time.sleep(0))  # the parent now has helper threads
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == sum(range(1000))
    child.join(timeout=60)
    assert child.exitcode == 0
