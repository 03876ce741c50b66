"""k-means in the embedding: DCN, DKM, optimal transport to centers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdc.kernels._checks import check_positive
from fastdc.methods._pretrained import PretrainedClusterer
from fastdc.networks import Centroids, Init, SoftCentroids
from fastdc.terms import KMeansDistance, OptimalTransport, Reconstruction, RunningMeans
from fastdc.training import Schedule, Stage


@dataclass(eq=False, repr=False, kw_only=True)
class DCN(PretrainedClusterer):
    r"""Deep clustering network: an autoencoder whose embedding k-means likes.

    .. math:: L = L_{rec} + \frac{\lambda}{2} \|z_i - M s_i\|^2

    with :math:`s_i` the nearest center of M. Centers get no gradient: after each step its rows, embedded anew, go to
    their nearest centers, each center being the running mean of all rows that ever came to it (in closed form, to the
    result of one row after the other), and at each refresh k-means goes on from there over all rows.

    Parameters
    ----------
    lam : float
        :math:`\lambda`, beside a reconstruction error summed over features. The paper chooses it by data set; too high
        a value draws all embeddings together, too low a one leaves clusters to the autoencoder.
    initial_count : float
        Rows that each center counts as its own after a refresh, 100 in the authors' code; the higher, the slower it
        moves.
    tol : float, optional
        None by default: on digits few labels change from early on, and those that do are for the better.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    What differs from the paper: :math:`s_i` in the loss is the nearest center now, not when the row was last seen; and
    the paper has no k-means after the first, without which centers fall behind a network that moves on. Its way is an
    ``update_interval`` beyond the last step. The encoder's weights begin as Glorot's; what that gains or
    costs, by the data, is small beside the spread over seeds.

    ``predict_proba`` is the Student t assignment of DEC to the centers; its largest entry is the nearest center.

    References
    ----------
    Yang, Fu, Sidiropoulos, Hong. Towards K-means-friendly Spaces: Simultaneous Deep Learning and Clustering.
    ICML 2017.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import DCN
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> dcn = DCN(3, hidden=(16,), n_latent=2, pretrain_epochs=20, epochs=5, random_state=0).fit(X / 10)
    >>> dcn.labels_.shape, dcn.cluster_centers_.shape
    ((90,), (3, 2))
    """

    init: ClassVar[Init] = "glorot"

    lam: float = 1.0
    initial_count: float = 100.0
    epochs: int = 60
    tol: float | None = None

    def stages(self, head: Centroids) -> Iterator[Stage]:
        yield self.pretraining()
        yield self.initialisation(head)
        yield self.refinement(Reconstruction(summed=True) + self.lam / 2 * RunningMeans(head, self.initial_count))


@dataclass(frozen=True)
class Annealing:
    """Inverse temperatures of DKM by progress: ``n_values`` of them, each 2^(1/log(n)^2) times the one before.

    Parameters
    ----------
    start : float
        The first; n counts from 2.
    n_values : int

    Examples
    --------
    >>> schedule = Annealing()
    >>> [round(schedule(progress), 2) for progress in (0.0, 0.5, 1.0)]
    [0.1, 9.02, 28.13]
    """

    start: float = 0.1
    n_values: int = 40

    def __call__(self, progress: float) -> float:
        step = min(int(progress * self.n_values), self.n_values - 1)
        return self.start * 2 ** sum(math.log(n) ** -2 for n in range(2, step + 2))


@dataclass(eq=False, repr=False, kw_only=True)
class DKM(PretrainedClusterer):
    r"""Deep k-means: network and centers learn by gradient from a k-means loss whose assignment is a softmax.

    .. math:: L = L_{rec} + \lambda \sum_k w_{ik} \|z_i - r_k\|^2, \quad
              w_{ik} \propto \exp(-\alpha \|z_i - r_k\|^2)

    The gradient goes through the weights, too. Towards infinite :math:`\alpha` the loss is that of k-means.

    Parameters
    ----------
    lam : float
        :math:`\lambda`, beside a reconstruction error summed over features. At 0.5 embeddings are drawn to centers as
        in :class:`DCN` at 1; the paper takes 1 for images, which came out worse on 5,000 of MNIST.
    alpha : float or Schedule, optional
        :math:`\alpha`, or a schedule of it by progress. The paper keeps 1000 after pre-training. None is its
        annealing for ``pretrain_epochs=0``, from 0.1 to 28 in 40 values of five epochs (``epochs=200``): soft
        assignments draw the centers of a trained embedding together.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    What differs from the paper: with a number as ``alpha``, at each refresh k-means goes on over all rows from where
    the gradient has brought the centers, as in :class:`DCN`. Otherwise a label hardly changes after a few epochs. The
    paper's way is an ``update_interval`` beyond the last step.

    References
    ----------
    Fard, Thonet, Gaussier. Deep k-Means: Jointly clustering with k-Means and learning representations. Pattern
    Recognition Letters, 2020.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import DKM
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> dkm = DKM(3, hidden=(16,), n_latent=2, pretrain_epochs=20, epochs=5, random_state=0).fit(X / 10)
    >>> dkm.predict_proba(X / 10).shape
    (90, 3)
    """

    init: ClassVar[Init] = "glorot"

    lam: float = 0.5
    alpha: float | Schedule | None = 1000.0
    epochs: int = 50

    def make_head(self, n_latent: int) -> SoftCentroids:
        return SoftCentroids(self.n_clusters, n_latent, 1 / self._alpha()(1.0))

    def stages(self, head: SoftCentroids) -> Iterator[Stage]:
        alpha = self._alpha()
        yield self.pretraining()
        yield self.initialisation(head)
        constant = self.alpha is not None and not callable(self.alpha)
        distance = KMeansDistance(head, lambda progress: 1 / alpha(progress), refine=constant)
        yield self.refinement(Reconstruction(summed=True) + self.lam * distance)

    def _alpha(self) -> Schedule:
        if self.alpha is None:
            return Annealing()
        if callable(self.alpha):
            return self.alpha
        alpha = check_positive(self.alpha, "alpha")
        return lambda progress: alpha


@dataclass(eq=False, repr=False, kw_only=True)
class OptimalTransportClustering(PretrainedClusterer):
    r"""Deep clustering with cluster sizes: k-means in the embedding as optimal transport to centers.

    .. math:: L = L_{rec} + \lambda \langle P, C \rangle, \quad C_{ij} = \|z_i - c_j\|^2, \quad
              P = \arg\min_{P 1 = 1/n,\, P^\top 1 = b} \langle P, C \rangle + \epsilon \sum_{ij} P_{ij} \log P_{ij}

    over the rows of a batch, with gradients to network and centers that hold the plan P.

    Parameters
    ----------
    lam : float
        :math:`\lambda`, beside a reconstruction error summed over features.
    epsilon : float
        Entropic regularisation, as a share of the mean squared distance between embeddings and their nearest
        centers at the last refresh; in the paper a number.
    cluster_sizes : sequence of float, optional
        b up to a factor, in any order: the largest is for the largest cluster that k-means finds, and so on. None is
        equal sizes. They bind the plan, not the labels, which are the nearest centers.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    The paper goes without pre-training; here ``pretrain_epochs=0`` does. Sizes hold in every batch, which must be
    large beside ``n_clusters``.

    References
    ----------
    Genevay, Dulac-Arnold, Vert. Differentiable Deep Clustering with Cluster Size Constraints. 2019.
    """

    lam: float = 1.0
    epsilon: float = 0.1
    cluster_sizes: Sequence[float] | None = None

    def stages(self, head: Centroids) -> Iterator[Stage]:
        yield self.pretraining()
        yield self.initialisation(head)
        transport = OptimalTransport(head, self.epsilon, self._shares())
        yield self.refinement(Reconstruction(summed=True) + self.lam * transport)

    def _shares(self) -> torch.Tensor | None:
        if self.cluster_sizes is None:
            return None
        shares = torch.as_tensor(self.cluster_sizes, dtype=torch.float64)
        if shares.shape != (self.n_clusters,) or not bool((shares > 0).all()):
            raise ValueError(
                f"cluster_sizes must be {self.n_clusters} numbers above 0, one for each cluster, "
                f"got {self.cluster_sizes!r}"
            )
        return shares
