"""How the one-lever commands report: size before and after, what was done, what was left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress.cli import console
from onnxpress.cli.options import tell

if TYPE_CHECKING:
    from onnxpress.api.one_pass import Result


def show(kind: str, result: Result, output: str, as_json: bool, quiet: bool) -> None:
    from onnxpress.model.read import parameters
    from onnxpress.plan.run_record import document

    if as_json:
        console.emit_json(
            document(
                kind,
                output=output,
                bytes_before=result.before,
                bytes_after=result.after,
                parameters=parameters(result.model),
                notes=result.notes,
                refused=result.refused,
                layers=result.layers,
                profile_comparison=result.profile_comparison,
            )
        )
        return
    tell(result.notes, quiet)
    if not quiet and result.refused:
        reasons: dict[str, int] = {}
        for refusal in result.refused:
            reasons[refusal.reason] = reasons.get(refusal.reason, 0) + 1
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:5]:
            console.note(f"left alone: {count} node{'s' if count > 1 else ''}: {reason}")
    console.out(
        f"{output}: {console.size(result.before)} -> {console.size(result.after)}"
        f" ({result.before / max(result.after, 1):.2f}x smaller), {parameters(result.model):,} parameters"
    )
