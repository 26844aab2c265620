"""Facts that commands print are those of the files: sizes, hashes, shares, and a second stage that finds nothing."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress import PruneOptions, inspect, run_pass
from onnxpress.measure.evidence import evidence_for
from onnxpress.model.counts import macs
from onnxpress.model.signature import signature
from onnxpress.result import size_change_text
from onnxpress.runtime.session import open_session
from tests import exported_forms, nets


def test_sizes_in_words() -> None:
    assert size_change_text(2000, 1000) == "2.0 kB -> 1.0 kB (2.00x smaller)"
    assert size_change_text(1000, 1500) == "1.0 kB -> 1.5 kB (1.50x larger)"
    assert size_change_text(1000, 1001).endswith("(the same size)")


def test_inspect_has_the_hash_of_the_file_and_the_weights_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(
        ir.to_proto(nets.residual(width=32)), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    facts = inspect(str(path), time_budget=0)
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    outside = (tmp_path / "w.bin").stat().st_size
    assert path.stat().st_size + 0.9 * outside <= facts.bytes <= path.stat().st_size + outside
    assert facts.counted_for == "image 1x3x8x8"


def test_pruning_says_what_is_left() -> None:
    model = nets.residual(width=32)
    data = nets.samples(model, 12)
    done = run_pass("prune", model, data, PruneOptions(macs=0.7))
    (line,) = [n for n in done.notes if n.startswith("left are")]
    said = float(re.findall(r"\d\.\d+", line)[0])
    before, after = (evidence_for(m, data) for m in (model, done.model))
    work = [sum(macs(e.model, e.trace).values()) for e in (before, after)]
    assert said == pytest.approx(work[1] / work[0], abs=1e-3) and said <= 0.7


@pytest.mark.parametrize("dark", [0, 1, 2])
def test_a_second_stage_that_finds_nothing_in_some_samples(dark: int) -> None:
    """Whichever sample is dark, int8 answers as the original does where something is found."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    rows = exported_forms.rows_found(net, x)
    made = exported_forms.finished(
        net, [exported_forms.info("image", shape=[1, 3, 8, 8])], [exported_forms.info(rows, shape=["k", 5])], {}, "rows"
    )
    model = ir.from_proto(made.model)
    pictures = 2 * np.random.default_rng(0).random((24, 3, 8, 8)).astype(np.float32)
    pictures[dark::3] *= 0.01
    done = run_pass("quantize", model, {"image": pictures})
    assert signature(done.model) == signature(model)
    sessions = [open_session(m) for m in (model, done.model)]
    found = 0
    for picture in pictures:
        wanted, given = (s.run(None, {"image": picture[None]})[0] for s in sessions)
        assert wanted.shape == given.shape
        found += len(wanted)
        assert not wanted.size or np.abs(wanted - given).max() < 0.1 * np.abs(wanted).max()
    assert found
