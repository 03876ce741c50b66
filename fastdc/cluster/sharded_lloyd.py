"""Lloyd's algorithm over rows that processes share: what blocks add to sums is added as whole numbers.

So sums are the same bits whoever works on a block: one all_reduce an iteration (``exact.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.cluster.exact import ExactSum, exponent_of, sum_over_ranks
from fastdc.cluster.lloyd import Pass, lloyd
from fastdc.cluster.sharded import ShardedRows
from fastdc.cluster.streaming import block_steps, farthest_rows, new_labels
from fastdc.kernels.kmeans import KMeansStep, LloydSteps, repair_empty


def sharded_steps(
    x: ShardedRows, sample_weight: Tensor | None, algorithm: str, backend: str | None
) -> Callable[[Tensor, Tensor | None], Pass]:
    """The passes of a run, given centers and the labels before; no bounds are kept, whatever the algorithm."""
    of_all_rows = exponent_of(len(x)) + exponent_of(x.heaviest(sample_weight))
    largest = x.largest()
    steps = LloydSteps(x, None, "lloyd", backend)

    def step(centers: Tensor, previous_labels: Tensor | None) -> Pass:
        of_inertia = exponent_of(farthest(largest, centers)) + 1 + of_all_rows
        of_scalars = [of_inertia, exponent_of(len(x)), exponent_of(len(x))]
        totals = [
            ExactSum(tuple(centers.shape), exponent_of(largest) + of_all_rows, x.device),
            ExactSum((3 + len(centers),), np.array(of_scalars + [of_all_rows] * len(centers)), x.device),
        ]
        labels, error = torch.empty(0, dtype=torch.int32), None
        try:
            labels = new_labels(x)
            with block_steps(x, steps, centers, labels, sample_weight, previous_labels) as parts:
                for part in parts:
                    scalars = [part.inertia, part.n_changed, (part.labels < 0).sum()]
                    totals[0].add(part.sums)
                    totals[1].add(torch.cat([torch.stack([scalar.double() for scalar in scalars]), part.counts]))
        except Exception as caught:  # noqa: BLE001 - raised on all ranks
            error = caught
        sums, numbers = sum_over_ranks(totals, x.ranks, error)
        inertia, n_changed, n_unlabeled = numbers[:3]
        return Pass(KMeansStep(labels, sums, numbers[3:], inertia, n_changed.long()), n_unlabeled)

    return step


def farthest(largest: NDArray, centers: Tensor) -> float:
    """A bound of the squared distance of a row to a center, from the ``largest`` magnitude of each feature."""
    with np.errstate(over="ignore"):
        reach = np.square(largest + centers.abs().amax(dim=0).double().cpu().numpy()).sum()
    return float(min(reach, np.finfo(np.float64).max))


def sharded_repair(
    x: ShardedRows,
    centers: Tensor,
    labels: Tensor,
    sums: Tensor,
    counts: Tensor,
    *,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``repair_empty`` of the only rows that can move: as many of the farthest, of all ranks, as clusters are empty."""
    n_empty = int((counts <= 0).sum())
    far, numbers, error = counts.new_empty(0), torch.empty(0, dtype=torch.int64), None
    try:
        far, numbers = farthest_rows(x, centers, labels, counts, sample_weight, n_empty)
    except Exception as caught:  # noqa: BLE001 - raised on all ranks
        error = caught
    x.ranks.check(error)
    order = x.ranks.gather(far).sort(descending=True, stable=True).indices[:n_empty]
    numbers = x.ranks.gather(numbers + x.first)[order]
    own = x.values_at(labels.long(), numbers)
    weights = None if sample_weight is None else x.values_at(sample_weight, numbers)
    return repair_empty(x[numbers], centers, own, sums, counts, sample_weight=weights)


lloyd_shards = partial(lloyd, begin=sharded_steps, repair=sharded_repair)
"""Lloyd's algorithm over :class:`ShardedRows`."""
