"""Millions of points beside the library that people would take otherwise: ``python -m bench.large --cases minibatch``.

minibatch
    ``MiniBatchKMeans`` over a file of 10,000,000 points beside scikit-learn's over the same, mapped, for as many
    passes: seconds, and the inertia of all points under the centers of either.
many_clusters
    Seconds of an iteration of ``KMeans`` with 20,000 clusters beside ``faiss.Kmeans`` on all points, from the same
    centers.
mixture
    ``GaussianMixture`` beside scikit-learn's from the same means: seconds, and the mean log-likelihood of either.
neighbors
    The graph of 15 neighbours of 1,000,000 points by ``save_knn`` and by pynndescent: seconds, and the share of true
    neighbours on a sample. The points lie near sheets of 16 dimensions, as embeddings do: in noise of 64 dimensions no
    point is nearer than the others by much.
in_files
    ``BisectingKMeans`` and ``DBSCAN`` over a file of 2,500,000 points beside the same points in memory: seconds, bytes
    of memory that the run added, and labels that differ.

Sides are run in turn, on equally many threads, each after a run on few points that compiles. Rows go to
``bench/results/large.jsonl``; ``--readme bench/README.md`` makes a table of the last ones, and runs nothing.
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
from sklearn.base import clone

from bench._environment import ROOT, cpu_stamp
from bench._memory import peak_anonymous
from bench.report import replace_between_markers
from bench.scale import Points, write_npy
from fastdc import DBSCAN, BisectingKMeans, GaussianMixture, KMeans, MiniBatchKMeans
from fastdc.data import open_rows
from fastdc.neighbors import knn, save_knn
from fastdc.neighbors.recall import drawn

BEGIN, END = "<!-- large:begin -->", "<!-- large:end -->"
RESULTS = ROOT / "bench" / "results" / "large.jsonl"
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
    source, mapped = open_rows(path), np.load(path, mmap_mode="r")
    few = np.array(mapped[: 20 * options.k])

    def run(model: Any, rows: Any) -> Result:
        clone(model).fit(few)  # compiles
        with peak_anonymous() as peak:
            seconds = seconds_of(lambda: model.fit(rows))
        scored = KMeans(options.k, init=model.cluster_centers_, max_iter=1, tol=0, device="cpu").fit(source)
        return {"seconds": seconds, "inertia": scored.history_[0]["inertia"], "peak_anonymous_bytes": peak[0]}

    ours, theirs = MiniBatchKMeans(options.k, device="cpu", **given), Peer(options.k, **given)
    return {"fastdc": run(ours, source), "scikit-learn": run(theirs, mapped)}


def many_clusters(path: Path, options: Any) -> dict[str, Result]:
    import faiss

    x = np.load(path)
    start = x[np.linspace(0, len(x) - 1, options.k).astype(np.int64)]
    ends: list[float] = []
    model = KMeans(options.k, init=start, max_iter=options.passes + 1, tol=0, device="cpu", algorithm="lloyd")
    model.callbacks = [lambda record: ends.append(time.perf_counter())]
    model.fit(x)
    faiss.omp_set_num_threads(torch.get_num_threads())
    peer = faiss.Kmeans(x.shape[1], options.k, niter=options.passes, max_points_per_centroid=len(x))
    seconds = seconds_of(lambda: peer.train(x, init_centroids=start)) / options.passes
    inertias = [record["inertia"] for record in model.history_]
    return {
        "fastdc": {"seconds": float(np.median(np.diff(ends))), "inertia": inertias[options.passes - 1]},
        "faiss": {"seconds": seconds, "inertia": float(peer.obj[-1])},
    }


def mixture(path: Path, options: Any) -> dict[str, Result]:
    from sklearn.mixture import GaussianMixture as Peer

    x = np.load(path)
    means = x[np.linspace(0, len(x) - 1, options.k).astype(np.int64)]
    given = {"covariance_type": "diag", "tol": 0.0, "max_iter": options.passes, "means_init": means}
    ours = GaussianMixture(options.k, device="cpu", **given)
    start = ours._start(torch.from_numpy(x), options.k, 0)
    weights, variances = (part.double().numpy() for part in (start.weights, start.covariances))
    given |= {"weights_init": weights / weights.sum(), "precisions_init": 1 / variances}
    theirs = Peer(options.k, **given | {"means_init": start.means.numpy()})
    found: dict[str, Result] = {}
    for side, model in (("fastdc", ours), ("scikit-learn", theirs)):
        seconds = seconds_of(lambda model=model: model.fit(x))  # type: ignore[misc]
        found[side] = {"seconds": seconds, "log_likelihood": float(np.mean(model.score_samples(x), dtype=np.float64))}
    return found


def neighbors(path: Path, options: Any) -> dict[str, Result]:
    from pynndescent import NNDescent

    found: dict[str, Result] = {}
    x = np.load(path)
    for algorithm in options.algorithms:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_knn(x[:5000], Path(folder) / "few.npz", NEIGHBORS, algorithm=algorithm)  # compiles
            saved = save_knn(
                path, Path(folder) / "graph.npz", NEIGHBORS, algorithm=algorithm, min_recall=options.recall
            )
        found[f"fastdc, {algorithm}"] = {"seconds": saved.seconds, "recall": saved.recall}
    given = {"n_neighbors": NEIGHBORS + 1, "n_jobs": torch.get_num_threads(), "random_state": 0}
    NNDescent(x[:5000], **given)  # compiles
    graphs: list[Any] = []
    seconds = seconds_of(lambda: graphs.append(NNDescent(x, **given).neighbor_graph))
    found["pynndescent"] = {"seconds": seconds, "recall": _recall(x, graphs[0][0])}
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


def in_files(path: Path, options: Any) -> dict[str, Result]:
    source, x = open_rows(path), np.load(path)
    near = knn(torch.from_numpy(x[:200_000]), 10, torch.from_numpy(x[-500:])).distances[:, -1]
    models = (
        BisectingKMeans(options.k, random_state=0, device="cpu"),
        DBSCAN(0.6 * float(near.median()), 10, device="cpu"),
    )
    found: dict[str, Result] = {}
    for model in models:
        clone(model).fit(x[:5000])  # compiles
        labels = []
        for place, rows in (("file", source), ("memory", x)):
            with peak_anonymous() as peak:
                seconds = seconds_of(lambda model=model, rows=rows: model.fit(rows))  # type: ignore[misc]
            labels.append(model.labels_)
            result = {"seconds": seconds, "peak_anonymous_bytes": float(peak[0])}
            found[f"{type(model).__name__}, {place}"] = result
        result["labels_that_differ"] = float((labels[0] != labels[1]).sum())
    return found


CASES = {
    "minibatch": Case(10_000_000, 64, 1000, mini_batch),
    "many_clusters": Case(2_000_000, 32, 20_000, many_clusters),
    "mixture": Case(1_000_000, 16, 32, mixture),
    "neighbors": Case(1_000_000, 64, 1000, neighbors),
    "in_files": Case(2_500_000, 8, 50, in_files),
}
PASSES = {"minibatch": 1, "many_clusters": 2, "mixture": 10, "neighbors": 1, "in_files": 1}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and append a row for each case."""
    options = _parser().parse_args(arguments)
    if options.readme:
        rows = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
        replace_between_markers(options.readme, markdown(rows), BEGIN, END)
        return
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
            asked = argparse.Namespace(
                k=shape["k"], passes=passes, algorithms=options.algorithms, recall=options.recall
            )
            found = case.run(path, asked)
        row = {"kind": "large", "case": name, "shape": shape, "passes": passes, "found": found}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | cpu_stamp(options.threads)) + "\n")
        for side, result in found.items():
            print(name, shape, side, " ".join(f"{key}={value:.6g}" for key, value in result.items()), flush=True)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each side of the last row of each case."""
    latest = {row["case"]: row for row in rows}
    lines = ["| case | shape | by | seconds | beside |", "| --- | --- | --- | ---: | --- |"]
    for row in latest.values():
        shape = " ".join(f"{name}={size:,}" for name, size in row["shape"].items())
        for side, found in row["found"].items():
            others = ", ".join(f"{key} {value:.6g}" for key, value in found.items() if key != "seconds")
            lines.append(f"| {row['case']} | {shape} | {side} | {found['seconds']:.3g} | {others.replace('_', ' ')} |")
    dates = sorted(row["date"][:10] for row in latest.values())
    threads = sorted({row["threads"] for row in latest.values()})
    span = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    lines += ["", f"{' or '.join(map(str, threads))} threads; of many_clusters an iteration. Measured {span}."]
    return "\n".join(lines)


def seconds_of(call: Callable[[], Any]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.large", description="Millions of points.")
    add = parser.add_argument
    add("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    add("--n", type=int, help="points, in place of the case's own number")
    add("--k", type=int, help="clusters, in place of the case's own number")
    add("--passes", type=int, help="iterations, in place of the case's own number")
    add("--algorithms", nargs="+", default=["lists", "ivf"], help="of neighbors")
    add("--recall", type=float, default=0.95, help="of neighbors")
    add("--threads", type=int, default=2)
    add("--folder", type=Path, help="where files are written for the time; default: the system's")
    add("--out", type=Path, default=RESULTS)
    add("--readme", type=Path, help=f"write a table into this file, between {BEGIN} and {END}")
    return parser


if __name__ == "__main__":
    main()
