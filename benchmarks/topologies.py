"""Channels of 24 topologies: the fraction of parameters that `prune --ratio 0.5` keeps, and whether removing dead
channels is exact.

    python benchmarks/topologies.py [--only chain,lstm] [--ratio 0.5] [--allocation global] [--no-peer]

kept: the fraction of the prunable parameters that `onnxpress prune --ratio 0.5` keeps (with its defaults: all groups,
      global allocation, second-order selection, refit).  Prunable are the float weights, biases and norms, except the
      matrices of layers with a fixed width (see `fixed`): those that read an input or compute an output of the graph
      (they are sliced along their other axis nevertheless, to a half), and those at a residual stream with
      LayerNormalization, where no removal is exact.  At half of both widths a quarter of a matrix and half of a vector
      remain, 0.25 to 0.28 together.  A shared weight counts once, and twice where its uses have been separated.  What
      is fixed is determined from the net before and from the result, by this file and not by the tool under test, so
      that refusals show as kept.

exact: in the simplified net every second channel of every group is made dead (everything that computes or passes it is
       zeroed, its readers are unchanged) and exactly these are removed, without refit; the largest difference of an
       output over its largest value.  Required: kept at most 0.35, exact at most 1e-5.

onnxsim's pruner (`apply_structured_pruning`, then `apply_attention_head_pruning`) in the same run, on the net as it is
and on the net simplified by onnxsim: the smaller result that runs.  It selects the channels itself, so its "exact" is
measured on a net in which every second channel of each layer (each block of channels that can only be removed together)
is dead: at a sparsity of one half these have the smallest norms.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import onnx_ir as ir
from topology_nets import TOPOLOGIES, Made, make

from onnxpress import prune, simplify
from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit, read
from onnxpress.model.channels import groups as ch
from onnxpress.model.signature import signature
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.pruning.prune import PRUNE
from onnxpress.result import document
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.session import SessionSettings, open_session, run

KEPT_AT_MOST, EXACT_AT_MOST = 0.35, 1e-5
SECONDS = 600.0  # for the peer on one topology
SEQUENCE = 8
LAYERS = {*read.WEIGHTED, "LSTM", "Attention"}  # the last is what onnxsim replaces an attention with
STEERED = {
    "Reshape",
    "Expand",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Gather",
    "Resize",
    "Pad",
    "ReduceMean",
}  # by their other inputs
Feeds = Mapping[str, np.ndarray]

os.environ["ONNXPRESS_CACHE"] = "off"  # results of earlier runs must not be reused


@dataclass
class Row:
    """Results of one topology.

    None: it failed (`error` says why) or, of the peer, was not run.  refused: layers whose channels stay, and why.
    """

    topology: str
    kept: float | None = None
    exact: float | None = None
    groups: int = 0
    error: str = ""
    refused: tuple[str, ...] = ()
    peer_kept: float | None = None
    peer_exact: float | None = None
    peer_error: str = ""

    @property
    def reached(self) -> bool:
        return (
            self.kept is not None
            and self.kept <= KEPT_AT_MOST
            and self.exact is not None
            and self.exact <= EXACT_AT_MOST
        )

    @property
    def why(self) -> str:
        return self.error or (self.refused[0] if self.refused else "")


def fixed(graph: onnx.GraphProto) -> set[str]:
    """Values whose width cannot change: inputs and outputs of the graph, inputs and outputs of LayerNormalization, and
    everything with the same channels, up to the layers.
    """
    stored = {t.name for t in graph.initializer}  # two nodes that share a constant do not share channels
    ports = [v.name for v in (*graph.input, *graph.output)]
    norms = [name for n in graph.node if n.op_type == "LayerNormalization" for name in (n.input[0], n.output[0])]
    found, waiting = set[str](), [*ports, *norms]
    beside: dict[str, set[str]] = {}
    for node in graph.node:
        if node.op_type not in LAYERS and node.op_type != "Shape":
            data = [*(node.input[:1] if node.op_type in STEERED else node.input), *node.output]
            for name in set(data) - stored:
                beside.setdefault(name, set()).update(set(data) - stored)
    while waiting:
        name = waiting.pop()
        if name and name not in found:
            found.add(name)
            waiting += beside.get(name, ())
    return found


def prunable(model: onnx.ModelProto) -> int:
    """Number of float parameters, without the matrices of layers with a fixed width."""
    stays = fixed(model.graph)
    counted = {
        name
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if node.op_type not in LAYERS or index > 1 or not stays & {node.input[0], *node.output}
    }
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims]
    return sum(int(np.prod(t.dims)) for t in floats if t.name in counted)


def feeds_for(model: onnx.ModelProto, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    free = {"N": count, "L": SEQUENCE}
    shapes = {
        v.name: [free.get(d.dim_param, d.dim_value) for d in v.type.tensor_type.shape.dim] for v in model.graph.input
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def difference(one: ir.Model, other: ir.Model, feeds: Feeds) -> float:
    """Largest difference of an output over its largest value, without onnxruntime's own rewrites."""
    wanted, found = (run(open_session(m, SessionSettings(level="none")), feeds) for m in (one, other))
    scales = [max(float(np.abs(a).max()), 1e-30) for a in wanted]
    return max(float(np.abs(a - b).max()) / s for a, b, s in zip(wanted, found, scales, strict=True))


