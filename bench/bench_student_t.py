"""The soft assignment of DEC, and the statistics of a refresh."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows, make_compiled, make_plain
from bench._student_t import (
    assign_broadcast,
    assign_gemm,
    checked_rows,
    exact_chunks,
    exact_gradients,
    mixture,
    statistics_gemm,
)

SHAPES = [
    {"n": 1_000_000, "k": 10, "d": 10},
    {"n": 200_000, "k": 100, "d": 64},
    {"n": 50_000, "k": 1000, "d": 128},
]
TINY = {"n": 300, "k": 7, "d": 5}


def make_fastdc(op: str, backend: str) -> Callable[..., Any]:
    from fastdc.kernels import student_t

    return partial(getattr(student_t, op), backend=backend)


def assign_inputs(*, n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    grad_output = torch.randn(n, k, generator=torch.Generator().manual_seed(seed + 1))
    return {**mixture(n, k, d, dtype, device, seed), "grad_output": grad_output.to(device, dtype)}


def statistics_inputs(*, n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    previous = torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed + 1))
    return {**mixture(n, k, d, dtype, device, seed), "previous_labels": previous.to(device)}


def assign_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    """q at some rows; the gradients at all."""
    checked = checked_rows(inputs["x"].shape[0], inputs["x"].device)
    few = assign_gemm(inputs["x"][checked].double(), inputs["centers"].double())
    if not gradients:
        return {"q": Rows(checked, few)}
    grad_output = inputs["grad_output"]
    exact = exact_gradients(inputs, lambda rows, q: (q * grad_output[rows].double()).sum())
    return {"q": Rows(checked, few), **exact}


def statistics_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    parts = [
        statistics_gemm(x, centers, inputs["previous_labels"][rows])
        for rows, x, centers, _ in exact_chunks(inputs, requires_grad=False)
    ]
    labels, confidence, frequency, n_changed, entropy = zip(*parts)
    return {
        "labels": torch.cat(labels),
        "confidence": torch.cat(confidence),
        "frequency": torch.stack(frequency).sum(0),
        "n_changed": torch.stack(n_changed).sum(),
        "entropy": torch.cat(entropy),
    }


def label_error(got: Tensor, expected: Tensor, inputs: Inputs) -> float:
    """How much farther a chosen center is than the nearest, relative to 1 plus its squared distance."""
    x, centers = inputs["x"].double(), inputs["centers"].double()
    if int(got.min()) < 0 or int(got.max()) >= centers.shape[0]:
        return float("inf")
    nearest = (x - centers[expected]).square().sum(1)
    chosen = (x - centers[got]).square().sum(1)
    return float(((chosen - nearest) / (1.0 + nearest)).abs().max())


def gemm_bytes(*, n: int, k: int, d: int, itemsize: int) -> int:
    """Distances, kernel values and their gradients: seven n x k matrices beside q."""
    return 7 * n * k * itemsize


def compiled_bytes(*, n: int, k: int, d: int, itemsize: int) -> int:
    """What fusion leaves of them: two."""
    return 2 * n * k * itemsize


def broadcast_bytes(*, n: int, k: int, d: int, itemsize: int) -> int:
    """Four n x k x d tensors in the backward pass (differences, their doubles, gradients), and q."""
    return (4 * n * k * d + n * k) * itemsize


def assign_cost(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """One product for q, which is written; two for the gradients, which read x and the gradient of q."""
    products = {"forward": 1, "backward": 2, "both": 3}[mode]
    forward, backward = n * d + n * k, 2 * n * d + 2 * n * k
    moved = {"forward": forward, "backward": backward, "both": forward + backward}[mode]
    return Cost(flops=2.0 * products * n * k * d, bytes_moved=float(moved * itemsize))


def statistics_cost(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """One product, one pass; two labels and two figures a row."""
    return Cost(flops=2.0 * n * k * d, bytes_moved=float(n * (d * itemsize + 2 * itemsize + 16)))


def _providers(op: str, plain: dict[str, Callable[..., Any]]) -> dict[str, Provider]:
    """Our three backends, and plain torch forms; of "eager_gemm" a compiled twin."""
    providers = {
        "reference": Provider(partial(make_fastdc, op, "reference"), broadcast_bytes),
        "numba": Provider(partial(make_fastdc, op, "numba"), devices=("cpu",)),
        "triton": Provider(partial(make_fastdc, op, "triton"), devices=("cuda",)),
    }
    for name, function in plain.items():
        needed = broadcast_bytes if name == "broadcast" else gemm_bytes
        providers[name] = Provider(partial(make_plain, function), needed)
    providers["torch_compile_gemm"] = Provider(
        partial(make_compiled, plain["eager_gemm"]), compiled_bytes, compiles_each_shape=True
    )
    return providers


BENCHES = [
    Bench(
        op="student_t_assign",
        shapes=SHAPES,
        tiny=TINY,
        inputs=assign_inputs,
        outputs=("q",),
        gradients=("x", "centers"),
        truth=assign_truth,
        cost=assign_cost,
        providers=_providers("student_t_assign", {"eager_gemm": assign_gemm, "broadcast": assign_broadcast}),
    ),
    Bench(
        op="student_t_statistics",
        shapes=SHAPES,
        tiny=TINY,
        inputs=statistics_inputs,
        outputs=("labels", "confidence", "frequency", "n_changed", "entropy"),
        truth=statistics_truth,
        cost=statistics_cost,
        errors={"labels": label_error},
        providers=_providers("student_t_statistics", {"eager_gemm": statistics_gemm}),
    ),
]
