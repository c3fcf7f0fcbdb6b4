#!/usr/bin/env python3
"""A small GPT on the bytes of a file, dense or pruned, on CPU or GPU.

    train_gpt.py FILE [--attention pruned] [--seq 2048] [--steps 100] [--checkpoint] [--compile]
    train_gpt.py FILE --time 8192,32768,131072        # GPU: milliseconds a step with each attention

--time trains the model for a few steps at each length with libhpa, whose step includes the search, with
FlexAttention over a fixed mask, a window and sinks of as many keys as pruned attention keeps, which is what
it can do without a search, and with dense attention (scaled_dot_product_attention held to the kernels of
cuDNN, then of FlashAttention)."""

import argparse
import statistics
import sys
import time
from functools import partial

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from hpa_torch import Knobs, attention, keep_masks


def dense(options):
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def dense_by(kernel):
    def only(attend, *tensors):
        with sdpa_kernel(kernel):
            return attend(*tensors)

    return lambda options: partial(only, dense(options))


def pruned(options):
    knobs = Knobs(top_k=options.top_k, window=options.window, sink=options.sink)
    return lambda q, k, v: attention(q, k, v, knobs)


def flex(options):
    window = options.window + options.top_k

    def kept(batch, head, query, key):
        return (key <= query) & ((query - key < window) | (key < options.sink))

    # Compiled, as the pairs themselves would not fit in memory.
    mask = torch.compile(create_block_mask)(kept, None, None, options.seq, options.seq,
                                            device=options.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


ATTENTIONS = {"dense": dense, "cudnn": dense_by(SDPBackend.CUDNN_ATTENTION),
              "flash": dense_by(SDPBackend.FLASH_ATTENTION), "flex": flex, "pruned": pruned}
TIMED = ("pruned", "flex", "cudnn", "flash")


def rotate(x):
    """Rotary positions: pairs of dimensions turned by an angle that grows with the position."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Block(nn.Module):
    def __init__(self, options, attend):
        super().__init__()
        self.attend, self.dim = attend, options.dim
        self.heads, self.kv_heads = options.heads, options.kv_heads
        width = options.heads * options.dim
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, (options.heads + 2 * options.kv_heads) * options.dim)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(),
                                 nn.Linear(4 * width, width))

    def forward(self, x):
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (-1, self.dim)).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)  # [B, H, T, D]
        attended = self.attend(rotate(q), rotate(k), v)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, options, attend):
        super().__init__()
        width = options.heads * options.dim
        self.checkpoint = options.checkpoint
        self.embed = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(options, attend) for _ in range(options.layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for block in self.blocks:
            if self.checkpoint:  # recomputation reads the saved masks
                x = checkpoint(block, x, use_reentrant=False, context_fn=keep_masks)
            else:
                x = block(x)
        logits = self.head(self.norm(x)).float()
        return cross_entropy(logits.flatten(0, 1), targets.flatten())


class Trainer:
    def __init__(self, options, name):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        with torch.device(options.device):
            self.model = GPT(options, ATTENTIONS[name](options)).to(dtype)
        self.loss = torch.compile(self.model) if options.compile else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.rate)
        with open(options.file, "rb") as file:
            self.text = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
        if len(self.text) <= options.seq:
            sys.exit(f"{options.file}: expected more than {options.seq} bytes")
        self.options = options

    def batch(self):
        starts = torch.randint(len(self.text) - self.options.seq, (self.options.batch,))
        rows = torch.stack([self.text[n:n + self.options.seq + 1] for n in starts.tolist()])
        rows = rows.to(self.options.device, torch.int64)
        return rows[:, :-1], rows[:, 1:]

    def step(self):
        loss = self.loss(*self.batch())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


def train(options):
    trainer = Trainer(options, options.attention)
    start = time.perf_counter()
    for step in range(1, options.steps + 1):
        loss = trainer.step()
        if step == 1 or step % 10 == 0:
            print(f"step {step}, loss {loss.item():.4f}, {time.perf_counter() - start:.1f} s",
                  flush=True)


def milliseconds(trainer, steps):
    times = []
    for _ in range(steps + 2):  # two warm up
        torch.cuda.synchronize()
        start = time.perf_counter()
        trainer.step()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def compare(options):
    print("| tokens | " + " | ".join(f"{name}, ms a step" for name in TIMED) + " |\n" +
          "|---:" * (1 + len(TIMED)) + "|")
    for options.seq in options.time:
        print(f"| {options.seq:,}", end=" ", flush=True)
        for name in TIMED:
            print(f"| {milliseconds(Trainer(options, name), options.steps):.1f}", end=" ", flush=True)
        print("|", flush=True)


def parse():
    parser = argparse.ArgumentParser(description="A small GPT, dense or pruned")
    parser.add_argument("file")
    parser.add_argument("--attention", choices=ATTENTIONS, default="pruned")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in dict(seq=2048, steps=100, batch=1, layers=2, heads=4, kv_heads=2, dim=32,
                            top_k=256, window=128, sink=64).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--time", type=lambda text: [int(n) for n in text.split(",")])
    return parser.parse_args()


if __name__ == "__main__":
    chosen = parse()
    torch.set_float32_matmul_precision("high")
    compare(chosen) if chosen.time else train(chosen)
