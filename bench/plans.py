"""What ``fastdc plan`` foretells beside what runs take: ``python -m bench.plans --threads 1``.

A row of ``bench/results/plans.jsonl`` holds the seconds and the anonymous memory at the peak, as planned and as
measured. Plan and run have a process of their own each: what the first leaves with the allocator is not the second's.
Seconds of convergent work are of an iteration: those between two records of the run (k-means, the median), or what
more iterations take longer. K-means runs with bounds for its memory, and without them for its seconds, since a plan is
of passes that make all distances. Seconds of the others are those of the whole.

Cases of millions of points write files of up to 2.6 GB into ``--folder`` and take minutes; each has a tenth of its
size for a quick look.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from bench._environment import ROOT, cpu_stamp
from bench._memory import peak_anonymous, resident_bytes
from bench.clusterers import blobs, moons
from bench.large import seconds_of, write_sheets
from bench.scale import WRITERS, Points
from fastdc import DBSCAN, GaussianMixture, KMeans, MiniBatchKMeans, SpectralClustering
from fastdc.data import as_row_source, open_rows
from fastdc.neighbors import save_knn
from fastdc.planning import plan
from fastdc.planning.memory import Shape
from fastdc.planning.plans import make_work


class Case(NamedTuple):
    """A run. ``file`` is what rows are read from; of no file they are an array."""

    method: str
    n: int
    d: int
    k: int | None
    file: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    iterations: int = 6  # of k-means and mixtures


DENSITY = {"eps": 2.0, "min_samples": 10}
CASES = {
    "array": Case("kmeans", 500_000, 32, 100),
    "array_500": Case("kmeans", 200_000, 64, 500),
    "npy": Case("kmeans", 1_000_000, 32, 100, "npy"),
    "parquet": Case("kmeans", 1_000_000, 32, 100, "parquet"),
    "minibatch": Case("minibatch", 1_000_000, 32, 100),
    "minibatch_8192": Case("minibatch", 1_000_000, 32, 500, "", {"batch_size": 8192}),
    "gmm_diag": Case("gmm", 300_000, 16, 50),
    "gmm_diag_100": Case("gmm", 200_000, 64, 100),
    "gmm_full": Case("gmm", 100_000, 16, 20, "", {"covariance_type": "full"}),
    "kmeans_1m": Case("kmeans", 1_000_000, 64, 1000, "npy", iterations=4),
    "minibatch_1m": Case("minibatch", 1_000_000, 64, 1000, "npy"),
    "kmeans_2000": Case("kmeans", 200_000, 32, 2000, "npy"),
    "gmm_100k": Case("gmm", 100_000, 16, 32, "npy"),
    "spectral_10k": Case("spectral", 10_000, 2, 2),
    "dbscan_20k": Case("dbscan", 20_000, 8, None, "", DENSITY),
    "knn_100k": Case("knn", 100_000, 64, None, "npy", {"algorithm": "exact"}),
    "lists_100k": Case("knn", 100_000, 64, None, "npy", {"algorithm": "lists"}),
    "ivf_100k": Case("knn", 100_000, 64, None, "npy", {"algorithm": "ivf"}),
}
LARGE = {
    "kmeans_10m": Case("kmeans", 10_000_000, 64, 1000, "npy", iterations=3),
    "minibatch_10m": Case("minibatch", 10_000_000, 64, 1000, "npy"),
    "kmeans_20000": Case("kmeans", 2_000_000, 32, 20_000, "npy", iterations=3),
    "gmm_1m": Case("gmm", 1_000_000, 16, 32, "npy"),
    "spectral_100k": Case("spectral", 100_000, 2, 2),
    "dbscan_200k": Case("dbscan", 200_000, 8, None, "", DENSITY),
    "knn_1m": Case("knn", 1_000_000, 64, None, "npy", {"algorithm": "exact"}),
    "lists_1m": Case("knn", 1_000_000, 64, None, "npy", {"algorithm": "lists"}),
}
COMPILING = 100_000, 5_000  # rows of a run that compiles, where work grows with the rows, and where it grows faster


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and append a row for each case."""
    options = _parser().parse_args(arguments)
    if options.child:
        case = (CASES | LARGE)[options.cases[0]]
        act = {"plan": _plan, "run": _run}[options.act]
        torch.set_num_threads(options.threads)
        print(json.dumps(act(case, options.child)))
        return
    for name in options.cases:
        case = (CASES | LARGE)[name]
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / f"x.{case.file or 'npy'}"
            _write(case, path)
            planned, found = (_in_process(name, path, act, options.threads) for act in ("plan", "run"))
        row = {"kind": "plans", "case": name, "method": case.method, "file": case.file}
        row |= {"shape": {"n": case.n, "k": case.k, "d": case.d}, "options": dict(case.options), **planned, **found}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | cpu_stamp(options.threads)) + "\n")
        print(
            f"{name} {row['shape']}: {row['planned_seconds']:.3g} s planned, {row['seconds']:.3g} s measured "
            f"({row['planned_seconds'] / row['seconds'] - 1:+.0%}); "
            f"peak {row['planned_bytes'] / 1e6:.0f} MB planned, {row['bytes'] / 1e6:.0f} MB measured "
            f"({row['planned_bytes'] / row['bytes'] - 1:+.0%}); plan took {row['plan_took']:.1f} s",
            flush=True,
        )


