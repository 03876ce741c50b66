"""What several processes compute for ``test_distributed.py``, each from its own rows; started by spawn."""

from __future__ import annotations

import os
import shutil
import signal
import time
import warnings
from datetime import timedelta
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from fastdc import GaussianMixture, KMeans, MiniBatchKMeans, SphericalKMeans
from fastdc.cluster import sharded
from fastdc.data import RowSource, as_row_source, windows
from fastdc.distributed import Ranks, own_rows, save_rows
from tests.test_kmeans_estimator import make_blobs

N, K, D = 3001, 12, 9
BLOCK = 256
SHARES = {1: [(N,)], 2: [(1000, 2001), (0, N)], 3: [(700, 0, 2301), (2990, 4, 7), (1024, 1024, 953)]}
TIMEOUT, SHORT, LONG = 20, 2, 200  # seconds


def small_blocks(put=setattr):
    """Blocks of 256 rows, k-means++ on 512 rows, and windows of 8 runs of 32 rows."""
    put(sharded, "ROWS_CPU", BLOCK)
    put(sharded, "MOST_ROWS", 512)
    put(windows, "WINDOW_BLOCKS", 8)
    put(windows, "WINDOW_BYTES", 8 * 32 * D * 4)


def rows_of(rank, counts):
    first = sum(counts[:rank])
    return slice(first, first + counts[rank])


