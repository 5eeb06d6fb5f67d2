// Cards in the pack's nodes. Without this file, or where a part of it fails, the nodes are what they are without it: every
// fact is in their reports too.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { VIEW as APPLY, applyCards } from "./cards/apply.js";
import { cachedCard } from "./cards/cached.js";
import { VIEW as ENCODE, encodeCards } from "./cards/encode.js";
import { addHost, chain } from "./cards/host.js";
import { VIEW as RETRIEVE, retrieveCards } from "./cards/retrieve.js";

const FORMAT = "autolora-cards/1";
const KEPT_AFTER = 200; // milliseconds
let reused = []; // ids of the nodes that the running prompt did not run again
// Text inputs beside the cards keep a few lines: the room of a taller node goes to the cards.
const LINES = { prompt: 90, pinned: 50, banned: 50 };

function pictures(library, hash) {
  if (!library || !/^[0-9a-f]{64}$/.test(hash ?? "")) return null;
  return api.apiURL(`/autolora/preview?library=${encodeURIComponent(library)}&hash=${hash}`);
}

const NODES = {
  AutoLoRARetrieve(node) {
    hide(node.widgets?.find((widget) => widget.name === "choices"));
    for (const widget of node.widgets ?? [])
      if (widget.name in LINES && widget.options) widget.options.getMaxHeight = () => LINES[widget.name];
    return { show: retrieveCards(node, addHost(node, RETRIEVE), pictures) };
  },
  AutoLoRAGatedApply: (node) => applyCards(addHost(node, APPLY), pictures),
  AutoLoRAEncodeLibrary: (node) => encodeCards(addHost(node, ENCODE)),
};

// The cards are what shows it.
function hide(widget) {
  if (!widget) return;
  widget.hidden = true;
  widget.computeSize = () => [0, -4];
  if (widget.options) widget.options.hidden = true;
}

// A fault here must never take a node from a graph.
function guarded(what, act) {
  try {
    return act();
  } catch (error) {
    console.warn(`AutoLoRA: no cards, ${what} failed`, error);
    return undefined;
  }
}

// A node that ran several times for one prompt, as behind Compare Modes and Strengths, gives a card for each: the last one
// is shown, which is also what was sampled last.
function showOutput(node, output) {
  const cards = output?.autolora ?? [];
  const card = cards[cards.length - 1];
  if (card?.format === FORMAT)
    guarded("showing a result", () => node.autoloraCards?.show?.({ ...card, runs: cards.length }));
}

app.registerExtension({
  name: "autolora.cards",
  async setup() {
    for (const name of ["cards", "controls"]) {
      const sheet = document.createElement("link");
      sheet.rel = "stylesheet";
      sheet.href = new URL(`./css/${name}.css`, import.meta.url).href;
      document.head.append(sheet);
    }
    for (const [event, method] of [
      ["autolora.progress", "progress"],
      ["autolora.heat", "heat"],
    ])
      api.addEventListener(event, ({ detail }) =>
        guarded(event, () => nodeOf(detail?.node)?.autoloraCards?.[method]?.(detail)),
      );
    for (const event of ["execution_error", "execution_interrupted"])
      api.addEventListener(event, ({ detail }) =>
        guarded(event, () => nodeOf(detail?.node_id)?.autoloraCards?.stopped?.()),
      );
    api.addEventListener("execution_cached", ({ detail }) => (reused = detail?.nodes ?? []));
    api.addEventListener("execution_success", ({ detail }) =>
      guarded("showing reused results", () => showReused(detail)),
    );
  },
  // The front end keeps what nodes gave when it goes from one workflow to another and back, a moment after the graph.
  loadedGraphNode(node) {
    if (node.autoloraCards) setTimeout(() => showOutput(node, app.nodeOutputs?.[node.id]), KEPT_AFTER);
  },
  async beforeRegisterNodeDef(nodeType, nodeData) {
    const attach = NODES[nodeData.name];
    if (!attach) return;
    chain(nodeType.prototype, "onNodeCreated", function () {
      this.autoloraCards = guarded("making them", () => attach(this));
    });
    chain(nodeType.prototype, "onExecuted", function (output) {
      showOutput(this, output);
    });
  },
});

function showReused({ prompt_id: promptId }) {
  for (const id of reused) {
    const node = nodeOf(id);
    if (!node?.autoloraCards?.isEmpty?.()) continue;
    cachedCard(api, promptId, String(id))
      .then((card) => card && showOutput(node, { autolora: [card] }))
      .catch(() => {}); // it was shown once, and is in the report
  }
}

// Inside a subgraph an id is a path, "12:3".
function nodeOf(id) {
  let [graph, node] = [app.rootGraph ?? app.graph, null];
  for (const part of String(id ?? "").split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? graph?.getNodeById?.(part);
    graph = node?.subgraph;
  }
  return node;
}
