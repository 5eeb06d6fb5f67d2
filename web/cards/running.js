// Which workflow a prompt is of. Several can be open, each with a node 1: what is told of a prompt is for its own alone.

const KEPT = 200; // prompts

// `app` and `api` of the front end. Returns { of(id, act), known(id), now() }.
export function runningPrompts(app, api) {
  const prompts = new Map(); // id → { workflow?, graph? }: the open workflow that was queued, and its graph's id
  const asked = new Map(); // id → promise of the same, for prompts that this page did not queue since it was loaded
  const posting = new Set();
  let now = null;

  function keep(map, id, value) {
    map.set(id, value);
    while (map.size > KEPT) map.delete(map.keys().next().value);
    return value;
  }

  const queuePrompt = api.queuePrompt;
  if (typeof queuePrompt === "function")
    api.queuePrompt = async function (...given) {
      const workflow = activeOf(app);
      const answer = queuePrompt.apply(this, given);
      posting.add(answer);
      try {
        const { prompt_id: id } = (await answer) ?? {};
        if (id) keep(prompts, String(id), { workflow, graph: given[1]?.workflow?.id });
      } finally {
        posting.delete(answer);
      }
      return answer;
    };
  api.addEventListener("execution_start", ({ detail }) => (now = detail?.prompt_id ?? null));

  // What a prompt is begun by may come before the answer to its request.
  async function find(id) {
    await Promise.allSettled([...posting]);
    if (!prompts.has(id)) keep(prompts, id, await told(api, id));
    return prompts.get(id);
  }

  // Calls `act` where prompt `id` is of the open workflow, in the order of the calls. Where it cannot be told, it is.
  function of(id, act) {
    if (!id || prompts.has(String(id))) return isOpen(app, prompts.get(String(id))) ? act() : undefined;
    const finding = asked.get(id) ?? keep(asked, id, find(String(id)));
    return finding.then((found) => (isOpen(app, found) ? act() : undefined));
  }
  return { of, known: (id) => prompts.get(String(id)) ?? null, now: () => now };
}

function activeOf(app) {
  return app.extensionManager?.workflow?.activeWorkflow ?? null;
}

function isOpen(app, prompt) {
  if (!prompt) return true;
  const [active, graph] = [activeOf(app), (app.rootGraph ?? app.graph)?.id];
  if (prompt.workflow && active) {
    if (prompt.workflow === active) return true;
    // Saved under another name meanwhile, it is another object; a copy that is open beside it is another workflow.
    const open = app.extensionManager.workflow.openWorkflows ?? [];
    if (open.includes(prompt.workflow)) return false;
  }
  return prompt.foreign ? false : !prompt.graph || !graph || prompt.graph === graph;
}

// What the server knows of a prompt; null where it does not say. Who queues over the API has no graph.
async function told(api, id) {
  try {
    const { queue_running: running = [], queue_pending: pending = [] } = await (await api.fetchApi("/queue")).json();
    const queued = [...running, ...pending].find((one) => one[1] === id);
    const prompt = queued ?? (await (await api.fetchApi(`/history/${encodeURIComponent(id)}`)).json())[id]?.prompt;
    if (!prompt) return null;
    const workflow = prompt[3]?.extra_pnginfo?.workflow;
    return { graph: workflow?.id, foreign: !workflow };
  } catch {
    return null;
  }
}
