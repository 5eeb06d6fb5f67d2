// The library as a map: every LoRA a point, neighbours mean alike. Pan by dragging, zoom by the wheel, or by keys.

import { make, plain } from "./dom.js";
import { nearest } from "./points.js";

const REACH = 10; // pixels around the pointer
const FEW = 3000; // points that are drawn round
const HUES = [210, 25, 130, 330, 50, 270, 175, 0, 90, 300, 230, 15, 155, 350, 70, 190];

export class LibraryMap {
  /** `hovered(hash, x, y)` (hash null: nothing) and `chosen(hash)` are told. */
  constructor({ hovered, chosen }) {
    Object.assign(this, { hovered, chosen, points: null, only: -1, picked: -1, view: { x: 0, y: 0, zoom: 1 } });
    this.canvas = make("canvas", {
      class: "autolora-canvas", tabindex: "0", role: "img",
      onpointerdown: (event) => this.#grab(event), onpointermove: (event) => this.#move(event),
      onpointerup: (event) => this.#drop(event), onpointercancel: () => (this.held = null),
      onpointerleave: () => this.hovered(null), onkeydown: (event) => this.#key(event), ondblclick: () => this.home(),
    });
    this.canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(this.canvas);
  }

  show(points) {
    Object.assign(this, { points, only: -1, picked: -1, view: { x: 0, y: 0, zoom: 1 }, light: isLight(this.canvas) });
    const groups = points?.labels.map((words) => words.join(", ")).filter(Boolean) ?? [];
    this.canvas.setAttribute("aria-label", points ? `Map of ${points.count} LoRAs. Groups: ${plain(groups.join("; "))}` : "Map");
    this.draw();
  }

  /** Show one group, the others faint; −1 shows all. */
  single(group) {
    this.only = group;
    this.draw();
  }

  home() {
    this.view = { x: 0, y: 0, zoom: 1 };
    this.draw();
  }

