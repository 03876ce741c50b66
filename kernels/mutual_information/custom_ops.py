"""One torch operator an implementation, with shapes for tracing and gradients.

Tensors are (n_heads, n_samples, n_clusters). Kernels are imported when first called; eager calls that need no
gradient go to them directly.
"""

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
        from fastdc.kernels.mutual_information import numba_kernel

        return numba_kernel
    from fastdc.kernels.mutual_information import triton_kernel

    return triton_kernel


def entropy_rows(backend: str, x: Tensor, from_logits: bool, want_entropy: bool) -> tuple[Tensor, Tensor]:
    """Entropy of each row (h, n), of length 0 where not wanted, and sum of p over rows (h, k), float64."""
    direct = without_gradient(x) and is_eager(x)
    run = _kernels(backend).entropy_rows if direct else ENTROPY_ROWS[backend]
    return run(x, from_logits, want_entropy)


def vat_kl(backend: str, perturbed: Tensor, logits: Tensor) -> Tensor:
    """Sum over rows of KL(softmax(logits) || softmax(perturbed)); a gradient to the first argument only."""
    if without_gradient(perturbed) and is_eager(perturbed, logits):
        return _kernels(backend).vat_kl(perturbed, logits, False)[0]
    needed = torch.is_grad_enabled() and perturbed.requires_grad
    return VAT_KL[backend](perturbed, logits, needed)[0]


def _register_entropy_rows(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::entropy_rows_{backend}", mutates_args=())
    def rows(x: Tensor, from_logits: bool, want_entropy: bool) -> tuple[Tensor, Tensor]:
        return _kernels(backend).entropy_rows(x, from_logits, want_entropy)

    @rows.register_fake
    def _(x: Tensor, from_logits: bool, want_entropy: bool) -> tuple[Tensor, Tensor]:
        heads, n, k = x.shape
        return (
            x.new_empty((heads, n) if want_entropy else (0,), dtype=working_dtype(x)),
            x.new_empty((heads, k), dtype=torch.float64),
        )

    @torch.library.custom_op(f"fastdc::entropy_rows_backward_{backend}", mutates_args=())
    def rows_backward(
        x: Tensor, mass: Tensor, grad_entropy: Tensor | None, grad_mass: Tensor | None, from_logits: bool
    ) -> Tensor:
        # a constant added to grad_mass changes no gradient of logits; without the mean there are more digits left
        if grad_mass is None:
            slope = torch.zeros_like(mass)
        elif from_logits:
            slope = grad_mass - (grad_mass * mass).sum(dim=1, keepdim=True) / x.shape[1]
        else:
            slope = grad_mass
        return _kernels(backend).entropy_rows_backward(x, grad_entropy, slope, from_logits)

    @rows_backward.register_fake
    def _(x: Tensor, mass: Tensor, grad_entropy: Tensor | None, grad_mass: Tensor | None, from_logits: bool) -> Tensor:
        return x.new_empty(x.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.from_logits, ctx.want_entropy = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, output[1])

    def backward(ctx: Any, grad_entropy: Tensor | None, grad_mass: Tensor | None) -> tuple[Tensor | None, None, None]:
        if not ctx.want_entropy:
            grad_entropy = None
        if grad_entropy is None and grad_mass is None:
            return None, None, None
        return rows_backward(*ctx.saved_tensors, grad_entropy, grad_mass, ctx.from_logits), None, None

    rows.register_autograd(backward, setup_context=setup_context)
    return rows


def _register_vat_kl(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::vat_kl_{backend}", mutates_args=())
    def kl(perturbed: Tensor, logits: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor]:
        return _kernels(backend).vat_kl(perturbed, logits, need_gradient)

    @kl.register_fake
    def _(perturbed: Tensor, logits: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor]:
        dtype = working_dtype(perturbed, logits)
        return (
            perturbed.new_empty((), dtype=dtype),
            perturbed.new_empty(perturbed.shape if need_gradient else (0,), dtype=dtype),
        )

    register_gradients(kl, n_tensors=2)
    return kl


ENTROPY_ROWS = {backend: _register_entropy_rows(backend) for backend in COMPILED}
VAT_KL = {backend: _register_vat_kl(backend) for backend in COMPILED}
