"""DEC and IDEC written to a file and read again."""

import copy

import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from fastdc.methods import DEC, IDEC
from fastdc.persistence import CheckpointError
from tests.method_cases import SMALL, scaled_blobs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def blobs():
    return scaled_blobs()


@pytest.mark.parametrize("method", [DEC, IDEC])
def test_save_and_load(method, blobs, tmp_path):
    X, _ = blobs
    estimator = method(3, **SMALL).fit(X)
    estimator.save(tmp_path / "m.fastdc")
    loaded = method.load(tmp_path / "m.fastdc")
    assert_array_equal(loaded.predict_proba(X), estimator.predict_proba(X))
    assert_array_equal(loaded.labels_, estimator.labels_)
    assert loaded.history_ == estimator.history_
    assert loaded.get_params() == estimator.get_params()
    assert_array_equal(loaded.fit(X).labels_, estimator.labels_)


def test_save_and_load_with_a_users_modules(blobs, tmp_path):
    X, _ = blobs
    encoder, decoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)), nn.Linear(2, 5)
    estimator = IDEC(3, encoder=encoder, decoder=decoder, **SMALL).fit(X)
    path = tmp_path / "m.fastdc"
    estimator.save(path)
    with pytest.raises(CheckpointError, match="was made with decoder=<Linear>, encoder=<Sequential>; pass the like"):
        IDEC.load(path)
    loaded = IDEC.load(path, encoder=copy.deepcopy(encoder), decoder=nn.Linear(2, 5))
    assert_array_equal(loaded.predict_proba(X), estimator.predict_proba(X))
    with pytest.raises(CheckpointError, match="the saved weights do not fit the module"):
        IDEC.load(path, encoder=nn.Linear(5, 2), decoder=decoder)
    with pytest.raises(CheckpointError, match="holds a IDEC, not a DEC"):
        DEC.load(path)


def test_T51_a_gpu_that_is_not_there(blobs, monkeypatch, tmp_path):
    X, _ = blobs
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="torch sees no GPU"):
        DEC(3, device="cuda", **SMALL).fit(X)
    DEC(3, device="cpu", **SMALL).fit(X).save(tmp_path / "m")
    with pytest.raises(RuntimeError, match="torch sees no GPU"):
        DEC.load(tmp_path / "m", device="cuda")
