// Elements of the page, made without markup: words from files and models only ever become text.

const SVG = "http://www.w3.org/2000/svg";
// Paths in a square of 16, drawn in the colour of the text.
const ICONS = {
  pin: "M9.5 1.5 14.5 6.5 12.6 7.2 9.8 10 9.4 13 3 6.6 6 6.2 8.8 3.4ZM5.6 9.4 1.6 14.4",
  ban: "M8 1.8A6.2 6.2 0 1 0 8 14.2 6.2 6.2 0 1 0 8 1.8ZM3.7 3.7 12.3 12.3",
  swap: "M2 5.5H13L10 2.5M14 10.5H3L6 13.5",
  undo: "M3 3V7H7M3.3 7A5.4 5.4 0 1 1 3.4 10.2",
  open: "M3 6 8 11 13 6",
  closed: "M6 3 11 8 6 13",
  warn: "M8 2 14.5 13.5H1.5ZM8 6.3V9.6M8 11.2V12",
};
// Signs that move a cursor or show a text in another order than it has; the report shows them so, too.
const TRICKS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

// A text as it may be shown.
export function shown(text) {
  return String(text ?? "").replace(TRICKS, "\ufffd");
}

// An element. `props`: class, text, on (event → function), style (property → value); all else are attributes, left out
// when null or false.
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") made.textContent = shown(value);
    else if (key === "class") made.className = value;
    else if (key === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (key === "style") for (const [name, of] of Object.entries(value)) made.style.setProperty(name, of);
    else made.setAttribute(key, value === true ? "" : shown(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("al-icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// A button with a sign; `label` is what a screen reader says and a pointer shows. `pressed` makes it a switch.
export function iconButton(name, label, act, pressed = null) {
  return el(
    "button",
    {
      type: "button",
      class: "al-button",
      "aria-label": label,
      title: label,
      "aria-pressed": pressed === null ? null : String(pressed),
      on: { click: act },
    },
    icon(name),
  );
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${Math.round(100 * value)}%`;
}

export function number(value) {
  return String(Math.round(value * 100) / 100);
}

// `1 LoRA`, `2 LoRAs`. Regular plurals only.
export function counted(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

// The last part of a name without its ending, for a narrow card; the whole one is its title.
export function shortName(name) {
  return shown(name)
    .split(/[\\/]/)
    .pop()
    .replace(/\.safetensors$/i, "");
}

// A bar that says its value.
export function bar(value, label, kind = "") {
  const share = Math.max(0, Math.min(1, value ?? 0));
  return el(
    "div",
    {
      class: `al-bar ${kind}`,
      role: "img",
      "aria-label": `${label}: ${value === null || value === undefined ? "nothing to go on" : percent(value)}`,
    },
    el("div", { style: { width: `${100 * share}%` } }),
  );
}

function hue(name) {
  let sum = 7;
  for (const sign of name) sum = (sum * 31 + sign.codePointAt(0)) % 360;
  return sum;
}

// The picture beside a LoRA's file, else its initial on a colour of its own. `url`: where the picture is, or null.
export function preview(name, url) {
  const initial = Array.from(shortName(name).replace(/^[^\p{L}\p{N}]+/u, ""))[0] ?? "?";
  const tile = el(
    "div",
    { class: "al-tile", "aria-hidden": "true", style: { "--hue": hue(shown(name)) } },
    el("span", { text: initial.toUpperCase() }),
  );
  if (url) {
    const picture = el("img", { alt: "", decoding: "async", draggable: "false" });
    picture.addEventListener("load", () => tile.replaceChildren(picture));
    picture.src = url; // no picture, or no such route: the initial stays
  }
  return tile;
}
