"""Plans: what they say, what they refuse, and that bytes are near those of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdc import cli
from fastdc.data import RowSource, as_row_source
from fastdc.planning import METHODS, check_fits, free_bytes, plan, readable, timing
from fastdc.planning.memory import Shape
from fastdc.planning.plans import make_work
from tests.cli_cases import fails
from tests.planning_cases import ENVIRONMENT


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


ARGUMENTS = {
    "dbscan": {"eps": 2.0, "min_samples": 5},
    "knn": {"n_neighbors": 5, "algorithm": "exact"},
    "spectral": {"n_neighbors": 5},
}
TOLD = ("kmeans", "minibatch", "gmm", "spectral")  # how many clusters there are


@pytest.mark.parametrize("method", METHODS)
def test_plan_of_each_method(points, method):
    k = 10 if method in TOLD else None
    found = plan(points, method, k, **ARGUMENTS.get(method, {}))
    assert (found.method, found.n_samples, found.n_features, found.n_clusters) == (method, 3000, 12, k)
    assert not found.streamed
    assert found.iterates == (method in ("kmeans", "minibatch", "gmm"))
    assert 0 < found.peak_bytes <= found.available_bytes
    assert 1e-6 < found.seconds_per_iteration < 60
    assert found.gemm_gflops > 0.1
    assert found.copy_gbs > 0.1
    assert found.flops_per_iteration >= 2 * 3000 * 12 * (k or 1)


@pytest.mark.parametrize("covariance", ["diag", "spherical", "tied", "full"])
def test_plan_of_each_covariance(points, covariance):
    assert plan(points, "gmm", 3, covariance_type=covariance).seconds_per_iteration > 0


def test_sources_are_streamed_and_arrays_are_not(points):
    assert plan(as_row_source(points), "kmeans", 10).streamed
    assert not plan(as_row_source(points), "kmeans", 10, streamed=False).streamed
    assert not plan(torch.from_numpy(points), "kmeans", 10).streamed
    assert plan(as_row_source(points), "knn", algorithm="exact").streamed
    for method in ("minibatch", "gmm"):
        assert plan(as_row_source(points), method, 3).streamed
    with pytest.raises(ValueError, match="method knn needs all rows in memory; leave streamed out"):
        plan(points, "knn", algorithm="lists", streamed=True)


@pytest.fixture(scope="module")
def counted():
    """Bytes that runs of each method add, counted in a process of its own, and those that were planned."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks are counted on Linux only")
    command = [sys.executable, "-m", "tests.planning_cases"]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_bytes_are_those_that_runs_allocate(counted):
    assert {case["case"].split("_")[0] for case in counted} == set(METHODS)
    for case in counted:
        assert case["planned"] == pytest.approx(case["counted"], rel=0.2), case


def test_bytes_grow_with_what_is_held():
    small, large = (Shape(n, 64, 4, True) for n in (10**7, 10**8))
    rows = 0.9e8
    array, source = (make_work("kmeans", n_clusters=100, streamed=streamed) for streamed in (False, True))
    groups = 9  # of twelve centers, and that of the restless ones
    assert array.bytes(large) - array.bytes(small) == rows * (25 + 8 + 4 * (groups + 1))
    assert source.bytes(large) - source.bytes(small) == pytest.approx(17 * rows, rel=0.02)
    assert source.bytes(small._replace(is_mapped=False)) > source.bytes(small)
    assert source.bytes(Shape(10**9, 64, 4, True)) < 10**9 * 64 * 4 / 10
    wide = Shape(10**4, 300, 4, True)
    diag, full = (make_work("gmm", n_clusters=100, covariance_type=name) for name in ("diag", "full"))
    assert full.bytes(wide) > diag.bytes(wide) + 8 * 100 * 300**2
    density = make_work("dbscan", eps=1.0, min_samples=5)
    assert density.bytes(large) - density.bytes(small) == rows * (2 * 64 * 4 + 16 + 42)
    assert density.bytes(large._replace(is_mapped=False)) == density.bytes(large) + 10**8 * 64 * 4
    in_files = make_work("dbscan", eps=1.0, min_samples=5, streamed=True)
    for shape in (large, large._replace(is_mapped=False)):
        assert in_files.bytes(shape) == density.bytes(large) - 2 * 10**8 * 64 * 4
    few = Shape(10**5, 64, 4, False)
    assert in_files.bytes(few) == density.bytes(few)


