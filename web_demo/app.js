// The studio page: connects what a person does with the stream, and the stream with what the page shows.

import { HeldKeys } from "./keys.js";
import * as storage from "./storage.js";
import { Stream, promptFault, readToken, whyUnsupported } from "./turboserve.js";
import { View } from "./view.js";

const REFRESH_MS = 250;
const LARGEST_SEED = Number.MAX_SAFE_INTEGER;
const RANDOM_SEEDS = 1_000_000; // short enough to note down
const THUMB_AFTER_FRAMES = 6;
const NEWS_MS = 6000;
const FULL = "The recording was full and is saved. Record again for what follows.";
const BEING_COMPOSED = 229; // of a key that an input method took, also where (Safari) isComposing is false again by then
const NO_TOKEN = "That is no access token: it has letters, digits, dots, - and _ only.";

const view = new View(submit);
const { elements } = view;
let link = null; // {session, token}: whose session is watched
let isBadToken = false; // was what somebody pasted no token at all?
let isBadPrompt = false; // is what stands in the field too long to be one?
let unsupported = null;
let thumbFor = null; // {id, frames}: the prompt whose picture is to be kept, and in how many frames
let isFetching = false; // the recording, from the server
let news = null; // {text, tone, untilMs}: what just happened, in the picture's corner

const stream = new Stream({ canvas: elements.screen, token: savedToken, remember: true });

stream.on("change", () => {
  if (stream.recording?.isFull) saveRecording(FULL);
  render();
});
stream.on("size", ({ width, height }) => view.size(width, height));
stream.on("prompt", told);
stream.on("refused", ({ message }) => view.steering(message, "bad"));
stream.on("restarted", () => view.steering("Started over", "good"));
stream.on("gone", () => view.steering("The session of before is over. Start a new one."));
stream.on("phase", ({ phase }) => {
  isBadToken = false;
  view.badToken(false);
  if (["ended", "failed", "full", "taken", "locked"].includes(phase)) {
    view.steering("");
    if (stream.isRecording) saveRecording(); // what there is must not be lost with the session
  }
});
stream.on("mark", ({ kind }) => {
  if (kind === "moved") tell("Moved to another engine, nothing lost", "good");
  if (kind === "recovered") tell("Recovered on another engine", "good");
  if (kind === "gap") tell("Some video had to be left out", "busy");
});
stream.on("frame", () => {
  if (document.hidden) return; // it is not on the canvas
  view.glow();
  thumbFor ??= lacking();
  if (thumbFor === null || --thumbFor.frames > 0) return;
  view.thumb(thumbFor.id);
  thumbFor = null;
});

/** After a reload the prompt on screen has no picture yet. */
function lacking() {
  const entry = stream.history.current;
  return entry === null || view.hasThumb(entry.id) ? null : { id: entry.id, frames: THUMB_AFTER_FRAMES };
}

/**
 * A link to watch: #watch=s_…&token=…, behind the # so that it is in nobody's log. A token alone, #token=…, is kept and
 * leaves the address.
 */
function readLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const token = parts.has("token") ? readToken(parts.get("token")) : null;
  if (parts.has("watch")) return { session: parts.get("watch"), token: token ?? undefined };
  if (!parts.has("token")) return null;
  history.replaceState(null, "", location.pathname);
  isBadToken = token === null;
  if (isBadToken) view.steering(NO_TOKEN, "bad");
  else storage.saveToken(token);
  return null;
}

/** Watch what the address names, or go on with this tab's session. */
function open() {
  if (link !== null) {
    stream.watch(link);
  } else if (stream.continue()) {
    const { current, underWay } = stream.history;
    elements.prompt.value = (current ?? underWay)?.text ?? "";
  }
}

/** A link that is pasted into the open page does what it does in a new one. A token alone interrupts nothing. */
function followLink() {
  const wasWatching = link !== null;
  link = readLink();
  if (unsupported !== null) return;
  if (link !== null || wasWatching) {
    if (stream.isRecording) saveRecording();
    stream.leave();
    open();
  } else if (stream.phase === "locked" && !isBadToken) {
    act();
  }
  render();
}

function savedToken() {
  return link?.token ?? storage.loadToken();
}

