#!/usr/bin/env python3
"""libhpa beside the attentions that PyTorch offers, in one process, on the same tensors.

    bench/compare_torch.py --library build/release/lib/libhpa.so [--seq 8192,32768,131072]
        [--also 32768:64 131072:128:shared]

Per length and set of knobs, libhpa and FlexAttention one after the other in every round (so that
clocks and temperature are the same for both), CUDA events around each call, medians over rounds:

  cudnn, flash   dense causal attention, scaled_dot_product_attention held to that backend, with
                 enable_gqa: key/value heads are not copied. After the others, in rounds of its own,
                 once a length and head size, up to --dense-up-to tokens; nothing is extrapolated.
                 Beyond 131,072 tokens, where a call takes seconds, cudnn alone, called once and not
                 warmed up (at 524,288 its first and second call differed by 0.4%).
  flex           FlexAttention under torch.compile (static shapes, default options) over the mask
                 that libhpa chose. Making its BlockMask is not timed.
  hpa            hpa_mask_build (of it the transpose: the difference to a plan without training),
                 hpa_forward, hpa_backward, and hpa_backward with allow_nondeterministic where that
                 chooses another kernel.

Forward means a forward that can be followed by a backward. Before every timed call, 512 MiB are
read, so that no input lies in the L2 cache and the host is ahead of the device. The first round
warms up and compiles.

The same mask on both sides. FlexAttention's tiles are 128 x 128 here, its default. With block_k 128
and block_q 128, a kept block of libhpa *is* such a tile: both compute exactly the same pairs, and
this is the comparison of record. With block_k 64 (the standard workload), a tile is visited when
one of its two halves is kept, so FlexAttention computes more pairs than were kept; its rate is
still counted on the kept ones, and the table says how many tiles' pairs there are for each kept
pair. Tiles on the diagonal are partial blocks with the causal mask_mod, all others are full blocks.

Memory is O(T) but for FlexAttention's own column lists, which are a rectangle as long as the
longest column: the sink's, T / 128. They are made by sorting, never through a dense T^2 / 128^2
table for each row; at 524,288 tokens and 32 heads the two take 4.3 GB.

Before a table is believed: at each length, out, dq, dk and dv of flash against cudnn, and of
FlexAttention against libhpa on the same pairs; rows of out, lse and dq, and blocks of dk and dv, of
every mask against plain formulas in double precision, at sampled query and key blocks; and at the
shortest length, libhpa with every key kept against cudnn. Relative errors in the Frobenius norm.
Exit status 1 when one is beyond the tolerance or a length could not be measured.

FLOPs: 4 (forward) or 10 (backward) for each kept pair and element of a head.
--device cpu runs all but FlexAttention's backward, which PyTorch lacks there, on small shapes: a
test of this program, not of speed.
"""

import argparse
import itertools
import os
import platform
import statistics
import sys
import time

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import hpa_ctypes as hpa
from compare_checks import OUT_AND_GRADIENTS, TOLERANCE, Checks, check_samples
from compare_report import TILE, print_report, say, say_result, write_csv, write_json

FLUSH_BYTES = 512 << 20
DENSE_TAKES_SECONDS = 131072  # tokens, and more
DTYPES = {torch.float32: hpa.F32, torch.float16: hpa.F16, torch.bfloat16: hpa.BF16}


# Tensors and plans of libhpa


def view(tensor):
    """An hpa_tensor that looks at a torch tensor."""
    result = hpa.Tensor(data=tensor.data_ptr(), dtype=DTYPES[tensor.dtype], ndim=tensor.dim())
    for n in range(tensor.dim()):
        result.shape[n], result.stride[n] = tensor.shape[n], tensor.stride(n)
    return result


