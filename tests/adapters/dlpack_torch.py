"""dlpack_torch.py LIBRARY [DEVICE]: torch's tensors reach libhpa through DLPack, on the CPU and, where there
is one, on a GPU; or on one of them. LIBRARY is dlpack_torch.c, compiled."""

import ctypes
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.dlpack import to_dlpack

library = ctypes.CDLL(sys.argv[1])
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class Exec(ctypes.Structure):
    _fields_ = [("stream", ctypes.c_void_p), ("scratch", ctypes.c_void_p),
                ("scratch_bytes", ctypes.c_size_t)]


def attend(q, k, v, top_k):
    """out and lse; None and the reason where the tensors are refused."""
    out = torch.full(q.shape, torch.nan, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float64 if q.dtype == torch.float64 else torch.float32,
                      device=q.device)
    capsules = [to_dlpack(x) for x in (q, k, v, out, lse)]
    # A managed tensor begins with the tensor.
    given = (ctypes.c_void_p * 5)(*(pointer_of(x, b"dltensor") for x in capsules))
    sizes, reason = (ctypes.c_size_t * 2)(), ctypes.create_string_buffer(160)
    if library.dlpack_torch_sizes(given, top_k, sizes, reason):
        return None, reason.value.decode()
    mask, scratch = (torch.empty(size, dtype=torch.uint8, device=q.device) for size in sizes)
    stream = torch.cuda.current_stream().cuda_stream if q.is_cuda else None
    how = Exec(stream, scratch.data_ptr(), sizes[1])
    if library.dlpack_torch_attend(given, top_k, ctypes.c_void_p(mask.data_ptr()),
                                   ctypes.byref(how), reason):
        return None, reason.value.decode()
    return out, lse


def dense(q, k, v):
    return scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)


def test(device):
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 4e-3),
                         (torch.bfloat16, 3e-2)):
        packed = torch.randn(2, 201, 3, 4, 64, device=device).to(dtype)
        q, k, v = packed[:, 1:].permute(2, 0, 3, 1, 4)  # views, the first row left out
        out, lse = attend(q, k, v, 200)
        assert out is not None, lse
        torch.testing.assert_close(out.double(), dense(q, k, v), rtol=error, atol=error)
        few, fewer = attend(q, k, v, 0)
        assert few is not None and (fewer <= lse + error).all()
    out, reason = attend(q, k.to(torch.int16), v, 200)
    assert out is None and "dtype" in reason, reason
    out, reason = attend(q, k.unsqueeze(0), v, 200)
    assert out is None and "ndim is 5" in reason, reason
    if device == "cuda":
        out, reason = attend(q, k.cpu(), v, 200)
        assert out is None and "device_type" in reason, reason
    print(f"dlpack of torch on {device}: passed")


for name in sys.argv[2:] or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)):
    test(name)
