// Everything that writes to the studio page. Text goes in through textContent only.

import { sparkPaths } from "./spark.js";
import { Timeline, clockTime, copyOf } from "./timeline.js";

const byId = (id) => document.getElementById(id);

const PLAY = "M5 3l8 5-8 5z";
const PAUSE = "M4 3h3v10H4zM9 3h3v10H9z";
const GLOW_EVERY = 4;
const THUMB_PX = 64;
const SPARK = { width: 240, height: 44, slots: 60 };

const setText = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

/** phase -> what the page says and allows. `veil`: none, over (on the last picture), full; `stops`: it can be called off. */
const PHASES = {
  ready: { tone: "quiet", status: "Ready", veil: "full", art: true, title: "Describe a scene",
    text: "It is generated while you watch, and follows when you change your mind." },
  unsupported: { tone: "bad", status: "Cannot play here", veil: "full", title: "This browser cannot play the video" },
  connecting: { tone: "busy", status: "Connecting…", veil: "over", title: "Connecting…", busy: true, stops: true },
  queued: { tone: "busy", status: "Queued", veil: "over", title: "You are in line", busy: true, live: true },
  returning: { tone: "busy", status: "Waiting for an engine", veil: "over", title: "Finding another engine", busy: true, live: true },
  preparing: { tone: "busy", status: "Starting", veil: "over", title: "Making the first pictures…", busy: true, live: true },
  generating: { tone: "good", status: "Generating", veil: "none", live: true },
  stalled: { tone: "busy", status: "Catching up…", veil: "none", live: true },
  paused: { tone: "quiet", status: "Paused", veil: "none", live: true },
  unseen: { tone: "quiet", status: "Paused", veil: "over", title: "It is paused", live: true },
  lost: { tone: "busy", status: "Connection lost, retrying…", veil: "none", live: true },
  taken: { tone: "quiet", status: "Open in another window", veil: "over", title: "This session moved to another window",
    action: "Continue here" },
  full: { tone: "busy", status: "No place free", veil: "over", title: "No place is free right now", action: "Try again" },
  locked: { tone: "busy", status: "Access token needed", veil: "full", title: "This server asks who you are", token: true },
  ended: { tone: "quiet", status: "Ended", veil: "over", title: "The session has ended", action: "Start again" },
  failed: { tone: "bad", status: "Stopped by an error", veil: "over", title: "That did not work", action: "Try again" },
};

const NAMES = ["theatre", "glow", "screen", "veil", "veil-art", "spinner", "status", "caption", "badge", "form", "prompt", "send", "steering",
  "chips", "edits", "pause", "reset", "stop", "seed", "blend", "blend-value", "history", "pad", "length", "record", "download", "share",
  "fullscreen", "drawer", "token-form", "token", "share-dialog", "share-link", "share-text", "share-copy", "share-close"];
const camel = (name) => name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase());

export class View {
  elements = Object.fromEntries(NAMES.map((id) => [camel(id), byId(id)]));
  action = byId("veil-action");
  #glow = this.elements.glow.getContext("2d", { alpha: false });
  #glowCount = 0;
  #historyKey = "";
  #thumbs = new Map(); // prompt id -> canvas
  #timeline;

  /** use(text) when a prompt of before is chosen again. */
  constructor(use) {
    this.use = use;
    this.#timeline = new Timeline(byId("track"), [byId("ruler-from"), byId("ruler-to")], { use, thumbOf: (id) => this.#thumbs.get(id) ?? null });
  }

  /** Show a phase; `detail` is a sentence under the title, `status` a longer word for the status line. */
  phase(name, { detail = "", status = null, isViewer = false } = {}) {
    const { elements } = this;
    const phase = PHASES[name];
    const isLive = phase.live === true;
    const hasLeft = isViewer && name === "ended";
    document.body.dataset.role = isViewer ? "viewer" : "controller";
    document.body.dataset.phase = name;
    setText(elements.status, status ?? (isViewer && name === "generating" ? "Watching" : phase.status));
    elements.status.parentElement.dataset.tone = phase.tone;
    elements.veil.dataset.show = phase.veil;
    elements.veil.dataset.art = phase.art ? "yes" : "no";
    elements.spinner.hidden = phase.busy !== true;
    elements.tokenForm.hidden = phase.token !== true;
    if (phase.veil !== "none") {
      setText(byId("veil-title"), hasLeft ? "Not watching any more" : phase.title);
      setText(byId("veil-text"), phase.text ?? detail);
    }
    this.action.hidden = phase.action === undefined;
    setText(this.action, hasLeft ? "Watch again" : (phase.action ?? ""));
    setText(elements.send, isLive || name === "connecting" ? "Steer" : "Start"); // what is sent early waits for the connection
    elements.send.disabled = ["unsupported", "taken", "locked"].includes(name);
    for (const button of [elements.pause, elements.reset, elements.share]) button.disabled = !isLive;
    elements.stop.disabled = !isLive && phase.stops !== true;
    for (const button of elements.edits.children) button.disabled = !isLive;
    const isPaused = name === "paused";
    setText(byId("pause-label"), isPaused ? "Resume" : "Pause");
    byId("pause-icon").setAttribute("d", isPaused ? PLAY : PAUSE);
    if (!isLive) this.stats(null);
  }