/** What became of a prompt, in a sentence. */
function told({ entry, isFirst }) {
  if (entry.state === "shown") thumbFor = { id: entry.id, frames: THUMB_AFTER_FRAMES };
  if (isFirst && entry.state !== "shown" && entry === stream.history.entries[0]) return; // of what began the picture itself tells
  const isNewest = entry === stream.history.entries.at(-1);
  if (entry.state === "shown") {
    const seconds = entry.latencyMs === null ? "" : ` ${(entry.latencyMs / 1000).toFixed(1)} s after Enter`;
    view.steering(`${isFirst && seconds !== "" ? "First picture" : "On screen"}${seconds}`, "good");
  } else if (!isNewest) {
    return;
  } else if (entry.state === "applied") {
    view.steering(`Applied at chunk ${entry.seq}, about to show`, "busy");
  } else if (entry.state === "sent" || entry.state === "accepted") {
    view.steering(stream.isPaused ? "Pending until you resume" : "Pending…", "busy");
  }
}

function tell(text, tone) {
  news = { text, tone, untilMs: performance.now() + NEWS_MS };
}

/** The seed in the field: a number, null for "random", undefined if it is not a seed. */
function readSeed() {
  const text = elements.seed.value.trim();
  const seed = Number(text);
  const isGood = text === "" || (/^\d+$/.test(text) && seed <= LARGEST_SEED);
  view.badSeed(!isGood);
  if (!isGood) view.steering(`A seed is a whole number up to ${LARGEST_SEED}, or nothing for a random one.`, "bad");
  return isGood ? (text === "" ? null : seed) : undefined;
}

/** Can it be a prompt? Says why not: nothing of what is typed or pasted is cut off in silence. */
function checkPrompt(prompt) {
  const fault = promptFault(prompt);
  if (fault !== null) view.steering(fault, "bad");
  else if (isBadPrompt) view.steering("");
  isBadPrompt = fault !== null;
  view.badPrompt(isBadPrompt);
  return !isBadPrompt;
}

function submit(text) {
  const prompt = text.trim();
  if (prompt === "" || elements.send.disabled) {
    elements.prompt.focus();
    return;
  }
  if (!checkPrompt(prompt)) return;
  elements.prompt.value = prompt;
  if (stream.isLive) {
    stream.prompt(prompt, { blendChunks: Number(elements.blend.value) });
    return;
  }
  const seed = readSeed();
  if (seed === undefined) return;
  view.steering("");
  view.forgetThumbs();
  stream.start({ prompt, seed: seed ?? Math.floor(Math.random() * RANDOM_SEEDS) });
}

/** The phase as the page words it: waiting to go on is not waiting to begin, and who comes amid a pause has no picture. */
function shownPhase() {
  if (unsupported !== null) return "unsupported";
  if (stream.phase === "paused" && stream.isViewer && stream.player.drawn === null) return "unseen";
  return stream.phase === "queued" && stream.reason !== "" ? "returning" : stream.phase;
}

function detail() {
  if (unsupported !== null) return unsupported;
  const { phase } = stream;
  if (phase === "queued" && ["engine_lost", "engine_drained"].includes(stream.reason)) {
    return "Its engine is gone. The video goes on by itself as soon as another one is free.";
  }
  if (phase === "queued" && stream.reason !== "") {
    return "Its place was given to others meanwhile. The video goes on by itself as soon as one is free.";
  }
  if (phase === "queued" && stream.queue !== null) {
    const { position, eta_ms } = stream.queue;
    const eta = eta_ms > 0 ? `, about ${Math.ceil(eta_ms / 1000)} s to go` : "";
    return `Place ${position}${eta}. The video starts by itself as soon as an engine is free.`;
  }
  if (phase === "paused") return `${isAlone() ? "Who steers it is away. " : ""}The video comes as soon as it goes on.`;
  if (phase === "connecting" && stream.waiting !== null) return `${stream.waiting} (done for you)`;
  if (phase === "connecting" && stream.attempts > 0) return `${navigator.onLine ? "The server does not answer yet" : "This browser is offline"}. Trying again.`;
  if (phase === "ended" && stream.isViewer) return `${stream.end.sentence} Studio, at the top, is for a video of your own.`;
  if (phase === "locked") return isBadToken ? NO_TOKEN : "Paste an access token. It stays in this tab.";
  return stream.end?.sentence ?? "";
}

