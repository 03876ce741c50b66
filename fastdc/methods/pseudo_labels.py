"""Pseudo-labels: a network classifies rows by labels that it made itself (SCAN, DeepCluster)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastdc._input import read_count
from fastdc.methods._pretrained import Initialise, PretrainedClusterer
from fastdc.methods._stages import Mine, Whiten
from fastdc.networks import Init, MappedCentroids, SoftmaxHead
from fastdc.terms import ClusterClassification, ConfidentLabels, NeighborConsistency
from fastdc.training import Stage, Train
from fastdc.views import CleanAndAugmented, RandomAffine, Transform


@dataclass(eq=False, repr=False, kw_only=True)
class SCAN(PretrainedClusterer):
    r"""Semantic clustering by adopting nearest neighbours: a row and its neighbours belong to one cluster.

    A pretext task trains the network, the neighbours of each row are mined in its embedding, and network and a
    classifier g minimise

    .. math:: L = -\frac{1}{n} \sum_i \log \langle g(x_i), g(x_{j(i)}) \rangle - \lambda H(\bar g),

    j(i) a neighbour of i, drawn anew each time. Then rows whose cluster is sure teach it to augmented forms of
    themselves, by cross-entropy.

    Parameters
    ----------
    n_neighbors : int
        Neighbours of each row; the paper takes 20 (50 for ImageNet).
    metric : {"cosine", "euclidean", "inner_product"}
        Of the neighbours; the paper's embeddings are of length one.
    entropy_weight : float
        λ; the paper takes 5.
    self_epochs : int
        Most passes of the self-labelling; 0 leaves it out. The paper takes 200.
    self_learning_rate : float
        Of Adam, then; the paper takes 1e-4.
    threshold : float
        Least probability of a sure label; the paper takes 0.99.
    augmentation : callable, optional
        Makes augmented rows of a batch (``fastdc.views``), for both stages. None turns, shifts and scales images a
        little where ``image_shape`` says that the rows are such, and else adds noise of a tenth of the standard
        deviation of each feature.
    n_latent : int
        Neighbours are better in more dimensions than clusters need: of the 1,797 digits, 32 give a higher accuracy than
        10.
    pretrain_epochs, pretrain_learning_rate
        Of the pretext task, here an autoencoder; the paper contrasts augmented images. A network trained otherwise is
        passed as ``encoder=`` or ``autoencoder=`` with ``pretrain_epochs=0``.
    epochs : int
        Most passes of the main stage.
    learning_rate : float
        The paper takes 1e-4 for a ResNet.
    views : Views, optional
        Of the pretext task alone.
    n_init
        Not used.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    References
    ----------
    Van Gansbeke, Vandenhende, Georgoulis, Proesmans, Van Gool. SCAN: Learning to Classify Images without Labels.
    ECCV 2020.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import SCAN
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> scan = SCAN(3, hidden=(16,), n_latent=2, pretrain_epochs=5, epochs=5, self_epochs=2, random_state=0).fit(X / 10)
    >>> scan.labels_.shape, scan.predict_proba(X / 10).shape
    ((90,), (90, 3))
    """

    n_neighbors: int = 20
    metric: str = "cosine"
    entropy_weight: float = 5.0
    self_epochs: int = 50
    self_learning_rate: float = 1e-4
    threshold: float = 0.99
    augmentation: Transform | None = None
    init: ClassVar[Init] = "he"

    def make_head(self, n_latent: int) -> SoftmaxHead:
        return SoftmaxHead(n_latent, self.n_clusters)

    def stages(self, head: SoftmaxHead) -> Iterator[Stage]:
        neighbors = Mine(self.n_neighbors, self.metric, self._augmentation())
        yield self.pretraining()
        yield neighbors
        consistency = NeighborConsistency(head, self.entropy_weight)
        yield self.training(consistency, "cluster", views=neighbors.views)
        if read_count(self.self_epochs, "self_epochs", low=0):
            views = CleanAndAugmented(self._augmentation())
            labels = ConfidentLabels(head, self.threshold)
            yield Train(labels, "self_label", self.self_epochs, self.self_learning_rate, views=views)

    def _augmentation(self) -> Transform:
        if self.augmentation is not None:
            return self.augmentation
        return RelativeNoise(0.1) if self.image_shape is None else RandomAffine(self.image_shape, scale=(0.9, 1.1))


@dataclass(eq=False, repr=False, kw_only=True)
class DeepCluster(PretrainedClusterer):
    r"""DeepCluster: k-means labels the embeddings, the network learns the labels, and so on.

    .. math:: \min_{\theta, W} \frac{1}{n} \sum_i w_{y_i} \ell(W f_\theta(x_i), y_i), \quad
              y = \text{k-means}(\text{whitened } f_\theta(x), \text{ of length one})

    The labels are made anew every epoch, and then the classifier W is drawn anew. The weights w are as if clusters were
    drawn evenly, as the paper draws them.

    Parameters
    ----------
    n_labels : int, optional
        Clusters of the k-means that labels; None is ``n_clusters``. The paper finds ten times as many as classes best
        for features. At the end ``n_clusters`` are made, by k-means in the same space.
    update_interval : int, optional
        Steps between new labels; None is an epoch, as in the paper.
    pretrain_epochs : int
        An autoencoder is trained first, since a fully connected network of random weights sees little; with 0 it is
        left out, as in the paper, whose convolutional networks do without.
    views : Views, optional
        What the classifier sees, averaged; None are the rows themselves. The paper crops and mirrors images.
    learning_rate : float
        Of Adam; the paper takes SGD with momentum.
    n_init : int
        Restarts of the k-means at the end; those that label run once.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    The paper is about features for other tasks. Whitening makes all directions of the embedding count alike: with
    ``n_latent`` not far below the number of rows no clusters are left in it.
    ``transform`` gives the embedding; ``head_(z)`` makes of it what k-means sees, where the centers lie. Whitening is
    by a triangular factor, which gives k-means the same distances as principal components.

    References
    ----------
    Caron, Bojanowski, Joulin, Douze. Deep Clustering for Unsupervised Learning of Visual Features. ECCV 2018.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import DeepCluster
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> deep = DeepCluster(3, hidden=(16,), n_latent=2, pretrain_epochs=5, epochs=5, random_state=0).fit(X / 10)
    >>> deep.labels_.shape, deep.predict_proba(X / 10).shape
    ((90,), (90, 3))
    """

    n_labels: int | None = None
    init: ClassVar[Init] = "he"

    def make_head(self, n_latent: int) -> MappedCentroids:
        return MappedCentroids(self.n_clusters, n_latent, unit=True)

    def stages(self, head: MappedCentroids) -> Iterator[Stage]:
        n_labels = self.n_clusters if self.n_labels is None else read_count(self.n_labels, "n_labels")
        yield self.pretraining()
        classifier = nn.Linear(len(head.offset), n_labels, dtype=head.offset.dtype)
        classification = ClusterClassification(head, classifier)
        yield self.training(classification, "classify", refresh_epochs=1)
        yield Whiten(head)
        yield Initialise(head, self.n_init)


@dataclass
class RelativeNoise:
    """Adds normal noise of ``share`` of each feature's standard deviation in the batch."""

    share: float

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.share * x.std(0, correction=0) * torch.randn_like(x)
