"""Facts of this CPU, read at run time, and their consequences for kernel widths and 8-bit types.

They follow onnxruntime's MLAS (core/mlas/lib/platform.cpp, snchwc.cpp, convsym.cpp): blocked float convolutions pad
channels to a block (16 floats with AVX-512F, 8 on other x86), and leave the fast path when the input width is not a
multiple of 4.  u8 x s8 products without VNNI, AMX or a NEON dot product are summed in pairs that saturate at 16 bits.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime as ort

from onnxpress.errors import InputProblem

_FLAGS = {
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
    "amx_tile": "amx_tile",
    "asimddp": "asimddp",
    "i8mm": "i8mm",
}
# Instruction sets that a user can name, to write a file for another machine.
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "avx2": ("x86_64", ("avx2", "fma")),
    "avx512": ("x86_64", ("avx2", "fma", "avx512f", "avx512bw", "avx512vl")),
    "vnni": ("x86_64", ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni")),
    "arm": ("aarch64", ("asimddp",)),
}


@dataclass(frozen=True)
class Machine:
    """Facts of a machine.

    arch:        platform.machine()
    isa:         instruction sets, of those in _FLAGS
    cores:       that this process may use
    granularity: multiple that channel counts are rounded to, in place of this CPU's kernel block; 0: the kernel block
    """

    model: str
    arch: str
    isa: tuple[str, ...]
    cores: int
    memory_mb: int
    onnxruntime: str
    system: str
    granularity: int = 0

    @property
    def int8_exact(self) -> bool:
        """Whether u8 x s8 products accumulate without 16-bit saturation."""
        if self.arch not in ("x86_64", "AMD64", "i686"):
            return True
        return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(self.isa))

    @property
    def conv_block(self) -> int:
        """Channels that a float convolution kernel computes together; its cost rises in steps of this size."""
        return self.granularity or (16 if "avx512f" in self.isa else 8)

    def grid(self, width: int) -> int:
        """The multiple to round a channel count to: the block, or half a block for counts up to one block."""
        return self.conv_block if width > self.conv_block or self.granularity else self.conv_block // 2

    def nearest(self, target: float, full: int) -> int:
        """The multiple of `grid` nearest to the target, at least one step and at most the full width.

        A tie rounds down (half of 48 is 16 with a grid of 16), but up where less than one block would save nothing.
        """
        if target >= full:
            return full
        step = self.grid(full)
        down = int(target // step) * step
        over = target - down
        best = down if over < step / 2 or (over == step / 2 and full > self.conv_block) else down + step
        return min(full, best if best > 0 else step)

    def text(self) -> str:
        """The facts in one line."""
        isa = " ".join(self.isa) or "no vector flags known"
        return f"{self.model}, {self.arch}, {isa}, {self.cores} cores, onnxruntime {self.onnxruntime}"

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "isa": list(self.isa), "int8_exact": self.int8_exact, "conv_block": self.conv_block}


def this_machine() -> Machine:
    """Facts of the machine that runs this process."""
    info = _cpuinfo()
    words = set((info.get("flags") or info.get("Features") or "").split())
    isa = tuple(name for name, flag in _FLAGS.items() if flag in words) or _isa_without_proc()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        info.get("model name", platform.processor() or "unknown CPU"),
        platform.machine(),
        isa,
        cores,
        _memory_mb(),
        ort.__version__,
        platform.system(),
    )


def machine_for(target: str = "auto") -> Machine:
    """This machine, or this machine with the instruction set of a named target.

    Raises InputProblem for an unknown target.
    """
    own = this_machine()
    if target == "auto":
        return own
    if target not in TARGETS:
        raise InputProblem("unknown target CPU", target, "", f"one of auto, {', '.join(TARGETS)}")
    arch, isa = TARGETS[target]
    return Machine(f"target {target}", arch, isa, own.cores, own.memory_mb, own.onnxruntime, own.system)


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Restrict this thread, and all threads and processes it starts, to these CPUs; () leaves them as they are.

    Raises InputProblem where one of them cannot be used.
    """
    if not cpus:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InputProblem("cannot pin to CPUs", "", f"{platform.system()} has no such call", "leave out `pin`")
    before = os.sched_getaffinity(0)
    wrong = [cpu for cpu in cpus if cpu not in before]
    if wrong:
        listed = ", ".join(str(c) for c in sorted(before))
        raise InputProblem("no such CPU to pin to", wrong[0], f"this process may use {listed}", "choose from these")
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if not key.strip():
            break
        found[key.strip()] = value.strip()
    return found


def _isa_without_proc() -> tuple[str, ...]:
    """Outside Linux: only what the architecture guarantees."""
    if platform.machine() in ("arm64", "aarch64"):
        return ("asimddp",)
    return ()


def _memory_mb() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError, AttributeError):
        return 0
