"""One torch operator an implementation, with shapes for tracing and gradients.

Operators are opaque to ``torch.compile``, so kernels may loop in Python; the kernels themselves are imported
when first called. Eager calls that need no gradient go to the kernels directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import register_gradients
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.student_t import numba_kernel

        return numba_kernel
    from fastdc.kernels.student_t import triton_kernel

    return triton_kernel


def student_t_assign(backend: str, x: Tensor, centers: Tensor, alpha: float, precision: str) -> Tensor:
    direct = without_gradient(x, centers) and is_eager(x, centers)
    run = _kernels(backend).student_t_assign if direct else ASSIGN[backend]
    return run(x, centers, alpha, precision)


def student_t_statistics(
    backend: str, x: Tensor, centers: Tensor, alpha: float, previous_labels: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    direct = is_eager(x, centers, previous_labels)
    run = _kernels(backend).student_t_statistics if direct else STATISTICS[backend]
    return run(x, centers, alpha, previous_labels, precision)


def target_distribution(
    backend: str, q: Tensor, frequency: Tensor | None, power: float, frequency_power: float
) -> Tensor:
    run = _kernels(backend).target_distribution if is_eager(q, frequency) else TARGET[backend]
    return run(q, frequency, power, frequency_power)


def dec_loss(
    backend: str, x: Tensor, centers: Tensor, target: Sequence[Tensor | None], scalars: list[float], precision: str
) -> Tensor:
    """target: p, target_x, target_centers, frequency; scalars: alpha, power, frequency_power, divisor."""
    if without_gradient(x, centers) and is_eager(x, centers, *target):
        return _kernels(backend).dec_loss(x, centers, target, scalars, precision, False, False)[0]
    grad_mode = torch.is_grad_enabled()
    needs = grad_mode and x.requires_grad, grad_mode and centers.requires_grad
    return DEC_LOSS[backend](x, centers, *target, scalars, precision, *needs)[0]


def _register_assign(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::student_t_assign_{backend}", mutates_args=())
    def assign(x: Tensor, centers: Tensor, alpha: float, precision: str) -> Tensor:
        return _kernels(backend).student_t_assign(x, centers, alpha, precision)

    @assign.register_fake
    def _(x: Tensor, centers: Tensor, alpha: float, precision: str) -> Tensor:
        return x.new_empty((x.shape[0], centers.shape[0]), dtype=working_dtype(x, centers))

    @torch.library.custom_op(f"fastdc::student_t_assign_backward_{backend}", mutates_args=())
    def assign_backward(
        x: Tensor,
        centers: Tensor,
        grad_q: Tensor,
        alpha: float,
        precision: str,
        need_x: bool,
        need_centers: bool,
    ) -> tuple[Tensor, Tensor]:
        return _kernels(backend).student_t_assign_backward(x, centers, grad_q, alpha, precision, need_x, need_centers)

    @assign_backward.register_fake
    def _(
        x: Tensor,
        centers: Tensor,
        grad_q: Tensor,
        alpha: float,
        precision: str,
        need_x: bool,
        need_centers: bool,
    ) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape if need_x else (0,)), centers.new_empty(centers.shape if need_centers else (0,))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, centers, ctx.alpha, ctx.precision = inputs
        ctx.save_for_backward(x, centers)

    def backward(ctx: Any, grad_q: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, centers = ctx.saved_tensors
        need_x, need_centers = ctx.needs_input_grad[:2]
        grad_x, grad_centers = assign_backward(x, centers, grad_q, ctx.alpha, ctx.precision, need_x, need_centers)
        return grad_x if need_x else None, grad_centers if need_centers else None, None, None

    assign.register_autograd(backward, setup_context=setup_context)
    return assign


def _register_statistics(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::student_t_statistics_{backend}", mutates_args=())
    def statistics(
        x: Tensor, centers: Tensor, alpha: float, previous_labels: Tensor | None, precision: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return _kernels(backend).student_t_statistics(x, centers, alpha, previous_labels, precision)

    @statistics.register_fake
    def _(
        x: Tensor, centers: Tensor, alpha: float, previous_labels: Tensor | None, precision: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        n, dtype = x.shape[0], working_dtype(x, centers)
        return (
            x.new_empty((n,), dtype=torch.int64),
            x.new_empty((n,), dtype=dtype),
            x.new_empty((centers.shape[0],), dtype=torch.float64),
            x.new_empty((), dtype=torch.int64),
            x.new_empty((n,), dtype=dtype),
        )

    return statistics


def _register_target(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::target_distribution_{backend}", mutates_args=())
    def target(q: Tensor, frequency: Tensor | None, power: float, frequency_power: float) -> Tensor:
        return _kernels(backend).target_distribution(q, frequency, power, frequency_power)

    @target.register_fake
    def _(q: Tensor, frequency: Tensor | None, power: float, frequency_power: float) -> Tensor:
        return q.new_empty(q.shape)

    return target


def _register_dec_loss(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::dec_loss_{backend}", mutates_args=())
    def loss(
        x: Tensor,
        centers: Tensor,
        target: Tensor | None,
        target_x: Tensor | None,
        target_centers: Tensor | None,
        frequency: Tensor | None,
        scalars: list[float],  # alpha, power, frequency_power, divisor of the sum over rows
        precision: str,
        need_x: bool,
        need_centers: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        target_forms = (target, target_x, target_centers, frequency)
        return _kernels(backend).dec_loss(x, centers, target_forms, scalars, precision, need_x, need_centers)

    @loss.register_fake
    def _(
        x: Tensor,
        centers: Tensor,
        target: Tensor | None,
        target_x: Tensor | None,
        target_centers: Tensor | None,
        frequency: Tensor | None,
        scalars: list[float],
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

    register_gradients(loss, n_tensors=6)
    return loss


ASSIGN = {backend: _register_assign(backend) for backend in COMPILED}
STATISTICS = {backend: _register_statistics(backend) for backend in COMPILED}
TARGET = {backend: _register_target(backend) for backend in COMPILED}
DEC_LOSS = {backend: _register_dec_loss(backend) for backend in COMPILED}
