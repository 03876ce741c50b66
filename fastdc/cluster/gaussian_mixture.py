"""A Gaussian mixture as a scikit-learn estimator over arrays, tensors and row sources."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from fastdc._input import give_back, read_count, read_points, read_seed
from fastdc.cluster.checkpoints import identity_of, told
from fastdc.cluster.exact import fixed_sum
from fastdc.cluster.kmeans import KMeans
from fastdc.cluster.mixture_passes import mixture_pass
from fastdc.cluster.mixture_runs import MixtureRun, SavedMixture, open_mixture
from fastdc.cluster.sharded import ShardedRows, shard_rows
from fastdc.cluster.streaming import StreamedRows, read_rows
from fastdc.data import Chunk
from fastdc.distributed import Ranks
from fastdc.kernels.gaussian_mixture import GMMParameters, gmm_log_density, gmm_responsibilities, gmm_update
from fastdc.kernels.gaussian_mixture.parameters import COVARIANCE_TYPES, covariance_shape, find_covariances
from fastdc.persistence import Saveable

STARTS = ("means_init", "weights_init", "precisions_init")
AGREED = ("n_components", "covariance_type", "tol", "reg_covar", "max_iter", "n_init", *STARTS)
SHARPEST = 1e-6  # of the mean variance: components this narrow assign each row to the nearest mean


@dataclass(eq=False, repr=False, kw_only=True)
class GaussianMixture(Saveable, DensityMixin, BaseEstimator):
    """A mixture of Gaussians by expectation maximisation, with scikit-learn's parameters and results.

    Parameters
    ----------
    n_components : int
        At most the number of samples.
    covariance_type : {"diag", "spherical", "tied", "full"}
        A variance a feature and component, one a component, one covariance for all, one a component.
        (scikit-learn's default is "full".)
    tol : float
        A run ends when the mean log-likelihood changes by less.
    reg_covar : float
        Added to the variances.
    max_iter : int
        Most iterations of a run.
    n_init : int
        Runs from different starts, of which the one of largest likelihood counts. Given means run once.
    means_init : array-like of shape (n_components, n_features), optional
        Where to start; None starts from k-means. Weights and covariances follow from the nearest of them.
    weights_init : array-like of shape (n_components,), optional
        Weights to start with instead: 0 or above, summing to 1.
    precisions_init : array-like, optional
        Inverse covariances to start with instead, positive definite and shaped as ``covariances_``. The first
        responsibilities are then by just these, the means as given, and equal weights if none are given.
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``).
    check_finite : bool
        Raise where X holds NaN or infinity. Without the check such rows count for nothing and get label -1.
    deterministic : bool
        The same bits also for any kind of ``X``, and for any number of processes. Implied by ``group``.
    group : None, "world" or torch.distributed.ProcessGroup
        Processes that hold the rows together, as of :class:`KMeans`: each calls ``fit`` with its own rows, of which
        there may be none. All that ``fit`` finds is the same on all ranks; the other methods are of a rank's own rows.
    random_state : int, numpy RandomState or Generator, optional
        The same integer gives the same result. Global random states are left as they were.

    Attributes
    ----------
    weights_ : array of shape (n_components,)
    means_ : array of shape (n_components, n_features)
    covariances_ : array
        Of shape (n_components, n_features), (n_components,), (n_features, n_features) or (n_components,
        n_features, n_features) by ``covariance_type``. All in the dtype of X.
    converged_ : bool
        Whether the best run ended by ``tol``.
    n_iter_ : int
        Iterations of the best run.
    lower_bound_ : float
        Its mean log-likelihood, before the last update.
    history_ : list of dict
        A record for each iteration of it: ``run``, ``iteration``, ``lower_bound``, ``n_invalid`` rows.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Arrays come back as NumPy arrays, tensors as tensors on the device of the input.
    Results are the same bits for any number of threads. A row source is read a block of at most 64 MB at a time, in
    every iteration, and gives the same bits however its rows are stored; where it has but one block, those of the array
    in memory. With ``deterministic`` and ``group`` statistics are added as whole numbers, with one all_reduce an
    iteration; squares below 1e-30 of the largest of their features count as zero in them.
    Runs start from :class:`KMeans` over all rows, found in the same way.
    Memory: no (n_samples, n_components) matrix in ``fit``. Of a row source four blocks, and k-means' labels.

    References
    ----------
    Dempster, Laird, Rubin. Maximum Likelihood from Incomplete Data via the EM Algorithm. JRSS B, 1977.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdc import GaussianMixture
    >>> X = np.array([[-3.1], [-3.0], [-2.9], [2.8], [3.0], [3.2]])
    >>> mixture = GaussianMixture(2, random_state=0).fit(X)
    >>> sorted(round(float(m), 6) for m in mixture.means_[:, 0])
    [-3.0, 3.0]
    >>> mixture.weights_
    array([0.5, 0.5])
    """

    n_components: int = field(default=1, kw_only=False)
    covariance_type: str = "diag"
    tol: float = 1e-3
    reg_covar: float = 1e-6
    max_iter: int = 100
    n_init: int = 1
    means_init: Any = None
    weights_init: Any = None
    precisions_init: Any = None
    device: str | torch.device | None = None
    backend: str | None = None
    check_finite: bool = True
    deterministic: bool = False
    group: Any = None
    random_state: Any = None

    def fit(self, X: Any, y: Any = None, *, checkpoint: Any = None, resume: bool = False) -> GaussianMixture:
        """Find the mixture.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Computed in its own precision, float32 or float64.
        y : ignored
        checkpoint, resume
            As of :class:`KMeans`. Steps of k-means at the start of a run are not kept.

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data; also where a covariance is no longer positive definite.
        CheckpointError, FileExistsError
            If the checkpoint is damaged or of other data or parameters; if there is one and ``resume`` is False.
        RuntimeError
            If another process of the group failed or ended.

        Warns
        -----
        ConvergenceWarning
            If the best run did not end by ``tol``.
        """
        before = dict(vars(self))
        try:
            with torch.no_grad():
                self._fit(X, checkpoint, resume)
        except BaseException:
            self.__dict__ = before
            raise
        return self

    def _fit(self, X: Any, checkpoint: Any, resume: bool) -> None:
        n_components, n_init = read_count(self.n_components, "n_components"), read_count(self.n_init, "n_init")
        read_count(self.max_iter, "max_iter")
        for name in ("tol", "reg_covar"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}")
        if self.covariance_type not in COVARIANCE_TYPES:
            raise ValueError(f"covariance_type must be one of {COVARIANCE_TYPES}, got {self.covariance_type!r}")
        x = self._rows(X, checkpoint is not None)
        read_count(n_components, "n_components", high=len(x), high_name="n_samples")
        ranks = x.ranks if isinstance(x, ShardedRows) else Ranks()
        identity = {} if checkpoint is None else identity_of(self, self._identity(), x)
        state, saved = open_mixture(checkpoint, identity, resume, ranks, x.device)
        drawn = str(read_seed(self.random_state)).encode()
        seed = int(ranks.from_first(lambda: drawn)) if saved is None else saved.seed
        first_run, best = (1, None) if saved is None else (saved.number, saved.best)
        with state:
            for number in range(first_run, 2 if self.means_init is not None else n_init + 1):
                if saved is not None and number == first_run:
                    run = saved.run
                else:
                    run = MixtureRun(self._start(x, n_components, seed + number - 1), [], False)
                while not run.converged and len(run.history) < self.max_iter:
                    run = self._next(x, run, number)
                    if checkpoint is not None:
                        ranks.any(partial(state.remember, SavedMixture(number, seed, run, best)))
                if run.is_better(best):
                    best = run
        assert best is not None, "there is at least one run"
        if not best.converged:
            warnings.warn(
                f"The best run did not converge in max_iter={self.max_iter} iterations; raise max_iter or tol, or "
                "look for degenerate data",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.means_, self.covariances_, self.weights_ = (give_back(t, X) for t in best.parameters)
        self.converged_ = best.converged
        self.n_iter_ = len(best.history)
        self.lower_bound_ = best.bound
        self.history_ = best.history

    def _identity(self) -> dict[str, Any]:
        """Parameters that a checkpoint is of."""
        counts = {name: int(getattr(self, name)) for name in ("n_components", "n_init")}
        numbers = {name: float(getattr(self, name)) for name in ("tol", "reg_covar")}
        starts = {name: told(getattr(self, name)) for name in STARTS}
        return {"covariance_type": self.covariance_type, **counts, **numbers, **starts}

    def _rows(self, X: Any, has_checkpoint: bool) -> Tensor | StreamedRows:
        """Rows to fit on; those of a source that is one block as a tensor."""
        if self.deterministic or self.group is not None:
            return shard_rows(X, None, self, AGREED, has_checkpoint).x
        x = read_rows(X, self, reset=True, min_samples=2)
        return x.whole() if isinstance(x, StreamedRows) and len(x) <= x.block else x

    def _start(self, x: Tensor | StreamedRows, n_components: int, seed: int) -> GMMParameters:
        """Parameters as given, and for the rest those that follow from the rows nearest to each mean."""
        means = self._first_means(x, n_components, seed)
        shape = covariance_shape(self.covariance_type, n_components, x.shape[1])
        precisions = self._given("precisions_init", shape, x)
        weights = torch.full_like(means[:, 0], 1.0 / n_components)
        if precisions is None:
            start = self._update(x, GMMParameters(means, self._narrow(x, shape), weights))[1]
        else:
            start = GMMParameters(means, find_covariances(precisions, self.covariance_type), weights)
        given = self._given("weights_init", (n_components,), x)
        if given is None:
            return start
        if not (given >= 0).all() or not abs(float(given.sum()) - 1) < 1e-4:
            raise ValueError("weights_init must be 0 or above and sum to 1")
        return start._replace(weights=given)

    def _first_means(self, x: Tensor | StreamedRows, n_components: int, seed: int) -> Tensor:
        if self.means_init is None:
            kmeans = KMeans(
                n_components,
                device=x.device,
                backend=self.backend,
                check_finite=self.check_finite and isinstance(x, StreamedRows),  # a tensor was checked
                deterministic=isinstance(x, ShardedRows),
                group=self.group,
                random_state=seed,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # rows may repeat
                found = kmeans.fit(x.source if isinstance(x, StreamedRows) else x).cluster_centers_
            return torch.as_tensor(found, device=x.device)
        means = read_points(self.means_init, dtype=x.dtype, device=x.device)
        if means.shape != (n_components, x.shape[1]):
            raise ValueError(
                f"means_init has shape {tuple(means.shape)}, wanted are (n_components, n_features) = "
                f"{(n_components, x.shape[1])}"
            )
        return x.ranks.first(means) if isinstance(x, ShardedRows) else means

    def _given(self, name: str, shape: tuple[int, ...], x: Tensor | StreamedRows) -> Tensor | None:
        """A parameter that says where to start, beside the means."""
        if getattr(self, name) is None:
            return None
        value = torch.as_tensor(getattr(self, name), dtype=x.dtype, device=x.device)
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted is {shape}")
        return x.ranks.first(value) if isinstance(x, ShardedRows) else value

    def _narrow(self, x: Tensor | StreamedRows, shape: tuple[int, ...]) -> Tensor:
        """Covariances so small that each row belongs to the nearest mean."""
        variance = x.mean_variance() if isinstance(x, StreamedRows) else _mean_variance(x, self.check_finite)
        narrow = variance * SHARPEST if variance > 0 else 1.0
        if self.covariance_type in ("diag", "spherical"):
            return torch.full(shape, narrow, dtype=x.dtype, device=x.device)
        return (narrow * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)).expand(shape).contiguous()

    def _update(self, x: Tensor | StreamedRows, parameters: GMMParameters) -> tuple[dict[str, Any], GMMParameters]:
        """An iteration: its record, and new parameters."""
        step = mixture_pass(x, parameters, self.covariance_type, self.backend)
        log_likelihood, n_invalid = torch.stack([step.log_likelihood, step.n_invalid.double()]).tolist()
        if n_invalid == len(x) or (n_invalid and self.check_finite):
            raise ValueError(
                f"{int(n_invalid)} rows of X have no finite density; scale the features "
                "(sklearn.preprocessing.StandardScaler) or pass float64"
            )
        record = {"lower_bound": log_likelihood / (len(x) - n_invalid), "n_invalid": int(n_invalid)}
        means, covariances, _ = parameters
        return record, gmm_update(step, means, covariances, self.covariance_type, self.reg_covar)

    def _next(self, x: Tensor | StreamedRows, run: MixtureRun, number: int) -> MixtureRun:
        """The run after one more iteration."""
        record, parameters = self._update(x, run.parameters)
        history = [*run.history, {"run": number, "iteration": len(run.history) + 1, **record}]
        change = record["lower_bound"] - (run.bound if run.history else -math.inf)
        return MixtureRun(parameters, history, abs(change) < self.tol)

    def fit_predict(self, X: Any, y: Any = None, **options: Any) -> Any:
        """Fit with the options of ``fit``, and the most probable component of each row, int32."""
        self.fit(X, **options)
        if len(X) == 0:  # of a rank that holds no rows
            return give_back(torch.empty(0, dtype=torch.int32), X)
        return self.predict(X)

    def predict(self, X: Any) -> Any:
        """Most probable component of each row, int32."""
        return self._by_block(X, lambda x, mixture: self._log_density(x, mixture).labels.to(torch.int32))

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities, of shape (n_samples, n_components)."""

        def responsibilities(x: Tensor, mixture: GMMParameters) -> Tensor:
            found = gmm_responsibilities(x, *mixture, self.covariance_type, backend=self.backend)
            return found.responsibilities

        return self._by_block(X, responsibilities)

    def score_samples(self, X: Any) -> Any:
        """Log density of each row."""
        return self._by_block(X, lambda x, mixture: self._log_density(x, mixture).log_density)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows."""
        x, mixture = self._read(X)
        total = 0.0
        with _blocks(x) as blocks:
            for _, rows in blocks:
                total += float(fixed_sum(self._log_density(rows, mixture).log_density.double()))
        return total / len(x)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion: the lower the better."""
        n = len(X)
        return -2 * self.score(X) * n + self._n_parameters() * math.log(n)

    def aic(self, X: Any) -> float:
        """Akaike information criterion: the lower the better."""
        return -2 * self.score(X) * len(X) + 2 * self._n_parameters()

    def _log_density(self, x: Tensor, mixture: GMMParameters) -> Any:
        return gmm_log_density(x, *mixture, self.covariance_type, backend=self.backend)

    def _by_block(self, X: Any, values_of: Callable[[Tensor, GMMParameters], Tensor]) -> Any:
        """Values of each row, which ``values_of`` gives of a block."""
        x, mixture = self._read(X)
        values = torch.empty(0)
        with _blocks(x) as blocks:
            for start, rows in blocks:
                part = values_of(rows, mixture)
                if len(part) == len(x):
                    values = part
                    break
                if start == 0:
                    values = part.new_empty((len(x), *part.shape[1:]))
                values[start : start + len(rows)] = part
        return give_back(values, X)

    def _read(self, X: Any) -> tuple[Tensor | StreamedRows, GMMParameters]:
        """Rows like those of fit, and the mixture beside them."""
        check_is_fitted(self)
        x = read_rows(X, self)
        fitted = (self.means_, self.covariances_, self.weights_)
        return x, GMMParameters(*(torch.as_tensor(value, device=x.device) for value in fitted))

    def _n_parameters(self) -> int:
        k, d = self.means_.shape
        symmetric = d * (d + 1) // 2
        of_covariances = {"diag": k * d, "spherical": k, "tied": symmetric, "full": k * symmetric}
        return of_covariances[self.covariance_type] + k * d + k - 1


def _blocks(x: Tensor | StreamedRows) -> Any:
    """A context of blocks; a tensor is one."""
    return x.blocks() if isinstance(x, StreamedRows) else nullcontext([Chunk(0, x)])


def _mean_variance(x: Tensor, all_finite: bool) -> float:
    """Mean over the features of their variance; of the finite rows only."""
    rows = x if all_finite else x[x.isfinite().all(dim=1)]
    return float(rows.var(dim=0, correction=0).mean()) if len(rows) else 0.0
