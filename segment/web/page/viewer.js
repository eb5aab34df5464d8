// The photo with its objects: zoom, pan, comparison, and the object under the pointer.

import { $, percent } from "./dom.js";
import { drawObjects, drawPhoto } from "./drawing.js";
import { alone, emit, light, on, paintOf, pin, shown, state } from "./state.js";

const FARTHEST = 16;   // largest zoom
const STEP = 1.5;      // of a button or a key
const CLICK = 5;       // maximum movement of a click, in CSS pixels

const frame = $("frame");
let zoom = 1;          // 1 shows the whole photo
let centre = [0, 0];   // the photo's pixel in the frame's middle

/** {scale, x, y}, see drawing.js. */
function view() {
  const scale = fitting() * zoom;
  return { scale, x: frame.clientWidth / 2 - centre[0] * scale, y: frame.clientHeight / 2 - centre[1] * scale };
}

const fitting = () => Math.min(frame.clientWidth / state.current.size[0], frame.clientHeight / state.current.size[1]);

/** Set the zoom, keeping the point of the photo at (x, y) of the frame in place. */
function zoomTo(value, x = frame.clientWidth / 2, y = frame.clientHeight / 2) {
  const before = view();
  zoom = Math.max(1, Math.min(FARTHEST, value));
  const after = fitting() * zoom;
  [x - before.x, y - before.y].forEach((offset, i) => {
    const middle = (i ? frame.clientHeight : frame.clientWidth) / 2;
    centre[i] = offset / before.scale + (middle - (i ? y : x)) / after;
  });
  settle();
}

function panBy(dx, dy) {
  const { scale } = view();
  centre = [centre[0] - dx / scale, centre[1] - dy / scale];
  settle();
}

/** Limit the view to the photo, and show it. */
function settle() {
  const { scale } = view();
  state.current.size.forEach((length, i) => {
    const half = (i ? frame.clientHeight : frame.clientWidth) / 2 / scale;
    centre[i] = length <= 2 * half ? length / 2 : Math.max(half, Math.min(length - half, centre[i]));
  });
  frame.classList.toggle("zoomed", zoom > 1);
  $("zoom-out").disabled = zoom <= 1;
  $("zoom-in").disabled = zoom >= FARTHEST;
  $("zoom-level").textContent = percent(zoom);
  redraw();
}

function showWhole() {
  zoom = 1;
  settle();
}

/** Zoom so that the object fills most of the frame. */
export function zoomToObject({ bbox: [x, y, width, height] }) {
  centre = [x + width / 2, y + height / 2];
  const scale = Math.min(frame.clientWidth / Math.max(width, 1), frame.clientHeight / Math.max(height, 1));
  zoom = Math.max(1, Math.min(FARTHEST, 0.7 * scale / fitting()));
  settle();
}

let planned = 0;

function redraw() {
  planned ||= requestAnimationFrame(() => { planned = 0; if (state.current?.picture) draw(); });
}

function draw() {
  const { picture, size } = state.current;
  drawPhoto($("photo"), picture, size, view());
  drawLayer();
}

function drawLayer() {
  if (!state.current?.picture) return;
  const { size } = state.current;
  drawObjects($("layer"), shown(), { view: view(), size, layers: state.layers, paintOf, one: alone() });
  compare();
}

/** Hide the objects in the left part of the photo, up to the divider. */
function compare() {
  const { scale, x } = view(), part = Number($("compare").value) / 100;
  const left = Math.max(0, x), right = Math.min(frame.clientWidth, x + state.current.size[0] * scale);
  frame.style.setProperty("--compare", part ? `${left + part * (right - left)}px` : "0px");
  $("divider").hidden = !part;
}

const inFrame = ({ clientX, clientY }) => {
  const { left, top } = frame.getBoundingClientRect();
  return { x: clientX - left, y: clientY - top };
};

/** The smallest shown object at a pointer event. */
function objectAt(event) {
  const point = inFrame(event), { scale, x, y } = view();
  const at = [(point.x - x) / scale, (point.y - y) / scale];
  const context = $("layer").getContext("2d");
  context.save();
  context.resetTransform();
  const hit = shown().filter(({ path }) => context.isPointInPath(path, ...at, "evenodd"));
  context.restore();
  return hit.sort((a, b) => a.area - b.area)[0] ?? null;
}

