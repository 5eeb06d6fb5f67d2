// Cards in the pack's nodes. Without this file, or where a part of it fails, the nodes are what they are without it: every
// fact is in their reports too.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { VIEW as APPLY, applyCards } from "./cards/apply.js";
import { cachedCard, lastShown, valuesOf } from "./cards/cached.js";
import { VIEW as ENCODE, encodeCards } from "./cards/encode.js";
import { addHost, chain } from "./cards/host.js";
import { VIEW as RETRIEVE, retrieveCards } from "./cards/retrieve.js";
import { runningPrompts } from "./cards/running.js";

const FORMAT = "autolora-cards/1";
const KEPT_AFTER = 200; // milliseconds
const LOADED_AFTER = 600; // until what a workflow showed is looked for in the history
let reused = []; // ids of the nodes that the running prompt did not run again
let running = null; // which workflow prompts are of
let looking = 0;
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
    return retrieveCards(node, addHost(node, RETRIEVE), pictures);
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
    running = guarded("following prompts", () => runningPrompts(app, api)) ?? null;
    for (const [event, method] of [
      ["autolora.progress", "progress"],
      ["autolora.heat", "heat"],
    ])
      listen(event, (detail) => {
        if (detail?.end) keepHeat(detail);
        ofOpen(detail, event, () => nodeOf(detail?.node)?.autoloraCards?.[method]?.(detail));
      });
    for (const event of ["execution_error", "execution_interrupted"])
      listen(event, (detail) => ofOpen(detail, event, () => nodeOf(detail?.node_id)?.autoloraCards?.stopped?.()));
    listen("execution_cached", (detail) => (reused = detail?.nodes ?? []));
    listen("execution_success", (detail) => ofOpen(detail, "showing reused results", () => showReused(detail)));
  },
  // Of an entry of the queue that was opened, and of a workflow that is shown again.
  onNodeOutputsUpdated(outputs) {
    for (const node of ours()) showOutput(node, outputs?.[node.id]);
  },
  afterConfigureGraph() {
    clearTimeout(looking);
    looking = setTimeout(() => guarded("looking for earlier results", showLast), LOADED_AFTER);
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
      ofOpen({ prompt_id: running?.now() }, "showing a result", () => showOutput(this, output));
    });
  },
});

function listen(event, act) {
  api.addEventListener(event, ({ detail }) => guarded(event, () => act(detail)));
}

// What is told of a prompt of another workflow is not for the nodes that are open, whatever their numbers.
function ofOpen(detail, what, act) {
  const shown = () => guarded(what, act);
  return running ? running.of(detail?.prompt_id, shown) : shown();
}

// The front end keeps what nodes gave of each workflow: what passed belongs to it, also where another one is open.
function keepHeat({ prompt_id: promptId, node, heat }) {
  const workflow = running?.known(promptId)?.workflow;
  const kept = [workflow?.changeTracker?.nodeOutputs];
  if (!promptId || !workflow || workflow === app.extensionManager?.workflow?.activeWorkflow) kept.push(app.nodeOutputs);
  for (const outputs of kept) {
    const card = outputs?.[node]?.autolora?.slice(-1)[0];
    if (card && heat) card.heat = heat;
  }
}

// The nodes with cards in the workflow's own graph.
function ours() {
  const graph = app.rootGraph ?? app.graph;
  return (graph?.nodes ?? graph?._nodes ?? []).filter((node) => node.autoloraCards);
}

// After the page was loaded, nodes show what they showed last in this workflow, if the history still has it.
function showLast() {
  const nodes = new Map(ours().map((node) => [String(node.id), node]));
  if (![...nodes.values()].some((node) => node.autoloraCards.isEmpty?.())) return;
  const values = (id) => (nodes.has(id) ? valuesOf(nodes.get(id).serialize()) : null);
  lastShown(api, (app.rootGraph ?? app.graph)?.id, values)
    .then((found) => {
      for (const [id, output] of found) {
        const node = nodes.get(id);
        if (ours().includes(node) && node.autoloraCards.isEmpty?.()) showOutput(node, output);
      }
    })
    .catch(() => {}); // it was shown once, and is in the report
}

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