class Problem:
    """Inputs of one length and head size, and the outputs that all plans of libhpa share."""

    def __init__(self, options, seq, head_dim):
        self.seq, self.head_dim = seq, head_dim
        self.device, self.dtype = options.device, options.dtype
        torch.manual_seed(seq + head_dim)
        queries = (options.batch, options.heads, seq, head_dim)
        keys = (options.batch, options.kv_heads, seq, head_dim)
        self.q, self.k, self.v = self.random(queries), self.random(keys), self.random(keys)
        self.d_out = self.random(queries)
        for tensor in (self.q, self.k, self.v):
            tensor.requires_grad_()
        with torch.no_grad():
            self.out, self.dq = torch.empty_like(self.q), torch.empty_like(self.q)
            self.dk, self.dv = torch.empty_like(self.k), torch.empty_like(self.v)
        self.lse = torch.empty(queries[:3], device=self.device, dtype=torch.float32)
        self.scratch = self.bytes(0)
        self.dense_pairs = options.batch * options.heads * seq * (seq + 1) / 2

    def random(self, shape):
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def bytes(self, count):
        return torch.empty(count, device=self.device, dtype=torch.uint8)

    def inputs(self):
        return hpa.Inputs(q=view(self.q), k=view(self.k), v=view(self.v))

    def outputs(self):
        return hpa.Outputs(out=view(self.out), lse=view(self.lse))

    def gradients(self):
        return hpa.Gradients(d_out=view(self.d_out), dq=view(self.dq), dk=view(self.dk),
                             dv=view(self.dv))

    def execution(self):
        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else None
        return hpa.Exec(stream=stream, scratch=self.scratch.data_ptr(),
                        scratch_bytes=self.scratch.numel())


class Step:
    """Mask, forward and backward of one plan on a problem."""

    def __init__(self, library, options, problem, **knobs):
        fields = dict(
            device=hpa.CUDA if problem.device == "cuda" else hpa.CPU,
            dtype=DTYPES[problem.dtype], batch=options.batch, heads_q=options.heads,
            heads_kv=options.kv_heads, head_dim=problem.head_dim, seq_q=problem.seq,
            seq_kv=problem.seq, block_q=TILE, top_k=options.top_k, window=options.window,
            sink=options.sink, training=True)
        fields.update(knobs)
        self.problem = problem
        self.plan = hpa.Plan(library, library.desc(**fields))
        self.mask = problem.bytes(self.plan.sizes.mask)
        if self.plan.scratch_bytes() > problem.scratch.numel():
            problem.scratch = problem.bytes(self.plan.scratch_bytes())

    def build(self):
        self.plan.build(self.problem.inputs(), self.mask.data_ptr(), self.problem.execution())

    def forward(self):
        self.plan.forward(self.mask.data_ptr(), self.problem.inputs(), self.problem.outputs(),
                          self.problem.execution())

    def backward(self):
        self.plan.backward(self.mask.data_ptr(), self.problem.inputs(), self.problem.outputs(),
                           self.problem.gradients(), self.problem.execution())

    def results(self):
        """out, dq, dk, dv: the problem's buffers, written anew."""
        self.forward()
        self.backward()
        return self.problem.out, self.problem.dq, self.problem.dk, self.problem.dv

    def statistics(self):
        return self.plan.statistics(self.mask.data_ptr(), self.problem.execution())

    def rows(self):
        """The mask as (row_ptr, blocks) on the problem's device, exported by the library."""
        stats = self.statistics()
        row_ptr = torch.empty(stats.rows + 1, dtype=torch.int64)
        blocks = torch.empty(stats.blocks, dtype=torch.int32)
        self.plan.export_csr(self.mask.data_ptr(), row_ptr.data_ptr(), blocks.data_ptr(),
                             blocks.numel(), self.problem.execution())
        return row_ptr.to(self.problem.device), blocks.to(self.problem.device, torch.int64)


# FlexAttention


def causal(batch, head, query, key):
    return query >= key


def padded_lists(owner, member, owners, width):
    """Lists (counts [owners], members [owners, width]) of pairs sorted by owner and then member."""
    counts = torch.bincount(owner, minlength=owners)
    first = torch.cumsum(counts, 0) - counts
    place = torch.arange(owner.numel(), device=owner.device) - first[owner]
    lists = torch.zeros(owners, width, dtype=torch.int32, device=owner.device)
    lists[owner, place] = member.to(torch.int32)
    return counts.to(torch.int32), lists


def tiles_of(step, options):
    """The kept tiles as (mask row, key tile), sorted. Mask row: (mask head, query tile)."""
    row_ptr, blocks = step.rows()
    per_tile = TILE // step.plan.desc.block_k
    row = torch.repeat_interleave(torch.arange(row_ptr.numel() - 1, device=blocks.device),
                                  row_ptr[1:] - row_ptr[:-1])
    n_tiles = step.problem.seq // TILE
    tiles = torch.unique_consecutive(row * n_tiles + blocks // per_tile)
    row, key_tile = tiles // n_tiles, tiles % n_tiles
    if not step.plan.desc.share_heads:
        return row, key_tile
    # FlexAttention knows no lists shared by some of the heads: each query head gets its copy.
    group = options.heads // options.kv_heads
    head, query_tile = row // n_tiles, row % n_tiles
    copies = [((head * group + n) * n_tiles + query_tile) for n in range(group)]
    row = torch.cat(copies)
    key_tile = key_tile.repeat(group)
    order = torch.argsort(row * n_tiles + key_tile)
    return row[order], key_tile[order]


def block_mask_of(row, key_tile, heads, seq, width):
    """The BlockMask over kept tiles: rows' lists as they are, columns' lists by sorting."""
    n_tiles = seq // TILE
    diagonal = key_tile == row % n_tiles

    def lists(owner, member, owners, width):
        counts, members = padded_lists(owner, member, owners, width)
        return counts.view(1, heads, -1), members.view(1, heads, -1, width)

    def columns(chosen):
        head, query_tile = row[chosen] // n_tiles, row[chosen] % n_tiles
        column = head * n_tiles + key_tile[chosen]
        order = torch.argsort(column * n_tiles + query_tile)
        return lists(column[order], query_tile[order], heads * n_tiles, n_tiles)

    partial = lists(row[diagonal], key_tile[diagonal], heads * n_tiles, width)
    full = lists(row[~diagonal], key_tile[~diagonal], heads * n_tiles, width)
    mask = BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=(TILE, TILE), mask_mod=causal,
                                    seq_lengths=(seq, seq), compute_q_blocks=False)
    mask.q_num_blocks, mask.q_indices = columns(diagonal)
    mask.full_q_num_blocks, mask.full_q_indices = columns(~diagonal)
    return mask


class Peer:
    """One of PyTorch's attentions: forward keeps what backward needs, backward uses it up."""

    def __init__(self, problem, attention):
        self.problem, self.attention = problem, attention
        self.out = None

    def forward(self):
        self.out = self.attention(self.problem.q, self.problem.k, self.problem.v)

    def backward(self):
        inputs = (self.problem.q, self.problem.k, self.problem.v)
        self.gradients = torch.autograd.grad(self.out, inputs, self.problem.d_out)
        self.out = self.out.detach()

    def drop(self):
        self.out = self.gradients = None

    def results(self):
        self.forward()
        self.backward()
        result = (self.out, *self.gradients)
        self.drop()
        return result


class ForwardOnly(Peer):
    """FlexAttention on the CPU has no backward."""

    def forward(self):
        self.out = self.attention(*(x.detach() for x in
                                    (self.problem.q, self.problem.k, self.problem.v)))

    def results(self):
        self.forward()
        return (self.out,)


def dense_peer(problem, backend):
    def attention(q, k, v):
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True,
                                                                    enable_gqa=True)
    return Peer(problem, attention)


def flex_peer(problem, block_mask):
    def attention(q, k, v):
        return compiled_flex(q, k, v, block_mask=block_mask, enable_gqa=True)
    return (Peer if problem.device == "cuda" else ForwardOnly)(problem, attention)


compiled_flex = torch.compile(flex_attention, dynamic=False)


# Time


