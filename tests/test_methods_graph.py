"""Methods over graphs and manifolds (N2D, SpectralNet, SDCN): small networks and few epochs."""

import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from scipy.stats import multivariate_normal
from sklearn.datasets import make_circles, make_moons
from sklearn.manifold import TSNE, Isomap
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import fastdc
from fastdc.methods import N2D, SDCN, SpectralNet
from fastdc.networks import GraphCentroids, MLPAutoencoder, layer_outputs
from fastdc.persistence import CheckpointError
from fastdc.terms import GraphTarget, SiameseContrast, SpectralRelaxation
from fastdc.training import Batch
from tests.method_cases import Interrupt, check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

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
SPECTRAL_SMALL = {
    "hidden": (32,),
    "n_latent": 4,
    "batch_size": 100,
    "epochs": 6,
    "siamese_epochs": 3,
    "n_init": 3,
    "random_state": 0,
}
SDCN_SMALL = {
    "n_latent": 5,
    "hidden": (32, 16),
    "pretrain_epochs": 5,
    "epochs": 6,
    "batch_size": 64,
    "n_init": 3,
    "random_state": 0,
}
TINY = {"n_latent": 2, "hidden": (16,), "batch_size": 32, "n_init": 2}


@parametrize_with_checks(
    [
        N2D(3, manifold="spectral", pretrain_epochs=3, **TINY),
        SpectralNet(3, epochs=4, siamese_epochs=1, **TINY),
        SDCN(3, pretrain_epochs=20, epochs=60, **TINY),
    ]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def X():
    return digits(300)[0]


@pytest.fixture(scope="module")
def n2d(X):
    return check_conventions(N2D(10, **N2D_SMALL), X)


def test_n2d_is_saved_and_resumed(n2d, X, tmp_path, monkeypatch):
    check_saving(n2d, X, tmp_path / "n2d")
    check_resume(N2D(10, **N2D_SMALL), X, tmp_path, monkeypatch, n2d, (1, 7))
    again = N2D(10, **N2D_SMALL).fit(X, checkpoint=tmp_path / "7", resume=True)  # from the end
    assert_array_equal(again.labels_, n2d.labels_)


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


@pytest.fixture(scope="module")
def spectral(X):
    return check_conventions(SpectralNet(10, **SPECTRAL_SMALL), X)


def test_spectral_net_is_saved_and_resumed(spectral, X, tmp_path, monkeypatch):
    check_saving(spectral, X, tmp_path / "spectral")
    check_resume(SpectralNet(10, **SPECTRAL_SMALL), X, tmp_path, monkeypatch, spectral, (2, 5, 9))


def test_spectral_net_ends_with_orthonormal_columns(spectral, X):
    y = spectral.head_(torch.from_numpy(spectral.transform(X))).double()
    assert_allclose(y.T @ y / len(y), np.eye(10), atol=1e-3)


@pytest.mark.parametrize("points", [make_moons(600, noise=0.05, random_state=0), make_circles(
    600, factor=0.5, noise=0.03, random_state=0)], ids=["moons", "rings"])  # fmt: skip
def test_spectral_net_follows_shapes_and_extends_to_new_rows(points):
    X, y = points
    X = X.astype(np.float32)
    net = SpectralNet(2, hidden=(128, 128), batch_size=200, epochs=300, random_state=0).fit(X[:400])
    assert fastdc.adjusted_rand_index(y[:400], net.labels_) > 0.95
    assert fastdc.adjusted_rand_index(y[400:], net.predict(X[400:])) > 0.95


def _batch(x, network=None):
    network = network or nn.Identity()
    if not hasattr(network, "encode"):
        network.encode = network.forward
    return Batch(network, x, torch.arange(len(x)))


def test_the_spectral_loss_is_a_rayleigh_quotient():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    loss = SpectralRelaxation(5)(_batch(x))
    sq_dists = torch.cdist(x.double(), x.double()).square().fill_diagonal_(torch.inf)
    near = sq_dists.topk(5, largest=False)
    scale = near.values[:, 2].sqrt()
    weights = torch.exp(-near.values / (scale[:, None] * scale[near.indices]))
    weights = torch.zeros(40, 40).double().scatter(1, near.indices, weights)
    y = x.double() @ torch.linalg.inv(torch.linalg.cholesky(x.double().T @ x.double() / 40)).T
    expected = (weights * torch.cdist(y, y).square()).sum() / weights.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_siamese_loss_is_that_of_hadsell():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    network = nn.Linear(2, 2)
    batch = Batch(nn.Identity(), x, torch.arange(6), make_views=lambda batch, data: [batch.x, data.flip(0)])
    torch.manual_seed(3)
    loss = SiameseContrast(network, margin=0.7)(batch)
    torch.manual_seed(3)
    other = torch.randperm(6)
    z = network(x)
    near = (z - z.flip(0)).norm(dim=1)
    far = (z - z[other]).norm(dim=1)
    torch.testing.assert_close(loss, (near**2 + torch.relu(0.7 - far) ** 2).mean())


@pytest.mark.parametrize(
    ("method", "parameters", "error", "message"),
    [
        (SpectralNet, {"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, got 0"),
        (SpectralNet, {"siamese_epochs": -1}, ValueError, "siamese_epochs must be at least 0, got -1"),
        (SpectralNet, {"n_init": 0}, ValueError, "n_init must be at least 1, got 0"),
        (SDCN, {"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, got 0"),
        (SDCN, {"metric": "l1"}, ValueError, r"metric must be one of \('euclidean', 'cosine'\), got 'l1'"),
        (SDCN, {"mix": 1.5}, ValueError, "mix must be a share from 0 to 1, got 1.5"),
        (SDCN, {"beta": -1.0}, ValueError, "the weight of the graph loss must be finite and >= 0, got -1"),
        (SDCN, {"graph": np.zeros((3, 3))}, ValueError, r"got float64 of shape \(3, 3\)"),
        (SDCN, {"graph": csr_array((3, 3))}, ValueError, r"X has 300 rows, and graph shape \(3, 3\)"),
        (SDCN, {"graph": -csr_array(np.eye(300))}, ValueError, "weights of graph must be finite and not negative"),
        (SDCN, {"graph": np.array([[0], [300]])}, ValueError, "must join rows from 0 to 299, got 0 to 300"),
        (SDCN, {"image_shape": (1, 8, 8)}, ValueError, "layers of a fully connected encoder; pass image_shape=None"),
        (SDCN, {"encoder": nn.Bilinear(2, 2, 2)}, TypeError, "must be an nn.Sequential of linear layers and activ"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_parameters_raise_before_training(X, monkeypatch, method, parameters, error, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    monkeypatch.setattr("fastdc.methods._deep.embed", lambda network, x: x[:, :5])
    small = SPECTRAL_SMALL if method is SpectralNet else SDCN_SMALL
    with pytest.raises(error, match=message):
        method(10, **(small | parameters)).fit(X)


@pytest.fixture(scope="module")
def sdcn(X):
    return check_conventions(SDCN(10, **SDCN_SMALL), X)


def test_sdcn_is_saved_and_resumed(sdcn, X, tmp_path, monkeypatch):
    check_saving(sdcn, X, tmp_path / "sdcn")
    check_resume(SDCN(10, **SDCN_SMALL), X, tmp_path, monkeypatch, sdcn, (2, 8))
    again = SDCN(10, **SDCN_SMALL).fit(X, checkpoint=tmp_path / "8", resume=True)  # from the end
    assert_array_equal(again.labels_, sdcn.labels_)
    other = SDCN(10, graph=np.array([[0, 1], [1, 0]]), **SDCN_SMALL)
    with pytest.raises(CheckpointError, match="is of another run"):
        other.fit(X, checkpoint=tmp_path / "2", resume=True)


def test_sdcn_takes_all_rows_at_each_step_and_has_no_predict(sdcn, X):
    epochs = [record for record in sdcn.history_ if "loss" in record]
    assert [record["stage"] for record in epochs] == ["pretrain"] * 5 + ["refine"] * 6
    last = epochs[-1]
    assert last["loss"] == pytest.approx(last["reconstruction"] + 0.1 * last["clustering"] + 0.01 * last["graph"])
    assert not hasattr(sdcn, "predict")
    assert not hasattr(sdcn, "predict_proba")
    assert sdcn.transform(X).shape == (300, 5)


def test_sdcn_keeps_what_an_interrupted_fit_reached(X):
    estimator = SDCN(10, callbacks=[Interrupt(9)], **SDCN_SMALL)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X)
    assert estimator.n_iter_ == 4
    assert estimator.labels_.shape == (300,)


def test_sdcn_is_the_papers(X):
    """The graph network, its loss and their gradients by dense matrices."""
    torch.manual_seed(0)
    n, k = 30, 3
    x = torch.from_numpy(X[:n])
    network = MLPAutoencoder(64, 4, (8, 6), torch.Generator().manual_seed(0))
    head = GraphCentroids(k, [64, 8, 6, 4], mix=0.5)
    adjacency = (torch.rand(n, n) < 0.1).float().fill_diagonal_(0)
    adjacency = torch.maximum(adjacency, adjacency.T)
    head.link(adjacency.to_sparse_csr())
    head.place(torch.randn(k, 4))
    batch = Batch(network, x, torch.arange(n))
    loss = GraphTarget(head)(batch)
    loss.backward()

    loops = adjacency + torch.eye(n)
    scale = loops.sum(1).rsqrt()
    dense = scale[:, None] * loops * scale
    h1 = network.encoder[:2](x)
    h2 = network.encoder[2:4](h1)
    z = network.encoder[4:](h2)
    w = [layer.weight.T.detach().requires_grad_() for layer in head.layers]
    g = torch.relu(dense @ x @ w[0])
    g = torch.relu(dense @ (0.5 * g + 0.5 * h1) @ w[1])
    g = torch.relu(dense @ (0.5 * g + 0.5 * h2) @ w[2])
    log_prediction = (dense @ (0.5 * g + 0.5 * z) @ w[3]).log_softmax(1)
    with torch.no_grad():
        q = 1 / (1 + torch.cdist(z, head.centers).square())
        q /= q.sum(1, keepdim=True)
        p = q**2 / q.sum(0)
        p /= p.sum(1, keepdim=True)
    expected = nn.functional.kl_div(log_prediction, p, reduction="batchmean")
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    for layer, weight in zip(head.layers, w):
        torch.testing.assert_close(layer.weight.grad, weight.grad.T, rtol=1e-3, atol=1e-6)
    assert batch.z is not None
    torch.testing.assert_close(batch.z, z)


def test_layer_outputs_are_what_linear_layers_take():
    network = MLPAutoencoder(5, 2, (4, 3), torch.Generator().manual_seed(0))
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    seen = layer_outputs(network.encoder, x)
    assert [tuple(s.shape) for s in seen] == [(7, 4), (7, 3), (7, 2)]
    assert all((s >= 0).all() for s in seen[:2])
    torch.testing.assert_close(seen[-1], network.encode(x))


def test_spectral_net_beats_kmeans():
    X, y = digits(1797)
    labels = SpectralNet(10, hidden=(128, 128), epochs=60, random_state=0).fit(X).labels_
    assert fastdc.clustering_accuracy(y, labels) > 0.8  # k-means: 0.79
    assert fastdc.normalized_mutual_info(y, labels) > 0.77  # 0.74


def test_sdcn_learns_from_a_graph_what_the_autoencoder_does_not_know():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 60)
    X = (rng.normal(size=(180, 8)) + 2.5 * np.eye(3, 8)[y]).astype(np.float32)
    within = (y[:, None] == y) & (rng.random((180, 180)) < 0.15)
    graph = csr_array(np.triu(within, 1) + np.triu(within, 1).T, dtype=float)
    options = {"hidden": (64, 64), "batch_size": 64, "pretrain_epochs": 100, "random_state": 0}
    sdcn = SDCN(3, graph=graph, **options).fit(X)
    from_edges = SDCN(3, graph=np.stack(graph.nonzero()), **options).fit(X)
    assert_array_equal(from_edges.labels_, sdcn.labels_)
    of_centers = sdcn.head_.statistics(torch.from_numpy(sdcn.transform(X))).labels
    assert fastdc.adjusted_rand_index(y, sdcn.labels_) > fastdc.adjusted_rand_index(y, of_centers) + 0.2


@pytest.mark.slow
def test_sdcn_beats_kmeans():
    X, y = digits(1797)
    labels = SDCN(10, hidden=(256, 256), pretrain_epochs=60, random_state=0).fit(X).labels_
    assert fastdc.normalized_mutual_info(y, labels) > 0.76  # k-means: 0.74


def test_the_library_exports_them():
    assert fastdc.N2D is N2D
    assert fastdc.SpectralNet is SpectralNet
    assert fastdc.SDCN is SDCN
