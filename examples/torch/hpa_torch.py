"""libhpa in PyTorch: attention(q, k, v) with gradients, torch.compile, checkpointing, CUDA graphs.

    from hpa_torch import Knobs, attention
    out = attention(q, k, v, Knobs(top_k=2048, window=1024, sink=256))     # q [B, H, T, D]

Importing it compiles hpa_torch.cpp against the libhpa that pkg-config finds (once; torch keeps the
result), or loads the library that HPA_TORCH_LIBRARY names.

Every call chooses its mask from q and k. Where the mask should outlive the call, choose it first and
hand it in: mask = choose(q, k, knobs), then attention(q, k, v, knobs, mask=mask). keep_masks() is for
activation checkpointing: recomputation then reads the saved mask instead of searching again.
"""

import os
import shlex
import subprocess
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts


def _load():
    built = os.environ.get("HPA_TORCH_LIBRARY")
    if built:
        torch.ops.load_library(built)
        return
    from torch.utils import cpp_extension

    def flags(option):
        asked = subprocess.run(["pkg-config", option, "hpa"], check=True, text=True,
                               stdout=subprocess.PIPE)  # it says on stderr what it misses
        return shlex.split(asked.stdout)

    libraries = flags("--libs")
    folders = [f"-Wl,-rpath,{flag[2:]}" for flag in libraries if flag.startswith("-L")]
    cpp_extension.load("hpa_torch", [str(Path(__file__).with_name("hpa_torch.cpp"))],
                       extra_cflags=["-O2", *flags("--cflags")], is_python_module=False,
                       extra_ldflags=[*libraries, *folders])


_load()


class Knobs(NamedTuple):
    """The fields of hpa_desc that say what is kept. hpa_torch.cpp reads them in this order."""

    top_k: int = 1024
    window: int = 512
    sink: int = 64
    block_q: int = 128
    block_k: int = 64
    beam: int = 2
    rep_tokens: int = 4
    leaf_tokens: int = 8
    query_stride: int = 1
    search_span: int = 1
    causal: bool = True
    share_heads: bool = False

    def numbers(self):
        return [int(value) for value in self]


def choose(q, k, knobs=Knobs(), scale=0.0):
    """The mask: a tensor of bytes. It has no gradient; selection is piecewise constant."""
    return torch.ops.hpa.mask(q.detach(), k.detach(), knobs.numbers(), scale)


def attention(q, k, v, knobs=Knobs(), mask=None, scale=0.0, return_lse=False):
    """Attention of q [B, Hq, Tq, D] over k and v [B, Hkv, Tk, D]; scale 0 is 1 / sqrt(D)."""
    if mask is None:
        mask = choose(q, k, knobs, scale)
    out, lse = torch.ops.hpa.forward(mask, q, k, v, knobs.numbers(), scale)
    return (out, lse) if return_lse else out


# Shapes, for tracing. A mask's size follows from a plan, so lengths become constants of the trace.


@torch.library.register_fake("hpa::mask")
def _(q, k, knobs, scale):
    size = torch.ops.hpa.mask_bytes([int(n) for n in q.shape], [int(n) for n in k.shape], q.dtype,
                                    q.device, knobs, scale)
    return q.new_empty(size, dtype=torch.uint8)


@torch.library.register_fake("hpa::forward")
def _(mask, q, k, v, knobs, scale):
    lse = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=lse)


@torch.library.register_fake("hpa::backward")
def _(mask, q, k, v, out, lse, d_out, d_lse, knobs, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


# Gradient


def _setup_context(ctx, inputs, output):
    mask, q, k, v, ctx.knobs, ctx.scale = inputs
    ctx.save_for_backward(mask, q, k, v, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, d_out, d_lse):
    mask, q, k, v, out, lse = ctx.saved_tensors
    if d_out is None and d_lse is None:
        return (None,) * 6
    if d_out is None:
        d_out = torch.zeros_like(out)
    gradients = torch.ops.hpa.backward(mask, q, k, v, out, lse, d_out, d_lse, ctx.knobs, ctx.scale)
    return (None, *gradients, None, None)


torch.library.register_autograd("hpa::forward", _backward, setup_context=_setup_context)


# Checkpointing


def _policy(ctx, op, *args, **kwargs):
    chosen = op == torch.ops.hpa.mask.default
    return CheckpointPolicy.MUST_SAVE if chosen else CheckpointPolicy.PREFER_RECOMPUTE


# torch.utils.checkpoint.checkpoint(..., use_reentrant=False, context_fn=keep_masks)
keep_masks = partial(create_selective_checkpoint_contexts, _policy)
