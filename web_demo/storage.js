// What a reload needs to go on with the running session, kept in this tab's sessionStorage.

const KEY = "turboserve.session";

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
