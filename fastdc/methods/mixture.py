"""Variational autoencoders whose prior is a Gaussian mixture (VaDE)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fastdc.cluster import GaussianMixture
from fastdc.methods._pretrained import PretrainedClusterer
from fastdc.networks import ConvVariationalAutoencoder, Mixture, VariationalAutoencoder
from fastdc.terms import Likelihood, MixtureEvidence
from fastdc.training import Stage, Trainer

CHUNK_ROWS = 1 << 13  # that are looked at together
LEAST_VARIANCE = 0.05  # of full covariances, beside the mean variance of the embedding


@dataclass(eq=False, repr=False, kw_only=True)
class VaDE(PretrainedClusterer):
    r"""Variational deep embedding: clusters are the components of a mixture from which embeddings are drawn.

    .. math:: L = -\mathbb{E}_{q(z|x)} \log p(x | z) + KL(q(z, c | x) \| p(z, c)), \quad
              p(z, c) = \pi_c \mathcal{N}(z; \mu_c, \sigma_c^2), \quad q(z, c | x) = q(z | x)\, p(c | z)

    with one draw of z a row, and every half of the Gaussian densities kept. The network is first trained as a plain
    autoencoder, and the mixture placed where that of maximum likelihood is in its embedding.

    Parameters
    ----------
    likelihood : {"bernoulli", "gaussian"}
        Of the rows under the decoder. "bernoulli" is for values from 0 to 1, such as pixels, and has the decoder give
        logits. "gaussian" is for all else.
    variance : float
        Of the Gaussian: the smaller, the more the reconstruction counts.
    covariance_type : {"full", "diag"}
        Of the mixture that gives the labels. "diag" is the paper's: the one trained with the network. With "full" it is
        let go on from there to maximum likelihood in the trained embedding, with full covariances, since clusters lie
        aslant there: on digits, MNIST, wine and breast cancer that finds more of the classes.
    n_init : int
        Runs of the maximisation that places the mixture.
    pretrain_epochs, epochs : int
        Where the mixture is placed decides most, so that on thousands of rows the former count and the labels hardly
        change after thirty of the latter.
    learning_rate : float
        Times 0.9 after every tenth epoch, as in the paper, which starts from 0.002 on 70,000 rows and more; on
        thousands that undoes the start, and ends at a worse bound than 0.0005.
    autoencoder : nn.Module, optional
        Needs ``posterior(x)``, ``sample(mean, log_var)`` and ``decode(z)`` beside ``encode(x)``, which gives the
        mean: see ``fastdc.networks.VariationalAutoencoder``.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    ``transform`` gives the means of q(z | x), ``predict_proba`` the responsibilities of the components for them.
    The prior of the generative model is ``head_`` with "diag"; "full" overwrites it.

    References
    ----------
    Jiang, Zheng, Tan, Tang, Zhou. Variational Deep Embedding: An Unsupervised and Generative Approach to Clustering.
    IJCAI 2017.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import VaDE
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> vade = VaDE(3, likelihood="gaussian", hidden=(16,), n_latent=2, pretrain_epochs=20, epochs=5, random_state=0)
    >>> vade.fit(X).predict_proba(X).shape
    (90, 3)
    """

    likelihood: str = "bernoulli"
    variance: float = 1.0
    covariance_type: str = "full"
    pretrain_epochs: int = 100
    epochs: int = 30
    learning_rate: float = 5e-4

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        if self.image_shape is not None:
            return ConvVariationalAutoencoder(self.image_shape, self.n_latent, generator=generator)
        return VariationalAutoencoder(n_features, self.n_latent, self.hidden, generator)

    def make_head(self, n_latent: int) -> Mixture:
        return Mixture(self.n_clusters, n_latent)

    def stages(self, head: Mixture) -> Iterator[Stage]:
        likelihood = Likelihood(self.likelihood, self.variance)
        if self.likelihood == "bernoulli":
            yield UnitRange()
        yield self.pretraining(likelihood)
        yield PlaceMixture(head, self.n_init)
        decay = lambda progress: 0.9 ** (round(progress * self.epochs) // 10)  # noqa: E731
        yield self.refinement(MixtureEvidence(head, likelihood), decay=decay)
        if self.covariance_type == "full":
            yield WidenMixture(head)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.covariance_type not in ("full", "diag"):
            raise ValueError(f"covariance_type must be 'full' or 'diag', got {self.covariance_type!r}")

    def _own_network(self) -> nn.Module | None:
        network = super()._own_network()
        missing = [name for name in ("posterior", "sample") if network is not None and not hasattr(network, name)]
        if missing:
            raise TypeError(
                f"VaDE's network must have {' and '.join(missing)}, as fastdc.networks.VariationalAutoencoder has; "
                f"got a {type(network).__name__}"
            )
        return network


class UnitRange(Stage):
    """Refuse rows that are no probabilities."""

    def run(self, trainer: Trainer) -> None:
        starts = range(0, len(trainer.x), CHUNK_ROWS)
        ends = torch.stack([torch.stack(trainer.x[i : i + CHUNK_ROWS].aminmax()) for i in starts])
        low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
        if low < 0 or high > 1:
            raise ValueError(
                f"likelihood='bernoulli' needs values from 0 to 1, X has {low:.6g} to {high:.6g}; scale them, or pass "
                "likelihood='gaussian'"
            )


@dataclass
class PlaceMixture(Stage):
    """Put the head's components where those of maximum likelihood are in the embedding."""

    head: Mixture
    n_init: int

    def run(self, trainer: Trainer) -> None:
        mixture = GaussianMixture(len(self.head.means), n_init=self.n_init, random_state=trainer.settings.seed)
        mixture.fit(trainer.embed())
        self.head.place(mixture.means_, mixture.covariances_, mixture.weights_)


@dataclass
class WidenMixture(Stage):
    """Let the head's mixture go on to maximum likelihood in the embedding, with full covariances."""

    head: Mixture

    def run(self, trainer: Trainer) -> None:
        z = trainer.embed()
        if not z.isfinite().all():
            return  # the fit ends with an error that says so
        mixture = GaussianMixture(
            len(self.head.means),
            covariance_type="full",
            reg_covar=LEAST_VARIANCE * float(z.var(0).mean()) + 1e-6,
            means_init=self.head.means.detach(),
            weights_init=self.head.logits.detach().softmax(0),
            precisions_init=torch.diag_embed((-self.head.log_vars.detach()).exp()),
        ).fit(z)
        self.head.widen(mixture.means_, mixture.covariances_, mixture.weights_)
