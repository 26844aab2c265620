"""Two models side by side: what of their inputs and outputs may differ, and how samples are read for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.data.layout import batch_layout
from onnxpress.errors import InputProblem
from onnxpress.model import edit
from onnxpress.model.signature import Signature, TensorSpec, signature

Feeds = Mapping[str, np.ndarray]


def check_inputs(first: Signature, second: Signature, name: str) -> None:
    """Raises InputProblem where the second model does not take the first one's inputs, but for their float types.

    name: of the second model
    """
    ours, theirs = ({s.name: s for s in one.inputs} for one in (first, second))
    if set(ours) != set(theirs):
        raise InputProblem(
            "the models take different inputs", name, f"{sorted(theirs)} and {sorted(ours)}",
            "give models with the same inputs",
        )  # fmt: skip
    for key, spec in ours.items():
        if not _same_kind(spec, theirs[key]) or not _same_rank(spec, theirs[key]):
            raise InputProblem(
                "the models take different inputs", f"{name}, input {key}", f"{theirs[key].text()} and {spec.text()}",
                "give models with the same inputs",
            )  # fmt: skip


def check_outputs(first: Signature, second: Signature, name: str) -> None:
    """Raises InputProblem where the second model's outputs have other names, types or sizes than the first one's.

    The sizes of a fixed and a free axis, and of batches, may differ.
    """
    ours, theirs = ({s.name: s for s in one.outputs} for one in (first, second))
    if list(ours) != list(theirs):
        raise InputProblem(
            "the models have different outputs", name, f"{list(theirs)} and {list(ours)}",
            "compare models with the same outputs",
        )  # fmt: skip
    batches = batch_layout(first).batch != batch_layout(second).batch
    for key, spec in ours.items():
        sizes = list(zip(spec.shape or (), theirs[key].shape or (), strict=False))[1 if batches else 0 :]
        fixed = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
        if fixed or not _same_kind(spec, theirs[key]) or not _same_rank(spec, theirs[key]):
            raise InputProblem(
                "the models answer in different shapes", f"{name}, output {key}",
                f"{theirs[key].text()} and {spec.text()}", "compare models with the same outputs",
            )  # fmt: skip


def with_types_of(model: ir.Model, wanted: Signature) -> ir.Model:
    """The model with the float types that another one's inputs and outputs of these names have, by Cast.

    The model itself where they are the same.
    """
    own = signature(model)
    types = [{s.name: s.dtype for s in specs} for specs in (wanted.inputs, wanted.outputs)]
    wrong = [
        {s.name: ir.DataType.from_numpy(known[s.name]) for s in specs if known.get(s.name, s.dtype) != s.dtype}
        for known, specs in zip(types, (own.inputs, own.outputs), strict=True)
    ]
    if not any(wrong):
        return model
    clone = model.clone()
    for value in [v for v in clone.graph.inputs if v.name in wrong[0]]:
        edit.cast_input(clone, value, wrong[0][value.name or ""])
    for value in [v for v in clone.graph.outputs if v.name in wrong[1]]:
        edit.cast_output(clone, value, wrong[1][value.name or ""])
    return clone


def feeds_for(model: ir.Model, feeds: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    """Feeds in the float types that a model takes."""
    types = {s.name: s.dtype for s in signature(model).inputs}
    return [{k: v if v.dtype.kind != "f" else v.astype(types[k], copy=False) for k, v in f.items()} for f in feeds]


def reads_samples(first: ir.Model, second: ir.Model) -> ir.Model:
    """The model whose signature reads the samples of both: the one that fixes its batch, else the first."""
    free = batch_layout(signature(first)).batch is None
    return second if free and batch_layout(signature(second)).batch is not None else first


def _same_kind(one: TensorSpec, other: TensorSpec) -> bool:
    return one.dtype == other.dtype or (one.dtype.kind == "f" and other.dtype.kind == "f")


def _same_rank(one: TensorSpec, other: TensorSpec) -> bool:
    return one.rank is None or other.rank is None or one.rank == other.rank
