"""Search spaces: networks are valid and run, declared shapes are right; descriptions and user files are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxpress.errors import InputProblem
from onnxpress.model.files import to_bytes
from onnxpress.nas.evaluation.costs import count_costs, declared_shapes
from onnxpress.nas.spaces import blocks, toml_space
from onnxpress.nas.spaces.io_spec import IoSpec
from onnxpress.nas.spaces.network import ACTIVATIONS, NetworkBuilder
from onnxpress.nas.spaces.registry import READY, load_space
from onnxpress.runtime.session import open_session, run, trace
from tests.nas import tasks

KINDS = {
    "image-small": [tasks.IMAGE, tasks.CHANNELS_LAST],
    "image-mobile": [tasks.IMAGE],
    "keyword-1d": [tasks.SPECTROGRAM, tasks.FLAT_SPECTROGRAM],
    "tabular-mlp": [tasks.VECTOR],
    "text-encoder": [tasks.TOKENS, tasks.BARE],
    "cell": [tasks.IMAGE, tasks.SPECTROGRAM],
}


class RandomTrial:
    """A trial with random choices, which are recorded in `params`."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.params: dict[str, object] = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        value = int(self.rng.choice(np.arange(low, high + 1, step)))
        self.params[name] = value
        return value

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def suggest_categorical(self, name: str, choices: list[object]) -> object:
        value = choices[int(self.rng.integers(len(choices)))]
        self.params[name] = value
        return value


SLOW = ("image-mobile",)
CASES = [(name, io_spec) for name in READY for io_spec in KINDS[name]]


@pytest.mark.parametrize(
    ("name", "io_spec"),
    [
        pytest.param(n, t, marks=pytest.mark.slow if n in SLOW else (), id=f"{n}-{t.kind}{len(t.shape)}")
        for n, t in CASES
    ],
)
def test_built_in_spaces_build_valid_networks(name: str, io_spec: IoSpec) -> None:
    for seed in range(5):
        model = load_space(name)(RandomTrial(seed), io_spec)
        onnx.checker.check_model(onnx.load_from_string(to_bytes(model)), full_check=True)
        session = open_session(model)
        together = run(session, tasks.batch(io_spec, 3))[0]
        assert together.shape == (3, io_spec.classes)
        assert np.isfinite(together).all()
        first = {n: v[:1] for n, v in tasks.batch(io_spec, 3).items()}
        np.testing.assert_allclose(run(session, first)[0], together[:1], rtol=2e-3, atol=2e-3 * np.abs(together).max())


@pytest.mark.parametrize("io_spec", [tasks.IMAGE, tasks.SPECTROGRAM, tasks.VECTOR], ids=lambda t: t.kind)
def test_declared_shapes_match_a_run(io_spec: IoSpec) -> None:
    name = {"image": "image-small", "spectrogram": "keyword-1d", "vector": "tabular-mlp"}[io_spec.kind]
    for seed in range(4):
        model = load_space(name)(RandomTrial(seed), io_spec)
        expected = declared_shapes(model, tasks.batch(io_spec))
        assert expected is not None
        seen = trace(model, tasks.batch(io_spec))
        assert {n: expected.shapes[n] for n in seen.shapes} == seen.shapes


def test_token_inputs_of_any_length_with_a_mask() -> None:
    model = load_space("text-encoder")(RandomTrial(1), tasks.TOKENS)
    session = open_session(model)
    short = tasks.batch(tasks.TOKENS, 2, length=7)
    padded = {n: np.pad(v, ((0, 0), (0, 5))) for n, v in short.items()}
    np.testing.assert_allclose(run(session, short)[0], run(session, padded)[0], rtol=1e-4, atol=1e-5)
    assert count_costs(model, short).macs < count_costs(model, padded).macs


