// Everything that writes to the page. Text goes in through textContent only.

const byId = (id) => document.getElementById(id);

const PLAY = "M5 3l8 5-8 5z";
const PAUSE = "M4 3h3v10H4zM9 3h3v10H9z";
const GLOW_EVERY = 4;

const setText = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

/** phase -> what the page says and allows. `veil`: none, over (on the last picture), full. */
const PHASES = {
  ready: { tone: "quiet", status: "Ready", veil: "full", title: "Describe a scene",
    text: "It is generated while you watch, and follows when you change your mind." },
  unsupported: { tone: "bad", status: "Cannot play here", veil: "full", title: "This browser cannot play the video" },
  connecting: { tone: "busy", status: "Connecting…", veil: "over", title: "Connecting…", busy: true },
  queued: { tone: "busy", status: "Queued", veil: "over", title: "You are in line", busy: true, live: true },
  preparing: { tone: "busy", status: "Starting", veil: "over", title: "Making the first pictures…", busy: true, live: true },
  generating: { tone: "good", status: "Generating", veil: "none", live: true },
  stalled: { tone: "busy", status: "Catching up…", veil: "none", live: true },
  paused: { tone: "quiet", status: "Paused", veil: "none", live: true },
  lost: { tone: "busy", status: "Connection lost, retrying…", veil: "none", live: true },
  taken: { tone: "quiet", status: "Open in another window", veil: "over", title: "This session moved to another window",
    action: "Continue here" },
  full: { tone: "busy", status: "No place free", veil: "over", title: "No place is free right now", action: "Try again" },
  ended: { tone: "quiet", status: "Ended", veil: "over", title: "The session has ended", action: "Start again" },
  failed: { tone: "bad", status: "Stopped by an error", veil: "over", title: "That did not work", action: "Try again" },
};

export class View {
  elements = Object.fromEntries(
    ["stage", "glow", "screen", "veil", "spinner", "status", "caption", "form", "prompt", "send", "steering", "chips",
      "pause", "reset", "stop", "seed", "history", "pad"].map((id) => [id, byId(id)]),
  );
  action = byId("veil-action");
  #glow = this.elements.glow.getContext("2d", { alpha: false });
  #glowCount = 0;
  #historyKey = "";

  /** Show a phase; `detail` is a sentence under the title, `status` a longer word for the status line. */
  phase(name, { detail = "", status = null } = {}) {
    const { elements } = this;
    const phase = PHASES[name];
    const isLive = phase.live === true;
    setText(elements.status, status ?? phase.status);
    elements.status.parentElement.dataset.tone = phase.tone;
    elements.veil.dataset.show = phase.veil;
    elements.spinner.hidden = phase.busy !== true;
    if (phase.veil !== "none") {
      setText(byId("veil-title"), phase.title);
      setText(byId("veil-text"), phase.text ?? detail);
    }
    this.action.hidden = phase.action === undefined;
    setText(this.action, phase.action ?? "");
    setText(elements.send, isLive ? "Steer" : "Start");
    elements.send.disabled = ["unsupported", "connecting", "taken"].includes(name);
    for (const button of [elements.pause, elements.reset, elements.stop]) button.disabled = !isLive;
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

  /** The prompt in the picture, or null. */
  caption(text) {
    this.elements.caption.hidden = text === null;
    setText(this.elements.caption, text ?? "");
    this.elements.screen.setAttribute("aria-label", text === null ? "The generated video" : `Generated video: ${text}`);
  }

  steering(text, tone = "quiet") {
    setText(this.elements.steering, text);
    this.elements.steering.dataset.tone = tone;
  }

  seed(text) {
    this.elements.seed.placeholder = text;
  }

  badSeed(isBad) {
    this.elements.seed.setAttribute("aria-invalid", String(isBad));
  }

  /** A faint light around the video in its own colours. */
  glow() {
    this.#glowCount += 1;
    if (this.#glowCount % GLOW_EVERY !== 1) return;
    this.#glow.drawImage(this.elements.screen, 0, 0, 8, 8);
  }

  /** Playback figures, or null for none. */
  stats(figures) {
    const seconds = (ms) => (ms === null ? "–" : `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`);
    setText(byId("stat-fps"), figures === null ? "–" : `${Math.round(figures.fps)} fps`);
    setText(byId("stat-latency"), figures === null ? "–" : seconds(figures.latencyMs));
    setText(byId("stat-buffer"), figures === null ? "–" : seconds(figures.bufferMs));
    setText(byId("stat-gen"), figures?.genMs == null ? "–" : `${Math.round(figures.genMs)} ms`);
    setText(byId("stat-engine"), figures?.engine ?? "–");
    byId("stat-engine").title = figures?.engine ?? "";
  }

  /** Newest first; use(text) when one is chosen again. */
  history(history, use) {
    const key = JSON.stringify(history.entries.map(({ id, state, seq }) => [id, state, seq]));
    if (key === this.#historyKey) return;
    this.#historyKey = key;
    const list = this.elements.history;
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const rows = history.entries.map((entry) => historyRow(entry, entry === history.current, use)).reverse();
    list.replaceChildren(...(rows.length > 0 ? rows : [emptyRow()]));
    if (focused !== null) list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }
}

function emptyRow() {
  const row = document.createElement("li");
  row.className = "empty";
  row.textContent = "Nothing yet. Press Enter to send a prompt.";
  return row;
}

function historyRow(entry, isCurrent, use) {
  const row = document.createElement("li");
  if (isCurrent) row.setAttribute("aria-current", "true");
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.id = entry.id;
  button.title = entry.text;
  const text = document.createElement("span");
  text.className = "text";
  text.textContent = entry.text;
  const when = document.createElement("span");
  when.className = "when";
  [when.textContent, when.dataset.tone] = {
    sent: ["sending…", "busy"],
    accepted: ["pending…", "busy"],
    applied: [`from chunk ${entry.seq}`, "busy"],
    shown: [`chunk ${entry.seq}`, "quiet"],
    unseen: ["not shown", "quiet"],
    refused: ["refused", "bad"],
  }[entry.state];
  button.append(text, when);
  button.addEventListener("click", () => use(entry.text));
  row.append(button);
  return row;
}