// One pointer pans, two pointers pinch; a press without movement is a click.

const pointers = new Map();
let moved = 0;

const spread = ([a, b]) => Math.hypot(a.x - b.x, a.y - b.y);
const middle = (points) => [0, 1].map((i) => points.reduce((sum, p) => sum + (i ? p.y : p.x), 0) / points.length);

function press(event) {
  if (event.target.closest("button")) return;
  if (!pointers.size) moved = 0;
  pointers.set(event.pointerId, inFrame(event));
  if (zoom > 1) frame.setPointerCapture(event.pointerId);
}

function move(event) {
  const point = pointers.get(event.pointerId);
  if (!point) return hover(event);
  const before = [...pointers.values()].map((p) => ({ ...p }));
  Object.assign(point, inFrame(event));
  const after = [...pointers.values()];
  const from = middle(before), to = middle(after);
  moved += Math.hypot(to[0] - from[0], to[1] - from[1]);
  if (after.length === 2) {
    moved += CLICK;
    zoomTo(zoom * spread(after) / Math.max(1, spread(before)), ...to);
  }
  if (zoom > 1 && moved > CLICK) panBy(to[0] - from[0], to[1] - from[1]);
}

function release(event) {
  const clicked = pointers.delete(event.pointerId) && event.type === "pointerup" && moved <= CLICK;
  if (!clicked || pointers.size) return;
  const object = objectAt(event);
  if (object) pin(object); else if (state.pinned) pin(state.pinned);
}

function hover(event) {
  if (event.pointerType === "touch" || event.target.closest("button")) return;
  const object = objectAt(event);
  frame.style.cursor = object ? "pointer" : "";
  light(object);
}

frame.addEventListener("pointerdown", press);
frame.addEventListener("pointermove", move);
frame.addEventListener("pointerup", release);
frame.addEventListener("pointercancel", release);
frame.addEventListener("pointerleave", (event) => { if (!frame.hasPointerCapture(event.pointerId)) pointers.delete(event.pointerId); light(null); });
frame.addEventListener("wheel", (event) => {
  const scrolls = document.documentElement.scrollHeight > innerHeight + 1;
  if (scrolls && !event.ctrlKey) return; // let the page scroll
  event.preventDefault();
  const { x, y } = inFrame(event);
  zoomTo(zoom * 2 ** (-event.deltaY * (event.deltaMode ? 20 : 1) / 300), x, y);
}, { passive: false });
frame.addEventListener("keydown", (event) => {
  if (event.target !== frame || event.ctrlKey || event.metaKey || event.altKey) return;
  const by = 60, acts = {
    "+": () => zoomTo(zoom * STEP), "=": () => zoomTo(zoom * STEP), "-": () => zoomTo(zoom / STEP), 0: showWhole,
    ArrowLeft: () => panBy(by, 0), ArrowRight: () => panBy(-by, 0), ArrowUp: () => panBy(0, by), ArrowDown: () => panBy(0, -by),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
});
$("zoom-in").addEventListener("click", () => zoomTo(zoom * STEP));
$("zoom-out").addEventListener("click", () => zoomTo(zoom / STEP));
$("zoom-level").addEventListener("click", showWhole);
$("compare").addEventListener("input", compare);
new ResizeObserver(() => { if (state.current?.picture) settle(); }).observe(frame);

let photoShown = null, pictureShown = null;

on("photo", () => {
  const picture = state.current?.picture ?? null;
  if (!picture) { photoShown = pictureShown = null; return; }
  if (photoShown !== state.current) {
    zoom = 1;
    centre = state.current.size.map((length) => length / 2);
  }
  if (photoShown !== state.current || pictureShown !== picture) settle(); else drawLayer();
  [photoShown, pictureShown] = [state.current, picture];
});
on("filter focus model", drawLayer);
on("photo filter", () => {
  const objects = shown(), counts = Object.entries(Object.groupBy?.(objects, (o) => o.category_name) ?? {});
  $("photo").setAttribute("aria-label", `The photo, ${objects.length} ${objects.length === 1 ? "object" : "objects"} shown: `
    + (counts.map(([name, all]) => `${all.length} ${name}`).join(", ") || "none"));
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !alone() || document.querySelector("dialog[open]")) return;
  state.pinned = state.lit = null;
  emit("focus");
});
