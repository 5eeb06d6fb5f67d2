// What is chosen on cards, as texts that stand in the workflow: the node's inputs `choices`, `pinned` and `banned`.
// No elements here: the same rules as autolora_core/retrieve/choices.py and wishes.py.

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

// The choice for a LoRA, under its own name or one that means it.
export function choiceOf(choices, name) {
  return choices.get(keyOf(choices, name)) ?? {};
}

function keyOf(choices, name) {
  if (choices.has(name)) return name;
  return [...choices.keys()].find((key) => plain(key) === plain(name)) ?? name;
}

// Whether a trigger word goes into the prompt; `usual`: whether it would by itself.
export function hasTrigger(choice, word, usual) {
  const words = choice.triggers ?? {};
  return Object.hasOwn(words, word) ? words[word] === true : usual; // a word may be "constructor"
}

// A copy with `field` of a LoRA's choice set, or forgotten where `value` is undefined.
export function withChoice(choices, name, field, value) {
  const changed = new Map(choices);
  const key = keyOf(changed, name);
  const one = { ...(changed.get(key) ?? {}) };
  if (value === undefined) delete one[field];
  else one[field] = value;
  if (isEmpty(one)) changed.delete(key);
  else changed.set(key, one);
  return changed;
}

export function withoutChoice(choices, name) {
  const changed = new Map(choices);
  changed.delete(keyOf(changed, name));
  return changed;
}

// A trigger word switched on or off; what the node would do by itself (`usual`) is not kept.
export function withTrigger(choices, name, word, on, usual) {
  const words = new Map(Object.entries(choiceOf(choices, name).triggers ?? {}));
  if (on === usual) words.delete(word);
  else words.set(word, on);
  return withChoice(choices, name, "triggers", words.size ? Object.fromEntries(words) : undefined);
}

function plain(name) {
  return name
    .normalize("NFC")
    .replaceAll("\\", "/")
    .toLowerCase()
    .replace(/\.safetensors$/, "");
}

// Whether a line of `pinned` or `banned` names this LoRA: in full, or without its folder.
function means(line, name) {
  const [asked, own] = [plain(line), plain(name)];
  return asked === own || (!asked.includes("/") && asked === own.split("/").pop());
}

function names(line, name) {
  const strength = /^(.*\S)\s*:\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.exec(line);
  return means(line, name) || (strength !== null && means(strength[1], name));
}

export function isListed(text, name) {
  return linesOf(text).some((line) => names(line, name));
}

function linesOf(text) {
  return String(text ?? "")
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter(Boolean);
}

// The text with a line for this LoRA, or without any.
export function listed(text, name, wanted) {
  const lines = linesOf(text).filter((line) => !names(line, name));
  return (wanted ? [...lines, name] : lines).join("\n");
}
