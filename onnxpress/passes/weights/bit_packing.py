"""Storage of low-bit weights: plain integers and standard operators that onnxruntime folds when it loads the file.

onnxruntime folds Cast, Gather, Reshape, Add and Mul of constants, but not DequantizeLinear, which then runs at every
call, except in front of a MatMul that becomes MatMulNBits (tests/passes/weights/test_bit_packing.py checks this on
dumps of optimized graphs). Codes of fewer than 8 bits are packed into bytes, and a table of 256 rows maps each byte to
its codes or centroids. All operators exist in operator set 7, so no model has to be converted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.passes.core.weight_matrix import WeightMatrix
from onnxpress.passes.weights.codebook import Codebook, to_float16

_NODE_BYTES = 70  # bytes of a node and its names in the file
_MIN_FLOAT16 = 64  # values from which float16 and a Cast take less than float32
INT8 = np.arange(-127, 128, dtype=np.float64)


def code_width(count: int, size: int) -> int:
    """Bits per stored code.

    Args:
        count: number of different codes.
        size: number of codes; if they do not fill whole bytes, 8 bits are used.

    Returns:
        2, 3, 4 or 8.
    """
    wanted = next(bits for bits in (2, 3, 4, 8) if count <= 2**bits)
    return next(bits for bits in (2, 3, 4, 8) if bits >= wanted and size % _codes_per_group(bits) == 0)


def _codes_per_group(bits: int) -> int:
    """Number of codes that fill whole bytes."""
    return 8 if bits == 3 else 8 // bits


def packed_bytes(weight: WeightMatrix, codebook: Codebook, groups: int = 1) -> int:
    """Bytes of a weight in the file in the stored form, nodes and names included.

    Args:
        weight: the weight.
        codebook: its low-bit form.
        groups: number of row groups, each with its part of the centroids.
    """
    bits = code_width(len(codebook.centroids) // groups, weight.array.size)
    is_int8 = _is_int8(codebook)
    nodes = 2 if is_int8 else {8: 3, 4: 5, 3: 9, 2: 5}[bits]
    values = 0 if is_int8 else len(codebook.centroids)
    scale_values = 0 if (codebook.scale == 1).all() else codebook.scale.size
    offsets = 4 * len(codebook.codes) + _NODE_BYTES if groups > 1 else 0
    return (
        weight.array.size * bits // 8
        + _constant_bytes(values)
        + _constant_bytes(scale_values)
        + offsets
        + nodes * _NODE_BYTES
    )


def _constant_bytes(values: int) -> int:
    """Bytes of so many float values as written by `_store_floats`."""
    return 2 * values + _NODE_BYTES if values >= _MIN_FLOAT16 else 4 * values


def _is_int8(codebook: Codebook) -> bool:
    """Whether the centroids are the integers from -127 to 127."""
    return len(codebook.centroids) == len(INT8) and bool((codebook.centroids == INT8).all())


@dataclass
class BitPacker:
    """Writes codebooks into one model and shares the constants and tables they have in common."""

    work: ir.Model
    written: dict[object, ir.Value] = field(default_factory=dict)
    count: int = 0
    first_node: ir.Node | None = None  # the first node of the original model; new nodes are inserted before it
    storage: Callable[[np.ndarray, str], ir.TensorProtocol] | None = (
        None  # stores an array under a name; None: in memory
    )

    def write(self, weight: WeightMatrix, codebook: Codebook, groups: int = 1) -> None:
        """Replace a weight by its low-bit form.

        Args:
            weight: the weight to replace.
            codebook: its low-bit form.
            groups: number of groups of equally many rows, each with an equal part of the centroids; codes count within
                that part.
        """
        self.count += 1
        stem = f"w{self.count}"
        codes = weight.from_matrix(codebook.codes)
        if _is_int8(codebook):
            result = self._op("Cast", [self._constant(codes_of_int8(codes))], stem, to=ir.DataType.FLOAT.value)
        else:
            result = self._gather_centroids(weight, codebook, codes, groups, stem)
        if not (codebook.scale == 1).all():
            result = self._multiply_scale(weight, codebook.scale, result, stem)
        edit.reroute(self.work, self.work.graph.initializers[weight.name], result)

    def store_as_float16(self, value: ir.Value) -> None:
        """Store a float32 constant as float16 where that represents it and takes fewer bytes."""
        array = read.constant(value)
        if array is not None and array.size >= _MIN_FLOAT16 and to_float16(array) is not None:
            edit.reroute(self.work, value, self._store_floats(array))

    def _multiply_scale(self, weight: WeightMatrix, scale: np.ndarray, result: ir.Value, stem: str) -> ir.Value:
        """Multiply a value by the scale of its rows or blocks."""
        if scale.shape[1] == 1:
            return self._op("Mul", [result, self._store_floats(weight.broadcast_rows(scale[:, 0]))], stem)
        rows, shape = len(scale), weight.array.shape
        if weight.row_axes[0] == 0:  # rows first: [M, S, K / S]
            split, factor = [rows, scale.shape[1], -1], scale[:, :, None]
        else:  # columns first, as in MatMul: [S, K / S, M]
            split, factor = [scale.shape[1], -1, rows], scale.T[:, None, :]
        parts = self._op("Reshape", [result, self._constant(np.array(split, np.int64))], stem)
        return self._reshape(self._op("Mul", [parts, self._store_floats(factor)], stem), shape, stem)

    def _gather_centroids(
        self, weight: WeightMatrix, codebook: Codebook, codes: np.ndarray, groups: int, stem: str
    ) -> ir.Value:
        """The centroids of the codes, in the layout of the weight."""
        bits = code_width(len(codebook.centroids) // groups, codes.size)
        shape = codes.shape
        if bits in (2, 4) and groups == 1:
            table = self._centroid_table(codebook.centroids, bits)
            return self._reshape(self._op("Gather", [table, self._as_int32(_pack(codes, bits))], stem), shape, stem)
        index = self._unpack(codes, bits, stem)
        if groups > 1:
            first = np.arange(groups).repeat(len(codebook.codes) // groups) * (len(codebook.centroids) // groups)
            offset = self._constant(weight.broadcast_rows(first).astype(np.int32))
            index = self._op("Add", [index, offset], stem)
        return self._op("Gather", [self._store_floats(codebook.centroids), index], stem)

    def _unpack(self, codes: np.ndarray, bits: int, stem: str) -> ir.Value:
        """The codes as int32."""
        if bits == 8:
            return self._as_int32(codes)
        # Three bits are stored as two and one, which fill whole bytes.
        parts = [(codes >> 1, 2, 2), (codes & 1, 1, 1)] if bits == 3 else [(codes, bits, 1)]
        result = [
            self._reshape(
                self._op("Gather", [self._code_table(b, factor), self._as_int32(_pack(c, b))], stem), codes.shape, stem
            )
            for c, b, factor in parts
        ]
        return result[0] if len(result) == 1 else self._op("Add", result, stem)

    def _code_table(self, bits: int, factor: int) -> ir.Value:
        """Table [256, codes per byte] of the codes in each byte, times a factor, int32."""
        key = ("codes", bits, factor)
        if key not in self.written:
            codes_of_byte = (np.arange(256)[:, None] >> (bits * np.arange(8 // bits))) & (2**bits - 1)
            self.written[key] = self._as_int32((codes_of_byte * factor).astype(np.uint8))
        return self.written[key]

    def _centroid_table(self, centroids: np.ndarray, bits: int) -> ir.Value:
        """Table [256, codes per byte] of the centroids in each byte."""
        # a byte may hold any code, whether a weight uses it or not
        centroids = np.pad(centroids, (0, max(2**bits - len(centroids), 0)), mode="edge")
        key = ("centroids", bits, centroids.tobytes())
        if key not in self.written:
            self.written[key] = self._op("Gather", [self._store_floats(centroids), self._code_table(bits, 1)], "table")
        return self.written[key]

    def _as_int32(self, codes: np.ndarray) -> ir.Value:
        return self._op("Cast", [self._constant(codes.astype(np.uint8))], "index", to=ir.DataType.INT32.value)

    def _reshape(self, value: ir.Value, shape: tuple[int, ...], stem: str) -> ir.Value:
        return self._op("Reshape", [value, self._constant(np.array(shape, np.int64))], stem)

    def _store_floats(self, values: np.ndarray) -> ir.Value:
        """Float32 values, stored as float16 where that represents them and takes fewer bytes."""
        half = to_float16(values) if values.size >= _MIN_FLOAT16 else None
        if half is None:
            return self._constant(values.astype(np.float32))
        return self._op("Cast", [self._constant(half)], "wide", to=ir.DataType.FLOAT.value)

    def _constant(self, array: np.ndarray) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 512 else None
        if key is None or key not in self.written:
            result = edit.add_constant(self.work, array, "packed")
            if key is None:
                if self.storage is not None:
                    result.const_value = self.storage(array, result.name or "")
                return result
            self.written[key] = result
        return self.written[key]

    def _op(self, kind: str, inputs: list[ir.Value], stem: str, **attributes: int) -> ir.Value:
        self.first_node = self.first_node or next(iter(self.work.graph))
        return edit.insert_before(self.work, self.first_node, kind, inputs, stem, attributes)


def codes_of_int8(codes: np.ndarray) -> np.ndarray:
    """Indices into `INT8` (0 for -127) as the integers themselves, int8."""
    return np.asarray((codes.astype(np.uint8) - np.uint8(127)).view(np.int8))


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of `bits` bits as bytes, [n], the first code in the lowest bits."""
    parts = codes.reshape(-1, 8 // bits).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(parts << (bits * np.arange(8 // bits, dtype=np.uint8)), axis=1), np.uint8)
