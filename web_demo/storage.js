// What a reload needs to go on with the running session, and the access token, kept in this tab's sessionStorage.

/**
 * @import { Entry } from "./history.js"
 * @import { Mark } from "./turboserve.js"
 * @typedef {object} Saved
 * @property {string} session
 * @property {string} resume
 * @property {number} [seq]
 * @property {number | null} [seed]
 * @property {boolean} [paused]
 * @property {Mark[]} [marks]
 * @property {Entry[]} [history]
 */

const KEY = "turboserve.session";
const TOKEN_KEY = "turboserve.token";
/** @type {Map<string, string>} */ const tokens = new Map(); // where storage is forbidden

/** @returns {Saved | null} */
export function load() {
  try {
    const saved = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
    return typeof saved?.session === "string" && typeof saved.resume === "string" ? saved : null;
  } catch {
    return null;
  }
}

/** @param {Saved} record */
export function save(record) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(record));
  } catch {
    // Storage may be full or forbidden. Then a reload starts anew; nothing else depends on it.
  }
}

export function clear() {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // See save().
  }
}

/**
 * @param {string} [key] another one than the page's that everybody sees
 * @returns {string | null}
 */
export function loadToken(key = TOKEN_KEY) {
  try {
    return sessionStorage.getItem(key) ?? tokens.get(key) ?? null;
  } catch {
    return tokens.get(key) ?? null;
  }
}

/**
 * @param {string} value
 * @param {string} [key]
 */
export function saveToken(value, key = TOKEN_KEY) {
  tokens.set(key, value);
  try {
    sessionStorage.setItem(key, value);
  } catch {
    // See save().
  }
}
