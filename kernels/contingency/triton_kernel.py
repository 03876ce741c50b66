"""Counting on the GPU: in registers where the table is small, by atomics into several tables where it is not.

Integer sums have one value in any order, so atomics leave the result deterministic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdc.kernels._triton import chip_of
from fastdc.kernels.contingency.axis import check_range

PARTIAL_BYTES = 1 << 26  # all partial tables together


class Launch(NamedTuple):
    """How one table is counted. ``bins`` is 0 where cells are counted by atomics."""

    bins: int
    block: int
    n_programs: int
    n_partials: int
    num_warps: int


def launch(n: int, n_cells: int, n_processors: int) -> Launch:
    """Launch choices, from the sizes and the number of multiprocessors alone."""
    bins = max(32, triton.next_power_of_2(n_cells)) if n_cells <= 2048 else 0
    block, num_warps = (2048, 8) if bins else (1024, 4)
    n_programs = max(1, min(triton.cdiv(n, block), n_processors * (2 if bins else 8)))
    n_partials = n_programs if bins else max(1, min(16, n_programs, PARTIAL_BYTES // (8 * n_cells + 1)))
    return Launch(bins, block, n_programs, n_partials, num_warps)


def contingency_counts_triton(
    labels_true: Tensor, labels_pred: Tensor, row_low: int, column_low: int, n_rows: int, n_columns: int
) -> Tensor:
    """int64 (n_rows, n_columns) counts of the pairs (labels_true - row_low, labels_pred - column_low)."""
    n, n_cells, device = len(labels_true), n_rows * n_columns, labels_true.device
    choice = launch(n, n_cells, chip_of(labels_true).n_processors)
    # one cell more than the table: pairs outside of it are counted there
    partials = torch.zeros((choice.n_partials, n_cells + 1), dtype=torch.int64, device=device)
    with torch.cuda.device_of(labels_true):
        _contingency_kernel[(choice.n_programs,)](
            labels_true,
            labels_pred,
            partials,
            n,
            row_low,
            column_low,
            n_rows,
            n_columns,
            labels_true.stride(0),
            labels_pred.stride(0),
            choice.n_partials,
            BINS=choice.bins,
            BLOCK_N=choice.block,
            num_warps=choice.num_warps,
        )
    total = partials.sum(0)
    if int(total[-1]):
        check_range(labels_true, n_rows, "labels_true", "n_classes")
        check_range(labels_pred, n_columns, "labels_pred", "n_clusters")
    return total[:-1].reshape(n_rows, n_columns)


contingency_counts_triton_op = torch.library.custom_op(
    "fastdc::contingency_counts_triton", contingency_counts_triton, mutates_args=()
)


@contingency_counts_triton_op.register_fake
def _(labels_true, labels_pred, row_low, column_low, n_rows, n_columns):
    return labels_true.new_empty((n_rows, n_columns), dtype=torch.int64)


# sizes of 1 must not become constants, nor each size compile anew
@triton.jit(do_not_specialize=["n", "row_low", "column_low", "n_rows", "n_columns", "n_partials"])
def _contingency_kernel(
    true_ptr,
    pred_ptr,
    partials_ptr,
    n,
    row_low,
    column_low,
    n_rows,
    n_columns,
    stride_true,
    stride_pred,
    n_partials,
    BINS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Count rows pid * BLOCK_N …, every n_programs-th block, into partial table pid % n_partials."""
    pid = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0).to(tl.int64) * BLOCK_N
    n_cells = n_rows.to(tl.int64) * n_columns
    table_ptr = partials_ptr + (pid % n_partials) * (n_cells + 1)
    histogram = tl.zeros([BINS if BINS > 0 else 1], dtype=tl.int32)
    outside = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in range(pid * BLOCK_N, n, step):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < n
        row = tl.load(true_ptr + offs_n * stride_true, mask=mask_n, other=0).to(tl.int64) - row_low
        column = tl.load(pred_ptr + offs_n * stride_pred, mask=mask_n, other=0).to(tl.int64) - column_low
        inside = (row >= 0) & (row < n_rows) & (column >= 0) & (column < n_columns)
        outside += (mask_n & (inside == 0)).to(tl.int32)
        inside = inside & mask_n
        cell = row * n_columns + column
        if BINS > 0:
            histogram += tl.histogram(tl.where(inside, cell, 0).to(tl.int32), BINS, mask=inside)
        else:
            tl.atomic_add(table_ptr + cell, tl.full([BLOCK_N], 1, tl.int64), mask=inside, sem="relaxed")
    if BINS > 0:
        offs_k = tl.arange(0, BINS)
        tl.store(table_ptr + offs_k, histogram.to(tl.int64), mask=offs_k < n_cells)
    n_outside = tl.sum(outside.to(tl.int64))
    if n_outside > 0:
        tl.atomic_add(table_ptr + n_cells, n_outside, sem="relaxed")
