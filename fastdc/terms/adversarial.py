"""Terms of players that compete, after ClusterGAN: each draws latent rows of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from fastdc._input import read_count
from fastdc.kernels._checks import check_not_negative, check_positive
from fastdc.training import Batch, Term


class Latent(Term):
    """Base of the terms that make rows of latent ones: a normal part and a one-hot part.

    Parameters
    ----------
    n_normal, n_clusters : int
    sigma : float
        Standard deviation of the normal part, small beside the one-hot part.
    """

    def __init__(self, n_normal: int, n_clusters: int, sigma: float = 0.1) -> None:
        super().__init__()
        self.n_normal, self.n_clusters = read_count(n_normal, "n_normal"), n_clusters
        self.sigma = check_positive(sigma, "sigma")

    def draw(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """As many latent rows as ``like`` has, and the clusters that they stand for."""
        clusters = torch.randint(self.n_clusters, (len(like),), device=like.device)
        normal = self.sigma * torch.randn(len(like), self.n_normal, device=like.device, dtype=like.dtype)
        return torch.cat([normal, one_hot(clusters, self.n_clusters).to(like)], dim=1), clusters


class Criticism(Latent):
    """What the critic minimises: D(G(z)) - D(x) + penalty (|grad D| - 1)^2 between the two (WGAN-GP).

    Parameters
    ----------
    n_normal, n_clusters, sigma
        See :class:`Latent`.
    penalty : float
    """

    name = "critic"

    def __init__(self, n_normal: int, n_clusters: int, sigma: float = 0.1, penalty: float = 10.0) -> None:
        super().__init__(n_normal, n_clusters, sigma)
        self.penalty = check_not_negative(penalty, "penalty")

    def forward(self, batch: Batch) -> Tensor:
        x, critic = batch.x, batch.network.critic
        with torch.no_grad():
            made = batch.network.decode(self.draw(x)[0]).to(x.dtype)  # type: ignore[operator]
        share = torch.rand(len(x), 1, device=x.device, dtype=x.dtype)
        between = torch.lerp(made, x, share).requires_grad_()
        scores = critic(between)  # type: ignore[operator]
        (slopes,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        steep = (slopes.norm(dim=1) - 1.0).square().mean()
        return critic(made).mean() - critic(x).mean() + self.penalty * steep  # type: ignore[operator]


class Deception(Latent):
    """What generator and encoder minimise: -D(G(z)), and that the encoder finds z again in G(z).

    Parameters
    ----------
    n_normal, n_clusters, sigma
        See :class:`Latent`.
    beta_normal, beta_cluster : float
        Weights of the squared error of the normal part, averaged over it, and of the cross-entropy of the one-hot part.
    """

    name = "generator"

    def __init__(
        self,
        n_normal: int,
        n_clusters: int,
        sigma: float = 0.1,
        beta_normal: float = 10.0,
        beta_cluster: float = 10.0,
    ) -> None:
        super().__init__(n_normal, n_clusters, sigma)
        self.beta_normal = check_not_negative(beta_normal, "beta_normal")
        self.beta_cluster = check_not_negative(beta_cluster, "beta_cluster")

    def forward(self, batch: Batch) -> Tensor:
        network = batch.network
        z, clusters = self.draw(batch.x)
        made = network.decode(z)  # type: ignore[operator]
        found = network.encode(made)  # type: ignore[operator]
        normal = mse_loss(found[:, : self.n_normal], z[:, : self.n_normal])
        same = cross_entropy(found[:, self.n_normal :], clusters)
        return -network.critic(made).mean() + self.beta_normal * normal + self.beta_cluster * same  # type: ignore[operator]
