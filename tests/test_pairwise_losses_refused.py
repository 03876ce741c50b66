"""Modules of the losses over all pairs of a batch, and what these losses refuse."""

import math

import pytest
import torch

import fastdc
from fastdc import losses
from fastdc.kernels.pairwise import pairwise_bce, soft_nearest_neighbor_loss, triplet_loss
from tests.pairwise_cases import make_features, others_of


def test_modules():
    f, labels = make_features(40, 5, 3)
    assert torch.equal(losses.PairwiseBCELoss(0.8, 0.3, 1e-4)(f), fastdc.pairwise_bce(f, None, 0.8, 0.3, eps=1e-4))
    assert torch.equal(losses.PairwiseBCELoss()(f, labels), fastdc.pairwise_bce(f, labels))
    chosen_by = others_of(f)
    assert torch.equal(
        losses.PairwiseBCELoss()(f, chosen_by=chosen_by), fastdc.pairwise_bce(f, chosen_by=chosen_by.double())
    )
    assert torch.equal(losses.SoftNearestNeighborLoss(0.1)(f, labels), soft_nearest_neighbor_loss(f, labels, 0.1))
    assert torch.equal(losses.TripletLoss(0.2)(f, labels), triplet_loss(f, labels, 0.2))
    assert torch.equal(losses.TripletLoss()(f, labels), triplet_loss(f, labels))
    assert torch.equal(losses.TripletLoss(0.2, "all")(f, labels), triplet_loss(f, labels, 0.2, "all"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: pairwise_bce(x, None, 0.4, 0.5), ValueError, "lower <= upper, got upper=0.4, lower=0.5"),
        (lambda x, y: pairwise_bce(x, None, math.nan), ValueError, "upper and lower must be finite numbers"),
        (lambda x, y: pairwise_bce(x, eps=0), ValueError, "eps must be a finite number above 0, got 0"),
        (lambda x, y: pairwise_bce(x[0]), ValueError, r"f must be 2-D, of shape \(n_samples, n_clusters\), got shape"),
        (lambda x, y: pairwise_bce(x, y, chosen_by=x), ValueError, "labels and chosen_by both say which pairs"),
        (lambda x, y: pairwise_bce(x, chosen_by=x[:2]), ValueError, "chosen_by has 2 rows but f has 3"),
        (lambda x, y: pairwise_bce(x, chosen_by=x[:, :1]), ValueError, "chosen_by has 1 features but f has"),
        (lambda x, y: pairwise_bce(x, y[:2]), ValueError, r"labels must have shape \(3,\), one entry for each of the"),
        (
            lambda x, y: soft_nearest_neighbor_loss(x, y, 0.0),
            ValueError,
            "temperature must be a finite number above 0, got 0.0",
        ),
        (lambda x, y: soft_nearest_neighbor_loss(x, y.int()), TypeError, "labels must be int64, got torch.int32"),
        (lambda x, y: triplet_loss(x, y, -1.0), ValueError, "margin must be a finite number, 0 or above, got -1.0"),
        (lambda x, y: triplet_loss(x, y, "hard"), ValueError, "margin must be 'soft' or a finite number, 0 or above"),
        (lambda x, y: losses.TripletLoss("hard"), ValueError, "margin must be 'soft' or a finite number"),
        (lambda x, y: triplet_loss(x, y, 0.2, "semi"), ValueError, "mining must be 'hard' or 'all', got 'semi'"),
        (lambda x, y: triplet_loss(x, y, mining="all"), ValueError, "margin must be a number with mining='all'"),
        (lambda x, y: losses.TripletLoss(mining="all"), ValueError, "margin must be a number with mining='all'"),
        (lambda x, y: losses.PairwiseBCELoss(0.1, 0.2), ValueError, "lower <= upper, got upper=0.1, lower=0.2"),
        (lambda x, y: triplet_loss(x.int(), y), TypeError, "x must be float32, float64, float16 or bfloat16"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(3, 2), torch.tensor([0, 0, 1]))
