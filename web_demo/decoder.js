// One WebCodecs decoder that survives its own errors. Fed with access units, H.264 in Annex-B form. And the last
// resort where there is no WebCodecs: Motion JPEG, which every browser decodes as pictures.
//
// Rules learned by measurement: no `description` (SPS and PPS are in the stream), never flush in mid-stream
// (it demands a key frame), never wait for output before feeding more, a delta frame first is an error.

import { codecString } from "./protocol.js";

/**
 * @import { Bytes } from "./protocol.js"
 * @import { Picture } from "./turboserve.js"
 * @typedef {VideoFrame | ImageBitmap} Frame
 * @typedef {Picture & {life: number}} Tag
 * @typedef {{frame: (frame: Frame, tag: Tag) => void, lost: (tag: Tag) => void, failed: () => void}} Handlers
 * @typedef {{VideoDecoder?: typeof VideoDecoder, createImageBitmap?: unknown, isSecureContext: boolean,
 *   location: {port: string}}} Scope
 */

const STUCK_FRAMES = 3;
const STUCK_MS = 3000; // a busy machine takes a second, and a decoder that is only slow loses a chunk by it
const LONGEST_STEP_MS = 100; // if the page itself stood still, pictures wait behind what looks after them
const MAX_FAILURES = 5;
const MAX_BAD_PICTURES = 64; // in a row: a chunk or two may be damaged, but not all of them
const TICK_US = 1000; // the decoder's timestamp only carries a ticket

/**
 * Codec -> what WebCodecs calls it when its bits are not there to say more; the one that is liked best first.
 * @type {Record<string, string>}
 */
const CODECS = { h264: "avc1.42C01E", vp9: "vp09.00.10.08", av1: "av01.0.00M.08" };

/** @type {Promise<string[]> | null} */ let known = null;

/** What this browser decodes, the best first. @param {Scope} scope @returns {Promise<string[]>} */
export function supportedCodecs(scope = globalThis) {
  known ??= findCodecs(scope);
  return known;
}

/** @param {Scope} scope */
async function findCodecs(scope) {
  /** @type {string[]} */ const found = [];
  for (const [name, codec] of "VideoDecoder" in scope ? Object.entries(CODECS) : []) {
    try {
      if ((await scope.VideoDecoder?.isConfigSupported({ codec }))?.supported) found.push(name);
    } catch {
      // An answer in the form of an error is a no as well.
    }
  }
  return "createImageBitmap" in scope ? [...found, "mjpeg"] : found;
}

/**
 * Whether this browser can show the stream; null, or a sentence that says why not and what to do.
 * @param {Scope} scope @returns {Promise<string | null>}
 */
export async function whyUnsupported(scope = globalThis) {
  if ((await supportedCodecs(scope)).length > 0) return null;
  if (!("VideoDecoder" in scope)) {
    if (scope.isSecureContext === false) {
      return `Browsers decode live video only on a secure address. Open this page over https, or through a tunnel: ` +
        `ssh -L ${scope.location.port || 80}:localhost:${scope.location.port || 80} and the name of the server, ` +
        `then http://localhost:${scope.location.port || 80}`;
    }
    return "This browser is too old to decode live video. Use Chrome or Edge 95, Safari 16.4, Firefox 130, or newer.";
  }
  return "This browser decodes no video that there is here. Use a regular Chrome, Edge, Safari or Firefox.";
}

/**
 * The decoder for a session's codec. Handlers: frame(picture, tag), which owns the picture and must close it; lost(tag) for a
 * unit that gives no picture, for whatever reason; failed() when decoding fails for good.
 * @param {string} codec @param {Handlers} handlers
 */
export function makeDecoder(codec, handlers) {
  return codec === "mjpeg" ? new PictureDecoder(handlers) : new Decoder(codec, handlers);
}

/** Motion JPEG: every access unit is a picture. */
class PictureDecoder {
  #handlers;
  #newest = Promise.resolve(); // pictures come out in their order
  #bad = 0; // in a row
  #life = 0;

  /** @param {Handlers} handlers */
  constructor(handlers) {
    this.#handlers = handlers;
  }

  /** @param {Bytes} unit @param {boolean} _isKey @param {Tag} tag */
  decode(unit, _isKey, tag) {
    const life = this.#life;
    const picture = createImageBitmap(new Blob([unit], { type: "image/jpeg" }));
    picture.catch(() => {}); // told below, in its turn
    this.#newest = this.#newest.then(() => picture).then(
      (frame) => this.#decoded(frame, tag, life),
      (error) => this.#skip(error, tag, life),
    ).catch((error) => reportError(error)); // whoever takes the pictures has failed, not the picture
  }

  /** @param {ImageBitmap} frame @param {Tag} tag @param {number} life */
  #decoded(frame, tag, life) {
    if (life !== this.#life) {
      frame.close();
      return;
    }
    this.#bad = 0;
    this.#handlers.frame(frame, tag);
  }

  /**
   * A picture that is no picture: the one before stays a little longer.
   * @param {Error} error @param {Tag} tag @param {number} life
   */
  #skip(error, tag, life) {
    console.warn("picture decoder:", error.message);
    if (life !== this.#life) return;
    this.#handlers.lost(tag);
    this.#bad += 1;
    if (this.#bad >= MAX_BAD_PICTURES) this.#handlers.failed();
  }

  check() {}

  waitForKey() {}

  close() {
    this.#life += 1;
  }
}

