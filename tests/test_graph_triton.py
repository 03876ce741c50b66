"""The GPU kernels of the graph room: run by Triton's interpreter, built for four chips, run on a GPU.

The tests of values stand in ``graph_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels.graph import triton_tiles as tiles
from fastdc.kernels.graph.triton_kernel import consistency_launch, launch

CASES = str(Path(__file__).with_name("graph_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
KERNELS = [
    (tiles._laplacian_kernel, {"HAS_WEIGHTS": True}),
    (tiles._laplacian_kernel, {"HAS_WEIGHTS": False}),
    (tiles._edges_kernel, {"HAS_WEIGHTS": True, "KEEP": True}),
    (tiles._edges_kernel, {"HAS_WEIGHTS": False, "KEEP": False}),
    (tiles._propagate_kernel, {}),
    (tiles._consistency_kernel, {"FROM_LOGITS": True, "NEED_A": True, "NEED_B": True}),
    (tiles._consistency_kernel, {"FROM_LOGITS": False, "NEED_A": True, "NEED_B": False}),
]


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(kernel, constants, chip, width, dtype="fp32", x_dtype="fp32", index="i32", aligned=True):
    """One kernel with the launch choices of a number of features or clusters."""
    types = {argument: f"*{dtype}" if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names}
    types |= {"x_ptr": f"*{x_dtype}", "a_ptr": f"*{x_dtype}", "b_ptr": f"*{x_dtype}", "y_ptr": f"*{x_dtype}"}
    types |= {"neighbors_ptr": f"*{index}", "ids_ptr": f"*{index}", "columns_ptr": f"*{index}"}
    types |= {"indptr_ptr": "*i64", "sources_ptr": "*i64", "targets_ptr": "*i64", "partial_ptr": "*fp64"}
    if kernel is tiles._consistency_kernel:
        options = consistency_launch(width, 8 if dtype == "fp64" else 4)
    else:
        options = launch(width)
    num_warps = options.pop("num_warps")
    fixed = {**options, **constants}
    if aligned:
        fixed |= {"stride_xd": 1, "stride_ak": 1, "stride_bk": 1}
    types = {argument: types[argument] for argument in kernel.arg_names if argument in types}
    fixed = {argument: value for argument, value in fixed.items() if argument in kernel.arg_names}
    multiples = [argument for argument in types if argument.endswith("_ptr")] if aligned else []
    return cross_compile(kernel, types, fixed, chip, aligned=multiples, num_warps=num_warps)


def assert_fits(compiled, chip):
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]


@pytest.mark.parametrize("chip", TARGETS)
def test_compiles_for_every_chip_without_spills(chip):
    for kernel, constants in (KERNELS[0], KERNELS[2], KERNELS[4], KERNELS[5]):
        assert_fits(build(kernel, constants, chip, 10), chip)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aligned": False},
        {"dtype": "fp64", "x_dtype": "fp64"},
        {"x_dtype": "fp16"},
        {"x_dtype": "bf16"},
        {"index": "i64"},
    ],
    ids=str,
)
def test_every_kernel_compiles_without_spills(chip, options):
    for kernel, constants in KERNELS:
        for width in (1, 10, 100, 2000):
            assert_fits(build(kernel, constants, chip, width, **options), chip)


def test_tiles():
    assert launch(1) == {"BLOCK_E": 512, "BLOCK_D": 1, "num_warps": 1}
    assert launch(10) == {"BLOCK_E": 32, "BLOCK_D": 16, "num_warps": 1}
    assert consistency_launch(100, 4) == {"BLOCK_N": 4, "BLOCK_K": 128, "num_warps": 4}
    assert launch(5000) == {"BLOCK_E": 8, "BLOCK_D": 64, "num_warps": 1}
