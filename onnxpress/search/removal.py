"""Channels and blocks removed, as techniques of the search.

Candidates of one kind (inner channels, all channels, blocks, channels behind blocks that are out) differ in how much is
removed. What was measured tells the speed and the drop to expect of the others: between two of them both lie on a line
over the depth, and beyond the last one they go on, less and less surely. Next is the one whose gain, times the
probability that it holds, is the largest. Training (`candidate_training.py`) chooses its students in the same way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxpress.passes.pruning.options import ALL, INTERNAL, PruneOptions
from onnxpress.plan.candidate_store import Candidate, Prediction, Stage
from onnxpress.search.candidate_factory import SHALLOWEST, blocks_name
from onnxpress.search.scheduling import UNKNOWN
from onnxpress.search.search import Search, allowed, clearly_refused, one_sample, prune_name, used_share

LEAST_USED = 0.1  # of the allowed drop: less is luck
_USUAL_POWER, _POWERS = 2.0, (1.0, 4.0)  # of the depth, with which the used share of the drop grows; its bounds
_USUAL_SLOPE, _NOISY = 0.8, 0.1  # of the logarithm of the speed-up over the depth; a depth that tells as much as that
_FAMILIAR = 0.3  # logarithm of a speed-up beyond what is known, that makes a prediction e times less likely
_BY_LUCK = 0.5  # of a sample, that a measured drop may be
_SURE = 2.5  # how much the probability to hold depends on the expected drop
_PERCENT = range(2, 96)
_FIRST_CHANNELS, _FIRST_BLOCKS = 20, 0.15  # percent; of the blocks that can be out
_LOOK = 0.05  # share of the time budget, for an analysis whose rest can be told from less
_SLICE = 0.12  # share of the time budget that one analysis may take
_CLEARLY = 1.05  # predicted speed-up from which on it can be compared with the measured one
_FASTER = 1.02  # of blocks out that are worth channels on top
_LEAST_GAIN = 0.006  # of a logarithm of a speed-up, that is worth another candidate


@dataclass
class RemovalKind:
    """Candidates of one kind, by how much is removed (a level: an integer; 0: nothing).

    levels: all of them, increasing. name: of the candidate at a level. make: that candidate, with what was predicted of
    it; None where it would be no other than one that is there. depth: of a level, on a scale on which the logarithm of
    the speed-up grows about evenly. first: the level to begin with. skipped: levels without a candidate.
    """

    levels: Sequence[int]
    name: Callable[[int], str]
    make: Callable[[int], tuple[Candidate, Prediction | None] | None]
    depth: Callable[[int], float]
    first: int
    skipped: set[int] = field(default_factory=set)

    def between(self, held: int, refused: float) -> list[int]:
        """The levels between one that holds and one that does not."""
        return [level for level in self.levels if held < level < refused and level not in self.skipped]


@dataclass(frozen=True)
class Expectation:
    """What the levels of a kind are expected to give.

    worth: logarithm of the speed-up at a depth. used: share of the allowed drop. known: the largest depth that was
    measured, or that of the next level: steps cannot be smaller.
    """

    worth: Callable[[float], float]
    used: Callable[[float], float]
    known: float

    def gain(self, depth: float, rival: float, recovery: float = 1.0) -> float:
        """Beyond the rival's logarithm of the speed-up, times the probability to hold; 0 or less: none.

        recovery: what training leaves of the drop.
        """
        likely = probability(recovery * self.used(depth)) * self._familiarity(depth)
        return (self.worth(depth) - rival) * likely

    def _familiarity(self, depth: float) -> float:
        return math.exp(-max(depth - self.known, 0.0) / _FAMILIAR)


def probability(used: float) -> float:
    """That a candidate holds which is expected to use this share of the allowed drop."""
    return 1 / (1 + math.pow(used, _SURE))


def expectation(search: Search, kind: RemovalKind, similar: RemovalKind | None = None) -> Expectation | None:
    """Of a kind, by its candidates, or by those of one that is similar; None where neither has any."""
    seen = _seen(search, kind)
    if len(seen) == 1 and similar is not None:
        own, others = seen[0], _seen(search, similar)
        seen += [(x, own[1] + y - others[0][1], own[2] + z - others[0][2]) for x, y, z in others[1:]]
    if len(seen) == 1:
        return None
    depths, speeds, used = [x for x, _, _ in seen], [y for _, y, _ in seen], [z for _, _, z in seen]
    # A small first step is measured within the noise, and weighs little against the usual slope.
    usual = (speeds[-1] - speeds[0] + _USUAL_SLOPE * _NOISY) / (depths[-1] + _NOISY)
    faster = _line(depths, speeds, max(usual, 0.0))
    grown = _power(depths[1:], [max(u - used[0], LEAST_USED) for u in used[1:]])
    following = next((d for level in kind.levels if (d := kind.depth(level)) > depths[-1]), depths[-1])
    return Expectation(faster, lambda depth: used[0] + grown(depth), following)


def _seen(search: Search, kind: RemovalKind) -> list[tuple[float, float, float]]:
    """Of the candidates of a kind: depth, logarithm of the speed-up, and used share of the allowed drop."""
    by_name = {c.name: c for c in search.found}
    seen = []
    for level in (0, *kind.levels):
        if (c := by_name.get(kind.name(level))) is not None:
            used = used_share(c, search.max_drop) - _BY_LUCK * one_sample(c, search.max_drop)
            seen.append((kind.depth(level), search.worth(c), max(used, 0.0)))
    if not seen or seen[0][0] > 0:  # nothing removed: the base
        seen.insert(0, (0.0, math.log(max(search.base_speedup, 1e-3)), 0.0))
    return seen


def _line(places: Sequence[float], values: Sequence[float], slope: float) -> Callable[[float], float]:
    """Between points, and beyond the last one with a slope."""

    def at(place: float) -> float:
        return float(np.interp(place, places, values)) + slope * max(place - places[-1], 0.0)

    return at


def _power(places: Sequence[float], values: Sequence[float]) -> Callable[[float], float]:
    """Powers of the place, each between two points; below the first the usual one, beyond the last that of the last
    two."""
    x, y = np.log(places), np.log(values)
    last = _USUAL_POWER if len(x) == 1 else float(np.clip((y[-1] - y[-2]) / (x[-1] - x[-2]), *_POWERS))

    def at(place: float) -> float:
        here = math.log(place)
        beyond = last * max(here - x[-1], 0.0) - _USUAL_POWER * max(x[0] - here, 0.0)
        return math.exp(min(float(np.interp(here, x, y)) + beyond, 50.0))

    return at


def held_level(search: Search, kind: RemovalKind, names: Callable[[str], set[str]] = lambda name: {name}) -> int:
    """The largest level that holds.  names: under which a candidate may stand."""
    good = {c.name for c in search.found if allowed(c, search.max_drop)}
    return max((level for level in kind.levels if names(kind.name(level)) & good), default=0)


class RemovalTechnique:
    """The steps, and what the next one promises."""

    def __init__(
        self,
        search: Search,
        kinds: Callable[[], Sequence[RemovalKind]],
        similar: RemovalKind | None = None,
        on_top: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """kinds: asked before every step. similar: a kind that tells what to expect of others. on_top: what another
        technique adds to candidates of these kinds, as a logarithm of a speed-up."""
        self._search, self._kinds, self._similar, self._on_top = search, kinds, similar, on_top

    def steps(self) -> Iterator[None]:
        """A step for each candidate."""
        search = self._search
        while (best := self._best()) is not None:
            _, kind, level = best
            search.report(f"candidate {kind.name(level)}")
            made = kind.make(level)
            if made is None or search.has(made[0]):
                kind.skipped.add(level)
            else:
                search.keep(*made)
            yield

    def promise(self) -> float:
        """What the next step may bring beyond the best candidate."""
        best = self._best()
        return 0.0 if best is None else best[0]

    def _best(self) -> tuple[float, RemovalKind, int] | None:
        """The level of the largest gain, of all kinds."""
        search, found = self._search, list[tuple[float, RemovalKind, int]]()
        made = {c.name for c in search.found}
        refused = {c.name for c in search.found if clearly_refused(c, search.max_drop)}
        for kind in self._kinds():
            expected = expectation(search, kind, self._similar)
            held = held_level(search, kind)
            limit = min((v for v in kind.levels if v > held and kind.name(v) in refused), default=math.inf)
            levels = [v for v in kind.between(held, limit) if kind.name(v) not in made]
            if expected is None:
                found += [(UNKNOWN, kind, kind.first)] if kind.first in levels else []
                continue
            rival = max(search.float_value() - self._on_top(), 0.0)
            gains = [(expected.gain(kind.depth(level), rival), kind, level) for level in levels]
            found += [g for g in gains if g[0] >= _LEAST_GAIN]
        return max(found, key=lambda f: f[0], default=None)


def channel_kinds(search: Search, count: int = 0) -> list[RemovalKind]:
    """Channels removed, inner ones and all, behind so many blocks taken out; levels in percent of the time."""
    return [_channels(search, count, scope) for scope in (INTERNAL, ALL)]


def _channels(search: Search, count: int, scope: str) -> RemovalKind:
    def options(level: int) -> PruneOptions:
        return PruneOptions(level / 100, scope=scope)

    def name(level: int) -> str:
        before = blocks_name(count) if count else ""
        return ", ".join(filter(None, (before, prune_name(options(level)) if level else "")))

    def make(level: int) -> tuple[Candidate, Prediction | None] | None:
        made = search.factory.pruned(name(level), options(level), search.slice(_LOOK), count)
        return None if made is None else (made, predicted_speed(search, made, count))

    return RemovalKind(_PERCENT, name, make, lambda level: -math.log(1 - level / 100), _FIRST_CHANNELS)


class BlockRemoval:
    """Blocks taken out, as a technique, and channels behind them as another.  channels: inner ones, without blocks
    out."""

    def __init__(self, search: Search, channels: RemovalKind) -> None:
        self._search, self._kind = search, block_kind(search, 0)
        self._behind: dict[int, list[RemovalKind]] = {}
        self._technique = RemovalTechnique(search, lambda: [self.kind], on_top=self._channels_gain)
        self._channels = RemovalTechnique(search, self._channels_behind, channels)

    @property
    def kind(self) -> RemovalKind:
        """As many blocks as are known to be removable."""
        total = len(self._search.factory.known_removal_order())
        if total != len(self._kind.levels):
            self._kind = block_kind(self._search, total)
        return self._kind

    def steps(self) -> Iterator[None]:
        """Which blocks can go; then a step for each number of them."""
        self._search.report("which blocks can go")
        self._search.factory.removal_order(self._search.slice(_SLICE))
        yield from self._technique.steps()

    def promise(self) -> float:
        """Of the next number of blocks."""
        return self._technique.promise() if self._kind.levels or self.kind.levels else UNKNOWN

    def steps_behind(self) -> Iterator[None]:
        """Channels, behind as many blocks as can be out."""
        return self._channels.steps()

    def promise_behind(self) -> float:
        """Of the next one of those."""
        return self._channels.promise()

    def _channels_gain(self) -> float:
        """What channels behind blocks added to those blocks."""
        search = self._search
        pruned = [c for c in search.found if c.stage == Stage.PRUNING and c.blocks_out and allowed(c, search.max_drop)]
        return max((search.worth(c) - measured_worth(search, self.kind, c.blocks_out) for c in pruned), default=0.0)

    def _channels_behind(self) -> list[RemovalKind]:
        search, count = self._search, held_level(self._search, self.kind)
        if not count or measured_worth(search, self.kind, count) <= math.log(_FASTER * search.base_speedup):
            return []
        if count not in self._behind:
            self._behind[count] = channel_kinds(search, count)
        return self._behind[count]


def measured_worth(search: Search, kind: RemovalKind, level: int) -> float:
    """The logarithm of the speed-up of a level that was measured; 0 without it."""
    return next((search.worth(c) for c in search.found if c.name == kind.name(level)), 0.0)


def block_kind(search: Search, total: int) -> RemovalKind:
    """Blocks taken out.  total: number of those that can be."""

    def make(level: int) -> tuple[Candidate, Prediction | None]:
        return search.factory.shallower(level), None

    share = 1 - SHALLOWEST
    return RemovalKind(
        range(1, total + 1),
        lambda level: blocks_name(level) if level else "",
        make,
        lambda level: -math.log(1 - share * level / total),
        max(1, round(_FIRST_BLOCKS * total)),
    )


def predicted_speed(search: Search, pruned: Candidate, count: int) -> Prediction | None:
    """The speed of a pruned candidate, by the times of single units, corrected by those that were measured."""
    saved = _by_units(search, pruned)
    if saved is None:
        return None
    known = [(c, _by_units(search, c)) for c in search.found if c.stage == Stage.PRUNING and c is not pruned]
    seen = [(own, (c.quick or 1.0) / _unpruned(search, c.blocks_out)) for c, own in known if own is not None]
    return Prediction(speedup=_unpruned(search, count) * saved ** correction(seen))


def _by_units(search: Search, pruned: Candidate) -> float | None:
    """The speed-up of pruning by the times of single units; None where those are not known."""
    left = search.factory.ground(pruned.blocks_out).remaining_time(pruned.plan.steps[-1].actions)
    return None if left is None or left <= 0 else 1 / left


def _unpruned(search: Search, count: int) -> float:
    """The speed-up of what is pruned, over the original."""
    names = {c.name: c.quick or 1.0 for c in search.found}
    return names.get(blocks_name(count), 1.0) if count else search.base_speedup


def correction(seen: Sequence[tuple[float, float]]) -> float:
    """By what power of their predicted speed-ups candidates were faster: the median; 1 where nothing is known.

    Units take longer alone than within a model, and what does not depend on channels takes time as well. seen:
    predicted and measured speed-ups.
    """
    powers = [math.log(measured) / math.log(predicted) for predicted, measured in seen if predicted > _CLEARLY]
    return min(max(statistics.median(powers), 0.2), 2.0) if powers else 1.0
