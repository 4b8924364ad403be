"""The engines of a cluster as Kubernetes pods: exactly those that the scheduler wants.

One task lists and watches, one creates and deletes. Neither gives up: while the API can't be reached, pods
stay as they are, and what is to be done is computed anew from what is wanted and what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn

import aiohttp
from kubernetes.aio import client, watch
from kubernetes.aio.client.exceptions import ApiException, OpenApiException

from launch.backoff import Backoff
from launch.pods import Pod, make_pod, plan_pods, read_pod, selector_of
from launch.quarantine import Quarantine, is_orderly, is_young
from scheduler.messages import DesiredEngine, EngineId

__all__ = ["Pods"]

log = logging.getLogger("launch.kubernetes")

_REQUEST_TIMEOUT_S: Final = 15.0
_WATCH_S: Final = 60
"""The server ends a watch after so long, and we begin another: a dead one isn't believed for longer."""
_SHORT_WATCH_S: Final = 1.0
"""One that ends sooner, and told nothing, failed."""
_GONE: Final = 410
_EXISTS: Final = 409
_NOT_FOUND: Final = 404


class _ApiTrouble(Exception):
    """A request failed. `str()` says how."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Pods:
    """What the provisioner steers. `run` it; `listed` is set when the pods of an earlier run are known."""

    def __init__(
        self,
        api: client.CoreV1Api,
        template: Mapping[str, Any],
        *,
        namespace: str,
        cluster: str,
        on_exit: Callable[[EngineId, str], None],
    ) -> None:
        """`on_exit(id, reason)` is called once when the pod of a wanted engine ended or vanished."""
        self._api = api
        self._template = template
        self._namespace = namespace
        self._cluster = cluster
        self._on_exit = on_exit
        self._selector = selector_of(cluster)
        self._pods: dict[EngineId, Pod] = {}
        self._wanted: dict[EngineId, DesiredEngine] | None = None
        """None: nobody has said yet."""
        self._ended: set[EngineId] = set()
        self._dead: set[EngineId] = set()
        """Those whose end has been held against their node, or would have been had they been young."""
        self._ready_s: dict[EngineId, float] = {}
        self._quarantine = Quarantine()
        self._wake = asyncio.Event()
        self.listed: Final = asyncio.Event()

    # --- the provisioner's side

    def reconcile(self, desired: Sequence[DesiredEngine]) -> None:
        """From now on these are wanted, and no others."""
        self._wanted = {engine.id: engine for engine in desired}
        self._ended &= self._wanted.keys()
        self._dead &= self._wanted.keys() | self._pods.keys()
        self._wake.set()

    def owned(self) -> Collection[EngineId]:
        """Engines that have a pod here."""
        return self._pods.keys()

    async def mark_ready(self, engine: EngineId) -> None:
        """The engine has registered and takes sessions."""
        if engine in self._pods:
            self._ready_s.setdefault(engine, asyncio.get_running_loop().time())

    def mark_lost(self, engine: EngineId) -> None:
        """The engine is gone: `turboserve engine` in its pod says so before the pod ends, and of one that
        does not get ready the leader does. Its pod is still here."""
        if (pod := self._pods.get(engine)) is not None:
            self._note_death(pod)

    async def run(self) -> NoReturn:
        """Follow the API and act, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="watch pods")
            group.create_task(self._act(), name="create and delete pods")
        raise AssertionError("both go on for ever")

    # --- what is there

    async def _follow(self) -> NoReturn:
        version, streak = "", _Streak("list and watch pods")
        while True:
            try:
                if not version:
                    version = await self._list()
                version = await self._watch(version)
                streak.forget()
            except _ApiTrouble as exc:
                if exc.status == _GONE:
                    log.info("fell behind the changes of pods: listing them again")
                    version = ""
                else:
                    version = "" if exc.status is not None else version
                    await asyncio.sleep(streak.note(exc))

    async def _list(self) -> str:
        """All pods anew. Returns the version to watch from."""
        known = set(self._pods)  # one that is made while we list is not missing
        async with _api_errors():
            found = await self._api.list_namespaced_pod(
                self._namespace, label_selector=self._selector, _request_timeout=_REQUEST_TIMEOUT_S
            )
        documents = [self._api.api_client.sanitize_for_serialization(item) for item in found.items]
        present = {pod.engine: pod for pod in map(read_pod, documents) if pod is not None}
        for engine in known - present.keys():
            if engine in self._pods:
                self._forget(self._pods[engine])
        self._pods |= present
        self.listed.set()
        self._wake.set()
        return str(found.metadata.resource_version)

    async def _watch(self, version: str) -> str:
        """Take in changes until the server ends the watch. Returns the version to go on from."""
        loop = asyncio.get_running_loop()
        begun_s, was_empty = loop.time(), True
        async with _api_errors(), contextlib.aclosing(self._events(version)) as events:
            async for event in events:
                if not isinstance(event, dict):
                    raise _ApiTrouble(f"the watch says {str(event)[:100]!r}")
                document = event["raw_object"]
                version, was_empty = document["metadata"]["resourceVersion"], False
                pod = None if event["type"] == "BOOKMARK" else read_pod(document)
                if pod is not None:
                    self._take_in(pod, is_gone=event["type"] == "DELETED")
        if was_empty and loop.time() - begun_s < _SHORT_WATCH_S:
            raise _ApiTrouble("a watch ended at once")
        return version

    async def _events(self, version: str) -> AsyncGenerator[Any, None]:
        stream: Any = watch.Watch()
        try:
            async for event in stream.stream(
                self._api.list_namespaced_pod,
                self._namespace,
                label_selector=self._selector,
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=_WATCH_S,
                _request_timeout=_WATCH_S + _REQUEST_TIMEOUT_S,
            ):
                yield event
        finally:
            await stream.close()

    def _take_in(self, pod: Pod, *, is_gone: bool) -> None:
        if is_gone:
            self._forget(self._pods.get(pod.engine, pod))
        else:
            self._pods[pod.engine] = pod
        self._wake.set()

    def _forget(self, pod: Pod) -> None:
        """The pod is no more. If its engine is wanted, that is news."""
        self._pods.pop(pod.engine, None)
        if self._wanted is not None and pod.engine in self._wanted and pod.engine not in self._ended:
            self._report(pod, pod.end or f"pod {pod.name} was deleted")
        self._ready_s.pop(pod.engine, None)

    def _report(self, pod: Pod, why: str) -> None:
        self._ended.add(pod.engine)
        if not is_orderly(why):
            self._note_death(pod)
        log.warning("engine %s ended: %s", pod.engine, why)
        self._on_exit(pod.engine, why)

    def _note_death(self, pod: Pod) -> None:
        """Once of each engine, whoever tells first."""
        if pod.engine in self._dead:
            return
        self._dead.add(pod.engine)
        now_s = asyncio.get_running_loop().time()
        died_young = is_young(self._ready_s.get(pod.engine), now_s)
        if pod.node and died_young and self._quarantine.note_death(pod.node, now_s):
            log.warning("engines keep dying young on node %s: avoiding it for a while", pod.node)

    # --- what should be there

    async def _act(self) -> NoReturn:
        streak = _Streak("create and delete pods")
        await self.listed.wait()
        while True:
            await self._wake.wait()
            self._wake.clear()
            trouble = await self._apply() if self._wanted is not None else None
            if trouble is None:
                streak.forget()
            else:
                await asyncio.sleep(streak.note(trouble))
                self._wake.set()

    async def _apply(self) -> _ApiTrouble | None:
        """Everything that can be done now. Returns the last trouble, if any."""
        assert self._wanted is not None
        plan = plan_pods(self._wanted.values(), self._pods, self._ended)
        for pod in plan.ended:
            self._report(pod, pod.end)
        trouble: _ApiTrouble | None = None
        for engine in plan.create:
            if engine.id in self._wanted:  # it may have changed while we waited
                trouble = await self._create(engine) or trouble
        for pod in plan.delete:
            trouble = await self._delete(pod) or trouble
        return trouble

    async def _create(self, engine: DesiredEngine) -> _ApiTrouble | None:
        avoid = self._quarantine.avoided(asyncio.get_running_loop().time())
        body = client.V1Pod.from_dict(make_pod(self._template, engine, cluster=self._cluster, avoid=avoid))
        assert body is not None, "the template was checked"
        try:
            async with _api_errors():
                made = await self._api.create_namespaced_pod(
                    self._namespace, body, _request_timeout=_REQUEST_TIMEOUT_S
                )
        except _ApiTrouble as exc:
            # An answer of ours was lost, or another provisioner was quicker: the watch shows the pod.
            return exc if exc.status != _EXISTS or engine.id not in self._pods else None
        pod = read_pod(self._api.api_client.sanitize_for_serialization(made))
        assert pod is not None, "it was made with the label"
        self._pods.setdefault(engine.id, pod)  # the watch may have been quicker
        log.info("engine %s gets the pod %s", engine.id, pod.name)
        return None

    async def _delete(self, pod: Pod) -> _ApiTrouble | None:
        try:
            async with _api_errors():
                await self._api.delete_namespaced_pod(
                    pod.name, self._namespace, _request_timeout=_REQUEST_TIMEOUT_S
                )
        except _ApiTrouble as exc:
            if exc.status != _NOT_FOUND:
                return exc
            self._pods.pop(pod.engine, None)
            self._ready_s.pop(pod.engine, None)
            return None
        if self._pods.get(pod.engine) is pod:  # else the watch was quicker
            self._pods[pod.engine] = replace(pod, is_going=True)
        log.info("engine %s: its pod %s ends", pod.engine, pod.name)
        return None


class _Streak:
    """Failures in a row of one kind of work: logged once, answered with growing pauses."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._backoff = Backoff()

    def note(self, trouble: _ApiTrouble) -> float:
        """Seconds to wait."""
        if self._backoff.failures == 0:
            log.warning("can't %s: %s; trying again, pods stay as they are", self._work, trouble)
        self._backoff = self._backoff.record(healthy=False)
        return self._backoff.delay_s

    def forget(self) -> None:
        """It works again."""
        if self._backoff.failures:
            log.info("can %s again", self._work)
        self._backoff = Backoff()


@contextlib.asynccontextmanager
async def _api_errors() -> AsyncIterator[None]:
    """The library's errors, and those of the libraries below it, as one."""
    try:
        yield
    except ApiException as exc:
        raise _ApiTrouble(f"the API answers {exc.status} {exc.reason}: {_message(exc)}", exc.status) from exc
    except (OpenApiException, aiohttp.ClientError, OSError, ValueError) as exc:
        # TimeoutError is an OSError; a body that is cut off in the middle is a ValueError.
        raise _ApiTrouble(f"the API can't be reached: {str(exc) or type(exc).__name__}") from exc


def _message(exc: ApiException) -> str:
    return " ".join(str(exc.body or "no message").split())[:300]
