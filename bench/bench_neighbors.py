"""Nearest neighbours of all points among themselves, and of queries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._gpu_peers import make_flashlib_knn, on_gpu
from bench._harness import Bench, Cost, Inputs, Provider, Rows

NEIGHBORS = 15
CHECKED = 200  # queries whose neighbours are known in float64
SHAPES = [  # m = 0: the points themselves are the queries
    {"n": 50_000, "m": 0, "d": 64},
    {"n": 50_000, "m": 50_000, "d": 64},
    {"n": 50_000, "m": 0, "d": 10},
    {"n": 100_000, "m": 10_000, "d": 128},
]
TINY = {"n": 300, "m": 0, "d": 5}
APART = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 1e-3}


def inputs(n: int, m: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator).to(device, dtype)
    return {"x": x, "queries": torch.randn(m, d, generator=generator).to(device, dtype) if m else None}


def as_numpy(given: Inputs) -> Inputs:
    return {name: None if rows is None else rows.cpu().float().numpy() for name, rows in given.items()}


def truth(given: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    x = given["x"].double()
    rows = x if given["queries"] is None else given["queries"].double()
    which = torch.arange(0, len(rows), -(-len(rows) // CHECKED), device=x.device)
    pairs = torch.stack([(x - row).square().sum(1).sqrt() for row in rows[which]])
    if given["queries"] is None:
        pairs[torch.arange(len(which)), which] = torch.inf
    distances, indices = pairs.sort(dim=1, stable=True)
    return {"distances": Rows(which, distances[:, :NEIGHBORS]), "indices": Rows(which, indices[:, :NEIGHBORS])}


def share_different(got: Tensor, expected: Tensor, given: Inputs) -> float:
    return float((got.to(expected) != expected).double().mean())


def cost(n: int, m: int, d: int, itemsize: int, mode: str) -> Cost:
    """Among the points themselves one product serves both of a pair."""
    pairs = m * n if m else n * n / 2
    return Cost(flops=2.0 * pairs * d, bytes_moved=float((n + m) * d * itemsize + 12 * (m or n) * NEIGHBORS))


def make_ours(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.neighbors import knn

    return lambda x, queries: knn(x, NEIGHBORS, queries, algorithm="exact", backend=backend)


def torch_chunks(x: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor]:
    """The best plain form: products of a chunk of queries with all points, and torch's topk."""
    rows = x if queries is None else queries
    halves = x.square().sum(1) / 2
    found = []
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        scores = torch.addmm(halves, part, x.T, alpha=-1)
        if queries is None:
            scores.diagonal(start).fill_(torch.inf)
        least, indices = scores.topk(NEIGHBORS, dim=1, largest=False)
        found.append(((2 * least + part.square().sum(1, keepdim=True)).clamp(min=0).sqrt(), indices))
    distances, indices = (torch.cat(column) for column in zip(*found))
    return distances, indices


def make_faiss() -> Callable[..., Any]:
    import faiss
    import numpy as np

    def search(x: Any, queries: Any) -> tuple[Any, Any]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(x.shape[1])
        index.add(x)
        own = queries is None
        sq_dists, indices = index.search(x if own else queries, NEIGHBORS + own)
        return np.sqrt(np.maximum(sq_dists[:, own:], 0)), indices[:, own:]  # a point finds itself first

    return search


def make_sklearn() -> Callable[..., Any]:
    from sklearn.neighbors import NearestNeighbors

    def search(x: Any, queries: Any) -> tuple[Any, Any]:
        model = NearestNeighbors(n_neighbors=NEIGHBORS, n_jobs=torch.get_num_threads()).fit(x)
        return tuple(model.kneighbors(queries))

    return search


def chunk_bytes(n: int, m: int, d: int, itemsize: int) -> int:
    return 2 * 1024 * n * itemsize


def reference_bytes(n: int, m: int, d: int, itemsize: int) -> int:
    """Three times the differences of a chunk, or of one query where those are more; keys and their order."""
    return 3 * max(1 << 26, 8 * n * d)


def on_cpu(make: Callable[[], Callable[..., Any]]) -> Provider:
    """A peer that takes numpy arrays."""
    return Provider(make, devices=("cpu",), prepare=as_numpy)


BENCHES = [
    Bench(
        op="knn",
        shapes=SHAPES,
        tiny=TINY,
        inputs=inputs,
        outputs=("distances", "indices"),
        truth=truth,
        cost=cost,
        errors={"indices": share_different},
        tolerances=APART,
        providers={
            "reference": Provider(partial(make_ours, "reference"), reference_bytes),
            "numba": Provider(partial(make_ours, "numba"), devices=("cpu",)),
            "triton": Provider(partial(make_ours, "triton"), devices=("cuda",)),
            "torch": Provider(lambda: torch_chunks, chunk_bytes),
            "faiss": on_cpu(make_faiss),
            "sklearn": on_cpu(make_sklearn),
            "flashlib": on_gpu(partial(make_flashlib_knn, NEIGHBORS)),
        },
    )
]
