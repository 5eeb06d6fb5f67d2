// The cards in ComfyUI's own front end, as a person uses them: runs, looks, chooses by keys alone, saves, loads again.
// Usage: node cards.mjs '{"url", "workflow": file, "profile", "screenshots"?: folder}'; prints what was seen as JSON.

import { readFileSync } from "node:fs";
import { MINUTE, onFrontEnd, step } from "./front_end.mjs";
import { cards as cardsOf, palettes } from "./looks.mjs";

const job = { viewport: { width: 1300, height: 1000 }, ...JSON.parse(process.argv[2]) };
let page, seen;
await onFrontEnd(job, async (opened, found) => {
  [page, seen] = [opened, found];
  await step("listen", listen);
  await step("open the workflow", () => load(JSON.parse(readFileSync(job.workflow, "utf8"))));
  await step("run", async () => (seen.first = await run()));
  await step("look", async () => (seen.cards = await cards()));
  await step("palettes", async () => (seen.contrast = await palettes(page, job.screenshots)));
  await step("keys alone", keys);
  await step("export", async () => Object.assign(seen, await page.evaluate(exported)));
  await step("load again", () => load(seen.saved));
  await step("look again", async () =>
    Object.assign(seen, { waiting: await bodyText(), again: (await page.evaluate(exported)).api }),
  );
  await step("run again", async () => (seen.second = await run()));
  await step("look at it", async () => (seen.chosen = await cards()));
  await step("load and run once more, all of it known", known);
  await step("run while another workflow is open", elsewhere);
  await step("a page loaded anew", reloaded);
  await step("an entry of the history", fromHistory);
  await step("take back", takeBack);
  await step("nothing fits", nothingFits);
  await step("many", many);
  await step("an older layout", olderLayout);
  seen.ran = await page.evaluate(() => globalThis.autoloraRan ?? 0);
  seen.planted = await page.evaluate(() =>
    Array.from(document.querySelectorAll("[onerror], [onload]"), (one) => one.outerHTML),
  );
});

async function listen() {
  await page.evaluate(() => {
    globalThis.told = { "autolora.progress": [], "autolora.heat": [] };
    for (const kind of Object.keys(globalThis.told))
      globalThis.app.api.addEventListener(kind, ({ detail }) => globalThis.told[kind].push(detail));
    globalThis.our = (type) => globalThis.app.graph.nodes.find((node) => node.type === type);
    globalThis.widget = (name) => globalThis.our("AutoLoRARetrieve").widgets.find((one) => one.name === name);
    globalThis.rootOf = (type) => globalThis.our(type).widgets.find((one) => one.name === "cards").element;
  });
}

async function load(workflow) {
  await page.evaluate((graph) => globalThis.app.loadGraphData(graph), workflow);
  await page.waitForFunction((count) => globalThis.app.graph.nodes.length === count, workflow.nodes.length);
  await showNode("AutoLoRARetrieve");
  await page.waitForFunction(() => globalThis.rootOf("AutoLoRARetrieve").isConnected);
}

// A node in the middle of the view, as large as it is: widgets are elements of the page.
async function showNode(type) {
  await page.evaluate((type) => {
    const { canvas } = globalThis.app;
    const node = globalThis.our(type);
    canvas.ds.scale = Math.min(1, 860 / (node.size[1] + 60));
    canvas.ds.offset[0] = 500 / canvas.ds.scale - node.pos[0];
    canvas.ds.offset[1] = 150 / canvas.ds.scale - node.pos[1];
    canvas.setDirty(true, true);
  }, type);
  await page.waitForTimeout(300);
}

function cards() {
  return cardsOf(page, job.screenshots, showNode);
}

async function run() {
  await page.evaluate(() => {
    globalThis.ended = new Promise((resolve) => {
      for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        globalThis.app.api.addEventListener(kind, (event) => resolve({ kind, detail: event.detail }), { once: true });
    });
  });
  await page.getByTestId("queue-button").click();
  const limit = page.waitForTimeout(2 * MINUTE).then(() => ({ kind: "nothing", detail: "no end in two minutes" }));
  const ended = await Promise.race([page.evaluate(() => globalThis.ended), limit]);
  await page.waitForTimeout(500);
  return ended;
}

function bodyText() {
  return page.evaluate(() => globalThis.rootOf("AutoLoRARetrieve").textContent);
}

