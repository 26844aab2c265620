"""Digests of samples: what tells two of them apart, and whether a set is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def inputs_digest(inputs: Mapping[str, np.ndarray]) -> bytes:
    """The digest of the inputs of a sample."""
    state = hashlib.sha256()
    for name in sorted(inputs):
        state.update(name.encode() + b"\0" + digest(inputs[name]))
    return state.digest()


def digest(value: Any) -> bytes:
    """The digest of an array, scalar, string or None; equal values of one element type have equal digests."""
    if value is None:
        return hashlib.sha256(b"none").digest()
    array = np.asarray(value)
    state = hashlib.sha256(f"{array.dtype.name if array.dtype.kind not in 'OUS' else 'text'}{array.shape}".encode())
    if array.dtype.kind in "OUS":
        for item in array.reshape(-1).tolist():
            coded = item if isinstance(item, bytes) else str(item).encode()
            state.update(len(coded).to_bytes(8, "little") + coded)
    else:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.digest()
