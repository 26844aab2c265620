"""Calls in a child process with limits, for native code that may crash or hang on an untrusted graph.

The child gets a dotted function and string arguments (paths); it returns files and an exit code.
"""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class ChildResult:
    """The result of a call in a child process.

    reason: "time" (limit exceeded), "crash" (killed by a signal), "error" (`detail` is its last line on stderr)
    """

    ok: bool
    reason: str = ""
    detail: str = ""


def call(function: str, *args: str, seconds: float, memory_mb: int = 0) -> ChildResult:
    """Run `module:function(*args)` in a child process.

    seconds:   time limit
    memory_mb: limit of its address space; 0: unlimited
    """
    command = [sys.executable, "-m", "onnxpress.runtime.isolate", function, str(memory_mb), *args]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return ChildResult(False, "time", f"no answer within {seconds:g} s")
    if done.returncode == 0:
        return ChildResult(True)
    last = (done.stderr.strip().splitlines() or [""])[-1][:200]
    if done.returncode < 0:
        return ChildResult(False, "crash", f"killed by signal {-done.returncode}")
    return ChildResult(False, "error", last)


def _child(argv: list[str]) -> int:
    target, memory, *args = argv
    if int(memory):
        limit = int(memory) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(*args)
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