// From the fold down to every control of the card of the otter, without a pointer. Keys that mean something to the canvas
// (Delete, r) do nothing to it from here.
async function keys() {
  seen.keys = {};
  const press = async (...names) => {
    for (const name of names) await page.keyboard.press(name);
  };
  const focused = () =>
    page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent);
  const tabTo = async (label) => {
    for (let tries = 0; tries < 30; tries += 1) {
      if ((await focused())?.startsWith(label)) return;
      await press("Tab");
    }
    throw new Error(`Tab never came to ${label}, but to ${await focused()}`);
  };
  const state = () =>
    page.evaluate(() =>
      Object.fromEntries(["choices", "pinned", "banned"].map((name) => [name, globalThis.widget(name).value])),
    );
  await page.evaluate(() => {
    globalThis.app.canvas.selectNode(globalThis.our("AutoLoRARetrieve"));
    globalThis.rootOf("AutoLoRARetrieve").querySelector(".al-head").focus();
  });
  await press("Enter");
  seen.keys.folded = await page.evaluate(() => globalThis.rootOf("AutoLoRARetrieve").classList.contains("al-closed"));
  await press("Space");
  await page.waitForFunction(() => globalThis.rootOf("AutoLoRARetrieve").querySelector(".al-row article")?.offsetHeight);
  await page.waitForTimeout(300); // rows are laid out with the next frames
  await press("Tab");
  seen.keys.firstCard = await page.evaluate(() =>
    document.activeElement.querySelector("article")?.getAttribute("aria-label"),
  );
  await press("End", "Home", "Delete", "Backspace", "r");
  while (
    (await page.evaluate(() => document.activeElement.querySelector("article")?.getAttribute("aria-label"))) !==
    "otter.safetensors"
  )
    await press("ArrowDown");
  await tabTo("Role: subject");
  await press("Enter");
  await tabTo("Pin otter");
  await press("Space");
  await tabTo("brown fur");
  await press("Space");
  await tabTo("whiskers");
  await press("Enter");
  await tabTo("Strength of otter");
  await press("ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft");
  await press("Tab", "ArrowUp", "Tab");
  seen.keys.after = await state();
  seen.keys.said = await page.evaluate(
    () => globalThis.rootOf("AutoLoRARetrieve").querySelector('[role="status"]').textContent,
  );
  // The other one is banned, and taken back.
  await page.evaluate(() => globalThis.rootOf("AutoLoRARetrieve").querySelector('[aria-label^="Ban pixel"]').focus());
  await press("Enter");
  seen.keys.banned = await state();
  await press("Enter");
  seen.keys.unbanned = await state();
  seen.keys.nodes = await page.evaluate(() => globalThis.app.graph.nodes.length);
}

async function exported() {
  const { output } = await globalThis.app.graphToPrompt();
  const id = String(globalThis.our("AutoLoRARetrieve").id);
  return { saved: globalThis.app.graph.serialize(), api: output, inputs: output[id].inputs };
}

// A page loaded anew, while the server still has every result.
async function known() {
  await load(seen.saved);
  seen.known = { run: await run() };
  await page.waitForFunction(() => globalThis.rootOf("AutoLoRARetrieve").querySelector("article"));
  await showNode("AutoLoRAGatedApply");
  await page.waitForFunction(() => globalThis.rootOf("AutoLoRAGatedApply").querySelector("article"));
  seen.known.apply = await page.evaluate(
    () => globalThis.rootOf("AutoLoRAGatedApply").querySelectorAll(".al-row").length,
  );
  await showNode("AutoLoRARetrieve");
}

function heats() {
  return page.evaluate(() => {
    const seen = globalThis.rootOf("AutoLoRAGatedApply").querySelectorAll("canvas.al-heat");
    return Array.from(seen, (one) => one.getAttribute("aria-label"));
  });
}

function bodies() {
  return page.evaluate(() =>
    ["AutoLoRARetrieve", "AutoLoRAGatedApply", "AutoLoRAEncodeLibrary"].map((type) => globalThis.rootOf(type).textContent),
  );
}

function activeTab() {
  return page.evaluate(() => globalThis.app.extensionManager.workflow.activeWorkflow.path);
}

// The other one has the same nodes under the same numbers.
async function elsewhere() {
  const home = await activeTab();
  await page.evaluate(() => {
    const seed = globalThis.our("KSampler").widgets.find((one) => one.name === "seed");
    seed.value += 1;
    const kinds = ["execution_success", "execution_error"];
    globalThis.ended = new Promise((resolve) => {
      for (const kind of kinds) globalThis.app.api.addEventListener(kind, () => resolve(kind), { once: true });
    });
    // Listened for before the click: on a busy machine the run may begin before the next line is read.
    globalThis.started = false;
    globalThis.app.api.addEventListener("execution_start", () => (globalThis.started = true), { once: true });
    globalThis.told["autolora.heat"].length = 0;
  });
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => globalThis.started);
  await load({ ...structuredClone(seen.saved), id: "00000000-1111-4222-8333-444444444444" });
  seen.beside = { end: await page.evaluate(() => globalThis.ended), home, away: await activeTab() };
  await page.waitForTimeout(1000);
  seen.beside.told = await page.evaluate(() => globalThis.told["autolora.heat"].filter((one) => one.end).length);
  seen.beside.bodies = await bodies();
  const tabs = page.locator(".workflow-tabs .p-togglebutton");
  for (let at = 0; at < (await tabs.count()) && (await activeTab()) !== home; at += 1) {
    await tabs.nth(at).click();
    await page.waitForTimeout(700);
  }
  seen.beside.back = await activeTab();
  await showNode("AutoLoRAGatedApply");
  await page.waitForTimeout(700);
  seen.beside.heats = await heats();
}

