"""The loss as one torch operator a compiled implementation: shapes for tracing, and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import register_gradients
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.kmeans import numba_loss

        return numba_loss
    from fastdc.kernels.kmeans import triton_loss

    return triton_loss


def kmeans_loss(
    backend: str, x: Tensor, centers: Tensor, labels: Tensor | None, temperature: float | None, precision: str
) -> Tensor:
    """The mean over rows; ``temperature`` is None for the hard loss."""
    if without_gradient(x, centers) and is_eager(x, centers, labels):
        return _kernels(backend).kmeans_loss(x, centers, labels, temperature, precision, False, False)[0]
    grad_mode = torch.is_grad_enabled()
    needs = grad_mode and x.requires_grad, grad_mode and centers.requires_grad
    return LOSS[backend](x, centers, labels, temperature, precision, *needs)[0]


def _register(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::kmeans_loss_{backend}", mutates_args=())
    def loss(
        x: Tensor,
        centers: Tensor,
        labels: Tensor | None,
        temperature: float | None,
        precision: str,
        need_x: bool,
        need_centers: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _kernels(backend).kmeans_loss(x, centers, labels, temperature, precision, need_x, need_centers)

    @loss.register_fake
    def _(
        x: Tensor,
        centers: Tensor,
        labels: Tensor | None,
        temperature: float | None,
        precision: str,
        need_x: bool,
        need_centers: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = working_dtype(x, centers)
        return (
            x.new_empty((), dtype=dtype),
            x.new_empty(x.shape if need_x else (0,), dtype=dtype),
            x.new_empty(centers.shape if need_centers else (0,), dtype=dtype),
        )

    register_gradients(loss, n_tensors=3)
    return loss


LOSS = {backend: _register(backend) for backend in COMPILED}
