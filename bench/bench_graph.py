"""Losses and propagation over the edges of a graph, and SCAN's consistency of neighbours.

A graph has k edges a node, to nodes at most ``reach`` rows away: with reach = n they lie anywhere, the worst case
for caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench._harness import Bench, Cost, Inputs, Provider, Rows, make_compiled, make_plain

SHAPES = [
    {"n": 1_000_000, "k": 15, "d": 10, "reach": 1_000_000},
    {"n": 1_000_000, "k": 15, "d": 10, "reach": 1000},
    {"n": 100_000, "k": 15, "d": 64, "reach": 100_000},
]
PAIR_SHAPES = [{"n": 100_000, "k": 10}, {"n": 8192, "k": 100}]
CHUNK = 1 << 20  # edges of the truth at once


def make_fastdc(op: str, **options: Any) -> Callable[..., Tensor]:
    from fastdc.kernels import graph

    return partial(getattr(graph, op), **options)


def make_edges(n: int, k: int, reach: int, generator: torch.Generator) -> Tensor:
    """(2, n k), by source."""
    sources = torch.arange(n).repeat_interleave(k)
    targets = (sources + torch.randint(-reach, reach + 1, (n * k,), generator=generator)) % n
    return torch.stack([sources, targets])


def edge_inputs(*, n: int, k: int, d: int, reach: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    z, weights = torch.randn(n, d, generator=generator), torch.rand(n * k, generator=generator)
    edges = make_edges(n, k, reach, generator)
    return {"z": z.to(device, dtype), "edges": edges.to(device), "weights": weights.to(device, dtype)}


def matrix_inputs(*, n: int, k: int, d: int, reach: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """The same graph as a sparse matrix of distinct entries."""
    given = edge_inputs(n=n, k=k, d=d, reach=reach, dtype=dtype, device=device, seed=seed)
    adjacency = torch.sparse_coo_tensor(given["edges"], given["weights"], (n, n)).coalesce().to_sparse_csr()
    grad_output = torch.randn(n, d, generator=torch.Generator().manual_seed(seed + 1))
    return {"adjacency": adjacency, "x": given["z"], "grad_output": grad_output.to(device, dtype)}


def pair_inputs(*, n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Logits of rows and of their neighbours, which agree about half."""
    generator = torch.Generator().manual_seed(seed)
    anchor = 2.0 * torch.randn(n, k, generator=generator)
    neighbor = anchor + torch.randn(n, k, generator=generator)
    return {"p_anchor": anchor.to(device, dtype), "p_neighbor": neighbor.to(device, dtype)}


# --- plain torch


