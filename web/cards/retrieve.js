// The cards of Retrieve LoRAs from Prompt: a card a pick, paler ones for the nearest misses, and what is chosen on them.

import * as wish from "./choices.js";
import { bar, counted, el, iconButton, percent, preview, shortName, shown } from "./elements.js";
import { chain } from "./host.js";
import { lazyList } from "./list.js";
import { strengthRow } from "./strength.js";

export const VIEW = { title: "LoRAs for the prompt", height: 190 };
const PARTS = [
  ["response", "model"],
  ["weights", "weights"],
  ["text", "text"],
  ["lexical", "words"],
  ["picture", "previews"],
];
const OPTIONAL = ["response", "picture"]; // told only where there was something to go on
const FIRST_TRIGGERS = 3;
const MOST_KEPT = 40; // names shown before a run; all are counted
const UNREADABLE = " · the choices cannot be read";
const SETTLED = 300; // milliseconds after a change, for ComfyUI's undo

// `host` from addHost, `pictures(library, hash)` → address of a preview or null. Returns { show(card), isEmpty() }.
export function retrieveCards(node, host, pictures) {
  const inputs = nodeInputs(node);
  const shownLists = [];
  let card = null;
  const clear = iconButton("undo", "Forget everything that was chosen on cards", () => {
    inputs.choose(() => new Map());
    changed("Nothing is chosen any more.");
  });
  host.tools.append(clear);

  function refresh() {
    if (!card) return waiting();
    headline();
    for (const list of shownLists) list.refresh();
  }

  function headline() {
    const chosen = inputs.choices();
    clear.hidden = chosen?.size === 0;
    const kept = chosen?.size ? ` · choices for ${counted(chosen.size, "LoRA")}` : chosen ? "" : UNREADABLE;
    const found = card.picks.length ? `${card.picks.length} picked` : "none fits";
    host.headline(`${found} · ${shown(card.family)}${kept}`);
  }

  function waiting() {
    const choices = inputs.choices();
    const chosen = [...(choices?.keys() ?? [])];
    clear.hidden = choices?.size === 0;
    const told = chosen.length ? ` · choices kept for ${counted(chosen.length, "LoRA")}` : choices ? "" : UNREADABLE;
    host.headline(`Cards${told}`);
    const kept = chosen.slice(0, MOST_KEPT).map((name) => el("li", { text: shortName(name), title: shown(name) }));
    host.body.replaceChildren(
      el("p", { class: "al-empty", text: "Run to see which LoRAs fit the prompt, and why." }),
      kept.length ? el("ul", { class: "al-kept", "aria-label": "LoRAs with choices" }, ...kept) : "",
    );
  }

  function show(found) {
    for (const list of shownLists.splice(0)) list.forget();
    card = found;
    const parts = [];
    const add = (items, label, height, build) => {
      const list = lazyList(items, { label, height, build, scroller: host.body });
      shownLists.push(list);
      parts.push(list);
    };
    const at = (one) => pictures(card.library, one.hash);
    if (card.none_reason) parts.push(el("p", { class: "al-none", text: plainSentence(card.none_reason) }));
    if (card.picks.length) add(card.picks, "Picked LoRAs", 150, (one) => pickCard(one, at(one), inputs, changed));
    if (card.misses.length) {
      parts.push(el("h3", { class: "al-title", text: "Nearest of those left out" }));
      add(card.misses, "Nearest of those left out", 64, (one) => missCard(one, at(one), inputs, changed));
    }
    host.body.replaceChildren(...parts);
    host.body.scrollTop = 0;
    headline();
    const names = card.picks.map((one) => shortName(one.name)).join(", ");
    host.say(names ? `${counted(card.picks.length, "LoRA")} picked: ${names}` : "No LoRA fits this prompt.");
  }

  function changed(what) {
    refresh();
    host.say(`${what} Counts from the next run on.`.trim(), true);
  }

  inputs.watch(refresh);
  chain(node, "onConfigure", () => (card ? refresh() : waiting()));
  waiting();
  return { show, isEmpty: () => card === null };
}

