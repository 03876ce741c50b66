"""The soft k-means loss (DKM) and the balanced assignment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows, make_compiled, make_plain
from bench._student_t import mixture, sq_dists_gemm

SHAPES = [{"n": 200_000, "k": 100, "d": 64}, {"n": 50_000, "k": 1000, "d": 128}, {"n": 1_000_000, "k": 10, "d": 10}]
BALANCED_SHAPES = [{"n": 2000, "k": 20, "d": 10}, {"n": 2000, "k": 100, "d": 64}]
TINY = {"n": 300, "k": 7, "d": 5}
TEMPERATURE = 1.0
CHUNK = 2000  # rows of the truth at a time
GAP = 2e-3  # of the balanced cost; the search ends at half of it
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# --- kmeans_loss, soft


def soft_gemm(x: Tensor, centers: Tensor) -> Tensor:
    sq_dists = sq_dists_gemm(x, centers)
    return ((sq_dists / -TEMPERATURE).softmax(1) * sq_dists).sum(1).mean()


def truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    """In float64, a chunk of rows at a time."""
    x, centers = (inputs[name].double() for name in ("x", "centers"))
    loss, grad_x, grad_centers = 0.0, [], torch.zeros_like(centers)
    for rows in x.split(CHUNK):
        leaves = rows.clone().requires_grad_(), centers.clone().requires_grad_()
        sq_dists = torch.cdist(*leaves, compute_mode="donot_use_mm_for_euclid_dist").square()
        part = ((sq_dists / -TEMPERATURE).softmax(1) * sq_dists).sum() / len(x)
        loss += part.detach()
        if gradients:
            of_rows, of_centers = torch.autograd.grad(part, leaves)
            grad_x.append(of_rows)
            grad_centers += of_centers
    found: dict[str, Tensor | Rows] = {"loss": torch.as_tensor(loss)}
    return found | ({"grad_x": torch.cat(grad_x), "grad_centers": grad_centers} if gradients else {})


def cost(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """One product for the distances, two for the gradients."""
    products = {"forward": 1, "backward": 2, "both": 3}[mode]
    return Cost(flops=2.0 * products * n * k * d, bytes_moved=float((1 if mode == "forward" else 2) * n * d * itemsize))


def make_soft(backend: str) -> Callable[..., Tensor]:
    from fastdc.kernels.kmeans import kmeans_loss

    return partial(kmeans_loss, mode="soft", temperature=TEMPERATURE, backend=backend)


def matrices(number: int) -> Callable[..., int]:
    return lambda *, n, k, d, itemsize: number * n * k * itemsize


# --- balanced_assignment


def with_capacity(n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Most rows near few centers, so that capacities bind."""
    given = mixture(n, k, d, dtype, device, seed)
    return {"x": (given["x"] * 0.5).to(dtype), "centers": given["centers"]}


def optimum(x: Tensor, centers: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    n, k = len(x), len(centers)
    sq_dists = torch.cdist(x.double(), centers.double()).square()
    places = torch.arange(k).repeat_interleave(-(-n // k))
    rows, chosen = linear_sum_assignment(sq_dists[:, places].numpy())
    return sq_dists[torch.from_numpy(rows), places[torch.from_numpy(chosen)]].sum()


def make_balanced() -> Callable[..., Tensor]:
    from fastdc.kernels.kmeans import balanced_assignment

    return lambda x, centers: balanced_assignment(x, centers).cost


def balanced_cost(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """Each row looks at each center at least once."""
    return Cost(flops=2.0 * n * k * d, bytes_moved=float(n * d * itemsize))


BENCHES: list[Any] = [
    Bench(
        op="kmeans_loss",
        shapes=SHAPES,
        tiny=TINY,
        inputs=mixture,
        outputs=("loss",),
        gradients=("x", "centers"),
        truth=truth,
        cost=cost,
        providers={
            "reference": Provider(
                partial(make_soft, "reference"), lambda *, n, k, d, itemsize: (2 * n * k * d + 4 * n * k) * itemsize
            ),
            "numba": Provider(partial(make_soft, "numba"), devices=("cpu",)),
            "triton": Provider(partial(make_soft, "triton"), devices=("cuda",)),
            "eager_gemm": Provider(partial(make_plain, soft_gemm), matrices(6), tolerance=0.1),
            "torch_compile_gemm": Provider(
                partial(make_compiled, soft_gemm), matrices(3), compiles_each_shape=True, tolerance=0.1
            ),
        },
    ),
    Bench(
        op="balanced_assignment",
        shapes=BALANCED_SHAPES,
        tiny=TINY,
        inputs=with_capacity,
        outputs=("cost",),
        truth=lambda inputs, gradients: {"cost": optimum(inputs["x"].cpu(), inputs["centers"].cpu())},
        cost=balanced_cost,
        providers={
            "numba": Provider(make_balanced, devices=("cpu",)),
            "scipy": Provider(lambda: optimum, devices=("cpu",)),
        },
        tolerances=dict.fromkeys(FLOATS, GAP),
    ),
]
