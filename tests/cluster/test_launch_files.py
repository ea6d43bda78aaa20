"""The files in cluster/ that start machines are what their programs take, and are of this product: no work and no
preemption for the head, slots by number where machines come when asked for, a token, no secret by value.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sweeps.config.loading import load

FOLDER = Path(__file__).resolve().parents[2] / "cluster"
KUBERAY = FOLDER / "kuberay"
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "kubernetes.json").read_text())
SHELL = sorted([*FOLDER.rglob("*.sh"), *FOLDER.rglob("*.sbatch")])
SPOT = {
    "cloud.google.com/gke-spot",
    "karpenter.sh/capacity-type",
    "eks.amazonaws.com/capacityType",
    "kubernetes.azure.com/scalesetpriority",
}


def objects(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / file).read_text()))


def findings(thing: dict[str, Any]) -> list[str]:
    schema = {**SCHEMA, "$ref": f"#/$defs/{thing['kind']}"}
    return [each.message for each in jsonschema.Draft202012Validator(schema).iter_errors(thing)]


KUBERNETES = [
    pytest.param(thing, id=f"{file.name}-{thing['kind']}")
    for file in sorted(KUBERAY.glob("*.yaml"))
    for thing in objects(file.name)
]
CLUSTERS = {
    "cluster.yaml": objects("cluster.yaml")[0]["spec"],
    "job.yaml": objects("job.yaml")[0]["spec"]["rayClusterSpec"],
}


@pytest.mark.parametrize("thing", KUBERNETES)
def test_kubernetes_takes_the_file(thing) -> None:
    assert findings(thing) == []


@pytest.mark.parametrize(
    ("place", "value", "found"),
    [
        ("authOption", {"mode": "token"}, "'authOption' was unexpected"),
        ("authOptions", {"mode": "disabled"}, "'token' was expected"),
        ("headGroupSpec", {"template": {}}, "'rayStartParams' is a required property"),
        ("enableInTreeAutoscaling", "yes", "'yes' is not of type 'boolean'"),
    ],
)
def test_the_schema_sees_a_mistake(place, value, found) -> None:
    thing = objects("cluster.yaml")[0]
    thing["spec"][place] = value
    assert any(found in each for each in findings(thing))


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=[*CLUSTERS])
def test_the_head_stays_and_workers_come_from_spot_machines(cluster) -> None:
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    (term,) = terms(head["template"])
    assert {each["key"] for each in term} == SPOT
    assert {each["operator"] for each in term} == {"NotIn", "DoesNotExist"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        chosen = [each for (each,) in terms(group["template"])]
        assert {each["key"] for each in chosen} == SPOT
        assert {each["operator"] for each in chosen} == {"In"}


def terms(pod: dict[str, Any]) -> list[list[dict[str, Any]]]:
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    wanted = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [each["matchExpressions"] for each in wanted]


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=[*CLUSTERS])
def test_pods_have_what_they_mount_and_their_policy_finds_them(cluster) -> None:
    policy = objects("network-policy.yaml")[0]["spec"]
    (chosen,) = policy["podSelector"]["matchExpressions"]
    pods = [cluster["headGroupSpec"]["template"]]
    pods += [group["template"] for group in cluster["workerGroupSpecs"]]
    for pod in pods:
        assert pod["metadata"]["labels"][chosen["key"]] in chosen["values"]
        (container,) = pod["spec"]["containers"]
        volumes = {each["name"] for each in pod["spec"]["volumes"]}
        assert {each["name"] for each in container["volumeMounts"]} == volumes
        assert "/dev/shm" in {each["mountPath"] for each in container["volumeMounts"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_of_others_only_the_dashboard_is_reached() -> None:
    policy = objects("network-policy.yaml")[0]["spec"]
    among, others = policy["ingress"]
    assert among["from"] == [{"podSelector": policy["podSelector"]}] and "ports" not in among
    assert [each["port"] for each in others["ports"]] == [8265]
    submitter = objects("job.yaml")[0]["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    (allowed,) = others["from"][0]["podSelector"]["matchExpressions"]
    assert submitter[allowed["key"]] in allowed["values"]


def test_the_job_ends_by_its_own_budget_first_and_fits_its_queue() -> None:
    (job,) = objects("job.yaml")
    spec = job["spec"]
    hours = re.search(r"search\.time_budget=(\d+)h", spec["entrypoint"])
    assert hours and int(hours[1]) * 3600 < spec["activeDeadlineSeconds"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    flavor, queue, local = objects("kueue.yaml")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    (offered,) = group["flavors"]
    assert offered["name"] == flavor["metadata"]["name"]
    quota = {each["name"]: number(each["nominalQuota"]) for each in offered["resources"]}
    assert [*quota] == group["coveredResources"]
    asked = dict.fromkeys(quota, 0.0)
    for pod, times in pods_of(spec):
        for name, amount in pod["spec"]["containers"][0]["resources"]["requests"].items():
            asked[name] += times * number(amount)
    assert all(asked[name] <= quota[name] for name in quota), (asked, quota)


def pods_of(spec: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    yield spec["submitterPodTemplate"], 1
    yield spec["rayClusterSpec"]["headGroupSpec"]["template"], 1
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        yield group["template"], group["maxReplicas"]


def number(quantity: str) -> float:
    """Of a quantity of Kubernetes; memory in GiB."""
    return float(quantity.removesuffix("Gi").removesuffix("m")) / (
        1000 if quantity.endswith("m") else 1
    )


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_takes_the_files_of_ray_up(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "ray_up" / f"{cloud}.yaml").read_text())
    ready = prepare_config(config)
    validate_config(ready)
    types = ready["available_node_types"]
    head, worker = types[ready["head_node_type"]], types["spot_gpu"]
    assert head["resources"] == {"CPU": 0} and worker["resources"]["GPU"] == 1
    assert worker["max_workers"] <= ready["max_workers"]
    (start,) = [line for line in ready["head_start_ray_commands"] if "--head" in line]
    assert "--num-cpus=0" in start and "--dashboard-host=127.0.0.1" in start
    assert "-e RAY_AUTH_MODE=token" in ready["docker"]["run_options"]
    assert "~/.ray/auth_token" in ready["file_mounts"]
    spot = ("InstanceMarketOptions", "scheduling")
    assert any(word in worker["node_config"] for word in spot)
    assert not any(word in head["node_config"] for word in spot)
    with pytest.raises(jsonschema.ValidationError, match="'idle_timeout' was unexpected"):
        validate_config(prepare_config({**config, "idle_timeout": 5}))


def test_skypilot_takes_the_task() -> None:
    """Run with SkyPilot 0.14.1, which is too large for the environment of the tests."""
    sky = pytest.importorskip("sky", reason="needs skypilot (pip install skypilot)")
    task = yaml.safe_load((FOLDER / "skypilot" / "sweep.yaml").read_text())
    made = sky.Task.from_yaml_config(task, secrets_overrides=[("RAY_AUTH_TOKEN", "token")])
    assert made.num_nodes == 2 and all(each.use_spot for each in made.resources)


def test_anyscale_takes_the_job() -> None:
    """Run with anyscale 0.26.112."""
    models = pytest.importorskip("anyscale.job.models", reason="needs anyscale (PyPI)")
    job = models.JobConfig.from_yaml(str(FOLDER / "anyscale" / "job.yaml"))
    assert job.max_retries == 2


def test_scripts_of_skypilot_are_bash() -> None:
    task = yaml.safe_load((FOLDER / "skypilot" / "sweep.yaml").read_text())
    for script in (task["setup"], task["run"]):
        check_shell(["bash", "-n"], script)
        check_shell([program("shellcheck"), "--shell=bash", "-"], script)


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_scripts_are_bash(file: Path) -> None:
    check_shell(["bash", "-n", file])
    check_shell([program("shellcheck"), file])


def check_shell(command: list[str | Path], script: str | None = None) -> None:
    done = subprocess.run(command, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def program(name: str) -> str:
    """Beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def test_the_image_is_built_as_it_should_be() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+$", text, re.MULTILINE), "a version of its own"
    assert [line for line in lines if line.startswith("FROM ")] == [
        "FROM python:${PYTHON}-slim-bookworm"
    ]
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    assert not [line for line in lines if line.startswith("ADD ")]
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)).split()
    assert ignored[1] == "*" and {f"!{name}" for name in copied} == {
        line for line in ignored if line.startswith("!")
    }
    extra = re.search(r"^ARG STORAGE=s3fs==(\S+)$", text, re.MULTILINE)
    lock = (FOLDER.parent / "requirements.lock").read_text()
    assert extra and f"fsspec=={extra[1]}\n" in lock, "s3fs wants the fsspec of its own version"
    check_shell([program("hadolint"), FOLDER / "Dockerfile"])


