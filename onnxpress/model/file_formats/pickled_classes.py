"""The classes that a pickle names, read without executing anything.

`pickletools.genops` decodes opcodes only. A pickle of joblib holds raw bytes of arrays between its opcodes, where
decoding ends: the class of the object stands before them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickletools
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

_MOST_BYTES = 4 * 2**20  # of a pickle, that are looked at
_MOST_CLASSES = 200
_BUILTIN = ("builtins", "collections", "copyreg", "copy_reg", "_codecs", "__builtin__")
_HELPERS = ("numpy", "torch._utils", "torch.FloatStorage", "torch.storage", "joblib.numpy_pickle", "scipy.sparse")
_COMPRESSED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00\x00": lzma.open,
}


def pickled_classes(data: bytes) -> list[str]:
    """Names (`module.Class`) in the order in which a pickle, compressed or not, first mentions them; empty for others.

    data: the beginning of the file will do
    """
    found: dict[str, None] = {}
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        for name, argument in _operations(_uncompressed(data)[:_MOST_BYTES]):
            if name in ("GLOBAL", "INST"):
                found[".".join(str(argument).split(" ", 1))] = None
            elif name == "STACK_GLOBAL":
                if len(strings) >= 2:
                    found[".".join(strings[-2:])] = None
            elif name.endswith(("UNICODE", "UNICODE8", "STRING")):
                strings.append(str(argument))
            elif name == "MEMOIZE" and strings:
                memo[len(memo)] = strings[-1]
            elif name in ("BINPUT", "LONG_BINPUT", "PUT") and strings:
                memo[int(str(argument))] = strings[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET") and argument in memo:
                strings.append(memo[int(str(argument))])
            if len(found) > _MOST_CLASSES:
                break
    except (ValueError, IndexError, UnicodeDecodeError, EOFError, OverflowError, MemoryError):
        pass  # what was named until there
    return list(found)


def main_class(names: list[str]) -> str:
    """The class of the pickled object itself, as far as names tell: the first that is no container or helper."""
    own = [n for n in names if not n.startswith((*(f"{b}." for b in _BUILTIN), *_HELPERS))]
    return own[0] if own else names[0] if names else ""


def _operations(data: bytes) -> Iterator[tuple[str, object]]:
    for operation, argument, _ in pickletools.genops(io.BytesIO(data)):
        yield operation.name, argument


def _uncompressed(data: bytes) -> bytes:
    """The beginning of what a compressed pickle holds, as far as data that end anywhere give it."""
    if data[:1] == b"x":  # zlib, of any level
        try:
            return zlib.decompressobj().decompress(data, _MOST_BYTES)
        except zlib.error:
            return data
    for magic, opened in _COMPRESSED.items():
        if data.startswith(magic):
            with opened(io.BytesIO(data)) as stream:
                return _beginning(stream)
    return data


def _beginning(stream: BinaryIO) -> bytes:
    parts: list[bytes] = []
    try:
        while sum(map(len, parts)) < _MOST_BYTES and (part := stream.read(2**14)):
            parts.append(part)
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        pass  # what there was until then
    return b"".join(parts)
