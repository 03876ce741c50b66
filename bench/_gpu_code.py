"""What machine code is made of: its loops, and how many instructions of each kind they hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

KINDS = ("tensor", "float", "special", "memory", "shuffle", "other")
_NVIDIA = {
    "tensor": r"HGMMA|HMMA|IMMA|DMMA|QGMMA|UTC\w*MMA",
    "float": r"[FDH]FMA|[FDH]ADD|[FDH]MUL|HFMA2",
    "special": r"MUFU",
    "memory": r"LD\w*|ST\w*|ATOM\w*|RED\w*|UTMA\w*|UBLK\w*",
    "shuffle": r"SHFL|REDUX",
}
_AMD = {
    "tensor": r"v_mfma|v_smfmac",
    "float": r"v_(?:pk_)?(?:fma|fmac|add|sub|mul)_f\d+",
    "special": r"v_(?:exp|log|rcp|rsq|sqrt)_",
    "shuffle": r"ds_(?:bpermute|permute|swizzle)|v_mov_b32_dpp|v_\w+_dpp",
    "memory": r"global_|buffer_|flat_|scratch_|ds_|s_load|s_buffer_load",
}
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)$")
_AMD_INSTRUCTION = re.compile(r"^\t([vs]_\w+|ds_\w+|global_\w+|buffer_\w+|flat_\w+|scratch_\w+)(.*)$")
_LABEL = re.compile(r"^(\.L\w+):")
_TARGET = re.compile(r"(\.L\w+)")
_SHAPE = re.compile(r"HGMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)|HMMA\.(16)(8)(\d+)")


class Loop(NamedTuple):
    """One loop of a kernel, loops inside it included."""

    first: int  # of its instructions, in the order of the code
    last: int
    is_innermost: bool = False

    def holds(self, other: Loop) -> bool:
        """Whether the other loop lies inside this one."""
        return self[:2] != other[:2] and self.first <= other.first and other.last <= self.last


class Code(NamedTuple):
    """Instructions of a kernel: the kind of each, the multiply-adds of tensor instructions a warp, and loops."""

    kinds: list[str]
    products: list[float]
    loops: list[Loop]  # by where they begin, outer ones first

    def counts(self, loop: Loop) -> dict[str, int]:
        part = self.kinds[loop.first : loop.last + 1]
        return {kind: part.count(kind) for kind in KINDS}

    def longest(self) -> dict[str, int]:
        """The mix of the longest loop; of the whole kernel where it has none."""
        return self.counts(max(self.loops, key=len_of, default=Loop(0, len(self.kinds) - 1)))


def read_code(text: str) -> Code:
    """Machine code from ``nvdisasm`` or AMD's assembler."""
    is_amd = "amdgcn" in text[:4000] or ".amdhsa" in text
    pattern, table = (_AMD_INSTRUCTION, _AMD) if is_amd else (_INSTRUCTION, _NVIDIA)
    classes = [(kind, re.compile(expression)) for kind, expression in table.items()]
    kinds: list[str] = []
    products: list[float] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label.group(1)] = len(kinds)
            continue
        found = pattern.match(line)
        if not found:
            continue
        name, rest = found.groups()
        target = _TARGET.search(rest)
        if target and (name.startswith(("BRA", "s_cbranch", "s_branch"))):
            jumps.append((len(kinds), target.group(1)))
        kinds.append(next((kind for kind, expression in classes if expression.match(name)), "other"))
        products.append(_multiply_adds(name) if kinds[-1] == "tensor" else 0.0)
    return Code(kinds, products, _loops(jumps, labels))


def _multiply_adds(name: str) -> float:
    """Of one warp in a tensor instruction; 0 where its name does not say."""
    shape = _SHAPE.match(name)
    if not shape:
        return 0.0
    m, n, k = (int(size) for size in shape.groups() if size)
    return m * n * k / (4 if name.startswith("HGMMA") else 1)


def _loops(jumps: Sequence[tuple[int, str]], labels: dict[str, int]) -> list[Loop]:
    """Loops are what lies between a jump back and its target; the idle jump to itself after the code is none."""
    ends: dict[int, int] = {}
    for place, label in jumps:
        target = labels.get(label, math.inf)
        if target < place:
            ends[int(target)] = max(ends.get(int(target), 0), place)
    loops = [Loop(*span) for span in sorted(ends.items(), key=lambda span: (span[0], -span[1]))]
    return [loop._replace(is_innermost=not any(loop.holds(other) for other in loops)) for loop in loops]


class Costs(NamedTuple):
    """Warp instructions that a kernel issues, by its tiles of rows against columns."""

    a_product: float  # for each multiply-add of a product of rows and columns
    an_entry: float  # for each entry of the tile, beside products
    products: int  # loops that multiply rows and columns
    work: float  # their multiply-adds on matrix units for each one that is wanted; 0 where the code does not say


def costs(code: Code, constants: Mapping[str, object], num_warps: int) -> Costs | None:
    """What the code says of a kernel that goes over tiles of two sides; None of any other.

    The innermost loops with tensor instructions are products; without any, the innermost loop with most float
    instructions is a product by differences: one subtraction and one multiply-add a feature. Other loops inside the
    one over tiles are entered rarely, and are left out.
    """
    sides = [side for name in ("BLOCK_N", "BLOCK_K", "BLOCK_M") if isinstance(side := constants.get(name), int)]
    if len(sides) != 2 or not code.kinds:
        return None
    innermost = [loop for loop in code.loops if loop.is_innermost]
    products = [loop for loop in innermost if code.counts(loop)["tensor"]]
    entries = sides[0] * sides[1]
    of_a_turn = entries * int(str(constants.get("BLOCK_D", 1))) / num_warps
    a_product = sum(len_of(loop) / of_a_turn for loop in products)
    work = sum(sum(code.products[loop.first : loop.last + 1]) for loop in products) / of_a_turn
    nested = [loop for loop in innermost if "PRECISION" in constants or any(o.holds(loop) for o in code.loops)]
    if not products and nested:
        products = [max(nested, key=lambda loop: code.counts(loop)["float"])]
        floats = code.counts(products[0])["float"]
        a_product = len_of(products[0]) / (16.0 * floats) if floats else 0.0
    whole = Loop(0, len(code.kinds) - 1)
    around = [loop for loop in code.loops if not products or any(loop.holds(product) for product in products)]
    tiles = max((loop for loop in around if loop not in products), key=len_of, default=whole)
    inside = [loop for loop in code.loops if tiles.holds(loop)]
    outermost = [loop for loop in inside if not any(other.holds(loop) for other in inside)]
    beside = len_of(tiles) - sum(len_of(loop) for loop in outermost)
    return Costs(a_product, beside * num_warps / entries, len(products), work)


def len_of(loop: Loop) -> int:
    return loop.last - loop.first + 1
