"""What two processes compute for ``test_sinkhorn_group.py``, each from its own rows; started by spawn."""

import math

import torch
import torch.distributed as dist

from fastdc.kernels.sinkhorn import (
    optimal_transport_labels,
    sinkhorn_assign,
    sinkhorn_assign_features,
    swapped_prediction_loss,
)
from fastdc.losses import SwAVLoss
from tests.group_cases import drop_group
from tests.sinkhorn_cases import make_scores, make_views

COUNTS = (70, 37)  # rows of each process
N = sum(COUNTS)
BACKENDS = ("reference", "numba")


def parts(rank):
    return slice(sum(COUNTS[:rank]), sum(COUNTS[: rank + 1]))


def run(own, group):
    """All results, by name; ``own`` are the rows of this process, all of them without a group."""
    found = {}
    weight, wanted = torch.linspace(0.5, 2.0, N), torch.linspace(1.0, 3.0, 20)
    moderate = make_scores(N, 20)
    far, dead = make_scores(N, 20, spread=300.0), moderate.clone()
    far[:70, 2] = -math.inf  # a prototype that only one process has rows for
    dead[:, 4] = -math.inf
    z1, _, prototypes = make_views(N, 20, 12)
    for backend in BACKENDS:
        for name, scores in (("moderate", moderate), ("far", far), ("dead", dead)):
            options = {"n_iters": 4, "group": group, "backend": backend}
            found[f"{name} {backend}"] = sinkhorn_assign(scores[own], **options)
            options |= {"row_marginal": weight[own], "column_marginal": wanted}
            found[f"{name} with marginals {backend}"] = sinkhorn_assign(scores[own], **options)
        options = {"n_iters": 100, "tol": 1e-3, "group": group, "backend": backend}
        found[f"to a tolerance {backend}"] = sinkhorn_assign(moderate[own], **options)
        found[f"features {backend}"] = sinkhorn_assign_features(z1[own], prototypes, group=group, backend=backend)
        labels, confidence = optimal_transport_labels(z1[own], prototypes, group=group, backend=backend)
        found[f"labels {backend}"], found[f"confidence {backend}"] = labels, confidence
    return found


def run_losses(own, group, queue):
    """(loss, gradients of the rows and of the prototypes) by name; ``queue`` is that of this process."""
    found = {}
    z1, z2, prototypes = make_views(N, 20, 12)
    for backend in BACKENDS:
        for name, epsilon, given in (("held", 0.05, None), ("streamed", 1e-3, None), ("queue", 0.05, queue)):
            leaves = [t.clone().requires_grad_() for t in (z1[own], z2[own], prototypes)]
            options = {"epsilon": epsilon, "queue": given, "group": group, "backend": backend}
            loss = swapped_prediction_loss(*leaves, **options)
            found[f"{name} {backend}"] = (loss.detach(), *torch.autograd.grad(loss, leaves))
    return found


def run_ddp(own):
    """The prototypes' gradient that DistributedDataParallel makes of SwAVLoss."""
    torch.manual_seed(0)
    z1, z2, _ = make_views(N, 20, 12)
    criterion = SwAVLoss(12, 20, group=dist.group.WORLD)
    model = torch.nn.parallel.DistributedDataParallel(criterion)  # must live until the backward pass is over
    model(z1[own], z2[own]).backward()
    return criterion.prototypes.grad


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(COUNTS))
    group, own = dist.group.WORLD, parts(rank)
    queue = torch.load(f"{folder}/queue.pt")[rank]
    torch.save((run(own, group), run_losses(own, group, queue), run_ddp(own)), f"{folder}/{rank}.pt")
    del group
    drop_group()
