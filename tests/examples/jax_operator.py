"""jax_operator.py EXAMPLE: the operator of examples/jax on JAX's default device. Skipped (77) without
JAX. HPA_JAX_LIBRARY or pkg-config says which libhpa."""

import importlib.util
import re
import subprocess
import sys

if importlib.util.find_spec("jax") is None:
    print(f"skipped: {sys.executable} has no jax")
    sys.exit(77)

import jax

if not hasattr(jax, "ffi"):
    print(f"skipped: jax {jax.__version__} has no jax.ffi")
    sys.exit(77)

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

sys.path.insert(0, sys.argv[1])
from hpa_jax import Knobs, attention, choose  # noqa: E402

SMALL = Knobs(top_k=16, window=16, sink=16, block_q=16, block_k=16)


def arrays(tokens=70, heads=4, kv_heads=2, dim=8, dtype=jnp.float64, batch=1):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (batch, n, tokens, dim), dtype)
            for key, n in zip(keys, (heads, kv_heads, kv_heads))]


def dense(q, k, v):
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = jnp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[2:], bool)), scores, -jnp.inf)
    return jax.nn.softmax(scores) @ v, jax.nn.logsumexp(scores, -1)


def weighted(function):
    """A scalar of both results in which no two elements count alike."""
    def loss(*inputs):
        return sum((jnp.sin(jnp.arange(x.size)) * x.ravel()).sum() for x in function(*inputs))
    return loss


def dense_when_all_is_kept():
    inputs = arrays()
    everything = Knobs(top_k=70)
    for got, expected in zip(attention(*inputs, everything), dense(*inputs)):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
    gradients = jax.grad(weighted(lambda *x: attention(*x, everything)), (0, 1, 2))(*inputs)
    for got, expected in zip(gradients, jax.grad(weighted(dense), (0, 1, 2))(*inputs)):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


def numeric_gradients():
    q, k, v = arrays(tokens=40, heads=2, kv_heads=1)
    mask = choose(q, k, SMALL)
    check_grads(lambda *x: attention(*x, SMALL, mask=mask), (q, k, v), order=1, modes=["rev"])


def compiled_and_batched():
    inputs = arrays(batch=3)
    loss = weighted(lambda *x: attention(*x, SMALL))
    eager = jax.grad(loss, (0, 1, 2))(*inputs)
    compiled = jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)
    for a, b in zip(eager, compiled):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    one_by_one = jax.vmap(lambda *x: attention(*(y[None] for y in x), SMALL)[0][0])(*inputs)
    np.testing.assert_array_equal(one_by_one, attention(*inputs, SMALL)[0])


def sixteen_bits():
    inputs = arrays(tokens=256, dim=16, dtype=jnp.bfloat16)
    out, lse = attention(*inputs, Knobs(top_k=256))
    if out.dtype != jnp.bfloat16 or lse.dtype != jnp.float32:
        sys.exit("expected bfloat16 and float32")
    expected, _ = dense(*(x.astype(jnp.float64) for x in inputs))
    np.testing.assert_allclose(out.astype(jnp.float64), expected, rtol=0.03, atol=0.03)


def refusals():
    q, k, v = arrays()
    for call, words in ((lambda: attention(q, k, v, Knobs(block_k=48)), "block_k is 48"),
                        (lambda: attention(q[0], k, v), "expected [B, H, T, D]"),
                        (lambda: attention(q, k, v[:, :, :, :4], SMALL), "in.v"),
                        (lambda: attention(q, k, v, SMALL, mask=jnp.zeros(8, jnp.uint8)),
                         "mask has 8 bytes")):
        try:
            jax.block_until_ready(call())
        except (ValueError, RuntimeError) as error:
            if words not in str(error):
                sys.exit(f"expected '{words}' in '{error}'")
        else:
            sys.exit(f"expected an error about {words}")


def training():
    done = subprocess.run([sys.executable, f"{sys.argv[1]}/train.py", f"{sys.argv[1]}/train.py",
                           "20"], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", done.stdout)]
    if done.returncode or len(losses) != 3 or not losses[-1] < losses[0] - 1:
        sys.exit("expected the loss to go down")


for test in (dense_when_all_is_kept, numeric_gradients, compiled_and_batched, sixteen_bits,
             refusals, training):
    test()
    print(f"{test.__name__} on {jax.default_backend()}: passed", flush=True)
