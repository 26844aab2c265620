"""JUnit XML, as CI systems read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree


@dataclass(frozen=True)
class Case:
    """One test.  seconds: it took; said: shown with it; failure: why it failed, "" where it passed; kind, detail: of
    the failure."""

    group: str
    name: str
    seconds: float = 0.0
    text: str = ""
    failure: str = ""
    kind: str = ""
    detail: str = ""


def junit(name: str, cases: Sequence[Case], machine: str, seconds: float) -> bytes:
    """One test suite with a property that names the machine."""
    suite = ElementTree.Element("testsuite", name=name)
    facts = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(facts, "property", name="machine", value=machine)
    for case in cases:
        shown = ElementTree.SubElement(
            suite, "testcase", {"classname": case.group, "name": case.name, "time": f"{case.seconds:.9f}"}
        )
        if case.failure:
            ElementTree.SubElement(shown, "failure", message=case.failure, type=case.kind).text = case.detail
        if case.text:
            ElementTree.SubElement(shown, "system-out").text = case.text
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(bool(c.failure) for c in cases)))
    suite.set("errors", "0")
    suite.set("time", f"{seconds:.3f}")
    tree = ElementTree.Element("testsuites")
    tree.append(suite)
    ElementTree.indent(tree)
    return bytes(ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True)) + b"\n"
