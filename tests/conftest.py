"""Tests keep what they measure in a folder of their own, never in the user's cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onnxpress.measure.cache import VARIABLE


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield
