"""The contingency table itself: what it holds, how tables add, how wide ids become narrow ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdc.kernels.contingency.axis import Axis, check_range, compacted
from fastdc.kernels.contingency.reference import contingency_pairs

LARGEST_DENSE_BYTES = 2**31


@dataclass(frozen=True, eq=False)
class ContingencyTable:
    """How many samples each pair (class, cluster) has. Tables of disjoint rows add up with ``+``.

    Parameters
    ----------
    counts : Tensor of shape (n_classes, n_clusters), int64
        Samples of each class in each cluster; strided, or coalesced sparse COO.
    classes : Tensor of shape (n_classes,), int64
        The id that each row counts, ascending.
    clusters : Tensor of shape (n_clusters,), int64
        The id that each column counts, ascending.

    Notes
    -----
    The sum of two tables has the union of their ids. Across processes, give ``n_classes`` and ``n_clusters``
    to :func:`contingency_table`: then all tables have one shape and ``counts`` can be all-reduced.

    Examples
    --------
    >>> import torch
    >>> from fastdc import contingency_table
    >>> first = contingency_table(torch.tensor([0, 0]), torch.tensor([5, 5]))
    >>> second = contingency_table(torch.tensor([0, 1]), torch.tensor([5, 7]))
    >>> total = first + second
    >>> total.counts.tolist(), total.classes.tolist(), total.clusters.tolist()
    ([[3, 0], [0, 1]], [0, 1], [5, 7])
    """

    counts: Tensor
    classes: Tensor
    clusters: Tensor

    @property
    def n_samples(self) -> int:
        """Rows counted so far."""
        return int(self.counts.sum())

    def to_dense(self) -> ContingencyTable:
        """The table with strided counts; MemoryError above 2 GiB."""
        if not self.counts.is_sparse:
            return self
        check_dense_size(*self.counts.shape)
        return ContingencyTable(self.counts.to_dense(), self.classes, self.clusters)

    def to_sparse(self) -> ContingencyTable:
        """The table with counts as a coalesced sparse COO tensor."""
        if self.counts.is_sparse:
            return self
        return ContingencyTable(self.counts.to_sparse(), self.classes, self.clusters)

    def __add__(self, other: ContingencyTable) -> ContingencyTable:
        if not isinstance(other, ContingencyTable):
            return NotImplemented
        if self._has_ids_of(other) and self.counts.is_sparse == other.counts.is_sparse:
            total = self.counts + other.counts
            return ContingencyTable(total.coalesce() if total.is_sparse else total, self.classes, self.clusters)
        classes = torch.unique(torch.cat([self.classes, other.classes]))
        clusters = torch.unique(torch.cat([self.clusters, other.clusters]))
        if self.counts.is_sparse or other.counts.is_sparse:
            moved = [_moved(table.to_sparse(), classes, clusters) for table in (self, other)]
            return ContingencyTable((moved[0] + moved[1]).coalesce(), classes, clusters)
        check_dense_size(len(classes), len(clusters))
        counts = self.counts.new_zeros(len(classes), len(clusters))
        for table in (self, other):
            rows = torch.searchsorted(classes, table.classes)
            columns = torch.searchsorted(clusters, table.clusters)
            counts[rows[:, None], columns] += table.counts
        return ContingencyTable(counts, classes, clusters)

    def _has_ids_of(self, other: ContingencyTable) -> bool:
        return torch.equal(self.classes, other.classes) and torch.equal(self.clusters, other.clusters)


def check_dense_size(n_classes: int, n_clusters: int) -> None:
    """Raise MemoryError, with the bytes, where a dense table would be too large to make unasked."""
    n_bytes = 8 * n_classes * n_clusters
    if n_bytes > LARGEST_DENSE_BYTES:
        raise MemoryError(
            f"a dense contingency table of {n_classes} classes x {n_clusters} clusters needs {n_bytes} bytes "
            f"({n_bytes / 1e9:.1f} GB), more than the limit of {LARGEST_DENSE_BYTES} bytes; pass sparse=True"
        )


def table_from_counts(counts: Tensor, rows: Axis, columns: Axis) -> ContingencyTable:
    """The table without the rows and columns of ids that do not occur; those of a fixed axis all stay."""
    ids = []
    for place, axis in enumerate((rows, columns)):
        positions = torch.arange(axis.size, device=counts.device)
        if not axis.fixed:
            positions = counts.sum(1 - place).nonzero().squeeze(1)
            if len(positions) < axis.size:
                counts = counts.index_select(place, positions)
        ids.append(axis.ids_at(positions))
    return ContingencyTable(counts, ids[0], ids[1])


def table_from_pairs(labels_true: Tensor, labels_pred: Tensor, rows: Axis, columns: Axis) -> ContingencyTable:
    """The sparse table by sorting pairs: for ids of a wide range, or a table with few non-zero cells."""
    for labels, axis, name, size_name in (
        (labels_true, rows, "labels_true", "n_classes"),
        (labels_pred, columns, "labels_pred", "n_clusters"),
    ):
        if axis.fixed:
            check_range(labels, axis.size, name, size_name)
    if rows.size * columns.size >= 2**63:  # a pair would not fit into one int64
        labels_true, rows = compacted(labels_true, rows)
        labels_pred, columns = compacted(labels_pred, columns)
    row, column, values = contingency_pairs(labels_true, labels_pred, rows.low, columns.low, columns.size)
    row, classes = _used(row, rows)
    column, clusters = _used(column, columns)
    return ContingencyTable(sparse_counts(row, column, values, (len(classes), len(clusters))), classes, clusters)


def _used(positions: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """(position among the ids that occur, those ids), or among all ids of a fixed axis."""
    if axis.fixed:
        return positions, torch.arange(axis.size, device=positions.device)
    used, positions = torch.unique(positions, return_inverse=True)
    return positions, axis.ids_at(used)


def sparse_counts(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A coalesced sparse COO tensor; pairs that come twice are added."""
    indices = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()


def _moved(table: ContingencyTable, classes: Tensor, clusters: Tensor) -> Tensor:
    """The sparse counts of ``table`` at the places of its ids in ``classes`` and ``clusters``."""
    rows, columns = table.counts.indices()
    rows = torch.searchsorted(classes, table.classes)[rows]
    columns = torch.searchsorted(clusters, table.clusters)[columns]
    return sparse_counts(rows, columns, table.counts.values(), (len(classes), len(clusters)))
