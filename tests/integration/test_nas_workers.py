"""Many workers on one study: claims, roles, and what becomes of the trials of those that die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState

from onnxpress.data.dataset import Splits
from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.nas import worker
from onnxpress.nas.evaluation.evaluator import Evaluator
from onnxpress.nas.evaluation.timing_queue import TimingQueue
from onnxpress.nas.request import NasRequest
from onnxpress.nas.strategies.storage import connect
from onnxpress.nas.strategies.study import Study
from onnxpress.nas.strategies.surrogate import Surrogate
from onnxpress.runtime.machine import Machine, this_machine
from tests import nets

LAND = Surrogate(1, edges=8)


SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []


def asked(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
    quality, seconds = LAND.ask(trial)
    return f"{trial.number}", lambda: (quality, seconds, 0.0, {})


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A server of the test's own, from the machine's packages, on a socket and a port of its own; gone afterwards.

    Its folder is none of pytest's, which only root may enter where root runs the tests."""
    if not SERVERS:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    pytest.importorskip("psycopg")
    home = Path(tempfile.mkdtemp(prefix="onnxpress-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
        shutil.chown(home, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    bin_, data, port = SERVERS[-1], home / "data", str(20000 + os.getpid() % 20000)
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*as_user, str(bin_ / "initdb"), "-D", str(data), "-A", "trust", "-U", "onnxpress"], **quiet)
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*as_user, str(bin_ / "pg_ctl"), "-D", str(data), "-w"]
    subprocess.run([*control, "-o", options, "-l", str(home / "log"), "start"], **quiet)
    try:
        yield f"postgresql://onnxpress@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize(
    "strategy", ["evolution", *(pytest.param(s, marks=pytest.mark.slow) for s in ("tpe", "nsga2", "random"))]
)
def test_both_databases_give_the_same_trials(strategy: str, postgres: str, tmp_path: Path) -> None:
    found = []
    for storage in (tmp_path / "study.db", postgres):
        with Study(storage, f"same {strategy}", strategy, 5, population=6) as study:
            study.run(asked, 18)
            found.append([(e.choices, e.quality, e.latency) for e in study.results()])
    assert found[0] == found[1]
    assert len(found[0]) == 18


WORKER = """
import sys, time
from tests.integration.test_nas_workers import LAND
from onnxpress.nas.strategies.storage import connect
from onnxpress.nas.strategies.study import Study

def slow(trial):
    quality, seconds = LAND.ask(trial)
    print("busy", flush=True)
    time.sleep(float(sys.argv[2]))
    return str(trial.number), lambda: (quality, seconds, 0.0, {})

with Study(sys.argv[1], "four", "evolution", None, heartbeat=1) as study:
    print("joined", flush=True)
    study.run(slow, int(sys.argv[3]))
"""


@pytest.mark.slow
def test_four_workers_two_of_them_killed(postgres: str) -> None:
    """The trials of the killed workers are repeated."""
    wanted = 12
    command = [sys.executable, "-c", WORKER, postgres]
    # the workers to be killed never finish their first trial
    workers = [
        subprocess.Popen([*command, pause, str(wanted)], stdout=subprocess.PIPE, text=True, start_new_session=True)
        for pause in ("600", "600", "0.2", "0.2")
    ]
    killed, surviving = workers[:2], workers[2:]
    try:
        for one in workers:
            assert one.stdout is not None
            assert one.stdout.readline() == "joined\n"
        for one in killed:
            assert one.stdout is not None
            assert one.stdout.readline() == "busy\n"
            os.killpg(one.pid, signal.SIGKILL)
        for one in surviving:
            assert one.wait(timeout=90) == 0
    finally:
        for one in workers:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
            one.communicate()
    with Study(postgres, "four", "random", None) as watch:
        states = watch.states()
        assert states["fail"] == 2
        assert set(states) == {"complete", "fail"}, "no running or waiting trials"
        assert wanted <= states["complete"] <= wanted + 2
        again = [dict(watch.choices(number)) for number in watch.retried()]
        lost = [dict(watch.choices(number)) for number in watch.failed()]
        assert sorted(map(str, again)) == sorted(map(str, lost)), "repeated with the same choices"
        assert {e.number for e in watch.results()} >= set(watch.retried())


def test_a_worker_whose_trial_was_failed_continues(tmp_path: Path) -> None:
    """It missed heartbeats: its trial is repeated, and its own result is ignored."""
    storage = tmp_path / "study.db"
    with Study(storage, "s", "random", 0) as study:

        def asleep(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
            found = asked(trial)
            if trial.number == 1:
                trial.study.tell(1, state=TrialState.FAIL)
            return found

        study.run(asleep, 4)
        assert study.states() == {"complete": 4, "fail": 1}


def test_errors_of_the_user_are_raised(tmp_path: Path) -> None:
    def broken(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, dict[str, Any]]]]:
        raise ValueError("a defect")

    with Study(tmp_path / "study.db", "s", "random", 0) as study, pytest.raises(ValueError, match="a defect"):
        study.run(broken, 2)


