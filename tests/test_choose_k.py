"""The sweep over numbers of clusters: its criteria against their formulas, what it suggests, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.metrics import silhouette_score

from fastdc import GaussianMixture, KMeans, choose_k, cli, plots
from fastdc.cluster.k_sweep import kmeans_bic
from fastdc.data import as_row_source
from tests.cli_cases import fails

CENTERS = np.array([[0, 0, 0], [12, 0, 0], [0, 12, 0], [0, 0, 12], [12, 12, 12]])


@pytest.fixture(scope="module")
def points():
    return make_blobs(400, centers=CENTERS, random_state=0)[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_criterion_finds_clear_clusters(points, dtype):
    criteria = ("silhouette", "bic", "mixture_bic", "gap")
    sweep = choose_k(points.astype(dtype), range(1, 9), criteria=criteria, random_state=0)
    assert sweep.suggested == dict.fromkeys(criteria, 5)
    assert [row["k"] for row in sweep.table] == list(range(1, 9))
    assert sweep.table[0]["silhouette"] is None
    inertias = [row["inertia"] for row in sweep.table]
    assert inertias == sorted(inertias, reverse=True)


def test_one_cluster_is_one_cluster():
    x = np.random.default_rng(0).uniform(size=(300, 4))
    assert choose_k(x, range(1, 6), criteria=["gap"], random_state=0).suggested == {"gap": 1}
    x = np.random.default_rng(0).standard_normal((300, 4))
    assert choose_k(x, range(1, 6), criteria=["bic"], random_state=0).suggested == {"bic": 1}


def test_silhouette_is_exact(points):
    (row,) = choose_k(points, [4], criteria=["silhouette"], random_state=3).table
    seed = int(np.random.default_rng(3).integers(2**31 - 1))
    model = KMeans(4, n_init=3, max_iter=100, random_state=seed).fit(points)
    assert row["inertia"] == model.inertia_
    assert row["silhouette"] == pytest.approx(silhouette_score(points, model.labels_), rel=1e-9)


def test_bic_is_the_likelihood_of_round_gaussians(points):
    model = KMeans(5, random_state=0).fit(points)
    n, d = points.shape
    sizes = np.bincount(model.labels_)
    variance = model.inertia_ / (d * (n - 5))
    own = model.cluster_centers_[model.labels_]
    log_density = -0.5 * ((points - own) ** 2).sum(1) / variance - d / 2 * np.log(2 * np.pi * variance)
    log_likelihood = (log_density + np.log(sizes / n)[model.labels_]).sum()
    expected = -2 * log_likelihood + 5 * (d + 1) * np.log(n)
    assert kmeans_bic(model.inertia_, sizes, d) == pytest.approx(expected, rel=1e-9)
    assert kmeans_bic(0.0, sizes, d) is None
    assert kmeans_bic(1.0, np.ones(5, int), d) is None


def test_mixture_bic_is_that_of_the_estimator(points):
    (row,) = choose_k(points, [3], criteria=["mixture_bic"], random_state=3).table
    seed = int(np.random.default_rng(3).integers(2**31 - 1))
    assert row["mixture_bic"] == GaussianMixture(3, random_state=seed).fit(points).bic(points)


def test_gap_is_that_of_the_paper():
    """In one dimension the box of the principal axis is the range of the points, and W_1 n times their variance."""
    x = np.array([[0.0], [1.0], [4.0]])
    (row,) = choose_k(x, [1], criteria=["gap"], n_references=200, random_state=0).table
    random = np.random.default_rng(1)
    logs = np.log([3 * np.var(random.uniform(0, 4, 3)) for _ in range(4000)])
    assert row["gap"] == pytest.approx(logs.mean() - np.log(3 * np.var(x)), abs=0.3)
    assert row["gap_error"] == pytest.approx(logs.std(), rel=0.3)


def test_references_turn_with_the_points(points):
    turned = points @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] + 100
    a, b = (choose_k(x, [2, 5], criteria=["gap"], random_state=0).table for x in (points, turned))
    for one, other in zip(a, b):
        assert other["gap"] == pytest.approx(one["gap"], abs=0.2)


def test_samples_sources_and_tensors(points):
    sweep = choose_k(points, [4, 5], sample_size=150, random_state=0)
    assert sweep.suggested["silhouette"] == 5
    for rows in (as_row_source(points), torch.from_numpy(points)):
        other = choose_k(rows, [4, 5], sample_size=150, random_state=0)
        assert [row["inertia"] for row in other.table] == [row["inertia"] for row in sweep.table]
        for one, expected in zip(other.table, sweep.table):
            assert one["gap"] == pytest.approx(expected["gap"], rel=1e-6)
            assert one["silhouette"] == pytest.approx(expected["silhouette"], rel=1e-6)


def test_repeated_rows_have_no_bic_or_gap():
    x = np.repeat([[0.0, 1.0], [2.0, 3.0]], 5, axis=0)
    sweep = choose_k(x, [2, 3], random_state=0)
    assert [row["gap"] for row in sweep.table] == [None, None]
    assert sweep.suggested["gap"] is None
    assert sweep.suggested["bic"] is None


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"k": [0, 2]}, "k must be at least 1, got 0"),
        ({"k": [401]}, "k=401 must be at most n_samples=400"),
        ({"k": []}, "k must hold at least one number"),
        ({"criteria": ["elbow"]}, "criteria must be some of"),
        ({"criteria": []}, "criteria must be some of"),
        ({"sample_size": 1}, "sample_size must be at least 2"),
        ({"n_references": 0}, "n_references must be at least 1"),
    ],
)
def test_refuses(points, options, fragment):
    with pytest.raises(ValueError, match=fragment):
        choose_k(points, **options)


def test_figure_marks_what_is_suggested(points, tmp_path):
    sweep = choose_k(points, range(1, 7), random_state=0)
    figure = plots.k_sweep_figure(*sweep)
    assert len(figure.axes) == 3
    assert [axes.get_title(loc="right") for axes in figure.axes] == ["suggests 5"] * 3
    plots.save_figure(figure, tmp_path / "k.png")
    assert (tmp_path / "k.png").stat().st_size > 10_000
    none = plots.k_sweep_figure([{"k": 2, "gap": 0.1, "gap_error": 0.1}], {"gap": None})
    assert none.axes[0].get_title(loc="right") == "no suggestion"


def test_command(folder, capsys):
    assert cli.main(["choose-k", "points.npy", "--k", "2-4,6-8:2", "--plot", "k.png", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["suggested"] == {"silhouette": 3, "bic": 3, "gap": 3}
    assert [row["k"] for row in report["table"]] == [2, 3, 4, 6, 8]
    assert (folder / "k.png").exists()
    assert cli.main(["choose-k", "points.npy", "--k", "1,2", "--criteria", "silhouette"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["k", "inertia", "silhouette"]
    assert lines[1].split()[-1] == "-"
    assert lines[-1] == "silhouette suggests 2"


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--k", "few"], "--k must be numbers such as 2-10, 10-100:10 or 2,4,8, got 'few'"),
        (["--k", "5-2"], "--k 5-2 holds no numbers"),
        (["--k", "2-5:0"], "--k 2-5:0 holds no numbers"),
        (["--k", "2,61"], "k=61 must be at most n_samples=60"),
        (["--criteria", "elbow"], "criteria must be some of"),
        (["--plot", "k.gif"], "--plot k.gif must end in .png, .pdf or .svg"),
    ],
)
def test_command_refuses(folder, capsys, arguments, fragment):
    assert fragment in fails(capsys, "choose-k", "points.npy", *arguments)
