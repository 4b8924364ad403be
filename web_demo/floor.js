// Engines as lanes and sessions as chips that keep their identity: who moves is seen moving.
//
// Everything is placed by `transform`, and only what changed is written. Chips rest where they belong; the way there is
// drawn over them (flights.js). 64 engines and 500 sessions are about 600 elements. Of more than the server lists, lanes
// show how many they have.

import { Flights } from "./flights.js";
import { drawnHue } from "./sprites.js";

const GAP = 12;
const HEAD = 34;
const PAD = 11;
const CHIP_GAP = 5;
const MOVING_MS = 1300;
const GONE_MS = 700; // of a lane
const MOST_SLOTS = 16; // drawn one by one
const MANY = 24; // lanes
const QUEUE = "queue";
const NOWHERE = "nowhere"; // the lane of a chip whose own is gone

/** A colour that a session keeps everywhere. */
export function hueOf(id) {
  let hash = 2166136261;
  for (let i = 0; i < id.length; i++) hash = Math.imul(hash ^ id.charCodeAt(i), 16777619);
  return drawnHue(((hash >>> 0) * 137.508) % 360);
}

/** How many lanes side by side, how wide, how large the chips: for `lanes` lanes of at most `most` chips. Pure. */
export function arrange(width, lanes, most) {
  const wanted = lanes <= 4 ? 1 : lanes <= 10 ? 2 : lanes <= 24 ? 3 : Math.floor(width / 190);
  const columns = Math.max(1, Math.min(wanted, Math.floor((width + GAP) / (150 + GAP))));
  const laneWidth = (width - GAP * (columns - 1)) / columns;
  const chip = [28, 22, 18, 14, 11].find((size) => perRow(laneWidth, size) * (size > 18 ? 2 : 3) >= most) ?? 9;
  const rows = Math.max(1, Math.ceil(most / perRow(laneWidth, chip)));
  return { columns, laneWidth, chip, laneHeight: HEAD + rows * (chip + CHIP_GAP) + PAD };
}

const perRow = (laneWidth, chip) => Math.max(1, Math.floor((laneWidth - 2 * PAD + CHIP_GAP) / (chip + CHIP_GAP)));

/**
 * Where a key leads from `id`: left and right to the one before and behind, up and down to the first of another row.
 * Pure. @param {string[][]} rows @returns {string | null | undefined} undefined for keys that lead nowhere ever
 */
export function neighbour(rows, id, key) {
  const all = rows.flat();
  const at = all.indexOf(id);
  const row = rows.findIndex((ids) => ids.includes(id));
  switch (key) {
    case "ArrowLeft": return all[at - 1] ?? null;
    case "ArrowRight": return all[at + 1] ?? null;
    case "ArrowUp": return rows[row - 1]?.[0] ?? null;
    case "ArrowDown": return rows[row + 1]?.[0] ?? null;
    case "Home": return all[0] ?? null;
    case "End": return all.at(-1) ?? null;
  }
  return undefined;
}

export class Floor {
  #root;
  #lanes = new Map(); // id -> {node, parts, slots: [session id or null], name}
  #order = []; // lane ids in the order of the grid; null where one has gone and none has come
  #chips = new Map(); // id -> {node, lane, slot, hue, look, isShort, hasMoved, pose}
  #flights;
  #chosen = null;
  #tabStop = null; // the one chip that Tab reaches; arrow keys go on from there
  #handlers;
  #width = 0;
  #chip = 0; // side of one
  #isNarrow = false;
  #isCrowd = false; // more sessions than are listed
  #last = null;
  moves = 0;

