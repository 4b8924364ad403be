// For how long may a line say nothing before it counts as dead? Pure; "now" is always an argument, in milliseconds.
//
// It is looked at by a timer, and timers come late: once a minute in a tab that has been in the background for long, hours
// later after a sleep. Who comes late has asked nobody in the meantime, or not heard yet what was answered: such a look judges
// nothing and begins the wait anew. If nothing at all is heard from there to the next look, late or not, the line is dead.

export class Silence {
  #everyMs;
  #afterMs;
  #heardMs = 0;
  #lookedMs = 0;
  #excusedMs = 0; // the newest late look that judged nothing

  /**
   * Looked at every `everyMs` where timers are on time; dead after `afterMs` without a word.
   * @param {number} everyMs @param {number} afterMs
   */
  constructor(everyMs, afterMs) {
    this.#everyMs = everyMs;
    this.#afterMs = afterMs;
  }

  /** A new line. @param {number} nowMs */
  begin(nowMs) {
    this.#heardMs = this.#lookedMs = this.#excusedMs = nowMs;
  }

  /** @param {number} nowMs */
  heard(nowMs) {
    this.#heardMs = nowMs;
  }

  /** A look at the line: is it dead? @param {number} nowMs @returns {boolean} */
  look(nowMs) {
    const isLate = nowMs - this.#lookedMs > 2 * this.#everyMs;
    this.#lookedMs = nowMs;
    if (isLate && this.#heardMs >= this.#excusedMs) {
      this.#excusedMs = nowMs;
      return false;
    }
    return nowMs - Math.max(this.#heardMs, this.#excusedMs) > this.#afterMs;
  }
}
