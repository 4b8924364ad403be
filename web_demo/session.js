// One session as the page sees it: joins connection, player and prompt history, and knows which phase it is in.

import { Connection } from "./connection.js";
import { PromptHistory } from "./history.js";
import { Player } from "./player.js";
import { IDLE, NO_CAPACITY, NO_SUCH_SESSION, PATH, TAKEN_OVER } from "./protocol.js";
import * as storage from "./storage.js";

// One chunk is 0.75 s of video. With a second of lead a chunk may take that long to make before the picture
// stops; a new prompt does not wait for it, because the player cuts what is queued of the old one.
const LEAD_MS = 1000;
const ACK_EVERY_MS = 500;
const STALL_SHOWN_AFTER_MS = 400;

let idCount = 0;
const ENDINGS = new Map([[1000, "ended"], [IDLE, "ended"], [TAKEN_OVER, "taken"], [NO_CAPACITY, "full"]]);

const idPrefix = Math.random().toString(36).slice(2, 10);
const newId = () => `${idPrefix}-${++idCount}`;

export class Session {
  id = null;
  engine = null;
  rev = null;
  seed = null;
  history = new PromptHistory();
  link = "none"; // none, connecting, open, lost
  attempts = 0;
  serverState = null; // queued, active, idle
  idleReason = ""; // why it is idle ("paused", or something that playing on cures) or queued again
  queue = null; // {position, eta_ms}
  waiting = null; // the server's sentence why it cannot take the session yet
  end = null; // {kind: "ended" | "failed" | "full" | "taken", sentence}
  latencyMs = null;
  takesControls = false; // does the model follow held keys?
  #resume = null;
  #connection = null;
  #player;
  #ackTimer = 0;
  #wantsPause = null; // null: whatever the server says
  #dryMs = null;
  #notify;
  #note;
  #sized;

