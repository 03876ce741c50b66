"""What ``fastdc plan`` foretells beside what runs take: ``python -m bench.plans --threads 1``.

A row of ``bench/results/plans.jsonl`` holds the seconds of an iteration and the anonymous memory at the peak, as
planned and as measured, for each case in a process of its own. Seconds are those between two records of the run
(k-means, the median), or what more iterations take longer. K-means over an array runs with bounds for its memory, and
without them for its seconds, since a plan is of passes that make all distances.
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
from bench.scale import WRITERS, Points
from fastdc import GaussianMixture, KMeans, MiniBatchKMeans
from fastdc.data import open_rows
from fastdc.planning import plan


class Case(NamedTuple):
    """A run. ``file`` is what rows are read from; k-means of no file has an array."""

    method: str
    n: int
    d: int
    k: int
    file: str = ""
    options: Mapping[str, Any] = MappingProxyType({})


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
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and append a row for each case."""
    options = _parser().parse_args(arguments)
    if options.child:
        print(json.dumps(_measure(CASES[options.cases[0]], Path(options.child), options.threads)))
        return
    for name in options.cases:
        case = CASES[name]
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / f"x.{case.file or 'npy'}"
            WRITERS[case.file or "npy"](path, Points(case.n, case.d, case.k))
            command = [sys.executable, "-m", "bench.plans", "--child", str(path), "--cases", name]
            done = subprocess.run([*command, "--threads", str(options.threads)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr}")
        row = {"kind": "plans", "case": name, **json.loads(done.stdout)}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | cpu_stamp(options.threads)) + "\n")
        planned, measured = row["planned_seconds"], row["seconds"]
        print(
            f"{name} {row['shape']}: an iteration {planned:.3f} s planned, {measured:.3f} s measured "
            f"({planned / measured - 1:+.0%}); peak {row['planned_bytes'] / 1e6:.0f} MB planned, "
            f"{row['bytes'] / 1e6:.0f} MB measured ({row['planned_bytes'] / row['bytes'] - 1:+.0%}); "
            f"plan took {row['plan_took']:.1f} s",
            flush=True,
        )


def _measure(case: Case, path: Path, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # of runs that are cut short
    rows = open_rows(path) if case.file else np.load(path)
    begin = time.perf_counter()
    planned = plan(rows, case.method, case.k, **case.options)
    took = time.perf_counter() - begin
    run = {"kmeans": _kmeans, "minibatch": _mini_batch, "gmm": _mixture}[case.method]
    run(rows[: 20 * case.k] if isinstance(rows, np.ndarray) else rows, case, 2)  # compiles
    resident_bytes("cpu")  # hands freed memory back
    with peak_anonymous() as peak:
        seconds = run(rows, case, 6)
    return {
        "method": case.method,
        "file": case.file,
        "shape": {"n": case.n, "k": case.k, "d": case.d},
        "options": dict(case.options),
        "planned_seconds": planned.seconds_per_iteration,
        "seconds": seconds,
        "planned_bytes": planned.peak_bytes,
        "bytes": peak[0],
        "plan_took": took,
    }


def _kmeans(rows: Any, case: Case, iterations: int) -> float:
    times: list[float] = []
    options = {"max_iter": iterations, "tol": 0, "random_state": 0, "device": "cpu"}
    if not case.file:
        KMeans(case.k, algorithm="bounds", **options).fit(rows)  # whose memory counts
    callbacks = [lambda record: times.append(time.perf_counter())]
    KMeans(case.k, algorithm="lloyd", callbacks=callbacks, **options).fit(rows)
    return float(np.median(np.diff(times)))


def _mini_batch(rows: Any, case: Case, iterations: int) -> float:
    options = {"max_no_improvement": None, "random_state": 0, "device": "cpu", **case.options}

    def seconds(passes: int) -> float:
        return _seconds(lambda: MiniBatchKMeans(case.k, max_iter=passes, **options).fit(rows))

    return (seconds(3) - seconds(1)) / 2


def _mixture(rows: Any, case: Case, iterations: int) -> float:
    options = {"tol": 0, "device": "cpu", "random_state": 0, **case.options}
    means = GaussianMixture(case.k, max_iter=1, **options).fit(rows).means_  # from k-means, whose memory counts

    def seconds(passes: int) -> float:
        return _seconds(lambda: GaussianMixture(case.k, max_iter=passes, means_init=means, **options).fit(rows))

    return (seconds(iterations) - seconds(1)) / (iterations - 1)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.plans", description="Plans beside runs.")
    add = parser.add_argument
    add("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    add("--threads", type=int, default=2)
    add("--folder", type=Path, help="where files are written for the time; default: the system's")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "plans.jsonl")
    add("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
