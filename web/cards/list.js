// A list of any length of which only what is near the view is built; arrow keys go from entry to entry.

import { el } from "./elements.js";

const NEAR = "300px";
const STEPS = { ArrowDown: 1, ArrowUp: -1, PageDown: 5, PageUp: -5, Home: -Infinity, End: Infinity };

// `build(item, index)` makes what an entry shows; `height` is what an entry takes before it is built. Returns the
// list's element with `refresh()`, which has everything that is built bring itself up to date.
export function lazyList(items, { label, height, build, scroller }) {
  const rows = items.map((_, index) =>
    el("div", {
      class: "al-row",
      role: "listitem",
      tabindex: index ? "-1" : "0",
      "aria-setsize": items.length,
      "aria-posinset": index + 1,
      style: { "min-height": `${height}px` },
    }),
  );
  const built = new Set();
  const list = el("div", { class: "al-list", role: "list", "aria-label": label }, ...rows);

  function fill(row) {
    const index = rows.indexOf(row);
    row.replaceChildren(build(items[index], index));
    row.style.removeProperty("min-height");
    built.add(row);
  }

  function empty(row) {
    if (!built.has(row) || row.contains(document.activeElement)) return;
    row.style.setProperty("min-height", `${row.offsetHeight}px`);
    row.replaceChildren();
    built.delete(row);
  }

  const watch = new IntersectionObserver(
    (seen) => {
      for (const { target, isIntersecting } of seen) {
        if (!isIntersecting) empty(target);
        else if (!built.has(target)) fill(target);
      }
    },
    { root: scroller, rootMargin: NEAR },
  );
  for (const row of rows) watch.observe(row);

  list.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (step === undefined || event.target.tagName === "INPUT") return;
    const at = rows.indexOf(event.target.closest(".al-row"));
    const next = Math.max(0, Math.min(rows.length - 1, at + step));
    event.preventDefault();
    rows[next].focus();
  });
  list.addEventListener("focusin", (event) => {
    const row = event.target.closest(".al-row");
    for (const other of list.querySelectorAll('.al-row[tabindex="0"]')) other.tabIndex = -1;
    row.tabIndex = 0;
  });

  list.refresh = () => {
    for (const row of built) row.firstElementChild.update?.();
  };
  list.forget = () => watch.disconnect();
  return list;
}
