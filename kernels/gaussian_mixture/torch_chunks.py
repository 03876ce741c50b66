"""Mixtures of "tied" and "full" covariances on GPUs: torch's products, a chunk of rows and a component at a time.

Held at a time are (CHUNK, n_components) and (CHUNK, n_features), never n_samples x n_components.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels.gaussian_mixture.parameters import find_precisions, widest
from fastdc.kernels.gaussian_mixture.update import about_means

CHUNK = 1 << 14


class Mixture:
    """A mixture of whitened components."""

    def __init__(self, x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str) -> None:
        self.x, self.kind, self.dtype = x, covariance_type, working_dtype(x, means)
        precisions = find_precisions(means, covariances, weights, covariance_type)
        self.exact_means = means.to(widest(x.device))
        origin = self.exact_means.mean(dim=0).to(self.dtype)
        self.origin = torch.where(torch.isfinite(origin), origin, 0.0)
        self.factor = precisions.factor.to(self.dtype)
        self.log_norm = precisions.log_norm.to(self.dtype)
        self.means = means.to(self.dtype)
        if covariance_type == "tied":
            self.means = ((self.exact_means - self.origin) @ precisions.factor).to(self.dtype)

    def log_joint(self, rows: Tensor) -> Tensor:
        """(rows, k), one component at a time."""
        rows = rows.to(self.dtype)
        if self.kind == "tied":
            rows = (rows - self.origin) @ self.factor
        columns = []
        for j, mean in enumerate(self.means):
            y = rows - mean
            if self.kind == "full":
                y = y @ self.factor[j]
            columns.append(y.square().sum(dim=1))
        return self.log_norm - torch.stack(columns, dim=1) / 2

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """(rows, responsibilities, log density, labels) of each chunk."""
        for start in range(0, self.x.shape[0], CHUNK):
            rows = slice(start, start + CHUNK)
            log_joint = self.log_joint(self.x[rows])
            log_density = log_joint.logsumexp(dim=1)
            labels = torch.where(torch.isfinite(log_density), log_joint.argmax(dim=1), -1)
            yield rows, torch.softmax(log_joint, dim=1), log_density, labels


def gmm_rows(mixture: Mixture, want_responsibilities: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, k = mixture.x, mixture.means.shape[0]
    gamma = x.new_empty((x.shape[0] if want_responsibilities else 0, k), dtype=mixture.dtype)
    log_density = x.new_empty(x.shape[0], dtype=mixture.dtype)
    labels = x.new_empty(x.shape[0], dtype=torch.int64)
    for rows, part, density, best in mixture.chunks():
        log_density[rows], labels[rows] = density, best
        if want_responsibilities:
            gamma[rows] = part
    return gamma, log_density, labels


def gmm_step(mixture: Mixture, sample_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, means, origin = mixture.x, mixture.exact_means, mixture.origin.to(mixture.exact_means)
    k, d = means.shape
    log_likelihood, counts, moments = means.new_zeros(()), means.new_zeros(k), means.new_zeros(k, d)
    seconds = means.new_zeros((d, d) if mixture.kind == "tied" else (k, d, d))
    n_invalid = torch.zeros((), dtype=torch.int64, device=x.device)
    for rows, gamma, log_density, labels in mixture.chunks():
        valid = labels >= 0
        weight = valid.to(means) if sample_weight is None else torch.where(valid, sample_weight[rows].to(means), 0.0)
        gamma = torch.where(valid[:, None], gamma.to(means), 0.0) * weight[:, None]
        shifted = torch.where(valid[:, None], x[rows].to(means) - origin, 0.0)
        log_likelihood += torch.where(valid, log_density.to(means), 0.0) @ weight
        counts += gamma.sum(dim=0)
        moments += gamma.mT @ shifted
        n_invalid += (~valid).sum()
        if mixture.kind == "tied":
            seconds += (shifted * gamma.sum(dim=1, keepdim=True)).mT @ shifted
        else:
            for j in range(k):
                seconds[j] += (shifted * gamma[:, j : j + 1]).mT @ shifted
    sums, scatters = about_means(counts, moments, seconds, means - origin, mixture.kind)
    return log_likelihood, counts, sums, scatters, n_invalid
