"""``fastdc cluster --method``: every estimator of fixed features, its options, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch

import fastdc
from fastdc import cli
from fastdc.cli._methods import METHODS
from fastdc.cluster import streaming
from fastdc.data import ParquetRows
from tests.cli_cases import fails, same_partition
from tests.row_source_cases import column_table

FIXED = [name for name, method in METHODS.items() if not method.is_deep]


def run(capsys, *arguments: str) -> dict:
    assert cli.main(["cluster", "points.npy", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("method", FIXED)
def test_every_method_finds_the_blobs(folder, blobs, capsys, method):
    options = {"dbscan": ["--eps", "4", "--min-samples", "3"], "subspace": ["--k", "2", "--set", "n_nonzero=1"]}
    report = run(capsys, "--method", method, *options.get(method, ["--k", "3"]))
    labels = np.load("labels.npy")
    assert labels.shape == (60,)
    assert labels.dtype == np.int32
    assert report["method"] == method
    assert report["n_clusters"] == (2 if method == "subspace" else 3)
    assert ("seed" in report) == (method != "dbscan")
    if method not in ("subspace", "spherical"):
        assert same_partition(labels, blobs[1])
        assert report["cluster_sizes"] == {"smallest": 20, "median": 20, "largest": 20, "empty": 0}


@pytest.mark.parametrize("method", FIXED)
def test_every_option_of_the_table_is_a_parameter(method):
    line = METHODS[method]
    assert set(line.options.values()) <= set(getattr(fastdc, line.estimator)._get_param_names())
    assert set(line.needed) <= set(line.options)


@pytest.mark.parametrize("method", ["minibatch", "gmm"])
def test_files_are_read_a_block_at_a_time(folder, blobs, capsys, monkeypatch, method):
    x = np.repeat(blobs[0], 10, axis=0)
    pyarrow.parquet.write_table(column_table(x), "points.parquet", row_group_size=100)
    monkeypatch.setattr(streaming, "MOST_ROWS", 64)
    most = []

    def read(self, start, stop, out):
        most.append(stop - start)
        original(self, start, stop, out)

    original = ParquetRows.read
    monkeypatch.setattr(ParquetRows, "read", read)
    arguments = ["--method", method, "--k", "3", "--json"]
    if method == "minibatch":
        arguments += ["--batch-size", "50", "--init", "starts.npy"]
        np.save("starts.npy", x[[0, 200, 400]])
    assert cli.main(["cluster", "points.parquet", *arguments]) == 0
    assert same_partition(np.load("labels.npy"), np.repeat(blobs[1], 10))
    assert {64, 24} <= set(most)


def test_noise_is_counted_apart(folder, blobs, capsys):
    np.save("points.npy", np.vstack([blobs[0], [[90.0, 90, 90]]]))
    report = run(capsys, "--method", "dbscan", "--eps", "4", "--min-samples", "3")
    assert report["n_clusters"] == 3
    assert report["cluster_sizes"]["noise"] == 1
    assert np.load("labels.npy")[-1] == -1


def test_init_by_name_and_from_a_file(folder, blobs, capsys):
    starts = blobs[0][[0, 20, 40]]
    np.save("starts.npy", starts)
    for init in ("kmeans++", "k-means||", "random", "starts.npy"):
        run(capsys, "--k", "3", "--init", init)
    expected = fastdc.KMeans(3, init=starts).fit(blobs[0])
    assert np.array_equal(np.load("labels.npy"), expected.labels_)
    run(capsys, "--k", "3", "--method", "gmm", "--init", "starts.npy", "--centers", "means.npy")
    assert np.array_equal(np.load("labels.npy"), expected.labels_)
    np.testing.assert_allclose(np.load("means.npy"), expected.cluster_centers_, atol=1e-3)


def test_options_reach_the_estimator(folder, blobs, capsys):
    report = run(capsys, "--k", "8", "--n-init", "3", "--tol", "0", "--max-iter", "2", "--seed", "5", "--device", "cpu")
    expected = fastdc.KMeans(8, n_init=3, tol=0.0, max_iter=2, random_state=5).fit(blobs[0])
    assert (report["inertia"], report["n_iter"]) == (expected.inertia_, expected.n_iter_)
    run(capsys, "--k", "3", "--method", "gmm", "--covariance", "full", "--set", "reg_covar=0.5", "--centers", "c.npy")
    expected = fastdc.GaussianMixture(3, covariance_type="full", reg_covar=0.5, random_state=0).fit(blobs[0])
    assert np.array_equal(np.load("c.npy"), expected.means_)
    run(capsys, "--k", "3", "--method", "spectral", "--set", "affinity=self_tuning", "--neighbors", "5")
    run(capsys, "--k", "3", "--threads", "1")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--eps", "1", "--k", "3"], "--eps is for --method dbscan, got --method kmeans"),
        (["--method", "dbscan", "--k", "3", "--eps", "1"], "--k is for --method kmeans, minibatch, "),
        (["--method", "dbscan", "--eps", "1"], "--method dbscan needs --min-samples"),
        (["--method", "dbscan"], "--method dbscan needs --eps and --min-samples"),
        (["--method", "dbscan", "--eps", "1", "--min-samples", "2", "--seed", "1"], "--seed is for --method kmeans"),
        (["--method", "dbscan", "--eps", "0", "--min-samples", "2"], "eps must be a finite number above 0"),
        (["--method", "gmm"], "--method gmm needs --k"),
        (["--method", "gmm", "--k", "3", "--init", "random"], "--init must be a file of centers"),
        (["--method", "gmm", "--k", "3", "--covariance", "round"], "covariance_type must be one of"),
        (["--method", "spectral", "--k", "3", "--max-iter", "5"], "--max-iter is for --method kmeans"),
        (["--method", "spectral", "--k", "3", "--centers", "c.npy"], "--centers is for --method kmeans"),
        (["--method", "balanced", "--k", "3", "--capacity", "19"], "capacity=19 leaves room for 57 rows of 60"),
        (["--k", "3", "--init", "best"], "--init must be k-means++, k-means||, random or a file of centers"),
        (["--k", "3", "--init", "none.npy"], "none.npy: no such file"),
        (["--k", "2", "--init", "points.npy"], "init has shape (60, 3), wanted are"),
        (["--k", "3", "--n-init", "0"], "--n-init must be at least 1, got 0"),
        (["--k", "3", "--tol", "-1"], "tol must be 0 or above"),
        (["--k", "3", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["--k", "3", "--device", "gpu"], "device"),
        (
            ["--k", "3", "--method", "balanced", "--memory", "1G"],
            "--memory is for --method kmeans, minibatch,",
        ),
        (["--k", "3", "--memory", "1k"], "kmeans of 60 rows of 3 features and 3 clusters needs"),
        (["--k", "3", "--method", "gmm", "--memory", "1k"], "gmm of 60 rows of 3 features and 3 clusters needs"),
        (["--k", "3", "--method", "two-level", "--memory", "?"], "--memory must be a number of bytes such as 500M"),
        (["--k", "3", "--set", "algorithm"], "--set must be NAME=VALUE, got 'algorithm'"),
        (["--k", "3", "--set", "algo=lloyd"], "--set algo: KMeans has no such parameter; it has algorithm, backend"),
        (["--k", "3", "--set", "n_clusters=4"], "--set n_clusters gives what another option gives too"),
        (["--k", "3", "--set", "algorithm=elkan"], "algorithm must be"),
        (
            ["--k", "3", "--method", "spherical", "--deterministic"],
            "--deterministic is for --method kmeans, minibatch, gmm",
        ),
    ],
)
def test_refuses(folder, capsys, arguments, fragment):
    assert fragment in fails(capsys, "cluster", "points.npy", *arguments)
    assert not (folder / "labels.npy").exists()
