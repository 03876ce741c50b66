"""Triplet losses with a margin, of the hardest and of all triplets of a batch, beside plain torch."""

import pytest
import torch

from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.pairwise import triplet_loss
from tests.pairwise_cases import DTYPES, loss_and_gradient, make_clusters, plain_all_triplets, plain_triplets
from tests.test_pairwise_losses import BACKENDS, SHAPES, all_triplets, make_mixture, name_shape


@pytest.mark.parametrize("d", [8, 40])
@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_triplets_with_a_margin(d, margin):
    x, labels = make_clusters(120, d, 3, torch.float64)
    truth, true_gradient = loss_and_gradient(plain_triplets, x, labels, margin)
    for backend in BACKENDS:
        got, gradient = loss_and_gradient(triplet_loss, x, labels, margin, backend=backend)
        assert got.item() == pytest.approx(truth.item(), rel=1e-12)
        assert relative_error(gradient, true_gradient) < 1e-12


@pytest.mark.parametrize("margin", [0.0, 1.5, 100.0])
@pytest.mark.parametrize("shape", [(120, 8, 3), (90, 40, 1), (90, 40, 90), (60, 3, 50)], ids=name_shape)
def test_all_triplets_with_a_margin(shape, margin):
    """Few and many positives, none at all, and losses that are all above zero."""
    x, labels = make_clusters(*shape, torch.float64)
    truth, true_gradient = loss_and_gradient(plain_all_triplets, x, labels, margin)
    for backend in BACKENDS:
        got, gradient = loss_and_gradient(triplet_loss, x, labels, margin, "all", backend=backend)
        assert got.item() == pytest.approx(truth.item(), rel=1e-12)
        assert (gradient - true_gradient).abs().max() <= 1e-12 * true_gradient.abs().max()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
def test_all_triplets_in_every_dtype(shape, dtype):
    """Triplets within rounding of zero count or do not: the mean and its gradient may be off by their share."""
    x, labels = make_mixture(*shape, dtype)
    exact = x.double()
    truth, true_gradient = loss_and_gradient(plain_all_triplets, exact, labels, 0.7)
    distances = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")
    same, itself = labels == labels[:, None], torch.eye(len(x), dtype=torch.bool)
    gaps = 0.7 + distances[:, :, None] - distances[:, None]
    gaps = gaps[(same & ~itself)[:, :, None] & ~same[:, None]]
    share = float((gaps.abs() < 1e-5).sum() / (gaps > 0).sum().clamp(min=1))
    for backend in BACKENDS:
        got, gradient = loss_and_gradient(all_triplets, x, labels, backend=backend)
        assert abs(got.item() - truth.item()) <= (share + 2e-6) * truth.item()
        allowed = 2 * share + (2e-6 + 2 * torch.finfo(dtype).eps) * true_gradient.abs().max()
        assert (gradient.double() - true_gradient).abs().max() <= allowed
