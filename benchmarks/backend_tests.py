"""Forward parity of onnxpress.train with the ONNX standard, operator by operator, compared with onnx2torch.

    python benchmarks/backend_tests.py [--failures] [--json FILE]

The list is the node tests of the ONNX backend suite (the installed onnx package generates them) that onnxruntime's CPU
provider runs: training operators (`ai.onnx.preview.training`), strings and images are left out, as is what onnxruntime
rejects.  A case passes where every output has the expected type, shape and values (rtol 1e-3, atol 1e-5; four units in
the last place for 16-bit floats); outputs of random operators need type and shape only.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from onnxpress.cli.output import console
from onnxpress.train.graph.program import Program
from onnxpress.train.graph.tensors import to_numpy, to_torch

RANDOM = {"Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"}
OLDER = 16  # onnx2torch is tested up to this operator set
LEFT_OUT = {"ai.onnx.preview.training", "ai.onnx.ml"}
ort.set_default_logger_severity(4)


@dataclass(frozen=True)
class Case:
    """One test: the operator it is named after, the model, inputs by name and expected outputs."""

    name: str
    operator: str
    model: onnx.ModelProto
    inputs: dict[str, Any]
    expected: list[Any]
    random: bool


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, sub-graphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from nodes(inner)


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_text(v) for v in value)
    return value is not None and np.asarray(value).dtype.kind in "OUS"


def cases() -> list[Case]:
    """The numeric node tests of the standard operator set."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        tests = collect_testcases(None)
    found = []
    for test in tests:
        used = list(nodes(test.model.graph))
        if any(n.domain in LEFT_OUT or n.op_type == "ImageDecoder" for n in used) or not test.data_sets:
            continue
        values, expected = test.data_sets[0]
        values, expected = [_plain(v) for v in values], [_plain(v) for v in expected]
        if _is_text(list(values)) or _is_text(list(expected)):
            continue
        inputs = {v.name: a for v, a in zip(test.model.graph.input, values, strict=False)}
        random = any(n.op_type in RANDOM or (n.op_type == "Dropout" and len(n.input) > 2) for n in used)
        found.append(Case(test.name, _named_after(test.name, used), test.model, inputs, expected, random))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _named_after(name: str, used: list[onnx.NodeProto]) -> str:
    """The operator under test: of an expanded test, the one whose body it is."""
    return f"{name.removeprefix('test_').split('_')[0]} (body)" if "_expanded" in name else used[0].op_type


def runs_in_onnxruntime(case: Case) -> bool:
    """Whether onnxruntime's CPU provider loads the model and runs it on the case's inputs."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = ort.InferenceSession(case.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, {k: _feed(v) for k, v in case.inputs.items()})
    except Exception:  # onnxruntime's exceptions share no base
        return False
    return True


def _feed(value: Any) -> Any:
    """bfloat16, float8 and 4-bit arrays as OrtValues of their bits."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "V":
        kind = ir.DataType.from_numpy(value.dtype)
        bits = value.view(np.uint16 if value.dtype.itemsize == 2 else np.uint8)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(kind))
    return value


def agrees(case: Case, results: list[Any]) -> bool:
    if len(results) != len(case.expected):
        return False
    return all(_same(e, r, case.random) for e, r in zip(case.expected, results, strict=True))


def _same(expected: Any, result: Any, random: bool) -> bool:
    if expected is None or isinstance(expected, list):
        items = expected if isinstance(result, list) and expected is not None else None
        if items is None:
            return expected is None and result is None
        return len(items) == len(result) and all(_same(e, r, random) for e, r in zip(items, result, strict=True))
    expected, result = np.asarray(expected), np.asarray(result)
    if expected.shape != result.shape:
        return False
    if random:
        return expected.dtype == result.dtype
    near = {"float16": 4e-3, "bfloat16": 3e-2}.get(expected.dtype.name, 1e-3)
    if expected.dtype.kind == "V":  # types unknown to numpy; wider torch types compare by value
        expected = expected.astype(np.float32)
    elif expected.dtype != result.dtype and result.dtype.kind != "V":
        return False
    if expected.dtype.kind in "iub":
        return bool(np.array_equal(expected, result.astype(expected.dtype)))
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        return bool(
            np.allclose(
                result.astype(wide),
                expected.astype(wide),
                rtol=near,
                atol=1e-5 if near == 1e-3 else near,
                equal_nan=True,
            )
        )


def by_program(case: Case) -> list[Any]:
    program = Program(ir.from_proto(case.model), fake_quant=False)
    with torch.no_grad():
        results = program({k: to_torch(v) for k, v in case.inputs.items()})
    return [to_numpy(r) for r in results.values()]


def by_onnx2torch(case: Case) -> list[Any]:
    import onnx2torch

    module = onnx2torch.convert(case.model)
    module.eval()
    with torch.no_grad():
        result = module(*[to_torch(v) for v in case.inputs.values()])
    return [to_numpy(r) for r in (result if isinstance(result, (tuple, list)) else [result])]


def verdict(convert: Callable[[Case], list[Any]], case: Case) -> str:
    """Empty where the case passes, else the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = convert(case)
    except Exception as error:  # any failure of a converter is a result
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return "" if agrees(case, results) else "other numbers"


@click.command()
@click.option("--failures", is_flag=True, help="List the failures of onnxpress.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(failures: bool, json_path: Path | None) -> None:
    """Run the benchmark and print a table by operator."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    tools: dict[str, Callable[[Case], list[Any]]] = {"onnxpress": by_program}
    if importlib.util.find_spec("onnx2torch") is not None:
        tools["onnx2torch"] = by_onnx2torch
    listed = [c for c in cases() if runs_in_onnxruntime(c)]
    verdicts = {tool: {c.name: verdict(convert, c) for c in listed} for tool, convert in tools.items()}
    totals = Counter(c.operator for c in listed)
    passed = {t: Counter(c.operator for c in listed if not v[c.name]) for t, v in verdicts.items()}
    console.table(
        [("operator", "left"), ("tests", "right"), *((t, "right") for t in tools)],
        [[name, str(totals[name]), *(str(passed[t][name]) for t in tools)] for name in sorted(totals)],
    )
    older = [c for c in listed if max(o.version for o in c.model.opset_import if o.domain == "") <= OLDER]
    for tool in tools:
        count, early = sum(passed[tool].values()), sum(not verdicts[tool][c.name] for c in older)
        console.out(f"{tool}: {count} of {len(listed)} that onnxruntime runs ({count / len(listed):.1%})")
        console.out(f"  of operator sets up to {OLDER}: {early} of {len(older)} ({early / len(older):.1%})")
    if failures:
        for name, why in verdicts["onnxpress"].items():
            if why:
                console.out(f"{name}: {why}")
    if json_path is not None:
        document = {
            "schema": 1,
            "benchmark": "backend_tests",
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
            "tests": len(listed),
            "passed": {t: sum(p.values()) for t, p in passed.items()},
            "older": {"operator_set": OLDER, "tests": len(older)}
            | {t: sum(not v[c.name] for c in older) for t, v in verdicts.items()},
            "operators": {n: {"tests": totals[n], **{t: passed[t][n] for t in tools}} for n in sorted(totals)},
            "verdicts": verdicts,
        }
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
