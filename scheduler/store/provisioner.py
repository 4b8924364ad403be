"""What a provisioner writes: facts about its processes. It is not the leader."""

from __future__ import annotations

from scheduler.messages import EngineId
from scheduler.store.connection import mapped_errors
from scheduler.store.reader import StoreReader


class ProvisionerStore(StoreReader):
    """Used by `launch/`. Every method raises StoreUnavailable."""

    async def report_exit(self, engine: EngineId, reason: str, *, crashed: bool) -> None:
        """The process of this engine is gone and never returns under this id, whatever state it was in.

        crashed: it ended by its own fault, and was not killed: a session that engine after engine crashes
        with is closed.

        Its sessions wait again at once and the leader wants a replacement. Unknown or gone: no effect.
        """
        await self._redis.run("remove_engine", self._key("engine", engine), engine, reason, int(crashed))

    async def mark_new(self) -> None:
        """This Redis has just been made, for a cluster without engines: nobody has anything to tell it."""
        async with mapped_errors():
            await self._redis.client.set(self._key("settled"), 0)

    async def raise_term(self, floor: int) -> None:
        """A leader of term `floor` was obeyed, and Redis knows older ones only: it lost data.

        Who leads below must acquire a new lease, and the set that it wrote is forgotten.
        """
        await self._redis.run("raise_term", self._key("term"), floor)

    async def claim_engine(self, claimer: str, engine: EngineId | None = None) -> EngineId | None:
        """Take a desired engine that nobody starts yet, this one or any; its start time limit runs from here.

        claimer: the provisioner's name, which no other that runs has; who takes the same again gets it. None:
        the engine is somebody else's, or not wanted; of any, the cluster wants no more engines. A claim ends
        with the engine: after the start time limit a new id replaces it.
        """
        claimed: str = await self._redis.run("claim_engine", self._key("desired"), claimer, engine or "")
        return EngineId(claimed) if claimed else None
