"""On-disk cache of measurements: small arrays in the user's cache folder, addressed by content.

A key covers everything that the arrays depend on, so entries are never stale; a corrupt entry is a miss.  Entries are
written under another name and renamed, so concurrent runs are safe, and the least recently used ones are deleted when
the folder exceeds its limit.  ONNXPRESS_CACHE names another folder, or turns the cache off ("off").
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

import onnxpress
from onnxpress.errors import Problem
from onnxpress.model.files import write_atomic

CACHE_VARIABLE = "ONNXPRESS_CACHE"
_LIMIT = 512 * 2**20  # bytes
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Cache:
    """A cache folder.  folder: None stores nothing; limit: in bytes."""

    folder: Path | None
    limit: int = _LIMIT

    def get(self, key: str) -> Arrays | None:
        """The arrays of a key; None where there are none or they cannot be read."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.npz"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                found = {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # marks it as used
        return found

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store arrays; a folder that cannot be written is ignored, and the next run computes them again."""
        if self.folder is None:
            return
        stream = io.BytesIO()
        np.savez_compressed(stream, **dict[str, Any](arrays))
        with suppress(OSError, Problem):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / f"{key}.npz", stream.getvalue())
            self._trim()

    def _trim(self) -> None:
        assert self.folder is not None
        entries = []
        for path in self.folder.glob("*.npz"):
            with suppress(OSError):
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries, key=lambda e: e[0]):
            if total <= self.limit:
                break
            with suppress(OSError):
                path.unlink()
            total -= size


def user_cache() -> Cache:
    """The cache of this user, in the platform's cache folder."""
    named = os.environ.get(CACHE_VARIABLE, "")
    if named == "off":
        return Cache(None)
    return Cache(Path(named) if named else Path(platformdirs.user_cache_dir("onnxpress")) / "measured")


def cache_key(*parts: str) -> str:
    """The key of a result from everything it depends on; the version of onnxpress is included."""
    return hashlib.sha256("\n".join((onnxpress.__version__, *parts)).encode()).hexdigest()
