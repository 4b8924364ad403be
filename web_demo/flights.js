// Chips on their way, drawn frame by frame on one canvas over the lanes: who moves, comes, goes or changes its look.
//
// A transition for each of 500 elements makes 500 layers, which a browser without a GPU puts together a few times a second.
// So the elements rest. Each is where it belongs at once, with its name, for pointer and keyboard; it shows itself when the
// canvas has brought its picture there.

import { LARGER, Sprites } from "./sprites.js";

const FADE_MS = 600; // from one look to another, in and out
const GROW_MS = 400;
const RIDE_MS = 600; // along with its lane
const MOVE_MS = 1100; // to another lane
const LIFTED_MS = 1300; // how long one that moves is larger and has a halo
const SMALLEST = 0.3;
const SHARPEST = 2; // device pixels to one of CSS; nobody sees more in motion

/** CSS's cubic-bezier(), as a table. Pure. */
export function curve(x1, y1, x2, y2, steps = 128) {
  const at = (a, b, t) => 3 * a * t * (1 - t) ** 2 + 3 * b * t ** 2 * (1 - t) + t ** 3;
  const table = [0];
  for (let i = 1, t = 0; i < steps; i++) {
    while (at(x1, x2, t) < i / steps) t += 1 / 4096;
    table.push(at(y1, y2, t));
  }
  table.push(1, 1);
  return (share) => {
    const place = Math.min(1, Math.max(0, share)) * steps;
    const before = Math.floor(place);
    return table[before] + (table[before + 1] - table[before]) * (place - before);
  };
}

const EASE = curve(0.25, 0.1, 0.25, 1);
const GLIDE = curve(0.3, 0.9, 0.3, 1);

/** A number on its way. It sets out with the first frame that asks for it: a late frame skips nothing. */
class Track {
  #from;
  #to;
  #curve = EASE;
  #ms = 0; // none: it is there
  #begunMs = null;

  constructor(value) {
    this.#from = this.#to = value;
  }

