// The library panel as a person uses it: scroll, type, filter, keys, pin, a map; then a library of hostile names.
// Usage: node panel.mjs '{"url", "profile", "count", "node", "screenshots"?}'

import { onFrontEnd, step } from "./front_end.mjs";

const job = JSON.parse(process.argv[2]);
const texts = (page, selector) => page.locator(selector).allInnerTexts();
const status = (page, words) =>
  page.waitForFunction((source) => new RegExp(source).test(document.querySelector(".autolora-status").textContent), words);
const rows = (page) => page.evaluate(() => document.querySelectorAll(".autolora-list [role=option]").length);
// The rows in their order, once all of them are read.
async function titles(page) {
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  await page.waitForFunction(() => !document.querySelector(".autolora-row[id].autolora-waiting"));
  return page.evaluate(() =>
    Array.from(document.querySelectorAll(".autolora-row[id]"))
      .sort((one, other) => one.ariaPosInSet - other.ariaPosInSet)
      .map((row) => row.querySelector(".autolora-title").textContent));
}

await onFrontEnd(job, async (page, seen) => {
  const picture = (name) => job.screenshots && page.screenshot({ path: `${job.screenshots}/panel_${name}.png` });
  await step("open the panel", async () => {
    await page.evaluate((type) => {
      const { app } = globalThis.comfyAPI.app;
      app.graph.clear();
      app.graph.add(globalThis.LiteGraph.createNode(type));
    }, job.node);
    await page.click(".autolora-library-tab-button");
    await page.waitForSelector(".autolora-row[id]");
    await status(page, "\\d LoRAs");
    seen.total = await page.textContent(".autolora-status");
  });
  await step("scroll through", async () => {
    seen.elements = [];
    for (const share of [0, 0.2, 0.5, 0.500001, 0.9, 1]) {
      await page.evaluate((part) => {
        const list = document.querySelector(".autolora-list");
        list.scrollTop = part * list.scrollHeight;
      }, share);
      await titles(page);
      seen.elements.push(await rows(page));
    }
    seen.last = await page.evaluate(() => {
      const last = Array.from(document.querySelectorAll(".autolora-row[id]")).sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).pop();
      return { title: last.querySelector(".autolora-title").textContent, at: last.ariaPosInSet, of: last.ariaSetSize };
    });
    await picture("end");
  });
  await step("close and open it", async () => {
    await page.click(".autolora-library-tab-button");
    await page.waitForSelector(".autolora-list", { state: "detached" });
    await page.click(".autolora-library-tab-button");
    await page.waitForFunction(() => document.querySelector(".autolora-list")?.scrollTop > 0);
    seen.reopened = (await titles(page)).pop();
  });
  await step("type and filter", async () => {
    await page.click(".autolora-search");
    await page.keyboard.type("otter number", { delay: 20 });
    await status(page, `^${(job.count / 8).toLocaleString("en-US")} LoRAs`);
    seen.typed = (await titles(page)).slice(0, 2);
    seen.chips = await texts(page, ".autolora-chip");
    await page.locator(".autolora-chip", { hasText: "flux" }).click();
    await page.waitForFunction(() => /flux/.test(document.querySelector('.autolora-chip[aria-pressed="true"]')?.textContent));
    await page.waitForFunction(() => document.querySelector(".autolora-row[id]"));
    const of = await page.getAttribute(".autolora-row[id]", "aria-setsize");
    seen.family = { pressed: await page.textContent('.autolora-chip[aria-pressed="true"]'), rows: Number(of) };
    await page.locator(".autolora-chip").first().click();
    await status(page, `^${(job.count / 8).toLocaleString("en-US")} LoRAs`);
  });
  await step("move by keys and pin", async () => {
    await page.focus(".autolora-search");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowDown");
    await page.waitForSelector(".autolora-details:not([hidden])");
    const active = await page.evaluate(() => {
      const list = document.querySelector(".autolora-list");
      return document.getElementById(list.getAttribute("aria-activedescendant"))?.ariaPosInSet;
    });
    await page.keyboard.press("Enter");
    const focus = await page.evaluate(() => document.activeElement.textContent);
    await page.focus(".autolora-list");
    await page.keyboard.press("ArrowDown");
    await page.waitForFunction(() => /number 16$/.test(document.querySelector(".autolora-details strong").textContent));
    await page.getByText("Pin in Retrieve").click();
    seen.said = await page.textContent(".autolora-status");
    seen.pinned = await page.evaluate(() =>
      globalThis.comfyAPI.app.app.graph.nodes[0].widgets.find((one) => one.name === "pinned").value.split("\n"));
    await picture("pinned");
    await page.focus(".autolora-list");
    await page.keyboard.press("/");
    const slash = await page.evaluate(() => document.activeElement.className);
    seen.keys = { active, details: true, focus, slash };
  });
  await step("hostile names", async () => {
    await page.selectOption(".autolora-head select", "small");
    await page.fill(".autolora-search", "");
    await status(page, "^\\d\\d LoRAs");
    seen.hostile = [...(await titles(page)), ...(await texts(page, ".autolora-under"))];
    for (let at = 1; at <= (await page.locator(".autolora-row[id]").count()); at++) {
      await page.locator(`.autolora-row[id][aria-posinset="${at}"]`).click();
      seen.hostile.push(await page.innerText(".autolora-details"));
    }
    await page.click("[data-tab=duplicates]");
    await status(page, "in 1 group");
    seen.twice = (await titles(page)).length;
    await page.click("[data-tab=problems]");
    await status(page, "^1 LoRA$");
    seen.faulty = (await titles(page))[0];
  });
  await step("the map", async () => {
    await page.click("[data-tab=map]");
    await page.waitForSelector(".autolora-legend button");
    await page.waitForTimeout(300);
    seen.drawn = await page.evaluate(() => {
      const canvas = document.querySelector(".autolora-canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.filter((value, at) => at % 4 === 3 && value).length;
    });
    const box = await page.locator(".autolora-canvas").boundingBox();
    const spots = await page.evaluate(() => {
      const canvas = document.querySelector(".autolora-canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const found = [];
      for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) found.push([(at / 4) % canvas.width, Math.floor(at / 4 / canvas.width)]);
      return found.filter((_, at) => at % Math.ceil(found.length / 40) === 0).map(([x, y]) => [x / devicePixelRatio, y / devicePixelRatio]);
    });
    seen.card = "";
    for (const [x, y] of spots) {
      await page.mouse.move(box.x + x, box.y + y);
      await page.waitForTimeout(200);
      if (await page.locator(".autolora-card").isVisible()) {
        seen.card = await page.innerText(".autolora-card");
        await picture("map");
        await page.mouse.click(box.x + x, box.y + y);
        break;
      }
    }
    await page.waitForSelector(".autolora-details:not([hidden])");
    seen.chosen = await page.innerText(".autolora-details strong");
    seen.ran = await page.evaluate(() => globalThis.autoloraRan ?? 0);
    seen.planted = await page.evaluate(() => Array.from(document.querySelectorAll("[onerror], [onload]"), (one) => one.outerHTML));
  });
});
