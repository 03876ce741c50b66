"""``contingency_table``: how many samples each pair (class, cluster) has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_same_device
from fastdc.kernels.contingency.axis import axis_of
from fastdc.kernels.contingency.labels import as_integers
from fastdc.kernels.contingency.reference import contingency_counts_reference
from fastdc.kernels.contingency.table import (
    LARGEST_DENSE_BYTES,
    ContingencyTable,
    table_from_counts,
    table_from_pairs,
)

CELLS_ALWAYS_COUNTED = 1 << 22  # up to here a table is counted cell by cell, however few the rows


def contingency_table(
    labels_true: Any,
    labels_pred: Any,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
    sparse: bool | None = False,
    backend: str | None = None,
) -> ContingencyTable:
    r"""Counts of the pairs (class, cluster), the table behind every agreement score of two partitions.

    .. math:: n_{ij} = |\{s : \mathrm{true}_s = \mathrm{class}_i,\ \mathrm{pred}_s = \mathrm{cluster}_j\}|

    Same as::

        classes, rows = torch.unique(labels_true, return_inverse=True)
        clusters, columns = torch.unique(labels_pred, return_inverse=True)
        counts = torch.bincount(rows * len(clusters) + columns, minlength=len(classes) * len(clusters))
        counts = counts.view(len(classes), len(clusters))

    Parameters
    ----------
    labels_true, labels_pred : Tensor, array or list of shape (n_samples,), integers or whole floats
        Any ids: negative ones, huge ones, ones with gaps. Empty vectors give an empty table.
    n_classes, n_clusters : int, optional
        Given, the ids must lie in 0 … n - 1, each has its row (column) even if no sample has it, and the pass
        that finds the range of the ids is saved; tables of chunks then have one shape.
    sparse : bool or None, default=False
        True gives ``counts`` as a coalesced sparse COO tensor. None gives it where the dense table would have
        more than 4 million cells and more than two a sample.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``explain``); a name forces it or raises ``BackendError``. Pairs of ids
        that span a wide range are sorted by torch instead, whatever the backend.

    Returns
    -------
    ContingencyTable
        ``counts`` int64 (n_classes, n_clusters), ``classes`` and ``clusters`` the ascending ids, on the
        device of the labels. Tables of disjoint chunks add up with ``+``.

    Raises
    ------
    ValueError
        Labels that are NaN, infinite or fractional, not 1-D, of different lengths, on different devices, or
        outside of the given range.
    TypeError
        Labels that are no numbers; sizes that are no integers.
    MemoryError
        If a dense table was asked for that would exceed 2 GiB.

    Notes
    -----
    Memory: one private table of 4 bytes a cell for each thread (four where at most 2,048 cells), at most
    256 MB together; sorting (wide ranges) takes about 64 bytes a sample. Never n_samples x n_clusters.
    Determinism: exact integers, the same for any number of threads and any device.
    Limits: tested to 10 million samples, 100,000 x 100,000 classes (sparse).

    Examples
    --------
    >>> import torch
    >>> from fastdc import contingency_table
    >>> table = contingency_table(torch.tensor([0, 0, 1, 1]), torch.tensor([7, 7, 7, -2]))
    >>> table.counts
    tensor([[0, 2],
            [1, 1]])
    >>> table.clusters
    tensor([-2,  7])
    """
    labels_true = as_integers(labels_true, "labels_true")
    labels_pred = as_integers(labels_pred, "labels_pred")
    check_same_device(labels_pred, labels_true, "labels_pred", "labels_true")
    if len(labels_true) != len(labels_pred):
        raise ValueError(
            f"labels_true has {len(labels_true)} entries but labels_pred has {len(labels_pred)}; "
            "both must be (n_samples,)"
        )
    rows = axis_of(labels_true, n_classes, "n_classes")
    columns = axis_of(labels_pred, n_clusters, "n_clusters")
    name = choose("contingency_table", labels_true, backend)
    n_cells = rows.size * columns.size
    if n_cells > CELLS_ALWAYS_COUNTED and (n_cells > 2 * len(labels_true) or 8 * n_cells > LARGEST_DENSE_BYTES):
        table = table_from_pairs(labels_true, labels_pred, rows, columns)
        n_cells = table.counts.shape[0] * table.counts.shape[1]
        keep = sparse is None and n_cells > max(CELLS_ALWAYS_COUNTED, 2 * len(labels_true))
        return table if sparse or keep else table.to_dense()
    counts = _counter(name)(labels_true, labels_pred, rows.low, columns.low, rows.size, columns.size)
    table = table_from_counts(counts, rows, columns)
    return table.to_sparse() if sparse else table


def _counter(name: str) -> Callable[..., Tensor]:
    """The counting implementation of a backend, imported when it is first needed.

    As an operator of torch only while torch.compile traces: there is no gradient to register, and the first
    call of an operator imports all of torch's compiler, over a second.
    """
    compiling = torch.compiler.is_compiling()
    if name == "numba":
        from fastdc.kernels.contingency import numba_kernel

        return numba_kernel.contingency_counts_numba_op if compiling else numba_kernel.contingency_counts_numba
    if name == "triton":
        from fastdc.kernels.contingency import triton_kernel

        return triton_kernel.contingency_counts_triton_op if compiling else triton_kernel.contingency_counts_triton
    return contingency_counts_reference
