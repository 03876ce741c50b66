"""K-means over a file against the array in memory: ``python -m bench.scale --n 10000000 --k 1000 --d 64``.

Writes random points (clusters of unequal sizes, by ``--offset`` far from the origin) to a file, and clusters it through
a row source and, loaded whole, as an array: the same centers to start from, the same number of iterations. A row of
``bench/results/scale.jsonl`` holds the seconds of both (best of the repeats, taken in turn) where bounds may spare
distances, and of the array where all are made; what share of the array's speed the row source reaches; whether the
labels are equal; and the memory that the row source added at its peak: anonymous pages, since those of a mapped file
can be dropped at any time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench._environment import ROOT, cpu_stamp
from bench._memory import peak_anonymous
from fastdc import KMeans
from fastdc.data import open_rows

PIECE = 100_000  # rows that are made at a time


class Points(NamedTuple):
    """Random float32 points around k centers: some clusters are many times as large as others."""

    n: int
    d: int
    k: int
    offset: float = 0.0  # added to every feature

    def pieces(self) -> Iterator[np.ndarray]:
        random = np.random.default_rng(0)
        centers = random.standard_normal((self.k, self.d), dtype=np.float32) * 2 + np.float32(self.offset)
        ends = np.cumsum(random.dirichlet(np.ones(self.k)))
        for start in range(0, self.n, PIECE):
            rows = min(PIECE, self.n - start)
            classes = np.searchsorted(ends[:-1], random.random(rows))
            yield centers[classes] + random.standard_normal((rows, self.d), dtype=np.float32)


def write_npy(path: Path, points: Points) -> None:
    file = np.lib.format.open_memmap(path, "w+", np.float32, (points.n, points.d))
    for i, piece in enumerate(points.pieces()):
        file[i * PIECE : i * PIECE + len(piece)] = piece


def write_parquet(path: Path, points: Points) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([("x", pyarrow.list_(pyarrow.float32(), points.d))])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        for piece in points.pieces():
            rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(piece.ravel()), points.d)
            file.write_table(pyarrow.table({"x": rows}, schema))


def write_zarr(path: Path, points: Points) -> None:
    import zarr

    shape = points.n, points.d
    array = zarr.create_array(path, shape=shape, chunks=(PIECE // 10, points.d), dtype="float32", compressors=None)
    for i, piece in enumerate(points.pieces()):
        array[i * PIECE : i * PIECE + len(piece)] = piece


def write_hdf5(path: Path, points: Points) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (points.n, points.d), np.float32)
        for i, piece in enumerate(points.pieces()):
            dataset[i * PIECE : i * PIECE + len(piece)] = piece


WRITERS: dict[str, Callable[[Path, Points], None]] = {
    "npy": write_npy,
    "parquet": write_parquet,
    "zarr": write_zarr,
    "h5": write_hdf5,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and append a row for each kind of file."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    for kind in options.kinds:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / f"x.{kind}"
            WRITERS[kind](path, Points(options.n, options.d, options.k, options.offset))
            row = _measure(path, options)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{kind} {row['shape']}: {row['streamed_seconds']:.1f} s, "
            f"in memory {row['in_memory_bounds_seconds']:.1f} s "
            f"({row['in_memory_seconds']:.1f} s without bounds), {row['share_of_speed']:.0%} of its speed; "
            f"{row['peak_anonymous_bytes'] / 1e6:.0f} MB more at the peak; {row['different_labels']} labels differ"
        )


def _measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    source = open_rows(path)
    start = source.take(np.linspace(0, options.n - 1, options.k).astype(np.int64))
    model = KMeans(options.k, init=start, max_iter=options.iterations, tol=0, check_finite=False, device="cpu")
    KMeans(**model.get_params()).fit(source.take(np.arange(max(2 * options.k, 1000))))  # compiles
    with peak_anonymous() as peak:
        streamed = KMeans(**model.get_params()).fit(source)
    x = np.array(source)
    sides = {"streamed": (source, "auto"), "in_memory_bounds": (x, "auto"), "in_memory": (x, "lloyd")}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side, (rows, algorithm) in sides.items():
            begin = time.perf_counter()
            fitted = KMeans(**model.get_params() | {"algorithm": algorithm}).fit(rows)
            seconds[side].append(time.perf_counter() - begin)
    return {
        "kind": "scale",
        "shape": {"n": options.n, "k": options.k, "d": options.d},
        "file": path.suffix[1:],
        "offset": options.offset,
        "iterations": fitted.n_iter_,
        **{f"{side}_seconds": min(times) for side, times in seconds.items()},
        "share_of_speed": min(seconds["in_memory_bounds"]) / min(seconds["streamed"]),
        "peak_anonymous_bytes": peak[0],
        "data_bytes": x.nbytes,
        "different_labels": int((streamed.labels_ != fitted.labels_).sum()),
        "inertia_ratio": streamed.inertia_ / fitted.inertia_,
        "repeats": options.repeats,
        **cpu_stamp(options.threads),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.scale", description="K-means over a file.")
    add = parser.add_argument
    add("--n", type=int, default=2_000_000)
    add("--k", type=int, default=256)
    add("--d", type=int, default=64)
    add("--iterations", type=int, default=5)
    add("--offset", type=float, default=0.0, help="added to every feature")
    add("--kinds", nargs="+", choices=tuple(WRITERS), default=["npy"])
    add("--repeats", type=int, default=2)
    add("--threads", type=int, default=2)
    add("--folder", type=Path, help="where the file is written for the time; default: the system's")
    add("--out", type=Path, default=ROOT / "bench" / "results" / "scale.jsonl")
    return parser


if __name__ == "__main__":
    main()
