"""The kmeans room: nearest centers, one pass of Lloyd's algorithm, k-means++, and whole runs, beside its peers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._gpu_peers import Run, make_flash_kmeans, make_flashlib_kmeans, on_gpu
from bench._harness import Bench, Cost, Inputs, Provider, Rows

SHAPES = [
    {"n": 200_000, "k": 256, "d": 64},
    {"n": 200_000, "k": 64, "d": 16},
    {"n": 100_000, "k": 1024, "d": 128},
    {"n": 1_000_000, "k": 10, "d": 10},
]
RUNS = [{"n": 200_000, "k": 256, "d": 64, "iterations": 20}, {"n": 100_000, "k": 1024, "d": 128, "iterations": 20}]
STARTS = [{"n": 200_000, "k": 256, "d": 64}, {"n": 1_000_000, "k": 10, "d": 10}]
TINY = {"n": 300, "k": 4, "d": 3}
CHECKED_ROWS = 2000
CHUNK = 8192  # rows that plain torch treats at a time
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LABELS_APART = dict.fromkeys(FLOATS, 2e-3)  # share of rows whose two nearest centers rounding confuses
CHANCE = dict.fromkeys(FLOATS, 0.3)  # how much worse one random start may be than another


def inputs(n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Rows and centers of one normal distribution: no structure that would spare anyone work."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator).to(dtype)
    return {"x": x.to(device), "centers": x[torch.randperm(n, generator=generator)[:k]].clone().to(device)}


def as_numpy(given: Inputs) -> Inputs:
    return {name: v.cpu().float().numpy() if isinstance(v, Tensor) else v for name, v in given.items()}


def share_different(got: Tensor, expected: Tensor, given: Inputs) -> float:
    return float((got.cpu() != expected.cpu()).double().mean())


def excess(got: Tensor, expected: Tensor, given: Inputs) -> float:
    return max(0.0, float(got / expected) - 1.0)


def cost(n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    return Cost(flops=2 * n * k * d, bytes_moved=n * (d * itemsize + 8 + itemsize) + k * d * itemsize)


# --- nearest_center


def nearest_truth(given: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    x, centers = given["x"].double(), given["centers"].double()
    which = torch.arange(0, len(x), max(1, len(x) // CHECKED_ROWS))
    labels = torch.cat([torch.cdist(part, centers).argmin(1) for part in x[which].split(CHUNK)])
    sq_dists = (x[which] - centers[labels]).square().sum(1)
    return {"labels": Rows(which, labels), "sq_dists": Rows(which, sq_dists)}


def make_nearest(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.kmeans import nearest_center

    return lambda x, centers: nearest_center(x, centers, backend=backend)


def torch_nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The usual form: a product a chunk of rows."""
    half = centers.square().sum(1) / 2
    found = [(half - part @ centers.T).min(1) for part in x.split(CHUNK)]
    scores, labels = (torch.cat(column) for column in zip(*found))
    return labels, 2 * scores + x.square().sum(1)


def make_compiled_nearest() -> Callable[..., Any]:
    return torch.compile(torch_nearest)


def make_faiss_nearest() -> Callable[..., Any]:
    import faiss

    def nearest(x: Any, centers: Any) -> tuple[Any, Any]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(centers.shape[1])
        index.add(centers)
        sq_dists, labels = index.search(x, 1)
        return labels[:, 0], sq_dists[:, 0]

    return nearest


def make_sklearn_nearest() -> Callable[..., Any]:
    from sklearn.metrics import pairwise_distances_argmin_min

    def nearest(x: Any, centers: Any) -> tuple[Any, Any]:
        return pairwise_distances_argmin_min(x, centers, metric="sqeuclidean")

    return nearest


# --- kmeans_step


