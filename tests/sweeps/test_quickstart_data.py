import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sweeps import quickstart
from sweeps.quickstart import (
    QuickstartError,
    Row,
    docstring_rows,
    first_sentence,
    gather,
    main,
    make,
    write_csv,
)

SOURCE = b'''"""Tools for testing the reader. Not part of the first sentence."""
class Thing:
    """A thing that is
    read. And more."""
    @property
    def size(self):
        """The size of it."""
    @functools.cached_property
    def weight(self):
        """The weight of it"""
    @size.setter
    def size(self, value):
        """Set the size of it."""
    async def go(self):
        """Go to the end."""
        def inner():
            """Never seen, as it is inside."""
if True:
    def short():
        """Too short."""
    def legal():
        """Copyright 1999 by the authors of it."""
'''


def package(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def function(name: str, docstring: str) -> str:
    return f'def {name}():\n    """{docstring}"""\n'


def test_every_kind_of_definition_gets_its_label() -> None:
    assert {(row.text, row.label) for row in docstring_rows(SOURCE, "p/m.py")} == {
        ("Tools for testing the reader.", "module"),
        ("A thing that is read.", "class"),
        ("The size of it.", "property"),
        ("The weight of it", "property"),
        ("Set the size of it.", "function"),
        ("Go to the end.", "function"),
    }


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("", ""),
        ("Return x.y of it. Then more.", "Return x.y of it."),
        ("No full stop\nin two lines\n\nArgs: none.", "No full stop in two lines"),
        ("Really? Yes.", "Really?"),
    ],
)
def test_first_sentence(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


def test_drops_duplicates_and_texts_under_two_labels(tmp_path: Path) -> None:
    folder = package(
        tmp_path / "pkg",
        {
            "a.py": function("f", "Return the first one.") + function("g", "Used for both kinds."),
            "b.py": function("f", "return  the FIRST one")
            + 'class G:\n    """Used for both kinds."""\n',
        },
    )
    assert [row.text.lower().strip(".") for row in gather([folder])] == ["return the first one"]


def test_skips_tests_long_and_unreadable_files(tmp_path: Path) -> None:
    folder = package(
        tmp_path / "pkg",
        {
            "good.py": function("f", "The good one stays."),
            "broken.py": function("f", "The broken one goes.") + "def (",
            "nul.py": function("f", "The null byte goes.") + "\0",
            "long.py": function("f", "The long one goes.") + "#" * quickstart.MAX_FILE_BYTES,
            "tests/test_it.py": function("f", "The test of it goes."),
        },
    )
    (folder / "gone.py").symlink_to(folder / "nowhere.py")
    assert gather([folder]) == [
        Row(text="The good one stays.", label="function", file="pkg/good.py")
    ]


@pytest.mark.parametrize(
    ("per_label", "per_file", "files"), [(100, 2, [2, 2, 2]), (5, 2, [1, 2, 2]), (4, 100, None)]
)
def test_caps_rows_by_label_and_by_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    per_label: int,
    per_file: int,
    files: list[int] | None,
) -> None:
    monkeypatch.setattr(quickstart, "ROWS_PER_LABEL", per_label)
    monkeypatch.setattr(quickstart, "ROWS_PER_FILE_AND_LABEL", per_file)
    sources = {
        f"{name}.py": "".join(function(f"f{i}", f"Return number {i} of {name}.") for i in range(20))
        for name in "abc"
    }
    rows = gather([package(tmp_path / "pkg", sources)])
    if files is None:
        assert len(rows) == per_label
    else:
        assert sorted(Counter(row.file for row in rows).values()) == files


def test_rows_do_not_depend_on_where_packages_lie_or_in_which_order(tmp_path: Path) -> None:
    one, two = ({"m.py": SOURCE.decode()}, {"n.py": function("f", "Something else altogether.")})
    here = [package(tmp_path / "here" / "one", one), package(tmp_path / "here" / "two", two)]
    there = [package(tmp_path / "there" / "two", two), package(tmp_path / "there" / "one", one)]
    assert gather(here) == gather(there)
    assert {row.file for row in gather(here)} == {"one/m.py", "two/n.py"}


def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "data.csv"
    write_csv([Row(text='with "quotes", and comma', label="class", file="p/a.py")], out)
    before = out.read_bytes()
    assert list(csv.DictReader(out.open())) == [
        {"text": 'with "quotes", and comma', "label": "class", "file": "p/a.py"}
    ]

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quickstart.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_csv([], out)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_too_few_rows_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "PACKAGES", ("no_such_package",))
    with pytest.raises(
        QuickstartError, match="too few docstrings of a class: got 0 from 0 of 1 packages, need 100"
    ):
        make(tmp_path / "data.csv")
    assert main([str(tmp_path / "data.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([]) == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.slow
def test_the_installed_packages_give_the_same_bytes_twice_with_nothing_imported(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; from sweeps.quickstart import PACKAGES, main; status = main(sys.argv[1:]); "
        "loaded = {'torch', *PACKAGES} & set(sys.modules); sys.exit(f'imported {loaded}' if loaded else status)"
    )
    outs = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for out in outs:
        run = subprocess.run(
            [sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(f"{out}: ") and run.stdout.count("\n") == 1
    assert outs[0].read_bytes() == outs[1].read_bytes()

    rows = list(csv.DictReader(outs[0].open()))
    assert len(rows) >= 2000
    assert len({row["text"].lower() for row in rows}) == len(rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(quickstart.LABELS, len(rows) // 4)
    assert len({row["file"] for row in rows}) > 1000
    assert not any(Path(row["file"]).is_absolute() for row in rows)
