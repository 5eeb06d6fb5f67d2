// What stands on cards, and how well it can be read: for cards.mjs.

// What every card shows, and whether pictures came.
export async function cards(page, screenshots, showNode) {
  const found = {};
  for (const type of ["AutoLoRARetrieve", "AutoLoRAGatedApply", "AutoLoRAEncodeLibrary"]) {
    await showNode(type);
    if (screenshots) await page.screenshot({ path: `${screenshots}/${type}_${Date.now()}.png` });
    found[type] = await page.evaluate((type) => {
      const root = globalThis.rootOf(type);
      return {
        text: root.textContent,
        cards: Array.from(root.querySelectorAll("article"), (card) => ({
          name: card.getAttribute("aria-label"),
          miss: card.classList.contains("al-miss"),
          text: card.textContent,
          pressed: Array.from(
            card.querySelectorAll('[aria-pressed="true"]'),
            (one) => one.getAttribute("aria-label") ?? one.textContent,
          ),
          strength: card.querySelector('input[type="range"]')?.value,
          picture: card.querySelector(".al-tile img")?.naturalWidth ?? 0,
          heat: card.querySelector("canvas")?.getAttribute("aria-label") ?? null,
        })),
        // All that can be pressed or moved has a name for those who do not see it.
        nameless: Array.from(
          root.querySelectorAll("button, input"),
          (one) => one.getAttribute("aria-label") || one.textContent,
        ).filter((name) => !name.trim()).length,
        hidden: globalThis
          .our(type)
          .widgets.filter((one) => one.hidden)
          .map((one) => one.name),
        said: root.querySelector('[role="status"]').textContent,
      };
    }, type);
  }
  found.told = await page.evaluate(() => globalThis.told);
  await showNode("AutoLoRARetrieve");
  return found;
}

// Contrast of the text of a card with the node behind it, in both palettes.
export async function palettes(page, screenshots) {
  const contrast = {};
  for (const palette of ["light", "dark"]) {
    await page.evaluate(
      (palette) => globalThis.app.extensionManager.setting.set("Comfy.ColorPalette", palette),
      palette,
    );
    await page.waitForTimeout(400);
    if (screenshots) await page.screenshot({ path: `${screenshots}/palette_${palette}.png` });
    contrast[palette] = await page.evaluate(() => {
      const light = (colour) => {
        const [red, green, blue] = colour
          .match(/[\d.]+/g)
          .map(Number)
          .map((one) => (one / 255 <= 0.03928 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
      };
      const probe = document.createElement("i");
      document.body.append(probe);
      probe.style.color = globalThis.LiteGraph.NODE_DEFAULT_BGCOLOR;
      const behind = light(getComputedStyle(probe).color);
      probe.remove();
      const of = (selector) => {
        const text = light(getComputedStyle(globalThis.rootOf("AutoLoRARetrieve").querySelector(selector)).color);
        return (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
      };
      return { name: of(".al-name"), reason: of(".al-reason") };
    });
  }
  return contrast;
}
