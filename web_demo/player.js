// The video player: parts of chunks in, pictures on a canvas out, at the pace of a playback clock.
//
// Everything is decoded at once and waits in a queue ordered by media time. Each animation frame draws the
// newest picture that is due and closes the rest. When the queue runs dry the last picture stays, and the
// clock starts again with the next frame, so lateness is paid once and never accumulates.

import { PlaybackClock } from "./clock.js";
import { makeDecoder } from "./decoder.js";
import { ChunkSequence } from "./protocol.js";

/**
 * @import { Frame, Tag } from "./decoder.js"
 * @import { Media, SessionMessage } from "./protocol.js"
 * @import { ChunkHeader, Picture } from "./turboserve.js"
 * @typedef {Tag & {frame: Frame}} Item  decoded, not yet shown
 * @typedef {object} Handlers
 * @property {(header: ChunkHeader) => void} complete  after each complete chunk
 * @property {(info: Picture) => void} drawn  after each picture (in a hidden page as it comes due, and again for the one that is
 *   drawn when the page is seen)
 * @property {() => void} failed  when this browser cannot decode the video
 */

const MAX_QUEUED_FRAMES = 256;
const KEEP_FRAMES_AT_CUT = 3;
const GEN_MEMORY = 4;
const LONGEST_SIDE_PX = 480; // small video is enlarged by the canvas's smooth filter up to about this

export class Player {
  clock = new PlaybackClock();
  framesDrawn = 0;
  framesSkipped = 0;
  chunks = 0;
  gaps = 0;
  chunkMs = 750; // what a chunk plays
  /** @type {Picture | null} on the canvas */ drawn = null;
  #canvas;
  #context;
  #handlers;
  /** @type {ReturnType<typeof makeDecoder> | null} */ #decoder = null; // the codec is the session's
  #sequence = new ChunkSequence(0);
  /** @type {Item[]} */ #queue = [];
  #life = 0; // grows when a chunk is sent again; frames of its first life are dropped
  /** @type {number | null} */ #begunSeq = null;
  #frameMs = 62.5;
  #mostQueued = MAX_QUEUED_FRAMES;
  /** @type {number | null} */ #firstMs = null; // media time where this player came in
  /** @type {number | null} */ #newestEndMs = null; // media time at the end of the newest complete chunk
  #lostEndMs = 0; // media time up to which something came that can't be shown
  #chunkEndMs = 0; // where the next part of the chunk being received goes on
  /** @type {number | null} */ #cutRev = null;
  /** @type {number | null} */ #blendRev = null; // a revision that the picture turns into slowly: nothing is cut for it
  /** @type {number[]} */ #genMs = []; // what the last chunks took to make
  #paused = false;
  #loop = 0;
  /** @type {number[]} */ #drawTimes = [];
  /** @type {Frame | null} */ #unseen = null; // the newest picture that came due while nobody could see it
  #seen = () => { // the page came to the front, or went to the back
    const nowMs = performance.now();
    this.tick(nowMs);
    if (!document.hidden && this.#catchUp(nowMs) && this.drawn !== null) this.#handlers.drawn(this.drawn);
  };

  /** @param {HTMLCanvasElement} canvas @param {Handlers} handlers */
  constructor(canvas, handlers) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.#handlers = handlers;
    document.addEventListener("visibilitychange", this.#seen);
  }