class Read(RowSource):
    """An array that is read by the reading thread."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def read(self, start, stop, out):
        out[:] = self.x[start:stop]


def problems():
    """(estimator, all rows, all weights, what a rank makes of its rows) by name."""
    x = make_blobs(N, K, D, spread=1.0)
    weight = np.random.default_rng(1).random(N)
    weight[::3] = 0
    holes = x.copy()
    holes[5:9, 2] = np.nan
    far = np.vstack([x[:4], np.full((8, D), 1e4, np.float32)])
    repeated = np.repeat(np.arange(10.0)[:, None], 301, axis=0)[:N].astype(np.float32)
    as_it_is = np.asarray
    mixture, mini_batch = partial(GaussianMixture, 6), partial(MiniBatchKMeans, K, batch_size=200, max_iter=2)
    round_mixture = partial(mixture, covariance_type="spherical")
    outlier = np.vstack([x[:1] * np.float32(1e15), x[1:]])
    return {
        "k-means++": (KMeans(K, random_state=0), x, None, as_it_is),
        "k-means||": (KMeans(K, init="k-means||", random_state=0), x, None, Read),
        "random": (KMeans(K, init="random", n_init=3, random_state=0), x, None, as_it_is),
        "weights": (KMeans(K, n_init=2, random_state=3), x, weight, as_it_is),
        "random by weights": (KMeans(K, init="random", n_init=2, random_state=0), x, weight, as_row_source),
        "float64, far away": (KMeans(K, random_state=0), x.astype(np.float64) + 1e6, None, as_it_is),
        "tensor": (KMeans(K, random_state=1, tol=0), x, None, torch.from_numpy),
        "empty clusters": (KMeans(K, init=far, tol=0), x, None, as_it_is),
        "empty clusters, weights": (KMeans(K, init=far, tol=0), x, weight, Read),
        "few distinct rows": (KMeans(K, random_state=0, tol=0), repeated, None, as_it_is),
        "unchecked NaN": (KMeans(K, init=x[:K], check_finite=False), holes, None, as_it_is),
        "cosine": (SphericalKMeans(K, random_state=0), x, None, as_it_is),
        "mixture": (mixture(random_state=0), x, None, Read),
        "full mixture": (mixture(covariance_type="full", means_init=x[:6], max_iter=9), x, None, as_it_is),
        "tied mixture": (mixture(covariance_type="tied", means_init=x[:6], max_iter=9), x, None, torch.from_numpy),
        "round mixture": (round_mixture(means_init=outlier[:6], max_iter=9), outlier, None, as_it_is),
        "mixture, float64": (
            mixture(means_init=x[:6] + 1e6, max_iter=9),
            x.astype(np.float64) + 1e6,
            None,
            as_row_source,
        ),
        "mixture, unchecked NaN": (
            mixture(means_init=x[:6] * 2, max_iter=9, check_finite=False),
            holes,
            None,
            as_it_is,
        ),
        "mini-batch": (mini_batch(n_init=2, random_state=0), x, None, Read),
        "mini-batch, weights": (mini_batch(random_state=0), x, weight, as_it_is),
        "mini-batch, lost centers": (mini_batch(init=far, random_state=0), x, weight, torch.from_numpy),
        "mini-batch, unchecked NaN": (mini_batch(random_state=0, check_finite=False), holes, None, as_it_is),
    }


def outcome(model):
    return {
        "labels": np.asarray(model.labels_),
        "centers": np.asarray(model.cluster_centers_),
        "inertia": model.inertia_,
        "history": model.history_ if hasattr(model, "history_") else [model.n_steps_, model.counts_.tolist()],
    }


def mixture_outcome(mixture, labels):
    parameters = (mixture.means_, mixture.covariances_, mixture.weights_)
    return {
        "labels": np.asarray(labels),
        "centers": np.concatenate([np.ravel(each) for each in parameters]),
        "inertia": mixture.lower_bound_,
        "history": mixture.history_,
    }


def solve(rank, counts, group):
    """What each estimator finds, by name."""
    own, found = rows_of(rank, counts), {}
    warnings.simplefilter("ignore")
    for name, (model, x, weight, kind) in problems().items():
        model.set_params(group=group, deterministic=group is None)
        part = x[own] if kind is not as_row_source or counts[rank] else np.asarray(x[own])
        if len(part) == 0 and kind is not torch.from_numpy:
            kind = np.asarray  # an empty row source cannot be opened
        if isinstance(model, GaussianMixture):
            found[name] = mixture_outcome(model, model.fit_predict(kind(part)))
            continue
        found[name] = outcome(model.fit(kind(part), sample_weight=None if weight is None else weight[own]))
    return found


class Failing(Read):
    """Fails when it has been read from for a while."""

    reads = 0

    def read(self, start, stop, out):
        self.reads += 1
        if self.reads == 8:
            raise OSError("the disk is gone")
        super().read(start, stop, out)


def faults(rank, group):
    """What each rank raises, by name, where rank 1 alone has a fault."""
    x = make_blobs(900, 4, 3)
    part = x[rank * 450 : (rank + 1) * 450]
    broken = part.copy()
    if rank == 1:
        broken[100, 1] = np.nan
    wrong = rank == 1

    def complain(record):
        if record["iteration"] == 2:
            raise KeyError("a callback")

    mixture = partial(GaussianMixture, 4, random_state=0, tol=0, group=group)
    mini_batch = partial(MiniBatchKMeans, 4, random_state=0, max_no_improvement=None, group=group)
    calls = {
        "NaN": lambda m: m.fit(broken),
        "NaN in a source": lambda m: m.fit(Read(broken)),
        "features": lambda m: m.fit(part[:, : 2 if wrong else 3]),
        "dtype": lambda m: m.fit(part.astype(np.float64) if wrong else part),
        "weights on one": lambda m: m.fit(part, sample_weight=np.ones(len(part)) if wrong else None),
        "negative weight": lambda m: m.fit(part, sample_weight=np.full(len(part), -1.0 if wrong else 1.0)),
        "all weights zero": lambda m: m.fit(part, sample_weight=np.zeros(len(part))),
        "parameters": lambda m: m.set_params(n_clusters=5 if wrong else 4).fit(part),
        "masked": lambda m: m.fit(np.ma.masked_array(part) if wrong else part),
        "reading": lambda m: m.fit((Failing if wrong else Read)(part)),
        "callback": lambda m: m.set_params(callbacks=[complain] if wrong else None).fit(part),
        "too many clusters": lambda m: m.set_params(n_clusters=901).fit(part),
        "no rows at all": lambda m: m.fit(part[:0]),
        "overflow": lambda m: m.fit(part * np.float32(3e37 if wrong else 1)),
        "mixture, NaN": lambda m: mixture().fit(broken),
        "mixture, reading": lambda m: mixture(means_init=x[:4]).fit((Failing if wrong else Read)(part)),
        "mixture, parameters": lambda m: mixture(covariance_type="tied" if wrong else "diag").fit(part),
        "mixture, overflow": lambda m: mixture(means_init=x[:4]).fit(part * np.float32(1e35 if wrong else 1)),
        "mini-batch, NaN": lambda m: mini_batch().fit(Read(broken)),
        "mini-batch, reading": lambda m: mini_batch(init=x[:4]).fit((Failing if wrong else Read)(part)),
        "mini-batch, parameters": lambda m: mini_batch(batch_size=60 if wrong else 50).fit(part),
    }
    found = {}
    for name, call in calls.items():
        model = KMeans(4, random_state=0, tol=0, group=group)
        before, begin = dict(vars(model)), time.monotonic()
        found[name] = error_of(partial(call, model)), time.monotonic() - begin
        assert not hasattr(model, "labels_"), (name, before)
    # the processes still understand each other
    model = KMeans(4, random_state=0, group=group).fit(part)
    found["afterwards"] = outcome(model)
    stopped = KMeans(4, random_state=0, tol=0, group=group, callbacks=[lambda record: wrong] if wrong else None)
    found["stopped by one"] = stopped.fit(part).n_iter_
    return found


def error_of(call):
    """What ``call()`` raises, as text."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - compared by the test
        return f"{type(error).__name__}: {error}"
    return ""


