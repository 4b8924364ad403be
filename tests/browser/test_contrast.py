"""Can it be read, and can its controls be seen? Contrast as WCAG 2.2 counts it, of what Chromium computes."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page

from scheduler.domain import EngineId, EngineState
from tests.browser.driver import ask, tab, until
from tests.browser.scripted_cluster import ScriptedSource, served, url
from tests.browser.stream_server import StreamServer
from tests.browser.test_page import RED_ON_BLUE, begin, lock

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TEXT, BOUNDARY = 4.5, 3.0
"""The least contrast of words that are not large, and of what shows where a control is."""
THEMES = ("light", "dark")
Colour = list[int]

LOOK = """
    const brush = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const over = (colour, under, alpha = 1) => {
        brush.globalAlpha = 1;
        brush.fillStyle = `rgb(${under.join(" ")})`;
        brush.fillRect(0, 0, 1, 1);
        brush.globalAlpha = alpha;
        brush.fillStyle = colour;
        brush.fillRect(0, 0, 1, 1);
        return [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const COLOUR = /(?:rgba?|color|oklch)\\([^()]*\\)/g;
    const grounds = (node) => { // all that it may lie on: a gradient is each of its stops
        if (node === null) return [[255, 255, 255]];
        const { backgroundColor, backgroundImage } = getComputedStyle(node);
        const plain = grounds(node.parentElement).map((under) => over(backgroundColor, under));
        const stops = backgroundImage.match(COLOUR) ?? [];
        return plain.concat(stops.flatMap((stop) => plain.map((under) => over(stop, under))));
    };
    const opacity = (node) =>
        node === null ? 1 : getComputedStyle(node).opacity * opacity(node.parentElement);
    const isShown = (node) => node.checkVisibility({ opacityProperty: true, visibilityProperty: true })
        && node.closest(":disabled, .unseen") === null && node.getBoundingClientRect().width > 1;
    const nameOf = ({ id, ariaLabel, className, tagName, textContent }) =>
        id || ariaLabel || `${tagName.toLowerCase()}.${className} ${textContent.trim().slice(0, 30)}`;
"""
"""What lies on what. `over` paints one colour on another, as the browser blends them."""

WORDS = f"""() => {{{LOOK}
    const found = [];
    const add = (node, name, style, alpha) => {{
        const size = parseFloat(style.fontSize);
        const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const pairs = grounds(node).map((ground) => [over(style.color, ground, alpha), ground]);
        found.push({{ name, least: isLarge ? {BOUNDARY} : {TEXT}, pairs }});
    }};
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {{
        const node = walk.currentNode.parentElement;
        if (walk.currentNode.data.trim() === "" || !isShown(node)) continue;
        add(node, nameOf(node), getComputedStyle(node), opacity(node));
    }}
    for (const node of [...document.querySelectorAll(":placeholder-shown")].filter(isShown)) {{
        const style = getComputedStyle(node, "::placeholder");
        add(node, `${{node.id}}::placeholder`, style, opacity(node) * style.opacity);
    }}
    return found;
}}"""
"""Each text that is on show, with what it lies on."""

CONTROLS = f"""() => {{{LOOK}
    const isBounded = (node) => isShown(node) && parseFloat(getComputedStyle(node).borderTopWidth) > 0;
    const pairsOf = (node) => {{
        const [outside, inside] = [grounds(node.parentElement), grounds(node)];
        const {{ backgroundColor, borderTopColor, color }} = getComputedStyle(node);
        const edge = (ground) => [over(borderTopColor, ground, opacity(node)), ground];
        const sign = (film) => {{
            const fill = over(backgroundColor, film);
            return [over(color, fill), fill].map((c) => over(`rgb(${{c.join(" ")}})`, film, opacity(node)));
        }};
        if (node.matches(".pad *")) return [[0, 0, 0], [255, 255, 255]].map(sign);
        if (!node.matches(".primary")) return [...outside, ...inside].map(edge);
        return outside.flatMap((ground) => inside.map((fill) => [fill, ground]));
    }};
    const all = document.querySelectorAll("button, input:not([type=range]), .ask, .lane[role=button]");
    const nodes = [...all].filter(isBounded);
    return nodes.map((node) => ({{ name: nameOf(node), least: {BOUNDARY}, pairs: pairsOf(node) }}));
}}"""
"""What shows where each control is that can be used: its border, its fill, or its sign where it lies on the
video, which may be black or white."""

CHIPS = f"""(lane) => {{{LOOK}
    const [active, idle] = ["active", "idle"].map((s) => document.querySelector(`.chip[data-state=${{s}}]`));
    const ground = grounds(document.querySelector(`.lane[data-id=${{lane}}]`)).at(-1);
    const found = [];
    for (let hue = 0; hue < 360; hue += 10) {{
        for (const chip of [active, idle]) chip.style.setProperty("--hue", hue);
        const [full, pale] = [active, idle].map((chip) => getComputedStyle(chip.firstElementChild));
        const colours = [full.backgroundColor, pale.backgroundColor, pale.boxShadow.match(COLOUR)[0]];
        found.push([hue, ground, ...colours.map((colour) => over(colour, ground))]);
    }}
    return found;
}}"""
"""(hue, lane, active, idle, rim of idle), all around the circle of hues."""

PROPERTIES = f"""(names) => {{{LOOK}
    const style = getComputedStyle(document.documentElement);
    const colourOf = (name) => over(style.getPropertyValue(`--${{name}}`), [0, 0, 0]);
    return Object.fromEntries(names.map((name) => [name, colourOf(name)]));
}}"""


def luminance(colour: Colour) -> float:
    """Of an sRGB colour, 0 to 1."""
    shares = [channel / 255 for channel in colour]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ratio(one: Colour, other: Colour) -> float:
    """1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def too_faint(found: list[dict[str, Any]]) -> dict[str, float]:
    """Those whose contrast is too low, with what they have."""
    least = {item["name"]: (min(ratio(*pair) for pair in item["pairs"]), item["least"]) for item in found}
    return {name: round(has, 2) for name, (has, needs) in least.items() if has < needs}


async def wear(page: Page, theme: str) -> None:
    """Put on a theme, with nothing fading from one colour into another."""
    await page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
    await until(page, f"document.documentElement.dataset.theme === '{theme}'")


async def assert_clear(page: Page, *, words: set[str], controls: set[str]) -> None:
    """All that can be read or used can be seen; these are among it."""
    texts, bounded = await page.evaluate(WORDS), await page.evaluate(CONTROLS)
    assert words <= {item["name"] for item in texts}
    assert controls <= {item["name"] for item in bounded}
    assert too_faint(texts) | too_faint(bounded) == {}


async def test_the_ratio_is_that_of_the_standard() -> None:
    """Black on white has 21; #777 on white is the well-known one that just fails."""
    assert ratio([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert ratio([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES)
async def test_the_colours_are_clear_on_every_surface(
    browser: Browser, server: StreamServer, theme: str
) -> None:
    """Also under the pointer, where nothing else looks: words 4.5, edges and the ring of the focus 3."""
    needs = dict.fromkeys(("text", "quiet", "good", "busy", "bad"), TEXT)
    needs |= {"edge": BOUNDARY, "accent": BOUNDARY}
    surfaces = ("back", "tint", "raised", "hover")
    async with tab(browser, server.url) as (page, _):
        await wear(page, theme)
        has = await page.evaluate(PROPERTIES, [*needs, *surfaces])
        pairs = {(name, on): ratio(has[name], has[on]) for name in needs for on in surfaces}
        assert {pair: has for pair, has in pairs.items() if has < needs[pair[0]]} == {}


@pytest.mark.parametrize("theme", THEMES)
async def test_the_studio_can_be_read(browser: Browser, server: StreamServer, theme: str) -> None:
    """Before the start, while it plays, and where a token is asked for on the dark picture."""
    async with tab(browser, server.url) as (page, _):
        await wear(page, theme)
        always = {"theme", "seed", "fullscreen"}
        await assert_clear(page, words={"prompt::placeholder", "seed::placeholder"}, controls=always)
        await lock(page, server)
        await assert_clear(page, words={"token::placeholder", "veil-text"}, controls=always | {"token"})
        await page.fill("#token", "eyJ.abc.def")
        await page.press("#token", "Enter")
        await until(page, "turboserve.framesDrawn >= 5")
        await page.click("#drawer summary")
        await page.mouse.move(0, 0)
        await until(page, "document.querySelectorAll('.segment').length === 1")
        playing = {"pause", "stop", "record", "share", "send", "Up", "div.ask Steer"}
        await assert_clear(page, words={"caption", "stat-gen", "glance-fps"}, controls=always | playing)


@pytest.mark.parametrize("theme", THEMES)
async def test_what_went_wrong_can_be_read(browser: Browser, server: StreamServer, theme: str) -> None:
    """A refused seed, an ended session and the link to watch."""
    async with tab(browser, server.url) as (page, _):
        await wear(page, theme)
        await page.fill("#seed", "12x")
        await ask(page, RED_ON_BLUE)
        await assert_clear(page, words={"steering"}, controls={"seed"})
        await page.fill("#seed", "")
        await begin(page, frames=1)
        await page.click("#share")
        await until(page, "document.getElementById('share-text').textContent.includes('does not')")
        await assert_clear(page, words={"share-text", "share-close"}, controls={"share-close"})
        await page.click("#share-close")
        await page.click("#stop")
        await until(page, "turboserve.state === 'ended'")
        await assert_clear(page, words={"veil-text", "veil-action"}, controls={"veil-action"})


def busy_cluster() -> ScriptedSource:
    """Engines in each state, sessions in each."""
    source = ScriptedSource()
    states = (EngineState.READY, EngineState.DRAINING, EngineState.STARTING)
    for number, state in enumerate(states, 1):
        source.engine(EngineId(f"e_0000000{number}"), state)
    source.session("s_0000000000000001", EngineId("e_00000001"))
    source.session("s_0000000000000002", EngineId("e_00000001"), active=False)
    source.session("s_0000000000000003", None)
    return source


@pytest.mark.parametrize("theme", THEMES)
async def test_the_cluster_can_be_read(browser: Browser, theme: str) -> None:
    """Lanes of every state, the figures, the decisions, and the hint while a session is chosen."""
    async with served(busy_cluster()) as port, tab(browser, url(port)) as (page, _):
        await wear(page, theme)
        await until(page, "document.querySelectorAll('.chip').length === 3")
        await page.click(".chip[data-state=active]")
        await assert_clear(page, words={"hint", "counts", "floor-title"}, controls={"theme"})


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("lane", ["e_00000001", "queue"])
async def test_a_session_can_be_seen_whatever_its_hue(browser: Browser, theme: str, lane: str) -> None:
    """Active ones by their colour, idle ones, which are paler, by their rim."""
    async with served(busy_cluster()) as port, tab(browser, url(port)) as (page, _):
        await wear(page, theme)
        await until(page, "document.querySelectorAll('.chip').length === 3")
        found = await page.evaluate(CHIPS, lane)
        assert len({tuple(active) for _, _, active, _, _ in found}) == 36
        for hue, ground, active, idle, rim in found:
            assert min(ratio(active, ground), ratio(rim, ground)) >= BOUNDARY, f"hue {hue}"
            assert 1.1 < ratio(idle, ground) < ratio(active, ground) / 1.5, f"hue {hue}"
