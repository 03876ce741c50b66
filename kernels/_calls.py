"""One call of every operator, for what goes over all of them: GPU tests, and launches looked at without a GPU.

A new operator is one line of ``CALLS``. What follows a colon in a name tells calls of one operator apart.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdc.kernels import (
    OPS,
    contingency,
    contrastive,
    density,
    gaussian_mixture,
    graph,
    kmeans,
    mutual_information,
    neighbors,
    pairwise,
    sinkhorn,
    student_t,
)
from fastdc.kernels.neighbors.points import distances_of, keys_of, metric_rows


class Size(NamedTuple):
    """What inputs are made for."""

    n: int  # samples
    k: int  # clusters
    d: int  # features


class Material:
    """Inputs of every operator: the same numbers in every dtype, on every device and in every layout.

    Parameters
    ----------
    size : Size
    dtype : torch.dtype
        That the numbers are rounded to.
    device : str
    seed : int
    computed_in : torch.dtype, optional
        That the rounded numbers are handed out in: float64 gives the truth of a call in ``dtype``.
    strided : bool
        Neither dimension of a matrix is contiguous.
    strides : (int, int), optional
        Of rows and columns of a matrix; what lies between its numbers is not initialised.
    """

    def __init__(
        self,
        size: Size,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        seed: int = 0,
        computed_in: torch.dtype | None = None,
        strided: bool = False,
        strides: tuple[int, int] | None = None,
    ) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        self.strided, self.strides = strided, strides
        self.seed, self.computed_in = seed, computed_in or dtype
        self.leaves: dict[str, Tensor] = {}

    def _numbers(self, *shape: int, shift: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(100 * self.seed + shift)
        return torch.randn(shape, generator=generator)

    def _leaf(self, name: str, numbers: Tensor) -> Tensor:
        """The one tensor of a name; it gathers gradients."""
        if name not in self.leaves:
            rounded = numbers.to(self.device).to(self.dtype).to(self.computed_in)
            if self.strided and rounded.ndim == 2:
                wide = rounded.new_zeros(2 * rounded.shape[0], 2 * rounded.shape[1])
                wide[::2, ::2] = rounded
                rounded = wide[::2, ::2]
            if self.strides and rounded.ndim == 2:
                last = sum((length - 1) * stride for length, stride in zip(rounded.shape, self.strides))
                rounded = rounded.new_empty(last + 1).as_strided(rounded.shape, self.strides).copy_(rounded)
            self.leaves[name] = rounded.requires_grad_()
        return self.leaves[name]

    @cached_property
    def labels(self) -> Tensor:
        return (torch.arange(self.size.n, device=self.device) * 7919) % min(self.size.n, self.size.k)

    @cached_property
    def few_labels(self) -> Tensor:
        """At least two rows of each label."""
        return self.labels % max(1, min(self.size.k, self.size.n // 2))

    @property
    def _centers(self) -> Tensor:
        return 2 * self._numbers(self.size.k, self.size.d, shift=1)

    @cached_property
    def x(self) -> Tensor:
        """Rows around their centers."""
        noise = self._numbers(self.size.n, self.size.d)
        return self._leaf("x", self._centers[self.labels.cpu()] + 0.3 * noise)

    @cached_property
    def y(self) -> Tensor:
        """Each row once more, a little off."""
        noise = self._numbers(self.size.n, self.size.d, shift=2)
        return self._leaf("y", self._centers[self.labels.cpu()] + 0.3 * noise)

    @cached_property
    def centers(self) -> Tensor:
        return self._leaf("centers", self._centers)

    @cached_property
    def logits(self) -> Tensor:
        return self._leaf("logits", self._numbers(self.size.n, self.size.k, shift=3))

    @cached_property
    def other_logits(self) -> Tensor:
        near = self._numbers(self.size.n, self.size.k, shift=3) + 0.3 * self._numbers(*self.size[:2], shift=4)
        return self._leaf("other_logits", near)

    @cached_property
    def p(self) -> Tensor:
        return self._leaf("p", self._numbers(self.size.n, self.size.k, shift=3).softmax(1))

    @cached_property
    def other_p(self) -> Tensor:
        return self._leaf("other_p", self._numbers(self.size.n, self.size.k, shift=4).softmax(1))

    @cached_property
    def unit_x(self) -> Tensor:
        return self._leaf("unit_x", torch.nn.functional.normalize(self._numbers(self.size.n, self.size.d)))

    @cached_property
    def unit_y(self) -> Tensor:
        near = self._numbers(self.size.n, self.size.d) + 0.3 * self._numbers(self.size.n, self.size.d, shift=2)
        return self._leaf("unit_y", torch.nn.functional.normalize(near))

    @cached_property
    def unit_centers(self) -> Tensor:
        return self._leaf("unit_centers", torch.nn.functional.normalize(self._centers))

    @cached_property
    def scores(self) -> Tensor:
        return self._leaf("scores", self._numbers(self.size.n, self.size.k, shift=3).tanh())

    @cached_property
    def weights(self) -> Tensor:
        return self._leaf("weights", self._numbers(self.size.n, shift=5).abs() + 0.1)

    @cached_property
    def mixture(self) -> tuple[Tensor, Tensor]:
        """Variances (k, d) and weights of components."""
        variances = self._numbers(self.size.k, self.size.d, shift=6).abs() + 0.5
        return self._leaf("variances", variances), self._leaf("shares", torch.full((self.size.k,), 1 / self.size.k))

    @cached_property
    def covariances(self) -> Tensor:
        """(k, d, d), the same correlations in all components."""
        outer = torch.full((self.size.d, self.size.d), 0.1) + torch.eye(self.size.d)
        return self._leaf("covariances", outer * (1 + torch.arange(self.size.k) / self.size.k)[:, None, None])

    @cached_property
    def latent(self) -> tuple[Tensor, ...]:
        """The six inputs of VaDE's loss."""
        n, k, d = self.size
        log_var = self._leaf("log_var", -self._numbers(n, d, shift=7).abs())
        log_vars = self._leaf("log_vars", 0.1 * self._numbers(k, d, shift=8))
        return self.x, self.y, log_var, self.centers, log_vars, self._leaf("pi", self._numbers(k, shift=9))

    @cached_property
    def edges(self) -> Tensor:
        """Each node with the next two."""
        nodes = torch.arange(self.size.n, device=self.device)
        return torch.stack([nodes.repeat(2), torch.cat([nodes.roll(1), nodes.roll(2)])])

    @cached_property
    def edge_weights(self) -> Tensor:
        return self._leaf("edge_weights", self._numbers(2 * self.size.n, shift=10).abs())

    @cached_property
    def adjacency(self) -> Tensor:
        """Sparse CSR with the edges, and two entries a row."""
        n = self.size.n
        indptr = 2 * torch.arange(n + 1, device=self.device)
        columns = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n], dim=1).sort(dim=1).values
        values = self._numbers(2 * n, shift=11).to(self.dtype).to(self.computed_in)
        return torch.sparse_csr_tensor(
            indptr, columns.flatten().to(self.device), values.to(self.device), (n, n), check_invariants=False
        )


