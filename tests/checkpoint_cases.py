"""Fits of k-means that are killed; run by ``test_checkpoint.py`` in a process of its own, which forks for each.

Usage: python -m tests.checkpoint_cases FOLDER. Prints one line a case.
"""

from __future__ import annotations

import builtins
import os
import pathlib
import secrets
import signal
import sys

import numpy as np
import torch

from fastdc import KMeans
from fastdc.cluster import checkpoints
from fastdc.data import as_row_source
from tests.test_kmeans_estimator import make_blobs

OPERATIONS = [(os, "open"), (os, "fsync"), (os, "replace"), (os, "close"), (secrets, "token_hex"), (builtins, "open")]


def fit(folder, resume=False, callbacks=None, kind=np.asarray):
    x = make_blobs(600, 10, 4, spread=0.5)
    model = KMeans(10, n_init=2, tol=0, random_state=0, callbacks=callbacks)
    return model.fit(kind(x), checkpoint=folder, resume=resume)


def in_child(work):
    """Whether ``work()`` ran to its end in a forked process; it may be killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent must not go on twice
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status), "the child raised"
    return status == 0


def kill_at(number, after):
    """Kill this process at the so-many-th file operation from now on, before it or after it."""
    done = 0

    def counted(original):
        def operation(*arguments, **options):
            nonlocal done
            done += 1
            if done == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return operation

    for module, name in OPERATIONS:
        setattr(module, name, counted(getattr(module, name)))


def same(a, b):
    return (
        np.array_equal(a.labels_, b.labels_)
        and np.array_equal(a.cluster_centers_, b.cluster_centers_)
        and a.history_ == b.history_
        and a.inertia_ == b.inertia_
    )


def every_write(folder, expected):
    """Killed at every file operation of the first three checkpoints; the next process loads what is there."""
    number, found = 0, set()
    while True:
        number += 1
        for after in (False, True):
            path = folder / f"{number}-{after}"

            def run(path=path, after=after, number=number):
                kill_at(number, after)
                fit(path, callbacks=[lambda record: record["iteration"] == 4 and os._exit(0)])

            if in_child(run):
                assert number > 15
                return len(found)
            file = path / checkpoints.FILE
            found.add((file.exists(), len(list(path.glob(".*.part")))))
            assert same(fit(path, resume=True), expected), (number, after)
            assert not list(path.glob(".*.part"))


def during_a_run(folder, expected, kind):
    """Killed in the iteration of each run."""
    for run in (1, 2):
        for iteration in (1, 2, 5):

            def killed(record, run=run, iteration=iteration):
                if (record["run"], record["iteration"]) == (run, iteration):
                    os.kill(os.getpid(), signal.SIGKILL)

            path = folder / f"{kind.__name__}-{run}-{iteration}"
            assert not in_child(lambda path=path, killed=killed: fit(path, callbacks=[killed], kind=kind))
            assert same(fit(path, resume=True, kind=kind), expected), (run, iteration)


def main(folder):
    torch.set_num_threads(1)
    checkpoints.SECONDS = 0.0
    folder = pathlib.Path(folder)
    expected = fit(None)
    assert len(expected.history_) > 6
    print("states of the folder:", every_write(folder, expected))
    for kind in (np.asarray, as_row_source):
        during_a_run(folder, fit(None, kind=kind), kind)
    print("all resumed")


if __name__ == "__main__":
    main(sys.argv[1])
