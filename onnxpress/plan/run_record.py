"""The record of one command: a folder with the plan, every candidate with its score, and the machine's facts.

run.json is rewritten after every candidate, so a killed run leaves what it knew; the same command on the same inputs
then goes on from there (`candidate_store.py`).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from onnxpress.errors import InputProblem
from onnxpress.model.files import write_atomic
from onnxpress.plan.candidate_store import CandidateStore
from onnxpress.result import document, plain


class RunRecord:
    """A run folder.  One run an output: a second one on the same folder is refused while the first lives.

    identity: of everything that decides what the run will find; an unfinished run of the same identity is resumed.
    """

    def __init__(self, folder: str | Path, identity: str = "", **facts: Any) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputProblem(
                "the run folder cannot be made", self.folder, str(error), "name another with `run`"
            ) from error
        self._lock = self.folder / ".lock"
        self._claim()
        self.resumed = self._unfinished(identity)
        self.store = CandidateStore(self.folder)
        if not self.resumed:
            self.store.clear()
        facts = {"identity": identity, "resumed": self.resumed, **facts}
        self._body: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%S"), **facts, "candidates": []}
        self.write()

    def _claim(self) -> None:
        try:
            handle = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if _alive(self._lock):
                raise InputProblem(
                    "another run is writing here", self.folder, "", "wait for it, or name another folder with `run`"
                ) from None
            self._lock.unlink(missing_ok=True)
            handle = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        with os.fdopen(handle, "w") as stream:
            stream.write(str(os.getpid()))

    def _unfinished(self, identity: str) -> bool:
        """Whether the folder holds a run of this identity that did not come to its end."""
        try:
            before = json.loads((self.folder / "run.json").read_text())
        except (OSError, ValueError):
            return False
        return isinstance(before, dict) and before.get("identity") == identity != "" and "outcome" not in before

    def add(self, candidate: dict[str, Any]) -> None:
        """Record one candidate and write."""
        self._body["candidates"].append(plain(candidate))
        self.write()

    def set(self, **facts: Any) -> None:
        self._body.update({k: plain(v) for k, v in facts.items()})
        self.write()

    def write(self) -> None:
        write_atomic(self.folder / "run.json", (json.dumps(document("run", **self._body), indent=1) + "\n").encode())

    def close(self) -> None:
        self._lock.unlink(missing_ok=True)


def _alive(lock: Path) -> bool:
    try:
        pid = int(lock.read_text())
        os.kill(pid, 0)
    except (ValueError, OSError):
        return False
    return True
