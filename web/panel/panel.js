// The panel itself: what is searched, what is shown of it, and what is said while it is on its way.

import { ask, Pages } from "./data.js";
import { Details, facts, scores } from "./details.js";
import { counted, later, make, plain, stem } from "./dom.js";
import { VirtualList } from "./list.js";
import { MapView } from "./map_view.js";

const ROW = 44; // pixels
const [PLAIN, MEANING] = ["Search  ( / )", "What should it show?  ( / )"];
const TABS = { entries: "All", duplicates: "Duplicates", problems: "Unreadable", map: "Map" };
const EMPTY = {
  entries: "No LoRA has these words.", duplicates: "Nothing is there twice.", problems: "Every file could be read.",
  similar: "No other LoRA is alike.", search: "No LoRA fits these words.",
};

export class Panel {
  constructor(app, api) {
    Object.assign(this, { app, api, library: "", tab: "entries", family: "", like: null, meaning: false, families: {} });
    this.pages = new Pages(api, (answer, page) => this.#heard(answer, page), (error) => this.#say(error.message, true));
    this.list = new VirtualList({
      height: ROW, label: "LoRAs", build: buildRow, fill: (element, row, index) => this.#fill(element, row, index),
      row: (index) => this.pages.row(index), looked: (first, last) => this.pages.want(first, last),
      chosen: () => this.#detail(), opened: () => this.details.focus(),
    });
    this.details = new Details({
      app, api, similar: (row) => this.#similar(row), closed: () => this.#back(), say: (words) => this.#say(words),
    });
    this.map = new MapView(api, {
      chosen: (row) => this.details.show(row, this.library), say: (words, bad) => this.#say(words, bad),
      shown: ({ families }) => this.#families(families),
    });
    this.element = this.#build();
    this.#libraries();
  }

  #build() {
    this.search = make("input", {
      type: "search", class: "autolora-search", "aria-label": "Search the library", placeholder: PLAIN,
      spellcheck: "false", autocomplete: "off", oninput: later(() => this.#typed(), () => (this.meaning ? 250 : 120)), onkeydown: (event) => this.#searchKey(event),
    });
    this.fits = make("button", {
      type: "button", class: "autolora-fits", text: "Fits", "aria-pressed": "false", onclick: () => this.#meaning(),
      title: "Rank by what fits these words as Retrieve does, by words and weights, rather than list what contains them",
    });
    this.chooser = make("select", { "aria-label": "Library", hidden: true, onchange: () => this.#open(this.chooser.value) });
    this.chips = make("div", { class: "autolora-chips", role: "group", "aria-label": "Base model" });
    this.tabs = make("div", { class: "autolora-tabs", role: "tablist", onkeydown: (event) => this.#tabKey(event) },
      ...Object.entries(TABS).map(([name, text]) => make("button", { type: "button", role: "tab", text, "data-tab": name, onclick: () => this.#tab(name) })));
    this.crumb = make("div", { class: "autolora-crumb", hidden: true });
    this.status = make("div", { class: "autolora-status", role: "status" });
    return make("div", { class: "autolora-panel", onkeydown: (event) => this.#slash(event) },
      make("div", { class: "autolora-head" }, this.chooser, make("div", { class: "autolora-line" }, this.search, this.fits), this.chips, this.tabs, this.crumb),
      this.list.element, this.map.element, this.status, this.details.element);
  }

  async #libraries() {
    this.#say("Reading the library …");
    try {
      const names = await this.#chooser();
      this.library = "";
      if (!names.length) return this.#say("There is no library yet: run Encode LoRA Library once.");
      this.chooser.value = names.includes("default") ? "default" : names[0];
      this.#open(this.chooser.value);
    } catch (error) {
      this.#say(error.message, true);
    }
  }

  /** The names of all libraries, to choose from where there are several. */
  async #chooser() {
    const { libraries } = await ask(this.api, "libraries", {});
    const names = libraries.map(({ name }) => name);
    if (String(names) !== String(Array.from(this.chooser.options, ({ value }) => value))) {
      this.chooser.replaceChildren(...names.map((name) => make("option", { value: name, text: plain(name) })));
      this.chooser.value = this.library;
    }
    this.chooser.hidden = names.length < 2;
    return names;
  }

  /** Look again: libraries may have come, gone or changed. Called whenever the panel is opened, and after a prompt. */
  async again() {
    if (!this.library) return this.#libraries();
    try {
      const names = await this.#chooser();
      if (!names.includes(this.library)) return this.#libraries();
      const { library } = this;
      const { generation } = await ask(this.api, "entries", { library, limit: 1 });
      if (library !== this.library) return; // another one was chosen meanwhile, and is being read
      if (generation === this.generation) return this.list.restore();
      this.map.clear();
      if (this.list.top > 0) this.#say("The library has changed: search again to see it as it is now.");
      else this.#show();
    } catch (error) {
      this.#say(error.message, true);
    }
  }

  #typed() {
    if (this.tab === "map") this.tab = "entries"; // words are looked for in the list
    this.like = null;
    this.#show();
  }

  #open(library) {
    Object.assign(this, { library, family: "", like: null, families: {}, generation: "" });
    this.map.clear();
    this.#show();
  }

  #meaning() {
    this.meaning = !this.meaning;
    this.fits.setAttribute("aria-pressed", this.meaning);
    this.search.placeholder = this.meaning ? MEANING : PLAIN;
    if (this.tab !== "entries") this.tab = "entries";
    this.#show();
    this.search.focus();
  }

  #tab(name) {
    Object.assign(this, { tab: name, like: null });
    this.#show();
  }

  #similar(row) {
    Object.assign(this, { tab: "entries", like: row });
    this.#show();
    this.list.element.focus();
  }

  /** Ask for what is chosen now. */
  #show() {
    const query = this.search.value.trim();
    const isMap = this.tab === "map";
    for (const tab of this.tabs.children) {
      const chosen = tab.dataset.tab === this.tab;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
    }
    this.crumb.hidden = !this.like;
    this.crumb.replaceChildren(...(this.like ? [
      make("span", { text: `Similar to ${plain(this.like.title) || stem(this.like.name)}` }),
      make("button", { type: "button", text: "Back to all", onclick: () => this.#tab("entries") })] : []));
    this.list.element.hidden = isMap;
    this.map.element.hidden = !isMap;
    this.details.element.hidden = true;
    this.#families();
    this.list.reset(0);
    this.#say(isMap ? "Drawing the map …" : this.generation ? "…" : "Reading the library …");
    if (isMap) return this.map.show(this.library, this.family);
    const { library, family } = this;
    if (this.like) return this.#begin("similar", { library, hash: this.like.hash });
    if (this.tab === "entries" && this.meaning && query) {
      this.#slowly("Making the library ready to be asked; the first time takes a while …");
      return this.#begin("search", { library, family, query });
    }
    return this.#begin(this.tab, { library, family, query });
  }

  #begin(route, query) {
    this.map.leave();
    this.pages.show(route, query);
  }

  #slowly(words) {
    const { pages } = this;
    const asked = pages.query;
    setTimeout(() => pages.route === "search" && pages.query !== asked && !pages.pages.size && pages.asking.size && this.#say(words), 1500);
  }

  #heard(answer, page) {
    if (page === 0) {
      this.generation = answer.generation;
      if (["entries", "duplicates", "problems"].includes(this.pages.route)) this.#families(answer.families);
      this.#say(this.#counted(answer));
    }
    if (this.list.total === answer.total) this.list.draw();
    else this.list.resize(answer.total);
  }

  #counted(answer) {
    const { route } = this.pages;
    if (!answer.total) return answer.note ?? (route === "entries" && !this.pages.query.query ? "The library holds no LoRA." : EMPTY[route]);
    const what = `${counted(answer.total)} ${answer.total === 1 ? "LoRA" : "LoRAs"}`;
    if (route === "duplicates") return `${what} in ${counted(answer.groups)} ${answer.groups === 1 ? "group" : "groups"}`;
    return answer.ranked ? `${what} ${route === "search" ? "" : "alike, "}${answer.ranked}, best first` : what;
  }

  #families(families = this.families) {
    this.families = families;
    const names = Object.keys(families);
    const chosen = this.tab === "map" ? this.map.family || this.family : this.family;
    const total = Object.values(families).reduce((sum, count) => sum + count, 0);
    const chip = (name, text, count) => make("button", {
      type: "button", class: "autolora-chip", "aria-pressed": String(name === chosen), onclick: () => this.#choose(name),
    }, make("span", { text }), make("span", { class: "autolora-count", text: counted(count) }));
    const gone = this.family && !names.includes(this.family) ? [chip(this.family, plain(this.family), 0)] : [];
    const had = this.chips.contains(document.activeElement);
    const all = this.tab === "map" ? null : chip("", "All", total); // a map is of one base: vectors of two are not compared
    const chips = [all, ...gone, ...names.map((name) => chip(name, plain(name), families[name]))].filter(Boolean);
    this.chips.hidden = names.length + gone.length < 2 && !this.family;
    this.chips.replaceChildren(...chips);
    if (had) this.chips.querySelector("[aria-pressed=true]")?.focus();
  }

  #choose(family) {
    this.family = family;
    this.like = null;
    this.#show();
  }

  #fill(element, row, index) {
    const [first, title, name, side] = element.children;
    element.classList.toggle("autolora-waiting", !row);
    element.classList.toggle("autolora-second", Boolean(row?.group !== undefined && row.group % 2));
    first.style.background = row ? `hsl(${hue(row.family)} 55% 55%)` : "transparent";
    title.textContent = row ? plain(row.title) || stem(row.name) : "…";
    name.textContent = row ? [this.tab === "problems" ? plain(row.problems[0]) : "", plain(row.name)].filter(Boolean).join(" · ") : "";
    side.textContent = row ? aside(row) : "";
    element.title = row ? [plain(row.name), facts(row).join(" · "), scores(row)].filter(Boolean).join("\n") : "";
  }

