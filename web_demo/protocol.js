// The public protocol v1, JSON flavour, as the page needs it. Pure: no sockets, no clocks, no DOM.
// The full description is docs/protocol.md.

/**
 * @import { ChunkHeader } from "./turboserve.js"
 * @typedef {Uint8Array<ArrayBuffer>} Bytes
 * @typedef {{header: ChunkHeader, units: Bytes[]}} Media
 * @typedef {{type: "session", session: string, resume?: string, model: string, width: number, height: number, fps: number,
 *   chunk_frames: number, codec?: string, lead_ms?: number, controls?: boolean}} SessionMessage
 * @typedef {{type: "queued", position: number, eta_ms: number}} QueuedMessage
 * @typedef {{type: "state", state: "queued" | "active" | "idle" | "closed", engine?: string | null, reason?: string}} StateMessage
 * @typedef {{type: "error", code: string, message: string, id?: string, retry_after_ms?: number}} ErrorMessage
 * @typedef {{type: "applied", rev: number, seq: number, id?: string}} AppliedMessage
 * @typedef {{id?: string} & (SessionMessage | QueuedMessage | StateMessage | ErrorMessage | AppliedMessage
 *   | {type: "accepted", id: string} | {type: "stats", latency_ms: number} | {type: "gap", to_seq: number}
 *   | {type: "pong", t: number} | {type: "closed", reason: string})} ServerMessage  what is read of it here
 * @typedef {{type: string, id?: string, [field: string]: unknown}} ClientMessage
 */

export const SUBPROTOCOL = "turboserve.v1+json";
export const TOKEN_SUBPROTOCOL_PREFIX = "turboserve.token.";
export const PATH = "/v1/stream";
export const MAX_PROMPT_CHARS = 2000;
export const MAX_TOKEN_CHARS = 8192;
export const MAX_HEADER_BYTES = 65536;
export const MAX_PARTS = 4096;

export class ProtocolError extends Error {}

/** What is to be used as an access token can't be one. Its message never holds it. */
export class TokenError extends Error {}

/** Close codes after which connecting again cannot help, and what to tell the person. */
export const FINAL_CLOSE = new Map([
  [1000, "The session is over."],
  [4400, "The server did not understand this page. Reload it; if that does not help, page and server differ in version."],
  [4401, "The server wants a valid access token for this."],
  [4403, "The server does not accept pages from this address."],
  [4404, "This session no longer exists. Start a new one."],
  [4408, "The session was closed because it was paused for a long time."],
  [4409, "Only one window at a time can play it."],
  [4503, "Every engine is busy and the line is full."],
]);

export const UNAUTHORISED = 4401;
export const IDLE = 4408;
export const TAKEN_OVER = 4409;
export const NO_SUCH_SESSION = 4404;
export const NO_CAPACITY = 4503;
export const RATE_LIMITED = 4429;

/**
 * Why a text can't be a prompt, in a sentence, or null if it can. Characters are counted as the server does it, by
 * code points: one emoji is one, though its JavaScript string is two long.
 * @param {string} text @returns {string | null}
 */
export function promptFault(text) {
  if (/\p{Surrogate}/u.test(text)) return "A prompt has whole characters only; half of one is in this.";
  const count = text.length > MAX_PROMPT_CHARS ? [...text].length : text.length;
  return count > MAX_PROMPT_CHARS ? `A prompt has at most ${MAX_PROMPT_CHARS} characters; this one has ${count}.` : null;
}

/** @param {string} text */
export const isToken = (text) => text.length <= MAX_TOKEN_CHARS && /^[\w.-]+$/.test(text);

/**
 * The access token in what somebody pasted, without the spaces and the "Bearer" that come with it; null if there is none.
 * @param {string} text @returns {string | null}
 */
export function readToken(text) {
  const token = text.trim().replace(/^Bearer(\s+|$)/i, "");
  return isToken(token) ? token : null;
}

/** @param {any} value */
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
/** @param {any} value */
const isTime = (value) => typeof value === "number" && Number.isFinite(value);

