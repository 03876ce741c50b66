"""Methods that learn their own labels (SCAN, DeepCluster): small networks and few epochs."""

import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn.functional import cross_entropy

import fastdc
from fastdc.methods import SCAN, DeepCluster
from fastdc.networks import MappedCentroids, SoftmaxHead
from fastdc.terms import ClusterClassification, ConfidentLabels, NeighborConsistency
from fastdc.training import Batch
from tests.method_cases import check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "n_latent": 5,
    "hidden": (32,),
    "pretrain_epochs": 4,
    "epochs": 5,
    "batch_size": 100,
    "n_init": 3,
    "random_state": 0,
}
SCAN_SMALL = SMALL | {"self_epochs": 3, "threshold": 0.3}
TINY = {"n_latent": 2, "hidden": (16,), "batch_size": 32, "n_init": 2}


@parametrize_with_checks(
    [
        SCAN(3, pretrain_epochs=20, epochs=30, self_epochs=1, learning_rate=1e-2, **TINY),
        DeepCluster(3, pretrain_epochs=3, epochs=4, **TINY),
    ]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def X():
    return digits(300)[0]


@pytest.fixture(scope="module")
def scan(X):
    return check_conventions(SCAN(10, **SCAN_SMALL), X)


@pytest.fixture(scope="module")
def deep(X):
    return check_conventions(DeepCluster(10, **SMALL), X)


def test_scan_is_saved_and_resumed(scan, X, tmp_path, monkeypatch):
    check_saving(scan, X, tmp_path / "scan")
    check_resume(SCAN(10, **SCAN_SMALL), X, tmp_path, monkeypatch, scan, (2, 6, 11))


def test_deep_cluster_is_saved_and_resumed(deep, X, tmp_path, monkeypatch):
    check_saving(deep, X, tmp_path / "deep")
    check_resume(DeepCluster(10, **SMALL), X, tmp_path, monkeypatch, deep, (2, 7))


def _views(x, others, network=None):
    network = network or nn.Identity()
    network.encode = network.forward
    return Batch(network, x, torch.arange(len(x)), make_views=lambda batch, data: [batch.x, others])


def test_the_loss_of_scan_is_equation_2():
    torch.manual_seed(0)
    head, x, neighbors = SoftmaxHead(4, 3), torch.randn(9, 4), torch.randn(9, 4)
    loss = NeighborConsistency(head, 5.0)(_views(x, neighbors))
    p, q = head.assign(x), head.assign(neighbors)
    mean = p.mean(0)
    expected = -(p * q).sum(1).log().mean() + 5.0 * (mean * mean.log()).sum()
    torch.testing.assert_close(loss, expected)


def test_sure_labels_are_learned_at_other_views():
    torch.manual_seed(0)
    head, x, others = SoftmaxHead(4, 3), 3 * torch.randn(50, 4), torch.randn(50, 4)
    loss = ConfidentLabels(head, 0.6)(_views(x, others))
    confidence, labels = head.assign(x).max(1)
    sure = confidence > 0.6
    assert 5 < sure.sum() < 45
    weight = 1 / labels[sure].bincount(minlength=3)
    torch.testing.assert_close(loss, cross_entropy(head(others)[sure], labels[sure], weight))
    assert ConfidentLabels(head, 0.9999999)(_views(x, others)) == 0


def test_deep_cluster_relabels_by_whitened_kmeans(X):
    torch.manual_seed(0)
    z = torch.from_numpy(X)[:, 10:14] + 3.0
    head, classifier = MappedCentroids(3, 4, unit=True), nn.Linear(4, 3)
    before = classifier.weight.clone()
    term = ClusterClassification(head, classifier)
    assert term.refresh(z)["label_change"] == 1.0
    assert not torch.equal(classifier.weight, before)
    values, vectors = torch.linalg.eigh(torch.cov(z.double().T, correction=0))
    white = ((z - z.mean(0)).double() @ vectors) / values.sqrt()
    white = white / white.norm(dim=1, keepdim=True)
    mapped = head(z).double()
    torch.testing.assert_close(mapped @ mapped.T, white @ white.T, rtol=1e-3, atol=1e-3)  # up to a rotation
    labels = term.memory["labels"]
    assert torch.equal(torch.cdist(mapped, head.centers.double()).argmin(1), labels)
    assert term.refresh(z)["label_change"] == 0.0

    network = nn.Identity()
    network.encode = network.forward
    rows = torch.arange(0, 300, 7)
    loss = term(Batch(network, z[rows], rows))
    weight = 300 / (3 * labels.bincount(minlength=3))
    each = weight[labels[rows]] * cross_entropy(classifier(z[rows]), labels[rows], reduction="none")
    torch.testing.assert_close(loss, each.mean())


def test_deep_cluster_may_label_by_more_clusters(X):
    deep = DeepCluster(4, n_labels=12, **SMALL).fit(X)
    assert set(deep.labels_) <= set(range(4))
    refreshes = [record for record in deep.history_ if "label_change" in record]
    assert len(refreshes) == 5  # one an epoch
    assert refreshes[0]["label_change"] == 1.0


def test_scan_takes_a_network_that_was_trained_otherwise(X):
    own = nn.Sequential(nn.Linear(64, 6), nn.Tanh())
    given = SCAN_SMALL | {"pretrain_epochs": 0, "self_epochs": 0}
    scan = SCAN(10, encoder=own, **given).fit(X)
    assert scan.cluster_centers_.shape == (10, 6)
    assert {record["stage"] for record in scan.history_} == {"cluster"}


@pytest.mark.parametrize(
    ("method", "parameters", "error", "message"),
    [
        (SCAN, {"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, got 0"),
        (SCAN, {"entropy_weight": -1.0}, ValueError, "entropy_weight must be"),
        (SCAN, {"threshold": 1.0}, ValueError, "threshold must be a probability, 0 or above and below 1, got 1.0"),
        (SCAN, {"self_epochs": -1}, ValueError, "self_epochs must be at least 0, got -1"),
        (DeepCluster, {"n_labels": 0}, ValueError, "n_labels must be at least 1, got 0"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_parameters_raise_before_training(X, monkeypatch, method, parameters, error, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    small = SCAN_SMALL if method is SCAN else SMALL
    with pytest.raises(error, match=message):
        method(10, **(small | parameters)).fit(X)


def test_digits_are_told_apart():
    X, y = digits(1797)
    options = SMALL | {"n_latent": 32, "hidden": (128, 128), "pretrain_epochs": 40, "batch_size": 256}
    scan = SCAN(10, **(options | {"epochs": 50, "metric": "euclidean"})).fit(X)
    assert fastdc.normalized_mutual_info(y, scan.labels_) > 0.65
    deep = DeepCluster(10, **(options | {"epochs": 20})).fit(X)  # whitened and without images' augmentations
    assert fastdc.normalized_mutual_info(y, deep.labels_) > 0.4


def test_the_library_exports_them():
    assert fastdc.SCAN is SCAN
    assert fastdc.DeepCluster is DeepCluster
