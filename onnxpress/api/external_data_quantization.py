"""Weights in few bits without samples, one weight in memory at a time, so that files too large to be held can be made
small.

Numbers of a large model are read from its external data, rounded, and go at once into the data file of the result.
Without samples nothing is known of the inputs: every row keeps the scale that loses least of it (8 bits: its largest
weight's).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.model import edit
from onnxpress.model.files import (
    check_target,
    commit_staged,
    load,
    load_lazy,
    save,
    serialize_graph,
    staging_files,
    to_bytes,
    weight_bytes,
)
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.normal_forms.float_types import compute_in_float32, fold_casts, other_float_type
from onnxpress.model.normal_forms.tied_weights import fold_transposes
from onnxpress.passes.core.contract import Refusal
from onnxpress.passes.core.weight_matrix import WeightMatrix, find_weights
from onnxpress.passes.weights import codebook
from onnxpress.passes.weights.bit_packing import BitPacker, packed_bytes
from onnxpress.passes.weights.codebook import Codebook
from onnxpress.passes.weights.half import store_again
from onnxpress.passes.weights.low_bit import LEVELS
from onnxpress.passes.weights.weights import WeightsOptions
from onnxpress.plan import result_contract
from onnxpress.progress import Progress, no_progress
from onnxpress.result import Result, size_change_text

_STRETCH = 4 * 2**20  # numbers at a time
_PAGE = 4096  # where onnxruntime likes a tensor of external data to begin
_INLINE = 1024  # bytes up to which a tensor stays in the file itself
_SMALL = 256 * 2**20  # bytes of weights up to which a model is written as one file, and run


@dataclass(repr=False)
class StreamResult(Result):
    """bytes_before, bytes_after: with external data. weights: number of rounded weights. notes, refused: as of any
    pass."""

    bytes_before: int
    bytes_after: int
    weights: int
    notes: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def facts(self) -> list[tuple[str, str]]:
        sizes = size_change_text(self.bytes_before, self.bytes_after)
        return [("size", sizes), ("weights", f"{self.weights} rounded"), *(("note", n) for n in self.notes)]


def stream_weights(
    path: str | Path,
    output: str | Path,
    options: WeightsOptions | None = None,
    progress: Progress = no_progress,
) -> StreamResult:
    """Round the weights of a file of any size without samples, one weight in memory at a time.

    Writes `output`, and `output`.data beside it where the model is large. Memory: about twice the largest weight.
    options: bits and block; options that need samples are refused. Raises InputProblem on bad input.

    >>> result = onnxpress.stream_weights("model.onnx", "small.onnx", onnxpress.WeightsOptions(bits=4))
    """
    options = options or WeightsOptions()
    options.checked()
    for name in ("spare", "smaller"):
        if getattr(options, name) is not None:
            raise InputProblem("this needs samples", f"`{name}`", "no data was given", "give `data`, or leave it out")
    target = check_target(output, path)
    model = load_lazy(path)
    before = Path(path).stat().st_size + _outside(model)
    if weight_bytes(model) <= _SMALL:
        model = load(path)
        work, found = _written(_in_float32(model), options, None, progress)
        store_again(work, model)
        problems = result_contract.same_shape_behaviour(model, to_bytes(work), synthetic_samples(model, 1))
        if problems:
            raise InputProblem(
                "the result would not keep the model's behaviour",
                "",
                problems[0],
                "report this model; nothing was written",
            )
        return replace(found, bytes_before=before, bytes_after=len(save(work, target)))
    with staging_files(target) as (part, data_part):
        try:
            with data_part.open("wb") as stream:
                work, found = _written(canonical(model), options, _Store(stream, data_part), progress)
            part.write_bytes(serialize_graph(work))
            own = commit_staged(target, part, data_part)
        except OSError as error:
            raise EnvironmentProblem(
                "cannot write the file", target, str(error), "check space and permissions"
            ) from error
    after = len(own) + (target.parent / data_part.name).stat().st_size
    return replace(
        found,
        bytes_before=before,
        bytes_after=after,
        notes=[*found.notes, "too large to be run here: the result was checked, but not run"],
    )


def _in_float32(model: ir.Model) -> ir.Model:
    """A model of moderate size in the form that passes expect."""
    work = canonical(model)
    fold_casts(work)
    kind = other_float_type(work)
    if kind is not None:
        work = compute_in_float32(work, kind)
    fold_transposes(work)
    return work


def _written(
    work: ir.Model, options: WeightsOptions, store: _Store | None, progress: Progress
) -> tuple[ir.Model, StreamResult]:
    """A model in canonical form with its weights rounded; numbers that are not rounded go to the store as they are."""
    weights, refused = find_weights(work, check_finite=False)
    packer = BitPacker(work, storage=store.put if store is not None else None)
    kept = 0
    for done, weight in enumerate(weights):
        progress(weight.name, done / len(weights))
        book = _rounded(weight, _numbers(work.graph.initializers[weight.name].const_value), options)
        if book is None:
            refused.append(Refusal(weight.name, "its weight is not finite"))
            continue
        if packed_bytes(weight, book) >= weight.array.nbytes:
            refused.append(Refusal(weight.name, "its weight is too small to be worth unpacking"))
            continue
        packer.write(weight, book)
        work.graph.initializers.pop(weight.name)
        kept += 1
    for name, value in work.graph.initializers.items():
        if (
            store is not None
            and isinstance(value.const_value, ir.ExternalTensor)
            and not store.holds(value.const_value)
        ):
            value.const_value = store.put(_numbers(value.const_value), name)
    edit.drop_dead(work)
    edit.forget_floats(work)
    return work, StreamResult(
        0, 0, kept, [f"{kept} weights in {options.bits} bits, rounded one by one without samples"], refused
    )


def _outside(model: ir.Model) -> int:
    """Bytes of external data."""
    return sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)
    )


@dataclass
class _Store:
    """The data file of the result, as it grows."""

    stream: BinaryIO
    path: Path

    def holds(self, tensor: ir.ExternalTensor) -> bool:
        return Path(tensor.path) == self.path

    def put(self, array: np.ndarray, name: str) -> ir.TensorProtocol:
        """An array's place in the file; what is small stays in memory."""
        if array.nbytes <= _INLINE:
            return ir.tensor(np.asarray(array), name=name)
        self.stream.write(b"\0" * (-self.stream.tell() % _PAGE))
        begin, flat = self.stream.tell(), array.reshape(-1)
        for start in range(0, flat.size, _STRETCH):
            self.stream.write(np.ascontiguousarray(flat[start : start + _STRETCH]).tobytes())
        kind = ir.DataType.from_numpy(array.dtype)
        return ir.ExternalTensor(
            self.path.name,
            begin,
            array.nbytes,
            kind,
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=str(self.path.parent),
        )


