"""Information between rows and clusters: a softmax head that is sure, even, and steady (IMSAT, IIC)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastdc._input import read_count
from fastdc.methods._views import ViewClusterer
from fastdc.networks import MultiHead, SoftmaxHead
from fastdc.terms import Information, MutualInformation, SelfAugmentation, Watch
from fastdc.training import Stage, Trainer, Views
from fastdc.views import CleanAndAugmented


@dataclass(eq=False, repr=False, kw_only=True)
class IMSAT(ViewClusterer):
    r"""Information maximising self-augmented training.

    .. math:: L = \frac{1}{n} \sum_i KL(p(x_i) \| p(T(x_i))) + \lambda (H(Y|X) - \mu H(Y))

    p is a network with a softmax head, trained from random weights; T disturbs a row by a share of the distance to
    its tenth neighbour, in the direction that changes p most (virtual adversarial training) or at random.

    Parameters
    ----------
    weight, marginal_weight : float
        :math:`\lambda` and :math:`\mu`.
    perturbation : {"adversarial", "random", "views"}
        "random" costs one pass through the network instead of two; "views" takes the given ``views``.
    radius : float
        Length of the perturbation, as a share of the distance to the ``n_neighbors``-th neighbour.
    n_neighbors : int
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    The defaults are the paper's: d-1200-1200-k with batch normalisation, Adam at 0.002, batches of about 250, 50
    epochs, one power iteration. The perturbed rows change no running statistics. Different: the power iteration takes
    its differences at a tenth of the perturbation's length, where the authors take a length of 10 for all rows.

    References
    ----------
    Hu, Miyato, Tokui, Matsumoto, Sugiyama. Learning Discrete Representations via Information Maximizing
    Self-Augmented Training. ICML 2017.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import IMSAT
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> IMSAT(3, hidden=(16,), n_latent=16, epochs=5, random_state=0).fit(X / 10).labels_.shape
    (90,)
    """

    n_latent: int = 1200
    hidden: Sequence[int] = (1200,)
    epochs: int = 50
    batch_size: int | None = 250
    learning_rate: float = 2e-3
    weight: float = 0.1
    marginal_weight: float = 4.0
    perturbation: str = "adversarial"
    radius: float = 0.25
    n_neighbors: int = 10

    def make_head(self, n_latent: int) -> SoftmaxHead:
        return SoftmaxHead(n_latent, self.n_clusters)

    def stages(self, head: SoftmaxHead) -> Iterator[Stage]:
        steady = SelfAugmentation(head, self.perturbation, self.radius, self.n_neighbors)
        yield self.training(steady + self.weight * Information(head, self.marginal_weight), watch=Watch(head))

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if (self.perturbation == "views") != (self.views is not None):
            raise ValueError(
                f"perturbation={self.perturbation!r} and views={self.views!r} do not go together: views= are what "
                "perturbation='views' takes, and it needs them"
            )


@dataclass(eq=False, repr=False, kw_only=True)
class IIC(ViewClusterer):
    r"""Invariant information clustering.

    .. math:: L = -I(p(x), p(T(x))) = -\sum_{cc'} P_{cc'} \log \frac{P_{cc'}}{P_c P_{c'}}, \quad
              P = \frac{1}{2n} \sum_i p(x_i) p(T(x_i))^\top + p(T(x_i)) p(x_i)^\top

    averaged over several softmax heads on one network, and the same of heads with more clusters beside them. At the
    end the head with the least loss over all rows makes the clusters.

    Parameters
    ----------
    n_heads : int
    n_over : int, optional
        Clusters of the further heads; None is five times ``n_clusters``, 0 has none.
    lamb : float
        Weight of the marginals in the logarithm; 1 is the formula above.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    Five heads and five times as many clusters beside them are the paper's for small images. Different: the paper
    minimises the loss of the two kinds of heads in turn, an epoch each, here their sum; it trains ResNet-34 or a VGG
    for hundreds of epochs at a rate of 0.0001, here smaller networks learn at 0.001; it has ``lamb=1``, which left
    clusters empty on 1,797 digits. The loss is an estimate from a batch: batches of several times ``n_over`` rows are
    needed. Rows are compared with one transform of each.

    References
    ----------
    Ji, Henriques, Vedaldi. Invariant Information Clustering for Unsupervised Image Classification and Segmentation.
    ICCV 2019.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import IIC
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> IIC(3, hidden=(16,), n_latent=16, epochs=5, random_state=0).fit(X / 10).labels_.shape
    (90,)
    """

    batch_size: int | None = 512
    n_heads: int = 5
    n_over: int | None = None
    lamb: float = 1.5

    def make_head(self, n_latent: int) -> MultiHead:
        return MultiHead(n_latent, self.n_clusters, self.n_heads)

    def stages(self, head: MultiHead) -> Iterator[Stage]:
        views = CleanAndAugmented(self.augmentation()) if self.views is None else self.views
        term = MutualInformation(head, self.lamb, self.group)
        objective = 1.0 * term
        n_over = 5 * self.n_clusters if self.n_over is None else self.n_over
        if n_over:
            over = MultiHead(head.layer.in_features, n_over, self.n_heads).to(head.layer.weight)
            objective += MutualInformation(over, self.lamb, self.group)
        yield self.training(objective, views=views, watch=Watch(head))
        yield ChooseHead(term, views)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_heads, "n_heads")
        if self.n_over is not None:
            read_count(self.n_over, "n_over", low=0)


@dataclass
class ChooseHead(Stage):
    """Let the head with the least mean loss over one pass make the clusters."""

    term: MutualInformation
    views: Views

    @torch.no_grad()
    def run(self, trainer: Trainer) -> None:
        trainer.network.eval()
        losses = torch.stack([self.term.of_heads(batch) for batch in trainer.epoch(self.views)]).mean(0)
        trainer.average([losses])
        self.term.head.choose(losses)
