"""One torch operator an implementation, with shapes for tracing and gradients.

Operators are opaque to ``torch.compile``, so kernels may loop in Python and look at numbers; the kernels
themselves are imported when first called. Eager calls that need no gradient go to them directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import register_gradients
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype

COMPILED = ("numba", "triton")
N_LEAVES = 6  # of the loss: z, mu, log_var, means, log_vars, log_weights


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.gaussian_mixture import numba_kernel

        return numba_kernel
    from fastdc.kernels.gaussian_mixture import triton_kernel

    return triton_kernel


def _loss_kernel(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.gaussian_mixture import numba_vade

        return numba_vade.vade_loss
    from fastdc.kernels.gaussian_mixture import triton_vade

    return triton_vade.vade_loss


def gmm_rows(
    backend: str,
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    covariance_type: str,
    want_responsibilities: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Responsibilities (n, k), of no rows where not wanted; log density (n,) and labels (n,)."""
    run = _kernels(backend).gmm_rows if is_eager(x, means, covariances, weights) else ROWS[backend]
    return run(x, means, covariances, weights, covariance_type, want_responsibilities)


def gmm_step(
    backend: str,
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    sample_weight: Tensor | None,
    covariance_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = _kernels(backend).gmm_step if is_eager(x, means, covariances, weights, sample_weight) else STEP[backend]
    return run(x, means, covariances, weights, sample_weight, covariance_type)


def vade_loss(backend: str, leaves: list[Tensor], detach_responsibilities: bool) -> Tensor:
    """Sum over rows, of the six tensors ``leaves``."""
    if without_gradient(*leaves) and is_eager(*leaves):
        return _loss_kernel(backend)(*leaves, detach_responsibilities, [False] * N_LEAVES)[0]
    needs = [torch.is_grad_enabled() and t.requires_grad for t in leaves]
    return LOSS[backend](*leaves, detach_responsibilities, needs)[0]


def _register_rows(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::gmm_rows_{backend}", mutates_args=())
    def rows(
        x: Tensor,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor,
        covariance_type: str,
        want_responsibilities: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _kernels(backend).gmm_rows(x, means, covariances, weights, covariance_type, want_responsibilities)

    @rows.register_fake
    def _(
        x: Tensor,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor,
        covariance_type: str,
        want_responsibilities: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, k, dtype = x.shape[0], means.shape[0], working_dtype(x, means)
        return (
            x.new_empty((n if want_responsibilities else 0, k), dtype=dtype),
            x.new_empty((n,), dtype=dtype),
            x.new_empty((n,), dtype=torch.int64),
        )

    return rows


def _register_step(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::gmm_step_{backend}", mutates_args=())
    def step(
        x: Tensor,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor,
        sample_weight: Tensor | None,
        covariance_type: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return _kernels(backend).gmm_step(x, means, covariances, weights, sample_weight, covariance_type)

    @step.register_fake
    def _(
        x: Tensor,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor,
        sample_weight: Tensor | None,
        covariance_type: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return (
            x.new_empty((), dtype=torch.float64),
            x.new_empty(means.shape[0], dtype=torch.float64),
            x.new_empty(means.shape, dtype=torch.float64),
            x.new_empty(covariances.shape, dtype=torch.float64),
            x.new_empty((), dtype=torch.int64),
        )

    return step


def _register_loss(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::vade_loss_{backend}", mutates_args=())
    def loss(
        z: Tensor,
        mu: Tensor,
        log_var: Tensor,
        means: Tensor,
        log_vars: Tensor,
        log_weights: Tensor,
        detach_responsibilities: bool,
        needs: list[bool],  # which gradients
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        leaves = (z, mu, log_var, means, log_vars, log_weights)
        return _loss_kernel(backend)(*leaves, detach_responsibilities, needs)

    @loss.register_fake
    def _(
        z: Tensor,
        mu: Tensor,
        log_var: Tensor,
        means: Tensor,
        log_vars: Tensor,
        log_weights: Tensor,
        detach_responsibilities: bool,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        leaves = (z, mu, log_var, means, log_vars, log_weights)
        dtype = working_dtype(*leaves)
        g = [t.new_empty(t.shape if need else (0,), dtype=dtype) for t, need in zip(leaves, needs)]
        return z.new_empty((), dtype=dtype), g[0], g[1], g[2], g[3], g[4], g[5]

    register_gradients(loss, n_tensors=N_LEAVES)
    return loss


ROWS = {backend: _register_rows(backend) for backend in COMPILED}
STEP = {backend: _register_step(backend) for backend in COMPILED}
LOSS = {backend: _register_loss(backend) for backend in COMPILED}
