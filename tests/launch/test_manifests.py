"""The Kubernetes manifests: valid, consistent, and each exit code leads to the action that launch/README.md promises.

No cluster is needed. JobSets are checked against tests/fixtures/launch/jobset.json, what they embed against the schemas
of Kubernetes, and the chain from exit code to action is followed as the Job and JobSet controllers follow it.
"""

import json
import math
import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; it comes with the extra `dev`")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; it comes with the extra `dev`")
kubernetes = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed; it comes with the extra `dev`"
)

ROOT = Path(__file__).parents[2]
K8S = ROOT / "launch" / "k8s"
JOBSET = json.loads((ROOT / "tests/fixtures/launch/jobset.json").read_text(encoding="utf-8"))
VERSIONS = ("1.31", "1.34", kubernetes.latest_version())  # 1.31 is the oldest in which pod failure policies are stable
INVALID = (jsonschema.ValidationError, AssertionError)


def check(text: str) -> None:
    """Raise if the manifest in `text` is not valid."""
    (manifest,) = yaml.safe_load_all(text)
    if manifest["kind"] != "JobSet":
        for version in VERSIONS:
            kubernetes.validate(manifest, version, strict=True)
        return
    jsonschema.Draft202012Validator(JOBSET).validate(manifest)
    for replicated in manifest["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}}
        for version in VERSIONS:
            kubernetes.validate(job | replicated["template"], version, strict=True)
        check_job(manifest, replicated)


def check_job(manifest: dict, replicated: dict) -> None:
    """What the schemas do not say: names that must agree, and numbers that must be equal."""
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    longest_name = (
        f"{manifest['metadata']['name']}-{replicated['name']}-{replicated['replicas'] - 1}-{job['completions']}"
    )
    assert len(longest_name) + len("-abcde") <= 63, "JobSet refuses longer names of pods"
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "emptyDir" not in volume}
    assert claims == {yaml.safe_load((K8S / "claim.yaml").read_text(encoding="utf-8"))["metadata"]["name"]}
    for rule in job["podFailurePolicy"]["rules"]:
        assert rule["action"] == "FailJob"
        assert rule.get("onExitCodes", {}).get("operator", "In") == "In"
        assert all(condition["type"] == "DisruptionTarget" for condition in rule.get("onPodConditions", []))
        assert rule.get("onExitCodes", {}).get("containerName", container["name"]) == container["name"]
        assert all(0 < code < 256 for code in rule.get("onExitCodes", {}).get("values", []))

    variables = {variable["name"]: variable for variable in container["env"]}
    run_dir = container["args"][container["args"].index("--run-dir") + 1]
    assert run_dir.startswith(container["volumeMounts"][0]["mountPath"])
    config = container["args"][container["args"].index("--config") + 1]
    assert (ROOT / config.removeprefix("/opt/r2rank/")).is_file(), config
    if "R2RANK_CLUSTER" in variables:
        assert variables["R2RANK_CLUSTER"]["value"] == "auto"
        selector = pod["nodeSelector"]
        assert selector["cloud.google.com/gke-tpu-accelerator"] in {
            "tpu-v4-podslice",
            "tpu-v5-lite-podslice",
            "tpu-v5p-slice",
            "tpu-v6e-slice",
            "tpu7x",
        }
        chips = math.prod(int(side) for side in selector["cloud.google.com/gke-tpu-topology"].split("x"))
        assert chips == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
        assert manifest["metadata"]["annotations"] == {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
        return
    assert int(variables["R2RANK_PROCESSES"]["value"]) == job["parallelism"] * replicated["replicas"]
    paths = {
        name: variable["valueFrom"]["fieldRef"]["fieldPath"]
        for name, variable in variables.items()
        if "valueFrom" in variable
    }
    assert paths == {
        "COORDINATOR_HOST": "metadata.annotations['jobset.sigs.k8s.io/coordinator']",
        "R2RANK_PROCESS": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    }
    assert re.fullmatch(r"\$\(COORDINATOR_HOST\):\d+", variables["R2RANK_COORDINATOR"]["value"])
    names = list(variables)
    assert names.index("COORDINATOR_HOST") < names.index("R2RANK_COORDINATOR"), "a variable refers to earlier ones only"
    assert manifest["spec"]["coordinator"] == {"replicatedJob": replicated["name"], "jobIndex": 0, "podIndex": 0}
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1


@pytest.mark.parametrize("name", ["claim.yaml", "gpu.yaml", "tpu.yaml"])
def test_manifests_are_valid(name):
    check((K8S / name).read_text(encoding="utf-8"))


def test_every_manifest_is_checked():
    assert sorted(path.name for path in K8S.glob("*.yaml")) == ["claim.yaml", "gpu.yaml", "tpu.yaml"]


# Each names a mistake that one of the checks above must find.
TYPOS = {
    "claim.yaml": [
        ("accessModes", "accessMode"),
        ("storage: 1Ti", "storage: [1Ti]"),
        ("apiVersion: v1", "apiVersion: v11"),
        ("kind: PersistentVolumeClaim", "kind: PersistantVolumeClaim"),
        ("metadata:\n  name", "metadata:\n  nmae"),
    ],
    "gpu.yaml": [
        ("jobset.x-k8s.io/v1alpha2", "jobset.x-k8s.io/v1alpha1"),
        (
            'onJobFailureMessagePatterns: [".*failed with exit code 2 ',
            'onJobFailureMessagePattern: [".*failed with exit code 2 ',
        ),
        ("action: RestartJobSetAndIgnoreMaxRestarts", "action: RestartJobsetAndIgnoreMaxRestarts"),
        ("[PodFailurePolicy]", "[PodFailurePolicies]"),
        ("restartStrategy: BlockingRecreate", "restartStrategy: Blocking"),
        ("maxRestarts: 5", "maxRestart: 5"),
        ("name: refused", "name: refused-run"),
        ("publishNotReadyAddresses", "publishNotReadyAddress"),
        ("replicatedJob: workers", "replicatedJob: worker"),
        ("containerName: r2rank, operator: In, values: [75]", "containerName: main, operator: In, values: [75]"),
        ("operator: In", "operator: Is"),
        ("backoffLimit: 0", "backoffLimits: 0"),
        ("parallelism: 2", "parallelism: 3"),
        ('value: "2"', "value: 2"),
        ('value: "2"', 'value: "4"'),
        ("job-completion-index", "job-index"),
        ("terminationGracePeriodSeconds: 180", "terminationGracePeriodSeconds: 30"),
        ("runAsNonRoot", "runAsNonroot"),
        ("nvidia.com/gpu: 8", "nvidia.com/gpus: 8"),
        ("claimName: r2rank", "claimName: r2rank-runs"),
        ("name: shm, mountPath", "name: shmem, mountPath"),
        ("configs/qwen2_5_3b_h200x8.py", "configs/qwen2_5_3b_h100x8.py"),
        ("name: r2rank-gpu", "name: r2rank-gpu-of-a-job-with-a-name-that-is-much-too-long-for-it"),
    ],
    "tpu.yaml": [
        ("kind: JobSet", "kind: Jobset"),
        ("exclusive-topology: cloud", "exclusive-topolgy: cloud"),
        ("gke-nodepool\n", "gke-node-pool\n"),
        ("gke-tpu-topology: 2x2x2", "gke-tpu-topology: 2x2x4"),
        ("tpu-v5p-slice", "tpu-v5p-podslice"),
        ("google.com/tpu: 4", "google.com/tpus: 4"),
        ("completions: 2", "completions: 4"),
        ("completionMode: Indexed", "completionMode: Index"),
        ("value: auto", "value: autos"),
        ("operator: In, values: [2]", "operator: In, values: [two]"),
        ("podFailurePolicy:\n", "podFailurePolicies:\n"),
        ("type: DisruptionTarget", "kind: DisruptionTarget"),
        ("type: DisruptionTarget", "type: DisruptionTargets"),
        ("- action: FailJob\n", "- action: FailJobs\n"),
        ("restartPolicy: Never", "restartPolicy: OnFailure"),
        ("configs/qwen2_5_3b_v5p16.py", "configs/qwen2_5_3b_v5p_16.py"),
        ("/shared/runs/qwen2_5_3b", "/runs/qwen2_5_3b"),
    ],
}


@pytest.mark.parametrize(
    ("name", "correct", "wrong"),
    [(name, *typo) for name, typos in TYPOS.items() for typo in typos],
    ids=lambda value: re.sub(r"\W+", "_", value)[:40],
)
def test_a_typo_is_found(name, correct, wrong):
    text = (K8S / name).read_text(encoding="utf-8")
    assert correct in text
    with pytest.raises((*INVALID, KeyError, kubernetes.SchemaNotFoundError)):
        check(text.replace(correct, wrong))


def job_failure(job: dict, exit_code: int, conditions: tuple[str, ...] = ()) -> tuple[str, str]:
    """Reason and message with which a Job fails when a pod of it ends, as in pod_failure_policy.go of Kubernetes."""
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        if "onExitCodes" in rule:
            if exit_code not in rule["onExitCodes"]["values"]:
                continue
            cause = f"Container r2rank for pod team/r2rank-0-xyz failed with exit code {exit_code}"
        else:
            matched = [c["type"] for c in rule["onPodConditions"] if c["type"] in conditions and c["status"] == "True"]
            if not matched:
                continue
            cause = f"Pod team/r2rank-0-xyz has condition {matched[0]}"
        assert rule["action"] == "FailJob"
        return "PodFailurePolicy", f"{cause} matching FailJob rule at index {index}"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"  # backoffLimit is 0


def action(manifest: dict, *pod: object) -> str:
    """What JobSet does when a pod ends: the first rule that matches reason and message, by default RestartJobSet."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    reason, message = job_failure(replicated["template"]["spec"], *pod)
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"] and any(
            re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"]
        ):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize("name", ["gpu.yaml", "tpu.yaml"])
@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        ((2,), "FailJobSet"),
        ((75,), "RestartJobSetAndIgnoreMaxRestarts"),
        ((75, ("DisruptionTarget",)), "RestartJobSetAndIgnoreMaxRestarts"),
        ((143, ("DisruptionTarget",)), "RestartJobSetAndIgnoreMaxRestarts"),  # before r2rank handles SIGTERM
        ((137, ("DisruptionTarget",)), "RestartJobSetAndIgnoreMaxRestarts"),  # killed after the grace period
        ((2, ("DisruptionTarget",)), "FailJobSet"),
        *(((code,), "RestartJobSet") for code in (1, 3, 7, 20, 22, 25, 72, 124, 127, 134, 137, 139, 143, 175, 255)),
    ],
    ids=str,
)
def test_exit_codes_lead_to_the_promised_action(name, pod, expected):
    manifest = yaml.safe_load((K8S / name).read_text(encoding="utf-8"))
    assert action(manifest, *pod) == expected
    assert 0 < manifest["spec"]["failurePolicy"]["maxRestarts"] <= 10
