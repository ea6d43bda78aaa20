import asyncio
import socket
from pathlib import Path

import pytest

from cluster import ClusterError, staging
from cluster.endpoint import find_endpoint, open_client
from cluster.jobs import Jobs, RunningJob, _Lines, follow
from cluster.staging import PACKAGES, stage
from cluster.submit import JobOutcome, submit

ROOT = Path(__file__).resolve().parent.parent.parent


def run(
    head_or_url: object,
    working_dir: Path,
    *entry: str,
    wait: bool = True,
    env: dict[str, str] | None = None,
) -> tuple[JobOutcome, list[str]]:
    lines: list[str] = []
    outcome = submit(
        name="demo",
        entry=entry,
        working_dir=working_dir,
        address=getattr(head_or_url, "dashboard_url", head_or_url),
        metadata={"sweep": "demo"},
        env=env or {},
        wait=wait,
        print_line=lines.append,
    )
    return outcome, lines


@pytest.fixture
def no_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


# --- with no cluster ---


@pytest.mark.parametrize(
    "address",
    [
        "",
        "http://",
        "ftp://host:8265",
        "http://host:notaport",
        "http://host:99999",
        "ray://host:10001",
        "http://a b:1",
    ],
)
def test_bad_address(address: str, tmp_path: Path, no_tokens: None) -> None:
    with pytest.raises(ClusterError, match=r"^--address: [^\n]*http://127\.0\.0\.1:8265[^\n]*$"):
        run(address, tmp_path, "x")


def test_nothing_answers(tmp_path: Path, no_tokens: None) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(
            ClusterError, match=r"^--address: nothing answers at http://127\.0\.0\.1:\d+ [^\n]*$"
        ):
            run(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path, "x")


@pytest.mark.parametrize(
    ("address", "variables", "expected"),
    [
        ("127.0.0.1:1", {"RAY_ADDRESS": "http://b:2"}, ("http://127.0.0.1:1", "--address")),
        ("a", {"RAY_API_SERVER_ADDRESS": "https://b"}, ("http://a:8265", "--address")),
        (
            None,
            {"RAY_API_SERVER_ADDRESS": "https://b", "RAY_ADDRESS": "http://c:3"},
            ("https://b:443", "RAY_API_SERVER_ADDRESS"),
        ),
        (None, {"RAY_ADDRESS": "http://c:3/"}, ("http://c:3", "RAY_ADDRESS")),
    ],
)
def test_the_option_goes_before_rays_variables(
    address, variables, expected, monkeypatch, no_tokens
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = find_endpoint(address)
    assert (found.url, found.where) == expected


def test_an_address_is_needed(monkeypatch: pytest.MonkeyPatch, no_tokens: None) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of a driver, which is no dashboard's
    with pytest.raises(ClusterError, match="^--address: not given; .*RAY_API_SERVER_ADDRESS$"):
        find_endpoint(None)


def test_a_password_is_no_part_of_an_address() -> None:
    with pytest.raises(ClusterError, match="RAY_JOB_HEADERS$") as refused:
        find_endpoint("https://me:secret@host")
    assert "secret" not in str(refused.value)


def test_unreadable_token_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_tokens: None
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(
            ClusterError, match="^RAY_AUTH_TOKEN_PATH: cannot read .*missing: No such file"
        ):
            run(f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path, "x")


def packages(root: Path) -> Path:
    for name in PACKAGES:
        (root / name / "__pycache__").mkdir(parents=True)
        (root / name / "__init__.py").write_text("")
        (root / name / "__pycache__" / "x.pyc").write_text("")
    return root


def test_stage_takes_packages_and_files(tmp_path: Path) -> None:
    root = packages(tmp_path / "root")
    (root / "secret.txt").write_text("stays")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1")
    (tmp_path / "data" / ".gitignore").write_text("*.csv")
    (tmp_path / "s.yaml").write_text("name: x")
    with stage(
        root, {"sweep.yaml": tmp_path / "s.yaml", "inputs/data": tmp_path / "data"}
    ) as folder:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {f"{name}/__init__.py" for name in PACKAGES} | {
        "sweep.yaml",
        "inputs/data/a.csv",
    }
    assert not folder.exists()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "sweeps/config.py"])
