"""MiniBatchKMeans over row sources: taken by number where rows can be seen, else by windows."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow.parquet
import pytest
import torch

from fastdc import KMeans, MiniBatchKMeans
from fastdc.cluster import sharded, streaming
from fastdc.cluster.batches import batches
from fastdc.cluster.streaming import StreamedRows
from fastdc.data import ArrayRows, as_row_source, open_rows, windows
from fastdc.data.windows import Windows
from fastdc.distributed import PartRows
from tests.row_source_cases import column_table
from tests.test_kmeans_estimator import make_blobs
from tests.test_kmeans_streaming import Read


@pytest.fixture(autouse=True)
def _no_reader_is_left():
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fastdc-reader")]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 128 rows, and windows of 8 runs of 32 rows of 6 features."""
    monkeypatch.setattr(streaming, "MOST_ROWS", 128)
    monkeypatch.setattr(sharded, "ROWS_CPU", 128)
    monkeypatch.setattr(windows, "WINDOW_BLOCKS", 8)
    monkeypatch.setattr(windows, "WINDOW_BYTES", 8 * 32 * 6 * 4)


def same_bits(a, b):
    for name in ("cluster_centers_", "labels_", "counts_", "n_steps_", "n_iter_", "inertia_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def model_of(**options):
    return MiniBatchKMeans(6, **({"batch_size": 100, "random_state": 0} | options))


@pytest.mark.parametrize("weighted", [False, True])
def test_one_block_gives_the_bits_of_the_array(weighted):
    x = make_blobs(1500, 6, 6, spread=1.0)
    weight = np.random.default_rng(1).random(1500) if weighted else None
    expected = model_of(n_init=2).fit(x, sample_weight=weight)
    for source in (Read(x), as_row_source(x)):
        same_bits(model_of(n_init=2).fit(source, sample_weight=weight), expected)


def test_rows_that_can_be_seen_give_the_centers_of_the_array(small_blocks, tmp_path):
    x = make_blobs(1500, 6, 6, spread=1.0)
    np.save(tmp_path / "x.npy", x)
    expected = model_of().fit(x)
    for source in (open_rows(tmp_path / "x.npy"), as_row_source(torch.from_numpy(x))):
        model = model_of().fit(source)
        np.testing.assert_array_equal(model.cluster_centers_, expected.cluster_centers_)
        np.testing.assert_array_equal(model.labels_, expected.labels_)
        assert model.inertia_ == pytest.approx(expected.inertia_, rel=1e-12)


@pytest.mark.parametrize("deterministic", [False, True])
def test_T44_windows_give_the_same_bits_of_any_source_and_threads(small_blocks, set_threads, tmp_path, deterministic):
    x = make_blobs(1500, 6, 6, spread=1.0)
    pyarrow.parquet.write_table(column_table(x), tmp_path / "x.parquet", row_group_size=300)
    sources = [open_rows(tmp_path / "x.parquet"), as_row_source(np.asfortranarray(x))]
    if deterministic:
        sources += [x, torch.from_numpy(x), as_row_source(x)]
    expected = model_of(deterministic=deterministic).fit(Read(x))
    assert expected.inertia_ <= 1.1 * KMeans(6, random_state=0).fit(x).inertia_
    assert np.array_equal(expected.labels_, expected.predict(x))
    for threads in (1, 3):
        set_threads(threads)
        for source in sources:
            same_bits(model_of(deterministic=deterministic).fit(source), expected)


@pytest.mark.parametrize("deterministic", [False, True])
def test_weights(small_blocks, deterministic):
    x = make_blobs(1500, 6, 6, spread=1.0)
    weight = np.zeros(1500)
    weight[700:760] = np.random.default_rng(1).random(60)
    options = {"deterministic": deterministic, "max_no_improvement": None, "max_iter": 3, "init": x[700:706]}
    model = model_of(**options).fit(Read(x), sample_weight=weight)
    alone = KMeans(6, init=x[700:706]).fit(x[700:760], sample_weight=weight[700:760])
    assert model.inertia_ <= 1.5 * alone.inertia_
    assert model.counts_.sum() == pytest.approx(3 * weight.sum(), rel=0.2)  # rows at which centers began anew count
    few = model_of(deterministic=deterministic, batch_size=20).fit(Read(x), sample_weight=weight)
    assert np.isfinite(few.cluster_centers_).all()


def test_batches_hold_every_row_once_an_epoch(small_blocks):
    x = np.arange(1501 * 6, dtype=np.float32).reshape(1501, 6)
    for source in (Read(x), ArrayRows(x)):
        rows = StreamedRows(source, None, check_finite=True)
        seen = list(batches(rows, 100, 2, np.random.default_rng(0)))
        orders = [torch.cat([batch.numbers for batch in seen if batch.epoch == epoch]) for epoch in (1, 2)]
        assert all(order.sort().values.tolist() == list(range(1501)) for order in orders)
        assert not torch.equal(*orders)
        assert max(len(batch.numbers) for batch in seen) <= 100
        assert all(torch.equal(batch.x, torch.from_numpy(x)[batch.numbers]) for batch in seen)
        first = seen[0].numbers.div(32, rounding_mode="floor").unique()
        assert len(first) >= 5  # runs


def test_parts_of_a_matrix_share_its_windows(small_blocks):
    x = np.arange(1000 * 6, dtype=np.float32).reshape(1000, 6)
    parts = [(0, 333), (333, 333), (333, 1000)]
    whole = list(Windows(ArrayRows(x)).shuffled(torch.Generator().manual_seed(1)))
    shared = [
        list(Windows(PartRows(ArrayRows(x), *part), part[0], 1000).shuffled(torch.Generator().manual_seed(1)))
        for part in parts
    ]
    for i, window in enumerate(whole):
        together = np.concatenate([each[i].x[each[i].places] for each in shared])
        assert all(torch.equal(each[i].numbers, window.numbers) for each in shared)
        assert len(together) == len(window.numbers)
        for (start, stop), each in zip(parts, shared):
            own = window.numbers[(window.numbers >= start) & (window.numbers < stop)]
            assert np.array_equal(each[i].x[each[i].places], x[own.numpy()])


@pytest.mark.parametrize("kind", [Read, as_row_source])
@pytest.mark.parametrize("deterministic", [False, True])
def test_T01_T03_rows_that_are_not_finite(small_blocks, kind, deterministic):
    x = make_blobs(1500, 6, 6)
    x[257, 2] = np.nan
    model = model_of(init=x[:6], deterministic=deterministic)
    with pytest.raises(ValueError, match=r"Input X contains NaN.*row 257, column 2"):
        model.fit(kind(x))
    assert not hasattr(model, "cluster_centers_")
    found = model.set_params(check_finite=False).fit(kind(x))
    assert np.isfinite(found.cluster_centers_).all()
    assert (found.labels_ == -1).nonzero()[0].tolist() == [257]


def test_bad_parameters(small_blocks):
    x = make_blobs(300, 6, 6)
    with pytest.raises(ValueError, match="n_clusters=301 must be at most n_samples=300"):
        MiniBatchKMeans(301).fit(Read(x))
    with pytest.raises(ValueError, match=r"sample_weight.shape == \(3,\), expected \(300,\)"):
        model_of().fit(Read(x), sample_weight=np.ones(3))
    with pytest.raises(RuntimeError, match=r"group needs torch\.distributed"):
        model_of(group="world").fit(x)
    with pytest.raises(ValueError, match="partial_fit is of one process: use fit, or set group=None"):
        model_of(group="world").partial_fit(x)
    model = model_of().fit(Read(x))
    before = dict(vars(model))

    class Failing(Read):
        def read(self, start, stop, out):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        model.fit(Failing(x[:, :5]))
    assert vars(model) == before
    for deterministic in (False, True):
        with pytest.raises(ValueError, match="n_clusters must be at least 1, got 0"):
            MiniBatchKMeans(0, deterministic=deterministic).fit(Read(x))
