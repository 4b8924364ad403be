// Pictures of chips on one sheet: in every hue, at rest in each of its looks and as it moves. What cluster.css says of
// `.chip`, for a canvas.

const HUES = 72;
const HUE_STEP = 360 / HUES;
const BLOCKS = 9; // hues in a row of the sheet
const LOOKS = ["active", "idle", "queued"];
const ROUND = 0.3; // of its side
export const LARGER = 1.25; // while it moves
const HALO = 4;
const MARGIN = 9; // around one that moves, for its halo and shadow
const FRINGE = 1; // around one at rest
const COLOURS = ["text", "accent", "bad", "raised", "chip-lightness"];

/** The nearest hue that there are pictures of: a chip is the same at rest and on its way. */
export const drawnHue = (degrees) => (Math.round(degrees / HUE_STEP) % HUES) * HUE_STEP;

export class Sprites {
  #sheet = null; // an ImageBitmap: a canvas would be looked through for changes at each picture
  #colours = {};
  #key = "";
  #side = 0; // of a chip
  #scale = 1; // device pixels to one of CSS
  #resting = 0; // sides of what is cut out
  #moving = 0;

  /** Have pictures of chips of this side, in the page's colours. */
  fit(side, scale) {
    const root = document.documentElement;
    const key = `${root.dataset.theme} ${side} ${scale}`;
    if (key === this.#key) return;
    this.#key = key;
    this.#side = side;
    this.#scale = scale;
    this.#resting = side + 2 * FRINGE;
    this.#moving = Math.ceil(side * LARGER) + 2 * MARGIN;
    const style = getComputedStyle(root);
    this.#colours = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`)]));
    const canvas = new OffscreenCanvas(Math.ceil(BLOCKS * this.#blockWidth * scale), Math.ceil((HUES / BLOCKS) * this.#moving * scale));
    const brush = canvas.getContext("2d", { willReadFrequently: true }); // not where a GPU may lose it
    brush.scale(scale, scale);
    for (let hue = 0; hue < 360; hue += HUE_STEP) this.#paint(brush, hue);
    this.#sheet?.close();
    this.#sheet = canvas.transferToImageBitmap();
  }

  get #blockWidth() {
    return this.#moving + LOOKS.length * this.#resting;
  }

  /** Where the block of a hue begins. */
  #corner(hue) {
    const at = hue / HUE_STEP;
    return [(at % BLOCKS) * this.#blockWidth, Math.floor(at / BLOCKS) * this.#moving];
  }

  #paint(brush, hue) {
    const [left, top] = this.#corner(hue);
    brush.fillStyle = brush.strokeStyle = `oklch(${this.#colours["chip-lightness"]} 0.13 ${hue})`;
    this.#paintMoving(brush, left, top);
    LOOKS.forEach((look, at) => this.#paintResting(brush, look, left + this.#moving + at * this.#resting + FRINGE, top + FRINGE));
  }

  #paintMoving(brush, left, top) {
    const side = this.#side * LARGER;
    const halo = HALO * LARGER;
    const edge = (this.#moving - side) / 2;
    const [x, y] = [left + edge, top + edge];
    brush.save();
    brush.shadowColor = "#0006";
    brush.shadowOffsetY = 2 * LARGER * this.#scale; // of all lengths these alone are in pixels
    brush.shadowBlur = 5 * LARGER * this.#scale;
    box(brush, x, y, side, side * ROUND);
    brush.fill();
    brush.restore();
    brush.globalAlpha = 0.3;
    box(brush, x - halo, y - halo, side + 2 * halo, side * ROUND + halo);
    brush.roundRect(x, y, side, side, side * ROUND);
    brush.fill("evenodd");
    brush.globalAlpha = 1;
  }

  #paintResting(brush, look, x, y) {
    const side = this.#side;
    const fill = { active: 1, idle: 0.24, queued: 0 }[look];
    const rim = { active: 0, idle: 1, queued: 2 }[look];
    brush.globalAlpha = fill;
    box(brush, x, y, side, side * ROUND);
    brush.fill();
    brush.globalAlpha = 1;
    if (rim === 0) return;
    brush.lineWidth = rim;
    box(brush, x + rim / 2, y + rim / 2, side - rim, side * ROUND - rim / 2);
    brush.stroke();
  }

  /** A chip whose middle is at (x, y), `share` of its usual size. */
  drawResting(brush, hue, look, x, y, share) {
    const [left, top] = this.#corner(hue);
    this.#cut(brush, left + this.#moving + Math.max(0, LOOKS.indexOf(look)) * this.#resting, top, this.#resting, x, y, share);
  }

  /** The same with its halo, `share` of the usual size of one that moves. */
  drawMoving(brush, hue, x, y, share) {
    const [left, top] = this.#corner(hue);
    this.#cut(brush, left, top, this.#moving, x, y, share / LARGER);
  }

  #cut(brush, left, top, side, x, y, share) {
    const scale = this.#scale;
    const size = side * share;
    brush.drawImage(this.#sheet, left * scale, top * scale, side * scale, side * scale, x - size / 2, y - size / 2, size, size);
  }

  /** The dot of one that has nothing to play. */
  drawDot(brush, x, y, share) {
    const radius = 0.19 * this.#side * share;
    const at = (this.#side * share) / 2 + 2 - radius;
    for (const [name, more] of [["raised", 2], ["bad", 0]]) {
      brush.fillStyle = this.#colours[name];
      brush.beginPath();
      brush.arc(x + at, y - at, radius + more, 0, 2 * Math.PI);
      brush.fill();
    }
  }

  /** What is around one that is chosen, or has the focus. */
  drawRing(brush, x, y, share, isFocus) {
    const gap = isFocus ? 4 : 3; // to the middle of the line
    const side = this.#side * share + 2 * gap;
    brush.strokeStyle = this.#colours[isFocus ? "accent" : "text"];
    brush.lineWidth = 2;
    box(brush, x - side / 2, y - side / 2, side, this.#side * share * ROUND + gap);
    brush.stroke();
  }
}

/** The outline of a square with round corners. */
function box(brush, x, y, side, radius) {
  brush.beginPath();
  brush.roundRect(x, y, side, side, radius);
}
