"""Self-training: a network sharpens its own soft assignments (DEC, IDEC, DCEC, DEC-DA, DBC)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastdc.kernels._checks import check_positive
from fastdc.methods._pretrained import Initialise, PretrainedClusterer
from fastdc.networks import Centroids, Init, ScaledCentroids
from fastdc.terms import Reconstruction, StudentT
from fastdc.training import Stage, Views
from fastdc.views import Augmented, RandomAffine


@dataclass(eq=False, repr=False, kw_only=True)
class DEC(PretrainedClusterer):
    r"""Deep embedded clustering.

    An autoencoder is trained, its decoder dropped, and centers are placed by k-means in the embedding. Then
    encoder and centers minimise

    .. math:: L = KL(P \| Q), \quad q_{ij} \propto (1 + \|z_i - c_j\|^2 / \alpha s^2)^{-(\alpha+1)/2}, \quad
              p_{ij} \propto q_{ij}^2 / \sum_i q_{ij},

    no gradient through P, until the labels settle.

    Parameters
    ----------
    alpha : float
        Degrees of freedom of the Student t kernel.
    scale : float, optional
        :math:`s`, in units of the embedding. None takes the standard deviation, a feature, within the clusters that
        k-means finds, so that neither the units of X nor the first weights of the network matter. The paper has 1.
    target : {"batch", "refresh"}
        "batch" computes P from the batch itself at every step; "refresh" from all rows every ``update_interval`` steps,
        as the paper does, which gets stuck earlier: on 5,000 images of MNIST at an NMI of 0.65 instead of 0.68.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    References
    ----------
    Xie, Girshick, Farhadi. Unsupervised Deep Embedding for Clustering Analysis. ICML 2016.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import DEC
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> dec = DEC(3, hidden=(16,), n_latent=2, pretrain_epochs=20, epochs=5, random_state=0).fit(X / 10)
    >>> dec.labels_.shape, dec.transform(X / 10).shape, dec.predict_proba(X / 10).shape
    ((90,), (90, 2), (90, 3))
    """

    init: ClassVar[Init] = "he"

    alpha: float = 1.0
    scale: float | None = None
    target: str = "batch"
    learning_rate: float = 3e-4

    def make_head(self, n_latent: int) -> ScaledCentroids:
        return ScaledCentroids(self.n_clusters, n_latent, self.alpha, 1.0 if self.scale is None else self.scale)

    def initialisation(self, head: Centroids) -> Initialise:
        return (MeasuredInitialise if self.scale is None else Initialise)(head, self.n_init)

    def stages(self, head: ScaledCentroids) -> Iterator[Stage]:
        yield self.pretraining()
        yield self.initialisation(head)
        yield self.refinement(StudentT(head, self.target))


@dataclass(eq=False, repr=False, kw_only=True)
class IDEC(DEC):
    r"""Improved deep embedded clustering: DEC that keeps its decoder.

    .. math:: L = L_{rec} + \gamma KL(P \| Q)

    Parameters
    ----------
    gamma : float
        Weight of the clustering loss. The reconstruction error is averaged over features, as in the authors'
        code; the paper writes it as a sum, for which the same trade-off is ``gamma * n_features``.
    target, n_clusters and all others : see :class:`DEC` and :class:`fastdc.methods.DeepClusterer`

    References
    ----------
    Guo, Gao, Liu, Yin. Improved Deep Embedded Clustering with Local Structure Preservation. IJCAI 2017.
    """

    gamma: float = 0.1

    def stages(self, head: Centroids) -> Iterator[Stage]:
        yield self.pretraining()
        yield self.initialisation(head)
        yield self.refinement(Reconstruction() + self.gamma * StudentT(head, self.target))


@dataclass(eq=False, repr=False, kw_only=True)
class AsPublished:
    """DEC's settings in the paper, for methods that do not gain by others."""

    init: ClassVar[Init] = "torch"

    scale: float | None = 1.0
    target: str = "refresh"
    learning_rate: float = 1e-3


