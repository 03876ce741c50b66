"""Rows spread over two processes, unevenly, against one process with all of them."""

import pytest
import torch

from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.sinkhorn import sinkhorn_assign, swapped_prediction_loss
from fastdc.losses import SwAVLoss
from tests import sinkhorn_group_cases as cases
from tests.sinkhorn_cases import make_views

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")


@pytest.fixture(scope="module")
def queues():
    """One of each process: (2, 30, 12) and (2, 11, 12)."""
    z1, z2, _ = make_views(41, 20, 12, seed=5)
    return [torch.stack([z1, z2])[:, rows] for rows in (slice(0, 30), slice(30, 41))]


@pytest.fixture(scope="module")
def found(tmp_path_factory, queues):
    """Of each process, what ``work`` saved: (results, losses, gradient under DDP)."""
    folder = tmp_path_factory.mktemp("group")
    torch.save(queues, folder / "queue.pt")
    torch.multiprocessing.spawn(cases.work, (str(folder),), len(cases.COUNTS))
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(cases.COUNTS))]


def test_T37_codes_and_labels_of_uneven_parts(found):
    everything = cases.run(slice(None), None)
    for name, expected in everything.items():
        got = torch.cat([results[name] for results, _, _ in found])
        if got.dtype == torch.int64:
            assert torch.equal(got, expected), name
        else:
            assert (got - expected).abs().max() < 2e-6, name


def test_T37_the_average_over_processes_is_the_loss_of_one(found, queues):
    everything = cases.run_losses(slice(None), None, torch.cat(queues, dim=1))
    for name, (loss, grad1, grad2, grad_prototypes) in everything.items():
        parts = [losses[name] for _, losses, _ in found]
        assert relative_error(sum(p[0] for p in parts) / len(parts), loss) < 1e-5, name
        for place, expected in ((1, grad1), (2, grad2)):
            assert relative_error(torch.cat([p[place] for p in parts]) / len(parts), expected) < 1e-4, name
        assert relative_error(sum(p[3] for p in parts) / len(parts), grad_prototypes) < 1e-4, name


def test_data_parallel_training_has_the_gradient_of_one_process(found):
    torch.manual_seed(0)
    z1, z2, _ = make_views(cases.N, 20, 12)
    criterion = SwAVLoss(12, 20)
    criterion(z1, z2).backward()
    for _, _, gradient in found:
        assert relative_error(gradient, criterion.prototypes.grad) < 1e-5


def test_bad_groups():
    with pytest.raises(RuntimeError, match=r"group needs torch.distributed: call"):
        sinkhorn_assign(torch.zeros(3, 2), group=3)
    with pytest.raises(RuntimeError, match=r"group needs torch.distributed"):
        swapped_prediction_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4, 2), group=3)
