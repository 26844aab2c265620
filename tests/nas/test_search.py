"""Pareto fronts, evolution, studies and proxies; and the whole search from the command line."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna")

from onnxpress.cli.main import run as cli
from onnxpress.data.shipped import calibration_folder
from onnxpress.errors import InputProblem
from onnxpress.model.files import load, to_bytes
from onnxpress.model.structural_hash import structural_hash
from onnxpress.nas.evaluation import proxies
from onnxpress.nas.evaluation.costs import count_costs
from onnxpress.nas.request import NasRequest, request_from_dict
from onnxpress.nas.search import limit_trainees, select_promising
from onnxpress.nas.spaces.registry import load_space
from onnxpress.nas.strategies.study import Study, TrialResult, fixed_trial
from onnxpress.nas.strategies.surrogate import Surrogate, hypervolume
from onnxpress.runtime.session import open_session, run
from onnxpress.search import pareto
from tests.nas import tasks
from tests.nas.spaces.test_registry import RandomTrial


def test_ranks_by_hand() -> None:
    points = np.array([[1, 4], [2, 2], [4, 1], [3, 3], [4, 4], [2, 2]])
    assert pareto.dominance_ranks(points).tolist() == [0, 0, 0, 1, 2, 0]
    assert pareto.pareto_front(points.tolist()) == [0, 1, 5, 2]
    assert set(pareto.select_best(points, 2)) <= {0, 1, 2, 5}
    assert pareto.select_best(points, 6)[-1] == 4
    assert pareto.pareto_front([]) == []


def test_crowding_distance_of_the_ends_is_infinite() -> None:
    assert np.isinf(pareto.crowding_distance(np.array([[0.0, 5], [1, 4], [5, 0]]))[[0, 2]]).all()


LAND = Surrogate(0, edges=10)


def build(trial: Any, land: Surrogate = LAND) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
    accuracy, time = land.ask(trial)
    return json.dumps(trial.params, sort_keys=True), lambda: (accuracy, time, 0.0, {})


def reached(strategy: str, seed: int, trials: int) -> float:
    study, land = Study(None, "s", strategy, seed, population=20), Surrogate(seed)
    study.run(lambda trial: build(trial, land), trials)
    return hypervolume([(e.quality, e.latency) for e in study.results()])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["evolution", "nsga2", "tpe"])
def test_strategies_beat_random_search(strategy: str) -> None:
    """At equal evaluations, over 20 landscapes: the 95 % interval of the paired difference lies above nothing."""
    gains = np.array([reached(strategy, s, 200) - reached("random", s, 200) for s in range(20)])
    assert gains.mean() - 2.09 * gains.std(ddof=1) / np.sqrt(len(gains)) > 0


def test_evolution_beats_random_search_on_a_few_landscapes() -> None:
    assert np.mean([reached("evolution", s, 160) - reached("random", s, 160) for s in range(4)]) > 0


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(0.5, 0.5)]) == pytest.approx(0.25)
    assert hypervolume([(0.5, 0.5), (0.25, 0.25), (0.4, 0.6)]) == pytest.approx(0.25 + 0.25 * 0.25)
    assert hypervolume([]) == 0


def test_a_continued_study_draws_the_same(tmp_path: Path) -> None:
    whole = Study(tmp_path / "whole.db", "s", "evolution", 3, population=6)
    whole.run(build, 20)
    for stop in (9, 20):
        part = Study(tmp_path / "part.db", "s", "evolution", 3, population=6)
        part.run(build, stop)
    assert [e.choices for e in part.results()] == [e.choices for e in whole.results()]


def test_a_study_begins_with_given_choices(tmp_path: Path) -> None:
    """In a new study only; unknown parameters are ignored, missing ones are drawn."""
    before = Study(None, "s", "evolution", 3, population=6)
    before.run(build, 12)
    known = [e.choices for e in before.results()[7:9]]
    first = next(iter(known[0]))
    part = {k: v for k, v in known[1].items() if k != first} | {"stranger": 3}
    study = Study(tmp_path / "s.db", "s", "evolution", 0, population=6)
    study.begin_with([known[0], part])
    study.run(build, 5)
    tried = [e.choices for e in study.results()]
    assert tried[0] == known[0]
    assert {k: v for k, v in tried[1].items() if k != first} == {k: v for k, v in part.items() if k != "stranger"}
    study.begin_with(known)
    study.run(build, 6)
    assert len(study.results()) == 6
    assert study.results()[5].choices != known[0]


def test_a_network_built_twice_is_measured_once(tmp_path: Path) -> None:
    measured = []

    def two(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        key = str(trial.suggest_int("x", 0, 9) // 5)

        def measure() -> tuple[float, float, float, dict[str, Any]]:
            measured.append(key)
            return float(key), 1.0, 0.0, {"key": key}

        return key, measure

    study = Study(tmp_path / "s.db", "s", "random", 0)
    study.run(two, 12)
    assert sorted(measured) == ["0", "1"]
    duplicates = [e for e in study.results() if e.duplicate_of is not None]
    assert len(duplicates) == 10
    assert all(e.facts["key"] == study.results()[e.duplicate_of].facts["key"] for e in duplicates)


def test_evolution_avoids_violations() -> None:
    def limited(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        accuracy, time = LAND.ask(trial)
        return json.dumps(trial.params, sort_keys=True), lambda: (accuracy, time, max(0.0, time / 0.2 - 1), {})

    study = Study(None, "s", "evolution", 0, population=16)
    study.run(limited, 120)
    kept = [e.violation == 0 for e in study.results()]
    assert sum(kept[-40:]) > sum(kept[:40])


def test_structural_hash_ignores_names_and_values() -> None:
    first = load_space("image-small")(RandomTrial(2), tasks.IMAGE)
    first_trial = RandomTrial(2)
    same = load_space("image-small")(first_trial, tasks.IMAGE)
    assert structural_hash(first) == structural_hash(same)
    for node in same.graph:
        node.name = f"other_{node.name}"
    assert structural_hash(first) == structural_hash(same)
    assert structural_hash(first) != structural_hash(load_space("image-small")(RandomTrial(3), tasks.IMAGE))
    assert structural_hash(first) == structural_hash(
        load_space("image-small")(fixed_trial(first_trial.params), tasks.IMAGE)
    )


@pytest.mark.parametrize("name", proxies.PROXIES)
def test_proxies_are_finite_and_differ_between_networks(name: str) -> None:
    if name in proxies.GRADIENT:
        pytest.importorskip("torch")
    batch = tasks.batch(tasks.IMAGE, 16)
    found = []
    for seed in range(3):
        model = load_space("image-small")(RandomTrial(seed), tasks.IMAGE)
        before = run(open_session(model), batch)[0]
        counted = count_costs(model, tasks.batch(tasks.IMAGE))
        found.append(proxies.compute_proxy(name, model, batch, counted))
        assert found[-1] == pytest.approx(proxies.compute_proxy(name, model, batch, counted), rel=1e-3)
        np.testing.assert_array_equal(run(open_session(model), batch)[0], before)
    assert np.isfinite(found).all()
    assert len(set(found)) == 3


def test_naswot_by_hand() -> None:
    """Two samples, three Relus: K counts the activations that are both on or both off."""
    from onnxpress.nas.spaces.network import NetworkBuilder

    net = NetworkBuilder()
    model = net.model({"y": net.activation(net.input("x", (3,)))})
    batch = {"x": np.array([[1, 1, -1], [1, -1, -1]], np.float32)}
    assert proxies.naswot(model, batch) == pytest.approx(np.log(3 * 3 - 2 * 2), abs=1e-6)


DIGITS = calibration_folder() / "digits"
COMMON = [
    "-d",
    str(DIGITS / "train.npz"),
    "--select",
    str(DIGITS / "select.npz"),
    "--validate",
    str(DIGITS / "validate.npz"),
    "-q",
]


@pytest.mark.alone
def test_a_search_from_space_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    command = ["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")]
    assert cli([*command, "--trials", "4", "--time-budget", "5s", "--trainees", "2", "--keep", "1", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["kind"] == "nas"
    assert 1 <= body["evaluated"] <= 4
    files = sorted((tmp_path / "out" / "front").glob("*.onnx"))
    assert files
    for file in files:
        model = load(file)
        assert [n.op_type for n in model.graph].count("BatchNormalization") == 0
        again = tmp_path / "again.onnx"
        build = ["nas", "build", str(file.with_suffix(".json")), "-t", str(DIGITS / "digits.onnx"), *COMMON]
        assert cli([*build, "-o", str(again)]) == 0
        assert again.read_bytes() == file.read_bytes()
        assert "the bytes of the search" in capsys.readouterr().out
        record = json.loads(file.with_suffix(".json").read_text())
        file.with_suffix(".json").write_text(json.dumps(record | {"model": "other", "versions": {"onnx": "0.1"}}))
        assert cli([*build, "-o", str(again)]) == 0
        assert "not the bytes of the search: onnx was 0.1" in capsys.readouterr().err
        assert cli([*build[:-1], "--seed", "1", "-o", str(again)]) == 2, "a record holds its seed"
    assert len(body["candidates"]) == 1
    warm = [
        *command[:-1],
        str(tmp_path / "next"),
        "--warm",
        str(tmp_path / "out"),
        "--trials",
        "1",
        "--time-budget",
        "3s",
        "--json",
    ]
    assert cli(warm) == 0
    assert json.loads(capsys.readouterr().out)["evaluated"] == 1
    (record,) = (tmp_path / "next" / "front").glob("*.json")
    assert json.loads(record.read_text())["choices"] == json.loads(files[0].with_suffix(".json").read_text())["choices"]
    report = (tmp_path / "out" / "report.md").read_text()
    for file in files:
        samples = f"--teacher {DIGITS / 'digits.onnx'} --data {DIGITS / 'train.npz'}"
        assert f"onnxpress nas build front/{file.stem}.json {samples}" in report


@pytest.mark.parametrize(("seconds", "trainees", "keep"), [(5400, 8, 2), (300, 8, 2), (20, 2, 2), (2, 1, 1)])
def test_a_short_time_budget_limits_the_trainees(seconds: float, trainees: int, keep: int) -> None:
    request = limit_trainees(NasRequest("image-small"), seconds)
    assert (request.trainees, request.keep) == (trainees, keep)


@pytest.mark.slow
def test_a_search_ends_near_its_time_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    command = ["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON[:-1], "-o", str(tmp_path / "out")]
    start = time.monotonic()
    assert cli([*command, "--time-budget", "40s", "--json"]) == 0
    assert time.monotonic() - start < 80
    said = capsys.readouterr()
    assert "of the 8 trainings only" in said.err
    assert max(c["score"]["value"] for c in json.loads(said.out)["candidates"]) > 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["image-huge"], "no such search space"),
        (["image-small", "--proxy", "hope"], "unknown proxy"),
        (["image-small", "--trials", "0"], "out of range"),
        (["image-small", "--latency-ms", "0"], "must be positive"),
        (["image-small", "--warm", "no-such-search"], "no earlier search"),
        (["text-encoder"], "encoder takes tokens"),
        (["image-small", "--storage", "postgresql://nobody@127.0.0.1:1/none"], "storage"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    code = cli(["nas", *arguments, "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip().splitlines()
    assert code in (2, 3), error
    assert re.search(said, error[-1])
    assert len(error) == 1 or error[:-1] == [line for line in error[:-1] if line.startswith("assumed")]


def test_a_record_of_another_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {
        "space": "image-small",
        "seed": 0,
        "use_teacher": True,
        "hashes": {"teacher": "x"},
        "choices": {},
        "trainings": [],
    }
    (tmp_path / "r.json").write_text(json.dumps(record))
    (tmp_path / "s.json").write_text('{"space": "cell"}')
    for name, said in (
        ("r", "differ from the search's.*teacher"),
        ("s", "not a record of a candidate"),
        ("t", "no such record"),
    ):
        build = ["nas", "build", str(tmp_path / f"{name}.json"), "-t", str(DIGITS / "digits.onnx"), *COMMON]
        assert cli([*build, "-o", str(tmp_path / "again.onnx")]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "again.onnx").exists()


def test_a_user_proxy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def depth(model, batch):\n    return len(model.graph)\n\ndef bad(model, batch): 1 / 0\n"
    )
    model = load_space("image-small")(RandomTrial(0), tasks.IMAGE)
    counted = count_costs(model, tasks.batch(tasks.IMAGE))
    assert proxies.compute_proxy(f"{tmp_path / 'mine.py'}:depth", model, {}, counted) == len(model.graph)
    with pytest.raises(InputProblem, match=r"the proxy failed.*ZeroDivisionError"):
        proxies.compute_proxy(f"{tmp_path / 'mine.py'}:bad", model, {}, counted)
    with pytest.raises(InputProblem, match="no such function"):
        proxies.check_proxy(f"{tmp_path / 'mine.py'}:other")


def test_a_limit_that_no_candidate_meets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    command = ["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")]
    assert cli([*command, "--trials", "2", "--time-budget", "20s", "--latency-ms", "0.0001"]) == 2
    assert "no candidate meets the limits" in capsys.readouterr().err


def test_without_optuna_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "optuna" else object())
    assert cli(["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")]) == 3
    assert "onnxpress[nas]" in capsys.readouterr().err


def test_requests_are_checked() -> None:

    with pytest.raises(InputProblem, match="trainees"):
        NasRequest("cell", trainees=0).check()


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
    from tests import nets

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


def test_choices_that_build_no_network_are_pruned() -> None:
    def picky(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        if trial.suggest_int("x", 0, 9) < 5:
            raise InputProblem("this one is no network")
        return str(trial.number), lambda: (1.0, 1.0, 0.0, {})

    study = Study(None, "s", "random", 0)
    study.run(picky, 20)
    assert 0 < len(study.results()) < 20

    def never(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        raise InputProblem("none is a network")

    with pytest.raises(InputProblem, match="none is a network"):
        Study(None, "s", "random", 0).run(never, 5)


def test_structural_hash_depends_on_resolution_and_sharing() -> None:
    from onnxpress.nas.spaces.network import NetworkBuilder

    def at(size: int) -> str:
        net = NetworkBuilder()
        return structural_hash(net.model({"y": net.global_pool(net.resized(net.input("x", (3, 32, 32)), size))}))

    def summed(shared: bool) -> str:
        net = NetworkBuilder()
        x = net.input("x", (3, 8, 8))
        first = net.conv(x, 4)
        return structural_hash(net.model({"y": net.add(first, first if shared else net.conv(x, 4))}))

    assert at(16) != at(24)
    assert summed(True) != summed(False)


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
