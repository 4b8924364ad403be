"""Manifests and Dockerfile, as far as they can be checked without a cluster and without Docker.

Documents are held against the schemas of Kubernetes that the package `kubernetes-validate` ships. No image is
built here.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launch.cli import COMMANDS, parse
from launch.pods import make_pod
from launch.provision_cmd import load_template
from launch.settings import SettingsError, catalogue, environment_values
from scheduler.config import SchedulerConfig
from scheduler.messages import DesiredEngine, EngineId

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "launch" / "kubernetes"
DOCKERFILE = ROOT / "launch" / "docker" / "Dockerfile"
TEMPLATES = ("engine-cpu.yaml", "engine-cuda.yaml")
Document = dict[str, Any]
SECRET = {
    "turboserve": {"TURBOSERVE_REDIS": "redis://h", "TURBOSERVE_LINK_SECRET": "s", "REDIS_PASSWORD": "p"}
}
"""What docs/deploy.md has people make."""


@cache
def kustomization() -> Document:
    content: Document = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    return content


def documents() -> list[Document]:
    """Everything that `kubectl apply -k` sends, as it is in the files."""
    texts = [(MANIFESTS / name).read_text() for name in kustomization()["resources"]]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def by_kind(kind: str) -> list[Document]:
    return [document for document in documents() if document["kind"] == kind]


def pod_specs() -> dict[str, Document]:
    """Name → spec of each kind of pod, engines included."""
    owners = by_kind("Deployment") + by_kind("StatefulSet")
    specs = {owner["metadata"]["name"]: owner["spec"]["template"]["spec"] for owner in owners}
    return specs | {name: load_template(MANIFESTS / name)["spec"] for name in TEMPLATES}


def containers() -> list[tuple[str, Document]]:
    return [(name, container) for name, spec in pod_specs().items() for container in spec["containers"]]


VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest that docs/deploy.md names, and the newest that is published as a schema here."""
OURS = [(name, c) for name, c in containers() if c["image"].startswith("turboserve/")]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_fits_the_schemas(version: str) -> None:
    """Strictly: an unknown field is an error."""
    assert len(documents()) == 11
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_check_would_notice() -> None:
    """A misspelt field."""
    deployment = by_kind("Deployment")[0]
    deployment["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_engine_pods_fit_the_schemas(name: str, version: str) -> None:
    """As the provisioner makes them."""
    engine = DesiredEngine(id=EngineId("e_0000000a"), model="shapes")
    pod = make_pod(load_template(MANIFESTS / name), engine, cluster="main", avoid=["n"])
    kubernetes_validate.validate(pod, version, strict=True)


def test_parts_find_each_other() -> None:
    """Selectors match labels, services hit ports that exist, and every name that is used is there."""
    owners = by_kind("Deployment") + by_kind("StatefulSet")
    for owner in owners:
        labels = owner["spec"]["template"]["metadata"]["labels"]
        assert owner["spec"]["selector"]["matchLabels"] == labels
    for service in by_kind("Service"):
        (owner,) = (
            owner
            for owner in owners
            if owner["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
        )
        ports = [port["name"] for c in owner["spec"]["template"]["spec"]["containers"] for port in c["ports"]]
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ports
    accounts = {account["metadata"]["name"] for account in by_kind("ServiceAccount")}
    assert {
        spec["serviceAccountName"] for spec in pod_specs().values() if "serviceAccountName" in spec
    } == accounts
    (binding,), (role,) = by_kind("RoleBinding"), by_kind("Role")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {subject["name"] for subject in binding["subjects"]} == accounts


def test_a_rollout_waits_for_what_it_replaces() -> None:
    """`kubectl rollout status` (docs/deploy.md) returns when parts can be used: they were asked, or where
    they can't be, have run for longer than a lease lasts."""
    lease_s = SchedulerConfig(redis="redis://h").lease_ttl_ms / 1000
    specs = {owner["metadata"]["name"]: owner["spec"] for owner in by_kind("Deployment")}
    (gateway,) = specs["turboserve-gateway"]["template"]["spec"]["containers"]
    assert "readinessProbe" in gateway
    assert specs["turboserve-scheduler"]["minReadySeconds"] > lease_s


def test_the_template_is_where_the_provisioner_looks() -> None:
    """Generated from a file that exists, mounted where the argument points."""
    (generated,) = kustomization()["configMapGenerator"]
    key, _, source = generated["files"][0].partition("=")
    assert source in TEMPLATES
    spec = pod_specs()["turboserve-provisioner"]
    (container,) = spec["containers"]
    assert container["args"][-1] == f"{container['volumeMounts'][0]['mountPath']}/{key}"
    assert spec["volumes"][0]["configMap"]["name"] == generated["name"]


def test_the_provisioner_may_do_what_it_does_and_no_more() -> None:
    """Pods only."""
    (role,) = by_kind("Role")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "create", "delete"]}
    ]
    source = (ROOT / "launch" / "kubernetes_pods.py").read_text()
    used = set(re.findall(r"self\._api\.(\w+)_namespaced_pod", source))
    assert used == {"list", "create", "delete"}