/** @param {any} header @param {number} payloadBytes @throws {ProtocolError} */
function checkHeader(header, payloadBytes) {
  if (header === null || typeof header !== "object" || header.type !== "chunk") {
    throw new ProtocolError("a media message must have a chunk header");
  }
  const { seq, part, parts, frames, sizes, rev } = header;
  if (![seq, part, parts, frames, rev].every(isCount) || parts > MAX_PARTS || part >= parts) {
    throw new ProtocolError("a chunk header has a wrong seq, part, parts, frames or rev");
  }
  if (!isTime(header.pts_ms) || !isTime(header.duration_ms) || header.duration_ms < 0) {
    throw new ProtocolError("a chunk header has a wrong time");
  }
  if (!Array.isArray(sizes) || sizes.length !== frames || !sizes.every(isCount)) {
    throw new ProtocolError("a chunk header has wrong sizes");
  }
  if (sizes.reduce((/** @type {number} */ sum, /** @type {number} */ size) => sum + size, 0) !== payloadBytes) {
    throw new ProtocolError("the sizes of a chunk part do not sum to its payload");
  }
}

/**
 * Split one binary message: 4-byte big-endian header length, JSON header, H.264 access units.
 * The units are views into the buffer, not copies.
 * @param {ArrayBuffer} buffer @returns {Media} @throws {ProtocolError}
 */
export function parseMedia(buffer) {
  if (buffer.byteLength < 4) throw new ProtocolError("a media message is too short");
  const headerBytes = new DataView(buffer).getUint32(0, false);
  if (headerBytes > MAX_HEADER_BYTES || 4 + headerBytes > buffer.byteLength) {
    throw new ProtocolError("a media message has a wrong header length");
  }
  /** @type {ChunkHeader} */ let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 4, headerBytes)));
  } catch (error) {
    throw new ProtocolError("a chunk header is not JSON", { cause: error });
  }
  let offset = 4 + headerBytes;
  checkHeader(header, buffer.byteLength - offset);
  const units = header.sizes.map((size) => {
    const unit = new Uint8Array(buffer, offset, size);
    offset += size;
    return unit;
  });
  return { header, units };
}

/**
 * Keeps the order of parts. `accept(header)` says what to do with a part:
 * "skip" (a repeat, or the rest of a chunk whose beginning is missing), "begin" (first part of a chunk,
 * also when an incomplete one is sent again: what is held of it must go), "continue".
 */
export class ChunkSequence {
  /** @param {number} nextSeq */
  constructor(nextSeq) {
    this.nextSeq = nextSeq; // the chunk that is not yet complete
    this.nextPart = 0;
    this.missing = 0; // chunks jumped over without a gap message
  }

  /** @param {ChunkHeader} header @returns {"skip" | "begin" | "continue"} */
  accept(header) {
    if (header.seq < this.nextSeq) return "skip";
    if (header.part === 0) {
      this.missing += header.seq - this.nextSeq;
      this.nextSeq = header.seq;
      this.#advance(header);
      return "begin";
    }
    if (header.seq !== this.nextSeq || header.part !== this.nextPart) return "skip";
    this.#advance(header);
    return "continue";
  }

  /** The server said that it will not send these chunks. @param {number} toSeq */
  gap(toSeq) {
    if (toSeq < this.nextSeq) return;
    this.nextSeq = toSeq + 1;
    this.nextPart = 0;
  }

  get newestComplete() {
    return this.nextSeq - 1;
  }

  /** @param {ChunkHeader} header */
  #advance(header) {
    this.nextPart = header.part + 1;
    if (this.nextPart < header.parts) return;
    this.nextSeq = header.seq + 1;
    this.nextPart = 0;
  }
}

/** WebCodecs codec string from the SPS of an Annex-B access unit, or null if it has none. @param {Uint8Array} unit */
export function codecString(unit) {
  for (let i = 0; i + 6 < unit.length; i++) {
    const isStart = unit[i] === 0 && unit[i + 1] === 0 && unit[i + 2] === 1;
    if (!isStart || (unit[i + 3] & 0x1f) !== 7) continue;
    const hex = (/** @type {number} */ byte) => byte.toString(16).padStart(2, "0").toUpperCase();
    return `avc1.${hex(unit[i + 4])}${hex(unit[i + 5])}${hex(unit[i + 6])}`;
  }
  return null;
}
