// Opens a workflow in ComfyUI's own front end as a person does (Ctrl+O, choose the file), presses Run, waits for the end,
// and prints what was seen as one line of JSON. Usage: node run_workflow.mjs '{"url", "file", "profile", "screenshot"?}'
// With "run": false it is only opened. With "menus" every menu of the graph is opened too: names of files are shown there.

import { MINUTE, onFrontEnd, step } from "./front_end.mjs";

const job = JSON.parse(process.argv[2]);
let seen;
await onFrontEnd(job, async (page, found) => {
  seen = found;
  page.setDefaultTimeout(2 * MINUTE);
  await step("open the workflow", () => openWorkflow(page));
  await step("look at it", () => look(page));
  if (job.run !== false) {
    await step("press Run and wait", () => run(page));
    await step("see the results", () => results(page));
  }
  if (job.menus) await step("open the menus", () => menus(page));
  if (job.screenshot) await step("take a picture", () => takePicture(page));
});

// The dialog that a person gets for Ctrl+O. Dialogs on missing nodes or models come a moment after the graph.
async function openWorkflow(page) {
  await (await askForFile(page)).setFiles(job.file);
  await page.waitForFunction((count) => globalThis.app.graph.nodes.length === count, job.nodes);
  await page.waitForTimeout(2_000);
}

// The front end takes key bindings up some time after it shows; a person presses again when nothing happens.
async function askForFile(page, tries = 5) {
  const chooser = page.waitForEvent("filechooser", { timeout: tries > 1 ? 8_000 : MINUTE });
  await page.keyboard.press("Control+o");
  return chooser.catch((error) => {
    if (tries === 1) throw error;
    return askForFile(page, tries - 1);
  });
}

// What stands on the screen after loading: dialogs, unknown nodes, empty menus.
async function look(page) {
  seen.dialogs = await page.locator(".p-dialog").allInnerTexts();
  seen.nodes = await page.evaluate(() =>
    globalThis.app.graph.nodes.map((node) => ({
      id: node.id,
      type: node.type,
      known: node.type in globalThis.LiteGraph.registered_node_types,
      flawed: Boolean(node.has_errors),
      widgets: Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.value])),
    })),
  );
  seen.saved = await page.evaluate(() => globalThis.app.graph.serialize());
}

async function run(page) {
  await page.evaluate(() => {
    globalThis.ended = new Promise((resolve) => {
      for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        globalThis.app.api.addEventListener(kind, (event) => resolve({ kind, detail: event.detail }));
    });
  });
  await page.getByTestId("queue-button").click();
  const limit = page.waitForTimeout(4 * MINUTE).then(() => ({ kind: "nothing", detail: "no end in four minutes" }));
  seen.ended = await Promise.race([page.evaluate(() => globalThis.ended), limit]);
}

// The pictures and texts that the nodes show, once the browser has loaded them. Pictures are drawn on the canvas, or in
// the newer look of the front end ("Nodes 2.0") are elements of the page.
async function results(page) {
  await page.evaluate(() => {
    globalThis.shown = () =>
      globalThis.app.graph.nodes
        .filter((node) => ["SaveImage", "PreviewImage"].includes(node.type))
        .map((node) => {
          const images = node.imgs ?? document.querySelectorAll(`[data-node-id="${node.id}"] img`);
          return Array.from(images, (img) => [img.naturalWidth, img.naturalHeight]);
        });
  });
  // The classic look loads a picture when its node is drawn, so every node must be in view.
  await page.evaluate(() => {
    const { graph, canvas } = globalThis.app;
    const [left, top] = [0, 1].map((axis) => Math.min(...graph.nodes.map((node) => node.pos[axis])) - 60);
    const [right, bottom] = [0, 1].map((axis) => Math.max(...graph.nodes.map((node) => node.pos[axis] + node.size[axis])));
    canvas.ds.scale = Math.min(innerWidth / (right - left + 120), innerHeight / (bottom - top + 120));
    canvas.ds.offset[0] = 60 / canvas.ds.scale - left;
    canvas.ds.offset[1] = 60 / canvas.ds.scale - top;
    canvas.setDirty(true, true);
  });
  if (seen.ended.kind === "execution_success")
    await page.waitForFunction(
      () => globalThis.app.canvas.setDirty(true, true) || globalThis.shown().every((images) => images.length && images.every(([width]) => width)),
      null,
      { timeout: MINUTE, polling: 200 },
    );
  seen.dialogsAfter = await page.locator(".p-dialog").allInnerTexts();
  seen.pictures = await page.evaluate(() => globalThis.shown());
  seen.texts = await page.evaluate(() =>
    globalThis.app.graph.nodes
      .filter((node) => node.type === "PreviewAny")
      .map((node) => (node.widgets ?? []).map((widget) => String(widget.value ?? "")).join("\n")),
  );
}

// Each menu as a click on it opens it, and what became of text that would be markup: elements made of it, and the flag
// that it would set.
async function menus(page) {
  seen.entries = await page.evaluate(async () => {
    const entries = [];
    for (const node of globalThis.app.graph.nodes)
      for (const widget of (node.widgets ?? []).filter((widget) => Array.isArray(widget.options?.values))) {
        const menu = new globalThis.LiteGraph.ContextMenu(widget.options.values, { title: node.title });
        await new Promise((resolve) => setTimeout(resolve, 300));
        entries.push(...Array.from(menu.root.querySelectorAll(".litemenu-entry"), (entry) => entry.textContent));
        menu.close();
      }
    return entries;
  });
  await page.waitForTimeout(500);
  seen.ran = await page.evaluate(() => globalThis.autoloraRan ?? 0);
  seen.planted = await page.evaluate(() => Array.from(document.querySelectorAll("[onerror], [onload]"), (one) => one.outerHTML));
}

async function takePicture(page) {
  await page.keyboard.press(".");
  await page.waitForTimeout(2_000);
  await page.screenshot({ path: job.screenshot });
}
