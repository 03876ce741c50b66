"""Deep methods over rows that are not in memory."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from fastdc.data import as_row_source, windows
from fastdc.methods import DEC, IDEC, IMSAT
from fastdc.networks import MLPAutoencoder
from fastdc.training import Settings, SourceRows, Trainer, embed, rows
from tests.method_cases import check_resume, scaled_blobs

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "n_latent": 2,
    "hidden": (16,),
    "pretrain_epochs": 10,
    "epochs": 6,
    "batch_size": 64,
    "n_init": 2,
    "random_state": 0,
    "tol": None,
}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Windows of 8 runs of 32 rows of 5 features."""
    monkeypatch.setattr(windows, "WINDOW_BLOCKS", 8)
    monkeypatch.setattr(windows, "WINDOW_BYTES", 8 * 32 * 5 * 4)
    monkeypatch.setattr(rows, "CHUNK_ROWS", 512)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    X, y = scaled_blobs(1203)
    path = tmp_path_factory.mktemp("blobs") / "x.npy"
    np.save(path, X)
    return X, y, path


def source_of(path):
    return as_row_source(np.load(path, mmap_mode="r"))


def test_an_epoch_holds_every_row_once_shuffled(blobs):
    X, _, path = blobs
    x = SourceRows(source_of(path), torch.device("cpu"), torch.float32)
    assert windows.Windows(x.source).run == 32
    network = MLPAutoencoder(5, 2, (8,), torch.Generator().manual_seed(1))
    orders = []
    for _ in range(2):
        trainer = Trainer(network, x, Settings(batch_size=50, seed=2))
        for _ in range(2):
            batches = list(trainer.epoch())
            orders.append(torch.cat([batch.rows for batch in batches]))
            assert orders[-1].sort().values.tolist() == list(range(1203))
            assert max(len(batch.rows) for batch in batches) <= 50
            assert all(torch.equal(batch.x, torch.from_numpy(X)[batch.rows]) for batch in batches)
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    first_batch = orders[0][:50]
    assert len(first_batch.div(32, rounding_mode="floor").unique()) >= 5  # of the 8 runs of a window
    torch.testing.assert_close(trainer.embed(), embed(network, torch.from_numpy(X)), rtol=0, atol=0)


@pytest.mark.parametrize("method", [DEC, IDEC])
def test_clusters_are_found_in_a_file(blobs, method):
    X, y, path = blobs
    before = path.read_bytes()
    estimator = method(3, **SMALL).fit(source_of(path))
    assert adjusted_rand_score(y, estimator.labels_) == 1.0
    np.testing.assert_array_equal(estimator.predict(source_of(path)), estimator.labels_)
    np.testing.assert_array_equal(estimator.predict(X), estimator.labels_)
    np.testing.assert_array_equal(estimator.transform(source_of(path)), estimator.transform(X))
    assert path.read_bytes() == before
    again = method(3, **SMALL).fit(as_row_source(X.copy()))
    np.testing.assert_array_equal(again.cluster_centers_, estimator.cluster_centers_)


def test_a_fit_over_a_file_resumes(blobs, tmp_path, monkeypatch):
    _, _, path = blobs
    estimator = IDEC(3, **SMALL)
    undisturbed = IDEC(3, **SMALL).fit(source_of(path))
    check_resume(estimator, source_of(path), tmp_path, monkeypatch, undisturbed, [4, 13])


def test_T01_bad_rows_of_a_file_are_named(blobs, tmp_path):
    X, _, _ = blobs
    bad = X.copy()
    bad[700, 2] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    for epochs in (0, 1):
        with pytest.raises(ValueError, match=r"contains NaN.*row 700, column 2"):
            DEC(3, **(SMALL | {"pretrain_epochs": epochs})).fit(source_of(tmp_path / "bad.npy"))


def test_all_rows_at_once_are_refused(blobs):
    with pytest.raises(ValueError, match="batch_size=None takes all rows at once; read the source into an array"):
        DEC(3, **(SMALL | {"batch_size": None})).fit(source_of(blobs[2]))


def test_methods_that_need_all_rows_read_them(blobs):
    X, _, path = blobs
    options = {"hidden": (16,), "n_latent": 16, "epochs": 2, "random_state": 0}
    assert IMSAT(3, **options).fit(source_of(path)).labels_.shape == (len(X),)
