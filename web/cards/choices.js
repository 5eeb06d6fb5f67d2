// What is chosen on cards, as texts that stand in the workflow: the node's inputs `choices`, `pinned` and `banned`.
// No elements here: the same rules as autolora_core/retrieve/names.py, choices.py and wishes.py.

const FORMAT = "autolora-choices/1";

// Name → { strength?, triggers?: word → bool, role? }; null for a text that is none of ours.
export function readChoices(text) {
  if (!String(text ?? "").trim()) return new Map();
  try {
    const data = JSON.parse(text);
    if (data?.format !== FORMAT || typeof (data.loras ?? {}) !== "object" || Array.isArray(data.loras)) return null;
    const found = Object.entries(data.loras ?? {});
    return found.every(([, one]) => one && typeof one === "object" && !Array.isArray(one)) ? new Map(found) : null;
  } catch {
    return null;
  }
}

export function writeChoices(choices) {
  const kept = [...choices].filter(([, one]) => !isEmpty(one));
  // A map and not an object in between: a file may be called __proto__.
  const loras = kept.map(([name, one]) => `${JSON.stringify(name)}:${JSON.stringify(one)}`).join(",");
  return kept.length ? `{"format":"${FORMAT}","loras":{${loras}}}` : "";
}

function isEmpty(choice) {
  return choice.strength === undefined && choice.role === undefined && !Object.keys(choice.triggers ?? {}).length;
}

// Of a LoRA, `one` has its `name`, and `beside`: names of other files that a line for it may mean.
function meant(asked, one, whole = false) {
  return closest(asked, [one.name, ...(one.beside ?? []).filter((name) => name !== one.name)], whole);
}

// The names that `asked` may mean, by the first rule that finds any: the name itself, without ending, in other case;
// unless `whole`, the end of a longer path, and that in other case. As autolora_core/retrieve/names.py.
export function closest(asked, known, whole = false) {
  const rules = [spelled, bare, plain].map((form) => [form, false]);
  if (!whole) rules.push([bare, true], [plain, true]);
  for (const [form, ends] of rules) {
    const wanted = form(asked);
    const found = known.filter((name) => (ends ? form(name).endsWith(`/${wanted}`) : form(name) === wanted));
    if (found.length) return found;
  }
  return [];
}

// The choice for a LoRA, under its own name or one that means it and no other.
export function choiceOf(choices, one) {
  return choices.get(keyOf(choices, one)) ?? {};
}

function keyOf(choices, one) {
  if (choices.has(one.name)) return one.name;
  const own = [...choices.keys()].filter(
    (key) => plain(key) === plain(one.name) && isOnly(meant(key, one, true), one.name),
  );
  const found = closest(one.name, own, true);
  return found.length === 1 ? found[0] : one.name;
}

function isOnly(found, name) {
  return found.length === 1 && found[0] === name;
}

// Whether a trigger word goes into the prompt; `usual`: whether it would by itself.
export function hasTrigger(choice, word, usual) {
  const words = choice.triggers ?? {};
  return Object.hasOwn(words, word) ? words[word] === true : usual; // a word may be "constructor"
}

// A copy with `field` of a LoRA's choice set, or forgotten where `value` is undefined.
export function withChoice(choices, one, field, value) {
  const changed = new Map(choices);
  const key = keyOf(changed, one);
  const choice = { ...(changed.get(key) ?? {}) };
  if (value === undefined) delete choice[field];
  else choice[field] = value;
  if (isEmpty(choice)) changed.delete(key);
  else changed.set(key, choice);
  return changed;
}

export function withoutChoice(choices, one) {
  const changed = new Map(choices);
  changed.delete(keyOf(changed, one));
  return changed;
}

// A trigger word switched on or off; what the node would do by itself (`usual`) is not kept.
export function withTrigger(choices, one, word, on, usual) {
  const words = new Map(Object.entries(choiceOf(choices, one).triggers ?? {}));
  if (on === usual) words.delete(word);
  else words.set(word, on);
  return withChoice(choices, one, "triggers", words.size ? Object.fromEntries(words) : undefined);
}

const ENDING = /\.safetensors$/i;

function spelled(name) {
  return name.normalize("NFC").replaceAll("\\", "/");
}

function bare(name) {
  return spelled(name).replace(ENDING, "");
}

function plain(name) {
  return spelled(name).toLowerCase().replace(ENDING, "");
}

// Whether a line of `banned` names this LoRA: in full it is that file alone, else every file that is called so.
function bans(line, one) {
  const known = [one.name, ...(one.beside ?? [])];
  const exact = known.filter((name) => spelled(name) === spelled(line));
  if (exact.length) return exact.includes(one.name);
  const [asked, own] = [plain(line), plain(one.name)];
  if (ENDING.test(line) && known.some((name) => plain(name) === asked)) return own === asked;
  return own === asked || own.endsWith(`/${asked}`);
}

// What a line of `pinned` may mean: a name, or a name and a strength.
function readings(line) {
  const found = /^(.*\S)[ \t]*:[ \t]*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)$/is.exec(line);
  return found && Number.isFinite(Number(found[2])) ? [line, found[1]] : [line];
}

// The node takes the first reading that is the name of a file.
function pins(line, one) {
  for (const reading of readings(line)) {
    const found = meant(reading, one);
    if (found.length) return found.includes(one.name);
  }
  return false;
}

const RULES = { pinned: pins, banned: bans };

// Whether the text of the input `field` (pinned or banned) names this LoRA.
export function isListed(field, text, one) {
  return linesOf(text).some((line) => RULES[field](line, one));
}

// As Python's side reads them: no other sign ends a line.
function linesOf(text) {
  return String(text ?? "")
    .split(/\r\n|\n|\r/)
    .map((line) => line.trim())
    .filter(Boolean);
}

// The text with a line for this LoRA, or without any.
export function listed(field, text, one, wanted) {
  const lines = linesOf(text).filter((line) => !RULES[field](line, one));
  return (wanted ? [...lines, one.name] : lines).join("\n");
}
