// What can be done with a LoRA of the list: copy its name or trigger words, pin it in a Retrieve node.

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

/** Add a name to the `pinned` lines of a Retrieve node; what was done, in words. */
export function pin(app, name) {
  if (/[\r\n]/.test(name)) return "This file has a line break in its name: rename it to pin it.";
  const node = retrieveNode(app);
  if (!node) return "Select a node Retrieve LoRAs from Prompt first.";
  const widget = node.widgets?.find((one) => one.name === "pinned");
  if (!widget) return "This Retrieve node has no field pinned.";
  const lines = String(widget.value ?? "").split("\n").filter((line) => line.trim());
  if (lines.includes(name)) return "It is pinned there already.";
  widget.value = [...lines, name].join("\n");
  widget.callback?.(widget.value);
  node.setDirtyCanvas?.(true, true);
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  return `Pinned in “${node.title ?? RETRIEVE}”.`;
}
