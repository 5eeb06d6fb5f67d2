// What a node showed in an earlier run: ComfyUI does not tell it again of a node whose result it still has, so that a page
// that was loaded in between would have nothing to show.

const RUNS = 16; // that are looked through
const WRITTEN_AFTER = 500; // milliseconds from the end of a run until it is in the history

// The card of node `id` from the newest run that had the same node with the same nodes before it as run `promptId`; null
// where there is none.
export async function cachedCard(api, promptId, id) {
  await new Promise((resolve) => setTimeout(resolve, WRITTEN_AFTER));
  const history = await (await api.fetchApi(`/history?max_items=${RUNS}`)).json();
  const now = history[promptId]?.prompt?.[2];
  if (!now?.[id]) return null;
  const wanted = before(now, id);
  for (const run of Object.values(history).reverse()) {
    const card = (run.outputs?.[id]?.autolora ?? []).slice(-1)[0];
    if (card && before(run.prompt[2], id) === wanted) return card;
  }
  return null;
}

// A node and everything it depends on, as text: every node once, however many ways lead to it.
function before(graph, id) {
  const reached = new Set([id]);
  for (const at of reached)
    // what is added on the way is looked at, too
    for (const value of Object.values(graph[at]?.inputs ?? {}))
      if (Array.isArray(value) && value.length === 2 && String(value[0]) in graph) reached.add(String(value[0]));
  return JSON.stringify([...reached].map((at) => [at, graph[at]?.class_type, graph[at]?.inputs]));
}

// What nodes showed last in workflow `graph` (an id), for a page that was loaded since: node id → output. A node counts
// where its own values are what they were. `values(id)`: its kind and values now, as text; null for none.
export async function lastShown(api, graph, values) {
  const found = new Map();
  if (!graph) return found;
  const history = await (await api.fetchApi(`/history?max_items=${RUNS}`)).json();
  for (const { prompt, outputs } of Object.values(history).reverse()) {
    const workflow = prompt?.[3]?.extra_pnginfo?.workflow;
    if (workflow?.id !== graph) continue;
    for (const node of workflow.nodes ?? []) {
      const [id, output] = [String(node.id), outputs?.[node.id]];
      if (!found.has(id) && output?.autolora && valuesOf(node) === values(id)) found.set(id, output);
    }
  }
  return found;
}

// The kind and the values of a node as it is saved.
export function valuesOf(node) {
  return JSON.stringify([node.type, node.widgets_values ?? null]);
}
