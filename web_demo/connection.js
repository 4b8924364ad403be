// The WebSocket to the gateway: keeps one session alive over lost connections.
//
// A session is known by its id and a secret `resume` token. When the socket breaks, connect again with a
// growing, jittered delay and `attach`; messages that were not yet `accepted` are sent again with the same id,
// which the server answers without doing them twice.

import { FINAL_CLOSE, NO_CAPACITY, ProtocolError, RATE_LIMITED, parseMedia } from "./protocol.js";

const FIRST_DELAY_MS = 50;
const LONGEST_DELAY_MS = 2000;
const RATE_DELAY_MS = 2000;
const PING_EVERY_MS = 5000;
const SILENT_AFTER_MS = 12000;
const MAX_UNACCEPTED = 64;
const MAX_START_ATTEMPTS = 6;

/** Errors after which the server closes the connection itself; the close code says more. */
const CLOSE_FOLLOWS = new Set(["no_such_session", "capacity", "unauthorised"]);
const ASK_AGAIN_MS = 1000;
const NEEDS_ACCEPT = new Set(["prompt", "reset"]);

export class Connection {
  roundTripMs = null;
  #openSocket;
  #handlers;
  #socket = null;
  #opening = null; // the start or attach message to send on connect
  #identity = null; // {session, resume}
  #watching = null; // a viewer's message
  #unaccepted = new Map(); // id -> message
  #wanted = null; // the newest of pause and resume, sent again after an attach
  #attempt = 0;
  #retryTimer = 0;
  #pingTimer = 0;
  #heardMs = 0;
  #wasOpen = false;
  #isSettled = false; // has the opening been answered with `session` on this socket?
  #refusal = null; // newest error message, to explain a close

  /**
   * openSocket() -> a promise of a new WebSocket. Handlers: message(object), media({header, units}), lost(attempt), waiting(sentence) when the server asks
   * to try again in a moment (done here), ended({code, sentence, retryAfterMs}), nextSeq() -> the chunk to
   * continue from.
   */
  constructor(openSocket, handlers) {
    this.#openSocket = openSocket;
    this.#handlers = handlers;
  }

  /** message() -> the `start`, asked for when the socket is open. */
  start(message) {
    this.#open(message);
  }

  attach(identity) {
    this.#identity = identity;
    this.#open(null);
  }

  /** A viewer has no identity: it asks again from the next chunk on. */
  watch(target) {
    this.#watching = { type: "watch", ...target };
    this.#open(() => this.#watching);
  }

