"""The benchmark's sums are right; what it measures is never asserted."""

import json

import pytest
import scale  # pytest puts this folder on sys.path


def test_what_grows_with_the_trials_grows_by_one() -> None:
    before = {
        "searching, s": 10.0,
        scale.OF_A_TRIAL: 100.0,
        scale.LATE: 1.0,
        "its folder, files": 5,
    }
    found = {
        "searching, s": 100.0,
        scale.OF_A_TRIAL: 100.0,
        scale.LATE: 1.0,
        "its folder, files": 5,
    }
    grown = scale.growth(1000, found, 100, before)
    assert grown == pytest.approx(
        {"searching, s": 1.0, scale.OF_A_TRIAL: 1.0, "its folder, files": 0.1}
    )


def test_the_table_has_a_column_for_each_size_and_names_what_grows_faster() -> None:
    sizes = {1000: {"a, s": 30.0, "b, MB": 5.0}, 100: {"a, s": 1.0, "b, MB": 1.0}}
    head, _, first, second, _, last = scale.table(sizes, {50: {"a, s": 123.4}}).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, first, second)]
    assert cells == [
        ["trials", "100", "1,000", "per trial", "50 at once"],
        ["a, s", "1", "30", "3.00", "123"],
        ["b, MB", "1", "5", "0.50", ""],
    ]
    assert last == "Grows faster than the trials: a, s (3.00 a trial, up to 1,000)."


def test_nothing_grows_faster() -> None:
    assert scale.verdict({1000: {"a": 1.05}}) == "Grows faster than the trials: nothing."


def test_moments_are_those_of_the_folder(tmp_path) -> None:
    for number in range(20):
        trial = tmp_path / "trials" / f"t{number:04d}"
        trial.mkdir(parents=True)
        (trial / "trial.json").write_text(json.dumps({"started": 5.0 + number}))
        # one a second, and the last two took five each
        late = 4.0 * max(0, number - 17)
        (trial / "outcome.json").write_text(json.dumps({"ended": 6.0 + number + late}))
    (tmp_path / "status.json").write_text(json.dumps({"time": 40.0}))
    found = scale.moments(tmp_path)
    assert found["searching, s"] == 28.0
    assert found[scale.OF_A_TRIAL] == pytest.approx(1000 * 26 / 18)
    assert found[scale.LATE] == pytest.approx(10 / 2)
    assert found["concluding, s"] == 7.0
