// Where photos come from: files, drag and drop, the clipboard, a URL, the camera, the model's examples.

import { $, element } from "./dom.js";
import { addPhotos } from "./photos.js";
import { showProblem } from "./photolist.js";
import { Problem } from "./service.js";
import { on, state } from "./state.js";

const takeFiles = (files) => addPhotos([...files].map((blob) => ({ blob, name: blob.name ?? "photo.jpg" })));
const isUrl = (text) => /^https?:\/\/./i.test(text.trim());

function takeUrl(text) {
  const url = text.trim();
  if (!isUrl(url)) return showProblem(new Problem("No URL", "Enter an address that starts with http:// or https://."));
  addPhotos([{ url, name: url.split(/[?#]/)[0].split("/").pop() || "photo" }]);
}

for (const id of ["file", "more"]) {
  $(id).addEventListener("change", () => { takeFiles($(id).files); $(id).value = ""; });
}
$("url-form").addEventListener("submit", (event) => { event.preventDefault(); takeUrl($("url").value); });

addEventListener("paste", (event) => {
  if (event.target.closest?.("input")) return;
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  const text = event.clipboardData.getData("text/plain");
  if (files.length) takeFiles(files);
  else if (isUrl(text)) takeUrl(text);
});

for (const kind of ["dragenter", "dragover"]) addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const { files } = event.dataTransfer, text = event.dataTransfer.getData("text/uri-list") || event.dataTransfer.getData("text/plain");
  if (files.length) takeFiles(files);
  else if (text) takeUrl(text);
});

// Examples

on("model", () => {
  const { examples } = state.model;
  $("examples").hidden = !examples.length;
  $("example-list").replaceChildren(...examples.map(({ src, about }) => {
    const button = element("button", { type: "button", class: "example" },
      element("img", { src, width: 112, height: 84, alt: `Example: ${about}` }));
    button.addEventListener("click", () => takeExample(src));
    return button;
  }));
});

async function takeExample(src) {
  try {
    const response = await fetch(src);
    if (!response.ok) throw new TypeError(response.statusText);
    addPhotos([{ blob: await response.blob(), name: src }]);
  } catch {
    showProblem(new Problem("No example", "The example could not be loaded. Check the connection and try again."));
  }
}

// Camera

let stream = null;

async function openCamera() {
  showProblem(null);
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch {
    return showProblem(new Problem("No camera", "There is no camera, or the browser may not use it. Choose a photo instead."));
  }
  $("shoot").disabled = true;
  $("camera-dialog").showModal();
  $("video").srcObject = stream;
  await $("video").play().catch(() => {}); // the dialog was closed before it began
}

function shoot() {
  const video = $("video"), canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => {
    $("camera-dialog").close();
    addPhotos([{ blob, name: "camera.jpg" }]);
  }, "image/jpeg", 0.92);
}

$("camera").addEventListener("click", openCamera);
$("video").addEventListener("loadeddata", () => { $("shoot").disabled = false; });
$("shoot").addEventListener("click", shoot);
$("camera-close").addEventListener("click", () => $("camera-dialog").close());
$("camera-dialog").addEventListener("close", () => { stream?.getTracks().forEach((track) => track.stop()); stream = null; });
