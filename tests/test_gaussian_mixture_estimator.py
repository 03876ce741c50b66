"""GaussianMixture as an estimator: scikit-learn's conventions and results, tensors, faults."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import GaussianMixture, gmm_log_density

KINDS = ["diag", "spherical", "tied", "full"]


def make_blobs(n=400, k=3, d=3, dtype=np.float64, seed=0):
    random = np.random.default_rng(seed)
    centers = random.normal(size=(k, d)) * 4
    return (centers[random.integers(k, size=n)] + random.normal(size=(n, d))).astype(dtype)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(e, c, id=c.func.__name__) for e, c in estimator_checks_generator(GaussianMixture())],
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", KINDS)
def test_same_as_scikit_learn_from_the_same_start(kind):
    x = make_blobs()
    start = x[:3]
    nearest = ((x[:, None] - start) ** 2).sum(2).argmin(1)
    hard = np.eye(3)[nearest]
    peer = SklearnMixture(3, covariance_type=kind, tol=1e-5, max_iter=200)
    peer._initialize(x, hard)  # the same hard assignment
    own = GaussianMixture(3, covariance_type=kind, means_init=start, tol=1e-5, max_iter=200).fit(x)
    bounds = []
    for _ in range(own.n_iter_):
        bound, log_responsibilities = peer._e_step(x)
        peer._m_step(x, log_responsibilities)
        bounds.append(bound)
    assert own.converged_
    np.testing.assert_allclose([record["lower_bound"] for record in own.history_], bounds, rtol=1e-8)
    np.testing.assert_allclose(own.means_, peer.means_, rtol=1e-6)
    np.testing.assert_allclose(own.covariances_, peer.covariances_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(own.weights_, peer.weights_, rtol=1e-6)
    np.testing.assert_allclose(own.score_samples(x), peer.score_samples(x), rtol=1e-6)
    np.testing.assert_allclose(own.predict_proba(x), peer.predict_proba(x), atol=1e-6)
    np.testing.assert_array_equal(own.predict(x), peer.predict(x))
    assert own.bic(x) == pytest.approx(peer.bic(x), rel=1e-6)
    assert own.aic(x) == pytest.approx(peer.aic(x), rel=1e-6)
    assert own.score(x) == pytest.approx(peer.score(x), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_same_as_scikit_learn_from_given_precisions_and_weights(kind):
    x = make_blobs()
    first = SklearnMixture(3, covariance_type=kind, max_iter=2, random_state=0).fit(x)
    start = {"means_init": first.means_, "weights_init": first.weights_, "precisions_init": first.precisions_ * 0.5}
    options = {"covariance_type": kind, "tol": 1e-5, "max_iter": 200}
    own, peer = GaussianMixture(3, **options, **start).fit(x), SklearnMixture(3, **options, **start).fit(x)
    assert own.n_iter_ == peer.n_iter_ > 2
    np.testing.assert_allclose(own.means_, peer.means_, rtol=1e-7)
    np.testing.assert_allclose(own.covariances_, peer.covariances_, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(own.weights_, peer.weights_, rtol=1e-7)


def test_given_weights_alone_replace_those_of_the_nearest():
    x = make_blobs()
    weights = np.array([0.98, 0.01, 0.01])
    own, plain = (GaussianMixture(3, means_init=x[:3], weights_init=w, max_iter=50).fit(x) for w in (weights, None))
    rows = torch.from_numpy(x)
    start = GaussianMixture(3, means_init=x[:3])._start(rows, 3, 0)
    for model, w in ((own, torch.from_numpy(weights)), (plain, start.weights)):
        expected = gmm_log_density(rows, start.means, start.covariances, w, "diag").log_density.mean()
        assert model.history_[0]["lower_bound"] == pytest.approx(float(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_finds_blobs_as_well_as_scikit_learn(kind):
    x = make_blobs(dtype=np.float32)
    own = GaussianMixture(3, covariance_type=kind, random_state=0).fit(x)
    peer = SklearnMixture(3, covariance_type=kind, random_state=0).fit(x)
    assert own.lower_bound_ >= peer.lower_bound_ - 1e-3
    assert own.means_.dtype == own.covariances_.dtype == own.weights_.dtype == np.float32
    assert own.predict(x).dtype == np.int32
    assert own.weights_.sum() == pytest.approx(1, abs=1e-6)


def test_tensors_come_back_as_tensors():
    x = torch.from_numpy(make_blobs(dtype=np.float32))
    model = GaussianMixture(3, random_state=0)
    labels = model.fit_predict(x)
    assert isinstance(labels, torch.Tensor)
    assert isinstance(model.means_, torch.Tensor)
    assert isinstance(model.predict_proba(x), torch.Tensor)
    assert torch.equal(labels, model.predict_proba(x).argmax(1).int())


def test_same_bits_for_any_number_of_threads(set_threads):
    x, results = make_blobs(40_000, dtype=np.float32), []
    for threads in (1, 3):
        set_threads(threads)
        results.append(GaussianMixture(4, random_state=3).fit(x))
    for name in ("means_", "covariances_", "weights_"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_same_bits_for_any_number_of_threads_of_many_features(set_threads):
    x, results = np.random.default_rng(0).normal(size=(600, 150)), []
    for threads in (1, 3):
        set_threads(threads)
        model = GaussianMixture(2, covariance_type="full", means_init=x[:2], reg_covar=0.1)
        results.append(model.fit(x).score_samples(x))
        assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(*results)


def test_the_best_of_several_runs():
    x = make_blobs(k=6)
    several = GaussianMixture(6, n_init=4, random_state=0).fit(x)
    assert several.lower_bound_ >= GaussianMixture(6, random_state=0).fit(x).lower_bound_
    assert several.history_[-1]["lower_bound"] == several.lower_bound_
    assert len(several.history_) == several.n_iter_


def test_save_and_load(tmp_path):
    x = make_blobs()
    model = GaussianMixture(3, covariance_type="full", random_state=0).fit(x)
    model.save(tmp_path / "mixture")
    again = GaussianMixture.load(tmp_path / "mixture")
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    assert (again.converged_, again.n_iter_, again.lower_bound_) == (
        model.converged_,
        model.n_iter_,
        model.lower_bound_,
    )


def test_T06_repeated_rows_end():
    x = np.repeat(np.array([[1.0, 2.0], [5.0, 6.0]]), 20, axis=0)
    for kind in KINDS:
        model = GaussianMixture(4, covariance_type=kind, random_state=0).fit(x)
        assert np.isfinite(model.score_samples(x)).all()
        assert np.isfinite(model.means_).all()
        assert len(np.unique(model.predict(x))) == 2


def test_T03_rows_that_are_not_finite():
    x = make_blobs()
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        GaussianMixture(3).fit(x)
    model = GaussianMixture(3, check_finite=False, random_state=0).fit(x)
    assert model.history_[0]["n_invalid"] == 1
    assert np.isfinite(model.means_).all()
    assert model.predict(x)[7] == -1


def test_warns_where_it_did_not_converge():
    with pytest.warns(ConvergenceWarning, match="did not converge in max_iter=1 iterations"):
        model = GaussianMixture(3, max_iter=1, random_state=0).fit(make_blobs())
    assert not model.converged_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GaussianMixture(3, random_state=0).fit(make_blobs())


BAD = [
    ({"n_components": 0}, ValueError, "n_components must be at least 1, got 0"),
    ({"n_components": 2.0}, TypeError, "n_components must be an integer, got 2.0"),
    ({"n_components": 500}, ValueError, "n_components=500 must be at most n_samples=400"),
    ({"covariance_type": "round"}, ValueError, "covariance_type must be one of .*, got 'round'"),
    ({"tol": -1.0}, ValueError, "tol must be 0 or above, got -1.0"),
    ({"reg_covar": -1.0}, ValueError, "reg_covar must be 0 or above, got -1.0"),
    ({"means_init": np.zeros((2, 3))}, ValueError, r"means_init has shape \(2, 3\), wanted are"),
    ({"weights_init": np.ones(2) / 2}, ValueError, r"weights_init has shape \(2,\), wanted is \(3,\)"),
    ({"weights_init": np.array([-1.0, 1, 1])}, ValueError, "weights_init must be 0 or above and sum to 1"),
    ({"weights_init": np.ones(3)}, ValueError, "weights_init must be 0 or above and sum to 1"),
    ({"precisions_init": np.zeros((3, 3))}, ValueError, "precisions must be finite, symmetric and positive definite"),
    (
        {"covariance_type": "tied", "precisions_init": np.eye(3) + np.tri(3)},
        ValueError,
        "precisions must be finite, symmetric and positive definite",
    ),
    (
        {"covariance_type": "full", "precisions_init": np.stack([-np.eye(3)] * 3)},
        ValueError,
        "precisions must be finite, symmetric and positive definite",
    ),
    ({"precisions_init": np.ones((2, 3))}, ValueError, r"precisions_init has shape \(2, 3\), wanted is \(3, 3\)"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_parameters(options, error, message):
    with pytest.raises(error, match=message):
        GaussianMixture(**{"n_components": 3, **options}).fit(make_blobs())
    with pytest.raises(NotFittedError):
        GaussianMixture().predict(make_blobs())
