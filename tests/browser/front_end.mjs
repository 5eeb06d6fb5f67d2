// Opens ComfyUI's own front end in a real browser, for the scripts that look at a part of it.

import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)("playwright-core");
export const MINUTE = 60_000;
// Drawn by the CPU without emulating a GPU, which would be slower by far.
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-software-rasterizer", "--disable-gpu-rasterization",
  "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

/** Runs `act(page, seen)` on the front end at `job.url` and prints what was seen as one line of JSON. */
export async function onFrontEnd(job, act) {
  const seen = { errors: [], alerts: [] };
  const context = await chromium.launchPersistentContext(job.profile, {
    executablePath: process.env.AUTOLORA_BROWSER,
    args: FLAGS,
    ignoreDefaultArgs: ["--enable-unsafe-swiftshader"],
    viewport: job.viewport ?? { width: 1280, height: 800 },
  });
  try {
    const page = context.pages()[0] ?? (await context.newPage());
    page.setDefaultTimeout(MINUTE);
    page.on("pageerror", (error) => seen.errors.push(String(error)));
    page.on("dialog", (dialog) => {
      if (dialog.type() === "beforeunload") return dialog.accept(); // a page with unsaved workflows is left
      return seen.alerts.push(dialog.message()) && dialog.dismiss();
    });
    const home = new URL(job.url).host;
    seen.elsewhere = [];
    await page.route((url) => url.host !== home && /^https?:$/.test(url.protocol), (route) => {
      seen.elsewhere.push(route.request().url());
      return route.abort();
    });
    await page.goto(job.url, { waitUntil: "domcontentloaded", timeout: 2 * MINUTE });
    await page.waitForFunction(() => globalThis.comfyAPI?.app?.app?.graph && !document.querySelector(".p-blockui-mask"), null, { timeout: 2 * MINUTE });
    await act(page, seen);
  } finally {
    await context.close();
  }
  process.stdout.write(JSON.stringify(seen) + "\n");
}

/** On standard error: which step took how long, so that a failed test says how far it came. */
export async function step(name, act) {
  const start = Date.now();
  process.stderr.write(`${name} … `);
  await act();
  process.stderr.write(`${((Date.now() - start) / 1000).toFixed(1)} s\n`);
}