def interrupted(rank, counts, group, folder):
    """A fit that is interrupted on all ranks, and gone on with by them and from a copy by one process."""

    def end(record):
        if record["iteration"] == 3:
            raise KeyboardInterrupt

    model, x, weight, _ = problems()["weights"]
    own = rows_of(rank, counts)
    model.set_params(group=group, callbacks=[end])
    try:
        model.fit(x[own], sample_weight=weight[own], checkpoint=folder)
    except KeyboardInterrupt:
        dist.barrier(None if group == "world" else group)
    if rank == 0:
        shutil.copytree(folder, f"{folder}-copy")
    model.set_params(callbacks=None)
    found = {"resumed": outcome(model.fit(x[own], sample_weight=weight[own], checkpoint=folder, resume=True))}
    other = KMeans(K, n_init=2, random_state=5, group=group)
    found["other seed"] = error_of(lambda: other.fit(x[own], sample_weight=weight[own], checkpoint=folder, resume=True))
    found["not resumed"] = error_of(lambda: model.fit(x[own], sample_weight=weight[own], checkpoint=folder))
    return found


def end_at_once(rank, group, how):
    """The last rank of a group ends, or hangs, in the second iteration; what the others raise."""

    def end(record):
        if rank == Ranks(group).size - 1 and record["iteration"] == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2 * SHORT)

    model = KMeans(4, random_state=0, tol=0, group=group, callbacks=[end])
    begin = time.monotonic()
    return error_of(lambda: model.fit(make_blobs(900, 4, 3, spread=0.1))), time.monotonic() - begin


def work(rank, folder):
    torch.set_num_threads(2 if rank == 1 else 1)
    small_blocks()
    options = {"rank": rank, "world_size": 3, "timeout": timedelta(seconds=TIMEOUT)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", **options)
    waiting = dist.new_group(timeout=timedelta(seconds=LONG))
    pairs = dist.new_group([0, 1]), dist.new_group([0, 1], timeout=timedelta(seconds=SHORT))
    for size, group in ((2, pairs[0]), (3, "world")):
        if size == 3:
            dist.barrier(waiting)
        if rank >= size:
            assert "RuntimeError: this process does not belong to group" in error_of(lambda: Ranks(pairs[0]))
            continue
        found = {
            "solutions": [solve(rank, counts, group) for counts in SHARES[size]],
            "own": np.asarray(own_rows(as_row_source(np.arange(10.0)[:, None]), group)),
            "interrupted": interrupted(rank, SHARES[size][0], group, f"{folder}/run-{size}"),
        }
        save_rows(f"{folder}/{size}.npy", np.full((rank + 1, 2), rank), group)
        if size == 2:
            found["faults"] = faults(rank, group)
            found["hung"] = end_at_once(rank, pairs[1], "hung")
        torch.save(found, f"{folder}/{size}-{rank}.pt")
    torch.save(end_at_once(rank, "world", "killed"), f"{folder}/killed-{rank}.pt")
    os._exit(0)  # a group with a dead process cannot be ended in order
