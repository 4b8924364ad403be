// TurboServe in a browser: one live session as an object. See README.md beside this file.
//
//   import { Stream } from "./turboserve.js";
//   const stream = new Stream({ canvas: document.querySelector("canvas") });
//   stream.start({ prompt: "a red ball bouncing on a blue background" });
//   stream.prompt("make it night");

import { Connection, newId } from "./connection.js";
import { supportedCodecs, whyUnsupported } from "./decoder.js";
import { PromptHistory } from "./history.js";
import { Recorder } from "./mp4.js";
import { Player } from "./player.js";
import {
  IDLE, MAX_PROMPT_CHARS, NO_CAPACITY, NO_SUCH_SESSION, PATH, SUBPROTOCOL, TAKEN_OVER, TOKEN_SUBPROTOCOL_PREFIX, TokenError, UNAUTHORISED,
  isToken, promptFault, readToken,
} from "./protocol.js";
import * as storage from "./storage.js";

export { MAX_PROMPT_CHARS, promptFault, readToken, whyUnsupported };

/**
 * The types that pages see are in turboserve.d.ts, and editors and compilers take them from there.
 * @typedef {import("./turboserve.js").Stream} Declared  this class as pages see it
 * @import { ChunkHeader, Mark, Phase, Picture, PromptEntry, Recording, Stats } from "./turboserve.js"
 * @import { StreamEvents, StreamOptions, TokenSource } from "./turboserve.js"
 * @import { Entry } from "./history.js"
 * @import { AppliedMessage, ClientMessage, Media, QueuedMessage, ServerMessage, SessionMessage, StateMessage } from "./protocol.js"
 */

// One chunk is 0.75 s of video. With a second of lead a chunk may take that long to make before the picture
// stops; a new prompt does not wait for it, because the player cuts what is queued of the old one.
const LEAD_MS = 1000;
const ACK_EVERY_MS = 500;
const STALL_SHOWN_AFTER_MS = 400;
const LATENCIES = 60;
const MAX_MARKS = 60;
const SHARE_S = 24 * 3600; // as long as a gateway allows

/** @type {Map<number | null, Phase>} */
const ENDINGS = new Map([[1000, "ended"], [IDLE, "ended"], [TAKEN_OVER, "taken"], [NO_CAPACITY, "full"], [UNAUTHORISED, "locked"]]);

/** The token that a source gives now, or null. @param {TokenSource} source @returns {Promise<string | null>} @throws {TokenError} */
async function tokenOf(source) {
  const token = (typeof source === "function" ? await asked(source) : source) || null;
  if (token !== null && !isToken(token)) throw new TokenError("What is used as the access token has characters that no token has.");
  return token;
}

/** @param {() => string | null | Promise<string | null>} source @throws {Error} a sentence that says that it is about the token */
async function asked(source) {
  try {
    return await source();
  } catch (error) {
    const { message = String(error) } = /** @type {Partial<Error>} */ (error ?? {});
    throw new Error(`No token could be had: ${message}`, { cause: error });
  }
}

/** @param {string} text @throws {RangeError} */
function checkPrompt(text) {
  const fault = promptFault(text);
  if (fault !== null) throw new RangeError(fault);
}

/**
 * The one place that opens a socket. A browser can't set headers on it, so a token travels as a subprotocol.
 * @param {string} url @param {TokenSource} token @returns {Promise<WebSocket>}
 */
export async function openSocket(url, token = null) {
  const jwt = await tokenOf(token);
  return new WebSocket(url, jwt === null ? [SUBPROTOCOL] : [SUBPROTOCOL, TOKEN_SUBPROTOCOL_PREFIX + jwt]);
}

