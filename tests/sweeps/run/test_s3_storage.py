"""Whole sweeps whose storage is S3-compatible: a real server on loopback, of moto."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.ray_nodes import free_port
from tests.sweeps.run.failing import IN_ORDER, Running, results

pytest.importorskip("s3fs")
pytest.importorskip("moto", reason="needs moto[s3] and flask")
from moto.moto_server.werkzeug_app import (  # noqa: E402
    DomainDispatcherApplication,
    create_backend_app,
)
from werkzeug.serving import make_server  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

BUCKET = "sweeps"


class Server:
    """S3 of moto, which fails when it is told to."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.fails = False
        self.failed = 0  # requests
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        if self.fails:
            self.failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        return self._moto(environ, start_response)

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    """As the environment names it to all processes."""
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield server
    server.close()


@pytest.fixture
def running(ray_tmp: Path, tmp_path: Path, s3: Server) -> Iterator[Any]:
    started: list[Running] = []

    def start(*arguments: object) -> Running:
        started.append(Running(ray_tmp, tmp_path / f"log{len(started)}", *arguments))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def evaluated(count: int) -> str | None:
    """URL of the sweep's folder, once it has so many evaluations."""
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    found = [name for name in fs.find(BUCKET) if name.endswith("/evaluation.json")]
    return f"s3://{'/'.join(found[0].split('/')[:2])}" if len(found) >= count else None


@pytest.mark.long
def test_a_sweep_that_is_killed_and_whose_server_fails_is_as_an_undisturbed_one(
    s3, running, sweeps, shakespeare, tmp_path: Path
) -> None:
    file = shakespeare(IN_ORDER)
    done = sweeps("run", file, f"storage={tmp_path}/undisturbed")
    assert done.code == 0, done.out + done.err
    expected = results(sweeps("best", done.last_line, "--json").out)

    sweep = running("run", file, f"storage=s3://{BUCKET}")
    folder = sweep.until(lambda: evaluated(2))
    os.killpg(sweep.process.pid, signal.SIGKILL)
    sweep.process.wait()
    assert json.loads(sweeps("best", folder, "--json").out)["status"] == "interrupted"

    several = [running("resume", folder) for _ in range(2)]  # at once
    several[0].until(lambda: any(each.process.poll() is not None for each in several))
    (refused,) = [each for each in several if each.process.poll() is not None]
    (sweep,) = [each for each in several if each is not refused]
    assert refused.process.returncode == 2 and len(refused.log.splitlines()) == 1, refused.log
    sweep.until(lambda: evaluated(4))
    s3.fails = True
    sweep.waits_for_storage()
    sweep.until(lambda: s3.failed > 20)
    s3.fails = False
    assert sweep.end(900) == 0, sweep.log
    assert "Traceback" not in sweep.log and "works again" in sweep.log, sweep.log
    assert results(sweeps("best", folder, "--json").out) == expected

    watched = sweeps("watch", folder, "--json")
    assert watched.code == 0 and json.loads(watched.out)["status"] == "finished"
    reported = sweeps("report", folder)
    assert reported.code == 0 and reported.last_line == f"{folder}/report.html"
    verified = sweeps("verify", folder)
    assert verified.code == 0, verified.out + verified.err


def test_an_endpoint_where_nobody_answers_is_one_line(sweeps, shakespeare, s3) -> None:
    file = shakespeare(IN_ORDER)
    storage = f"storage=s3://{BUCKET}"
    done = sweeps("run", file, storage, AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.err
    assert done.err.startswith(f"storage: cannot write to s3://{BUCKET}: ")
    done = sweeps("run", file, "storage=s3://nobody-has-made-it")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.err
