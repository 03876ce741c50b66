"""Gradients that a forward pass has computed already, handed out by the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("fastdc::scale_gradient", mutates_args=())
def scale_gradient(saved: Tensor, grad_output: Tensor, divisor: float, dtype: torch.dtype) -> Tensor:
    """saved * grad_output / divisor in a given dtype. It has no gradient: a second derivative raises."""
    return (saved * (grad_output / divisor)).to(dtype)


@scale_gradient.register_fake
def _(saved: Tensor, grad_output: Tensor, divisor: float, dtype: torch.dtype) -> Tensor:
    return saved.new_empty(saved.shape, dtype=dtype)


def scaled_gradient(saved: Tensor, grad_output: Tensor, divisor: float, dtype: torch.dtype) -> Tensor:
    """The gradient of a loss whose row sum has the gradient ``saved``."""
    return scale_gradient(saved, grad_output, divisor, dtype)
