"""The selection of candidates for training, and a search with a teacher of batch size one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna")

from onnxpress.measure.score import Score
from onnxpress.model.files import load, to_bytes
from onnxpress.nas.request import NasRequest, request_from_dict
from onnxpress.nas.search import FoundNetwork, limit_trainees, select_promising, slower_notes
from onnxpress.nas.strategies.study import Study, TrialResult
from onnxpress.runtime.latency import LatencyComparison, Ratio
from onnxpress.runtime.session import open_session, run
from tests import nets


@pytest.mark.parametrize(("seconds", "trainees", "keep"), [(5400, 8, 2), (300, 8, 2), (20, 2, 2), (2, 1, 1)])
def test_a_short_time_budget_limits_the_trainees(seconds: float, trainees: int, keep: int) -> None:
    request = limit_trainees(NasRequest("image-small"), seconds)
    assert (request.trainees, request.keep) == (trainees, keep)


@pytest.mark.slow
@pytest.mark.alone
def test_a_teacher_with_batch_size_one_and_probabilities(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import onnx

    from onnxpress.data.dataset import Splits
    from onnxpress.model.files import save
    from onnxpress.nas.evaluation.evaluator import Evaluator
    from onnxpress.nas.search import search
    from onnxpress.nas.spaces.network import NetworkBuilder
    from onnxpress.runtime.machine import this_machine

    net = NetworkBuilder()
    x = net.global_pool(net.conv_norm(net.input("image", (3, 8, 8)), 16))
    scores = net.dense(x, 5)
    proto = onnx.load_from_string(
        to_bytes(net.model({"answer": net.op("Softmax", [scores.name], scores.shape, axis=-1)}))
    )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del proto.graph.value_info[:]
    (tmp_path / "teacher.onnx").write_bytes(proto.SerializeToString())
    teacher = load(tmp_path / "teacher.onnx")
    splits = Splits(*(nets.samples(teacher, count, seed) for seed, count in enumerate((40, 20, 20))))
    request = NasRequest("image-small", trials=2, time_budget=4, trainees=1, keep=1)
    outcome = search(Evaluator(teacher, splits, request, True, this_machine()), tmp_path / "out")
    found = outcome.networks[0]
    rows = run(open_session(found.model), {"image": np.zeros((3, 3, 8, 8), np.float32)})[0]
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)
    save(found.model, tmp_path / "found.onnx")


def test_size_as_an_objective() -> None:
    """Of two with equal quality and latency the smaller one is on the front; so is one that is only smaller."""
    request = NasRequest("image-small", aims=("size",))
    assert request_from_dict(json.loads(json.dumps(request.as_dict()))) == request
    points = [(1.0, 1.0, 90), (1.0, 1.0, 50), (0.5, 2.0, 10)]
    queue = iter(points)

    def build(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        trial.suggest_int("x", 0, 9)
        quality, latency, size = next(queue)
        return str(trial.number), lambda: (quality, latency, 0.0, {"bytes": size})

    study = Study(None, "s", "evolution", 0, minimized_facts=request.minimized_facts)
    study.run(build, 3)
    assert [e.number for _, e in select_promising(study.results(), replace(request, trainees=2))] in ([1, 2], [2, 1])
    plain = replace(request, trainees=1, aims=())
    assert [e.number for _, e in select_promising(study.results(), plain)] == [0], "without the aim size does not count"


def test_every_latency_level_has_trainees() -> None:
    """Two are kept: one at the limit and one a level below, although slower ones have a higher quality."""
    results = [
        TrialResult(n, {}, 10 - n, time, 0.0, {}, None) for n, time in enumerate((1.0, 0.9, 0.8, 0.75, 0.6, 0.5))
    ]
    request = NasRequest("image-small", latency_ms=1000.0, trainees=4, keep=2)
    found = select_promising([*results, TrialResult(6, {}, 99.0, 2.0, 1.0, {}, None)], request)
    assert [(level, e.number) for level, e in found] == [(0, 0), (1, 4), (0, 1), (1, 5)]
    assert [e.number for _, e in select_promising(results, replace(request, keep=1))] == [0, 1, 2, 3]
    assert len(select_promising(results[:2], request)) == 2


def test_what_is_slower_than_the_teacher_is_named() -> None:
    """Of the networks on the front, where the whole interval lies below 1."""
    score = Score("top-1", 0.9, 0.9, 0.0, 0.0, 0.0, 10)
    model = nets.residual()
    networks = [FoundNetwork(n, {}, model, score, score, [], on_front=n != "off") for n in ("slow", "same", "off")]
    highs = {"slow": 0.9, "same": 1.05, "off": 0.5}
    timing = LatencyComparison((), tuple(Ratio(n, "anchor", high - 0.1, high - 0.2, high) for n, high in highs.items()))
    assert slower_notes(networks, timing, "the teacher") == ["slower than the teacher: slow"]
    assert slower_notes(networks[1:], timing, "the teacher") == []


def test_categorical_choices_are_selected_in_turn() -> None:
    """The best of each combination first; with the proxy training by quality only."""
    blocks = ("vgg", "vgg", "residual", "vgg", "residual", "inverted")
    results = [
        TrialResult(n, {"stage1.block": word, "stage1.width": n}, 10 - n, 1.0, 0.0, {}, None)
        for n, word in enumerate(blocks)
    ]
    request = NasRequest("image-small", latency_ms=1000.0, trainees=5, keep=1)
    assert [e.number for _, e in select_promising(results, request)] == [0, 2, 5, 1, 3]
    assert [e.number for _, e in select_promising(results, replace(request, proxy="training"))] == [0, 1, 2, 3, 4]
