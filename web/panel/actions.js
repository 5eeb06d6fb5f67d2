// What can be done with a LoRA of the list: copy its name or trigger words, pin it in a Retrieve node.

import { isListed, listed } from "../cards/choices.js";

const RETRIEVE = "AutoLoRARetrieve";

/** Put a text on the clipboard; false where the browser refuses. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByHand(text); // pages that are not served by https or from this machine have no clipboard
  }
}

function copyByHand(text) {
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

/** The node to pin in: the selected Retrieve node, or the only one there is. */
export function retrieveNode(app) {
  const graph = app.canvas?.graph ?? app.graph;
  const all = (graph?.nodes ?? graph?._nodes ?? []).filter((node) => node.type === RETRIEVE);
  const selected = Object.values(app.canvas?.selected_nodes ?? {}).filter((node) => node.type === RETRIEVE);
  return selected[0] ?? (all.length === 1 ? all[0] : null);
}

/** Add a LoRA to the `pinned` lines of a Retrieve node, and take it out of `banned`; what was done, in words. */
export function pin(app, row) {
  if (/[\r\n]/.test(row.name)) return "This file has a line break in its name: rename it to pin it.";
  const node = retrieveNode(app);
  if (!node) return "Select a node Retrieve LoRAs from Prompt first.";
  const [pinned, banned] = ["pinned", "banned"].map((field) => node.widgets?.find((one) => one.name === field));
  if (!pinned) return "This Retrieve node has no field pinned.";
  if (isLinked(node, "pinned")) return "Its field pinned is connected to another node: add the name there.";
  if (isListed("pinned", pinned.value, row)) return "It is pinned there already.";
  write(pinned, listed("pinned", pinned.value, row, true));
  if (banned && !isLinked(node, "banned") && isListed("banned", banned.value, row))
    write(banned, listed("banned", banned.value, row, false));
  node.setDirtyCanvas?.(true, true);
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  return `Pinned in “${node.title ?? RETRIEVE}”.`;
}

function isLinked(node, field) {
  return Boolean(node.inputs?.some((input) => input.widget?.name === field && (input.link ?? null) !== null));
}

function write(widget, value) {
  widget.value = value;
  widget.callback?.(value);
}
