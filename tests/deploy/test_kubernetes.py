"""The manifests are valid against Kubernetes' own schemas, restricted, and their steps work."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, load, load_all

pytestmark = pytest.mark.e2e

FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.31", "1.34", "1.37")


def _manifests() -> list[dict[str, Any]]:
    listed = load(FOLDER / "kustomization.yaml")["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in FOLDER.glob("*.yaml")}
    return [each for name in listed for each in load_all(FOLDER / name)]


def _pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for each in _manifests():
        if each["kind"] in ("Deployment", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version: str) -> None:
    import kubernetes_validate

    for each in _manifests():
        kubernetes_validate.validate(each, version, strict=True)


def test_a_manifest_that_is_wrong_is_found() -> None:
    import kubernetes_validate

    (worker,) = [each for each in _manifests() if each["kind"] == "Deployment"]
    worker["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(worker, VERSIONS[-1], strict=True)


def test_the_namespace_takes_restricted_pods_only() -> None:
    (namespace,) = [each for each in _manifests() if each["kind"] == "Namespace"]
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for each in _manifests():
        name = namespace["metadata"]["name"]
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == name


@pytest.mark.parametrize("name", ["apex-creds-worker", "apex-creds-init"])
def test_pods_keep_the_restricted_standard_and_more(name: str) -> None:
    pod = dict(_pods())[name]
    spec, context = pod["spec"], pod["spec"]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 10001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"secret", "emptyDir", "persistentVolumeClaim"}
    for container in _containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_secrets_come_as_files_and_only_to_who_copies_them() -> None:
    for name, pod in _pods():
        (volume,) = [each for each in pod["spec"]["volumes"] if "secret" in each]
        for container in _containers(pod):
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert (volume["name"] in mounted) is (container["name"] == "keys"), name
            assert not any("valueFrom" in each for each in container.get("env", ()))
            assert "envFrom" not in container
    assert not any(each["kind"] == "Secret" for each in _manifests())


def test_nothing_comes_in_and_only_what_is_named_goes_out() -> None:
    policies = {e["metadata"]["name"]: e for e in _manifests() if e["kind"] == "NetworkPolicy"}
    nothing = policies["nothing"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    own = policies["apex-creds"]["spec"]
    assert own["ingress"] == []
    ports = {port["port"] for rule in own["egress"] for port in rule["ports"]}
    assert ports == {53, 5432, 4318}
    assert all(peer["podSelector"] for rule in own["egress"] for peer in rule["to"])
    wanted = own["podSelector"]["matchLabels"].items()
    for _, pod in _pods():
        assert wanted <= pod["metadata"]["labels"].items()


def test_the_disruption_of_two_workers_at_once_can_not_be() -> None:
    (worker,) = [each for each in _manifests() if each["kind"] == "Deployment"]
    assert worker["spec"]["replicas"] == 1
    assert worker["spec"]["strategy"] == {"type": "Recreate"}
    labels = worker["spec"]["template"]["metadata"]["labels"]
    assert worker["spec"]["selector"]["matchLabels"] == labels


# -- the steps, with directories as Kubernetes makes them --------------------------------


def _pod_at(where: Path) -> dict[str, str]:
    """The volumes as a kubelet mounts them for fsGroup: group-writable, secrets as links."""
    for name in ("run", "lib", "state"):
        (where / name).mkdir()
        (where / name).chmod(0o2775)
    version = where / "secrets" / "..2026_11_24"
    version.mkdir(parents=True)
    (where / "secrets" / "..data").symlink_to(version.name)
    key = version / "master.key"
    key.write_bytes(base64.b64encode(os.urandom(32)))
    key.chmod(0o440)
    (where / "secrets" / "master.key").symlink_to("..data/master.key")
    return {
        "/run/apex-creds": str(where / "run"),
        "/secrets": str(where / "secrets"),
        "/var/lib/apex-creds-state": str(where / "state"),
        "/var/lib/apex-creds": str(where / "lib"),
    }


def _run(container: dict[str, Any], places: dict[str, str], bin_folder: Path) -> str:
    def here(word: str) -> str:
        for old, new in places.items():
            word = word.replace(old, new)
        return word

    env = {each["name"]: here(each["value"]) for each in container.get("env", ())}
    env["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
    words = [here(word) for word in (*container.get("command", ()), *container.get("args", ()))]
    words = _without_storage(words)
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _without_storage(words: list[str]) -> list[str]:
    if "--storage" not in words:
        return words
    at = words.index("--storage")
    return words[:at] + words[at + 2 :]


def test_the_key_is_copied_and_the_vault_is_made_once(tmp_path: Path) -> None:
    """All but the database, which is the same as in docker-compose.yml's steps."""
    places = _pod_at(tmp_path)
    keys, init = _containers(dict(_pods())["apex-creds-init"])
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "apex-creds"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m apex_creds.cli "$@"\n')
    program.chmod(0o755)
    _run(keys, places, programs)
    copied = tmp_path / "run" / "keys" / "master.key"
    assert not copied.is_symlink()
    assert copied.stat().st_mode & 0o777 == 0o400
    assert "Made vault" in _run(init, places, programs)
    assert _run(init, places, programs) == ""
    assert list((tmp_path / "state").rglob("*")) or list((tmp_path / "run").rglob("*.anchor"))
