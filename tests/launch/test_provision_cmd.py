"""`turboserve provisioner`, as a process: its template, its way to the API, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

from launch import cli
from launch.provision_cmd import load_template
from launch.settings import SettingsError
from scheduler.store import Store
from tests.launch.kubernetes_api import NAMESPACE, running_api
from tests.launch.test_pods import TEMPLATE, A, B
from tests.launch.test_provisioner import lead


async def test_it_makes_pods_and_leaves_them(redis_url: str, tmp_path: Path) -> None:
    """Reached through a kubeconfig; SIGTERM ends it in order, the engines go on."""
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(TEMPLATE))
    store = await Store.connect(redis_url, cluster="provisioned")
    await store.write_desired(await lead(store), [A, B])
    async with running_api() as api:
        context = {"cluster": "c", "user": "u"}
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "contexts": [{"name": "x", "context": context}],
            "clusters": [{"name": "c", "cluster": {"server": api.url}}],
            "users": [{"name": "u", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        command = [
            sys.executable,
            "-m",
            "launch",
            "provisioner",
            "--pod-template",
            str(tmp_path / "pod.yaml"),
        ]
        flags = ["--kubeconfig", str(tmp_path / "kubeconfig"), "--namespace", NAMESPACE]
        settings = {"TURBOSERVE_REDIS": redis_url, "TURBOSERVE_CLUSTER": "provisioned"}
        process = await asyncio.create_subprocess_exec(*command, *flags, env=os.environ | settings)
        await api.until(lambda: len(api.pods) == 2)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert len(api.pods) == 2
    await store.close()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not shaped like one"),
        (b"[1]", "not shaped like one"),
        (b"{", "while parsing"),
        (b"\xff\xfe", "can't decode"),
        (b"apiVersion: v1", "Expected key current-context"),
        (None, "is not known"),
    ],
)
def test_bad_ways_to_the_api_are_sentences(
    tmp_path: Path, text: bytes | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, as for any setting; Redis is not even asked."""
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(TEMPLATE))
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_bytes(text)
    flags = ["--pod-template", str(tmp_path / "pod.yaml"), "--kubeconfig", str(path)]
    assert cli.main(["provisioner", "--redis", "unix:///none", *flags]) == 2
    said = capsys.readouterr().err
    assert "turboserve provisioner: kubeconfig" in said and says in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "while parsing"),
        ("kind: Service", "kind Pod"),
        (None, "cannot read"),
        ("{kind: Pod, spec: {containers: [{name: engine, imag: x}]}}", "no field spec.containers.imag"),
        ("{kind: Pod, spec: {containers: [{name: engine, image: [x]}]}}", "image"),
        ("{kind: Pod, spec: {containers: [engine]}}", "not shaped like a Pod"),
        ("{kind: Pod, spec: {containers: [{name: engine, env: [{value: x}]}]}}", "not shaped like a Pod"),
    ],
)
def test_bad_templates_are_sentences(tmp_path: Path, text: str | None, says: str) -> None:
    """Before anything is started."""
    path = tmp_path / "pod.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=says):
        load_template(path)
