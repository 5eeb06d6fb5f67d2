// A person who has just installed the pack, on ComfyUI's own front end: template, a prompt of their own, Run, a pin on
// a card, another prompt, Run, export, save, reload, open, Run. On the way pictures of what they see, for comparison.
// Usage: node first_user.mjs '{"url", "profile", "viewport", "prompts": [2], "pin": LoRA, "name": workflow, "pictures"}'

import { readFileSync } from "node:fs";
import { MINUTE, onFrontEnd, step } from "./front_end.mjs";

const job = JSON.parse(process.argv[2]);
const CARDS = { AutoLoRARetrieve: "LoRAs for the prompt", AutoLoRAGatedApply: "LoRAs applied" };
const DIALOG = "[role=dialog]";

await onFrontEnd(job, async (page, seen) => {
  await step("the greeting's templates", () => fromTemplate(page, seen));
  await step("type a prompt", () => typePrompt(page, job.prompts[0]));
  await step("run", async () => (seen.first = await run(page)));
  await step("pin on its card", () => page.getByRole("button", { name: `Pin ${job.pin}:` }).click());
  await step("another prompt", () => typePrompt(page, job.prompts[1]));
  await step("run with what passes recorded", async () => {
    await recordWhatPasses(page);
    seen.second = await run(page);
  });
  await step("look at the cards", async () => {
    seen.looks = {};
    for (const type of Object.keys(CARDS)) await takeCards(page, seen, type);
  });
  await step("export", async () => (seen.exported = await exportApi(page)));
  await step("save", () => save(page));
  await step("look at the panel", () => takePanel(page, seen));
  await step("reload", () => reload(page));
  await step("open", () => open(page));
  seen.opened = await page.evaluate(async () => (await globalThis.app.graphToPrompt()).output);
  await step("run again", async () => (seen.third = await run(page)));
});

// A new user is greeted with the templates; the pack's own are under its name.
async function fromTemplate(page, seen) {
  await page.locator(DIALOG).getByText("autolora", { exact: true }).click();
  const card = page.getByTestId("template-workflow-retrieve_and_fuse");
  await card.locator("img").first().waitFor();
  await card.click();
  await page.waitForFunction(() => globalThis.app.graph.nodes.some((node) => node.type === "AutoLoRARetrieve"));
  await page.waitForFunction((dialog) => !document.querySelector(dialog), DIALOG);
  await page.waitForTimeout(500); // dialogs on missing nodes or models come a moment after the graph
  seen.dialogs = await page.locator(DIALOG).allInnerTexts();
  seen.nodes = await page.evaluate(() => globalThis.app.graph.nodes.map((node) => node.type));
  await zoomTo(page, "AutoLoRARetrieve");
  seen.flawed = await page.evaluate(() => globalThis.app.graph.nodes.filter((node) => node.has_errors).length);
}

// As near as is needed to read it: a front end may show the whole graph first.
function zoomTo(page, type) {
  return page.evaluate((type) => {
    const { canvas, graph } = globalThis.app;
    const [x, y] = graph.nodes.find((node) => node.type === type).pos;
    [canvas.ds.scale, canvas.ds.offset[0], canvas.ds.offset[1]] = [0.7, 500 - x, 160 - y];
    canvas.setDirty(true, true);
  }, type);
}

// By pointer and keys, in the text input of the node.
async function typePrompt(page, prompt) {
  const input = page.locator('textarea[placeholder="prompt"]');
  await input.click();
  await page.keyboard.press("Control+a");
  await page.keyboard.type(prompt);
}

