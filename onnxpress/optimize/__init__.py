"""Options, costs and harms become a plan; the loop that measures, and the contract it is held to.

`onnxpress.optimize` names both this floor and the function it is there for: the module can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Floor(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """See `onnxpress.optimize.loop.optimize`."""
        from onnxpress.optimize.loop import optimize

        return optimize(*args, **options)


sys.modules[__name__].__class__ = _Floor