class Clock:
    """Times calls on the device, the L2 cache emptied before each."""

    def __init__(self, device):
        self.cuda = device == "cuda"
        self.pending = []
        if self.cuda:
            self.flush = torch.zeros(FLUSH_BYTES // 4, device=device, dtype=torch.float32)

    def time(self, call, times):
        if not self.cuda:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
            return
        self.flush.sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        self.pending.append((start, end, times))

    def lead(self):
        """Gives the device something to do, so that the host gets ahead of it."""
        for _ in range(4 if self.cuda else 0):
            self.flush.sum()

    def settle(self):
        """Waits, and hands the times of the round out."""
        if self.cuda:
            torch.cuda.synchronize()
        for start, end, times in self.pending:
            times.append(start.elapsed_time(end))
        self.pending.clear()


def measure(clock, calls, rounds, warm_up=1):
    """calls: {name: (call, cleanup or None)} in the order of each round. Medians in ms."""
    times = {name: [] for name in calls}
    for n in range(-warm_up, rounds):
        clock.lead()
        for name, (call, cleanup) in calls.items():
            clock.time(call, times[name])
            if cleanup:
                cleanup()
        clock.settle()
        if n < 0:
            for values in times.values():
                values.clear()
    return {name: statistics.median(values) for name, values in times.items()}


# One length


def library_calls(library, options, problem, block_k, share_heads):
    """(step, {name: call}) of libhpa with one block_k."""
    knobs = dict(block_k=block_k, share_heads=share_heads)
    step = Step(library, options, problem, **knobs)
    search = Step(library, options, problem, training=False, **knobs)
    calls = {"search": (search.build, None), "mask": (step.build, None),
             "forward": (step.forward, None), "backward": (step.backward, None)}
    fast = Step(library, options, problem, allow_nondeterministic=True, **knobs)
    if fast.plan.describe() != step.plan.describe():
        fast.build()
        calls["backward_any_order"] = (fast.backward, None)
    step.build()
    return step, {f"hpa{block_k}_{name}": call for name, call in calls.items()}


def peer_calls(name, peer):
    if isinstance(peer, ForwardOnly):
        return {f"{name}_forward": (peer.forward, peer.drop)}
    return {f"{name}_forward": (peer.forward, None), f"{name}_backward": (peer.backward, peer.drop)}


def flex_masks(options, steps):
    """{block_k: (BlockMask, tiles)}; lists of few widths, so that most share one compilation."""
    tiles = {block_k: tiles_of(step, options) for block_k, step in steps.items()}
    heads, seq = options.heads, next(iter(steps.values())).problem.seq
    longest = max(torch.bincount(row).max().item() for row, _ in tiles.values())
    width = -(-longest // 16) * 16
    if options.device == "cpu":  # its compiler wants room for every tile
        width = seq // TILE
    return {block_k: (block_mask_of(row, key_tile, heads, seq, width), row.numel())
            for block_k, (row, key_tile) in tiles.items()}


def check_dense(checks, library, options, problem, dense):
    """flash against cudnn, and libhpa with every key kept against the first of them."""
    names = list(dense)
    shortest = problem.seq == min(seq for _, seq, _ in options.cases)
    if not dense or (len(dense) == 1 and not shortest):
        return
    expected = dense[names[0]].results()
    for name in names[1:]:
        checks.compare(f"{name} against {names[0]}", OUT_AND_GRADIENTS, dense[name].results(),
                       expected)
    if shortest:
        everything = Step(library, options, problem, top_k=problem.seq)
        everything.build()
        checks.compare(f"hpa with every key kept against {names[0]}", OUT_AND_GRADIENTS,
                       everything.results(), expected)


def check_masked(checks, options, steps, flex):
    for block_k, step in steps.items():
        step.build()
        check_samples(checks, step, options, f"hpa, block_k {block_k}")
        if block_k == TILE and block_k in flex:
            checks.compare("flex against hpa, the same pairs", OUT_AND_GRADIENTS,
                           flex[block_k].results(), step.results())


def dense_peers(options, problem):
    if options.device != "cuda":
        return {"math": dense_peer(problem, SDPBackend.MATH)}
    if problem.seq > options.dense_up_to:
        return {}
    peers = {"cudnn": dense_peer(problem, SDPBackend.CUDNN_ATTENTION)}
    if problem.seq <= DENSE_TAKES_SECONDS:
        peers["flash"] = dense_peer(problem, SDPBackend.FLASH_ATTENTION)
    return peers


def dense_times(clock, options, problem, dense, earlier):
    """Dense attention does not see masks: one measurement a length and head size."""
    for result in earlier:
        if (result["seq"], result["head_dim"]) == (problem.seq, problem.head_dim):
            return {name: ms for name, ms in result["ms"].items() if name.split("_")[0] in dense}
    times = {}
    for name, peer in dense.items():
        if problem.seq > DENSE_TAKES_SECONDS:
            times.update(measure(clock, peer_calls(name, peer), rounds=1, warm_up=0))
            continue
        rounds = options.rounds if problem.seq <= 32768 else min(3, options.rounds)
        times.update(measure(clock, peer_calls(name, peer), rounds))
    return times


def compare(library, options, clock, checks, case, earlier):
    """All measurements and checks of one length; a dictionary for the tables."""
    start = time.perf_counter()
    head_dim, seq, share_heads = case
    problem = Problem(options, seq, head_dim)
    steps, calls = {}, {}
    for block_k in options.block_k:
        steps[block_k], own = library_calls(library, options, problem, block_k, share_heads)
        calls.update(own)
    masks = flex_masks(options, steps)
    flex = {block_k: flex_peer(problem, mask) for block_k, (mask, _) in masks.items()}
    for block_k, peer in flex.items():
        calls.update(peer_calls(f"flex{block_k}", peer))
    dense = dense_peers(options, problem)
    times = measure(clock, calls, options.rounds)
    times.update(dense_times(clock, options, problem, dense, earlier))
    result = {"seq": seq, "head_dim": head_dim, "share_heads": share_heads, "ms": times,
              "masks": {}, "seconds": time.perf_counter() - start}
    for block_k, step in steps.items():
        density = step.statistics().density
        result["masks"][block_k] = {
            "density": density, "pairs": density * problem.dense_pairs,
            "tile_pairs_per_pair": tile_pairs(masks[block_k][1], options, seq) /
                                   (density * problem.dense_pairs)}
    say_result(result, options)
    if not options.no_check:
        check_masked(checks, options, steps, flex)
        if (seq, head_dim) not in {(result["seq"], result["head_dim"]) for result in earlier}:
            check_dense(checks, library, options, problem, dense)
    return result


def tile_pairs(tiles, options, seq):
    """Visible pairs in the visited tiles; those on the diagonal count by half."""
    diagonal = options.heads * (seq // TILE)
    return (tiles - diagonal) * TILE * TILE + diagonal * TILE * (TILE + 1) / 2


# Command line


def numbers(text):
    return [int(part) for part in text.split(",")]


def single_case(text):
    """T:DIM or T:DIM:shared"""
    seq, head_dim, *shared = text.split(":")
    if shared not in ([], ["shared"]):
        raise ValueError(text)
    return int(head_dim), int(seq), bool(shared)


def parse():
    parser = argparse.ArgumentParser(description="libhpa beside PyTorch's attentions",
                                     epilog="The file's first comment says what is measured.")
    parser.add_argument("--library", default="build/release/lib/libhpa.so")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bf16", "f16", "f32"))
    parser.add_argument("--seq", type=numbers, default=numbers("8192,32768,131072"))
    parser.add_argument("--dim", type=numbers, default=[128])
    parser.add_argument("--block-k", type=numbers, default=[128, 64])
    parser.add_argument("--share-heads", choices=("no", "yes", "both"), default="no")
    parser.add_argument("--also", type=single_case, nargs="*", default=[], metavar="T:DIM[:shared]",
                        help="single cases after those of --seq, --dim and --share-heads")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2048)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--sink", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dense-up-to", type=int, default=131072)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--tolerance", type=float, help="of the checks, relative")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--csv", metavar="FILE", help="whole steps, for bench/peers.gnuplot")
    options = parser.parse_args()
    options.batch = 1
    dtype = options.dtype or ("bf16" if options.device == "cuda" else "f32")
    options.dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype]
    if options.tolerance is None:
        options.tolerance = TOLERANCE[options.dtype]
    sharing = {"no": [False], "yes": [True], "both": [False, True]}[options.share_heads]
    options.cases = [*itertools.product(options.dim, options.seq, sharing), *options.also]
    if any(seq % TILE for _, seq, _ in options.cases):
        parser.error(f"expected lengths that are multiples of {TILE}")
    if options.heads % options.kv_heads:
        parser.error("--heads: expected a multiple of --kv-heads")
    return options


def machine_of(options, library):
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor()
    return {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "library": library.build_info(),
            "date": time.strftime("%Y-%m-%d")}


def main():
    options = parse()
    library = hpa.Library(options.library)
    machine = machine_of(options, library)
    say(f"{machine}\n{options}")
    clock, checks = Clock(options.device), Checks(options.tolerance)
    torch._dynamo.config.cache_size_limit = 64
    results = []
    for case in options.cases:
        try:
            results.append(compare(library, options, clock, checks, case, results))
        except (torch.OutOfMemoryError, hpa.Failure) as error:  # the other cases still count
            checks.failed = True
            say(f"T {case[1]}, heads of {case[0]}: NOT MEASURED: {error}")
        if options.json:
            write_json(options.json, machine, options, results, checks)
        if options.csv:
            write_csv(options.csv, results)
    print_report(results, options, "cudnn" if options.device == "cuda" else "math")
    if checks.failed:
        say("Not everything could be measured, or some errors are beyond the tolerance.")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