def step_truth(given: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    x, centers = given["x"].double(), given["centers"].double()
    labels, sq_dists = torch_nearest(x, centers)
    return {
        "sums": torch.zeros_like(centers).index_add(0, labels, x),
        "counts": torch.bincount(labels, minlength=len(centers)).double(),
        "inertia": sq_dists.sum(),
    }


def make_step(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.kmeans import kmeans_step

    return lambda x, centers: kmeans_step(x, centers, backend=backend)[1:4]


def torch_step(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    labels, sq_dists = torch_nearest(x, centers)
    sums = torch.zeros_like(centers).index_add(0, labels, x)
    return sums, torch.bincount(labels, minlength=len(centers)).double(), sq_dists.double().sum()


# --- whole runs from given centers


def run_inputs(n: int, k: int, d: int, iterations: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    return {**inputs(n, k, d, dtype, device, seed), "iterations": iterations}


def run_truth(given: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    """The same iterations in float64."""
    x, centers = given["x"].double(), given["centers"].double()
    for _ in range(given["iterations"]):
        sums, counts, _ = torch_step(x, centers)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None], centers)
    return {"inertia": torch_step(x, centers)[2]}


def run_cost(n: int, k: int, d: int, iterations: int, itemsize: int, mode: str) -> Cost:
    one = cost(n, k, d, itemsize, mode)
    return Cost(flops=(iterations + 1) * one.flops, bytes_moved=(iterations + 1) * one.bytes_moved)


def float64(inertia: float) -> Tensor:
    return torch.tensor(inertia, dtype=torch.float64)


def make_run(backend: str, algorithm: str = "auto") -> Callable[..., Any]:
    from fastdc import KMeans

    def run(x: Any, centers: Any, iterations: int) -> Tensor:
        options: dict[str, Any] = {"init": centers, "max_iter": iterations, "tol": 0.0, "backend": backend}
        options["algorithm"] = algorithm
        return float64(KMeans(len(centers), **options).fit(x).inertia_)

    return run


def make_sklearn_run(algorithm: str = "lloyd") -> Callable[..., Any]:
    from sklearn.cluster import KMeans

    def run(x: Any, centers: Any, iterations: int) -> Tensor:
        model = KMeans(len(centers), init=centers, n_init=1, max_iter=iterations, tol=0.0, algorithm=algorithm)
        return float64(model.fit(x).inertia_)

    return run


def make_faiss_run() -> Callable[..., Any]:
    import faiss

    def run(x: Any, centers: Any, iterations: int) -> Tensor:
        faiss.omp_set_num_threads(torch.get_num_threads())
        model = faiss.Kmeans(x.shape[1], len(centers), niter=iterations, max_points_per_centroid=len(x))
        model.train(x, init_centroids=centers)
        sq_dists, _ = model.index.search(x, 1)
        return float64(float(sq_dists.sum(dtype="float64")))

    return run


def make_faiss_super_run() -> Callable[..., Any]:
    """It draws its own start, and wants at least 32 features."""
    from faiss import SuperKmeans, omp_set_num_threads

    def run(x: Any, centers: Any, iterations: int) -> Tensor:
        omp_set_num_threads(torch.get_num_threads())
        model = SuperKmeans(x.shape[1], len(centers), niter=iterations, max_points_per_centroid=len(x))
        model.train(x)
        return torch_step(torch.from_numpy(x), torch.from_numpy(model.centroids))[2]

    return run


def make_peer_run(make_centers: Callable[[], Run]) -> Callable[..., Any]:
    """A peer that returns centers."""
    centers_of = make_centers()

    def run(x: Tensor, centers: Tensor, iterations: int) -> Tensor:
        return torch_step(x, centers_of(x, centers, iterations))[2]

    return run


# --- kmeans_plusplus


def start_truth(given: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    """What scikit-learn's seeding leaves, on a tenth of the rows at most: seeds differ, but not by much."""
    from sklearn.cluster import kmeans_plusplus

    k = len(given["centers"])
    rows = given["x"].cpu().double()[: max(20_000, 10 * k)]
    centers, _ = kmeans_plusplus(rows.numpy(), k, random_state=0)
    return {"inertia": torch_nearest(given["x"].cpu().double(), torch.from_numpy(centers))[1].sum()}


def start_cost(n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """Each center's candidates and the center before: a pass over the rows."""
    candidates = 3 + int(math.log(k))
    return Cost(flops=3 * n * d * k * candidates, bytes_moved=k * n * (d + 2) * itemsize)


def make_start(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.kmeans import kmeans_plusplus, kmeans_step

    def start(x: Tensor, centers: Tensor) -> Tensor:
        chosen = kmeans_plusplus(x, len(centers), random_state=0, backend=backend).centers
        return kmeans_step(x, chosen, backend=backend).inertia

    return start


def make_sklearn_start() -> Callable[..., Any]:
    from sklearn.cluster import kmeans_plusplus
    from sklearn.metrics import pairwise_distances_argmin_min

    def start(x: Any, centers: Any) -> Tensor:
        chosen, _ = kmeans_plusplus(x, len(centers), random_state=0)
        _, sq_dists = pairwise_distances_argmin_min(x, chosen, metric="sqeuclidean")
        return float64(float(sq_dists.sum(dtype="float64")))

    return start


def broadcast_bytes(n: int, k: int, d: int, itemsize: int, iterations: int = 0) -> int:
    return 2 * n * k * d * itemsize


def ours(make: Callable[[str], Callable[..., Any]]) -> dict[str, Provider]:
    return {
        "reference": Provider(partial(make, "reference"), extra_bytes=broadcast_bytes),
        "numba": Provider(partial(make, "numba"), devices=("cpu",)),
        "triton": Provider(partial(make, "triton"), devices=("cuda",)),
    }


def on_cpu(make: Callable[[], Callable[..., Any]], tolerance: float | None = None) -> Provider:
    """A peer that takes numpy arrays."""
    return Provider(make, devices=("cpu",), prepare=as_numpy, tolerance=tolerance)


BENCHES = [
    Bench(
        op="nearest_center",
        shapes=SHAPES,
        tiny=TINY,
        inputs=inputs,
        outputs=("labels", "sq_dists"),
        truth=nearest_truth,
        cost=cost,
        errors={"labels": share_different},
        tolerances=LABELS_APART,
        providers=ours(make_nearest)
        | {
            "torch": Provider(lambda: torch_nearest),
            "torch.compile": Provider(make_compiled_nearest, compiles_each_shape=True),
            "faiss": on_cpu(make_faiss_nearest),
            "sklearn": on_cpu(make_sklearn_nearest),
        },
    ),
    Bench(
        op="kmeans_step",
        shapes=SHAPES,
        tiny=TINY,
        inputs=inputs,
        outputs=("sums", "counts", "inertia"),
        truth=step_truth,
        cost=cost,
        tolerances=LABELS_APART,
        providers=ours(make_step) | {"torch": Provider(lambda: torch_step)},
    ),
    Bench(
        op="kmeans_lloyd",
        shapes=RUNS,
        tiny={**TINY, "d": 40, "iterations": 2},
        inputs=run_inputs,
        outputs=("inertia",),
        truth=run_truth,
        cost=run_cost,
        providers=ours(make_run)
        | {
            "numba_lloyd": Provider(partial(make_run, "numba", "lloyd"), devices=("cpu",)),
            "faiss": on_cpu(make_faiss_run),
            "faiss_super": on_cpu(make_faiss_super_run, tolerance=0.05),
            "sklearn": on_cpu(make_sklearn_run),
            "sklearn_elkan": on_cpu(partial(make_sklearn_run, "elkan")),
            "flash-kmeans": on_gpu(partial(make_peer_run, make_flash_kmeans)),
            "flashlib": on_gpu(partial(make_peer_run, make_flashlib_kmeans)),
        },
    ),
    Bench(
        op="kmeans_plusplus",
        shapes=STARTS,
        tiny=TINY,
        inputs=inputs,
        outputs=("inertia",),
        truth=start_truth,
        cost=start_cost,
        errors={"inertia": excess},
        tolerances=CHANCE,
        providers=ours(make_start) | {"sklearn": on_cpu(make_sklearn_start)},
    ),
]
