"""KMeans over row sources: the results of the array in memory, whatever holds the rows and however it is read."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from fastdc import DEC, KMeans
from fastdc.cluster import streaming
from fastdc.cluster.streaming import StreamedRows, streamed_repair, streamed_step
from fastdc.data import ConcatenatedRows, RowSource, as_row_source, open_rows
from fastdc.kernels import _copies
from fastdc.kernels.kmeans import LloydSteps, bounds, center_update, kmeans_plusplus, kmeans_step, repair_empty
from tests.test_kmeans_estimator import make_blobs


@pytest.fixture(autouse=True)
def _no_reader_is_left():
    yield
    assert "fastdc-reader" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 128 rows."""
    monkeypatch.setattr(streaming, "MOST_ROWS", 128)


def same_bits(a, b):
    assert np.array_equal(a.labels_, b.labels_)
    assert np.array_equal(a.cluster_centers_, b.cluster_centers_)
    assert a.inertia_ == b.inertia_
    assert a.history_ == b.history_


class Read(RowSource):
    """An array that is read by the reading thread."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def read(self, start, stop, out):
        out[:] = self.x[start:stop]


@pytest.mark.parametrize("init", ["k-means++", "random", "rows"])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_block_gives_the_bits_of_the_array(init, weighted):
    x = make_blobs(2000, 12, 9, spread=1.0)
    weight = np.random.default_rng(1).random(2000) if weighted else None
    model = KMeans(12, init=x[:12] if init == "rows" else init, random_state=0, tol=0)
    expected = KMeans(**model.get_params()).fit(x, sample_weight=weight)
    same_bits(model.fit(Read(x), sample_weight=weight), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_many_blocks_give_the_result_of_the_array(small_blocks, dtype, weighted):
    x = make_blobs(3001, 12, 9, dtype, spread=1.0)
    weight = np.random.default_rng(1).random(3001) if weighted else None
    expected = KMeans(12, init=x[:12]).fit(x, sample_weight=weight)
    model = KMeans(12, init=x[:12]).fit(as_row_source(x), sample_weight=weight)
    assert model.n_iter_ == expected.n_iter_
    assert model.inertia_ == pytest.approx(expected.inertia_, rel=1e-6)
    assert np.array_equal(model.labels_, expected.labels_)
    assert np.allclose(model.cluster_centers_, expected.cluster_centers_, atol=1e-5)
    assert (model.labels_.dtype, model.cluster_centers_.dtype) == (np.int32, dtype)
    assert isinstance(model.labels_, np.ndarray)


def test_T44_every_source_and_number_of_threads_gives_the_same_bits(small_blocks, set_threads, tmp_path):
    x = make_blobs(2000, 12, 9, spread=1.0)
    np.save(tmp_path / "x.npy", x)
    table = pyarrow.table({f"c{i}": x[:, i] for i in range(9)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=300)
    sources = {
        "array": as_row_source(x),
        "fortran": as_row_source(np.asfortranarray(x)),
        "tensor": as_row_source(torch.from_numpy(x)),
        "shards": ConcatenatedRows([as_row_source(part) for part in np.array_split(x, [1, 700, 1999])]),
        "npy": open_rows(tmp_path / "x.npy"),
        "parquet": open_rows(tmp_path / "x.parquet"),
    }
    expected = KMeans(12, random_state=0).fit(Read(x))
    for threads in (1, 2, 3):
        set_threads(threads)
        for source in sources.values():
            same_bits(KMeans(12, random_state=0).fit(source), expected)


def test_half_precision_is_that_of_its_values(small_blocks):
    x = make_blobs(500, 5, 4).astype(np.float16)
    same_bits(
        KMeans(5, random_state=0).fit(as_row_source(x)), KMeans(5, random_state=0).fit(Read(x.astype(np.float32)))
    )


def test_k_means_plus_plus_starts_from_a_sample(small_blocks):
    x = make_blobs(4000, 8, 6)
    model = KMeans(8, random_state=0).fit(as_row_source(x))
    assert model.inertia_ < 1.2 * KMeans(8, random_state=0).fit(x).inertia_
    rows, weight = StreamedRows(as_row_source(x), None, check_finite=True).sample(8, None, 0)
    assert (rows.shape, weight) == ((128, 6), None)
    few = np.zeros(4000)
    few[1000:1010] = 1
    model = KMeans(8, random_state=0).fit(as_row_source(x), sample_weight=few)
    assert model.inertia_ <= KMeans(8, init=x[:8]).fit(x, sample_weight=few).inertia_ * 1.5 + 1e-6
    few[1005:] = 0
    with pytest.raises(ValueError, match="n_clusters=8 must be at most 5, the samples of positive weight"):
        KMeans(8).fit(as_row_source(x), sample_weight=few)


@pytest.mark.parametrize("weighted", [False, True])
def test_empty_clusters_take_the_farthest_rows(small_blocks, weighted):
    x = torch.from_numpy(make_blobs(900, 4, 3, spread=9.0))
    x[700] = x[20]  # ties: the lowest row moves
    weight = torch.rand(900) if weighted else None
    if weighted:
        weight[::5] = 0
    centers = torch.cat([x[:5], torch.full((6, 3), 1e4)])
    streamed = StreamedRows(Read(x.numpy()), None, check_finite=False)
    step = kmeans_step(x, centers, sample_weight=weight)
    of_blocks = streamed_step(streamed, centers, sample_weight=weight)
    assert torch.equal(of_blocks.labels.long(), step.labels)
    for ours, theirs in zip(of_blocks[1:], step[1:]):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    arguments = centers, step.labels, step.sums, step.counts
    expected = repair_empty(x, *arguments, sample_weight=weight)
    found = streamed_repair(streamed, *arguments, sample_weight=weight)
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fewer_distinct_rows_than_clusters(small_blocks):
    x = np.repeat(np.array([[0.0], [1.0], [2.0], [10.0]]), 200, axis=0)
    start = np.array([[10.0], [10.0], [10.0], [10.0], [-90.0], [0.0]])
    model, expected = (KMeans(6, init=start, tol=0).fit(rows) for rows in (Read(x), x))
    assert np.array_equal(model.labels_, expected.labels_)
    assert np.array_equal(model.cluster_centers_, expected.cluster_centers_)
    assert [record["n_empty_clusters"] for record in model.history_] == [
        record["n_empty_clusters"] for record in expected.history_
    ]
    assert model.inertia_ == 0.0
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(4\)"):
        KMeans(6).fit(Read(x))


def test_predict_score_and_transform(small_blocks):
    x = make_blobs(700, 6, 4)
    model = KMeans(6, random_state=0).fit(Read(x))
    assert np.array_equal(model.predict(Read(x)), model.labels_)
    assert np.array_equal(model.predict(x), model.labels_)
    assert model.score(Read(x)) == pytest.approx(-model.inertia_)
    assert np.array_equal(model.transform(Read(x)), model.transform(x))
    with pytest.raises(ValueError, match="X has 3 features, but KMeans is expecting 4 features"):
        model.predict(Read(x[:, :3]))


@pytest.mark.parametrize(("value", "words"), [(np.nan, "contains NaN"), (np.inf, "contains infinity")])
@pytest.mark.parametrize("tol", [0, 1e-4])
def test_T01_T02_not_finite(small_blocks, value, words, tol):
    x = make_blobs()
    x[257, 2] = value
    with pytest.raises(ValueError, match=f"Input X {words}.*row 257, column 2"):
        KMeans(3, tol=tol).fit(Read(x))
    model = KMeans(3, random_state=0).fit(make_blobs())
    for call in (model.predict, model.score):
        with pytest.raises(ValueError, match=f"Input X {words}.*row 257, column 2"):
            call(Read(x))


def test_T03_unchecked_nan_rows_get_no_label(small_blocks):
    x = make_blobs()
    x[150:155, 1] = np.nan
    model = KMeans(3, init=x[:3], check_finite=False).fit(Read(x))
    expected = KMeans(3, init=x[:3], check_finite=False).fit(x)
    assert np.array_equal(model.labels_, expected.labels_)
    assert (model.labels_ == -1).sum() == 5
    assert model.n_iter_ == expected.n_iter_


@pytest.mark.parametrize("offset", [0, 1e6])
def test_variance_of_blocks(small_blocks, offset):
    x = make_blobs(1000, 3, 5, np.float64, offset=offset)
    found = StreamedRows(Read(x), None, check_finite=True).mean_variance()
    assert found == pytest.approx(x.var(axis=0).mean(), rel=1e-9)


def test_bad_parameters(small_blocks):
    x = Read(make_blobs(200))
    with pytest.raises(ValueError, match="n_clusters=201 must be at most n_samples=200"):
        KMeans(201).fit(x)
    with pytest.raises(ValueError, match=r"sample_weight.shape == \(3,\), expected \(200,\)"):
        KMeans(2).fit(x, sample_weight=np.ones(3))
    with pytest.raises(ValueError, match=r"init has shape \(2, 3\)"):
        KMeans(2, init=np.zeros((2, 3))).fit(x)


def test_T34_rows_beyond_memory():
    row = np.ones((1, 4), np.float16)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        KMeans(1, init=row, tol=0).fit(as_row_source(np.broadcast_to(row, (10**14, 4))))
    assert KMeans(1, init=row).fit(as_row_source(row)).inertia_ == 0


def test_T49_interrupt_leaves_the_estimator_as_it_was(small_blocks):
    x = make_blobs()
    model = KMeans(4, random_state=0).fit(Read(x))
    before = dict(vars(model))

    class Interrupted(Read):
        def read(self, start, stop, out):
            if start:
                raise KeyboardInterrupt
            super().read(start, stop, out)

    with pytest.raises(KeyboardInterrupt):
        model.fit(Interrupted(x[:, :2]))
    assert vars(model) == before


def test_a_deep_method_loads_a_source():
    x = make_blobs(64)
    models = [DEC(3, pretrain_epochs=1, epochs=1, random_state=0) for _ in range(2)]
    assert np.array_equal(models[0].fit(Read(x)).labels_, models[1].fit(x).labels_)


@pytest.mark.gpu
def test_on_a_gpu(small_blocks):
    x = make_blobs(3000, 12, 9, spread=1.0)
    expected = KMeans(12, init=x[:12], device="cpu").fit(Read(x))
    for source in (Read(x), as_row_source(torch.from_numpy(x).cuda())):
        model = KMeans(12, init=x[:12], device="cuda").fit(source)
        assert model.inertia_ == pytest.approx(expected.inertia_, rel=1e-6)
        assert (model.labels_ == expected.labels_).mean() > 0.999


@pytest.mark.parametrize("weighted", [False, True])
def test_bounds_of_blocks_give_the_bits_of_plain_passes(small_blocks, monkeypatch, weighted):
    monkeypatch.setattr(_copies, "LEAST_BYTES", 1)
    x = make_blobs(3000, 40, 12, spread=2.0)
    weight = np.random.default_rng(1).random(3000) if weighted else None
    plain, skipping = (
        KMeans(40, algorithm=algorithm, random_state=0, tol=0, max_iter=25).fit(Read(x), sample_weight=weight)
        for algorithm in ("lloyd", "bounds")
    )
    same_bits(plain, skipping)


def run_over_blocks(x, **options):
    steps = LloydSteps(StreamedRows(Read(x), "cpu", check_finite=False), None, **options)
    rows, labels = steps.x, None
    centers = kmeans_plusplus(torch.from_numpy(x), 64, random_state=0).centers
    for _ in range(14):
        step = streaming._added_up(rows, steps, centers, None, labels)
        labels, centers = step.labels, center_update(step.sums, step.counts, centers)
    return steps


def test_passes_over_blocks_skip_distances(small_blocks, monkeypatch):
    x = make_blobs(40_000, 64, 16, spread=2.0)
    steps = run_over_blocks(x)
    assert steps.skips
    assert steps.memory.share < 0.5
    monkeypatch.setattr(bounds, "MOST_IN_FILES", steps.memory.n_bytes - 1)
    assert not run_over_blocks(x).skips
    assert run_over_blocks(x, algorithm="bounds").skips


def test_without_room_for_bounds_passes_are_plain(small_blocks, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_copies, "LEAST_BYTES", 1)
    x = make_blobs(40_000, 64, 16, spread=2.0)
    expected = KMeans(64, random_state=0, tol=0, max_iter=14).fit(Read(x))
    monkeypatch.setattr(os, "posix_fallocate", full)
    same_bits(KMeans(64, random_state=0, tol=0, max_iter=14).fit(Read(x)), expected)
    with pytest.raises(OSError, match="TMPDIR"):
        KMeans(64, algorithm="bounds", random_state=0, max_iter=14).fit(Read(x))
