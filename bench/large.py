"""Millions of points beside the library that people would take otherwise: ``python -m bench.large --cases minibatch``.

minibatch
    ``MiniBatchKMeans`` over a file of 10,000,000 points beside scikit-learn's over the same, mapped, for as many passes:
    seconds, and the inertia of all points under the centers of either.
many_clusters
    Seconds of an iteration of ``KMeans`` with 20,000 clusters beside ``faiss.Kmeans`` on all points, from the same
    centers.
mixture
    ``GaussianMixture`` beside scikit-learn's from the same means: seconds, and the mean log-likelihood of either.
neighbors
    The graph of 15 neighbours of 1,000,000 points by ``save_knn`` and by pynndescent: seconds, and the share of true
    neighbours on a sample. The points lie near sheets of 16 dimensions, as embeddings do: in noise of 64 dimensions no
    point is nearer than the others by much.

Sides are run in turn, on equally many threads, each after a run on few points that compiles. Rows go to
``bench/results/large.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench._environment import ROOT, cpu_stamp
from bench._memory import peak_anonymous
from bench.scale import Points, write_npy
from fastdc import GaussianMixture, KMeans, MiniBatchKMeans
from fastdc.data import open_rows
from fastdc.neighbors import save_knn
from fastdc.neighbors.recall import drawn

NEIGHBORS = 15
LATENT = 16  # dimensions of the sheets that neighbours are sought on
Result = dict[str, float]


class Case(NamedTuple):
    """Its own size, and what measures it on points of a file."""

    n: int
    d: int
    k: int
    run: Callable[[Path, Any], dict[str, Result]]


def mini_batch(path: Path, options: Any) -> dict[str, Result]:
    from sklearn.cluster import MiniBatchKMeans as Peer

    given = {"max_iter": options.passes, "batch_size": 1024, "max_no_improvement": None, "random_state": 0, "n_init": 1}
    kinds = {
        "fastdc": lambda: MiniBatchKMeans(options.k, device="cpu", **given),
        "scikit-learn": lambda: Peer(options.k, **given),
    }
    rows: dict[str, Any] = {"fastdc": open_rows(path), "scikit-learn": np.load(path, mmap_mode="r")}
    found: dict[str, Result] = {}
    for side, make in kinds.items():
        make().fit(np.array(rows["scikit-learn"][: 20 * options.k]))  # compiles
        with peak_anonymous() as peak:
            model, seconds = _timed(lambda: make().fit(rows[side]))
        inertia = KMeans(options.k, init=model.cluster_centers_, max_iter=1, tol=0, device="cpu").fit(rows["fastdc"])
        first = inertia.history_[0]["inertia"]
        found[side] = {"seconds": seconds, "inertia": first, "peak_anonymous_bytes": peak[0]}
    return found


def many_clusters(path: Path, options: Any) -> dict[str, Result]:
    import faiss

    x = np.load(path)
    start = x[np.linspace(0, len(x) - 1, options.k).astype(np.int64)]
    found: dict[str, Result] = {}
    for side in ("fastdc", "faiss"):
        if side == "fastdc":
            ends: list[float] = []
            model = KMeans(options.k, init=start, max_iter=options.passes + 1, tol=0, device="cpu", algorithm="lloyd")
            model.callbacks = [lambda record, ends=ends: ends.append(time.perf_counter())]
            model.fit(x)
            found[side] = {"seconds": float(np.median(np.diff(ends))), "inertia": model.history_[-1]["inertia"]}
        else:
            faiss.omp_set_num_threads(torch.get_num_threads())
            peer = faiss.Kmeans(x.shape[1], options.k, niter=options.passes, max_points_per_centroid=len(x))
            _, seconds = _timed(lambda: peer.train(x, init_centroids=start))
            found[side] = {"seconds": seconds / options.passes, "inertia": float(peer.obj[-1])}
    return found


def mixture(path: Path, options: Any) -> dict[str, Result]:
    from sklearn.mixture import GaussianMixture as Peer

    x = np.load(path)
    means = x[np.linspace(0, len(x) - 1, options.k).astype(np.int64)]
    start = GaussianMixture(options.k, max_iter=1, means_init=means, device="cpu").fit(x)
    given = {"covariance_type": "diag", "tol": 0.0, "max_iter": options.passes, "means_init": start.means_}
    theirs = {"weights_init": start.weights_ / start.weights_.sum(), "precisions_init": 1 / start.covariances_}
    found: dict[str, Result] = {}
    for side in ("fastdc", "scikit-learn"):
        model: Any = GaussianMixture(options.k, device="cpu", **given)
        if side == "scikit-learn":
            model = Peer(options.k, **given, **theirs)
        _, seconds = _timed(lambda model=model: model.fit(x))
        found[side] = {"seconds": seconds, "log_likelihood": float(np.mean(model.score_samples(x), dtype=np.float64))}
    return found


def neighbors(path: Path, options: Any) -> dict[str, Result]:
    from pynndescent import NNDescent

    found: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for algorithm in options.algorithms:
            save_knn(open_rows(path).rows(0, 5000), Path(folder) / "few.npz", NEIGHBORS, algorithm=algorithm)
            graph = Path(folder) / f"{algorithm}.npz"
            saved, seconds = _timed(lambda: save_knn(path, graph, NEIGHBORS, algorithm=algorithm))  # noqa: B023
            found[f"fastdc, {algorithm}"] = {"seconds": seconds, "recall": saved.recall}
    x = np.load(path)
    threads = torch.get_num_threads()
    NNDescent(x[:5000], n_neighbors=NEIGHBORS + 1, n_jobs=threads, random_state=0)  # compiles
    index, seconds = _timed(lambda: NNDescent(x, n_neighbors=NEIGHBORS + 1, n_jobs=threads, random_state=0))
    found["pynndescent"] = {"seconds": seconds, "recall": _recall(x, index.neighbor_graph[0])}
    return found


def _recall(x: np.ndarray, indices: np.ndarray) -> float:
    """Share of the neighbours of some rows (their own numbers among them) that are as near as the true ones."""
    from fastdc.neighbors import knn

    rows = drawn(len(x), 0)
    true = (
        knn(torch.from_numpy(x), NEIGHBORS + 1, torch.from_numpy(x[rows]), algorithm="exact").distances[:, -1].numpy()
    )
    others = [[j for j in indices[row] if j != row][:NEIGHBORS] for row in rows]
    apart = np.linalg.norm(x[np.array(others)].astype(np.float64) - x[rows, None], axis=2)
    return float((apart <= true[:, None] * (1 + 1e-6)).mean())


def write_sheets(path: Path, points: Points) -> None:
    """Points near k sheets of few dimensions, instead."""
    random = np.random.default_rng(1)
    flat = Points(points.n, LATENT, points.k)
    tilt = random.standard_normal((LATENT, points.d), dtype=np.float32) / np.float32(LATENT**0.5)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (points.n, points.d))
    done = 0
    for piece in flat.pieces():
        noise = random.standard_normal((len(piece), points.d), dtype=np.float32)
        file[done : done + len(piece)] = np.tanh(piece @ tilt) + np.float32(0.05) * noise
        done += len(piece)


CASES = {
    "minibatch": Case(10_000_000, 64, 1000, mini_batch),
    "many_clusters": Case(2_000_000, 32, 20_000, many_clusters),
    "mixture": Case(1_000_000, 16, 32, mixture),
    "neighbors": Case(1_000_000, 64, 1000, neighbors),
}
PASSES = {"minibatch": 1, "many_clusters": 2, "mixture": 10, "neighbors": 1}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and append a row for each case."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of runs that are cut short
    for name in options.cases:
        case = CASES[name]
        shape = {"n": options.n or case.n, "k": options.k or case.k, "d": case.d}
        passes = options.passes or PASSES[name]
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "x.npy"
            write = write_sheets if name == "neighbors" else write_npy
            write(path, Points(shape["n"], shape["d"], shape["k"]))
            asked = argparse.Namespace(k=shape["k"], passes=passes, algorithms=options.algorithms)
            found = case.run(path, asked)
        row = {"kind": "large", "case": name, "shape": shape, "passes": passes, "found": found}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | cpu_stamp(options.threads)) + "\n")
        for side, result in found.items():
            print(name, shape, side, " ".join(f"{key}={value:.6g}" for key, value in result.items()), flush=True)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    value = call()
    return value, time.perf_counter() - begin


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.large", description="Millions of points.")
    add = parser.add_argument
    add("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    add("--n", type=int, help="points, in place of the case's own number")
    add("--k", type=int, help="clusters, in place of the case's own number")
    add("--passes", type=int, help="iterations, in place of the case's own number")
    add("--algorithms", nargs="+", default=["ivf", "hnsw"], help="of neighbors")
    add("--threads", type=int, default=2)
    add("--folder", type=Path, help="where files are written for the time; default: the system's")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "large.jsonl")
    return parser


if __name__ == "__main__":
    main()
