"""Plans are bound to the model and the samples they were made for."""

from __future__ import annotations

import pytest

from onnxpress.errors import InputProblem
from onnxpress.plan.plan import apply_plan, new_plan
from tests import nets

pytestmark = pytest.mark.unit


def test_plan_is_bound_to_its_model_and_data() -> None:
    model = nets.residual(width=16)
    data = nets.samples(model, 4)
    plan = new_plan(model, data).then("simplify", [{"fold": "batchnorm"}])
    apply_plan(plan, model, data)
    with pytest.raises(InputProblem, match="another model"):
        apply_plan(plan, nets.residual(seed=3, width=16), data)
    with pytest.raises(InputProblem, match="other samples"):
        apply_plan(plan, model, nets.samples(model, 4, seed=9))
