"""The public functions over edges. Their docstrings are the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._autograd import refuse_transforms
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_points, check_positive, check_same_device, check_vector
from fastdc.kernels.graph import custom_ops
from fastdc.kernels.graph.checks import (
    check_adjacency,
    check_csr,
    check_edges,
    check_floating,
    check_nodes,
    check_steps,
)
from fastdc.kernels.graph.edges import Adjacency, EdgeList, prepare_adjacency
from fastdc.kernels.graph.reference import edge_sq_dists_reference, laplacian_reference, propagate_reference


def laplacian_loss(
    z: Tensor,
    edges: Tensor | EdgeList,
    weights: Tensor | None = None,
    reduction: str = "sum",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Energy of embeddings on a graph: neighbours are drawn together.

    .. math:: L = \sum_{(i, j) \in E} w_{ij} \|z_i - z_j\|^2

    The sum is over the directed edges as they are listed: nothing is halved, divided or made symmetric. With both
    (i, j) and (j, i) listed at weight w it is 2 tr(ZᵀLZ), L the Laplacian of W. Same as::

        loss = (weights * (z[edges[0]] - z[edges[1]]).square().sum(1)).sum()

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        Embeddings. float32, float64, float16 or bfloat16, any strides.
    edges : int64 Tensor of shape (2, n_edges), sparse CSR tensor (n_samples, n_samples), or EdgeList
        Sources and targets, in any order; repeated edges count each time, self loops add nothing. An entry (i, j)
        of a CSR tensor is an edge from i to j, its value the weight where ``weights`` is None. A graph that is
        used again should be an ``EdgeList.prepare(edges, n_samples)``: otherwise each call that needs the
        gradient to z prepares one.
    weights : Tensor of shape (n_edges,), optional
        One an edge (in the order of the entries for a CSR tensor); 1 without. Any sign.
    reduction : {"sum", "mean"}
        "mean" divides by the number of edges.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 where z or the weights are)

    Notes
    -----
    Gradients: to z and to the weights, computed in the forward pass; a second derivative raises. The values of a
    CSR tensor are constants.
    Memory: the gradients, of half inputs a float32 copy, and what ``EdgeList`` holds; never n_edges x n_features.
    Each node pulls from the edges at either of its ends, so that nothing is scattered.
    Determinism: same bits for any number of threads on CPUs; no atomics on GPUs.
    Precision: computed in float32 or wider, by differences, so that a large offset of z costs no digits; the sum
    over nodes is made in float64.
    Streaming: the sums of parts of the edges add up to that of all, and so do their gradients.

    References
    ----------
    Belkin, Niyogi. Laplacian Eigenmaps and Spectral Techniques for Embedding and Clustering. NIPS 2001.

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
    >>> loss = laplacian_loss(z, torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, 0.5]))
    >>> loss.backward()
    >>> loss.item(), z.grad.flatten()
    (3.0, tensor([-2.,  0.,  2.]))
    """
    check_points(z, "z")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be one of ('sum', 'mean'), got {reduction!r}")
    listed, weights = _edges_of(edges, weights, z)
    n_edges = listed.edges.shape[1] if isinstance(listed, EdgeList) else listed.shape[1]
    if weights is not None:
        check_vector(weights, n_edges, "weights", z, "edges")
        check_floating(weights, "weights")
    name = choose("laplacian_loss", z, backend)
    if name == "reference":
        loss = laplacian_reference(z, _checked(listed, z), weights)
    else:
        refuse_transforms("laplacian_loss", z, weights)
        need_z = torch.is_grad_enabled() and z.requires_grad
        loss = custom_ops.laplacian(name, z, _graph(listed, z, need_z), weights)
    return loss / max(n_edges, 1) if reduction == "mean" else loss