/**
 * The one place that asks over HTTP.
 * @param {string | URL} path @param {{token?: TokenSource, method?: string, body?: object, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, { token = null, method = "GET", body, signal } = {}) {
  const jwt = await tokenOf(token);
  /** @type {Record<string, string>} */ const headers = {};
  if (jwt !== null) headers.Authorization = `Bearer ${jwt}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
}

/**
 * A session: starts, plays on a canvas, is steered, survives lost connections.
 *
 * Events, by `on(name, handler)`: `change` (anything below is other than before), `phase` ({phase, before}),
 * `prompt` ({entry, isFirst}: it changed its state), `frame` ({seq, rev, ptsMs, endMs}: it was drawn),
 * `chunk` (the header of each complete chunk), `size` ({width, height}), `mark` (a Mark), `restarted` (after
 * `reset` the new beginning is on the canvas), `refused` ({code, message, id}: the server's error), `gone` (the
 * remembered session no longer exists). An error in a handler is reported as the page's own; the session goes on.
 * @implements {Declared}
 */
export class Stream {
  history = new PromptHistory();
  /** @type {string | null} */ id = null;
  /** @type {string | null} */ engine = null;
  /** @type {number | null} revision of the prompts on the canvas */ rev = null;
  /** @type {number | null} */ seed = null;
  /** @type {Mark[]} what else happened, by media time */ marks = [];
  /** Has this page no say in the session? */ isViewer = false;
  /** Does the model follow held keys? */ takesControls = false;
  /** @type {QueuedMessage | null} */ queue = null;
  /** Why it is idle or queued again, in the server's word. */ reason = "";
  /** @type {string | null} why the server can't take the session yet */ waiting = null;
  /** @type {{kind: Phase, sentence: string} | null} */ end = null;
  /** Connection attempts since the last one that worked. */ attempts = 0;
  /** @type {"none" | "connecting" | "open" | "lost"} */ #link = "none";
  /** @type {"queued" | "active" | "idle" | null} */ #serverState = null;
  /** @type {SessionMessage | null} */ #video = null;
  /** @type {string | null} */ #resume = null;
  /** @type {string | null} */ #viewToken = null; // what `watch` was given
  #url;
  #token;
  #remembers;
  #accept = ["h264"]; // what this browser decodes
  /** @type {Connection | null} */ #connection = null;
  #player;
  /** @type {Recorder | null} */ #recorder = null;
  /** @type {Map<string, Set<(detail: any) => void>>} */ #handlers = new Map();
  #ackTimer = 0;
  /** @type {boolean | null} */ #wantsPause = null; // null: whatever the server says
  /** @type {number | null} */ #dryMs = null;
  /** @type {string | null} the id of `start`, whose prompt needs no other message */ #startId = null;
  /** @type {Phase} */ #phase = "ready";
  /** @type {number | null} */ #savedSeq = null;
  /** @type {number | null} */ #startedMs = null;
  /** @type {number | null} */ #ttfcMs = null;
  /** @type {number | null} */ #steerMs = null;
  /** @type {number[]} */ #latencies = [];
  #bytes = 0;
  #lengthMs = 0;
  /** @type {string[]} */ #keys = []; // held now, whether there is somebody to tell or not

  /** @param {StreamOptions} options */
  constructor({ canvas, url = location.href, token = null, remember = false }) {
    const stream = new URL(PATH, url);
    stream.protocol = ["https:", "wss:"].includes(stream.protocol) ? "wss:" : "ws:";
    this.#url = stream.href;
    this.#token = token;
    this.#remembers = remember;
    this.#player = new Player(canvas, {
      complete: (header) => this.#completed(header),
      drawn: (info) => this.#drew(info),
      failed: () => {
        this.#abandon(); // else it would go on, and count against its subject's quota, for nobody
        this.#finish("failed", "This browser could not decode the video. Another browser may.");
      },
    });
  }

  /**
   * Call `handler` at each event of that name. Returns a function that ends it.
   * @template {keyof StreamEvents} Name
   * @param {Name} name @param {(detail: StreamEvents[Name]) => void} handler @returns {() => void}
   */
  on(name, handler) {
    const handlers = this.#handlers.get(name) ?? new Set();
    this.#handlers.set(name, handlers.add(handler));
    return () => handlers.delete(handler);
  }

  /**
   * @template {keyof StreamEvents} Name
   * @param {Name} name @param {StreamEvents[Name]} [detail]
   */
  #emit(name, detail) {
    for (const handler of this.#handlers.get(name) ?? []) {
      try {
        handler(detail);
      } catch (error) {
        reportError(error);
      }
    }
  }

  /** Tell about a change; the phase may have changed with it. */
  #notify() {
    this.refresh();
    this.#emit("change");
  }

  get player() {
    return this.#player;
  }

  /** Is there a session that this object follows? */
  get isLive() {
    return this.#link !== "none";
  }

  get isPaused() {
    // For a viewer nothing comes whyever it is idle; who steers it brings it back by being there.
    return this.#wantsPause ?? (this.#serverState === "idle" && (this.reason === "paused" || this.isViewer));
  }

  /** Can `startRecording` keep this session's video? The server's recording (`download`) is there for the others. */
  get isRecordable() {
    return this.isLive && this.#video?.codec === "h264";
  }

  get isRecording() {
    return this.#recorder !== null;
  }

  /** One word for where things stand. @returns {Phase} */
  get phase() {
    if (this.end !== null) return this.end.kind;
    if (this.#link === "none") return "ready";
    const hasPicture = this.#player.drawn !== null;
    if (this.#link === "lost") return hasPicture ? "lost" : "connecting";
    if (this.#link === "connecting") return "connecting";
    if (this.#serverState === "queued") return "queued";
    if (this.isPaused) return "paused";
    if (!hasPicture) return "preparing";
    return this.#isStalled() ? "stalled" : "generating";
  }

  /** See whether time alone changed the phase (a stall). Call it a few times a second. */
  refresh() {
    const before = this.#phase;
    this.#phase = this.phase;
    if (this.#phase !== before) this.#emit("phase", { phase: this.#phase, before });
  }

  /** @returns {Stats} */
  get stats() {
    const nowMs = performance.now();
    const { playedMs, stalledMs } = this.#player.clock.totals(nowMs);
    const video = this.#video;
    return {
      fps: this.#player.fps,
      ttfcMs: this.#ttfcMs,
      steerMs: this.#steerMs,
      bufferMs: this.#player.bufferMs(nowMs),
      chunkMs: this.#latencies.at(-1) ?? this.#player.genMs,
      chunkLatenciesMs: [...this.#latencies],
      roundTripMs: this.#connection?.roundTripMs ?? null,
      codec: video?.codec ?? null,
      engine: this.engine,
      lengthMs: this.#lengthMs,
      stalls: this.#player.clock.stalls,
      playRatio: playedMs + stalledMs > 0 ? playedMs / (playedMs + stalledMs) : null,
      receivedBytes: this.#bytes,
      video: video && { width: video.width, height: video.height, fps: video.fps, model: video.model },
    };
  }

  /**
   * A new session. @param {{prompt: string, seed?: number, model?: string, leadMs?: number}} options
   * @throws {RangeError} when the prompt is too long (see `promptFault`); nothing has changed then
   */
  start({ prompt, seed, model, leadMs = LEAD_MS }) {
    checkPrompt(prompt);
    this.#drop();
    this.seed = seed ?? null;
    this.history.clear();
    const id = newId();
    this.#startId = id;
    this.#asked(this.history.add(id, prompt, performance.now()));
    this.#startedMs = performance.now();
    this.#begin().start(() => ({ type: "start", id, prompt, seed, model, lead_ms: leadMs, accept: this.#accept }));
    this.#notify();
  }

  /** Go on with the session that this tab had before a reload. False if there was none. */
  continue() {
    const saved = storage.load();
    if (saved === null) return false;
    this.#drop();
    this.seed = saved.seed ?? null;
    this.marks = saved.marks ?? [];
    // Their times are those of the page before the reload.
    this.history.entries = (saved.history ?? []).map((entry) => ({ ...entry, sentMs: null }));
    this.#wantsPause = saved.paused ? true : null;
    const connection = this.#begin(Math.max(0, saved.seq ?? 0));
    connection.attach({ session: saved.session, resume: saved.resume });
    // Perhaps they were not heard before the reload; the server does nothing twice.
    for (const entry of this.history.entries) if (entry.state === "sent") connection.send(promptMessage(entry));
    if (saved.paused) connection.send({ type: "pause", id: newId() });
    this.#notify();
    return true;
  }

  /** Look at somebody's session without a say in it. @param {{session: string, token?: string}} options */
  watch({ session, token }) {
    this.#drop();
    this.history.clear();
    this.isViewer = true;
    this.#viewToken = token ?? null;
    this.#begin().watch({ session, token });
    this.#notify();
  }

  /**
   * Steer the running video, or the one that is about to begin. @param {string} text
   * @param {{blendChunks?: number}} [options]  chunks over which the old prompt turns into the new one; 0 cuts
   * @returns {PromptEntry}
   * @throws {RangeError} when it is too long (see `promptFault`); nothing is sent then
   */
  prompt(text, { blendChunks = 0 } = {}) {
    checkPrompt(text);
    const entry = this.history.add(newId(), text, performance.now(), blendChunks);
    const isSent = this.#connection?.send(promptMessage(entry)) ?? false;
    if (!isSent) {
      this.history.refused(entry.id);
      const message = this.isLive ? "Too many prompts are waiting for the server. Try again in a moment." : "There is no session to steer.";
      this.#emit("refused", { code: this.isLive ? "unavailable" : "bad_state", message, id: entry.id });
    }
    this.#asked(entry);
    this.#save();
    this.#notify();
    return entry;
  }

  /**
   * Which keys are held now. A state, not an event: it is said again with each connection, whose server may have another one, or
   * one of the page before a reload.
   * @param {readonly string[]} keys
   */
  control(keys) {
    this.#keys = [...keys];
    this.#sayKeys();
  }

  #sayKeys() {
    if (this.#link === "open" && this.takesControls) this.#connection?.send({ type: "control", keys: this.#keys });
  }

  /** @param {boolean} paused */
  setPaused(paused) {
    if (!this.isLive || this.isViewer) return;
    this.#wantsPause = paused;
    this.#player.setPaused(paused);
    this.#connection?.send({ type: paused ? "pause" : "resume", id: newId() });
    if (paused) this.#mark("paused", "paused");
    this.#save();
    this.#notify();
  }

  /** Forget the past, keep the prompt. @param {{seed?: number}} [options] */
  reset({ seed } = {}) {
    if (!this.isLive) return;
    if (seed !== undefined) this.seed = seed;
    this.#connection?.send({ type: "reset", id: newId(), seed });
  }

  /**
   * End the session. While the connection is down the server is told as soon as it is back, within half a minute. A viewer only
   * stops to watch. A recording is still there.
   */
  stop() {
    if (!this.isLive) return;
    if (this.isViewer) {
      this.#finish("ended", "You stopped watching.");
      return;
    }
    this.#abandon();
    this.#finish("ended", "You stopped it.");
  }

  /** Have the server end the session, if it is one of our own. */
  #abandon() {
    if (this.isViewer) return;
    this.#connection?.stop({ type: "stop", id: newId() });
    this.#connection = null; // it closes by itself once the server has heard it
  }

  /** Drop connection, playback and recording without ending the session on the server. */
  leave() {
    this.#drop();
    this.#notify();
  }

  #drop() {
    clearInterval(this.#ackTimer);
    this.#connection?.close();
    this.#connection = null;
    this.#player.close();
    this.#link = "none";
    Object.assign(this, { id: null, engine: null, rev: null, queue: null, waiting: null, end: null, marks: [], reason: "", attempts: 0 });
    Object.assign(this, { takesControls: false, isViewer: false });
    this.#keys = [];
    this.#serverState = this.#wantsPause = this.#dryMs = this.#video = this.#recorder = this.#resume = this.#viewToken = null;
    this.#startId = this.#startedMs = this.#ttfcMs = this.#steerMs = null;
    this.#latencies = [];
    this.#bytes = this.#lengthMs = 0;
  }

  /**
   * Drop everything: connection, player and decoder, timers, listeners, event handlers. The session lives on for a while as
   * after `leave()`; `stop()` first to end it, which is seen through. The object is not to be used afterwards.
   */
  destroy() {
    this.#drop();
    this.#player.destroy();
    this.#handlers.clear();
  }

  /**
   * The session from its beginning as an MP4 file, from the server; after its end for ten minutes. Rejects with a sentence.
   * @returns {Promise<Blob>}
   */
  async download() {
    const answer = await this.#ask("recording.mp4", this.#resume || this.#viewToken || this.#token);
    if (!answer.ok) throw new Error((await faultOf(answer)).message);
    return answer.blob().catch((error) => {
      throw new Error("The connection broke before the whole recording was here. Try again.", { cause: error });
    });
  }

  /**
   * What another page needs to `watch` this session: asks the gateway for a view token. Rejects with a sentence.
   * @param {{ttlS?: number}} [options]  for how long the token opens the session, in s, from 1 to a day; who watches by then goes on
   * @returns {Promise<{session: string, token: string | null, expiresInS: number}>}
   */
  async share({ ttlS = SHARE_S } = {}) {
    if (this.isViewer) throw new Error("Only who steers a session can share it.");
    const session = /** @type {string} */ (this.id); // `#ask` throws where there is none; by its answer it may be another
    const answer = await this.#ask("watch", this.#token, { method: "POST", body: { resume: this.#resume, ttl_s: ttlS } });
    if (!answer.ok) {
      const { code, message } = await faultOf(answer);
      if (code === "no_such_session") throw new Error("This session is over, or another's: it can't be shared.");
      throw new Error([404, 405].includes(answer.status) ? "This server does not take viewers." : message);
    }
    const said = await answer.json();
    return { session, token: said.token ?? null, expiresInS: said.expires_in_s ?? ttlS };
  }

  /**
   * Ask the gateway for something of this session.
   * @param {string} what @param {TokenSource} source @param {{method?: string, body?: object}} [options] @returns {Promise<Response>}
   */
  async #ask(what, source, options = {}) {
    if (this.id === null) throw new Error("There is no session.");
    const path = new URL(`/v1/sessions/${this.id}/${what}`, this.#url.replace(/^ws/, "http"));
    const token = await tokenOf(source); // its faults are not the server's
    return request(path, { token, ...options }).catch((error) => {
      throw new Error("The server does not answer.", { cause: error });
    });
  }

  /** Keep the video from the next chunk on, as it came, until `stopRecording` or until it `isFull`. */
  startRecording() {
    if (this.#video !== null && this.isRecordable) this.#recorder = new Recorder(this.#video);
    this.#notify();
  }

  /** The recording under way, or null. A full one takes no more: save it by `stopRecording`. @returns {Recording | null} */
  get recording() {
    return this.#recorder;
  }

  /** The recording as an MP4 file, or null if no chunk came in the meantime. @returns {Blob | null} */
  stopRecording() {
    const recorder = this.#recorder;
    this.#recorder = null;
    this.#notify();
    return recorder === null ? null : recorder.file();
  }

  /** @returns {Connection} */
  #begin(nextSeq = 0) {
    let isOpened = false; // the player keeps its pictures when only the connection was lost
    const open = async () => {
      this.#accept = await supportedCodecs();
      return openSocket(this.#url, this.#token);
    };
    const connection = new Connection(open, {
      nextSeq: () => (isOpened ? this.#player.nextSeq : nextSeq),
      message: (message) => {
        if (message.type === "session" && !isOpened) {
          isOpened = true;
          this.#player.open(message, nextSeq);
          this.#player.setPaused(this.isPaused);
          this.#emit("size", { width: message.width, height: message.height });
        }
        this.#heard(message);
      },
      media: (media) => this.#received(media),
      lost: (attempts) => {
        this.#link = "lost";
        this.attempts = attempts;
        this.#notify();
      },
      waiting: (sentence) => {
        this.waiting = sentence;
        this.#notify();
      },
      ended: (ending) => this.#disconnected(ending),
    });
    this.#connection = connection;
    this.#link = "connecting";
    this.#ackTimer = setInterval(() => this.#ack(), ACK_EVERY_MS);
    return connection;
  }

  /** @param {Media} media */
  #received(media) {
    if (this.#startedMs !== null) {
      this.#ttfcMs = performance.now() - this.#startedMs;
      this.#startedMs = null;
    }
    for (const unit of media.units) this.#bytes += unit.length;
    const isNew = this.#player.part(media);
    if (!isNew || this.#recorder === null || this.#recorder.isFull) return;
    this.#recorder.part(media);
    if (this.#recorder.isFull) this.#notify();
  }

  /** @param {ServerMessage} message */
  #heard(message) {
    switch (message.type) {
      case "session":
        this.#link = "open";
        this.waiting = null;
        this.attempts = 0;
        this.#video = message;
        this.id = message.session;
        this.takesControls = message.controls === true && !this.isViewer;
        this.#resume = message.resume ?? null;
        this.#sayKeys();
        this.#save();
        break;
      case "queued":
        this.#serverState = "queued";
        this.queue = message;
        break;
      case "state":
        this.#stateChanged(message);
        break;
      case "stats":
        this.#latencies.push(message.latency_ms);
        if (this.#latencies.length > LATENCIES) this.#latencies.shift();
        break;
      case "accepted":
        this.history.accepted(message.id);
        this.#asked(this.history.find(message.id));
        this.#save();
        break;
      case "applied":
        this.#applied(message);
        break;
      case "gap":
        this.#player.gap(message.to_seq);
        this.#mark("gap", "some video was left out");
        break;
      case "error":
        this.history.refused(message.id);
        this.#emit("refused", { ...message, message: message.message || message.code });
        break;
      case "closed":
        this.#finish("ended", sentenceFor(message.reason));
        break;
    }
    this.#notify();
  }

  /** @param {StateMessage} message */
  #stateChanged({ state, engine, reason }) {
    if (state === "closed") return; // `closed` follows, with the reason
    const wasLost = this.#serverState === "queued" && this.reason !== "";
    this.#serverState = state;
    this.reason = reason ?? "";
    if (state === "queued") {
      this.engine = null;
      return;
    }
    if (this.engine !== null && engine && engine !== this.engine) this.#mark("moved", `moved from ${this.engine} to ${engine}`);
    else if (wasLost && engine) this.#mark("recovered", `continued on ${engine}`);
    this.engine = engine ?? null;
    this.queue = null;
    if (state === "active" && this.#wantsPause === false) this.#wantsPause = null;
    this.#player.setPaused(this.isPaused);
  }

  /** @param {AppliedMessage} message */
  #applied({ id, rev, seq }) {
    if (id === undefined) return; // keys that were held: the picture says it
    this.history.applied(id, rev, seq);
    const entry = this.history.find(id);
    if (entry !== null && entry.blendChunks > 0) this.#player.blendInto(rev);
    this.#asked(entry);
    this.#save();
  }

  /** @param {Entry | null} entry */
  #asked(entry) {
    if (entry !== null) this.#emit("prompt", { entry, isFirst: this.rev === null });
  }

  /** @param {Mark["kind"]} kind @param {string} text */
  #mark(kind, text) {
    const mark = { kind, text, ptsMs: this.#lengthMs };
    this.marks.push(mark);
    if (this.marks.length > MAX_MARKS) this.marks.shift();
    this.#emit("mark", mark);
  }

  /** @param {ChunkHeader} header */
  #completed(header) {
    const first = this.history.entries[0];
    if (first !== undefined && first.rev === null && ["sent", "accepted"].includes(first.state)) {
      this.history.applied(first.id, header.rev, header.seq); // the prompt that came with `start`
    }
    if (this.engine === null && this.#serverState !== "queued" && typeof header.engine === "string") this.engine = header.engine;
    this.#ack();
    this.#emit("chunk", header);
  }

  /** @param {Picture} info */
  #drew(info) {
    const isNewChunk = this.#savedSeq !== info.seq;
    this.#lengthMs = info.endMs;
    if (info.rev !== this.rev) this.#revisionShown(info);
    if (isNewChunk) this.#save();
    this.#emit("frame", info);
  }

  /** @param {Picture} info */
  #revisionShown({ rev, ptsMs }) {
    const isFirst = this.rev === null;
    const entry = this.history.drawn(rev, performance.now(), ptsMs);
    if (entry !== null && entry.latencyMs !== null) this.#steerMs = entry.latencyMs;
    if (entry !== null) this.#asked(entry);
    else if (!isFirst && !this.isViewer) { // a viewer is not told of prompts
      this.#mark("restarted", "started over");
      this.#emit("restarted");
    }
    this.rev = rev;
    this.#notify();
  }

  /** @param {{code: number | null, sentence: string, retryAfterMs: number | null}} ending */
  #disconnected({ code, sentence, retryAfterMs }) {
    const kind = ENDINGS.get(code) ?? "failed";
    if (code === NO_SUCH_SESSION && this.id === null && this.#remembers && !this.isViewer && storage.load() !== null) {
      this.#drop(); // the session of before the reload is gone: nothing to alarm anybody about
      storage.clear();
      this.history.clear();
      this.#emit("gone");
      this.#notify();
      return;
    }
    const wait = retryAfterMs === null ? "" : ` Worth trying again in ${Math.ceil(retryAfterMs / 1000)} s.`;
    this.#finish(kind, sentence + wait);
  }

  /** @param {Phase} kind @param {string} sentence */
  #finish(kind, sentence) {
    if (this.end !== null) return;
    const connection = this.#connection;
    this.#connection = null;
    connection?.close();
    clearInterval(this.#ackTimer);
    this.#player.close();
    this.#link = "none";
    this.end = { kind, sentence };
    this.history.finish(["failed", "full", "locked"].includes(kind) ? "refused" : "unseen");
    if (!["taken", "locked"].includes(kind) && this.#remembers && !this.isViewer) storage.clear();
    this.#notify();
  }

  #ack() {
    if (this.#link !== "open" || this.isViewer) return;
    const bufferMs = Math.round(this.#player.bufferMs(performance.now()));
    this.#connection?.send({ type: "ack", seq: this.#player.newestSeq, buffer_ms: bufferMs });
  }

  #isStalled() {
    const nowMs = performance.now();
    if (this.#player.clock.running) this.#dryMs = null;
    else this.#dryMs ??= nowMs;
    return this.#dryMs !== null && nowMs - this.#dryMs > STALL_SHOWN_AFTER_MS;
  }

  #save() {
    if (!this.#remembers || this.isViewer || this.id === null || this.#resume === null) return;
    this.#savedSeq = this.#player.drawn?.seq ?? null;
    storage.save({
      session: this.id,
      resume: this.#resume,
      seq: this.#savedSeq ?? this.#player.nextSeq,
      seed: this.seed,
      paused: this.#wantsPause === true,
      marks: this.marks,
      history: this.history.entries.filter(({ id, state }) => state !== "sent" || id !== this.#startId),
    });
  }
}

/** @param {Entry} entry @returns {ClientMessage} */
function promptMessage({ id, text, blendChunks }) {
  const how = blendChunks > 0 ? { transition: "blend", blend_chunks: blendChunks } : { transition: "cut" };
  return { type: "prompt", id, text, ...how };
}

/** What an answer that is no success says. @param {Response} answer @returns {Promise<{code?: string, message: string}>} */
async function faultOf(answer) {
  const said = await answer.json().catch(() => null);
  return { message: `The server answered ${answer.status}.`, ...said?.error };
}

/** @param {string} reason */
function sentenceFor(reason) {
  /** @type {Record<string, string>} */
  const known = {
    stopped: "It was stopped.",
    idle: "It was paused for a long time.",
    disconnected: "It waited too long for its connection to come back.",
    lost: "The server does not know it any more.",
    engine_crashed: "One engine after another crashed while they had it. It may be what crashes them.",
  };
  return known[reason] ?? "It is over.";
}