def test_eigenvectors_are_reckoned_with_unless_components_are_enough():
    shape = Shape(10**6, 2, 8, True)
    unknown, enough, few = (make_work("spectral", n_clusters=3, n_components=n) for n in (None, 3, 2))
    assert unknown.bytes(shape) == few.bytes(shape) > 1.5 * enough.bytes(shape)
    assert enough.bytes(shape) == make_work("spectral", n_clusters=2, n_components=7).bytes(shape)


def test_components_are_those_of_some_rows(blobs):
    x, _ = blobs
    assert make_work("spectral", n_clusters=3, n_neighbors=5).look_at(as_row_source(x)).n_components == 3
    assert plan(x, "spectral", 3, n_neighbors=5).peak_bytes < plan(x, "spectral", 5, n_neighbors=5).peak_bytes


def test_exact_search_keeps_to_its_memory():
    shape = Shape(10**7, 64, 4, True)
    for memory in (10**8, 10**9):
        work = make_work("knn", algorithm="exact", search_memory=memory)
        assert memory / 10 < work.bytes(shape) < memory
    read = shape._replace(is_mapped=False)
    assert make_work("knn", algorithm="exact").bytes(read) < 1 << 30
    assert make_work("knn", algorithm="lists").bytes(read) > 2 * 10**7 * 64 * 4


def test_trials_have_rows_for_all_clusters(points, monkeypatch):
    monkeypatch.setattr("fastdc.planning.timing.FIRST_ROWS", 64)
    assert plan(points[:300], "spectral", 100, n_neighbors=3).seconds_per_iteration > 0


@pytest.mark.parametrize("powers", [(1.0, 2.0), (0.0, 1.0), (1.0, 1.5)])
def test_what_grows_as_two_powers_is_extrapolated_through_two_trials(powers):
    tried = []

    def seconds(n):
        tried.append(n)
        return 3e-5 * n ** powers[0] + 2e-6 * n ** powers[1]

    assert timing.grown(seconds, 10**7, powers) == pytest.approx(seconds(10**7))
    assert tried[:-1] == [2048 * 2**i for i in range(len(tried) - 1)]
    assert tried[-2] < 10**6
    assert timing.grown(seconds, 100, powers) == seconds(100)


def test_rows_by_chance_are_rows_in_their_order():
    rows = as_row_source(np.arange(1000.0)[:, None])
    chosen = timing.by_chance(rows, 100)[:, 0]
    assert len(chosen.unique()) == 100
    assert torch.equal(chosen, chosen.sort().values)
    assert len(timing.by_chance(rows, 5000)) == 1000