  /**
   * Begin a session (or join a running one) whose first wanted chunk is nextSeq.
   * @param {SessionMessage} session @param {number} nextSeq
   */
  open(session, nextSeq) {
    this.close();
    this.#decoder = makeDecoder(session.codec ?? "h264", {
      frame: (frame, tag) => this.#decoded(frame, tag),
      lost: ({ endMs }) => (this.#lostEndMs = endMs),
      failed: () => this.#handlers.failed(),
    });
    this.#frameMs = 1000 / session.fps;
    this.chunkMs = session.chunk_frames * this.#frameMs;
    this.#mostQueued = Math.max(MAX_QUEUED_FRAMES, Math.ceil((session.lead_ms ?? 0) / this.#frameMs) + 2 * session.chunk_frames);
    this.#sequence = new ChunkSequence(nextSeq);
    this.#resize(session.width, session.height);
    this.#paused = false;
    this.#run();
  }

  /** Stop playing; the last picture stays on the canvas. */
  close() {
    cancelAnimationFrame(this.#loop);
    this.#loop = 0;
    this.#catchUp(performance.now());
    for (const item of this.#queue) item.frame.close();
    this.#queue = [];
    this.#decoder?.close();
    this.clock.clear(performance.now());
    this.drawn = null;
    this.#begunSeq = null;
    this.#firstMs = null;
    this.#newestEndMs = null;
    this.#lostEndMs = 0;
    this.#cutRev = this.#blendRev = null;
    this.#genMs = [];
  }

  /** Close for good. */
  destroy() {
    this.close();
    document.removeEventListener("visibilitychange", this.#seen);
  }

  get nextSeq() {
    return this.#sequence.nextSeq;
  }

  get newestSeq() {
    return this.#sequence.newestComplete;
  }

  get fps() {
    const since = performance.now() - 2000;
    while (this.#drawTimes.length > 0 && this.#drawTimes[0] < since) this.#drawTimes.shift();
    if (this.#drawTimes.length < 2) return 0;
    return ((this.#drawTimes.length - 1) * 1000) / (performance.now() - this.#drawTimes[0]);
  }

  get genMs() {
    return this.#genMs.at(-1) ?? null;
  }

  /**
   * Media time from the playhead to the end of the newest complete chunk. What can't be shown is as good as played: the server
   * sends no more as long as enough is buffered, and who waits for a picture that can be decoded would wait for ever.
   * @param {number} nowMs @returns {number}
   */
  bufferMs(nowMs) {
    if (this.#newestEndMs === null) return 0;
    const playhead = this.clock.mediaMs(nowMs) ?? this.#firstMs ?? 0;
    return Math.max(0, this.#newestEndMs - Math.max(playhead, this.#lostEndMs));
  }

  /** @param {boolean} paused */
  setPaused(paused) {
    if (paused === this.#paused) return;
    this.#paused = paused;
    if (!paused) this.#run(); // a pause ends the loop, also one before the first picture
    const nowMs = performance.now();
    const mediaMs = this.clock.mediaMs(nowMs);
    if (mediaMs === null) return;
    if (paused) this.clock.hold(mediaMs, nowMs, false);
    else this.clock.anchor(mediaMs, nowMs);
  }

  /** Take one media message. False if it is a repeat. @param {Media} media @returns {boolean} */
  part({ header, units }) {
    const nowMs = performance.now();
    const verdict = this.#sequence.accept(header);
    if (verdict === "skip") return false;
    if (verdict === "begin") this.#begin(header);
    this.tick(nowMs);
    const isComplete = header.part === header.parts - 1;
    if (isComplete) this.#measure(header, nowMs);
    const decoder = this.#opened();
    units.forEach((unit, index) => {
      const ptsMs = this.#chunkEndMs;
      this.#chunkEndMs += this.#frameMs;
      const tag = { seq: header.seq, rev: header.rev, ptsMs, endMs: this.#chunkEndMs, life: this.#life };
      decoder.decode(unit, index === 0 && header.key === true, tag);
    });
    if (!isComplete) return true;
    this.chunks += 1;
    this.#newestEndMs = this.#chunkEndMs;
    this.#handlers.complete(header);
    return true;
  }

  /** The chunks from this revision on go over from what is shown: play all that is queued. @param {number} rev */
  blendInto(rev) {
    this.#blendRev = rev;
  }

  /** The server will not send chunks up to toSeq. @param {number} toSeq */
  gap(toSeq) {
    this.gaps += 1;
    this.#sequence.gap(toSeq);
    this.#opened().waitForKey();
  }

  /** Show what is due. Runs on every animation frame, and on arrivals while the page is hidden. @param {number} nowMs */
  tick(nowMs) {
    if (this.#paused) return;
    this.#decoder?.check(nowMs); // none before `open`
    this.#skipHole(nowMs);
    const mediaMs = this.clock.mediaMs(nowMs);
    if (mediaMs === null) return;
    /** @type {Item | undefined} */ let due;
    while (this.#queue.length > 0 && this.#queue[0].ptsMs <= mediaMs) {
      if (due !== undefined) this.#drop(due);
      due = this.#queue.shift();
    }
    if (due !== undefined) this.#show(due, nowMs);
    const { drawn } = this;
    const isDry = this.#queue.length === 0 && drawn !== null && mediaMs >= drawn.endMs;
    if (isDry && this.clock.running) this.clock.hold(drawn.endMs, nowMs, true);
  }

  /** The decoder: video comes after `open`. */
  #opened() {
    return /** @type {ReturnType<typeof makeDecoder>} */ (this.#decoder);
  }

  #run() {
    if (this.#loop !== 0) return;
    const step = (/** @type {number} */ nowMs) => {
      this.#loop = this.#paused ? 0 : requestAnimationFrame(step);
      this.tick(nowMs);
    };
    this.#loop = requestAnimationFrame(step);
  }

  /** @param {ChunkHeader} header */
  #begin(header) {
    if (header.seq === this.#begunSeq) {
      // Sent again whole: it replaces what is held of its first, incomplete life.
      this.#life += 1;
      for (const item of this.#queue.filter(({ seq }) => seq === header.seq)) item.frame.close();
      this.#queue = this.#queue.filter(({ seq }) => seq !== header.seq);
    }
    this.#begunSeq = header.seq;
    this.#firstMs ??= header.pts_ms;
    this.#chunkEndMs = header.pts_ms;
  }

  /** @param {ChunkHeader} header @param {number} nowMs */
  #measure(header, nowMs) {
    if (this.clock.started) this.clock.steer(this.bufferMs(nowMs), nowMs);
    if (typeof header.gen_ms !== "number") return;
    this.#genMs.push(header.gen_ms);
    if (this.#genMs.length > GEN_MEMORY) this.#genMs.shift();
  }

  /** @param {Frame} frame @param {Tag} tag */
  #decoded(frame, tag) {
    const isOutdated = tag.seq === this.#begunSeq && tag.life !== this.#life;
    const isShown = this.drawn !== null && tag.ptsMs <= this.drawn.ptsMs;
    if (isOutdated || isShown) {
      frame.close();
      return;
    }
    this.#cutTo(tag);
    this.#queue.push({ frame, ...tag });
    if (this.#queue.length > this.#mostQueued) this.#drop(/** @type {Item} */ (this.#queue.shift()));
    this.#wake(tag);
    if (document.hidden) this.tick(performance.now());
  }

  /** Start the clock with the first frame, and again with the first frame after it ran dry. @param {Tag} tag */
  #wake(tag) {
    if (this.clock.running) return;
    const nowMs = performance.now();
    if (!this.#paused) {
      this.clock.anchor(tag.ptsMs, nowMs);
    } else if (!this.clock.started) {
      this.clock.hold(tag.ptsMs, nowMs, false); // joined a paused session: show one still picture
      this.#show(/** @type {Item} */ (this.#queue.shift()), nowMs);
    }
  }

  /**
   * A new prompt should be seen soon: of the older pictures still queued keep only as many as the next
   * chunk needs to arrive in time.
   * @param {Tag} tag
   */
  #cutTo(tag) {
    const playingRev = this.drawn?.rev ?? tag.rev;
    if (tag.rev <= playingRev || tag.rev === this.#cutRev || tag.rev === this.#blendRev) return;
    this.#cutRev = tag.rev;
    const chunkMs = this.#chunkEndMs - tag.ptsMs;
    const spareMs = 1.25 * Math.max(0, ...this.#genMs) - chunkMs;
    const keep = Math.max(KEEP_FRAMES_AT_CUT, Math.ceil(spareMs / this.#frameMs));
    for (const item of this.#queue.splice(keep)) this.#drop(item);
  }

  /** Where media time jumps (a cut, a gap), jump with it as soon as the picture before has had its time. @param {number} nowMs */
  #skipHole(nowMs) {
    if (this.#queue.length === 0 || this.drawn === null || !this.clock.running) return;
    const next = this.#queue[0];
    const mediaMs = this.clock.mediaMs(nowMs);
    const isHole = next.ptsMs > this.drawn.endMs + this.#frameMs / 2;
    if (isHole && mediaMs !== null && mediaMs >= this.drawn.endMs) this.clock.anchor(next.ptsMs, nowMs);
  }

  /** @param {Item} item @param {number} nowMs */
  #show(item, nowMs) {
    const { frame, ...info } = item;
    if (this.#unseen !== null) this.#drop({ frame: this.#unseen });
    this.#unseen = frame;
    if (!document.hidden) this.#catchUp(nowMs);
    this.drawn = info;
    this.#handlers.drawn(info);
  }

  /** Put the newest picture on the canvas if it is not there. Was it not? @param {number} nowMs */
  #catchUp(nowMs) {
    const frame = this.#unseen;
    if (frame === null) return false;
    this.#unseen = null;
    this.#context.drawImage(frame, 0, 0, this.#canvas.width, this.#canvas.height);
    frame.close();
    this.framesDrawn += 1;
    this.#drawTimes.push(nowMs);
    if (this.#drawTimes.length > 480) this.#drawTimes.shift();
    return true;
  }

  /** @param {{frame: Frame}} item */
  #drop(item) {
    item.frame.close();
    this.framesSkipped += 1;
  }

  /** @param {number} width @param {number} height */
  #resize(width, height) {
    const scale = Math.max(1, Math.floor(LONGEST_SIDE_PX / Math.max(width, height)));
    if (this.#canvas.width === width * scale && this.#canvas.height === height * scale) return;
    this.#canvas.width = width * scale;
    this.#canvas.height = height * scale;
    this.#context.imageSmoothingQuality = "high";
  }
}