class Decoder {
  #name; // as the protocol has it
  #handlers;
  /** @type {VideoDecoder | null} */ #decoder = null;
  /** @type {string | null} */ #codec = null;
  #waitingForKey = true;
  /** @type {Map<number, Tag>} by ticket */ #pending = new Map();
  #checkedMs = 0;
  #silentMs = 0; // for so long it has had enough to give a picture, and gave none
  #nextTicket = 1;
  #failures = 0;
  #preferSoftware = false;

  /** @param {string} name @param {Handlers} handlers */
  constructor(name, handlers) {
    this.#name = name;
    this.#handlers = handlers;
  }

  /**
   * Decode one access unit; its frame comes back with `tag`.
   * @param {Bytes} unit @param {boolean} isKey @param {Tag} tag
   */
  decode(unit, isKey, tag) {
    if (isKey) this.#prepare(unit);
    else if (this.#waitingForKey) {
      this.#handlers.lost(tag);
      return;
    }
    const ticket = this.#nextTicket++;
    this.#pending.set(ticket, tag);
    const decoder = /** @type {VideoDecoder} */ (this.#decoder); // without one it waits for a key
    try {
      decoder.decode(
        new EncodedVideoChunk({ type: isKey ? "key" : "delta", timestamp: ticket * TICK_US, data: unit }),
      );
    } catch (error) {
      this.#fail(decoder, /** @type {Error} */ (error));
    }
  }

  /** A delta frame without its predecessors decodes to a smear without an error: skip to the next key. */
  waitForKey() {
    this.#waitingForKey = true;
  }

  close() {
    if (this.#decoder !== null && this.#decoder.state !== "closed") this.#decoder.close();
    this.#decoder = null;
    this.#pending.clear();
    this.#silentMs = 0;
    this.#waitingForKey = true;
  }

  /**
   * To be called again and again: one that keeps pictures to itself, as some in hardware do, is given up. No more video may come
   * before one is seen.
   * @param {number} nowMs
   */
  check(nowMs) {
    const passedMs = Math.min(nowMs - this.#checkedMs, LONGEST_STEP_MS);
    this.#checkedMs = nowMs;
    if (this.#preferSoftware || this.#pending.size <= STUCK_FRAMES) this.#silentMs = 0;
    else this.#silentMs += passedMs;
    if (this.#silentMs <= STUCK_MS) return;
    console.warn("video decoder: it keeps pictures to itself, trying software");
    this.#preferSoftware = true;
    this.#giveUp();
  }

  /** @param {Bytes} unit */
  #prepare(unit) {
    const codec = (this.#name === "h264" && codecString(unit)) || (this.#codec ?? CODECS[this.#name] ?? this.#name);
    this.#waitingForKey = false;
    if (this.#decoder !== null && codec === this.#codec) return;
    this.#decoder ??= this.#create();
    this.#codec = codec;
    this.#decoder.configure({
      codec,
      optimizeForLatency: true,
      hardwareAcceleration: this.#preferSoftware ? "prefer-software" : "no-preference",
    });
  }

  #create() {
    /** @type {VideoDecoder} */
    const decoder = new VideoDecoder({
      output: (frame) => this.#output(decoder, frame),
      error: (error) => this.#fail(decoder, error),
    });
    return decoder;
  }

  /** @param {VideoDecoder} decoder @param {VideoFrame} frame */
  #output(decoder, frame) {
    const ticket = frame.timestamp / TICK_US;
    const tag = this.#pending.get(ticket);
    this.#pending.delete(ticket);
    if (decoder !== this.#decoder || tag === undefined) {
      frame.close();
      return;
    }
    this.#failures = this.#silentMs = 0;
    this.#handlers.frame(frame, tag);
  }

  /** @param {VideoDecoder} decoder @param {Error} error */
  #fail(decoder, error) {
    if (decoder !== this.#decoder) return;
    console.warn("video decoder:", error.message);
    this.#giveUp();
    this.#failures += 1;
    if (this.#failures > 1) this.#preferSoftware = true; // one may be damaged video; hardware may not take it at all
    if (this.#failures >= MAX_FAILURES) this.#handlers.failed();
  }

  /** The decoder is made anew for the next key frame; what it still holds is lost. */
  #giveUp() {
    for (const tag of this.#pending.values()) this.#handlers.lost(tag);
    this.close();
  }
}
