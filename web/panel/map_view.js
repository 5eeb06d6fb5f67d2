// The tab Map: the map, its legend, and a card for the LoRA under the pointer.

import { ask, pictureOf } from "./data.js";
import { counted, later, make, plain, stem } from "./dom.js";
import { LibraryMap } from "./map.js";
import { readPoints } from "./points.js";

const HELD = 300; // rows that were pointed at

export class MapView {
  constructor(api, { chosen, say, shown }) {
    Object.assign(this, { api, chosen, say, shown, library: "", rows: new Map(), key: "" });
    this.map = new LibraryMap({ hovered: (hash, x, y) => this.#hover(hash, x, y), chosen: (hash) => this.#choose(hash) });
    this.card = make("div", { class: "autolora-card", hidden: true });
    this.legend = make("div", { class: "autolora-legend", role: "group", "aria-label": "Groups of the map" });
    this.element = make("div", { class: "autolora-map", hidden: true }, this.map.canvas, this.card, this.legend);
    this.#look = later((hash, x, y) => this.#showCard(hash, x, y), 60);
  }

  #look;

  clear() {
    this.leave();
    Object.assign(this, { key: "", points: null });
    this.rows.clear();
  }

  /** The tab is left: a map that is on its way is not waited for. */
  leave() {
    this.asking?.abort();
    this.asking = null;
    this.#hover(null);
  }

  /** The base that is shown. */
  get family() {
    return this.points?.family ?? "";
  }

  focus() {
    this.map.canvas.focus();
  }

  async show(library, family) {
    this.leave();
    this.library = library;
    const key = `${library}\n${family}`;
    if (this.key === key && this.points) return this.#said();
    this.map.show(null);
    this.legend.replaceChildren();
    const asking = (this.asking = new AbortController());
    const slow = setTimeout(() => this.say("Drawing the map; the first time takes some seconds …"), 1500);
    try {
      const buffer = await ask(this.api, "map", { library, family }, asking.signal);
      if (this.asking !== asking) return;
      const { clientWidth, clientHeight } = this.map.canvas;
      this.points = readPoints(buffer, clientHeight > clientWidth);
      this.key = key;
      this.map.show(this.points);
      this.#legend();
      this.#said();
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message, true);
    } finally {
      clearTimeout(slow);
    }
  }

  #said() {
    const { count, family, by } = this.points;
    this.shown(this.points);
    this.say(count ? `${counted(count)} LoRAs for ${plain(family)}, laid out by ${plain(by)}` : `No LoRA for ${plain(family)} has its weights read.`);
  }

  #legend() {
    const { labels, sizes } = this.points;
    this.legend.replaceChildren(...labels.map((words, group) => {
      const dot = make("span", { class: "autolora-dot" });
      dot.style.background = this.map.colour(group);
      const text = words.length ? plain(words.join(", ")) : `group ${group + 1}`;
      return make("button", { type: "button", "aria-pressed": "false", title: `${text}: ${counted(sizes[group])}`, onclick: (event) => this.#single(event.currentTarget, group) },
        dot, make("span", { text }), make("span", { class: "autolora-count", text: counted(sizes[group]) }));
    }));
  }

  #single(button, group) {
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of this.legend.children) other.setAttribute("aria-pressed", String(on && other === button));
    this.map.single(on ? group : -1);
  }

  #hover(hash, x, y) {
    this.pointed = hash;
    if (!hash) this.card.hidden = true;
    else this.#look(hash, x, y);
  }

  async #showCard(hash, x, y) {
    if (this.pointed !== hash) return;
    const row = await this.#row(hash).catch(() => null);
    if (!row || this.pointed !== hash) return;
    const picture = row.preview ? make("img", { alt: "", src: pictureOf(this.api, this.library, hash) }) : null;
    picture?.addEventListener("error", () => picture.remove());
    const words = row.tags.length ? make("div", { class: "autolora-facts", text: plain(row.tags.slice(0, 5).join(", ")) }) : null;
    this.card.replaceChildren(...[picture, make("strong", { text: plain(row.title) || stem(row.name), dir: "auto" }), make("div", { class: "autolora-name", text: plain(row.name) }), words].filter(Boolean));
    this.card.hidden = false;
    const { clientWidth, clientHeight } = this.map.canvas;
    const { offsetWidth, offsetHeight } = this.card;
    this.card.style.left = `${Math.max(4, Math.min(x + 12, clientWidth - offsetWidth - 4))}px`;
    this.card.style.top = `${y + 14 + offsetHeight > clientHeight ? Math.max(4, y - offsetHeight - 12) : y + 14}px`;
  }

  async #row(hash) {
    if (!this.rows.has(hash)) {
      const { rows } = await ask(this.api, "entries", { library: this.library, hash, limit: 1 });
      this.rows.set(hash, rows[0]);
      while (this.rows.size > HELD) this.rows.delete(this.rows.keys().next().value);
    }
    return this.rows.get(hash);
  }

  async #choose(hash) {
    try {
      const row = await this.#row(hash);
      if (row) this.chosen(row);
    } catch (error) {
      this.say(error.message, true);
    }
  }
}
