"""What a piece of work holds at most, counted by torch's allocators. Resident memory of a process would count what
earlier work left behind as well."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile, record_function

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read at the first profile: it would note its start and end
MEASURED = "the measured step"


def peak_mebibytes(make: Callable[[], Callable[[], object]], device: torch.device) -> float:
    """The most that exists at a time during a step, together with what `make` and an earlier step left to stay."""
    gc.collect()
    return (_on_gpu if device.type == "cuda" else _on_cpu)(make) / 2**20


def _on_gpu(make: Callable[[], Callable[[], object]]) -> float:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    step = make()
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _on_cpu(make: Callable[[], Callable[[], object]]) -> float:
    """The profiler is told of every piece the allocator hands out and takes back, also inside of an operation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step = make()
        step()
        with record_function(MEASURED):
            step()
    events = profiled.profiler.kineto_results.events()
    begins = next(event.start_ns() for event in events if event.name() == MEASURED)
    held, peak = 0, 0
    pieces = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    for when, size in sorted(pieces, key=lambda piece: piece[0]):
        held += size
        if when >= begins:
            peak = max(peak, held)
    return peak