def test_a_continued_study_draws_other_candidates(tmp_path: Path) -> None:
    for strategy in ("random", "tpe", "nsga2"):
        for _ in range(2):
            with Study(tmp_path / f"{strategy}.db", "s", strategy, 0) as study:
                study.run(asked, len(study.results()) + 3)
                choices = [str(sorted(e.choices.items())) for e in study.results()]
        assert len(set(choices)) == 6


def test_passwords_are_not_shown() -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        connect("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in caught.value.line()
    assert "me:***@127.0.0.1" in caught.value.line()


def splits() -> tuple[Any, Splits]:
    model = nets.residual(width=8, blocks=1)
    return model, Splits(*(nets.samples(model, count, seed) for seed, count in enumerate((40, 20, 20))))


@pytest.mark.filterwarnings("ignore")  # filters of warnings are not a thread's own: the two would lift each other's
def test_one_role_scores_and_the_other_times(tmp_path: Path) -> None:
    """In two threads, as on two machines: all latencies are measured by the second."""
    pytest.importorskip("torch")
    model, parts = splits()
    storage = str(tmp_path / "study.db")
    request = NasRequest("image-small", trials=3, proxy="macs", storage=storage)
    evaluator = Evaluator(model, parts, request, True, this_machine())
    study = worker.open_study(evaluator, storage, 0, heartbeat=1)
    done: list[worker.WorkerSession] = []
    timer = threading.Thread(target=lambda: done.append(worker.run_worker(storage, model, parts, "latency")))
    timer.start()
    try:
        worker.evaluate_candidates(evaluator, study, storage, "train", lambda: True, heartbeat=1)
    finally:
        worker.end_evaluation(study)
        timer.join(60)
    assert not timer.is_alive()
    results = study.results()
    assert len(results) == 3
    assert all(e.latency > 0 for e in results)
    assert done[0].timed == sum(e.duplicate_of is None for e in results)
    assert done[0].scored == 0
    joined = worker.run_worker(storage, model, parts, "both", time_budget=60)
    assert joined.scored == 0, "no more trials are wanted"
    assert joined.states == {"complete": 3}


def test_a_machine_of_another_kind_does_not_measure_latency(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model, parts = splits()
    request = NasRequest("image-small", trials=2, proxy="macs")
    here = this_machine()
    other = Machine(**{**here.__dict__, "cores": here.cores + 1})
    study = worker.open_study(Evaluator(model, parts, request, True, here), tmp_path / "study.db", 0)
    Evaluator(model, parts, request, True, here).anchor_latency(study)
    with pytest.raises(EnvironmentProblem, match="another kind"):
        Evaluator(model, parts, request, True, other).anchor_latency(study)


def test_a_worker_with_other_files_is_rejected(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model, parts = splits()
    storage = str(tmp_path / "study.db")
    with pytest.raises(InputProblem, match="no such study"):
        worker.run_worker(storage, model, parts)
    assert not Path(storage).exists()
    Study(storage, "another", "random").close()
    with pytest.raises(InputProblem, match="no search to join"):
        worker.run_worker(storage, model, parts)
    worker.open_study(
        Evaluator(model, parts, NasRequest("image-small", proxy="macs"), True, this_machine()), storage, 0
    )
    with pytest.raises(InputProblem, match=r"differ from the study's.*select"):
        worker.run_worker(storage, model, Splits(parts.calibrate, parts.validate, parts.select))
    worker.open_study(Evaluator(model, parts, NasRequest("cell", proxy="macs"), True, this_machine()), storage, 0)
    with pytest.raises(InputProblem, match="ambiguous"):
        worker.run_worker(storage, model, parts)
    with pytest.raises(InputProblem, match="unknown role"):
        worker.run_worker(storage, model, parts, role="cook")


def test_waiting_ends_with_the_time_budget(tmp_path: Path) -> None:
    from onnxpress.nas.strategies.study import TimeBudgetExceeded

    queue = TimingQueue(tmp_path / "study.db", "s")
    queue.put(3)
    with pytest.raises(TimeBudgetExceeded):
        queue.wait(3, iter([True, False]).__next__)
    assert queue.serve(lambda number: 0.5 * number, iter([True, False]).__next__) == 1
    assert queue.wait(3, lambda: True) == 1.5


def test_a_failed_measurement_ends_waiting(tmp_path: Path) -> None:
    from onnxpress.nas.strategies.study import TimeBudgetExceeded

    def broken(number: int) -> float:
        raise ValueError("no such network")

    with TimingQueue(tmp_path / "study.db", "s") as queue:
        queue.put(3)
        assert queue.serve(broken, iter([True, False]).__next__) == 0
        with pytest.raises(TimeBudgetExceeded):
            queue.wait(3, lambda: True)
