"""How processes of a test part."""

import gc

import torch.distributed as dist


def drop_group():
    """End the default group, to which nothing but garbage should refer by now.

    A group that lives on takes its threads into the end of the interpreter: one that lets go of a tensor then wants
    the interpreter's lock, and the process is aborted ("terminate called without an active exception").
    """
    dist.barrier()
    dist.destroy_process_group()
    gc.collect()