def _in_process(name: str, path: Path, act: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.plans", "--child", str(path), "--act", act, "--cases", name]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def _write(case: Case, path: Path) -> None:
    if case.method == "spectral":
        np.save(path, moons(case.n)[0])
    elif case.method == "dbscan":
        np.save(path, blobs(case.n, case.d)[0])
    elif case.options.get("algorithm") == "lists":
        write_sheets(path, Points(case.n, case.d, 1000))
    else:
        WRITERS[case.file or "npy"](path, Points(case.n, case.d, case.k or 100))


def _rows(case: Case, path: Path) -> Any:
    return open_rows(path) if case.file else np.load(path)


def _plan(case: Case, path: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    found = plan(_rows(case, path), case.method, case.k, **case.options)
    took = time.perf_counter() - begin
    return {"planned_seconds": found.seconds_per_iteration, "planned_bytes": found.peak_bytes, "plan_took": took}


def _run(case: Case, path: Path) -> dict[str, Any]:
    warnings.simplefilter("ignore")  # of runs that are cut short
    rows = _rows(case, path)
    options = dict(case.options) | ({} if case.k is None else {"n_clusters": case.k})
    if case.file and not make_work(case.method, **options).can_stream(Shape.of(rows)):
        rows = np.asarray(rows)
    few = np.array(as_row_source(rows).rows(0, min(case.n, COMPILING[case.method in ("spectral", "dbscan", "knn")])))
    run = RUNS[case.method]
    run(few if isinstance(rows, np.ndarray) else as_row_source(few), case, path, 3)  # compiles
    resident_bytes("cpu")  # hands freed memory back
    with peak_anonymous() as peak:
        seconds = run(rows, case, path, case.iterations)
    return {"seconds": seconds, "bytes": peak[0]}


def _kmeans(rows: Any, case: Case, path: Path, iterations: int) -> float:
    times: list[float] = []
    options = {"max_iter": iterations, "tol": 0, "random_state": 0, "device": "cpu"}
    KMeans(case.k, algorithm="bounds", **options).fit(rows)  # whose memory counts
    callbacks = [lambda record: times.append(time.perf_counter())]
    KMeans(case.k, algorithm="lloyd", callbacks=callbacks, **options).fit(rows)
    return float(np.median(np.diff(times)))


def _mini_batch(rows: Any, case: Case, path: Path, iterations: int) -> float:
    options = {"max_no_improvement": None, "random_state": 0, "device": "cpu", **case.options}

    def seconds(passes: int) -> float:
        return seconds_of(lambda: MiniBatchKMeans(case.k, max_iter=passes, **options).fit(rows))

    return seconds(2) - seconds(1)


def _mixture(rows: Any, case: Case, path: Path, iterations: int) -> float:
    options = {"tol": 0, "device": "cpu", "random_state": 0, **case.options}
    means = GaussianMixture(case.k, max_iter=1, **options).fit(rows).means_  # from k-means, whose memory counts

    def seconds(passes: int) -> float:
        return seconds_of(lambda: GaussianMixture(case.k, max_iter=passes, means_init=means, **options).fit(rows))

    return (seconds(iterations) - seconds(1)) / (iterations - 1)


def _spectral(rows: Any, case: Case, path: Path, iterations: int) -> float:
    return seconds_of(lambda: SpectralClustering(case.k, random_state=0, device="cpu", **case.options).fit(rows))


def _dbscan(rows: Any, case: Case, path: Path, iterations: int) -> float:
    return seconds_of(lambda: DBSCAN(device="cpu", **case.options).fit(rows))


def _neighbors(rows: Any, case: Case, path: Path, iterations: int) -> float:
    return save_knn(rows, path.with_name("graph.npz"), device="cpu", **case.options).seconds


RUNS: dict[str, Callable[[Any, Case, Path, int], float]] = {
    "kmeans": _kmeans,
    "minibatch": _mini_batch,
    "gmm": _mixture,
    "spectral": _spectral,
    "dbscan": _dbscan,
    "knn": _neighbors,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.plans", description="Plans beside runs.")
    add = parser.add_argument
    add("--cases", nargs="+", choices=(*CASES, *LARGE), default=list(CASES))
    add("--threads", type=int, default=2)
    add("--folder", type=Path, help="where files are written for the time; default: the system's")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "plans.jsonl")
    add("--child", type=Path, help=argparse.SUPPRESS)
    add("--act", choices=("plan", "run"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