@dataclass(eq=False, repr=False, kw_only=True)
class DCEC(AsPublished, IDEC):
    r"""Deep convolutional embedded clustering: IDEC with a convolutional autoencoder.

    .. math:: L = L_{rec} + \gamma KL(P \| Q)

    Parameters
    ----------
    image_shape : (channels, height, width)
        Of the images that the rows are; required unless a network is passed.
    scale, gamma, target, n_clusters and all others : see :class:`IDEC`, :class:`DEC` and
        :class:`fastdc.methods.DeepClusterer`

    References
    ----------
    Guo, Liu, Zhu, Yin. Deep Clustering with Convolutional Autoencoders. ICONIP 2017.

    Examples
    --------
    >>> import torch
    >>> from fastdc import DCEC
    >>> X = torch.rand(40, 64, generator=torch.Generator().manual_seed(0))
    >>> dcec = DCEC(2, image_shape=(1, 8, 8), pretrain_epochs=1, epochs=1, random_state=0).fit(X)
    >>> dcec.transform(X).shape
    torch.Size([40, 10])
    """

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.image_shape is None and self.autoencoder is None and self.encoder is None:
            raise ValueError("DCEC works on images: pass image_shape=(channels, height, width), or a network")


@dataclass(eq=False, repr=False, kw_only=True)
class DECDA(AsPublished, DEC):
    r"""DEC with data augmentation: the rows set the target, and other forms of them are to meet it.

    .. math:: L = KL(P \| Q^T) + \beta \|T(x) - \hat{T}(x)\|^2, \quad
              q^T_{ij} \propto (1 + \|f(T(x_i)) - c_j\|^2 / \alpha)^{-(\alpha+1)/2},

    P of DEC from the rows as they are, Q of what a random transform T makes of them. The autoencoder is trained on
    transformed rows, too.

    Parameters
    ----------
    reconstruction : float
        :math:`\beta`; 0 is the paper's DEC-DA, above 0 its IDEC-DA, whose weight of the clustering loss is
        0.1 where that of the reconstruction is 1.
    views : Views, optional
        What makes the transformed rows (``fastdc.views``); the loss is that of all its views, averaged. None turns
        images by up to 10 degrees and shifts them by up to a tenth, as the authors do, and needs ``image_shape``.
    scale, target, n_clusters and all others : see :class:`DEC` and :class:`fastdc.methods.DeepClusterer`

    References
    ----------
    Guo, Zhu, Liu, Yin. Deep Embedded Clustering with Data Augmentation. ACML 2018.

    Examples
    --------
    >>> import torch
    >>> from fastdc import DECDA
    >>> X = torch.rand(40, 64, generator=torch.Generator().manual_seed(0))
    >>> DECDA(2, image_shape=(1, 8, 8), pretrain_epochs=1, epochs=1, random_state=0).fit(X).labels_.shape
    torch.Size([40])
    """

    reconstruction: float = 0.0

    def stages(self, head: Centroids) -> Iterator[Stage]:
        views = self._transformed()
        yield self.pretraining(views=views)
        yield self.initialisation(head)
        objective = StudentT(head, self.target) + self.reconstruction * Reconstruction()
        yield self.refinement(objective, views=views)

    def _transformed(self) -> Views:
        if self.views is not None:
            return self.views
        if self.image_shape is None:
            raise ValueError(
                "DECDA needs views= that transform the rows, such as Augmented(GaussianNoise(0.1), n_views=1) of "
                "fastdc.views, or image_shape=(channels, height, width)"
            )
        return Augmented(RandomAffine(self.image_shape), n_views=1)


@dataclass(eq=False, repr=False, kw_only=True)
class DBC(AsPublished, DEC):
    r"""Discriminatively boosted clustering: DEC whose target is boosted by a power and not balanced by frequencies.

    .. math:: L = KL(P \| Q), \quad p_{ij} \propto q_{ij}^{power}

    Parameters
    ----------
    power : float
        Above 1: how much more likely clusters are boosted.
    scale, target, n_clusters and all others : see :class:`DEC` and :class:`fastdc.methods.DeepClusterer`

    Notes
    -----
    The paper's network is fully convolutional; with ``image_shape`` this is that of DCEC, else that of DEC.

    References
    ----------
    Li, Qiao, Zhang. Discriminatively Boosted Image Clustering with Fully Convolutional Auto-Encoders. Pattern
    Recognition, 2018.
    """

    power: float = 2.0

    def stages(self, head: Centroids) -> Iterator[Stage]:
        yield self.pretraining()
        yield self.initialisation(head)
        yield self.refinement(StudentT(head, self.target, check_positive(self.power, "power"), frequency_power=0.0))


class MeasuredInitialise(Initialise):
    """Put the head's centers where k-means finds them, and take the spread about them as the scale."""

    head: ScaledCentroids

    def place(self, z: Tensor, seed: int) -> None:
        super().place(z, seed)
        self.head.measure(z)