function statusText() {
  if (stream.phase === "lost" && !navigator.onLine) return "Offline, retrying…";
  if (stream.phase === "queued" && stream.reason === "" && stream.queue !== null) return `Queued, place ${stream.queue.position} in line`;
  return null;
}

/** Does it pause because nobody who steers it is there? */
function isAlone() {
  return stream.isViewer && stream.reason === "disconnected";
}

function badge() {
  const nowMs = performance.now();
  if (news !== null && news.untilMs > nowMs) return [news.text, news.tone];
  if (stream.isRecording) return ["Recording", "rec"];
  if (stream.phase === "lost") return ["Reconnecting…", "busy"];
  if (stream.phase === "stalled") return ["Catching up…", "busy"];
  if (stream.phase === "paused") return [isAlone() ? "Who steers it is away" : "Paused", "quiet"];
  if (stream.isViewer && stream.phase === "generating") return ["Watching live", "quiet"];
  return [null];
}

function render() {
  view.phase(shownPhase(), { detail: detail(), status: statusText(), isViewer: stream.isViewer });
  if (unsupported !== null) return;
  view.history(stream.history);
  view.pad(stream.isLive && stream.takesControls && !stream.isPaused);
  view.caption(stream.isLive && stream.player.drawn !== null ? (stream.history.current?.text ?? null) : null);
  view.badge(...badge());
  view.seed(stream.seed === null ? "random" : String(stream.seed));
  view.recording(stream.recording);
  elements.record.disabled = !stream.isRecordable;
  elements.download.disabled = isFetching || stream.id === null;
  view.time(stream);
  if (stream.isLive) view.stats({ ...stream.stats, chunkPlaysMs: stream.player.chunkMs });
}

function isTyping(target) {
  return target.closest("textarea, input, button, a, summary, dialog") !== null;
}

function hasCursor(target) {
  return target.closest("textarea, input, dialog") !== null;
}

function listen() {
  elements.form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(elements.prompt.value);
  });
  elements.prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === BEING_COMPOSED) return;
    event.preventDefault();
    submit(elements.prompt.value);
  });
  elements.prompt.addEventListener("input", () => checkPrompt(elements.prompt.value.trim()));
  elements.seed.addEventListener("input", () => view.badSeed(false));
  elements.seed.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !stream.isLive) submit(elements.prompt.value);
  });
  const showBlend = () => view.blend(Number(elements.blend.value), stream.player.chunkMs);
  elements.blend.addEventListener("input", showBlend);
  showBlend();
  for (const chip of elements.chips.children) chip.addEventListener("click", () => submit(chip.dataset.prompt));
  for (const chip of elements.edits.children) chip.addEventListener("click", () => submit(chip.textContent));
  view.action.addEventListener("click", act);
  elements.tokenForm.addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(readToken(elements.token.value));
  });
  window.addEventListener("hashchange", followLink);
  window.addEventListener("beforeunload", (event) => {
    if (stream.isRecording) event.preventDefault(); // the browser asks first: it is nowhere but in this page
  });
  listenToTransport();
}

/** The token that was asked for; null for something that is none. */
function useToken(token) {
  isBadToken = token === null;
  view.badToken(isBadToken);
  if (isBadToken) {
    elements.token.select();
    render();
    return;
  }
  storage.saveToken(token);
  if (link !== null) link.token = undefined; // it was refused
  elements.token.value = "";
  act();
}

function listenToTransport() {
  elements.pause.addEventListener("click", () => stream.setPaused(!stream.isPaused));
  elements.reset.addEventListener("click", () => {
    const seed = readSeed();
    if (seed === undefined) return;
    stream.reset({ seed: seed ?? undefined });
    view.steering("Starting over with the same prompt…", "busy");
  });
  elements.stop.addEventListener("click", () => {
    stream.stop();
    view.action.focus({ preventScroll: true }); // the button that had the focus is disabled now
  });
  elements.record.addEventListener("click", () => (stream.isRecording ? saveRecording() : stream.startRecording()));
  elements.download.addEventListener("click", download);
  elements.share.addEventListener("click", share);
  elements.shareCopy.addEventListener("click", copyLink);
  elements.shareClose.addEventListener("click", () => elements.shareDialog.close());
  elements.fullscreen.hidden = !document.fullscreenEnabled; // an iPhone has it for its own player only
  elements.fullscreen.addEventListener("click", toggleFullScreen);
  document.addEventListener("keydown", (event) => {
    if (isTyping(event.target) || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key.toLowerCase() === "f" && !event.repeat) toggleFullScreen(); // with Caps Lock, too
    if (event.key !== " " || !stream.isLive) return;
    event.preventDefault();
    if (!event.repeat) stream.setPaused(!stream.isPaused);
  });
  new HeldKeys(elements.pad, {
    changed: (keys) => {
      stream.control(keys);
      view.held(keys);
    },
    isTyping: hasCursor,
  });
}

