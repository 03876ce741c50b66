"""Gaussian mixtures of rows spread over two processes, unevenly, against one process with all of them."""

import pytest
import torch

from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.gaussian_mixture import gmm_step, vade_loss
from tests import mixture_group_cases as cases
from tests.gaussian_mixture_cases import make_latent, make_mixture

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each process, what ``work`` saved: (statistics, losses, gradients under DDP)."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(cases.work, (str(folder),), len(cases.COUNTS))
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(cases.COUNTS))]


def test_statistics_are_those_of_all_rows_on_each_process(found):
    for name, expected in cases.run_steps(slice(None), None).items():
        for steps, _, _ in found:
            assert all(torch.equal(a, b) for a, b in zip(steps[name], found[0][0][name])), name
            for got, exact in zip(steps[name], expected):
                assert got.dtype == exact.dtype
                assert relative_error(got, exact) < 1e-6, name
        assert found[0][0][name][4] == 1, name


def test_the_average_over_processes_is_the_loss_of_one(found):
    for name, (loss, *gradients) in cases.run_losses(slice(None), None).items():
        ranks = [losses[name] for _, losses, _ in found]
        assert relative_error(sum(r[0] for r in ranks) / 2, loss) < 1e-13, name
        for place, expected in enumerate(gradients, start=1):
            parts = [r[place] for r in ranks]
            got = torch.cat(parts) / 2 if place <= 3 else sum(parts) / 2  # rows, then what all share
            assert (got - expected).abs().max() <= 1e-13 * expected.abs().max(), name


def test_data_parallel_training_has_the_gradient_of_one_process(found):
    expected = cases.run_module(slice(None), lambda module: module, None)
    for _, _, gradients in found:
        for got, exact in zip(gradients, expected, strict=True):
            assert relative_error(got, exact) < 1e-5


def test_bad_groups():
    with pytest.raises(RuntimeError, match=r"group needs torch.distributed: call"):
        gmm_step(*make_mixture(9, 2, 3, "diag"), group="all")
    with pytest.raises(RuntimeError, match=r"group needs torch.distributed: call"):
        vade_loss(*make_latent(9, 2, 3), group="all")
