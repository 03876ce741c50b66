"""Gradients that a forward pass has computed already, handed out by the backward pass.

The forward pass of a loss knows its gradients up to the gradient of its output. They are kept in float32 or wider,
so that neither the division by the number of rows nor a loss scale flushes them to zero. The backward pass
multiplies them in place, so that there is never a second matrix of that size; a second backward pass over the
same graph (``retain_graph=True``) computes them again. Inputs may change in place before the first.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

REFERENCES_OF_KEPT = 2  # the list that keeps it, and the argument of getrefcount


@torch.library.custom_op("fastdc::scale_gradient", mutates_args=())
def scale_gradient(gradient: Tensor, factor: Tensor, dtype: torch.dtype, of: Tensor) -> Tensor:
    """gradient * factor in a given dtype.

    ``of`` is the input that it is the gradient of: it is not read, but makes the result depend on it, and since
    this operator has no gradient a second derivative raises instead of being zero.
    """
    scaled = gradient * factor
    return scaled if scaled.dtype == dtype else scaled.to(dtype)


@scale_gradient.register_fake
def _(gradient: Tensor, factor: Tensor, dtype: torch.dtype, of: Tensor) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


def register_gradients(op: Any, n_tensors: int) -> None:
    """Autograd of an operator that returns a loss and the gradients to its first inputs, empty where not needed.

    Its first ``n_tensors`` arguments are tensors or None, kept in case the gradients must be computed again.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:n_tensors])
        ctx.options, ctx.n_gradients = inputs[n_tensors:], len(output) - 1
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[: ctx.n_gradients]]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # else autograd fills a matrix of zeros for each of them
        ctx.gradients = list(output[1:])

    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        n_constants = n_tensors + len(ctx.options) - ctx.n_gradients
        if grad_loss is None:
            return (None,) * (ctx.n_gradients + n_constants)
        kept = ctx.gradients
        if kept is None:
            kept = list(op(*ctx.saved_tensors, *ctx.options)[1:])
        if _is_plain(grad_loss, *kept):
            ctx.gradients = None  # from now on the caller of the backward pass owns the memory
            gradients = _give_away(ctx, kept, grad_loss)
        else:
            of = zip(kept, ctx.saved_tensors, ctx.needs_input_grad)
            gradients = [scale_gradient(own, grad_loss, x.dtype, x) if needed else None for own, x, needed in of]
        return (*gradients, *(None,) * n_constants)

    op.register_autograd(backward, setup_context=setup_context)


def _give_away(ctx: Any, kept: list[Tensor], factor: Tensor) -> list[Tensor | None]:
    """The kept gradients times the factor, None where none is needed.

    Does not look at the inputs, which may have changed since: a memory bank often has, before the backward pass.
    """
    handed: list[Tensor | None] = []
    for index, (dtype, needed) in enumerate(zip(ctx.dtypes, ctx.needs_input_grad)):
        if not needed:
            handed.append(None)
        elif sys.getrefcount(kept[index]) == REFERENCES_OF_KEPT:
            handed.append(_scale_in_place(kept[index], factor).to(dtype))
        else:  # an output of the operator that somebody else holds must not change
            handed.append((kept[index] * factor).to(dtype))
    return handed


def refuse_transforms(op: str, *tensors: Tensor | None) -> None:
    """Forward-mode derivatives would be dropped without a word, and func.grad has no rule: say so."""
    if torch.compiler.is_compiling():
        return
    interpreter = torch._C._functorch.peek_interpreter_stack()
    transformed = interpreter is not None and interpreter.key() != TransformType.Vmap
    dual = forward_ad._current_level >= 0 and any(
        x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors
    )
    if transformed or dual:
        raise NotImplementedError(
            f"{op} has no rule for torch.func.grad, jvp and forward-mode derivatives; use backward() or "
            "torch.autograd.grad, or backend='reference'"
        )


def _scale_in_place(gradient: Tensor, factor: Tensor) -> Tensor:
    if factor.device.type == "cpu" and factor.item() == 1.0:  # a look at a GPU's number would wait for it
        return gradient
    return gradient.mul_(factor)


def _is_plain(*tensors: Tensor) -> bool:
    """Eager and first order: no graph is being built, nothing is traced and no functorch transform is active."""
    return (
        not torch.is_grad_enabled()
        and all(type(t) is Tensor for t in tensors)
        and torch._C._functorch.peek_interpreter_stack() is None
    )
