"""GPU kernels: launchers with the same functions as ``numba_kernel.py`` and ``numba_consistency.py``.

Nothing is scattered and no sum uses atomics, so results are deterministic. Calls with edges that are not prepared
wait for the GPU once, to check them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import tile_of
from fastdc.kernels.graph import triton_tiles as tiles
from fastdc.kernels.graph.checks import check_nodes

TILE = 512  # numbers that a program gathers at once
WIDEST = 64  # features of them
NODES_A_PROGRAM = 16
NUM_WARPS = 1


def launch(n_features: int) -> dict[str, Any]:
    """Tile of a number of features."""
    block_d = min(WIDEST, triton.next_power_of_2(n_features))
    return {"BLOCK_E": TILE // block_d, "BLOCK_D": block_d, "num_warps": NUM_WARPS}


def consistency_launch(n_clusters: int, itemsize: int) -> dict[str, Any]:
    """Tile of a number of clusters; ``itemsize`` is that of the working dtype."""
    tile = tile_of(n_clusters)
    return {"BLOCK_N": max(1, 4 * tile.block_n // itemsize), "BLOCK_K": tile.block_k, "num_warps": 4}


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
    z = z.detach()
    (n, d), n_edges = z.shape, edges.shape[1]
    dtype = working_dtype(z) if weights is None else working_dtype(z, weights)
    gradient = torch.empty((n if need_z else 0, d), dtype=dtype, device=z.device)
    sq_dists = torch.empty(n_edges if need_weights else 0, dtype=dtype, device=z.device)
    factors = sq_dists if weights is None else weights.detach().to(dtype).contiguous()
    options = {"HAS_WEIGHTS": weights is not None, **launch(d)}
    if indptr.shape[0] == 0:
        check_nodes(edges, n)
    total = torch.zeros(1, dtype=torch.float64, device=z.device)
    with torch.cuda.device_of(z):
        if need_z:
            programs = triton.cdiv(n, NODES_A_PROGRAM)
            total = total.new_empty(programs)
            tiles._laplacian_kernel[(programs,)](
                z, *z.stride(), indptr, neighbors, edge_ids, factors, gradient, total, NODES_A_PROGRAM, n, d, **options
            )
            total /= 2  # each edge was seen from both ends
        if n_edges and (need_weights or not need_z):
            programs = triton.cdiv(n_edges, options["BLOCK_E"])
            total = total.new_empty(programs)
            tiles._edges_kernel[(programs,)](
                z, *z.stride(), edges[0], edges[1], factors, sq_dists, total, n_edges, d, KEEP=need_weights, **options
            )
    return total.sum().to(dtype), gradient, sq_dists


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
    y = x.detach()
    dtype = working_dtype(x, values)
    n, d = indptr.shape[0] - 1, x.shape[1]
    values = values.to(dtype)
    for step in range(n_steps):
        result = torch.empty((n, d), dtype=x.dtype if step == n_steps - 1 else dtype, device=x.device)
        with torch.cuda.device_of(x):
            tiles._propagate_kernel[(triton.cdiv(n, NODES_A_PROGRAM),)](
                y, *y.stride(), indptr, columns, values, result, NODES_A_PROGRAM, n, d, **launch(d)
            )
        y = result
    return y


def consistency(
    anchor: Tensor, neighbor: Tensor, from_logits: bool, need_anchor: bool, need_neighbor: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over rows of -ln <p_i, p_j>, and its gradients (n, k), of no rows where not needed."""
    a, b = anchor.detach(), neighbor.detach()
    n, k = a.shape
    dtype = working_dtype(a, b)
    options = consistency_launch(k, dtype.itemsize)
    programs = triton.cdiv(n, options["BLOCK_N"])
    grad_a, grad_b = (
        torch.empty((n if need else 0, k), dtype=dtype, device=a.device) for need in (need_anchor, need_neighbor)
    )
    total = torch.empty(programs, dtype=torch.float64, device=a.device)
    with torch.cuda.device_of(a):
        tiles._consistency_kernel[(programs,)](
            a, *a.stride(), b, *b.stride(), grad_a, grad_b, total, n, k,
            FROM_LOGITS=from_logits, NEED_A=need_anchor, NEED_B=need_neighbor, **options,
        )  # fmt: skip
    return total.sum().to(dtype), grad_a, grad_b
