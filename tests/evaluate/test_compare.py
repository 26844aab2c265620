"""compare: metrics, gates and the worst samples."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from onnxpress import prune, quantize
from onnxpress.cli.main import run as cli
from onnxpress.data.dataset import Dataset
from onnxpress.data.shipped import calibration_folder
from onnxpress.errors import InputProblem
from onnxpress.evaluate.compare import compare
from onnxpress.model.files import load, save
from onnxpress.model.signature import signature
from onnxpress.passes.pruning.options import PruneOptions
from tests import nets

DIGITS = calibration_folder() / "digits"
MODEL, SELECT = str(DIGITS / "digits.onnx"), str(DIGITS / "select.npz")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that lost much accuracy."""
    target = tmp_path_factory.mktemp("cut") / "cut.onnx"
    data = nets.samples(load(MODEL), 8)
    save(
        prune(MODEL, data, options=PruneOptions(0.8, criterion="magnitude", allocation="uniform", refit=False)).model,
        target,
    )
    return str(target)


def test_worst_samples_come_first(cut: str) -> None:
    from onnxpress.data.dataset import open_dataset

    data = open_dataset(SELECT, signature(load(MODEL)))
    found = compare(
        MODEL,
        cut,
        data,
        metric=["top-1", "f1", lambda out, label: float(next(iter(out.values())).argmax() == label)],
        worst=4,
    )
    top1, f1, own = found.metrics
    assert top1.drop == pytest.approx(own.drop) == pytest.approx(found.score.drop)
    assert own.metric == "<lambda>"
    assert 0 < f1.low <= f1.drop <= f1.high
    assert len(found.worst) == 4
    assert all(s.before == s.label != s.after for s in found.worst), "regressions come first"
    assert [s.error for s in found.worst] == sorted((s.error for s in found.worst), reverse=True)
    assert found.drops == {m.metric: m.drop for m in found.metrics}
    assert set(compare(MODEL, cut, data).drops) == {"top-1"}


def test_the_command_prints_and_writes_them(cut: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(
        "def kept(outputs, label):\n    return float(list(outputs.values())[0].argmax() == label)\n"
    )
    command = [
        "compare",
        MODEL,
        cut,
        "-d",
        SELECT,
        "-q",
        "--metric",
        "top-1",
        "--metric",
        f"{tmp_path / 'own.py'}:kept",
        "--worst",
        "2",
    ]
    files = ["--junit", str(tmp_path / "j.xml"), "--markdown", str(tmp_path / "m.md")]
    assert cli([*command, *files, "--max-drop", "0.01"]) == 1
    out = capsys.readouterr().out
    assert "worst samples" in out
    assert max(len(line) for line in out.splitlines() if "drop" not in line) <= 80
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    assert (tmp_path / "m.md").read_text().count("FAIL") == 2
    assert "| worst sample |" in (tmp_path / "m.md").read_text()
    assert cli([*command, "--max-drop", "1", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [m["metric"] for m in body["metrics"]] == ["top-1", f"{tmp_path / 'own.py'}:kept"]
    assert len(body["worst"]) == 2


def test_a_model_against_itself_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("top-1", "top-5", "agreement", "f1", "mse", "mae", "pearson", "spearman")
    data = Dataset.from_arrays(
        {n: np.stack([s.inputs[n][0] for s in nets.samples(load(MODEL), 12)]) for n in ("image",)},
        signature(load(MODEL)),
    )
    found = compare(MODEL, MODEL, data, metric=names, worst=1)
    assert all((m.drop, m.low, m.high) == (0, 0, 0) for m in found.metrics)
    assert [m.value for m in found.metrics] == [1, 1, 1, 1, 0, 0, 1, 1]
    assert found.worst[0].error == 0


def test_detectors_are_scored_with_a_function() -> None:
    """Boxes are decoded from the outputs; without labels the original's confident boxes are the truth."""
    model = nets.residual(width=16)
    data = nets.samples(model, 12)

    def decode(outputs: dict[str, np.ndarray]) -> np.ndarray:
        y = next(iter(outputs.values())).ravel()
        best = int(y.argmax())
        return np.array([[0, 0, 10 + best, 10, 0.9, best]])

    same = compare(model, model, data, metric=["map"], decode=decode).metrics[0]
    assert (same.value, same.reference) == (1.0, 1.0)
    other = compare(
        model, prune(model, data, options=PruneOptions(0.6, refit=False)).model, data, metric=["map"], decode=decode
    ).metrics[0]
    assert other.value < 1.0
    with pytest.raises(InputProblem, match="`decode`"):
        compare(model, quantize(model, data).model, data, metric=["map"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--metric", "rouge"], "no such metric"),
        (["--metric", "map"], "--decode"),
        (["--metric", "absent.py:f"], "absent.py"),
        (["--metric", "map", "--decode", "nothing:here"], "nothing"),
        (["--metric", "mse"], "a label for every number"),
        (["--junit", MODEL], "digits.onnx"),
    ],
)
def test_bad_input_is_one_line(more: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(MODEL).read_bytes()
    assert cli(["compare", MODEL, MODEL, "-d", SELECT, "-q", *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert expected in error[0]
    assert Path(MODEL).read_bytes() == before


def test_several_outputs_are_decided_by_each(tmp_path: Path) -> None:
    """The drop of the second output must not hide that of the first."""
    import onnx

    def model(factor: float) -> onnx.ModelProto:
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        nodes = [
            helper.make_node("Constant", [], ["f"], value_float=factor),
            helper.make_node("Mul", ["x", "f"], ["y"]),
            helper.make_node("Relu", ["x"], ["z"]),
        ]
        ends = [[helper.make_tensor_value_info(n, kind, ["N", 6]) for n in names] for names in ("x", "yz")]
        graph = helper.make_graph(nodes, "g", *ends)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    data = {"x": np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)}
    found = compare(model(1.0), model(2.0), data)
    assert len(found.drops) == 2 and [m.output for m in found.failing(0.01)] == ["y"]
    assert not found.failing(None) and not compare(model(1.0), model(1.0), data).failing(0.0)
    np.savez(tmp_path / "d.npz", **data)
    for name, factor in (("a", 1.0), ("b", 2.0)):
        onnx.save(model(factor), tmp_path / f"{name}.onnx")
    command = ["compare", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "-d", str(tmp_path / "d.npz"), "-q"]
    assert cli([*command, "--max-drop", "0.01"]) == 1
    assert cli([*command, "--max-drop", "0.01", "--outputs", "z"]) == 0
