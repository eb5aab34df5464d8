// Drawing a photo and its objects on canvases. `view` is {scale, x, y}: a photo's pixel (px, py) is at
// (x + scale * px, y + scale * py) in CSS pixels, in which lines and letters have the same size at every zoom.

import { placeTag } from "./tags.js";

const FILL = 0.42;  // opacity of a mask
const LINE = 2;     // width of contours and boxes
const LETTERS = 13; // size of labels
const FONT = `600 ${LETTERS}px system-ui, sans-serif`;

/** Make the canvas as large as it is shown, and return its context with CSS pixels as the unit. */
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
  context.imageSmoothingEnabled = scale < 3; // closer than that, pixels are what one wants to see
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, width * scale, height * scale);
}

/**
 * Draw `objects`, best score first, as `layers` says ({masks, boxes, labels}); `colourOf` gives an object's colour.
 * With `one`, everything but that object is darkened.
 */
export function drawObjects(canvas, objects, { view, size, layers, colourOf, one = null }) {
  const context = prepare(canvas);
  if (one) darken(context, one, size, view);
  const drawn = one ? [one] : [...objects].reverse(); // the best comes last, on top
  if (layers.masks || one) for (const object of drawn) drawMask(context, object, colourOf(object), view, !one);
  if (layers.boxes) for (const object of drawn) drawBox(context, object, colourOf(object), view);
  if (layers.labels || one) drawTags(context, one ? [one] : objects, colourOf, view, size);
}

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

function drawMask(context, { path }, colour, view, filled) {
  withView(context, view, () => {
    if (filled) {
      context.globalAlpha = FILL;
      context.fillStyle = colour;
      context.fill(path, "evenodd");
      context.globalAlpha = 1;
    }
    context.lineJoin = "round";
    context.strokeStyle = colour;
    context.lineWidth = LINE / view.scale;
    context.stroke(path);
  });
}

const toView = ([x, y, width, height], view) => [
  view.x + x * view.scale, view.y + y * view.scale, view.x + (x + width) * view.scale, view.y + (y + height) * view.scale,
];

function drawBox(context, { bbox }, colour, view) {
  const [left, top, right, bottom] = toView(bbox, view);
  context.strokeStyle = colour;
  context.lineWidth = LINE;
  context.strokeRect(left, top, right - left, bottom - top);
}

/** Write names on tags; where name and score do not fit the name alone, and where that does not fit nothing. */
function drawTags(context, objects, colourOf, view, [width, height]) {
  const canvas = [0, 0, context.canvas.clientWidth, context.canvas.clientHeight];
  const photo = toView([0, 0, width, height], view);
  const bounds = [0, 1].map((i) => Math.max(canvas[i], photo[i])).concat([2, 3].map((i) => Math.min(canvas[i], photo[i])));
  const taken = [], pad = LETTERS * 0.35, tall = LETTERS * 1.4;
  context.font = FONT;
  context.textBaseline = "middle";
  for (const object of objects) {
    const { category_name: name, score, bbox } = object;
    for (const text of [`${name} ${Math.round(score * 100)} %`, name]) {
      const tag = placeTag(toView(bbox, view), [context.measureText(text).width + 2 * pad, tall], bounds, taken);
      if (!tag) continue;
      taken.push(tag);
      context.fillStyle = colourOf(object);
      context.fillRect(tag[0], tag[1], tag[2] - tag[0], tag[3] - tag[1]);
      context.fillStyle = ink(colourOf(object));
      context.fillText(text, tag[0] + pad, (tag[1] + tag[3]) / 2);
      break;
    }
  }
}

/** Black or white, whichever has more contrast on `colour` (WCAG 2, relative luminance). */
export function ink(colour) {
  const [red, green, blue] = [1, 3, 5].map((i) => (parseInt(colour.slice(i, i + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000" : "#fff";
}
