"""Neighbours to disk: those of ``knn``, in bounded memory, whole or not at all."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
import torch

from fastdc import cli
from fastdc.data import RowSource, load_points
from fastdc.kernels.neighbors import search
from fastdc.kernels.neighbors.near_lists import NearLists
from fastdc.kernels.neighbors.search import PointIndex
from fastdc.neighbors import knn, recall, save_knn, to_disk
from tests.cli_cases import fails

SMALL = 100_000  # bytes that cut 2,000 rows into many blocks and parts


@pytest.fixture
def points():
    x = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    x[100:130] = x[0]  # more copies than neighbours are asked for
    return x


class Read(RowSource):
    """Rows that must be read, by one thread at a time; how many were at most at a time."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.most = x, x.shape, x.dtype, 0
        self.lock = threading.Lock()

    def read(self, start, stop, out):
        assert self.lock.acquire(blocking=False)
        self.most = max(self.most, stop - start)
        out[:] = self.x[start:stop]
        time.sleep(1e-4)
        self.lock.release()


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "inner_product"])
@pytest.mark.parametrize("memory", [1 << 30, SMALL])
def test_is_knn(tmp_path, points, metric, memory):
    path = tmp_path / "graph.npz"
    saved = save_knn(points, path, 7, metric=metric, memory=memory)
    expected = knn(torch.from_numpy(points), 7, metric=metric)
    found = np.load(path)
    assert np.array_equal(found["indices"], expected.indices.numpy())
    assert np.array_equal(found["distances"], expected.distances.numpy())
    assert found["indices"].dtype == np.int32
    assert found["distances"].dtype == np.float32
    assert (saved.n_queries, saved.n_neighbors, saved.algorithm, saved.recall) == (2000, 7, "exact", 1.0)


@pytest.mark.parametrize("metric", ["euclidean", "inner_product"])
def test_queries_of_another_dtype(tmp_path, points, metric):
    queries = np.random.default_rng(1).standard_normal((300, 8))
    save_knn(points, tmp_path / "g.npz", 5, queries=queries, metric=metric, memory=SMALL)
    expected = knn(torch.from_numpy(points), 5, torch.from_numpy(queries), metric=metric)
    assert np.array_equal(np.load(tmp_path / "g.npz")["indices"], expected.indices.numpy())
    assert np.array_equal(np.load(tmp_path / "g.npz")["distances"], expected.distances.numpy())


def test_sources_are_read_a_part_at_a_time(tmp_path, points):
    source = Read(points)
    save_knn(source, tmp_path / "g.npy", 7, memory=SMALL, check_finite=False)
    assert source.most < 500
    expected = knn(torch.from_numpy(points), 7).indices
    assert np.array_equal(np.load(tmp_path / "g.npy", mmap_mode="r"), expected.numpy())


def test_rows_that_are_not_finite(tmp_path, points):
    points[3] = np.nan
    save_knn(points, tmp_path / "g.npz", 4, memory=SMALL, check_finite=False)
    expected = knn(torch.from_numpy(points), 4)
    assert np.array_equal(np.load(tmp_path / "g.npz")["indices"], expected.indices.numpy())
    np.testing.assert_array_equal(np.load(tmp_path / "g.npz")["distances"], expected.distances.numpy())
    with pytest.raises(ValueError, match="row 3"):
        save_knn(points, tmp_path / "other.npz", 4)
    assert not (tmp_path / "other.npz").exists()


@pytest.mark.parametrize(
    ("algorithm", "metric"),
    [
        ("lists", "euclidean"),
        ("lists", "cosine"),
        *(
            pytest.param(algorithm, metric, marks=pytest.mark.peers("faiss"))
            for algorithm in ("hnsw", "ivf", "faiss")
            for metric in ("euclidean", "inner_product")
        ),
    ],
)
def test_recall_of_approximate_search_is_that_of_all_rows(tmp_path, points, monkeypatch, algorithm, metric):
    monkeypatch.setattr(to_disk, "QUERY_ROWS", 500)
    monkeypatch.setattr(recall, "CHECKED", 2000)
    path = tmp_path / "g.npz"
    saved = save_knn(points, path, 5, algorithm=algorithm, metric=metric, min_recall=None)
    found, true = np.load(path), knn(torch.from_numpy(points), 5, metric=metric)
    assert not (found["indices"] == np.arange(2000)[:, None]).any()
    sign = -1 if metric == "inner_product" else 1
    near = sign * found["distances"] <= sign * true.distances.numpy()[:, -1:]
    assert saved.recall == pytest.approx(near.mean(), abs=1e-12)
    assert saved.recall > 0.5
    if algorithm == "faiss":
        assert saved.recall == 1.0


