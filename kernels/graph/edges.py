"""Graphs prepared once for many calls: edges bucketed by node, from both of their ends, so that nothing scatters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels.graph.checks import check_adjacency, check_edges, check_nodes


class EdgeList(NamedTuple):
    """Directed edges and, for each node, its edges from either end. Made by :meth:`prepare`; reusable.

    ``neighbors[indptr[i]:indptr[i + 1]]`` are the other ends of the edges that leave or enter node i, and
    ``edge_ids`` their numbers; both are int32 where that suffices. An edge is in it twice, first among those of
    its source.
    """

    edges: Tensor  # (2, n_edges) int64: sources, targets
    indptr: Tensor  # (n_nodes + 1,) int64
    neighbors: Tensor  # (2 n_edges,)
    edge_ids: Tensor  # (2 n_edges,)

    @staticmethod
    def prepare(edges: Tensor, n_nodes: int) -> EdgeList:
        """The edges (2, n_edges) int64 of a graph of so many nodes, in any order, checked and bucketed.

        The same on every device and for any number of threads. Takes about as long as two forward and backward
        passes of :func:`laplacian_loss`, and 16 bytes an edge (32 from 2^31 ends on).

        >>> import torch
        >>> EdgeList.prepare(torch.tensor([[0, 0], [1, 2]]), 3).neighbors
        tensor([1, 2, 0, 0], dtype=torch.int32)
        """
        check_edges(edges)
        edges = edges.detach().contiguous()
        return EdgeList(edges, *bucket_edges(edges[0], edges[1], n_nodes, True))

    @property
    def n_nodes(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def n_edges(self) -> int:
        return self.edges.shape[1]


class Adjacency(NamedTuple):
    """A sparse matrix (n_rows, n_columns) by rows and by columns. Made by :meth:`prepare`; reusable."""

    indptr: Tensor  # (n_rows + 1,) int64
    columns: Tensor  # (n_entries,) int32 where that suffices
    values: Tensor  # (n_entries,)
    column_indptr: Tensor  # (n_columns + 1,) int64
    rows: Tensor  # (n_entries,)
    column_values: Tensor  # (n_entries,)

    @staticmethod
    def prepare(adjacency: Tensor, normalize: str | None = None, self_loops: bool = False) -> Adjacency:
        r"""A matrix in ``torch.sparse_csr`` as :func:`propagate` wants it; its values are constants.

        Parameters
        ----------
        adjacency : sparse CSR tensor of shape (n_rows, n_columns)
        normalize : {None, "symmetric", "row"}
            "symmetric" is :math:`D^{-1/2} A D^{-1/2}` (GCN), "row" is :math:`D^{-1} A`, D holding the sums of the
            rows of A; a row whose sum is not positive becomes zero.
        self_loops : bool
            Whether A + I is meant, before the normalisation.

        >>> import torch
        >>> path = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to_sparse_csr()
        >>> Adjacency.prepare(path, "symmetric", self_loops=True).values
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
        """
        check_adjacency(adjacency, normalize, self_loops)
        return prepare_adjacency(adjacency, normalize, self_loops, by_columns=True)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.indptr.shape[0] - 1, self.column_indptr.shape[0] - 1


def prepare_adjacency(adjacency: Tensor, normalize: str | None, self_loops: bool, by_columns: bool) -> Adjacency:
    """A checked matrix by rows and, where gradients will need them, by columns; else these are of length 0."""
    n_rows, n_columns = adjacency.shape
    indptr, columns = adjacency.crow_indices().long(), adjacency.col_indices().long()
    values = adjacency.values().detach()
    values = values.to(torch.promote_types(values.dtype, torch.float32)).contiguous()
    index = index_dtype(max(n_rows, n_columns, columns.shape[0] + n_rows))
    rows = torch.repeat_interleave(indptr.diff())
    if self_loops:
        loops = torch.arange(n_rows, device=columns.device)
        rows, columns = torch.cat([rows, loops]), torch.cat([columns, loops])
        indptr, narrow, ids = bucket_edges(rows, columns, n_rows, False)
        values = torch.cat([values, values.new_ones(n_rows)])[ids.long()]
        rows, columns = torch.repeat_interleave(indptr.diff()), narrow.long()
    if normalize is not None:
        values = _normalized(values, rows, columns, indptr, normalize)
    if not by_columns:
        none = values.new_empty(0)
        return Adjacency(indptr, columns.to(index), values, none.long(), none.to(index), none)
    column_indptr, by_column, ids = bucket_edges(columns, rows, n_columns, False)
    return Adjacency(indptr, columns.to(index), values, column_indptr, by_column, values[ids.long()])


def _normalized(values: Tensor, rows: Tensor, columns: Tensor, indptr: Tensor, normalize: str) -> Tensor:
    degrees = torch.segment_reduce(values.double(), "sum", offsets=indptr, initial=0.0)
    scale = torch.where(degrees > 0, degrees.pow(-0.5 if normalize == "symmetric" else -1.0), 0.0)
    scaled = values * scale[rows]
    return (scaled * scale[columns] if normalize == "symmetric" else scaled).to(values.dtype)


def index_dtype(largest: int) -> torch.dtype:
    """Of numbers below ``largest``: half the memory to read where 32 bits suffice."""
    return torch.int32 if largest < 2**31 else torch.int64


@torch.library.custom_op("fastdc::bucket_edges", mutates_args=())
def bucket_edges(ends: Tensor, others: Tensor, n_nodes: int, both: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(indptr, other ends, numbers) of edges bucketed by their ends, in the order in which they come.

    With ``both`` the graph is taken from both sides: an edge is also in the bucket of its other end.
    """
    if ends.device.type == "cpu":
        from fastdc.kernels.graph import numba_kernel

        return numba_kernel.bucket_edges(ends, others, n_nodes, both)
    check_nodes(ends, n_nodes)
    if both:
        check_nodes(others, n_nodes)
    return bucket_edges_by_sorting(ends, others, n_nodes, both)


@bucket_edges.register_fake
def _(ends: Tensor, others: Tensor, n_nodes: int, both: bool) -> tuple[Tensor, Tensor, Tensor]:
    length = ends.shape[0] * (2 if both else 1)
    entries = ends.new_empty(length, dtype=index_dtype(max(n_nodes, length)))
    return ends.new_empty(n_nodes + 1), entries, torch.empty_like(entries)


def bucket_edges_by_sorting(ends: Tensor, others: Tensor, n_nodes: int, both: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, for GPUs."""
    n_edges = ends.shape[0]
    if both:
        ends, others = torch.cat([ends, others]), torch.cat([others, ends])
    index = index_dtype(max(n_nodes, ends.shape[0]))
    order = torch.argsort(ends, stable=True)
    indptr = torch.zeros(n_nodes + 1, dtype=torch.int64, device=ends.device)
    torch.cumsum(torch.bincount(ends, minlength=n_nodes), 0, out=indptr[1:])
    numbers = order % n_edges if n_edges else order
    return indptr, others[order].to(index), numbers.to(index)
