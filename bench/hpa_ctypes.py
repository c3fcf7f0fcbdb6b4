"""<hpa/hpa.h> for ctypes: the structures, field by field, and the calls made by compare_torch.py.

Needs no package. `python3 hpa_ctypes.py` prints the size of every structure and the offset of every
field, for comparison with what a C compiler says.
"""

import ctypes
from ctypes import (POINTER, Structure, byref, c_bool, c_char_p, c_double, c_int, c_int32, c_int64,
                    c_size_t, c_uint64, c_void_p)

OK = 0
CPU, CUDA = 1, 2
F64, F32, F16, BF16 = 1, 2, 3, 4


class Tensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("ndim", c_int32),
        ("shape", c_int64 * 4),
        ("stride", c_int64 * 4),
    ]


class Desc(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("device", c_int),
        ("device_id", c_int32),
        ("num_threads", c_int32),
        ("dtype", c_int),
        ("batch", c_int64),
        ("heads_q", c_int64),
        ("heads_kv", c_int64),
        ("head_dim", c_int64),
        ("seq_q", c_int64),
        ("seq_kv", c_int64),
        ("packed", c_bool),
        ("total_q", c_int64),
        ("total_kv", c_int64),
        ("causal", c_bool),
        ("scale", c_double),
        ("block_q", c_int32),
        ("block_k", c_int32),
        ("top_k", c_int32),
        ("sink", c_int32),
        ("window", c_int32),
        ("beam", c_int32),
        ("rep_tokens", c_int32),
        ("leaf_tokens", c_int32),
        ("query_stride", c_int32),
        ("search_span", c_int32),
        ("share_heads", c_bool),
        ("training", c_bool),
        ("allow_nondeterministic", c_bool),
        ("reference", c_bool),
    ]


class Sizes(Structure):
    _fields_ = [
        ("mask", c_size_t),
        ("mask_scratch", c_size_t),
        ("forward_scratch", c_size_t),
        ("backward_scratch", c_size_t),
    ]


class Exec(Structure):
    _fields_ = [("stream", c_void_p), ("scratch", c_void_p), ("scratch_bytes", c_size_t)]


class Inputs(Structure):
    _fields_ = [
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("cu_seqlens_q", c_void_p),
        ("cu_seqlens_kv", c_void_p),
    ]


class Outputs(Structure):
    _fields_ = [("out", Tensor), ("lse", Tensor)]


class Gradients(Structure):
    _fields_ = [
        ("d_out", Tensor),
        ("d_lse", Tensor),
        ("dq", Tensor),
        ("dk", Tensor),
        ("dv", Tensor),
        ("accumulate", c_bool),
    ]


class MaskStats(Structure):
    _fields_ = [
        ("rows", c_int64),
        ("blocks", c_int64),
        ("empty_rows", c_int64),
        ("row_min", c_int64),
        ("row_max", c_int64),
        ("column_max", c_int64),
        ("density", c_double),
        ("fingerprint", c_uint64),
    ]


STRUCTURES = {
    "hpa_tensor": Tensor,
    "hpa_desc": Desc,
    "hpa_sizes": Sizes,
    "hpa_exec": Exec,
    "hpa_inputs": Inputs,
    "hpa_outputs": Outputs,
    "hpa_gradients": Gradients,
    "hpa_mask_stats": MaskStats,
}