  #detail() {
    const row = this.pages.row(this.list.active);
    if (row) this.details.show(row, this.library);
  }

  #back() {
    if (this.tab === "map") this.map.focus();
    else this.list.element.focus();
  }

  #say(words, bad = false) {
    this.status.textContent = words;
    this.status.classList.toggle("autolora-problem", bad);
  }

  #slash(event) {
    if (event.key !== "/" || event.target === this.search || event.target.tagName === "SELECT") return;
    event.preventDefault();
    event.stopPropagation();
    this.search.focus();
    this.search.select();
  }

  #searchKey(event) {
    event.stopPropagation();
    if (event.key === "ArrowDown") {
      event.preventDefault();
      this.list.element.focus();
      this.list.choose(Math.max(0, this.list.active));
    } else if (event.key === "Escape" && this.search.value) {
      event.preventDefault();
      this.search.value = "";
      this.#show();
    }
  }

  #tabKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = Object.keys(TABS);
    const next = names[(names.indexOf(this.tab) + step + names.length) % names.length];
    event.preventDefault();
    event.stopPropagation();
    this.#tab(next);
    this.tabs.querySelector(`[data-tab=${next}]`).focus();
  }
}

// What stands at the end of a row: what it was found by, else what it is.
function aside(row) {
  if (row.score !== undefined) return row.score.toFixed(2);
  if (row.group !== undefined) return row.same ? "same file" : "nearly the same";
  if (row.missing) return "gone";
  return [row.family === "unknown" ? "" : plain(row.family), row.rank ? `r${row.rank}` : ""].filter(Boolean).join(" ");
}

function buildRow() {
  const parts = ["autolora-dot", "autolora-title", "autolora-under", "autolora-side"];
  return make("div", {}, ...parts.map((name) => make("span", { class: name, dir: name === "autolora-title" ? "auto" : undefined })));
}

// A colour for a base family: any name has one, the same always.
function hue(name) {
  let sum = 7;
  for (const sign of name) sum = (sum * 31 + sign.codePointAt(0)) % 997;
  return (sum * 137) % 360;
}
