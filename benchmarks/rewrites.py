"""Speed of files of `onnxpress rewrite`, beside the original and beside other tools that do not change the function.

    pip install torchvision transformers onnxscript onnxslim  # in addition to the extra `train`
    ONNXPRESS_ZOO=path/to/zoo python benchmarks/rewrites.py [--only 'mobilenet*,bert'] [--files 'exports/*.onnx']
                                                            [--seconds 12] [--json FILE --resume]

For every zoo case, every named architecture of `known_architectures.py` (exported by both of torch's exporters) and
every given file: the original, onnxsim, onnxslim, onnxruntime's transformers optimizer and the rewritten file are timed
in one interleaved run, all at full optimization of onnxruntime. The goal: never slower than the original (by the
interval), and at least as fast as each of the others.

A second table names what is left, from onnxruntime's own optimized graph: conversions between the layouts of
convolutions and the plain one, by the operators that need the plain one, and activations that are kernels of their own.
"""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from known_architectures import Architecture, brief, built, by_dynamo, by_script, catalogue, unsettle

from onnxpress import rewrite
from onnxpress.cli.output import console
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.model.files import load
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.session import SessionSettings, open_session, run
from onnxpress.runtime.simplifier import onnxsim

ORIGINAL, OURS = "original", "onnxpress"
_NAMED = "mobilenet_v2,mobilenet_v3_*,shufflenet_v2_x1_0,efficientnet_b0,regnet_y_400mf,resnext50_32x4d,convnext_tiny"
_NAMED += ",densenet121,googlenet,mnasnet1_0,resnet18,squeezenet1_1,swin_t,vit,bert,distilbert,gpt2,segformer,deit"
_CONVERSIONS = ("ReorderInput", "ReorderOutput")
_ACTIVATIONS = frozenset(
    """Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Tanh Elu Selu Celu Softplus Mish Gelu FastGelu QuickGelu
    BiasGelu""".split()
)


@dataclass
class Row:
    """kept: families that the clock kept; speeds: by tool the speed relative to the original, with its interval;
    failed: why a tool gave no file; left: operators of the optimized graph that convert layouts; plain: what reads
    their results, by operator; activations: that are kernels of their own."""

    name: str
    kept: list[str] = field(default_factory=list)
    speeds: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    plain: dict[str, int] = field(default_factory=dict)
    activations: dict[str, int] = field(default_factory=dict)