// What was shown is found in the history of the server.
async function reloaded() {
  await page.reload({ waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => globalThis.comfyAPI?.app?.app?.graph?.nodes?.length && !document.querySelector(".p-blockui-mask"));
  await page.evaluate(() => (globalThis.app ??= globalThis.comfyAPI.app.app));
  await listen();
  await showNode("AutoLoRAGatedApply");
  await page.waitForTimeout(2000);
  seen.reloaded = { heats: await heats(), bodies: await bodies() };
  if (job.screenshots) await page.screenshot({ path: `${job.screenshots}/cards_reloaded.png` });
}

// As the queue's sidebar opens one: the workflow, then what its nodes gave.
async function fromHistory() {
  seen.runs = await page.evaluate(async () => {
    const history = await (await globalThis.app.api.fetchApi("/history")).json();
    const id = String(globalThis.our("AutoLoRAGatedApply").id);
    return Object.values(history).map((run) => (run.outputs[id]?.autolora ?? []).map((card) => card.heat));
  });
  await page.evaluate(async () => {
    const { app } = globalThis;
    const run = Object.values(await (await app.api.fetchApi("/history")).json())[0];
    await app.loadGraphData(run.prompt[3].extra_pnginfo.workflow);
    app.nodeOutputs = run.outputs;
  });
  await showNode("AutoLoRAGatedApply");
  await page.waitForTimeout(700);
  seen.entry = await heats();
  await load(seen.saved);
  await run();
  await page.waitForFunction(() => globalThis.rootOf("AutoLoRARetrieve").querySelector("article"));
}

async function takeBack() {
  await page.evaluate(() =>
    globalThis.rootOf("AutoLoRARetrieve").querySelector('[aria-label^="Forget what was chosen for otter"]').click(),
  );
  seen.takenBack = await page.evaluate(() => globalThis.widget("choices").value);
}

async function nothingFits() {
  await page.evaluate(() => {
    globalThis.widget("pinned").value = "";
    globalThis.widget("prompt").value = "a bowl of noodle soup";
  });
  seen.third = await run();
  seen.none = (await cards()).AutoLoRARetrieve;
}

// Ten thousand cards: only what is near the view is built.
async function many() {
  seen.many = await page.evaluate(async () => {
    const parts = { weights: 0.1, text: 0.5, lexical: 0.9, response: null };
    const one = (number) => ({
      name: `many/${number}.safetensors`,
      hash: "",
      score: 0.5,
      parts,
      reason: "made up",
      triggers: ["a"],
      role: "subject",
      strength: 1,
      on: ["a"],
      found: { role: "subject", strength: 1 },
      pinned: false,
    });
    const picks = Array.from({ length: 10_000 }, (_, number) => one(number));
    const start = performance.now();
    globalThis.our("AutoLoRARetrieve").autoloraCards.show({
      format: "autolora-cards/1",
      kind: "retrieve",
      library: "",
      family: "emoji",
      picks,
      misses: [],
      none_reason: null,
      notes: [],
      added: [],
    });
    const root = globalThis.rootOf("AutoLoRARetrieve");
    const settle = () => new Promise((resolve) => setTimeout(resolve, 500));
    await settle();
    const took = performance.now() - start - 500;
    const built = () => Array.from(root.querySelectorAll("article"), (card) => card.getAttribute("aria-label"));
    const first = built();
    root.querySelector(".al-row").focus();
    root.querySelector(".al-row").dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
    await settle();
    return { took, first, last: built(), focused: document.activeElement.getAttribute("aria-posinset") };
  });
  // Thirty thousand problems: two hundred come with the card, all are counted.
  seen.faulty = await page.evaluate(() => {
    const why = "this is not a safetensors file. What to do: download it again";
    globalThis.our("AutoLoRAEncodeLibrary").autoloraCards.show({
      format: "autolora-cards/1",
      kind: "encode",
      library: "",
      files: 30_000,
      changes: { new: 30_000 },
      families: [],
      problems: Array.from({ length: 200 }, (_, number) => ({ name: `many/${number}`, why, encoded: false })),
      problems_left_out: 29_800,
      problem_kinds: [{ why: "this is <b>not</b> a safetensors file", count: 30_000 }],
      problems_where: "They are listed elsewhere.",
      duplicates: { identical: 0, near: 0 },
      waiting: 0,
      offline: [],
      speed: null,
    });
    return globalThis.rootOf("AutoLoRAEncodeLibrary").textContent;
  });
}

// A workflow saved before there were cards keeps its sizes: they are folded.
async function olderLayout() {
  const before = structuredClone(seen.saved);
  for (const node of before.nodes) {
    if (node.type === "AutoLoRARetrieve") [node.size[1], node.properties] = [560, {}];
  }
  await load(before);
  await page.waitForTimeout(500);
  seen.older = await page.evaluate(() => {
    const node = globalThis.our("AutoLoRARetrieve");
    const folded = globalThis.rootOf("AutoLoRARetrieve").classList.contains("al-closed");
    const height = node.size[1];
    globalThis.rootOf("AutoLoRARetrieve").querySelector(".al-head").click();
    return { folded, height, unfolded: node.size[1] };
  });
}