@pytest.mark.parametrize("name", sorted(blocks.BLOCKS))
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_give_width_and_size(name: str, stride: int) -> None:
    net = NetworkBuilder()
    flat = name in ("mlp", "encoder")
    x = net.input("x", (10, 24) if flat else (24, 9, 7))
    y = blocks.find_block(name)(net, x, 32, stride)
    model = net.model({"y": y})
    feeds = {"x": np.random.default_rng(0).standard_normal((2, *x.shape)).astype(np.float32)}
    assert run(open_session(model), feeds)[0].shape == (2, *y.shape)
    assert y.width == 32
    if not flat:
        assert y.shape[1:] == ((5, 4) if stride == 2 else (9, 7))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind: str) -> None:
    net = NetworkBuilder()
    model = net.model({"y": net.activation(net.input("x", (50,)), kind)})
    x = np.linspace(-7, 7, 50, dtype=np.float32)[None]
    gate = {"relu": x > 0, "relu6": x > 0, "hardswish": np.clip(x / 6 + 0.5, 0, 1), "silu": 1 / (1 + np.exp(-x))}.get(
        kind
    )
    y = run(open_session(model), {"x": x})[0]
    if gate is not None:
        np.testing.assert_allclose(y, np.minimum(x * gate, 6 if kind == "relu6" else 99), atol=1e-5)
    else:
        assert abs(y[0, -1] - 7) < 1e-3 and abs(y).min() < 0.1 and y.min() > -0.2


def test_weights_depend_on_the_seed() -> None:
    def bytes_of(seed: int) -> bytes:
        net = NetworkBuilder(seed)
        return to_bytes(net.model({"y": net.dense(net.conv(net.input("x", (4, 9)), 8), 3)}))

    assert bytes_of(1) == bytes_of(1) != bytes_of(2)


def test_ranges_of_channel_multiples() -> None:
    parameter = toml_space.parse_parameter({"from": 16, "to": 64, "step": "channel_multiple"}, "")
    for io_spec in (tasks.IMAGE, tasks.CHANNELS_LAST):
        seen = {parameter.suggest(RandomTrial(s), "w", io_spec) for s in range(60)}
        assert seen == set(range(16, 65, io_spec.channel_multiple))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[stage]]\nblock = 'residual'\nwidth = 16\nkernal = 3", "kernal"),
        ("[[stage]]\nblock = 'transformer'\nwidth = 16", "transformer"),
        ("[[stage]]\nblock = 'residual'", "width"),
        ("[[stage]]\nblock = 'residual'\nwidth = {from = 64, to = 16}", "range"),
        ("[[stage]]\nblock = 'residual'\nwidth = {from = 16, to = 64, step = 0}", "range"),
        ("[[stage]]\nblock = 'residual'\nwidth = []", "parameter"),
        ("[stem]\nwidth = 8", "stages"),
        ("stem = ", "TOML"),
        ("[tail]\n[[stage]]\nblock = 'vgg'\nwidth = 8", "tail"),
    ],
)
def test_invalid_descriptions(text: str, expected: str) -> None:
    with pytest.raises(InputProblem, match=expected):
        toml_space.parse_space(text, "own.toml")


@pytest.mark.parametrize(
    ("name", "io_spec"),
    [("text-encoder", tasks.IMAGE), ("image-small", tasks.VECTOR), ("tabular-mlp", tasks.SPECTROGRAM)],
)
def test_spaces_reject_other_kinds_of_input(name: str, io_spec: IoSpec) -> None:
    with pytest.raises(InputProblem, match="use another space"):
        load_space(name)(RandomTrial(0), io_spec)


def test_user_spaces(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from onnxpress.nas.spaces.network import NetworkBuilder\n"
        "from onnxpress.nas.spaces.io_spec import network_input\n\n\n"
        "def tiny(trial, io_spec):\n    net = NetworkBuilder()\n    x, _ = network_input(net, io_spec)\n"
        "    x = net.conv_norm(x, trial.suggest_int('width', 8, 16, step=8))\n"
        "    return net.model({io_spec.output: net.dense(net.global_pool(x), io_spec.classes)})\n"
    )
    model = load_space(f"{tmp_path / 'own.py'}:tiny")(RandomTrial(0), tasks.IMAGE)
    assert run(open_session(model), tasks.batch(tasks.IMAGE))[0].shape == (1, 10)
    (tmp_path / "bad.py").write_text("1 / 0")
    for name, expected in (
        ("own.py:huge", "has no .huge."),
        ("bad.py:x", "ZeroDivision"),
        ("none.py:x", "does not exist"),
        ("x.toml", "no such"),
    ):
        with pytest.raises(InputProblem, match=expected):
            load_space(str(tmp_path / name))
    with pytest.raises(InputProblem, match="image-small"):
        load_space("image-huge")
