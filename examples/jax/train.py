#!/usr/bin/env python3
"""A transformer of one block on the bytes of a file, its training step compiled whole.

    train.py FILE [STEPS]
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hpa_jax import Knobs, attention

T, HEADS, KV_HEADS, DIM = 512, 4, 2, 16
WIDTH = HEADS * DIM
KNOBS = Knobs(top_k=64, window=64, sink=16)


def parameters(key):
    shapes = dict(embed=(256, WIDTH), position=(T, WIDTH), q=(WIDTH, WIDTH),
                  k=(WIDTH, KV_HEADS * DIM), v=(WIDTH, KV_HEADS * DIM), out=(WIDTH, WIDTH),
                  up=(WIDTH, 4 * WIDTH), down=(4 * WIDTH, WIDTH), head=(WIDTH, 256))
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(key, shape) * shape[0] ** -0.5
            for key, (name, shape) in zip(keys, shapes.items())}


def norm(x):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def heads(x):
    """[B, T, H * D] -> [B, H, T, D]"""
    return x.reshape(*x.shape[:2], -1, DIM).transpose(0, 2, 1, 3)


def loss(p, tokens, targets):
    x = p["embed"][tokens] + p["position"]
    h = norm(x)
    out, _ = attention(heads(h @ p["q"]), heads(h @ p["k"]), heads(h @ p["v"]), KNOBS)
    x = x + out.transpose(0, 2, 1, 3).reshape(x.shape) @ p["out"]
    x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
    log_p = jax.nn.log_softmax(norm(x) @ p["head"])
    return -jnp.take_along_axis(log_p, targets[..., None], -1).mean()


@partial(jax.jit, donate_argnums=(0, 1))
def step(p, momentum, tokens, targets):
    """Gradient descent with momentum, mask, forward and backward of attention included."""
    value, gradients = jax.value_and_grad(loss)(p, tokens, targets)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
    return jax.tree.map(lambda w, m: w - 0.05 * m, p, momentum), momentum, value


def main():
    text = np.frombuffer(Path(sys.argv[1]).read_bytes(), np.uint8).astype(np.int32)
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    if len(text) <= T + 1:
        sys.exit(f"{sys.argv[1]}: expected more than {T + 1} bytes")
    random = np.random.default_rng(0)
    p = parameters(jax.random.key(0))
    momentum = jax.tree.map(jnp.zeros_like, p)
    for n in range(1, steps + 1):
        starts = random.integers(len(text) - T - 1, size=2)
        rows = np.stack([text[start:start + T + 1] for start in starts])
        p, momentum, value = step(p, momentum, rows[:, :-1], rows[:, 1:])
        if n == 1 or n % 10 == 0:
            print(f"step {n}, loss {value:.4f}", flush=True)


if __name__ == "__main__":
    main()
