"""GaussianMixture over row sources: the results of the array in memory, whatever holds the rows."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet
import pytest
import torch

from fastdc import GaussianMixture
from fastdc.cluster import gaussian_mixture, mixture_runs, sharded, streaming
from fastdc.cluster.mixture_passes import mixture_pass, statistics_bounds
from fastdc.cluster.streaming import StreamedRows
from fastdc.data import ConcatenatedRows, as_row_source, open_rows
from fastdc.kernels.gaussian_mixture import GMMParameters, gmm_step
from fastdc.kernels.gaussian_mixture.parameters import covariance_shape
from fastdc.persistence import CheckpointError
from tests.row_source_cases import column_table
from tests.test_kmeans_estimator import make_blobs
from tests.test_kmeans_streaming import Read

KINDS = ["diag", "spherical", "tied", "full"]
FITTED = ("means_", "covariances_", "weights_", "history_", "lower_bound_", "converged_")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 128 rows."""
    monkeypatch.setattr(streaming, "MOST_ROWS", 128)
    monkeypatch.setattr(sharded, "ROWS_CPU", 128)
    monkeypatch.setattr(sharded, "MOST_ROWS", 128)


def same_bits(a, b):
    for name in FITTED:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_block_gives_the_bits_of_the_array(kind, dtype):
    x = make_blobs(700, 5, 6, dtype, spread=1.0)
    model = GaussianMixture(5, covariance_type=kind, random_state=0)
    expected = GaussianMixture(**model.get_params()).fit(x)
    same_bits(model.fit(Read(x)), expected)
    same_bits(model.fit(as_row_source(x)), expected)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_many_blocks_give_the_result_of_the_array(small_blocks, kind, deterministic):
    x = make_blobs(1501, 5, 6, np.float64, spread=1.0)
    options = {"covariance_type": kind, "means_init": x[:5], "tol": 1e-3}
    expected = GaussianMixture(5, **options).fit(x)
    model = GaussianMixture(5, deterministic=deterministic, **options).fit(Read(x))
    assert model.n_iter_ == expected.n_iter_
    assert model.lower_bound_ == pytest.approx(expected.lower_bound_, rel=1e-12)
    for name in ("means_", "covariances_", "weights_"):
        np.testing.assert_allclose(getattr(model, name), getattr(expected, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("deterministic", [False, True])
def test_many_blocks_start_from_given_densities(small_blocks, deterministic):
    x = make_blobs(1501, 5, 6, np.float64, spread=1.0)
    first = GaussianMixture(5, covariance_type="full", max_iter=2, tol=np.inf, random_state=0).fit(x)
    options = {"weights_init": first.weights_, "precisions_init": np.linalg.inv(first.covariances_)}
    options |= {"covariance_type": "full", "means_init": first.means_}
    expected = GaussianMixture(5, **options).fit(x)
    model = GaussianMixture(5, deterministic=deterministic, **options).fit(Read(x))
    assert model.n_iter_ == expected.n_iter_
    np.testing.assert_allclose(model.covariances_, expected.covariances_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("deterministic", [False, True])
def test_T44_every_source_and_number_of_threads_gives_the_same_bits(small_blocks, set_threads, tmp_path, deterministic):
    x = make_blobs(1500, 5, 6, spread=1.0)
    np.save(tmp_path / "x.npy", x)
    pyarrow.parquet.write_table(column_table(x), tmp_path / "x.parquet", row_group_size=300)
    sources = [
        as_row_source(x),
        as_row_source(torch.from_numpy(x)),
        ConcatenatedRows([as_row_source(part) for part in np.array_split(x, [1, 700, 1499])]),
        open_rows(tmp_path / "x.npy"),
        open_rows(tmp_path / "x.parquet"),
        *([x, torch.from_numpy(x)] if deterministic else []),
    ]
    model = GaussianMixture(5, random_state=0, deterministic=deterministic)
    expected = GaussianMixture(**model.get_params()).fit(Read(x))
    for threads in (1, 3):
        set_threads(threads)
        for source in sources:
            same_bits(model.fit(source), expected)


def test_what_is_said_of_rows_is_that_of_the_array(small_blocks):
    x = make_blobs(700, 5, 6, np.float64, spread=1.0)
    model = GaussianMixture(5, covariance_type="full", random_state=0).fit(Read(x))
    for name in ("predict", "predict_proba", "score_samples"):
        of_source, of_array = getattr(model, name)(Read(x)), getattr(model, name)(x)
        np.testing.assert_array_equal(of_source, of_array)
        assert of_source.dtype == of_array.dtype
    for name in ("score", "bic", "aic"):
        assert getattr(model, name)(Read(x)) == pytest.approx(getattr(model, name)(x), rel=1e-13)
    np.testing.assert_array_equal(model.fit_predict(Read(x)), model.predict(x))
    with pytest.raises(ValueError, match="X has 3 features, but GaussianMixture is expecting 6 features"):
        model.predict(Read(x[:, :3]))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_T01_T03_rows_that_are_not_finite(small_blocks, deterministic, start):
    x = make_blobs(700, 5, 6)
    broken = x.copy()
    broken[257:260, 2] = np.nan
    options = {"means_init": x[:5] if start else None, "random_state": 0, "deterministic": deterministic}
    with pytest.raises(ValueError, match=r"Input X contains NaN\. 1 entry, the first in row 257, column 2"):
        GaussianMixture(5, **options).fit(Read(np.where(np.arange(700)[:, None] < 258, broken, x)))
    model = GaussianMixture(5, check_finite=False, **options).fit(Read(broken))
    assert model.history_[0]["n_invalid"] == 3
    rest = GaussianMixture(5, means_init=model.means_).fit(np.delete(broken, [257, 258, 259], axis=0))
    assert model.lower_bound_ == pytest.approx(rest.lower_bound_, abs=1e-2)
    assert (model.predict(Read(broken)) == -1).nonzero()[0].tolist() == [257, 258, 259]


def test_an_outlier_takes_no_digits_from_others(small_blocks):
    x = make_blobs(1000, 3, 4)
    x[0] = 1e5
    options = {"means_init": x[[0, 10, 20]], "tol": 0, "max_iter": 4}
    with pytest.warns(UserWarning, match="did not converge"):
        expected, found = (GaussianMixture(3, deterministic=yes, **options).fit(x) for yes in (False, True))
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-6)
    np.testing.assert_allclose(found.covariances_[1:], expected.covariances_[1:], rtol=1e-5)
    assert found.lower_bound_ == pytest.approx(expected.lower_bound_, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_and_blocks_add_up(small_blocks, kind):
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(500, 4)) * [1e-9, 1.0, 3.0, 1e9] + [0, 5, 0, 1e9])
    shape = covariance_shape(kind, 3, 4)
    covariances = torch.eye(4).double().expand(shape) if kind in ("tied", "full") else torch.ones(shape).double()
    parameters = GMMParameters(-2 * x[:3], covariances * 1e18, torch.full((3,), 1 / 3).double())
    step = gmm_step(x, *parameters, kind)
    largest, means = x.abs().amax(dim=0).numpy(), parameters.means.numpy()
    for bound, field in zip(statistics_bounds(500, largest, means, kind), (step.counts, step.sums, step.scatters)):
        assert (field.abs().numpy() < 2.0**bound).all()
    of_blocks = mixture_pass(StreamedRows(Read(x.numpy()), None, check_finite=True), parameters, kind, None)
    for ours, theirs in zip(of_blocks, step):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()))


