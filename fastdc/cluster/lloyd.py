"""Lloyd's algorithm over tensors: one pass over the rows and one wait for the device an iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdc.cluster.exact import fixed_sum
from fastdc.kernels.kmeans import KMeansStep, LloydSteps, center_update, repair_empty

Record = dict[str, Any]


class Pass(NamedTuple):
    """What a pass over the rows yields, and how many of all rows have no label."""

    step: KMeansStep
    n_unlabeled: Tensor

    @classmethod
    def of(cls, step: KMeansStep) -> Pass:
        """Where the step has the labels of all rows."""
        return cls(step, (step.labels < 0).sum())


class Progress(NamedTuple):
    """A run between two iterations. The labels are those of the centers ``before``, and made ``centers``."""

    before: Tensor
    centers: Tensor
    history: list[Record]
    is_over: bool


class Solution(NamedTuple):
    """Where a run ended: every label is that of the nearest of these centers."""

    centers: Tensor
    labels: Tensor
    inertia: float
    history: list[Record]


def plain_steps(
    x: Tensor, sample_weight: Tensor | None, algorithm: str, backend: str | None
) -> Callable[[Tensor, Tensor | None], Pass]:
    """The passes of a run over a tensor, given centers and the labels before."""
    steps = LloydSteps(x, sample_weight, algorithm, backend)
    return lambda centers, previous_labels: Pass.of(steps(centers, previous_labels))


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
    resumed: Progress | None = None,
    keep: Callable[[Progress], None] = lambda progress: None,
    begin: Callable[..., Callable[[Tensor, Tensor | None], Pass]] = plain_steps,
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
    resumed : Progress, optional
        Where to go on, instead of at ``centers``.
    keep : callable
        Given the progress after each iteration that is followed by a pass.
    begin, repair : callables
        What does the work of ``plain_steps`` and ``repair_empty``, where x is something else than a tensor.

    Notes
    -----
    An empty cluster is given the row farthest from its center. Ends within ``max_iter`` iterations also where
    rows repeat and clusters cannot be filled.
    """
    history: list[Record] = []
    labels: Tensor | None = None
    is_over = False
    steps = begin(x, sample_weight, algorithm, backend)
    if resumed is not None:
        centers, is_over, history = resumed.centers, resumed.is_over, list(resumed.history)
        labels = steps(resumed.before, None).step.labels
    while not is_over and len(history) < max_iter:
        step, unlabeled = steps(centers, labels)
        labels = step.labels
        updated = update(step.sums, step.counts, centers)
        inertia, n_changed, n_empty, n_unlabeled, shift = _on_host(step, unlabeled, centers, updated)
        if n_empty:
            repaired = repair(x, centers, labels, step.sums, step.counts, sample_weight=sample_weight)
            updated = update(*repaired, centers)
            shift = float(_sq_shift(centers, updated))
        history.append(
            {
                "iteration": len(history) + 1,
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
        is_over = stop or shift <= tol
        keep(Progress(centers, updated, list(history), is_over))
        centers = updated
    final = steps(centers, labels).step
    return Solution(centers, final.labels, float(final.inertia), history)


def _sq_shift(centers: Tensor, updated: Tensor) -> Tensor:
    return fixed_sum((updated - centers).double().square())


def _on_host(step: KMeansStep, n_unlabeled: Tensor, centers: Tensor, updated: Tensor) -> list[float]:
    """inertia, n_changed, empty clusters, rows without a label, squared shift: one transfer for all."""
    empty = (step.counts <= 0).sum()
    numbers = [step.inertia, step.n_changed, empty, n_unlabeled, _sq_shift(centers, updated)]
    return torch.stack([number.double() for number in numbers]).tolist()
