"""libhpa in JAX: attention(q, k, v) under jit and grad.

    from hpa_jax import Knobs, attention
    out, lse = attention(q, k, v, Knobs(top_k=2048, window=1024, sink=256))     # q [B, H, T, D]

Importing it compiles hpa_jax.cpp against the libhpa that pkg-config finds, once for each version of the
two, into a folder of the user's cache. HPA_JAX_LIBRARY names one that is compiled already.

Where a mask should serve several calls, choose it first: mask = choose(q, k, knobs), then
attention(q, k, v, knobs, mask=mask).
"""

import ctypes
import hashlib
import os
import shlex
import subprocess
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def _compile():
    here = Path(__file__).parent

    def flags(option):
        asked = subprocess.run(["pkg-config", option, "hpa"], check=True, text=True,
                               stdout=subprocess.PIPE)  # it says on stderr what it misses
        return shlex.split(asked.stdout)

    libraries = flags("--libs")
    folders = [f"-Wl,-rpath,{flag[2:]}" for flag in libraries if flag.startswith("-L")]
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-shared", "-fPIC",
               "-isystem", jax.ffi.include_dir(), *flags("--cflags"), str(here / "hpa_jax.cpp")]
    sources = [(here / name).read_bytes() for name in ("hpa_jax.cpp", "../plans.hpp")]
    version = hashlib.sha256(repr((command, libraries, jax.__version__, sources)).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hpa_jax"
    library = cache / f"{version.hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", unfinished, *libraries, *folders], check=True)
        unfinished.rename(library)
    return library


_library = ctypes.cdll.LoadLibrary(str(os.environ.get("HPA_JAX_LIBRARY") or _compile()))
for _name in ("mask", "forward", "backward"):
    for _platform in ("cpu", "cuda"):
        _handler = getattr(_library, f"hpa_jax_{_name}_{_platform}")
        jax.ffi.register_ffi_target(f"hpa_{_name}", jax.ffi.pycapsule(_handler),
                                    platform="CUDA" if _platform == "cuda" else _platform)


class Knobs(NamedTuple):
    """The fields of hpa_desc that say what is kept. plans.hpp reads them in this order."""

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


def _sizes(q, k, knobs, scale):
    """Bytes of a mask and of scratch, on the platform that JAX compiles for by default."""
    dtypes = {"float64": 1, "float32": 2, "float16": 3, "bfloat16": 4}
    if str(q.dtype) not in dtypes or q.ndim != 4 or k.ndim != 4:
        raise ValueError(f"q is {q.dtype}{list(q.shape)} and k {k.dtype}{list(k.shape)}, expected "
                         "[B, H, T, D] of float64, float32, float16 or bfloat16")
    mask, scratch, reason = ctypes.c_int64(), ctypes.c_int64(), ctypes.create_string_buffer(512)
    failed = _library.hpa_jax_sizes(
        (ctypes.c_int64 * 4)(*q.shape), (ctypes.c_int64 * 4)(*k.shape), dtypes[str(q.dtype)],
        1 if jax.default_backend() == "cpu" else 2, (ctypes.c_int64 * 12)(*map(int, knobs)),
        ctypes.c_double(scale), ctypes.byref(mask), ctypes.byref(scratch), reason,
        ctypes.c_size_t(512))
    if failed:
        raise ValueError(reason.value.decode())
    return mask.value, scratch.value


def _call(name, results, arguments, scratch, knobs, scale):
    """The results; a batched call becomes a loop over the batch."""
    bytes_of_scratch = jax.ShapeDtypeStruct((scratch,), jnp.uint8)
    call = jax.ffi.ffi_call(f"hpa_{name}", (*results, bytes_of_scratch), vmap_method="sequential")
    return call(*arguments, knobs=np.array(knobs, np.int64), scale=np.float64(scale))[:-1]


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def choose(q, k, knobs=Knobs(), scale=0.0):
    """The mask: an array of bytes. It has no gradient; selection is piecewise constant."""
    size, scratch = _sizes(q, k, knobs, scale)
    q, k = jax.lax.stop_gradient((q, k))
    return _call("mask", (jax.ShapeDtypeStruct((size,), jnp.uint8),), (q, k), scratch, knobs,
                 scale)[0]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(mask, q, k, v, knobs, scale):
    lse = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
    return _call("forward", (_like(q), jax.ShapeDtypeStruct(q.shape[:3], lse)), (mask, q, k, v),
                 _sizes(q, k, knobs, scale)[1], knobs, scale)


def _attention_forward(mask, q, k, v, knobs, scale):
    out, lse = _attention(mask, q, k, v, knobs, scale)
    return (out, lse), (mask, q, k, v, out, lse)


def _attention_backward(knobs, scale, saved, gradients):
    mask, q, k, v, out, lse = saved
    d_out, d_lse = gradients
    dq, dk, dv = _call("backward", (_like(q), _like(k), _like(v)),
                       (mask, q, k, v, out, lse, d_out, d_lse), _sizes(q, k, knobs, scale)[1],
                       knobs, scale)
    return np.zeros(mask.shape, jax.dtypes.float0), dq, dk, dv


_attention.defvjp(_attention_forward, _attention_backward)


def attention(q, k, v, knobs=Knobs(), mask=None, scale=0.0):
    """out and lse of q [B, Hq, Tq, D] over k and v [B, Hkv, Tk, D]; scale 0 is 1 / sqrt(D)."""
    if mask is None:
        mask = choose(q, k, knobs, scale)
    return _attention(mask, q, k, v, knobs, scale)
