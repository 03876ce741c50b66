"""Peers that only run on GPUs, called by their own functions. Each round their factors: tf32 where ours are exact."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench._harness import Provider

TOLERANCE = 5e-3  # of products in tf32
Run = Callable[[Tensor, Tensor, int], Tensor]


def make_flash_kmeans() -> Run:
    """flash-kmeans: centers after so many iterations."""
    from flash_kmeans import batch_kmeans_Euclid

    def run(x: Tensor, centers: Tensor, iterations: int) -> Tensor:
        found: Tensor = batch_kmeans_Euclid(
            x[None], len(centers), max_iters=iterations, tol=0.0, init_centroids=centers[None]
        )[1]
        return found[0]

    return run


def make_flashlib_kmeans() -> Run:
    """flashlib: the same."""
    from flashlib import flash_kmeans

    def run(x: Tensor, centers: Tensor, iterations: int) -> Tensor:
        found: Tensor = flash_kmeans(x, len(centers), max_iters=iterations, tol=0.0, init_centroids=centers[None])[1]
        return found

    return run


def make_flashlib_knn(n_neighbors: int) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """flashlib: distances and indices; a point finds itself first."""
    from flashlib import flash_knn

    def run(x: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor]:
        own = queries is None
        sq_dists, indices = flash_knn(x if queries is None else queries, x, n_neighbors + own)
        return sq_dists[:, own:].clamp(min=0).sqrt(), indices[:, own:]

    return run


def make_inf_cl(temperature: float) -> Callable[..., Tensor]:
    """inf-cl: one direction a call, so that the symmetric loss is two; features in heads of at most 256."""
    from inf_cl import cal_flash_loss

    def run(queries: Tensor, keys: Tensor, extra_keys: Tensor | None = None) -> Tensor:
        q, k = normalize(queries, dim=1), normalize(keys, dim=1)
        options = {"scale": 1.0 / temperature, "head_dim": min(256, q.shape[1])}
        if extra_keys is None:
            return (cal_flash_loss(q, k, **options).mean() + cal_flash_loss(k, q, **options).mean()) / 2
        every = torch.cat([k, normalize(extra_keys, dim=1)])
        loss: Tensor = cal_flash_loss(q, every, torch.arange(len(q), device=q.device), **options).mean()
        return loss

    return run


def on_gpu(make: Callable[[], Callable[..., object]]) -> Provider:
    return Provider(make, devices=("cuda",), tolerance=TOLERANCE)
