"""IMSAT and IIC as estimators: conventions, objectives, results. Small networks and few epochs."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import fastdc
from fastdc.methods import IIC, IMSAT
from fastdc.metrics import clustering_accuracy
from fastdc.networks import Autoencoder, MLPBackbone, MultiHead, SoftmaxHead
from fastdc.terms import Information, MutualInformation, SelfAugmentation
from fastdc.training import Batch
from fastdc.views import Augmented, GaussianNoise
from tests.method_cases import check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden": (32,), "n_latent": 16, "epochs": 4, "batch_size": 100, "random_state": 0}
METHODS = {
    "IMSAT": IMSAT(10, **SMALL),
    "IMSAT at random": IMSAT(10, perturbation="random", **SMALL),
    "IMSAT of views": IMSAT(10, perturbation="views", views=Augmented(GaussianNoise(0.1)), **SMALL),
    "IIC": IIC(10, n_heads=2, **SMALL),
    "IIC of images": IIC(10, n_heads=2, **(SMALL | {"image_shape": (1, 8, 8), "channels": (4,)})),
}


@pytest.fixture(scope="module")
def all_digits():
    return digits(1797)


@parametrize_with_checks(
    [m(3, hidden=(16,), n_latent=16, epochs=20, batch_size=32, learning_rate=1e-2) for m in (IMSAT, IIC)]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", METHODS)
def test_conventions_saving_and_resuming(name, tmp_path, monkeypatch):
    X, _ = digits(250)
    fitted = check_conventions(METHODS[name], X)
    modules = {"views": METHODS[name].views} if METHODS[name].views else {}
    check_saving(fitted, X, tmp_path / "m.fastdc", **modules)
    check_resume(METHODS[name], X, tmp_path, monkeypatch, fitted, (1, 3))
    assert "label_change" in fitted.history_[0]


def test_information_is_that_of_the_paper():
    torch.manual_seed(0)
    head, z = SoftmaxHead(4, 3).double(), torch.randn(20, 4, dtype=torch.float64)
    batch = Batch(Autoencoder(nn.Identity()), z, torch.arange(20))
    p = head(z).softmax(1)
    conditional = -(p * p.log()).sum(1).mean()
    marginal = -(p.mean(0) * p.mean(0).log()).sum()
    loss = Information(head, 4.0)(batch)
    assert loss.item() == pytest.approx((conditional - 4 * marginal).item())


@pytest.mark.parametrize("perturbation", ["adversarial", "random"])
def test_perturbations_have_the_length_of_a_quarter_of_the_distance_to_the_tenth_neighbour(perturbation):
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    seen = []

    class Encoder(nn.Module):
        def encode(self, x):
            seen.append(x.detach())
            return x

    head, rows = SoftmaxHead(4, 3), torch.arange(5, 25)
    term = SelfAugmentation(head, perturbation)
    loss = term(Batch(Encoder(), x[rows], rows, x))
    distance = torch.cdist(x, x).sort(1).values[rows, 10]
    torch.testing.assert_close((seen[-1] - x[rows]).norm(dim=1), 0.25 * distance)
    log_p, log_q = head(x[rows]).log_softmax(1), head(seen[-1]).log_softmax(1)
    assert loss.item() == pytest.approx((log_p.exp() * (log_p - log_q)).sum(1).mean().item(), rel=1e-4)


def test_the_adversarial_direction_is_the_worst_one():
    """Of a linear head of two clusters: the difference of its rows."""
    torch.manual_seed(0)
    x, head = torch.randn(30, 5), SoftmaxHead(5, 2)
    seen = []

    class Encoder(nn.Module):
        def encode(self, x):
            seen.append(x.detach())
            return x

    SelfAugmentation(head)(Batch(Encoder(), x, torch.arange(30)))
    weight = head.layers[0].weight
    worst = nn.functional.normalize(weight[0] - weight[1], dim=0)
    cosines = nn.functional.cosine_similarity(seen[-1] - x, worst[None]).abs()
    assert cosines.min() > 0.999


def test_running_statistics_learn_from_clean_rows_alone():
    X, _ = digits(100)
    x = torch.from_numpy(X)
    network, head = MLPBackbone(64, 8, (16,), torch.Generator().manual_seed(0)), SoftmaxHead(8, 3)
    batch = Batch(network, x, torch.arange(100))
    batch.through(head)
    before = {name: value.clone() for name, value in network.named_buffers()}
    SelfAugmentation(head)(batch)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    SelfAugmentation(head, "random")(batch)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm1d))


def test_mutual_information_is_that_of_the_paper_for_each_head():
    torch.manual_seed(0)
    head, x = MultiHead(4, 3, 2).double(), torch.randn(20, 4, dtype=torch.float64)
    batch = Batch(Autoencoder(nn.Identity()), x, torch.arange(20), None, Augmented(GaussianNoise(0.5)))
    term = MutualInformation(head)
    expected = []
    for p1, p2 in zip(*(head(view.x).softmax(2) for view in batch.views)):
        joint = p1.T @ p2 / 20
        joint = (joint + joint.T) / 2
        independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        expected.append(-(joint * (joint / independent).log()).sum().item())
    assert term.of_heads(batch).tolist() == pytest.approx(expected)
    assert term(batch).item() == pytest.approx(np.mean(expected))


def test_iic_keeps_the_head_with_the_least_loss():
    X, _ = digits(250)
    fitted = IIC(10, n_heads=4, n_over=0, **SMALL).fit(X)
    z = torch.from_numpy(fitted.transform(X))
    with torch.no_grad():
        logits = fitted.head_(z)
        q = fitted.head_.assign(z)
    assert torch.equal(q, logits[fitted.head_.best].softmax(1))
    head = MultiHead(3, 2, 4)
    head.choose(torch.tensor([-0.1, -0.4, -0.3, 0.0]))
    assert head.best == 1


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            IMSAT(3, perturbation="worst"),
            r"perturbation must be one of \('adversarial', 'random', 'views'\), got 'worst'",
        ),
        (IMSAT(3, perturbation="views"), "perturbation='views' and views=None do not go together"),
        (IMSAT(3, views=Augmented(GaussianNoise(1))), "perturbation='adversarial' and views=Augmented.* do not go"),
        (IMSAT(3, radius=0), "radius must be a finite number above 0, got 0"),
        (IMSAT(3, n_neighbors=0), "n_neighbors must be"),
        (IMSAT(3, weight=-1), "weight of the information loss must be finite and >= 0, got -1"),
        (IMSAT(3, marginal_weight=-1), "marginal_weight must be"),
        (IIC(3, n_heads=0), "n_heads must be"),
        (IIC(3, n_over=-1), "n_over must be"),
        (IIC(3, lamb=-1), "lamb must be"),
        (IIC(3, image_shape=(1, 8, 8), n_blocks=(1, 2)), "n_blocks must be a number, or one for each of the 3 stages"),
    ],
    ids=str,
)
def test_T09_bad_parameters_raise_before_training(monkeypatch, estimator, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(ValueError, match=message):
        estimator.fit(digits(50)[0])


def test_one_view_is_not_enough():
    with pytest.raises(ValueError, match=r"the information loss compares views, and views= makes only one; take"):
        IIC(3, views=Augmented(GaussianNoise(0.1), 1), **SMALL).fit(digits(50)[0])


def test_imsat_clusters_digits_better_than_kmeans(all_digits):
    """k-means has 0.79."""
    X, y = all_digits
    labels = IMSAT(10, hidden=(256,), n_latent=256, epochs=30, random_state=0).fit_predict(X)
    assert clustering_accuracy(y, labels) > 0.85


def test_the_library_exports_them():
    assert fastdc.IMSAT is IMSAT
    assert fastdc.IIC is IIC
    assert_array_equal([hasattr(m, "predict") for m in (IMSAT, IIC)], [True, True])