  colour(group, light = this.light) {
    return `hsl(${HUES[group % HUES.length]} ${light ? 65 : 60}% ${light ? 42 : 62}%)`;
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.canvas.clientWidth) this.#draw();
    });
  }

  // Pixels of the screen ↔ the map's units.
  get #scale() {
    const { clientWidth, clientHeight } = this.canvas;
    const [wide, high] = this.points?.extent ?? [1, 1];
    return Math.min(clientWidth / wide, clientHeight / high) * 0.47 * this.view.zoom;
  }

  #toScreen(x, y) {
    const { canvas, view } = this;
    return [canvas.clientWidth / 2 + (x - view.x) * this.#scale, canvas.clientHeight / 2 + (y - view.y) * this.#scale];
  }

  #toMap(x, y) {
    const { canvas, view } = this;
    return [(x - canvas.clientWidth / 2) / this.#scale + view.x, (y - canvas.clientHeight / 2) / this.#scale + view.y];
  }

  #draw() {
    const { canvas, points } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!points) return;
    this.light = isLight(canvas);
    if (points.count > FEW) this.#paint(context, width, height, ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (points.count <= FEW) this.#discs(context);
    this.#names(context);
    if (this.picked >= 0) {
      const [x, y] = this.#toScreen(points.xy[2 * this.picked], points.xy[2 * this.picked + 1]);
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, 7, 0, 7);
      context.stroke();
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
  }

  #discs(context) {
    const { xy, home, count } = this.points;
    const radius = Math.min(9, (count < 300 ? 5 : 3) * this.view.zoom ** 0.25);
    for (let i = 0; i < count; i++) {
      const [x, y] = this.#toScreen(xy[2 * i], xy[2 * i + 1]);
      context.globalAlpha = this.only < 0 || this.only === home[i] ? 1 : 0.2;
      context.fillStyle = this.colour(home[i]);
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
  }

  // Pixels written one by one: a hundred thousand of them take a millisecond or two, as many rectangles twenty.
  #paint(context, width, height, ratio) {
    const { points, only } = this;
    const { xy, home, count } = points;
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const inks = this.#inks(context);
    const side = Math.max(2, Math.round(ratio * Math.min(8, (count < 20000 ? 3 : 1.5) * this.view.zoom ** 0.35)));
    const [scale, half] = [this.#scale * ratio, side >> 1];
    const [left, top] = [width / 2 - this.view.x * scale - half, height / 2 - this.view.y * scale - half];
    for (let pass = only < 0 ? 1 : 0; pass < 2; pass++) // the chosen group over the others
      for (let i = 0; i < count; i++) {
        if (only >= 0 && (home[i] === only) !== (pass === 1)) continue;
        const x = Math.round(left + xy[2 * i] * scale);
        const y = Math.round(top + xy[2 * i + 1] * scale);
        if (x < 0 || y < 0 || x + side > width || y + side > height) continue;
        const ink = pass ? inks[home[i]] : inks[home[i]] & 0x00ffffff | 0x30000000;
        for (let row = y * width; row < (y + side) * width; row += width) pixels.fill(ink, row + x, row + x + side);
      }
    context.putImageData(image, 0, 0);
  }

  #inks(context) {
    return this.points.labels.map((_, group) => {
      context.fillStyle = this.colour(group);
      const hex = context.fillStyle; // the browser tells colours as #rrggbb
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
      return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
  }

  #names(context) {
    const style = getComputedStyle(this.canvas);
    context.font = `600 11px ${style.fontFamily}`;
    context.textAlign = "center";
    context.lineWidth = 3;
    context.lineJoin = "round";
    const taken = [];
    this.points.labels.forEach((words, group) => {
      const middle = this.points.middles[group];
      if (!words.length || !middle || (this.only >= 0 && this.only !== group)) return;
      const text = plain(words.slice(0, 2).join(", "));
      const [x, y] = this.#toScreen(...middle);
      const half = context.measureText(text).width / 2;
      if (taken.some((other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < 14)) return;
      taken.push({ x, y, half });
      context.strokeStyle = this.light ? "#ffffffd0" : "#000000b0";
      context.fillStyle = style.color;
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    });
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #under(event) {
    if (!this.points) return -1;
    return nearest(this.points, ...this.#toMap(...this.#at(event)), REACH / this.#scale);
  }

  #grab(event) {
    this.held = { at: this.#at(event), from: { ...this.view }, moved: false };
    this.canvas.setPointerCapture(event.pointerId);
    this.hovered(null);
  }

  #move(event) {
    const [x, y] = this.#at(event);
    if (this.held) {
      const [dx, dy] = [x - this.held.at[0], y - this.held.at[1]];
      this.held.moved ||= Math.hypot(dx, dy) > 3;
      Object.assign(this.view, { x: this.held.from.x - dx / this.#scale, y: this.held.from.y - dy / this.#scale });
      return this.draw();
    }
    const found = this.#under(event);
    this.hovered(found < 0 ? null : this.points.hashOf(found), x, y);
  }

  #drop(event) {
    const clicked = this.held && !this.held.moved;
    this.held = null;
    if (clicked) this.pick(this.#under(event));
  }

  pick(found) {
    this.picked = found;
    this.draw();
    if (found >= 0) this.chosen(this.points.hashOf(found));
  }

  #wheel(event) {
    event.preventDefault();
    event.stopPropagation();
    this.hovered(null);
    this.#zoom(Math.exp(-event.deltaY * 0.0015), this.#at(event));
  }

  #zoom(factor, [x, y]) {
    const [mapX, mapY] = this.#toMap(x, y);
    this.view.zoom = Math.min(200, Math.max(0.5, this.view.zoom * factor));
    const [nowX, nowY] = this.#toMap(x, y);
    Object.assign(this.view, { x: this.view.x + mapX - nowX, y: this.view.y + mapY - nowY });
    this.draw();
  }

  #key(event) {
    const { canvas, view } = this;
    const step = 40 / this.#scale;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) Object.assign(view, { x: view.x + moves[event.key][0], y: view.y + moves[event.key][1] });
    else if (event.key === "0") Object.assign(view, { x: 0, y: 0, zoom: 1 });
    else if ("+=-".includes(event.key)) this.#zoom(event.key === "-" ? 1 / 1.3 : 1.3, [canvas.clientWidth / 2, canvas.clientHeight / 2]);
    else return;
    this.draw();
    event.preventDefault();
    event.stopPropagation();
  }
}

/** Whether the page is light where an element is: its text is dark then. */
export function isLight(element) {
  const [red, green, blue] = (getComputedStyle(element).color.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
  return red + green + blue < 384;
}
