// A list of any length of which only the rows in view are elements: a listbox, moved in by keys.

import { make } from "./dom.js";

const OVER = 4; // rows above and below the view
let lists = 0;

/** `make()` gives a row's element, `fill(element, row, index)` puts a row (undefined: not read yet) into it. */
export class VirtualList {
  constructor({ height, label, build, fill, row, looked, chosen, opened }) {
    Object.assign(this, { height, build, fill, row, looked, chosen, opened, total: 0, active: -1, version: 0, top: 0 });
    this.id = `autolora-list-${++lists}`;
    this.space = make("div", { class: "autolora-space", role: "presentation" });
    this.element = make("div", {
      class: "autolora-list", role: "listbox", tabindex: "0", "aria-label": label,
      onscroll: () => this.#scrolled(), onkeydown: (event) => this.#key(event),
    }, this.space);
    this.slots = [];
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(this.element);
  }

  /** Another list of `total` rows, from its top. */
  reset(total = 0) {
    this.active = -1;
    this.element.scrollTop = this.top = 0;
    this.resize(total);
  }

  #scrolled() {
    if (this.element.clientHeight) this.top = this.element.scrollTop;
    this.draw();
  }

  /** Where it was before it was taken out of the page, which forgets. */
  restore() {
    this.element.scrollTop = this.top;
    this.draw();
  }

  resize(total) {
    this.total = total;
    this.space.style.height = `${total * this.height}px`;
    this.refresh();
  }

  /** Draw all rows anew: what they show has changed. */
  refresh() {
    this.version++;
    this.draw();
  }

  /** Once before the next frame, however often it is asked for. */
  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.#draw();
    });
  }

  #draw() {
    const view = this.element.clientHeight;
    if (!view) return;
    const first = Math.max(0, Math.floor(this.element.scrollTop / this.height) - OVER);
    const count = Math.ceil(view / this.height) + 2 * OVER;
    const last = Math.min(this.total, first + count);
    while (this.slots.length < count) this.#slot();
    this.looked(first, last);
    const slots = this.slots.length;
    for (const slot of this.slots) if (slot.index < first || slot.index >= last) this.#hide(slot);
    for (let index = first; index < last; index++) this.#place(this.slots[index % slots], index);
    if (this.active >= first && this.active < last) this.element.setAttribute("aria-activedescendant", `${this.id}-${this.active}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  #slot() {
    const element = this.build();
    element.setAttribute("role", "option");
    element.classList.add("autolora-row");
    element.style.height = `${this.height}px`;
    element.hidden = true;
    const slot = { element, index: -1, version: -1, row: undefined };
    element.addEventListener("click", () => this.choose(slot.index));
    element.addEventListener("dblclick", () => this.opened(slot.index));
    this.space.append(element);
    // Rows lie in slots by their number: more slots, other places.
    for (const other of this.slots) this.#hide(other);
    this.slots.push(slot);
  }

  #hide(slot) {
    if (slot.index < 0) return;
    slot.index = -1;
    slot.element.hidden = true;
    slot.element.removeAttribute("id");
  }

  #place(slot, index) {
    const row = this.row(index);
    const { element } = slot;
    if (slot.index === index && slot.version === this.version && slot.row === row) return;
    if (slot.index !== index) {
      element.hidden = false;
      element.id = `${this.id}-${index}`;
      element.style.transform = `translateY(${index * this.height}px)`;
      element.setAttribute("aria-posinset", index + 1);
    }
    element.setAttribute("aria-setsize", this.total);
    element.setAttribute("aria-selected", index === this.active);
    Object.assign(slot, { index, row, version: this.version });
    this.fill(element, row, index);
  }

  /** Make a row the active one, in view. */
  choose(index) {
    if (index < 0 || index >= this.total) return;
    this.active = index;
    this.reveal(index);
    this.refresh();
    this.chosen(index);
  }

  reveal(index) {
    const { element, height } = this;
    const top = index * height;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + height > element.scrollTop + element.clientHeight) element.scrollTop = top + height - element.clientHeight;
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.height) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      const from = this.active < 0 ? (moves[event.key] > 0 ? -1 : 0) : this.active;
      this.choose(Math.min(this.total - 1, Math.max(0, from + moves[event.key])));
    } else if (event.key === "Enter" && this.active >= 0) this.opened(this.active);
    else return;
    event.preventDefault();
    event.stopPropagation(); // the canvas has uses of its own for these keys
  }
}
