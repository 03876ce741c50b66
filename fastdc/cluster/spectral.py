"""Spectral clustering as a scikit-learn estimator over arrays, tensors and graphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import validate_data
from torch import Tensor

from fastdc._input import give_back, read_count, read_seed
from fastdc.cluster._spectral import SOLVERS, Linker, graph_clusters, link_nearest, link_smallest
from fastdc.cluster._whole import files_for_sources, finite_rows, read_whole, spread
from fastdc.kernels.neighbors import knn_graph
from fastdc.kernels.neighbors.points import METRICS, check_metric
from fastdc.persistence import Saveable

WEIGHTS = {"nearest_neighbors": None, "self_tuning": "self_tuning", "heat": "heat", "umap": "umap"}
FLAT = 2  # features up to which graphs of neighbours factorise with little fill


@dataclass(eq=False, repr=False, kw_only=True)
class SpectralClustering(Saveable, ClusterMixin, BaseEstimator):
    """Clusters of the graph of nearest neighbours, by the eigenvectors of its normalised Laplacian.

    Parameters
    ----------
    n_clusters : int
        At most the number of samples.
    affinity : {"nearest_neighbors", "self_tuning", "heat", "umap", "precomputed"}
        Weights of the edges: 1, or 1/2 where only one of two points has the other among its neighbours; by the
        distance and the points' own scales; by the distance alone; as UMAP has them. "precomputed": X is a
        symmetric matrix of weights, dense or ``scipy.sparse``, of shape (n_samples, n_samples).
    n_neighbors : int
        Of each point; all others where there are fewer. The fewer, the longer and thinner clusters may be; the more,
        the better clusters hang together.
    metric : {"euclidean", "cosine"}
    algorithm : {"auto", "exact", "lists", "faiss", "hnsw", "ivf"}
        Of the search for neighbours (see ``fastdc.knn``).
    eigen_solver : {"auto", "lanczos", "shift_invert"}
        "lanczos" multiplies, for every graph; "shift_invert" factorises the Laplacian, many times faster for graphs
        of points in the plane, and of no use for those of many features, where factors fill up. "auto" factorises
        where X has at most two features.
    n_init : int
        Runs of k-means on the eigenvectors.
    local_neighbor : int
        Of "self_tuning": the neighbour whose distance is a point's own scale.
    device : str or torch.device, optional
        Where neighbours are searched. None computes where a tensor lies, and otherwise on the GPU if there is one.
    backend : {None, "reference", "numba", "triton"}
        Of the exact search.
    check_finite : bool
        Raise where X holds NaN or infinity. Without the check such rows get label -1.
    random_state : int, numpy RandomState or Generator, optional
        The same integer gives the same result. Global random states are left as they were.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
    n_components_ : int
        Of the graph.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Components of the graph: as many as clusters are the clusters, without an eigenvector, since they cut no edge.
    More: the smallest joins the one that holds the nearest point, until n_clusters are left (of a precomputed graph
    the smallest are put together, with a warning). Fewer: each is decomposed alone.
    Memory: about 150 bytes a sample and neighbour, and about 8 (n_clusters + 40) bytes a sample for eigenvectors;
    never n_samples x n_samples. Factors of "shift_invert" take about 16 bytes an entry, some 50 entries a sample in
    the plane.
    The rows of a source take little memory: those that cannot be seen where they lie, and copies of 64 MB and more, are
    in temporary files (the environment variable TMPDIR says where).

    References
    ----------
    Ng, Jordan, Weiss. On spectral clustering: analysis and an algorithm. NIPS 2001.
    Zelnik-Manor, Perona. Self-tuning spectral clustering. NIPS 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import SpectralClustering
    >>> angles = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    >>> ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    >>> labels = SpectralClustering(2, random_state=0).fit_predict(np.concatenate([ring, 3 * ring]))
    >>> np.unique(labels[:100]), np.unique(labels[100:])
    (array([0], dtype=int32), array([1], dtype=int32))
    """

    n_clusters: int = field(default=8, kw_only=False)
    affinity: str = "nearest_neighbors"
    n_neighbors: int = 10
    metric: str = "euclidean"
    algorithm: str = "auto"
    eigen_solver: str = "auto"
    n_init: int = 10
    local_neighbor: int = 7
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True
    random_state: Any = None

    @files_for_sources
    def fit(self, X: Any, y: Any = None) -> SpectralClustering:
        """Find the clusters.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features); with "precomputed" a matrix of weights
        y : ignored

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data.
        RuntimeError
            If eigenvectors do not converge, with what to do.
        """
        n_clusters = read_count(self.n_clusters, "n_clusters")
        n_init = read_count(self.n_init, "n_init")
        if self.eigen_solver not in SOLVERS:
            raise ValueError(f"eigen_solver must be one of {SOLVERS}, got {self.eigen_solver!r}")
        if self.affinity != "precomputed" and self.affinity not in WEIGHTS:
            raise ValueError(f"affinity must be one of {(*WEIGHTS, 'precomputed')}, got {self.affinity!r}")
        check_metric(self.metric, METRICS[:2])
        seed = read_seed(self.random_state)
        solver, finite = self.eigen_solver, None
        if self.affinity == "precomputed":
            graph = self._read_graph(X)
            link: Linker = link_smallest
        else:
            x = read_whole(X, self)
            x, finite = finite_rows(x, check=not self.check_finite)
            graph, link = self._neighbors(x), link_nearest(x, self.metric)
            if solver == "auto" and x.shape[1] <= FLAT:
                solver = "shift_invert"
        read_count(n_clusters, "n_clusters", high=graph.shape[0], high_name="n_samples")
        found = graph_clusters(graph, n_clusters, link, eigen_solver=solver, n_init=n_init, seed=seed)
        self.n_components_ = found.n_components
        labels = spread(torch.from_numpy(found.labels), finite, -1)
        self.labels_ = give_back(labels, X)
        return self

    def _neighbors(self, x: Tensor) -> Any:
        """The symmetric graph of neighbours, float64."""
        from scipy.sparse import csr_array

        n_neighbors = min(read_count(self.n_neighbors, "n_neighbors"), len(x) - 1)
        if n_neighbors == 0:
            return csr_array((1, 1))
        weights = WEIGHTS[self.affinity]
        graph = knn_graph(
            x,
            n_neighbors,
            self.metric,
            self.algorithm,
            mode="directed" if weights is None else "symmetric",
            weights=weights,
            local_neighbor=self.local_neighbor,
            backend=self.backend,
        ).astype(np.float64)
        return (graph + graph.T) / 2 if weights is None else graph

    def _read_graph(self, X: Any) -> Any:
        """A matrix of weights, checked: square, symmetric, none negative; without its diagonal."""
        from scipy.sparse import csr_array

        rows = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
        matrix = csr_array(validate_data(self, rows, reset=True, accept_sparse="csr", dtype=np.float64))
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a precomputed affinity must be square, got shape {matrix.shape}")
        if matrix.nnz and matrix.data.min() < 0:
            raise ValueError(f"a precomputed affinity must not be negative, the least is {matrix.data.min()}")
        apart = abs(matrix - matrix.T)
        if apart.nnz and apart.max() > 1e-10 * matrix.max():
            raise ValueError("a precomputed affinity must be symmetric; use (affinity + affinity.T) / 2")
        matrix.setdiag(0)
        matrix.eliminate_zeros()
        return matrix

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.affinity == "precomputed"
        tags.input_tags.sparse = self.affinity == "precomputed"
        return tags
