"""`turboserve provisioner`: keeps a cluster's engines as Kubernetes pods, in the foreground."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.aio import client
from kubernetes.aio import config as access

from launch.config import ProvisionerConfig
from launch.kubernetes_pods import Pods
from launch.pods import check_template, make_pod
from launch.provisioner import Provisioner
from launch.settings import SettingsError
from launch.store import connect
from scheduler.logs import configure_logging
from scheduler.messages import DesiredEngine, EngineId
from scheduler.store import Store

__all__ = ["load_template", "run"]

_OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


async def run(config: ProvisionerConfig) -> int:
    """Until SIGTERM or SIGINT, which leaves the pods as they are: the next provisioner finds them.

    Raises:
        SettingsError: the template or the way to the API can't be used.
        StartError: no Redis can be used.
    """
    configure_logging(config.log_format)
    template = load_template(Path(config.pod_template))
    reach = await _reach(config)
    store = await connect(config.redis, cluster=config.cluster)
    try:
        async with client.ApiClient(reach) as api:
            await _serve(store, client.CoreV1Api(api), template, config)
    finally:
        await store.close()
    return 0


async def _serve(
    store: Store, api: client.CoreV1Api, template: dict[str, Any], config: ProvisionerConfig
) -> None:
    def on_exit(engine: EngineId, reason: str) -> None:
        # A crash was reported by `turboserve engine` in the pod before; what only Kubernetes sees is none.
        provisioner.report_exit(engine, reason, crashed=False)

    namespace = config.namespace or _own_namespace()
    pods = Pods(api, template, namespace=namespace, cluster=config.cluster, on_exit=on_exit)
    provisioner = Provisioner(store, pods, name=f"pods in {namespace}", newer_than=0)

    async def follow() -> None:
        await pods.listed.wait()  # else what an earlier provisioner made would look like somebody else's
        await provisioner.follow()

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    print(f"engines of cluster {config.cluster} are pods in namespace {namespace}", flush=True)
    work = {asyncio.create_task(pods.run()), asyncio.create_task(follow())}
    end = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({*work, end}, return_when=asyncio.FIRST_COMPLETED)
    for task in (*work, end):
        task.cancel()
    await asyncio.gather(*work, end, return_exceptions=True)
    for task in done - {end}:  # neither ever returns: this one raised
        task.result()


def load_template(path: Path) -> dict[str, Any]:
    """The pod that each engine gets a copy of. Raises SettingsError."""
    try:
        template = check_template(yaml.safe_load(path.read_text(encoding="utf-8")))
        sample = DesiredEngine(id=EngineId("e_00000000"), model="shapes")
        pod = make_pod(template, sample, cluster="main")
        lost = next(_unknown_fields(pod, client.V1Pod.from_dict(pod).model_dump(by_alias=True)), None)
        if lost is not None:
            raise ValueError(f"a Pod has no field {lost}")
    except OSError as exc:
        raise SettingsError(f"pod_template: cannot read {path}: {exc.strerror}") from exc
    except (ValueError, yaml.YAMLError) as exc:
        raise SettingsError(f"pod_template {path}: {exc}") from exc
    except (AttributeError, KeyError, TypeError) as exc:  # a list where a mapping should be, and the like
        raise SettingsError(f"pod_template {path}: it is not shaped like a Pod: {exc!r}") from exc
    return template


def _unknown_fields(given: object, kept: object, path: str = "") -> Iterator[str]:
    """Paths of what the library's model of a Pod did not take over: it drops them silently."""
    if isinstance(given, dict):
        for key, value in given.items():
            if value is not None and not (isinstance(kept, dict) and key in kept):
                yield f"{path}{key}"
            elif isinstance(kept, dict):
                yield from _unknown_fields(value, kept.get(key), f"{path}{key}.")
    elif isinstance(given, list) and isinstance(kept, list):
        for one, other in zip(given, kept, strict=True):
            yield from _unknown_fields(one, other, path)


async def _reach(config: ProvisionerConfig) -> client.Configuration:
    reach = client.Configuration()
    try:
        if config.kubeconfig is None:
            access.load_incluster_config(client_configuration=reach)
        else:
            await access.load_kube_config(config.kubeconfig, client_configuration=reach, persist_config=False)
    except (access.ConfigException, OSError, ValueError, yaml.YAMLError) as exc:
        raise SettingsError(f"kubeconfig: the way to the Kubernetes API is not known: {exc}") from exc
    except (AttributeError, KeyError, TypeError) as exc:  # a list where a mapping should be, and the like
        raise SettingsError(f"kubeconfig {config.kubeconfig}: it is not shaped like one: {exc!r}") from exc
    return reach


def _own_namespace() -> str:
    return _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.exists() else "default"