def test_pods_can_do_little() -> None:
    """No root, no token but the provisioner's, writes to volumes only, no variables of other services."""
    for name, spec in pod_specs().items():
        # Links would be variables like TURBOSERVE_GATEWAY_PORT: no settings, so every role would refuse.
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec.get("automountServiceAccountToken", True) == (name == "turboserve-provisioner")
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize(("name", "container"), OURS, ids=[name for name, _ in OURS])
def test_commands_and_settings_are_ours(name: str, container: Document) -> None:
    """Arguments parse as our command line does it, and each variable is a setting that takes its value."""
    environment: dict[str, str] = {}
    for source in container["envFrom"]:
        (kind, reference) = next(iter(source.items()))
        maps = {m["metadata"]["name"]: m["data"] for m in by_kind("ConfigMap")}
        environment |= (maps if kind == "configMapRef" else SECRET)[reference["name"]]
    environment |= {item["name"]: "127.0.0.1" for item in container.get("env", ())}
    known = catalogue(*dict.fromkeys(config for command in COMMANDS.values() for config in command.configs))
    values = environment_values(known, environment)
    arguments = container["args"]
    parse(arguments)
    configs = [config for config in COMMANDS[arguments[0]].configs if config.__name__ == "SchedulerConfig"]
    for config in configs:
        config(**{n: v.value for n, v in values.items() if n in config.__dataclass_fields__})


def test_the_check_of_commands_would_notice() -> None:
    """A wrong flag and a wrong variable."""
    with pytest.raises(SystemExit):
        parse(["gateway", "--ports", "1"])
    with pytest.raises(SettingsError):
        environment_values(catalogue(), {"TURBOSERVE_GATEWAY_PORT": "tcp://10.0.0.1:80"})


def test_images_have_a_tag_and_a_dockerfile() -> None:
    """Each is a target of the Dockerfile; its tag is in the kustomization, or in the template."""
    tags = {image["name"]: image["newTag"] for image in kustomization()["images"]}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    targets = {name for name, _, _ in stages()}
    for _, container in OURS:
        image, _, tag = container["image"].partition(":")
        assert (tag or tags[image]) == version
        assert image.partition("/")[2] in targets


# --- Dockerfile


