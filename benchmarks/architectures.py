"""Architecture sweep: what share of its parameters every well-known architecture loses at one ratio, and whether rightly.

    pip install torchvision transformers onnxscript     # beside the extra `train`
    python benchmarks/architectures.py [--family classification] [--only 'resnet*'] [--ratio 0.3] [--json FILE] [--resume]

The list: the nine topologies of the onnx wheel, everything in torchvision's registry (classification, segmentation, video;
of detectors the backbone), and small configurations of transformers.  Weights are drawn from a seed, those that would begin as
constants (normalisation, layer scale, biases) too, so that a channel mistaken for another shows.  Every architecture is exported
with a free batch axis (by dynamo, else by TorchScript), simplified, and pruned by magnitude with the same ratio for every group,
without repair, in a process of its own.

An architecture passes where the result keeps the contract of `optimize` (checker, signature, sizes it runs at), agrees with the
masked original at two batch sizes to 1e-5 of the largest output, and at least 20 % of the parameters are gone (outside of
classification: any).  `effect` in the JSON is how far the mask itself moves the outputs: a small one would say that
agreement means nothing.  For comparison: DepGraph's authors report 81 of 85 torchvision architectures, on torch modules.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper

from onnxpress.cli import console
from onnxpress.data.dataset import Dataset
from onnxpress.data.synthetic import synthetic
from onnxpress.errors import Problem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model import channels as ch
from onnxpress.model import edit, read
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import signature
from onnxpress.optimize import contract
from onnxpress.optimize.run import document
from onnxpress.optimize.single import simplify
from onnxpress.passes.prune import PRUNE, Wish, plan_pruning
from onnxpress.runtime import isolate
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.session import open_session, run

FAMILIES = ("light", "classification", "segmentation", "detection", "video", "transformers")
BATCHES = (1, 3)
PARITY, GOAL = 1e-5, 0.2
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
TOKENS, VOCABULARY = 16, 512

# Pictures are small where the architecture allows: (frames,) height, width; 64 x 64 where nothing is said.
SIZES: dict[str, tuple[int, ...]] = {
    "inception_v3": (299, 299), "maxvit_t": (224, 224), "vit_h_14": (70, 70), "swin_*": (96, 96), "ssd*": (300, 300),
    "s3d": (16, 224, 224), "mvit_*": (16, 224, 224), "swin3d_*": (8, 64, 64), "*_18": (8, 64, 64),
}  # fmt: skip

# name: class of the configuration, class of the model, settings, what it reads
_ENCODER = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "use_cache": False}
_PATCHES = {"image_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", _ENCODER, "tokens"),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", _ENCODER, "tokens"),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", {**_ENCODER, "embedding_size": 64}, "tokens"),
    "distilbert": (
        "DistilBertConfig", "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 512}, "tokens",
    ),
    "t5_encoder": (
        "T5Config", "T5EncoderModel",
        {"vocab_size": VOCABULARY, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4}, "tokens",
    ),
    "gpt2": (
        "GPT2Config", "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}, "tokens",
    ),
    "opt": (
        "OPTConfig", "OPTForCausalLM",
        {**_ENCODER, "ffn_dim": 512, "word_embed_proj_dim": 128, "max_position_embeddings": 64, "use_cache": False}, "tokens",
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER, "tokens"),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_DECODER, "sliding_window": None, "head_dim": 32}, "tokens"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER, "tokens"),
    "vit": ("ViTConfig", "ViTForImageClassification", {**_PATCHES, "patch_size": 8}, "pictures"),
    "deit": ("DeiTConfig", "DeiTForImageClassification", {**_PATCHES, "patch_size": 8}, "pictures"),
    "swin": (
        "SwinConfig", "SwinForImageClassification",
        {"image_size": 64, "embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4, "patch_size": 4}, "pictures",
    ),
    "segformer": (
        "SegformerConfig", "SegformerForImageClassification",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 96, 128], "num_attention_heads": [1, 2, 3, 4]}, "pictures",
    ),
}  # fmt: skip

os.environ["ONNXPRESS_CACHE"] = "off"  # nothing observed in an earlier run may help this one


@dataclass(frozen=True)
class Architecture:
    name: str
    family: str


class Plain(torch.nn.Module):
    """A module that takes tensors by position and answers a tuple of tensors, whatever the inner one calls them."""

    def __init__(self, inner: torch.nn.Module, keywords: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.inner, self.keywords = inner, keywords

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.keywords:
            return tensors(self.inner(**dict(zip(self.keywords, inputs, strict=True))))
        return tensors(self.inner(*inputs))


def tensors(answer: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of an answer, in order."""
    if isinstance(answer, torch.Tensor):
        return (answer,)
    parts = answer.values() if hasattr(answer, "values") else answer if isinstance(answer, (tuple, list)) else ()
    return tuple(t for part in parts for t in tensors(part))