def _numbers(tensor: ir.TensorProtocol | None) -> np.ndarray:
    """A tensor's numbers; external ones as a map of the file that is given back to the system with the array."""
    assert tensor is not None
    if not isinstance(tensor, ir.ExternalTensor):
        return np.asarray(tensor.numpy())
    return np.memmap(
        tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, tuple(int(d) for d in tensor.shape.numpy())
    )


def _rounded(weight: WeightMatrix, array: np.ndarray, options: WeightsOptions) -> Codebook | None:
    """None where a number is not finite."""
    stored = WeightMatrix(weight.name, weight.readers, array, weight.row_axes)
    rows = stored.matrix  # [M, K]: a view where the rows come first, else a copy
    most = max(1, _STRETCH // max(rows.shape[1], 1))
    parts: list[Codebook] = []
    for block in (rows[start : start + most] for start in range(0, len(rows), most)):
        if not np.isfinite(block).all():
            return None
        parts.append(_in_8_bits(block) if options.bits == 8 and not options.block else _on_grid(stored, block, options))
    return Codebook(
        parts[0].centroids, np.concatenate([p.codes for p in parts]), np.concatenate([p.scale for p in parts])
    )


def _in_8_bits(rows: np.ndarray) -> Codebook:
    levels = LEVELS[8]
    top = np.abs(rows).max(axis=1, keepdims=True)
    scale = np.where(top > 0, top / np.float32(levels[-1]), np.float32(1))
    codes = (np.rint(rows / scale) - levels[0]).astype(np.uint8)
    return Codebook(levels, codes, scale.astype(np.float64)).compact()


def _on_grid(weight: WeightMatrix, rows: np.ndarray, options: WeightsOptions) -> Codebook:
    block = (
        options.block
        if options.block
        and rows.shape[1] % options.block == 0
        and rows.shape[1] > options.block
        and weight.has_outer_rows
        else 0
    )
    return codebook.fit_grid(rows, None, LEVELS[options.bits], block, output_aware=False).compact()