def test_what_cannot_fit_is_refused_with_what_would():
    rows = Read(10**8, 64)
    with pytest.raises(
        MemoryError, match=r"minibatch of 100,000,000 rows .* needs 26\.\d GB, 3 GB may be used"
    ) as caught:
        plan(rows, "minibatch", 100, memory=3 * 10**9, streamed=False)
    assert "a row source (fastdc.data.as_row_source), which is read a block at a time" in str(caught.value)
    assert "a float32 .npy file" in str(caught.value)
    assert check_fits(rows, "minibatch", 100, memory=3 * 10**9) < 10**9
    assert check_fits(rows, "gmm", 100, memory=3 * 10**9) < 2 * 10**9
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
    with pytest.raises(MemoryError, match=r"dbscan of 10,000,000 rows of 64 features needs 8.\d+ GB, 7 GB") as caught:
        plan(Read(10**7, 64), "dbscan", eps=1.0, min_samples=5, memory=7 * 10**9, streamed=False)
    assert "a float32 .npy file, which is mapped and not read into memory; or a row source" in str(caught.value)
    assert check_fits(Read(10**7, 64), "dbscan", eps=1.0, min_samples=5, memory=10**9) < 7 * 10**8
    with pytest.raises(MemoryError, match=r"spectral .* and 20 clusters needs .*: at most \d+ clusters"):
        plan(Read(10**6, 2), "spectral", 20, memory=5 * 10**9 // 2)
    with pytest.raises(MemoryError, match=r"knn .* needs .*: algorithm exact, which reads the points a part at a time"):
        check_fits(Read(10**7, 64), "knn", algorithm="lists", memory=2 * 10**9)
    with pytest.raises(MemoryError, match=r"knn .*: a search that is told to take [\d,]+ bytes") as caught:
        check_fits(Read(10**7, 64), "knn", algorithm="exact", memory=10**8)
    told = int(str(caught.value).split("to take ")[1].split(" ")[0].replace(",", ""))
    assert check_fits(Read(10**7, 64), "knn", algorithm="exact", search_memory=told, memory=10**8) <= 10**8


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
        ({"method": "optics"}, "method must be one of"),
        ({"method": "dbscan"}, "method 'dbscan' needs eps and min_samples"),
        ({"method": "dbscan", "eps": 0.0, "min_samples": 5}, "eps must be"),
        ({"method": "dbscan", "eps": 1.0, "min_samples": 0}, "min_samples must be at least 1"),
        ({"method": "dbscan", "eps": 1.0, "min_samples": 5, "n_clusters": 3}, "n_clusters is for method kmeans, "),
        ({"method": "dbscan", "eps": 1.0, "min_samples": 5, "metric": "inner_product"}, "metric must be one of"),
        ({"method": "spectral", "n_neighbors": 0}, "n_neighbors must be at least 1"),
        ({"method": "knn", "n_neighbors": 3000}, "n_neighbors must be from 1 to 2999"),
        ({"method": "knn", "algorithm": "tree"}, "algorithm must be 'auto' or one of"),
        pytest.param(
            {"method": "knn", "algorithm": "hnsw"},
            "the seconds of algorithm 'hnsw' cannot be told from a small trial",
            marks=pytest.mark.peers("faiss"),
        ),
        ({"eps": 1.0}, "eps is for method dbscan, got method 'kmeans'"),
        ({"n_clusters": 3001}, "n_clusters=3001 must be at most n_samples=3000"),
        ({"method": "gmm", "covariance_type": "round"}, "covariance_type must be one of"),
        ({"method": "minibatch", "batch_size": 0}, "batch_size must be at least 1"),
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
    assert readable(size) == text


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
        (["--k", "3", "--method", "optics"], "--method must be one of kmeans, minibatch, gmm, spectral, dbscan, knn"),
        ([], "--method kmeans needs --k"),
        (["--method", "dbscan"], "--method dbscan needs --eps and --min-samples"),
        (["--k", "3", "--method", "knn"], "--k is for --method kmeans, minibatch, gmm, spectral, got --method knn"),
        (["--k", "3", "--eps", "1"], "--eps is for --method dbscan, got --method kmeans"),
        (["--k", "61"], "n_clusters=61 must be at most n_samples=60"),
        (["--k", "3", "--max-iter", "0"], "--max-iter must be at least 1"),
    ],
)
def test_command_refuses(folder, capsys, arguments, fragment):
    assert fragment in fails(capsys, "plan", "points.npy", *arguments)


def test_command_of_a_run_without_iterations(folder, capsys):
    arguments = ["--method", "dbscan", "--eps", "2.5", "--min-samples", "4"]
    assert cli.main(["plan", "points.npy", *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_clusters"] is None
    assert report["seconds_at_most"] == report["seconds_per_iteration"]
    assert cli.main(["plan", "points.npy", "--method", "knn", "-n", "4", "--algorithm", "exact"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["time"].strip().endswith(" s")
    assert "an iteration" not in lines


@pytest.mark.parametrize(
    "arguments",
    [
        ["cluster", "points.npy", "--k", "3", "--method", "spectral", "--memory", "1k"],
        ["cluster", "points.npy", "--eps", "2", "--min-samples", "4", "--method", "dbscan", "--memory", "1k"],
    ],
)
def test_cluster_refuses_what_cannot_fit(folder, capsys, arguments):
    assert f"{arguments[arguments.index('--method') + 1]} of 60 rows of 3 features" in fails(capsys, *arguments)
    assert not (folder / "labels.npy").exists()


def test_knn_refuses_what_cannot_fit(folder, capsys, monkeypatch):
    monkeypatch.setattr("fastdc.planning.plans.free_bytes", lambda: 10_000)
    assert "knn of 60 rows of 3 features needs" in fails(capsys, "knn", "points.npy", "-n", "4")
    assert not (folder / "graph.npz").exists()
