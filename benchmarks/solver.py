"""The search of this version beside that of another: files found in the same time, in one interleaved run.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/solver.py --base CHECKOUT [--cases kws,vww] [--budgets 60,150]
                                                           [--peers] [--json FILE --resume]

CHECKOUT is a working tree of the other version (`git worktree add ../base 2441a81`). Both run as commands, one after
the other, on the same machine: `optimize MODEL -d TRAIN --select SELECT --validate HALF`, where the samples to select
with are cut in two, so that `val` is used for the table alone. Then the files of both, the original and, with --peers,
the recipes of `zoo.py` are timed together, with one thread. For every budget the table ends with the geometric mean of
the speed-up over the base, and says how far budgets and the largest memory were exceeded.

With one case and many budgets it is the curve of the best speed against time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from openvino_peer import openvino_speedup
from zoo import CALIBRATION, RECIPES, dataset, zoo_module

from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset
from onnxpress.measure.score import Scorer
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import this_machine

_HERE = Path(__file__).resolve().parent.parent
_WAIT = 4  # times the budget after which a command is stopped


@dataclass
class Found:
    """What one command found.  seconds: wall time; bytes: of its file, or of the original where it wrote none;
    megabytes: largest resident memory of a process."""

    wrote: bool
    seconds: float
    bytes: int
    megabytes: float
    drop: float = 0.0
    speedup: float = 1.0


@dataclass
class Row:
    """One case at one budget.  ratio: speed of this version's file over that of the base's, with its interval; peers:
    speed-up over the original of each recipe that loses no more than is allowed."""

    case: str
    budget: float
    base: Found
    new: Found
    ratio: tuple[float, float, float] = (1.0, 1.0, 1.0)
    peers: dict[str, float] = field(default_factory=dict)


def save_samples(case: Any, folder: Path) -> dict[str, Path]:
    """Files of the samples: those of `select` in two halves."""
    files = {}
    for split, part in (("train", slice(None)), ("select", slice(0, None, 2)), ("validate", slice(1, None, 2))):
        inputs, labels = case.data("select" if split == "validate" else split, 0, None)
        arrays = {name: array[part] for name, array in inputs.items()}
        if labels is not None:
            arrays["labels"] = np.asarray(labels)[part]
        files[split] = folder / f"{case.name}-{split}.npz"
        np.savez(files[split], allow_pickle=False, **arrays)
    return files


def run_version(checkout: Path, case: Any, files: Mapping[str, Path], budget: float, target: Path) -> Found:
    """Run `optimize` of a checkout as a command."""
    command = [
        sys.executable, "-m", "onnxpress", "optimize", str(case.model), "-d", str(files["train"]),
        "--select", str(files["select"]), "--validate", str(files["validate"]),
        "--time-budget", f"{budget:g}s", "-o", str(target), "-q",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(checkout), "ONNXPRESS_CACHE": "off"}
    target.unlink(missing_ok=True)
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=target.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            usage = _wait(process, _WAIT * budget + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            usage = 0.0
    wrote = target.is_file()
    return Found(
        wrote, time.perf_counter() - start, (target if wrote else Path(case.model)).stat().st_size, usage / 1024
    )


def kept_base(kept: Path | None, case: Any, budget: float, target: Path, run: Callable[[], Found]) -> Found:
    """The base's file as an earlier run of this benchmark kept it in a folder, or made, and kept there.

    The base does not change, and all files are timed together afterwards.
    """
    if kept is None:
        return run()
    kept.mkdir(parents=True, exist_ok=True)
    file, facts = (kept / f"{case.name}-{budget:g}.{ending}" for ending in ("onnx", "json"))
    if not facts.exists():
        found = run()
        if found.wrote:
            shutil.copyfile(target, file)
        facts.write_text(json.dumps(asdict(found)))
    target.unlink(missing_ok=True)
    if file.exists():
        shutil.copyfile(file, target)
    return Found(**json.loads(facts.read_text()))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> float:
    """Wait for a process; its largest resident memory, in kB."""
    end, largest = time.perf_counter() + seconds, 0.0
    while time.perf_counter() < end:
        largest = max(largest, _peak(process.pid))  # ru_maxrss would hold that of this process, which forked it
        if process.poll() is not None:
            return largest
        time.sleep(0.05)
    raise subprocess.TimeoutExpired("optimize", seconds)


def _peak(pid: int) -> float:
    """Largest resident memory so far of a process and its children, each alone, in kB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = next((float(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0.0)
    return max([own, *(_peak(int(child)) for child in children)])


def peer_files(case: Any, calibrate: Dataset, folder: Path) -> dict[str, bytes]:
    """The files of the recipes that work on a case."""
    made = {}
    for name, recipe in RECIPES.items():
        path = folder / f"{case.name}-{name.replace(' ', '-')}.onnx"
        try:
            recipe(Path(case.model), path, calibrate)
            made[name] = path.read_bytes()
        except Exception as error:  # a peer's failure is a result of the benchmark
            console.out(f"{case.name}: {name} failed: {type(error).__name__}")
    return made


def compare(case: Any, row: Row, files: Mapping[str, bytes], peers: Mapping[str, bytes], seconds: float) -> None:
    """Score all files on `val`, and time them together; the results go into the row."""
    original = load(case.model)
    judge = Scorer(original, dataset(case, "val", signature(original)))
    feeds = [b.inputs for b in judge.data.take(4).batches(1)]
    row.base.drop, row.new.drop = judge.score(files["base"]).drop, judge.score(files["new"]).drop
    allowed = judge.allowed_drop(None)
    good = {name: data for name, data in peers.items() if judge.score(data).drop <= allowed}
    models = {"base": files["base"], "new": files["new"], "original": Path(case.model).read_bytes(), **good}
    timed = compare_latency(models, feeds, Effort(seconds=seconds, precision=0.003))
    of_original = timed.ratio("original").speedup
    ratio = timed.ratio("new")
    row.ratio = (ratio.speedup, ratio.low, ratio.high)
    row.base.speedup, row.new.speedup = 1 / of_original, ratio.speedup / of_original
    row.peers = {name: timed.ratio(name).speedup / of_original for name in good}
    if "nncf" in good and importlib.util.find_spec("openvino") is not None:
        row.peers["openvino nncf"] = openvino_speedup(models["original"], good["nncf"], feeds, seconds / 4)


def mean(values: list[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def show(rows: list[Row]) -> None:
    console.table(
        [
            ("case", "left"),
            *((name, "right") for name in ("s", "base", "new", "new / base", "best peer", "drop", "wall")),
        ],
        [
            [
                row.case,
                f"{row.budget:g}",
                f"{row.base.speedup:.2f}x" if row.base.wrote else "none",
                f"{row.new.speedup:.2f}x" if row.new.wrote else "none",
                f"{row.ratio[0]:.2f} [{row.ratio[1]:.2f}, {row.ratio[2]:.2f}]",
                f"{max(row.peers.values()):.2f}x" if row.peers else "",
                f"{row.base.drop:+.4f} {row.new.drop:+.4f}",
                f"{row.base.seconds:.0f} {row.new.seconds:.0f}",
            ]
            for row in rows
        ],
    )
    for budget in sorted({row.budget for row in rows}):
        some = [row for row in rows if row.budget == budget]
        late = [max(row.new.seconds - 1.05 * budget - 3, 0.0) for row in some]
        console.out(
            f"{budget:g} s: {len(some)} cases, new / base {mean([r.ratio[0] for r in some]):.3f} (geometric mean), "
            f"slower in {sum(r.ratio[2] < 1 for r in some)}; budget exceeded in {sum(x > 0 for x in late)}, by at most "
            f"{max(late):.0f} s; memory {max(r.new.megabytes for r in some):.0f} MB"
        )
        with_peers = [row for row in some if row.peers]
        if with_peers:
            behind = [r.case for r in with_peers if r.new.speedup < max(r.peers.values())]
            console.out(f"  behind the best peer: {', '.join(behind) or 'none'}")


@click.command()
@click.option("--zoo", envvar="ONNXPRESS_ZOO", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--base", required=True, type=click.Path(path_type=Path, exists=True), help="Checkout of the base.")
@click.option("--base-files", type=click.Path(path_type=Path), help="Folder that keeps the files of the base.")
@click.option("--cases", default="", help="Names, separated by commas; default: all.")
@click.option("--budgets", default="60", show_default=True, help="Seconds, separated by commas.")
@click.option("--seconds", default=20.0, show_default=True, help="Of the timing of all files of a case.")
@click.option("--peers", is_flag=True, help="Time the recipes of zoo.py, too.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="File for the results.")
@click.option("--resume", is_flag=True, help="Leave out what the file holds.")
def main(
    zoo: Path,
    base: Path,
    base_files: Path | None,
    cases: str,
    budgets: str,
    seconds: float,
    peers: bool,
    target: Path | None,
    resume: bool,
) -> None:
    module = zoo_module(zoo)
    names = cases.split(",") if cases else list(module.names())
    rows: list[Row] = []
    if resume and target is not None and target.exists():
        for known in json.loads(target.read_text())["rows"]:
            found = {side: Found(**known.pop(side)) for side in ("base", "new")}
            rows.append(Row(**{**known, **found, "ratio": tuple(known["ratio"])}))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            case = module.load(name)
            files = save_samples(case, folder)
            calibrate = dataset(case, "train", signature(load(case.model)), CALIBRATION)
            others = peer_files(case, calibrate, folder) if peers else {}
            for budget in (float(b) for b in budgets.split(",")):
                if any(r.case == name and r.budget == budget for r in rows):
                    continue
                outputs = {side: folder / f"{name}-{side}.onnx" for side in ("base", "new")}
                make = partial(run_version, base.resolve(), case, files, budget, outputs["base"])
                of_base = kept_base(base_files, case, budget, outputs["base"], make)
                row = Row(name, budget, of_base, run_version(_HERE, case, files, budget, outputs["new"]))
                written = {
                    side: (path if path.is_file() else Path(case.model)).read_bytes() for side, path in outputs.items()
                }
                compare(case, row, written, others, seconds)
                rows.append(row)
                show([row])
                if target is not None:
                    facts = document(
                        "solver benchmark", machine=this_machine().as_dict(), rows=[asdict(r) for r in rows]
                    )
                    target.write_text(json.dumps(facts, indent=1))
    show(rows)
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
