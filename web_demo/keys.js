// The keys that a person holds: arrows on the keyboard and the pad on the picture, as one set.

const ARROWS = ["ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight"];

export class HeldKeys {
  #held = new Set();
  #changed;

  /** changed(keys) after every press and release; isTyping(target): arrows there move a cursor. */
  constructor(pad, { changed, isTyping }) {
    this.#changed = changed;
    document.addEventListener("keydown", (event) => {
      if (!ARROWS.includes(event.key) || event.altKey || event.ctrlKey || event.metaKey || isTyping(event.target)) return;
      if (pad.hidden) return;
      event.preventDefault(); // no scrolling
      if (!event.repeat) this.#press(event.key);
    });
    document.addEventListener("keyup", (event) => this.#release(event.key));
    window.addEventListener("blur", () => this.releaseAll()); // its keyup goes to another window
    for (const button of pad.querySelectorAll("button")) this.#follow(button, button.dataset.key);
  }

  releaseAll() {
    if (this.#held.size === 0) return;
    this.#held.clear();
    this.#say();
  }

  #follow(button, key) {
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      this.#press(key);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(end, () => this.#release(key));
    }
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch
  }

  #press(key) {
    if (this.#held.has(key)) return;
    this.#held.add(key);
    this.#say();
  }

  #release(key) {
    if (this.#held.delete(key)) this.#say();
  }

  #say() {
    this.#changed([...this.#held]);
  }
}
