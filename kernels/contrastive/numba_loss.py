"""CPU kernel of whole losses: from embeddings to the loss and its gradients in one call.

What does not belong to the products costs as much as these where batches are small: rows are given their lengths,
and gradients are taken through that, in the kernels' own arrays, and exponentials are held if they are few.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import numpy_dtype
from fastdc.kernels._simd import prepare
from fastdc.kernels.contrastive.numba_bank import Bank
from fastdc.kernels.contrastive.numba_kernel import Job, side_of
from fastdc.kernels.contrastive.numba_units import make_units, units_gradient


def contrast_loss(
    first: Tensor,
    second: Tensor,
    bank: Tensor | None,
    positives: Tensor | None,
    scale: float,
    flags: list[bool],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and the gradients of first, second and bank in the working dtype, of length 0 where not needed.

    positives: the key of each row (``prototype_contrast``); None is the one in the same place.
    flags: whether rows are given length one; whether both tensors are anchors and keys of each other (``nt_xent``) or
    the second are keys (``info_nce``); whether these are anchors too.
    """
    normalize, ring, symmetric = flags
    torch_dtype = working_dtype(first, second, *([] if bank is None else [bank]))
    dtype, b = numpy_dtype(torch_dtype), first.shape[0]
    prepare(dtype)
    grads = [torch.empty(0, dtype=torch_dtype) for _ in needs]
    if ring:
        side = side_of(2 * b)
        units = make_units([first, second], normalize, side, dtype)
        job = Job(units, None, (np.arange(2 * b) + b) % (2 * b), scale, [0, 0])
    else:
        side = side_of(b)
        units, keys = (make_units([x], normalize, side, dtype) for x in (first, second))
        own = np.arange(b) if positives is None else positives.numpy()
        job = Job(units, keys, own, scale, [-1, b if symmetric else 0])
    beside = None
    if bank is not None:
        beside = Bank(bank, normalize, job)
        if not beside.is_safe():
            keys = make_units([second, bank], normalize, side, dtype)
            job, beside = Job(units, keys, own, scale, [-1, b if symmetric else 0]), None
    if any(needs):
        job.hold()
    sums, pulls = (None, None) if beside is None else beside.sums(needs[0])
    rows, columns, *states = job.sums(sums)
    share = 0.5 if symmetric else 1.0
    loss = share * (float(rows.mean()) + (float(columns.mean()) if symmetric else 0.0))
    if any(needs):
        factor = dtype.type(share * scale / len(rows))
        needs_keys = not ring and (needs[1] or (needs[2] and beside is None))
        by_rows, by_keys = job.gradients(
            (states[0], states[1]), (np.ones(len(rows)), np.ones(len(columns))), [needs[0] or ring, needs_keys], pulls
        )
        parts = [slice(0, b), slice(b, 2 * b)] if ring else [slice(0, b)]
        for place, part in enumerate(parts):
            if needs[place]:
                grads[place] = units_gradient(units, part, by_rows, factor)
        if not ring and needs[1]:
            grads[1] = units_gradient(keys, slice(0, second.shape[0]), by_keys, factor)
        if bank is not None and needs[2]:
            if beside is None:
                grads[2] = units_gradient(keys, slice(b, keys.n), by_keys, factor)
            else:
                grads[2] = beside.gradient(states[0][1].numpy(), factor)
    return torch.tensor(loss, dtype=torch_dtype), grads[0], grads[1], grads[2]
