"""K-means as a scikit-learn estimator over arrays and tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from tqdm import tqdm

from fastdc._input import give_back, read_count, read_sample_weight, read_seed
from fastdc.cluster._centers import CenterModel
from fastdc.cluster._whole import files_for_sources
from fastdc.cluster.checkpoints import Checkpoint, identity_of, open_checkpoint, told
from fastdc.cluster.lloyd import Progress, Record, Solution, lloyd
from fastdc.cluster.sharded import ShardedRows, shard_rows
from fastdc.cluster.sharded_lloyd import lloyd_shards
from fastdc.cluster.streaming import StreamedRows, has_rows, lloyd_rows
from fastdc.distributed import Ranks
from fastdc.kernels.kmeans import center_update, nearest_center
from fastdc.kernels.kmeans.bounds import ALGORITHMS

AGREED = ("n_clusters", "init", "n_init", "max_iter", "tol")  # parameters of all ranks


@dataclass(eq=False, repr=False, kw_only=True)
class KMeans(CenterModel):
    """K-means by Lloyd's algorithm, with scikit-learn's parameters and results.

    Parameters
    ----------
    n_clusters : int
        At most the number of samples.
    init : {"k-means++", "k-means||", "random"} or array-like of shape (n_clusters, n_features)
        Greedy k-means++, its scalable form for thousands of clusters, distinct rows by chance, or the centers to
        start from.
    n_init : "auto" or int
        Runs from different starts, of which the one of least inertia counts. "auto" is 1, and 10 with
        init="random". Given centers run once.
    max_iter : int
        Most iterations of a run.
    tol : float
        A run ends when the squared movements of all centers add up to at most ``tol`` times the mean variance
        of the features, or when no label changes.
    algorithm : {"auto", "lloyd", "bounds"}
        Whether distances are skipped that bounds prove needless (Yinyang k-means, on CPUs). Results are the same
        bits. "auto" skips where that pays; "lloyd" never; "bounds" from the second iteration on.
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``).
    check_finite : bool
        Raise where X holds NaN or infinity. Without the check such a row gets label -1 and moves no center.
    deterministic : bool
        The same bits also for any kind of ``X``, and for any number of processes. Implied by ``group``.
    group : None, "world" or torch.distributed.ProcessGroup
        Processes that hold the rows together: each calls ``fit`` with its own, of which there may be none, and those
        of rank 0 come first. "world" is all processes. ``fastdc.distributed.own_rows`` makes a rank's part of a
        source that all can read. Labels are those of a rank's own rows; all else is the same on all ranks.
    random_state : int, numpy RandomState or Generator, optional
        The same integer gives the same result. Global random states are left as they were.
    verbose : int
        1 shows a progress bar on standard error.
    callbacks : sequence of callables, optional
        Each is called with every record of ``history_`` as it is made; one that returns True ends the run.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
        Of the nearest of ``cluster_centers_``.
    cluster_centers_ : array of shape (n_clusters, n_features)
        In the dtype of X.
    inertia_ : float
        Weighted sum of squared distances to the nearest center.
    n_iter_ : int
        Iterations of the best run.
    history_ : list of dict
        A record for each of them: ``run``, ``iteration``, ``inertia``, ``n_changed`` labels, ``center_shift``,
        ``n_empty_clusters`` (given a far row in that iteration) and ``n_unlabeled`` rows.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Arrays come back as NumPy arrays, tensors as tensors on the device of the input.
    Results are the same bits for any number of threads, and from run to run on a GPU.
    With ``deterministic`` and ``group`` sums are added as whole numbers, with one all_reduce an iteration; entries
    of a feature below 1e-30 of its largest count as zero in them. k-means++ then starts as over a row source, and no
    bounds are kept. An error on one rank is raised on all, with its cause; that a process ended or hangs, within the
    time-out of the group. Processes must have the same kind of CPU or GPU.
    Memory: beside X the labels, for k-means++ a distance for each row, and for bounds 8 bytes a row and 4 a row and
    group of centers, of which there are at most 65; never n_samples x n_clusters. Of a row source four blocks of at
    most 64 MB; its bounds, up to 2 GB, lie in a temporary file, and k-means++ starts from a block's number of rows
    drawn by chance.

    References
    ----------
    Lloyd. Least squares quantization in PCM. IEEE Transactions on Information Theory, 1982.
    Arthur, Vassilvitskii. k-means++: the advantages of careful seeding. SODA 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import KMeans
    >>> X = np.array([[1.0, 2.0], [1.0, 4.0], [10.0, 2.0], [10.0, 4.0]])
    >>> kmeans = KMeans(2, random_state=0).fit(X)
    >>> bool(kmeans.labels_[0] == kmeans.labels_[1] != kmeans.labels_[2] == kmeans.labels_[3])
    True
    >>> kmeans.inertia_
    4.0
    """

    n_clusters: int = field(default=8, kw_only=False)
    init: Any = "k-means++"
    n_init: Any = "auto"
    max_iter: int = 300
    tol: float = 1e-4
    algorithm: str = "auto"
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True
    deterministic: bool = False
    group: Any = None
    random_state: Any = None
    verbose: int = 0
    callbacks: Sequence[Callable[[Record], Any]] | None = None

    @files_for_sources
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, checkpoint: Any = None, resume: bool = False
    ) -> KMeans:
        """Find the centers.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Computed in its own precision, float32 or float64. A row source (``fastdc.data``) is read a block of
            rows at a time in every pass.
        y : ignored
        sample_weight : array-like of shape (n_samples,), optional
        checkpoint : path, optional
            A folder that keeps the state of the run: written every 10 seconds and when ``fit`` ends, also by an
            interrupt, never half.
        resume : bool
            Go on from the checkpoint in that folder, if there is one, to the result of a fit that was never
            interrupted. ``max_iter`` and what does not change results may differ; the number of processes too.

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data.
        CheckpointError, FileExistsError
            If the checkpoint is damaged or of other data or parameters; if there is one and ``resume`` is False.
        RuntimeError
            If another process of the group failed or ended.
        KeyboardInterrupt
            Goes on to the caller; the estimator is then as before the call.

        Warns
        -----
        ConvergenceWarning
            If fewer clusters than asked for have members.
        """
        before = dict(vars(self))
        try:
            with torch.no_grad():
                self._fit(X, sample_weight, checkpoint, resume)
        except BaseException:
            self.__dict__ = before
            raise
        return self

    def _updated(self, sums: Tensor, counts: Tensor, centers: Tensor) -> Tensor:
        """New centers from the sums of a pass."""
        return center_update(sums, counts, centers)

    def _fit(self, X: Any, sample_weight: Any, checkpoint: Any, resume: bool) -> None:
        n_clusters = read_count(self.n_clusters, "n_clusters")
        read_count(self.max_iter, "max_iter")
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or above, got {self.tol}")
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {self.algorithm!r}")
        rows = self._intake(X, sample_weight, checkpoint is not None)
        x, ranks = rows.x, rows.ranks
        read_count(n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        tol = self.tol * _mean_variance(x) if self.tol > 0 else 0.0
        seed = read_seed(self.random_state)
        random = np.random.default_rng(int(ranks.from_first(lambda: str(seed).encode())))
        identity = {} if checkpoint is None else identity_of(self, self._identity(), x, rows.weight)
        state, saved = open_checkpoint(checkpoint, identity, resume, ranks, x.device)
        best: Solution | None = None
        first_run = 1
        if saved is not None:
            first_run, random.bit_generator.state = saved.run, saved.random
            if saved.best is not None:
                best = Solution(saved.best.centers, _labels(x, saved.best.centers, self.backend), *saved.best[1:])
        n_runs = self._n_runs()
        with state:
            for run in range(first_run, n_runs + 1):
                resumed = saved.progress if saved is not None and run == first_run else None
                centers = resumed.centers if resumed else ranks.first(self._start(x, rows.weight, n_clusters, random))
                state.begin(run, random, best)
                found = self._run(rows, centers, tol, resumed, state, (run, n_runs))
                if best is None or found.inertia < best.inertia:
                    best = found
        assert best is not None, "there is at least one run"
        found_rows = x.has_rows if isinstance(x, ShardedRows) else has_rows
        n_found = int(found_rows(best.labels, n_clusters).sum())
        if n_found < n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({n_found}) found smaller than n_clusters ({n_clusters}). X may "
                "hold repeated rows; ask for fewer clusters.",
                ConvergenceWarning,
                stacklevel=3,
            )
        labels = x.of_own_rows(best.labels) if isinstance(x, ShardedRows) else best.labels
        self.labels_ = give_back(self._settled(rows.held, labels).to(torch.int32), X)
        self.cluster_centers_ = give_back(best.centers, X)
        self.inertia_ = best.inertia
        self.n_iter_ = len(best.history)
        self.history_ = best.history

    def _identity(self) -> dict[str, Any]:
        """Parameters that a checkpoint is of."""
        start, n_init = told(self.init), str(self.n_init)
        return {"n_clusters": int(self.n_clusters), "init": start, "n_init": n_init, "tol": float(self.tol)}

    def _intake(self, X: Any, sample_weight: Any, has_checkpoint: bool) -> _Intake:
        if self.deterministic or self.group is not None:
            sharded = shard_rows(X, sample_weight, self, AGREED, has_checkpoint)
            return _Intake(*sharded, lloyd_shards, sharded.x.ranks)
        x = self._rows(X, reset=True)
        run_lloyd = lloyd_rows if isinstance(x, StreamedRows) else lloyd
        return _Intake(x, read_sample_weight(sample_weight, x), x, bool(self.callbacks), run_lloyd, Ranks())

    def _run(
        self,
        rows: _Intake,
        centers: Tensor,
        tol: float,
        resumed: Progress | None,
        state: Checkpoint,
        number: tuple[int, int],
    ) -> Solution:
        """One run; ``number`` says which of how many."""
        run, n_runs = number
        silent = not self.verbose or rows.ranks.rank > 0
        with tqdm(total=self.max_iter, desc=f"k-means {run}/{n_runs}", disable=silent) as bar:
            report = _Report(run, bar, self.callbacks or (), raises=self.check_finite)
            return rows.run_lloyd(
                rows.x,
                centers,
                rows.weight,
                max_iter=self.max_iter,
                tol=tol,
                backend=self.backend,
                algorithm=self.algorithm,
                update=self._updated,
                report=(lambda record: rows.ranks.any(lambda: report(record))) if rows.has_callbacks else report,
                resumed=resumed,
                keep=(lambda progress: rows.ranks.any(lambda: state.keep(progress))) if state.identity else _forget,
            )


class _Intake(NamedTuple):
    """As of :class:`Sharded`; and Lloyd's algorithm over that kind of rows, and who holds them."""

    x: Any
    weight: Tensor | None
    held: Any
    has_callbacks: bool
    run_lloyd: Callable[..., Solution]
    ranks: Ranks


