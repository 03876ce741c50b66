"""Lloyd's algorithm over tensors: one pass over the rows and one wait for the device an iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdc.kernels.kmeans import KMeansStep, LloydSteps, center_update, repair_empty

Record = dict[str, Any]


class Solution(NamedTuple):
    """Where a run ended: every label is that of the nearest of these centers."""

    centers: Tensor
    labels: Tensor
    inertia: float
    history: list[Record]


def lloyd(
    x: Any,
    centers: Tensor,
    sample_weight: Tensor | None,
    *,
    max_iter: int,
    tol: float,
    backend: str | None = None,
    algorithm: str = "auto",
    update: Callable[[Tensor, Tensor, Tensor], Tensor] = center_update,
    report: Callable[[Record], bool] = lambda record: False,
    begin: Callable[..., Callable[[Tensor, Tensor | None], KMeansStep]] = LloydSteps,
    repair: Callable[..., tuple[Tensor, Tensor]] = repair_empty,
) -> Solution:
    """Alternate nearest centers and means from ``centers`` on.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
    centers : Tensor of shape (n_clusters, n_features), dtype of x
    sample_weight : Tensor of shape (n_samples,) or None
    max_iter : int
        Most iterations.
    tol : float
        Stop when the squared movements of all centers add up to no more; also when no label changes.
    algorithm : {"auto", "lloyd", "bounds"}
        As of :class:`fastdc.kernels.kmeans.LloydSteps`: results are the same bits.
    update : callable
        New centers from sums, counts and the centers before.
    report : callable
        Given each iteration's record; True ends the run.
    begin, repair : callables
        What does the work of ``LloydSteps`` and ``repair_empty``, where x is something else than a tensor.

    Notes
    -----
    An empty cluster is given the row farthest from its center. Ends within ``max_iter`` iterations also where
    rows repeat and clusters cannot be filled.
    """
    history: list[Record] = []
    labels: Tensor | None = None
    steps = begin(x, sample_weight, algorithm, backend)
    for iteration in range(1, max_iter + 1):
        step = steps(centers, labels)
        labels = step.labels
        updated = update(step.sums, step.counts, centers)
        inertia, n_changed, n_empty, n_unlabeled, shift = _on_host(step, centers, updated)
        if n_empty:
            repaired = repair(x, centers, labels, step.sums, step.counts, sample_weight=sample_weight)
            updated = update(*repaired, centers)
            shift = float((updated - centers).double().square().sum())
        history.append(
            {
                "iteration": iteration,
                "inertia": inertia,
                "n_changed": int(n_changed),
                "center_shift": shift**0.5,
                "n_empty_clusters": int(n_empty),
                "n_unlabeled": int(n_unlabeled),
            }
        )
        stop = report(history[-1])
        if n_changed == 0 and (n_empty == 0 or shift == 0.0):  # these labels made these centers
            return Solution(centers, labels, inertia, history)
        centers = updated
        if stop or shift <= tol:
            break
    final = steps(centers, labels)
    return Solution(centers, final.labels, float(final.inertia), history)


def _on_host(step: KMeansStep, centers: Tensor, updated: Tensor) -> list[float]:
    """inertia, n_changed, empty clusters, rows without a label, squared shift: one transfer for all."""
    empty = (step.counts <= 0).sum()
    unlabeled = (step.labels < 0).sum()
    shift = (updated - centers).double().square().sum()
    numbers = [step.inertia, step.n_changed, empty, unlabeled, shift]
    return torch.stack([number.double() for number in numbers]).tolist()
