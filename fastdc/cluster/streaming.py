"""K-means over a row source: the same passes, a block of rows at a time.

Blocks are cut by the shape and dtype of the source alone, and what they add to sums is added in their order. So a
source gives the same bits however its rows are stored and read, for any number of threads; where it has but one
block, the bits of the array in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from fastdc._input import check_shape, choose_device, read_points, require_finite
from fastdc.cluster.lloyd import Pass, lloyd
from fastdc.data import Chunk, RowSource, TensorRows, iter_chunks
from fastdc.kernels.kmeans import KMeansStep, LloydSteps, nearest_center, repair_empty
from fastdc.kernels.kmeans.update import farthest_rows as farthest_of

BLOCK_BYTES = 1 << 26
MOST_ROWS = 1 << 18  # of a block; the fewer its features are, the more the kernel's own memory counts
SAMPLED_PER_CLUSTER = 16


class StreamedRows:
    """The rows of a source as k-means reads them.

    Parameters
    ----------
    source : RowSource
    device : torch.device, str or None
        Where to compute; None is where a source of a tensor has it, else the GPU if there is one.
    check_finite : bool
        Raise where an entry is NaN or infinite, in the first pass over the rows.
    """

    first = 0  # number that errors give the first row

    def __init__(self, source: RowSource, device: torch.device | str | None, *, check_finite: bool) -> None:
        self.source = source
        self.check_finite = check_finite
        self._is_checked = not check_finite
        self.shape = source.shape
        self.dtype = torch.float64 if source.dtype == np.float64 else torch.float32
        self.device = choose_device(device, source.tensor if isinstance(source, TensorRows) else None)
        self.block = block_of(source.shape[1], source.dtype, MOST_ROWS)

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self) -> closing[Generator[Chunk, None, None]]:
        """Chunks of a block each; leaving the ``with`` block ends the thread that reads them."""
        return closing(self._blocks())

    def _blocks(self) -> Generator[Chunk, None, None]:
        for chunk in iter_chunks(self.source, self.block, device=self.device):
            if not self._is_checked:
                require_finite(chunk.x, first_row=self.first + chunk.start)
            yield chunk
        self._is_checked = True

    def whole(self) -> Tensor:
        """All rows, where they are one block."""
        with self.blocks() as blocks:
            return next(blocks).x.to(self.dtype)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some rows, in the order of their numbers (m,), on the device."""
        return torch.from_numpy(self.source.take(rows.cpu().numpy())).to(self.device)

    def values_at(self, values: Tensor, rows: Tensor) -> Tensor:
        """Entries of a vector of a value a row."""
        return values[rows]

    def mean_variance(self) -> float:
        """Mean over the features of their variance; of the finite rows only."""
        with self.blocks() as blocks:
            return mean_variance_of(moments(x, self.check_finite) for _, x in blocks)

    def sample(self, n_clusters: int, sample_weight: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Rows for k-means++ and their weights: all that there are up to a block, or so many by chance."""
        size = max(self.block, SAMPLED_PER_CLUSTER * n_clusters)
        if len(self) <= size:
            rows = np.arange(len(self))
        else:
            candidates: Any = len(self) if sample_weight is None else np.flatnonzero(sample_weight.cpu().numpy())
            n_candidates = len(self) if sample_weight is None else len(candidates)
            if n_candidates < n_clusters:
                raise ValueError(
                    f"n_clusters={n_clusters} must be at most {n_candidates}, the samples of positive weight"
                )
            chosen = np.random.default_rng(seed).choice(candidates, min(size, n_candidates), replace=False)
            rows = np.sort(chosen)
        numbers = torch.from_numpy(rows).to(self.device)
        return self[numbers], None if sample_weight is None else sample_weight[numbers]

    def labels(self, centers: Tensor, backend: str | None) -> Tensor:
        """Nearest center of each row, int32."""
        return self.fill(new_labels(self), lambda x: nearest_center(x, centers, backend=backend).labels)

    def fill(self, out: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``function`` of the rows into ``out``, a block at a time."""
        with self.blocks() as blocks:
            for start, x in blocks:
                out[start : start + len(x)] = function(x)
        return out


def block_of(n_features: int, dtype: np.dtype, most_rows: int) -> int:
    """Rows of a block: a power of two, at least 64, of at most 64 MB where that leaves so many."""
    fitting = max(64, BLOCK_BYTES // (n_features * dtype.itemsize))
    return min(most_rows, 1 << (fitting.bit_length() - 1))


def moments(x: Tensor, all_finite: bool) -> Tensor:
    """Number of the finite rows, their mean, and the sum of squared differences from it: (1 + 2 d,), float64."""
    if not all_finite:
        x = x[x.isfinite().all(dim=1)]
    if len(x) == 0:
        return torch.zeros(1 + 2 * x.shape[1], dtype=torch.float64, device=x.device)
    variance, mean = (each.double() for each in torch.var_mean(x, dim=0, correction=0))
    return torch.cat([mean.new_tensor([len(x)]), mean, variance * len(x)])


def mean_variance_of(blocks: Iterable[Tensor]) -> float:
    """Mean over the features of the variance of all rows, from the moments of each block."""
    count: Any = 0
    mean: Any = 0
    spread: Any = 0
    for block in blocks:
        rows, apart = block[0], block[1 : 1 + len(block) // 2] - mean
        count = count + rows
        share = rows / count.clamp(min=1)
        mean = mean + apart * share
        spread = spread + (block[1 + len(block) // 2 :] + apart.square() * (rows * (1 - share)))
    return float((spread / count.clamp(min=1)).mean())


def read_rows(X: Any, estimator: Any, *, reset: bool = False, min_samples: int = 1) -> Any:
    """What an estimator computes on: a tensor of the rows of ``X``, or those of a row source, streamed."""
    if not isinstance(X, RowSource):
        options = {"reset": reset, "device": estimator.device, "min_samples": min_samples}
        return read_points(X, estimator, check_finite=estimator.check_finite, **options)
    if min_samples > 1:
        check_shape(X.shape, min_samples, estimator)
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    return StreamedRows(X, estimator.device, check_finite=estimator.check_finite)


def streamed_step(
    x: StreamedRows,
    centers: Tensor,
    *,
    sample_weight: Tensor | None = None,
    previous_labels: Tensor | None = None,
    backend: str | None = None,
) -> KMeansStep:
    """``kmeans_step`` a block at a time, float64 sums added in the order of the blocks; labels are int32."""
    return _added_up(x, LloydSteps(x, None, "lloyd", backend), centers, sample_weight, previous_labels)


def _added_up(
    x: StreamedRows, steps: LloydSteps, centers: Tensor, sample_weight: Tensor | None, previous_labels: Tensor | None
) -> KMeansStep:
    labels = new_labels(x)
    total: list[Tensor] = []
    with block_steps(x, steps, centers, labels, sample_weight, previous_labels) as parts:
        for part in parts:
            total = [a + b for a, b in zip(total, part[1:])] if total else list(part[1:])
    found = KMeansStep(labels, *total)
    steps.end(centers, found.n_changed)
    return found


@contextmanager
def block_steps(
    x: StreamedRows,
    steps: LloydSteps,
    centers: Tensor,
    labels: Tensor,
    sample_weight: Tensor | None,
    previous_labels: Tensor | None,
) -> Iterator[Iterator[KMeansStep]]:
    """The steps of each block in turn; ``labels`` (n,) take in theirs. Reading ends with ``with``."""
    steps.begin(centers, has_labels=previous_labels is not None)
    with x.blocks() as blocks:

        def step(block: Chunk) -> KMeansStep:
            start, rows = block
            here = slice(start, start + len(rows))
            weights = None if sample_weight is None else sample_weight[here]
            previous = None if previous_labels is None else previous_labels[here].long()
            part = steps.block(start, rows, centers, weights, previous)
            labels[here] = part.labels
            return part

        yield map(step, blocks)


def farthest_rows(
    x: StreamedRows, centers: Tensor, labels: Tensor, counts: Tensor, sample_weight: Tensor | None, most: int
) -> tuple[Tensor, Tensor]:
    """Squared distances and numbers (m,) of the rows farthest from their centers, of those that may leave them."""
    far, numbers = counts.new_empty(0), torch.empty(0, dtype=torch.int64, device=x.device)
    with x.blocks() as blocks:
        for start, rows in blocks:
            here = slice(start, start + len(rows))
            weights = None if sample_weight is None else sample_weight[here]
            found, places = farthest_of(rows, centers, labels[here], counts, weights, most)
            far, numbers = torch.cat([far, found]), torch.cat([numbers, places + start])
            order = far.sort(descending=True, stable=True).indices[:most]  # of equals the lowest row
            far, numbers = far[order], numbers[order]
    return far, numbers


def streamed_repair(
    x: StreamedRows,
    centers: Tensor,
    labels: Tensor,
    sums: Tensor,
    counts: Tensor,
    *,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``repair_empty`` of the only rows that can move: as many of the farthest as clusters are empty."""
    numbers = farthest_rows(x, centers, labels, counts, sample_weight, int((counts <= 0).sum()))[1]
    weights_of = None if sample_weight is None else sample_weight[numbers]
    return repair_empty(x[numbers], centers, labels[numbers].long(), sums, counts, sample_weight=weights_of)


def streamed_steps(
    x: StreamedRows, sample_weight: Tensor | None, algorithm: str, backend: str | None
) -> Callable[[Tensor, Tensor | None], Pass]:
    """The passes of a run, given centers and the labels before."""
    steps = LloydSteps(x, None, algorithm, backend)
    return lambda centers, previous_labels: Pass.of(_added_up(x, steps, centers, sample_weight, previous_labels))


lloyd_rows = partial(lloyd, begin=streamed_steps, repair=streamed_repair)
"""Lloyd's algorithm over :class:`StreamedRows`."""


def has_rows(labels: Tensor, n_clusters: int) -> Tensor:
    """(n_clusters,) whether a label is that of any row; those below 0 are none."""
    return torch.bincount(labels + 1, minlength=n_clusters + 1)[1:] > 0


def new_labels(x: StreamedRows) -> Tensor:
    """Room for a label a row of the source; where there is none a MemoryError of NumPy's, which says how many bytes."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.empty(len(x.source), np.int32))
    return torch.empty(len(x.source), dtype=torch.int32, device=x.device)
