"""Torch operators of the CPU kernel of the consistency of neighbours, which takes the entropy into the same passes.

The gradient of the entropy is known only when all rows have been seen, so that both gradients are made in the
backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype


def _kernels() -> Any:
    from fastdc.kernels.graph import numba_consistency

    return numba_consistency


def consistency_loss(anchor: Tensor, neighbor: Tensor, entropy_weight: float, from_logits: bool) -> Tensor:
    """Mean over rows of -log <p_i, p_j>, less the weighted entropy of the mean p_i."""
    direct = without_gradient(anchor, neighbor) and is_eager(anchor, neighbor)
    run = _kernels().consistency_loss if direct else LOSS
    return run(anchor, neighbor, entropy_weight, from_logits)[0]


@torch.library.custom_op("fastdc::neighbor_consistency_numba", mutates_args=())
def _loss(anchor: Tensor, neighbor: Tensor, entropy_weight: float, from_logits: bool) -> tuple[Tensor, Tensor]:
    return _kernels().consistency_loss(anchor, neighbor, entropy_weight, from_logits)


@_loss.register_fake
def _(anchor: Tensor, neighbor: Tensor, entropy_weight: float, from_logits: bool) -> tuple[Tensor, Tensor]:
    return (
        anchor.new_empty((), dtype=working_dtype(anchor, neighbor)),
        anchor.new_empty((anchor.shape[1] if entropy_weight else 0,), dtype=torch.float64),
    )


@torch.library.custom_op("fastdc::neighbor_consistency_backward_numba", mutates_args=())
def _gradients(
    anchor: Tensor,
    neighbor: Tensor,
    mass: Tensor,
    grad_loss: Tensor,
    entropy_weight: float,
    from_logits: bool,
    need_anchor: bool,
    need_neighbor: bool,
) -> tuple[Tensor, Tensor]:
    kernel = _kernels().consistency_gradients
    return kernel(anchor, neighbor, mass, grad_loss, entropy_weight, from_logits, need_anchor, need_neighbor)


@_gradients.register_fake
def _(
    anchor: Tensor,
    neighbor: Tensor,
    mass: Tensor,
    grad_loss: Tensor,
    entropy_weight: float,
    from_logits: bool,
    need_anchor: bool,
    need_neighbor: bool,
) -> tuple[Tensor, Tensor]:
    n, k = anchor.shape
    return anchor.new_empty((n if need_anchor else 0, k)), neighbor.new_empty((n if need_neighbor else 0, k))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    anchor, neighbor, *ctx.options = inputs
    ctx.save_for_backward(anchor, neighbor, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None, None]:
    if grad_loss is None:
        return None, None, None, None
    tensors = *ctx.saved_tensors, grad_loss
    needed = ctx.needs_input_grad[:2]
    direct = without_gradient(*tensors) and is_eager(*tensors)
    run = _kernels().consistency_gradients if direct else _gradients
    gradients = run(*tensors, *ctx.options, *needed)
    grad_anchor, grad_neighbor = (g if need else None for g, need in zip(gradients, needed))
    return grad_anchor, grad_neighbor, None, None


_loss.register_autograd(_backward, setup_context=_setup_context)
LOSS = _loss