def test_bad_parameters_and_a_fault_leave_the_estimator(small_blocks):
    x = make_blobs(200)
    model = GaussianMixture(3, random_state=0).fit(Read(x))
    before = dict(vars(model))
    with pytest.raises(ValueError, match="n_components=201 must be at most n_samples=200"):
        GaussianMixture(201).fit(Read(x))
    with pytest.raises(ValueError, match="minimum of 2 is required by GaussianMixture"):
        GaussianMixture(1).fit(Read(x[:1]))
    with pytest.raises(RuntimeError, match=r"group needs torch\.distributed"):
        GaussianMixture(1, group="world").fit(x)
    with pytest.raises(ValueError, match="so large that"):
        GaussianMixture(2, deterministic=True, means_init=x[:2]).fit(x.astype(np.float64) * 1e200)

    class Failing(Read):
        def read(self, start, stop, out):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        model.fit(Failing(x))
    assert vars(model) == before


@pytest.mark.parametrize("kind", [np.asarray, Read])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("n_init", [1, 2])
def test_T49_an_interrupted_fit_goes_on(small_blocks, tmp_path, monkeypatch, kind, deterministic, n_init):
    x = make_blobs(700, 5, 6, spread=0.5)
    options = {"n_init": n_init, "random_state": 0, "tol": 1e-4, "deterministic": deterministic}
    expected = GaussianMixture(5, **options).fit(kind(x))
    passes = []

    def interrupt(*arguments):
        passes.append(arguments)
        if len(passes) == 5:
            raise KeyboardInterrupt
        return mixture_pass(*arguments)

    for _ in range(2):  # interrupted twice
        passes.clear()
        monkeypatch.setattr(gaussian_mixture, "mixture_pass", interrupt)
        with pytest.raises(KeyboardInterrupt):
            GaussianMixture(5, **options).fit(kind(x), checkpoint=tmp_path, resume=True)
    monkeypatch.setattr(gaussian_mixture, "mixture_pass", mixture_pass)
    same_bits(GaussianMixture(5, **options).fit(kind(x), checkpoint=tmp_path, resume=True), expected)
    same_bits(GaussianMixture(5, **options).fit(kind(x), checkpoint=tmp_path, resume=True), expected)
    assert [file.name for file in tmp_path.iterdir()] == [mixture_runs.FILE]
    with pytest.raises(FileExistsError, match="is the checkpoint of a run; go on with it"):
        GaussianMixture(5, **options).fit(kind(x), checkpoint=tmp_path)
    for change, message in (
        ({"covariance_type": "tied"}, "its covariance_type is diag, here it is tied"),
        ({"means_init": x[:5]}, "its means_init is None"),
        ({"weights_init": np.full(5, 0.2)}, "its weights_init is None"),
        ({"random_state": 1}, "its random_state is 0, here it is 1"),
    ):
        with pytest.raises(CheckpointError, match=message):
            GaussianMixture(5, **(options | change)).fit(kind(x), checkpoint=tmp_path, resume=True)
