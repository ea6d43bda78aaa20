"""A model and trials in Weights & Biases are brought here by the real wandb, from a small server on this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sweeps.tracking.artifacts import download
from sweeps.tracking.runs import TrackedTrial, trials_of
from trainables.errors import InputError

CONTENT = b'{"model_type": "llama"}'
DIGEST = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
COLLECTION = {
    "__typename": "ArtifactSequence",
    "name": "tickets",
    "project": {"id": "1", "internalId": "1", "name": "p", "entity": {"name": "me"}},
}
NOW = "2026-01-01T00:00:00"
ARTIFACT = {
    "__typename": "Artifact",
    "id": "a1",
    "artifactSequence": COLLECTION,
    "versionIndex": 3,
    "artifactType": {"name": "model"},
    "description": None,
    "metadata": "{}",
    "ttlDurationSeconds": -2,
    "ttlIsInherited": False,
    "tags": [],
    "historyStep": None,
    "state": "COMMITTED",
    "size": len(CONTENT),
    "digest": "d",
    "commitHash": "c",
    "fileCount": 1,
    "createdAt": NOW,
    "updatedAt": NOW,
    "aliases": [],
}
MEMBERSHIP = {
    "__typename": "ArtifactCollectionMembership",
    "id": "m",
    "versionIndex": 3,
    "createdAt": NOW,
    "aliases": [],
    "artifactCollection": COLLECTION,
    "artifact": ARTIFACT,
}
RUN = dict.fromkeys(
    ("sweepName", "commit", "heartbeatAt", "description", "notes", "historyKeys")
) | {
    "__typename": "Run",
    "id": "1",
    "name": "r1",
    "displayName": "t0001",
    "tags": [],
    "state": "finished",
    "group": "tickets-1",
    "jobType": "trial",
    "readOnly": False,
    "createdAt": NOW,
    "systemMetrics": "{}",
    "historyLineCount": 1,
    "user": {"name": "me", "username": "me"},
    "projectId": 1,
    "config": json.dumps({"method": {"value": "lora"}, "learning_rate": {"value": 1e-3}}),
    "summaryMetrics": json.dumps({"status": "complete", "best/val_loss": 0.5}),
}
VIEWER = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
MANIFEST = {
    "version": 1,
    "storagePolicy": "wandb-storage-policy-v1",
    "storagePolicyConfig": {"storageLayout": "V2"},
    "contents": {"config.json": {"digest": DIGEST, "size": len(CONTENT), "birthArtifactID": "a1"}},
}


class Handler(BaseHTTPRequestHandler):
    """As much of W&B as one artifact needs."""

    def log_message(self, format, *args):
        pass

    def do_POST(self):
        if self.path != "/graphql":
            return self.answer(b"{}")
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(query)
        self.answer(
            json.dumps({"data": self.found(query["query"], query.get("variables"))}).encode()
        )

    def found(self, query, variables):
        if "ArtifactMembershipByName" in query:
            known = variables["name"] in ("tickets:v3", "tickets:latest")
            return {"project": {"artifactCollectionMembership": MEMBERSHIP if known else None}}
        if "FetchArtifactManifest" in query:
            file = {"__typename": "File", "directUrl": f"{self.server.url}/manifest"}
            kept = {"__typename": "ArtifactManifest", "id": "x", "file": file}
            return {"artifact": {"__typename": "Artifact", "currentManifest": kept}}
        if "GetArtifactMembershipFileUrls" in query:
            url = f"{self.server.url}/config.json"
            node = {"__typename": "File", "name": "config.json", "directUrl": url}
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            member = {"files": {"pageInfo": page, "edges": [{"node": node}]}}
            return {"project": {"artifactCollection": COLLECTION | {"artifactMembership": member}}}
        if "query Runs(" in query:
            page = {"endCursor": "c", "hasNextPage": False}
            asked = json.loads(variables["filters"])
            edges = [{"node": RUN, "cursor": "c"}] if asked == {"group": "tickets-1"} else []
            found = {"edges": edges, "pageInfo": page}
            return {"project": {"internalId": 1, "runCount": len(edges), "runs": found}}
        return {"viewer": VIEWER}

    def do_GET(self):
        self.answer(json.dumps(MANIFEST).encode() if self.path == "/manifest" else CONTENT)

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.url = [], f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", found.url)
    monkeypatch.setenv("WANDB_API_KEY", f"local-{'a' * 40}")
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    yield found
    found.shutdown()
    found.server_close()
    import wandb

    wandb.teardown()


def test_an_artifact_is_downloaded_once(server, tmp_path):
    folder = download("wandb:me/p/tickets:v3", tmp_path / "artifacts")
    assert folder == tmp_path / "artifacts" / "me" / "p" / "tickets:v3"
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").read_bytes() == CONTENT
    asked = len(server.asked)
    assert download("wandb:me/p/tickets:v3", tmp_path / "artifacts") == folder
    assert len(server.asked) == asked
    # of an alias it is asked which version it is now
    assert download("wandb:me/p/tickets:latest", tmp_path / "artifacts") == folder
    assert len(server.asked) > asked and len(list(folder.parent.iterdir())) == 1


def test_what_is_not_there_is_one_line(server, tmp_path):
    with pytest.raises(
        InputError, match=r"^model.name: could not download wandb:me/p/tickets:v9: "
    ):
        download("wandb:me/p/tickets:v9", tmp_path)
    with pytest.raises(
        InputError, match="must be wandb:ENTITY/PROJECT/NAME:VERSION, got 'wandb:x'"
    ):
        download("wandb:x", tmp_path)


def test_trials_of_a_group_are_read(server):
    (trial,) = trials_of("wandb:me/p/tickets-1", "search.prior[0]")
    assert trial == TrackedTrial(
        config={"method": "lora", "learning_rate": 1e-3},
        summary={"status": "complete", "best/val_loss": 0.5},
    )
    with pytest.raises(InputError, match=r"^search.prior\[0\]: wandb:me/p/none: no runs of this"):
        trials_of("wandb:me/p/none", "search.prior[0]")
    with pytest.raises(InputError, match="must be a folder or wandb:ENTITY/PROJECT/SWEEP, got"):
        trials_of("wandb:me/p", "search.prior[0]")
