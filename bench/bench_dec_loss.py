"""The loss of DEC with the target of the batch, and its gradients to points and centers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows
from bench._student_t import (
    dec_loss_broadcast,
    dec_loss_gemm,
    exact_chunks,
    exact_gradients,
    mixture,
)

SHAPES = [
    {"n": 1_000_000, "k": 10, "d": 10},
    {"n": 200_000, "k": 100, "d": 64},
    {"n": 50_000, "k": 1000, "d": 128},
]
TINY = {"n": 300, "k": 7, "d": 5}


def make_fastdc(backend: str) -> Callable[..., Tensor]:
    from fastdc.kernels.student_t import dec_loss

    return partial(dec_loss, backend=backend)


def make_compiled() -> Callable[..., Tensor]:
    return torch.compile(dec_loss_gemm)


def bytes_gemm(*, n: int, k: int, d: int, itemsize: int) -> int:
    """Distances, q, p, log q and their gradients: eight n x k matrices at the peak."""
    return 8 * n * k * itemsize


def bytes_broadcast(*, n: int, k: int, d: int, itemsize: int) -> int:
    """Four n x k x d tensors in the backward pass (differences, their doubles, gradients), and q."""
    return (4 * n * k * d + n * k) * itemsize


def bytes_compiled(*, n: int, k: int, d: int, itemsize: int) -> int:
    """What fusion leaves of the eager form: three n x k matrices."""
    return 3 * n * k * itemsize


def truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    """Loss and gradients in float64, without an n x k matrix: the frequency first, then chunks of rows."""
    n = inputs["x"].shape[0]
    frequency = torch.stack([q.sum(0) for *_, q in exact_chunks(inputs, requires_grad=False)]).sum(0)

    def loss_of(_: slice, q: Tensor) -> Tensor:
        weight = q.detach().square() / frequency
        p = weight / weight.sum(1, keepdim=True)
        return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum() / n

    loss = torch.stack([loss_of(rows, q) for rows, _, _, q in exact_chunks(inputs, requires_grad=False)]).sum()
    return {"loss": loss, **(exact_gradients(inputs, loss_of) if gradients else {})}


def cost(*, n: int, k: int, d: int, itemsize: int, mode: str) -> Cost:
    """Of an implementation that holds no n x k matrix.

    Forward: x and the centers are multiplied twice, since the frequency must be known before the first row of
    P. The gradients are two more products. x is read in each of the two passes, its gradient is written once.
    """
    products = {"forward": 2, "backward": 2, "both": 4}[mode]
    transfers = {"forward": 2, "backward": 2, "both": 3}[mode]
    return Cost(flops=2.0 * products * n * k * d, bytes_moved=float(transfers * n * d * itemsize))


# Autograd of the GEMM form has the gradient of a center as c_j sum_i w_ij - sum_i w_ij x_i. BLAS adds the n
# terms of the last sum in float32 one after another, and the difference is small: at a million rows 3 % of it
# are lost.
GEMM_TOLERANCE = 0.1

PROVIDERS = {
    "reference": Provider(partial(make_fastdc, "reference"), bytes_broadcast),
    "numba": Provider(partial(make_fastdc, "numba"), devices=("cpu",)),
    "triton": Provider(partial(make_fastdc, "triton"), devices=("cuda",)),
    "eager_gemm": Provider(lambda: dec_loss_gemm, bytes_gemm, tolerance=GEMM_TOLERANCE),
    "torch_compile_gemm": Provider(make_compiled, bytes_compiled, compiles_each_shape=True, tolerance=GEMM_TOLERANCE),
    "broadcast": Provider(lambda: dec_loss_broadcast, bytes_broadcast),
}

BENCHES = [
    Bench(
        op="dec_loss",
        shapes=SHAPES,
        tiny=TINY,
        inputs=mixture,
        outputs=("loss",),
        gradients=("x", "centers"),
        truth=truth,
        cost=cost,
        providers=PROVIDERS,
    )
]
