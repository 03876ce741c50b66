"""One torch operator an implementation, with shapes for tracing and gradients.

Operators are opaque to ``torch.compile``, so kernels may loop in Python; the kernels themselves are imported
when first called. Eager calls that need no gradient go to the kernels directly.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastdc.kernels._autograd import register_gradients
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.sinkhorn.reference import swapped_prediction_loss_reference

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.sinkhorn import numba_kernel

        return numba_kernel
    from fastdc.kernels.sinkhorn import triton_kernel

    return triton_kernel


# by name, since operators take no process groups; a group must not live on here once its users have dropped it
_groups: WeakValueDictionary[str, Any] = WeakValueDictionary()


def _swapped(
    z1: Tensor,
    z2: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    scalars: list[float],
    needs: list[bool],
    group: str = "",
) -> Any:
    from fastdc.kernels.sinkhorn import numba_swapped

    return numba_swapped.swapped_prediction_loss(z1, z2, prototypes, queue, scalars, needs, _groups.get(group))


def sinkhorn_assign(
    backend: str,
    scores: Tensor,
    epsilon: float,
    n_iters: int,
    tol: float | None = None,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
    group: Any = None,
) -> Tensor:
    options = (epsilon, n_iters, tol, row_marginal, column_marginal)
    if group is not None or is_eager(scores, row_marginal, column_marginal):
        return _kernels(backend).sinkhorn_assign(scores, *options, group)
    return ASSIGN[backend](scores, *options)


def swapped_prediction_loss(
    backend: str,
    z1: Tensor,
    z2: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    scalars: list[float],
    group: Any,
) -> Tensor:
    """scalars: temperature, epsilon, n_iters, and what the sum over rows is multiplied by."""
    if backend == "triton":
        temperature, epsilon, n_iters, share = scalars
        assign = partial(sinkhorn_assign, backend, epsilon=epsilon, n_iters=int(n_iters), group=group)
        return share * swapped_prediction_loss_reference(z1, z2, prototypes, queue, temperature, assign)
    name = ""
    if group is not None:
        name = group.group_name
        _groups[name] = group
    if without_gradient(z1, z2, prototypes) and is_eager(z1, z2, prototypes, queue):
        return _swapped(z1, z2, prototypes, queue, scalars, [False] * 3, name)[0]
    needs = [torch.is_grad_enabled() and t.requires_grad for t in (z1, z2, prototypes)]
    return swapped_prediction_loss_numba(z1, z2, prototypes, queue, scalars, needs, name)[0]


def _register_assign(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::sinkhorn_assign_{backend}", mutates_args=())
    def assign(
        scores: Tensor,
        epsilon: float,
        n_iters: int,
        tol: float | None,
        row_marginal: Tensor | None,
        column_marginal: Tensor | None,
    ) -> Tensor:
        return _kernels(backend).sinkhorn_assign(scores, epsilon, n_iters, tol, row_marginal, column_marginal)

    @assign.register_fake
    def _(
        scores: Tensor,
        epsilon: float,
        n_iters: int,
        tol: float | None,
        row_marginal: Tensor | None,
        column_marginal: Tensor | None,
    ) -> Tensor:
        return scores.new_empty(scores.shape, dtype=working_dtype(scores))

    return assign


@torch.library.custom_op("fastdc::swapped_prediction_loss_numba", mutates_args=())
def swapped_prediction_loss_numba(
    z1: Tensor,
    z2: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    scalars: list[float],  # temperature, epsilon, n_iters, share
    needs: list[bool],  # which gradients
    group: str,  # its name, empty for none
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _swapped(z1, z2, prototypes, queue, scalars, needs, group)


@swapped_prediction_loss_numba.register_fake
def _(
    z1: Tensor,
    z2: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    scalars: list[float],
    needs: list[bool],
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = working_dtype(z1, z2, prototypes)
    like = zip((z1, z2, prototypes), needs)
    grad1, grad2, grad_prototypes = (t.new_empty(t.shape if need else (0,), dtype=dtype) for t, need in like)
    return z1.new_empty((), dtype=dtype), grad1, grad2, grad_prototypes


register_gradients(swapped_prediction_loss_numba, n_tensors=4)
ASSIGN = {backend: _register_assign(backend) for backend in COMPILED}
