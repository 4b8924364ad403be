// The cluster's state as it comes: server-sent events over fetch, because an EventSource can't carry a token.

import { Silence } from "./silence.js";
import { request } from "./turboserve.js";

const FIRST_DELAY_MS = 300;
const LONGEST_DELAY_MS = 5000;
const LOOK_EVERY_MS = 5000; // as often as the server says something, if only that it is there
const SILENT_AFTER_MS = 12000;
const REFUSALS = new Map([
  [401, "An access token with the scope admin is needed to see the cluster"],
  [403, "This access token may not see the cluster: it needs the scope admin"],
]);

/** Split a text of server-sent events: {events: [{name, data}], rest} with what is not complete yet. Pure. */
export function parseEvents(text) {
  const blocks = text.split("\n\n");
  const rest = blocks.pop();
  const events = [];
  for (const block of blocks) {
    const fields = new Map();
    for (const line of block.split("\n")) {
      const at = line.indexOf(":");
      if (at > 0) fields.set(line.slice(0, at), line.slice(at + 1).trimStart());
    }
    if (fields.has("data")) events.push({ name: fields.get("event") ?? "message", data: JSON.parse(fields.get("data")) });
  }
  return { events, rest };
}

/** The events of an answer as they come. Whoever stops asking for them, for whatever reason, lets go of the stream. */
async function* eventsOf(answer, heard) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const found = parseEvents(rest + value);
      rest = found.rest;
      yield* found.events;
    }
  } finally {
    reader.cancel().catch(() => {}); // it is broken already
  }
}

/** What a request needs so that a line on which nothing comes any more is given up: many a one dies without a word. */
function watched() {
  const silence = new Silence(LOOK_EVERY_MS, SILENT_AFTER_MS);
  const abort = new AbortController();
  silence.begin(performance.now());
  const timer = setInterval(() => {
    if (silence.look(performance.now())) abort.abort();
  }, LOOK_EVERY_MS);
  return { signal: abort.signal, heard: () => silence.heard(performance.now()), end: () => clearInterval(timer) };
}

/**
 * Follow a stream for ever, over lost connections.
 * Handlers: event(name, data), lost(sentence) when it broke and is tried again, locked(sentence) where another token is
 * needed: a promise of there being one.
 */
export async function follow(path, token, handlers) {
  for (let attempt = 0; ; attempt++) {
    const line = watched();
    let refusal = null;
    try {
      const answer = await request(path, { token, signal: line.signal });
      refusal = REFUSALS.get(answer.status) ?? null;
      if (!answer.ok) throw new Error(refusal ?? `The server answered ${answer.status}`);
      for await (const { name, data } of eventsOf(answer, line.heard)) {
        handlers.event(name, data);
        attempt = 0;
      }
      handlers.lost("Connection lost, retrying…");
    } catch (error) {
      handlers.lost(error instanceof TypeError || line.signal.aborted ? "No connection, retrying…" : error.message);
    } finally {
      line.end();
    }
    if (refusal !== null) {
      await handlers.locked(refusal);
      attempt = -1;
      continue;
    }
    await new Promise((done) => setTimeout(done, Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** attempt)));
  }
}
