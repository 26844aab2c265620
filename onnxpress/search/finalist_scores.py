"""How finalists are scored on samples that did not choose them, and what the samples leave open."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxpress.data.dataset import Splits
from onnxpress.errors import Problem
from onnxpress.measure.score import Score, Scorer
from onnxpress.plan.candidate_store import Candidate
from onnxpress.plan.plan import apply_plan
from onnxpress.search.search import Search


class FinalistScores:
    """Scores finalists on the validation samples; of few samples, on all of them, by cross-validation.

    The plan of a candidate is replayed on the half that judged it, and the result judged on the half that made it. What
    a training made is judged on one half alone. Where there are three parts, but few labels in the last, it is judged
    together with the selection samples.
    """

    def __init__(self, original: ir.Model, splits: Splits, search: Search) -> None:
        judge = search.factory.scorer.judge
        self._original, self._splits, self._search = original, splits, search
        self._scorer = Scorer(original, splits.validate, "validation samples", judge)
        self._other = Scorer(original, splits.calibrate, "calibration samples", judge) if splits.crossed else None

    def score(self, candidate: Candidate) -> Score:
        """The score on the samples that these are for."""
        if self._other is None or "distill" in candidate.passes:
            score = self._scorer.score(candidate.data)
            if not score.expected or self._splits.crossed:
                return score
            return self._scorer.score_with(candidate.data, [(self._search.factory.scorer, candidate.data)])
        try:
            plan = replace(candidate.plan, data_hash="")
            twin = apply_plan(plan, self._original, self._splits.select, self._search.factory.machine).model
        except (Problem, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
            self._search.failed[f"cross-validation of {candidate.name}"] = str(error).splitlines()[0]
            return self._scorer.score(candidate.data)
        return self._scorer.score_with(candidate.data, [(self._other, twin)])


def what_samples_tell(splits: Splits, score: Score | None, max_drop: float) -> list[str]:
    """How samples were used where they are few, and what they leave open."""
    notes = []
    if score is not None and score.expected and not splits.crossed:
        notes.append("few validation samples have labels: judged on the selection samples as well")
    if splits.crossed:
        first, second = len(splits.calibrate), len(splits.select)
        notes.append(
            f"{first + second} samples are few: what was made from {first} was judged on the other {second}, and at "
            "the end the other way round as well (cross-validation)"
        )
    if score is not None and score.high > score.allowed(max_drop):
        notes.append(
            f"the drop of {score.metric} may be up to {score.high:.4f}, more than the allowed "
            f"{score.allowed(max_drop):.4g}: {score.samples} samples cannot tell; give more"
        )
    return notes
