"""SphericalKMeans and MiniBatchKMeans."""

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans as SklearnMiniBatchKMeans
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import KMeans, MiniBatchKMeans, SphericalKMeans, kmeans_step, nearest_center

REPEATED_ROWS = "repeated rows are drawn in another order than weighted ones"
EXPECTED_FAILURES = {
    SphericalKMeans: {
        "check_sample_weight_equivalence_on_dense_data": REPEATED_ROWS,
    },
    MiniBatchKMeans: {
        "check_sample_weight_equivalence_on_dense_data": REPEATED_ROWS,
    },
}
CHECKS = [
    pytest.param(
        estimator,
        check,
        id=f"{name.__name__}-{check.func.__name__}",
        marks=[pytest.mark.xfail(reason=EXPECTED_FAILURES[name][check.func.__name__], strict=True)]
        if check.func.__name__ in EXPECTED_FAILURES[name]
        else [],
    )
    for name in EXPECTED_FAILURES
    for estimator, check in estimator_checks_generator(name())
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_check_estimator(estimator, check):
    check(estimator)


def make_blobs(n=600, k=6, d=5, seed=0, spread=5.0):
    random = np.random.default_rng(seed)
    centers = spread * random.normal(size=(k, d))
    return (centers[random.integers(k, size=n)] + 0.3 * random.normal(size=(n, d))).astype(np.float32)


# --- spherical


def test_spherical_is_lloyd_by_cosine():
    x = make_blobs(500, 8, 6, spread=1.0)
    model = SphericalKMeans(8, init=x[:8], tol=0).fit(x)
    unit = x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    centers = unit[:8]
    for _ in range(model.n_iter_):
        labels = (unit @ centers.T).argmax(1)
        centers = np.stack([unit[labels == j].mean(0) for j in range(8)])
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    assert np.array_equal(model.labels_, labels)
    assert np.allclose(model.cluster_centers_, centers, atol=1e-5)
    assert model.inertia_ == pytest.approx(2 * (1 - (unit @ centers.T).max(1)).sum(), rel=1e-4)
    assert np.allclose(model.transform(x), 1 - unit @ centers.T, atol=1e-5)
    assert np.array_equal(model.predict(x), model.labels_)


def test_spherical_does_not_see_lengths():
    x = make_blobs()
    lengths = np.exp(5 * np.random.default_rng(1).normal(size=(600, 1))).astype(np.float32)
    plain, scaled = (SphericalKMeans(6, init=x[:6]).fit(rows) for rows in (x, x * lengths))
    assert np.array_equal(plain.labels_, scaled.labels_)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_spherical_of_huge_and_tiny_rows(scale):
    x = make_blobs()
    far = (x * scale).astype(np.float32)
    assert np.array_equal(
        SphericalKMeans(6, init=far[:6]).fit(far).labels_, SphericalKMeans(6, init=x[:6]).fit(x).labels_
    )


def test_T18_rows_of_zeros():
    x = make_blobs()
    x[::50] = 0
    model = SphericalKMeans(6, random_state=0).fit(x)
    assert (model.labels_[::50] == 0).all()
    assert (model.predict(x)[::50] == 0).all()
    assert np.allclose(model.transform(x)[::50], 1.0)
    assert np.isfinite(model.cluster_centers_).all()
    assert np.allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1.0)


def test_spherical_center_of_opposite_rows_stays():
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    model = SphericalKMeans(1, init=np.array([[0.0, 2.0]])).fit(x)
    assert model.cluster_centers_.tolist() == [[0.0, 1.0]]


# --- mini-batch


def test_partial_fit_is_scikit_learns_update():
    x = make_blobs(400, 5, 4)
    weight = np.random.default_rng(2).random(400)
    ours = MiniBatchKMeans(5, init=x[:5], reassignment_ratio=0)
    theirs = SklearnMiniBatchKMeans(5, init=x[:5], n_init=1, reassignment_ratio=0)
    for rows in np.split(np.arange(400), 8):
        ours.partial_fit(x[rows], sample_weight=weight[rows])
        theirs.partial_fit(x[rows], sample_weight=weight[rows])
        assert np.allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-4)
    assert ours.n_steps_ == 8
    assert np.allclose(ours.counts_, theirs._counts, rtol=1e-5)


def test_mini_batches_come_near_to_whole_passes():
    x = make_blobs(5000, 8, 6, spread=1.0)
    whole = min(KMeans(8, random_state=s).fit(x).inertia_ for s in range(3))
    model = MiniBatchKMeans(8, batch_size=256, n_init=3, random_state=0).fit(x)
    assert model.inertia_ <= 1.15 * whole
    assert model.n_steps_ > 5
    assert np.array_equal(model.labels_, model.predict(x))
    assert model.score(x) == pytest.approx(-model.inertia_)
    again = MiniBatchKMeans(8, batch_size=256, n_init=3, random_state=0).fit(x)
    assert np.array_equal(again.cluster_centers_, model.cluster_centers_)


def test_lost_centers_begin_anew():
    x = make_blobs(3000, 6, 4)
    start = np.concatenate([x[:3], x[:3] + 1e4])  # three centers that nothing is near to
    model = MiniBatchKMeans(6, init=start, batch_size=300, max_no_improvement=None, max_iter=5, random_state=0).fit(x)
    assert np.abs(model.cluster_centers_).max() < 100


def test_tensors_and_a_loaded_model_go_on(tmp_path):
    x = torch.from_numpy(make_blobs())
    model = MiniBatchKMeans(6, random_state=0).partial_fit(x[:300])
    assert isinstance(model.cluster_centers_, torch.Tensor)
    model.save(tmp_path / "model.safetensors")
    loaded = MiniBatchKMeans.load(tmp_path / "model.safetensors").partial_fit(x[300:])
    assert torch.equal(loaded.cluster_centers_, model.partial_fit(x[300:]).cluster_centers_)


# --- many clusters


@pytest.mark.slow
def test_a_hundred_thousand_clusters(run_python):
    """A matrix of rows and centers would take 48 GB."""
    grown = run_python(
        "import resource, torch\n"
        "from fastdc import KMeans, nearest_center\n"
        "x = torch.randn(120_000, 4)\n"
        "nearest_center(x[:100], x[:100])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = KMeans(100_000, init=x[:100_000], max_iter=2).fit(x)\n"
        "assert (model.labels_[:10] >= 0).all()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    assert int(grown) < 200 * 1024  # kB


def test_nearest_of_a_hundred_thousand_centers():
    generator = torch.Generator().manual_seed(0)
    x, centers = torch.randn(65, 9, generator=generator), torch.randn(100_000, 9, generator=generator)
    truth = torch.cat([torch.cdist(x.double(), part.double()) for part in centers.split(20_000)], 1)
    assert torch.equal(nearest_center(x, centers).labels, truth.argmin(1))
    assert kmeans_step(x, centers).counts.sum() == 65
