"""Calls every operator on the CPU once for each kernel that it can choose, so that all are in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdc import metrics
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
    self_expression,
    sinkhorn,
    student_t,
)
from fastdc.kernels.density.pairs import PairSearch

SHAPES = ((300, 2, 3), (300, 96, 130))  # n_samples, n_features, n_clusters: within one tile, and beyond
DTYPES = (torch.float32, torch.float64)  # half precision runs in the kernels of float32


def warm_all() -> dict[str, float]:
    """Seconds that the first call of each operator took, compilation or loading included."""
    seconds = dict.fromkeys(OPS, 0.0)
    for n_samples, n_features, n_clusters in SHAPES:
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(n_samples, n_features, generator=generator, dtype=torch.float64)
        for dtype in DTYPES:
            x = points.to(dtype)
            for op, call in _CALLS.items():
                started = time.perf_counter()
                call(x, x[:n_clusters].clone())
                seconds[op] += time.perf_counter() - started
            self_expression.orthogonal_matching_pursuit(x, 2)  # has no choice of backends to be listed by
    return {op: round(spent, 2) for op, spent in seconds.items()}


def _student_t_statistics(x: Tensor, centers: Tensor) -> None:
    labels = student_t.student_t_statistics(x, centers).labels
    student_t.student_t_statistics(x, centers, previous_labels=labels)


def _student_t_assign(x: Tensor, centers: Tensor) -> None:
    x, centers = x.requires_grad_(), centers.requires_grad_()
    for alpha in (1.0, 2.5):
        student_t.student_t_assign(x, centers, alpha).sum().backward()
    x.requires_grad_(False)


def _target_distribution(x: Tensor, centers: Tensor) -> None:
    q = student_t.student_t_assign(x, centers)
    student_t.target_distribution(q)
    student_t.target_distribution(q, power=1.5, frequency_power=0.5)


def _dec_loss(x: Tensor, centers: Tensor) -> None:
    q = student_t.student_t_assign(x, centers)
    frozen: dict[str, Any] = {"target_x": x.clone(), "target_centers": centers.clone(), "frequency": q.sum(0)}
    x, centers = x.requires_grad_(), centers.requires_grad_()
    given: dict[str, Any] = {"target": student_t.target_distribution(q)}
    for target in ({}, given, frozen):
        for alpha in (1.0, 2.5):
            student_t.dec_loss(x, centers, alpha=alpha, **target).backward()
    with torch.no_grad():
        student_t.dec_loss(x, centers)
    x.requires_grad_(False)


def _kmeans_step(x: Tensor, centers: Tensor) -> None:
    step = kmeans.kmeans_step(x, centers)
    weight = torch.ones(len(x), dtype=x.dtype)
    kmeans.kmeans_step(x, centers, sample_weight=weight, previous_labels=step.labels)
    steps = kmeans.LloydSteps(x, None, "bounds")
    steps(centers, steps(centers, None).labels)


def _kmeans_loss(x: Tensor, centers: Tensor) -> None:
    for mode in ("hard", "soft"):
        kmeans.kmeans_loss(x.clone().requires_grad_(), centers.clone().requires_grad_(), mode=mode).backward()


def _contingency_table(x: Tensor, centers: Tensor) -> None:
    labels = kmeans.nearest_center(x, centers).labels
    for ids in (labels, labels.int(), labels * 1000):
        contingency.contingency_table(ids, labels)
    metrics.adjusted_mutual_info(labels, labels.roll(1))  # equal labels need no expected value


def _knn(x: Tensor, centers: Tensor) -> None:
    neighbors.knn(x, 1)
    neighbors.knn(x, 1, centers)
    if not x.is_cuda:
        neighbors.knn(x, 1, algorithm="lists")


def _density_clusters(x: Tensor, centers: Tensor) -> None:
    density.density_clusters(x, 1.0, 2)
    PairSearch(x, 1.0, "euclidean").clusters(torch.ones(len(x), dtype=torch.bool))  # how GPUs do it


def _sinkhorn_assign(x: Tensor, centers: Tensor) -> None:
    scores = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(centers).T
    for epsilon in (0.05, 1e-3):  # stored exponentials, and anew in each pass
        sinkhorn.sinkhorn_assign(scores, epsilon)


def _swapped_prediction_loss(x: Tensor, centers: Tensor) -> None:
    unit = torch.nn.functional.normalize
    z1, z2, prototypes = (unit(t).requires_grad_() for t in (x, x.flip(0), centers))
    sinkhorn.swapped_prediction_loss(z1, z2, prototypes).backward()
    with torch.no_grad():
        sinkhorn.swapped_prediction_loss(z1, z2, prototypes)
        sinkhorn.swapped_prediction_loss(z1, z2, prototypes, epsilon=1e-3)  # not held
        many = z1.repeat(6, 1)
        sinkhorn.swapped_prediction_loss(many, many, z2)  # held, by several threads


def _sinkhorn_assign_features(x: Tensor, centers: Tensor) -> None:
    unit = torch.nn.functional.normalize
    for epsilon in (0.05, 1e-3):  # stored exponentials, and anew in each pass
        sinkhorn.sinkhorn_assign_features(unit(x), unit(centers), epsilon)


def _optimal_transport_loss(x: Tensor, centers: Tensor) -> None:
    unit = torch.nn.functional.normalize
    for rows, means in ((x, centers), (unit(x), unit(centers))):  # exponentials anew in each pass, and held
        rows, means = rows.clone().requires_grad_(), means.clone().requires_grad_()
        sinkhorn.optimal_transport_loss(rows, means, n_iters=2).backward()


def _conditional_entropy(x: Tensor, centers: Tensor) -> None:
    for p, from_logits in ((x.softmax(1), False), (x.clone(), True)):
        mutual_information.conditional_entropy(p.requires_grad_(), from_logits=from_logits).backward()


def _vat_kl(x: Tensor, centers: Tensor) -> None:
    mutual_information.vat_kl(x, (x * 0.9).requires_grad_()).backward()


def _pairwise_bce(x: Tensor, centers: Tensor) -> None:
    for labels in (None, _halves(x)):
        pairwise.pairwise_bce(x.softmax(1).requires_grad_(), labels).backward()
    pairwise.pairwise_bce(x.softmax(1).requires_grad_(), chosen_by=x.softmax(1)).backward()


def _soft_nearest_neighbor_loss(x: Tensor, centers: Tensor) -> None:
    pairwise.soft_nearest_neighbor_loss(x.clone().requires_grad_(), _halves(x)).backward()


def _triplet_loss(x: Tensor, centers: Tensor) -> None:
    pairwise.triplet_loss(x, _halves(x))
    pairwise.triplet_loss(x.clone().requires_grad_(), _halves(x), 0.2, "all").backward()


def _halves(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % 2


def _gmm_log_density(x: Tensor, means: Tensor) -> None:
    for mixture in _mixtures(x, means):
        gaussian_mixture.gmm_log_density(x, *mixture)


def _gmm_step(x: Tensor, means: Tensor) -> None:
    for mixture in _mixtures(x, means):
        gaussian_mixture.gmm_step(x, *mixture)


def _mixtures(x: Tensor, means: Tensor) -> list[tuple[Tensor, Tensor, Tensor, str]]:
    """Means, covariances, weights and covariance type, of each type."""
    k, d = means.shape
    unit, ones = torch.eye(d, dtype=x.dtype), torch.ones(k)
    covariances = {"diag": torch.ones_like(means), "spherical": ones, "tied": unit, "full": unit.repeat(k, 1, 1)}
    return [(means, covariance, ones, kind) for kind, covariance in covariances.items()]


def _vade_loss(x: Tensor, means: Tensor) -> None:
    leaves = [t.clone().requires_grad_() for t in (x, x, x, means, means, means[:, 0])]
    gaussian_mixture.vade_loss(*leaves).backward()


def _ring(x: Tensor) -> Tensor:
    nodes = torch.arange(len(x))
    return torch.stack([nodes, nodes.roll(1)])


def _laplacian_loss(x: Tensor, centers: Tensor) -> None:
    weights = torch.ones(len(x), dtype=x.dtype, requires_grad=True)
    for w in (None, weights):
        graph.laplacian_loss(x.clone().requires_grad_(), _ring(x), w).backward()
        graph.laplacian_loss(x, _ring(x), None if w is None else w.detach())


def _propagate(x: Tensor, centers: Tensor) -> None:
    adjacency = torch.eye(len(x), dtype=x.dtype).to_sparse_csr()
    graph.propagate(adjacency, x.clone().requires_grad_()).sum().backward()


def _neighbor_consistency_loss(x: Tensor, centers: Tensor) -> None:
    for from_logits, rows in ((True, x), (False, x.softmax(1))):
        pair = rows.clone().requires_grad_(), rows.roll(1, 0).requires_grad_()
        graph.neighbor_consistency_loss(*pair, from_logits=from_logits).backward()


def _nt_xent(x: Tensor, centers: Tensor) -> None:
    for temperature in (0.5, 0.001):  # without shifts and with them
        contrastive.nt_xent(x.requires_grad_(), x.flip(0), temperature).backward()
    x.requires_grad_(False)


def _info_nce(x: Tensor, centers: Tensor) -> None:
    contrastive.info_nce(x.requires_grad_(), x.flip(0), extra_keys=centers).backward()
    contrastive.info_nce(x, x.flip(0), extra_keys=centers.requires_grad_()).backward()
    x.requires_grad_(False)


def _sup_con(x: Tensor, centers: Tensor) -> None:
    contrastive.sup_con(x.requires_grad_(), torch.arange(len(x)) % 5).backward()
    x.requires_grad_(False)


def _prototype_contrast(x: Tensor, centers: Tensor) -> None:
    contrastive.prototype_contrast(x, centers.requires_grad_(), torch.arange(len(x)) % len(centers)).backward()
    centers.requires_grad_(False)


def _instance_discrimination(x: Tensor, centers: Tensor) -> None:
    contrastive.instance_discrimination(centers.requires_grad_(), x, torch.arange(len(centers))).backward()
    centers.requires_grad_(False)


_CALLS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "student_t_assign": _student_t_assign,
    "student_t_statistics": _student_t_statistics,
    "target_distribution": _target_distribution,
    "dec_loss": _dec_loss,
    "nearest_center": kmeans.nearest_center,
    "kmeans_step": _kmeans_step,
    "kmeans_plusplus": lambda x, centers: kmeans.kmeans_plusplus(x, len(centers), random_state=0),
    "kmeans_loss": _kmeans_loss,
    "contingency_table": _contingency_table,
    "knn": _knn,
    "radius_neighbors": lambda x, centers: neighbors.radius_neighbors(x, 1.0),
    "radius_counts": lambda x, centers: density.radius_counts(x, 1.0),
    "density_clusters": _density_clusters,
    "sinkhorn_assign": _sinkhorn_assign,
    "swapped_prediction_loss": _swapped_prediction_loss,
    "sinkhorn_assign_features": _sinkhorn_assign_features,
    "optimal_transport_labels": sinkhorn.optimal_transport_labels,
    "optimal_transport_loss": _optimal_transport_loss,
    "entropy_statistics": lambda x, centers: mutual_information.entropy_statistics(x.softmax(1)),
    "conditional_entropy": _conditional_entropy,
    "marginal_entropy": lambda x, centers: mutual_information.marginal_entropy(x.softmax(1)),
    "rim_loss": lambda x, centers: mutual_information.rim_loss(x.clone().requires_grad_()).backward(),
    "vat_kl": _vat_kl,
    "silhouette_coefficients": lambda x, centers: pairwise.silhouette_coefficients(x, _halves(x), 2),
    "hardest_pairs": lambda x, centers: pairwise.hardest_pairs(x, _halves(x)),
    "center_distances": lambda x, centers: pairwise.center_distances(x, centers, _halves(x)),
    "cluster_dispersion": lambda x, centers: pairwise.cluster_dispersion(x, _halves(x), 2),
    "pairwise_bce": _pairwise_bce,
    "soft_nearest_neighbor_loss": _soft_nearest_neighbor_loss,
    "triplet_loss": _triplet_loss,
    "gmm_responsibilities": _gmm_log_density,  # the same kernels
    "gmm_log_density": _gmm_log_density,
    "gmm_step": _gmm_step,
    "vade_loss": _vade_loss,
    "laplacian_loss": _laplacian_loss,
    "heat_weights": lambda x, centers: graph.heat_weights(x, _ring(x)),
    "propagate": _propagate,
    "neighbor_consistency_loss": _neighbor_consistency_loss,
    "nt_xent": _nt_xent,
    "info_nce": _info_nce,
    "sup_con": _sup_con,
    "prototype_contrast": _prototype_contrast,
    "instance_discrimination": _instance_discrimination,
}
