"""K-means a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdc._input import give_back, read_count, read_points, read_sample_weight, read_seed
from fastdc.cluster._centers import CenterModel
from fastdc.cluster.batches import Batch, BatchSums, batches, shared_sums
from fastdc.cluster.sharded import ShardedRows, shard_rows
from fastdc.cluster.sharded_lloyd import sharded_steps
from fastdc.cluster.streaming import StreamedRows, streamed_step
from fastdc.distributed import Ranks
from fastdc.kernels.kmeans import KMeansStep, kmeans_step

AGREED = ("n_clusters", "init", "n_init", "max_iter", "batch_size", "max_no_improvement", "reassignment_ratio")
INITIAL_BATCHES = 3  # of rows, at least, that the first centers are chosen from
ROWS_BETWEEN_REASSIGNMENTS = 10  # for each cluster


@dataclass(eq=False, repr=False, kw_only=True)
class MiniBatchKMeans(CenterModel):
    """K-means a batch of rows at a time, with scikit-learn's update: each center is the mean of all rows it ever got.

    Parameters
    ----------
    n_clusters : int
    init, n_init
        As of :class:`KMeans`, on a sample of ``max(3 * batch_size, 3 * n_clusters)`` rows; of several starts the one
        of least inertia there counts.
    max_iter : int
        Most passes over the rows.
    batch_size : int
    max_no_improvement : int or None
        ``fit`` ends when the smoothed inertia of so many batches in a row was no smaller; None goes on.
    reassignment_ratio : float
        Centers that got less than this share of what the largest got begin anew at rows of a batch, now and then.
    device, backend, check_finite, deterministic, group, random_state
        As of :class:`KMeans`. ``partial_fit`` is of one process.

    Attributes
    ----------
    cluster_centers_ : array of shape (n_clusters, n_features)
    labels_ : array of shape (n_samples,), int32
        After ``fit`` the nearest center of each row, after ``partial_fit`` of each row of the batch, before its update.
    inertia_ : float
        Weighted sum of squared distances that belongs to these labels.
    counts_ : array of shape (n_clusters,), float64
        Sum of the weights of the rows that each center got.
    n_steps_ : int
        Batches.
    n_iter_ : int
        Passes over the rows that ``fit`` began.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Memory: beside X the labels, one batch, and an order of all rows, 8 bytes each. So too of a row source that can be
    seen where it lies, such as a mapped file. Others are read by windows of 64 MB, each 64 runs of rows from all over
    the source, which are shuffled among themselves; so are all with ``deterministic`` or ``group``, without an order of
    all rows, and batches do not reach over a window's end. Rows sorted by cluster should be shuffled first (3 to 6 %
    more inertia in a trial).
    Determinism: the same seed gives the same centers for any number of threads. With ``deterministic`` and ``group``
    rows are added as whole numbers, with one all_reduce a batch.

    References
    ----------
    Sculley. Web-scale k-means clustering. WWW 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import MiniBatchKMeans
    >>> X = np.array([[1.0, 2.0], [1.0, 4.0], [10.0, 2.0], [10.0, 4.0]])
    >>> model = MiniBatchKMeans(2, random_state=0).fit(X)
    >>> bool(model.labels_[0] == model.labels_[1] != model.labels_[2] == model.labels_[3])
    True
    """

    n_clusters: int = field(default=8, kw_only=False)
    init: Any = "k-means++"
    n_init: Any = "auto"
    max_iter: int = 100
    batch_size: int = 1024
    max_no_improvement: int | None = 10
    reassignment_ratio: float = 0.01
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True
    deterministic: bool = False
    group: Any = None
    random_state: Any = None

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Find the centers from batches of distinct rows, in another order each pass.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
        y : ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data.
        RuntimeError
            If another process of the group failed or ended.
        """
        before = dict(vars(self))
        try:
            with torch.no_grad():
                self._fit(X, sample_weight)
        except BaseException:
            self.__dict__ = before
            raise
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Update the centers by one batch; the first one chooses them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least n_clusters rows in the first batch.
        y : ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : fitted estimator
        """
        with torch.no_grad():
            if self.group is not None:
                raise ValueError("partial_fit is of one process: use fit, or set group=None")
            known = hasattr(self, "cluster_centers_")
            x = read_points(X, self, reset=not known, device=self.device, check_finite=self.check_finite)
            weight = read_sample_weight(sample_weight, x)
            state = self._known_state(x.device) if known else self._first_state(x, weight)
            labels, inertia = state.learn(x, weight, self)
            self._keep(state, labels, inertia, X)
        return self

    def _fit(self, X: Any, sample_weight: Any) -> None:
        batch_size, max_iter = read_count(self.batch_size, "batch_size"), read_count(self.max_iter, "max_iter")
        read_count(self.n_clusters, "n_clusters")
        x, weight = self._intake(X, sample_weight)
        state = self._first_state(x, weight)
        watch = _Watch(self.max_no_improvement)
        with closing(batches(x, batch_size, max_iter, state.random)) as coming:
            for batch, inertia in self._steps(x, weight, state, coming):
                n_rows = len(batch.numbers)
                if watch.is_over(inertia / n_rows, n_rows / len(x)):
                    break
        labels, inertia = self._labels(x, weight, state.centers)
        self._keep(state, labels, inertia, X)
        self.n_iter_ = batch.epoch

    def _intake(self, X: Any, sample_weight: Any) -> tuple[Tensor | StreamedRows, Tensor | None]:
        """Rows to fit on, and their weights; those of a source that is one block as a tensor."""
        if self.deterministic or self.group is not None:
            shared, weight, *_ = shard_rows(X, sample_weight, self, AGREED, has_checkpoint=False)
            shared.largest()  # the pass that checks all rows
            return shared, weight
        x = self._rows(X, reset=True)
        if isinstance(x, StreamedRows) and len(x) <= x.block:
            x = x.whole()
        return x, read_sample_weight(sample_weight, x)

    def _known_state(self, device: torch.device) -> _State:
        centers, counts = (torch.as_tensor(v, device=device) for v in (self.cluster_centers_, self.counts_))
        random = getattr(self, "_random", None)  # a loaded model has none
        if random is None:
            random = np.random.default_rng(read_seed(self.random_state))
        return _State(centers, counts, self.n_steps_, random, getattr(self, "_rows_since", 0))

    def _first_state(self, x: Tensor | StreamedRows, weight: Tensor | None) -> _State:
        n_clusters = read_count(self.n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        ranks = x.ranks if isinstance(x, ShardedRows) else Ranks()
        seed = str(read_seed(self.random_state)).encode()
        random = np.random.default_rng(int(ranks.from_first(lambda: seed)))
        centers = ranks.first(self._best_start(x, weight, n_clusters, random))
        counts = torch.zeros(n_clusters, dtype=torch.float64, device=x.device)
        return _State(centers, counts, 0, random, 0)

    def _best_start(
        self, x: Tensor | StreamedRows, weight: Tensor | None, n_clusters: int, random: np.random.Generator
    ) -> Tensor:
        size = min(len(x), max(INITIAL_BATCHES * self.batch_size, INITIAL_BATCHES * n_clusters))
        best: tuple[float, Tensor] | None = None
        n_runs = self._n_runs()
        for _ in range(n_runs):
            part, part_weight = _sample(x, weight, size, random)
            centers = self._start(part, part_weight, n_clusters, random)
            inertia = 0.0
            if n_runs > 1:
                inertia = float(kmeans_step(part, centers, sample_weight=part_weight, backend=self.backend).inertia)
            if best is None or inertia < best[0]:
                best = inertia, centers
        assert best is not None, "there is at least one run"
        return best[1]

    def _steps(
        self, x: Tensor | StreamedRows, weight: Tensor | None, state: _State, coming: Iterator[Batch]
    ) -> Iterator[tuple[Batch, float]]:
        """Each batch and its inertia, when the centers have learnt from it."""
        if not isinstance(x, ShardedRows):
            for batch in coming:
                weights = None if weight is None else weight[batch.own.to(weight.device)]
                yield batch, state.learn(batch.x, weights, self)[1]
            return
        heaviest = x.heaviest(weight)
        while (found := shared_sums(x, coming, weight, heaviest, state.centers, self.backend)) is not None:
            yield found[0], state.learn_shared(x, weight, *found, self)

    def _labels(self, x: Tensor | StreamedRows, weight: Tensor | None, centers: Tensor) -> tuple[Tensor, float]:
        """Nearest center of each row that this process holds, and the inertia of all."""
        if isinstance(x, ShardedRows):
            found = sharded_steps(x, weight, "lloyd", self.backend)(centers, None).step
            return x.of_own_rows(found.labels), float(found.inertia)
        step: Callable[..., KMeansStep] = streamed_step if isinstance(x, StreamedRows) else kmeans_step
        found = step(x, centers, sample_weight=weight, backend=self.backend)
        return found.labels, float(found.inertia)

    def _keep(self, state: _State, labels: Tensor, inertia: float, X: Any) -> None:
        self.cluster_centers_ = give_back(state.centers, X)
        self.counts_ = give_back(state.counts, X)
        self.labels_ = give_back(labels.to(torch.int32), X)
        self.inertia_, self.n_steps_ = inertia, state.n_steps
        self._random, self._rows_since = state.random, state.rows_since


class _State:
    """Centers, and the weight of the rows that each got."""

    def __init__(
        self, centers: Tensor, counts: Tensor, n_steps: int, random: np.random.Generator, rows_since: int
    ) -> None:
        self.centers, self.counts, self.n_steps = centers, counts, n_steps
        self.random, self.rows_since = random, rows_since  # rows since centers last began anew

    def learn(self, x: Tensor, weight: Tensor | None, model: MiniBatchKMeans) -> tuple[Tensor, float]:
        """Update by one batch; its labels and inertia before that."""
        step = kmeans_step(x, self.centers, sample_weight=weight, backend=model.backend)
        self.move(step.sums, step.counts, len(x))
        self.begin_anew(len(x), lambda: weight, lambda places: x[places.to(x.device)], model.reassignment_ratio)
        return step.labels, float(step.inertia)

    def learn_shared(
        self, x: ShardedRows, weight: Tensor | None, batch: Batch, found: BatchSums, model: MiniBatchKMeans
    ) -> float:
        """Update by the sums of a batch over all ranks; its inertia before that."""
        self.move(found.sums, found.counts, len(batch.numbers))
        self.begin_anew(
            len(batch.numbers),
            lambda: None if weight is None else x.values_at(weight, batch.numbers),
            lambda places: x[batch.numbers[places]],
            model.reassignment_ratio,
        )
        return found.inertia

    def move(self, sums: Tensor, counts: Tensor, n_rows: int) -> None:
        """Each center becomes the mean of all that it ever got."""
        total = self.counts + counts
        moved = (self.centers.double() * self.counts[:, None] + sums) / total.clamp(min=1e-300)[:, None]
        self.centers = torch.where((counts > 0)[:, None], moved, self.centers.double()).to(self.centers.dtype)
        self.counts = total
        self.n_steps += 1
        self.rows_since += n_rows

    def begin_anew(
        self,
        n_rows: int,
        weight_of: Callable[[], Tensor | None],
        rows_at: Callable[[Tensor], Tensor],
        ratio: float,
    ) -> None:
        """Now and then centers that got little become rows of the batch, at most half as many as it has."""
        if ratio <= 0 or self.rows_since <= ROWS_BETWEEN_REASSIGNMENTS * len(self.centers):
            return
        self.rows_since = 0
        few = self.counts < ratio * self.counts.max()
        lost = few.nonzero()[:, 0]
        if len(lost) == 0:
            return
        weight = weight_of()
        usable = torch.arange(n_rows) if weight is None else (weight > 0).nonzero()[:, 0].cpu()
        lost = lost[self.counts[lost].argsort(stable=True)][: len(usable) // 2]
        if len(lost) == 0:
            return
        chosen = torch.from_numpy(self.random.choice(usable.numpy(), len(lost), replace=False))
        keeps = torch.ones_like(few).index_fill(0, lost, False)
        self.centers = self.centers.index_copy(0, lost, rows_at(chosen).to(self.centers))
        self.counts = self.counts.index_fill(0, lost, float(self.counts[keeps].min()))


def _sample(
    x: Tensor | StreamedRows, weight: Tensor | None, size: int, random: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Rows by chance and their weights, not all of which are 0."""
    numbers = torch.from_numpy(random.choice(len(x), size, replace=False)).to(x.device)
    if weight is None:
        return x[numbers], None
    weights = x.values_at(weight, numbers) if isinstance(x, ShardedRows) else weight[numbers]
    if bool((weights > 0).any()):
        return x[numbers], weights
    if isinstance(x, ShardedRows):
        numbers = x.draw(size, (weight > 0).double(), int(random.integers(2**31 - 1)), least=1)
        return x[numbers], x.values_at(weight, numbers)
    heavy = (weight > 0).nonzero()[:, 0]
    numbers = heavy[torch.from_numpy(random.permutation(len(heavy))[:size]).to(heavy.device)]
    return x[numbers], weight[numbers]


class _Watch:
    """Whether the inertia of batches, smoothed over about a pass, goes on falling."""

    def __init__(self, patience: int | None) -> None:
        self.patience, self.smoothed, self.least, self.waited, self.seen = patience, 0.0, np.inf, 0, 0

    def is_over(self, inertia: float, share: float) -> bool:
        """Given a batch's inertia a row, and its share of all rows."""
        self.seen += 1
        if self.seen == 1:
            return False  # from the very first centers
        alpha = min(1.0, 2.0 * share)
        self.smoothed = inertia if self.seen == 2 else self.smoothed * (1.0 - alpha) + inertia * alpha
        self.waited = 0 if self.smoothed < self.least else self.waited + 1
        self.least = min(self.least, self.smoothed)
        return self.patience is not None and self.waited >= self.patience
