"""How weights of a few bits are written: as plain integers and standard operators that onnxruntime folds when it loads the file.

What is folded was looked up in dumps of optimized graphs (tests/passes/weights/test_bit_packing.py does so again): Cast, Gather, Reshape,
Add and Mul of constants are, a DequantizeLinear is not (it then runs at every call, save in front of a MatMul that becomes
MatMulNBits).  Fewer than 8 bits are packed into bytes; a table of 256 rows says what a byte holds.  Nothing here asks for
more than operator set 7, so no model has to be converted for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.passes.core.weight_matrix import Stored
from onnxpress.passes.weights.codebook import Book, as_half

_NODE = 70  # bytes a node and its names take in the file
_HALF_FROM = 64  # numbers from which float16 and a Cast are smaller than float32
INT8 = np.arange(-127, 128, dtype=np.float64)


def width(count: int, size: int) -> int:
    """Bits a code of `count` values takes when `size` of them are packed: 8 where fewer do not fill whole bytes."""
    wanted = next(bits for bits in (2, 3, 4, 8) if count <= 2**bits)
    return next(bits for bits in (2, 3, 4, 8) if bits >= wanted and size % _together(bits) == 0)


def _together(bits: int) -> int:
    """Codes that fill whole bytes."""
    return 8 if bits == 3 else 8 // bits


def bytes_of(weight: Stored, book: Book, groups: int = 1) -> int:
    """What a weight takes in the file as it is written here, nodes and names included."""
    bits = width(len(book.centres) // groups, weight.array.size)
    straight = _is_int8(book)
    nodes = 2 if straight else {8: 3, 4: 5, 3: 9, 2: 5}[bits]
    numbers = 0 if straight else len(book.centres)
    scales = 0 if (book.scale == 1).all() else book.scale.size
    offsets = 4 * len(book.codes) + _NODE if groups > 1 else 0
    return weight.array.size * bits // 8 + _few(numbers) + _few(scales) + offsets + nodes * _NODE


def _few(numbers: int) -> int:
    return 2 * numbers + _NODE if numbers >= _HALF_FROM else 4 * numbers


def _is_int8(book: Book) -> bool:
    return len(book.centres) == len(INT8) and bool((book.centres == INT8).all())


@dataclass
class Packer:
    """Writes books into one model; what several of them need is written once."""

    work: ir.Model
    known: dict[object, ir.Value] = field(default_factory=dict)
    count: int = 0
    anchor: ir.Node | None = None  # the model's first own node: what is written stands before it
    hold: Callable[[np.ndarray, str], ir.TensorProtocol] | None = None  # where numbers are kept; None: in memory

    def put(self, weight: Stored, book: Book, groups: int = 1) -> None:
        """A book in the place of a weight.  groups: of equally many rows, each with an equal part of the centres (its codes
        count within that part)."""
        self.count += 1
        stem = f"w{self.count}"
        codes = weight.restored(book.codes)
        if _is_int8(book):
            made = self._op("Cast", [self._constant(codes_of_int8(codes))], stem, to=ir.DataType.FLOAT.value)
        else:
            made = self._looked_up(weight, book, codes, groups, stem)
        if not (book.scale == 1).all():
            made = self._scaled(weight, book.scale, made, stem)
        edit.reroute(self.work, self.work.graph.initializers[weight.name], made)

    def shorten(self, value: ir.Value) -> None:
        """Float32 numbers that float16 holds, as such."""
        array = read.constant(value)
        if array is not None and array.size >= _HALF_FROM and as_half(array) is not None:
            edit.reroute(self.work, value, self._floats(array))

    def _scaled(self, weight: Stored, scale: np.ndarray, made: ir.Value, stem: str) -> ir.Value:
        if scale.shape[1] == 1:
            return self._op("Mul", [made, self._floats(weight.spread(scale[:, 0]))], stem)
        rows, shape = len(scale), weight.array.shape
        if weight.lead[0] == 0:  # rows first: [M, S, K / S]
            split, factor = [rows, scale.shape[1], -1], scale[:, :, None]
        else:  # columns first, as in MatMul: [S, K / S, M]
            split, factor = [scale.shape[1], -1, rows], scale.T[:, None, :]
        parts = self._op("Reshape", [made, self._constant(np.array(split, np.int64))], stem)
        return self._shaped(self._op("Mul", [parts, self._floats(factor)], stem), shape, stem)

    def _looked_up(self, weight: Stored, book: Book, codes: np.ndarray, groups: int, stem: str) -> ir.Value:
        """The centres that the codes name, in the weight's layout."""
        bits = width(len(book.centres) // groups, codes.size)
        shape = codes.shape
        if bits in (2, 4) and groups == 1:
            table = self._table_of(book.centres, bits)
            return self._shaped(self._op("Gather", [table, self._index(_packed(codes, bits))], stem), shape, stem)
        index = self._unpacked(codes, bits, stem)
        if groups > 1:
            first = np.arange(groups).repeat(len(book.codes) // groups) * (len(book.centres) // groups)
            offset = self._constant(weight.spread(first).astype(np.int32))
            index = self._op("Add", [index, offset], stem)
        return self._op("Gather", [self._floats(book.centres), index], stem)

    def _unpacked(self, codes: np.ndarray, bits: int, stem: str) -> ir.Value:
        """The codes themselves, as int32."""
        if bits == 8:
            return self._index(codes)
        # Three bits as two and one, since only these fill bytes.
        parts = [(codes >> 1, 2, 2), (codes & 1, 1, 1)] if bits == 3 else [(codes, bits, 1)]
        made = [
            self._shaped(
                self._op("Gather", [self._table(b, factor), self._index(_packed(c, b))], stem), codes.shape, stem
            )
            for c, b, factor in parts
        ]
        return made[0] if len(made) == 1 else self._op("Add", made, stem)

    def _table(self, bits: int, factor: int) -> ir.Value:
        """[256, codes in a byte]: the codes that each byte holds, times a factor, int32."""
        key = ("codes", bits, factor)
        if key not in self.known:
            held = (np.arange(256)[:, None] >> (bits * np.arange(8 // bits))) & (2**bits - 1)
            self.known[key] = self._index((held * factor).astype(np.uint8))
        return self.known[key]

    def _table_of(self, centres: np.ndarray, bits: int) -> ir.Value:
        """[256, codes in a byte]: the centres that each byte holds."""
        key = ("centroids", bits, centres.tobytes())
        if key not in self.known:
            self.known[key] = self._op("Gather", [self._floats(centres), self._table(bits, 1)], "table")
        return self.known[key]

    def _index(self, codes: np.ndarray) -> ir.Value:
        return self._op("Cast", [self._constant(codes.astype(np.uint8))], "index", to=ir.DataType.INT32.value)

    def _shaped(self, value: ir.Value, shape: tuple[int, ...], stem: str) -> ir.Value:
        return self._op("Reshape", [value, self._constant(np.array(shape, np.int64))], stem)

    def _floats(self, numbers: np.ndarray) -> ir.Value:
        """Float32 numbers, kept as float16 where that holds them and is smaller."""
        short = as_half(numbers) if numbers.size >= _HALF_FROM else None
        if short is None:
            return self._constant(numbers.astype(np.float32))
        return self._op("Cast", [self._constant(short)], "wide", to=ir.DataType.FLOAT.value)

    def _constant(self, array: np.ndarray) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 512 else None
        if key is None or key not in self.known:
            made = edit.add_constant(self.work, array, "packed")
            if key is None:
                if self.hold is not None:
                    made.const_value = self.hold(array, made.name or "")
                return made
            self.known[key] = made
        return self.known[key]

    def _op(self, kind: str, inputs: list[ir.Value], stem: str, **attributes: int) -> ir.Value:
        self.anchor = self.anchor or next(iter(self.work.graph))
        return edit.insert_before(self.work, self.anchor, kind, inputs, stem, attributes)


def codes_of_int8(codes: np.ndarray) -> np.ndarray:
    """Indices of `INT8` (0 for -127) as the integers themselves."""
    return np.asarray((codes.astype(np.uint8) - np.uint8(127)).view(np.int8))


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [any] of so many bits as bytes [n], the first code in the lowest bits."""
    parts = codes.reshape(-1, 8 // bits).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(parts << (bits * np.arange(8 // bits, dtype=np.uint8)), axis=1), np.uint8)
