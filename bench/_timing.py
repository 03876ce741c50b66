"""The clock: one sample of a call on CPU or GPU, and rounds in which all providers take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from bench._harness import Call

SHORT_MS = 50.0  # below this, what the previous provider left in caches and spinning threads would show
FEWEST_ROUNDS, MOST_ROUNDS = 5, 100


class Budget(NamedTuple):
    """How long to measure: a fixed number of rounds, or as many as fit in ``seconds`` (5 to 100)."""

    repeats: int | None = None
    seconds: float = 10.0

    def allows(self, rounds: int, elapsed: float) -> bool:
        """Whether another round may start."""
        if self.repeats is not None:
            return rounds < self.repeats
        return rounds < FEWEST_ROUNDS or (rounds < MOST_ROUNDS and elapsed < self.seconds)


def fit_clock(threads: int) -> Callable[[], float]:
    """Seconds for whole fits: those that the process computed where it has one thread, else those of the wall."""
    return time.process_time if threads == 1 else time.perf_counter


class CpuClock:
    """Wall clock."""

    def time_ms(self, function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        value = function()
        elapsed = time.perf_counter() - start
        del value  # freed outside the measured time
        return 1e3 * elapsed


class CudaClock:
    """CUDA events around the call; the second-level cache is flushed before each sample."""

    def __init__(self) -> None:
        cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(max(2 * cache_bytes, 1 << 26), dtype=torch.int8, device="cuda")

    def time_ms(self, function: Callable[[], Any]) -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        start.record()
        value = function()
        stop.record()
        stop.synchronize()
        del value
        return start.elapsed_time(stop)


def clock_for(device: str) -> CpuClock | CudaClock:
    return CudaClock() if device == "cuda" else CpuClock()


def sample_ms(call: Call, mode: str, clock: CpuClock | CudaClock) -> float:
    """One measurement of a call; in mode "backward" the forward pass runs before the clock starts."""
    if mode == "backward":
        outputs = call.with_graph()
        return clock.time_ms(lambda: call.backward(outputs))
    return clock.time_ms(call.forward if mode == "forward" else call.both)


def interleave(calls: Mapping[str, Call], mode: str, device: str, budget: Budget) -> dict[str, list[float]]:
    """Samples of every provider, taken in turns, so that all share the machine's drift.

    Each round starts with another provider. A short call is preceded by one of its own that is not measured.
    """
    clock = clock_for(device)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    rounds, start = 0, time.perf_counter()
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        while order and budget.allows(rounds, time.perf_counter() - start):
            for name in order:
                if not samples[name] or samples[name][-1] < SHORT_MS:
                    sample_ms(calls[name], mode, clock)
                samples[name].append(sample_ms(calls[name], mode, clock))
            order.append(order.pop(0))
            rounds += 1
    finally:
        if was_enabled:
            gc.enable()
    return samples
