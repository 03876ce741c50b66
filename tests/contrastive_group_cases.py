"""One of two processes with unequal shares of a batch; run by ``test_contrastive_group.py``.

The gradient of a weight that both share, averaged over the processes as ``DistributedDataParallel`` does, must be that
of one process with all rows.
"""

import os
import sys

import pytest
import torch
import torch.distributed as dist

from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.contrastive import (
    cluster_contrast,
    feature_decorrelation,
    info_nce,
    instance_discrimination,
    nt_xent,
    prototype_contrast,
    sup_con,
)
from fastdc.kernels.mutual_information import iic_loss
from fastdc.losses import ClusterContrastLoss, IICLoss, InfoNCELoss, NTXentLoss, PrototypeContrastLoss, SupConLoss
from tests.group_cases import drop_group

ROWS, FEATURES = 90, 6
SHARES = (slice(0, 20), slice(20, ROWS))


def cases(generator):
    """Each loss as a function of (weight, rows of this process, options)."""
    x1, x2 = (torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64) for _ in range(2))
    bank = torch.randn(30, FEATURES, generator=generator, dtype=torch.float64)
    labels = torch.randint(12, (ROWS,), generator=generator)
    yield "nt_xent", lambda w, rows, **o: nt_xent(x1[rows] @ w, x2[rows] @ w, **o)
    for symmetric in (True, False):
        for extra in (None, bank):
            yield (
                f"info_nce {symmetric} {extra is not None}",
                lambda w, rows, s=symmetric, e=extra, **o: info_nce(
                    x1[rows] @ w, x2[rows], symmetric=s, extra_keys=e if e is None else e @ w, **o
                ),
            )
    yield "sup_con", lambda w, rows, **o: sup_con(x1[rows] @ w, labels[rows], **o)
    yield "prototypes", lambda w, rows, **o: prototype_contrast(x1[rows] @ w, bank @ w, labels[rows], **o)
    yield "instances", lambda w, rows, **o: instance_discrimination(x1[rows] @ w, bank, labels[rows], **o)


def columns(generator):
    """Losses that have no backends."""
    x1, x2 = (torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64) for _ in range(2))
    yield "clusters", lambda w, rows, **o: cluster_contrast((x1[rows] @ w).softmax(1), (x2[rows] @ w).softmax(1), **o)
    yield "features", lambda w, rows, **o: feature_decorrelation(x1[rows] @ w + 1, **o)

    yield "information", lambda w, rows, **o: iic_loss((x1[rows] @ w).softmax(1), (x2[rows] @ w).softmax(1), 1.5, **o)
    heads = torch.stack([x1, x2])
    yield "heads", lambda w, rows, **o: iic_loss((heads[:, rows] @ w).softmax(2), heads[:, rows].softmax(2), **o)
    yield "module", lambda w, rows, **o: IICLoss(from_logits=True, **o)(x1[rows] @ w, x2[rows])


def modules(generator):
    """Modules find the processes themselves."""
    x = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (ROWS,), generator=generator)
    of_views = (NTXentLoss, InfoNCELoss, ClusterContrastLoss)
    for group in (None, dist.group.WORLD):
        options = {"gather_distributed": group is None, "group": group}
        for kind in (*of_views, SupConLoss, PrototypeContrastLoss):

            def loss(w, rows, kind=kind, options=options, **given):
                module = kind(**(options if given else {}))
                z = (x[rows] @ w).softmax(1)
                if kind in of_views:
                    return module(z, x[rows].softmax(1))
                return module(z, labels[rows]) if kind is SupConLoss else module(z, x[:5], labels[rows])

            yield kind.__name__, loss


def check(name, function, rank, **options):
    weight = torch.randn(FEATURES, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, own = (weight.clone().requires_grad_() for _ in range(2))
    backend = {k: v for k, v in options.items() if k == "backend"}
    expected = function(whole, slice(None), **backend)
    expected.backward()
    got = function(own, SHARES[rank], **options)
    got.backward()
    mean = got.detach().clone()
    for total in (mean, own.grad):
        dist.all_reduce(total)
        total /= 2
    assert relative_error(mean, expected.detach()) < 1e-12, name
    assert relative_error(own.grad, whole.grad) < 1e-12, name


def run(rank):
    group = dist.group.WORLD
    for backend in ("reference", "numba"):
        for name, function in cases(torch.Generator().manual_seed(0)):
            check(f"{name} {backend}", function, rank, group=group, backend=backend)
    for name, function in columns(torch.Generator().manual_seed(0)):
        check(name, function, rank, group=group)
    for name, function in modules(torch.Generator().manual_seed(0)):
        check(name, function, rank, group=group)
    x = torch.randn(8, 3)
    with pytest.raises(TypeError, match=r"group must be a torch.distributed.ProcessGroup or None, got str"):
        nt_xent(x, x, group="all")
    with pytest.raises(TypeError, match=r"group must be a torch.distributed.ProcessGroup or None, got str"):
        iic_loss(x, x, group="all")


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    run(rank)
    drop_group()
    print("all cases agree")
