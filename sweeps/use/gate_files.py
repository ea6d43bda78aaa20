"""What a gate says, for continuous integration: JUnit XML and Markdown."""

from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from sweeps.use.verdict import Gate
from trainables.errors import UNPRINTABLE, InputError


def junit(gate: Gate) -> str:
    """One test case for each check, as JUnit's XML has them."""
    failed = sum(not check.passed for check in gate.checks)
    counts = {"tests": str(len(gate.checks)), "failures": str(failed), "errors": "0"}
    root = Element("testsuites", counts)
    suite = SubElement(root, "testsuite", {"name": f"gate {_plain(gate.sweep)}", **counts})
    for check in gate.checks:
        names = {"classname": f"gate.{_plain(gate.sweep)}", "name": _plain(check.name)}
        case = SubElement(suite, "testcase", names)
        if check.passed:
            SubElement(case, "system-out").text = _plain(check.words)
        else:
            failure = SubElement(case, "failure", {"message": _plain(check.words)})
            failure.text = _plain(check.words)
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(gate: Gate) -> str:
    """The verdict, the paragraph, and a table of the checks."""
    lines = [
        f"## {'Ship' if gate.ships else 'Do not ship'}: {_cell(gate.sweep)}",
        "",
        _plain(gate.words),
        "",
        "| check | | found |",
        "|---|---|---|",
    ]
    for check in gate.checks:
        passed = "passed" if check.passed else "**failed**"
        lines.append(f"| {_cell(check.name)} | {passed} | {_cell(check.words)} |")
    return "\n".join(lines) + "\n"


def write(file: Path, content: str, option: str) -> None:
    """Raises InputError where that cannot be done; option: that named the file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option}: {file}: {error.strerror or error}") from error


def _plain(text: str) -> str:
    """XML has no control characters, not even escaped ones."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")
