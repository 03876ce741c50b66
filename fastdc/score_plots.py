"""Pictures of scores for papers: methods side by side, confusion of classes and clusters, sizes of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from fastdc import metrics
from fastdc.kernels.contingency import contingency_table
from fastdc.plots import COLUMN_INCHES, LINE_COLORS, _new_figure, _style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastdc.comparison import Comparison

__all__ = ["comparison_figure", "confusion_figure", "sizes_figure"]


def comparison_figure(comparison: Comparison) -> Figure:
    """Scores of each clusterer as dots with their spread over the seeds, best on top, and seconds beside them."""
    outcomes = sorted(comparison.outcomes, key=lambda o: float(np.nanmean(next(iter(o.scores.values())))))
    names = list(outcomes[0].scores)
    figure = _new_figure(0.75 + 0.19 * len(outcomes))
    places = np.arange(len(outcomes))
    with _style():
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
        for i, name in enumerate(names):
            values = [outcome.scores[name] for outcome in outcomes]
            height = places + 0.22 * ((len(names) - 1) / 2 - i)
            _dots(left, values, height, LINE_COLORS[i % len(LINE_COLORS)], name)
        left.set(xlabel="score", yticks=places, yticklabels=[outcome.name for outcome in outcomes])
        _dots(right, [outcome.seconds for outcome in outcomes], places, "0.2", None)
        right.set_xlabel("seconds")
        seconds = [float(np.mean(outcome.seconds)) for outcome in outcomes]
        if max(seconds) > 10 * min(seconds):
            right.set_xscale("log")
            right.xaxis.set_minor_formatter("")
        else:
            right.set_xlim(0, 1.15 * max(max(outcome.seconds) for outcome in outcomes))
        for axes in (left, right):
            axes.grid(axis="x", color="0.9", linewidth=0.5)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(names))
    return figure


def confusion_figure(labels_true: np.ndarray, labels_pred: np.ndarray) -> Figure:
    """Share of each class (row) that lies in each cluster (column), clusters in the order of the classes they fit."""
    table = contingency_table(*(torch.as_tensor(np.asarray(labels)) for labels in (labels_true, labels_pred)))
    counts = np.asarray(table.counts, dtype=float)
    fit = metrics.label_map(labels_true, labels_pred)
    places = {name: i for i, name in enumerate(np.asarray(table.classes))}
    clusters = list(np.asarray(table.clusters))
    order = sorted(range(len(clusters)), key=lambda j: places.get(fit.get(clusters[j]), len(places)))
    shares = counts[:, order] / counts.sum(1, keepdims=True)
    side = COLUMN_INCHES * 0.95
    figure = _new_figure(side * (0.25 + 0.75 * shares.shape[0] / max(shares.shape)))
    with _style():
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="cluster", ylabel="class")
        axes.set_xticks(range(len(order)), [str(clusters[j]) for j in order])
        axes.set_yticks(range(len(places)), [str(name) for name in places])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if max(shares.shape) <= 15:
            for i, j in np.argwhere(shares >= 0.005):
                color = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=5.5, color=color)
        figure.colorbar(image, label="share of the class", shrink=0.8)
    return figure


def sizes_figure(labels: np.ndarray, n_clusters: int | None = None) -> Figure:
    """Samples of each cluster, largest first, with a line at an even share; empty clusters are a sign of collapse."""
    members = np.asarray(labels)
    members = members[members >= 0]
    sizes = np.sort(np.bincount(members, minlength=n_clusters or 0))[::-1]
    figure = _new_figure(1.6)
    with _style():
        axes = figure.subplots()
        axes.bar(np.arange(len(sizes)), sizes, color=LINE_COLORS[0], width=1.0 if len(sizes) > 60 else 0.8)
        axes.axhline(len(members) / len(sizes), color="0.3", linewidth=0.8, linestyle="--", label="even share")
        axes.set(xlabel="clusters, largest first", ylabel="samples", xlim=(-0.6, len(sizes) - 0.4))
        axes.legend()
    return figure


def _dots(axes: object, values: list[list[float]], height: np.ndarray, color: str, label: str | None) -> None:
    """A dot at each mean, a line over one standard deviation to both sides."""
    means = [float(np.nanmean(v)) for v in values]
    spread = [float(np.nanstd(v, ddof=1)) if len(v) > 1 else 0.0 for v in values]
    axes.errorbar(means, height, xerr=spread, fmt="o", color=color, ms=3, elinewidth=0.8, label=label)  # type: ignore[attr-defined]
