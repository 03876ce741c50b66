"""Heads: what turns embeddings into cluster assignments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.kernels._checks import check_positive
from fastdc.kernels.gaussian_mixture import gmm_responsibilities
from fastdc.kernels.student_t import StudentTStatistics, student_t_assign, student_t_statistics
from fastdc.networks._shapes import TakesShapes
from fastdc.networks.backbone import BatchNorm

CHUNK_ENTRIES = 1 << 22  # of an assignment that is held at once where a kernel does not spare it


class Head(nn.Module):
    """What every head can do. A new one defines :meth:`assign`."""

    def assign(self, z: Tensor) -> Tensor:
        """Soft assignment of shape (n_samples, n_clusters), rows summing to 1."""
        raise NotImplementedError(f"{type(self).__name__} must say what it assigns: def assign(self, z)")

    @torch.no_grad()
    def statistics(self, z: Tensor, previous_labels: Tensor | None = None) -> StudentTStatistics:
        """Labels, confidence, frequencies, label changes and entropy, a chunk of rows at a time.

        Rows whose assignment is not finite get label -1.
        """
        n_clusters = self.assign(z[:1]).shape[1]
        parts = []
        for start in range(0, len(z), max(1, CHUNK_ENTRIES // n_clusters)):
            q = self.assign(z[start : start + max(1, CHUNK_ENTRIES // n_clusters)])
            confidence, labels = q.max(dim=1)
            labels = torch.where(confidence.isfinite(), labels, -1)
            before = -2 if previous_labels is None else previous_labels[start : start + len(q)]
            frequency, changed = q.double().sum(0).to(q), (labels != before).sum()
            parts.append(StudentTStatistics(labels, confidence, frequency, changed, torch.special.entr(q).sum(1)))
        return StudentTStatistics.merge(parts)


class Centroids(Head):
    """Cluster centers in the embedding, with the Student t assignment of DEC.

    Parameters
    ----------
    n_clusters, n_latent : int
        Shape of the centers.
    alpha : float
        Degrees of freedom of the Student t kernel.

    Attributes
    ----------
    centers : nn.Parameter of shape (n_clusters, n_latent)
        NaN until :meth:`place` sets them.
    """

    centers: nn.Parameter

    def __init__(self, n_clusters: int, n_latent: int, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_positive(alpha, "alpha")
        self.centers = nn.Parameter(torch.full((n_clusters, n_latent), float("nan")))

    @torch.no_grad()
    def place(self, centers: Tensor) -> None:
        """Put the centers where an initialisation found them."""
        self.centers.copy_(centers)

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings as they are compared with the centers: themselves, unless a subclass maps them."""
        return z

    def compared(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and centers between which the Student t is taken."""
        return z, self.centers

    def assign(self, z: Tensor) -> Tensor:
        """Soft assignment q of shape (n_samples, n_clusters)."""
        return student_t_assign(*self.compared(z), self.alpha)

    def statistics(self, z: Tensor, previous_labels: Tensor | None = None) -> StudentTStatistics:
        """Labels, confidence, frequencies, label changes and entropy in one pass, free of n x k."""
        return student_t_statistics(*self.compared(z), self.alpha, previous_labels)


class SoftmaxHead(Head):
    """A classifier on the embedding: ``head(z)`` are its logits.

    Parameters
    ----------
    n_latent, n_clusters : int
    hidden : int, optional
        Width of a layer with ReLU before the last; without it the head is linear.
    normalize : bool
        Batch normalisation of the logits: in training each cluster has rows above and below its mean.
    """

    def __init__(self, n_latent: int, n_clusters: int, hidden: int | None = None, normalize: bool = False) -> None:
        super().__init__()
        before: list[nn.Module] = [] if hidden is None else [nn.Linear(n_latent, hidden), nn.ReLU()]
        after: list[nn.Module] = [BatchNorm(n_clusters)] if normalize else []
        self.layers = nn.Sequential(*before, nn.Linear(hidden or n_latent, n_clusters), *after)

    def forward(self, z: Tensor) -> Tensor:
        """Logits of shape (n_samples, n_clusters)."""
        return self.layers(z)

    def assign(self, z: Tensor) -> Tensor:
        """Softmax of the logits."""
        return self(z).softmax(1)


class Prototypes(Head):
    """Directions of length one, to which embeddings are compared by their cosine.

    Parameters
    ----------
    n_latent, n_prototypes : int
    temperature : float
        Of :meth:`assign`, the softmax of cosine / temperature.
    """

    def __init__(self, n_latent: int, n_prototypes: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_positive(temperature, "temperature")
        self.weight = nn.Parameter(nn.functional.normalize(torch.randn(n_prototypes, n_latent), dim=1))

    @torch.no_grad()
    def normalize(self) -> None:
        """Bring the prototypes back to length one, as before each step of SwAV."""
        nn.functional.normalize(self.weight, dim=1, out=self.weight.data)

    def forward(self, z: Tensor) -> Tensor:
        """Cosines of shape (n_samples, n_prototypes)."""
        return nn.functional.normalize(z, dim=1) @ nn.functional.normalize(self.weight, dim=1).T

    def assign(self, z: Tensor) -> Tensor:
        """Softmax of the cosines over the temperature."""
        return (self(z) / self.temperature).softmax(1)


class Mixture(TakesShapes, Head):
    """A Gaussian mixture in the embedding, with diagonal covariances unless :meth:`widen` sets others.

    Parameters
    ----------
    n_clusters, n_latent : int

    Attributes
    ----------
    means, log_vars : nn.Parameter of shape (n_clusters, n_latent)
        NaN until :meth:`place` sets them.
    logits : nn.Parameter of shape (n_clusters,)
        Whose softmax are the weights of the components.
    covariances : buffer of shape (n_clusters, n_latent, n_latent)
        By which it assigns; empty, for the diagonal ones, until :meth:`widen`.
    """

    covariances: Tensor

    def __init__(self, n_clusters: int, n_latent: int) -> None:
        super().__init__()
        nan = float("nan")
        self.means = nn.Parameter(torch.full((n_clusters, n_latent), nan))
        self.log_vars = nn.Parameter(torch.full((n_clusters, n_latent), nan))
        self.logits = nn.Parameter(torch.full((n_clusters,), nan))
        self.register_buffer("covariances", torch.empty(0, n_latent, n_latent))

    @torch.no_grad()
    def place(self, means: Tensor, covariances: Tensor, weights: Tensor) -> None:
        """Put the components where an initialisation found them; covariances are variances, (n_clusters, n_latent)."""
        self.means.copy_(means)
        self.log_vars.copy_(covariances.log())
        self.logits.copy_(weights.log())

    @torch.no_grad()
    def widen(self, means: Tensor, covariances: Tensor, weights: Tensor) -> None:
        """Put the components there and assign by these full covariances; ``log_vars`` are of their diagonals."""
        self.place(means, covariances.diagonal(dim1=1, dim2=2), weights)
        self.covariances = covariances

    @property
    def centers(self) -> Tensor:
        """The means."""
        return self.means

    def assign(self, z: Tensor) -> Tensor:
        """Responsibilities of the components."""
        full = len(self.covariances) > 0
        covariances = self.covariances if full else self.log_vars.exp()
        kind = "full" if full else "diag"
        return gmm_responsibilities(z, self.means, covariances, self.logits.softmax(0), kind).responsibilities
