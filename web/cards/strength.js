// A slider and a number field for one strength: the slider for what is usual, the field for all that the node takes.

import { el, number } from "./elements.js";

const MOST = 10;
const STEP = 0.05;

// Returns { row, set(value), disable(bool) }; `changed(value)` is called while the user moves it.
export function strengthRow(label, changed) {
  const slider = el("input", { type: "range", step: STEP, class: "al-slider", "aria-label": label });
  const field = el("input", {
    type: "number",
    step: STEP,
    min: -MOST,
    max: MOST,
    class: "al-number",
    "aria-label": `${label}, as a number`,
  });
  const row = el(
    "div",
    { class: "al-line al-strength" },
    el("span", { class: "al-label", text: "strength" }),
    slider,
    field,
  );

  slider.addEventListener("input", () => {
    const value = Math.round(slider.valueAsNumber * 100) / 100;
    field.value = number(value);
    fill();
    changed(value);
  });
  field.addEventListener("change", () => {
    const value = Math.max(-MOST, Math.min(MOST, field.valueAsNumber));
    if (Number.isFinite(value)) changed(value);
    else set(slider.valueAsNumber);
  });

  function fill() {
    const [low, high] = [Number(slider.min), Number(slider.max)];
    slider.style.setProperty("--fill", `${(100 * (slider.valueAsNumber - low)) / (high - low)}%`);
  }

  function set(value) {
    slider.min = String(Math.min(0, Math.floor(value)));
    slider.max = String(Math.max(2, Math.ceil(value)));
    if (slider.valueAsNumber !== value) slider.value = String(value);
    if (document.activeElement !== field) field.value = number(value);
    fill();
  }

  function disable(off) {
    slider.disabled = off;
    field.disabled = off;
  }
  return { row, set, disable };
}
