"""The benchmark's sums are right; what it measures is never asserted."""

import processes  # pytest puts this folder on sys.path


def test_processes_are_counted_by_kind() -> None:
    seen = [
        ("/venv/bin/python -m sweeps run /tmp/a/processes.yaml", 2.0, 3 * 2**20),
        ("ray::Slot", 10.0, 5 * 2**20),
        ("ray::processes-20260101-000000 t0001: learning_rate=0.1", 1.0, 2**20),
        ("ray::IDLE", 0.5, 2**20),
        ("ray::IDLE", 0.5, 0),  # gone when all together had most
        ("/usr/bin/other", 0.0, 2**19),
    ]
    rows = [line.strip("| ").split(" | ") for line in processes.table(seen).splitlines()[2:]]
    assert rows == [
        ["all", "5", "10", "6", "14.0"],
        ["the slot", "1", "5", "1", "10.0"],
        ["the command (Tune, search, ledger)", "1", "3", "1", "2.0"],
        ["the coordinator", "1", "1", "1", "1.0"],
        ["workers of Ray that never did anything", "1", "1", "2", "1.0"],
        ["/usr/bin/other", "1", "0", "1", "0.0"],
    ]
