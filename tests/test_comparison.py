"""Clusterers side by side, the catalogue of methods, and the pictures of scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.datasets import make_blobs

from fastdc import KMeans, methods
from fastdc.catalog import STATUS, as_table, catalog
from fastdc.comparison import compare
from fastdc.methods import list_methods


@pytest.fixture(scope="module")
def blobs():
    return make_blobs(90, 3, centers=3, cluster_std=0.3, random_state=1)


def test_scores_and_seconds_of_each_seed(blobs):
    X, y = blobs
    result = compare({"ours": KMeans(3), "sklearn": SklearnKMeans(3), "two": KMeans(2)}, X, y, seeds=[4, 7])
    ours, peer, two = result.outcomes
    assert ours.scores == peer.scores == {"ACC": [1.0, 1.0], "NMI": [1.0, 1.0], "ARI": [1.0, 1.0]}
    assert two.scores["ACC"] == pytest.approx([2 / 3] * 2)
    assert two.n_clusters == [2, 2]
    assert all(len(outcome.seconds) == 2 and min(outcome.seconds) > 0 for outcome in result.outcomes)
    head, _, first, *_ = result.table().splitlines()
    assert head == "| method | ACC | NMI | ARI | clusters | seconds |"
    assert first.startswith("| ours | 1.000 ± 0.000 | 1.000 ± 0.000 | 1.000 ± 0.000 | 3 |")


def test_seeds_reach_the_clusterer_and_the_one_given_stays_as_it_was(blobs):
    X, y = blobs
    seen = []

    class Spy(KMeans):
        def fit(self, X, y=None, sample_weight=None, **options):
            assert y is None
            seen.append(self.random_state)
            return super().fit(X, y, sample_weight, **options)

    given = Spy(3)
    compare([given], X, y, seeds=3)
    assert seen == [0, 1, 2]
    assert not hasattr(given, "labels_")


def test_without_classes_silhouette_and_agreement(blobs):
    X, _ = blobs
    result = compare([KMeans(3), KMeans(1)], X, seeds=2)
    first, second = result.outcomes
    assert [first.name, second.name] == ["KMeans", "KMeans 2"]
    assert first.scores["agreement"] == [1.0]
    assert first.scores["silhouette"][0] > 0.8
    assert np.isnan(second.scores["silhouette"]).all()


@pytest.mark.parametrize(
    ("estimators", "seeds", "message"),
    [([], 2, "estimators must hold at least one clusterer"), ([KMeans(3)], 0, "seeds must name at least one seed")],
)
def test_nothing_to_compare_is_refused(blobs, estimators, seeds, message):
    with pytest.raises(ValueError, match=message):
        compare(estimators, *blobs, seeds=seeds)


def test_the_catalogue_has_every_method_once():
    entries = catalog()
    assert len(entries) == 85
    assert len({entry.name for entry in entries}) == 85
    classes = set(methods.__all__)
    for entry in entries:
        assert entry.status in STATUS
        assert entry.line
        assert (entry.status in ("done", "preset")) == bool(entry.where), entry.name
        assert not entry.where or entry.where in classes, entry.name
        assert entry.note or entry.status in ("done", "next"), entry.name
    done = {entry.where for entry in list_methods()}
    assert done == {
        name for name in classes if name[0].isupper() and name not in ("DeepClusterer", "PretrainedClusterer")
    }
    assert len(as_table(list(entries)).splitlines()) == 87
    with pytest.raises(ValueError, match="status must be one of"):
        list_methods("soon")


def test_pictures_of_scores(blobs):
    pytest.importorskip("matplotlib")
    from fastdc import score_plots
    from tests.test_plots import outside, overlapping, texts_of

    X, y = blobs
    result = compare({"k-means": KMeans(3), "two clusters": KMeans(2), "five": KMeans(5)}, X, y, seeds=3)
    labels = KMeans(3, random_state=0).fit(X).labels_
    figures = {
        "comparison": score_plots.comparison_figure(result),
        "confusion": score_plots.confusion_figure(y, labels),
        "sizes": score_plots.sizes_figure(labels, 4),
    }
    for name, figure in figures.items():
        boxes = texts_of(figure)
        assert not overlapping(boxes), name
        assert not outside(figure, boxes), name
    shares = figures["confusion"].axes[0].images[0].get_array()
    np.testing.assert_array_equal(shares, np.eye(3))
    assert [patch.get_height() for patch in figures["sizes"].axes[0].patches] == [30, 30, 30, 0]
    names = [text for text, _ in texts_of(figures["comparison"])]
    assert {"k-means", "two clusters", "five", "ACC", "NMI", "ARI"} <= set(names)
