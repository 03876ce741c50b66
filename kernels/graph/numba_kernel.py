"""CPU kernels: every node pulls from its neighbours, so that threads never write to the same place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import as_array, empty, numpy_dtype
from fastdc.kernels.graph import numba_tiles as tiles
from fastdc.kernels.graph.checks import check_nodes
from fastdc.kernels.graph.edges import index_dtype

_NUMPY_INDEX: dict[torch.dtype, np.dtype[Any]] = {torch.int32: np.dtype(np.int32), torch.int64: np.dtype(np.int64)}


def bucket_edges(ends: Tensor, others: Tensor, n_nodes: int, both: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(indptr, other ends, numbers) of edges by their ends, in their order; from both with ``both``."""
    sides = [(ends.numpy(), others.numpy())]
    if both:
        sides.append(sides[0][::-1])
    length = ends.shape[0] * len(sides)
    indptr = np.zeros(n_nodes + 1, np.int64)
    index = index_dtype(max(n_nodes, length))
    neighbors, numbers = (empty((length,), _NUMPY_INDEX[index]) for _ in range(2))
    rows = max(1, -(-n_nodes // n_workers(n_nodes)))  # each worker reads all edges: as few blocks as workers

    def count(_: int, start: int, stop: int) -> None:
        for side, _others in sides:
            tiles.count_ends(side, start, indptr[start + 1 : stop + 1])

    def fill(_: int, start: int, stop: int) -> None:
        places = indptr[start:stop].copy()
        for side, other in sides:
            tiles.fill_buckets(side, other, start, places, neighbors.numpy(), numbers.numpy())

    run_blocks(n_nodes, rows, count)
    np.cumsum(indptr, out=indptr)
    if indptr[-1] != length:  # not all ends are nodes; one of these names the first that is not
        check_nodes(ends, n_nodes)
        check_nodes(others, n_nodes)
    run_blocks(n_nodes, rows, fill)
    return torch.from_numpy(indptr), neighbors, numbers


def laplacian(
    z: Tensor,
    weights: Tensor | None,
    edges: Tensor,
    indptr: Tensor,
    neighbors: Tensor,
    edge_ids: Tensor,
    need_z: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over edges of w |z_i - z_j|^2, its gradients to z (n, d) and the weights (m,), of length 0 if not needed."""
    torch_dtype = working_dtype(z, *(() if weights is None else (weights,)))
    dtype = numpy_dtype(torch_dtype)
    x = as_array(z, dtype)
    factors = None if weights is None else as_array(weights[:, None], dtype)[:, 0]
    gradient = empty((z.shape[0] if need_z else 0, z.shape[1]), dtype)
    sq_dists = empty((edges.shape[1] if need_weights else 0,), dtype)
    total = 0.0
    if need_z:
        ids = None if weights is None else edge_ids.numpy()
        total = _over_nodes(x, indptr.numpy(), neighbors.numpy(), ids, factors, gradient.numpy()) / 2
    if indptr.shape[0] == 0:
        check_nodes(edges, z.shape[0])
    if need_weights or not need_z:
        total = _over_edges(x, edges.numpy(), factors, sq_dists.numpy())
    return torch.tensor(total, dtype=torch_dtype), gradient, sq_dists


def propagate(
    x: Tensor,
    indptr: Tensor,
    columns: Tensor,
    values: Tensor,
    column_indptr: Tensor,
    rows: Tensor,
    column_values: Tensor,
    n_steps: int,
) -> Tensor:
    """A^n_steps x in the dtype of x; the columns of A are not looked at."""
    dtype = numpy_dtype(working_dtype(x, values))
    n_rows = indptr.shape[0] - 1
    results = [empty((n_rows, x.shape[1]), dtype).numpy() for _ in range(min(n_steps, 2))]
    factors = as_array(values[:, None], dtype)[:, 0]
    y = as_array(x, dtype)
    for step in range(n_steps):
        result = results[step % 2]

        def work(_: int, start: int, stop: int, x: NDArray = y, out: NDArray = result) -> None:
            tiles.pull_block(x, start, indptr.numpy(), columns.numpy(), factors, out[start:stop])

        run_blocks(n_rows, block_rows(n_rows, row_ns=_pull_ns(indptr, columns, x.shape[1])), work)
        y = result
    return torch.from_numpy(y).to(x.dtype)


def _pull_ns(indptr: Tensor | NDArray, neighbors: Tensor | NDArray, n_features: int) -> float:
    """About the nanoseconds that a node takes, with its neighbours."""
    return 10.0 + (5.0 + n_features / 4) * neighbors.shape[0] / max(1, indptr.shape[0] - 1)


def _over_nodes(x: NDArray, indptr: NDArray, neighbors: NDArray, ids: Any, weights: Any, gradient: NDArray) -> float:
    n = gradient.shape[0]
    rows = block_rows(n, row_ns=_pull_ns(indptr, neighbors, gradient.shape[1]))
    parts = np.zeros(n_workers(-(-n // rows)))
    total = np.zeros(1)

    def work(worker: int, start: int, stop: int) -> None:
        parts[worker] = tiles.laplacian_block(x, start, indptr, neighbors, ids, weights, gradient[start:stop])

    def commit(worker: int) -> None:
        total[0] += parts[worker]

    run_blocks(n, rows, work, commit)
    return float(total[0])


def _over_edges(x: NDArray, edges: NDArray, weights: Any, sq_dists: NDArray) -> float:
    m = edges.shape[1]
    if m == 0:
        return 0.0
    rows = block_rows(m, row_ns=10.0 + x.shape[1])
    parts = np.zeros(n_workers(-(-m // rows)))
    total = np.zeros(1)

    def work(worker: int, start: int, stop: int) -> None:
        some = None if weights is None else weights[start:stop]
        sources, targets = edges[:, start:stop]
        parts[worker] = tiles.edge_block(x, sources, targets, some, sq_dists[start:stop])

    def commit(worker: int) -> None:
        total[0] += parts[worker]

    run_blocks(m, rows, work, commit)
    return float(total[0])
