"""K-means a batch of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdc._input import give_back, read_count, read_points, read_sample_weight, read_seed
from fastdc.cluster._centers import CenterModel
from fastdc.kernels.kmeans import kmeans_step

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
    device, backend, check_finite, random_state
        As of :class:`KMeans`.

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
    Memory: beside X the labels and one batch.
    Determinism: the same seed gives the same centers for any number of threads.

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
    random_state: Any = None

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Find the centers from batches of distinct rows, in another order each pass.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : fitted estimator
        """
        batch_size, max_iter = read_count(self.batch_size, "batch_size"), read_count(self.max_iter, "max_iter")
        with torch.no_grad():
            x, weight, state = self._begin(X, sample_weight, reset=True)
            watch = _Watch(self.max_no_improvement)
            n_batches = -(-len(x) // batch_size)
            for step in range(max_iter * n_batches):
                if step % n_batches == 0:
                    order = torch.from_numpy(state.random.permutation(len(x))).to(x.device)
                rows = order[(step % n_batches) * batch_size :][:batch_size]
                inertia = state.learn(x[rows], None if weight is None else weight[rows], self)[1]
                if watch.is_over(inertia / len(rows), len(rows) / len(x)):
                    break
            found = kmeans_step(x, state.centers, sample_weight=weight, backend=self.backend)
            self._keep(state, found.labels, float(found.inertia), X)
            self.n_iter_ = -(-(step + 1) // n_batches)
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
            known = hasattr(self, "cluster_centers_")
            x, weight, state = self._begin(X, sample_weight, reset=not known)
            labels, inertia = state.learn(x, weight, self)
            self._keep(state, labels, inertia, X)
        return self

    def _begin(self, X: Any, sample_weight: Any, *, reset: bool) -> tuple[Tensor, Tensor | None, _State]:
        """Rows, weights, and the centers with what they remember; new ones with ``reset``."""
        n_clusters = read_count(self.n_clusters, "n_clusters")
        x = self._prepared(read_points(X, self, reset=reset, device=self.device, check_finite=self.check_finite))
        weight = read_sample_weight(sample_weight, x)
        if not reset:
            centers, counts = (torch.as_tensor(v, device=x.device) for v in (self.cluster_centers_, self.counts_))
            random = getattr(self, "_random", None)  # a loaded model has none
            if random is None:
                random = np.random.default_rng(read_seed(self.random_state))
            return x, weight, _State(centers, counts, self.n_steps_, random, getattr(self, "_rows_since", 0))
        read_count(n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        random = np.random.default_rng(read_seed(self.random_state))
        centers = self._best_start(x, weight, n_clusters, random)
        counts = torch.zeros(n_clusters, dtype=torch.float64, device=x.device)
        return x, weight, _State(centers, counts, 0, random, 0)

    def _best_start(self, x: Tensor, weight: Tensor | None, n_clusters: int, random: np.random.Generator) -> Tensor:
        size = min(len(x), max(INITIAL_BATCHES * self.batch_size, INITIAL_BATCHES * n_clusters))
        best: tuple[float, Tensor] | None = None
        n_runs = self._n_runs()
        for _ in range(n_runs):
            rows = torch.from_numpy(random.permutation(len(x))[:size]).to(x.device)
            part, part_weight = x[rows], None if weight is None else weight[rows]
            if part_weight is not None and not bool((part_weight > 0).any()):
                part, part_weight = x, weight
            centers = self._start(part, part_weight, n_clusters, random)
            inertia = 0.0
            if n_runs > 1:
                inertia = float(kmeans_step(part, centers, sample_weight=part_weight, backend=self.backend).inertia)
            if best is None or inertia < best[0]:
                best = inertia, centers
        assert best is not None, "there is at least one run"
        return best[1]

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
        total = self.counts + step.counts
        moved = (self.centers.double() * self.counts[:, None] + step.sums) / total.clamp(min=1e-300)[:, None]
        self.centers = torch.where((step.counts > 0)[:, None], moved, self.centers.double()).to(self.centers.dtype)
        self.counts = total
        self.n_steps += 1
        self.rows_since += len(x)
        if model.reassignment_ratio > 0 and self.rows_since > ROWS_BETWEEN_REASSIGNMENTS * len(self.centers):
            self.rows_since = 0
            self._begin_anew(x, weight, model.reassignment_ratio)
        return step.labels, float(step.inertia)

    def _begin_anew(self, x: Tensor, weight: Tensor | None, ratio: float) -> None:
        """Centers that got little become rows of the batch, at most half as many as it has."""
        few = self.counts < ratio * self.counts.max()
        usable = torch.arange(len(x)) if weight is None else (weight > 0).nonzero()[:, 0].cpu()
        lost = few.nonzero()[:, 0]
        lost = lost[self.counts[lost].argsort(stable=True)][: len(usable) // 2]
        if len(lost) == 0:
            return
        chosen = self.random.choice(usable.numpy(), len(lost), replace=False)
        keeps = torch.ones_like(few).index_fill(0, lost, False)
        self.centers = self.centers.index_copy(0, lost, x[torch.from_numpy(chosen).to(x.device)].to(self.centers.dtype))
        self.counts = self.counts.index_fill(0, lost, float(self.counts[keeps].min()))


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