def heat_weights(
    x: Tensor, edges: Tensor | EdgeList, bandwidth: float | None = None, *, backend: str | None = None
) -> Tensor:
    r"""Heat-kernel weights of edges: :math:`w_{ij} = \exp(-\|x_i - x_j\|^2 / t)`.

    Same as::

        weights = torch.exp(-(x[edges[0]] - x[edges[1]]).square().sum(1) / bandwidth)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Points in the space whose neighbourhoods are to be kept. float32, float64, float16 or bfloat16.
    edges : int64 Tensor of shape (2, n_edges), or EdgeList
    bandwidth : float > 0, optional
        t; the mean squared length of the edges without.
    backend
        As in :func:`laplacian_loss`.

    Returns
    -------
    weights : Tensor of shape (n_edges,), float32 (float64 where x is), in [0, 1]
        Constants: no gradient leads to x.

    Notes
    -----
    Memory: the result; never n_edges x n_features. Edges all of length 0 have weight 1.

    References
    ----------
    Belkin, Niyogi. Laplacian Eigenmaps and Spectral Techniques for Embedding and Clustering. NIPS 2001.

    Examples
    --------
    >>> import torch
    >>> heat_weights(torch.tensor([[0.0], [1.0]]), torch.tensor([[0, 1], [1, 1]]), bandwidth=1.0)
    tensor([0.3679, 1.0000])
    """
    check_points(x, "x")
    if bandwidth is not None:
        bandwidth = check_positive(bandwidth, "bandwidth")
    listed, _ = _edges_of(edges, None, x)
    name = choose("heat_weights", x, backend)
    if name == "reference":
        sq_dists = edge_sq_dists_reference(x.detach(), _checked(listed, x))
    else:
        refuse_transforms("heat_weights", x)
        sq_dists = custom_ops.edge_sq_dists(name, x, _graph(listed, x, False))
    if bandwidth is None:
        tiny = torch.finfo(sq_dists.dtype).tiny
        return sq_dists.div_(-sq_dists.mean().clamp(min=tiny)).exp_()
    return sq_dists.div_(-bandwidth).exp_()


