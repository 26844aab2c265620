"""quantize: static int8 with calibration samples, as onnxruntime's CPU kernels fuse it.

The nodes, ranges and the writing are those of `static_int8.py`; with a largest drop, `sensitivity.py` finds the fewest
layers that stay in float.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.evaluate.profile_comparison import ProfileComparison, profile_compare
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.output_gain import predicted_loss
from onnxpress.model import read
from onnxpress.model.files import check_target
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving, setting
from onnxpress.passes.core.options import TargetCpuOptions, option
from onnxpress.passes.int8 import embedding_tables, subgraph_weights
from onnxpress.passes.int8.calibration_file import read_ranges, write_ranges
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.qdq.bias_compaction import compact_biases
from onnxpress.passes.int8.qdq.qoperator import to_integer_operators
from onnxpress.passes.int8.qdq.write import histograms_for, quantization_grid
from onnxpress.passes.int8.quantization_recipe import BITS, ROUNDINGS, QuantizationRecipe, RecipeOptions
from onnxpress.passes.int8.sensitivity import LayerSensitivity, int8_candidates, layer_sensitivity
from onnxpress.passes.int8.static_int8 import quantize, quantize_actions, refusals
from onnxpress.runtime.machine import this_machine

FORMATS = ("qdq", "qoperator")
AUTO, ALWAYS, NEVER = "auto", "always", "never"
_PROFILE_SECONDS = 1.0  # of profiling, before and after together
_TOP = 127.0


@dataclass(frozen=True)
class QuantizeOptions(TargetCpuOptions):
    """What is quantized, and how."""

    ranges: str = option(
        AUTO,
        help="Calibration method: auto (selected by output error), minmax, average, percentile, entropy, "
        "mse, output-error (output-error-weighted), headroom (min-max with headroom); or a file of ranges, read if it "
        "exists, written otherwise.",
        metavar="METHOD|FILE.json",
    )
    equalize: str = option(
        AUTO,
        help="Cross-layer equalization (exact in float); auto: only for tensors where it reduces the output error.",
        choices=(AUTO, ALWAYS, NEVER),
    )
    rounding: str = option(
        AUTO,
        help="Rounding of weights: nearest or output-aware; auto: selected by output error.",
        choices=(AUTO, *ROUNDINGS),
    )
    format: str = option(
        FORMATS[0],
        help="qdq: QuantizeLinear and DequantizeLinear, fused by onnxruntime; qoperator: integer operators.",
        choices=FORMATS,
    )
    activations: int = option(
        8, help="Bits of activations; 16 is for other runtimes: onnxruntime has no CPU kernels for it.", choices=BITS
    )
    include: tuple[str, ...] = option(
        (),
        help="Quantize only these nodes: a name, an operator or a regular expression; can be repeated.",
        metavar="PATTERN",
    )
    exclude: tuple[str, ...] = option(
        (), help="Nodes to keep in float, as for `include`; can be repeated.", metavar="PATTERN"
    )
    max_drop: float | None = option(None, help="Maximum drop on the samples; as few layers as possible stay in float.")
    report: bool = option(
        False, help="Report the range and sensitivity of every layer, and the time by layer before and after."
    )

    def check(self) -> None:
        if self.activations > BITS[0] and self.format != FORMATS[0]:
            raise InputProblem("no integer operators of 16 bits", "`format`, `activations`", "", "use qdq for them")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise InputProblem("the drop must lie between 0 and 1", "`max_drop`", f"got {self.max_drop:g}", "give 0.01")
        self.recipe.check()
        if self.ranges_file is not None and not self.ranges_file.exists():
            check_target(self.ranges_file)

    @property
    def ranges_file(self) -> Path | None:
        """The file of ranges, where one is named."""
        return Path(self.ranges) if str(self.ranges).endswith(".json") else None

    @property
    def recipe(self) -> RecipeOptions:
        """What is decided of the quantization recipe, and what is left to the samples."""
        equalize = {AUTO: None, ALWAYS: True, NEVER: False}[self.equalize]
        rounding = None if self.rounding == AUTO else self.rounding
        return RecipeOptions(
            AUTO if self.ranges_file is not None else self.ranges, equalize, rounding, bits=self.activations
        )


@dataclass
class QuantizeDetails:
    """layers: the sensitivity of every layer, the most sensitive first. profile: layers and operators before and
    after, None where it was not asked for or the file is for another CPU."""

    layers: list[LayerSensitivity]
    profile: ProfileComparison | None = None


class Quantize:
    """Static int8 of every node with an integer kernel, calibrated on samples. `bench` and `optimize` tell whether it
    is faster."""

    name = "quantize"
    exact = False
    needs_data = True
    extra = None
    Options = QuantizeOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each node with an integer kernel, each embedding table and each weight of a sub-graph.

        The local loss is the relative error of rounding the input to 8 bits and the weights per channel.
        """
        for node in evidence.model.graph:
            if node.op_type in placement.COMPUTE and placement.refusal_reason(node, evidence.trace) is None:
                name, weight = node.name or "", read.constant(node.inputs[1])
                saving = Saving(weight_bytes=3.0 * weight.size if weight is not None else 0.0)
                loss = predicted_loss(evidence, name, _rounding_loss(evidence, node))
                touches = frozenset(v for v in (name, node.inputs[1].name if node.inputs[1] is not None else "") if v)
                yield Proposal(name, {"nodes": [name]}, touches, saving, loss)
        nodes = {n.name: n for n in evidence.model.graph}
        for name in embedding_tables.quantizable_lookups(evidence.model):
            table = read.constant(nodes[name].inputs[0])
            assert table is not None
            saving = Saving(weight_bytes=3.0 * table.size - 4.0 * table.shape[1])
            yield Proposal(
                name,
                {"tables": [name]},
                frozenset({name}),
                saving,
                predicted_loss(evidence, name, _weight_loss(table.T)),
            )
        for name in subgraph_weights.quantizable_subgraph_weights(evidence.model):
            yield Proposal(name, {"inner": [name]}, frozenset({name}), loss=predicted_loss(evidence, name, 1e-4))
        yield from refusals(evidence)

    def plan(self, evidence: Evidence, options: QuantizeOptions) -> Planned:
        """Nodes and tables in int8 with their recipe; with `max_drop` without the layers that must stay in float."""
        file, recipe = options.ranges_file, options.recipe
        if file is not None and file.exists():
            recipe = read_ranges(file, evidence, recipe)
        chosen, looked_up = int8_candidates(evidence, options.include, options.exclude)
        notes: list[str] = []
        looking = (chosen or looked_up) and (options.report or options.max_drop is not None)
        found = layer_sensitivity(evidence, chosen, options.max_drop, recipe, looked_up) if looking else None
        if found is not None:
            chosen, looked_up = found.chosen, found.looked_up
            floats = sum(not layer.int8 for layer in found.layers)
            if options.max_drop is not None:
                notes.append(
                    f"drop {found.drop:.4f} on the samples; {floats} of {len(found.layers)} layers stay in float"
                )
        actions = quantize_actions(chosen, evidence, recipe, looked_up=looked_up)
        if actions and options.format != FORMATS[0]:
            actions.append({"format": options.format})
        if file is not None and not file.exists():
            write_ranges(file, evidence, QuantizationRecipe.from_decisions(actions))
        if not actions and found is None:
            notes.append("no operator has an integer kernel, or all are quantized already or excluded")
        return Planned(actions, notes, refusals(evidence), QuantizeDetails(found.layers) if found is not None else None)

    def finish(self, evidence: Evidence, options: QuantizeOptions, planned: Planned, done: Applied) -> None:
        """Add where the time goes before and after, for a report on this CPU."""
        done.details = planned.details
        if not options.report or planned.details is None or evidence.machine != this_machine():
            return
        original = evidence.original or evidence.model
        feeds = next(iter(evidence.samples().batches(1))).inputs
        profile = profile_compare(original, done.model, feeds, _PROFILE_SECONDS)
        spent = {p.name: p for p in profile.layers}
        layers = [
            replace(x, seconds_before=spent[x.node].before or None, seconds_after=spent[x.node].after or None)
            if x.node in spent
            else x
            for x in planned.details.layers
        ]
        done.details = QuantizeDetails(layers, profile)

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"nodes": [names]}, …] and optionally {"tables": [names of look-ups]}, {"inner": [names of
        weights]},
        {"ranges": method | [low, high] by tensor}, {"equalized": decisions of `equalize`}, {"rounding": "nearest" |
        "output-aware"},
        {"activations": 8 | 16}, {"correct": "bias" | "none"}, {"format": "qdq" | "qoperator"},
        {"products": "exact" | "saturating"} (default: what the evidence's machine does)."""
        nodes = [str(n) for d in actions for n in d.get("nodes", [])]
        looked_up = [str(n) for d in actions for n in d.get("tables", [])]
        inside = [str(n) for d in actions for n in d.get("inner", [])]
        if not nodes and not looked_up and not inside:
            return Applied(evidence.model.clone())
        correct = next((d["correct"] for d in actions if "correct" in d), "bias")
        exact = next((d["products"] == "exact" for d in actions if "products" in d), evidence.machine.int8_exact)
        form = setting(actions, "format", FORMATS)
        done = quantize(
            evidence,
            frozenset(nodes),
            QuantizationRecipe.from_decisions(actions),
            correct == "bias",
            exact,
            looked_up,
            inside,
        )
        if form == "qoperator" and QuantizationRecipe.from_decisions(actions).bits > 8:
            raise InputProblem("no integer operators of 16 bits", form, "", "use pairs for them")
        if form == "qoperator":
            count = to_integer_operators(done.model, frozenset(nodes))
            done.notes.append(f"{count} of {len(nodes)} nodes as integer operators, the others between pairs")
        elif short := compact_biases(done.model):
            done.notes.append(f"compact biases of {short} layers: 16-bit integers, scales as products")
        return done


def _rounding_loss(evidence: Evidence, node: ir.Node) -> float:
    """Relative squared error of a node's output by rounding its input, its weights and its output."""
    weight = read.constant(node.inputs[1])
    lost = 0.0 if weight is None else _weight_loss(np.moveaxis(weight, 0 if node.op_type == "Conv" else -1, 0))
    source = node.inputs[0].name if node.inputs[0] is not None else None
    target = placement.final_output(node).name
    return lost + sum(_tensor_loss(evidence, name) for name in (source, target) if name)


def _tensor_loss(evidence: Evidence, tensor: str) -> float:
    """Relative squared error of rounding a tensor to 8 bits over its range on the samples; 0 where it is not known."""
    seen = histograms_for(evidence).get(tensor) if evidence.data is not None else None
    if seen is None or not seen.finite:
        return 0.0
    mean = float((seen.counts * seen.bin_centers).sum()) / max(float(seen.counts.sum()), 1.0)
    power = float((seen.counts * (seen.bin_centers - mean) ** 2).sum()) / max(float(seen.counts.sum()), 1.0)
    return float(quantization_grid(seen.low, seen.high).scale) ** 2 / 12 / max(power, 1e-30)


def _weight_loss(weight: np.ndarray) -> float:
    """Relative squared error of rounding to 8 bits, one scale for each position of the first axis."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    steps = np.abs(rows).max(axis=1) / _TOP
    return float((steps**2 / 12).sum() * rows.shape[1] / max(float((rows**2).sum()), 1e-30))


QUANTIZE = Quantize()
