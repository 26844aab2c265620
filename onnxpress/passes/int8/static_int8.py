"""Static int8 in QDQ form: the nodes worth an integer kernel, the actions that quantize them, and the writing.

Activations are u8 with a zero point (0 behind a Relu, so that the Relu fuses), weights s8 per output channel, biases
int32. How ranges are calibrated, whether channels are equalized first and how weights are rounded is a quantization
recipe (`quantization_recipe.py`), selected by the error of the outputs. The mean error that rounding leaves on each
output channel is corrected in the bias. Where Q/DQ pairs stand: `qdq/placement.py`; how they are written:
`qdq/write.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, EvidenceKey
from onnxpress.model import edit, read
from onnxpress.passes.core.contract import Action, Applied, Refusal
from onnxpress.passes.int8 import calibration, embedding_tables, subgraph_weights
from onnxpress.passes.int8.bias_correction import correct_bias
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.qdq.layout_forms import drop_layout_forms
from onnxpress.passes.int8.qdq.write import histograms_for, write_qdq
from onnxpress.passes.int8.quantization_recipe import (
    ROUNDINGS,
    QuantizationRecipe,
    RecipeOptions,
    choose_recipe,
    equalized_evidence,
)

_RECIPES: EvidenceKey[dict[str, tuple[RecipeOptions, QuantizationRecipe]]] = EvidenceKey("quantization recipes")
_FEW = 12  # layers whose bias is corrected while recipes are compared, too


def quantizable(evidence: Evidence, exclude: Iterable[str] = ()) -> frozenset[str]:
    """Every node worth an integer kernel, whose values are finite on the samples and that is not excluded."""
    unfit = {name for name, spread in histograms_for(evidence).items() if not spread.finite}
    out = set(exclude)
    for node in evidence.model.graph:
        touched = {v.name for v in node.inputs if v is not None} | {v.name for v in node.outputs}
        if touched & unfit or any(v.name in unfit for v in placement.final_outputs(node)):
            out.add(node.name or "")
    return placement.default_nodes(evidence.model, evidence.trace, out)


def quantize_actions(
    chosen: frozenset[str],
    evidence: Evidence,
    options: RecipeOptions | None = None,
    correct: bool = True,
    looked_up: Sequence[str] = (),
) -> list[Action]:
    """The decisions that run exactly the chosen nodes in int8, and keep the tables of these look-ups and the weights
    of bodies so; what the wish leaves open of the recipe is decided here, by measuring."""
    inside = subgraph_weights.quantizable_subgraph_weights(evidence.model)
    if not chosen and not looked_up and not inside:
        return []
    recipe = recipe_for(evidence, chosen, options or RecipeOptions())[1] if chosen else QuantizationRecipe()
    return [
        {"nodes": sorted(chosen)},
        *([{"tables": list(looked_up)}] if looked_up else []),
        *([{"inner": inside}] if inside else []),
        *recipe.actions(),
        {"correct": "bias" if correct else "none"},
        {"products": "exact" if evidence.machine.int8_exact else "saturating"},
    ]


def recipe_for(
    evidence: Evidence, chosen: frozenset[str], options: RecipeOptions, more_time: Callable[[], bool] = lambda: True
) -> tuple[RecipeOptions, QuantizationRecipe]:
    """The settled request and the recipe with the least output error when these nodes are in int8; measured once each.

    With the bias corrected, as in the end, where few layers make that cheap. more_time: whether another recipe may be
    tried.
    """
    known = evidence.derive(_RECIPES, dict)
    if str(options) not in known:
        few = sum(n.name in chosen and n.op_type in placement.COMPUTE for n in evidence.model.graph) <= _FEW
        exact = evidence.machine.int8_exact
        settled = choose_recipe(
            evidence, options, lambda e, recipe: quantize(e, chosen, recipe, few, exact).model, more_time
        )
        known[str(options)] = settled, settled.on(evidence)
    return known[str(options)]


def refusals(evidence: Evidence) -> list[Refusal]:
    """Weight-bearing nodes that have no integer kernel, and why."""
    return [
        Refusal(n.name or "", why)
        for n in evidence.model.graph
        if n.op_type in read.WEIGHTED and (why := placement.refusal_reason(n, evidence.trace)) is not None
    ] + embedding_tables.refusals(evidence.model)


def quantize(
    evidence: Evidence,
    chosen: frozenset[str],
    recipe: QuantizationRecipe,
    correct: bool,
    exact: bool,
    looked_up: Sequence[str] = (),
    inside: Sequence[str] = (),
) -> Applied:
    """The model with the chosen nodes in int8, the tables of these look-ups, and these weights of bodies."""
    evidence = equalized_evidence(evidence, recipe)
    source = evidence.model
    plan = _checked_layout(evidence, chosen, looked_up)
    grids = calibration.activation_grids(evidence, recipe.ranges, plan, recipe.bits)
    work = source.clone()
    by = f"by {recipe.ranges}" if isinstance(recipe.ranges, str) else "as given"
    notes = [f"{len(chosen)} nodes in int8, {len(plan.tensors)} tensors, ranges {by}"]
    if recipe.equalized:
        notes.append(f"channels of {len(recipe.equalized)} tensors equalized")
    if recipe.bits > 8:
        notes.append("activations in 16 bits are for other runtimes: onnxruntime's CPU kernels compute them in float")
    narrow = write_qdq(work, plan, grids, evidence, exact or recipe.bits > 8, recipe.rounding == ROUNDINGS[1])
    if looked_up:
        notes.append(f"{embedding_tables.quantize_tables(work, looked_up)} embedding tables in int8")
    if inside:
        notes.append(
            f"{subgraph_weights.quantize_subgraph_weights(work, inside)} "
            "weights of sub-graphs in int8, the arithmetic in float"
        )
    if narrow:
        notes.append(
            f"weights of {narrow} output channels have reduced range: sums of pairs would saturate without VNNI"
        )
    if correct:
        notes.append(f"bias corrected on {correct_bias(evidence, work, plan)} layers")
    if count := drop_layout_forms(work, evidence.trace):
        notes.append(f"{count} operators that keep float tensors in blocks were taken out")
    edit.drop_dead(work)
    edit.forget_shapes(work)
    return Applied(work, notes, refusals(evidence))


def _checked_layout(evidence: Evidence, chosen: frozenset[str], looked_up: Sequence[str]) -> placement.QdqLayout:
    """Where Q/DQ pairs stand for the chosen nodes; raises InputProblem for nodes that cannot run in int8."""
    source = evidence.model
    known = {n.name for n in source.graph}
    missing = sorted((chosen | set(looked_up)) - known)
    if missing:
        raise InputProblem(
            "the plan names nodes the model does not have",
            missing[0],
            f"{len(missing)} in all",
            "use the plan with the model it was made for",
        )
    bad: list[tuple[str | None, str]] = [
        (n.name, why) for n in source.graph if n.name in chosen and (why := placement.refusal_reason(n, evidence.trace))
    ]
    rows = [n for n in source.graph if n.name in looked_up]
    bad += [
        (n.name, why or "it looks nothing up") for n in rows if (why := embedding_tables.refusal_reason(n)) is not None
    ]
    if bad:
        raise InputProblem("a node cannot run in int8", bad[0][0], str(bad[0][1]), "take it out of the plan")
    layout = placement.qdq_layout(source, chosen)
    for name in layout.tensors:
        if not histograms_for(evidence)[name].finite:
            raise InputProblem(
                "a tensor is not finite on the samples", name, "NaN or infinity", "take the node out of the plan"
            )
    return layout
