"""What `compare` writes for other programs: JUnit XML and Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress.cli.output import junit

if TYPE_CHECKING:
    from onnxpress.evaluate.compare import CompareResult


def cases(found: CompareResult, other: str, max_drop: float | None) -> list[junit.Case]:
    """One case a metric; a drop beyond what is allowed is its failure."""
    made = []
    for m in found.measured:
        text = m.text()
        lost = m in found.failing(max_drop)
        why = f"drop {m.drop:+.4f} is more than the allowed {max_drop}" if lost else ""
        name = f"{m.metric} of {m.output}" if m.output else m.metric
        made.append(
            junit.Case("onnxpress.compare", f"{other}: {name}", text=text, failure=why, kind="worse", detail=text)
        )
    return made


def markdown(found: CompareResult, original: str, other: str, max_drop: float | None) -> str:
    """Tables of metrics, outputs and the worst samples."""
    lines = ["## onnxpress compare", "", f"{_cell(other)} against {_cell(original)}", ""]
    lines += ["| metric | value | original | drop | 95 % interval | |", "|---|---:|---:|---:|---:|---|"]
    for m in found.measured:
        verdict = "" if max_drop is None else "FAIL" if m in found.failing(max_drop) else "pass"
        name = f"{m.metric} of {m.output}" if m.output else m.metric
        lines.append(
            f"| {_cell(name)} | {m.value:.4f} | {m.reference:.4f} | {m.drop:+.4f} "
            f"| [{m.low:+.4f}, {m.high:+.4f}] | {verdict} |"
        )
    lines += ["", "| output | max abs | SQNR dB | cosine |", "|---|---:|---:|---:|"]
    lines += [f"| {_cell(d.name)} | {d.max_abs:.3g} | {d.sqnr_db:.1f} | {d.cosine:.6f} |" for d in found.outputs]
    if found.worst:
        lines += ["", "| worst sample | relative error | answer | original's | label |", "|---|---:|---:|---:|---:|"]
        cells = [("" if v is None else f"{v:g}" for v in (s.after, s.before, s.label)) for s in found.worst]
        lines += [
            f"| {_cell(s.key)} | {s.error:.3g} | {' | '.join(t)} |" for s, t in zip(found.worst, cells, strict=True)
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
