"""KMeans as an estimator: scikit-learn's conventions and results, tensors, faults."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator

import fastdc.cluster.lloyd
from fastdc import KMeans
from fastdc.kernels.kmeans import kmeans_step
from fastdc.persistence import CheckpointError

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "repeated rows are drawn in another order than weighted "
    "ones; test_whole_weights_are_repeated_rows compares from the same start",
}


def make_blobs(n=300, k=5, d=4, dtype=np.float32, offset=0.0, spread=4.0, seed=0):
    random = np.random.default_rng(seed)
    centers = random.normal(size=(k, d)) * spread
    return (centers[random.integers(k, size=n)] + random.normal(size=(n, d)) + offset).astype(dtype)


def own_inertia(x, model):
    distances = ((x.astype(np.float64)[:, None] - model.cluster_centers_.astype(np.float64)) ** 2).sum(2)
    assert np.array_equal(model.labels_, distances.argmin(1))
    return distances.min(1).sum()


# --- scikit-learn's conventions


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(
            estimator,
            check,
            id=check.func.__name__,
            marks=[pytest.mark.xfail(reason=EXPECTED_FAILURES[check.func.__name__], strict=True)]
            if check.func.__name__ in EXPECTED_FAILURES
            else [],
        )
        for estimator, check in estimator_checks_generator(KMeans())
    ],
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "k", "d"), [(300, 5, 4), (800, 20, 30), (1500, 60, 12)])
def test_same_start_same_result_as_scikit_learn(dtype, weighted, n, k, d):
    x = make_blobs(n, k, d, dtype, spread=1.0)
    weight = np.random.default_rng(1).random(n) if weighted else None
    start, _ = kmeans_plusplus(x, k, random_state=0)
    ours = KMeans(k, init=start, tol=0).fit(x, sample_weight=weight)
    theirs = SklearnKMeans(k, init=start, n_init=1, tol=0, algorithm="lloyd").fit(x, sample_weight=weight)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)
    assert np.array_equal(ours.labels_, theirs.labels_)
    assert np.allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-5)
    assert ours.n_iter_ == theirs.n_iter_


def test_tol_means_what_it_means_in_scikit_learn():
    x = make_blobs(2000, 30, 6, np.float64, spread=0.3)
    start, _ = kmeans_plusplus(x, 30, random_state=0)
    for tol in (1e-2, 1e-3, 1e-4):
        theirs = SklearnKMeans(30, init=start, n_init=1, tol=tol, algorithm="lloyd").fit(x)
        assert KMeans(30, init=start, tol=tol).fit(x).n_iter_ == theirs.n_iter_


def test_whole_weights_are_repeated_rows():
    x = make_blobs(120, 4, 3, np.float64, spread=1.0)
    repeats = np.random.default_rng(0).integers(0, 4, size=120)
    weighted = KMeans(4, init=x[:4]).fit(x, sample_weight=repeats)
    repeated = KMeans(4, init=x[:4]).fit(np.repeat(x, repeats, axis=0))
    assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-12)
    ones = KMeans(4, init=x[:4]).fit(x, sample_weight=np.ones(120))
    assert ones.inertia_ == KMeans(4, init=x[:4]).fit(x).inertia_


@pytest.mark.parametrize("max_iter", [1, 2, 300])
def test_results_fit_together(max_iter):
    x = make_blobs(500, 8, 5, spread=0.5)
    model = KMeans(8, random_state=0, max_iter=max_iter).fit(x)
    assert model.labels_.dtype == np.int32
    assert model.cluster_centers_.dtype == x.dtype
    assert own_inertia(x, model) == pytest.approx(model.inertia_, rel=1e-6)
    assert np.array_equal(model.predict(x), model.labels_)
    assert model.score(x) == pytest.approx(-model.inertia_)
    distances = model.transform(x)
    assert np.allclose(distances.min(1) ** 2, kmeans_sq_dists(x, model), rtol=1e-5)
    assert model.n_iter_ == len(model.history_) <= max_iter
    inertias = [record["inertia"] for record in model.history_]
    assert inertias == sorted(inertias, reverse=True)
    assert model.get_feature_names_out().tolist() == [f"kmeans{i}" for i in range(8)]


def kmeans_sq_dists(x, model):
    return ((x - model.cluster_centers_[model.labels_]) ** 2).sum(1)


def test_more_runs_are_no_worse():
    x = make_blobs(400, 15, 2, spread=3.0)
    one = [KMeans(15, init="random", n_init=1, random_state=s).fit(x).inertia_ for s in range(8)]
    assert KMeans(15, n_init=8, random_state=0).fit(x).inertia_ <= np.median(one)
    best = KMeans(15, init="random", random_state=0).fit(x)
    assert best.history_[0]["run"] in range(1, 11)
    with pytest.warns(RuntimeWarning, match="init gives the centers to start from"):
        KMeans(15, init=x[:15], n_init=3).fit(x)


def test_random_state():
    x = make_blobs()
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (KMeans(4, random_state=3).fit(x) for _ in range(2))
    assert np.array_equal(first.cluster_centers_, second.cluster_centers_)
    KMeans(4).fit(x)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_T44_threads_do_not_change_a_bit(set_threads):
    x = make_blobs(6000, 12, 9, spread=1.0)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(KMeans(12, random_state=0).fit(x))
    for other in results[1:]:
        assert np.array_equal(other.cluster_centers_, results[0].cluster_centers_)
        assert other.inertia_ == results[0].inertia_


# --- tensors, saving, callbacks


def test_tensors_in_tensors_out():
    x = make_blobs()
    arrays, tensors = (KMeans(5, random_state=0).fit(data) for data in (x, torch.from_numpy(x)))
    for name in ("labels_", "cluster_centers_"):
        assert isinstance(getattr(tensors, name), torch.Tensor)
        assert np.array_equal(getattr(tensors, name).numpy(), getattr(arrays, name))
    assert isinstance(tensors.predict(x), np.ndarray)
    assert isinstance(arrays.predict(torch.from_numpy(x)), torch.Tensor)
    half = KMeans(5, random_state=0).fit(torch.from_numpy(x).half())
    assert half.cluster_centers_.dtype == torch.float32


def test_T25_inference_mode_and_gradients():
    x = torch.from_numpy(make_blobs())
    with torch.inference_mode():
        model = KMeans(5, random_state=0).fit(x * 1.0)
    again = KMeans(5, random_state=0).fit(x.clone().requires_grad_())
    assert torch.equal(model.labels_, again.labels_)
    assert not again.cluster_centers_.requires_grad


def test_save_and_load(tmp_path):
    x = make_blobs()
    model = KMeans(5, random_state=0, init="random").fit(x)
    model.save(tmp_path / "model")
    loaded = KMeans.load(tmp_path / "model")
    assert loaded.get_params() == model.get_params()
    assert loaded.history_ == model.history_
    assert np.array_equal(loaded.predict(x), model.labels_)
    with pytest.raises(NotFittedError):
        KMeans().save(tmp_path / "model")
    (tmp_path / "model").write_bytes((tmp_path / "model").read_bytes()[:-20])
    with pytest.raises(CheckpointError):
        KMeans.load(tmp_path / "model")


def test_callbacks_see_each_record_and_can_stop():
    x = make_blobs(1000, 20, 3, spread=0.5)
    seen = []

    def stop_at_three(record):
        seen.append(record)
        return record["iteration"] == 3

    model = KMeans(20, random_state=0, callbacks=[stop_at_three]).fit(x)
    assert seen == model.history_
    assert model.n_iter_ == 3
    assert own_inertia(x, model) == pytest.approx(model.inertia_, rel=1e-6)


def test_T49_interrupt_leaves_the_estimator_as_it_was():
    x = make_blobs()

    def interrupt(record):
        raise KeyboardInterrupt

    fresh = KMeans(4, callbacks=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        fresh.fit(x)
    assert not [name for name in vars(fresh) if name.endswith("_")]
    model = KMeans(4, random_state=0).fit(x)
    before = dict(vars(model))
    with pytest.raises(KeyboardInterrupt):
        model.set_params(callbacks=[interrupt]).fit(x[:, :2])
    assert model.n_features_in_ == 4
    assert model.labels_ is before["labels_"]


def test_one_wait_for_the_device_an_iteration(monkeypatch):
    """Results reach the host through Tensor.tolist, once an iteration; no other reading."""
    transfers = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (transfers.append(self.shape), original(self))[1])
    for name in ("item", "__bool__", "__float__", "__int__"):
        reading = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, _r=reading, _n=name: (transfers.append(_n), _r(self))[1])
    x = torch.from_numpy(make_blobs(1000, 20, 3, spread=0.5))
    solution = fastdc.cluster.lloyd.lloyd(x, x[:20], None, max_iter=5, tol=0.0)
    assert transfers == [(5,)] * len(solution.history) + ["__float__"]  # and the inertia at the end


def test_verbose_shows_progress(capfd):
    KMeans(3, verbose=1, random_state=0).fit(make_blobs())
    assert "k-means 1/1" in capfd.readouterr().err


# --- torture


@pytest.mark.parametrize(("value", "words"), [(np.nan, "contains NaN"), (np.inf, "contains infinity")])
def test_T01_T02_not_finite(value, words):
    x = make_blobs()
    x[7, 2] = value
    with pytest.raises(ValueError, match=f"Input X {words}.*row 7, column 2"):
        KMeans(3).fit(x)
    model = KMeans(3, random_state=0).fit(make_blobs())
    with pytest.raises(ValueError, match=f"Input X {words}"):
        model.predict(x)


def test_T03_unchecked_nan_rows_get_no_label():
    x = make_blobs()
    clean = KMeans(3, init=x[:3]).fit(x[10:])
    x[5:10, 1] = np.nan
    model = KMeans(3, init=x[:3], check_finite=False).fit(np.concatenate([x[5:10], x[10:]]))
    assert model.labels_[:5].tolist() == [-1] * 5
    assert np.array_equal(model.labels_[5:], clean.labels_)
    assert np.array_equal(model.cluster_centers_, clean.cluster_centers_)
    assert KMeans(3, check_finite=False, random_state=0).fit(x).inertia_ < np.inf


def test_T04_numbers_whose_squares_overflow():
    with pytest.raises(ValueError, match="rows of X are so large that squared distances overflow"):
        KMeans(2).fit(make_blobs(dtype=np.float64) * 1e300)
    with pytest.raises(ValueError, match="overflow its dtype"):
        KMeans(2).fit(make_blobs(dtype=np.float32) * np.float32(1e30))
    assert KMeans(2).fit(make_blobs(dtype=np.float64) * 1e30).inertia_ < np.inf


@pytest.mark.parametrize("value", [0.0, 5.0, 1e-40])
def test_T05_T06_constant_data(value):
    x = np.full((50, 3), value, np.float32)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(1\) found smaller than n_clusters \(4\)"):
        model = KMeans(4).fit(x)
    assert model.inertia_ == 0.0
    assert np.isfinite(model.cluster_centers_).all()
    assert model.n_iter_ <= 2


@pytest.mark.parametrize("init", ["k-means++", "random", "adversarial"])
def test_T07_fewer_distinct_rows_than_clusters(init):
    x = np.repeat(np.array([[0.0], [1.0], [2.0], [10.0]]), 30, axis=0)
    start = np.array([[10.0], [10.0], [10.0], [10.0], [-90.0], [0.0]]) if init == "adversarial" else init
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(4\) found smaller than n_clusters \(6\)"):
        model = KMeans(6, init=start, tol=0, random_state=0).fit(x)
    assert model.n_iter_ < 20
    assert model.inertia_ == 0.0


def test_T08_as_many_clusters_as_rows():
    x = make_blobs(40)
    model = KMeans(40).fit(x)
    assert model.inertia_ == 0.0
    assert sorted(model.labels_) == list(range(40))


def test_T09_more_clusters_than_rows():
    with pytest.raises(ValueError, match="n_clusters=41 must be at most n_samples=40"):
        KMeans(41).fit(make_blobs(40))


def test_T10_one_cluster_is_the_mean():
    x = make_blobs(dtype=np.float64, offset=1e6)
    assert np.allclose(KMeans(1).fit(x).cluster_centers_, x.mean(0), rtol=1e-15)


BAD = [
    (dict(n_clusters=0), ValueError, "n_clusters must be at least 1, got 0"),
    (dict(n_clusters=-3), ValueError, "n_clusters must be at least 1"),
    (dict(n_clusters=2.5), TypeError, "n_clusters must be an integer, got 2.5"),
    (dict(n_clusters=True), TypeError, "n_clusters must be an integer, got True"),
    (dict(max_iter=0), ValueError, "max_iter must be at least 1"),
    (dict(tol=-1.0), ValueError, "tol must be 0 or above"),
    (dict(tol=np.nan), ValueError, "tol must be 0 or above"),
    (dict(n_init=0), ValueError, "n_init must be at least 1"),
    (dict(n_init="many"), ValueError, "n_init must be 'auto' or an integer, got 'many'"),
    (
        dict(init="best"),
        ValueError,
        r"init must be 'k-means\+\+', 'k-means\|\|', 'random' or an array of centers, got 'best'",
    ),
    (dict(init=np.zeros((3, 4))), ValueError, r"init has shape \(3, 4\), wanted .* \(2, 4\)"),
    (dict(random_state="seed"), ValueError, "random_state must be None, an integer"),
    (dict(backend="triton"), RuntimeError, "triton kernels need GPU tensors"),
    (dict(backend="gpu"), ValueError, "backend must be one of"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_T11_bad_parameters(options, error, message):
    with pytest.raises(error, match=message):
        KMeans(**{"n_clusters": 2, **options}).fit(make_blobs())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_T51_a_gpu_that_is_not_there():
    with pytest.raises(RuntimeError, match="torch sees no GPU"):
        KMeans(2, device="cuda").fit(make_blobs())


def test_T12_T13_few_rows():
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        KMeans(1).fit(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"0 feature\(s\)"):
        KMeans(1).fit(np.zeros((3, 0)))
    assert KMeans(1).fit([[1.0, 2.0]]).cluster_centers_.tolist() == [[1.0, 2.0]]


def test_T15_large_offset():
    x = make_blobs(600, 6, 24, spread=1.0)
    far = (x + 1e6).astype(np.float32)
    start = far[:6]
    exact = KMeans(6, init=start.astype(np.float64), tol=0).fit(far.astype(np.float64))
    model = KMeans(6, init=start, tol=0, max_iter=exact.n_iter_).fit(far)
    assert (model.labels_ == exact.labels_).mean() > 0.99  # centers are rounded to 1/16 in float32
    assert own_inertia(far, model) == pytest.approx(model.inertia_, rel=1e-6)


VIEWS = {
    "fortran": np.asfortranarray,
    "reversed": lambda x: x[::-1].copy()[::-1],
    "steps": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
    "big-endian": lambda x: x.astype(">f4"),
    "misaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
    "list": lambda x: x.astype(np.float64).tolist(),
    "frame": lambda x: pytest.importorskip("pandas").DataFrame(x),
}


@pytest.mark.parametrize("view", VIEWS)
def test_T20_T22_T23_layouts(view):
    x = make_blobs()
    expected = KMeans(5, random_state=0).fit(x)
    assert np.array_equal(KMeans(5, random_state=0).fit(VIEWS[view](x)).labels_, expected.labels_)


def test_T21_read_only_memmap(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, make_blobs())
    before = path.read_bytes()
    model = KMeans(5, random_state=0).fit(np.load(path, mmap_mode="r"))
    assert np.array_equal(model.labels_, KMeans(5, random_state=0).fit(make_blobs()).labels_)
    assert path.read_bytes() == before


def test_T24_T27_dtypes():
    whole = np.random.default_rng(0).integers(0, 100, size=(60, 3))
    expected = KMeans(4, random_state=0).fit(whole.astype(np.float64)).labels_
    for dtype in (np.int8, np.uint8, np.int64):
        assert np.array_equal(KMeans(4, random_state=0).fit(whole.astype(dtype)).labels_, expected)
    for bad in (scipy.sparse.eye(5).tocsr(), np.eye(5).astype(complex), np.ma.masked_array(np.eye(5), np.eye(5))):
        with pytest.raises(TypeError):
            KMeans(2).fit(bad)


def test_an_empty_cluster_is_filled():
    x = make_blobs(300, 4, 2, spread=20.0)
    start = np.concatenate([x[:3], np.full((1, 2), 1e4, np.float32)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = KMeans(4, init=start).fit(x)
    assert model.history_[0]["n_empty_clusters"] == 1
    assert len(np.unique(model.labels_)) == 4
    step = kmeans_step(torch.from_numpy(x), torch.from_numpy(model.cluster_centers_))
    assert float(step.inertia) == pytest.approx(model.inertia_)
