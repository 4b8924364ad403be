import asyncio
import sys

from gateway.client import connect


async def main(url: str = "http://127.0.0.1:8080") -> None:
    async with connect(url) as client:
        session = await client.start("a red ball bouncing on a blue background", seed=1)
        async for chunk in session:
            frames = chunk.frames()  # RGB uint8 [height, width, 3] each
            print(f"chunk {chunk.seq} of prompt {chunk.rev}: {len(frames)} frames {frames[0].shape}")
            if chunk.seq == 1:
                await session.submit_prompt("a green star spinning on a black background")
            if chunk.rev == 1:
                break


asyncio.run(main(*sys.argv[1:]))
