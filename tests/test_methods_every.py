"""Every method that is done, by the catalogue: lower precision, parts of batches, a GPU. Small networks, few epochs."""

import ast
import inspect
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from fastdc import methods
from fastdc.methods import list_methods
from tests.method_cases import digits

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [entry.where for entry in list_methods()]
SMALL = {
    "n_latent": 4,
    "hidden": (16, 16),
    "channels": (4,),
    "n_normal": 4,
    "manifold": "spectral",
    "pretrain_epochs": 2,
    "siamese_epochs": 2,
    "self_epochs": 1,
    "epochs": 2,
    "batch_size": 60,
    "n_init": 2,
    "tol": None,
    "random_state": 0,
}


def small(name, **options):
    """The method on images of 8 x 8 pixels, with what it has of the small parameters."""
    kind = getattr(methods, name)
    known = kind._get_param_names()
    given = {key: value for key, value in SMALL.items() if key in known}
    if name in ("DCEC", "DECDA"):
        given["image_shape"] = (1, 8, 8)
    return kind(3, **given | options)


@pytest.fixture(scope="module")
def rows():
    return digits(120)[0]


@pytest.mark.parametrize("method", NAMES)
def test_a_method_is_short_and_says_where_it_comes_from(method):
    kind = getattr(methods, method)
    tree = ast.parse(inspect.getsource(kind)).body[0]
    docstring = tree.body[0]
    assert tree.end_lineno - tree.lineno - (docstring.end_lineno - docstring.lineno) <= 80
    text = inspect.getdoc(kind)
    assert "Parameters\n-----" in text
    if method not in ("TwoStage", "N2D"):  # which minimise nothing of their own
        assert ".. math::" in text
    if method != "TwoStage":  # which has no paper
        assert "References\n-----" in text


def losses(fitted):
    return [record["loss"] for record in fitted.history_ if "loss" in record]


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def plain(name, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return small(name).fit(rows)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_lower_precision_is_that_of_the_networks_in_training_alone(name, rows, plain):
    fitted = small(name, amp="bfloat16").fit(rows)
    assert {parameter.dtype for parameter in fitted.network_.parameters()} == {torch.float32}
    assert fitted.transform(rows).dtype == np.float32
    assert np.isfinite(losses(fitted)).all()
    assert losses(fitted) != losses(plain)
    assert losses(fitted)[0] == pytest.approx(losses(plain)[0], rel=0.05, abs=0.02)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_parts_of_batches_make_as_many_epochs(name, rows, plain):
    fitted = small(name, accumulate=2).fit(rows)
    assert len(losses(fitted)) == len(losses(plain))
    assert np.isfinite(losses(fitted)).all()
    assert fitted.labels_.shape == plain.labels_.shape


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_gpu_trains_it(name, rows, plain):
    x = torch.from_numpy(rows).cuda()
    fitted = small(name).fit(x)
    assert fitted.labels_.device == fitted.cluster_centers_.device == x.device
    assert np.isfinite(losses(fitted)).all()
    if fitted.history_[0]["stage"] == "pretrain":  # others begin with views, which a GPU draws otherwise
        assert losses(fitted)[0] == pytest.approx(losses(plain)[0], rel=0.05)
    if hasattr(fitted, "predict"):
        assert_array_equal(fitted.predict(x).cpu(), fitted.labels_.cpu())
        assert isinstance(fitted.predict(rows), np.ndarray)
    assert np.isfinite(losses(small(name, amp="bfloat16").fit(x))).all()