def files_of(zoo: Path | None, only: str, patterns: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and files: of the zoo, of the architectures by both exporters, of the given patterns."""
    if zoo is not None:
        yield from ((path.parent.name, path) for path in sorted(zoo.glob("*/model.onnx")))
    for item in catalogue():
        wanted = item.family != "light" and any(fnmatch.fnmatch(item.name, p) for p in only.split(",") if p)
        if wanted and item.family in ("classification", "transformers"):
            yield from exported(item, folder)
    for pattern in patterns.split(",") if patterns else ():
        yield from ((path.stem, path) for path in sorted(Path().glob(pattern)))


def exported(item: Architecture, folder: Path) -> Iterator[tuple[str, Path]]:
    module, inputs = built(item)
    unsettle(module.eval())
    single = {name: tensor[:1] for name, tensor in inputs.items()}
    for name, export, given in (("dynamo", by_dynamo, inputs), ("script", by_script, single)):
        path = folder / f"{item.name}.{name}.onnx"
        try:
            export(module, given, path)
        except Exception as error:  # whatever an exporter raises
            console.note(f"{item.name} by {name}: {brief(error)}")
            continue
        yield f"{item.name} ({name})", path


def rivals(path: Path, feed: Mapping[str, np.ndarray]) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files that other tools make of one and that run on what it runs on, and why some make none."""
    made: dict[str, bytes] = {}
    failed: dict[str, str] = {}

    def attempt(name: str, work: Any) -> None:
        try:
            done = work()
            run(open_session(done), feed)
            made[name] = done
        except Exception as error:  # whatever another tool raises
            failed[name] = brief(error)

    def slim() -> bytes:
        import onnxslim

        done = onnxslim.slim(onnx.load(path))
        return bytes(done.SerializeToString())

    def transformers() -> bytes:
        from onnxruntime.transformers import optimizer

        done = optimizer.optimize_model(str(path), model_type="bert", opt_level=0, use_gpu=False)
        return bytes(done.model.SerializeToString())

    def simplified() -> bytes:
        done = onnxsim(path.read_bytes())
        if isinstance(done, str):
            raise RuntimeError(done)
        return done

    attempt("onnxsim", simplified)
    attempt("onnxslim", slim)
    attempt("transformers", transformers)
    return made, failed


def measured(name: str, path: Path, seconds: float, folder: Path) -> Row:
    model = load(path)
    feeds = [dict(batch.inputs) for batch in synthetic_samples(model, 2).batches(1)]
    ours = rewrite(model, output=folder / "rewritten.onnx")
    others, failed = rivals(path, feeds[0])
    files = {ORIGINAL: path.read_bytes(), OURS: (folder / "rewritten.onnx").read_bytes(), **others}
    seen = compare_latency(files, feeds, Effort(seconds=seconds))
    speeds = {r.name: (r.speedup, r.low, r.high) for r in seen.ratios}
    kept = [a["rewrite"] for step in ours.plan.steps if step.pass_name == "rewrite" for a in step.actions]
    return Row(name, kept, speeds, failed, *what_is_left(folder / "rewritten.onnx", folder))


def what_is_left(path: Path, folder: Path) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Of onnxruntime's optimized graph: layout conversions, the operators that read the plain order behind them, and
    activations that are kernels of their own."""
    target = folder / "optimized.onnx"
    open_session(path, SessionSettings(dump=str(target)))
    graph = onnx.load(target, load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    plain = {name for node in graph.node if node.op_type == "ReorderOutput" for name in node.output}
    readers = Counter(node.op_type for node in graph.node if plain & set(node.input))
    readers["an output"] = len(plain & {v.name for v in graph.output})
    return (
        {kind: counts[kind] for kind in _CONVERSIONS if counts[kind]},
        {kind: count for kind, count in readers.most_common() if count},
        {kind: count for kind, count in counts.most_common() if kind in _ACTIVATIONS},
    )


def show(rows: list[Row]) -> None:
    tools = list(dict.fromkeys(tool for row in rows for tool in row.speeds))
    columns = [("model", "left"), *[(tool, "right") for tool in tools], ("kept", "left"), ("layout", "right")]
    table = [
        [
            row.name,
            *[_cell(row.speeds.get(tool)) for tool in tools],
            " ".join(row.kept) or "-",
            str(sum(row.left.values())),
        ]
        for row in rows
    ]
    console.table(columns, table)
    left = [[row.name, *map(_counts, (row.left, row.plain, row.activations))] for row in rows]
    console.table([(name, "left") for name in ("model", "conversions", "plain order for", "activations")], left)
    for tool in tools:
        logs = [np.log(row.speeds[tool][0]) for row in rows if tool in row.speeds]
        slower = sum(row.speeds[tool][2] < 1 for row in rows if tool in row.speeds)
        console.out(f"{tool}: {np.exp(np.mean(logs)):.3f}x (geometric mean of {len(logs)}), slower on {slower}")


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in found.items()) or "-"


def _cell(speed: tuple[float, float, float] | None) -> str:
    return "-" if speed is None else f"{speed[0]:.2f} [{speed[1]:.2f}, {speed[2]:.2f}]"


@click.command()
@click.option("--zoo", envvar="ONNXPRESS_ZOO", type=click.Path(path_type=Path), help="Folder of the zoo.")
@click.option("--only", default=_NAMED, show_default=True, help="Architectures, as shell patterns; empty: none.")
@click.option("--files", default="", help="Patterns of more files, relative to the working directory.")
@click.option("--seconds", default=12.0, show_default=True, help="Of timing, for each model.")
@click.option("--resume", is_flag=True, help="Keep the rows of the JSON file.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="File for the results.")
def main(zoo: Path | None, only: str, files: str, seconds: float, resume: bool, target: Path | None) -> None:
    rows: list[Row] = []
    if resume and target is not None and target.exists():
        rows = [Row(**row) for row in json.loads(target.read_text())["rows"]]
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files_of(zoo, only, files, Path(folder)):
            if name in {row.name for row in rows}:
                continue
            try:
                rows.append(measured(name, path, seconds, Path(folder)))
            except Exception as error:  # one model must not end the table
                console.note(f"{name}: {brief(error)}")
                continue
            row = rows[-1]
            console.note(f"{row.name}: {_cell(row.speeds[OURS])} {' '.join(row.kept)}")
            if target is not None:
                body = {"machine": this_machine().as_dict(), "rows": [asdict(r) for r in rows]}
                target.write_text(json.dumps(document("rewrites", **body), indent=1))
    if rows:
        show(rows)
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