def test_every_setting_that_the_files_give_a_sweep_is_one(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "{name: s, task: classification, model: {name: m}, data: {train: t.csv, text: t, label: l},"
        " search: {trials: 9, space: {learning_rate: 0.001, method: full, batch_size: 8, epochs: 1}}}"
    )
    entries = [
        objects("job.yaml")[0]["spec"]["entrypoint"],
        yaml.safe_load((FOLDER / "anyscale" / "job.yaml").read_text())["entrypoint"],
        yaml.safe_load((FOLDER / "skypilot" / "sweep.yaml").read_text())["run"].split("bash ")[-1],
    ]
    entries += re.findall(
        r"^(?:python -m sweeps|sbatch) .*$", (FOLDER / "README.md").read_text(), re.MULTILINE
    )
    assert len(entries) > 4
    for entry in entries:
        words = shlex.split(entry.replace("$SKYPILOT_NUM_NODES", "2"))
        given = [word for word in words if re.match(r"[a-z_.A-Z]+=", word)]
        assert given, entry
        config = load(tmp_path / "sweep.yaml", given)
        if (asked := config.cluster.resources_per_worker) is not None:
            assert asked == {"GPU": 1}


@pytest.mark.parametrize("begun", [False, True], ids=["first", "again"])
def test_a_job_that_is_started_again_goes_on_with_its_sweep(begun: bool, tmp_path: Path) -> None:
    storage = tmp_path / "of this job"
    if begun:
        (storage / "s-20260101-120000").mkdir(parents=True)
        (storage / "s-20260101-120000" / "sweep.yaml").write_text("")
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(
        f'#!/bin/bash\n[ "$1" = - ] && exec {shlex.quote(sys.executable)} "$@"\nprintf "%s\\n" "$@"\n'
    )
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", FOLDER / "go_on.sh", "my sweep.yaml", f"{storage}/", "search.trials=3"],
        env={"PATH": f"{stub.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = (
        ["resume", f"{storage}/s-20260101-120000"]
        if begun
        else ["run", "my sweep.yaml", f"storage={storage}/"]
    )
    assert done.stdout.splitlines() == ["-m", "sweeps", *told, "search.trials=3"]