def test_nothing_is_left_of_a_search_that_fails(tmp_path, points, monkeypatch):
    path = tmp_path / "g.npz"
    path.write_bytes(b"old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(to_disk._Job, "others", fail)
    with pytest.raises(KeyboardInterrupt):
        save_knn(points, path, 3)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("algorithm", "with_queries"),
    [
        ("lists", False),
        *(
            pytest.param(algorithm, with_queries, marks=pytest.mark.peers("faiss"))
            for algorithm in ("hnsw", "ivf")
            for with_queries in (False, True)
        ),
    ],
)
def test_looks_as_far_as_the_wanted_recall_needs(tmp_path, monkeypatch, algorithm, with_queries):
    x = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)
    queries = np.random.default_rng(1).standard_normal((1500, 16), np.float32) if with_queries else None
    widths = []
    kind = NearLists if algorithm == "lists" else PointIndex
    look_at = kind.look_at
    monkeypatch.setattr(kind, "look_at", lambda index, width: (widths.append(width), look_at(index, width))[1])
    few, most = (
        save_knn(x, tmp_path / "g.npz", 10, queries=queries, algorithm=algorithm, min_recall=wanted)
        for wanted in (0.6, 0.99)
    )
    assert 0.6 <= few.recall < 0.98
    assert 0.99 <= most.recall
    assert widths[0] == 4
    assert max(widths) < 400


@pytest.mark.peers("faiss")
def test_says_where_a_graph_cannot_reach_the_wanted_recall(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "WIDEST_BEAM", 4)
    x = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)
    with pytest.warns(
        UserWarning, match="hnsw finds 0.* of the true neighbours at the most, not surely min_recall=0.999"
    ):
        save_knn(x, tmp_path / "g.npz", 10, algorithm="hnsw", min_recall=0.999)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"min_recall": 1.5}, "min_recall must be above 0 and at most 1, or None, got 1.5"),
        ({"path": "g.txt"}, "path must end in .npz"),
        ({"n_neighbors": 2000}, "n_neighbors must be from 1 to 1999"),
        ({"metric": "manhattan"}, "metric must be one of"),
        ({"algorithm": "tree"}, "algorithm must be 'auto' or one of"),
        ({"queries": np.zeros((3, 5))}, "queries have 5 features, X has 8"),
        ({"memory": 0}, "memory must be at least 1"),
    ],
)
def test_refuses(tmp_path, points, arguments, fragment):
    path = tmp_path / arguments.pop("path", "g.npz")
    with pytest.raises(ValueError, match=fragment):
        save_knn(points, path, **arguments)
    assert not list(tmp_path.iterdir())


def test_command_writes_a_graph(folder, blobs, capsys):
    assert cli.main(["knn", "points.npy", "--neighbors", "4", "--out", "g.npz", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n_queries"], report["n_neighbors"], report["recall"]) == (60, 4, 1.0)
    expected = knn(torch.from_numpy(blobs[0]), 4).indices.numpy()
    assert np.array_equal(load_points("g.npz", key="indices"), expected)
    assert isinstance(load_points("g.npz", key="distances"), np.memmap)
    np.save("queries.npy", blobs[0][:5])
    command = ["knn", "points.npy", "--queries", "queries.npy", "-n", "1", "--out", "i.npy", "--memory", "1MiB", "-q"]
    assert cli.main(command) == 0
    assert np.load("i.npy").tolist() == [[0], [1], [2], [3], [4]]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--out", "g.csv"], "--out g.csv must end in .npz or .npy"),
        (["--out", "points.npy"], "would overwrite the input"),
        (["--neighbors", "60"], "n_neighbors must be from 1 to 59"),
        (["--memory", "much"], "--memory must be a number of bytes such as 500M or 2G, got 'much'"),
        (["--queries", "none.npy"], "none.npy: no such file"),
        (["--algorithm", "tree"], "algorithm must be 'auto' or one of"),
    ],
)
def test_command_refuses(folder, capsys, arguments, fragment):
    assert fragment in fails(capsys, "knn", "points.npy", *arguments)
    assert not (folder / "graph.npz").exists()