def vision() -> ModuleType:
    """torchvision.models.  Its wheel may be built for another torch than this one, and its C++ operators then do not load:
    nothing here needs them, but the import wants to register shapes for two, which is then left out."""
    register = torch.library.register_fake

    def tolerant(name: Any, *args: Any, **more: Any) -> Callable[[Any], Any]:
        def wrap(function: Any) -> Any:
            try:
                return register(name, *args, **more)(function)
            except RuntimeError:
                return function

        return wrap

    torch.library.register_fake = tolerant
    try:
        import torchvision.models
        import torchvision.models.detection
        import torchvision.models.segmentation
        import torchvision.models.video
    finally:
        torch.library.register_fake = register
    models: ModuleType = torchvision.models
    return models


def catalogue() -> list[Architecture]:
    """Every architecture that the installed packages have."""
    found = [Architecture(p.stem, "light") for p in sorted(LIGHT.glob("*.onnx"))]
    if importlib.util.find_spec("torchvision") is not None:
        models = vision()
        for family in ("classification", "segmentation", "detection", "video"):
            module = models if family == "classification" else getattr(models, family)
            found += [Architecture(name, family) for name in models.list_models(module=module)]
    else:
        console.note("torchvision is not installed: its architectures are left out")
    if importlib.util.find_spec("transformers") is not None:
        found += [Architecture(name, "transformers") for name in TRANSFORMERS]
    else:
        console.note("transformers is not installed: its architectures are left out")
    return found


def built(item: Architecture) -> tuple[Plain, dict[str, torch.Tensor]]:
    """The module with seeded weights, and its inputs of a batch of three by name."""
    torch.manual_seed(0)
    rows = max(BATCHES)
    if item.family == "transformers":
        if importlib.util.find_spec("torchvision") is not None:
            vision()  # transformers imports it, too
        import transformers

        config, kind, settings, reads = TRANSFORMERS[item.name]
        module = getattr(transformers, kind)(getattr(transformers, config)(**settings))
        tokens = torch.randint(2, VOCABULARY, (rows, TOKENS))
        text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        inputs = text if reads == "tokens" else {"pixel_values": torch.randn(rows, 3, 64, 64)}
        return Plain(module, tuple(inputs)), inputs
    size = next((s for pattern, s in SIZES.items() if fnmatch.fnmatch(item.name, pattern)), (64, 64))
    more: dict[str, Any] = {"image_size": size[-1]} if item.name.startswith("vit_") else {}
    more |= {"init_weights": True} if item.name in ("googlenet", "inception_v3") else {}
    more |= {"weights_backbone": None} if item.family in ("segmentation", "detection") else {}
    module = vision().get_model(item.name, weights=None, **more)
    return Plain(module.backbone if item.family == "detection" else module), {"images": torch.randn(rows, 3, *size)}


