"""Methods over graphs and manifolds (N2D, SpectralNet, SDCN): small networks and few epochs."""

import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal
from sklearn.manifold import TSNE, Isomap

import fastdc
from fastdc.methods import N2D
from tests.method_cases import check_conventions, check_resume, check_saving, digits

N2D_SMALL = {
    "manifold": "spectral",
    "n_latent": 5,
    "hidden": (32,),
    "pretrain_epochs": 8,
    "batch_size": 64,
    "pretrain_learning_rate": 1e-2,
    "n_init": 3,
    "random_state": 0,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small run fastest on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def X():
    return digits(300)[0]


@pytest.fixture(scope="module")
def n2d(X):
    return check_conventions(N2D(10, **N2D_SMALL), X)


def test_n2d_is_saved_and_resumed(n2d, X, tmp_path, monkeypatch):
    check_saving(n2d, X, tmp_path / "n2d")
    check_resume(N2D(10, **N2D_SMALL), X, tmp_path, monkeypatch, n2d, (1, 7))


def test_n2d_puts_a_full_mixture_on_the_manifold(n2d):
    head = n2d.head_
    places, means, covariances, weights = (
        t.detach().double().numpy() for t in (head.places, head.means, head.covariances, head.weights)
    )
    density = [w * multivariate_normal.pdf(places, m, c) for w, m, c in zip(weights, means, covariances)]
    assert_array_equal(np.argmax(density, 0), n2d.labels_)
    assert_allclose(np.linalg.norm(places, axis=1), 1, rtol=1e-5)  # eigenvectors' rows


def test_n2d_places_new_rows_between_their_neighbours(n2d, X):
    head, z = n2d.head_, torch.from_numpy(n2d.transform(X))
    assert torch.equal(head.locate(z), head.places)
    new = torch.lerp(z[:20], z[20:40], 0.3)
    sq_dists = torch.cdist(new.double(), z.double()).square()
    near = sq_dists.topk(15, largest=False)
    weights = near.values.reciprocal()
    expected = (weights[:, :, None] * head.places[near.indices]).sum(1) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(head.locate(new), expected.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.locate(new)[:3], head.locate(new[:3]))


def test_n2d_takes_any_manifold(X):
    for manifold in (Isomap(n_neighbors=10, n_components=3), TSNE(max_iter=250, random_state=0)):
        estimator = N2D(10, **(N2D_SMALL | {"manifold": manifold})).fit(X)
        assert estimator.head_.places.shape == (300, manifold.n_components)
        assert_array_equal(estimator.predict(X), estimator.labels_)
        assert not hasattr(manifold, "embedding_")  # a clone was fitted


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"manifold": "pca"}, TypeError, r"manifold must be one of \('umap', 'spectral'\) or have a method fit_transf"),
        ({"n_components": 0}, ValueError, "n_components must be at least 1, got 0"),
        ({"n_neighbors": 1}, ValueError, "n_neighbors must be at least 2, got 1"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_n2d_bad_parameters_raise_before_training(X, monkeypatch, parameters, error, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(error, match=message):
        N2D(10, **(N2D_SMALL | parameters)).fit(X)


def test_n2d_says_what_umap_needs(X, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"needs umap-learn: pip install 'fastdc\[manifold\]'; or pass manifold="):
        N2D(10, **(N2D_SMALL | {"manifold": "umap"})).fit(X)


@pytest.mark.slow  # umap-learn compiles
@pytest.mark.peers("umap")
def test_n2d_with_umap(tmp_path):
    X, y = digits(1797)
    options = N2D_SMALL | {"manifold": "umap", "hidden": (128, 128), "n_latent": 10, "pretrain_epochs": 60}
    estimator = N2D(10, **(options | {"pretrain_learning_rate": 1e-3})).fit(X)
    assert estimator.head_.places.shape == (1797, 10)
    assert fastdc.normalized_mutual_info(y, estimator.labels_) > 0.78  # k-means: 0.74
    check_saving(estimator, X, tmp_path / "n2d")


def test_n2d_beats_kmeans():
    X, y = digits(1797)
    options = N2D_SMALL | {"hidden": (128, 128), "n_latent": 10, "pretrain_epochs": 40, "pretrain_learning_rate": 1e-3}
    labels = N2D(10, **options).fit(X).labels_
    assert fastdc.normalized_mutual_info(y, labels) > 0.76


def test_the_library_exports_them():
    assert fastdc.N2D is N2D
