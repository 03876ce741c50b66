"""What all deep estimators share: parameters, fit, prediction, saving. A method adds its stages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from fastdc._input import choose_device, give_back, read_count, read_points, read_seed
from fastdc.methods._parts import Initialise, LabelChange
from fastdc.networks import Centroids, MLPAutoencoder, as_autoencoder
from fastdc.persistence import CheckpointError, Saveable
from fastdc.training import Objective, Stage, Term, Train, Trainer, embed, private_randomness


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
    autoencoder : nn.Module, optional
        A network of one's own, with methods ``encode`` and ``decode`` or submodules ``encoder`` and
        ``decoder``. A copy is trained, from the weights it has; with ``pretrain_epochs=0`` they are taken as
        trained. It computes in the dtype of its parameters.
    encoder, decoder : nn.Module, optional
        The same as two modules.
    alpha : float
        Degrees of freedom of the Student t kernel.
    pretrain_epochs, epochs : int
        Passes over the data to train the network alone, and at most to refine network and centers.
    batch_size : int
        Most rows of a step.
    pretrain_learning_rate, learning_rate : float
        Of Adam, in the two stages.
    update_interval : int, optional
        Steps between refreshes of the target from all rows; None is three epochs.
    tol : float, optional
        Refinement stops when no more than this share of the labels changed between two refreshes; None runs
        all epochs.
    n_init : int
        Restarts of the k-means that places the centers.
    device : str or torch.device, optional
        None computes where a tensor lies, and otherwise on the GPU if there is one.
    random_state : int, numpy RandomState or Generator, optional
        The same integer gives the same result. Global random states are left as they were.
    verbose : int
        1 shows progress bars on standard error.
    callbacks : sequence of callables, optional
        Each is called with every record of ``history_`` as it is made; one that returns True ends the running
        stage.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
    cluster_centers_ : array of shape (n_clusters, n_latent)
        In the embedding.
    autoencoder_ : nn.Module
        The trained network.
    head_ : Centroids
        The centers as a module.
    n_iter_ : int
        Epochs of refinement.
    history_ : list of dict
        A record for each epoch (``stage``, ``epoch``, ``loss`` and the loss of each term) and for each
        refresh (``stage``, ``epoch``, ``step``, ``label_change``, ``n_empty_clusters``,
        ``smallest_cluster``, ``confidence``, ``entropy``). Empty clusters here mean a collapse.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Arrays come back as NumPy arrays, tensors as tensors on the device of the input. A sample's embedding and
    label do not depend on the other rows of the call (on CPUs).
    """

    n_clusters: int = field(default=8, kw_only=False)
    n_latent: int = 10
    hidden: Sequence[int] = (500, 500, 2000)
    autoencoder: nn.Module | None = None
    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    alpha: float = 1.0
    pretrain_epochs: int = 50
    epochs: int = 100
    batch_size: int = 256
    pretrain_learning_rate: float = 1e-3
    learning_rate: float = 1e-3
    update_interval: int | None = None
    tol: float | None = 1e-3
    n_init: int = 20
    device: str | torch.device | None = None
    random_state: Any = None
    verbose: int = 0
    callbacks: Sequence[Callable[[dict[str, Any]], Any]] | None = None

    def stages(self, head: Centroids) -> Iterable[Stage]:
        """The method: what happens to the network and the head, in order."""
        raise NotImplementedError(f"{type(self).__name__} must say what it does: def stages(self, head)")

    def pretraining(self, objective: Term | Objective) -> Train:
        """A stage that trains the network alone."""
        return Train(objective, "pretrain", self.pretrain_epochs, self.pretrain_learning_rate)

    def initialisation(self, head: Centroids) -> Initialise:
        """A stage that puts the centers where k-means finds them."""
        return Initialise(head, self.n_init)

    def refinement(self, objective: Term | Objective) -> Train:
        """A stage that trains network and head until the labels settle."""
        until = None if self.tol is None else LabelChange(self.tol)
        return Train(objective, "refine", self.epochs, self.learning_rate, self.update_interval, until)

    def fit(self, X: Any, y: Any = None) -> DeepClusterer:
        """Train on ``X`` and label its rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Computed in the dtype of the network, float32 by default. Bring the features to a common scale.
        y : ignored

        Returns
        -------
        self : fitted estimator

        Raises
        ------
        ValueError, TypeError
            For bad parameters and bad data, before any training.
        FloatingPointError
            If the loss is no longer finite.
        KeyboardInterrupt
            Goes on to the caller; the estimator is then fitted with what was reached if the centers had been
            initialised, and otherwise as before the call.
        """
        before = dict(vars(self))
        try:
            with torch.inference_mode(False), torch.enable_grad():
                self._fit(X)
        except BaseException:
            if self.__dict__.get("history_") is before.get("history_"):  # nothing was finished
                self.__dict__ = before
            raise
        return self

    def _fit(self, X: Any) -> None:
        n_clusters = read_count(self.n_clusters, "n_clusters")
        for name in ("n_latent", "batch_size", "n_init"):
            read_count(getattr(self, name), name)
        for name in ("pretrain_epochs", "epochs"):
            read_count(getattr(self, name), name, low=0)
        if self.update_interval is not None:
            read_count(self.update_interval, "update_interval")
        network = self._own_network()
        x = read_points(X, self, reset=True, dtype=_dtype_of(network), device=self.device)
        read_count(n_clusters, "n_clusters", high=len(x), high_name="n_samples")
        seed = read_seed(self.random_state)
        if network is None:
            network = self._default_network(x.shape[1], torch.Generator().manual_seed(seed))
        x = x.clone() if x.is_inference() else x
        with private_randomness(seed, x.device):
            network = network.to(x.device)
            head = Centroids(n_clusters, _latent_width(network, x), self.alpha).to(x)
            trainer = Trainer(
                network,
                x,
                batch_size=self.batch_size,
                seed=seed,
                callbacks=self.callbacks or (),
                verbose=bool(self.verbose),
            )
            try:
                for stage in list(self.stages(head)):  # all at once, so that bad parameters show before training
                    stage.run(trainer)
            except KeyboardInterrupt:
                if not head.centers.isnan().any():
                    self._finish(trainer, head, X)
                raise
            self._finish(trainer, head, X)

    def _finish(self, trainer: Trainer, head: Centroids, X: Any) -> None:
        """Set the fitted attributes, all at once."""
        labels = head.statistics(trainer.embed()).labels
        if bool((labels < 0).any()):
            raise FloatingPointError(
                f"the embedding is no longer finite: lower learning_rate ({self.learning_rate}) or scale the data"
            )
        self.autoencoder_ = trainer.network.eval()
        self.head_ = head
        self.labels_ = give_back(labels.to(torch.int32), X)
        self.cluster_centers_ = give_back(head.centers, X)
        self.n_iter_ = sum(record["stage"] == "refine" and "loss" in record for record in trainer.history)
        self.history_ = trainer.history

    def transform(self, X: Any) -> Any:
        """Embedding of the rows of ``X``, of shape (n_samples, n_latent)."""
        return give_back(self._embed(X), X)

    def predict(self, X: Any) -> Any:
        """Cluster of each row of ``X``, int32, by the nearest center in the embedding."""
        z = self._embed(X)
        return give_back(self.head_.statistics(z).labels.to(torch.int32), X)

    def predict_proba(self, X: Any) -> Any:
        """Soft assignment q of the rows of ``X``, of shape (n_samples, n_clusters)."""
        z = self._embed(X)
        return give_back(self.head_.assign(z), X)

    @torch.no_grad()
    def _embed(self, X: Any) -> Tensor:
        check_is_fitted(self)
        centers = self.head_.centers
        x = read_points(X, self, dtype=_dtype_of(self.autoencoder_), device=centers.device)
        return embed(self.autoencoder_, x)

    @property
    def _n_features_out(self) -> int:
        return self.head_.centers.shape[1]

    def _own_network(self) -> nn.Module | None:
        """A copy of the user's modules, or None for the default network."""
        given = (self.autoencoder, self.encoder, self.decoder)
        if all(module is None for module in given):
            return None
        return copy.deepcopy(as_autoencoder(*given))

    def _default_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        return MLPAutoencoder(n_features, self.n_latent, self.hidden, generator)

    def _restore_modules(self, weights: dict[str, dict[str, Tensor]]) -> None:
        network = self._own_network()
        if network is None:
            network = self._default_network(self.n_features_in_)
        n_clusters, n_latent = weights["head_"]["centers"].shape
        head = Centroids(n_clusters, n_latent, self.alpha)
        try:
            network.load_state_dict(weights["autoencoder_"])
            head.load_state_dict(weights["head_"])
        except RuntimeError as error:
            raise CheckpointError(f"the saved weights do not fit the module: {error}") from error
        device = choose_device(self.device)
        self.autoencoder_, self.head_ = network.to(device).eval(), head.to(device, _dtype_of(network))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]  # the network computes in its own dtype
        return tags


def _dtype_of(network: nn.Module | None) -> torch.dtype:
    """The floating dtype of a network's parameters; float32 for the default network."""
    parameters = () if network is None else network.parameters()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


@torch.no_grad()
def _latent_width(network: nn.Module, x: Tensor) -> int:
    z = embed(network, x[:1])
    if z.ndim != 2:
        raise ValueError(
            "the encoder must return embeddings of shape (n_samples, n_latent), it returned "
            f"{tuple(z.shape)} for one sample; flatten them, for instance with nn.Flatten()"
        )
    return z.shape[1]
