// The WebSocket to the gateway: keeps one session alive over lost connections.
//
// A session is known by its id and a secret `resume` token. When the socket breaks, connect again with a
// growing, jittered delay and `attach`; messages that were not yet `accepted` are sent again with the same id,
// which the server answers without doing them twice.
//
// A socket has a session once its opening (start, attach or watch) is answered by `session`. Before that the server
// takes nothing else but pings: whatever is sent by then would be refused.

import { FINAL_CLOSE, IDLE, NO_CAPACITY, ProtocolError, RATE_LIMITED, TokenError, UNAUTHORISED, parseMedia } from "./protocol.js";
import { Silence } from "./silence.js";

/**
 * @import { ClientMessage, ErrorMessage, Media, ServerMessage, SessionMessage } from "./protocol.js"
 * @typedef {{session: string, resume?: string}} Identity
 * @typedef {{code: number | null, sentence: string, retryAfterMs?: number | null}} Ending
 * @typedef {object} Handlers
 * @property {(message: ServerMessage) => void} message
 * @property {(media: Media) => void} media
 * @property {(attempt: number) => void} lost
 * @property {(sentence: string) => void} waiting  when the server asks to try again in a moment (done here)
 * @property {(ending: Required<Ending>) => void} ended
 * @property {() => number} nextSeq  the chunk to continue from
 */

const FIRST_DELAY_MS = 50;
const LONGEST_DELAY_MS = 2000;
const RATE_DELAY_MS = 2000;
const STEADY_MS = 2000; // a connection that was let in and lost sooner makes the next ones wait longer
const PING_EVERY_MS = 5000;
const SILENT_AFTER_MS = 12000;
const MAX_UNACCEPTED = 64;
const MAX_START_ATTEMPTS = 6;
const STOP_FOR_MS = 30_000; // by then the server has made the session of a lost connection idle

/** Errors after which the server closes the connection itself; the close code says more. */
const CLOSE_FOLLOWS = new Set(["no_such_session", "capacity", "unauthorised"]);
const ASK_AGAIN_MS = 1000;
const NO_CODE = 1006; // what a browser reports where none came
const UNREACHABLE = "The server cannot be reached. Is it running?";
const OFFLINE = "This browser is offline: it has no network.";
const NEEDS_ACCEPT = new Set(["prompt", "reset"]);

const idPrefix = Math.random().toString(36).slice(2, 10);
let idCount = 0;
/** For a message: the server answers a repeated id without doing twice what it asks for. */
export const newId = () => `${idPrefix}-${++idCount}`;

export class Connection {
  /** @type {number | null} */ roundTripMs = null;
  #openSocket;
  #handlers;
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {(() => ClientMessage) | null} */ #opening = null; // () -> the message to begin with on connect
  /** @type {ClientMessage | null} */ #asked = null; // the opening on its way: sent on this socket, refused by nobody
  #isGranted = false; // was it answered with `session`?
  /** @type {Identity | null} */ #identity = null;
  #isViewer = false;
  /** @type {Map<string | undefined, ClientMessage>} by id */ #unaccepted = new Map();
  /** @type {ClientMessage | null} */ #wanted = null; // the newest of pause and resume, sent again after an attach
  /** @type {ClientMessage | null} */ #stopping = null; // the `stop` that is still to be accepted; nobody listens any more
  #attempt = 0;
  #shortLived = 0; // connections in a row that were let in and lost at once
  /** @type {number | null} */ #grantedMs = null; // when this one was let in
  #retryTimer = 0;
  #pingTimer = 0;
  #stopTimer = 0;
  #silence = new Silence(PING_EVERY_MS, SILENT_AFTER_MS);
  #wasOpen = false;
  /** @type {ErrorMessage | null} */ #refusal = null; // the error that explains the close that follows it
  #attachment = () => ({ type: "attach", id: newId(), ...this.#identity, next_seq: this.#handlers.nextSeq() });

  /**
   * openSocket() -> a promise of a new WebSocket; a TokenError ends the connection, any other error is a failed attempt whose
   * message is a sentence.
   * @param {() => Promise<WebSocket>} openSocket @param {Handlers} handlers
   */
  constructor(openSocket, handlers) {
    this.#openSocket = openSocket;
    this.#handlers = handlers;
  }

  /** The `start`, asked for when the socket is open. @param {() => ClientMessage} message */
  start(message) {
    this.#open(message);
  }

