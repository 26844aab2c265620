"""Parameters are numbers that operators read, however a file stores them."""

from __future__ import annotations

import pytest

from onnxpress import ShareOptions, WeightsOptions, run_pass
from onnxpress.model.parameter_count import parameters
from tests import nets


@pytest.mark.parametrize(
    ("name", "options"),
    [("half", None), ("share", ShareOptions()), *(("weights", WeightsOptions(bits=b)) for b in (8, 4, 3, 2))],
)
def test_a_stored_form_has_the_parameters_of_the_weights(name: str, options: object) -> None:
    model = nets.residual(width=32)
    data = None if name == "half" else nets.samples(model, 12)
    done = run_pass(name, model, data, options)  # type: ignore[arg-type]
    assert done.bytes_after < 0.7 * done.bytes_before
    assert done.parameters == parameters(model)
