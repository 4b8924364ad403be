"""Draw the contact sheet of docs/shapes.md: streamed videos of `shapes`, a prompt and an edit in each row.

Streams from the shipped weights, lays the frames out as a page and takes its picture with Chromium (as the
tests do): .venv/bin/python -m bench.contact_sheet [--out docs/shapes.png]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import html
import tempfile
from pathlib import Path

import torch
from playwright.async_api import async_playwright
from torch import Tensor

from engine.models.registry import load_model
from engine.models.shapes.rollout import stream
from engine.models.shapes.train_sheet import save_png
from tests.browser.driver import FLAGS, find_chromium

STORIES = (
    ("a red ball bouncing on a blue background", "make it night"),
    ("three small cyan rings orbiting in the night", "three large yellow stars"),
    ("a green star spinning on black", "pulsing fast"),
    ("two purple triangles drifting right on a grid", "make them orange"),
    ("a white square rising slowly on red", "three of them, sunset"),
    ("a large yellow circle resting on purple", "orbiting"),
)
CHUNKS = 4
"""Of each prompt, 3 s."""
SHOWN = (6, 16, 26, 36, 46)
"""Frames of each prompt that are shown."""
STYLE = """
    body { margin: 0; padding: 28px; width: 1180px; background: #0a0c10; font: 16px system-ui, sans-serif }
    .row { display: grid; grid-template-columns: 1fr 1fr; gap: 28px; margin-bottom: 20px }
    .half p { margin: 0 0 8px; color: #c6cdd8 }
    .half.edit p { color: #9db8ff }
    .half.edit p::before { content: "→ " }
    .frames { display: grid; grid-template-columns: repeat(5, 1fr); gap: 6px }
    img { width: 100%; border-radius: 8px; display: block }
"""


def _image(frame: Tensor, folder: Path) -> str:
    """A frame uint8 [Z, Z, 3] as a data address."""
    path = folder / "frame.png"
    save_png(path, frame)
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _page(seed: int) -> str:
    model = load_model("shapes", device=torch.device("cpu"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (prompt, edit) in enumerate(STORIES):
            shown = model.combine_prompts(prompt, edit)
            rgb, _ = stream(model, [prompt] * CHUNKS + [shown] * CHUNKS, seed + number)
            halves = []
            for kind, text, frames in (
                ("", prompt, rgb[: len(rgb) // 2]),
                (" edit", edit, rgb[len(rgb) // 2 :]),
            ):
                images = "".join(f'<img src="{_image(frames[i], Path(folder))}">' for i in SHOWN)
                head = f'<div class="half{kind}"><p>{html.escape(text)}</p>'
                halves.append(f'{head}<div class="frames">{images}</div></div>')
            rows.append(f'<div class="row">{"".join(halves)}</div>')
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{''.join(rows)}"


async def _screenshot(page_html: str, out: Path) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = await browser.new_page(viewport={"width": 1236, "height": 800})
        await page.set_content(page_html)
        await page.screenshot(path=out, full_page=True)
        await browser.close()


def main() -> None:
    """Stream, lay out, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/shapes.png"))
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    asyncio.run(_screenshot(_page(args.seed), args.out))
    print(args.out)


if __name__ == "__main__":
    main()
