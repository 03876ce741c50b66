"""Optimal transport from features: labels of whole data, codes, and the clustering loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows
from bench.bench_sinkhorn import codes_log_domain, codes_swav, codes_vectors, compiled, matrices, ours, views_of

N_ITERS = 3
SHAPES = [{"n": 16384, "k": 1000, "d": 128}, {"n": 4096, "k": 3000, "d": 128}]
LOSS_SHAPES = [{"n": 16384, "k": 100, "d": 64}, {"n": 4096, "k": 1000, "d": 128}]
EPSILON_OF_LOSS, ITERS_OF_LOSS = 0.1, 10


def features_of(n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    views = views_of(n, k, d, dtype, device, seed)
    return {"x": views["z1"], "prototypes": views["prototypes"]}


def points_of(n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    views = views_of(n, k, d, dtype, device, seed)
    return {"x": views["z1"], "centers": views["prototypes"]}


# --- plain torch


def codes_of(codes: Callable[[Tensor], Tensor], x: Tensor, prototypes: Tensor) -> Tensor:
    return codes(x @ prototypes.T)


def confidence_of(codes: Callable[[Tensor], Tensor], x: Tensor, prototypes: Tensor) -> Tensor:
    return codes(x @ prototypes.T).max(dim=1).values


def transport_cost(x: Tensor, centers: Tensor) -> Tensor:
    """The log domain over a matrix of squared distances, from a product."""
    cost = x.square().sum(dim=1, keepdim=True) - 2 * (x @ centers.T) + centers.square().sum(dim=1)
    n, k = cost.shape
    with torch.no_grad():
        log_p, u = -cost / EPSILON_OF_LOSS, torch.zeros_like(cost[:, 0])
        a, b = torch.full_like(u, 1.0 / n).log(), torch.full_like(cost[0], 1.0 / k).log()
        for _ in range(ITERS_OF_LOSS):
            v = b - (log_p + u[:, None]).logsumexp(0)
            u = a - (log_p + v).logsumexp(1)
        plan = (log_p + u[:, None] + v).exp()
    return (plan * cost).sum()


# --- truth and cost


def truth_of_codes(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    return {"q": codes_of(codes_log_domain, inputs["x"].double(), inputs["prototypes"].double())}


def truth_of_labels(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    return {"confidence": confidence_of(codes_log_domain, inputs["x"].double(), inputs["prototypes"].double())}


def truth_of_loss(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    leaves = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    loss = transport_cost(**leaves)
    found: dict[str, Tensor | Rows] = {"loss": loss.detach()}
    if gradients:
        found.update((f"grad_{n}", g) for n, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    return found


def cost_of_codes(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """One product into the result, which is read once an iteration and written once more."""
    return Cost(flops=2.0 * n * k * d, bytes_moved=float(((N_ITERS + 2) * k + d) * n * itemsize))


def cost_of_labels(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """Of an implementation that holds no scores: their product once an iteration and once for the result."""
    return Cost(flops=2.0 * (N_ITERS + 1) * n * k * d, bytes_moved=float((N_ITERS + 1) * n * d * itemsize))


def cost_of_loss(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """One product for the distances and two for the gradients; where distances are not held there are more."""
    products = {"forward": 1, "backward": 2, "both": 3}[mode]
    return Cost(flops=2.0 * products * n * k * d, bytes_moved=float(4 * n * d * itemsize))


# --- providers


def make_codes(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.sinkhorn import sinkhorn_assign_features

    return partial(sinkhorn_assign_features, epsilon=0.05, n_iters=N_ITERS, backend=backend)


def make_labels(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.sinkhorn import optimal_transport_labels

    def confidence(x: Tensor, prototypes: Tensor) -> Tensor:
        return optimal_transport_labels(x, prototypes, 0.05, N_ITERS, tol=None, backend=backend).confidence

    return confidence


def make_loss(backend: str) -> Callable[..., Any]:
    from fastdc.kernels.sinkhorn import optimal_transport_loss

    return partial(optimal_transport_loss, epsilon=EPSILON_OF_LOSS, n_iters=ITERS_OF_LOSS, tol=None, backend=backend)


def plain_forms(form: Callable[..., Tensor]) -> dict[str, Provider]:
    return {
        "eager_swav": Provider(lambda: partial(form, codes_swav), matrices(3)),
        "eager_vectors": Provider(lambda: partial(form, codes_vectors), matrices(3)),
        "torch_compile_swav": compiled(partial(form, codes_swav), 3),
    }


BENCHES = [
    Bench(
        op="sinkhorn_assign_features",
        shapes=SHAPES,
        tiny={"n": 70, "k": 9, "d": 5},
        inputs=features_of,
        outputs=("q",),
        truth=truth_of_codes,
        cost=cost_of_codes,
        providers=ours(make_codes, 11) | plain_forms(codes_of),
    ),
    Bench(
        op="optimal_transport_labels",
        shapes=SHAPES,
        tiny={"n": 70, "k": 9, "d": 5},
        inputs=features_of,
        outputs=("confidence",),
        truth=truth_of_labels,
        cost=cost_of_labels,
        providers=ours(make_labels, 11) | plain_forms(confidence_of),
    ),
    Bench(
        op="optimal_transport_loss",
        shapes=LOSS_SHAPES,
        tiny={"n": 70, "k": 9, "d": 5},
        inputs=points_of,
        outputs=("loss",),
        gradients=("x", "centers"),
        truth=truth_of_loss,
        cost=cost_of_loss,
        providers=ours(make_loss, 200)
        | {
            "eager": Provider(lambda: transport_cost, matrices(6)),
            "torch_compile": compiled(transport_cost, 4),
        },
    ),
]