function toggleFullScreen() {
  const changed = document.fullscreenElement ? document.exitFullscreen?.() : elements.theatre.requestFullscreen?.();
  changed?.catch(() => tell("This browser does not allow full screen here", "busy"));
}

function saveRecording(said) {
  const file = stream.stopRecording();
  if (file !== null) save(file, `turboserve-${stream.id}.mp4`, said);
  else tell("No video came to be saved", "busy");
}

async function download() {
  const name = `turboserve-${stream.id}.mp4`;
  isFetching = true;
  tell("Fetching the recording…", "busy");
  render();
  try {
    save(await stream.download(), name);
  } catch (error) {
    tell(error.message, "bad");
  }
  isFetching = false;
  render();
}

function save(file, name, said = "Saved as an MP4 file") {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(file);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60_000); // the browser has taken it long before
  tell(said, "good");
}

async function share() {
  const { shareDialog, shareLink, shareText, shareCopy } = elements;
  shareLink.value = "";
  shareCopy.hidden = shareLink.hidden = true; // there is nothing to copy yet
  shareCopy.textContent = "Copy";
  shareText.textContent = "Asking the server…";
  shareDialog.showModal();
  try {
    const { session, token, expiresInS } = await stream.share();
    const parts = new URLSearchParams({ watch: session, ...(token === null ? {} : { token }) });
    shareLink.value = new URL(`/#${parts}`, location.href).href;
    shareText.textContent = `Whoever has this link sees the video and can't steer it. It opens for ${spell(expiresInS)}.`;
    shareCopy.hidden = shareLink.hidden = false;
    shareLink.focus();
    shareLink.select();
  } catch (error) {
    shareText.textContent = error.message;
  }
}

/** A time in whole hours, or minutes if it is short. */
function spell(seconds) {
  return seconds < 7200 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds / 3600)} hours`;
}

async function copyLink() {
  const { shareLink, shareText, shareCopy } = elements;
  shareLink.focus();
  shareLink.select();
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(shareLink.value);
  } catch {
    isCopied = document.execCommand("copy"); // on addresses that are not secure
  }
  if (isCopied) shareCopy.textContent = "Copied";
  else shareText.textContent = "This browser does not let the page copy. The link is selected: copy it by hand.";
}

/** The button on the picture: start again, watch again, or take the session back from another window. */
function act() {
  if (link !== null) {
    stream.watch(link);
    return;
  }
  if (["taken", "locked"].includes(stream.phase) && stream.continue()) return;
  const text = elements.prompt.value.trim() || stream.history.current?.text || elements.prompt.placeholder;
  stream.leave();
  render();
  submit(text);
}

/** A read-only look inside, for the console and for tests. */
function publish() {
  const { player } = stream;
  const read = {
    state: () => (unsupported !== null ? "unsupported" : stream.phase),
    session: () => stream.id,
    engine: () => stream.engine,
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
    latencyMs: () => stream.stats.steerMs,
    rate: () => player.clock.rate,
    stalls: () => player.clock.stalls,
    marks: () => stream.marks.map(({ kind }) => kind),
    mediaMs: () => player.clock.mediaMs(performance.now()),
    playedMs: () => player.clock.totals(performance.now()).playedMs,
    stalledMs: () => player.clock.totals(performance.now()).stalledMs,
  };
  const look = Object.defineProperties(
    {},
    Object.fromEntries(Object.entries(read).map(([name, get]) => [name, { get, enumerable: true }])),
  );
  Object.defineProperty(window, "turboserve", { value: Object.freeze(look) });
}

async function main() {
  unsupported = await whyUnsupported();
  publish();
  listen();
  link = readLink();
  if (unsupported === null) open();
  render();
  setInterval(() => {
    stream.refresh();
    render();
  }, REFRESH_MS);
  if (!stream.isLive) elements.prompt.focus({ preventScroll: true });
}

await main();
