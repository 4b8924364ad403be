"""A real Chromium for tests: launching it, waiting on a page without arbitrary sleeps, reading its canvas."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage"
    " --autoplay-policy=no-user-gesture-required"
).split()
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
POLL_S = 0.03
SCALE = float(os.environ.get("TURBOSERVE_TEST_TIME_SCALE", "1"))
WIDE = (1280, 800)
NARROW = (400, 860)
HIDEABLE = """
    let isHidden = sessionStorage.getItem("hidden") !== null;
    const waiting = [];
    const request = window.requestAnimationFrame.bind(window);
    Object.defineProperty(document, "hidden", { get: () => isHidden });
    window.requestAnimationFrame = (step) => (isHidden ? waiting.push(step) : request(step));
    window.framesWaiting = () => waiting.length;
    window.setHidden = (value) => {
      isHidden = value;
      document.dispatchEvent(new Event("visibilitychange"));
      if (!value) waiting.splice(0).forEach((step) => request(step));
    };
"""
"""What a browser does to a tab in the background: it says so and calls no animation frames. With "hidden" in
its sessionStorage a page is there from its first script on."""

Pixel = tuple[int, int, int]


def find_chromium() -> str:
    """Path of an installed Chromium. Its absence is a failure: these tests must not pass by not running."""
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    raise AssertionError("no Chromium on PATH, the browser tests need one: apt-get install chromium")


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            profile = await browser.new_context()
            await profile.new_page()  # without any its process ends, and the next tab starts another
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def tab(
    browser: Browser, url: str, size: tuple[int, int] = WIDE, *, init_script: str | None = None
) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page at `url`, and the list its errors and warnings go to."""
    async with empty_tab(browser) as page:
        await page.set_viewport_size({"width": size[0], "height": size[1]})
        if init_script is not None:
            await page.add_init_script(init_script)
        complaints = listen(page)
        await page.goto(url)
        await until(page, "window.turboserve !== undefined")
        yield page, complaints


@asynccontextmanager
async def empty_tab(browser: Browser) -> AsyncIterator[Page]:
    """A tab for which nothing is stored. The first is in the profile that all tests of a file share, which
    saves a third of the work; a second beside it has a profile of its own."""
    profile = browser.contexts[0]
    is_free = len(profile.pages) == 1
    if not is_free:
        profile = await browser.new_context()
    page = await profile.new_page()
    try:
        yield page
    finally:
        if is_free:
            await forget_what_is_stored(page)
            await page.close()
        else:
            await profile.close()


async def forget_what_is_stored(page: Page) -> None:
    """By the page's origin. A server of its own has another, the shared cluster has not."""
    url = urlsplit(page.url)
    if not url.netloc:
        return
    await page.goto("about:blank")  # a page that leaves may still store something
    devtools = await page.context.new_cdp_session(page)
    origin = {"origin": f"{url.scheme}://{url.netloc}", "storageTypes": "all"}
    await devtools.send("Storage.clearDataForOrigin", origin)


def listen(page: Page) -> list[str]:
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(f"pageerror: {error}"))
    page.on(
        "console",
        lambda m: complaints.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None,
    )
    return complaints


async def until(page: Page, condition: str, limit_s: float = 20) -> None:
    """Wait for a JavaScript condition. Polls from outside: the page's CSP forbids it to evaluate strings."""
    end = asyncio.get_running_loop().time() + limit_s * SCALE
    while not await page.evaluate(condition):
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(
                f"not reached in {limit_s * SCALE:.0f} s: {condition}\npage: {await stats(page)}"
            )
        await asyncio.sleep(POLL_S)


async def until_pixels(page: Page, condition: Callable[[list[Pixel]], bool], limit_s: float = 20) -> None:
    """Wait until the picture on the canvas fulfils a condition on its samples."""
    end = asyncio.get_running_loop().time() + limit_s * SCALE
    while not condition(samples := await pixels(page)):
        if asyncio.get_running_loop().time() > end:
            shares = [round(share(samples, channel), 3) for channel in range(3)]
            raise AssertionError(f"not seen in {limit_s * SCALE:.0f} s; shares of red, green, blue: {shares}")
        await asyncio.sleep(POLL_S * 5)


async def stats(page: Page) -> dict[str, Any]:
    """The page's own figures, `window.turboserve`."""
    figures: dict[str, Any] = await page.evaluate("({...window.turboserve})")
    return figures


async def ask(page: Page, prompt: str) -> None:
    """Type a prompt and press Enter, as a person would."""
    await page.fill("#prompt", prompt)
    await page.press("#prompt", "Enter")


async def pixels(page: Page) -> list[Pixel]:
    """32×32 samples of the picture on the canvas, RGB 0…255."""
    flat: list[int] = await page.evaluate(
        """() => {
            const small = new OffscreenCanvas(32, 32).getContext("2d");
            small.drawImage(document.getElementById("screen"), 0, 0, 32, 32);
            return [...small.getImageData(0, 0, 32, 32).data];
        }"""
    )
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 4)]


def share(samples: list[Pixel], channel: int, margin: int = 40) -> float:
    """Share of the samples in which one channel (0 red, 1 green, 2 blue) clearly exceeds both others."""
    others = [c for c in range(3) if c != channel]
    hits = sum(all(sample[channel] > sample[other] + margin for other in others) for sample in samples)
    return hits / len(samples)
