// The place of cards on a node: a widget that is drawn by the page, keeps nothing, and can be folded.

import { el, icon } from "./elements.js";

const HEADER = 26;
const CLOSED = "autolora_cards";

// Adds the cards' widget to `node`. `view` has `title` and `height` (what the cards need at least). Returns
// { body, tools, headline(text), say(text, seen) }; `body` takes the cards, `tools` buttons beside the headline.
export function addHost(node, view) {
  const head = el("span", { class: "al-headline" });
  const sign = el("span", { class: "al-fold" }, icon("open"));
  const fold = el("button", { type: "button", class: "al-head", "aria-expanded": "true" }, sign, head);
  const status = el("div", { class: "al-status", role: "status", "aria-live": "polite" });
  const body = el("div", { class: "al-body", role: "region", "aria-label": view.title });
  const tools = el("div", { class: "al-tools" });
  const root = el("div", { class: "al-cards" }, el("div", { class: "al-top" }, fold, tools), body, status);
  let closed = false;

  const widget = node.addDOMWidget("cards", "autolora_cards", root, {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => (closed ? HEADER : view.height),
    getMaxHeight: () => (closed ? HEADER : undefined),
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  widget.serializeValue = () => undefined;

  function setClosed(wanted) {
    closed = wanted;
    root.classList.toggle("al-closed", closed);
    sign.replaceChildren(icon(closed ? "closed" : "open"));
    fold.setAttribute("aria-expanded", String(!closed));
  }

  fold.addEventListener("click", () => {
    setClosed(!closed);
    node.properties[CLOSED] = closed ? "closed" : "open";
    if (!closed) node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    node.setDirtyCanvas?.(true, true);
  });

  // A graph that was laid out without cards stays as it is: they are folded where they would not fit.
  chain(node, "onConfigure", (saved) => {
    const kept = node.properties?.[CLOSED];
    setClosed(false);
    const small =
      Array.isArray(saved?.size) || saved?.size?.[1] !== undefined ? saved.size[1] < node.computeSize()[1] : false;
    setClosed(kept ? kept === "closed" : small);
  });

  keepEvents(root, body);
  return {
    body,
    tools,
    headline: (text) => (head.textContent = text),
    // Said aloud by a screen reader; shown too, unless the cards say it already.
    say(text, seen = false) {
      status.textContent = text;
      status.classList.toggle("al-quiet", !seen);
    },
  };
}

// Calls `act` after what the node did before.
export function chain(object, name, act) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    act.apply(this, given);
    return result;
  };
}

// Keys and the wheel are for the cards, but for what they have no use for.
function keepEvents(root, body) {
  for (const kind of ["keydown", "keyup", "keypress"])
    root.addEventListener(kind, (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && event.key !== "Escape") event.stopPropagation();
    });
  root.addEventListener(
    "wheel",
    (event) => {
      const scrolls = body.scrollHeight > body.clientHeight + 1;
      if (scrolls && !event.ctrlKey && !event.metaKey) event.stopPropagation();
      else toCanvas(event, "processMouseWheel");
    },
    { passive: false },
  );
  root.addEventListener("pointerdown", (event) => event.button === 1 && toCanvas(event, "processMouseDown"));
}

function toCanvas(event, method) {
  event.preventDefault();
  globalThis.app?.canvas?.[method]?.(event);
}
