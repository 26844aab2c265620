"""RNN, GRU and LSTM: all directions, layouts, activations, clipping, peepholes and sequence lengths.

Nodes with the default activations and no unusual attributes run in torch's kernels, others step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor

Activation = Callable[[Tensor], Tensor]


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    """An activation by its ONNX name; alpha and beta None: the standard's defaults."""

    def a(default: float) -> float:
        return default if alpha is None else alpha

    def b(default: float) -> float:
        return default if beta is None else beta

    known: dict[str, Activation] = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "affine": lambda x: a(1.0) * x + b(0.0),
        "leakyrelu": lambda x: functional.leaky_relu(x, a(0.01)),
        "thresholdedrelu": lambda x: functional.threshold(x, a(1.0), 0.0),
        "scaledtanh": lambda x: a(1.0) * torch.tanh(b(1.0) * x),
        "hardsigmoid": lambda x: torch.clamp(a(0.2) * x + b(0.5), 0.0, 1.0),
        "elu": lambda x: functional.elu(x, a(1.0)),
        "softsign": functional.softsign,
        "softplus": functional.softplus,
    }
    return known[name.lower()]


_TAKES_ALPHA = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
_TAKES_BETA = {"affine", "scaledtanh", "hardsigmoid"}


@dataclass(frozen=True)
class RecurrentAttributes:
    """Attributes of one node.  functions: of each direction, in the standard's order."""

    backwards: tuple[bool, ...]
    functions: list[list[Activation]]
    default_activations: bool
    clip: float | None
    batch_first: bool
    linear_before_reset: bool  # GRU: linear_before_reset
    input_forget: bool  # LSTM: input_forget


def read_attributes(context: NodeContext, default: Sequence[str]) -> RecurrentAttributes:
    direction = context.text("direction", "forward")
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    names = [n.decode() if isinstance(n, bytes) else n for n in context.attribute("activations", [])] or [
        *default
    ] * len(backwards)
    alphas, betas = iter(context.numbers("activation_alpha") or []), iter(context.numbers("activation_beta") or [])
    functions = [
        _activation(
            n,
            next(alphas, None) if n.lower() in _TAKES_ALPHA else None,
            next(betas, None) if n.lower() in _TAKES_BETA else None,
        )
        for n in names
    ]
    each = len(default)
    default_activations = [n.lower() for n in names] == [n.lower() for n in default] * len(backwards)
    return RecurrentAttributes(
        backwards,
        [functions[i * each : (i + 1) * each] for i in range(len(backwards))],
        default_activations and not context.has_attribute("clip") and not context.integer("input_forget"),
        context.number("clip") if context.has_attribute("clip") else None,
        bool(context.integer("layout")),
        bool(context.integer("linear_before_reset")),
        bool(context.integer("input_forget")),
    )


@dataclass
class RecurrentInputs:
    """Inputs in sequence-first layout: x [S, B, I]; w, r, b by direction; states [D, B, H]."""

    x: Tensor
    w: Tensor
    r: Tensor
    b: Tensor
    lengths: Tensor
    states: list[Tensor]
    peepholes: Tensor = None
    hidden: int = field(init=False)

    def __post_init__(self) -> None:
        self.hidden = self.r.shape[-1]
        shape = (self.w.shape[0], self.x.shape[1], self.hidden)
        self.states = [self.x.new_zeros(shape) if s is None else s for s in self.states]

    @property
    def full(self) -> bool:
        """Whether all sequences have full length."""
        return self.lengths is None or bool((self.lengths == self.x.shape[0]).all())


StepFunction = Callable[[Tensor, list[Tensor]], list[Tensor]]


def loop(given: RecurrentInputs, direction: int, backwards: bool, step: StepFunction) -> tuple[Tensor, list[Tensor]]:
    """All outputs [S, B, H] and the last states of one direction.

    After the end of a sequence outputs are 0, and states stay the same.
    """
    steps, batch = given.x.shape[:2]
    state = [s[direction] for s in given.states]
    x = given.x
    lengths = None if given.full else given.lengths.long()
    if backwards:
        x = torch.flip(x, [0]) if lengths is None else _reverse_sequences(x, lengths)
    outputs = []
    for t in range(steps):
        new = step(x[t], state)
        if lengths is not None:
            alive = (t < lengths).unsqueeze(1)
            new = [torch.where(alive, n, s) for n, s in zip(new, state, strict=True)]
            outputs.append(torch.where(alive, new[0], torch.zeros_like(new[0])))
        else:
            outputs.append(new[0])
        state = new
    y = torch.stack(outputs) if outputs else given.x.new_zeros(0, batch, given.hidden)
    if backwards:
        y = torch.flip(y, [0]) if lengths is None else _reverse_sequences(y, lengths)
    return y, state


def _reverse_sequences(x: Tensor, lengths: Tensor) -> Tensor:
    """Each sequence [S, B, ...] reversed within its own length."""
    steps = torch.arange(x.shape[0]).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x[places, torch.arange(x.shape[1])]


def _biases(given: RecurrentInputs, direction: int, gates: int) -> tuple[Tensor, Tensor]:
    if given.b is None:
        zero = given.x.new_zeros(gates * given.hidden)
        return zero, zero
    half = gates * given.hidden
    return given.b[direction, :half], given.b[direction, half:]


