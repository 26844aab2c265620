"""Samples from Python: an iterable, or a function that returns one and is called again for every pass.

An item is a dict of arrays by input name (a key labels, label or y that is not an input is its label), an array for a
model with one input, or a pair (inputs, label).  Only labels and the count are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from onnxpress.data import labels as labelling
from onnxpress.data.layout import BatchLayout
from onnxpress.data.readers import user_function
from onnxpress.data.readers.arrays import single_port
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem, Problem
from onnxpress.model.signature import Signature

_WHAT = "cannot read the data"
_CALLS = 3  # a function may return a function that returns the iterable; deeper nesting is an error

Check = Callable[[dict[str, np.ndarray], str], object]


class IterableSource(SampleSource):
    """Samples of an iterable that can be restarted; an index is reached by reading up to it."""

    def __init__(
        self, begin: Callable[[], Iterator[Any]], name: str, layout: BatchLayout, label_key: str | None
    ) -> None:
        self._begin, self._name, self._layout, self._label_key = begin, name, layout, label_key
        self.labels: list[Any | None] = []

    def first_pass(self, check: Check) -> None:
        """Count the samples, collect labels, and check every sample.  Raises InputProblem."""
        for index, item in enumerate(self._items()):
            raw, label = self._parts(item, index)
            check(raw, self.key(index))
            self.labels.append(label)

    def _items(self) -> Iterator[Any]:
        """The user's items; errors of the user's code become one line."""
        try:
            yield from self._begin()
        except Problem:
            raise
        except GeneratorExit:
            raise
        except Exception as error:
            raise user_function.user_code_problem(self._name, error, _WHAT) from error

    def _parts(self, item: Any, index: int) -> tuple[dict[str, np.ndarray], Any | None]:
        where, label = self.key(index), None
        if isinstance(item, tuple):
            if len(item) != 2:
                raise InputProblem(
                    _WHAT,
                    where,
                    f"expected (inputs, label), found a tuple of {len(item)}",
                    "give several inputs as a dict",
                )
            item, label = item
        if isinstance(item, Mapping):
            found = {str(name): value for name, value in item.items()}
            if label is None:
                key = labelling.find_key(list(found), self._layout.names, self._label_key, where)
                label = found.pop(key) if key is not None else None
        else:
            if item is None or isinstance(item, (set, frozenset)) or callable(item):
                raise InputProblem(_WHAT, where, f"expected an array or a dict of arrays, found {type(item).__name__}")
            found = {single_port(self._layout, where, "an array").name: item}
        return {
            name: self._array(value, f"{where}, input {name!r}")
            for name, value in found.items()
            if name in self._layout.names
        }, label

    @staticmethod
    def _array(value: Any, where: str) -> np.ndarray:
        try:
            return np.asarray(value)
        except Exception as error:
            # whatever a foreign tensor's __array__ raises
            raise InputProblem(
                _WHAT, where, f"{type(value).__name__} cannot be converted to an array ({error})", "give numpy arrays"
            ) from error

    def read(self, index: int) -> dict[str, np.ndarray]:
        return next(self.scan([index]))[1]

    def key(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def scan(self, indices: Iterable[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """One pass for increasing indices; restarted where they decrease."""
        items: Iterator[Any] = iter(())
        position = -1
        item: Any = None
        for index in indices:
            if position < 0 or index < position:
                items, position = self._items(), -1
            while position < index:
                try:
                    item = next(items)
                except StopIteration:
                    raise InputProblem(
                        _WHAT,
                        self._name,
                        f"it gave {len(self)} samples at first and {position + 1} at a later pass",
                        "give the same samples every time; a generator object can be used once only",
                    ) from None
                position += 1
            yield index, self._parts(item, index)[0]


def open_function(
    text: str, signature: Signature, layout: BatchLayout, label_key: str | None, check: Check
) -> LoadedSource:
    """Samples of "module:function" or "file.py:function".  Raises InputProblem."""
    found = user_function.load_function(text, _WHAT)
    if isinstance(found, Mapping) or not (callable(found) or isinstance(found, Iterable)):
        raise InputProblem(
            _WHAT, text, f"it is a {type(found).__name__}, expected a function or an iterable of samples"
        )
    if callable(found):
        return _stream(lambda: _iterator(found, text), text, signature, layout, label_key, check, [])
    return open_iterable(found, text, signature, layout, label_key, check)


def open_iterable(
    given: Iterable[Any], name: str, signature: Signature, layout: BatchLayout, label_key: str | None, check: Check
) -> LoadedSource:
    """A source of an iterable; one that can be read only once (a generator) is held in memory.  Raises InputProblem."""
    notes: list[str] = []
    if iter(given) is given:
        try:
            given = list(given)
        except Exception as error:
            raise user_function.user_code_problem(name, error, _WHAT) from error
        notes.append("held in memory: the iterable can be read only once")
    return _stream(lambda: iter(given), name, signature, layout, label_key, check, notes)


def _iterator(function: Callable[[], Any], text: str) -> Iterator[Any]:
    found: Any = function
    for _ in range(_CALLS):
        if not callable(found):
            break
        found = found()
    if isinstance(found, (Mapping, str, bytes)) or not isinstance(found, Iterable):
        raise InputProblem(
            _WHAT,
            text,
            f"it returned a {type(found).__name__}, expected an iterable of samples",
            "return a list, or make it a generator with yield",
        )
    return iter(found)


def _stream(
    begin: Callable[[], Iterator[Any]],
    name: str,
    signature: Signature,
    layout: BatchLayout,
    label_key: str | None,
    check: Check,
    notes: list[str],
) -> LoadedSource:
    source = IterableSource(begin, name, layout, label_key)
    source.first_pass(check)
    source.labels, more = labelling.normalize_labels(source.labels, signature, name)
    return LoadedSource(source, name, notes + more)
