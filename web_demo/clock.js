// Playback clock: turns wall time into media time. Pure; "now" is always an argument, in milliseconds.

const TARGET_LOW_MS = 220; // what should still be buffered when the next chunk arrives
const SLOWEST_RATE = 0.85; // slower motion is hard to see; a stop is not
const RATE_STEP = 0.03;

export class PlaybackClock {
  rate = 1;
  stalls = 0;
  #playedMs = 0;
  #stalledMs = 0;
  #settledMs = 0; // wall time up to which the two are counted
  /** @type {number | null} */ #anchorMediaMs = null;
  #anchorNowMs = 0;
  /** @type {number | null} */ #heldSinceMs = null; // set while the clock stands still
  #heldForData = false;

  get started() {
    return this.#anchorMediaMs !== null;
  }

  get running() {
    return this.started && this.#heldSinceMs === null;
  }

  /** Media time now; null before the first frame. @param {number} nowMs @returns {number | null} */
  mediaMs(nowMs) {
    if (this.#anchorMediaMs === null) return null;
    const untilMs = this.#heldSinceMs ?? nowMs;
    return this.#anchorMediaMs + (untilMs - this.#anchorNowMs) * this.rate;
  }

  /** Up to now. @param {number} nowMs */
  totals(nowMs) {
    this.#settle(nowMs);
    return { playedMs: this.#playedMs, stalledMs: this.#stalledMs };
  }

  /** Put the playhead at mediaMs and let it run. @param {number} mediaMs @param {number} nowMs */
  anchor(mediaMs, nowMs) {
    this.#settle(nowMs);
    this.#anchorMediaMs = mediaMs;
    this.#anchorNowMs = nowMs;
    this.#heldSinceMs = null;
  }

  /**
   * Stand still at mediaMs. `forData` says that the picture should be moving, so the pause is a stall: from when mediaMs was
   * reached, which may be long ago where nobody looked.
   * @param {number} mediaMs @param {number} nowMs @param {boolean} forData
   */
  hold(mediaMs, nowMs, forData) {
    const overMs = ((this.mediaMs(nowMs) ?? mediaMs) - mediaMs) / this.rate;
    this.anchor(mediaMs, nowMs);
    this.#heldSinceMs = nowMs;
    this.#heldForData = forData;
    if (!forData) return;
    this.stalls += 1;
    this.#playedMs -= overMs;
    this.#stalledMs += overMs;
  }

  /** Forget everything but the counters: the next frame starts a new life. @param {number} nowMs */
  clear(nowMs) {
    this.#settle(nowMs);
    this.#anchorMediaMs = null;
    this.#heldSinceMs = null;
    this.rate = 1;
  }

  /**
   * Called when a chunk has arrived, with what was left to play just before. Slows down a little when the
   * source is slower than real time: the server paces itself by our acks, so one step at a time is enough.
   * @param {number} leftMs @param {number} nowMs
   */
  steer(leftMs, nowMs) {
    const wanted = leftMs >= TARGET_LOW_MS ? 1 : SLOWEST_RATE + (1 - SLOWEST_RATE) * (leftMs / TARGET_LOW_MS);
    const step = Math.max(-RATE_STEP * 2, Math.min(RATE_STEP, wanted - this.rate));
    if (step === 0) return;
    const mediaMs = this.mediaMs(nowMs);
    if (this.running && mediaMs !== null) this.anchor(mediaMs, nowMs);
    this.rate += step;
  }

  /** @param {number} nowMs */
  #settle(nowMs) {
    const elapsedMs = Math.max(0, nowMs - this.#settledMs);
    this.#settledMs = nowMs;
    if (!this.started) return;
    if (this.#heldSinceMs === null) this.#playedMs += elapsedMs;
    else if (this.#heldForData) this.#stalledMs += elapsedMs;
  }
}
