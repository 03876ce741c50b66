"""One torch operator an implementation, with shapes for tracing and gradients.

Kernels are imported when first called; eager calls that need no gradient go to them directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._autograd import register_gradients
from fastdc.kernels._eager import is_eager, without_gradient
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.graph.edges import Adjacency, EdgeList

COMPILED = ("numba", "triton")


def _kernels(backend: str) -> Any:
    if backend == "numba":
        from fastdc.kernels.graph import numba_kernel

        return numba_kernel
    from fastdc.kernels.graph import triton_kernel

    return triton_kernel


def _needed(*tensors: Tensor | None) -> tuple[bool, ...]:
    """Which of these want a gradient."""
    return tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors)


def laplacian(backend: str, z: Tensor, graph: EdgeList, weights: Tensor | None) -> Tensor:
    """Sum over edges of w |z_i - z_j|^2; without ``graph.indptr`` there is no gradient to z."""
    if without_gradient(z, weights) and is_eager(z, weights):
        return _kernels(backend).laplacian(z, weights, *graph, False, False)[0]
    return LAPLACIAN[backend](z, weights, *graph, *_needed(z, weights))[0]


def edge_sq_dists(backend: str, x: Tensor, graph: EdgeList) -> Tensor:
    """Squared length of each edge (m,), without gradients."""
    run = _kernels(backend).laplacian if is_eager(x) else LAPLACIAN[backend]
    return run(x.detach(), None, *graph, False, True)[2]


def propagate(backend: str, x: Tensor, adjacency: Adjacency, n_steps: int) -> Tensor:
    """The adjacency applied n_steps times to x."""
    run = _kernels(backend).propagate if without_gradient(x) and is_eager(x) else PROPAGATE[backend]
    return run(x, *adjacency, n_steps)


def consistency(anchor: Tensor, neighbor: Tensor, from_logits: bool) -> Tensor:
    """Sum over rows of -log <p_i, p_j>, on GPUs."""
    return CONSISTENCY(anchor, neighbor, from_logits, *_needed(anchor, neighbor))[0]


def _register_laplacian(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::laplacian_{backend}", mutates_args=())
    def energy(
        z: Tensor,
        weights: Tensor | None,
        edges: Tensor,
        indptr: Tensor,
        neighbors: Tensor,
        edge_ids: Tensor,
        need_z: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _kernels(backend).laplacian(z, weights, edges, indptr, neighbors, edge_ids, need_z, need_weights)

    @energy.register_fake
    def _(
        z: Tensor,
        weights: Tensor | None,
        edges: Tensor,
        indptr: Tensor,
        neighbors: Tensor,
        edge_ids: Tensor,
        need_z: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = working_dtype(z) if weights is None else working_dtype(z, weights)
        return (
            z.new_empty((), dtype=dtype),
            z.new_empty((z.shape[0] if need_z else 0, z.shape[1]), dtype=dtype),
            z.new_empty((edges.shape[1] if need_weights else 0,), dtype=dtype),
        )

    register_gradients(energy, n_tensors=6)
    return energy


def _register_propagate(backend: str) -> Any:
    @torch.library.custom_op(f"fastdc::propagate_{backend}", mutates_args=())
    def pull(
        x: Tensor,
        indptr: Tensor,
        columns: Tensor,
        values: Tensor,
        column_indptr: Tensor,
        rows: Tensor,
        column_values: Tensor,
        n_steps: int,
    ) -> Tensor:
        kernel = _kernels(backend).propagate
        return kernel(x, indptr, columns, values, column_indptr, rows, column_values, n_steps)

    @pull.register_fake
    def _(
        x: Tensor,
        indptr: Tensor,
        columns: Tensor,
        values: Tensor,
        column_indptr: Tensor,
        rows: Tensor,
        column_values: Tensor,
        n_steps: int,
    ) -> Tensor:
        return x.new_empty((indptr.shape[0] - 1, x.shape[1]))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:7])
        ctx.n_steps = inputs[7]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        matrix = ctx.saved_tensors
        return pull(gradient, *matrix[3:], *matrix[:3], ctx.n_steps), *(None,) * 7

    pull.register_autograd(backward, setup_context=setup_context)
    return pull


def _register_consistency() -> Any:
    @torch.library.custom_op("fastdc::neighbor_consistency_triton", mutates_args=())
    def agreement(
        anchor: Tensor, neighbor: Tensor, from_logits: bool, need_anchor: bool, need_neighbor: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _kernels("triton").consistency(anchor, neighbor, from_logits, need_anchor, need_neighbor)

    @agreement.register_fake
    def _(
        anchor: Tensor, neighbor: Tensor, from_logits: bool, need_anchor: bool, need_neighbor: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = working_dtype(anchor, neighbor)
        n, k = anchor.shape
        return (
            anchor.new_empty((), dtype=dtype),
            anchor.new_empty((n if need_anchor else 0, k), dtype=dtype),
            anchor.new_empty((n if need_neighbor else 0, k), dtype=dtype),
        )

    register_gradients(agreement, n_tensors=2)
    return agreement


LAPLACIAN = {backend: _register_laplacian(backend) for backend in COMPILED}
PROPAGATE = {backend: _register_propagate(backend) for backend in COMPILED}
CONSISTENCY = _register_consistency()
