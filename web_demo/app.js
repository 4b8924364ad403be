// The page: connects what a person does with the session, and the session with what the page shows.

import { whyUnsupported } from "./decoder.js";
import { HeldKeys } from "./keys.js";
import { MAX_PROMPT_CHARS } from "./protocol.js";
import { Session } from "./session.js";
import { View } from "./view.js";

const REFRESH_MS = 250;
const LARGEST_SEED = Number.MAX_SAFE_INTEGER;
const RANDOM_SEEDS = 1_000_000; // short enough to note down

const view = new View();
const { elements } = view;
let unsupported = null;

const session = new Session(elements.screen, {
  notify: render,
  note: (text, tone) => view.steering(text, tone),
  drawn: () => view.glow(),
  sized: (width, height) => view.size(width, height),
});

/** The seed in the field: a number, null for "random", undefined if it is not a seed. */
function readSeed() {
  const text = elements.seed.value.trim();
  const seed = Number(text);
  const isGood = text === "" || (/^\d+$/.test(text) && seed <= LARGEST_SEED);
  view.badSeed(!isGood);
  if (!isGood) view.steering(`A seed is a whole number with at most 15 digits, or nothing for a random one.`, "bad");
  return isGood ? (text === "" ? null : seed) : undefined;
}

function submit(text) {
  const prompt = text.trim();
  if (prompt === "" || elements.send.disabled) {
    elements.prompt.focus();
    return;
  }
  if ([...prompt].length > MAX_PROMPT_CHARS) {
    view.steering(`A prompt has at most ${MAX_PROMPT_CHARS} characters.`, "bad");
    return;
  }
  elements.prompt.value = prompt;
  if (session.isLive) {
    session.prompt(prompt);
    return;
  }
  const seed = readSeed();
  if (seed === undefined) return;
  view.steering("");
  session.start(prompt, seed ?? Math.floor(Math.random() * RANDOM_SEEDS));
}

function detail() {
  const { phase } = session;
  if (phase === "queued" && session.idleReason !== "") {
    return "Its engine is gone. The video goes on by itself as soon as another one is free.";
  }
  if (phase === "queued" && session.queue !== null) {
    const eta = session.queue.eta_ms > 0 ? `About ${Math.ceil(session.queue.eta_ms / 1000)} s to go. ` : "";
    return `${eta}The video starts by itself as soon as an engine is free.`;
  }
  if (phase === "connecting" && session.waiting !== null) return `${session.waiting} (done for you)`;
  if (phase === "connecting" && session.attempts > 0) return "The server does not answer yet. Trying again.";
  return session.end?.sentence ?? "";
}

function statusText() {
  if (session.phase === "queued" && session.queue !== null) return `Queued, place ${session.queue.position} in line`;
  return null;
}

function render() {
  if (unsupported !== null) {
    view.phase("unsupported", { detail: unsupported });
    return;
  }
  view.phase(session.phase, { detail: detail(), status: statusText() });
  view.history(session.history, submit);
  view.pad(session.isLive && session.takesControls && !session.isPaused);
  view.caption(session.isLive && session.player.drawn !== null ? (session.history.current?.text ?? null) : null);
  view.seed(session.seed === null ? "random" : String(session.seed));
  if (session.isLive) showStats();
}

function showStats() {
  const { player } = session;
  view.stats({
    fps: player.fps,
    latencyMs: session.latencyMs,
    bufferMs: player.bufferMs(performance.now()),
    genMs: player.genMs,
    engine: session.engine,
  });
}

function isTyping(target) {
  return target.closest("textarea, input, button, a") !== null;
}

function hasCursor(target) {
  return target.closest("textarea, input") !== null;
}

function listen() {
  elements.form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(elements.prompt.value);
  });
  elements.prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit(elements.prompt.value);
  });
  elements.seed.addEventListener("input", () => view.badSeed(false));
  elements.seed.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !session.isLive) submit(elements.prompt.value);
  });
  elements.pause.addEventListener("click", () => session.setPaused(!session.isPaused));
  elements.reset.addEventListener("click", () => {
    const seed = readSeed();
    if (seed !== undefined) session.reset(seed);
  });
  elements.stop.addEventListener("click", () => {
    session.stop();
    view.action.focus({ preventScroll: true }); // the button that had the focus is disabled now
  });
  view.action.addEventListener("click", act);
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || isTyping(event.target) || !session.isLive) return;
    event.preventDefault();
    session.setPaused(!session.isPaused);
  });
  new HeldKeys(elements.pad, { changed: (keys) => session.hold(keys), isTyping: hasCursor });
  for (const chip of elements.chips.children) chip.addEventListener("click", () => submit(chip.textContent));
}

/** The button on the picture: start again, or take the session back from another window. */
function act() {
  if (session.phase === "taken" && session.continueSaved()) return;
  const text = elements.prompt.value.trim() || session.history.current?.text || elements.prompt.placeholder;
  session.leave();
  submit(text);
}

/** A read-only look inside, for the console and for tests. */
function publish() {
  const { player } = session;
  const read = {
    state: () => (unsupported !== null ? "unsupported" : session.phase),
    session: () => session.id,
    engine: () => session.engine,
    seq: () => player.drawn?.seq ?? null,
    rev: () => player.drawn?.rev ?? null,
    ptsMs: () => player.drawn?.ptsMs ?? null,
    newestSeq: () => player.newestSeq,
    framesDrawn: () => player.framesDrawn,
    framesSkipped: () => player.framesSkipped,
    chunks: () => player.chunks,
    gaps: () => player.gaps,
    fps: () => player.fps,
    bufferMs: () => player.bufferMs(performance.now()),
    latencyMs: () => session.latencyMs,
    rate: () => player.clock.rate,
    stalls: () => player.clock.stalls,
    mediaMs: () => player.clock.mediaMs(performance.now()),
    playedMs: () => player.clock.totals(performance.now()).playedMs,
    stalledMs: () => player.clock.totals(performance.now()).stalledMs,
  };
  const view = Object.defineProperties(
    {},
    Object.fromEntries(Object.entries(read).map(([name, get]) => [name, { get, enumerable: true }])),
  );
  Object.defineProperty(window, "turboserve", { value: Object.freeze(view) });
}

async function main() {
  unsupported = await whyUnsupported();
  publish();
  listen();
  if (unsupported === null && session.continueSaved()) {
    const { current, underWay } = session.history;
    elements.prompt.value = (current ?? underWay)?.text ?? "";
  }
  render();
  setInterval(render, REFRESH_MS);
  if (!session.isLive) elements.prompt.focus({ preventScroll: true });
}

await main();
