"""Rows in chunks: the reading thread, its errors, interrupts, and sources of one's own."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from contextlib import closing

import numpy as np
import pytest

from fastdc.data import RowSource, as_row_source, iter_chunks, open_rows
from tests.row_source_cases import (
    make_points,
    write_parquet,
)


@pytest.fixture(autouse=True)
def _no_reader_is_left():
    yield
    assert "fastdc-reader" not in {thread.name for thread in threading.enumerate()}


class Failing(RowSource):
    """Rows of ones until one that cannot be read."""

    shape, dtype = (100, 2), np.dtype(np.float32)

    def __init__(self, bad_row: int, error: BaseException) -> None:
        self.bad_row, self.error = bad_row, error
        self.read_to = 0

    def read(self, start, stop, out):
        if stop > self.bad_row:
            raise self.error
        self.read_to = stop
        out[:] = 1


def test_T52_an_error_of_the_reading_thread_reaches_the_caller():
    seen = []

    def read_on():
        for start, _ in iter_chunks(Failing(30, OSError("the disk is gone")), 10):
            seen.append(start)

    with pytest.raises(OSError, match="the disk is gone") as caught:
        read_on()
    assert seen == [0, 10, 20]
    assert "raise self.error" in "".join(traceback.format_tb(caught.tb))


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_an_abandoned_iterator_leaves_no_thread(taken):
    source = Failing(101, ValueError())
    with closing(iter_chunks(source, 2)) as chunks:
        for _ in range(taken):
            next(chunks)
    assert source.read_to <= 2 * (taken + 3)


def test_T49_interrupt_while_reading():
    with pytest.raises(KeyboardInterrupt):
        list(iter_chunks(Failing(10, KeyboardInterrupt()), 10))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_T49_ctrl_c_while_waiting_for_rows(interruptible):
    class Slow(Failing):
        def read(self, start, stop, out):
            super().read(start, stop, out)
            if start == 20:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)

    source = Slow(101, ValueError())
    with pytest.raises(KeyboardInterrupt):
        list(iter_chunks(source, 10))
    assert source.read_to < 100


def test_T49_interrupt_at_work_leaves_no_thread():
    source = Failing(101, ValueError())

    def work():
        with closing(iter_chunks(source, 10)) as chunks:
            next(chunks)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()


def test_T46_two_threads_read_two_sources(tmp_path):
    x = make_points(np.float64, n=2000)
    path = write_parquet(tmp_path, x)
    results = {}

    def read_all(name):
        results[name] = np.concatenate([chunk.x.numpy().copy() for chunk in iter_chunks(open_rows(path), 33)])

    threads = [threading.Thread(target=read_all, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], x)


def test_rows_of_a_chunk():
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        iter_chunks(as_row_source(make_points()), 0)


def test_a_source_of_ones_own_may_be_empty():
    class Empty(RowSource):
        shape, dtype = (0, 3), np.dtype(np.float32)

        def read(self, start, stop, out):
            raise AssertionError

    assert list(iter_chunks(Empty(), 5)) == []
    with pytest.raises(TypeError, match="abstract"):
        RowSource()
