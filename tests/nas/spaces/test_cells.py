"""Cells: canonical forms, and their number."""

from __future__ import annotations

import time

import numpy as np
import pytest

from onnxpress.errors import InputProblem
from onnxpress.model.structural_hash import structural_hash
from onnxpress.nas.evaluation.costs import count_costs
from onnxpress.nas.spaces import cells
from onnxpress.runtime.session import open_session
from tests.nas import tasks

pytestmark = pytest.mark.unit


def test_unique_cells() -> None:
    found = cells.unique_cells()
    assert len(list(cells.all_cells())) == 5**6
    assert len(found) < 6466  # what isomorphism alone leaves (Dong and Yang 2020); sums of sums are one sum, too
    assert len({cells.canonical_form(c) for c in found}) == len(found)


def test_canonical_forms() -> None:
    none, skip, one, three, pool = cells.OPERATIONS
    assert cells.canonical_form((none,) * 6) == ""
    assert cells.canonical_form((skip, none, none, none, three, none)) == cells.canonical_form(
        (none, none, none, three, none, none)
    )
    assert cells.canonical_form((one, three, none, none, skip, skip)) == cells.canonical_form(
        (three, one, none, none, skip, skip)
    )
    assert cells.canonical_form((one, none, none, none, skip, none)) != cells.canonical_form(
        (pool, none, none, none, skip, none)
    )


def test_equal_canonical_forms_build_equal_structures() -> None:
    """On a sample of pairs: structural hashes agree with canonical forms."""
    by_form: dict[str, list[cells.Cell]] = {}
    for cell in cells.all_cells():
        by_form.setdefault(cells.canonical_form(cell), []).append(cell)
    groups = [g for m, g in by_form.items() if m and len(g) > 1]
    rng = np.random.default_rng(0)
    agreed = 0
    for index in rng.choice(len(groups), 20, replace=False):
        first, second = groups[index][0], groups[index][-1]
        agreed += structural_hash(cells.build_cell_network(first, tasks.IMAGE)) == structural_hash(
            cells.build_cell_network(second, tasks.IMAGE)
        )
    assert agreed >= 10  # other orders of sums and shared nodes give other graphs


def test_invalid_cells() -> None:
    with pytest.raises(InputProblem, match="output does not depend"):
        cells.build_cell_network(("none",) * 6, tasks.IMAGE)
    with pytest.raises(InputProblem, match="images"):
        cells.build_cell_network(("skip",) * 6, tasks.VECTOR)


@pytest.mark.alone
def test_a_candidate_is_cheap_to_build_and_count() -> None:
    """Cheaper than two sessions of onnxruntime, whatever the machine: screening must cost less than measuring."""
    some = cells.unique_cells()[:: len(cells.unique_cells()) // 40]
    feeds = tasks.batch(tasks.IMAGE)
    screening, session = [], []
    for cell in some:
        start = time.thread_time()
        model = cells.build_cell_network(cell, tasks.IMAGE, depth=1)
        assert count_costs(model, feeds).macs > 0
        structural_hash(model)
        screening.append(time.thread_time() - start)
        start = time.thread_time()
        open_session(model)
        session.append(time.thread_time() - start)
    assert np.median(screening) < 2 * np.median(session)