// How it ended, the cards, and the picture that the node shows, as the browser got it.
async function run(page) {
  await page.evaluate(() => {
    globalThis.ended = new Promise((resolve) => {
      for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        globalThis.app.api.addEventListener(kind, (event) => resolve({ kind, detail: event.detail }), { once: true });
    });
  });
  await page.getByTestId("queue-button").click();
  const limit = page.waitForTimeout(MINUTE).then(() => ({ kind: "nothing", detail: "no end in a minute" }));
  const ended = await Promise.race([page.evaluate(() => globalThis.ended), limit]);
  if (ended.kind !== "execution_success") return { ended };
  await page.waitForFunction(() => document.querySelector(".al-cards article"));
  await page.waitForTimeout(300);
  const cards = await page.evaluate(() =>
    Array.from(document.querySelectorAll('[aria-label="Picked LoRAs"] article'), (card) => ({
      name: card.getAttribute("aria-label"),
      pinned: Boolean(card.querySelector('[aria-label^="Pin "][aria-pressed="true"]')),
    })),
  );
  return { ended, cards, picture: await pictureShown(page) };
}

// The classic look loads a picture when its node is drawn: the whole graph is brought into view for that, and back.
async function pictureShown(page) {
  await page.evaluate(() => {
    const { ds } = globalThis.app.canvas;
    globalThis.before = [ds.scale, ...ds.offset];
    [ds.scale, ds.offset[0], ds.offset[1]] = [0.35, 300, 500];
  });
  const shown = () => {
    globalThis.app.canvas.setDirty(true, true);
    const node = globalThis.app.graph.nodes.find((one) => one.type === "SaveImage");
    const [image, file] = [node.imgs?.[0], globalThis.app.nodeOutputs[node.id]?.images?.[0]?.filename];
    // Until it is drawn anew the node has the picture of the run before.
    const fresh = image?.naturalWidth && file && new URL(image.src).searchParams.get("filename") === file;
    return fresh ? image.src : null;
  };
  await page.waitForFunction(shown, null, { polling: 100 });
  const address = await page.evaluate(shown);
  await page.evaluate(() => {
    const { ds } = globalThis.app.canvas;
    [ds.scale, ds.offset[0], ds.offset[1]] = globalThis.before;
    globalThis.app.canvas.setDirty(true, true);
  });
  return page.evaluate(async (address) => {
    const bytes = new Uint8Array(await (await fetch(address)).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  }, address);
}

function recordWhatPasses(page) {
  return page.evaluate(() => {
    const node = globalThis.app.graph.nodes.find((one) => one.type === "AutoLoRAGatedApply");
    node.widgets.find((one) => one.name === "record").value = true;
  });
}

// The menu's File → Export (API), and the file that the browser is given.
async function exportApi(page) {
  await page.locator(".comfy-menu-button-wrapper").click();
  await page.getByText("File", { exact: true }).hover();
  await page.getByText("Export (API)", { exact: true }).click();
  const asked = page.locator(`${DIALOG} input`);
  await asked.waitFor();
  const coming = page.waitForEvent("download");
  await asked.press("Enter");
  return JSON.parse(readFileSync(await (await coming).path(), "utf8"));
}

async function save(page) {
  await page.keyboard.press("Control+s");
  const asked = page.locator(`${DIALOG} input`);
  await asked.waitFor();
  await asked.fill(job.name);
  await asked.press("Enter");
  await asked.waitFor({ state: "detached" });
  await page.waitForFunction(() => !globalThis.app.extensionManager.workflow.activeWorkflow.isModified);
}

async function reload(page) {
  await page.reload({ waitUntil: "domcontentloaded" });
  const ours = () => globalThis.app?.graph?.nodes?.some((node) => node.type === "AutoLoRARetrieve");
  // The front end comes back with it. An empty one beside it, so that what is opened next comes from the file.
  await page.waitForFunction(ours);
  await page.waitForFunction(() => !document.querySelector(".p-blockui-mask"));
  await page.evaluate(() => globalThis.app.extensionManager.command.execute("Comfy.NewBlankWorkflow"));
  await page.waitForFunction(() => !globalThis.app.graph.nodes.some((node) => node.type === "AutoLoRARetrieve"));
}

async function open(page) {
  await page.locator(".workflows-tab-button").click();
  await page.getByRole("treeitem").filter({ hasText: job.name }).last().click(); // those that are open stand before
  await page.waitForFunction(() => globalThis.app.graph.nodes.some((node) => node.type === "AutoLoRARetrieve"));
  await page.locator(".workflows-tab-button").click();
}

// -- pictures of what is seen, and where its parts lie ---------------------------------------------------------------

// As it is; in another font, as another machine would have it; and without its styles, which must be noticed.
async function take(page, seen, name, element) {
  const shot = async (kind) => {
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    const box = await element.boundingBox();
    await page.screenshot({ path: `${job.pictures}/${name}${kind}.png`, clip: box, animations: "disabled" });
  };
  await shot("");
  seen.looks[name] = await element.evaluate(placesIn);
  const font = await page.addStyleTag({ content: "* { font-family: serif !important; letter-spacing: 0.3px; }" });
  await shot(".font");
  await font.evaluate((style) => style.remove());
  const ours = (off) =>
    page.evaluate((off) => {
      for (const link of document.querySelectorAll('link[href*="/autolora/"]')) link.disabled = off;
    }, off);
  await ours(true);
  await shot(".bare");
  seen.looks[`${name}.bare`] = await element.evaluate(placesIn);
  await ours(false);
}

// Boxes of the parts, from the corner of the element: selector → [[left, top, right, bottom] of each that shows].
function placesIn(root) {
  const from = root.getBoundingClientRect();
  const PARTS = [
    ...["article", ".al-tile", ".al-main", ".al-name", ".al-score", ".al-part", ".al-reason", ".al-heat", ".al-body"],
    ...[".al-words button", 'input[type="range"]', '[aria-label^="Pin "]', '[aria-label^="Ban "]', ".al-head"],
    ...[".autolora-search", ".autolora-tabs", ".autolora-tabs button", ".autolora-row[id]", ".autolora-list"],
    ...[".autolora-title", ".autolora-under", ".autolora-side", ".autolora-status", ".autolora-canvas"],
    ...[".autolora-legend", ".autolora-legend button"],
  ];
  const box = (one) => {
    const { left, top, right, bottom } = one.getBoundingClientRect();
    return [left - from.left, top - from.top, right - from.left, bottom - from.top].map(Math.round);
  };
  const places = { root: [[0, 0, root.offsetWidth, root.offsetHeight]] };
  for (const part of PARTS)
    places[part] = Array.from(root.querySelectorAll(part), box).filter(([l, t, r, b]) => r > l && b > t);
  return places;
}

async function takeCards(page, seen, type) {
  await page.evaluate((type) => {
    const { canvas, graph } = globalThis.app;
    const node = graph.nodes.find((one) => one.type === type);
    const { y } = node.widgets.find((one) => one.name === "cards");
    // At its own size, the cards in the middle of the view.
    [canvas.ds.scale, canvas.ds.offset[0], canvas.ds.offset[1]] = [1, 450 - node.pos[0], 250 - node.pos[1] - y];
    canvas.setDirty(true, true);
  }, type);
  await page.waitForTimeout(300);
  await take(page, seen, type, page.locator(".al-cards", { has: page.locator(`[aria-label="${CARDS[type]}"]`) }));
}

async function takePanel(page, seen) {
  const panel = page.locator(".autolora-panel");
  await page.click(".autolora-library-tab-button");
  await page.waitForSelector(".autolora-row[id]:not(.autolora-waiting)");
  await page.waitForFunction(() => /\d LoRAs/.test(document.querySelector(".autolora-status").textContent));
  // Front ends give it other sizes.
  await panel.evaluate((root) => Object.assign(root.style, { width: "246px", height: "600px" }));
  await page.waitForTimeout(300);
  await take(page, seen, "list", panel);
  await page.click("[data-tab=map]");
  await page.waitForSelector(".autolora-legend button");
  await page.waitForTimeout(300);
  await take(page, seen, "map", panel);
  await page.click(".autolora-library-tab-button");
}