  /** Send a control message now, or after the next attach if the connection is down. */
  send(message) {
    if (NEEDS_ACCEPT.has(message.type)) {
      if (this.#unaccepted.size >= MAX_UNACCEPTED) return false;
      this.#unaccepted.set(message.id, message);
    } else if (message.type === "pause" || message.type === "resume") {
      this.#wanted = message;
    }
    this.#transmit(message);
    return true;
  }

  /** Leave for good; nothing is heard of this connection afterwards. */
  close() {
    clearTimeout(this.#retryTimer);
    clearInterval(this.#pingTimer);
    const socket = this.#socket;
    this.#socket = null;
    this.#opening = null;
    if (socket !== null) socket.close(1000);
  }

  #open(opening) {
    this.#opening = opening ?? (() => ({ type: "attach", ...this.#identity, next_seq: this.#handlers.nextSeq() }));
    this.#connect();
  }

  async #connect() {
    const opening = this.#opening;
    let socket;
    try {
      socket = await this.#openSocket();
    } catch (error) {
      if (opening === this.#opening && opening !== null) this.#closed(1006, `No token could be had: ${error.message}`);
      return;
    }
    if (opening !== this.#opening || opening === null) { // left, or begun anew, in the meantime
      socket.close(1000);
      return;
    }
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#heardMs = performance.now();
    this.#refusal = null;
    this.#isSettled = false;
    const ifCurrent = (action) => (event) => {
      if (socket === this.#socket) action(event);
    };
    socket.onopen = ifCurrent(() => this.#transmit(this.#opening()));
    socket.onmessage = ifCurrent((event) => this.#receive(event.data));
    socket.onclose = ifCurrent((event) => this.#closed(event.code, event.reason));
    clearInterval(this.#pingTimer);
    this.#pingTimer = setInterval(ifCurrent(() => this.#checkAlive()), PING_EVERY_MS);
  }

  #transmit(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #receive(data) {
    this.#heardMs = performance.now();
    try {
      if (typeof data !== "string") this.#handlers.media(parseMedia(data));
      else this.#control(JSON.parse(data));
    } catch (error) {
      if (!(error instanceof ProtocolError || error instanceof SyntaxError)) throw error;
      console.warn("ignored a message from the server:", error.message);
    }
  }

  #control(message) {
    switch (message.type) {
      case "session":
        this.#established(message);
        break;
      case "accepted":
      case "applied":
        this.#unaccepted.delete(message.id);
        break;
      case "error":
        this.#refusal = message;
        this.#unaccepted.delete(message.id);
        if (this.#isSettled) break;
        this.#openingRefused(message);
        return;
      case "pong":
        this.roundTripMs = performance.now() - message.t;
        return;
    }
    this.#handlers.message(message);
  }

  #openingRefused({ code, message, retry_after_ms }) {
    if (CLOSE_FOLLOWS.has(code)) return;
    if (code !== "unavailable") {
      this.close();
      this.#handlers.ended({ code: null, sentence: message || code, retryAfterMs: retry_after_ms ?? null });
      return;
    }
    this.#handlers.waiting(message);
    this.#retryTimer = setTimeout(() => this.#transmit(this.#opening()), retry_after_ms ?? ASK_AGAIN_MS);
  }

  #established(message) {
    this.#isSettled = this.#wasOpen = true;
    this.#attempt = 0;
    this.#transmit({ type: "ping", t: performance.now() });
    if (this.#watching !== null) return;
    const isReturn = this.#identity?.session === message.session;
    this.#identity = { session: message.session, resume: message.resume };
    this.#opening = () => ({ type: "attach", ...this.#identity, next_seq: this.#handlers.nextSeq() });
    if (!isReturn) return;
    for (const unaccepted of this.#unaccepted.values()) this.#transmit(unaccepted);
    if (this.#wanted !== null) this.#transmit(this.#wanted);
  }

  #checkAlive() {
    if (performance.now() - this.#heardMs > SILENT_AFTER_MS) {
      const socket = this.#socket;
      this.#closed(1006, "");
      socket.close();
      return;
    }
    this.#transmit({ type: "ping", t: performance.now() });
  }

  #closed(code, reason) {
    clearInterval(this.#pingTimer);
    clearTimeout(this.#retryTimer);
    this.#socket = null;
    const isHopeless = this.#identity === null && !this.#wasOpen && this.#attempt + 1 >= MAX_START_ATTEMPTS;
    if (!FINAL_CLOSE.has(code) && !isHopeless) {
      this.#retry(code);
      return;
    }
    const refusal = this.#refusal;
    const said = code === NO_CAPACITY ? "" : refusal?.message; // what to do then is for the page to say
    const sentence = said || FINAL_CLOSE.get(code) || reason || "The server cannot be reached. Is it running?";
    this.#handlers.ended({
      code,
      sentence,
      retryAfterMs: code === NO_CAPACITY ? (refusal?.retry_after_ms ?? null) : null,
    });
  }

  #retry(code) {
    const ceilingMs = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempt);
    const delayMs = code === RATE_LIMITED ? RATE_DELAY_MS : ceilingMs * (0.5 + Math.random() / 2);
    this.#attempt += 1;
    this.#handlers.lost(this.#attempt);
    this.#retryTimer = setTimeout(() => this.#connect(), delayMs);
  }
}