def silenced(model: ir.Model, facts: ch.Channels, removal: ch.Removal) -> ir.Model:
    """The model with the removed channels zeroed where they are computed: weights, biases, scales and shifts."""
    clone = model.clone()
    nodes = {n.name: n for n in clone.graph}
    for name, gone in removal.items():
        for place in facts.group(name).slices:
            node = nodes[place.node]
            if place.role == "in" or node.op_type == "Div":  # 0 / 0
                continue
            array = np.array(read.constant(node.inputs[place.operand]))
            index: list[slice | np.ndarray] = [slice(None)] * array.ndim
            index[place.axis] = np.concatenate([place.positions[c] for c in gone])
            array[tuple(index)] = 0
            edit.set_input(clone, node, place.operand, array, f"{place.node}_silent")
    return clone


def exactness(model: ir.Model, feeds: Feeds) -> tuple[float | None, int]:
    """How much the removal of dead channels changes the outputs (None: there are none), and the number of groups."""
    plain = evidence_for(simplify(model).model, None)
    removal = {g.name: list(range(1, g.size, 2)) for g in plain.channels.groups if g.size > 1}
    dead = evidence_for(silenced(plain.model, plain.channels, removal), None)
    actions = [{"group": name, "remove": gone} for name, gone in removal.items()]
    cut = PRUNE.apply(dead, [*actions, {"refit": "none"}]).model
    return difference(dead.model, cut, feeds) if removal else None, len(removal)


def ours(row: Row, made: Made, options: PruneOptions, samples: int) -> None:
    """Run onnxpress and fill in its results; any failure is a result as well."""
    model = ir.from_proto(made.model)
    data = Dataset.from_arrays(feeds_for(made.model, samples), signature(model))
    try:
        done = prune(model, data, options=options)
        row.kept = prunable(ir.to_proto(done.model)) / prunable(made.model)
        row.refused = tuple(f"{r.unit}: {r.reason}" for r in done.refused if not r.reason.startswith("graph output"))
        row.exact, row.groups = exactness(model, feeds_for(made.model, 4, seed=1))
    except Exception as error:  # one failing topology must not hide the others
        row.error = f"{type(error).__name__}: {error}".splitlines()[0]


