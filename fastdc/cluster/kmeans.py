"""K-means as a scikit-learn estimator over arrays and tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from tqdm import tqdm

from fastdc._input import give_back, read_count, read_sample_weight, read_seed
from fastdc.cluster._centers import CenterModel
from fastdc.cluster.lloyd import Record, Solution, lloyd
from fastdc.cluster.streaming import StreamedRows, lloyd_rows
from fastdc.kernels.kmeans import center_update


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
    Memory: beside X the labels, for k-means++ a distance for each row, and for bounds 4 bytes a row and group of
    centers, of which there are at most 64; never n_samples x n_clusters. Of a row source four blocks of at most
    64 MB; its passes keep no bounds, and k-means++ starts from a block's number of rows drawn by chance.

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
    random_state: Any = None
    verbose: int = 0
    callbacks: Sequence[Callable[[Record], Any]] | None = None

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Find the centers.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Computed in its own precision, float32 or float64. A row source (``fastdc.data``) is read a block of
            rows at a time in every pass.
        y : ignored
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data.
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
                self._fit(X, sample_weight)
        except BaseException:
            self.__dict__ = before
            raise
        return self

    def _updated(self, sums: Tensor, counts: Tensor, centers: Tensor) -> Tensor:
        """New centers from the sums of a pass."""
        return center_update(sums, counts, centers)

    def _fit(self, X: Any, sample_weight: Any) -> None:
        n_clusters = read_count(self.n_clusters, "n_clusters")
        max_iter = read_count(self.max_iter, "max_iter")
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or above, got {self.tol}")
        x = self._rows(X, reset=True)
        run_lloyd = lloyd_rows if isinstance(x, StreamedRows) else lloyd
        read_count(n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        weight = read_sample_weight(sample_weight, x)
        tol = self.tol * _mean_variance(x) if self.tol > 0 else 0.0
        random = np.random.default_rng(read_seed(self.random_state))
        best: Solution | None = None
        n_runs = self._n_runs()
        for run in range(1, n_runs + 1):
            centers = self._start(x, weight, n_clusters, random)
            with tqdm(total=max_iter, desc=f"k-means {run}/{n_runs}", disable=not self.verbose) as bar:
                report = _Report(run, bar, self.callbacks or (), raises=self.check_finite)
                found = run_lloyd(
                    x,
                    centers,
                    weight,
                    max_iter=max_iter,
                    tol=tol,
                    backend=self.backend,
                    algorithm=self.algorithm,
                    update=self._updated,
                    report=report,
                )
            if best is None or found.inertia < best.inertia:
                best = found
        assert best is not None, "there is at least one run"
        n_found = len(torch.unique(best.labels[best.labels >= 0]))
        if n_found < n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({n_found}) found smaller than n_clusters ({n_clusters}). X may "
                "hold repeated rows; ask for fewer clusters.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.labels_ = give_back(self._settled(x, best.labels).to(torch.int32), X)
        self.cluster_centers_ = give_back(best.centers, X)
        self.inertia_ = best.inertia
        self.n_iter_ = len(best.history)
        self.history_ = best.history


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


def _mean_variance(x: Tensor | StreamedRows) -> float:
    """Mean over the features of their variance; of the finite rows only."""
    if isinstance(x, StreamedRows):
        return x.mean_variance()
    variance = float(x.var(dim=0, correction=0).mean())
    if not np.isfinite(variance):
        variance = float(x[x.isfinite().all(dim=1)].double().var(dim=0, correction=0).mean())
    return variance
