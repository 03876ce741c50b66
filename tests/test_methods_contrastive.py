"""CC, SwAV, SCCL, SeLa and IDFD as estimators: conventions, objectives, results. Small networks and few epochs."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import fastdc
from fastdc.kernels.sinkhorn import sinkhorn_assign
from fastdc.kernels.student_t import dec_loss
from fastdc.methods import CC, IDFD, SCCL, SeLa, SwAV
from fastdc.metrics import clustering_accuracy
from fastdc.networks import Adapter, Autoencoder, Centroids, ConvBackbone, Prototypes, ResNet, SoftmaxHead, projection
from fastdc.terms import (
    ClusterContrast,
    FeatureDecorrelation,
    InstanceContrast,
    InstanceDiscrimination,
    StudentTOfRows,
    SwappedPrediction,
    TransportLabels,
)
from fastdc.training import Batch
from fastdc.views import Augmented, Chain, FeatureDropout, GaussianNoise, ImageTransform, RandomAffine
from tests.method_cases import check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden": (32,), "n_latent": 16, "epochs": 4, "batch_size": 100, "random_state": 0}
IMAGES = SMALL | {"image_shape": (1, 8, 8), "channels": (4,)}
METHODS = {
    "CC": CC(10, n_projected=8, **SMALL),
    "CC of images": CC(10, n_projected=8, **IMAGES),
    "SwAV": SwAV(10, **SMALL),
    "SwAV with more prototypes": SwAV(10, n_prototypes=20, n_init=2, **SMALL),
    "SwAV of images": SwAV(10, n_small=1, **IMAGES),
    "SCCL": SCCL(10, n_init=2, n_projected=8, **SMALL),
    "SCCL with targets of all rows": SCCL(10, n_init=2, target="refresh", **SMALL),
    "SeLa": SeLa(10, **SMALL),
    "IDFD": IDFD(10, n_init=2, **SMALL),
}


@pytest.fixture
def batch():
    """20 rows, whose embedding they are, in four views."""
    torch.manual_seed(0)
    x = torch.randn(20, 4, dtype=torch.float64)
    return Batch(Autoencoder(nn.Identity()), x, torch.arange(20), None, Augmented(GaussianNoise(0.5), 4))


QUICK = {"hidden": (16,), "epochs": 20, "batch_size": 32, "learning_rate": 1e-2}


@parametrize_with_checks(
    [
        CC(3, n_latent=16, **QUICK),
        SwAV(3, n_latent=16, **QUICK),
        SCCL(3, **(QUICK | {"learning_rate": 1e-3})),
        SeLa(3, n_latent=16, **QUICK),
        IDFD(3, n_latent=16, **QUICK),
    ]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", METHODS)
def test_conventions_saving_and_resuming(name, tmp_path, monkeypatch):
    X, _ = digits(250)
    fitted = check_conventions(METHODS[name], X)
    check_saving(fitted, X, tmp_path / "m.fastdc")
    check_resume(METHODS[name], X, tmp_path, monkeypatch, fitted, (1, 3))


def contrast(a, b, temperature):
    """NT-Xent as it is written."""
    z = normalize(torch.cat([a, b]), dim=1)
    scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(scores, torch.arange(2 * len(a)).roll(len(a)))


def test_the_losses_of_cc_are_those_of_the_paper(batch):
    one, other = batch.views[:2]
    batch.views = (one, other)
    g = projection(4, 3).double()
    loss = InstanceContrast(g, 0.5)(batch)
    assert loss.item() == pytest.approx(contrast(g(one.z), g(other.z), 0.5).item())
    head = SoftmaxHead(4, 3, hidden=4).double()
    p1, p2 = head(one.z).softmax(1), head(other.z).softmax(1)
    entropies = sum(-(p.mean(0) * p.mean(0).log()).sum() for p in (p1, p2))
    expected = contrast(p1.T, p2.T, 1.0) + 2 * np.log(3) - entropies
    assert ClusterContrast(head)(batch).item() == pytest.approx(expected.item())


def test_more_views_are_averaged_over_their_pairs(batch):
    g = projection(4, 3).double()
    pairs = [contrast(g(a.z), g(b.z), 0.5) for i, a in enumerate(batch.views) for b in batch.views[i + 1 :]]
    assert len(pairs) == 6
    assert InstanceContrast(g, 0.5)(batch).item() == pytest.approx(torch.stack(pairs).mean().item())


@pytest.mark.parametrize("n_views", [2, 4])
def test_swapped_prediction_is_that_of_the_paper_and_further_views_only_predict(batch, n_views):
    batch.views = batch.views[:n_views]
    prototypes = Prototypes(4, 5, temperature=0.2).double()
    codes = [sinkhorn_assign(prototypes(view.z).detach()) for view in batch.views[:2]]
    losses = [
        -(codes[i] * (prototypes(view.z) / 0.2).log_softmax(1)).sum(1).mean()
        for i in range(2)
        for j, view in enumerate(batch.views)
        if i != j
    ]
    assert len(losses) == 2 * (n_views - 1)
    term = SwappedPrediction(prototypes)
    loss = term(batch)
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item())
    loss.backward()
    expected = torch.autograd.grad(torch.stack(losses).mean(), prototypes.weight)[0]
    torch.testing.assert_close(prototypes.weight.grad, expected)
    prototypes.weight.data *= 3
    term.after_step(batch)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_sccl_trains_clusters_on_the_rows_themselves(batch):
    head = Centroids(3, 4).double()
    head.place(torch.randn(3, 4, dtype=torch.float64))
    assert StudentTOfRows(head, "batch")(batch).item() == pytest.approx(dec_loss(batch.x, head.centers).item())


def test_sela_learns_labels_of_which_each_cluster_has_about_as_many():
    torch.manual_seed(0)
    x = torch.randn(60, 4, dtype=torch.float64) + torch.tensor([3.0, 0, 0, 0], dtype=torch.float64)
    head = SoftmaxHead(4, 3).double()
    term = TransportLabels(head, 0.02)
    term.refresh(x)
    sizes = term.memory["targets"].bincount(minlength=3)
    assert (sizes - 20).abs().max() <= 1  # masses are equal, counts as far as codes are hard
    assert (head.statistics(x).labels.bincount(minlength=3) - 20).abs().max() > 5
    batch = Batch(Autoencoder(nn.Identity()), x[10:30], torch.arange(10, 30), x, Augmented(GaussianNoise(0.1), 2))
    loss = term(batch)
    expected = [cross_entropy(head(view.z), term.memory["targets"][10:30]) for view in batch.views]
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item())
    loss.backward()
    assert head.layers[0].weight.grad.abs().max() > 0


def test_the_losses_of_idfd_are_those_of_the_paper(batch):
    term, (one, *others) = InstanceDiscrimination(0.7, 0.25), batch.views
    loss = term(batch)
    bank = term.memory["bank"].clone()
    assert bank.shape == (20, 4)
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(20, dtype=torch.float64))
    units = [normalize(view.z, dim=1) for view in (one, *others)]
    losses = [cross_entropy(z @ bank.T / 0.7, torch.arange(20)) for z in units]
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item())
    term.after_step(batch)
    expected = normalize(0.25 * bank + 0.75 * torch.stack(units).mean(0), dim=1)
    torch.testing.assert_close(term.memory["bank"], expected)
    columns = [normalize(z, dim=0) for z in units]
    losses = [cross_entropy(f.T @ f / 1.5, torch.arange(4)) for f in columns]
    assert FeatureDecorrelation(1.5)(batch).item() == pytest.approx(torch.stack(losses).mean().item())


def test_what_is_remembered_comes_from_all_processes(batch):
    """Two halves of a batch, each of which gathers that of the other, remember what one process does."""

    class Both:
        def __init__(self, gathered):
            self.gathered = gathered

        def gather(self, rows):
            return self.gathered.pop(0)

    network, x = batch.network, batch.x
    whole, half = InstanceDiscrimination(), InstanceDiscrimination()
    whole.after_step(Batch(network, x, torch.arange(20)))
    part = Batch(network, x[:12], torch.arange(12), x)
    part.ranks = Both([torch.arange(20), normalize(x, dim=1)])
    half.after_step(part)
    torch.testing.assert_close(half.memory["bank"], whole.memory["bank"])


def test_an_adapter_begins_as_the_identity_and_learns():
    x = torch.randn(5, 3)
    network = Adapter(3, (8,))
    assert torch.equal(network.encode(x), x)
    network.encode(x).square().sum().backward()
    assert network.encoder.body[-1].weight.grad.abs().max() > 0


def test_resnet_halves_images_and_takes_blocks_by_stage():
    network = ResNet((3, 9, 8), 12, (4, 8), (1, 2, 1))
    assert [block.shortcut(torch.zeros(1, n, 9, 8)).shape[1] for n, block in zip((4, 4), network.encoder[4:6])] == [
        4,
        8,
    ]
    assert network.encode(torch.zeros(2, 216)).shape == (2, 12)
    assert sum(type(layer).__name__ == "Block" for layer in network.encoder) == 4


def test_a_small_convolutional_backbone_takes_any_image_and_stands_in_for_the_resnet():
    drawn = [ConvBackbone((3, 9, 30), 12, (4, 8), torch.Generator().manual_seed(1)) for _ in range(2)]
    assert drawn[0].encode(torch.zeros(2, 810)).shape == (2, 12)
    assert all(torch.equal(a, b) for a, b in zip(*(network.parameters() for network in drawn)))
    X, _ = digits(60)
    shape = (1, 8, 8)
    fitted = CC(3, image_shape=shape, autoencoder=ConvBackbone(shape, 16, (4, 8)), batch_size=32, epochs=1).fit(X)
    assert fitted.transform(X).shape == (60, 16)
    with pytest.raises(ValueError, match="at least 4 x 4 pixels"):
        ConvBackbone((1, 3, 8))


def test_a_users_encoder_decides_dtype_and_width():
    X, _ = digits(60)
    own = nn.Sequential(nn.Linear(64, 7), nn.ReLU()).double()
    for method in (CC, SwAV, SCCL):
        fitted = method(3, encoder=own, **(SMALL | {"epochs": 1})).fit(X.astype(np.float64))
        assert fitted.transform(X).shape == (60, 7)
        assert fitted.transform(X).dtype == np.float64


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (CC(3, temperature=0), "temperature must be a finite number above 0, got 0"),
        (CC(3, cluster_temperature=-1), "cluster_temperature must be a finite number above 0, got -1"),
        (CC(3, balance=-1), "balance must be"),
        (CC(3, n_projected=0), "n_projected must be"),
        (CC(3, noise=-1), "std must be"),
        (SwAV(3, epsilon=0), "epsilon must be a finite number above 0, got 0"),
        (SwAV(3, n_iters=0), "n_iters must be"),
        (SwAV(3, n_prototypes=0), "n_prototypes must be"),
        (SwAV(3, n_small=-1), "n_small must be"),
        (SCCL(3, eta=-1), "weight of the clustering loss must be finite and >= 0, got -1"),
        (SCCL(3, target="rows"), r"target must be one of \('refresh', 'batch'\), got 'rows'"),
        (SCCL(3, n_init=0), "n_init must be"),
        (SeLa(3, epsilon=0), "epsilon must be a finite number above 0, got 0"),
        (IDFD(3, temperature=0), "temperature must be a finite number above 0, got 0"),
        (IDFD(3, decorrelation_temperature=0), "decorrelation_temperature must be a finite number above 0, got 0"),
        (IDFD(3, decorrelation_weight=-1), "weight of the decorrelation loss must be finite and >= 0, got -1"),
        (IDFD(3, momentum=1.0), r"momentum must be from 0 to below 1, got 1\.0"),
        (IDFD(3, n_init=0), "n_init must be"),
    ],
    ids=str,
)
def test_T09_bad_parameters_raise_before_training(monkeypatch, estimator, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(ValueError, match=message):
        estimator.fit(digits(50)[0])


@pytest.mark.parametrize(("method", "loss"), [(CC, "instance"), (SwAV, "swapped prediction"), (SCCL, "instance")])
def test_one_view_is_not_enough(method, loss):
    with pytest.raises(ValueError, match=f"the {loss} loss compares views, and views= makes only one; take"):
        method(3, views=Augmented(GaussianNoise(0.1), 1), **SMALL).fit(digits(50)[0])


def test_sccl_keeps_good_embeddings_good_and_a_projection_away_from_them():
    X, y = make_blobs(300, 20, centers=4, cluster_std=2.0, random_state=0)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    fitted = SCCL(4, epochs=5, random_state=0).fit(X)
    assert clustering_accuracy(y, fitted.labels_) >= clustering_accuracy(y, KMeans(4, n_init=5).fit_predict(X))


def test_cc_and_swav_learn_what_transforms_leave():
    """Digits, with transforms that say what a character bears."""
    X, y = digits(1797)
    views = Augmented(Chain([RandomAffine((1, 8, 8), 15, 0.1, (0.8, 1.25), 10), FeatureDropout(0.1)]))
    for method in (CC, SwAV):
        estimator = method(10, hidden=(256,), epochs=15, learning_rate=1e-3, views=views, random_state=0)
        assert clustering_accuracy(y, estimator.fit_predict(X)) > 0.6


def test_idfd_beats_kmeans():
    X, y = digits(1797)
    labels = IDFD(10, hidden=(256,), epochs=30, n_init=5, random_state=0).fit_predict(X)
    assert clustering_accuracy(y, labels) > clustering_accuracy(y, KMeans(10, n_init=5, random_state=0).fit_predict(X))


def test_idfd_clusters_directions_whatever_lengths_a_users_network_gives():
    X, _ = digits(300)
    identity = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.eye_(identity.weight)
    options = {"encoder": identity, "epochs": 1, "n_init": 2, "learning_rate": 1e-9, "random_state": 0}
    lengths = 1 + np.arange(300, dtype=np.float32)[:, None]
    fitted = IDFD(10, **options).fit(X * lengths)
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    nearest = np.linalg.norm(units[:, None] - fitted.cluster_centers_, axis=2).argmin(1)
    np.testing.assert_array_equal(nearest, fitted.labels_)
    assert np.linalg.norm(fitted.cluster_centers_, axis=1).max() < 1


def test_the_library_exports_them():
    assert [fastdc.CC, fastdc.SwAV, fastdc.SCCL, fastdc.SeLa, fastdc.IDFD] == [CC, SwAV, SCCL, SeLa, IDFD]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_transforms_of_kornia_make_views():
    augmentation = pytest.importorskip("kornia.augmentation")
    X, _ = digits(60)
    turned = ImageTransform(augmentation.RandomAffine(20.0, translate=(0.1, 0.1), p=1.0), (1, 8, 8))
    views = Augmented(turned)
    x = torch.from_numpy(X)
    first, second = views(Batch(nn.Identity(), x, torch.arange(60)), x)
    assert first.shape == second.shape == x.shape
    assert not torch.equal(first, x)
    assert not torch.equal(first, second)
    fits = [CC(3, hidden=(16,), n_latent=8, epochs=2, views=views, random_state=0).fit(X) for _ in range(2)]
    assert_array_equal(fits[0].cluster_centers_, fits[1].cluster_centers_)
