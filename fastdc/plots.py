"""Pictures of a clustering for papers: embeddings, sample sheets and training curves.

Each function returns a ``matplotlib.figure.Figure`` sized for one column of a paper (3.5 inches), with type
of 6 to 8 points and colours that colour-blind readers tell apart. No global state of matplotlib is touched.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastdc._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

COLUMN_INCHES = 3.5
# Paul Tol's "muted" scheme and black; told apart under the common forms of colour blindness.
CLUSTER_COLORS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933",
    "#DDCC77", "#CC6677", "#882255", "#AA4499", "#000000",
)  # fmt: skip
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito
LINE_STYLES = ("-", "--", ":", "-.")
ERROR_COLOR = "#D55E00"
RC: dict[Any, Any] = {
    "font.size": 7.0,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 8.0,
    "axes.labelsize": 7.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 6.0,
    "ytick.labelsize": 6.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}


def embedding_figure(panels: Mapping[str, np.ndarray], labels: np.ndarray, axis_name: str = "t-SNE") -> Figure:
    """Points in the plane, coloured by cluster, one panel beside the other.

    Parameters
    ----------
    panels : mapping of str to ndarray of shape (n_samples, 2)
        Title of each panel and the positions in it. The samples are the same in all of them.
    labels : ndarray of shape (n_samples,)
        Cluster of each sample; it is written once at the middle of each cluster.
    axis_name : str
        What the axes are: "t-SNE 1", "t-SNE 2".
    """
    figure = _new_figure(0.45 + 0.87 / len(panels) * COLUMN_INCHES)
    clusters = np.unique(labels)
    with _style():
        for axes, (title, xy) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            size = float(np.clip(3000 / len(xy), 0.5, 6.0))
            # One scatter in random order: drawn cluster by cluster, the last would hide the others.
            order = np.random.default_rng(0).permutation(len(xy))
            colors = np.array([color_of(i) for i in range(len(clusters))])[np.searchsorted(clusters, labels)]
            axes.scatter(*xy[order].T, s=size, c=colors[order], linewidths=0, rasterized=True)
            axes.set(title=title, xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2", xticks=[], yticks=[])
            axes.set_box_aspect(1)
            names = [_name_cluster(axes, xy[labels == cluster], str(cluster)) for cluster in clusters]
            figure.draw_without_rendering()
            spread_texts(axes, names)
    return figure


def samples_figure(
    images: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray,
    wrong: np.ndarray | None = None,
    n_columns: int = 20,
) -> Figure:
    """A sheet of sample images, one row a cluster, from the most confident on the left to the least.

    Parameters
    ----------
    images : ndarray of shape (n_samples, height, width)
        Grey images, drawn dark on white.
    labels : ndarray of shape (n_samples,)
        Cluster of each image.
    confidence : ndarray of shape (n_samples,)
        Larger is surer. Each row shows evenly spaced ranks of its cluster, the first and the last included.
    wrong : ndarray of bool, optional
        Images to frame as errors.
    n_columns : int
        Images in a row; a smaller cluster leaves the rest of its row empty.
    """
    clusters = np.unique(labels)
    height, width = images.shape[1:]
    gap = max(2, height // 7)
    sheet = np.ones((len(clusters) * (height + gap), n_columns * (width + gap)))
    low, span = float(images.min()), float(np.ptp(images)) or 1.0
    figure = _new_figure(0.25 + (COLUMN_INCHES - 0.75) * sheet.shape[0] / sheet.shape[1] + 0.2)
    with _style():
        axes = figure.subplots()
        for row, cluster in enumerate(clusters):
            for column, sample in enumerate(_ranked(np.flatnonzero(labels == cluster), confidence, n_columns)):
                top, left = row * (height + gap), column * (width + gap)
                sheet[top : top + height, left : left + width] = 1 - (images[sample] - low) / span
                if wrong is not None and wrong[sample]:
                    _frame(axes, left, top, width, height, gap)
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlim=(-gap, sheet.shape[1]), ylim=(sheet.shape[0], -gap))  # room for the outermost frames
        axes.spines[:].set_visible(False)
        middle = np.arange(len(clusters)) * (height + gap) + height / 2
        axes.set_yticks(middle, [f"{cluster}" for cluster in clusters])
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.set_ylabel("cluster")
        axes.set_xlabel(
            "most confident  \N{RIGHTWARDS ARROW}  least confident" + (", errors framed" if wrong is not None else "")
        )
    return figure


class Curves(NamedTuple):
    """One panel of training curves: ``lines["DEC"] = (epochs, values)``."""

    y_name: str
    x_name: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def training_figure(panels: Sequence[Curves]) -> Figure:
    """Training curves, two panels a row, one line a method; a method looks the same in every panel."""
    n_rows = -(-len(panels) // 2)
    figure = _new_figure(0.3 + 1.15 * n_rows)
    methods = list(dict.fromkeys(method for panel in panels for method in panel.lines))
    with _style():
        grid = figure.subplots(n_rows, 2, squeeze=False)
        for axes, panel in zip(grid.flat, panels):
            for method, (epochs, values) in panel.lines.items():
                i = methods.index(method)
                style = LINE_STYLES[i % len(LINE_STYLES)]
                axes.plot(epochs, values, style, color=LINE_COLORS[i % len(LINE_COLORS)], label=method)
            axes.set(xlabel=panel.x_name, ylabel=panel.y_name)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y", color="0.9", linewidth=0.5)
            axes.set_axisbelow(True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        drawn: dict[str, Any] = {}
        for axes in grid.flat:
            lines, names = axes.get_legend_handles_labels()
            drawn |= dict(zip(names, lines))
        figure.legend(list(drawn.values()), list(drawn), loc="outside upper center", ncols=len(methods))
        figure.align_ylabels(grid)
    return figure


def k_sweep_figure(table: Sequence[Mapping[str, Any]], suggested: Mapping[str, int | None]) -> Figure:
    """What ``fastdc.choose_k`` found: a panel a criterion over the numbers of clusters, its choice marked.

    Parameters
    ----------
    table : sequence of dict
        With ``k`` and the criteria; None leaves a gap. ``gap`` is drawn with ``gap_error``.
    suggested : mapping of str to int or None
        The criteria, and what each of them prefers.
    """
    figure = _new_figure(0.25 + 1.0 * len(suggested))
    names = {"silhouette": "silhouette", "bic": "BIC", "mixture_bic": "mixture BIC", "gap": "gap"}
    with _style():
        panels = figure.subplots(len(suggested), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (criterion, best) in zip(panels, suggested.items()):
            known = [row for row in table if row[criterion] is not None]
            k, values = ([row[name] for row in known] for name in ("k", criterion))
            errors = [row["gap_error"] for row in known] if criterion == "gap" else None
            axes.errorbar(k, values, errors, color=LINE_COLORS[0], marker="o", markersize=2.5, elinewidth=0.8)
            if best is not None:
                axes.plot([best], [values[k.index(best)]], "o", color=ERROR_COLOR, markersize=5, zorder=3)
            axes.set_title("no suggestion" if best is None else f"suggests {best}", fontsize=7.0, loc="right", pad=2)
            axes.margins(y=0.12)
            axes.set_ylabel(names[criterion])
            axes.grid(axis="y", color="0.9", linewidth=0.5)
            axes.set_axisbelow(True)
        panels[-1].set_xlabel("number of clusters")
        if len(table) < 12:
            panels[-1].set_xticks([row["k"] for row in table])
        figure.align_ylabels(panels)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 300) -> None:
    """Write a figure atomically, in the format that the name ends in (png, pdf, svg)."""
    with atomic_write(path) as file:
        figure.savefig(file, dpi=dpi, format=os.path.splitext(path)[1].lstrip("."))


def color_of(i: int) -> str:
    """Colour of the i-th cluster; from the eleventh on they repeat."""
    return CLUSTER_COLORS[i % len(CLUSTER_COLORS)]


def spread_texts(axes: Axes, texts: Sequence[Text], n_rounds: int = 60) -> None:
    """Push overlapping texts of a drawn figure apart, along the line between their middles."""
    for _ in range(n_rounds):
        boxes = [text.get_window_extent() for text in texts]
        moves = np.zeros((len(texts), 2))
        for i, a in enumerate(boxes):
            for j, b in enumerate(boxes[:i]):
                overlap = min(a.x1 - b.x0, b.x1 - a.x0, a.y1 - b.y0, b.y1 - a.y0)
                if overlap > 0:
                    apart = np.array([a.x0 + a.x1 - b.x0 - b.x1, a.y0 + a.y1 - b.y0 - b.y1])
                    length = np.hypot(*apart)
                    step = (apart / length if length else np.array([0.0, 1.0])) * (overlap / 2 + 0.5)
                    moves[i] += step
                    moves[j] -= step
        if not moves.any():
            return
        for text, move in zip(texts, moves):
            pixels = axes.transData.transform(text.get_position()) + move
            x, y = axes.transData.inverted().transform(pixels)
            text.set_position((float(x), float(y)))


def require_matplotlib() -> None:
    """Say how to install matplotlib where it is missing; to be called before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('pictures need matplotlib; install it with `pip install "fastdc[plot]"`')


def _new_figure(height_inches: float) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(COLUMN_INCHES, height_inches), layout="constrained")


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(RC)


def _name_cluster(axes: Axes, xy: np.ndarray, name: str) -> Text:
    """The cluster's name at the point nearest to its median, which lies inside it, as a mean may not."""
    from matplotlib.patheffects import withStroke

    middle = np.median(xy, axis=0)
    x, y = xy[np.argmin(((xy - middle) ** 2).sum(1))]
    return axes.text(
        x,
        y,
        name,
        ha="center",
        va="center",
        fontweight="bold",
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )


def _ranked(members: np.ndarray, confidence: np.ndarray, n_columns: int) -> np.ndarray:
    ordered = members[np.argsort(-confidence[members], kind="stable")]
    if len(ordered) <= n_columns:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, n_columns).round().astype(int)]


def _frame(axes: Axes, left: float, top: float, width: int, height: int, gap: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (left - 0.5 - gap / 4, top - 0.5 - gap / 4)
    axes.add_patch(
        Rectangle(corner, width + gap / 2, height + gap / 2, fill=False, edgecolor=ERROR_COLOR, linewidth=0.9)
    )
