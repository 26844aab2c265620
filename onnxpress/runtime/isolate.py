"""Calls in a child process with limits, for native code that may crash or hang on an untrusted graph.

The child gets a dotted function and string arguments (paths); it returns files and an exit code.  `call` starts a new
interpreter; a `ForkServer` imports what is needed once and forks a child for each call, which takes milliseconds.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_SERVE = "serve"  # in place of a function
_GRACE = 5.0  # seconds beyond the limit until a server without an answer is given up
_POLL = 0.002  # seconds between looks at a running child, at first; up to 50 times that


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
        return _timed_out(seconds)
    return _result(done.returncode, done.stderr)


def _timed_out(seconds: float) -> ChildResult:
    return ChildResult(False, "time", f"no answer within {seconds:g} s")


def _result(code: int, stderr: str) -> ChildResult:
    if code == 0:
        return ChildResult(True)
    if code < 0:
        return ChildResult(False, "crash", f"killed by signal {-code}")
    return ChildResult(False, "error", (stderr.strip().splitlines() or [""])[-1][:200])


class ForkServer:
    """Calls like those of `call`, in forks of a process that has run `preload` ("module:function") once.

    The server starts with the first call and ends with this process.  It has one thread, so that forks are safe.
    """

    def __init__(self, preload: str) -> None:
        self._preload = preload
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def call(self, function: str, *args: str, seconds: float) -> ChildResult:
        """Run `module:function(*args)` in a fork. seconds: time limit."""
        with self._lock:
            try:
                request = json.dumps([function, list(args), seconds])
                answer = self._ask(request, seconds)
                if answer == "":  # the server was gone, which is no fault of this call
                    self._kill()
                    answer = self._ask(request, seconds)
            except BaseException:  # an interrupt: the answer would be taken for that of the next call
                self._kill()
                raise
        if answer is None:
            self._kill()
            return _timed_out(seconds)
        if answer == "":
            self._kill()
            return ChildResult(False, "crash", "its server ended")
        code, stderr = json.loads(answer)
        return _timed_out(seconds) if code is None else _result(code, stderr)

    def _ask(self, request: str, seconds: float) -> str | None:
        """The server's answer; None without one in time, "" where the server is gone."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return ""
        if not select.select([process.stdout], [], [], seconds + _GRACE)[0]:
            return None
        return process.stdout.readline()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._kill()
        command = [sys.executable, "-m", "onnxpress.runtime.isolate", _SERVE, self._preload]
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._owner = os.getpid()
        atexit.register(self._kill)
        return self._process

    def _kill(self) -> None:
        """End the server and the child that runs."""
        process, self._process = self._process, None
        atexit.unregister(self._kill)
        if process is None or self._owner != os.getpid():
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _serve(preload: str) -> int:
    """Answer requests on stdin, a line each, until it is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    _named(preload)()
    for line in sys.stdin:
        function, args, seconds = json.loads(line)
        with tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if pid == 0:
                _run_fork(function, args, errors.fileno())
            code = _wait(pid, float(seconds))
            errors.seek(0)
            answers.write(json.dumps([code, errors.read().decode(errors="replace")[-2000:]]) + "\n")
            answers.flush()
    return 0


def _run_fork(function: str, args: list[str], errors: int) -> None:
    """In the fork: the call, then the end of the process."""
    code = 1
    try:
        os.dup2(errors, 2)
        _named(function)(*args)
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    """The exit code of a child (negative: of a signal); None where it took too long and was killed."""
    end, pause = time.monotonic() + seconds, _POLL
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, 50 * _POLL)


def _named(text: str) -> Any:
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)


def _child(argv: list[str]) -> int:
    if argv[0] == _SERVE:
        return _serve(argv[1])
    target, memory, *args = argv
    if int(memory):
        limit = int(memory) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _named(target)(*args)
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
