// What a reload needs to go on with the running session, and the access token, kept in this tab's sessionStorage.

const KEY = "turboserve.session";
const TOKEN_KEY = "turboserve.token";
let token = null; // where storage is forbidden

export function load() {
  try {
    const saved = JSON.parse(sessionStorage.getItem(KEY));
    return typeof saved?.session === "string" && typeof saved.resume === "string" ? saved : null;
  } catch {
    return null;
  }
}

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

export function loadToken() {
  try {
    return sessionStorage.getItem(TOKEN_KEY) ?? token;
  } catch {
    return token;
  }
}

export function saveToken(value) {
  token = value;
  try {
    sessionStorage.setItem(TOKEN_KEY, value);
  } catch {
    // See save().
  }
}
