"""Pairs of rows that are the same or not: deep adaptive clustering (DAC)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastdc.methods._views import ViewClusterer
from fastdc.networks import SoftmaxHead
from fastdc.terms import PairwiseAgreement, Watch
from fastdc.training import Stage
from fastdc.views import Augmented


@dataclass(eq=False, repr=False, kw_only=True)
class DAC(ViewClusterer):
    r"""Deep adaptive clustering: a binary classification of pairs, of the sure ones first.

    .. math:: L = -\frac{1}{|S|} \sum_{(i, j) \in S} r_{ij} \log g_{ij} + (1 - r_{ij}) \log (1 - g_{ij}), \quad
              g_{ij} = \frac{f_i \cdot f_j}{|f_i| |f_j|}

    f are softmax outputs. A pair is positive (r = 1) from :math:`g \ge u(\lambda) = 0.95 - \lambda` on and negative
    below :math:`l(\lambda) = 0.455 + 0.1 \lambda`; those between are left out of S. :math:`\lambda` rises with each
    epoch, until after the last the thresholds have met.

    Parameters
    ----------
    upper, lower : float
        u(0) and l(0).
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    Thresholds and their paths are the paper's; 45 epochs make a step of 0.01. The rows as they are choose the
    pairs, their transforms learn from them, batches have 32 rows (more are worse), and logits have batch
    normalisation, which keeps clusters filled: all as in the authors' code. Different: they choose pairs among
    1,000 rows at a time and train on them ten times; here each batch chooses and is learnt once; logits there go
    through ReLU; their network is convolutional, and its label features are also drawn to those of the rows as they
    are, of which the paper does not speak.

    References
    ----------
    Chang, Wang, Meng, Xiang, Pan. Deep Adaptive Image Clustering. ICCV 2017.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import DAC
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> DAC(3, hidden=(16,), n_latent=16, epochs=5, random_state=0).fit(X / 10).labels_.shape
    (90,)
    """

    epochs: int = 45
    batch_size: int | None = 32
    upper: float = 0.95
    lower: float = 0.455

    def make_head(self, n_latent: int) -> SoftmaxHead:
        return SoftmaxHead(n_latent, self.n_clusters, normalize=True)

    def stages(self, head: SoftmaxHead) -> Iterator[Stage]:
        views = Augmented(self.augmentation(), 1) if self.views is None else self.views
        yield self.training(PairwiseAgreement(head, self.upper, self.lower), views=views, watch=Watch(head))
