"""As much of a W&B server as the real client needs here: runs, artifacts, links and reports. It keeps what was
uploaded, and can be told to misbehave.
"""

import base64
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

KEY = "local-" + "a" * 40
NOW = "2026-01-01T00:00:00"
RUN_WITHOUT = dict.fromkeys(
    ("sweepName", "commit", "heartbeatAt", "description", "notes", "historyKeys")
)


@contextmanager
def clean_environment(home: Path, **more: str) -> Iterator[None]:
    """No key, no mode, no settings of the person at this machine; what a tracker sets in the environment is undone."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    own = {"WANDB_ERROR_REPORTING": "false", "HOME": str(home), "NETRC": str(home / "netrc")}
    os.environ |= own | more
    yield
    os.environ.clear()
    os.environ.update(before)


class WandbServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs = {}
        self.artifacts = []  # versions of all collections, in order of their making
        self.links = []
        self.used = []  # (run, artifact's id)
        self.reports = {}
        self.asked = []  # operations, in order
        self.unknown = []  # operations that nothing here answers
        self.mistakes = []  # of this module
        self.status = 200  # answer everything with this HTTP status ...
        self.refused = ()  # ... or only these operations, with 403
        self.hang_on = ()  # ... or answer these operations never: GraphQL names, "file_stream", "*"
        self.delay_s = 0.0  # before every answer
        self.rows_before_trouble = None  # so many rows are taken, then all is answered by 401
        self.viewer = {
            "id": "1",
            "entity": "someone",
            "username": "someone",
            "flags": "{}",
            "teams": {"edges": []},
        }
        self.stopped = False
        self.lock = threading.RLock()
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        if not isinstance(error := sys.exception(), OSError):  # a client that gave up waiting
            self.mistakes.append(error)

    def of(self, collection):
        """Versions of a collection, the first first."""
        return [each for each in self.artifacts if each["collection"] == collection]

    def with_alias(self, name):
        """The version that `COLLECTION:ALIAS` names, or `COLLECTION:v0`."""
        collection, _, alias = name.partition(":")
        for each in self.of(collection):
            if each["state"] == "COMMITTED" and alias in (*each["aliases"], f"v{each['index']}"):
                return each
        return None

    def move(self, name, version):
        """What a person does in the web page: `COLLECTION:ALIAS` now is that version."""
        collection, _, alias = name.partition(":")
        for each in self.of(collection):
            each["aliases"] = [old for old in each["aliases"] if old != alias]
            if each["index"] == version:
                each["aliases"].append(alias)

    # --- GraphQL ---

    def graphql(self, operation, variables, query):
        answer = getattr(self, f"on_{operation}", None)
        if answer is not None:
            return answer(variables)
        if "upsertView" in query:
            id = "VmlldzoxMjM="
            self.reports[id] = variables
            names = {key: variables[key] for key in ("name", "displayName", "description", "spec")}
            owner = {"name": variables["projectName"], "entityName": variables["entityName"]}
            view = names | {"id": id, "project": owner}
            return {"upsertView": {"view": view, "inserted": True}}
        if "view(" in query:
            found = self.reports.get(variables.get("reportId") or variables.get("id"))
            return {"view": found and {"id": "1", "spec": found["spec"]}}
        self.unknown.append(operation)
        nothing = {name: None for name in re.findall(r"\{\s*(\w+)", query)[:1]}
        return nothing | {"serverInfo": {"features": []}, "viewer": self.viewer}

    def on_GetProjects(self, variables):
        nothing = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"models": nothing}

    def on_ServerFeaturesQuery(self, variables):
        return {"serverInfo": {"features": []}}

    def on_Viewer(self, variables):
        return {"viewer": self.viewer}

    @staticmethod
    def project(variables):
        name = variables.get("project") or variables.get("projectName") or "a-project"
        entity = {"id": "1", "name": "someone"}
        return {"id": "1", "internalId": "1", "name": name, "entity": entity}

    def on_RunResumeStatus(self, variables):
        run = self.runs.get(variables["name"])
        bucket = run and self.bucket(variables["name"], run)
        return {"model": self.project(variables) | {"bucket": bucket}}

    def on_UpsertBucket(self, variables):
        run = self.runs.setdefault(
            variables["name"],
            {
                "history": [],
                "summary": {},
                "config": {},
                "tags": [],
                "group": None,
                "job_type": None,
                "exit": None,
            },
        )
        run["config"] |= json.loads(variables.get("config") or "{}")
        run["tags"] = variables.get("tags") or run["tags"]
        run["group"] = variables.get("groupName") or run["group"]
        run["job_type"] = variables.get("jobType") or run["job_type"]
        run["name"] = variables.get("displayName") or run.get("name")
        run["summary"] |= json.loads(variables.get("summaryMetrics") or "{}")
        bucket = self.bucket(variables["name"], run) | {"project": self.project(variables)}
        return {"upsertBucket": {"bucket": bucket, "inserted": False}}

    def on_CreateRunFiles(self, variables):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}

    @staticmethod
    def bucket(name, run):
        return {
            "id": name, "name": name, "displayName": run["name"], "tags": run["tags"],
            "config": json.dumps(run["config"]), "summaryMetrics": json.dumps(run["summary"]),
            "historyLineCount": len(run["history"]),
            "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]), "eventsTail": "[]",
            "eventsLineCount": 0, "logLineCount": 0, "wandbConfig": '{"t": 1}',
        }  # fmt: skip

    def api_run(self, name):
        run = self.runs[name]
        more = {"__typename": "Run", "state": "finished", "group": run["group"], "createdAt": NOW,
                "jobType": run["job_type"], "readOnly": False, "systemMetrics": "{}", "projectId": 1,
                "user": {"name": "someone", "username": "someone"}}  # fmt: skip
        return RUN_WITHOUT | self.bucket(name, run) | more

    def on_Run(self, variables):
        name = variables["name"]
        found = self.api_run(name) if name in self.runs else None
        return {"project": self.project(variables) | {"run": found}}

    def on_Runs(self, variables):
        asked = json.loads(variables["filters"])
        kinds = {"group": "group", "jobType": "job_type"}
        named = [
            name
            for name, run in self.runs.items()
            if all(run[kinds[key]] == value for key, value in asked.items())
        ]
        edges = [{"node": self.api_run(name), "cursor": "c"} for name in named]
        found = {"edges": edges, "pageInfo": {"endCursor": "c", "hasNextPage": False}}
        return {"project": {"internalId": 1, "runCount": len(edges), "runs": found}}

    # --- artifacts ---

    def on_ArtifactType(self, variables):
        versions = self.of(variables["name"].partition(":")[0])
        found = versions and {"artifactType": {"name": versions[0]["type"]}}
        return {"project": {"artifact": found or None}}

    def on_CreateArtifact(self, variables):
        given = variables["input"]
        collection = given["artifactCollectionName"]
        aliases = [alias["alias"] for alias in given.get("aliases") or []]
        same = [each for each in self.of(collection) if each["digest"] == given["digest"]]
        if same:
            (found,) = same
        else:
            found = {
                "id": f"QXJ0aWZhY3Q6{len(self.artifacts)}",
                "collection": collection,
                "index": len(self.of(collection)),
                "type": given["artifactTypeName"],
                "digest": given["digest"],
                "metadata": given.get("metadata") or "{}",
                "aliases": [],
                "files": {},
                "state": "PENDING",
                "run": given.get("runName"),
                "client": given.get("clientID"),
            }
            self.artifacts.append(found)
        found["wanted"] = aliases
        if found["state"] == "COMMITTED":
            self._give_aliases(found)
        latest = self.of(collection)[-1]
        sequence = {
            "id": collection,
            "latestArtifact": {"id": latest["id"], "versionIndex": latest["index"]},
        }
        answer = {"id": found["id"], "state": found["state"], "artifactSequence": sequence}
        return {"createArtifact": {"artifact": answer}}

    def _give_aliases(self, found):
        for alias in found["wanted"]:
            self.move(f"{found['collection']}:{alias}", found["index"])

    def on_CreateArtifactManifest(self, variables):
        url = f"{self.url}/manifest/{variables['artifactID']}"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {
            "createArtifactManifest": {
                "artifactManifest": {"id": variables["artifactID"], "file": file}
            }
        }

    def on_UpdateArtifactManifest(self, variables):
        url = f"{self.url}/manifest/{variables['artifactManifestID']}"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def on_CreateArtifactFiles(self, variables):
        edges = []
        for each in variables["input"]["artifactFiles"]:
            url = f"{self.url}/file/{each['artifactID']}/{each['name']}"
            node = {"storagePath": each["name"], "uploadUrl": url, "uploadHeaders": [],
                    "uploadMultipartUrls": None, "artifact": {"id": each["artifactID"]}}  # fmt: skip
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, variables):
        found = self.by_id(variables["artifactID"])
        found["state"] = "COMMITTED"
        self._give_aliases(found)
        return {"commitArtifact": {"artifact": {"id": found["id"], "digest": found["digest"]}}}

    def on_UseArtifact(self, variables):
        given = variables["input"]
        self.used.append((given["runName"], given["artifactID"]))
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}

    def by_id(self, id):
        return next(each for each in self.artifacts if each["id"] == id)

    def api_artifact(self, found):
        project = self.project({})
        collection = {
            "__typename": "ArtifactSequence",
            "name": found["collection"],
            "project": project,
        }
        aliases = [
            {
                "__typename": "ArtifactAlias",
                "id": alias,
                "alias": alias,
                "artifactCollection": collection,
            }
            for alias in found["aliases"]
        ]
        return {
            "__typename": "Artifact", "id": found["id"], "artifactSequence": collection,
            "versionIndex": found["index"], "artifactType": {"name": found["type"]}, "description": None,
            "metadata": found["metadata"], "ttlDurationSeconds": -2, "ttlIsInherited": False, "tags": [],
            "historyStep": None, "state": found["state"], "size": sum(map(len, found["files"].values())),
            "digest": found["digest"], "commitHash": "c", "fileCount": len(found["files"]), "createdAt": NOW,
            "updatedAt": NOW, "aliases": aliases,
        }  # fmt: skip

    def membership(self, found, collection=None):
        own = {
            "__typename": "ArtifactSequence",
            "name": found["collection"],
            "project": self.project({}),
        }
        aliases = [
            {"__typename": "ArtifactAlias", "id": alias, "alias": alias}
            for alias in found["aliases"]
        ]
        return {
            "__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": found["index"],
            "createdAt": NOW, "aliases": aliases, "artifactCollection": collection or own,
            "artifact": self.api_artifact(found),
        }  # fmt: skip

    def on_ArtifactByID(self, variables):
        return {"artifact": self.api_artifact(self.by_id(variables["id"]))}

    def on_ArtifactMembershipByName(self, variables):
        name, project = variables["name"], variables["project"]
        if not project.startswith("wandb-registry-"):
            found = self.with_alias(name)
            return {"project": {"artifactCollectionMembership": found and self.membership(found)}}
        for link in self.links:
            target = f"{link['projectName']}/{link['artifactPortfolioName']}"
            if target == f"{project}/{name.partition(':')[0]}":
                collection = {
                    "__typename": "ArtifactPortfolio",
                    "name": link["artifactPortfolioName"],
                    "project": self.project({"project": project}),
                }
                found = self.by_id(link["artifactID"])
                return {
                    "project": {"artifactCollectionMembership": self.membership(found, collection)}
                }
        return {"project": {"artifactCollectionMembership": None}}

    def on_FetchArtifactManifest(self, variables):
        file = {"__typename": "File", "directUrl": f"{self.url}/manifest/{variables['id']}"}
        kept = {"__typename": "ArtifactManifest", "id": "x", "file": file}
        return {"artifact": {"__typename": "Artifact", "currentManifest": kept}}

    def on_GetArtifactMembershipFileUrls(self, variables):
        found = self.with_alias(f"{variables['collection']}:{variables['alias']}")
        if found is None:  # of a registry's collection
            (link,) = [
                e for e in self.links if e["artifactPortfolioName"] == variables["collection"]
            ]
            found = self.by_id(link["artifactID"])
        contents = json.loads(found["manifest"])["contents"]
        nodes = [
            {
                "__typename": "File",
                "name": name,
                "directUrl": f"{self.url}/file/{found['id']}/{name}",
            }
            for name in contents
        ]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        files = {"files": {"pageInfo": page, "edges": [{"node": node} for node in nodes]}}
        collection = {"__typename": "ArtifactSequence", "artifactMembership": files}
        return {"project": {"artifactCollection": collection}}

    def on_FetchOrgInfoFromEntity(self, variables):
        org = {"name": "an-org", "orgEntity": {"name": "an-org-entity"}}
        return {"entity": {"organization": org, "user": None}}

    def on_LinkArtifact(self, variables):
        self.links.append(variables["input"])
        found = self.by_id(variables["input"]["artifactID"])
        return {"result": {"versionIndex": found["index"], "artifactMembership": None}}

    def add_version(self, collection, files, *, metadata=None, aliases=(), type="model"):
        """A version that was logged elsewhere."""
        index = len(self.of(collection))
        found = {"id": f"QXJ0aWZhY3Q6{len(self.artifacts)}", "collection": collection, "index": index,
                 "type": type, "digest": f"d{index}", "metadata": json.dumps(metadata or {}), "aliases": [],
                 "wanted": list(aliases), "files": dict(files), "state": "COMMITTED", "run": None}  # fmt: skip
        digests = {
            name: {
                "digest": base64.b64encode(hashlib.md5(content).digest()).decode(),
                "size": len(content),
                "birthArtifactID": found["id"],
            }
            for name, content in files.items()
        }
        manifest = {"version": 1, "storagePolicy": "wandb-storage-policy-v1",
                    "storagePolicyConfig": {"storageLayout": "V2"}, "contents": digests}  # fmt: skip
        found["manifest"] = json.dumps(manifest).encode()
        self.artifacts.append(found)
        self._give_aliases(found)
        return found

    # --- files ---

    def put(self, path, body):
        kind, _, rest = path.strip("/").partition("/")
        id, _, name = rest.partition("/")
        if kind == "manifest":
            self.by_id(id)["manifest"] = body
        elif kind == "file":
            self.by_id(id)["files"][unquote(name)] = body

    def get(self, path):
        kind, _, rest = path.strip("/").partition("/")
        id, _, name = rest.partition("/")
        if kind == "manifest":
            return self.by_id(id)["manifest"]
        return self.by_id(id)["files"].get(unquote(name)) if kind == "file" else b"{}"

    def file_stream(self, name, body):
        run = self.runs[name]
        for file, chunk in body.get("files", {}).items():
            rows = [json.loads(line) for line in chunk["content"]]
            if file == "wandb-history.jsonl":
                run["history"][chunk["offset"] :] = rows
            elif file == "wandb-summary.json":
                run["summary"] = rows[-1]
        if body.get("complete"):
            run["exit"] = body["exitcode"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        operation, asked, status, answer = self.path, None, server.status, b"{}"
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = asked.get("operationName") or _operation(asked["query"])
        elif self.path.endswith("/file_stream"):
            operation = "file_stream"
        if server.hang_on and (operation in server.hang_on or "*" in server.hang_on):
            server.released.wait(60)
            return
        server.released.wait(server.delay_s)
        with server.lock:
            server.asked.append(operation)
            if operation in server.refused:
                status = 403
            if status == 200 and operation == "file_stream":
                server.file_stream(self.path.split("/")[-2], json.loads(body))
                answer = json.dumps({"stopped": server.stopped}).encode()
                taken = sum(len(run["history"]) for run in server.runs.values())
                if server.rows_before_trouble is not None and taken >= server.rows_before_trouble:
                    server.status = 401
            elif status == 200 and asked is not None:
                data = server.graphql(operation, asked.get("variables") or {}, asked["query"])
                answer = json.dumps({"data": data}).encode()
            elif status == 200 and self.command == "PUT":
                server.put(self.path, body)
            elif status == 200:
                found = server.get(self.path)
                status, answer = (404, b"") if found is None else (200, found)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_GET = do_POST

    def log_message(self, *args):
        pass


def _operation(query):
    found = re.search(r"(?:query|mutation)\s+(\w+)", query)
    return found[1] if found else "Viewer"
