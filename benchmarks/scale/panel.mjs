// Scrolls, types and moves the map of the library panel, and prints what every frame and every answer took, in ms.
// Usage: node panel.mjs '{"url", "profile", "words", "prompts"}'

import { onFrontEnd, step } from "../../tests/browser/front_end.mjs";

const job = JSON.parse(process.argv[2]);
const MINUTES = 5 * 60_000;

// In the page: gaps between frames while `act` goes on, and the answer to a text put into the search.
function tools() {
  globalThis.gaps = async (act) => {
    const gaps = [];
    let going = true;
    let last = performance.now();
    const frame = (now) => {
      gaps.push(now - last);
      last = now;
      if (going) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    await act();
    going = false;
    return gaps.slice(2);
  };
  globalThis.frames = (count, each) =>
    new Promise((done) => {
      let at = 0;
      const frame = () => (at < count ? (each(at++), requestAnimationFrame(frame)) : done());
      requestAnimationFrame(frame);
    });
  globalThis.answer = async (text) => {
    const field = document.querySelector(".autolora-search");
    const status = document.querySelector(".autolora-status");
    // First the old list goes, maybe for less than a frame, then the new one stands.
    let gone = false;
    const watch = new MutationObserver(() => { gone = true; });
    watch.observe(status, { childList: true, characterData: true, subtree: true });
    field.value = text;
    const began = performance.now();
    field.dispatchEvent(new Event("input", { bubbles: true }));
    const until = (is) => new Promise((done) => { const look = () => (is() ? done() : requestAnimationFrame(look)); look(); });
    await until(() => gone);
    watch.disconnect();
    await until(() => /LoRA/.test(status.textContent) && !document.querySelector(".autolora-row[id].autolora-waiting"));
    await new Promise(requestAnimationFrame);
    return performance.now() - began;
  };
}

await onFrontEnd(job, async (page, seen) => {
  page.setDefaultTimeout(MINUTES);
  await page.evaluate(tools);
  const timed = async (texts) => {
    const times = [];
    for (const text of texts) times.push(await page.evaluate((one) => globalThis.answer(one), text));
    return times;
  };
  await step("first list", async () => {
    const began = Date.now();
    await page.click(".autolora-library-tab-button");
    await page.waitForSelector(".autolora-row[id]:not(.autolora-waiting)");
    seen["first list"] = Date.now() - began;
  });
  await step("scroll", async () => {
    // Steady at two speeds, and by leaps from one end to another.
    seen["frames scrolling"] = await page.evaluate(() => globalThis.gaps(async () => {
      const list = document.querySelector(".autolora-list");
      await globalThis.frames(300, () => (list.scrollTop += 40));
      await globalThis.frames(300, () => (list.scrollTop += 900));
      await globalThis.frames(120, (at) => (list.scrollTop = (((at * 37) % 120) / 120) * list.scrollHeight));
    }));
    seen.elements = [await page.evaluate(() => document.querySelectorAll(".autolora-list [role=option]").length)];
    const box = await page.locator(".autolora-list").boundingBox();
    await page.mouse.move(box.x + 60, box.y + 200);
    const gaps = page.evaluate(() => globalThis.gaps(() => new Promise((done) => setTimeout(done, 5000))));
    for (let at = 0; at < 90; at++) {
      await page.mouse.wheel(0, at % 30 < 20 ? 400 : -300);
      await page.waitForTimeout(40);
    }
    seen["frames by the wheel"] = await gaps;
  });
  await step("search by words", async () => (seen["search by words"] = await timed(job.words)));
  await step("search by meaning", async () => {
    await page.click(".autolora-fits");
    await timed([job.prompts[0]]); // makes the library ready, once a process
    seen["search by meaning"] = await timed(job.prompts.slice(1));
  });
  await step("map", async () => {
    await page.click("[data-tab=map]");
    await page.waitForSelector(".autolora-legend button");
    const box = await page.locator(".autolora-canvas").boundingBox();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    await page.mouse.move(x, y);
    const gaps = page.evaluate(() => globalThis.gaps(() => new Promise((done) => setTimeout(done, 6000))));
    for (let at = 0; at < 40; at++) await page.mouse.wheel(0, at < 25 ? -120 : 90), await page.waitForTimeout(50);
    await page.mouse.down();
    for (let at = 0; at < 60; at++) await page.mouse.move(x + 60 * Math.sin(at / 6), y + 60 * Math.cos(at / 6)), await page.waitForTimeout(20);
    await page.mouse.up();
    seen["frames on the map"] = await gaps;
  });
});
