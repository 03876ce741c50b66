"""One torch operator an implementation, with shapes for tracing and gradients.

Operators are opaque to ``torch.compile``, so kernels may loop in Python; the kernels themselves are imported
when first called. Eager calls that need no gradient go to the kernels directly.

All losses of the room rest on one operation: for anchors (n, d) and keys (m, d), which are the anchors where None,

    rows[i] = log sum_j exp(scale a_i . k_j) - scale a_i . k_p(i)

where p are the ``positives`` (without them nothing is subtracted) and the key i + self_offset does not count (no key
where it is negative; without keys it is 0). The first n_columns keys have sums over anchors of their own, ``columns``,
less the product with the anchor that they are the positive of; no two anchors share a positive then, and without keys
positives come in pairs. All results are float64. The states (3, n) and (3, n_columns) are those of ``sums.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms, register_gradients
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.contrastive.reference import contrast_reference
from fastdc.kernels.contrastive.sums import STATE

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.contrastive import numba_kernel

        return numba_kernel
    from fastdc.kernels.contrastive import triton_kernel

    return triton_kernel


def contrast(
    backend: str,
    anchors: Tensor,
    keys: Tensor | None,
    positives: Tensor | None,
    scale: float,
    self_offset: int = -1,
    n_columns: int = 0,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """(rows, columns) by any backend; the tensors are of one floating dtype."""
    if backend == "reference":
        return contrast_reference(anchors, keys, positives, scale, self_offset, n_columns)
    integers = [self_offset, n_columns]
    if without_gradient(anchors, keys) and is_eager(anchors, keys, positives):
        return _kernels(backend).contrast(anchors, keys, positives, scale, integers, precision)[:2]
    refuse_transforms("this loss", anchors, keys)
    return CONTRAST[backend](anchors, keys, positives, scale, integers, precision)[:2]


def _register(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::contrast_{backend}", mutates_args=())
    def forward(
        anchors: Tensor,
        keys: Tensor | None,
        positives: Tensor | None,
        scale: float,
        integers: list[int],  # self_offset, n_columns
        precision: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _kernels(backend).contrast(anchors, keys, positives, scale, integers, precision)

    @forward.register_fake
    def _(
        anchors: Tensor,
        keys: Tensor | None,
        positives: Tensor | None,
        scale: float,
        integers: list[int],
        precision: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, n_columns = anchors.shape[0], integers[1]
        shapes = (n,), (n_columns,), (STATE, n), (STATE, n_columns)
        rows, columns, row_state, column_state = (anchors.new_empty(shape, dtype=torch.float64) for shape in shapes)
        return rows, columns, row_state, column_state

    @torch.library.custom_op(f"fastdc::contrast_backward_{backend}", mutates_args=())
    def backward_op(
        inputs: list[Tensor],  # anchors, row_state, column_state, gradients of rows and of columns
        keys: Tensor | None,
        positives: Tensor | None,
        scale: float,
        integers: list[int],
        precision: str,
        needs: list[bool],  # which gradients
    ) -> tuple[Tensor, Tensor]:
        anchors, row_state, column_state, grad_rows, grad_columns = inputs
        return _kernels(backend).contrast_backward(
            (anchors, keys, positives),
            (row_state, column_state),
            (grad_rows, grad_columns),
            scale,
            integers,
            precision,
            needs,
        )

    @backward_op.register_fake
    def _(
        inputs: list[Tensor],
        keys: Tensor | None,
        positives: Tensor | None,
        scale: float,
        integers: list[int],
        precision: str,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor]:
        anchors = inputs[0]
        of_keys = keys.shape if needs[1] and keys is not None else (0,)
        return anchors.new_empty(anchors.shape if needs[0] else (0,)), anchors.new_empty(of_keys)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        anchors, keys, positives, *ctx.options = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(anchors, keys, positives, *output[2:])

    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor, *_: Any) -> tuple[Any, ...]:
        anchors, keys, positives, row_state, column_state = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:2])
        inputs = [anchors, row_state, column_state, grad_rows, grad_columns]
        grad_anchors, grad_keys = backward_op(inputs, keys, positives, *ctx.options, needs)
        return grad_anchors if needs[0] else None, grad_keys if needs[1] else None, None, None, None, None

    forward.register_autograd(backward, setup_context=setup_context)
    return forward


CONTRAST = {backend: _register(backend) for backend in COMPILED}


def contrast_loss(
    first: Tensor,
    second: Tensor,
    bank: Tensor | None,
    scale: float,
    flags: list[bool],
    positives: Tensor | None = None,
) -> Tensor:
    """A whole loss on CPUs; flags: normalize, ring, symmetric, as in ``numba_loss.py``."""
    if without_gradient(first, second, bank) and is_eager(first, second, bank, positives):
        return _whole_loss(first, second, bank, positives, scale, flags, [False] * 3)[0]
    refuse_transforms("this loss", first, second, bank)
    needs = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in (first, second, bank)]
    return contrast_loss_numba(first, second, bank, positives, scale, flags, needs)[0]


def _whole_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastdc.kernels.contrastive.numba_loss import contrast_loss

    return contrast_loss(*arguments)


@torch.library.custom_op("fastdc::contrast_loss_numba", mutates_args=())
def contrast_loss_numba(
    first: Tensor,
    second: Tensor,
    bank: Tensor | None,
    positives: Tensor | None,
    scale: float,
    flags: list[bool],  # normalize, ring, symmetric
    needs: list[bool],  # which gradients
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _whole_loss(first, second, bank, positives, scale, flags, needs)


@contrast_loss_numba.register_fake
def _(
    first: Tensor,
    second: Tensor,
    bank: Tensor | None,
    positives: Tensor | None,
    scale: float,
    flags: list[bool],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = (first, second, first if bank is None else bank)
    dtype = working_dtype(*given)
    grads = [first.new_empty(x.shape if need else (0,), dtype=dtype) for x, need in zip(given, needs)]
    return first.new_empty((), dtype=dtype), grads[0], grads[1], grads[2]


register_gradients(contrast_loss_numba, n_tensors=4)


@torch.library.custom_op("fastdc::same_label_sums", mutates_args=())
def same_label_sums(values: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(sums (m, d), counts (m,)) of the rows of values (n, d) whose label is that of ``wanted`` (m,)."""
    return (_sums_by_number if values.device.type == "cpu" else _sums_in_order)(values, labels, wanted)


