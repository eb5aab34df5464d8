// The cut-out of one object: shown, copied to the clipboard, or saved.

import { $, element, percent, save, stemOf } from "./dom.js";
import { state } from "./state.js";
import { zoomToObject } from "./viewer.js";

const SAID_MS = 6000;

/** The object alone on a canvas with a transparent background, at the photo's own resolution. */
function cutOut({ path, bbox }, { picture, size }) {
  const scale = picture.width / size[0], [x, y] = bbox.slice(0, 2).map(Math.floor);
  const width = Math.max(1, Math.ceil(bbox[0] + bbox[2]) - x), height = Math.max(1, Math.ceil(bbox[1] + bbox[3]) - y);
  const canvas = element("canvas", { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  const context = canvas.getContext("2d");
  context.scale(canvas.width / width, canvas.height / height);
  context.translate(-x, -y);
  context.clip(path, "evenodd");
  context.drawImage(picture, 0, 0, ...size);
  return canvas;
}

/** The element below the row of the selected object: its cut-out with buttons. */
export function cutoutTools(object) {
  const photo = state.current, canvas = cutOut(object, photo);
  const png = () => new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Cut-out of the ${object.category_name}`);
  const button = (text, act) => {
    const made = element("button", { type: "button", class: "button small" }, text);
    made.addEventListener("click", act);
    return made;
  };
  return element("div", { class: "cutout" },
    canvas,
    element("p", {}, `${object.category_name}, ${percent(object.score)}`, element("br"), `${canvas.width} × ${canvas.height} pixels`),
    element("div", { class: "row" },
      button("Copy", () => copy(png())),
      button("Save", async () => save(await png(), `${stemOf(photo.name)}-${object.category_name}-${object.rank + 1}.png`)),
      button("Zoom in", () => zoomToObject(object))));
}

async function copy(blob) {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]); // Safari requires a promise here, created in the click handler
    say("Copied the cut-out.");
  } catch {
    say("This browser does not let the page copy pictures here. Save the cut-out instead.");
  }
}

/** Show a message for some seconds: on a phone, it covers a part of the panel. */
function say(text) {
  $("said").textContent = text;
  setTimeout(() => { if ($("said").textContent === text) $("said").textContent = ""; }, SAID_MS);
}
