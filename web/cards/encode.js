// The cards of Encode LoRA Library: how far it is, counts by base model, and files with a problem.

import { bar, counted, el, icon, percent, shown } from "./elements.js";
import { lazyList } from "./list.js";

export const VIEW = { title: "LoRA library", height: 120 };
const OFTEN = 5000; // milliseconds between two things said aloud

// Returns { show(card), progress(message), stopped(), isEmpty() }.
export function encodeCards(host) {
  let [list, said, last, working] = [null, 0, null, false];
  waiting();

  function waiting() {
    host.headline("Cards");
    const text = "Run to read the LoRA files and see what they are.";
    host.body.replaceChildren(el("p", { class: "al-empty", text }));
  }

  function show(card) {
    list?.forget();
    [last, working] = [card, false];
    const trouble = card.problems.length + card.problems_left_out;
    host.headline(`${counted(card.files, "file")}${trouble ? ` · ${counted(trouble, "note")}` : ""}`);
    const most = Math.max(1, ...card.families.map((one) => one.count));
    const parts = [el("p", { class: "al-reason", text: summary(card) })];
    if (card.families.length)
      parts.push(
        el(
          "div",
          { class: "al-families", role: "list", "aria-label": "LoRAs by base model" },
          ...card.families.map((one) => familyRow(one, most)),
        ),
      );
    parts.push(...card.offline.map((root) => warning(`Folder not there now, its files are kept: ${root}`)));
    if (trouble) {
      parts.push(el("h3", { class: "al-title", text: `${counted(trouble, "note")} on files` }));
      list = lazyList(card.problems, {
        label: "Files with a problem",
        height: 34,
        build: problemRow,
        scroller: host.body,
      });
      parts.push(list);
      if (card.problems_left_out) parts.push(...others(card));
    }
    host.body.replaceChildren(...parts);
    host.say(`${counted(card.files, "file")} in the library, ${counted(trouble, "note")}.`);
  }

  function progress(told) {
    working = true;
    const rate = told.rate === null ? "" : ` · ${told.rate < 10 ? told.rate : Math.round(told.rate)} a second`;
    const left = told.seconds === null ? "" : ` · ${duration(told.seconds)} left`;
    const line = `${told.step} ${told.done.toLocaleString("en")} of ${told.total.toLocaleString("en")}${rate}${left}`;
    host.headline(line);
    host.body.replaceChildren(
      el("div", { class: "al-line" }, bar(told.share, "Done", "al-score"), el("b", { text: percent(told.share) })),
      el("p", { class: "al-reason al-file", text: told.name, title: shown(told.name) }),
    );
    if (Date.now() - said < OFTEN) return;
    said = Date.now();
    host.say(line);
  }

  // The run was cancelled or failed: what was known before is shown again, not how far it came.
  function stopped() {
    if (!working) return;
    working = false;
    if (last) show(last);
    else waiting();
    host.say("Stopped before its end.", true);
  }
  return { show, progress, stopped, isEmpty: () => last === null && !working };
}

function summary(card) {
  const changes = Object.entries(card.changes).map(([word, count]) => `${count.toLocaleString("en")} ${word}`);
  const parts = [
    changes.length ? `${changes.join(", ")}.` : "No LoRA file in this folder, or none that name_filter lets through.",
  ];
  if (card.speed) parts.push(`Read ${card.speed.read} in ${card.speed.seconds} s (${card.speed.per_second}/s).`);
  if (card.waiting)
    parts.push(`${counted(card.waiting, "file")} still to be read by their weights, while no prompt runs.`);
  const { identical, near } = card.duplicates;
  if (identical || near) parts.push(`Duplicates: ${identical} identical, ${near} nearly.`);
  return parts.join(" ");
}

function familyRow(one, most) {
  const lines = Object.entries(one.lines).map(([name, count]) => `${name}: ${count}`);
  const extra = [`${one.worded} say what they are`, one.partial ? `${one.partial} partial` : "", ...lines]
    .filter(Boolean)
    .join(" · ");
  const row = el(
    "div",
    { class: "al-family", role: "listitem", title: `${shown(one.family)}: ${extra}` },
    el("strong", { text: one.family }),
    bar(one.count / most, `${shown(one.family)}, beside the largest`, "al-score"),
    el("b", { text: one.count.toLocaleString("en") }),
    el("span", { class: "al-label", text: extra }),
  );
  return row;
}

function problemRow({ name, why, encoded }) {
  const line = el(
    "p",
    { class: encoded ? "al-reason" : "al-refused" },
    el("strong", { text: name }),
    el("span", { text: ` ${shown(why)}` }),
  );
  line.title = `${shown(name)}\n${shown(why)}`;
  return line;
}

// How many more problems there are, of which kinds all of them are, and where they are listed.
function others(card) {
  const kinds = (card.problem_kinds ?? []).map((kind) => `${kind.count.toLocaleString("en")} × ${kind.why}`);
  const more = `… and ${card.problems_left_out.toLocaleString("en")} more. ${card.problems_where ?? ""}`;
  return [more, ...kinds].map((text) => el("p", { class: "al-reason", text }));
}

function warning(text) {
  return el("p", { class: "al-warning" }, icon("warn"), el("span", { text }));
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.round(minutes / 6) / 10} h`;
}
