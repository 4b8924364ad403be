// The prompts of this session and where each one stands:
// sent, accepted, applied at a chunk, shown, refused, or unseen (overtaken, or the session ended before).

/**
 * @import { PromptEntry } from "./turboserve.js"
 * @typedef {{-readonly [Name in keyof PromptEntry]: PromptEntry[Name]} & {sentMs: number | null}} Entry
 */

const MAX_ENTRIES = 30;
const UNDER_WAY = ["sent", "accepted", "applied"];

export class PromptHistory {
  /** @type {Entry[]} */ entries = [];

  /** @param {string} id @param {string} text @param {number} nowMs @returns {Entry} */
  add(id, text, nowMs, blendChunks = 0) {
    /** @type {Entry} */
    const entry = { id, text, state: "sent", blendChunks, seq: null, rev: null, ptsMs: null, sentMs: nowMs, latencyMs: null };
    this.entries.push(entry);
    if (this.entries.length > MAX_ENTRIES) this.entries.shift();
    return entry;
  }

  clear() {
    this.entries = [];
  }

  /** @param {string | undefined} id @returns {Entry | null} */
  find(id) {
    return this.entries.find((entry) => entry.id === id) ?? null;
  }

  /** @param {string} id */
  accepted(id) {
    const entry = this.find(id);
    if (entry?.state === "sent") entry.state = "accepted";
  }

  /** The session is over: what is under way will not be seen any more. @param {"refused" | "unseen"} state */
  finish(state) {
    for (const entry of this.entries) {
      if (UNDER_WAY.includes(entry.state)) entry.state = state;
    }
  }

  /** @param {string | undefined} id */
  refused(id) {
    const entry = this.find(id);
    if (entry !== null) entry.state = "refused";
  }

  /** @param {string} id @param {number} rev @param {number} seq */
  applied(id, rev, seq) {
    const entry = this.find(id);
    if (entry === null || entry.state === "shown") return;
    Object.assign(entry, { state: "applied", rev, seq });
  }

  /**
   * A picture of revision `rev` at media time ptsMs was drawn. Returns the entry that became visible with it, or null. Entries
   * overtaken by a later prompt before anything was drawn with them are marked as such.
   * @param {number} rev @param {number} nowMs @param {number} ptsMs @returns {Entry | null}
   */
  drawn(rev, nowMs, ptsMs) {
    const open = this.entries.filter((entry) => entry.state === "applied" && entry.rev !== null && entry.rev <= rev);
    const shown = open.at(-1) ?? null; // also if a reset raised the revision once more
    for (const entry of open) entry.state = entry === shown ? "shown" : "unseen";
    if (shown !== null) shown.ptsMs = ptsMs;
    if (shown !== null && shown.sentMs !== null) shown.latencyMs = nowMs - shown.sentMs;
    return shown;
  }

  /** The prompt on screen, or null. */
  get current() {
    return this.entries.filter((entry) => entry.state === "shown").at(-1) ?? null;
  }

  /** The newest prompt that is still on its way, or null. */
  get underWay() {
    return this.entries.filter((entry) => UNDER_WAY.includes(entry.state)).at(-1) ?? null;
  }
}
