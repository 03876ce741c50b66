"""Counting on CPU threads, and the expected mutual information of two partitions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels._numba import jit
from fastdc.kernels._parallel import blocks, n_workers, run_blocks
from fastdc.kernels.contingency.axis import check_range

ROWS_A_BLOCK = 1 << 16
ROWS_A_ROUND = 1 << 31  # a private counter is 32 bits wide: half the cache of the int64 result
CELLS_IN_L1 = 2048  # up to here a thread counts into four tables, so that a hot cell does not stall the next row
PRIVATE_BYTES = 1 << 28  # all private tables together


def contingency_counts_numba(
    labels_true: Tensor, labels_pred: Tensor, row_low: int, column_low: int, n_rows: int, n_columns: int
) -> Tensor:
    """int64 (n_rows, n_columns) counts of the pairs (labels_true - row_low, labels_pred - column_low)."""
    n_cells = n_rows * n_columns
    counts = torch.zeros((n_rows, n_columns), dtype=torch.int64)
    flat = counts.view(-1).numpy()
    true, pred = labels_true.numpy(), labels_pred.numpy()
    lanes, lane_stride = (4, n_cells) if n_cells <= CELLS_IN_L1 else (1, 0)
    for first, last in blocks(len(true), ROWS_A_ROUND):
        rows = _rows_a_block(last - first, lanes * n_cells)
        workers = n_workers(-(-(last - first) // rows))
        tables = np.zeros((workers, lanes * n_cells), dtype=np.uint32)
        outside = np.zeros(workers, dtype=np.int64)

        def work(worker: int, start: int, stop: int, first=first, tables=tables, outside=outside) -> None:
            rows = slice(first + start, first + stop)
            outside[worker] += _count_kernel(
                true[rows], pred[rows], row_low, column_low, n_rows, n_columns, lane_stride, tables[worker]
            )

        run_blocks(last - first, rows, work)
        if outside.any():
            check_range(labels_true, n_rows, "labels_true", "n_classes")
            check_range(labels_pred, n_columns, "labels_pred", "n_clusters")
        for table in tables.reshape(workers * lanes, n_cells):
            flat += table
    return counts


contingency_counts_numba_op = torch.library.custom_op(
    "fastdc::contingency_counts_numba", contingency_counts_numba, mutates_args=()
)


@contingency_counts_numba_op.register_fake
def _(labels_true, labels_pred, row_low, column_low, n_rows, n_columns):
    return labels_true.new_empty((n_rows, n_columns), dtype=torch.int64)


def _rows_a_block(n_rows: int, n_cells: int) -> int:
    """Rows in a block, so large that all private tables stay within PRIVATE_BYTES and 8 n_rows bytes."""
    n_cells = max(1, n_cells)
    most_blocks = max(1, min(PRIVATE_BYTES // (4 * n_cells), 2 * n_rows // n_cells))
    return max(ROWS_A_BLOCK, -(-n_rows // most_blocks))


@jit
def _count_kernel(true, pred, row_low, column_low, n_rows, n_columns, lane_stride, table):
    """Count pairs into ``table`` (four, lane_stride apart, or one); returns the pairs outside of it."""
    n = len(true)
    outside = 0
    height, width = np.uint64(n_rows), np.uint64(n_columns)
    stride = np.uint64(lane_stride)
    whole = n - n % 4
    for i in range(0, whole, 4):
        for lane in range(4):
            row = np.uint64(np.int64(true[i + lane]) - row_low)
            column = np.uint64(np.int64(pred[i + lane]) - column_low)
            if row < height and column < width:
                table[np.uint64(lane) * stride + row * width + column] += np.uint32(1)
            else:
                outside += 1
    for i in range(whole, n):
        row = np.uint64(np.int64(true[i]) - row_low)
        column = np.uint64(np.int64(pred[i]) - column_low)
        if row < height and column < width:
            table[row * width + column] += np.uint32(1)
        else:
            outside += 1
    return outside


def expected_mutual_information_numba(class_sizes: np.ndarray, cluster_sizes: np.ndarray) -> float:
    """Mean mutual information, in nats, of all tables with these margins (hypergeometric model).

    Classes of one size share their term, so the time grows with the number of distinct sizes, at most
    sqrt(2 n) a side. Deterministic for any number of threads.
    """
    n = int(class_sizes.sum())
    if min(len(class_sizes), len(cluster_sizes)) <= 1:
        return 0.0
    a, times_a = np.unique(class_sizes, return_counts=True)
    b, times_b = np.unique(cluster_sizes, return_counts=True)
    terms = np.zeros(len(a))

    def work(worker: int, start: int, stop: int) -> None:
        _expected_kernel(a[start:stop].astype(np.float64), b, times_b, float(n), terms[start:stop])

    run_blocks(len(a), max(1, min(16, len(a) // 16)), work)
    return math.fsum(terms * times_a)


@jit
def _expected_kernel(a, b, times_b, n, out):
    """out[i] = sum over columns of times_b[j] * E[t / n * log(n t / (a_i b_j))], t hypergeometric."""
    for i in range(len(a)):
        total = 0.0
        for j in range(len(b)):
            total += times_b[j] * _expected_cell(a[i], np.float64(b[j]), n)
        out[i] = total


@jit(inline=True)
def _expected_cell(a, b, n):
    """One cell's expectation.

    Weights follow the ratio of neighbouring probabilities from the mode outwards and are normalised by
    their sum, so no log-gamma of n enters (whose rounding, eps * n log n, would be the error of the result);
    both walks end where a weight no longer counts.
    """
    least, most = max(0.0, a + b - n), min(a, b)
    mode = min(max(np.floor((a + 1.0) * ((b + 1.0) / (n + 2.0))), least), most)
    scale = (n / a) / b
    mass = 1.0
    moment = mode * np.log(mode * scale) if mode > 0.0 else 0.0
    weight, t = 1.0, mode
    while t < most and weight > 1e-24:
        weight *= ((a - t) / (t + 1.0)) * ((b - t) / (n - a - b + t + 1.0))
        t += 1.0
        mass += weight
        moment += weight * t * np.log(t * scale)
    weight, t = 1.0, mode
    while t > least and weight > 1e-24:
        weight *= (t / (a - t + 1.0)) * ((n - a - b + t) / (b - t + 1.0))
        t -= 1.0
        mass += weight
        if t > 0.0:
            moment += weight * t * np.log(t * scale)
    return moment / mass / n
