"""Triton kernels on machines without a GPU: built for a chip to see what they take, and run by the interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastdc.kernels._launches import Launch

TARGETS: dict[str, tuple[str, Any, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # of one program
_MATRIX_INSTRUCTIONS = re.compile(r"\b(?:wgmma|mma\.sync|tcgen05\.mma|v_mfma|v_smfmac)")


class Compiled(NamedTuple):
    """What one kernel takes on a chip."""

    registers: int  # of a thread
    spills: int  # bytes of registers stored (NVIDIA), or registers (AMD), of a thread
    shared_bytes: int  # of a program
    num_warps: int
    matrix_instruction: str  # by which products are made on matrix units; empty where none are
    code: bytes  # a cubin, or the text of AMD's assembler

    @property
    def uses_matrix_units(self) -> bool:
        return bool(self.matrix_instruction)

    def instructions(self) -> str:
        """The machine code in words."""
        return _run_on(self.code, "nvdisasm", "-c") if self.code.startswith(b"\x7fELF") else self.code.decode()


def cross_compile(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    chip: str,
    *,
    aligned: Collection[str] = (),
    **options: Any,
) -> Compiled:
    """Build a Triton kernel for a chip of ``TARGETS``; needs no GPU, but a process without TRITON_INTERPRET.

    Parameters
    ----------
    kernel : the function under ``@triton.jit``
    types : mapping of each runtime argument to its type, such as ``"*fp32"`` or ``"i32"``
    constants : mapping of each constexpr argument to its value; arguments that are 1 belong here too
    chip : {"sm_80", "sm_90", "sm_100", "gfx942"}
    aligned : names of the pointers and integers that are multiples of 16, which the compiler makes use of
    **options : num_warps, num_stages, maxnreg
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    places = [i for i, name in enumerate(kernel.arg_names) if name in aligned and name not in constants]
    attributes = {(i,): [["tt.divisibility", 16]] for i in places}
    if chip.startswith("gfx"):
        options.pop("maxnreg", None)  # an option of NVIDIA's assembler
    source = ASTSource(kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[chip]), options=options)
    if chip.startswith("gfx"):
        assembly = compiled.asm["amdgcn"]
        code = assembly.encode()
        registers = _numbers(r"\.vgpr_count:\s*(\d+)", assembly)
        spills = _numbers(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    else:
        assembly = compiled.asm["ptx"]
        code = compiled.asm["cubin"]
        usage = _run_on(code, "cuobjdump", "--dump-resource-usage")
        registers = _numbers(r"REG:(\d+)", usage)
        spills = [0]
        if any(_numbers(r"(?:STACK|LOCAL):(\d+)", usage)):  # a stack may hold other things than spilled registers
            words = _run_on(code, "nvdisasm", "-c")
            spills = [int(bits or 32) // 8 for bits in re.findall(r"\bSTL(?:\.(64|128))?\b", words)]
    used = _MATRIX_INSTRUCTIONS.search(assembly)
    metadata = compiled.metadata
    return Compiled(
        max(registers), sum(spills), metadata.shared, metadata.num_warps, used.group() if used else "", code
    )


def compile_launch(launch: Launch, chip: str) -> Compiled:
    """Build what a launcher would start on a chip; see :func:`fastdc.kernels._launches.launches`."""
    types, constants, options = dict(launch.types), dict(launch.constants), dict(launch.options)
    return cross_compile(launch.load(), types, constants, chip, aligned=launch.aligned, **options)


def assert_fits(launch: Launch, chip: str) -> Compiled:
    """Build a launch and see that it keeps its numbers in registers and its tiles in shared memory."""
    compiled = compile_launch(launch, chip)
    assert compiled.spills == 0, f"{launch} spills {compiled.spills} on {chip}"
    assert compiled.shared_bytes <= SHARED_BYTES[chip], f"{launch} wants {compiled.shared_bytes} bytes on {chip}"
    return compiled


def _run_on(content: bytes, tool: str, *options: str) -> str:
    """What one of NVIDIA's tools that Triton ships prints about a file of this content."""
    import triton

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
        done = subprocess.run([str(path), *options, file.name], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr


def _numbers(pattern: str, text: str) -> list[int]:
    found = [int(number) for number in re.findall(pattern, text)]
    if not found:
        raise ValueError(f"no {pattern!r} in what the compiler wrote:\n{text[:2000]}")
    return found


def run_interpreted(*arguments: str, timeout: float = 300.0) -> str:
    """Run ``python ARGUMENTS`` with Triton's interpreter, which kernels take up at import; returns its stdout.

    Raises
    ------
    AssertionError
        If the process fails, with what it printed.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, env=environment
    )
    if done.returncode != 0:
        raise AssertionError(f"{arguments[:3]} ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout
