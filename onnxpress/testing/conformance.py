"""The conformance suite: what must hold of every pass, whatever it does.

Results are valid models with the signature and the shapes of the original, the given model is not changed, no actions
are the identity, plans replay to the same bytes, predicted savings are real, exact passes keep the function, and
options can be shown by every interface. Subclass `PassConformance` with the pass as `subject`; pytest collects the
rest.
"""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import is_dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model import edit, read
from onnxpress.model.counts import macs
from onnxpress.model.files import compressed_size, to_bytes, weight_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import Action, AnyPass, Pass, Proposal, proposals
from onnxpress.passes.core.options import PassOptions, option_specs
from onnxpress.plan import result_contract
from onnxpress.plan.plan import apply_plan, new_plan
from onnxpress.testing import networks
from onnxpress.testing.networks import NETWORKS

_SAMPLES = 12
_PARITY = 1e-5  # of the outputs of exact passes, relative and absolute


def prepared(model: ir.Model, count: int = _SAMPLES) -> Evidence:
    """Evidence of a network on random samples."""
    return evidence_for(model, networks.samples(model, count, sequence=24))


def degraded(model: ir.Model, count: int = _SAMPLES) -> Evidence:
    """Evidence of a copy of a network with noise on its weights, which remembers the network as its original."""
    rng = np.random.default_rng(0)
    student = canonical(model)
    for value in student.graph.initializers.values():
        array = read.constant(value)
        if array is not None and array.dtype == np.float32 and array.ndim >= 2:
            noise = rng.standard_normal(array.shape) * 0.05 * float(array.std())
            edit.set_constant(value, array + noise.astype(np.float32))
    return evidence_for(student, networks.samples(model, count, sequence=24), original=model)


def some_actions(subject: AnyPass, evidence: Evidence) -> list[Action]:
    """Actions that a user could take: of every unit the middle proposal."""
    by_unit: dict[str, list[Action]] = {}
    for proposal in proposals(subject, evidence):
        by_unit.setdefault(proposal.unit, []).append(proposal.action)
    return [found[len(found) // 2] for found in by_unit.values()]


def assert_sound(original: ir.Model, result: ir.Model, data: Dataset) -> None:
    """The result is a valid model with the signature of the original that runs wherever the original runs."""
    proto = to_bytes(result)
    onnx.checker.check_model(proto, full_check=True)
    assert not result_contract.same_shape_behaviour(original, proto, data)
    assert signature(result) == signature(original)


def assert_saving(before: Evidence, result: ir.Model, proposal: Proposal, data: Dataset | None) -> None:
    """What a proposal promises to save becomes less."""
    after = evidence_for(result, data)
    if proposal.saving.macs > 0:
        assert sum(macs(after.model, after.trace).values()) < sum(macs(before.model, before.trace).values())
    if proposal.saving.weight_bytes > 0:
        assert weight_bytes(result) < weight_bytes(before.model)
    if proposal.saving.compressed_bytes > 0:
        assert compressed_size(result) < compressed_size(before.model)


class PassConformance:
    """Tests of one pass.

    subject:       the pass.
    options:       options whose plan does something on the home network; None: the defaults.
    saves_nothing: whether no proposal makes a model smaller or cheaper (a rewrite in front of another pass).
    home:          name of a network on which the pass has something to do; "": the first one with a proposal.
    """

    subject: ClassVar[AnyPass]
    options: ClassVar[PassOptions | None] = None
    saves_nothing: ClassVar[bool] = False
    home: ClassVar[str] = ""

    def evidence(self, model: ir.Model) -> Evidence:
        """What the pass is asked about, for one of the networks; for a pass that needs more than the model itself,
        such as a pass that refers to an original (`degraded`)."""
        return prepared(model)

    def test_follows_the_contract(self) -> None:
        subject = self.subject
        assert isinstance(subject, Pass)
        assert subject.name.isidentifier()
        assert is_dataclass(subject.Options) and issubclass(subject.Options, PassOptions)
        assert inspect.getdoc(type(subject)), "the first line of the class is what lists show"
        for spec in option_specs(subject.Options):
            assert spec.help and "--" not in spec.help, spec.name

    @pytest.mark.parametrize("network", NETWORKS)
    def test_results_are_sound_and_the_given_model_is_unchanged(self, network: str) -> None:
        evidence = self.evidence(NETWORKS[network]())
        model = evidence.model.clone()
        before = to_bytes(model)
        done = self.subject.apply(evidence, some_actions(self.subject, evidence))
        assert to_bytes(evidence.model) == before
        assert_sound(model, done.model, evidence.samples())
        if self.subject.exact:
            wanted, found = (networks.outputs(m, evidence.samples()) for m in (model, done.model))
            np.testing.assert_allclose(found, wanted, rtol=_PARITY, atol=_PARITY)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_no_actions_are_the_identity(self, network: str) -> None:
        evidence = self.evidence(NETWORKS[network]())
        assert to_bytes(self.subject.apply(evidence, []).model) == to_bytes(evidence.model)

    def test_every_proposal_applies_alone_and_saves_what_it_promises(self) -> None:
        evidence = self._at_home()
        found = proposals(self.subject, evidence)
        for proposal in found:
            json.dumps(proposal.action)
            assert proposal.loss is None or (math.isfinite(proposal.loss) and proposal.loss >= 0)
            assert not self.subject.exact or proposal.loss == 0
            done = self.subject.apply(evidence, [proposal.action])
            assert_sound(evidence.model, done.model, evidence.samples())
            assert_saving(evidence, done.model, proposal, evidence.data)
        assert self.saves_nothing or any(p.saving.any for p in found)

    def test_a_plan_of_options_is_sound(self) -> None:
        evidence = self._at_home()
        options = self.options if self.options is not None else self.subject.Options()
        options.checked()
        planned = self.subject.plan(evidence, options)
        assert planned.actions
        assert_sound(evidence.model, self.subject.apply(evidence, planned.actions).model, evidence.samples())

    def test_a_plan_replays_to_the_same_bytes(self) -> None:
        assert_replays(self.subject, self._at_home())

    def _at_home(self) -> Evidence:
        name = self.home or _HOMES.get(self.subject.name) or self._first_home()
        return self.evidence(NETWORKS[name]())

    def _first_home(self) -> str:
        for name in ("mobile", *NETWORKS):
            if proposals(self.subject, self.evidence(NETWORKS[name]())):
                return _HOMES.setdefault(self.subject.name, name)
        pytest.fail(f"{self.subject.name} proposes nothing on any of the networks: name one with `home`")


def assert_replays(subject: AnyPass, evidence: Evidence) -> None:
    """Two replays of a plan give the same bytes."""
    plan = new_plan(evidence.model, evidence.data).then(subject.name, some_actions(subject, evidence))
    first, second = (to_bytes(apply_plan(plan, evidence.model, evidence.data).model) for _ in range(2))
    assert first == second


_HOMES: dict[str, str] = {}  # the first network with a proposal, by pass
