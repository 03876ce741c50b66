"""Self-expression: rows of one subspace make up each other (DSC-Net)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc._input import read_count
from fastdc.cluster._spectral import graph_clusters, link_smallest
from fastdc.kernels._checks import check_positive
from fastdc.methods._pretrained import PretrainedClusterer
from fastdc.networks import SelfExpression
from fastdc.terms import ExpressedReconstruction, SelfExpressive
from fastdc.training import Stage, Trainer

START = 1e-4  # of the coefficients


@dataclass(eq=False, repr=False, kw_only=True)
class DSCNet(PretrainedClusterer):
    r"""Deep subspace clustering network: an autoencoder whose embeddings make up each other.

    .. math:: L = \frac{1}{2} \|X - \hat{X}\|_F^2 + \lambda_1 \|C\|_p + \frac{\lambda_2}{2} \|Z - C Z\|_F^2,
              \quad diag(C) = 0, \quad \hat{X} = \mathrm{decoder}(C Z)

    is minimised over the autoencoder and C (n_samples x n_samples) by all rows at each step. Then the symmetric part
    of C is cut by its spectrum, prepared as the authors do it: see ``keep``, ``subspace_dim`` and ``power``.

    Labels are those of the fitted rows alone: there is no ``predict``. ``transform`` is the encoder's.

    Parameters
    ----------
    penalty : float
        λ₁; the paper's 1.
    expression_weight : float
        λ₂, above 0. The paper takes 0.2 to 150, by the data: larger where embeddings are small. All sums are divided
        by ``n_samples``, which changes no minimum.
    norm : {"fro", "l1"}
        DSC-Net-L2, the better one in the paper, or DSC-Net-L1.
    keep : float
        Share of the sum of magnitudes of each row of C that its largest coefficients must reach; the others are set to
        zero. 1 keeps all.
    subspace_dim : int
        Dimension of a subspace: the affinity is that of the subspace_dim * n_clusters + 1 largest singular vectors.
    power : float
        Of the affinity; the larger, the less do weak ties count.
    hidden, n_latent
        Of a fully connected network; with ``image_shape`` it is convolutional, as the paper's.
    batch_size : int or None
        Of the pre-training. The main stage takes all rows at each step.
    epochs : int
        Steps of the main stage.
    n_init : int
        Runs of k-means on the eigenvectors.
    tol, update_interval
        Not used: labels are made at the end.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    Memory: about 6 matrices of n_samples x n_samples: C, its gradients, Adam's means, and the affinity.

    References
    ----------
    Ji, Zhang, Li, Salzmann, Reid. Deep Subspace Clustering Networks. NIPS 2017.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import DSCNet
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> dsc = DSCNet(3, hidden=(16,), n_latent=4, pretrain_epochs=20, epochs=20, random_state=0).fit(X / 10)
    >>> dsc.labels_.shape, hasattr(dsc, "predict")
    ((90,), False)
    """

    transductive: ClassVar[bool] = True

    penalty: float = 1.0
    expression_weight: float = 1.0
    norm: str = "fro"
    keep: float = 0.4
    subspace_dim: int = 12
    power: float = 8.0

    def make_head(self, n_latent: int) -> SelfExpression:
        return SelfExpression()

    def stages(self, head: SelfExpression) -> Iterator[Stage]:
        _check_affinity(self.keep, self.subspace_dim, self.power)
        expressive = SelfExpressive(head, self.penalty, self.expression_weight, self.norm)
        yield self.pretraining()
        yield StartCoefficients(head)
        yield self.training(ExpressedReconstruction(head) + expressive, "express", views=None, whole=True)

    def _label(self, trainer: Trainer, z: Tensor) -> Tensor:
        from scipy.sparse import csr_array

        head: Any = trainer.head
        codes = head.coefficients.detach().double().cpu().numpy()
        if not np.isfinite(codes).all():
            return torch.full((len(z),), -1, device=z.device)
        rank = self.subspace_dim * self.n_clusters + 1
        seed = trainer.settings.seed
        affinity = csr_array(subspace_affinity(largest_share(codes, self.keep), rank, self.power, seed))
        found = graph_clusters(
            affinity, self.n_clusters, link_smallest, eigen_solver="lanczos", n_init=self.n_init, seed=seed
        )
        return torch.from_numpy(found.labels.astype(np.int64)).to(z.device)


@dataclass
class StartCoefficients(Stage):
    """All coefficients at a small value."""

    head: SelfExpression

    def run(self, trainer: Trainer) -> None:
        self.head.start(len(trainer.x), START)


def largest_share(codes: NDArray, keep: float) -> NDArray:
    """Each row's largest magnitudes, as many as first reach the share ``keep`` of their sum; zeros elsewhere."""
    sizes = abs(codes)
    order = np.argsort(-sizes, axis=1, kind="stable")
    falling = np.take_along_axis(sizes, order, axis=1)
    before = falling.cumsum(axis=1) - falling
    kept = np.zeros(codes.shape, bool)
    np.put_along_axis(kept, order, before < keep * sizes.sum(axis=1, keepdims=True), axis=1)
    return np.where(kept, codes, 0.0)


def subspace_affinity(codes: NDArray, rank: int, power: float, seed: int) -> NDArray:
    """The affinity of the authors' post-processing, symmetric, from 0 to 1, without loops.

    Of the symmetric part U S Uᵀ of the codes the largest singular values are kept; rows of U S^½ are scaled to length
    one, and products of rows above 0 raised to the power.
    """
    from scipy.sparse.linalg import eigsh

    n = len(codes)
    symmetric = (codes + codes.T) / 2
    if rank < n // 2:
        start = np.random.default_rng(seed).normal(size=n)
        values, vectors = eigsh(symmetric, rank, which="LM", v0=start)
    else:
        values, vectors = np.linalg.eigh(symmetric)
        largest = np.argsort(-abs(values), kind="stable")[:rank]
        values, vectors = values[largest], vectors[:, largest]
    rows = vectors * np.sqrt(abs(values))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(lengths > 0, lengths, 1.0)
    affinity = (rows @ rows.T).clip(0.0, 1.0) ** power
    np.fill_diagonal(affinity, 0.0)
    return (affinity + affinity.T) / 2


def _check_affinity(keep: float, subspace_dim: int, power: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a share above 0 and at most 1, got {keep}")
    read_count(subspace_dim, "subspace_dim")
    check_positive(power, "power")