def laplacian_gathered(z: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    """index_select, whose gradient is the faster index_add."""
    difference = z.index_select(0, edges[0]) - z.index_select(0, edges[1])
    return (weights * difference.square().sum(1)).sum()


def laplacian_by_matrix(z: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    """z'Lz with L prepared in CSR: the value is z'(Lz), the gradient 2 Lz, as L is symmetric."""
    fixed = z.detach()
    product = torch.sparse.mm(edges, fixed)
    return 2 * (z * product).sum() - (fixed * product).sum()


def to_laplacian(inputs: Inputs) -> Inputs:
    z, edges, weights = inputs["z"], inputs["edges"], inputs["weights"]
    n = len(z)
    diagonal = torch.zeros(n, dtype=weights.dtype).index_add_(0, edges.flatten(), weights.repeat(2))
    nodes = torch.arange(n)
    places = torch.cat([edges, edges.flip(0), torch.stack([nodes, nodes])], dim=1)
    values = torch.cat([-weights, -weights, diagonal])
    return {**inputs, "edges": torch.sparse_coo_tensor(places, values, (n, n)).coalesce().to_sparse_csr()}


def to_edge_list(inputs: Inputs) -> Inputs:
    from fastdc.kernels.graph import EdgeList

    return {**inputs, "edges": EdgeList.prepare(inputs["edges"], len(inputs["z"]))}


def to_adjacency(inputs: Inputs) -> Inputs:
    from fastdc.kernels.graph import Adjacency

    return {**inputs, "adjacency": Adjacency.prepare(inputs["adjacency"])}


def sparse_product(adjacency: Tensor, x: Tensor) -> Tensor:
    return torch.sparse.mm(adjacency, x)


def scan_eager(p_anchor: Tensor, p_neighbor: Tensor) -> Tensor:
    """As the authors' code has it: products of one row by one column, binary cross-entropy against ones."""
    p, q = p_anchor.softmax(1), p_neighbor.softmax(1)
    dot = torch.bmm(p[:, None, :], q[:, :, None]).flatten()
    consistency = torch.nn.functional.binary_cross_entropy(dot, torch.ones_like(dot))
    mean = p.mean(0).clamp(min=1e-8)
    return consistency + 5.0 * (mean * mean.log()).sum()


def scan_rows(p_anchor: Tensor, p_neighbor: Tensor) -> Tensor:
    """The plain form with fewest passes."""
    p, q = p_anchor.softmax(1), p_neighbor.softmax(1)
    mean = p.mean(0)
    return 5.0 * torch.xlogy(mean, mean).sum() - (p * q).sum(1).log().mean()


# --- truth and cost


def laplacian_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    z = inputs["z"].double()
    loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(z)
    for edges, weights in zip(inputs["edges"].split(CHUNK, dim=1), inputs["weights"].split(CHUNK)):
        difference = z[edges[0]] - z[edges[1]]
        weighted = weights.double()[:, None] * difference
        loss += (weighted * difference).sum()
        if gradients:
            gradient.index_add_(0, edges[0], 2 * weighted).index_add_(0, edges[1], -2 * weighted)
    return {"loss": loss, **({"grad_z": gradient} if gradients else {})}


def propagate_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    matrix = inputs["adjacency"].double()
    results: dict[str, Tensor | Rows] = {"y": torch.sparse.mm(matrix, inputs["x"].double())}
    if gradients:
        results["grad_x"] = torch.sparse.mm(matrix.to_sparse_coo().t(), inputs["grad_output"].double())
    return results


def scan_truth(inputs: Inputs, gradients: bool) -> dict[str, Tensor | Rows]:
    leaves = [inputs[name].double().requires_grad_(gradients) for name in ("p_anchor", "p_neighbor")]
    loss = scan_rows(*leaves)
    results: dict[str, Tensor | Rows] = {"loss": loss.detach()}
    if gradients:
        results["grad_p_anchor"], results["grad_p_neighbor"] = torch.autograd.grad(loss, leaves)
    return results


def edge_cost(*, n: int, k: int, d: int, reach: int, itemsize: int, mode: str) -> Cost:
    """Each edge with its weight, the rows once; the gradient needs every edge from either end, and is written."""
    forward = n * k * (16 + itemsize) + n * d * itemsize
    backward = 2 * n * k * (8 + itemsize) + 2 * n * d * itemsize
    moved = {"forward": forward, "backward": backward, "both": backward}[mode]
    return Cost(flops=0.0, bytes_moved=float(moved))


def matrix_cost(*, n: int, k: int, d: int, reach: int, itemsize: int, mode: str) -> Cost:
    """Indices and values, and rows in and out, once a product."""
    once = n * k * (4 + itemsize) + 2 * n * d * itemsize
    return Cost(flops=0.0, bytes_moved=float(once * (2 if mode == "both" else 1)))


def pair_cost(*, n: int, k: int, itemsize: int, mode: str) -> Cost:
    """Both are read, both gradients written."""
    return Cost(flops=0.0, bytes_moved=float({"forward": 2, "backward": 2, "both": 4}[mode] * n * k * itemsize))


def gathered_bytes(*, n: int, k: int, d: int, reach: int, itemsize: int) -> int:
    """Both ends, the difference, its square, and the gradient of the difference."""
    return 5 * n * k * d * itemsize


def _edge_list_bytes(*, n: int, k: int, d: int, reach: int, itemsize: int) -> int:
    return 16 * n * k + 8 * n


BENCHES = [
    Bench(
        op="laplacian_loss",
        shapes=SHAPES,
        tiny={"n": 50, "k": 3, "d": 4, "reach": 50},
        inputs=edge_inputs,
        outputs=("loss",),
        gradients=("z",),
        truth=laplacian_truth,
        cost=edge_cost,
        providers={
            "reference": Provider(partial(make_fastdc, "laplacian_loss", backend="reference"), gathered_bytes),
            "numba": Provider(
                partial(make_fastdc, "laplacian_loss", backend="numba"), prepare=to_edge_list, devices=("cpu",)
            ),
            "numba_unprepared": Provider(
                partial(make_fastdc, "laplacian_loss", backend="numba"), _edge_list_bytes, devices=("cpu",)
            ),
            "triton": Provider(
                partial(make_fastdc, "laplacian_loss", backend="triton"), prepare=to_edge_list, devices=("cuda",)
            ),
            "gather_scatter": Provider(partial(make_plain, laplacian_gathered), gathered_bytes),
            "torch_compile": Provider(
                partial(make_compiled, laplacian_gathered), gathered_bytes, compiles_each_shape=True
            ),
            "torch_sparse_laplacian": Provider(partial(make_plain, laplacian_by_matrix), prepare=to_laplacian),
        },
    ),
    Bench(
        op="propagate",
        shapes=SHAPES,
        tiny={"n": 50, "k": 3, "d": 4, "reach": 50},
        inputs=matrix_inputs,
        outputs=("y",),
        gradients=("x",),
        truth=propagate_truth,
        cost=matrix_cost,
        providers={
            "reference": Provider(partial(make_fastdc, "propagate", backend="reference"), gathered_bytes),
            "numba": Provider(
                partial(make_fastdc, "propagate", backend="numba"), prepare=to_adjacency, devices=("cpu",)
            ),
            "triton": Provider(
                partial(make_fastdc, "propagate", backend="triton"), prepare=to_adjacency, devices=("cuda",)
            ),
            "torch_sparse": Provider(partial(make_plain, sparse_product)),
        },
    ),
    Bench(
        op="neighbor_consistency_loss",
        shapes=PAIR_SHAPES,
        tiny={"n": 60, "k": 5},
        inputs=pair_inputs,
        outputs=("loss",),
        gradients=("p_anchor", "p_neighbor"),
        truth=scan_truth,
        cost=pair_cost,
        providers={
            "reference": Provider(
                partial(make_fastdc, "neighbor_consistency_loss", from_logits=True, backend="reference")
            ),
            "numba": Provider(
                partial(make_fastdc, "neighbor_consistency_loss", from_logits=True, backend="numba"), devices=("cpu",)
            ),
            "triton": Provider(
                partial(make_fastdc, "neighbor_consistency_loss", from_logits=True, backend="triton"), devices=("cuda",)
            ),
            "authors": Provider(partial(make_plain, scan_eager)),
            "eager": Provider(partial(make_plain, scan_rows)),
            "torch_compile": Provider(partial(make_compiled, scan_rows), compiles_each_shape=True),
        },
    ),
]