  size(width, height) {
    document.documentElement.style.setProperty("--aspect", String(width / height));
  }

  /** The arrows on the picture. */
  pad(isShown) {
    this.elements.pad.hidden = !isShown;
  }

  /** Which keys are held. */
  held(keys) {
    for (const button of this.elements.pad.children) button.toggleAttribute("data-held", keys.includes(button.dataset.key));
  }

  /** The prompt in the picture, or null. */
  caption(text) {
    this.elements.caption.hidden = text === null;
    setText(this.elements.caption, text ?? "");
    this.elements.screen.setAttribute("aria-label", text === null ? "The generated video" : `Generated video: ${text}`);
  }

  /** A word in the picture's corner, or null. It is there without a word, too: what comes into it is read out. */
  badge(text, tone = "quiet") {
    this.elements.badge.dataset.tone = tone;
    setText(this.elements.badge, text ?? "");
  }

  steering(text, tone = "quiet") {
    setText(this.elements.steering, text);
    this.elements.steering.dataset.tone = tone;
    this.elements.steering.title = text;
  }

  seed(text) {
    this.elements.seed.placeholder = text;
  }

  badSeed(isBad) {
    this.elements.seed.setAttribute("aria-invalid", String(isBad));
  }

  badPrompt(isBad) {
    this.elements.prompt.setAttribute("aria-invalid", String(isBad));
  }

  badToken(isBad) {
    this.elements.token.setAttribute("aria-invalid", String(isBad));
  }

  /** The slider: 0 is a cut. */
  blend(chunks, chunkMs) {
    setText(this.elements.blendValue, chunks === 0 ? "cut" : `over ${((chunks * chunkMs) / 1000).toFixed(1)} s`);
    this.elements.blend.setAttribute("aria-valuetext", this.elements.blendValue.textContent);
  }

  recording(recorder) {
    const { record } = this.elements;
    record.setAttribute("aria-pressed", String(recorder !== null));
    setText(byId("record-word"), recorder === null ? "Record" : "Save");
    setText(byId("record-time"), recorder === null ? "" : ` ${clockTime(recorder.durationMs)}`); // no part of the name: it would be read out
  }

  /** A faint light around the video in its own colours. */
  glow() {
    this.#glowCount += 1;
    if (this.#glowCount % GLOW_EVERY !== 1) return;
    this.#glow.filter = "blur(2px) saturate(1.4)"; // on 16 × 16 it costs nothing; the browser smooths the rest
    this.#glow.drawImage(this.elements.screen, -2, -2, 20, 20);
  }

  /** Keep what is on the canvas as the picture of a prompt. */
  thumb(id) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = THUMB_PX;
    const { screen } = this.elements;
    const side = Math.min(screen.width, screen.height);
    canvas.getContext("2d").drawImage(screen, (screen.width - side) / 2, (screen.height - side) / 2, side, side, 0, 0, THUMB_PX, THUMB_PX);
    this.#thumbs.set(id, canvas);
  }

  hasThumb(id) {
    return this.#thumbs.has(id);
  }

  forgetThumbs() {
    this.#thumbs.clear();
  }

