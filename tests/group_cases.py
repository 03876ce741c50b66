"""How processes of a test part."""

import gc
import weakref

import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401 - imported once there is a group, its defaults hold it for good


def drop_group():
    """End the default group, to which nothing but garbage refers by now.

    A group that lives on takes its threads into the end of the interpreter: one that lets go of a tensor then wants
    the interpreter's lock, and the process is aborted ("terminate called without an active exception").
    """
    group = weakref.ref(dist.group.WORLD)
    dist.barrier()
    dist.destroy_process_group()
    gc.collect()
    assert group() is None, "something still refers to the group"