Call = Callable[..., Any]

CALLS: dict[str, Call] = {
    "student_t_assign": lambda m, **o: student_t.student_t_assign(m.x, m.centers, **o),
    "student_t_assign: alpha 2.5": lambda m, **o: student_t.student_t_assign(m.x, m.centers, 2.5, **o),
    "student_t_statistics": lambda m, **o: student_t.student_t_statistics(m.x, m.centers, **o),
    "target_distribution": lambda m, **o: student_t.target_distribution(m.p, **o),
    "dec_loss": lambda m, **o: student_t.dec_loss(m.x, m.centers, **o),
    "dec_loss: powers": lambda m, **o: student_t.dec_loss(
        m.x, m.centers, alpha=2.5, power=1.5, frequency_power=0.5, **o
    ),
    "dec_loss: target": lambda m, **o: student_t.dec_loss(m.x, m.centers, target=m.p.detach(), **o),
    "dec_loss: frozen": lambda m, **o: student_t.dec_loss(
        m.x, m.centers, target_x=m.y.detach(), target_centers=m.centers.detach() + 0.1,
        frequency=m.p.detach().sum(0), **o,
    ),
    "nearest_center": lambda m, **o: kmeans.nearest_center(m.x, m.centers, **o),
    "kmeans_step": lambda m, **o: kmeans.kmeans_step(m.x, m.centers, **o),
    "kmeans_step: weights": lambda m, **o: kmeans.kmeans_step(
        m.x, m.centers, sample_weight=m.weights.detach(), previous_labels=m.labels, **o
    ),
    "kmeans_plusplus": lambda m, **o: kmeans.kmeans_plusplus(m.x, min(m.size.n, m.size.k, 8), random_state=0, **o),
    "kmeans_plusplus: weights": lambda m, **o: kmeans.kmeans_plusplus(
        m.x, min(m.size.n, m.size.k, 8), sample_weight=m.weights.detach(), random_state=0, **o
    ),
    "kmeans_loss": lambda m, **o: kmeans.kmeans_loss(m.x, m.centers, **o),
    "kmeans_loss: soft": lambda m, **o: kmeans.kmeans_loss(m.x, m.centers, mode="soft", **o),
    "contingency_table": lambda m, **o: contingency.contingency_table(
        m.labels, m.labels.roll(1), n_classes=m.size.k, n_clusters=m.size.k, **o
    ).counts,
    "knn": lambda m, **o: _knn(m, min(16, m.size.n - 1), None, "euclidean", **o),
    "knn: queries": lambda m, **o: _knn(m, min(100, m.size.n), m.y, "cosine", **o),
    "knn: inner product": lambda m, **o: _knn(m, min(40, m.size.n - 1), None, "inner_product", **o),
    "radius_neighbors": lambda m, **o: neighbors.radius_neighbors(m.x, 0.5 * m.size.d**0.5, **o),
    "radius_counts": lambda m, **o: density.radius_counts(m.x, 0.5 * m.size.d**0.5, **o),
    "density_clusters": lambda m, **o: density.density_clusters(m.x, 0.5 * m.size.d**0.5, 3, **o),
    "sinkhorn_assign": lambda m, **o: sinkhorn.sinkhorn_assign(m.scores, **o),
    "swapped_prediction_loss": lambda m, **o: sinkhorn.swapped_prediction_loss(
        m.unit_x, m.unit_y, m.unit_centers, **o
    ),
    "sinkhorn_assign_features": lambda m, **o: sinkhorn.sinkhorn_assign_features(m.unit_x, m.unit_centers, **o),
    "optimal_transport_labels": lambda m, **o: sinkhorn.optimal_transport_labels(
        m.unit_x, m.unit_centers, n_iters=5, **o
    ),
    "optimal_transport_loss": lambda m, **o: sinkhorn.optimal_transport_loss(
        m.unit_x, m.unit_centers, n_iters=5, tol=None, **o
    ),
    "entropy_statistics": lambda m, **o: mutual_information.entropy_statistics(m.p, **o),
    "conditional_entropy": lambda m, **o: mutual_information.conditional_entropy(m.p, **o),
    "conditional_entropy: logits": lambda m, **o: mutual_information.conditional_entropy(
        m.logits, from_logits=True, **o
    ),
    "marginal_entropy": lambda m, **o: mutual_information.marginal_entropy(m.p, **o),
    "rim_loss": lambda m, **o: mutual_information.rim_loss(m.logits, **o),
    "vat_kl": lambda m, **o: mutual_information.vat_kl(m.logits.detach(), m.other_logits, **o),
    "silhouette_coefficients": lambda m, **o: pairwise.silhouette_coefficients(m.x, m.few_labels, m.size.k, **o),
    "hardest_pairs": lambda m, **o: _hardest_pairs(m, **o),
    "center_distances": lambda m, **o: pairwise.center_distances(m.x, m.centers, m.labels, **o),
    "cluster_dispersion": lambda m, **o: pairwise.cluster_dispersion(m.x, m.labels, m.size.k, **o),
    "pairwise_bce": lambda m, **o: pairwise.pairwise_bce(m.p, **o),
    "pairwise_bce: labels": lambda m, **o: pairwise.pairwise_bce(m.p, m.few_labels, **o),
    "pairwise_bce: chosen": lambda m, **o: pairwise.pairwise_bce(m.p, chosen_by=m.p.detach().flip(0), **o),
    "soft_nearest_neighbor_loss": lambda m, **o: pairwise.soft_nearest_neighbor_loss(m.x, m.few_labels, **o),
    "triplet_loss": lambda m, **o: pairwise.triplet_loss(m.x, m.few_labels, **o),
    "triplet_loss: all": lambda m, **o: _all_triplets(m, **o),
    "gmm_responsibilities": lambda m, **o: gaussian_mixture.gmm_responsibilities(m.x, m.centers, *m.mixture, **o),
    "gmm_log_density": lambda m, **o: gaussian_mixture.gmm_log_density(m.x, m.centers, *m.mixture, **o),
    "gmm_step": lambda m, **o: gaussian_mixture.gmm_step(m.x, m.centers, *m.mixture, **o),
    "gmm_step: spherical": lambda m, **o: gaussian_mixture.gmm_step(
        m.x, m.centers, m.mixture[0][:, 0], m.mixture[1], "spherical", sample_weight=m.weights.detach(), **o
    ),
    "gmm_step: tied": lambda m, **o: gaussian_mixture.gmm_step(
        m.x, m.centers, m.covariances[0], m.mixture[1], "tied", **o
    ),
    "gmm_step: full": lambda m, **o: gaussian_mixture.gmm_step(
        m.x, m.centers, m.covariances, m.mixture[1], "full", **o
    ),
    "vade_loss: detached": lambda m, **o: gaussian_mixture.vade_loss(*m.latent, detach_responsibilities=True, **o),
    "vade_loss": lambda m, **o: gaussian_mixture.vade_loss(*m.latent, **o),
    "laplacian_loss": lambda m, **o: graph.laplacian_loss(m.x, m.edges, **o),
    "laplacian_loss: weights": lambda m, **o: graph.laplacian_loss(m.x, m.edges, m.edge_weights, **o),
    "heat_weights": lambda m, **o: graph.heat_weights(m.x, m.edges, **o),
    "propagate": lambda m, **o: graph.propagate(m.adjacency, m.x, **o),
    "propagate: steps": lambda m, **o: graph.propagate(m.adjacency, m.x, 3, **o),
    "neighbor_consistency_loss": lambda m, **o: graph.neighbor_consistency_loss(m.p, m.other_p, **o),
    "neighbor_consistency_loss: logits": lambda m, **o: graph.neighbor_consistency_loss(
        m.logits, m.other_logits, from_logits=True, **o
    ),
    "nt_xent": lambda m, **o: contrastive.nt_xent(m.unit_x, m.unit_y, **o),
    "info_nce": lambda m, **o: contrastive.info_nce(m.unit_x, m.unit_y, extra_keys=m.unit_centers, **o),
    "sup_con": lambda m, **o: contrastive.sup_con(m.unit_x, m.few_labels, **o),
    "prototype_contrast": lambda m, **o: contrastive.prototype_contrast(m.unit_x, m.unit_centers, m.labels, **o),
    "instance_discrimination": lambda m, **o: contrastive.instance_discrimination(
        m.unit_x, m.unit_centers, m.labels, **o
    ),
}  # fmt: skip
WITHOUT_KERNELS = {  # on GPUs plain torch: by chunks, the last one on matrices (n, n)
    "sinkhorn_assign_features", "optimal_transport_labels", "optimal_transport_loss", "gmm_step: tied",
    "gmm_step: full", "triplet_loss: all",
}  # fmt: skip