def locality_preserving_loss(
    z: Tensor,
    x: Tensor,
    edges: Tensor | EdgeList,
    bandwidth: float | None = None,
    reduction: str = "sum",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Locality-preserving constraint of deep embedding networks (DEN): what is near in x stays near in z.

    .. math:: L = \sum_{(i, j) \in E} e^{-\|x_i - x_j\|^2 / t} \|z_i - z_j\|^2

    Same as::

        loss = laplacian_loss(z, edges, heat_weights(x, edges, bandwidth), reduction)

    The weights are constants of the data: in a training loop over a fixed graph compute them once with
    :func:`heat_weights`, and call :func:`laplacian_loss`.

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        Embeddings.
    x : Tensor of shape (n_samples, any)
        The points that they are embeddings of; gets no gradient.
    edges : int64 Tensor of shape (2, n_edges), or EdgeList
        Neighbours, such as the k nearest of each point.
    bandwidth, reduction, backend
        As in :func:`heat_weights` and :func:`laplacian_loss`.

    Returns
    -------
    loss : Tensor, zero-dimensional, float32 (float64 where z or x is)

    Notes
    -----
    As of :func:`laplacian_loss`.

    References
    ----------
    Huang, Huang, Wang, Wang. Deep Embedding Network for Clustering. ICPR 2014.

    Examples
    --------
    >>> import torch
    >>> z, edges = torch.tensor([[0.0], [2.0]]), torch.tensor([[0], [1]])
    >>> locality_preserving_loss(z, z / 2, edges, bandwidth=1.0)
    tensor(1.4715)
    """
    check_points(z, "z")
    check_points(x, "x")
    if x.shape[0] != z.shape[0]:
        raise ValueError(f"x has {x.shape[0]} rows but z has {z.shape[0]}; both need one for each node")
    check_same_device(x, z, "x", "z")
    weights = heat_weights(x, edges, bandwidth, backend=backend)
    return laplacian_loss(z, edges, weights, reduction, backend=backend)


def propagate(
    adjacency: Tensor | Adjacency,
    x: Tensor,
    n_steps: int = 1,
    *,
    normalize: str | None = None,
    self_loops: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""A sparse matrix times rows of features, once or several times: the propagation of graph networks.

    .. math:: Y = \hat{A}^{s} X, \quad \hat{A} = D^{-1/2} (A + I) D^{-1/2} \text{ as GCN and SDCN have it}

    Same as::

        A = adjacency.to_dense() + (torch.eye(n) if self_loops else 0)
        d = A.sum(1).pow(-0.5)
        A = d[:, None] * A * d if normalize == "symmetric" else A / A.sum(1)[:, None] if normalize == "row" else A
        y = torch.linalg.matrix_power(A, n_steps) @ x

    Parameters
    ----------
    adjacency : sparse CSR tensor of shape (n_rows, n_columns), or Adjacency
        Its values are constants. A matrix that is used again should be an ``Adjacency.prepare(...)``, which is
        normalised already; under ``torch.compile`` it must be.
    x : Tensor of shape (n_columns, n_features)
        float32, float64, float16 or bfloat16, any strides.
    n_steps : int >= 1
        How often; more than once needs a square matrix.
    normalize : {None, "symmetric", "row"}
        See :meth:`Adjacency.prepare`.
    self_loops : bool
        Whether A + I is meant, before the normalisation.
    backend
        As in :func:`laplacian_loss`.

    Returns
    -------
    y : Tensor of shape (n_rows, n_features), dtype of x

    Notes
    -----
    Gradients: to x, through the columns of the matrix; any order of derivative.
    Memory: the result, a second one where n_steps > 1, of half inputs a float32 copy, and what ``Adjacency`` holds.
    Determinism: same bits for any number of threads on CPUs; no atomics on GPUs.
    Precision: float32 or wider; half results are rounded once, after the last step.

    References
    ----------
    Kipf, Welling. Semi-Supervised Classification with Graph Convolutional Networks. ICLR 2017, eq. (2).
    Bo, Wang, Shi, Zhu, Lu, Cui. Structural Deep Clustering Network. WWW 2020, eq. (5).

    Examples
    --------
    >>> import torch
    >>> path = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to_sparse_csr()
    >>> propagate(path, torch.tensor([[1.0], [3.0]]), normalize="symmetric", self_loops=True)
    tensor([[2.],
            [2.]])
    """
    check_points(x, "x")
    n_steps = check_steps(n_steps)
    if not isinstance(adjacency, Adjacency):
        n_rows, n_columns = check_adjacency(adjacency, normalize, self_loops)
        by_columns = torch.is_grad_enabled() and x.requires_grad
        prepared = prepare_adjacency(adjacency, normalize, self_loops, by_columns)
    elif normalize is not None or self_loops:
        raise ValueError("normalize and self_loops belong into Adjacency.prepare(): this adjacency is prepared already")
    else:
        prepared = adjacency
        n_rows, n_columns = adjacency.shape
    if n_columns != x.shape[0]:
        raise ValueError(f"adjacency has {n_columns} columns but x has {x.shape[0]} rows; both must be the nodes")
    if n_steps > 1 and n_rows != n_columns:
        raise ValueError(f"n_steps = {n_steps} needs a square adjacency, got shape {(n_rows, n_columns)}")
    check_same_device(prepared.values, x, "adjacency")
    name = choose("propagate", x, backend)
    if name == "reference":
        return propagate_reference(x, prepared, n_steps)
    refuse_transforms("propagate", x)
    return custom_ops.propagate(name, x, prepared, n_steps)


def _edges_of(edges: Tensor | EdgeList, weights: Tensor | None, z: Tensor) -> tuple[Tensor | EdgeList, Tensor | None]:
    """Edges (2, m) or prepared ones, and the weights."""
    if isinstance(edges, EdgeList):
        if edges.n_nodes != z.shape[0]:
            raise ValueError(f"edges are of {edges.n_nodes} nodes but there are {z.shape[0]} rows; prepare them anew")
        check_same_device(edges.edges, z, "edges", "z")
        return edges, weights
    if isinstance(edges, Tensor) and edges.layout == torch.sparse_csr:
        check_csr(edges, "edges")
        if edges.shape != (z.shape[0], z.shape[0]):
            raise ValueError(
                f"edges has shape {tuple(edges.shape)} but there are {z.shape[0]} rows; an adjacency is square"
            )
        check_same_device(edges, z, "edges", "z")
        sources = torch.repeat_interleave(edges.crow_indices().long().diff())
        values = edges.values().detach() if weights is None else weights
        return torch.stack([sources, edges.col_indices().long()]), values
    check_edges(edges)
    check_same_device(edges, z, "edges", "z")
    return edges, weights


def _checked(edges: Tensor | EdgeList, z: Tensor) -> Tensor:
    """Edges (2, m) whose ends are nodes; a traced call leaves the check to torch's indexing."""
    if isinstance(edges, EdgeList):
        return edges.edges
    if not torch.compiler.is_compiling():
        check_nodes(edges, z.shape[0])
    return edges


def _graph(edges: Tensor | EdgeList, z: Tensor, need_z: bool) -> EdgeList:
    """Prepared edges; buckets only where the gradient to z is wanted."""
    if isinstance(edges, EdgeList):
        return edges
    if need_z:
        return EdgeList.prepare(edges, z.shape[0])
    none = edges.new_empty(0)
    return EdgeList(edges.detach().contiguous(), none, none, none)
