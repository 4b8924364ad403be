// The cluster page: one stream of states in; lanes, charts and the log of decisions out.

import { follow } from "./feed.js";
import { Floor } from "./floor.js";
import { sparkPaths } from "./spark.js";
import * as storage from "./storage.js";
import { readToken, request } from "./turboserve.js";

const WINDOW_MS = 600_000;
const SAMPLE_MS = 5_000;
const SLOTS = WINDOW_MS / SAMPLE_MS;
const CHART = { width: 240, height: 52, slots: SLOTS };
const MOST_LIT = 8; // new decisions that light up: of more at once nobody sees which
const STREAM = "/v1/cluster/stream";
const TOKEN_KEY = "turboserve.admin"; // the studio in this tab keeps its own
const NO_TOKEN = "That is no access token: it has letters, digits, dots, - and _ only";

const byId = (id) => document.getElementById(id);
const floor = new Floor(byId("lanes"), { chosen: showHint, move });
let samples = []; // {t_ms, budget, load, worst_ms}, oldest first, one per SAMPLE_MS
let newest = null;
let current = null; // what the charts show of it
let newestDecision = null;
let renderMs = 0;
let unlock = () => {}; // ends the wait for a token

if (location.hash.startsWith("#token=")) readLink();
window.addEventListener("hashchange", readLink);

follow(STREAM, adminToken, {
  event: (name, data) => {
    if (name === "history") samples = data.samples.map((row) => Object.fromEntries(data.columns.map((column, i) => [column, row[i]])));
    if (name === "cluster") show(data);
  },
  lost: (sentence) => {
    document.body.dataset.feed = "lost";
    status(sentence, "busy");
  },
  locked: (sentence) => {
    document.body.dataset.feed = "locked";
    askForToken(sentence);
    return new Promise((done) => (unlock = done));
  },
});

/** A token of its own, or the studio's, which may do for both. */
function adminToken() {
  return storage.loadToken(TOKEN_KEY) ?? storage.loadToken();
}

/** #token=… is kept and leaves the address; behind the # it is in nobody's log. */
function readLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  if (!parts.has("token")) return;
  history.replaceState(null, "", location.pathname);
  useToken(readToken(parts.get("token")));
}

/** null: what was given is none. */
function useToken(token) {
  if (token === null) {
    askForToken(NO_TOKEN);
    byId("token").setAttribute("aria-invalid", "true");
    byId("token").select();
    return;
  }
  storage.saveToken(token, TOKEN_KEY);
  byId("token-form").hidden = true;
  byId("token").value = "";
  byId("token").setAttribute("aria-invalid", "false");
  status("Connecting…", "busy");
  unlock();
}

function askForToken(sentence) {
  byId("token-why").textContent = sentence;
  byId("token-form").hidden = false;
  status("Locked", "bad");
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(readToken(byId("token").value));
});

function show(cluster) {
  newest = cluster;
  document.body.dataset.feed = "live";
  status("Live", "good");
  const running = cluster.engines.filter(({ state }) => state !== "starting");
  const load = running.length > 0 ? running.reduce((sum, engine) => sum + engine.load, 0) / running.length : 0;
  const worstMs = Math.max(0, ...running.filter(({ sessions }) => sessions > 0).map(({ worst_ms }) => worst_ms));
  current = { t_ms: cluster.t_ms, budget: cluster.budget, load, worst_ms: worstMs };
  if (samples.length === 0 || cluster.t_ms - samples.at(-1).t_ms >= SAMPLE_MS) samples.push(current);
  samples = samples.filter(({ t_ms }) => t_ms > cluster.t_ms - WINDOW_MS).slice(-SLOTS);
  render();
}

/** What nobody sees is not drawn: the page catches up when it comes to the front. */
function render() {
  if (newest === null || document.hidden) return;
  const cluster = newest;
  const began = performance.now();
  floor.render(cluster);
  renderMs = performance.now() - began;
  charts(cluster);
  decisions(cluster.decisions ?? []);
  const active = cluster.sessions.filter(({ state }) => state === "active").length;
  const how = cluster.sessions.length < cluster.num_sessions ? "too many to be shown one by one" : `${active} active`;
  const counts = `${plural(cluster.num_sessions, "session")}, ${how}, ${cluster.policy || "no"} policy`;
  if (byId("counts").textContent !== counts) byId("counts").textContent = counts;
}

document.addEventListener("visibilitychange", render);

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** How the connection is: a live region, so nothing in it may change at each state. */
function status(text, tone) {
  const line = byId("status");
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle("unseen", tone === "good"); // the counts show it
  byId("counts").hidden = tone !== "good";
  line.parentElement.dataset.tone = tone;
}

