// What passes of each LoRA, block by block and step by step, drawn while the model is sampled, and from what was kept.

import { el, percent, shown } from "./elements.js";

const LOW = [38, 44, 66];
const MIDDLE = [40, 124, 142];
const HIGH = [250, 214, 92];

// Columns as they come: `begin` and `steps` start anew; a step holds { blocks, loras: name → block → [share] }. `keep`
// takes what a card holds of an earlier sampling, { steps, every, blocks, loras: name → block → column }, or nothing.
export function heatRecord() {
  let [steps, blocks, columns] = [0, [], new Map()];
  return {
    keep(kept) {
      const loras = Object.entries(kept?.loras ?? {});
      const width = Math.max(0, ...loras.map(([, rows]) => rows[0]?.length ?? 0));
      const column = (at) => Object.fromEntries(loras.map(([name, rows]) => [name, rows.map((row) => [row[at]])]));
      [steps, blocks] = [width, kept?.blocks ?? []];
      columns = new Map(Array.from({ length: width }, (_, at) => [at, column(at)]));
    },
    take(message) {
      if (message.begin) [steps, blocks, columns] = [message.steps, [], new Map()];
      if (message.step === undefined) return;
      blocks = message.blocks;
      columns.set(message.step, message.loras);
    },
    // Block × step of one LoRA; undefined where nothing is known yet, null where it has no layer.
    of(name) {
      const width = Math.max(steps, ...[...columns.keys()].map((step) => step + 1), 1);
      return blocks.map((_, block) =>
        Array.from({ length: width }, (_, step) => columns.get(step)?.[name]?.[block]?.[0]),
      );
    },
    blocks: () => blocks,
    done: () => columns.size,
    steps: () => Math.max(steps, columns.size),
  };
}

// A picture of one LoRA's table, with its mean and its loudest block in words.
export function heatPicture(name, table, blocks) {
  const canvas = el("canvas", {
    class: "al-heat",
    role: "img",
    width: table[0]?.length ?? 1,
    height: Math.max(table.length, 1),
  });
  const pen = canvas.getContext("2d");
  table.forEach((row, y) =>
    row.forEach((value, x) => {
      if (typeof value !== "number") return;
      pen.fillStyle = colour(value);
      pen.fillRect(x, y, 1, 1);
    }),
  );
  const means = table.map(meanOf);
  const mean = meanOf(means);
  const most = means.indexOf(Math.max(...means.filter((one) => one !== null)));
  const where = most < 0 ? "" : `, most in ${shown(blocks[most])} (${percent(means[most])})`;
  canvas.setAttribute("aria-label", `What passes of ${shown(name)}: ${percent(mean)}${where}`);
  canvas.title = `rows: ${table.length} blocks, columns: steps\n${canvas.getAttribute("aria-label")}`;
  return { canvas, mean };
}

function meanOf(values) {
  const known = values.filter((value) => typeof value === "number");
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

// 0 is dark, 1 (all of it) lies in the middle, a gate may also make a LoRA louder: twice and more is bright.
function colour(value) {
  const share = Math.max(0, Math.min(1, value / 2));
  const [from, to, along] = share < 0.5 ? [LOW, MIDDLE, share * 2] : [MIDDLE, HIGH, share * 2 - 1];
  return `rgb(${from.map((one, at) => Math.round(one + (to[at] - one) * along)).join(",")})`;
}
