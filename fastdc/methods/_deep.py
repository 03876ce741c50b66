"""What all deep estimators share: parameters, fit, prediction, saving. A method adds its stages."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from fastdc._input import choose_device, give_back, read_count, read_points, read_seed
from fastdc._runs import digest, some_rows
from fastdc.data import RowSource
from fastdc.networks import Centroids, ConvAutoencoder, Head, Init, MLPAutoencoder, as_autoencoder
from fastdc.persistence import CheckpointError, Saveable, plain
from fastdc.training import (
    Checkpoint,
    LabelChange,
    Settings,
    SourceRows,
    Stage,
    Term,
    Train,
    Trainer,
    Views,
    embed,
    private_randomness,
)
from fastdc.training.objective import Objective

NOT_IDENTITY = {"verbose", "callbacks", "device", "group"}  # parameters that do not change results


@dataclass(eq=False, repr=False, kw_only=True)
class DeepClusterer(Saveable, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Base of the deep methods. A subclass says in :meth:`stages` what it does, and adds its own parameters.

    Parameters are dataclass fields: scikit-learn reads them from the generated ``__init__``.

    Parameters
    ----------
    n_clusters : int
    n_latent : int
        Width of the embedding of the default network.
    hidden : sequence of int
        Widths of the layers of the default network's encoder; the decoder has them in reverse.
    image_shape : (channels, height, width), optional
        The rows are flat images: the default network is then convolutional.
    autoencoder : nn.Module, optional
        A network of one's own, with methods ``encode`` and ``decode`` or submodules ``encoder`` and
        ``decoder``. A copy is trained, from the weights it has. It computes in the dtype of its parameters.
    encoder, decoder : nn.Module, optional
        The same as two modules. Methods that do not reconstruct need no decoder.
    views : Views, optional
        What other forms of the rows the terms see (``fastdc.views``); None is the method's own choice.
    epochs : int
        Most passes over the data in the main stage.
    batch_size : int or None
        Most rows of a step; None takes all rows at once.
    learning_rate : float
        Of Adam, in the main stage.
    update_interval : int, optional
        Steps between refreshes of the targets from all rows, at which the labels are also looked at; None is three
        epochs.
    tol : float, optional
        The main stage stops when no more than this share of the labels changed between two refreshes; None runs
        all epochs.
    amp : {None, "bfloat16", "float16"}
        Lower precision of the networks in training.
    accumulate : int
        Parts of a batch that go through the networks one after the other before a step, to save memory.
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one.
    group : None, "world" or torch.distributed.ProcessGroup
        Processes that share the work, each with all rows and the same ``random_state``.
    random_state : int, numpy RandomState or Generator, optional
        The same integer gives the same result. Global random states are left as they were.
    verbose : int
        1 shows progress bars on standard error.
    callbacks : sequence of callables
        Each is called with every record of ``history_`` as it is made; one that returns True ends the running
        stage.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
    cluster_centers_ : array of shape (n_clusters, n_latent)
        In the embedding: those of the head where it has centers, else the means of the clusters (NaN if empty).
    network_ : nn.Module
        The trained network.
    head_ : Head
        What makes clusters of embeddings.
    n_iter_ : int
        Epochs of the main stage.
    history_ : list of dict
        A record for each epoch (``stage``, ``epoch``, ``loss`` and the loss of each term) and for each
        refresh (``stage``, ``epoch``, ``step``, ``label_change``, ``n_empty_clusters``,
        ``smallest_cluster``, ``confidence``, ``entropy``). Empty clusters here mean a collapse. Methods that place
        centers as k-means does (DCN, DKM, optimal transport) put the center of an empty cluster on the farthest row
        and count that in ``n_repaired_clusters``; others counter a collapse by their objective or not at all.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Arrays come back as NumPy arrays, tensors as tensors on the device of the input. A sample's embedding and
    label do not depend on the other rows of the call (on CPUs).
    """

    transductive: ClassVar[bool] = False  # whether labels are those of the fitted rows alone: no ``predict``
    init: ClassVar[Init] = "torch"  # of an MLPAutoencoder; "he" where the scale of the embedding does not matter

    n_clusters: int = field(default=8, kw_only=False)
    n_latent: int = 10
    hidden: Sequence[int] = (500, 500, 2000)
    image_shape: Sequence[int] | None = None
    autoencoder: nn.Module | None = None
    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    views: Views | None = None
    epochs: int = 100
    batch_size: int | None = 256
    learning_rate: float = 1e-3
    update_interval: int | None = None
    tol: float | None = 1e-3
    amp: str | None = None
    accumulate: int = 1
    device: str | torch.device | None = None
    group: Any = None
    random_state: Any = None
    verbose: int = 0
    callbacks: Sequence[Callable[[dict[str, Any]], Any]] | None = None

    def stages(self, head: Any) -> Iterable[Stage]:
        """The method: what happens to the network and the head, in order."""
        raise NotImplementedError(f"{type(self).__name__} must say what it does: def stages(self, head)")

    def make_head(self, n_latent: int) -> Head:
        """What makes clusters of embeddings of this width; centers unless a method says otherwise."""
        return Centroids(self.n_clusters, n_latent)

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        """The default network."""
        if self.image_shape is not None:
            return ConvAutoencoder(self.image_shape, self.n_latent, generator=generator)
        return MLPAutoencoder(n_features, self.n_latent, self.hidden, generator, self.init)

    def training(self, objective: Term | Objective, stage: str = "train", **options: Any) -> Train:
        """The main stage: trains network and head until the labels settle. Options are those of ``Train``."""
        until = None if self.tol is None else LabelChange(self.tol)
        given = {"views": self.views, "until": until, "update_interval": self.update_interval} | options
        return Train(objective, stage, self.epochs, self.learning_rate, **given)

    def fit(self, X: Any, y: Any = None, *, checkpoint: Any = None, resume: bool = False) -> DeepClusterer:
        """Train on ``X`` and label its rows.

        Parameters
        ----------
        X : array-like or RowSource of shape (n_samples, n_features)
            Computed in the dtype of the network, float32 by default. Bring the features to a common scale. A row
            source (``fastdc.data``) is never in memory as a whole, its embedding is; an epoch shuffles runs of rows
            and then the rows of 64 MB of runs.
        y : ignored
        checkpoint : path, optional
            A folder that keeps the state of the fit: written every 10 seconds at the end of an epoch, and after
            each stage.
        resume : bool
            Go on from the checkpoint in that folder, if there is one, to the result of a fit that was never
            interrupted.

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data, before any training.
        CheckpointError, FileExistsError
            If the checkpoint is damaged or of other data or parameters; if there is one and ``resume`` is False.
        FloatingPointError
            If the loss is no longer finite.
        KeyboardInterrupt
            Goes on to the caller; the estimator is then fitted with what was reached if the head had been
            initialised, and otherwise as before the call.

        Warns
        -----
        ConvergenceWarning
            If clusters are empty at the end.
        """
        before = dict(vars(self))
        try:
            with torch.inference_mode(False), torch.enable_grad():
                self._fit(X, None if checkpoint is None else Path(checkpoint), resume)
        except BaseException:
            if self.__dict__.get("history_") is before.get("history_"):  # nothing was finished
                self.__dict__ = before
            raise
        return self

    def _check_parameters(self) -> None:
        """Raise for parameters out of range, before any work."""
        for name in ("n_clusters", "n_latent", "accumulate"):
            read_count(getattr(self, name), name)
        read_count(self.epochs, "epochs", low=0)
        for name in ("batch_size", "update_interval"):
            if getattr(self, name) is not None:
                read_count(getattr(self, name), name)

    def _fit(self, X: Any, folder: Path | None, resume: bool) -> None:
        self._check_parameters()
        network = self._own_network()
        x = self._read(X, _dtype_of(network), self.device, reset=True)
        read_count(self.n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        seed = read_seed(self.random_state)
        if network is None:
            network = self.make_network(x.shape[1], torch.Generator().manual_seed(seed))
        settings = Settings(
            batch_size=self.batch_size,
            seed=seed,
            amp=self.amp,
            accumulate=self.accumulate,
            callbacks=self.callbacks or (),
            verbose=bool(self.verbose),
            group=self.group,
        )
        with private_randomness(seed, x.device):
            network = network.to(x.device)
            head = self.make_head(_latent_width(network, x)).to(x.device, x.dtype)
            trainer = Trainer(network, x, settings, head)
            stages = list(self.stages(head))  # all at once, so that bad parameters show before training
            try:
                trainer.run(stages, Checkpoint(folder, {} if folder is None else self._identity(x), resume))
            except KeyboardInterrupt:
                if not any(parameter.isnan().any() for parameter in head.parameters()):
                    self._finish(trainer, X)
                raise
            self._finish(trainer, X)

    def _finish(self, trainer: Trainer, X: Any) -> None:
        """Set the fitted attributes, all at once."""
        head: Any = trainer.head.eval()  # type: ignore[union-attr]
        z = trainer.embed()
        labels = self._label(trainer, z)
        if bool((labels < 0).any()):
            raise FloatingPointError(
                f"the embedding is no longer finite: lower learning_rate ({self.learning_rate}) or scale the data"
            )
        sizes = labels.bincount(minlength=self.n_clusters)
        n_empty = int((sizes == 0).sum())
        if n_empty:
            warnings.warn(
                f"{n_empty} of {self.n_clusters} clusters are empty, the largest has {int(sizes.max())} of {len(z)} "
                "samples; look at history_, lower learning_rate or n_clusters",
                ConvergenceWarning,
                stacklevel=4,
            )
        self.network_ = trainer.network.eval()
        self.head_ = head
        self.labels_ = give_back(labels.to(torch.int32), X)
        centers = getattr(head, "centers", None)
        self.cluster_centers_ = give_back(cluster_means(z, labels, sizes) if centers is None else centers, X)
        self.n_iter_ = sum(record["stage"] != "pretrain" and "loss" in record for record in trainer.history)
        self.history_ = trainer.history

    def _label(self, trainer: Trainer, z: Tensor) -> Tensor:
        """Labels of the fitted rows, int64; -1 where the embedding is not finite."""
        head: Any = trainer.head
        return head.statistics(z).labels

    def transform(self, X: Any) -> Any:
        """Embedding of the rows of ``X``, of shape (n_samples, n_latent)."""
        return give_back(self._embed(X), X)

    @available_if(lambda self: not self.transductive)
    def predict(self, X: Any) -> Any:
        """Cluster of each row of ``X``, int32, by the head."""
        z = self._embed(X)
        return give_back(self.head_.statistics(z).labels.to(torch.int32), X)

    @available_if(lambda self: not self.transductive)
    @torch.no_grad()
    def predict_proba(self, X: Any) -> Any:
        """Soft assignment q of the rows of ``X``, of shape (n_samples, n_clusters)."""
        z = self._embed(X)
        return give_back(self.head_.assign(z), X)

    @torch.no_grad()
    def _embed(self, X: Any) -> Tensor:
        check_is_fitted(self)
        device = next(chain(self.head_.parameters(), self.network_.parameters())).device
        x = self._read(X, _dtype_of(self.network_), device)
        return x.embed(self.network_) if isinstance(x, SourceRows) else embed(self.network_, x)

    def _read(self, X: Any, dtype: torch.dtype, device: Any, *, reset: bool = False) -> Tensor | SourceRows:
        if isinstance(X, RowSource):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if self.batch_size is None:
                raise ValueError("batch_size=None takes all rows at once; read the source into an array, or set it")
            return SourceRows(X, choose_device(device), dtype)
        x = read_points(X, self, reset=reset, dtype=dtype, device=device)
        return x.clone() if x.is_inference() else x

    @property
    def _n_features_out(self) -> int:
        return self.cluster_centers_.shape[1]

    def _own_network(self) -> nn.Module | None:
        """A copy of the user's modules, or None for the default network."""
        given = (self.autoencoder, self.encoder, self.decoder)
        if all(module is None for module in given):
            return None
        return copy.deepcopy(as_autoencoder(*given))

    def _identity(self, x: Tensor | SourceRows) -> dict[str, Any]:
        """What a checkpoint must have in common with this fit."""
        parameters = {n: plain(v) for n, v in self.get_params(deep=False).items() if n not in NOT_IDENTITY}
        described = {"shape": list(x.shape), "dtype": str(x.dtype), "digest of rows": digest([x[some_rows(len(x))]])}
        return {"estimator": type(self).__name__} | parameters | described

    def _restore_modules(self, weights: dict[str, dict[str, Tensor]]) -> None:
        device = choose_device(self.device)
        with private_randomness(0, device):
            network = self._own_network()
            if network is None:
                network = self.make_network(self.n_features_in_)
            head = self.make_head(self.cluster_centers_.shape[1])
        try:
            network.load_state_dict(weights["network_"])
            head.load_state_dict(weights["head_"])
        except RuntimeError as error:
            raise CheckpointError(f"the saved weights do not fit the module: {error}") from error
        self.network_, self.head_ = network.to(device).eval(), head.to(device, _dtype_of(network)).eval()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]  # the network computes in its own dtype
        return tags


def _dtype_of(network: nn.Module | None) -> torch.dtype:
    """The floating dtype of a network's parameters; float32 for the default network."""
    parameters = () if network is None else network.parameters()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def cluster_means(z: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """Mean embedding of each cluster; NaN where it is empty."""
    sums = z.new_zeros(len(sizes), z.shape[1]).index_add_(0, labels, z)
    return sums / sizes[:, None]


@torch.no_grad()
def _latent_width(network: nn.Module, x: Tensor | SourceRows) -> int:
    z = embed(network, x[:1])
    if z.ndim != 2:
        raise ValueError(
            "the encoder must return embeddings of shape (n_samples, n_latent), it returned "
            f"{tuple(z.shape)} for one sample; flatten them, for instance with nn.Flatten()"
        )
    return z.shape[1]
