"""The GPU kernels of the Sinkhorn room: run by Triton's interpreter, built for four chips, and run on a GPU.

The tests of values stand in ``sinkhorn_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton.language as tl

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import ALL_REGISTERS
from fastdc.kernels.sinkhorn import triton_tiles as tiles
from fastdc.kernels.sinkhorn.triton_kernel import NUM_WARPS, launch

CASES = str(Path(__file__).with_name("sinkhorn_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
KERNELS = ("rows", "columns", "assign")


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(name, chip, k=3000, scores="fp32", aligned=True):
    """One kernel as a call with row-major scores would build it."""
    kernel = getattr(tiles, f"_sinkhorn_{name}_kernel")
    types = {argument: "*fp64" if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names}
    types |= {"scores_ptr": f"*{scores}", "q_ptr": "*fp64" if scores == "fp64" else "*fp32"}
    block_n, block_k = launch(k)
    fixed = {"ACC": tl.float64 if scores == "fp64" else tl.float32, "BLOCK_N": block_n, "BLOCK_K": block_k}
    multiples = ()
    if aligned:
        fixed["stride_sk"] = 1
        multiples = [a for a in types if a.endswith("_ptr")] + ["stride_sn"]
    options = {"num_warps": NUM_WARPS, "num_stages": 1, **ALL_REGISTERS}
    return cross_compile(kernel, types, fixed, chip, aligned=multiples, **options)


def assert_fits(compiled, chip):
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]
    assert not compiled.uses_matrix_units


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_every_chip_without_spills(name, chip):
    assert_fits(build(name, chip), chip)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "options", [{"k": 10}, {"aligned": False}, {"scores": "fp64"}, {"scores": "fp16"}, {"scores": "bf16"}], ids=str
)
def test_every_kind_of_call_compiles_without_spills(name, chip, options):
    assert_fits(build(name, chip, **options), chip)


def test_launch_choices():
    assert [launch(k) for k in (1, 20, 100_000)] == [(128, 16), (64, 32), (16, 128)]
