"""Well-known architectures as ONNX files: which are available, their modules with seeded weights, and their export.

The list of `architectures.py`: the topologies of the onnx wheel, torchvision's registry (of detectors the backbone),
and small configurations of transformers.  Weights with constant initialization (normalization, layer scale, biases) are
drawn at random as well, so that a channel mistaken for another shows.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from onnxpress.cli.output import console
from onnxpress.runtime.session import open_session, run

BATCHES = (1, 3)
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
TOKENS, VOCABULARY = 16, 512
_TORCHVISION = ("classification", "segmentation", "detection", "video")
FAMILIES = ("light", *_TORCHVISION, "transformers")

# Images are small where the architecture allows: (frames,) height, width; default 64 x 64.
SIZES: dict[str, tuple[int, ...]] = {
    "inception_v3": (299, 299), "maxvit_t": (224, 224), "vit_h_14": (70, 70), "swin_*": (96, 96), "ssd*": (300, 300),
    "s3d": (16, 224, 224), "mvit_*": (16, 224, 224), "swin3d_*": (8, 64, 64), "*_18": (8, 64, 64),
}  # fmt: skip

# name: class of the configuration, class of the model, settings, kind of input
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "use_cache": False}
_PATCHES = {
    "image_size": 64,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
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
        {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False},
        "tokens",
    ),
    "opt": (
        "OPTConfig", "OPTForCausalLM",
        {**_ENCODER, "ffn_dim": 512, "word_embed_proj_dim": 128, "max_position_embeddings": 64, "use_cache": False},
        "tokens",
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER, "tokens"),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_DECODER, "sliding_window": None, "head_dim": 32}, "tokens"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER, "tokens"),
    "vit": ("ViTConfig", "ViTForImageClassification", {**_PATCHES, "patch_size": 8}, "pictures"),
    "deit": ("DeiTConfig", "DeiTForImageClassification", {**_PATCHES, "patch_size": 8}, "pictures"),
    "swin": (
        "SwinConfig", "SwinForImageClassification",
        {"image_size": 64, "embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4, "patch_size": 4},
        "pictures",
    ),
    "segformer": (
        "SegformerConfig", "SegformerForImageClassification",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 96, 128], "num_attention_heads": [1, 2, 3, 4]}, "pictures",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    name: str
    family: str


class Plain(torch.nn.Module):  # type: ignore[misc]
    """A module with positional tensors as inputs and a tuple of tensors as output."""

    def __init__(self, inner: torch.nn.Module, keywords: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.inner, self.keywords = inner, keywords

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.keywords:
            return tensors(self.inner(**dict(zip(self.keywords, inputs, strict=True))))
        return tensors(self.inner(*inputs))


def tensors(answer: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of an output, in order."""
    if isinstance(answer, torch.Tensor):
        return (answer,)
    parts = answer.values() if hasattr(answer, "values") else answer if isinstance(answer, (tuple, list)) else ()
    return tuple(t for part in parts for t in tensors(part))


def vision() -> ModuleType:
    """torchvision.models.

    Its wheel may be built for another version of torch, and its C++ operators then do not load: nothing here needs
    them, but the import registers shapes for two of them, which is then skipped.
    """
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
        return importlib.import_module("torchvision.models")
    finally:
        torch.library.register_fake = register


def catalogue() -> list[Architecture]:
    """All architectures of the installed packages."""
    found = [Architecture(p.stem, "light") for p in sorted(LIGHT.glob("*.onnx"))]
    if importlib.util.find_spec("torchvision") is not None:
        models = vision()
        for family in _TORCHVISION:
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
            vision()  # transformers imports it as well
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
    """Random values for weights with constant initialization: else channels are equal, and branches that start at zero
    have no effect.
    """
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
    shapes = (tuple({0: batch} for _ in inputs),)  # for the one variadic parameter
    program = torch.onnx.export(
        module, tuple(inputs.values()), dynamo=True, dynamic_shapes=shapes, input_names=list(inputs), verbose=False
    )
    assert program is not None
    program.save(str(path))


def by_script(module: Plain, inputs: dict[str, torch.Tensor], path: Path) -> None:
    free = {name: {0: "batch"} for name in inputs}
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=list(inputs),
        dynamic_axes=free,
    )


def exported(item: Architecture, path: Path) -> str:
    """Write the architecture's file; returns the exporter.  Raises RuntimeError with the reasons of both exporters."""
    if item.family == "light":
        light(item.name, path)
        return "file"
    module, inputs = built(item)
    unsettle(module.eval())
    reasons = []
    for name, export in (("dynamo", by_dynamo), ("script", by_script)):
        try:
            with torch.no_grad():
                export(module, inputs, path)
                check(module, inputs, path)
            return name
        except Exception as error:  # whatever an exporter raises, the next one is tried
            cause = error.__cause__ or error
            reasons.append(f"{name}: {brief(cause)}")
    raise RuntimeError("; ".join(reasons))


def check(module: Plain, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """Check that the file computes the same as the module, at both batch sizes."""
    session = open_session(path)
    for size in BATCHES:
        part = {name: t[:size] for name, t in inputs.items()}
        taken = {v.name for v in session.get_inputs()}
        found = run(session, {name: t.numpy() for name, t in part.items() if name in taken})
        apart = far([t.numpy() for t in module(*part.values())], found)
        if not apart < 1e-3:
            raise RuntimeError(f"the exported file differs by {apart:.1e} at batch {size}")


def light(name: str, path: Path) -> None:
    """A topology of the wheel with seeded weights in place of its constant ones, and without the final Softmax, which
    saturates with untrained weights and hides the layers before it.
    """
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
    last = proto.graph.node[-1]
    if last.op_type == "Softmax" and last.output[0] == proto.graph.output[0].name:
        made = next(n for n in proto.graph.node if last.input[0] in n.output)
        made.output[list(made.output).index(last.input[0])] = last.output[0]
        proto.graph.node.remove(last)
    proto.ir_version = max(proto.ir_version, 4)  # from there on initializers need not be inputs as well
    onnx.save(proto, path)


def far(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest difference relative to the largest value, over all outputs; infinite where one is NaN."""
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        x, y = a.astype(np.float64), b.astype(np.float64)
        worst = max(worst, float(np.abs(x - y).max(initial=0.0)) / max(float(np.abs(x).max(initial=0.0)), 1e-30))
    return worst


def brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]
