#!/usr/bin/env python3
"""How long a device waits between the launches of a step: mask, forward and backward in a graph.

    bench/graph_gaps.py --library build/release/lib/libhpa.so [--seq 4096,8192]

A step is captured as a CUDA graph and replayed many times in a row. The time of a replay, by CUDA
events around all of them, less the time that its kernels and clearings take, by torch's profiler in
a run of its own, is what the device spent between them: the gaps. At short contexts that is what
launches cost. Shapes and knobs: compare_torch.py's.
"""

import statistics
import sys

import torch
from torch.profiler import ProfilerActivity, profile

import compare_torch
import hpa_ctypes as hpa
from compare_report import say

REPLAYS = 50


def capture(step):
    """One step as a graph; a warm-up outside of it loads the kernels."""
    def run():
        step.build()
        step.forward()
        step.backward()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph


def replay_ms(graph):
    """Of one replay in a row of them; the median of five rows."""
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / REPLAYS)
    return statistics.median(times)


def busy_ms(graph):
    """(launches of a replay, milliseconds that the device spends in them)"""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
    work = [event for event in profiler.events()
            if event.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(event.time_range.elapsed_us() for event in work)
    return len(work) / REPLAYS, total / REPLAYS / 1e3


def main():
    options = compare_torch.parse()
    if options.device != "cuda":
        sys.exit("graph_gaps.py: a CUDA graph needs --device cuda")
    library = hpa.Library(options.library)
    say(f"{compare_torch.machine_of(options, library)}")
    say("| tokens | block_k | launches | a replay | in kernels | gaps |")
    say("|---:|---:|---:|---:|---:|---:|")
    for head_dim, seq, share_heads in options.cases:
        problem = compare_torch.Problem(options, seq, head_dim)
        for block_k in options.block_k:
            step = compare_torch.Step(library, options, problem, block_k=block_k,
                                      share_heads=share_heads)
            graph = capture(step)
            whole = replay_ms(graph)
            launches, busy = busy_ms(graph)
            say(f"| {seq:,} | {block_k} | {launches:g} | {whole:.3f} ms | {busy:.3f} ms | "
                f"{1e3 * (whole - busy):.0f} µs |")


if __name__ == "__main__":
    main()
