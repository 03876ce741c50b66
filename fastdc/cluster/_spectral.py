"""Clusters of a weighted graph: eigenvectors of its normalised Laplacian, rows of length one, k-means.

Components are known before any eigenvector is computed. As many components as clusters are the clusters: no cut is
cheaper. Of fewer, each is decomposed alone, and the lowest eigenvalues of all count; so zero, which is as often an
eigenvalue as there are components, is never searched for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fastdc.cluster.kmeans import KMeans
from fastdc.kernels._copies import copy_rows
from fastdc.kernels.neighbors import knn

SOLVERS = ("auto", "lanczos", "shift_invert")
DENSE = 400  # nodes up to which all eigenvectors are computed
SHIFT = 1e-7  # below zero, where the Laplacian is inverted
TOLERANCE = 1e-9  # of eigenpairs: gaps between eigenvalues are as small as 1e-6
RESTARTS = 2000

Linker = Callable[[NDArray, int], NDArray]


class GraphClusters(NamedTuple):
    """The cluster of each node, int32, and how many components the graph has."""

    labels: NDArray
    n_components: int


def graph_clusters(
    graph: Any, n_clusters: int, link: Linker, *, eigen_solver: str, n_init: int, seed: int
) -> GraphClusters:
    """Spectral clusters of a symmetric ``scipy.sparse`` matrix of weights >= 0 without loops.

    ``link(components, n_clusters)`` joins components where there are more of them than clusters.
    """
    from scipy.sparse.csgraph import connected_components

    n_components, components = connected_components(graph, directed=False)
    if n_components >= n_clusters:
        joined = link(components, n_clusters) if n_components > n_clusters else components
        return GraphClusters(number_by_first(joined), n_components)
    embedding = laplacian_embedding(graph, components, n_clusters, eigen_solver=eigen_solver, seed=seed)
    kmeans = KMeans(n_clusters, n_init=n_init, random_state=seed, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # rows may repeat
        labels = kmeans.fit(embedding).labels_
    return GraphClusters(labels, n_components)


def laplacian_embedding(
    graph: Any, components: NDArray, n_vectors: int, *, eigen_solver: str, seed: int
) -> NDArray[np.float64]:
    """Rows of length one (n_nodes, n_vectors) from the lowest eigenvectors of I - D^-1/2 W D^-1/2."""
    n_components = int(components.max()) + 1
    members = np.split(np.argsort(components, kind="stable"), np.bincount(components).cumsum()[:-1])
    found: list[tuple[float, NDArray, NDArray]] = []
    for nodes in members:
        wanted = min(n_vectors - n_components + 1, len(nodes))
        values, vectors = _lowest(graph[nodes][:, nodes], wanted, eigen_solver, seed)
        found.extend((value, nodes, vector) for value, vector in zip(values, vectors.T))
    found.sort(key=lambda pair: pair[0])  # stable: of equal values the first component's
    embedding = np.zeros((len(components), n_vectors))
    for column, (_, nodes, vector) in enumerate(found[:n_vectors]):
        embedding[nodes, column] = vector
    lengths = np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding / np.where(lengths > 0, lengths, 1.0)


def number_by_first(labels: NDArray) -> NDArray[np.int32]:
    """The same sets, numbered in the order of their first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int32)
    numbers[np.argsort(first)] = np.arange(len(first))
    return numbers[inverse]


def link_nearest(x: Tensor, metric: str) -> Linker:
    """The smallest component joins the one that holds the nearest point, until as many are left as clusters."""

    def link(components: NDArray, n_clusters: int) -> NDArray:
        components = components.copy()
        sizes = np.bincount(components).astype(float)
        for _ in range(len(sizes) - n_clusters):
            smallest = int(sizes.argmin())
            inside = components == smallest
            mask = torch.from_numpy(inside).to(x.device)
            near = knn(copy_rows(x, ~mask), 1, copy_rows(x, mask), metric)
            row = int(near.indices[near.distances.argmin(), 0])
            target = components[~inside][row]
            components[inside] = target
            sizes[target] += sizes[smallest]
            sizes[smallest] = np.inf
        return components

    return link


def link_smallest(components: NDArray, n_clusters: int) -> NDArray:
    """The two smallest components are put together, until as many are left as clusters: for graphs without points."""
    components = components.copy()
    sizes = np.bincount(components).astype(float)
    warnings.warn(
        f"the graph has {len(sizes)} components, more than n_clusters={n_clusters}: the smallest are put together. Add "
        "edges, or ask for as many clusters",
        UserWarning,
        stacklevel=5,
    )
    for _ in range(len(sizes) - n_clusters):
        smallest, second = np.argsort(sizes, kind="stable")[:2]
        components[components == smallest] = second
        sizes[second] += sizes[smallest]
        sizes[smallest] = np.inf
    return components


def _lowest(graph: Any, wanted: int, eigen_solver: str, seed: int) -> tuple[NDArray, NDArray]:
    """The lowest eigenvalues (wanted,) and eigenvectors (n, wanted) of a connected graph's Laplacian."""
    from scipy.sparse import csr_matrix, diags

    n = graph.shape[0]
    degrees = np.asarray(graph.sum(axis=1)).ravel()
    if wanted == 1:
        return np.zeros(1), np.sqrt(degrees / degrees.sum())[:, None] if n > 1 else np.ones((1, 1))
    scale = diags(1.0 / np.sqrt(degrees))
    similarity = csr_matrix(scale @ graph @ scale)
    if n <= max(DENSE, 4 * wanted):
        values, vectors = np.linalg.eigh(similarity.toarray())
        return 1.0 - values[::-1][:wanted], vectors[:, ::-1][:, :wanted]
    start = np.random.default_rng(seed).normal(size=n)
    solve = _shift_invert if eigen_solver == "shift_invert" else _lanczos
    values, vectors = solve(similarity, wanted, start)
    order = np.argsort(values)
    return values[order], vectors[:, order]


def _lanczos(similarity: Any, wanted: int, start: NDArray) -> tuple[NDArray, NDArray]:
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    space = min(len(start) - 1, max(2 * wanted + 1, 40))
    try:
        values, vectors = eigsh(similarity, wanted, which="LA", v0=start, tol=TOLERANCE, ncv=space, maxiter=RESTARTS)
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"eigen_solver 'lanczos' found {len(error.eigenvalues)} of {wanted} eigenvectors in {RESTARTS} restarts; "
            "use eigen_solver='shift_invert', or more neighbours"
        ) from error
    return 1.0 - values, vectors


def _shift_invert(similarity: Any, wanted: int, start: NDArray) -> tuple[NDArray, NDArray]:
    from scipy.sparse import identity
    from scipy.sparse.linalg import LinearOperator, eigsh, splu

    n = len(start)
    laplacian = (identity(n, format="csc") - similarity).tocsc()
    shifted = laplacian + SHIFT * identity(n, format="csc")
    factors = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    inverse = LinearOperator((n, n), matvec=factors.solve, dtype=np.float64)
    return eigsh(laplacian, wanted, sigma=-SHIFT, OPinv=inverse, v0=start)