// The nearest ones of the sentence are cards below it.
function plainSentence(reason) {
  return shown(reason).split(" Nearest: ")[0];
}

// For undo: the front end looks at the graph after keys and clicks of its own, and ours do not reach it.
function noteChange() {
  globalThis.app?.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}

// What stands in the node's inputs, and a way to write there that ComfyUI notices.
function nodeInputs(node) {
  const find = (name) => node.widgets?.find((widget) => widget.name === name);
  const linked = (name) => node.inputs?.some((input) => input.widget?.name === name && input.link !== null);
  const read = (name) => find(name)?.value ?? "";
  let noted = 0;
  function write(name, value) {
    const widget = find(name);
    if (!widget || linked(name)) return;
    widget.value = value;
    widget.callback?.(value);
    node.graph?.setDirtyCanvas?.(true, true);
    clearTimeout(noted);
    noted = setTimeout(noteChange, SETTLED);
  }
  return {
    choices: () => wish.readChoices(read("choices")),
    choose: (change) => write("choices", wish.writeChoices(change(wish.readChoices(read("choices")) ?? new Map()))),
    // A text that cannot be read may be of a newer version: a control would write over it, only forgetting it may.
    locked: (name) => !find(name) || linked(name) || (name === "choices" && wish.readChoices(read(name)) === null),
    listed: (name, lora) => wish.isListed(name, read(name), lora),
    list: (name, lora, wanted) => write(name, wish.listed(name, read(name), lora, wanted)),
    watch: (act) =>
      ["choices", "pinned", "banned"]
        .map(find)
        .filter(Boolean)
        .map((widget) => chain(widget, "callback", act)),
  };
}

function pinButtons(one, inputs, changed) {
  const name = shortName(one.name);
  const flip = (list, other, verb) => () => {
    const wanted = !inputs.listed(list, one);
    inputs.list(list, one, wanted);
    if (wanted && inputs.listed(other, one)) inputs.list(other, one, false);
    changed(wanted ? `${name} ${verb}.` : `${name} no longer ${verb}.`);
  };
  const pin = iconButton("pin", `Pin ${name}: always choose it`, flip("pinned", "banned", "pinned"), false);
  const ban = iconButton("ban", `Ban ${name}: never choose it`, flip("banned", "pinned", "banned"), false);
  pin.disabled = inputs.locked("pinned");
  ban.disabled = inputs.locked("banned");
  function update() {
    const state = { pinned: inputs.listed("pinned", one), banned: inputs.listed("banned", one) };
    pin.setAttribute("aria-pressed", String(state.pinned));
    ban.setAttribute("aria-pressed", String(state.banned));
    return state;
  }
  return { buttons: [pin, ban], update };
}

function scores(one) {
  const told = PARTS.filter(([key]) => !OPTIONAL.includes(key) || typeof one.parts[key] === "number");
  const row = told.map(([key, label]) =>
    el(
      "div",
      { class: `al-part al-part-${key}` },
      el("span", {
        class: "al-label",
        "aria-hidden": "true",
        text: `${label} ${percent(one.parts[key]).replace("%", "")}`,
      }),
      bar(one.parts[key], label),
    ),
  );
  return el("div", { class: "al-parts" }, ...row);
}

