// Draws a photo and its objects on canvases. `view` is {scale, x, y}: the photo's pixel (px, py) is at
// (x + scale * px, y + scale * py) in CSS pixels. Lines and labels are sized in CSS pixels, so zooming does not enlarge them.

import { ink } from "./colours.js";
import { core, leader, overlap, placeTag, tagTexts } from "./tags.js";

const FILL = 0.42;           // opacity of a mask
const LINES = [1, 2];        // minimum and maximum width of contours and boxes
const OF_SIDE = 1 / 25;      // width of an object's lines, relative to the square root of its box's area
const CASING = 1.5;          // how much wider than its line a casing is
const LETTERS = [11, 14];    // minimum and maximum font size of labels
const OF_OBJECT = 0.2;       // font size of a label, relative to the square root of its box's area
const OF_PHOTO = 1 / 45;     // maximum font size, relative to the square root of the visible area of the photo
const HIDDEN = 0.15;         // maximum share of this area that all labels together cover

/** Resize the canvas to its size on the screen and clear it. Returns its context, in CSS pixels. */
export function prepare(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas, ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

export function drawPhoto(canvas, picture, [width, height], { scale, x, y }) {
  const context = prepare(canvas);
  context.imageSmoothingEnabled = scale < 3; // at a larger scale, show the pixels
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, width * scale, height * scale);
}

/**
 * Draw the masks, boxes and labels of `objects`, best score first; `layers` switches each of the three on or off. `paintOf`
 * returns an object's {colour, clear}. If `clear` is false, the colour does not stand out on the photo, and lines get a casing.
 * With `one`, only this object is drawn, and the rest of the photo is darkened.
 */
export function drawObjects(canvas, objects, { view, size, layers, paintOf, one = null }) {
  const context = prepare(canvas);
  if (one) darken(context, one, size, view);
  const drawn = one ? [one] : fromBottom(objects);
  if (layers.masks && !one) fillMasks(context, drawn, paintOf, view);
  if (layers.masks || one) for (const object of drawn) drawContour(context, object, paintOf(object), view);
  if (layers.boxes) for (const object of drawn) drawBox(context, object, paintOf(object), view);
  if (layers.labels || one) drawTags(context, one ? [one] : objects, paintOf, view, size);
}

/** The order of drawing, as in the service's overlay: the largest box first, and of equal boxes the lowest score first. */
const fromBottom = (objects) => [...objects].reverse().sort(({ bbox: a }, { bbox: b }) => b[2] * b[3] - a[2] * a[3]);

function withView(context, { scale, x, y }, act) {
  context.save();
  context.transform(scale, 0, 0, scale, x, y);
  act();
  context.restore();
}

function darken(context, { path }, [width, height], view) {
  withView(context, view, () => {
    context.fillStyle = "rgb(0 0 0 / 66%)";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-out";
    context.fillStyle = "#000";
    context.fill(path, "evenodd");
  });
}

const between = ([least, most], value) => Math.max(least, Math.min(most, value));
const side = ([, , width, height], { scale }) => Math.sqrt(width * height) * scale;
const lineWidth = (bbox, view) => between(LINES, OF_SIDE * side(bbox, view));

const fills = document.createElement("canvas");

/** Fill each pixel with the colour of the topmost mask only; fills that are mixed have colours that belong to no object. */
function fillMasks(context, objects, paintOf, view) {
  Object.assign(fills, { width: context.canvas.width, height: context.canvas.height }); // this clears it
  const layer = fills.getContext("2d");
  layer.setTransform(context.getTransform());
  withView(layer, view, () => {
    for (const object of objects) {
      layer.fillStyle = paintOf(object).colour;
      layer.fill(object.path, "evenodd");
    }
  });
  context.save();
  context.resetTransform();
  context.globalAlpha = FILL;
  context.drawImage(fills, 0, 0);
  context.restore();
}

function drawContour(context, { bbox, outline }, { colour, clear }, view) {
  withView(context, view, () => {
    context.lineJoin = "round";
    stroke(context, colour, clear, lineWidth(bbox, view), view.scale, () => context.stroke(outline));
  });
}

/** Draw a line of `width` CSS pixels at `scale`; if its colour is not clear, on a wider line in black or white (casing). */
function stroke(context, colour, clear, width, scale, line) {
  for (const [style, wide] of [...(clear ? [] : [[ink(colour), width + CASING]]), [colour, width]]) {
    context.strokeStyle = style;
    context.lineWidth = wide / scale;
    line();
  }
}

const toView = ([x, y, width, height], view) => [
  view.x + x * view.scale, view.y + y * view.scale, view.x + (x + width) * view.scale, view.y + (y + height) * view.scale,
];

function drawBox(context, { bbox }, { colour, clear }, view) {
  const [left, top, right, bottom] = toView(bbox, view);
  stroke(context, colour, clear, lineWidth(bbox, view), 1, () => context.strokeRect(left, top, right - left, bottom - top));
}

/** Draw the labels, best score first: name and score; only the name if both do not fit; nothing if that does not fit. */
function drawTags(context, objects, paintOf, view, [width, height]) {
  const canvas = [0, 0, context.canvas.clientWidth, context.canvas.clientHeight];
  const photo = toView([0, 0, width, height], view);
  const bounds = [0, 1].map((i) => Math.max(canvas[i], photo[i])).concat([2, 3].map((i) => Math.min(canvas[i], photo[i])));
  const seen = objects.map((object) => ({ object, box: toView(object.bbox, view) })).filter(({ box }) => overlap(box, bounds));
  const cores = seen.map(({ box }) => core(box)), taken = [], placed = [];
  const area = Math.max(0, bounds[2] - bounds[0]) * Math.max(0, bounds[3] - bounds[1]);
  const largest = OF_PHOTO * Math.sqrt(area);
  let room = HIDDEN * area;
  for (const { object, box } of seen) {
    const letters = between(LETTERS, Math.min(largest, OF_OBJECT * side(object.bbox, view)));
    context.font = font(letters);
    for (const text of tagTexts(object.category_name, object.score)) {
      const size = [context.measureText(text).width + 0.7 * letters, 1.4 * letters];
      const tag = size[0] * size[1] <= room && placeTag(box, size, bounds, cores, taken);
      if (!tag) continue;
      room -= size[0] * size[1];
      taken.push(tag);
      placed.push({ tag, text, letters, line: leader(tag, box), colour: paintOf(object).colour });
      break;
    }
  }
  for (const { line, colour } of placed) if (line) drawLeader(context, line, colour);
  for (const one of placed) drawTag(context, one);
}

const font = (letters) => `600 ${letters}px system-ui, sans-serif`;

function drawLeader(context, [x0, y0, x1, y1], colour) {
  context.strokeStyle = colour;
  context.lineWidth = LINES[0];
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

function drawTag(context, { tag, text, letters, colour }) {
  context.font = font(letters);
  context.textBaseline = "middle";
  context.fillStyle = colour;
  context.fillRect(tag[0], tag[1], tag[2] - tag[0], tag[3] - tag[1]);
  context.fillStyle = ink(colour);
  context.fillText(text, tag[0] + 0.35 * letters, (tag[1] + tag[3]) / 2);
}