  /** @param {Identity} identity */
  attach(identity) {
    this.#identity = identity;
    this.#open(this.#attachment);
  }

  /** A viewer has no identity: it asks again from the next chunk on. @param {{session: string, token?: string}} target */
  watch(target) {
    this.#isViewer = true;
    this.#open(() => ({ type: "watch", ...target }));
  }

  /**
   * Send a control message now. Without a session on the connection, prompts, resets and the newest of pause and resume
   * wait for it, and all others are dropped. False if too many wait.
   * @param {ClientMessage} message @returns {boolean}
   */
  send(message) {
    if (NEEDS_ACCEPT.has(message.type)) {
      if (this.#unaccepted.size >= MAX_UNACCEPTED) return false;
      this.#unaccepted.set(message.id, message);
    } else if (message.type === "pause" || message.type === "resume") {
      this.#wanted = message;
    }
    if (this.#isGranted) this.#transmit(message);
    return true;
  }

  /**
   * End the session, then leave; nothing is heard of this connection from now on. If it is down it goes on trying until
   * the server has accepted the stop, but not for ever: a session that nobody stops counts against its subject's quota.
   * @param {ClientMessage} message
   */
  stop(message) {
    const nextSeq = this.#handlers.nextSeq();
    this.#handlers = { message() {}, media() {}, lost() {}, waiting() {}, ended() {}, nextSeq: () => nextSeq };
    this.#unaccepted.clear();
    this.#wanted = null;
    this.#stopping = message;
    this.#stopTimer = setTimeout(() => this.close(), STOP_FOR_MS);
    if (this.#isGranted) this.#transmit(message);
    else if (!this.#hasSession) this.close();
  }

  /** Leave for good; nothing is heard of this connection afterwards. */
  close() {
    this.#disconnect()?.close(1000);
    this.#opening = null;
    clearTimeout(this.#stopTimer);
  }

  /** Let go of the socket, and return it. */
  #disconnect() {
    clearTimeout(this.#retryTimer);
    clearInterval(this.#pingTimer);
    const socket = this.#socket;
    this.#socket = this.#asked = null;
    this.#isGranted = false;
    return socket;
  }

  /** Is there a session, or is one being made? One whose key never came back is forgotten by the server itself. */
  get #hasSession() {
    return this.#identity !== null || this.#asked !== null;
  }

  /** @param {() => ClientMessage} opening */
  #open(opening) {
    this.#opening = opening;
    this.#connect();
  }

  async #connect() {
    const opening = this.#opening;
    /** @type {WebSocket} */ let socket;
    try {
      socket = await this.#openSocket();
    } catch (error) {
      if (opening !== this.#opening || opening === null) return;
      this.#refusal = null;
      if (error instanceof TokenError) this.#end({ code: UNAUTHORISED, sentence: error.message });
      else this.#closed(NO_CODE, /** @type {Error} */ (error).message);
      return;
    }
    if (opening !== this.#opening || opening === null) { // left, or begun anew, in the meantime
      socket.close(1000);
      return;
    }
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#silence.begin(performance.now());
    this.#refusal = null;
    /** @template [Event=void] @param {(event: Event) => void} action @returns {(event: Event) => void} */
    const ifCurrent = (action) => (event) => {
      if (socket === this.#socket) action(event);
    };
    socket.onopen = ifCurrent(() => this.#ask());
    socket.onmessage = ifCurrent((event) => this.#receive(event.data));
    socket.onclose = ifCurrent((event) => this.#closed(event.code, event.reason));
    clearInterval(this.#pingTimer);
    this.#pingTimer = setInterval(ifCurrent(() => this.#checkAlive()), PING_EVERY_MS);
  }

  #ask() {
    this.#asked = /** @type {() => ClientMessage} */ (this.#opening)(); // without one there is no socket
    this.#transmit(this.#asked);
  }

  /** @param {ClientMessage} message */
  #transmit(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** @param {string | ArrayBuffer} data */
  #receive(data) {
    this.#silence.heard(performance.now());
    try {
      if (typeof data !== "string") this.#handlers.media(parseMedia(data));
      else this.#control(JSON.parse(data));
    } catch (error) {
      if (!(error instanceof ProtocolError || error instanceof SyntaxError)) throw error;
      console.warn("ignored a message from the server:", error.message);
    }
  }

  /** @param {ServerMessage} message */
  #control(message) {
    switch (message.type) {
      case "session":
        this.#granted(message);
        break;
      case "accepted":
      case "applied":
        this.#unaccepted.delete(message.id);
        break;
      case "error":
        this.#unaccepted.delete(message.id);
        if (CLOSE_FOLLOWS.has(message.code)) this.#refusal = message;
        if (!this.#isAboutOpening(message)) break;
        this.#openingRefused(message);
        return;
      case "pong":
        this.roundTripMs = performance.now() - message.t;
        return;
    }
    this.#handlers.message(message);
    if (this.#stopping !== null && (message.id === this.#stopping.id || message.type === "closed")) this.close();
  }

  /**
   * An error without an id is about the opening as long as that has no answer: nothing else was sent.
   * @param {ErrorMessage} error
   */
  #isAboutOpening({ id }) {
    return id === undefined ? this.#asked !== null && !this.#isGranted : id === this.#asked?.id;
  }

  /** @param {ErrorMessage} error */
  #openingRefused({ code, message, retry_after_ms }) {
    this.#asked = null;
    this.#isGranted = false;
    if (CLOSE_FOLLOWS.has(code)) return;
    if (code !== "unavailable") {
      this.#end({ code: null, sentence: message || code, retryAfterMs: retry_after_ms });
    } else if (this.#stopping !== null && !this.#hasSession) {
      this.close();
    } else {
      this.#handlers.waiting(message);
      this.#retryTimer = setTimeout(() => this.#ask(), retry_after_ms ?? ASK_AGAIN_MS);
    }
  }

  /** What waited for the session is sent; what was sent before and not accepted is sent again. @param {SessionMessage} message */
  #granted({ session, resume }) {
    this.#isGranted = this.#wasOpen = true;
    this.#attempt = 0;
    this.#grantedMs ??= performance.now();
    this.#transmit({ type: "ping", t: performance.now() });
    if (!this.#isViewer) {
      this.#identity = { session, resume };
      this.#opening = this.#attachment;
    }
    for (const unaccepted of this.#unaccepted.values()) this.#transmit(unaccepted);
    for (const last of [this.#wanted, this.#stopping]) if (last !== null) this.#transmit(last);
  }

  #checkAlive() {
    if (this.#silence.look(performance.now())) {
      const socket = this.#socket;
      this.#closed(NO_CODE, "");
      socket?.close();
      return;
    }
    this.#transmit({ type: "ping", t: performance.now() });
  }

  /** @param {number} code @param {string} reason */
  #closed(code, reason) {
    this.#disconnect();
    const wasGranted = this.#grantedMs !== null;
    if (this.#grantedMs !== null) this.#shortLived = performance.now() - this.#grantedMs < STEADY_MS ? this.#shortLived + 1 : 0;
    this.#grantedMs = null;
    if (this.#stopping !== null && !this.#hasSession) {
      this.close();
      return;
    }
    const isHopeless = this.#identity === null && !this.#wasOpen && this.#attempt + 1 >= MAX_START_ATTEMPTS;
    const isFinal = FINAL_CLOSE.has(code) && (code !== IDLE || wasGranted); // no session was idle that there never was
    if (!isFinal && !isHopeless) {
      this.#retry(code);
      return;
    }
    const refusal = this.#refusal;
    const said = code === NO_CAPACITY ? "" : refusal?.message; // what to do then is for the page to say
    const sentence = said || (isFinal && FINAL_CLOSE.get(code)) || reason || (navigator.onLine ? UNREACHABLE : OFFLINE);
    this.#end({ code: isFinal ? code : NO_CODE, sentence, retryAfterMs: code === NO_CAPACITY ? refusal?.retry_after_ms : null });
  }

  /** @param {Ending} ending */
  #end({ code, sentence, retryAfterMs = null }) {
    this.close();
    this.#handlers.ended({ code, sentence, retryAfterMs });
  }

  /** @param {number} code */
  #retry(code) {
    const ceilingMs = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (this.#attempt + this.#shortLived));
    const delayMs = code === RATE_LIMITED ? RATE_DELAY_MS : ceilingMs * (0.5 + Math.random() / 2);
    this.#attempt += 1;
    this.#handlers.lost(this.#attempt);
    this.#retryTimer = setTimeout(() => this.#connect(), delayMs);
  }
}
