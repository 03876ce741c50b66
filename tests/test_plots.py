"""Pictures: nothing overlaps, nothing is cut off, everything is drawn; and the demo that makes them."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from fastdc import plots


def texts_of(figure):
    """Every text that a figure shows, and its box in pixels."""
    figure.draw_without_rendering()
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = zip(axis.get_ticklocs(), axis.get_ticklabels())
        hidden |= {id(label) for place, label in ticks if not low <= place <= high}
        if not axis.axes.axison:
            hidden |= {id(text) for text in axis.axes.findobj(Text)}
    found = [text for text in figure.findobj(Text) if text.get_text().strip() and id(text) not in hidden]
    return [(text.get_text(), text.get_window_extent()) for text in found if text.get_visible()]


def overlapping(boxes):
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    return [(a[0], b[0]) for a, b in pairs if a[1].overlaps(b[1])]


def outside(figure, boxes):
    page = figure.bbox
    return [name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > page.x1 or box.y1 > page.y1]


@pytest.fixture
def clusters():
    """Ten clusters in the plane whose middles nearly coincide, so that their names would."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 30)
    return generator.standard_normal((300, 2)) * 10 + labels[:, None] * 0.01, labels


def test_cluster_names_are_pushed_apart(clusters):
    xy, labels = clusters
    figure = plots.embedding_figure({"raw": xy, "embedding": 5 * xy}, labels)
    boxes = texts_of(figure)
    assert sorted(name for name, _ in boxes if name.isdecimal()) == sorted([str(i) for i in range(10)] * 2)
    assert overlapping(boxes) == []
    assert outside(figure, boxes) == []


def test_embedding_draws_every_point_in_the_color_of_its_cluster(clusters):
    xy, labels = clusters
    figure = plots.embedding_figure({"embedding": xy}, labels, "PCA")
    (axes,) = figure.axes
    (points,) = axes.collections
    drawn = {tuple(position): tuple(color) for position, color in zip(points.get_offsets(), points.get_facecolors())}
    assert drawn == {tuple(p): to_rgba(plots.color_of(label)) for p, label in zip(xy, labels)}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("PCA 1", "PCA 2", "embedding")


def test_colors_are_distinct_and_repeat():
    assert len({plots.color_of(i) for i in range(10)}) == 10
    assert plots.color_of(10) == plots.color_of(0)


def test_samples_are_sorted_by_confidence_and_errors_framed():
    images = np.zeros((6, 2, 2))
    images[:, 0, 0] = [1.0, 0.2, 0.4, 0.8, 0.6, 0.0]  # what tells them apart
    labels = np.array([0, 0, 0, 1, 1, 1])
    confidence = np.array([0.3, 0.9, 0.6, 0.5, 0.7, 0.1])
    wrong = np.array([False, True, False, False, False, True])
    figure = plots.samples_figure(images, labels, confidence, wrong, n_columns=3)
    (axes,) = figure.axes
    sheet = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(1 - sheet[0, ::4], [0.2, 0.4, 1.0])
    np.testing.assert_allclose(1 - sheet[4, ::4], [0.6, 0.8, 0.0])
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(frames) == 2
    boxes = texts_of(figure)
    assert overlapping(boxes) == []
    assert outside(figure, boxes) == []
    assert outside(figure, [("frame", frame.get_window_extent()) for frame in frames]) == []


def test_a_row_shows_the_surest_and_the_least_sure_of_a_large_cluster():
    images = np.linspace(0, 1, 50)[:, None, None]
    figure = plots.samples_figure(images, np.zeros(50, int), -images[:, 0, 0], n_columns=5)
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(1 - sheet[0, [0, -3]], [0.0, 1.0])


def test_equal_images_draw_without_a_division_by_zero():
    figure = plots.samples_figure(np.full((3, 2, 2), 7.0), np.zeros(3, int), np.arange(3.0))
    assert np.isfinite(np.asarray(figure.axes[0].images[0].get_array())).all()


@pytest.mark.parametrize("n_panels", [1, 3, 4])
def test_training_curves_are_legible(n_panels):
    epochs = list(range(30))
    lines = {"DEC": (epochs, np.exp(-np.array(epochs) / 9)), "IDEC": (epochs, np.linspace(0.5, 0.9, 30))}
    panels = [plots.Curves(f"quantity {i}", "epoch of refinement", lines) for i in range(n_panels)]
    figure = plots.training_figure(panels)
    boxes = texts_of(figure)
    assert overlapping(boxes) == []
    assert outside(figure, boxes) == []
    drawn = [axes for axes in figure.axes if axes.lines]
    assert len(drawn) == n_panels
    for axes in drawn:
        assert [line.get_label() for line in axes.lines] == ["DEC", "IDEC"]
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 2


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_save_figure_writes_the_named_format(tmp_path, clusters, suffix):
    path = tmp_path / f"picture.{suffix}"
    plots.save_figure(plots.embedding_figure({"raw": clusters[0]}, clusters[1]), path)
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_missing_matplotlib_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"fastdc\[plot\]\""):
        plots.require_matplotlib()


def test_drawing_leaves_the_settings_of_matplotlib_alone(clusters):
    import matplotlib

    matplotlib.get_backend()  # settles the one setting that is found out late
    before = matplotlib.rcParams.copy()
    plots.embedding_figure({"raw": clusters[0]}, clusters[1])
    assert matplotlib.rcParams == before
