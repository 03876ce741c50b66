"""Rows that processes share, as k-means reads them: each rank works on whole blocks, the same for any number of ranks.

Rows that are drawn are drawn by their numbers in the whole, and what is found out about all rows is put together in
their order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data
from torch import Tensor

from fastdc._input import read_points, read_sample_weight
from fastdc.cluster.blocks import Blocks
from fastdc.cluster.streaming import (
    MOST_ROWS,
    SAMPLED_PER_CLUSTER,
    StreamedRows,
    block_of,
    has_rows,
    mean_variance_of,
    moments,
)
from fastdc.data import ArrayRows, ConcatenatedRows, RowSource, TensorRows
from fastdc.distributed import PartRows, Ranks
from fastdc.kernels._group import Shares

ROWS_CPU, ROWS_GPU = 1 << 15, 1 << 17  # of a block


class ShardedRows(StreamedRows):
    """The rows that a rank works on: whole blocks, the last of them completed with rows of the ranks that follow.

    Labels and weights are those of these rows, in their order; ``of_own_rows`` makes labels those of the rows that
    the rank holds. All ranks call each method, in the same order.

    Parameters
    ----------
    own : RowSource
        The rows that this rank holds; there may be none.
    ranks : Ranks
    counts : list of int
        Rows of each rank.
    device, check_finite
        As of :class:`StreamedRows`. Errors number rows in the whole.
    """

    def __init__(
        self, own: RowSource, ranks: Ranks, counts: list[int], device: torch.device, *, check_finite: bool
    ) -> None:
        rows = ROWS_CPU if device.type == "cpu" else ROWS_GPU
        self.blocks_of = Blocks(Shares(counts, ranks.rank), block_of(own.shape[1], own.dtype, rows))
        self.ranks, self.n_kept = ranks, len(own) - self.blocks_of.lead
        super().__init__(self._worked(own), device, check_finite=check_finite)
        self.block, self.first = self.blocks_of.size, self.blocks_of.first
        self.shape = sum(counts), own.shape[1]
        self._found: tuple[float, NDArray] | None = None

    def _worked(self, own: RowSource) -> RowSource:
        """Own rows without the leading ones, and one array for a last block that goes on at other ranks."""
        lead, end = self.blocks_of.lead, len(own)
        whole = end - self.n_kept % self.blocks_of.size
        lent = last = torch.empty(0, own.shape[1])
        error = None
        try:
            lent, last = _copied(own, 0, lead), _copied(own, whole, end)
        except Exception as caught:  # noqa: BLE001 - raised on all ranks
            error = caught
        self.ranks.check(error)
        borrowed = self.blocks_of.lend(lent, self.ranks)
        if len(borrowed) == 0:
            return PartRows(own, lead, end)
        parts = [PartRows(own, lead, whole), TensorRows(torch.cat([last, borrowed]))]
        return ConcatenatedRows([part for part in parts if len(part)])

    def of_all(self, own: Tensor | None) -> Tensor | None:
        """Values of the rows worked on from those of the rows held."""
        if own is None:
            return None
        lead = self.blocks_of.lead
        return torch.cat([own[lead:], self.blocks_of.lend(own[:lead], self.ranks)])

    def of_own_rows(self, values: Tensor) -> Tensor:
        """The reverse."""
        return torch.cat([self.blocks_of.give_back(values[self.n_kept :], self.ranks), values[: self.n_kept]])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some rows by their numbers in the whole (m,), on all ranks."""
        return self._collect(rows, lambda here: torch.from_numpy(self.source.take(here.numpy())))

    def values_at(self, values: Tensor, rows: Tensor) -> Tensor:
        """Entries of a vector of a value for each row worked on, on all ranks."""
        return self._collect(rows, lambda here: values[here.to(values.device)])

    def _collect(self, numbers: Tensor, take: Callable[[Tensor], Tensor]) -> Tensor:
        """Values of some rows by their numbers in the whole, on all ranks; ``take`` gives those of rows worked on."""
        numbers = numbers.cpu()
        order = numbers.argsort(stable=True)
        wanted = numbers[order] - self.first
        taken, error = torch.empty(0), None
        try:
            taken = take(wanted[(wanted >= 0) & (wanted < len(self.source))]).cpu()
        except Exception as caught:  # noqa: BLE001 - raised on all ranks
            error = caught
        self.ranks.check(error)
        gathered = self.ranks.gather(taken)
        return torch.empty_like(gathered).index_copy_(0, order, gathered).to(self.device)

    def mean_variance(self) -> float:
        """Mean over the features of their variance; of the finite rows only."""
        return self._survey()[0]

    def largest(self) -> NDArray:
        """Largest finite magnitude of each feature (n_features,), float64."""
        return self._survey()[1]

    def heaviest(self, sample_weight: Tensor | None) -> float:
        """Largest weight of a row."""
        if sample_weight is None:
            return 1.0
        own = torch.cat([sample_weight.double().cpu(), torch.zeros(1, dtype=torch.float64)]).max()
        return float(self.ranks.gather(own.reshape(1)).max())

    def _survey(self) -> tuple[float, NDArray]:
        """One pass over the rows, the first: mean variance, and largest magnitudes."""
        if self._found is None:
            parts: list[Tensor] = []
            error = None
            try:
                with self.blocks() as blocks:
                    for _, x in blocks:
                        largest = x.abs() if self.check_finite else torch.where(x.isfinite(), x.abs(), 0.0)
                        parts.append(torch.cat([moments(x, self.check_finite), largest.amax(dim=0).double()]).cpu())
            except Exception as caught:  # noqa: BLE001 - raised on all ranks
                error = caught
            self.ranks.check(error)
            told = self.ranks.gather(torch.stack([*parts, torch.zeros(1 + 3 * self.shape[1], dtype=torch.float64)]))
            d = self.shape[1]
            self._found = mean_variance_of(told[:, : 1 + 2 * d]), told[:, 1 + 2 * d :].amax(dim=0).numpy()
        return self._found

    def draw(self, n_rows: int, weight: Tensor | None, seed: int, least: int) -> Tensor:
        """Numbers of distinct rows of positive weight, drawn in proportion to it, on all ranks.

        Each row has a waiting time of its own, by its block and place there; those that come first are drawn. Fewer
        than ``least`` are an error.
        """
        times = np.empty(len(self.source))
        for start in range(0, len(times), self.block):
            here = times[start : start + self.block]
            keyed = np.random.Philox(key=[seed, (self.first + start) // self.block])
            here[:] = np.random.Generator(keyed).standard_exponential(len(here))
        numbers = np.arange(len(times))
        if weight is not None:
            weights = weight.double().cpu().numpy()
            numbers = np.flatnonzero(weights)
            times = times[numbers] / weights[numbers]
        if len(numbers) > n_rows:
            soonest = np.sort(np.argpartition(times, n_rows)[:n_rows])
            numbers, times = numbers[soonest], times[soonest]
        told = self.ranks.gather(torch.from_numpy(numbers + self.first))
        order = self.ranks.gather(torch.from_numpy(times)).argsort(stable=True)
        if len(order) < least:
            raise ValueError(f"n_clusters={least} must be at most {len(order)}, the samples of positive weight")
        return told[order[:n_rows]]

    def sample(self, n_clusters: int, sample_weight: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Rows for k-means++ and their weights, on all ranks: all up to 64 MB of them, or so many by chance."""
        size = max(block_of(self.shape[1], self.source.dtype, MOST_ROWS), SAMPLED_PER_CLUSTER * n_clusters)
        numbers = torch.arange(len(self))
        if len(self) > size:
            usable = None if sample_weight is None else (sample_weight > 0).double()
            numbers = self.draw(size, usable, seed, least=n_clusters).sort().values
        if sample_weight is None:
            return self[numbers], None
        return self[numbers], self.values_at(sample_weight, numbers)

    def has_rows(self, labels: Tensor, n_clusters: int) -> Tensor:
        """(n_clusters,) whether a label is that of any row of any rank."""
        return self.ranks.all_sum(has_rows(labels, n_clusters).long().cpu()) > 0


class Sharded(NamedTuple):
    """Rows that processes share, their weights, the rows held if in memory, and whether a rank has callbacks."""

    x: ShardedRows
    weight: Tensor | None
    held: Tensor | None
    has_callbacks: bool


def shard_rows(X: Any, sample_weight: Any, estimator: Any, agreed: Sequence[str], has_checkpoint: bool) -> Sharded:
    """What an estimator fits on: ``X`` and ``sample_weight`` are those of this rank's rows, of which there may be none.

    ``agreed`` names parameters that must be the same on all ranks.

    Raises
    ------
    ValueError, TypeError
        For bad data, and where ranks disagree: on all of them.
    RuntimeError
        Where another rank failed.
    """
    ranks = Ranks(estimator.group)
    own: StreamedRows | None = None
    held: Tensor | None = None
    weight: Tensor | None = None
    error: Exception | None = None
    told = [0] * 6
    try:
        source, held = _source_of(X, estimator)
        own = StreamedRows(source, estimator.device, check_finite=estimator.check_finite)
        weight = read_sample_weight(sample_weight, own, may_be_zero=True)
        digest = zlib.crc32(_parameters_of(estimator, agreed, has_checkpoint).encode())
        is_double = own.dtype == torch.float64
        has_callbacks = bool(getattr(estimator, "callbacks", None))
        told = [len(own), own.shape[1], is_double, weight is not None, digest, has_callbacks]
    except Exception as caught:  # noqa: BLE001 - raised on all ranks
        error = caught
    counts, widths, doubles, weighted, digests, callbacks = zip(*ranks.gather_numbers(told, error))
    _agree("the number of features of X", widths, counts)
    _agree("the dtype of X", ["float64" if double else "float32" for double in doubles], counts)
    _agree("sample_weight", ["given" if given else "None" for given in weighted])
    _agree(f"a digest of {', '.join(agreed)} and whether there is a checkpoint", digests)
    assert own is not None, "gather_numbers raises where there was an error"
    if sum(counts) == 0:
        raise ValueError("X of all ranks has 0 samples; at least 1 is required")
    source = own.source
    if len(own) == 0:  # the dtype of no rows says nothing
        dtype = np.result_type(np.float32, *(np.float64 for count, double in zip(counts, doubles) if count and double))
        source = _no_rows(source.shape[1], dtype)
        weight = None if weight is None else torch.from_numpy(np.empty(0, dtype)).to(own.device)
    x = ShardedRows(source, ranks, list(counts), own.device, check_finite=estimator.check_finite)
    weight = x.of_all(weight)
    if weight is not None and not ranks.any(lambda: bool(weight.any())):
        raise ValueError("Sample weights must contain at least one non-zero number: all are zero.")
    return Sharded(x, weight, held, any(callbacks))


def _source_of(X: Any, estimator: Any) -> tuple[RowSource, Tensor | None]:
    """``X`` as a row source and, if it is in memory, as a tensor; checked as far as that needs no pass."""
    prepared = getattr(estimator, "_prepared", lambda rows: rows)
    if isinstance(X, RowSource):
        validate_data(estimator, prepared(X), reset=True, skip_check_array=True)
        return X, None
    x = prepared(read_points(X, estimator, reset=True, device=estimator.device, check_finite=False, min_samples=0))
    return TensorRows(x) if len(x) else _no_rows(x.shape[1], np.dtype(str(x.dtype).removeprefix("torch."))), x


def _no_rows(n_features: int, dtype: np.dtype) -> RowSource:
    return PartRows(ArrayRows(np.zeros((1, n_features), dtype)), 0, 0)


def _copied(source: RowSource, start: int, stop: int) -> Tensor:
    if start == stop:
        return torch.from_numpy(np.empty((0, source.shape[1]), source.dtype))
    return torch.from_numpy(source.rows(start, stop).copy())


def _parameters_of(estimator: Any, agreed: Sequence[str], *others: Any) -> str:
    """Parameters that ranks must agree on, as text; of arrays the shape."""
    values = [getattr(estimator, name) for name in agreed]
    plain = [v if v is None or isinstance(v, (str, int, float, np.generic)) else np.shape(v) for v in values]
    return repr((*plain, *others))


def _agree(what: str, values: Sequence[Any], counts: Sequence[int] | None = None) -> None:
    """Raise on all ranks where two differ; of those that have rows, given ``counts``."""
    ranks = [rank for rank in range(len(values)) if counts is None or counts[rank]]
    for rank in ranks:
        if values[rank] != values[ranks[0]]:
            raise ValueError(
                f"{what} is {values[rank]} on rank {rank} and {values[ranks[0]]} on rank {ranks[0]}; all must agree"
            )