def test_no_secret_stands_in_a_file() -> None:
    """Names of what is secret stand there, and of files and Secrets that hold it."""
    secret = re.compile(r"(TOKEN|KEY|PASSWORD|SECRET)$")
    found = []
    for file in FOLDER.rglob("*.yaml"):
        for thing in yaml.safe_load_all(file.read_text()):
            for name, value in settings(thing):
                if secret.search(name):
                    assert value in (None, ""), (file, name)
                    found.append(name)
    assert found == ["RAY_AUTH_TOKEN", "HF_TOKEN", "WANDB_API_KEY"]
    for file in (FOLDER / "ray_up").glob("*.yaml"):
        options = yaml.safe_load(file.read_text())["docker"]["run_options"]
        assert not [each for each in options if re.search(r"-e \w*(TOKEN|KEY)", each)]


def settings(thing: object) -> Iterator[tuple[str, object]]:
    """Names and values, also of the lists of `name` and `value` that Kubernetes has."""
    if isinstance(thing, dict):
        if isinstance(thing.get("name"), str) and "value" in thing:
            yield thing["name"], thing["value"]
        for name, value in thing.items():
            yield name, value
            yield from settings(value)
    elif isinstance(thing, list):
        for each in thing:
            yield from settings(each)


def test_the_hashed_lock_is_that_of_the_versions() -> None:
    """All of them but torch, which has other files under one version in each index."""
    root = FOLDER.parent
    locked = set((root / "requirements.lock").read_text().splitlines())
    hashed = (root / "requirements-hashed.lock").read_text()
    pins = re.findall(r"^([A-Za-z0-9_.-]+==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", hashed, re.MULTILINE)  # fmt: skip
    named = {pin.lower().replace("_", "-") for pin, _ in pins}
    wanted = {line.lower().replace("_", "-") for line in locked}
    assert wanted - named == {each for each in wanted if each.startswith("torch==")}
    assert named <= wanted and len(wanted) > 200
