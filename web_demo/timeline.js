// The strip under the picture: which prompt made which stretch of the video, and what else happened in it.

const SHORTEST_MS = 30_000;
const LONGEST_MS = 120_000;

export const clockTime = (ms) => `${Math.floor(ms / 60_000)}:${String(Math.floor(ms / 1000) % 60).padStart(2, "0")}`;

export class Timeline {
  #track;
  #ends;
  #use;
  #thumbOf;
  #nodes = new Map(); // key -> element

  /** `ends` show the times of its edges; use(text) when a stretch is clicked; thumbOf(id) -> a canvas or null. */
  constructor(track, ends, { use, thumbOf }) {
    this.#track = track;
    this.#ends = ends;
    this.#use = use;
    this.#thumbOf = thumbOf;
  }

  /** Show the last two minutes. @param {import("./turboserve.js").Stream} stream */
  render(stream) {
    const { lengthMs } = stream.stats;
    const spanMs = Math.min(LONGEST_MS, Math.max(SHORTEST_MS, lengthMs));
    const startMs = Math.max(0, lengthMs - spanMs);
    this.#ends[0].textContent = clockTime(startMs);
    this.#ends[1].textContent = clockTime(startMs + spanMs);
    const percent = (ms) => Math.max(0, Math.min(100, ((ms - startMs) / spanMs) * 100));
    const shown = stream.history.entries.filter(({ ptsMs }) => ptsMs !== null);
    const seen = new Set();
    shown.forEach((entry, index) => {
      const endMs = shown[index + 1]?.ptsMs ?? lengthMs;
      if (endMs <= startMs) return;
      const node = this.#node(`p${entry.id}`, () => this.#segment(entry));
      const left = percent(entry.ptsMs);
      node.style.left = `${left}%`;
      node.style.width = `calc(${percent(endMs) - left}% - 2px)`;
      node.toggleAttribute("data-current", index === shown.length - 1);
      const thumb = this.#thumbOf(entry.id);
      if (thumb !== null && node.querySelector("canvas") === null) node.prepend(copyOf(thumb));
      seen.add(`p${entry.id}`);
    });
    for (const mark of stream.marks) {
      if (mark.ptsMs < startMs) continue;
      const key = `m${mark.kind}${mark.ptsMs}`;
      this.#node(key, () => tick(mark)).style.left = `${percent(mark.ptsMs)}%`;
      seen.add(key);
    }
    for (const [key, node] of this.#nodes) {
      if (seen.has(key)) continue;
      node.remove();
      this.#nodes.delete(key);
    }
  }

  #node(key, make) {
    let node = this.#nodes.get(key);
    if (node === undefined) {
      node = make();
      this.#nodes.set(key, node);
      this.#track.append(node);
    }
    return node;
  }

  #segment(entry) {
    const node = document.createElement("button"); // the list of prompts is the same for the keyboard
    node.type = "button";
    node.tabIndex = -1;
    node.className = "segment";
    node.title = `${clockTime(entry.ptsMs)}  ${entry.text}`;
    const text = document.createElement("span");
    text.textContent = entry.text;
    text.dir = "auto";
    node.append(text);
    node.addEventListener("mousedown", (event) => event.preventDefault()); // the strip is hidden from who reads: the focus stays out of it
    node.addEventListener("click", () => this.#use(entry.text));
    return node;
  }
}

function tick({ kind, text, ptsMs }) {
  const node = document.createElement("i");
  node.className = "tick";
  node.dataset.kind = kind;
  node.title = `${clockTime(ptsMs)}  ${text}`;
  return node;
}

/** A canvas can be in one place only. */
export function copyOf(canvas) {
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}