def _rnn_step(given: RecurrentInputs, read_attributes: RecurrentAttributes, d: int) -> StepFunction:
    (f,) = read_attributes.functions[d]
    w, r = given.w[d], given.r[d]
    wb, rb = _biases(given, d, 1)

    def step(x: Tensor, state: list[Tensor]) -> list[Tensor]:
        return [f(_clipped(functional.linear(x, w, wb) + functional.linear(state[0], r, rb), read_attributes.clip))]

    return step


def _gru_step(given: RecurrentInputs, read_attributes: RecurrentAttributes, d: int) -> StepFunction:
    f, g = read_attributes.functions[d]
    n = given.hidden
    w, r = given.w[d], given.r[d]
    wb, rb = _biases(given, d, 3)

    def step(x: Tensor, state: list[Tensor]) -> list[Tensor]:
        h = state[0]
        seen = functional.linear(x, w, wb)
        kept = functional.linear(h, r[: 2 * n], rb[: 2 * n])
        z = f(_clipped(seen[:, :n] + kept[:, :n], read_attributes.clip))
        reset = f(_clipped(seen[:, n : 2 * n] + kept[:, n:], read_attributes.clip))
        if read_attributes.linear_before_reset:
            back = reset * functional.linear(h, r[2 * n :], rb[2 * n :])
        else:
            back = functional.linear(reset * h, r[2 * n :], rb[2 * n :])
        new = g(_clipped(seen[:, 2 * n :] + back, read_attributes.clip))
        return [(1 - z) * new + z * h]

    return step


def _lstm_step(given: RecurrentInputs, read_attributes: RecurrentAttributes, d: int) -> StepFunction:
    f, g, h = read_attributes.functions[d]
    w, r = given.w[d], given.r[d]
    wb, rb = _biases(given, d, 4)
    holes = given.peepholes[d].chunk(3) if given.peepholes is not None else None

    def step(x: Tensor, state: list[Tensor]) -> list[Tensor]:
        i, o, forget, c = (functional.linear(x, w, wb) + functional.linear(state[0], r, rb)).chunk(4, 1)
        if holes is not None:
            i, forget = i + holes[0] * state[1], forget + holes[2] * state[1]
        i = f(_clipped(i, read_attributes.clip))
        forget = 1 - i if read_attributes.input_forget else f(_clipped(forget, read_attributes.clip))
        memory = forget * state[1] + i * g(_clipped(c, read_attributes.clip))
        o = o if holes is None else o + holes[1] * memory
        return [f(_clipped(o, read_attributes.clip)) * h(memory), memory]

    return step


def _clipped(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else x.clamp(-limit, limit)


def _reordered(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Gates of a weight or bias in torch's order."""
    parts = tensor.chunk(len(order), 0)
    return torch.cat([parts[i] for i in order], 0)


def _torch_kernel(
    function: Any, given: RecurrentInputs, read_attributes: RecurrentAttributes, order: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Outputs [S, B, D * H] and last states by torch's kernel; a single reverse direction runs on reversed inputs."""
    weights = []
    for d in range(given.w.shape[0]):
        biases = _biases(given, d, len(order))
        weights += [_reordered(t, order) for t in (given.w[d], given.r[d], *biases)]
    alone = read_attributes.backwards == (True,)
    x = torch.flip(given.x, [0]) if alone else given.x
    states = tuple(s.contiguous() for s in given.states)
    hx = states if len(states) > 1 else states[0]
    y, *last = function(x, hx, weights, True, 1, 0.0, False, len(read_attributes.backwards) == 2, False)
    return (torch.flip(y, [0]) if alone else y), last


_KINDS: dict[str, tuple[Any, Sequence[str], Any, Sequence[int], int]] = {
    "RNN": (_rnn_step, ("Tanh",), torch.rnn_tanh, (0,), 1),
    "GRU": (_gru_step, ("Sigmoid", "Tanh"), torch.gru, (1, 0, 2), 1),
    "LSTM": (_lstm_step, ("Sigmoid", "Tanh", "Tanh"), torch.lstm, (0, 2, 3, 1), 2),
}


def _recurrent(kind: str) -> Callable[[NodeContext], Run]:
    make_step, default, kernel, order, count = _KINDS[kind]

    def build(context: NodeContext) -> Run:
        attributes = read_attributes(context, default)
        native = attributes.default_activations and (kind != "GRU" or attributes.linear_before_reset)
        both = len(attributes.backwards)

        def run(x: Tensor, w: Tensor, r: Tensor, b: Tensor = None, lengths: Tensor = None, *more: Tensor) -> Any:
            first = attributes.batch_first
            states = [None if s is None else s.transpose(0, 1) if first else s for s in (*more, None, None)[:count]]
            holes = more[2] if count == 2 and len(more) > 2 else None
            given = RecurrentInputs(x.transpose(0, 1) if first else x, w, r, b, lengths, states, holes)
            if native and holes is None and given.full and given.x.shape[0] > 0:
                flat, last = _torch_kernel(kernel, given, attributes, order)
                y = flat.reshape(*flat.shape[:2], both, -1).transpose(1, 2)
            else:
                parts = [
                    loop(given, d, back, make_step(given, attributes, d)) for d, back in enumerate(attributes.backwards)
                ]
                y = torch.stack([p[0] for p in parts], 1)
                last = [torch.stack([p[1][i] for p in parts]) for i in range(count)]
            if first:
                y, last = y.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in last]
            return (y, *last) if len(context.node.outputs) > 1 else y

        return run

    return build


for _kind in _KINDS:
    operator(_kind, grad_inputs=(0, 1, 2, 3, 5, 6, 7) if _kind == "LSTM" else (0, 1, 2, 3, 5))(_recurrent(_kind))
