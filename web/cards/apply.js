// The cards of Gated Multi-LoRA Apply: what was found of each LoRA, what was refused and why, and what passes of it.

import { bar, counted, el, icon, number, percent, preview, shortName, shown } from "./elements.js";
import { heatPicture, heatRecord } from "./heat.js";
import { lazyList } from "./list.js";

export const VIEW = { title: "LoRAs applied", height: 130 };

// Returns { show(card), heat(message), isEmpty() }.
export function applyCards(host, pictures) {
  const record = heatRecord();
  let [card, list, drawn] = [null, null, 0];
  host.headline("Cards");
  host.body.replaceChildren(
    el("p", { class: "al-empty", text: "Run to see what is applied of each LoRA, and what is not." }),
  );

  function show(found) {
    list?.forget();
    card = found;
    record.keep(card.heat);
    const gate = card.gated === null ? "" : ` · gate on ${card.gated} of ${counted(card.fused, "layer")}`;
    host.headline(`${card.mode}${gate}`);
    const parts = [el("p", { class: "al-reason", text: `Mode ${card.mode}: ${card.why}.` })];
    if (card.runs > 1) parts.unshift(el("p", { class: "al-reason", text: `The last of ${card.runs} runs.` }));
    parts.push(
      ...card.warnings.map((one) => el("p", { class: "al-warning" }, icon("warn"), el("span", { text: one }))),
    );
    parts.push(...card.done.map((one) => el("p", { class: "al-reason", text: one })));
    const build = (one) => loraCard(one, pictures(card.library, one.hash), record);
    list = lazyList(card.loras, { label: "LoRAs applied", height: 90, build, scroller: host.body });
    if (card.loras.length) parts.push(list);
    else parts.push(el("p", { class: "al-none", text: "No LoRA to apply: the model is returned as it came." }));
    if (card.absent.length)
      parts.push(el("p", { class: "al-reason", text: `Strength 0, absent: ${card.absent.map(shortName).join(", ")}` }));
    host.body.replaceChildren(...parts);
    host.say(`${counted(card.loras.length, "LoRA")} applied, mode ${card.mode}.`);
  }

  // Steps come faster than they can be looked at: one drawing for each frame of the page.
  function heat(message) {
    record.take(message);
    if (!card) return;
    cancelAnimationFrame(drawn);
    drawn = requestAnimationFrame(() => list.refresh());
    if (message.step !== undefined) host.headline(`${card.mode} · step ${record.done()} of ${record.steps()}`);
    if (message.end) host.say("What passed of each LoRA is drawn on its card.");
  }
  return { show, heat, isEmpty: () => card === null };
}

function loraCard(one, url, record) {
  const clip = one.clip_strength !== one.strength && one.text.length ? `, text × ${number(one.clip_strength)}` : "";
  const share = one.total ? one.matched / one.total : null;
  const found = one.total ? `${one.matched} of ${counted(one.total, "layer")}` : "no layer of the diffusion model";
  const heat = el("div", { class: "al-heats" });
  const card = el(
    "article",
    { class: "al-card", "aria-label": shown(one.name) },
    preview(one.name, url),
    el(
      "div",
      { class: "al-main" },
      el(
        "div",
        { class: "al-line" },
        el("strong", { class: "al-name", title: shown(one.name), text: shortName(one.name) }),
        one.role ? el("span", { class: "al-tag", text: one.role }) : "",
        el("span", { class: "al-tag", text: `× ${number(one.strength)}${clip}` }),
      ),
      el(
        "div",
        { class: "al-line" },
        bar(share, "Layers found", "al-score"),
        el("span", { class: "al-label", text: found }),
      ),
      one.text.length ? el("p", { class: "al-reason", text: `Text encoders: ${one.text.join("; ")}` }) : "",
      one.outside ? el("p", { class: "al-reason", text: `Added plainly, outside the gate: ${one.outside}` }) : "",
      ...one.refused.map((of) => reasonLine("al-refused", of)),
      ...one.other.map((of) => reasonLine("al-reason", { ...of, why: `as weight patches: ${of.why}` })),
      ...one.notes.map((note) => el("p", { class: "al-reason", text: note })),
      heat,
    ),
  );
  card.update = () => {
    const table = record.of(one.name);
    if (!record.done() || !table.length) return heat.replaceChildren();
    const { canvas, mean } = heatPicture(one.name, table, record.blocks());
    heat.replaceChildren(canvas, el("span", { class: "al-label", text: `passes ${percent(mean)}` }));
  };
  card.update();
  return card;
}

function reasonLine(kind, { why, count, layers }) {
  const more = count > layers.length ? ` and ${count - layers.length} more` : "";
  const names = layers.map(shown).join(", ") + more;
  return el("p", { class: kind, title: names }, el("span", { text: `${counted(count, "layer")} ${shown(why)}` }));
}
