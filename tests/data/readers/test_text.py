"""Text through a tokenizer, or as strings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from onnxpress.data.dataset import open_dataset
from onnxpress.errors import EnvironmentProblem
from tests.data.helpers import refused, sig

pytestmark = pytest.mark.unit

FREE = sig("input_ids int64 N L", "attention_mask int64 N L", "token_type_ids int64 N L")
FIXED = sig("input_ids int32 N 8", "attention_mask int32 N 8")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "a"]
    made = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_txt(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("a good film\t1\n\nbad\t0\nfilm bad\t1\n")
    data = open_dataset(tmp_path / "a.txt", FREE, tokenizer=tokenizer)
    assert data.labels == [1, 0, 1]
    assert data[0].inputs["input_ids"].tolist() == [[1, 7, 4, 6, 2]]
    assert data[1].inputs["attention_mask"].tolist() == [[1, 1, 1]]
    assert data[2].key == "a.txt[2]"
    assert "text truncated to 512 tokens, not padded" in data.assumed
    assert [b.count for b in data.batches(4)] == [1, 1, 1]


def test_fixed_length_pads_and_cuts(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("good\n" + "bad " * 20 + "\nno\ttab in every line\n")
    data = open_dataset(tmp_path / "a.txt", FIXED, tokenizer=tokenizer)
    assert not data.labelled
    assert data[0].inputs["input_ids"].tolist() == [[1, 4, 2, 0, 0, 0, 0, 0]]
    assert data[0].inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert data[1].inputs["input_ids"].tolist() == [[1, 5, 5, 5, 5, 5, 5, 2]]
    assert data[0].inputs["input_ids"].dtype == "int32"
    assert next(data.batches(3)).inputs["input_ids"].shape == (3, 8)


def test_jsonl(tmp_path: Path, tokenizer: Path) -> None:
    rows = [
        {"text_a": "good", "text_b": "bad film", "label": "pos"},
        {"text_a": "bad", "text_b": "a", "label": "neg"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = open_dataset(tmp_path / "a.jsonl", FREE, tokenizer=str(tokenizer))
    assert data.labels == [1, 0]
    assert data[0].inputs["input_ids"].tolist() == [[1, 4, 2, 5, 6, 2]]
    assert data[0].inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]
    assert "text from 'text_a' and 'text_b'" in data.assumed
    (tmp_path / "b.jsonl").write_text('{"sentence": "good", "mark": 3}\n')
    assert open_dataset(tmp_path / "b.jsonl", FREE, tokenizer=tokenizer, labels="mark").labels == [3]
    (tmp_path / "l.txt").write_text("4\n")
    assert open_dataset(tmp_path / "b.jsonl", FREE, tokenizer=tokenizer, labels=str(tmp_path / "l.txt")).labels == [4]


def test_positions_and_preprocessing(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("good bad film good\n")
    (tmp_path / "short.toml").write_text("[text]\nmax_length = 3\nspecial_tokens = false\n")
    model = sig("ids int64 N L", "position_ids int64 N L", "mask bool N L")
    first = open_dataset(
        tmp_path / "a.txt", model, tokenizer=tokenizer.parent, preprocess=str(tmp_path / "short.toml")
    )[0]
    assert first.inputs["ids"].tolist() == [[4, 5, 6]]
    assert first.inputs["position_ids"].tolist() == [[0, 1, 2]]
    assert first.inputs["mask"].tolist() == [[True, True, True]]


def test_strings_need_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("naïve façade\n")
    assert open_dataset(tmp_path / "a.txt", sig("text string N 1"))[0].inputs["text"].tolist() == [["naïve façade"]]
    assert open_dataset(tmp_path / "a.txt", sig("text string N"))[0].inputs["text"].tolist() == ["naïve façade"]


def test_misuse(tmp_path: Path, tokenizer: Path) -> None:
    cases = [
        ("a.txt", b"good\n", FREE, None, None, ["text needs a tokenizer", "tokenizer.json as `tokenizer`"]),
        ("a.txt", b"good\n", FREE, "gone.json", None, ["cannot read the tokenizer", "does not exist"]),
        (
            "a.txt",
            b"good\n",
            FREE,
            "a.txt",
            None,
            ["cannot read the tokenizer", "tokenizer.json that was saved"],
        ),
        ("a.txt", b"good\n", FREE, "tokenizer.json", "label", ["has no column 'label'"]),
        ("a.txt", b"\n \n", FREE, "tokenizer.json", None, ["it has no samples"]),
        ("a.txt", b"good\n\xff\xfe\n", FREE, "tokenizer.json", None, ["not UTF-8"]),
        ("a.txt", b"good\n", sig("x float32 N 4"), "tokenizer.json", None, ["not token ids"]),
        (
            "a.txt",
            b"good\n",
            sig("input_ids int64 N L", "decoder_input_ids int64 N L"),
            "tokenizer.json",
            None,
            ["'decoder_input_ids'"],
        ),
        (
            "a.txt",
            b"good\n",
            sig("ids int64 N 4", "mask int64 N 5"),
            "tokenizer.json",
            None,
            ["different lengths: ids 4, mask 5"],
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": }\n', FREE, "tokenizer.json", None, ["a.jsonl:2", "not JSON"]),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": 3}\n',
            FREE,
            "tokenizer.json",
            None,
            ["a.jsonl:2", "expected a string in 'text', found int"],
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"x": 3}\n',
            FREE,
            "tokenizer.json",
            None,
            ["a.jsonl:3", "found nothing"],
        ),
        ("a.jsonl", b'{"words": "a"}\n', FREE, "tokenizer.json", None, ["no field of text; found words"]),
        ("a.jsonl", b"[1]\n", FREE, "tokenizer.json", None, ["expected an object, found list"]),
        ("a.jsonl", b'{"text": "a"}\n', FREE, "tokenizer.json", "mark", ["there is no 'mark'"]),
    ]
    for name, content, model, tok, labels, says in cases:
        (tmp_path / name).write_bytes(content)
        given = None if tok is None else tmp_path / tok
        refused(
            lambda n=name, m=model, t=given, k=labels: open_dataset(tmp_path / n, m, tokenizer=t, labels=k),
            *says,
        )


def test_missing_package(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("good\n")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentProblem, match=r"onnxpress\[text\]"):
        open_dataset(tmp_path / "a.txt", FREE, tokenizer=tokenizer)
