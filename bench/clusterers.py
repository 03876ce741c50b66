"""Estimators without centers beside scikit-learn's: ``python -m bench.clusterers --cases dbscan moons rings digits``.

A row of ``bench/results/clusterers.jsonl`` holds the seconds of a fit (best of the repeats, taken in turn), how well
the labels fit the classes that are known, and how many labels differ from scikit-learn's where they must be equal.
scikit-learn runs where it can: not on spectral clustering of 100,000 points.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench._environment import ROOT, cpu_stamp
from fastdc import adjusted_rand_index, normalized_mutual_info


class Case(NamedTuple):
    """Data, the estimators on it, and whether their labels must be equal."""

    make_data: Callable[[int], tuple[np.ndarray, np.ndarray]]
    n: int
    make_ours: Callable[[], Any]
    make_peer: Callable[[], Any] | None
    equal: bool = False


def blobs(n: int, d: int = 8, k: int = 50, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Blobs of unequal widths in float32, and points anywhere."""
    random = np.random.default_rng(0)
    centers, widths, classes = random.uniform(-10, 10, (k, d)), random.uniform(0.5, 1.5, k), random.integers(k, size=n)
    x = centers[classes] + widths[classes, None] * random.normal(size=(n, d))
    n_noise = int(noise * n)
    x[:n_noise], classes[:n_noise] = random.uniform(-12, 12, (n_noise, d)), k
    return x.astype(np.float32), classes


def moons(n: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_moons

    return make_moons(n, noise=0.05, random_state=0)


def rings(n: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_circles

    return make_circles(n, noise=0.05, factor=0.5, random_state=0)


def digits(n: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, classes = load_digits(return_X_y=True)
    return x[:n], classes[:n]


def subspaces(n: int, k: int = 10, dimension: int = 5, d: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Points on subspaces of random directions, with noise."""
    random = np.random.default_rng(0)
    bases, classes = np.linalg.qr(random.normal(size=(k, d, dimension)))[0], random.integers(k, size=n)
    points = np.einsum("ndr,nr->nd", bases[classes], random.normal(size=(n, dimension)))
    return (points + 0.01 * random.normal(size=(n, d))).astype(np.float32), classes


def _dbscan(module: str) -> Callable[[], Any]:
    return lambda: _from(module).DBSCAN(eps=2.0, min_samples=10)


def _spectral(module: str, n_clusters: int) -> Callable[[], Any]:
    neighbors = {"affinity": "nearest_neighbors", "n_neighbors": 10, "random_state": 0}
    return lambda: _from(module).SpectralClustering(n_clusters, **neighbors)


def _from(module: str) -> Any:
    import importlib

    return importlib.import_module(module)


OURS, PEER = "fastdc.cluster", "sklearn.cluster"
CASES = {
    "dbscan": Case(blobs, 200_000, _dbscan(OURS), _dbscan(PEER), equal=True),
    "moons": Case(moons, 100_000, _spectral(OURS, 2), None),
    "rings": Case(rings, 100_000, _spectral(OURS, 2), None),
    "moons_5000": Case(moons, 5_000, _spectral(OURS, 2), _spectral(PEER, 2)),
    "rings_5000": Case(rings, 5_000, _spectral(OURS, 2), _spectral(PEER, 2)),
    "digits": Case(digits, 1_797, _spectral(OURS, 10), _spectral(PEER, 10)),
    "density_peaks": Case(blobs, 200_000, lambda: _from(OURS).DensityPeaks(50), None),
    "subspaces": Case(subspaces, 20_000, lambda: _from(OURS).SubspaceClustering(10, n_nonzero=5, random_state=0), None),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and append a row for each case."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.cases:
        row = measure(name, options.n or CASES[name].n, options.repeats)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        peer = f"; scikit-learn {row['peer_seconds']:.2f} s, ARI {row['peer_ari']:.4f}" if "peer_seconds" in row else ""
        print(f"{name} {row['shape']}: {row['seconds']:.2f} s, ARI {row['ari']:.4f}, NMI {row['nmi']:.4f}{peer}")


def measure(name: str, n: int, repeats: int) -> dict[str, Any]:
    case = CASES[name]
    x, classes = case.make_data(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.make_ours().fit(case.make_data(max(500, min(n, 1000)))[0])  # compiles
        fitted: dict[str, Any] = {}
        seconds: dict[str, list[float]] = {"": [], "peer_": []}
        for _ in range(repeats):
            for side, make in (("", case.make_ours), ("peer_", case.make_peer)):
                if make is not None:
                    begin = time.perf_counter()
                    fitted[side] = make().fit(x)
                    seconds[side].append(time.perf_counter() - begin)
    row: dict[str, Any] = {"kind": "clusterers", "case": name, "shape": {"n": x.shape[0], "d": x.shape[1]}}
    for side, model in fitted.items():
        row[f"{side}seconds"] = min(seconds[side])
        row[f"{side}ari"] = adjusted_rand_index(classes, model.labels_)
        row[f"{side}nmi"] = normalized_mutual_info(classes, model.labels_)
    if case.equal:
        row["different_labels"] = int((fitted[""].labels_ != fitted["peer_"].labels_).sum())
    return row | {
        "repeats": repeats,
        **cpu_stamp(torch.get_num_threads()),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.clusterers", description="Estimators beside scikit-learn's.")
    add = parser.add_argument
    add("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    add("--n", type=int, help="points, in place of the case's own number")
    add("--repeats", type=int, default=2)
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=ROOT / "bench" / "results" / "clusterers.jsonl")
    return parser


if __name__ == "__main__":
    main()
