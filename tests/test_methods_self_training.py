"""DCEC, DEC-DA, DBC and DEPICT: conventions, objectives against plain torch, what they learn."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.nn.functional import mse_loss, relu

import fastdc
from fastdc import DBC, DCEC, DECDA, DEPICT, IDEC, TwoStage
from fastdc.kernels.student_t import student_t_assign
from fastdc.metrics import clustering_accuracy
from fastdc.networks import Autoencoder, ConvAutoencoder, MLPAutoencoder, SoftmaxHead
from fastdc.terms import LayerReconstruction, NoisyPass
from fastdc.terms.layerwise import activation_outputs
from fastdc.training import Batch
from fastdc.views import Augmented, GaussianNoise, RandomAffine
from tests.method_cases import check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "n_latent": 4,
    "hidden": (32,),
    "pretrain_epochs": 4,
    "epochs": 4,
    "batch_size": 100,
    "pretrain_learning_rate": 1e-2,
    "tol": None,
    "n_init": 2,
    "random_state": 0,
}
IMAGES = {"image_shape": (1, 8, 8)}
NOISE = Augmented(GaussianNoise(0.1), n_views=1)
METHODS = {
    "DCEC": DCEC(10, **SMALL, **IMAGES),
    "DEC-DA": DECDA(10, **SMALL, **IMAGES),
    "IDEC-DA, noise": DECDA(10, views=NOISE, reconstruction=1.0, **SMALL),
    "DBC": DBC(10, **SMALL),
    "DEPICT": DEPICT(10, **SMALL),
    "DEPICT, images": DEPICT(10, **SMALL, **IMAGES),
}


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def estimator(request):
    return clone(request.param)


def test_conventions_saving_and_resume(estimator, tmp_path, monkeypatch):
    X, _ = digits(200)
    fitted = check_conventions(estimator, X)
    check_saving(fitted, X, tmp_path / "m")
    check_resume(estimator, X, tmp_path, monkeypatch, fitted, (2, 5, 7))


@pytest.mark.parametrize("method", [DECDA(3, views=NOISE), DBC(3), DEPICT(3)], ids=lambda m: type(m).__name__)
def test_well_separated_clusters_are_found(method):
    X, y = make_blobs(150, 5, centers=3, cluster_std=0.5, random_state=3)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    options = SMALL | {"n_latent": 2, "pretrain_epochs": 30, "epochs": 10}
    assert adjusted_rand_score(y, clone(method).set_params(**options).fit(X).labels_) == 1.0


def test_refinement_leaves_kmeans_behind():
    """On all digits, a small network: k-means on pixels has an accuracy of 0.79."""
    X, y = digits(1797)
    options = SMALL | {"n_latent": 10, "hidden": (128,), "pretrain_epochs": 30, "pretrain_learning_rate": 3e-3}
    start = TwoStage(10, **options).fit(X)
    refine = options | {"pretrain_epochs": 0, "autoencoder": start.network_, "epochs": 25}
    shifts = Augmented(RandomAffine((1, 8, 8), translate=0.05), n_views=1)
    for method in (DBC(**refine), DEPICT(**(options | {"epochs": 25})), DECDA(**refine, views=shifts)):
        labels = method.set_params(n_clusters=10).fit(X).labels_
        assert clustering_accuracy(y, labels) > clustering_accuracy(y, start.labels_)


def test_dcec_is_idec_on_a_convolutional_autoencoder():
    X, _ = digits(100)
    dcec = DCEC(10, **SMALL, **IMAGES).fit(X)
    assert isinstance(dcec.network_, ConvAutoencoder)
    idec = IDEC(10, scale=1.0, target="refresh", learning_rate=1e-3, **SMALL, **IMAGES).fit(X)
    assert_array_equal(dcec.cluster_centers_, idec.cluster_centers_)
    own = MLPAutoencoder(64, 3, (8,), torch.Generator().manual_seed(0))
    assert DCEC(4, autoencoder=own, **SMALL).fit(X).cluster_centers_.shape == (4, 3)


def retrace(X, start, centers, learning_rate, n_epochs, loss_of):
    """Full batches of refinement by plain torch, P anew at each step; the centers at the end."""
    x, network = torch.from_numpy(X), copy.deepcopy(start)
    centers = nn.Parameter(torch.from_numpy(centers.copy()))
    optimizer = torch.optim.Adam([*network.encoder.parameters(), centers], lr=learning_rate)
    torch.manual_seed(0)
    for _ in range(n_epochs):
        optimizer.zero_grad()
        loss_of(network, x, centers).backward()
        optimizer.step()
    return centers.detach()


def sharpened(q, power, frequency_power):
    p = q**power / q.sum(0) ** frequency_power
    return p / p.sum(1, keepdim=True)


def test_decda_retraced_by_plain_torch():
    """P of the rows as they are, Q of noisy ones."""
    X, _ = digits(120)
    start = MLPAutoencoder(64, 3, (16,), torch.Generator().manual_seed(0))
    options = SMALL | {"pretrain_epochs": 0, "autoencoder": start, "batch_size": None, "learning_rate": 1e-2}
    options |= {"update_interval": 1, "views": NOISE}
    centers = DECDA(6, **(options | {"epochs": 0})).fit(X).cluster_centers_

    def loss_of(network, x, centers):
        with torch.no_grad():
            p = sharpened(student_t_assign(network.encode(x), centers), 2, 1)
        q = student_t_assign(network.encode(x + 0.1 * torch.randn_like(x)), centers)
        return torch.xlogy(p, p / q).sum() / len(x)

    expected = retrace(X, start, centers, 1e-2, 4, loss_of)
    assert_allclose(DECDA(6, **options).fit(X).cluster_centers_, expected, rtol=1e-3, atol=1e-4)


def test_dbc_retraced_by_plain_torch():
    X, _ = digits(120)
    start = MLPAutoencoder(64, 3, (16,), torch.Generator().manual_seed(0))
    options = SMALL | {"pretrain_epochs": 0, "autoencoder": start, "batch_size": None, "learning_rate": 1e-2}
    options |= {"update_interval": 1, "scale": 0.5}
    centers = DBC(6, **(options | {"epochs": 0})).fit(X).cluster_centers_

    def loss_of(network, x, centers):
        q = student_t_assign(network.encode(x) / 0.5, centers / 0.5)
        p = sharpened(q.detach(), 3, 0)
        return torch.xlogy(p, p / q).sum() / len(x)

    expected = retrace(X, start, centers, 1e-2, 4, loss_of)
    assert_allclose(DBC(6, power=3.0, **options).fit(X).cluster_centers_, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("power", "frequency_power", "hidden_weight"), [(2.0, 1.0, 0.1), (1.0, 0.5, 1.0)])
def test_depict_retraced_by_plain_torch(power, frequency_power, hidden_weight):
    """One hidden layer: the clean and the noisy pass written out, dropout drawn in the same order."""
    X, _ = digits(120)
    x = torch.from_numpy(X)
    start = MLPAutoencoder(64, 3, (16,), torch.Generator().manual_seed(0))
    options = SMALL | {"pretrain_epochs": 0, "autoencoder": start, "batch_size": None, "learning_rate": 1e-2}
    options |= {"update_interval": 1, "dropout": 0.2, "reconstruction": 0.5}
    options |= {"power": power, "frequency_power": frequency_power, "hidden_weight": hidden_weight}
    placed = DEPICT(6, **(options | {"epochs": 0})).fit(X)
    network, classify = copy.deepcopy(start), copy.deepcopy(placed.head_.layers)
    (first, _, last), (back, _, out) = network.encoder, network.decoder
    optimizer = torch.optim.Adam([*network.parameters(), *classify.parameters()], lr=1e-2)
    torch.manual_seed(0)
    SoftmaxHead(3, 6)  # a fit draws its head first
    drop = nn.Dropout(0.2)
    for _ in range(4):
        optimizer.zero_grad()
        noisy_x = drop(x)
        hidden = relu(first(x))
        noisy = last(drop(relu(first(noisy_x))))
        decoded = relu(back(noisy))
        p = classify(last(hidden)).softmax(1).detach()
        q = p**power / p.sum(0) ** frequency_power
        q /= q.sum(1, keepdim=True)
        divergence = (torch.xlogy(q, q) - q * classify(noisy).log_softmax(1)).sum() / len(x)
        reconstruction = hidden_weight * mse_loss(decoded, hidden.detach()) + mse_loss(out(decoded), x)
        (divergence + 0.5 * reconstruction).backward()
        optimizer.step()
    depict = DEPICT(6, **options).fit(X)
    assert_allclose(depict.transform(X), network.encode(x).detach(), rtol=1e-3, atol=1e-4)
    assert_allclose(depict.head_.layers[0].weight.detach(), classify[0].weight.detach(), rtol=1e-3, atol=1e-4)


def test_depict_starts_from_kmeans():
    X, _ = digits(200)
    options = SMALL | {"epochs": 0}
    depict = DEPICT(10, **options).fit(X)
    z = depict.transform(X)
    expected = fastdc.KMeans(10, n_init=2, random_state=0).fit(z)
    assert_array_equal(depict.labels_, expected.labels_)
    variance = expected.inertia_ / z.size
    sq_dists = np.square(z[:, None] - expected.cluster_centers_).sum(2)
    q = torch.from_numpy(-sq_dists / (2 * variance)).softmax(1)
    assert_allclose(depict.predict_proba(X), q, rtol=1e-2, atol=1e-4)


def test_layers_of_a_convolutional_autoencoder_mirror_each_other():
    network = ConvAutoencoder((1, 8, 8), 3, (4, 8), torch.Generator().manual_seed(0))
    x = torch.rand(5, 64, generator=torch.Generator().manual_seed(1))
    encoded = activation_outputs(network.encoder, x)
    assert [layer.shape[1] for layer in encoded] == [4 * 4 * 4, 8 * 2 * 2, 3]
    decoded = activation_outputs(network.decoder, encoded[-1])
    assert [layer.shape[1] for layer in decoded] == [8 * 2 * 2, 4 * 4 * 4, 64]
    loss = LayerReconstruction(NoisyPass(0.0))(Batch(network, x, torch.arange(5)))
    pairs = zip(decoded[::-1], [x, *encoded[:-1]])
    torch.testing.assert_close(loss, sum(mse_loss(made, layer) for made, layer in pairs))


def test_layers_that_do_not_mirror_each_other():
    encoder = nn.Sequential(nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 2))
    network = Autoencoder(encoder, nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 64)))
    with pytest.raises(ValueError, match=r"must mirror the encoder's: encoder \[64, 7\], decoder \[9, 64\] units"):
        DEPICT(3, autoencoder=network, **SMALL).fit(digits(100)[0])


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (DCEC(3), ValueError, r"DCEC works on images: pass image_shape=\(channels, height, width\), or a network"),
        (DECDA(3), ValueError, "DECDA needs views= that transform the rows, such as Augmented"),
        (DECDA(3, views=NOISE, reconstruction=-1), ValueError, "weight of the reconstruction loss must be"),
        (DBC(3, power=0.0), ValueError, r"power must be a finite number above 0, got 0\.0"),
        (DEPICT(3, dropout=1.0), ValueError, r"dropout must be a share from 0 to below 1, got 1\.0"),
        (DEPICT(3, reconstruction=-1.0), ValueError, "weight of the reconstruction loss must be"),
        (DEPICT(3, hidden_weight=-1.0), ValueError, "hidden_weight must be a finite number, 0 or above"),
        (DEPICT(3, power=0.0), ValueError, r"power must be a finite number above 0, got 0\.0"),
        (DEPICT(3, frequency_power=-1.0), ValueError, "frequency_power must be a finite number, 0 or above"),
        (
            DEPICT(3, encoder=nn.Linear(64, 2), decoder=nn.Linear(2, 64)),
            TypeError,
            r"encoder and decoder must be nn\.Sequential, got Linear and Linear",
        ),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, (str, type)) else "",
)
def test_bad_parameters_raise_before_training(monkeypatch, estimator, error, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(error, match=message):
        estimator.fit(digits(100)[0])


def test_the_library_exports_them():
    assert {"DBC", "DCEC", "DECDA", "DEPICT"} <= set(fastdc.__all__)
    assert fastdc.DEPICT is DEPICT
