"""DAC as an estimator: conventions, objective, results. Small networks and few epochs."""

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn.functional import normalize

import fastdc
from fastdc import KMeans, pairwise_bce
from fastdc.methods import DAC
from fastdc.metrics import clustering_accuracy, normalized_mutual_info
from fastdc.networks import Autoencoder, SoftmaxHead
from fastdc.terms import PairwiseAgreement
from fastdc.training import Batch
from fastdc.views import Augmented, GaussianNoise
from tests.method_cases import check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden": (32,), "n_latent": 16, "epochs": 4, "batch_size": 100, "random_state": 0}
METHODS = {
    "vectors": DAC(10, **SMALL),
    "images": DAC(10, **(SMALL | {"image_shape": (1, 8, 8), "channels": (4,)})),
}


@parametrize_with_checks(
    [DAC(3, hidden=(16,), n_latent=16, epochs=30, batch_size=32, learning_rate=1e-2)],
    expected_failed_checks=lambda estimator: {"check_clustering": "50 points: two of three clusters become one"},
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", METHODS)
def test_conventions_saving_and_resuming(name, tmp_path, monkeypatch):
    X, _ = digits(250)
    fitted = check_conventions(METHODS[name], X)
    check_saving(fitted, X, tmp_path / "m.fastdc")
    check_resume(METHODS[name], X, tmp_path, monkeypatch, fitted, (1, 3))


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_the_loss_is_that_of_the_paper_of_pairs_that_the_rows_choose_averaged_over_views(progress):
    torch.manual_seed(0)
    head, x = SoftmaxHead(4, 3).double(), 3 * torch.randn(20, 4, dtype=torch.float64)
    batch = Batch(Autoencoder(nn.Identity()), x, torch.arange(20), None, Augmented(GaussianNoise(0.1)))
    term = PairwiseAgreement(head)
    term.start_epoch(progress)
    step = 0.45 * progress
    chooser = normalize(head(x).softmax(1), dim=1)
    chooser = chooser @ chooser.T
    same, other = chooser >= 0.95 - step, chooser < 0.455 + 0.1 * step
    chosen = (same | other).fill_diagonal_(False)
    expected = []
    for view in batch.views:
        f = normalize(head(view.x).softmax(1), dim=1)
        g = (f @ f.T).clamp(0, 1)
        expected.append(-torch.where(same, g + 1e-6, 1 - g + 1e-6).log()[chosen].mean())
    assert term(batch).item() == pytest.approx(torch.stack(expected).mean().item())


def test_without_views_the_rows_choose_for_themselves():
    torch.manual_seed(0)
    head, x = SoftmaxHead(4, 3), 3 * torch.randn(20, 4)
    term = PairwiseAgreement(head)
    loss = term(Batch(Autoencoder(nn.Identity()), x, torch.arange(20)))
    assert torch.equal(loss, pairwise_bce(head(x).softmax(1)))
    assert loss.requires_grad


def test_labels_of_a_fit_are_predicted_by_running_statistics():
    X, _ = digits(100)
    fitted = METHODS["vectors"].fit(X)
    assert not fitted.head_.training
    np.testing.assert_array_equal(fitted.predict(X[:7]), fitted.labels_[:7])
    np.testing.assert_array_equal(fitted.predict_proba(X).argmax(1), fitted.labels_)


def test_dac_finds_more_of_the_digits_than_kmeans():
    X, y = digits(1797)
    found, by_kmeans = DAC(10, random_state=0).fit_predict(X), KMeans(10, n_init=5, random_state=0).fit_predict(X)
    for score in (clustering_accuracy, normalized_mutual_info):
        assert score(y, found) > score(y, by_kmeans) + 0.02


def test_thresholds_meet_at_the_end():
    term = PairwiseAgreement(SoftmaxHead(4, 3))
    assert (term.upper, term.lower) == (0.95, 0.455)
    term.start_epoch(0.999)
    assert term.upper > term.lower
    term.start_epoch(1.0)
    assert term.upper == pytest.approx(term.lower)
    assert term.upper == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"upper": 0.4}, "upper and lower must be 0 < lower < upper <= 1, got upper=0.4, lower=0.455"),
        ({"upper": 1.5}, "upper and lower must be 0 < lower < upper <= 1, got upper=1.5"),
        ({"lower": 0.0}, r"upper and lower must be 0 < lower < upper <= 1, got upper=0.95, lower=0.0"),
    ],
    ids=str,
)
def test_T09_bad_parameters_raise_before_training(monkeypatch, parameters, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(ValueError, match=message):
        DAC(3, **parameters).fit(digits(50)[0])


def test_the_library_exports_it():
    assert fastdc.DAC is DAC