function pickCard(pick, url, inputs, changed) {
  const name = shortName(pick.name);
  const choose = (what, change) => {
    inputs.choose(change);
    changed(what);
  };
  const { buttons, update: pins } = pinButtons(pick, inputs, changed);
  const undo = iconButton("undo", `Forget what was chosen for ${name}`, () =>
    choose(`${name} as the node decides.`, (all) => wish.withoutChoice(all, pick)),
  );
  const role = el("button", {
    type: "button",
    class: "al-role",
    on: {
      click: () => {
        const wanted = now().role === "style" ? "subject" : "style";
        const value = wanted === pick.found.role ? undefined : wanted;
        choose(`${name} is the ${wanted}.`, (all) => wish.withChoice(all, pick, "role", value));
      },
    },
  });
  const strength = strengthRow(`Strength of ${name}`, (value) => {
    const kept = value === pick.found.strength ? undefined : value;
    choose("", (all) => wish.withChoice(all, pick, "strength", kept));
  });
  const words = pick.triggers.map((word, at) => triggerButton(word, at, pick, () => now().on, choose));
  const card = el(
    "article",
    { class: "al-card", "aria-label": shown(pick.name) },
    preview(pick.name, url),
    el(
      "div",
      { class: "al-main" },
      el("div", { class: "al-line" }, title(pick), role, ...buttons, undo),
      el("div", { class: "al-line" }, bar(pick.score, "Score", "al-score"), el("b", { text: percent(pick.score) })),
      scores(pick),
      el("p", { class: "al-reason", text: pick.reason }),
      words.length ? el("div", { class: "al-words", role: "group", "aria-label": "Trigger words" }, ...words) : "",
      strength.row,
    ),
  );

  function now() {
    const chosen = wish.choiceOf(inputs.choices() ?? new Map(), pick);
    return {
      chosen: Object.keys(chosen).length > 0,
      strength: typeof chosen.strength === "number" ? chosen.strength : pick.found.strength,
      role: chosen.role ?? pick.found.role,
      on: pick.triggers.filter((word, at) => wish.hasTrigger(chosen, word, at < FIRST_TRIGGERS)),
    };
  }

  card.update = () => {
    const [state, listed, locked] = [now(), pins(), inputs.locked("choices")];
    const same = state.strength === pick.strength && state.role === pick.role && String(state.on) === String(pick.on);
    const other = state.role === "style" ? "subject" : "style";
    role.textContent = `${state.role} ⇄`;
    role.setAttribute("aria-label", `Role: ${state.role}. Make it the ${other}`);
    role.title = role.getAttribute("aria-label");
    role.dataset.role = state.role;
    undo.hidden = !state.chosen;
    strength.set(state.strength);
    for (const button of [role, undo, ...words]) button.disabled = locked;
    strength.disable(locked);
    for (const word of words) word.update(state.on);
    card.classList.toggle("al-banned", listed.banned);
    card.classList.toggle("al-changed", !same || listed.pinned !== pick.pinned || listed.banned);
  };
  card.update();
  return card;
}

function title(one) {
  return el("strong", { class: "al-name", title: shown(one.name), text: shortName(one.name) });
}

function triggerButton(word, at, pick, on, choose) {
  const usual = at < FIRST_TRIGGERS;
  const button = el("button", { type: "button", class: "al-word", text: word, title: shown(word) });
  button.addEventListener("click", () => {
    const wanted = !on().includes(word);
    const said = wanted ? `“${shown(word)}” goes into the prompt.` : `“${shown(word)}” stays out of the prompt.`;
    choose(said, (all) => wish.withTrigger(all, pick, word, wanted, usual));
  });
  button.update = (words) => button.setAttribute("aria-pressed", String(words.includes(word)));
  return button;
}

function missCard(miss, url, inputs, changed) {
  const { buttons, update: pins } = pinButtons(miss, inputs, changed);
  const card = el(
    "article",
    { class: "al-card al-miss", "aria-label": shown(miss.name) },
    preview(miss.name, url),
    el(
      "div",
      { class: "al-main" },
      el("div", { class: "al-line" }, title(miss), el("b", { text: percent(miss.score) }), ...buttons),
      bar(miss.score, "Score", "al-score"),
      el("p", { class: "al-reason", text: miss.reason, title: shown(miss.reason) }),
    ),
  );
  card.update = () => {
    const listed = pins();
    card.classList.toggle("al-banned", listed.banned);
    card.classList.toggle("al-changed", listed.pinned || listed.banned);
  };
  card.update();
  return card;
}
