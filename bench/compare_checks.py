"""The checks of compare_torch.py: results against each other, and against plain formulas in f64."""

import math

import torch

from compare_report import TILE, say

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
OUT_AND_GRADIENTS = ("out", "dq", "dk", "dv")


class Checks:
    """Relative errors, printed as they come, and whether one was too large."""

    def __init__(self, tolerance):
        self.tolerance = tolerance
        self.failed = False
        self.all = []

    def compare(self, what, names, got, expected):
        parts = []
        for name, a, b in zip(names, got, expected):
            error = relative_error(a.detach(), b.detach())
            self.all.append({"what": what, "tensor": name, "error": error})
            parts.append(f"{name} {error:.1e}")
            if not error <= self.tolerance:
                self.failed = True
                parts[-1] += " TOO LARGE"
        say(f"  {what}: {', '.join(parts)}")


def relative_error(a, b):
    """||a - b|| / ||b||, a slice of the first two dimensions at a time."""
    if a.shape != b.shape:
        return math.inf
    difference = norm = 0.0
    for x, y in zip(a.flatten(0, 1), b.flatten(0, 1)):
        x, y = x.float(), y.float()
        difference += (x - y).square().sum().double().item()
        norm += y.square().sum().double().item()
    return math.sqrt(difference / norm) if norm > 0 else math.inf


def sampled_rows(step, options, row_ptr, blocks, samples):
    """out, lse and dq of sampled (query head, query block) from the formulas, beside libhpa's."""
    problem, block_k = step.problem, step.plan.desc.block_k
    n_rows = problem.seq // TILE
    group = options.heads // options.kv_heads
    sharing = group if step.plan.desc.share_heads else 1
    got, expected = [], []
    for mask_row in samples:
        head, row = mask_row // n_rows * sharing + mask_row % sharing, mask_row % n_rows
        kept = blocks[row_ptr[mask_row]:row_ptr[mask_row + 1]]
        keys = (kept[:, None] * block_k + torch.arange(block_k, device=kept.device)).flatten()
        queries = torch.arange(row * TILE, (row + 1) * TILE, device=kept.device)
        q, k, v, d_out = (x.detach()[0, h, at].double() for x, h, at in (
            (problem.q, head, queries), (problem.k, head // group, keys),
            (problem.v, head // group, keys), (problem.d_out, head, queries)))
        scale = problem.head_dim ** -0.5
        scores = (scale * q @ k.T).masked_fill(keys[None] > queries[:, None], -math.inf)
        lse = scores.logsumexp(1)
        p = (scores - lse[:, None]).exp()
        out = p @ v
        ds = p * (d_out @ v.T - (d_out * out).sum(1, keepdim=True))
        expected.append((out, lse, scale * ds @ k))
        got.append(tuple(x[0, head, queries] for x in (problem.out, problem.lse, problem.dq)))
    return [[torch.stack(x)[None] for x in zip(*side)] for side in (got, expected)]


def sampled_columns(step, options, row_ptr, blocks, samples):
    """dk and dv of sampled (key/value head, key block) from the formulas, given out and lse."""
    problem, block_k = step.problem, step.plan.desc.block_k
    n_rows, n_columns = problem.seq // TILE, problem.seq // block_k
    group = options.heads // options.kv_heads
    shared = step.plan.desc.share_heads
    row = torch.repeat_interleave(torch.arange(row_ptr.numel() - 1, device=blocks.device),
                                  row_ptr[1:] - row_ptr[:-1])
    scale = problem.head_dim ** -0.5
    got, expected = [], []
    for column in samples:
        kv_head, block = column // n_columns, column % n_columns
        keys = torch.arange(block * block_k, (block + 1) * block_k, device=blocks.device)
        k, v = (x.detach()[0, kv_head, keys].double() for x in (problem.k, problem.v))
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for head in range(kv_head * group, (kv_head + 1) * group):
            mask_head = kv_head if shared else head
            rows = row[(blocks == block) & (row // n_rows == mask_head)] % n_rows
            queries = (rows[:, None] * TILE + torch.arange(TILE, device=rows.device)).flatten()
            for part in queries.split(1 << 14):
                q, d_out, out = (x.detach()[0, head, part].double()
                                 for x in (problem.q, problem.d_out, problem.out))
                p = (scale * q @ k.T - problem.lse[0, head, part].double()[:, None]).exp()
                p.masked_fill_(keys[None] > part[:, None], 0)
                ds = p * (d_out @ v.T - (d_out * out).sum(1, keepdim=True))
                dk += scale * ds.T @ q
                dv += p.T @ d_out
        expected.append((dk, dv))
        got.append(tuple(x[0, kv_head, keys] for x in (problem.dk, problem.dv)))
    return [[torch.stack(x)[None] for x in zip(*side)] for side in (got, expected)]


def check_samples(checks, step, options, what):
    """The last results of the problem, which are this step's, at some query and key blocks."""
    row_ptr, blocks = step.rows()
    step.results()
    generator = torch.Generator().manual_seed(1)
    n_rows = row_ptr.numel() - 1
    rows = torch.randint(n_rows, (6,), generator=generator).tolist() + [0, n_rows - 1]
    got, expected = sampled_rows(step, options, row_ptr, blocks, rows)
    checks.compare(f"{what}, sampled rows, against formulas in f64", ("out", "lse", "dq"), got,
                   expected)
    n_columns = options.kv_heads * (step.problem.seq // step.plan.desc.block_k)
    columns = torch.randint(n_columns, (4,), generator=generator).tolist() + [0, n_columns - 1]
    got, expected = sampled_columns(step, options, row_ptr, blocks, columns)
    checks.compare(f"{what}, sampled columns, against formulas in f64", ("dk", "dv"), got, expected)
