"""Bytes that runs add at their peak, counted: ``python -m tests.planning_cases`` prints them beside those of plans.

With :data:`ENVIRONMENT` set, glibc keeps nothing of what is freed, as of large arrays; plans then reckon with none.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from bench._memory import peak_anonymous, peak_during, resident_bytes
from bench.clusterers import blobs, moons
from bench.scale import Points
from fastdc import DBSCAN, GaussianMixture, KMeans, MiniBatchKMeans, SpectralClustering
from fastdc.data import as_row_source
from fastdc.kernels import _copies
from fastdc.neighbors import save_knn
from fastdc.planning import memory
from fastdc.planning.memory import Shape
from fastdc.planning.plans import make_work

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


def main() -> None:
    warnings.simplefilter("ignore")  # runs are cut short
    torch.set_num_threads(1)
    memory.LARGEST_KEPT, options = 0, {"random_state": 0, "device": "cpu"}
    _copies.LEAST_BYTES = 1 << 20
    folder = Path(tempfile.mkdtemp())
    many = np.concatenate(list(Points(300_000, 16, 32).pieces()))
    short = {"max_iter": 4, "tol": 0} | options
    means = many[:200].copy()
    square = np.random.default_rng(0).random((20_000, 2))
    near = {"eps": 2.0, "min_samples": 10}
    cases = {
        "kmeans": (many, {"n_clusters": 32}, lambda x: KMeans(32, algorithm="bounds", **short).fit(x)),
        "kmeans_few": (many[:, :8].copy(), {"n_clusters": 8}, lambda x: KMeans(8, **short).fit(x)),
        "kmeans_in_files": (
            many,
            {"n_clusters": 200, "streamed": True},
            lambda x: KMeans(200, algorithm="bounds", **short).fit(as_row_source(x)),
        ),
        "minibatch": (many, {"n_clusters": 32}, lambda x: MiniBatchKMeans(32, max_iter=1, **options).fit(x)),
        "minibatch_source": (
            many,
            {"n_clusters": 200, "streamed": True},
            lambda x: MiniBatchKMeans(200, max_iter=1, **options).fit(as_row_source(x)),
        ),
        "gmm_source": (
            many,
            {"n_clusters": 32, "streamed": True},
            lambda x: GaussianMixture(32, **short).fit(as_row_source(x)),
        ),
        "gmm": (many, {"n_clusters": 32}, lambda x: GaussianMixture(32, **short).fit(x)),
        "gmm_full": (
            many[:3000],
            {"n_clusters": 200, "covariance_type": "full"},
            lambda x: GaussianMixture(200, covariance_type="full", means_init=means, **short).fit(x),
        ),
        "spectral": (
            moons(30_000)[0],
            {"n_clusters": 2, "n_components": 2},
            lambda x: SpectralClustering(2, **options).fit(x),
        ),
        "spectral_plane": (square, {"n_clusters": 4}, lambda x: SpectralClustering(4, **options).fit(x)),
        "spectral_lanczos": (
            blobs(8_000, k=8)[0],
            {"n_clusters": 20},
            lambda x: SpectralClustering(20, n_init=1, **options).fit(x),
        ),
        "dbscan": (blobs(100_000)[0], near, lambda x: DBSCAN(**near).fit(x)),
        "dbscan_cosine": (
            blobs(100_000)[0],
            {"eps": 0.01, "min_samples": 5, "metric": "cosine"},
            lambda x: DBSCAN(0.01, metric="cosine").fit(x),
        ),
        "dbscan_in_files": (
            many[:100_000],
            near | {"streamed": True},
            lambda x: DBSCAN(**near).fit(as_row_source(x)),
        ),
        "spectral_in_files": (
            many[:20_000],
            {"n_clusters": 2, "n_components": 2, "streamed": True},
            lambda x: SpectralClustering(2, **options).fit(as_row_source(x)),
        ),
        "knn": (
            many[:20_000],
            {"n_neighbors": 15},
            lambda x: save_knn(x, folder / "graph.npz", 15, algorithm="exact", device="cpu"),
        ),
        "knn_parts": (
            many,
            {"n_neighbors": 15, "search_memory": 20_000_000, "n_queries": 2000},
            lambda x: save_knn(x, folder / "graph.npz", 15, queries=x[:2000], memory=20_000_000, algorithm="exact"),
        ),
    }
    for name, (x, arguments, run) in cases.items():
        work = make_work(name.split("_")[0], **{"streamed": False} | arguments)
        run(x)  # compiles
        base = resident_bytes("cpu")
        if name.endswith("in_files"):
            with peak_anonymous(5e-4) as counted:
                run(x)
        else:
            counted = [peak_during(lambda call=run, rows=x: call(rows), "cpu")[0] - base]
        planned = work.bytes(Shape.of(as_row_source(x))) - memory.KERNEL_BYTES
        print(json.dumps({"case": name, "planned": planned, "counted": counted[0], "n": len(x)}), flush=True)


if __name__ == "__main__":
    main()
