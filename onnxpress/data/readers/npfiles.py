""".npy and .npz files: headers are read without the data, arrays on their own, pickles never.

Memory is allocated only after the file is known to hold the data: a header may claim anything.
"""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from onnxpress.data.readers.files import unreadable
from onnxpress.errors import EnvironmentProblem, InputProblem

_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)
_WHAT = "cannot read the data"
_RATIO = 1200  # deflate cannot compress by more than a factor of about 1030
_HINT = "the file is damaged or truncated; save it again with np.save or np.savez"


@dataclass(frozen=True)
class Header:
    """Shape and element type as stated by the file.  start: number of bytes before the values."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(stream: IO[bytes], size: int, where: str) -> Header:
    """The header of an .npy stream whose file has `size` bytes in total."""
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        if version != (3, 0):
            raise ValueError(f"unknown .npy version {version}")
        shape, fortran, dtype = _header_3(stream)
    else:
        shape, fortran, dtype = reader(stream)
    header = Header(tuple(int(n) for n in shape), np.dtype(dtype), bool(fortran), stream.tell())
    if header.dtype.hasobject:
        raise InputProblem(
            _WHAT,
            where,
            "it holds pickled Python objects, which are never loaded",
            "save arrays of numbers or of fixed-width strings",
        )
    if any(n < 0 for n in header.shape):
        raise ValueError(f"negative shape {header.shape}")
    if header.start + header.nbytes > size:
        raise InputProblem(
            _WHAT,
            where,
            f"the file is truncated: {header.start + header.nbytes} bytes expected, {size} found",
            _HINT,
        )
    return header


def _header_3(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """A header of version 3 (UTF-8 field names), for which numpy has no public reader.

    numpy writes it for structured types only.
    """
    (length,) = struct.unpack("<I", stream.read(4))
    if length > 100_000:
        raise ValueError("the header is too long")
    entry = ast.literal_eval(stream.read(length).decode())
    return entry["shape"], entry["fortran_order"], np.dtype(entry["descr"])


def header_npy(path: Path) -> Header:
    """The header of an .npy file.  Raises InputProblem."""
    try:
        with path.open("rb") as stream:
            return _header(stream, path.stat().st_size, str(path))
    except _BROKEN as error:
        raise unreadable(path, error, _HINT) from error


def load_npy(path: Path, lazy: bool = False) -> np.ndarray:
    """The array of an .npy file.  lazy: mapped, read-only.  Raises InputProblem or EnvironmentProblem."""
    header_npy(path)
    try:
        return np.asarray(np.load(path, mmap_mode="r" if lazy else None, allow_pickle=False))
    except _BROKEN as error:
        raise unreadable(path, error, _HINT) from error
    except MemoryError as error:
        raise _memory(path) from error


def headers(path: Path, trust: bool = False) -> dict[str, Header]:
    """The header of every array in an .npz file, by key.  Raises InputProblem."""
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, Header] = {}
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    continue
                key = member.filename[:-4]
                if not trust and member.file_size > _RATIO * max(member.compress_size, 1):
                    raise InputProblem(
                        _WHAT,
                        f"{path}, array {key!r}",
                        "it claims an impossible compression",
                        "do not use this file",
                    )
                with archive.open(member) as stream:
                    found[key] = _header(stream, member.file_size, f"{path}, array {key!r}")
            return found
    except _BROKEN as error:
        raise unreadable(path, error, _HINT) from error


def load_npz(path: Path, keys: Iterable[str], lazy: bool = False) -> dict[str, np.ndarray]:
    """Some arrays of an .npz file.  lazy: uncompressed ones are mapped, read-only.

    Raises InputProblem or EnvironmentProblem.
    """
    known = headers(path, trust=True)  # the caller has checked the headers with its own `trust`
    loaded: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for key in keys:
                member = archive.getinfo(f"{key}.npy")
                header = known[key]
                if lazy and member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1 and header.nbytes:
                    loaded[key] = _mapped(path, member, header)
                    continue
                with archive.open(member) as stream:
                    loaded[key] = np.lib.format.read_array(stream, allow_pickle=False)
        return loaded
    except _BROKEN as error:
        raise unreadable(path, error, _HINT) from error
    except MemoryError as error:
        raise _memory(path) from error


def _mapped(path: Path, member: zipfile.ZipInfo, header: Header) -> np.ndarray:
    """An uncompressed member as a memory map; its position is known only from the local header before it."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        local = stream.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no local header of {member.filename}")
    name, extra = struct.unpack("<HH", local[26:30])
    place = member.header_offset + 30 + name + extra + header.start
    if place + header.nbytes > path.stat().st_size:
        raise zipfile.BadZipFile(f"{member.filename} reaches past the end of the file")
    mapped = np.memmap(path, header.dtype, "r", place, header.shape, "F" if header.fortran else "C")
    return np.asarray(mapped)


def _memory(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        "not enough memory for the data",
        path,
        "",
        "use an uncompressed .npz, .npy files or a folder, which are read in parts",
    )
