"""Facts of the machine that kernels depend on, and the grid of widths."""

from __future__ import annotations

import os

import pytest

from onnxpress.errors import InputProblem
from onnxpress.runtime.machine import Machine, machine_for, pinned, this_machine

pytestmark = pytest.mark.unit


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
    ("target", "full", "expected"),
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
def test_widths_lie_on_the_grid(target: float, full: int, expected: int) -> None:
    assert machine("avx2", "avx512f").nearest(target, full) == expected


def test_targets_are_named() -> None:
    assert not machine_for("avx2").int8_exact
    with pytest.raises(InputProblem, match="avx2"):
        machine_for("z80")


def test_pinning_ends_with_the_block() -> None:
    before = os.sched_getaffinity(0)
    with pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
