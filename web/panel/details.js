// All that is known of one LoRA, and what can be done with it.

import { copy, pin } from "./actions.js";
import { pictureOf } from "./data.js";
import { counted, make, plain, size, stem } from "./dom.js";

const KINDS = {
  text_encoder_only: "changes the text encoder only", control: "a control model, no LoRA", all_zero: "changes nothing: all zero",
  not_a_lora: "not a LoRA, or damaged",
};

/** The parts of a row's second line. */
export function facts(row) {
  return [
    row.family === "unknown" ? "" : [row.family, row.variant].filter(Boolean).join(" "), row.rank ? `rank ${row.rank}` : "",
    size(row.size), KINDS[row.kind] ?? "",
  ].filter(Boolean).map(plain);
}

/** What the scores of a row say. */
export function scores(row) {
  if (row.score === undefined) return "";
  const part = (name) => (row[name] === null || row[name] === undefined ? "" : `${name} ${row[name].toFixed(2)}`);
  return [row.score.toFixed(2), part("weights"), part("words")].filter(Boolean).join(" · ");
}

export class Details {
  /** `similar(row)` and `closed()` are told, `say(words)` shows them. */
  constructor({ app, api, similar, closed, say }) {
    Object.assign(this, { app, api, similar, closed, say });
    this.element = make("section", { class: "autolora-details", "aria-label": "The LoRA chosen", hidden: true });
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.close();
    });
  }

  close() {
    this.element.hidden = true;
    this.row = null;
    this.closed();
  }

  show(row, library) {
    this.row = row;
    const words = [
      this.#line("Trigger words", row.triggers.join(", ")), this.#line("Tags", row.tags.join(", ")), this.#line("Base", row.base_model),
      this.#line("Scores", scores(row)), this.#line("AutoV2", row.autov2), this.#line("About", row.description),
    ];
    this.element.replaceChildren(...[
      make("header", {}, make("strong", { text: plain(row.title) || stem(row.name), dir: "auto" }), this.#button("✕", () => this.close(), "Close")),
      make("div", { class: "autolora-name", text: plain(row.name), title: plain(row.name) }),
      make("div", { class: "autolora-facts", text: facts(row).join(" · ") }),
      ...row.problems.map((problem) => make("p", { class: "autolora-problem", text: plain(problem) })),
      this.#actions(row),
      row.preview ? this.#picture(row, library) : null,
      make("dl", {}, ...words.flat()),
    ].filter(Boolean));
    this.element.hidden = false;
    this.element.scrollTop = 0;
  }

  #actions(row) {
    const usable = row.hash && row.kind !== "not_a_lora";
    return make("div", { class: "autolora-actions" },
      usable && !row.by_header ? this.#button("Similar to this", () => this.similar(row)) : null,
      this.#button("Copy name", () => this.#copy(row.name, "The name")),
      row.triggers.length ? this.#button("Copy trigger words", () => this.#copy(row.triggers.join(", "), `${counted(row.triggers.length)} trigger word(s)`)) : null,
      usable ? this.#button("Pin in Retrieve", () => this.say(pin(this.app, row)), "Add it to pinned of the selected Retrieve node") : null);
  }

  async #copy(text, what) {
    this.say((await copy(text)) ? `${what} is on the clipboard.` : "The browser did not allow to copy.");
  }

  #button(text, act, title) {
    return make("button", { type: "button", text, title, "aria-label": title ? `${text === "✕" ? "" : `${text}. `}${title}` : undefined, onclick: act });
  }

  #picture(row, library) {
    const image = make("img", { class: "autolora-picture", alt: `Preview of ${stem(row.name)}`, decoding: "async", loading: "lazy", src: pictureOf(this.api, library, row.hash) });
    image.addEventListener("error", () => image.remove());
    return image;
  }

  #line(name, value) {
    return value ? [make("dt", { text: name }), make("dd", { text: plain(value), dir: "auto" })] : [];
  }

  /** Move to the first thing that can be done. */
  focus() {
    this.element.querySelector(".autolora-actions button")?.focus();
  }
}
