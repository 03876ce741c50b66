"""Graphs and manifolds: clusters of what neighbourhoods make of an embedding (N2D, SpectralNet, SDCN)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn

from fastdc._input import read_count
from fastdc.cluster import GaussianMixture
from fastdc.cluster._spectral import laplacian_embedding
from fastdc.kernels.neighbors import knn_graph
from fastdc.methods._deep import DeepClusterer
from fastdc.methods._neighbors import Mine
from fastdc.methods._pretrained import Initialise, PretrainedClusterer
from fastdc.networks import Autoencoder, ConvAutoencoder, ManifoldMixture, MappedCentroids, MLPAutoencoder
from fastdc.terms import SiameseContrast, SpectralRelaxation
from fastdc.training import Ramp, Stage, Train, Trainer

MANIFOLDS = ("umap", "spectral")


@dataclass(eq=False, repr=False, kw_only=True)
class N2D(PretrainedClusterer):
    r"""Not too deep clustering: an autoencoder, a manifold of its embedding, and a Gaussian mixture on the manifold.

    .. math:: \max_{\pi, \mu, \Sigma} \sum_i \log \sum_k \pi_k \mathcal{N}(y_i; \mu_k, \Sigma_k), \quad
              y = \mathrm{manifold}(\mathrm{encoder}(x))

    Parameters
    ----------
    manifold : {"umap", "spectral"} or object with fit_transform
        "umap" is the paper's, and needs umap-learn (``pip install 'fastdc[manifold]'``). "spectral" are the lowest
        eigenvectors of the graph of neighbours, and needs nothing else. Any other object, such as scikit-learn's
        Isomap or TSNE, is cloned, and used as it is.
    n_components : int, optional
        Of the manifold; None is ``n_clusters``, as in the paper.
    n_neighbors : int
        Of each embedding, itself included; the paper takes 20. All where there are fewer.
    min_dist : float
        Of UMAP; the paper takes 0.
    n_init : int
        Runs of the mixture, which has full covariances.
    pretrain_epochs : int
        The paper's 1,000. On CPUs 50 to 200 do for small data.
    epochs, learning_rate, update_interval, tol
        Not used: nothing is trained after the autoencoder.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    ``transform`` gives the autoencoder's embedding; ``head_.places`` are those of the manifold for the fitted rows. A
    new row gets a place between those of its 15 nearest fitted embeddings, and not by the manifold's own
    ``transform``: few manifolds have one, UMAP's depends on the other rows of a call, and none can be saved.

    References
    ----------
    McConville, Santos-Rodriguez, Piechocki, Craddock. N2D: (Not Too) Deep Clustering via Clustering the Local Manifold
    of an Autoencoded Embedding. ICPR 2021.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import N2D
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> n2d = N2D(3, manifold="spectral", hidden=(16,), n_latent=2, pretrain_epochs=5, random_state=0).fit(X / 10)
    >>> n2d.labels_.shape, n2d.predict_proba(X[:5] / 10).shape
    ((90,), (5, 3))
    """

    manifold: Any = "umap"
    n_components: int | None = None
    n_neighbors: int = 20
    min_dist: float = 0.0
    n_init: int = 10
    pretrain_epochs: int = 1000

    def make_head(self, n_latent: int) -> ManifoldMixture:
        return ManifoldMixture(self.n_clusters, n_latent)

    def stages(self, head: ManifoldMixture) -> Iterator[Stage]:
        yield self.pretraining()
        yield Unfold(head, _read_manifold(self.manifold), self._read_options(), self.n_init)

    def _read_options(self) -> dict[str, Any]:
        """Parameters of the manifolds that are known by name, in UMAP's words."""
        n_components = self.n_clusters if self.n_components is None else read_count(self.n_components, "n_components")
        n_neighbors = read_count(self.n_neighbors, "n_neighbors", low=2)
        return {"n_components": n_components, "n_neighbors": n_neighbors, "min_dist": self.min_dist}


