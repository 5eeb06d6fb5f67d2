// Elements made of text: nothing here takes a string for markup.

// Signs that turn a text around or steer a terminal: shown as �, as the reports do.
// eslint-disable-next-line no-control-regex
const TRICKS = /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ud800-\udfff]/gu;

/** A text of the index as it may be shown. */
export function plain(text) {
  return String(text ?? "").replace(TRICKS, "\ufffd");
}

/** An element; `attributes` that are functions are listeners (`onclick`), `text` is its text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter(Boolean));
  return element;
}

/** "people/anna.safetensors" → "anna". */
export function stem(name) {
  return plain(name).replaceAll("\\", "/").split("/").pop().replace(/\.[^.]+$/, "");
}

/** Bytes in words. */
export function size(bytes) {
  if (!(bytes > 0)) return "";
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/** 12345 → "12,345", as the reader's language has it. */
export function counted(number) {
  return Number(number).toLocaleString();
}

/** Calls `act` once it was not asked for `delay` ms. */
export function later(act, delay) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), typeof delay === "function" ? delay() : delay);
  };
}
