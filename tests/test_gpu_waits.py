"""Which calls make the CPU wait for the GPU: the others can be recorded in CUDA graphs, and run ahead of the device."""

import traceback
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

import fastdc
from fastdc.kernels._calls import CALLS, Material, Size, op_of, results
from fastdc.kernels._launches import recorded
from tests.gpu_cases import WAITING

HOME = str(Path(fastdc.__file__).parent / "kernels")
# what looks at numbers, copies them from the CPU's memory, or makes results whose size they decide
READS = {
    "_local_scalar_dense", "is_nonzero", "equal", "lift_fresh", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_"}
ON_CPUS_ONLY = {"_scale_in_place", "check_places", "bucket_edges", "empty", "_sums_by_number"}  # their callers ask


class Waits(TorchDispatchMode):
    """Lists what reads numbers on the device, and the line of fastdc that does; looks into fastdc's operators too."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        space, _, name = func.name().partition("::")
        if space == "fastdc":
            with self:
                return OPDEFS[f"{space}::{name.partition('.')[0]}"]._init_fn(*args, **kwargs)
        name = name.partition(".")[0]
        by_mask = name in INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READS or by_mask:
            self.note(name)
        return func(*args, **kwargs)

    def note(self, name):
        """Adds the innermost line of fastdc that is running, if there is one beside the table of calls."""
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(HOME)]
        inner = [f for f in frames if not f.filename.endswith(("_calls.py", "_launches.py"))]
        if inner:
            self.found.add((name, inner[-1].name, inner[-1].line))

    def copied(self, name, method):
        """A method of tensors that brings numbers to the CPU, which on one dispatches nothing."""

        def wrapper(*arguments, **options):
            self.note(name)
            return method(*arguments, **options)

        return mock.patch.object(Tensor, name, wrapper)


def waits_of(call):
    material = Material(Size(300, 20, 40))
    with ExitStack() as stack:
        stack.enter_context(recorded("sm_90"))
        waits = stack.enter_context(Waits())
        stack.enter_context(mock.patch.object(torch._C, "_len_torch_dispatch_stack", return_value=0))  # is eager
        for name in ("tolist", "cpu", "__float__"):
            stack.enter_context(waits.copied(name, getattr(Tensor, name)))
        results(call, material, backend="triton")
    return sorted(one for one in waits.found if one[1] not in ON_CPUS_ONLY)


@pytest.mark.parametrize("call", CALLS)
def test_only_these_calls_wait(call):
    found = waits_of(call)
    assert not found or op_of(call) in WAITING, found


def test_waiting_is_seen():
    assert {op_of(call) for call in CALLS} >= set(WAITING)
    seen = {call: {name for name, *_ in waits_of(call)} for call in ("contingency_table", "knn", "center_distances")}
    assert "_local_scalar_dense" in seen["contingency_table"]
    assert {"nonzero", "__float__"} <= seen["knn"]
    assert "tolist" in seen["center_distances"]