def unsettle(module: torch.nn.Module) -> None:
    """Random numbers for what begins as a constant: else channels are alike, and branches that begin at zero are not seen."""
    generator = torch.Generator().manual_seed(1)
    statistics = [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
    with torch.no_grad():
        for tensor in [*module.parameters(), *statistics]:
            if tensor.numel() < 2 or not tensor.is_floating_point() or tensor.std() > 1e-6:
                continue
            start = float(tensor.flatten()[0])
            noise = torch.rand(tensor.shape, generator=generator) - 0.5
            tensor.copy_(start * (1 + noise) if abs(start) > 0.01 else 0.4 * noise)


def by_dynamo(module: Plain, inputs: dict[str, torch.Tensor], path: Path) -> None:
    batch = torch.export.Dim("batch")
    shapes = (tuple({0: batch} for _ in inputs),)  # of the one variadic parameter
    program = torch.onnx.export(
        module, tuple(inputs.values()), dynamo=True, dynamic_shapes=shapes, input_names=list(inputs), verbose=False
    )
    assert program is not None
    program.save(str(path))


def by_script(module: Plain, inputs: dict[str, torch.Tensor], path: Path) -> None:
    free = {name: {0: "batch"} for name in inputs}
    torch.onnx.export(
        module, tuple(inputs.values()), str(path), dynamo=False, opset_version=17, input_names=list(inputs), dynamic_axes=free
    )


def exported(item: Architecture, path: Path) -> str:
    """Write the architecture's file; returns the exporter.  Raises RuntimeError with the reasons of both."""
    module, inputs = built(item)
    unsettle(module.eval())
    reasons = []
    for name, export in (("dynamo", by_dynamo), ("script", by_script)):
        try:
            with torch.no_grad():
                export(module, inputs, path)
                check(module, inputs, path)
            return name
        except Exception as error:  # whatever an exporter raises, the next one is asked
            cause = error.__cause__ or error
            reasons.append(f"{name}: {brief(cause)}")
    raise RuntimeError("; ".join(reasons))


def check(module: Plain, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """The file must answer as the module does, at both batch sizes."""
    session = open_session(path)
    for size in BATCHES:
        part = {name: t[:size] for name, t in inputs.items()}
        taken = {v.name for v in session.get_inputs()}
        found = run(session, {name: t.numpy() for name, t in part.items() if name in taken})
        apart = far([t.numpy() for t in module(*part.values())], found)
        if not apart < 1e-3:
            raise RuntimeError(f"the exported file differs by {apart:.1e} at batch {size}")


def light(name: str, path: Path) -> None:
    """A topology of the wheel with seeded weights in place of its equal ones."""
    proto, rng = onnx.load(LIGHT / f"{name}.onnx"), np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    uses = {v: (n.op_type, i) for n in proto.graph.node for i, v in enumerate(n.input)}
    makers = [n for n in proto.graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]
    for node in makers:
        shape = tuple(int(s) for s in shapes[node.input[0]])
        array = rng.standard_normal(shape) * (np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)
        if uses.get(node.output[0], ("", 0)) in {("BatchNormalization", 1), ("BatchNormalization", 4)}:
            array = 0.5 + rng.random(shape)
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), node.output[0]))
        proto.graph.node.remove(node)
    proto.ir_version = max(proto.ir_version, 4)  # from there on initializers need not be inputs as well
    onnx.save(proto, path)


