"""What two processes compute for ``test_mixture_group.py``, each from its own rows; started by spawn."""

import torch
import torch.distributed as dist

from fastdc.kernels.gaussian_mixture import gmm_step, gmm_update, vade_loss
from fastdc.losses import VaDELoss
from tests.gaussian_mixture_cases import make_latent, make_mixture
from tests.group_cases import drop_group

COUNTS = (70, 37)  # rows of each process
N = sum(COUNTS)
BACKENDS = ("reference", "numba")


def parts(rank):
    return slice(sum(COUNTS[:rank]), sum(COUNTS[: rank + 1]))


def run_steps(own, group):
    """Statistics and the parameters that follow, by name; ``own`` are the rows of this process."""
    found = {}
    for kind in ("diag", "spherical", "tied", "full"):
        x, *mixture = make_mixture(N, 4, 3, kind)
        x[5] = torch.nan  # a row that counts for nothing, of the first process
        weight = torch.linspace(0.5, 2.0, N)
        for backend in BACKENDS:
            options = {"sample_weight": weight[own], "group": group, "backend": backend}
            step = gmm_step(x[own], *mixture, kind, **options)
            found[f"{kind} {backend}"] = (*step, *gmm_update(step, *mixture[:2], kind))
    return found


def run_losses(own, group):
    """(loss, gradients of the six inputs) by name."""
    found = {}
    for detached in (False, True):
        leaves = [t[own] if place < 3 else t for place, t in enumerate(make_latent(N, 5, 4, torch.float64))]
        for backend in BACKENDS:
            leaves = [t.detach().clone().requires_grad_() for t in leaves]
            loss = vade_loss(*leaves, detach_responsibilities=detached, group=group, backend=backend)
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            found[f"{detached} {backend}"] = (loss.detach(), *gradients)
    return found


def run_module(own, wrap, group):
    """Gradients of the mixture's parameters, which ``wrap`` averages."""
    z, mu, log_var, means, *_ = make_latent(N, 5, 4)
    criterion = VaDELoss(means, group=group)
    model = wrap(criterion)  # must live until the backward pass is over
    model(z[own], mu[own], log_var[own]).backward()
    return [parameter.grad for parameter in criterion.parameters()]


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(COUNTS))
    group, own = dist.group.WORLD, parts(rank)
    gradients = run_module(own, torch.nn.parallel.DistributedDataParallel, group)
    torch.save((run_steps(own, group), run_losses(own, group), gradients), f"{folder}/{rank}.pt")
    del group
    drop_group()
