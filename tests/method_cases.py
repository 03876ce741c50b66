"""What every deep method must keep to; the tests of each family call it. Small networks and few epochs."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError

from fastdc.persistence import CheckpointError
from fastdc.training import checkpoint as checkpoints

SMALL = {
    "n_latent": 2,
    "hidden": (16,),
    "pretrain_epochs": 15,
    "epochs": 8,
    "batch_size": 32,
    "pretrain_learning_rate": 1e-2,
    "n_init": 3,
    "random_state": 0,
}


def scaled_blobs(n_samples=150):
    """Three blobs in 5 dimensions: (rows of mean 0 and variance 1, float32; classes)."""
    points, classes = make_blobs(n_samples, 5, centers=3, cluster_std=0.5, random_state=3)
    return ((points - points.mean(0)) / points.std(0)).astype(np.float32), classes


def digits(n_samples=300):
    """Some of the handwritten digits: (rows from 0 to 1, float32; classes)."""
    data = load_digits()
    return (data.data[:n_samples] / 16).astype(np.float32), data.target[:n_samples]


class Interrupt:
    """A callback that presses Ctrl-C after so many epochs of all stages."""

    def __init__(self, n_epochs):
        self.left = n_epochs

    def __call__(self, record):
        if "loss" in record:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def check_conventions(estimator, X):
    """scikit-learn's ways: parameters, attributes, types of what comes back; the same seed gives the same result."""
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = (clone(estimator).fit(X) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_array_equal(first.labels_, second.labels_)
    assert_array_equal(first.cluster_centers_, second.cluster_centers_)
    assert first.history_ == second.history_
    assert first.labels_.dtype == np.int32
    assert first.labels_.shape == (len(X),)
    assert set(first.labels_) <= set(range(estimator.n_clusters))
    assert first.cluster_centers_.shape[0] == estimator.n_clusters
    assert first.n_features_in_ == X.shape[1]
    losses = [record["loss"] for record in first.history_ if "loss" in record]
    assert losses
    assert np.isfinite(losses).all()
    if hasattr(first, "predict"):
        assert_array_equal(first.predict(X), first.labels_)
        assert first.transform(X).shape == (len(X), first.cluster_centers_.shape[1])
        x = torch.from_numpy(X)
        assert isinstance(first.predict(x), torch.Tensor)
    if hasattr(first, "predict_proba"):
        one = first.predict_proba(X[:1])
        assert one.shape == (1, estimator.n_clusters)
        assert one.sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="contains NaN"):
        clone(estimator).fit(np.where(np.arange(X.size).reshape(X.shape) == 5, np.nan, X))
    with pytest.raises(NotFittedError):
        clone(estimator).transform(X)
    return first


def check_saving(fitted, X, path, **modules):
    """What was saved predicts what was fitted. ``modules`` are those of the user, which are not in the file."""
    fitted.save(path)
    loaded = type(fitted).load(path, **modules)
    assert_array_equal(loaded.labels_, fitted.labels_)
    assert loaded.history_ == fitted.history_
    for name in ("predict", "predict_proba"):
        if hasattr(fitted, name):
            assert_array_equal(getattr(loaded, name)(X), getattr(fitted, name)(X))


def check_resume(estimator, X, folder, monkeypatch, undisturbed, n_epochs):
    """Interrupted after each of ``n_epochs`` epochs and gone on with, a fit comes to the result of ``undisturbed``."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    for number in n_epochs:
        place = folder / str(number)
        with pytest.raises(KeyboardInterrupt):
            clone(estimator).set_params(callbacks=[Interrupt(number)]).fit(X, checkpoint=place)
        resumed = clone(estimator).fit(X, checkpoint=place, resume=True)
        assert_array_equal(resumed.labels_, undisturbed.labels_)
        assert_array_equal(resumed.cluster_centers_, undisturbed.cluster_centers_)
        assert resumed.history_ == undisturbed.history_
        with pytest.raises(FileExistsError, match="go on with it"):
            clone(estimator).fit(X, checkpoint=place)
        with pytest.raises(CheckpointError, match="is of another run: its n_clusters is"):
            clone(estimator).set_params(n_clusters=2).fit(X, checkpoint=place, resume=True)
