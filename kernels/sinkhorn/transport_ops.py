"""One torch operator an implementation of optimal transport between rows and prototypes or centers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import register_gradients
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.sinkhorn.iterate import Marginals

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.sinkhorn import numba_transport

        return numba_transport
    from fastdc.kernels.sinkhorn import chunks

    return chunks


def _run(
    what: str,
    backend: str,
    x: Tensor,
    centers: Tensor,
    weights: tuple[Tensor | None, Tensor | None],
    scalars: list[float],
    group: Any = None,
    *more: Any,
) -> Any:
    epsilon, n_iters, tol = scalars
    shape = (x.shape[0], centers.shape[0])
    marginals = Marginals(*weights, shape, x.device, group)
    return getattr(_kernels(backend), what)(x, centers, marginals, epsilon, int(n_iters), tol, *more)


def assign(backend: str, x: Tensor, centers: Tensor, weights: Any, scalars: list[float], group: Any) -> Tensor:
    """q (n, k). weights: marginals of rows and columns; scalars: epsilon, n_iters, and tol or zero."""
    if group is not None or is_eager(x, centers, *weights):
        return _run("assign", backend, x, centers, weights, scalars, group)
    return ASSIGN[backend](x, centers, *weights, scalars)


def label(
    backend: str, x: Tensor, centers: Tensor, weights: Any, scalars: list[float], group: Any
) -> tuple[Tensor, Tensor]:
    """labels (n,) and confidence (n,)."""
    if group is not None or is_eager(x, centers, *weights):
        return _run("label", backend, x, centers, weights, scalars, group)
    return LABEL[backend](x, centers, *weights, scalars)


def cost(backend: str, x: Tensor, centers: Tensor, weights: Any, scalars: list[float]) -> Tensor:
    """<P, C>."""
    if without_gradient(x, centers) and is_eager(x, centers, *weights):
        return _run("cost", backend, x, centers, weights, scalars, None, [False, False])[0]
    needs = [torch.is_grad_enabled() and t.requires_grad for t in (x, centers)]
    return COST[backend](x, centers, *weights, scalars, needs)[0]


def _register_assign(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::sinkhorn_assign_features_{backend}", mutates_args=())
    def operator(
        x: Tensor,
        prototypes: Tensor,
        row_marginal: Tensor | None,
        column_marginal: Tensor | None,
        scalars: list[float],
    ) -> Tensor:
        return _run("assign", backend, x, prototypes, (row_marginal, column_marginal), scalars)

    @operator.register_fake
    def _(
        x: Tensor,
        prototypes: Tensor,
        row_marginal: Tensor | None,
        column_marginal: Tensor | None,
        scalars: list[float],
    ) -> Tensor:
        return x.new_empty((x.shape[0], prototypes.shape[0]), dtype=working_dtype(x, prototypes))

    return operator


def _register_label(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::optimal_transport_labels_{backend}", mutates_args=())
    def operator(
        x: Tensor,
        prototypes: Tensor,
        row_marginal: Tensor | None,
        column_marginal: Tensor | None,
        scalars: list[float],
    ) -> tuple[Tensor, Tensor]:
        return _run("label", backend, x, prototypes, (row_marginal, column_marginal), scalars)

    @operator.register_fake
    def _(
        x: Tensor,
        prototypes: Tensor,
        row_marginal: Tensor | None,
        column_marginal: Tensor | None,
        scalars: list[float],
    ) -> tuple[Tensor, Tensor]:
        labels = x.new_empty(x.shape[:1], dtype=torch.int64)
        return labels, x.new_empty(x.shape[:1], dtype=working_dtype(x, prototypes))

    return operator


def _register_cost(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::optimal_transport_loss_{backend}", mutates_args=())
    def operator(
        x: Tensor,
        centers: Tensor,
        row_marginal: Tensor | None,
        column_marginal: Tensor | None,
        scalars: list[float],
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _run("cost", backend, x, centers, (row_marginal, column_marginal), scalars, None, needs)

    @operator.register_fake
    def _(
        x: Tensor,
        centers: Tensor,
        row_marginal: Tensor | None,
        column_marginal: Tensor | None,
        scalars: list[float],
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = working_dtype(x, centers)
        grad_x, grad_centers = (
            t.new_empty(t.shape if need else (0,), dtype=dtype) for t, need in zip((x, centers), needs)
        )
        return x.new_empty((), dtype=dtype), grad_x, grad_centers

    register_gradients(operator, n_tensors=4)
    return operator


ASSIGN = {backend: _register_assign(backend) for backend in COMPILED}
LABEL = {backend: _register_label(backend) for backend in COMPILED}
COST = {backend: _register_cost(backend) for backend in COMPILED}
