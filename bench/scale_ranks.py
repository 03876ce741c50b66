"""K-means by several processes of one thread each: ``python -m bench.scale_ranks --n 2000000 --k 1000 --d 64``.

Writes random points to a ``.npy`` file and clusters it by each number of processes from the same centers, in turn. A
row of ``bench/results/scale.jsonl`` holds for each the median seconds of an iteration, beside those of one process
that adds sums up plainly, with one thread and with as many as there are processes; and whether the labels of all
numbers of processes are equal, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench._environment import ROOT, cpu_stamp
from bench.scale import Points, write_npy
from fastdc import KMeans
from fastdc.data import open_rows
from fastdc.distributed import own_rows, save_rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and append a row."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "x.npy"
        write_npy(path, Points(options.n, options.d, options.k))
        most = max(options.processes)
        seconds: dict[str, list[float]] = {}
        labels: dict[str, np.ndarray] = {}
        for repeat in range(options.repeats):
            for size in (-most, -1, *options.processes):
                name = f"plain, {-size} threads" if size < 0 else str(size)
                meeting = path.parent / f"meeting-{repeat}-{size}"
                work = size, path, meeting, options.k, options.iterations
                torch.multiprocessing.spawn(_fit, work, max(size, 1))
                seconds.setdefault(name, []).extend(json.loads((path.parent / "seconds.json").read_text()))
                labels[name] = np.load(path.parent / "labels.npy")
    row = _row(options, seconds, labels)
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(row["shape"], row["seconds_an_iteration"], f"labels equal: {row['labels_equal']}")


def _fit(rank: int, size: int, path: Path, meeting: Path, k: int, iterations: int) -> None:
    """One of ``size`` processes of one thread; or one process of ``-size`` threads, without a group."""
    torch.set_num_threads(max(1, -size))
    source = open_rows(path)
    start = source.take(np.linspace(0, len(source) - 1, k).astype(np.int64))
    if size > 0:
        options = {"init_method": f"file://{meeting}", "rank": rank, "world_size": size}
        torch.distributed.init_process_group("gloo", **options)
    group = "world" if size > 0 else None
    ends: list[float] = []
    model = KMeans(k, init=start, max_iter=iterations, tol=0, group=group, device="cpu")
    model.callbacks = [lambda record: ends.append(time.perf_counter())]
    model.fit(own_rows(source, group))
    save_rows(path.parent / "labels.npy", model.labels_, group)
    if rank == 0:
        (path.parent / "seconds.json").write_text(json.dumps(np.diff(ends).tolist()))


def _row(options: argparse.Namespace, seconds: dict[str, list[float]], labels: dict[str, np.ndarray]) -> dict[str, Any]:
    sharded = [labels[str(size)] for size in options.processes]
    return {
        "kind": "scale_ranks",
        "shape": {"n": options.n, "k": options.k, "d": options.d},
        "file": "npy",
        "seconds_an_iteration": {name: median(times) for name, times in seconds.items()},
        "iterations_measured": {name: len(times) for name, times in seconds.items()},
        "labels_equal": all(np.array_equal(sharded[0], other) for other in sharded),
        "labels_other_than_plain": int((sharded[0] != labels["plain, 1 threads"]).sum()),
        **cpu_stamp(1),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.scale_ranks", description="K-means by several processes.")
    add = parser.add_argument
    add("--n", type=int, default=2_000_000)
    add("--k", type=int, default=1000)
    add("--d", type=int, default=64)
    add("--processes", type=int, nargs="+", default=[1, 2])
    add("--iterations", type=int, default=4)
    add("--repeats", type=int, default=2)
    add("--folder", type=Path, help="where the file is written for the time; default: the system's")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "scale.jsonl")
    return parser


if __name__ == "__main__":
    main()