def test_stage_refuses_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError), stage(packages(tmp_path / "root"), {name: Path(__file__)}):
        pass


def test_stage_refuses_missing_and_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = packages(tmp_path / "root")
    with (
        pytest.raises(ClusterError, match="none.csv: no such file"),
        stage(root, {"x": tmp_path / "none.csv"}),
    ):
        pass
    monkeypatch.setattr(staging, "MAX_UPLOAD_MIB", 1)
    (tmp_path / "large").write_bytes(b"x" * (2 << 20))
    with pytest.raises(
        ClusterError, match=r"^submit: 2 MiB to send, of which 2 in x; 1 can travel"
    ):
        with stage(root, {"x": tmp_path / "large"}):
            pass


def test_lines_survive_a_log_that_starts_over() -> None:
    seen: list[str] = []
    lines = _Lines(seen.append)
    lines.add("one\ntw")
    lines.start_over()
    lines.add("on")
    lines.add("e\ntwo\nthree\nfo")
    lines.start_over()
    lines.add("one\ntwo\nthree\nfour")
    lines.end()
    assert seen == ["one", "two", "three", "four"]


def job(job_id: str, status: str, **metadata: str) -> RunningJob:
    return RunningJob(
        job_id=job_id,
        status=status,
        message="",
        metadata=metadata,
        entrypoint="python -m sweeps",
        working_dir=None,
    )


RAN = job("night-1", "SUCCEEDED", sweep="night")
RUNS = job("night-12", "RUNNING", sweep="night")
BY_HAND = job("raysubmit_1", "RUNNING", sweep_folder="/runs/x")
AGAIN = job("night-2", "STOPPED", sweep="night")
WATCH = job("watch-1", "RUNNING", job_name="watch-1")


@pytest.mark.parametrize(
    ("jobs", "word", "expected"),
    [
        ([RAN, RUNS, WATCH], None, RUNS),
        ([RAN, BY_HAND], None, BY_HAND),
        ([RAN, RUNS], "night-1", RAN),
        ([RAN, RUNS, WATCH], "night-12", RUNS),
        ([RAN, BY_HAND], "ray", BY_HAND),
        ([RUNS, BY_HAND], None, "JOB: not given, and sweeps that run at U: {RUNS}, {BY_HAND}"),
        ([RAN, WATCH], None, RAN),
        ([WATCH], None, "JOB: not given, and sweeps that run at U: none; sweeps there: none"),
        ([RAN, RUNS], "night", RUNS),
        ([RAN, AGAIN], "night", "JOB: those that begin with night at U: {RAN}, {AGAIN}"),
        ([WATCH], "x", "JOB: those that begin with x at U: none; sweeps there: none"),
    ],
)
def test_a_job_is_chosen(jobs, word, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Jobs, "__init__", lambda self: setattr(self, "url", "U"))
    monkeypatch.setattr(Jobs, "all", lambda self: jobs)
    if isinstance(expected, RunningJob):
        assert Jobs().choose(word) == expected
        return
    with pytest.raises(ClusterError) as refused:
        Jobs().choose(word)
    named = {"RAN": RAN, "RUNS": RUNS, "BY_HAND": BY_HAND, "AGAIN": AGAIN}
    shown = {name: f"{each.job_id} ({each.status})" for name, each in named.items()}
    assert str(refused.value) == expected.format(**shown)


# --- with a head that asks for a token ---


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "joins.py").write_text(
        "import os, ray, sys\n"
        "ray.init(log_to_driver=False)\n"
        "@ray.remote\n"
        "def where(): return os.environ['GREETING'], open('given.txt').read()\n"
        "print('worker says', *ray.get(where.remote()))\n"
        "print('arguments', sys.argv[1:])\n"
        "print('no newline at the end', end='')\n"
    )
    (folder / "given.txt").write_text("from-a-file")
    (folder / "fails.py").write_text("import sys\nprint('about to fail')\nsys.exit(3)\n")
    (folder / "sleeps.py").write_text(
        "import time\nprint('asleep', flush=True)\ntime.sleep(100_000)\n"
    )
    (folder / "tells.py").write_text(
        "import sys\n"
        "from cluster.job_page import add_metadata, own_job\n"
        "for state in sys.argv[2:]:\n"
        "    add_metadata(own_job() if sys.argv[1] == 'own' else sys.argv[1], {'state': state})\n"
    )
    return folder