_FUNCTIONS = {
    "hpa_last_error": (c_char_p, []),
    "hpa_status_name": (c_char_p, [c_int]),
    "hpa_build_info": (c_char_p, []),
    "hpa_desc_default": (Desc, []),
    "hpa_plan_create": (c_int, [POINTER(c_void_p), POINTER(Desc)]),
    "hpa_plan_destroy": (None, [c_void_p]),
    "hpa_plan_sizes": (c_int, [c_void_p, POINTER(Sizes)]),
    "hpa_plan_describe": (c_char_p, [c_void_p]),
    "hpa_mask_build": (c_int, [c_void_p, POINTER(Inputs), c_void_p, POINTER(Exec)]),
    "hpa_forward": (c_int, [c_void_p, c_void_p, POINTER(Inputs), POINTER(Outputs), POINTER(Exec)]),
    "hpa_backward": (c_int, [c_void_p, c_void_p, POINTER(Inputs), POINTER(Outputs),
                             POINTER(Gradients), POINTER(Exec)]),
    "hpa_mask_statistics": (c_int, [c_void_p, c_void_p, POINTER(MaskStats), POINTER(Exec)]),
    "hpa_mask_export_csr": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_int64),
                                    POINTER(Exec)]),
}


class Failure(RuntimeError):
    """A call of the library returned something else than HPA_OK."""


class Library:
    """libhpa.so. Calls that return a status raise Failure instead, in the library's own words."""

    def __init__(self, path):
        self._dll = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._dll, name)
            function.restype, function.argtypes = result, arguments
        if self._dll.hpa_desc_default().struct_size != ctypes.sizeof(Desc):
            raise Failure(f"{path} has another hpa_desc than hpa_ctypes.py")

    def build_info(self):
        return self._dll.hpa_build_info().decode()

    def desc(self, **fields):
        desc = self._dll.hpa_desc_default()
        for name, value in fields.items():
            if name not in dict(Desc._fields_):
                raise AttributeError(f"hpa_desc has no {name}")
            setattr(desc, name, value)
        return desc

    def call(self, name, *arguments):
        status = getattr(self._dll, name)(*arguments)
        if status != OK:
            raise Failure(f"{name}: {self._dll.hpa_status_name(status).decode()}: "
                          f"{self._dll.hpa_last_error().decode()}")


class Plan:
    """An hpa_plan and what its size query says. Structures are passed by reference."""

    def __init__(self, library, desc):
        self._library = library
        self.desc = desc
        self.handle = c_void_p()
        library.call("hpa_plan_create", byref(self.handle), byref(desc))
        self.sizes = Sizes()
        library.call("hpa_plan_sizes", self.handle, byref(self.sizes))

    def __del__(self):
        if self.handle:
            self._library._dll.hpa_plan_destroy(self.handle)
            self.handle = None

    def describe(self):
        return self._library._dll.hpa_plan_describe(self.handle).decode()

    def scratch_bytes(self):
        return max(self.sizes.mask_scratch, self.sizes.forward_scratch, self.sizes.backward_scratch)

    def build(self, inputs, mask, execution):
        self._library.call("hpa_mask_build", self.handle, byref(inputs), mask, byref(execution))

    def forward(self, mask, inputs, outputs, execution):
        self._library.call("hpa_forward", self.handle, mask, byref(inputs), byref(outputs),
                           byref(execution))

    def backward(self, mask, inputs, outputs, gradients, execution):
        self._library.call("hpa_backward", self.handle, mask, byref(inputs), byref(outputs),
                           byref(gradients), byref(execution))

    def statistics(self, mask, execution):
        stats = MaskStats()
        self._library.call("hpa_mask_statistics", self.handle, mask, byref(stats), byref(execution))
        return stats

    def export_csr(self, mask, row_ptr, blocks, capacity, execution):
        """row_ptr, blocks: addresses of host memory."""
        count = c_int64(capacity)
        self._library.call("hpa_mask_export_csr", self.handle, mask, row_ptr, blocks, byref(count),
                           byref(execution))
        return count.value


def layout():
    """Lines 'structure size' and 'structure.field offset size', for every structure."""
    for name, structure in STRUCTURES.items():
        yield f"{name} {ctypes.sizeof(structure)}"
        for field, _ in structure._fields_:
            member = getattr(structure, field)
            yield f"{name}.{field} {member.offset} {member.size}"


if __name__ == "__main__":
    print("\n".join(layout()))