@dataclass(eq=False, repr=False, kw_only=True)
class SpectralNet(DeepClusterer):
    r"""Spectral clustering by a network, which extends to new rows.

    The network maps the rows of a graph to what would be eigenvectors of its Laplacian: neighbours to the same place,
    the columns orthonormal,

    .. math:: L = \frac{1}{m^2} \sum_{ij} W_{ij} \|y_i - y_j\|^2 \quad \text{with} \quad \frac{1}{m} Y^\top Y = I,

    over batches of m rows. An orthogonalisation step (by a Cholesky factor, over other rows) and a gradient step take
    turns; at the end k-means is run on all y.

    Parameters
    ----------
    n_neighbors : int
        Edges of each row, to others of its batch. They weigh exp(-d² / 2σ²), σ the median distance to the neighbour in
        the middle of them. The paper's experiments take 2 or 3, or all pairs.
    siamese_epochs : int
        Passes over the data to train a network for the distances first, on each row's ``siamese_neighbors`` nearest
        rows and on random pairs; with 0 distances are those of the rows. The paper takes it where Euclidean distances
        mean little.
    siamese_neighbors : int
    n_latent : int
        Width of the siamese network's output. The spectral embedding is ``n_clusters`` wide, or what ``encoder`` makes.
    hidden : sequence of int
        Widths of both networks; the paper's for images. ReLU between layers, tanh before the orthogonalisation.
    batch_size : int or None
        The paper takes 128 to 1,024. A batch must show the graph: take more rather than fewer.
    learning_rate : float
        Falls to a hundredth, in a straight line.
    n_init : int
        Restarts of the k-means at the end.
    tol, update_interval
        Not used: labels are made at the end.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    Edges are those of nearest neighbours within the batch, through ``fastdc.knn`` and ``fastdc.laplacian_loss``, and
    never all pairs. ``transform`` gives the network's output; ``head_(z)`` makes y of it, where the centers lie.

    References
    ----------
    Shaham, Stanton, Li, Basri, Nadler, Kluger. SpectralNet: Spectral Clustering Using Deep Neural Networks. ICLR 2018.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from fastdc import SpectralNet
    >>> X, y = make_moons(200, noise=0.05, random_state=0)
    >>> net = SpectralNet(2, hidden=(32, 32), batch_size=None, epochs=2, random_state=0).fit(X)
    >>> net.labels_.shape, net.transform(X).shape
    ((200,), (200, 2))
    """

    n_neighbors: int = 10
    siamese_epochs: int = 0
    siamese_neighbors: int = 2
    hidden: Sequence[int] = (1024, 1024, 512)
    batch_size: int | None = 1024
    n_init: int = 10

    def make_head(self, n_latent: int) -> MappedCentroids:
        return MappedCentroids(self.n_clusters, n_latent)

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> Autoencoder:
        if self.image_shape is not None:
            encoder = ConvAutoencoder(self.image_shape, self.n_clusters, generator=generator).encoder
        else:
            encoder = MLPAutoencoder(n_features, self.n_clusters, self.hidden, generator).encoder
        return Autoencoder(nn.Sequential(encoder, nn.Tanh()))

    def stages(self, head: MappedCentroids) -> Iterator[Stage]:
        read_count(self.siamese_epochs, "siamese_epochs", low=0)
        space = None
        if self.siamese_epochs:
            space = MLPAutoencoder(self.n_features_in_, self.n_latent, self.hidden, _seeded()).encoder
            neighbors = Mine(self.siamese_neighbors, "euclidean", embedded=False)
            yield neighbors
            contrast = SiameseContrast(space)
            given = {"views": neighbors.views, "modules": [contrast]}
            yield Train(contrast, "siamese", self.siamese_epochs, self.learning_rate, **given)
        relaxation = SpectralRelaxation(head, read_count(self.n_neighbors, "n_neighbors"), space)
        yield self.training(relaxation, decay=Ramp(1.0, 0.01))
        yield Orthogonalise(head)
        yield Initialise(head, self.n_init)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_init, "n_init")


@dataclass
class Orthogonalise(Stage):
    """Make the embeddings of all rows orthonormal."""

    head: MappedCentroids

    def run(self, trainer: Trainer) -> None:
        self.head.whiten(trainer.embed(), center=False)


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
        if self.manifold == "spectral":
            return _spectral_places(z, self.options["n_components"], self.options["n_neighbors"], seed)
        if self.manifold == "umap":
            from umap import UMAP

            options = self.options | {"n_neighbors": min(self.options["n_neighbors"], len(z))}
            return UMAP(**options, random_state=seed % 2**32, n_jobs=1).fit_transform(z.cpu().numpy())
        return clone(self.manifold, safe=False).fit_transform(z.cpu().numpy())


def _read_manifold(manifold: Any) -> Any:
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


def _seeded() -> torch.Generator:
    """A generator that follows from the fit's seed."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))
