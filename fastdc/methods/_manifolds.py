"""Manifolds of an embedding, and mixtures on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from fastdc.cluster import GaussianMixture
from fastdc.cluster._spectral import laplacian_embedding
from fastdc.kernels.neighbors import knn_graph
from fastdc.networks import ManifoldMixture
from fastdc.training import Stage, Trainer

MANIFOLDS = ("umap", "spectral")


@dataclass
class Unfold(Stage):
    """Find the manifold of the embedding, and a Gaussian mixture on it."""

    head: ManifoldMixture
    manifold: Any
    options: dict[str, Any]
    n_init: int

    def run(self, trainer: Trainer) -> None:
        z, seed = trainer.embed(), trainer.settings.seed
        y = torch.as_tensor(self._places(z, seed), dtype=z.dtype, device=z.device)
        mixture = GaussianMixture(len(self.head.means), covariance_type="full", n_init=self.n_init, random_state=seed)
        mixture.fit(y)
        self.head.place(z, y, mixture.means_, mixture.covariances_, mixture.weights_)

    def _places(self, z: Tensor, seed: int) -> Any:
        if len(z) < 3:  # too few for any manifold
            return z
        if self.manifold == "spectral":
            return _spectral_places(z, self.options["n_components"], self.options["n_neighbors"], seed)
        if self.manifold == "umap":
            from umap import UMAP

            options = self.options | {"n_neighbors": min(self.options["n_neighbors"], len(z))}
            return UMAP(**options, random_state=seed % 2**32, n_jobs=1).fit_transform(z.cpu().numpy())
        return clone(self.manifold, safe=False).fit_transform(z.cpu().numpy())


def read_manifold(manifold: Any) -> Any:
    """The parameter, checked; UMAP must be there."""
    if manifold == "umap":
        try:
            import umap  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "manifold='umap' needs umap-learn: pip install 'fastdc[manifold]'; or pass manifold='spectral', or "
                "an object with fit_transform"
            ) from error
    elif manifold != "spectral" and not callable(getattr(manifold, "fit_transform", None)):
        raise TypeError(f"manifold must be one of {MANIFOLDS} or have a method fit_transform, got {manifold!r}")
    return manifold


def _spectral_places(z: Tensor, n_components: int, n_neighbors: int, seed: int) -> np.ndarray:
    """Rows of the lowest eigenvectors of the graph of neighbours; one for each of its parts at least."""
    from scipy.sparse.csgraph import connected_components

    graph = knn_graph(z, min(n_neighbors - 1, len(z) - 1), mode="symmetric", weights="umap").astype(np.float64)
    n_parts, parts = connected_components(graph, directed=False)
    return laplacian_embedding(graph, parts, max(n_components, n_parts), eigen_solver="lanczos", seed=seed)