def instructions() -> list[tuple[str, list[str]]]:
    """(word, arguments) of each, without flags of COPY."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split()[1:]) for line in lines]


def stages() -> Iterator[tuple[str, str, list[tuple[str, list[str]]]]]:
    """(name, base, instructions) of each."""
    found: list[tuple[str, str, list[tuple[str, list[str]]]]] = []
    for word, arguments in instructions():
        if word == "FROM":
            found.append((arguments[2], arguments[0], []))
        else:
            found[-1][2].append((word, arguments))
    yield from found


def test_stages_and_files_exist() -> None:
    """What is copied from this repository is there and not ignored; other copies come from earlier stages."""
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text()
    allowed = {line[1:] for line in ignore.splitlines() if line.startswith("!")}
    earlier: set[str] = set()
    for name, base, content in stages():
        assert base in earlier or base.startswith("python:3.11-")
        for word, arguments in content:
            if word == "COPY" and arguments[0].startswith("--from="):
                assert arguments[0].removeprefix("--from=") in earlier
            elif word == "COPY":
                for source in arguments[:-1]:
                    assert (ROOT / source).exists()
                    assert source in allowed
        earlier.add(name)


def test_images_run_our_command_without_rights_and_secrets() -> None:
    """The last word on the user is a number that is not root's; the default command parses."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    shared = next(content for name, _, content in stages() if name == "run")
    bases = [content for name, _, content in stages() if name in ("run", "run-cuda")]
    for content in bases:
        assert [arguments for word, arguments in content if word == "USER"][-1] == ["10001:10001"]
    assert ast.literal_eval(next(" ".join(a) for word, a in shared if word == "ENTRYPOINT"))[0] in scripts
    finals = [content for name, base, content in stages() if base.startswith("run") and name != "run-cuda"]
    assert len(finals) == 4
    for content in finals:
        assert not any(word == "USER" for word, _ in content)
        parse(ast.literal_eval(next(" ".join(a) for word, a in content if word == "CMD")))
    assert not re.search(r"(?im)^(ENV|ARG) .*(secret|token|passw)", DOCKERFILE.read_text())


def test_installs_are_held_to_the_constraints() -> None:
    """Every download of dependencies names the file."""
    for _, _, content in stages():
        for word, arguments in content:
            if word == "RUN" and "install" in arguments and arguments[0] != "apt-get":
                assert "constraints.txt" in arguments or "--no-deps" in arguments, shlex.join(arguments)


def test_the_image_for_gpus_has_what_triton_needs() -> None:
    """A C compiler, or its kernels are left out in silence."""
    bases = {name: (base, content) for name, base, content in stages()}
    base, _ = bases["engine-cuda"]
    runs = [arguments for word, arguments in bases[base][1] if word == "RUN"]
    assert any({"gcc", "libc6-dev"} <= set(arguments) for arguments in runs)


def test_torchs_index_stands_beside_the_usual_one() -> None:
    """Of all else it has few versions, and hardly those that the constraints name."""
    installs = [a for _, _, content in stages() for word, a in content if word == "RUN" and "torch" in a]
    assert len(installs) == 2
    assert all("--extra-index-url" in arguments for arguments in installs)
    assert "--index-url" not in shlex.split(DOCKERFILE.read_text(), comments=True)


@pytest.mark.parametrize(
    ("image", "folders", "modules"),
    [
        ("gateway", ("gateway", "scheduler"), ("gateway.__main__", "launch.commands")),
        ("scheduler", ("scheduler",), ("scheduler.__main__", "launch.provision_cmd")),
    ],
)
def test_small_images_have_what_they_import(
    image: str, folders: tuple[str, ...], modules: tuple[str, ...]
) -> None:
    """Also what functions import, and what the command line loads on the way to the role."""
    content = next(content for name, _, content in stages() if name == f"build-{image}")
    line = next(a for word, a in content if word == "RUN" and "--no-deps" not in a)
    listed = line[line.index("constraints.txt") + 1 :]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    roots = {root for path in files for root in import_roots(ast.walk(ast.parse(path.read_text())))}
    for path in loaded_with("launch.cli", *modules):
        roots.update(import_roots(ast.parse(path.read_text()).body))
    roots -= {"opentelemetry"}  # an extra, imported where trace_share asks for it
    owners = metadata.packages_distributions()
    needed = {canonicalize_name(owner) for root in roots for owner in owners.get(root, ())}
    assert needed - {"turboserve"} <= installed_with(listed)


def loaded_with(*modules: str) -> set[Path]:
    """Files of ours that are loaded where these modules are."""
    show = "for module in list(sys.modules.values()): print(getattr(module, '__file__', None))"
    code = f"import sys, {', '.join(modules)}\n{show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    packages = [f"{ROOT / name}/" for name in ("scheduler", "gateway", "engine", "launch", "web_demo")]
    return {Path(name) for name in done.stdout.splitlines() if name.startswith(tuple(packages))}


def installed_with(names: Iterable[str]) -> set[str]:
    """The distributions that pip installs when it is asked for these, extras aside."""
    found, left = set[str](), [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            requirements = map(Requirement, metadata.requires(name) or ())
            left += [
                canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate()
            ]
    return found


def import_roots(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]