class _Report:
    """What happens with the record of an iteration: history, progress bar, callbacks, a check."""

    def __init__(self, run: int, bar: tqdm, callbacks: Sequence[Callable[[Record], Any]], *, raises: bool) -> None:
        self.run, self.bar, self.callbacks, self.raises = run, bar, callbacks, raises

    def __call__(self, record: Record) -> bool:
        if self.raises and record["n_unlabeled"]:
            raise ValueError(
                f"{record['n_unlabeled']} rows of X are so large that squared distances overflow its dtype; "
                "scale the features (sklearn.preprocessing.StandardScaler) or pass float64"
            )
        record["run"] = self.run
        self.bar.update()
        self.bar.set_postfix(inertia=f"{record['inertia']:.6g}", changed=record["n_changed"], refresh=False)
        answers = [callback(record) for callback in self.callbacks]
        return any(answer is True for answer in answers)


def _forget(progress: Progress) -> None:
    """Where no checkpoint is asked for."""


def _labels(x: Tensor | StreamedRows, centers: Tensor, backend: str | None) -> Tensor:
    if isinstance(x, StreamedRows):
        return x.labels(centers, backend)
    return nearest_center(x, centers, backend=backend).labels


def _mean_variance(x: Tensor | StreamedRows) -> float:
    """Mean over the features of their variance; of the finite rows only."""
    if isinstance(x, StreamedRows):
        return x.mean_variance()
    variance = float(x.var(dim=0, correction=0).mean())
    if not np.isfinite(variance):
        variance = float(x[x.isfinite().all(dim=1)].double().var(dim=0, correction=0).mean())
    return variance
