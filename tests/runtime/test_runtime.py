"""Machine facts, sessions, isolation and latency."""

from __future__ import annotations

import time

import numpy as np
import pytest

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.runtime import isolate
from onnxpress.runtime.intervals import block_bootstrap
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import Machine, machine_for, this_machine
from onnxpress.runtime.session import SessionSettings, open_session, trace
from tests import nets


def machine(*isa: str, arch: str = "x86_64") -> Machine:
    return Machine("test", arch, isa, 1, 1000, "0", "Linux")


def test_this_machine_is_read() -> None:
    own = this_machine()
    assert own.cores >= 1
    assert own.arch
    assert own.onnxruntime.count(".") == 2


@pytest.mark.parametrize(
    ("isa", "arch", "exact", "block"),
    [
        (("avx2",), "x86_64", False, 8),
        (("avx2", "avx512f"), "x86_64", False, 16),
        (("avx2", "avx512f", "avx512_vnni"), "x86_64", True, 16),
        (("avx2", "avx_vnni"), "x86_64", True, 8),
        (("asimddp",), "aarch64", True, 8),
    ],
)
def test_kernel_facts_follow_the_isa(isa: tuple[str, ...], arch: str, exact: bool, block: int) -> None:
    made = machine(*isa, arch=arch)
    assert (made.int8_exact, made.conv_block) == (exact, block)


@pytest.mark.parametrize(
    ("wish", "full", "expected"),
    [
        (24.0, 48, 16),
        (32.1, 48, 32),
        (13.6, 16, 16),
        (8.0, 16, 8),
        (12.0, 16, 16),
        (1.0, 16, 8),
        (100.0, 64, 64),
        (3, 4, 4),
    ],
)
def test_widths_lie_on_the_grid(wish: float, full: int, expected: int) -> None:
    assert machine("avx2", "avx512f").nearest(wish, full) == expected


def test_targets_are_named() -> None:
    assert not machine_for("avx2").int8_exact
    with pytest.raises(InputProblem, match="avx2"):
        machine_for("z80")


def test_trace_records_shapes() -> None:
    model = nets.residual(width=8, blocks=1)
    evidence = evidence_for(model, nets.samples(model, 1))
    found = trace(evidence.model, evidence.probe)
    assert found.shapes["image"] == (1, 3, 8, 8)
    assert all(len(s) in (2, 4) for s in found.shapes.values())


def test_session_errors_are_one_line() -> None:
    with pytest.raises(InputProblem) as caught:
        open_session(b"nothing", where="x.onnx")
    assert "\n" not in caught.value.line()


def test_isolation_reports_time_crash_and_error() -> None:
    assert isolate.call("time:sleep", "1", seconds=0.3).reason in ("time", "error")
    assert isolate.call("os:abort", seconds=20).reason == "crash"
    assert isolate.call("os:remove", "/nowhere/at/all", seconds=20).reason == "error"
    start = time.perf_counter()
    assert isolate.call("tests.runtime.helpers:forever", seconds=0.5).reason == "time"
    assert time.perf_counter() - start < 10


@pytest.mark.alone
def test_latency_distinguishes_a_larger_model() -> None:
    small, large = nets.residual(width=16, blocks=1), nets.residual(width=64, blocks=3)
    feeds = [b.inputs for b in nets.samples(small, 2).batches(1)]
    found = compare_latency({"small": small, "same": small, "large": large}, feeds, Effort(seconds=1.5, precision=0.02))
    assert found.ratio("large").verdict == "slower"
    assert found.ratio("large").high < 0.7
    assert 0.9 < found.ratio("same").speedup < 1.1
    assert found.timing("small").low <= found.timing("small").median <= found.timing("small").high


def test_bootstrap_covers_a_correlated_median() -> None:
    """Coverage of the interval on AR(1) noise; the i.i.d. bootstrap would cover far less."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal(400)
        for i in range(1, 400):
            noise[i] += 0.6 * noise[i - 1]
        _, low, high = block_bootstrap(noise, 300, seed)
        covered += low <= 0 <= high
    assert covered >= 84


def test_settings_reach_onnxruntime() -> None:
    model = nets.residual(width=8, blocks=1)
    session = open_session(model, SessionSettings(threads=2, level="basic"))
    assert session.get_session_options().intra_op_num_threads == 2
