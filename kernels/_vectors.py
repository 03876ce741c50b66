"""Vectors in LLVM's language, for the few inner loops that LLVM would not vectorise by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba.extending
from llvmlite import ir
from numba.core import cgutils

LANES = 64  # rows that a kernel treats at once, one a vector lane: a multiple of every vector width


def _register_file() -> tuple[int, int, int]:
    """(bytes of a vector, rows of a tile, vectors of a tile) that fit this processor's registers."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 6, 4
    if features.get("avx"):
        return 32, 6, 2
    if features.get("neon"):
        return 16, 6, 4
    return 16, 6, 2


VECTOR_BYTES, ROWS, VECTORS = _register_file()
WIDEST = 16  # numbers in the widest vector

# typed as Any because the first of its arguments, the typing context, is passed by Numba
intrinsic: Any = numba.extending.intrinsic


def index(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


class Vectors:
    """Vectors of one array's dtype: loads, stores and broadcasts."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.context, self.builder = context, builder
        self.scalar = context.get_value_type(dtype)
        self.size = VECTOR_BYTES // (dtype.bitwidth // 8)
        self.bits = dtype.bitwidth
        self.type = ir.VectorType(self.scalar, self.size)
        self.integers = ir.VectorType(ir.IntType(self.bits), self.size)

    def data(self, array_type: Any, array: Any, start: Any) -> Any:
        """Pointer to element ``start`` of a contiguous array."""
        pointer = self.context.make_array(array_type)(self.context, self.builder, array).data
        return self.builder.gep(pointer, [start])

    def load(self, pointer: Any, vector: Any = None) -> Any:
        vector = self.type if vector is None else vector
        value = self.builder.load(self.builder.bitcast(pointer, vector.as_pointer()), typ=vector)
        value.align = 4  # only the element's alignment is promised
        return value

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer())).align = 4

    def at(self, pointer: Any, offset: Any) -> Any:
        return self.builder.gep(pointer, [offset])

    def broadcast(self, value: Any) -> Any:
        vector = ir.VectorType(value.type, self.size)
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.size), [0] * self.size)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), self.size), lanes))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        name = f"llvm.fma.v{self.size}f{self.bits}"
        function_type = ir.FunctionType(self.type, [self.type] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, function_type, name)
        return self.builder.call(function, [a, b, c])

    def call(self, name: str, vector: Any) -> Any:
        """An intrinsic of one vector, such as llvm.exp."""
        function_type = ir.FunctionType(self.type, [self.type])
        name = f"{name}.v{self.size}f{self.bits}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function_type, name), [vector])

    def largest(self, vector: Any) -> Any:
        """The largest number of a vector; NaN is passed over."""
        name = f"llvm.vector.reduce.fmax.v{self.size}f{self.bits}"
        function_type = ir.FunctionType(self.scalar, [self.type])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function_type, name), [vector])

    def load_some(self, pointer: Any, mask: Any) -> Any:
        """Zero in the lanes that the mask leaves out, whose memory is not touched."""
        vector = self.builder.bitcast(pointer, self.type.as_pointer())
        name = f"llvm.masked.load.v{self.size}f{self.bits}.p0"
        function_type = ir.FunctionType(self.type, [vector.type, ir.IntType(32), mask.type, self.type])
        function = cgutils.get_or_insert_function(self.builder.module, function_type, name)
        return self.builder.call(function, [vector, ir.Constant(ir.IntType(32), 4), mask, self.zeros()])

    def store_some(self, value: Any, pointer: Any, mask: Any) -> None:
        """Lanes that the mask leaves out are not written."""
        vector = self.builder.bitcast(pointer, self.type.as_pointer())
        name = f"llvm.masked.store.v{self.size}f{self.bits}.p0"
        function_type = ir.FunctionType(ir.VoidType(), [self.type, vector.type, ir.IntType(32), mask.type])
        function = cgutils.get_or_insert_function(self.builder.module, function_type, name)
        self.builder.call(function, [value, vector, ir.Constant(ir.IntType(32), 4), mask])

    def below(self, count: Any) -> Any:
        """The mask of the first ``count`` lanes."""
        lanes = ir.Constant(ir.VectorType(ir.IntType(64), self.size), list(range(self.size)))
        return self.builder.icmp_signed("<", lanes, self.broadcast(count))

    def total(self, vector: Any, reassociate: bool = False) -> Any:
        """Sum of a vector: lane after lane, or sooner in halves."""
        name = f"llvm.vector.reduce.fadd.v{self.size}f{self.bits}"
        function_type = ir.FunctionType(self.scalar, [self.scalar, self.type])
        function = cgutils.get_or_insert_function(self.builder.module, function_type, name)
        flags = ("reassoc",) if reassociate else ()
        return self.builder.call(function, [ir.Constant(self.scalar, 0.0), vector], fastmath=flags)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.type, [value] * self.size)

    def zeros(self) -> Any:
        return self.constant(0.0)


def loop(builder: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """``for i in range(count): carried = body(i, carried)``, the carried values in registers; count >= 1."""
    before = builder.block
    inside = builder.append_basic_block("lanes.body")
    after = builder.append_basic_block("lanes.after")
    builder.branch(inside)
    builder.position_at_end(inside)
    i = builder.phi(ir.IntType(64))
    i.add_incoming(index(0), before)
    phis = [builder.phi(value.type) for value in carried]
    results = body(i, phis)
    following = builder.add(i, index(1))
    i.add_incoming(following, inside)
    for phi, start, result in zip(phis, carried, results):
        phi.add_incoming(start, before)
        phi.add_incoming(result, inside)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)
    return results