  /** On to a new value from where it was drawn last. */
  go(to, ms, nowMs, curve = EASE) {
    if (to === this.#to) return;
    this.#from = this.at(nowMs);
    this.#to = to;
    this.#curve = curve;
    this.#ms = ms;
    this.#begunMs = null;
  }

  at(nowMs) {
    if (this.#ms === 0) return this.#to;
    this.#begunMs ??= nowMs;
    const share = (nowMs - this.#begunMs) / this.#ms;
    if (share >= 1) this.#ms = 0;
    return this.#from + (this.#to - this.#from) * this.#curve(share);
  }

  get isThere() {
    return this.#ms === 0;
  }
}

/** What is drawn of one chip until it rests. */
class Flight {
  #x;
  #y;
  #side;
  #look;
  #before; // the look that it had
  #change = new Track(1); // from that one to its look
  #lift = new Track(0); // 1: larger, with its halo
  #shown = new Track(1); // 0: cannot be seen
  #isLifted = false;
  #liftedMs = null;
  #isGoing = false;

  constructor({ x, y, side, look }) {
    this.#x = new Track(x);
    this.#y = new Track(y);
    this.#side = new Track(side);
    this.#look = this.#before = look;
  }

  appear() {
    this.#shown = new Track(0);
    this.#shown.go(1, FADE_MS, 0);
  }

  vanish(nowMs) {
    this.#isGoing = true;
    this.#shown.go(0, FADE_MS, nowMs);
  }

  steer({ x, y, side, look }, isMove, nowMs) {
    const ms = isMove ? MOVE_MS : RIDE_MS;
    this.#x.go(x, ms, nowMs, GLIDE);
    this.#y.go(y, ms, nowMs, GLIDE);
    this.#side.go(side, GROW_MS, nowMs);
    if (look !== this.#look) {
      [this.#before, this.#look, this.#change] = [this.#look, look, new Track(0)];
      this.#change.go(1, FADE_MS, nowMs);
    }
    if (!isMove) return;
    this.#lift.go(1, GROW_MS, nowMs);
    this.#isLifted = true;
    this.#liftedMs = null;
  }

  /** Is there nothing left to be drawn? */
  isOver(nowMs) {
    this.#liftedMs ??= nowMs;
    if (this.#isLifted && nowMs - this.#liftedMs >= LIFTED_MS) {
      this.#isLifted = false;
      this.#lift.go(0, GROW_MS, nowMs);
    }
    let isOver = !this.#isLifted;
    for (const track of [this.#x, this.#y, this.#side, this.#change, this.#lift, this.#shown]) {
      track.at(nowMs);
      isOver &&= track.isThere;
    }
    return isOver;
  }

  draw(brush, sprites, { hue, isShort, node }, side, focused, nowMs) {
    const shown = this.#shown.at(nowMs);
    const lift = this.#lift.at(nowMs);
    const change = this.#change.at(nowMs);
    const now = this.#side.at(nowMs);
    const x = this.#x.at(nowMs) + now / 2;
    const y = this.#y.at(nowMs) + now / 2;
    const usual = (now / side) * (this.#isGoing ? SMALLEST + (1 - SMALLEST) * shown : 1);
    const share = usual * (1 + (LARGER - 1) * lift);
    if (lift < 1 && change < 1) {
      brush.globalAlpha = shown * (1 - change);
      sprites.drawResting(brush, hue, this.#before, x, y, share);
    }
    if (lift < 1) {
      brush.globalAlpha = shown * change;
      sprites.drawResting(brush, hue, this.#look, x, y, share);
    }
    if (lift > 0) {
      brush.globalAlpha = shown * lift;
      sprites.drawMoving(brush, hue, x, y, share);
    }
    brush.globalAlpha = shown;
    if (isShort) sprites.drawDot(brush, x, y, usual);
    if (node === focused) sprites.drawRing(brush, x, y, usual, true);
    else if (node.hasAttribute("data-chosen")) sprites.drawRing(brush, x, y, usual, false);
  }
}

export class Flights {
  #root;
  #canvas = document.createElement("canvas");
  #brush = this.#canvas.getContext("2d");
  #sprites = new Sprites();
  #flights = new Map(); // chip -> its flight
  #side = 0; // of a chip
  #isAsked = false; // for a frame
  #nowMs = 0; // of the last one
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(root) {
    this.#root = root;
    this.#canvas.className = "flights";
    this.#canvas.setAttribute("aria-hidden", "true");
    this.#canvas.hidden = true;
    root.append(this.#canvas);
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.end(); // no frames come
    });
  }

  /** How many chips are on their way. */
  get size() {
    return this.#flights.size;
  }

  /** Is everything shown where it is, at once? */
  get areNone() {
    return this.#calm.matches || document.hidden || this.#brush === null || !("OffscreenCanvas" in window); // Safari before 16.4
  }

  /** The chips have this side from now on. */
  fit(side) {
    this.#side = side;
    if (this.areNone) this.end();
  }

  /** From how it was to how it is now: {x, y, side, look} each; `before` is null for a chip that has come. */
  fly(chip, before, now, isMove) {
    if (this.areNone) return;
    let flight = this.#flights.get(chip);
    if (flight === undefined) {
      flight = new Flight(before ?? now);
      if (before === null) flight.appear();
      this.#flights.set(chip, flight);
      chip.node.setAttribute("data-flying", "");
    }
    flight.steer(now, isMove, this.#nowMs);
    this.#ask();
  }

  /** It has gone from where it was; its element may go, too. */
  vanish(chip, before) {
    if (this.areNone || before === null) return;
    const flight = this.#flights.get(chip) ?? new Flight(before);
    this.#flights.set(chip, flight);
    flight.vanish(this.#nowMs);
    this.#ask();
  }

  /** All are there. */
  end() {
    for (const chip of this.#flights.keys()) this.#land(chip);
    this.#canvas.hidden = true;
  }

  #land(chip) {
    this.#flights.delete(chip);
    chip.node.removeAttribute("data-flying");
  }

  #ask() {
    if (this.#isAsked) return;
    this.#isAsked = true;
    requestAnimationFrame((nowMs) => this.#frame(nowMs));
  }

  #frame(nowMs) {
    this.#isAsked = false;
    this.#nowMs = nowMs;
    const window = this.#seen(); // before anything is written
    for (const [chip, flight] of this.#flights) if (flight.isOver(nowMs)) this.#land(chip);
    this.#canvas.hidden = this.#flights.size === 0;
    if (this.#flights.size === 0) return;
    if (window.height > 0) this.#draw(window, nowMs);
    this.#ask();
  }

  /** The part of the lanes that is in the window. */
  #seen() {
    const { top, width, height } = this.#root.getBoundingClientRect();
    const from = Math.floor(Math.max(0, -top));
    return { from, width: Math.ceil(width), height: Math.ceil(Math.min(height, innerHeight - top)) - from };
  }

  #draw({ from, width, height }, nowMs) {
    const scale = Math.min(SHARPEST, devicePixelRatio);
    const canvas = this.#canvas;
    const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== across || canvas.height !== down) {
      [canvas.width, canvas.height] = [across, down];
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    canvas.style.transform = `translateY(${from}px)`;
    this.#sprites.fit(this.#side, scale);
    const brush = this.#brush;
    brush.setTransform(1, 0, 0, 1, 0, 0);
    brush.clearRect(0, 0, across, down);
    brush.setTransform(scale, 0, 0, scale, 0, -from * scale);
    const { activeElement } = document;
    const focused = activeElement?.matches(":focus-visible") ? activeElement : null;
    for (const [chip, flight] of this.#flights) flight.draw(brush, this.#sprites, chip, this.#side, focused, nowMs);
  }
}
