"""One of several processes that train together; run by ``test_training_group.py``, compared with one that is alone."""

import os
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastdc.methods import DCN, IDEC
from fastdc.networks import MLPAutoencoder
from fastdc.training import Settings, Term, Train, Trainer
from tests.group_cases import drop_group
from tests.method_cases import scaled_blobs

SMALL = {"n_latent": 2, "hidden": (16,), "pretrain_epochs": 10, "epochs": 6, "batch_size": 33, "n_init": 2, "tol": None}


class Error(Term):
    name = "error"

    def forward(self, batch):
        return (batch.reconstruction - batch.x).square().mean()


def train(x, group):
    network = MLPAutoencoder(x.shape[1], 2, (8,), torch.Generator().manual_seed(1)).double()
    trainer = Trainer(network, x, Settings(batch_size=10, seed=2, group=group))
    Train(Error(), "fit", 3, 1e-2).run(trainer)
    return trainer


def check_gradients_are_those_of_all_rows(rank):
    """Batches of 23 rows over two or three processes are shared unevenly; the weights are those of one process."""
    x = torch.randn(23, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone, together = train(x, None), train(x, "world")
    for got, expected in zip(together.network.parameters(), alone.network.parameters()):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    losses = [[record["error"] for record in trainer.history] for trainer in (together, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-9)
    torch.testing.assert_close(together.embed(), alone.embed())


def check_a_method_finds_the_same_clusters(rank, folder):
    X, _ = scaled_blobs(600)
    alone = IDEC(3, random_state=0, **SMALL).fit(X)
    together = IDEC(3, random_state=0, group="world", **SMALL).fit(X, checkpoint=os.path.join(folder, "run"))
    np.testing.assert_array_equal(together.labels_, alone.labels_)
    np.testing.assert_allclose(together.cluster_centers_, alone.cluster_centers_, rtol=1e-2, atol=1e-2)
    assert os.path.exists(os.path.join(folder, "run", "training.safetensors"))
    alone, together = (DCN(3, random_state=0, group=group, **SMALL).fit(X) for group in (None, "world"))
    np.testing.assert_array_equal(together.labels_, alone.labels_)
    np.testing.assert_allclose(together.cluster_centers_, alone.cluster_centers_, rtol=1e-2, atol=1e-2)


def check_small_batches_are_refused():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"batches of 1 rows leave some of \d processes without any; raise batch_size"):
        Trainer(MLPAutoencoder(2, 1, (3,)), x, Settings(batch_size=1, seed=0, group="world"))


def main(rank, size, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.set_num_threads(1)
    check_gradients_are_those_of_all_rows(rank)
    check_a_method_finds_the_same_clusters(rank, folder)
    check_small_batches_are_refused()
    drop_group()
    print("all cases agree")


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