def far(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest difference, as a share of the largest number, over all outputs."""
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        x, y = a.astype(np.float64), b.astype(np.float64)
        apart = float(np.abs(x - y).max(initial=0.0)) / max(float(np.abs(x).max(initial=0.0)), 1e-30)
        worst = max(worst, apart) if np.isfinite(apart) else float("nan")
    return worst


def brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]


def measure(path: Path, ratio: float) -> dict[str, Any]:
    """Prune one file and hold the result against the masked original."""
    model = load(path)
    data = synthetic(signature(model), max(BATCHES), vocabulary=VOCABULARY)
    evidence = evidence_for(simplify(model).model, data)
    assert evidence.trace.shapes  # taken before the clock: a run of the model is no analysis
    start = time.perf_counter()
    facts = evidence.channels
    seconds = time.perf_counter() - start
    wish = Wish(ratio, spread="uniform", criterion="magnitude")
    decisions = plan_pruning(evidence, wish)
    removal = {d["group"]: d["remove"] for d in decisions}
    pruned = PRUNE.apply(evidence.model, [*decisions, {"repair": "none"}] if decisions else [], evidence).model
    before, after = read.parameters(evidence.model), read.parameters(pruned)
    row = {
        "original": read.parameters(edit.canonical(model)), "before": before, "after": after, "gone": 1 - after / before,
        "seconds": seconds, "nodes": len(list(evidence.model.graph)), "groups": len(facts.groups), "refused": refusals(evidence),
        "problems": contract.same_shape_behaviour(model, to_bytes(pruned), data),
    }  # fmt: skip
    return row | parity(model, evidence, ch.mask(evidence.model, facts, removal), pruned, data)


def parity(model: ir.Model, evidence: Evidence, masked: ir.Model, pruned: ir.Model, data: Dataset) -> dict[str, Any]:
    """Differences at the batch sizes that the file takes: of the simplified file from the original, of the mask from the
    simplified file, of the result from the mask."""
    sessions = [open_session(m) for m in (model, evidence.model, masked, pruned)]
    batches: list[int] = []
    exact = effect = apart = 0.0
    for size in BATCHES:
        feeds = next(iter(data.batches(size))).inputs
        rows = len(next(iter(feeds.values())))
        if rows in batches:  # the file's batch is fixed
            continue
        batches.append(rows)
        first, base, reference, found = (run(s, feeds) for s in sessions)
        exact, effect = max(exact, far(first, base)), max(effect, far(base, reference))
        apart = max(apart, far(reference, found))
    return {"batches": batches, "exact": exact, "effect": effect, "difference": apart}


def refusals(evidence: Evidence) -> list[dict[str, Any]]:
    """Why layers keep their channels, by the parameters that concerns; `first` names a layer."""
    nodes = {n.name: n for n in evidence.model.graph}
    found: dict[str, dict[str, Any]] = {}
    for refusal in evidence.channels.refused:
        weight = read.constant(nodes[refusal.node].inputs[1])
        reason = re.sub(r" \([^)]*\)", "", refusal.reason)
        entry = found.setdefault(reason, {"reason": reason, "layers": 0, "parameters": 0, "first": f"{refusal.node}: {refusal.reason}"})
        entry["layers"] += 1
        entry["parameters"] += 0 if weight is None else int(weight.size)
    return sorted(found.values(), key=lambda e: -int(e["parameters"]))[:8]


def child(name: str, family: str, ratio: str, models: str, target: str) -> None:
    """One architecture, from its definition to a row, in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    path = Path(models) / family / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_suffix(".exporter")
    row: dict[str, Any] = {"name": name, "family": family, "exporter": "", "why": ""}
    stage = "export"
    try:
        if family == "light":
            light(name, path)
            note.write_text("file")
        elif not note.exists():
            note.write_text(exported(Architecture(name, family), path))
        row["exporter"], stage = note.read_text(), "prune"
        row |= measure(path, float(ratio))
        row["why"] = verdict(row)
    except Problem as error:
        row["why"] = f"{stage}: {error}"
    except Exception as error:  # a crash of the tool is a result here
        where = traceback.extract_tb(error.__traceback__)[-1]
        row["why"] = f"{stage}: {brief(error)}" + (f" ({Path(where.filename).name}:{where.lineno})" if stage == "prune" else "")
    Path(target).write_text(json.dumps(row))


def verdict(row: dict[str, Any]) -> str:
    """Empty where the architecture passes, else the first reason against it."""
    if row["problems"]:
        return f"contract: {row['problems'][0]}"
    if not row["difference"] <= PARITY:
        return f"differs from the masked original by {row['difference']:.1e}"
    goal = GOAL if row["family"] in ("classification", "light") else 0.0
    if row["gone"] <= 0 or row["gone"] < goal:
        return f"{row['gone']:.1%} of the parameters gone"
    return ""


def swept(item: Architecture, ratio: float, models: Path, timeout: float) -> dict[str, Any]:
    """The row of one architecture, whatever happens to its process."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "row.json"
        done = isolate.call("architectures:child", item.name, item.family, str(ratio), str(models), str(target), seconds=timeout)
        if target.exists():
            row: dict[str, Any] = json.loads(target.read_text())
            return row
    return {"name": item.name, "family": item.family, "exporter": "", "why": f"{done.reason}: {done.detail}"}


def cells(row: dict[str, Any]) -> list[str]:
    if "gone" not in row:
        return [row["name"], "", "", "", "", "", row["exporter"], "no"]
    sizes = ",".join(str(b) for b in row["batches"])
    numbers = [f"{row['before'] / 1e6:.2f}", f"{row['gone']:.1%}", f"{row['difference']:.0e}", sizes, f"{row['seconds']:.1f}"]
    return [row["name"], *numbers, row["exporter"], "no" if row["why"] else "yes"]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table a family, what failed with the layers that keep most parameters, and the score."""
    columns = [("architecture", "left"), *((c, "right") for c in ("M par.", "gone", "diff", "batch", "s")), ("by", "left"), ("ok", "left")]
    for family in FAMILIES:
        own = [r for r in rows if r["family"] == family]
        if not own:
            continue
        console.table(columns, [cells(r) for r in own], title=family)
        for row in own:
            if row["why"]:
                console.out(f"{row['name']}: {row['why']}")
                for entry in row.get("refused", [])[:3]:
                    console.out(f"  {entry['parameters'] / max(row['before'], 1):.0%} in {entry['layers']} layers: {entry['first']}")
        passed, tried = sum(not r["why"] for r in own), sum(bool(r["exporter"]) for r in own)
        console.out(f"{family}: {passed} of {tried} pass; {len(own) - tried} could not be exported or ended before")


def save(rows: Sequence[dict[str, Any]], ratio: float, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": this_machine().as_dict(), "torch": torch.__version__, "onnx": onnx.__version__, "ratio": ratio}
    path.write_text(json.dumps(document("architectures", **facts, rows=list(rows)), indent=1))


def known(path: Path, ratio: float) -> list[dict[str, Any]]:
    """Rows that an earlier run with this ratio left."""
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    return list(before["rows"]) if before["ratio"] == ratio else []


@click.command()
@click.option("--only", default="*", help="Names, as shell patterns with commas between.")
@click.option("--family", type=click.Choice(FAMILIES), multiple=True)
@click.option("--ratio", default=0.3)
@click.option("--timeout", default=1200.0, help="Seconds for one architecture.")
@click.option("--models", type=click.Path(path_type=Path), help="Folder where exported files are kept and found again.")
@click.option("--resume", is_flag=True, help="Keep the rows that the JSON file has already.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/architectures.json"))
def main(only: str, family: tuple[str, ...], ratio: float, timeout: float, models: Path | None, resume: bool, json_path: Path) -> None:
    """Run the sweep and print one table a family."""
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH", "")) if p)
    listed = [a for a in catalogue() if any(fnmatch.fnmatch(a.name, p) for p in only.split(",")) and a.family in (family or FAMILIES)]
    rows = known(json_path, ratio) if resume else []
    done = {(r["family"], r["name"]) for r in rows}
    for number, item in enumerate(listed, 1):
        if (item.family, item.name) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(swept(item, ratio, models or Path(folder), timeout))
        console.note(f"{number}/{len(listed)} {' '.join(cells(rows[-1]))} {rows[-1]['why']}")
        save(rows, ratio, json_path)
    show(rows)
    console.out(this_machine().text())


if __name__ == "__main__":
    sys.exit(main())