@pytest.mark.ray
@pytest.mark.slow
def test_job_succeeds_and_its_log_is_followed(
    ray_head, code: Path, monkeypatch: pytest.MonkeyPatch, no_tokens: None
) -> None:
    ray_head.use(monkeypatch)
    outcome, lines = run(ray_head, code, "joins", "two words", "it's", env={"GREETING": "hello"})
    assert (outcome.status, outcome.exit_code) == ("SUCCEEDED", 0), lines
    assert (
        outcome.job_id.startswith("demo-")
        and outcome.url == f"{ray_head.dashboard_url}/#/jobs/{outcome.job_id}"
    )
    assert "worker says hello from-a-file" in lines
    assert """arguments ['two words', "it's"]""" in lines
    assert lines[-1] == "no newline at the end"
    # why no secret is sent so: whoever asks is told, and it stands in a log
    there = open_client(find_endpoint(ray_head.dashboard_url)).get_job_info(outcome.job_id)
    assert there.runtime_env["env_vars"]["GREETING"] == "hello"
    logs = [each.read_text() for each in ray_head.temp_dir.rglob("runtime_env_agent.log")]
    assert any('"GREETING": "hello"' in each for each in logs)


@pytest.mark.ray
@pytest.mark.slow
def test_failed_job(ray_head, code: Path, monkeypatch: pytest.MonkeyPatch, no_tokens: None) -> None:
    ray_head.use(monkeypatch)
    outcome, lines = run(ray_head, code, "fails")
    assert (outcome.status, outcome.exit_code) == ("FAILED", 3)
    assert "about to fail" in lines


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_adds_to_its_own_metadata_until_it_has_ended(
    ray_head, code: Path, monkeypatch: pytest.MonkeyPatch, no_tokens: None
) -> None:
    ray_head.use(monkeypatch)
    env = {"PYTHONPATH": str(ROOT)}
    outcome, lines = run(ray_head, code, "tells", "own", "running", "at its end", env=env)
    assert outcome.status == "SUCCEEDED", lines
    client = open_client(find_endpoint(ray_head.dashboard_url))
    ended = client.get_job_info(outcome.job_id)
    assert ended.metadata == {"sweep": "demo", "job_name": "demo", "state": "at its end"}
    other, lines = run(ray_head, code, "tells", outcome.job_id, "too late", env=env)
    assert other.status == "SUCCEEDED", lines
    assert client.get_job_info(outcome.job_id) == ended


@pytest.mark.ray
@pytest.mark.slow
def test_interrupt_leaves_the_job_running(
    ray_head, code: Path, monkeypatch: pytest.MonkeyPatch, no_tokens: None
) -> None:
    ray_head.use(monkeypatch)

    def interrupt(line: str) -> None:
        lines.append(line)
        if line == "asleep":
            raise KeyboardInterrupt

    lines: list[str] = []
    outcome = submit(
        name="demo",
        entry=["sleeps"],
        working_dir=code,
        address=ray_head.dashboard_url,
        metadata={},
        env={},
        wait=True,
        print_line=interrupt,
    )
    assert outcome.status == "RUNNING" and outcome.exit_code is None
    assert any(f"watch {outcome.job_id} --address" in line for line in lines)
    client = open_client(find_endpoint(ray_head.dashboard_url))
    assert client.get_job_info(outcome.job_id).metadata["job_name"] == "demo"
    client.stop_job(outcome.job_id)
    stopped: list[str] = []
    asyncio.run(follow(client, outcome.job_id, ray_head.dashboard_url, stopped.append))
    assert client.get_job_status(outcome.job_id).value == "STOPPED" and "asleep" in stopped


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "0" * 64], ids=["missing", "wrong"])
def test_token_refused(
    token: str | None, ray_head, code: Path, monkeypatch: pytest.MonkeyPatch, no_tokens: None
) -> None:
    if token is not None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(
        ClusterError,
        match=r"^--address: [^\n]* refused our token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
    ):
        run(ray_head, code, "fails")
