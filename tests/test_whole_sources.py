"""Estimators that need all rows at hand, over sources: the bits of the array, and copies of rows in files."""

import errno
import mmap
import os

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs

from fastdc import (
    DBSCAN,
    BalancedKMeans,
    BisectingKMeans,
    DensityPeaks,
    SpectralClustering,
    SubspaceClustering,
)
from fastdc.data import RowSource, as_row_source
from fastdc.kernels import _copies
from fastdc.neighbors import knn


class Unseen(RowSource):
    """An array whose rows can only be read."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def read(self, start, stop, out):
        out[:] = self.x[start:stop]


@pytest.fixture(scope="module")
def points():
    x, _ = make_blobs(700, n_features=6, centers=5, cluster_std=1.5, random_state=0)
    return x.astype(np.float32)


@pytest.fixture(params=["read", "mapped", "file"])
def source(request, points, tmp_path):
    if request.param == "read":
        return Unseen(points)
    np.save(tmp_path / "points.npy", points)
    if request.param == "mapped":
        return as_row_source(tmp_path / "points.npy")
    np.savetxt(tmp_path / "points.csv", points, fmt="%.9g", delimiter=",")
    return as_row_source(tmp_path / "points.csv")


@pytest.fixture
def in_files(monkeypatch):
    """Every copy may go to a file; a list of those that did."""
    made, allocate = [], os.posix_fallocate
    monkeypatch.setattr(_copies, "LEAST_BYTES", 1)

    def noted(descriptor, offset, length):
        made.append(length)
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", noted)
    return made


ESTIMATORS = {
    "bisecting": (lambda: BisectingKMeans(6, random_state=0), ["labels_", "cluster_centers_", "children_"]),
    "balanced": (lambda: BalancedKMeans(5, random_state=0), ["labels_", "cluster_centers_"]),
    "spectral": (lambda: SpectralClustering(5, random_state=0), ["labels_"]),
    "spectral_cosine": (lambda: SpectralClustering(5, metric="cosine", algorithm="lists", random_state=0), ["labels_"]),
    "dbscan": (lambda: DBSCAN(1.5, 5), ["labels_", "core_sample_indices_", "components_"]),
    "dbscan_cosine": (lambda: DBSCAN(0.01, 5, metric="cosine"), ["labels_", "components_"]),
    "density_peaks": (lambda: DensityPeaks(5), ["labels_", "density_", "delta_", "nearest_denser_"]),
    "density_cutoff": (lambda: DensityPeaks(5, density="cutoff", random_state=0), ["labels_", "density_", "delta_"]),
    "omp": (lambda: SubspaceClustering(5, random_state=0), ["labels_"]),
    "ridge": (lambda: SubspaceClustering(5, method="ridge", random_state=0), ["labels_"]),
    "low_rank": (lambda: SubspaceClustering(5, method="low_rank", n_nonzero=20, random_state=0), ["labels_"]),
}


@pytest.mark.filterwarnings("ignore:the graph has")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_sources_give_the_bits_of_the_array(source, in_files, name):
    make, attributes = ESTIMATORS[name]
    expected = make().fit(np.array(source))
    assert not in_files
    found = make().fit(source)
    for attribute in attributes:
        np.testing.assert_array_equal(getattr(found, attribute), getattr(expected, attribute))
    assert in_files or (name == "balanced" and source.view(0, 1) is not None)  # nothing is copied there
    assert found.n_features_in_ == 6


def test_rows_of_a_source_that_can_be_seen_are_not_copied(points, tmp_path, in_files):
    np.save(tmp_path / "points.npy", points)
    BalancedKMeans(5, random_state=0).fit(as_row_source(tmp_path / "points.npy"))
    assert not in_files
    BalancedKMeans(5, random_state=0).fit(Unseen(points))
    assert in_files == [points.nbytes]


@pytest.mark.parametrize("make", [lambda: BisectingKMeans(6, random_state=0), lambda: BalancedKMeans(5)])
def test_predict_and_transform_read_blocks(points, make):
    model = make().fit(points)
    blocks = Unseen(points)
    np.testing.assert_array_equal(model.predict(blocks), model.predict(points))
    np.testing.assert_array_equal(model.transform(blocks), model.transform(points))


def test_rows_that_are_not_finite(points, in_files):
    x = points.copy()
    x[[3, 500], 2] = np.nan
    for model in (BisectingKMeans(6, random_state=0, check_finite=False), DBSCAN(1.5, check_finite=False)):
        found, expected = clone(model).fit(Unseen(x)), clone(model).fit(x)
        np.testing.assert_array_equal(found.labels_, expected.labels_)
        assert (found.labels_[[3, 500]] == -1).all()
    with pytest.raises(ValueError, match="contains NaN"):
        DBSCAN(1.5).fit(Unseen(x))


def test_full_disk_is_said(points, monkeypatch, tmp_path):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_copies, "LEAST_BYTES", 1)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: a copy of the rows takes [\d,]+ bytes in .*TMPDIR"):
        DBSCAN(1.5).fit(Unseen(points))


def test_copies_are_in_memory_again_afterwards(in_files):
    with _copies.copies_in_files():
        inside = _copies.copy_space((10, 3), np.dtype(np.float32))
    assert in_files == [120]
    base = inside
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(getattr(base, "obj", base), mmap.mmap)
    inside[:] = 1.0
    assert inside.sum() == 30
    _copies.copy_space((10, 3), np.dtype(np.float32))
    with pytest.raises(RuntimeError), _copies.copies_in_files():
        raise RuntimeError
    knn(torch.rand(50, 3), 2)
    assert in_files == [120]


def test_systems_that_cannot_reserve_room(monkeypatch):
    monkeypatch.setattr(_copies, "LEAST_BYTES", 1)
    monkeypatch.delattr(os, "posix_fallocate")
    with _copies.copies_in_files():
        space = _copies.copy_space((5, 3), np.dtype(np.float32))
    space[:] = 2.0
    assert space.sum() == 30


def test_small_copies_are_in_memory(points):
    before = set(os.listdir("/proc/self/fd"))
    with _copies.copies_in_files():
        space = _copies.copy_space((10, 3), np.dtype(np.float64))
    assert space.base is None
    assert set(os.listdir("/proc/self/fd")) == before
