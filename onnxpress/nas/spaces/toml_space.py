"""Search spaces written as TOML: a stem, stages of blocks, a head; lists are choices, {from, to, step} are ranges.

resolution = [24, 32]                          # images only
[stem]
width = {from = 16, to = 32, step = 8}
kernel = 3
stride = 1
[[stage]]
block = ["residual", "inverted"]
depth = [1, 2, 3]
width = {from = 16, to = 64, step = "channel_multiple"}    # channels that kernels process at once
stride = 2
kernel = [3, 5]                                # options of the block (see blocks.py)
[head]
width = [0, 128]                               # of the hidden layer; 0: none
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.nas.spaces.blocks import find_block
from onnxpress.nas.spaces.io_spec import IoSpec, network_input, network_output
from onnxpress.nas.spaces.network import NetworkBuilder, Value

CHANNEL_MULTIPLE = "channel_multiple"
_TABLES = {"stem": {"width", "kernel", "stride", "act"}, "head": {"width"}}
_STAGE = {"block", "depth", "width", "stride"}


@dataclass(frozen=True)
class SearchParameter:
    """A parameter of a search space.

    values: the choices, or (low, high, step) of integers if `is_range` (step 0: IoSpec.channel_multiple).
    """

    values: tuple[Any, ...]
    is_range: bool = False

    def suggest(self, trial: Any, name: str, io_spec: IoSpec) -> Any:
        """The value that a trial suggests."""
        if not self.is_range:
            return self.values[0] if len(self.values) == 1 else trial.suggest_categorical(name, list(self.values))
        low, high, step = self.values
        step = step or io_spec.channel_multiple
        low = max(step, -(-low // step) * step) if self.values[2] == 0 else low
        high = low + (high - low) // step * step
        return low if high <= low else trial.suggest_int(name, low, high, step=step)


def parse_parameter(body: Any, where: str) -> SearchParameter:
    """A parameter from its TOML value.  Raises InputProblem for an invalid one."""
    if isinstance(body, list) and body:
        return SearchParameter(tuple(body))
    if isinstance(body, Mapping):
        step = body.get("step", 1)
        good = {"from", "to"} <= set(body) <= {"from", "to", "step"} and (
            step == CHANNEL_MULTIPLE or (isinstance(step, int) and step > 0)
        )
        if not good or not all(isinstance(body[k], int) for k in ("from", "to")) or body["from"] > body["to"]:
            raise InputProblem(
                "not a range",
                where,
                str(dict(body)),
                'write {from = 16, to = 64, step = 16}, or step = "channel_multiple"',
            )
        return SearchParameter((body["from"], body["to"], 0 if step == CHANNEL_MULTIPLE else step), True)
    if isinstance(body, (str, int, float, bool)):
        return SearchParameter((body,))
    raise InputProblem("not a search parameter", where, str(body), "write a value, a list, or {from, to, step}")


def parse_space(text: str, where: object) -> Callable[[Any, IoSpec], ir.Model]:
    """The space of a TOML description.  Raises InputProblem, which names the invalid key."""
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputProblem("the search space is not TOML", where, str(error)) from error
    _check_keys(body, {"resolution", "stem", "stage", "head"}, str(where))
    stages = body.get("stage", [])
    if not isinstance(stages, list) or not stages:
        raise InputProblem("a search space needs stages", where, "", "add [[stage]] with block, depth and width")
    read_stages = [_stage(s, f"{where}, stage {i}") for i, s in enumerate(stages, 1)]
    stem, head = (_table(body, name, str(where)) for name in ("stem", "head"))
    resolution = parse_parameter(body.get("resolution", 0), f"{where}, resolution")

    def space(trial: Any, io_spec: IoSpec) -> ir.Model:
        return _build(trial, io_spec, resolution, stem, read_stages, head)

    return space


def _check_keys(body: Mapping[str, Any], words: set[str], where: str) -> None:
    for word in body:
        if word not in words:
            raise InputProblem("unknown key in a search space", where, word, f"one of {', '.join(sorted(words))}")


def _table(body: Mapping[str, Any], name: str, where: str) -> dict[str, SearchParameter]:
    table = body.get(name, {})
    _check_keys(table, _TABLES[name], f"{where}, {name}")
    return {k: parse_parameter(v, f"{where}, {name}.{k}") for k, v in table.items()}


def _stage(body: Mapping[str, Any], where: str) -> dict[str, SearchParameter]:
    stage = {k: parse_parameter(v, f"{where}, {k}") for k, v in body.items()}
    for word in ("block", "width"):
        if word not in stage:
            raise InputProblem("a key is missing in a stage", where, word, "a stage needs block and width")
    known = {w for b in stage["block"].values for w in _options(b)}
    _check_keys(body, _STAGE | known, where)
    return stage


def _options(name: str) -> list[str]:
    """The options of a block."""
    return [
        p.name
        for p in inspect.signature(find_block(name)).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "mask"
    ]


def _build(
    trial: Any,
    io_spec: IoSpec,
    resolution: SearchParameter,
    stem: Mapping[str, SearchParameter],
    stages: list[dict[str, SearchParameter]],
    head: Mapping[str, SearchParameter],
) -> ir.Model:
    def suggest(table: Mapping[str, SearchParameter], key: str, place: str, default: Any) -> Any:
        return table[key].suggest(trial, f"{place}.{key}", io_spec) if key in table else default

    net = NetworkBuilder()
    x, mask = network_input(
        net, io_spec, int(resolution.suggest(trial, "resolution", io_spec)) if io_spec.kind == "image" else 0
    )
    if io_spec.kind == "tokens":
        x = embed_tokens(net, x, io_spec, int(suggest(stem, "width", "stem", 64)))
    elif stem and len(x.shape) > 1:
        x = net.conv_norm(
            x, int(suggest(stem, "width", "stem", 16)), int(suggest(stem, "kernel", "stem", 3)),
            int(suggest(stem, "stride", "stem", 1)), act=str(suggest(stem, "act", "stem", "relu")),
        )  # fmt: skip
    for number, stage in enumerate(stages, 1):
        place = f"stage{number}"
        name = suggest(stage, "block", place, None)
        _check_block(name, x, io_spec)
        width = int(suggest(stage, "width", place, x.width))
        stride = int(suggest(stage, "stride", place, 1))
        options = {w: stage[w].suggest(trial, f"{place}.{w}", io_spec) for w in _options(name) if w in stage}
        if mask is not None and name == "encoder":
            options["mask"] = mask
        for i in range(int(suggest(stage, "depth", place, 1))):
            x = find_block(name)(net, x, width, stride if i == 0 else 1, **options)
    scores = classifier_scores(net, x, io_spec, mask, int(suggest(head, "width", "head", 0)))
    return net.model({io_spec.output: network_output(net, scores, io_spec)})


def _check_block(name: str, x: Value, io_spec: IoSpec) -> None:
    """Raises InputProblem where a block does not accept the kind of input."""
    takes = {"encoder": "tokens", "mlp": "vectors and tokens"}.get(name, "images and spectrograms")
    good = {"encoder": io_spec.kind == "tokens", "mlp": io_spec.kind == "tokens" or len(x.shape) == 1}
    if not good.get(name, io_spec.kind != "tokens" and len(x.shape) > 1):
        raise InputProblem(f"the block {name} takes {takes}", io_spec.field.name, io_spec.kind, "use another space")


def embed_tokens(net: NetworkBuilder, x: Value, io_spec: IoSpec, width: int) -> Value:
    """Token ids [L] -> [L, width]: a learned vector per token and per position."""
    y = net.embedding(x, io_spec.vocabulary, width)
    table = net.drawn([1, io_spec.length, width], 5000)
    start, axis = (net.constant(np.array([v], np.int64)) for v in (0, 1))
    places = net.op("Slice", [table, start, net.length(x), axis], y.shape, batch=(1,))
    return net.add(y, places)


def classifier_scores(net: NetworkBuilder, x: Value, io_spec: IoSpec, mask: Value | None, hidden: int) -> Value:
    """Mean over all (unmasked) positions, an optional hidden layer, and one score per class."""
    if io_spec.kind == "tokens":
        x = _mean(net, net.layer_norm(x), mask)
    elif len(x.shape) > 1:
        x = net.global_pool(x)
    if hidden:
        x = net.activation(net.dense(x, hidden))
    return net.dense(x, io_spec.classes)


def _mean(net: NetworkBuilder, x: Value, mask: Value | None) -> Value:
    """[L,D] -> [D]: mean over the positions, weighted by the softmax of the mask."""
    if mask is None:
        return net.op("ReduceMean", [x.name], [x.shape[-1]], axes=[1], keepdims=0)
    shares = net.op("Softmax", [mask.name], mask.shape, axis=-1)
    flat = net.op("Reshape", [shares.name, net.constant(np.array([0, 1, -1], np.int64))], [1, x.shape[0]])
    pooled = net.op("MatMul", [flat.name, x.name], [1, x.shape[-1]])
    return net.op("Flatten", [pooled.name], [x.shape[-1]], axis=1)