  /** Handlers: chosen(session or null), move(session, engine). */
  constructor(root, handlers) {
    this.#root = root;
    this.#flights = new Flights(root);
    this.#handlers = handlers;
    root.addEventListener("click", (event) => this.#clicked(event));
    root.addEventListener("keydown", (event) => this.#pressed(event));
    root.addEventListener("focusin", ({ target }) => {
      if (target.matches(".chip")) this.#stopAt(target.dataset.id);
    });
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width === this.#width) return;
      this.#width = contentRect.width;
      if (this.#last !== null) this.render(this.#last);
    }).observe(root);
  }

  /** How many chips are on their way. */
  get flying() {
    return this.#flights.size;
  }

  /** Show a state of the cluster. */
  render(cluster) {
    this.#last = cluster;
    if (this.#width === 0) return;
    this.#isCrowd = cluster.sessions.length < cluster.num_sessions;
    this.#meetLanes(cluster);
    this.#meetChips(cluster.sessions);
    for (const { id, capacity } of cluster.engines) this.#seat(this.#lanes.get(id).slots, capacity);
    this.#place();
    for (const engine of cluster.engines) this.#describe(engine);
    this.#describeQueue(cluster.queue);
    this.#offerLanes();
    if (!this.#chips.has(this.#tabStop)) this.#stopAt(this.#rows().flat()[0] ?? null);
  }

  choose(session) {
    const before = this.#chips.get(this.#chosen)?.node;
    mark(before, false);
    mark(this.#chips.get(session)?.node, true);
    this.#chosen = session;
    this.#offerLanes(before);
    this.#handlers.chosen(session);
  }

  /** While a session is chosen, every other engine is a button to move it there. The focus of one that is none any more goes back. */
  #offerLanes(back = this.#chips.get(this.#chosen)?.node) {
    const isChoosing = this.#chosen !== null;
    const home = this.#chips.get(this.#chosen)?.lane;
    const focused = document.activeElement;
    this.#root.toggleAttribute("data-choosing", isChoosing);
    for (const [id, { node, name }] of this.#lanes) {
      const isTarget = isChoosing && id !== QUEUE && id !== home;
      setAttribute(node, "role", isTarget ? "button" : "group");
      const isBeingRead = isTarget && node === focused && node.hasAttribute("data-target"); // each change would be read out
      if (!isBeingRead) setAttribute(node, "aria-label", isTarget ? `Move to ${name}` : name);
      if (node.hasAttribute("data-target") === isTarget) continue;
      node.toggleAttribute("data-target", isTarget);
      if (isTarget) node.tabIndex = 0;
      else node.removeAttribute("tabindex");
      if (node === focused) (back ?? this.#chips.get(this.#rows().flat()[0])?.node)?.focus();
    }
  }

  // --- what a person does ---------------------------------------------------------------------------

  #clicked({ target, detail }) {
    const chip = target.closest(".chip:not([data-gone])")?.dataset.id;
    const lane = target.closest(".lane[data-target]:not([data-gone])")?.dataset.id;
    if (chip !== undefined) {
      this.choose(chip === this.#chosen ? null : chip);
      const isByKey = detail === 0;
      if (isByKey && this.#chosen !== null) this.#lanes.get(this.#targets().flat()[0])?.node.focus(); // what comes next
    } else if (lane !== undefined && this.#chosen !== null) {
      this.#handlers.move(this.#chosen, lane);
      this.choose(null);
    } else if (this.#chosen !== null) this.choose(null);
  }

  #pressed(event) {
    const { target, key, repeat } = event;
    if (!target.matches(".chip, .lane[data-target]") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (key === "Enter" || key === " ") {
      event.preventDefault(); // no scrolling
      if (!repeat) target.click();
      return;
    }
    const isChip = target.matches(".chip");
    const next = neighbour(isChip ? this.#rows() : this.#targets(), target.dataset.id, key);
    if (next === undefined) return;
    event.preventDefault();
    (isChip ? this.#chips : this.#lanes).get(next)?.node.focus();
  }

  /** The sessions as they are seen, lane by lane. */
  #rows() {
    const lanes = [QUEUE, ...this.#order].map((id) => this.#lanes.get(id)?.slots ?? []);
    return lanes.map((slots) => slots.filter((id) => id !== null)).filter((ids) => ids.length > 0);
  }

  #targets() {
    return this.#order.filter((id) => this.#lanes.get(id)?.node.hasAttribute("data-target")).map((id) => [id]);
  }

  #stopAt(session) {
    const before = this.#chips.get(this.#tabStop)?.node;
    if (before !== undefined) before.tabIndex = -1;
    this.#tabStop = session;
    const chip = this.#chips.get(session)?.node;
    if (chip !== undefined) chip.tabIndex = 0;
  }

  // --- who is there ---------------------------------------------------------------------------------

  #meetLanes({ engines, sessions, queue }) {
    const wanted = new Set(engines.map(({ id }) => id));
    if (this.#isCrowd ? queue > 0 : sessions.some(({ engine }) => engine === null || engine === "")) wanted.add(QUEUE);
    for (const id of wanted) if (!this.#lanes.has(id)) this.#openLane(id);
    for (const [id, { node }] of this.#lanes) {
      if (wanted.has(id)) continue;
      node.setAttribute("data-gone", "");
      setTimeout(() => node.remove(), GONE_MS);
      this.#lanes.delete(id);
      if (id !== QUEUE) this.#order[this.#order.indexOf(id)] = null;
    }
    for (const { id } of engines) if (!this.#order.includes(id)) this.#takeCell(id);
    const held = this.#order.filter((id) => id !== null);
    while (this.#order.at(-1) === null) this.#order.pop();
    if (this.#order.length > 4 && held.length < this.#order.length * 0.75) this.#order = held; // too many holes
  }

  /** Lanes keep their place: a new one goes where one has gone. */
  #takeCell(id) {
    const free = this.#order.indexOf(null);
    if (free >= 0) this.#order[free] = id;
    else this.#order.push(id);
  }

  #openLane(id) {
    const node = element("div", "lane");
    node.dataset.id = id;
    if (id === QUEUE) node.dataset.queue = "";
    const head = element("div", "lane-head");
    const parts = { id: element("span", "lane-id"), state: element("span", "lane-state"), count: element("span", "lane-count"), load: element("i", "lane-load"), slots: element("div", "lane-slots"), crowd: element("p", "lane-crowd") };
    parts.id.textContent = id === QUEUE ? "Waiting for a place" : id;
    parts.state.hidden = true;
    head.append(parts.id, parts.state, parts.count);
    node.append(head, parts.slots, parts.crowd, parts.load);
    this.#root.append(node);
    this.#lanes.set(id, { node, parts, slots: [], name: id });
  }

  #meetChips(sessions) {
    const here = sessions.filter(({ id, engine }) => this.#lanes.has(engine || QUEUE) || this.#chips.has(id));
    const seen = new Set(here.map(({ id }) => id));
    const gone = [...this.#chips].filter(([id]) => !seen.has(id));
    const isFocused = ([, { node }]) => node === document.activeElement;
    const heirs = this.#nextTo(gone.find(isFocused)?.[0]);
    for (const [id, chip] of gone) this.#dismiss(id, chip);
    this.#seatAll(here);
    if (this.#chosen !== null && !this.#chips.has(this.#chosen)) this.choose(null);
    if (gone.some(isFocused)) this.#chips.get([...heirs, ...this.#rows().flat()].find((id) => this.#chips.has(id)))?.node.focus({ preventScroll: true });
    for (const [, { node }] of gone) node.remove();
  }

  #seatAll(sessions) {
    const coming = [];
    const waiting = [];
    for (const session of sessions) {
      const lane = session.engine || QUEUE;
      const chip = this.#chips.get(session.id) ?? this.#newChip(session.id);
      this.#tell(chip, session);
      if (lane === QUEUE) waiting.push(session.id);
      const isAdrift = !this.#lanes.has(lane); // its engine is gone and nobody has noticed yet: it stays where it was
      if (isAdrift && !this.#lanes.has(chip.lane)) chip.lane = NOWHERE;
      else if (!isAdrift && chip.lane !== lane) coming.push([session.id, chip, lane]);
    }
    for (const [, chip] of coming) this.#vacate(chip); // all of them before the first sits down
    for (const [id, chip, lane] of coming) this.#goTo(id, chip, lane);
    const line = this.#lanes.get(QUEUE);
    if (line === undefined) return;
    line.slots = waiting; // in line, oldest first
    waiting.forEach((id, slot) => (this.#chips.get(id).slot = slot));
  }

  /** What a session's chip looks like and is called. */
  #tell(chip, { id, state, engine, seq, slack_ms }) {
    const { node } = chip;
    if (chip.look !== state) node.dataset.state = chip.look = state;
    const isShort = state === "active" && seq >= 0 && slack_ms <= 0;
    if (chip.isShort !== isShort) node.toggleAttribute("data-short", (chip.isShort = isShort));
    const what = `${id}: ${state}${engine ? ` on ${engine}` : ""}`;
    const isBeingRead = chip.what === what && node === document.activeElement && node.matches(":focus-visible"); // each change would be read out
    chip.what = what;
    if (isBeingRead) return;
    const title = `${what}, chunk ${seq}, ${(slack_ms / 1000).toFixed(1)} s ahead`; // its name, too
    if (chip.title !== title) node.title = chip.title = title;
  }

  /** Who is active has a slot: chips beyond the engine's slots change places with idle ones or holes in them. */
  #seat(slots, capacity) {
    const isActive = (id) => id !== null && this.#chips.get(id).look === "active";
    for (let from = capacity; from < slots.length; from++) {
      if (!isActive(slots[from])) continue;
      const held = slots.slice(0, capacity);
      const to = held.includes(null) ? held.indexOf(null) : held.findIndex((id) => !isActive(id));
      if (to < 0) return;
      [slots[to], slots[from]] = [slots[from], slots[to]];
      for (const slot of [to, from]) if (slots[slot] !== null) this.#chips.get(slots[slot]).slot = slot;
    }
    while (slots.length > 0 && slots.at(-1) === null) slots.pop();
  }

  #newChip(id) {
    const node = element("div", "chip");
    node.setAttribute("role", "button");
    node.setAttribute("aria-pressed", "false");
    node.tabIndex = -1;
    node.dataset.id = id;
    const hue = hueOf(id);
    node.style.setProperty("--hue", String(hue));
    node.append(element("i", ""));
    this.#root.append(node);
    const chip = { node, hue, lane: null, slot: 0, look: "", isShort: false, hasMoved: false, pose: null };
    this.#chips.set(id, chip);
    return chip;
  }

  #goTo(id, chip, lane) {
    const before = chip.lane;
    chip.lane = lane;
    const { slots } = this.#lanes.get(lane);
    if (lane !== QUEUE) {
      const free = slots.indexOf(null);
      chip.slot = free >= 0 ? free : slots.length;
      slots[chip.slot] = id;
    }
    if (before === null) return;
    chip.hasMoved = true;
    if (this.#flights.areNone) light(chip, chip.node, "data-moving");
    if (before === QUEUE || lane === QUEUE) return;
    this.moves += 1;
    const there = this.#lanes.get(lane);
    light(there, there.node, "data-arrived");
  }

  #vacate(chip) {
    const slots = this.#lanes.get(chip.lane)?.slots;
    if (slots === undefined || chip.lane === QUEUE) return;
    slots[chip.slot] = null;
    while (slots.length > 0 && slots.at(-1) === null) slots.pop();
  }

  /** All others, the nearest behind it first. */
  #nextTo(id) {
    const all = this.#rows().flat();
    const at = all.indexOf(id);
    return at < 0 ? [] : [...all.slice(at + 1), ...all.slice(0, at).reverse()];
  }

  #dismiss(id, chip) {
    this.#vacate(chip);
    this.#chips.delete(id);
    this.#flights.vanish(chip, chip.pose);
  }

  // --- where it goes --------------------------------------------------------------------------------

  #place() {
    const engines = this.#order;
    const most = Math.max(1, ...engines.map((id) => this.#lanes.get(id)?.slots.length ?? 0));
    const { columns, laneWidth, laneHeight, chip } = arrange(this.#width, engines.length, most);
    this.#isNarrow = laneWidth < 220;
    this.#root.toggleAttribute("data-many", engines.length > MANY);
    if (chip !== this.#chip) this.#root.style.setProperty("--chip", `${chip}px`);
    this.#chip = chip;
    this.#flights.fit(chip);
    let top = 0;
    const queue = this.#lanes.get(QUEUE);
    if (queue !== undefined) {
      const rows = Math.max(1, Math.ceil(queue.slots.length / perRow(this.#width, chip)));
      const height = HEAD + rows * (chip + CHIP_GAP) + PAD;
      this.#put(queue, 0, 0, this.#width, height, chip);
      top = height + GAP;
    }
    engines.forEach((id, index) => {
      if (id === null) return;
      const x = (index % columns) * (laneWidth + GAP);
      const y = top + Math.floor(index / columns) * (laneHeight + GAP);
      this.#put(this.#lanes.get(id), x, y, laneWidth, laneHeight, chip);
    });
    const rows = Math.ceil(engines.length / columns);
    this.#root.style.height = `${top + rows * (laneHeight + GAP)}px`;
  }

  #put(lane, x, y, width, height, chip) {
    const key = `${x} ${y} ${width} ${height}`;
    if (lane.key !== key) {
      lane.key = key;
      lane.node.style.transform = `translate(${x}px, ${y}px)`;
      lane.node.style.width = `${width}px`;
      lane.node.style.height = `${height}px`;
    }
    const inRow = perRow(width, chip);
    lane.slots.forEach((id, slot) => {
      if (id === null) return;
      const left = x + PAD + (slot % inRow) * (chip + CHIP_GAP);
      const top = y + HEAD + Math.floor(slot / inRow) * (chip + CHIP_GAP);
      this.#moveChip(this.#chips.get(id), left, top, chip);
    });
  }

  /** The element is there at once; on whole pixels, so that its picture lands on it. */
  #moveChip(chip, left, top, side) {
    const { pose: before, look, hasMoved } = chip;
    const [x, y] = [Math.round(left), Math.round(top)];
    chip.hasMoved = false;
    const isThere = before !== null && before.x === x && before.y === y;
    if (isThere && before.side === side && before.look === look && !hasMoved) return;
    chip.pose = { x, y, side, look };
    if (!isThere) chip.node.style.transform = `translate(${x}px, ${y}px)`;
    this.#flights.fly(chip, before, chip.pose, hasMoved);
  }

  // --- what it says ---------------------------------------------------------------------------------

  #describe(engine) {
    const { node, parts } = this.#lanes.get(engine.id);
    setData(node, "state", engine.state);
    parts.state.hidden = engine.state === "ready";
    setText(parts.state, engine.state);
    const latency = engine.chunk_ms > 0 ? `  ·  ${Math.round(engine.chunk_ms)} ms` : "";
    const count = this.#isNarrow ? String(engine.sessions) : `${engine.sessions} session${engine.sessions === 1 ? "" : "s"}${latency}`;
    setText(parts.count, engine.state === "starting" ? "" : count);
    setText(parts.crowd, this.#isCrowd && engine.state !== "starting" ? String(engine.sessions) : "");
    node.title = `${engine.id}: ${engine.sessions} sessions, ${engine.capacity} slots, load ${Math.round(engine.load * 100)} %${latency}`;
    const slots = engine.capacity <= MOST_SLOTS && engine.state !== "starting" && !this.#isCrowd ? engine.capacity : 0;
    if (parts.slots.children.length !== slots) parts.slots.replaceChildren(...Array.from({ length: slots }, () => element("i", "")));
    parts.load.style.transform = `scaleX(${Math.min(1, engine.load).toFixed(3)})`;
    this.#lanes.get(engine.id).name = `${engine.id}, ${engine.state}: ${engine.sessions} sessions of ${engine.capacity}, load ${Math.round(engine.load * 100)} %`;
  }

  #describeQueue(queue) {
    const lane = this.#lanes.get(QUEUE);
    if (lane === undefined) return;
    const count = this.#isCrowd ? queue : lane.slots.length;
    setText(lane.parts.count, String(count));
    setText(lane.parts.crowd, this.#isCrowd ? String(count) : "");
    lane.name = `Waiting for a place: ${count}`;
  }
}

/** For a while, from the last time on. */
function light(holder, node, name) {
  node.setAttribute(name, "");
  clearTimeout(holder.timer);
  holder.timer = setTimeout(() => node.removeAttribute(name), MOVING_MS);
}

/** Is this chip the chosen one? */
function mark(node, isChosen) {
  node?.toggleAttribute("data-chosen", isChosen);
  node?.setAttribute("aria-pressed", String(isChosen));
}

function element(name, className) {
  const node = document.createElement(name);
  node.className = className;
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function setData(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}
