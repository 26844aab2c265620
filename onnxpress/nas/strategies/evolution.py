"""Regularized evolution (Real et al. 2019) as an optuna sampler.

Among the last `population` finished trials `sample` are drawn; the best of them is the parent, and `mutations` of
its choices change; parameters that the parent does not have are drawn.  With several objectives non-dominated trials
stay in the population, and the parent is any of the sample's best rank.  Draws depend only on the seed, the trial's
number and the trials before it, so that they are the same for all storages and processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from onnxpress.search.pareto import dominance_ranks

VIOLATION = "violation"  # attribute of a trial: how far it exceeds the limits; 0 within them


class RegularizedEvolution(BaseSampler):  # type: ignore[misc]
    """Regularized evolution.

    seed: of all draws.
    population: number of finished trials that may be parents.
    sample: number of trials from which a parent is selected.
    mutations: number of changed choices.
    """

    def __init__(self, seed: int = 0, population: int = 20, sample: int = 8, mutations: int = 1) -> None:
        self.seed, self.population, self.sample, self.mutations = seed, population, sample, mutations
        self._children: dict[int, tuple[dict[str, Any], frozenset[str]]] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The parent's choice, or another one where it mutates."""
        if trial.number not in self._children:
            self._children[trial.number] = self._child(study, trial.number)
        parent, changed = self._children[trial.number]
        rng = self._rng(trial.number, param_name)
        known = parent.get(param_name)
        fits = param_name in parent and param_distribution._contains(param_distribution.to_internal_repr(known))
        if not fits:
            return draw_value(param_distribution, rng)
        return draw_value(param_distribution, rng, known) if param_name in changed else known

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._children.pop(trial.number, None)

    def _rng(self, number: int, word: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, zlib.crc32(word.encode())])

    def _child(self, study: Study, number: int) -> tuple[dict[str, Any], frozenset[str]]:
        """The parent's choices and the names of the changed ones; empty before the population is full."""
        done = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.number < number]
        if len(done) < self.population:
            return {}, frozenset()
        done.sort(key=lambda t: t.number)
        living = done[-self.population :]
        if len(study.directions) > 1:
            front = set(best_trials(done, study.directions))
            living = [t for i, t in enumerate(done) if i in front or i >= len(done) - self.population]
        rng = self._rng(number, "parent")
        some = [living[i] for i in rng.choice(len(living), min(self.sample, len(living)), replace=False)]
        parent = some[int(rng.choice(best_trials(some, study.directions)))].params
        names = sorted(parent)
        count = min(self.mutations, len(names))
        return dict(parent), frozenset(names[i] for i in rng.choice(len(names), count, replace=False))


def best_trials(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[int]:
    """Indices of the best trials: rank 0 among those within the limits; where there are none, the one with the
    lowest violation.
    """
    signs = np.array([-1.0 if d is StudyDirection.MAXIMIZE else 1.0 for d in directions])
    losses = np.array([t.values for t in trials]) * signs
    beyond = np.array([float(t.user_attrs.get(VIOLATION, 0.0)) for t in trials])
    if beyond.min() > 0:
        return [int(beyond.argmin())]
    inside = np.flatnonzero(beyond == 0)
    return [int(i) for i in inside[dominance_ranks(losses[inside]) == 0]]


def draw_value(distribution: BaseDistribution, rng: np.random.Generator, other_than: Any = None) -> Any:
    """Draw a value uniformly (on a log scale where the distribution is logarithmic), other than `other_than` where
    possible.
    """
    if isinstance(distribution, CategoricalDistribution):
        choices = [c for c in distribution.choices if c != other_than] or list(distribution.choices)
        return choices[int(rng.integers(len(choices)))]
    if isinstance(distribution, IntDistribution):
        if distribution.log:
            low, high = np.log(distribution.low), np.log(distribution.high + 1)
            return int(min(distribution.high, np.exp(rng.uniform(low, high))))
        values = [v for v in range(distribution.low, distribution.high + 1, distribution.step) if v != other_than]
        return values[int(rng.integers(len(values)))] if values else distribution.low
    assert isinstance(distribution, FloatDistribution)
    if distribution.log:
        return float(np.exp(rng.uniform(np.log(distribution.low), np.log(distribution.high))))
    value = rng.uniform(distribution.low, distribution.high)
    if distribution.step:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    return float(min(value, distribution.high))