  /**
   * notify() after every change; note(text, tone) for news about steering; drawn() after each picture;
   * sized(width, height) when the size of the video is known.
   */
  constructor(canvas, { notify, note, drawn, sized }) {
    this.#notify = notify;
    this.#note = note;
    this.#player = new Player(canvas, {
      complete: (header) => this.#completed(header),
      drawn: (info) => {
        this.#drew(info);
        drawn();
      },
      failed: () => this.#finish("failed", "This browser could not decode the video. Another browser may."),
    });
    this.#sized = sized;
  }

  get player() {
    return this.#player;
  }

  get isLive() {
    return this.link !== "none";
  }

  get isPaused() {
    return this.#wantsPause ?? (this.serverState === "idle" && this.idleReason === "paused");
  }

  /** One word for where things stand; the keys of PHASES in view.js. */
  get phase() {
    if (this.end !== null) return this.end.kind;
    if (this.link === "none") return "ready";
    const hasPicture = this.#player.drawn !== null;
    if (this.link === "lost") return hasPicture ? "lost" : "connecting";
    if (this.link === "connecting") return "connecting";
    if (this.serverState === "queued") return "queued";
    if (this.isPaused) return "paused";
    if (!hasPicture) return "preparing";
    return this.#isStalled() ? "stalled" : "generating";
  }

  start(prompt, seed) {
    this.leave();
    this.seed = seed;
    this.history.clear();
    const id = newId();
    this.history.add(id, prompt, performance.now());
    this.#begin();
    this.#connection.start({ type: "start", id, prompt, seed, lead_ms: LEAD_MS });
    this.#notify();
  }

  /** Go on with the session that this tab had before a reload. False if there was none. */
  continueSaved() {
    const saved = storage.load();
    if (saved === null) return false;
    this.leave();
    this.seed = saved.seed ?? null;
    // Their times are those of the page before the reload.
    this.history.entries = (saved.history ?? []).map((entry) => ({ ...entry, sentMs: null }));
    this.#wantsPause = saved.paused ? true : null;
    this.#begin(Math.max(0, saved.seq ?? 0));
    this.#connection.attach({ session: saved.session, resume: saved.resume });
    this.#notify();
    return true;
  }

  prompt(text) {
    const entry = this.history.add(newId(), text, performance.now());
    const isSent = this.#connection.send({ type: "prompt", id: entry.id, text, transition: "cut" });
    if (isSent) this.#note(this.isPaused ? "Pending until you resume" : "Pending…", "busy");
    else {
      this.history.refused(entry.id);
      this.#note("Too many prompts are waiting for the server. Try again in a moment.", "bad");
    }
    this.#notify();
  }

  /** Which keys are held now. A state, not an event: what is lost with a connection is not said again. */
  hold(keys) {
    if (this.link === "open" && this.takesControls) this.#connection.send({ type: "control", keys });
  }

  setPaused(paused) {
    if (!this.isLive) return;
    this.#wantsPause = paused;
    this.#player.setPaused(paused);
    this.#connection.send({ type: paused ? "pause" : "resume", id: newId() });
    this.#save();
    this.#notify();
  }

  reset(seed) {
    const message = { type: "reset", id: newId() };
    if (seed !== null) this.seed = message.seed = seed;
    this.#connection.send(message);
    this.#note("Starting over with the same prompt…", "busy");
  }

  stop() {
    this.#connection.send({ type: "stop", id: newId() });
    this.#finish("ended", "You stopped it.");
  }

  /** Drop connection and playback without ending the session on the server. */
  leave() {
    clearInterval(this.#ackTimer);
    this.#connection?.close();
    this.#connection = null;
    this.#player.close();
    this.link = "none";
    Object.assign(this, { id: null, engine: null, rev: null, serverState: null, queue: null, waiting: null, end: null, latencyMs: null, takesControls: false });
    this.#wantsPause = null;
    this.#dryMs = null;
  }

  #begin(nextSeq = 0) {
    const url = new URL(PATH, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    let isOpened = false; // the player keeps its pictures when only the connection was lost
    this.#connection = new Connection(url.href, {
      nextSeq: () => (isOpened ? this.#player.nextSeq : nextSeq),
      message: (message) => {
        if (message.type === "session" && !isOpened) {
          isOpened = true;
          this.#player.open(message, nextSeq);
          this.#player.setPaused(this.isPaused);
          this.#sized(message.width, message.height);
        }
        this.#heard(message);
      },
      media: (media) => this.#player.part(media),
      lost: (attempts) => {
        this.link = "lost";
        this.attempts = attempts;
        this.#notify();
      },
      waiting: (sentence) => {
        this.waiting = sentence;
        this.#notify();
      },
      ended: (ending) => this.#disconnected(ending),
    });
    this.link = "connecting";
    this.#ackTimer = setInterval(() => this.#ack(), ACK_EVERY_MS);
  }

  #heard(message) {
    switch (message.type) {
      case "session":
        this.link = "open";
        this.waiting = null;
        this.id = message.session;
        this.takesControls = message.controls === true;
        this.#resume = message.resume;
        this.#save();
        break;
      case "queued":
        this.serverState = "queued";
        this.queue = message;
        break;
      case "state":
        this.#stateChanged(message);
        break;
      case "accepted":
        this.history.accepted(message.id);
        this.#save();
        break;
      case "applied":
        this.#applied(message);
        break;
      case "gap":
        this.#player.gap(message.to_seq);
        break;
      case "error":
        this.#refused(message);
        break;
      case "closed":
        this.#finish("ended", sentenceFor(message.reason));
        break;
    }
    this.#notify();
  }

  #stateChanged({ state, engine, reason }) {
    if (state === "closed") return; // `closed` follows, with the reason
    this.serverState = state;
    this.idleReason = reason ?? "";
    this.engine = engine ?? null;
    if (state === "queued") return;
    this.queue = null;
    if (state === "active" && this.#wantsPause === false) this.#wantsPause = null;
    this.#player.setPaused(this.isPaused);
  }

  #applied({ id, rev, seq }) {
    if (id === undefined) return; // keys that were held: the picture says it
    this.history.applied(id, rev, seq);
    if (this.history.underWay?.id === id) this.#note(`Applied at chunk ${seq}, about to show`, "busy");
    this.#save();
  }

  #refused({ id, message, code }) {
    this.history.refused(id);
    this.#note(message || code, "bad");
  }

  #completed(header) {
    const first = this.history.entries[0];
    if (first !== undefined && first.rev === null && ["sent", "accepted"].includes(first.state)) {
      this.history.applied(first.id, header.rev, header.seq); // the prompt that came with `start`
    }
    if (typeof header.engine === "string") this.engine = header.engine;
    this.#ack();
  }

  #drew({ seq, rev }) {
    const isNewChunk = this.#savedSeq !== seq;
    if (rev !== this.rev) this.#revisionShown(rev);
    if (isNewChunk) this.#save();
  }

  #revisionShown(rev) {
    const isFirst = this.rev === null;
    this.rev = rev;
    const entry = this.history.drawn(rev, performance.now());
    if (entry !== null && entry.latencyMs !== null) {
      this.latencyMs = entry.latencyMs;
      this.#note(`${isFirst ? "First picture" : "On screen"} ${(entry.latencyMs / 1000).toFixed(1)} s after Enter`, "good");
    } else if (entry !== null) {
      this.#note("On screen", "good"); // sent by the page before a reload
    } else if (!isFirst && entry === null) this.#note("Started over", "good");
    this.#notify();
  }

  #disconnected({ code, sentence, retryAfterMs }) {
    const kind = ENDINGS.get(code) ?? "failed";
    if (code === NO_SUCH_SESSION && this.id === null && storage.load() !== null) {
      this.leave(); // the session of before the reload is gone: nothing to alarm anybody about
      storage.clear();
      this.history.clear();
      this.#note("The session of before is over. Start a new one.");
      this.#notify();
      return;
    }
    const wait = retryAfterMs === null ? "" : ` Worth trying again in ${Math.ceil(retryAfterMs / 1000)} s.`;
    this.#finish(kind, sentence + wait);
  }

  #finish(kind, sentence) {
    if (this.end !== null) return;
    const id = this.id;
    const connection = this.#connection;
    this.#connection = null; // close() sends what `stop` still has in the socket's buffer first
    connection?.close();
    clearInterval(this.#ackTimer);
    this.#player.close();
    this.link = "none";
    this.id = id;
    this.end = { kind, sentence };
    this.#note("");
    this.history.finish(["failed", "full"].includes(kind) ? "refused" : "unseen");
    if (kind !== "taken") storage.clear();
    this.#notify();
  }

  #ack() {
    if (this.link !== "open") return;
    const bufferMs = Math.round(this.#player.bufferMs(performance.now()));
    this.#connection?.send({ type: "ack", seq: this.#player.newestSeq, buffer_ms: bufferMs });
  }

  #isStalled() {
    const nowMs = performance.now();
    if (this.#player.clock.running) this.#dryMs = null;
    else this.#dryMs ??= nowMs;
    return this.#dryMs !== null && nowMs - this.#dryMs > STALL_SHOWN_AFTER_MS;
  }

  #savedSeq = null;

  #save() {
    if (this.id === null || this.#resume === null) return;
    this.#savedSeq = this.#player.drawn?.seq ?? null;
    storage.save({
      session: this.id,
      resume: this.#resume,
      seq: this.#savedSeq ?? this.#player.nextSeq,
      seed: this.seed,
      paused: this.#wantsPause === true,
      history: this.history.entries.filter(({ state }) => state !== "sent"),
    });
  }
}

function sentenceFor(reason) {
  const known = {
    stopped: "It was stopped.",
    idle: "It was paused for a long time.",
    disconnected: "It waited too long for its connection to come back.",
    lost: "The server does not know it any more.",
  };
  return known[reason] ?? "It is over.";
}
