"""Plans: what they say, what they refuse, and that bytes are near those of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastdc import cli
from fastdc.data import RowSource, as_row_source
from fastdc.planning import METHODS, check_fits, free_bytes, plan, plans
from fastdc.planning.memory import Shape, kmeans_bytes, mixture_bytes, streamed_kmeans_bytes
from tests.cli_cases import fails


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).standard_normal((3000, 12)).astype(np.float32)


class Read(RowSource):
    """Rows that must be read: so many, of which none is ever."""

    dtype = np.dtype(np.float32)

    def __init__(self, n, d):
        self.shape = n, d

    def read(self, start, stop, out):
        raise AssertionError("a plan that is refused reads nothing")


@pytest.mark.parametrize("method", METHODS)
def test_plan_of_each_method(points, method):
    found = plan(points, method, 10)
    assert (found.method, found.n_samples, found.n_features, found.n_clusters) == (method, 3000, 12, 10)
    assert not found.streamed
    assert 0 < found.peak_bytes <= found.available_bytes
    assert 1e-6 < found.seconds_per_iteration < 10
    assert found.gemm_gflops > 0.1
    assert found.copy_gbs > 0.1
    assert found.flops_per_iteration >= 2 * 3000 * 12 * 10


@pytest.mark.parametrize("covariance", ["diag", "spherical", "tied", "full"])
def test_plan_of_each_covariance(points, covariance):
    assert plan(points, "gmm", 3, covariance_type=covariance).seconds_per_iteration > 0


def test_sources_are_streamed_and_arrays_are_not(points):
    assert plan(as_row_source(points), "kmeans", 10).streamed
    assert not plan(as_row_source(points), "kmeans", 10, streamed=False).streamed
    assert not plan(torch.from_numpy(points), "kmeans", 10).streamed
    assert not plan(as_row_source(points), "minibatch", 10).streamed


def test_bytes_grow_with_what_is_held():
    small, large = (Shape(n, 64, 100, 4, True) for n in (10**6, 10**8))
    assert kmeans_bytes(large) - kmeans_bytes(small) > 17 * 0.99e8
    assert streamed_kmeans_bytes(large) - streamed_kmeans_bytes(small) == pytest.approx(8 * 0.99e8, rel=0.2)
    assert streamed_kmeans_bytes(small._replace(is_mapped=False)) > streamed_kmeans_bytes(small)
    wide = Shape(10**4, 300, 100, 4, True)
    assert mixture_bytes(wide, "full") > mixture_bytes(wide, "diag") + 8 * 100 * 300**2
    assert streamed_kmeans_bytes(Shape(10**9, 64, 10, 4, True)) < 10**9 * 64 * 4 / 20


def test_what_cannot_fit_is_refused_with_what_would():
    rows = Read(10**8, 64)
    with pytest.raises(
        MemoryError, match=r"minibatch of 100,000,000 rows .* needs 27\.\d GB, 2 GB may be used"
    ) as caught:
        plan(rows, "minibatch", 100, memory=2 * 10**9)
    assert "method kmeans, which reads rows a block at a time" in str(caught.value)
    assert "a float32 .npy file" in str(caught.value)
    with pytest.raises(MemoryError, match=r"gmm .* diagonal covariances"):
        plan(Read(10**4, 500), "gmm", 2000, covariance_type="full", memory=10**9)
    with pytest.raises(MemoryError, match=r"at most [\d,]+ clusters") as caught:
        check_fits(Read(10**7, 64), "kmeans", 10**6, memory=10**9)
    most = int(str(caught.value).split("at most ")[1].split(" ")[0].replace(",", ""))
    assert check_fits(Read(10**7, 64), "kmeans", most, memory=10**9) <= 10**9
    with pytest.raises(MemoryError):
        check_fits(Read(10**7, 64), "kmeans", most + 1, memory=10**9)
    with pytest.raises(MemoryError, match="more memory or fewer rows"):
        check_fits(Read(10**10, 64), "kmeans", 10, memory=10**9)


def test_array_that_is_too_large_for_memory_is_read_as_a_source(points):
    with pytest.raises(MemoryError, match="a row source"):
        plan(np.broadcast_to(points[:1], (10**8, 12)), "kmeans", 100, memory=2 * 10**9)


def test_free_memory_is_that_of_the_control_group(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 500 kB\n")
    monkeypatch.setattr("fastdc.planning.memory._MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("fastdc.planning.memory._CGROUP", tmp_path)
    assert free_bytes() == 500 * 1024
    (tmp_path / "memory.max").write_text("300000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    assert free_bytes() == 200_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() == 500 * 1024
    (tmp_path / "meminfo").unlink()
    assert free_bytes() > 1 << 60


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"method": "dbscan"}, "method must be one of"),
        ({"n_clusters": 3001}, "n_clusters=3001 must be at most n_samples=3000"),
        ({"covariance_type": "round"}, "covariance_type must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"memory": 0}, "memory must be at least 1"),
    ],
)
def test_refuses(points, options, fragment):
    with pytest.raises(ValueError, match=fragment):
        plan(points, **options)


@pytest.mark.parametrize(
    ("size", "text"),
    [(12, "12 bytes"), (1234, "1.23 kB"), (5.6e8, "560 MB"), (2e9, "2 GB"), (7.5e12, "7.5 TB")],
)
def test_readable(size, text):
    assert plans.readable(size) == text


def test_command(folder, capsys):
    assert cli.main(["plan", "points.npy", "--k", "3", "--json", "--max-iter", "7"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["streamed"]
    assert report["seconds_at_most"] == 7 * report["seconds_per_iteration"]
    assert cli.main(["plan", "points.npy", "--k", "3", "--in-memory"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["method"].strip() == "kmeans, rows in memory"
    assert lines["100 iterations"].endswith(" s")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--k", "3", "--memory", "1k"], "kmeans of 60 rows of 3 features and 3 clusters needs"),
        (["--k", "3", "--method", "dbscan"], "method must be one of"),
        (["--k", "61"], "n_clusters=61 must be at most n_samples=60"),
        (["--k", "3", "--max-iter", "0"], "--max-iter must be at least 1"),
    ],
)
def test_command_refuses(folder, capsys, arguments, fragment):
    assert fragment in fails(capsys, "plan", "points.npy", *arguments)