def _sums_by_number(values: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    every, place = torch.unique(torch.cat([labels, wanted]), return_inverse=True)
    own, asked = place.split([labels.shape[0], wanted.shape[0]])
    sums = values.new_zeros((every.shape[0], values.shape[1])).index_add_(0, own, values)
    return sums[asked], torch.bincount(own, minlength=every.shape[0])[asked]


def _sums_in_order(values: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The same in a fixed order of rows and without waiting for a GPU: as many sums as rows, those of no label zero."""
    ordered, order = labels.sort(stable=True)
    rank = (ordered.diff() != 0).cumsum(0)
    rank = torch.cat([rank.new_zeros(min(1, len(labels))), rank])  # the number of each row's label
    edges = torch.searchsorted(rank, torch.arange(len(labels) + 1, device=labels.device))
    sums = torch.segment_reduce(values[order], "sum", lengths=edges.diff(), axis=0, unsafe=True, initial=0.0)
    first = torch.searchsorted(ordered, wanted)
    counts = torch.searchsorted(ordered, wanted, right=True) - first
    found = sums[rank[first.clamp(max=len(labels) - 1)]]
    return torch.where((counts > 0)[:, None], found, 0.0), counts


@same_label_sums.register_fake
def _(values: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    m = wanted.shape[0]
    return values.new_empty((m, values.shape[1])), wanted.new_empty((m,))


def _save_labels(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[1:])


def _sums_backward(ctx: Any, grad_sums: Tensor, _: Any) -> tuple[Tensor, None, None]:
    labels, wanted = ctx.saved_tensors
    return same_label_sums(grad_sums.contiguous(), wanted, labels)[0], None, None


same_label_sums.register_autograd(_sums_backward, setup_context=_save_labels)
