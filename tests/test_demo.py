"""The demo: real digits, every method, labels and pictures written, seconds and scores that are those of the labels."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from sklearn.datasets import load_digits

from fastdc import cli, demo, metrics

METHODS = ["kmeans", "autoencoder+kmeans", "DEC", "IDEC"]


@pytest.mark.slow
def test_demo_command_finds_the_digits(tmp_path, capsys):
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    assert "digits: 1,797 images of 64 pixels" in capsys.readouterr().out
    truth = load_digits().target
    for method in METHODS:
        labels = np.load(tmp_path / "digits" / f"labels-{method}.npy")
        assert metrics.clustering_accuracy(truth, labels) > 0.65


@pytest.fixture(scope="module")
def few_digits():
    """The demo with 200 digits."""
    (digits,) = demo.datasets(quick=True)
    few = demo.Images("digits", digits.x[:200], digits.images[:200], digits.truth[:200])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "datasets", lambda quick: iter([few]))
        yield few


@pytest.fixture(scope="module")
def folder(few_digits, tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def outcomes(folder):
    return demo.run(folder, quick=True)["digits"]


def test_images_have_one_scale_for_all_pixels():
    images = np.random.default_rng(0).uniform(0, 255, (50, 4, 4))
    x = demo._images("noise", images, np.zeros(50)).x
    assert x.shape == (50, 16)
    assert x.dtype == np.float32
    assert x.max() == 1
    np.testing.assert_allclose(x, (images / images.max()).reshape(50, 16), rtol=1e-6)


def test_clusters_take_the_names_of_their_classes():
    truth = np.array([0, 0, 1, 1, 2, 2])
    assert demo._named_by_class(truth, np.array([2, 2, 0, 0, 1, 1])).tolist() == truth.tolist()
    assert demo._named_by_class(truth, np.array([2, 2, 0, 0, 1, 0])).tolist() == [0, 0, 1, 1, 2, 1]
    assert demo._named_by_class(truth[:4], np.array([7, 7, 7, 5])).tolist() == [0, 0, 0, 1]
    assert demo._named_by_class(np.array([0, 0, 1]), np.array([1, 1, 1])).tolist() == [0, 0, 0]
    four = demo._named_by_class(np.array([0, 0, 1, 1, 1]), np.array([3, 2, 0, 0, 1]))
    assert len(set(four.tolist())) == 4  # two clusters that no class fits stay apart


def test_demo_writes_labels_and_pictures(few_digits, folder, outcomes):
    assert list(outcomes) == METHODS
    for method, outcome in outcomes.items():
        assert np.array_equal(np.load(folder / "digits" / f"labels-{method}.npy"), outcome.labels)
        assert outcome.scores == metrics.evaluate(few_digits.truth, outcome.labels)
        assert outcome.seconds > 0
    assert outcomes["IDEC"].seconds > outcomes["autoencoder+kmeans"].seconds
    pictures = sorted(path.name for path in (folder / "digits").glob("*.png"))
    assert pictures == ["embedding.png", "samples.png", "training.png"]


def test_demo_repeats_and_prints_its_table(outcomes, tmp_path, capsys):
    again = demo.run(tmp_path, quick=True)["digits"]
    printed = capsys.readouterr().out
    for method in METHODS:
        assert np.array_equal(outcomes[method].labels, again[method].labels)
        (row,) = (line.split() for line in printed.splitlines() if line.split()[:1] == [method])
        names = ("clustering_accuracy", "normalized_mutual_info", "adjusted_rand_index")
        assert row[1:4] == [f"{again[method].scores[name]:.3f}" for name in names]


def test_watching_does_not_change_the_training(few_digits):
    options = {"pretrain_epochs": 2, "epochs": 3, "random_state": 0}
    plain = demo.IDEC(10, **options).fit(few_digits.x)
    watched = demo.WatchedIDEC(10, **options)
    watched.truth = few_digits.truth
    watched.fit(few_digits.x)
    assert np.array_equal(plain.labels_, watched.labels_)
    assert np.array_equal(plain.cluster_centers_, watched.cluster_centers_)
    assert len(watched.watch.accuracy) == 3
    assert watched.watch.accuracy[-1] == metrics.clustering_accuracy(few_digits.truth, watched.labels_)
