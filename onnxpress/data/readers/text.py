""".txt and .jsonl text, tokenized when read, or as strings where the model takes strings."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxpress.data import labels as labelling
from onnxpress.data.checks import is_integer, is_text
from onnxpress.data.layout import BatchLayout, Port
from onnxpress.data.preprocessing import Preprocessing, read_preprocessing
from onnxpress.data.readers.files import existing, unreadable
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem, missing_extra
from onnxpress.model.signature import Signature

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SUFFIXES = (".txt", ".jsonl")
_WHAT = "cannot use the text"
_LONGEST = 512
_FIRST = ("text", "sentence", "text_a", "sentence1")
_SECOND = ("text_b", "sentence2", "text_pair")
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


class Lines(SampleSource):
    """Lines of a file by byte offset; only offsets and labels are held in memory."""

    def __init__(
        self,
        path: Path,
        places: Sequence[int],
        fields: tuple[str, str | None] | None,
        cut: bool,
        labels: Sequence[Any | None],
        encode: Encoder | Strings,
    ) -> None:
        self._path, self._places, self._fields, self._cut = path, places, fields, cut
        self.labels, self._encode = labels, encode

    def read(self, index: int) -> dict[str, np.ndarray]:
        with self._path.open("rb") as stream:
            stream.seek(self._places[index])
            line = stream.readline().decode("utf-8-sig").rstrip("\r\n")
        if self._fields is None:
            return self._encode(line.rsplit("\t", 1)[0] if self._cut else line, None)
        record = json.loads(line)
        first, second = self._fields
        return self._encode(record[first], record[second] if second is not None else None)

    def key(self, index: int) -> str:
        return f"{self._path.name}[{index}]"


class Strings:
    """The line itself, for a model that takes strings."""

    def __init__(self, port: Port) -> None:
        self._port = port

    def __call__(self, text: str, pair: str | None) -> dict[str, np.ndarray]:
        value = np.empty((1,) * max(len(self._port.dims or (1,)), 1), dtype=object)
        value.reshape(-1)[0] = text if pair is None else f"{text} {pair}"
        return {self._port.name: value}


class Encoder:
    """Text to ids, mask, types and positions, by the names of the inputs."""

    def __init__(self, tokenizer: Tokenizer, roles: dict[str, str], special: bool) -> None:
        self._tokenizer, self._roles, self._special = tokenizer, roles, special

    def __call__(self, text: str, pair: str | None) -> dict[str, np.ndarray]:
        found = self._tokenizer.encode(text, pair, add_special_tokens=self._special)
        values = {
            "ids": found.ids,
            "mask": found.attention_mask,
            "types": found.type_ids,
            "positions": range(len(found.ids)),
        }
        return {name: np.asarray(values[role], np.int64) for name, role in self._roles.items()}


def open_text(
    path: Path,
    signature: Signature,
    layout: BatchLayout,
    column: str | None,
    tokenizer: str | Path | None,
    preprocess: str | None,
) -> LoadedSource:
    """A source of the lines of a text file.  Raises InputProblem, or EnvironmentProblem without tokenizers."""
    preprocessing = read_preprocessing(preprocess) if preprocess else Preprocessing("raw")
    if len(layout.ports) == 1 and is_text(layout.ports[0].spec.dtype) and tokenizer is None:
        encode: Encoder | Strings = Strings(layout.ports[0])
        notes = ["lines fed as strings"]
    else:
        encode, notes = _encoder(layout, tokenizer, preprocessing, path)
    places, values, fields, cut = (
        _scan_jsonl(path, column) if path.suffix.lower() == ".jsonl" else _scan_txt(path, column)
    )
    labels, more = labelling.normalize_labels(values, signature, path)
    if fields is not None:
        notes.append(f"text from {fields[0]!r}" + (f" and {fields[1]!r}" if fields[1] else ""))
    return LoadedSource(Lines(path, places, fields, cut, labels, encode), path.name, notes + more, ready=True)


# --- tokenizer
# -----------------------------------------------------------------------------------------------------


def _encoder(
    layout: BatchLayout, given: str | Path | None, preprocessing: Preprocessing, path: Path
) -> tuple[Encoder, list[str]]:
    if given is None:
        raise InputProblem(_WHAT, path, "text needs a tokenizer", "pass a tokenizer.json as `tokenizer`")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise missing_extra("tokenizers", "text", "reading text") from None
    file = existing(Path(given), "cannot read the tokenizer")
    if file.is_dir():
        file = existing(file / "tokenizer.json", "cannot read the tokenizer")
    roles, length = _roles(layout, path), _length(layout, path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
        padding = tokenizer.padding or {}
        longest = length or preprocessing.max_length or _LONGEST
        if length is not None and preprocessing.max_length is not None:
            longest = min(length, preprocessing.max_length)
        tokenizer.enable_truncation(max_length=longest)
        if length is None:
            tokenizer.no_padding()
        else:
            pad = next((p for p in _PADS if tokenizer.token_to_id(p) is not None), _PADS[0])
            pad = padding.get("pad_token", pad)
            tokenizer.enable_padding(
                direction=padding.get("direction", "right"),
                pad_id=padding.get("pad_id", tokenizer.token_to_id(pad) or 0),
                pad_type_id=padding.get("pad_type_id", 0),
                pad_token=pad,
                length=length,
            )
    except Exception as error:
        # the package raises plain Exception for files it cannot parse
        problem = unreadable(file, error, "give the tokenizer.json that was saved with the model")
        raise InputProblem("cannot read the tokenizer", file, problem.why, problem.hint) from error
    size = f"padded to {length} tokens, the model's length" if length is not None else "not padded"
    return Encoder(tokenizer, roles, preprocessing.special_tokens), [f"text truncated to {longest} tokens, {size}"]


def _roles(layout: BatchLayout, path: Path) -> dict[str, str]:
    roles: dict[str, str] = {}
    for port in layout.ports:
        name = port.name.lower()
        if not (is_integer(port.spec.dtype) or port.spec.dtype == np.bool_ or "mask" in name):
            raise InputProblem(
                _WHAT,
                path,
                f"input {port.name!r} takes {port.spec.text()}, not token ids",
                "tokenize the text and give an .npz",
            )
        if "type" in name or "segment" in name:
            role = "types"
        elif "mask" in name:
            role = "mask"
        elif "position" in name:
            role = "positions"
        elif len(layout.ports) == 1 or "ids" in name or "token" in name:
            role = "ids"
        else:
            role = ""
        if not role or role in roles.values():
            raise InputProblem(
                _WHAT,
                path,
                f"input {port.name!r} is not known for text",
                "known inputs are input_ids, attention_mask, token_type_ids, position_ids; give an .npz for others",
            )
        roles[port.name] = role
    return roles


def _length(layout: BatchLayout, path: Path) -> int | None:
    """The number of tokens that the model fixes; None where dynamic."""
    lengths = {port.name: port.inner[-1] for port in layout.ports if port.inner}
    fixed = {d for d in lengths.values() if isinstance(d, int)}
    if len(fixed) > 1:
        raise InputProblem(
            _WHAT,
            path,
            f"the inputs fix different lengths: {', '.join(f'{n} {d}' for n, d in lengths.items())}",
            "give an .npz",
        )
    return fixed.pop() if fixed else None


# --- files
# ---------------------------------------------------------------------------------------------------------


def _scan_txt(path: Path, column: str | None) -> tuple[Sequence[int], list[Any | None], None, bool]:
    """Offsets of the lines that are not blank, and labels where every line ends in a tab and a label."""
    if column is not None:
        raise InputProblem(
            "cannot read the labels",
            path,
            f"a .txt file has no column {column!r}",
            "put `sentence<TAB>label` on each line, or use .jsonl",
        )
    places, tails = array("q"), list[str | None]()
    for place, line, _ in _lines(path):
        places.append(place)
        tails.append(line.rsplit("\t", 1)[1] if "\t" in line else None)
    cut = bool(tails) and all(t is not None and len(t) < 100 for t in tails)
    return places, [labelling.parse_cell(t) if cut and t else None for t in tails], None, cut


def _scan_jsonl(path: Path, column: str | None) -> tuple[Sequence[int], list[Any | None], tuple[str, str | None], bool]:
    places, labels = array("q"), list[Any | None]()
    fields: tuple[str, str | None] | None = None
    label: str | None = None
    for place, line, number in _lines(path):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputProblem(_WHAT, where, f"not JSON: {error.msg}", "write one object per line") from None
        if not isinstance(record, dict):
            raise InputProblem(
                _WHAT,
                where,
                f"expected an object, found {type(record).__name__}",
                '{"text": "…", "label": 1}',
            )
        if fields is None:
            first = next((f for f in _FIRST if f in record), None)
            if first is None:
                raise InputProblem(
                    _WHAT,
                    where,
                    f"no field of text; found {', '.join(record) or 'none'}",
                    f"name it {' or '.join(_FIRST)}",
                )
            fields = (first, next((f for f in _SECOND if f in record), None))
            label = labelling.find_key(list(record), (), column, where, labelling.COLUMNS)
        for field in fields:
            if field is not None and not isinstance(record.get(field), str):
                found = type(record[field]).__name__ if field in record else "nothing"
                raise InputProblem(_WHAT, where, f"expected a string in {field!r}, found {found}")
        places.append(place)
        labels.append(record.get(label) if label is not None else None)
    return places, labels, fields or ("text", None), False


def _lines(path: Path) -> list[tuple[int, str, int]] | Any:
    """(byte offset, text, line number) of every line that is not blank."""
    place = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                text = line.decode("utf-8-sig").rstrip("\r\n")
                if text.strip():
                    yield place, text, number
                place += len(line)
    except UnicodeDecodeError as error:
        raise InputProblem(
            _WHAT,
            path,
            f"it is not UTF-8: {error.reason} near byte {place + error.start}",
            "save it as UTF-8",
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
