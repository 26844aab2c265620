"""Architecture search as Python functions: what the commands `nas`, `nas worker` and `nas build` do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.data.any_data import DataSource, as_splits
from onnxpress.data.dataset import Splits
from onnxpress.errors import InputProblem
from onnxpress.model.source import ModelSource, open_model
from onnxpress.nas.optional_dependencies import require_optuna
from onnxpress.progress import Progress, no_progress
from onnxpress.runtime.machine import this_machine
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.request import OptimizeOptions

if TYPE_CHECKING:
    from onnxpress.nas.rebuild import RebuildResult
    from onnxpress.nas.search import NasResult
    from onnxpress.nas.worker import WorkerSession


def nas_search(
    space: str,
    data: DataSource | Splits,
    output: str | Path,
    *,
    teacher: ModelSource | None = None,
    like: ModelSource | None = None,
    role: str = "both",
    progress: Progress = no_progress,
    **settings: Any,
) -> NasResult:
    """Search a space of networks, train promising candidates and write the best into a folder.

    space: name of a built-in space, FILE.toml or FILE.py:function. data: samples, or Splits. output: the folder of the
    results and the study; the same call continues an interrupted search. teacher: the model whose outputs candidates
    are trained towards;
    like: a model whose inputs and outputs they have, where labels are learned. role: "train" leaves timing to other
    workers. settings: fields of NasRequest, such as `trials` or `latency_ms`.

    Raises InputProblem on bad input, EnvironmentProblem where optuna or torch is missing.

    >>> settings = {"trials": 4, "trainees": 1, "keep": 1, "time_budget": 20}
    >>> result = onnxpress.nas_search("image-small", "samples.npz", "found", teacher="model.onnx", **settings)
    """
    require_optuna("nas")
    from onnxpress.nas.evaluation.evaluator import Evaluator
    from onnxpress.nas.request import NasRequest
    from onnxpress.nas.search import search

    request = NasRequest(space, **settings)
    request.check()
    reference = _reference(teacher, like)
    evaluator = Evaluator(reference, as_splits(data, reference), request, teacher is not None, this_machine())
    return search(evaluator, output, progress, role)


def nas_from(
    model: ModelSource,
    data: DataSource | Splits,
    options: OptimizeOptions | None = None,
    *,
    output: str | Path | None = None,
    run: str | Path | None = None,
    progress: Progress = no_progress,
    **settings: Any,
) -> OptimizeResult:
    """Search inside a model: the search of `optimize`, under the name of what it is; arguments as of `optimize`.

    >>> result = onnxpress.nas_from("model.onnx", "samples.npz", max_drop=0.5, speedup=1.2, time_budget=20)
    """
    from onnxpress.search.optimize import optimize

    return optimize(model, data, options, output=output, run=run, progress=progress, **settings)


def nas_worker(
    storage: str,
    data: DataSource | Splits,
    *,
    teacher: ModelSource | None = None,
    like: ModelSource | None = None,
    role: str = "both",
    study: str = "",
    time_budget: float = 3600.0,
) -> WorkerSession:
    """Join a search that another process has begun with the same files.

    storage: an SQLite file or the address of a database. role: "train" scores candidates, "latency" times those of
    others.
    study: name of the study or a part of it. time_budget: seconds after which the worker leaves.

    >>> session = onnxpress.nas_worker("found/study.db", "samples.npz", teacher="model.onnx", time_budget=5)
    """
    require_optuna("nas")
    from onnxpress.nas.worker import run_worker

    reference = _reference(teacher, like)
    return run_worker(storage, reference, as_splits(data, reference), role, study, time_budget)


def nas_build(
    record: str | Path,
    data: DataSource | Splits,
    *,
    teacher: ModelSource | None = None,
    like: ModelSource | None = None,
) -> RebuildResult:
    """Build and train a network again from its record (front/candidate-N.json): the same bytes on the same machine.

    >>> record = sorted(pathlib.Path("found/front").glob("*.json"))[0]
    >>> network = onnxpress.nas_build(record, "samples.npz", teacher="model.onnx")
    """
    require_optuna("nas")
    from onnxpress.nas.rebuild import rebuild

    reference = _reference(teacher, like)
    return rebuild(record, reference, as_splits(data, reference))


def _reference(teacher: ModelSource | None, like: ModelSource | None) -> Any:
    """The model whose inputs and outputs candidates have."""
    given = teacher if teacher is not None else like
    if given is None:
        raise InputProblem(
            "no model whose inputs and outputs are kept", "`teacher`, `like`", "", "give `teacher`, or `like`"
        )
    return open_model(given, "teacher" if teacher is not None else "like")