def peer(row: Row, made: Made, sparsity: float) -> None:
    """Run onnxsim in a process of its own and fill in its results: a crash of native code costs one row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dead = made.half_dead()
        onnx.save(made.model, folder / "plain.onnx")
        onnx.save(dead, folder / "dead.onnx")
        command = [sys.executable, __file__, "--child", f"{folder},{sparsity}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            row.peer_error = f"no answer within {SECONDS:g} s"
            return
        if done.returncode != 0:
            row.peer_error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return
        row.peer_kept = prunable(onnx.load(folder / "plain.out.onnx")) / prunable(made.model)
        cut = onnx.load(folder / "dead.out.onnx")
        if prunable(cut) < prunable(dead):
            row.peer_exact = difference(ir.from_proto(dead), ir.from_proto(cut), feeds_for(made.model, 4, seed=1))


def child(folder: Path, sparsity: float) -> None:
    """In the peer's process: prune both nets."""
    import onnxsim

    for name in ("plain", "dead"):
        model = onnx.load(folder / f"{name}.onnx")
        best = model
        for start in (model, onnxsim.simplify(model)[0]):
            cut = onnxsim.apply_attention_head_pruning(onnxsim.apply_structured_pruning(start, sparsity), sparsity)
            if prunable(cut) < prunable(best) and runs(cut):
                best = cut
        onnx.save(best, folder / f"{name}.out.onnx")


def runs(model: onnx.ModelProto) -> bool:
    try:
        run(open_session(ir.from_proto(model)), feeds_for(model, 2))
    except Exception:  # what onnxruntime rejects is not a result
        return False
    return True


def cells(row: Row) -> list[str]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def far(value: float | None) -> str:
        return "-" if value is None else f"{value:.0e}" if value else "0"

    mark = "" if row.reached else "*"
    reason = row.why if len(row.why) <= 22 else row.why[:21] + "…"
    return [row.topology + mark, share(row.kept), far(row.exact), share(row.peer_kept), far(row.peer_exact), reason]


def show(rows: Sequence[Row]) -> None:
    console.table(
        [
            ("topology", "left"),
            ("kept", "right"),
            ("exact", "right"),
            ("onnxsim", "right"),
            ("exact", "right"),
            ("refused", "left"),
        ],
        [cells(r) for r in rows],
    )
    missed = [r for r in rows if not r.reached]
    for row in missed:
        console.out(f"* {row.topology}: {row.why or 'nothing was refused'}")
    console.out(
        f"{len(rows) - len(missed)} of {len(rows)} keep at most {KEPT_AT_MOST} and are exact to {EXACT_AT_MOST:g}"
    )
    peers = [r for r in rows if r.peer_kept is not None]
    if peers:
        good = sum(
            (r.peer_kept or 1) <= KEPT_AT_MOST and (r.peer_exact is not None and r.peer_exact <= EXACT_AT_MOST)
            for r in peers
        )
        console.out(f"onnxsim: {good} of {len(peers)}")
    for why in sorted({r.peer_error for r in rows if r.peer_error}):
        console.note(f"onnxsim's pruner did not run: {why}")


@click.command()
@click.option("--only", default=",".join(TOPOLOGIES), help="Names of topologies, separated by commas.")
@click.option("--ratio", default=0.5, show_default=True)
@click.option("--allocation", type=click.Choice(["global", "uniform"]), default="global", show_default=True)
@click.option("--samples", default=32, show_default=True)
@click.option("--peer/--no-peer", "with_peer", default=True)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/topologies.json")
)
@click.option("--child", "child_spec", hidden=True)
def main(
    only: str, ratio: float, allocation: str, samples: int, with_peer: bool, json_path: Path, child_spec: str | None
) -> None:
    """Run the benchmark and print one table; exit code 1 where a topology misses the target."""
    if child_spec:
        folder, sparsity = child_spec.rsplit(",", 1)
        child(Path(folder), float(sparsity))
        return
    rows = []
    for name in only.split(","):
        console.note(name)
        made, row = make(name), Row(name)
        ours(row, made, PruneOptions(ratio, allocation=allocation), samples)
        if with_peer:
            peer(row, made, ratio)
        rows.append(row)
    show(rows)
    console.out(this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    written = [asdict(r) | {"reached": r.reached} for r in rows]
    json_path.write_text(
        json.dumps(
            document("topologies", machine=this_machine().as_dict(), ratio=ratio, allocation=allocation, rows=written),
            indent=1,
        )
    )
    sys.exit(0 if all(r.reached for r in rows) else 1)


if __name__ == "__main__":
    main()