  /** Playback figures, or null for none. @param {import("./turboserve.js").Stats | null} stats */
  stats(stats) {
    const of = (write) => (stats === null ? "–" : (write(stats) ?? "–"));
    const seconds = (ms) => (ms == null ? null : `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`);
    const ms = (value) => (value == null ? null : `${Math.round(value)} ms`);
    setText(byId("stat-fps"), of(({ fps }) => `${Math.round(fps)} fps`));
    setText(byId("stat-ttfc"), of(({ ttfcMs }) => seconds(ttfcMs)));
    setText(byId("stat-latency"), of(({ steerMs }) => seconds(steerMs)));
    setText(byId("stat-buffer"), of(({ bufferMs }) => seconds(bufferMs)));
    setText(byId("stat-gen"), of(({ chunkMs }) => ms(chunkMs)));
    setText(byId("stat-ratio"), of(({ playRatio }) => playRatio && `${(playRatio * 100).toFixed(1)} %`));
    setText(byId("stat-video"), of(({ video }) => video && `${video.width}×${video.height}`));
    setText(byId("stat-codec"), of(({ codec }) => codec && ({ h264: "H.264", mjpeg: "Motion JPEG" }[codec] ?? codec.toUpperCase())));
    setText(byId("stat-rtt"), of(({ roundTripMs }) => roundTripMs && `${roundTripMs.toFixed(roundTripMs < 10 ? 1 : 0)} ms`));
    setText(byId("stat-bytes"), of(({ receivedBytes }) => `${(receivedBytes / 1e6).toFixed(1)} MB`));
    setText(byId("stat-engine"), of(({ engine }) => engine));
    setText(byId("glance-fps"), of(({ fps }) => `${Math.round(fps)} fps`));
    setText(byId("glance-latency"), of(({ steerMs }) => steerMs && `steers in ${seconds(steerMs)}`));
    setText(byId("glance-buffer"), of(({ bufferMs }) => `${seconds(bufferMs)} buffered`));
    if (this.elements.drawer.open) this.#spark(stats);
  }

  #spark(stats) {
    const values = stats?.chunkLatenciesMs ?? [];
    const playsMs = stats?.chunkPlaysMs ?? 750;
    const top = Math.max(playsMs * 1.15, ...values);
    const { line, area } = sparkPaths(values, { ...SPARK, top });
    byId("spark-line").setAttribute("d", line);
    byId("spark-area").setAttribute("d", area);
    const y = (SPARK.height - 1 - (playsMs / top) * (SPARK.height - 3)).toFixed(1);
    byId("spark-limit").setAttribute("d", values.length > 1 ? `M0 ${y}H${SPARK.width}` : "");
  }

  /** Session length and the strip of prompts. @param {import("./turboserve.js").Stream} stream */
  time(stream) {
    setText(this.elements.length, clockTime(stream.stats.lengthMs));
    this.#timeline.render(stream);
  }

  /** Newest first. */
  history(history) {
    const key = JSON.stringify(history.entries.map(({ id, state, seq }) => [id, state, seq, this.#thumbs.has(id)]));
    if (key === this.#historyKey) return;
    this.#historyKey = key;
    for (const id of this.#thumbs.keys()) if (history.find(id) === null) this.#thumbs.delete(id);
    const list = this.elements.history;
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const rows = history.entries.map((entry) => this.#row(entry, entry === history.current)).reverse();
    list.replaceChildren(...(rows.length > 0 ? rows : [emptyRow()]));
    if (focused !== null) list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }

  #row(entry, isCurrent) {
    const row = document.createElement("li");
    if (isCurrent) row.setAttribute("aria-current", "true");
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = entry.id;
    button.title = `Use again: ${entry.text}`;
    const thumb = this.#thumbs.has(entry.id) ? copyOf(this.#thumbs.get(entry.id)) : document.createElement("span");
    thumb.className = "thumb";
    thumb.setAttribute("aria-hidden", "true");
    const text = document.createElement("span");
    text.className = "text";
    text.dir = "auto";
    text.textContent = entry.text;
    const when = document.createElement("span");
    when.className = "when";
    [when.textContent, when.dataset.tone] = whenOf(entry);
    button.append(thumb, text, when);
    button.addEventListener("click", () => this.use(entry.text));
    row.append(button);
    return row;
  }
}

function whenOf(entry) {
  const at = entry.ptsMs == null ? `chunk ${entry.seq}` : clockTime(entry.ptsMs);
  return {
    sent: ["sending…", "busy"],
    accepted: ["pending…", "busy"],
    applied: [`from chunk ${entry.seq}`, "busy"],
    shown: [at, "quiet"],
    unseen: ["not shown", "quiet"],
    refused: ["refused", "bad"],
  }[entry.state];
}

function emptyRow() {
  const row = document.createElement("li");
  row.className = "empty";
  row.textContent = "Nothing yet. Press Enter to send a prompt.";
  return row;
}
