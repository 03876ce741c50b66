"""Graphs and manifolds: clusters of what neighbourhoods make of an embedding (N2D, SpectralNet, SDCN)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastdc._input import read_count
from fastdc._runs import digest
from fastdc.kernels.neighbors.points import METRICS, check_metric
from fastdc.methods._deep import DeepClusterer
from fastdc.methods._graphs import Link, csr_parts, read_graph
from fastdc.methods._manifolds import Unfold, read_manifold
from fastdc.methods._pretrained import Initialise, PretrainedClusterer
from fastdc.methods._stages import Mine, Whiten
from fastdc.networks import (
    Autoencoder,
    ConvAutoencoder,
    GraphCentroids,
    Init,
    ManifoldMixture,
    MappedCentroids,
    MLPAutoencoder,
    check_layers,
    layer_outputs,
)
from fastdc.terms import GraphTarget, Reconstruction, SiameseContrast, SpectralRelaxation, StudentT
from fastdc.training import Ramp, SourceRows, Stage, Train, Trainer


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
        The paper takes 1,000. Weights begin with He's spread, with which neighbourhoods show after fewer epochs.
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
    init: ClassVar[Init] = "he"

    def make_head(self, n_latent: int) -> ManifoldMixture:
        return ManifoldMixture(self.n_clusters, n_latent)

    def stages(self, head: ManifoldMixture) -> Iterator[Stage]:
        yield self.pretraining()
        yield Unfold(head, read_manifold(self.manifold), self._read_options(), self.n_init)

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

    over batches of m rows; at the end Y of all rows is made orthonormal, and k-means is run on it. The gradient goes
    through the orthogonalisation of the batch (by a Cholesky factor). The paper takes turns between such a step on one
    batch and a gradient step on another, for which the map is constant.

    Parameters
    ----------
    n_neighbors : int
        Edges of each row, to others of its batch. They weigh exp(-d² / σ_i σ_j), σ_i the distance of i to the
        neighbour in the middle of them. (The paper's experiments take 2 or 3 neighbours, or all pairs, and one scale
        for all rows, with which it costs nothing to cut off a row that lies apart.)
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
        The paper takes 128 to 1,024. A batch must show the graph.
    epochs : int
        Small data need more: some 500 steps for two rings, 800 for the 1,797 digits.
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
            space = space.to(head.offset.dtype)
            neighbors = Mine(self.siamese_neighbors, "euclidean", embedded=False)
            yield neighbors
            contrast = SiameseContrast(space)
            epochs, rate = self.siamese_epochs, self.learning_rate
            yield Train(contrast, "siamese", epochs, rate, views=neighbors.views, modules=[contrast])
        relaxation = SpectralRelaxation(read_count(self.n_neighbors, "n_neighbors"), space)
        yield self.training(relaxation, decay=Ramp(1.0, 0.01))
        yield Whiten(head, center=False)
        yield Initialise(head, self.n_init)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_init, "n_init")


@dataclass(eq=False, repr=False, kw_only=True)
class SDCN(PretrainedClusterer):
    r"""Structural deep clustering network: an autoencoder and a graph network that learn one target distribution.

    A graph network over the neighbours of the rows takes, in each layer, half of the encoder's output at that layer.
    With its softmax Z, the soft assignment Q of the embedding to centers and the target P of DEC,

    .. math:: L = L_{rec} + \alpha KL(P \| Q) + \beta KL(P \| Z).

    Labels are those of Z, for the fitted rows alone: there is no ``predict``. ``transform`` is the encoder's.

    Parameters
    ----------
    n_neighbors : int
        Of the graph, which has an edge where one of two rows has the other among its nearest. The paper takes 1 to 10,
        by the data. All where there are fewer.
    metric : {"euclidean", "cosine"}
    graph : scipy.sparse matrix of shape (n_samples, n_samples), or integers of shape (2, n_edges), optional
        A graph of one's own instead: weights >= 0, or edges in both directions. Loops are added.
    alpha, beta : float
        Weights of the two divergences; the paper's 0.1 and 0.01. The reconstruction error is averaged over features.
    mix : float
        Share of the encoder in what the graph network takes; the paper's 0.5.
    hidden, encoder, autoencoder
        The encoder must be an ``nn.Sequential`` of linear layers and activations.
    batch_size : int or None
        Of the pre-training. The main stage takes all rows at each step.
    epochs : int
        Steps of the main stage; the paper takes 200.
    tol : float, optional
        On the labels of Q. None, as in the paper, runs all epochs.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    References
    ----------
    Bo, Wang, Shi, Zhu, Lu, Cui. Structural Deep Clustering Network. WWW 2020.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import SDCN
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> sdcn = SDCN(3, hidden=(16,), n_latent=2, pretrain_epochs=20, epochs=5, random_state=0).fit(X / 10)
    >>> sdcn.labels_.shape, hasattr(sdcn, "predict")
    ((90,), False)
    """

    transductive: ClassVar[bool] = True

    n_neighbors: int = 10
    metric: str = "euclidean"
    graph: Any = None
    alpha: float = 0.1
    beta: float = 0.01
    mix: float = 0.5
    epochs: int = 200
    tol: float | None = None

    def make_head(self, n_latent: int) -> GraphCentroids:
        own = self._own_network()
        if own is None and self.image_shape is not None:
            raise ValueError("SDCN mixes the layers of a fully connected encoder; pass image_shape=None")
        widths = (
            [self.n_features_in_, *self.hidden, n_latent] if own is None else check_layers(own.get_submodule("encoder"))
        )
        return GraphCentroids(self.n_clusters, widths, mix=self.mix)

    def stages(self, head: GraphCentroids) -> Iterator[Stage]:
        check_metric(self.metric, METRICS[:2])
        yield Link(head, self.graph, read_count(self.n_neighbors, "n_neighbors"), self.metric)
        yield self.pretraining()
        yield self.initialisation(head)
        objective = self.beta * GraphTarget(head) + Reconstruction() + self.alpha * StudentT(head, "batch")
        yield self.refinement(objective, views=None, whole=True)

    @torch.no_grad()
    def _label(self, trainer: Trainer, z: Tensor) -> Tensor:
        head: Any = trainer.head
        x = trainer.data
        logits = head.classify(x, layer_outputs(trainer.network.eval().get_submodule("encoder"), x))
        return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)

    def _identity(self, x: Tensor | SourceRows) -> dict[str, Any]:
        graph = {} if self.graph is None else {"digest of graph": digest(csr_parts(read_graph(self.graph, len(x))))}
        return super()._identity(x) | graph


def _seeded() -> torch.Generator:
    """A generator that follows from the fit's seed."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))