function charts(cluster) {
  const series = [...samples, current];
  const column = (name) => series.map((sample) => sample[name]);
  const states = (state) => cluster.engines.filter((engine) => engine.state === state).length;
  const waiting = cluster.queue > 0 ? `, ${cluster.queue} waiting` : "";
  const others = [["starting", states("starting")], ["draining", states("draining")]].filter(([, count]) => count > 0);
  figure("budget", column("budget"), cluster.budget, cluster.budget === 1 ? "engine" : "engines", others.map(([word, count]) => `${count} ${word}`).join(", "));
  figure("load", column("load"), Math.round(current.load * 100), "%", `${plural(cluster.num_sessions, "session")}${waiting}`, 1);
  const peak = Math.max(...column("worst_ms"));
  figure("latency", column("worst_ms"), Math.round(current.worst_ms), "ms", peak > 0 ? `peak ${Math.round(peak)} ms` : "");
  let engineMs = 0;
  const cost = series.map((sample, i) => (engineMs += i === 0 ? 0 : series[i - 1].budget * Math.max(0, sample.t_ms - series[i - 1].t_ms)) / 60_000);
  figure("cost", cost, cost.at(-1).toFixed(1), "engine-min", "last 10 min");
}

function figure(name, values, value, unit, note, top = Math.max(1e-9, ...values) * 1.2) {
  const node = byId(`figure-${name}`);
  const number = node.querySelector(".value");
  if (number.dataset.value !== String(value)) {
    number.dataset.value = String(value);
    const small = document.createElement("small");
    small.textContent = ` ${unit}`;
    number.replaceChildren(String(value), small);
  }
  node.querySelector(".note").textContent = note;
  const { line, area } = sparkPaths(values, { ...CHART, top });
  node.querySelector(".line").setAttribute("d", line);
  node.querySelector(".area").setAttribute("d", area);
}

/** Newest first; only what is new is added. */
function decisions(entries) {
  const key = ({ t_ms, text }) => `${t_ms} ${text}`;
  const list = byId("decisions");
  if (entries.length === 0) {
    if (list.children.length === 0) list.append(emptyRow());
    return;
  }
  if (newestDecision === key(entries[0])) return;
  const known = newestDecision === null ? -1 : entries.findIndex((entry) => key(entry) === newestDecision);
  const fresh = known >= 0 ? entries.slice(0, known) : entries;
  const isFirst = newestDecision === null;
  if (known < 0) list.replaceChildren();
  list.prepend(...fresh.map((entry) => decisionRow(entry, !isFirst && fresh.length <= MOST_LIT)));
  while (list.children.length > entries.length) list.lastChild.remove();
  newestDecision = key(entries[0]);
}

function decisionRow({ t_ms, text }, isNew) {
  const row = document.createElement("li");
  if (isNew) row.dataset.new = "";
  const time = document.createElement("time");
  time.textContent = new Date(t_ms).toLocaleTimeString([], { hour12: false });
  const words = document.createElement("span");
  for (const part of text.split(/(\b[es]_?[0-9a-f]{6,16}\b)/)) {
    const node = document.createElement(/^[es]_?[0-9a-f]{6,16}$/.test(part) ? "b" : "span");
    node.textContent = part;
    words.append(node);
  }
  row.append(time, words);
  return row;
}

function emptyRow() {
  const row = document.createElement("li");
  row.className = "empty";
  row.textContent = "Nothing was decided yet.";
  return row;
}

function showHint(session) {
  const hint = byId("hint");
  delete hint.dataset.tone;
  hint.textContent = session === null ? "" : `${session}: choose the engine that it should move to`;
}

async function move(session, engine) {
  const answer = await request("/v1/admin/migrate", { token: adminToken, method: "POST", body: { session, engine } }).catch(() => null);
  const said = answer === null || answer.ok ? {} : await answer.json().catch(() => ({}));
  const hint = byId("hint");
  hint.dataset.tone = answer?.ok ? "good" : "bad";
  hint.textContent = answer?.ok ? `${session} is on its way to ${engine}` : `Not moved: ${said.error?.message ?? "the server did not answer"}`;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") floor.choose(null);
});

/** A read-only look inside, for the console and for tests. */
Object.defineProperty(window, "turboserve", {
  value: Object.freeze({
    get cluster() {
      return newest;
    },
    get moves() {
      return floor.moves;
    },
    get flying() {
      return floor.flying;
    },
    get renderMs() {
      return renderMs;
    },
    get feed() {
      return document.body.dataset.feed ?? "connecting";
    },
  }),
});
