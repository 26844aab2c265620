"""Conversion between arrays of ONNX types and torch tensors.

Types that torch lacks are stored in a wider one: 4- and 2-bit integers in int8 and uint8, 4-bit floats in float32.
Strings stay numpy arrays of objects.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from onnxpress.errors import InputProblem

Tensor = Any  # a torch.Tensor; inside graphs also None (absent), a list (sequence) or a numpy array (strings)

TORCH: dict[ir.DataType, Any] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT4E2M1: torch.float32,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT4: torch.int8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
}
ONNX = {
    t: o for o, t in reversed(TORCH.items())
}  # the types themselves take precedence over those stored in a wider one

# numpy types (of ml_dtypes) that torch reads by their bits: bits, torch type.
_BITS: dict[np.dtype[Any], tuple[Any, Any]] = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
}
_FROM_BITS = {t: (bits, dtype) for dtype, (bits, t) in _BITS.items()}
_HELD: dict[np.dtype[Any], Any] = {
    np.dtype(name): wide
    for names, wide in (
        (("int4", "int2"), np.int8),
        (("uint4", "uint2"), np.uint8),
        (("float4_e2m1fn", "float8_e8m0fnu"), np.float32),
    )
    for name in (getattr(ml_dtypes, n) for n in names)
}


def to_torch(array: Any) -> Tensor:
    """A tensor with a copy of the array's values; strings pass through, sequences are converted element by element."""
    if array is None or isinstance(array, list):
        return array if array is None else [to_torch(a) for a in array]
    array = np.asarray(array)
    if array.dtype.kind in "OUS":
        return array
    if array.dtype in _HELD:
        array = array.astype(_HELD[array.dtype])
    if array.dtype in _BITS:
        bits, dtype = _BITS[array.dtype]
        return torch.from_numpy(np.array(array, order="C").view(bits).copy()).view(dtype)
    return torch.from_numpy(np.array(array, order="C", dtype=array.dtype.newbyteorder("=")))


def to_numpy(tensor: Tensor) -> Any:
    """The values of a tensor as an array of the corresponding numpy type."""
    if tensor is None or isinstance(tensor, (list, np.ndarray)):
        return [to_numpy(t) for t in tensor] if isinstance(tensor, list) else tensor
    tensor = tensor.detach().cpu()
    if tensor.dtype in _FROM_BITS:
        bits, dtype = _FROM_BITS[tensor.dtype]
        view = torch.int16 if bits is np.int16 else torch.uint8
        return tensor.contiguous().view(view).numpy().view(dtype)
    return tensor.numpy()


def torch_type(data_type: int) -> Any:
    """The torch type for an ONNX element type.  Raises InputProblem for types without one."""
    kind = ir.DataType(data_type)
    if kind not in TORCH:
        raise InputProblem("cannot train with an element type", kind.name.lower(), "torch has no numbers of that type")
    return TORCH[kind]
