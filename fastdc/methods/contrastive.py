"""Contrast: of rows and clusters (CC), with balanced codes or labels (SwAV, SeLa), beside other terms (SCCL, IDFD)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdc._input import read_count
from fastdc.methods._pretrained import Initialise
from fastdc.methods._views import ViewClusterer, projection_beside
from fastdc.networks import Adapter, Centroids, MappedCentroids, Prototypes, SoftmaxHead, UnitAutoencoder
from fastdc.terms import (
    ClusterContrast,
    FeatureDecorrelation,
    InstanceContrast,
    InstanceDiscrimination,
    StudentTOfRows,
    SwappedPrediction,
    TransportLabels,
    Watch,
)
from fastdc.training import Stage
from fastdc.views import Augmented


@dataclass(eq=False, repr=False, kw_only=True)
class CC(ViewClusterer):
    r"""Contrastive clustering: two views of each row, held against each other by rows and by columns.

    .. math:: L = L_{NT-Xent}(g(z^a), g(z^b); \tau_I) + L_{NT-Xent}(Y^a, Y^b; \tau_C) - H(Y^a) - H(Y^b)

    z are embeddings, g is a projection, and the rows of the transposed assignments Y stand for clusters.

    Parameters
    ----------
    temperature, cluster_temperature : float
        :math:`\tau_I` and :math:`\tau_C`.
    balance : float
        Weight of the two entropies of cluster shares.
    n_projected : int
        Width of g, which has one hidden layer.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    The objective, its temperatures, the heads, and Adam in batches of 256 are the paper's. Different: it trains
    ResNet-34 for 1,000 epochs at a rate of 0.0003 on images of 224 x 224; the network here is small (``channels``,
    ``n_blocks`` and ``n_latent``, or ``encoder=``) and learns at 0.001, and views know neither colour jitter nor
    blur (:meth:`augmentation`, or ``views=``).

    References
    ----------
    Li, Hu, Liu, Peng, Zhou, Peng. Contrastive Clustering. AAAI 2021.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import CC
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> CC(3, hidden=(16,), n_latent=16, epochs=5, random_state=0).fit(X / 10).labels_.shape
    (90,)
    """

    temperature: float = 0.5
    cluster_temperature: float = 1.0
    balance: float = 1.0
    n_projected: int = 128

    def make_head(self, n_latent: int) -> SoftmaxHead:
        return SoftmaxHead(n_latent, self.n_clusters, hidden=n_latent)

    def stages(self, head: SoftmaxHead) -> Iterator[Stage]:
        views = Augmented(self.augmentation()) if self.views is None else self.views
        rows = InstanceContrast(projection_beside(head, self.n_projected), self.temperature, self.group)
        columns = ClusterContrast(head, self.cluster_temperature, self.balance, self.group)
        yield self.training(rows + columns, views=views, watch=Watch(head))

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_projected, "n_projected")


@dataclass(eq=False, repr=False, kw_only=True)
class SwAV(ViewClusterer):
    r"""Swapping assignments between views: each view predicts the balanced code of another one.

    .. math:: L = -\frac{1}{n} \sum_i \sum_k q^{(s)}_{ik} \log p^{(t)}_{ik}, \quad
              p_{ik} \propto \exp(z_i \cdot c_k / \tau)

    averaged over pairs of views s and t; z and the prototypes c have length one. The codes q of the first two views
    are as near to p as clusters of equal size allow (Sinkhorn's algorithm); further views, smaller crops, only
    predict.

    Parameters
    ----------
    n_prototypes : int, optional
        None is ``n_clusters``: the nearest prototype is then the cluster. With more, clusters are made by k-means of
        the embeddings at the end.
    n_small : int
        Further views: colour images cut to 0.2 to 0.5 of the area, vectors with the dropout doubled, gray images as
        in the first two.
    temperature, epsilon, n_iters
        Of the predictions; regularisation and iterations of the codes.
    n_init : int
        Restarts of k-means.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    The embedding is what the paper's projection gives, of length one. Temperature, epsilon, the iterations and
    multi-crop are the paper's; small crops are brought to full size here, since rows have one width. Different: Adam,
    where the paper has LARS and decays the rate; the prototypes learn from the first step on; there is no queue
    (``losses.SwAVLoss`` has one). A batch should have several times as many rows as there are prototypes.

    References
    ----------
    Caron, Misra, Mairal, Goyal, Bojanowski, Joulin. Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments. NeurIPS 2020.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import SwAV
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> SwAV(3, hidden=(16,), n_latent=16, epochs=5, random_state=0).fit(X / 10).labels_.shape
    (90,)
    """

    n_prototypes: int | None = None
    n_small: int = 2
    temperature: float = 0.1
    epsilon: float = 0.05
    n_iters: int = 3
    n_init: int = 20

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        backbone = super().make_network(n_features, generator)
        return UnitAutoencoder(backbone.encoder, self.n_latent, generator)  # type: ignore[arg-type]

    def make_head(self, n_latent: int) -> Prototypes | Centroids:
        if self.n_prototypes is None:
            return Prototypes(n_latent, self.n_clusters, self.temperature)
        return Centroids(self.n_clusters, n_latent)

    def stages(self, head: Any) -> Iterator[Stage]:
        large, small = self.augmentation(), self.augmentation(area=(0.2, 0.5), harder=True)
        views = Augmented([large] * 2 + [small] * self.n_small) if self.views is None else self.views
        if self.n_prototypes is None:
            objective = SwappedPrediction(head, self.epsilon, self.n_iters, self.group)
            yield self.training(objective, views=views, watch=Watch(head))
        else:
            prototypes = Prototypes(head.centers.shape[1], self.n_prototypes, self.temperature).to(head.centers)
            objective = SwappedPrediction(prototypes, self.epsilon, self.n_iters, self.group)
            yield self.training(objective, views=views, until=None)
            yield Initialise(head, self.n_init)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_small, "n_small", low=0)
        read_count(self.n_init, "n_init")
        if self.n_prototypes is not None:
            read_count(self.n_prototypes, "n_prototypes")


@dataclass(eq=False, repr=False, kw_only=True)
class SCCL(ViewClusterer):
    r"""Supporting clustering with contrastive learning: for embeddings that are good already, as those of texts.

    .. math:: L = L_{NT-Xent}(g(z^a), g(z^b); \tau) + \eta \, KL(P \| Q)

    The first term looks at two views of each row through a projection g, the second is that of DEC, on the rows as
    they are; its centers begin where k-means finds them in the embedding.

    Parameters
    ----------
    eta, temperature : float
    alpha : float
        Degrees of freedom of the Student t kernel.
    target : {"batch", "refresh"}
        P of the batch at every step, as in the authors' code, or of all rows every ``update_interval`` steps.
    n_projected : int
        Width of g.
    n_init : int
        Restarts of k-means.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    :math:`\eta = 10`, :math:`\tau = 0.5`, :math:`\alpha = 1` and g are the paper's. It fine-tunes the sentence
    encoder that makes the embeddings, on texts with replaced words. Here rows are embeddings, which a network
    that begins as the identity changes (:class:`fastdc.networks.Adapter`; ``n_latent`` has no effect then), and
    views are noise and dropout; the authors also let dropout alone make views. The reported results of the paper
    depend on its encoders.

    References
    ----------
    Zhang et al. Supporting Clustering with Contrastive Learning. NAACL 2021.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import SCCL
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> SCCL(3, hidden=(16,), epochs=5, random_state=0).fit(X / 10).labels_.shape
    (90,)
    """

    epochs: int = 30
    eta: float = 10.0
    temperature: float = 0.5
    alpha: float = 1.0
    target: str = "batch"
    n_projected: int = 128
    n_init: int = 20
    tol: float | None = 1e-3

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        if self.image_shape is not None:
            return super().make_network(n_features, generator)
        return Adapter(n_features, self.hidden, generator)

    def make_head(self, n_latent: int) -> Centroids:
        return Centroids(self.n_clusters, n_latent, self.alpha)

    def stages(self, head: Centroids) -> Iterator[Stage]:
        views = Augmented(self.augmentation()) if self.views is None else self.views
        contrast = InstanceContrast(projection_beside(head, self.n_projected), self.temperature, self.group)
        yield Initialise(head, self.n_init)
        yield self.training(contrast + self.eta * StudentTOfRows(head, self.target), views=views)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_projected, "n_projected")
        read_count(self.n_init, "n_init")


@dataclass(eq=False, repr=False, kw_only=True)
class SeLa(ViewClusterer):
    r"""Self-labelling: a classifier learns the labels that optimal transport makes of its own probabilities.

    .. math:: \min_{\theta, y} -\frac{1}{n} \sum_i \log p_\theta(y_i \mid T(x_i)), \quad
              y_i = \arg\max_k Q_{ik}, \quad Q = \arg\max_{Q} \langle Q, \log p \rangle + \epsilon H(Q)

    over Q whose rows sum to one and whose columns are equal: no cluster can be empty in the labels. They are made anew
    from all rows, as these are, every ``update_interval`` steps.

    Parameters
    ----------
    epsilon : float
        One over the paper's :math:`\lambda`.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    :math:`\lambda = 25` is the paper's. Different: one classifier, where the paper's best results come from ten on one
    network; Adam, a small network and the views of :meth:`augmentation` instead of SGD, AlexNet or ResNet-50 and crops;
    labels are made anew every three epochs unless ``update_interval`` says otherwise, in the paper up to 100 times in
    400 epochs. Labels of a fit come from the classifier and need not be equally many.

    References
    ----------
    Asano, Rupprecht, Vedaldi. Self-labelling via Simultaneous Clustering and Representation Learning. ICLR 2020.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import SeLa
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> SeLa(3, hidden=(16,), n_latent=16, epochs=5, random_state=0).fit(X / 10).labels_.shape
    (90,)
    """

    epsilon: float = 0.04

    def make_head(self, n_latent: int) -> SoftmaxHead:
        return SoftmaxHead(n_latent, self.n_clusters)

    def stages(self, head: SoftmaxHead) -> Iterator[Stage]:
        views = Augmented(self.augmentation(), 1) if self.views is None else self.views
        yield self.training(TransportLabels(head, self.epsilon), views=views)


@dataclass(eq=False, repr=False, kw_only=True)
class IDFD(ViewClusterer):
    r"""Instance discrimination and feature decorrelation, then k-means.

    .. math:: L = -\frac{1}{n} \sum_i \log \frac{\exp(v_i \cdot z_i / \tau)}{\sum_j \exp(v_j \cdot z_i / \tau)}
              - \frac{\lambda}{d} \sum_l \log \frac{\exp(f_l \cdot f_l / \tau_2)}{\sum_m \exp(f_m \cdot f_l / \tau_2)}

    z are embeddings of transformed rows, of length one, v what is remembered of all rows, f the columns of z, also of
    length one.

    Parameters
    ----------
    temperature, decorrelation_temperature : float
        :math:`\tau` and :math:`\tau_2`.
    decorrelation_weight : float
        :math:`\lambda`.
    momentum : float
        Share of the old embedding in what is remembered.
    n_init : int
        Restarts of k-means.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    Temperatures, weight and momentum are the authors'. Different: they train ResNet-18 for 2,000 epochs with SGD; here
    a small network learns by Adam. The memory holds an embedding of each row. k-means sees rows of length one, whatever
    the network gives.

    References
    ----------
    Tao, Takagi, Nakata. Clustering-friendly Representation Learning via Instance Discrimination and Feature
    Decorrelation. ICLR 2021.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import IDFD
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> IDFD(3, hidden=(16,), n_latent=16, epochs=5, random_state=0).fit(X / 10).labels_.shape
    (90,)
    """

    temperature: float = 1.0
    decorrelation_temperature: float = 2.0
    decorrelation_weight: float = 1.0
    momentum: float = 0.5
    n_init: int = 20

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        backbone = super().make_network(n_features, generator)
        return UnitAutoencoder(backbone.encoder, self.n_latent, generator)  # type: ignore[arg-type]

    def make_head(self, n_latent: int) -> MappedCentroids:
        return MappedCentroids(self.n_clusters, n_latent, unit=True)

    def stages(self, head: MappedCentroids) -> Iterator[Stage]:
        views = Augmented(self.augmentation(), 1) if self.views is None else self.views
        instances = InstanceDiscrimination(self.temperature, self.momentum)
        features = FeatureDecorrelation(self.decorrelation_temperature, self.group)
        yield self.training(instances + self.decorrelation_weight * features, views=views, until=None)
        yield Initialise(head, self.n_init)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_init, "n_init")