def _knn(m: Material, n_neighbors: int, queries: Tensor | None, metric: str, **options: Any) -> list[Tensor]:
    """The distances found, and those of the rows found: which of two equally near rows it is, rounding decides.

    Under "cosine" rows are divided by their lengths in their own dtype: pairs nearer to each other than that are equal.
    """
    found = neighbors.knn(m.x, n_neighbors, queries, metric, **options)
    x, asked = (metric_rows(t, metric, torch.float64) for t in (m.x, m.x if queries is None else queries))
    keys = keys_of(asked[:, None], x[found.indices], metric)
    return [found.distances, distances_of(keys, metric, found.distances.dtype)]


def _all_triplets(m: Material, **options: Any) -> Tensor:
    """Where the GPU's kernel is asked for, what a GPU runs instead: the reference."""
    if options.get("backend") == "triton":
        options["backend"] = "reference"
    return pairwise.triplet_loss(m.x, m.few_labels, 0.5, "all", **options)


def _hardest_pairs(m: Material, **options: Any) -> list[Tensor]:
    """The distances found, and those of the rows found: which of two equally far rows it is, rounding decides."""
    positive, negative, *distances = pairwise.hardest_pairs(m.x, m.few_labels, **options)
    x = m.x.detach().double()
    measured = [(x - x[rows.clamp(min=0)]).norm(dim=1).to(distances[0].dtype) for rows in (positive, negative)]
    return [*distances, *(torch.where(rows < 0, torch.nan, d) for rows, d in zip((positive, negative), measured))]


def op_of(name: str) -> str:
    """The operator that a name of ``CALLS`` calls."""
    return name.partition(":")[0]


def takes_precision(name: str) -> bool:
    """Whether the operator lets its caller choose the precision of products."""
    op = op_of(name)
    room = importlib.import_module(f"fastdc.kernels.{OPS[op]}")
    return "precision" in inspect.signature(getattr(room, op)).parameters


def results(name: str, material: Material, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What a call returns, tensor by tensor, and the gradients of a weighted sum of its differentiable results."""
    values = _tensors(CALLS[name](material, **options))
    moving = [value for value in values if value.requires_grad]
    if not moving:
        return values, []
    toward = [torch.linspace(0.5, 1.5, v.numel(), dtype=v.dtype, device=v.device).view_as(v) for v in moving]
    leaves = list(material.leaves.values())
    found = torch.autograd.grad(moving, leaves, toward, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found)]
    return [value.detach() for value in values], gradients


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if dataclasses.is_dataclass(result):
        result = [getattr(result, field.name) for field in dataclasses.fields(result)]
    return [part for part in result if isinstance(part, Tensor)]
