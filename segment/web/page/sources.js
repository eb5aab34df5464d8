// Where photos come from: files, drag and drop, the clipboard, a URL, the camera, the model's examples.

import { $, element } from "./dom.js";
import { addPhotos } from "./photos.js";
import { showProblem } from "./photolist.js";
import { Problem } from "./service.js";
import { on, state } from "./state.js";

const PICTURE = /\.(avif|bmp|gif|heic|heif|jpe?g|png|tiff?|webp)$/i; // names of the photos in a folder

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
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  const text = event.clipboardData.getData("text/plain");
  if (files.length) takeFiles(files);
  else if (isUrl(text) && !event.target.closest?.("input")) takeUrl(text);
});

for (const kind of ["dragenter", "dragover"]) addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const { files, items } = event.dataTransfer, text = event.dataTransfer.getData("text/uri-list") || event.dataTransfer.getData("text/plain");
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean); // readable in this event only
  if (entries.some((entry) => entry.isDirectory)) takeEntries(entries);
  else if (files.length) takeFiles(files);
  else if (text) takeUrl(text.split(/\r?\n/).find((line) => !line.startsWith("#")) ?? text); // RFC 2483
});

async function takeEntries(entries) {
  try {
    const files = (await Promise.all(entries.map(filesIn))).flat();
    if (files.length) takeFiles(files); else showProblem(new Problem("No photos", "The folder contains no photos."));
  } catch {
    showProblem(new Problem("Not readable", "The browser could not read the folder. Choose the photos in it instead."));
  }
}

/** The file of an entry that was dropped, or the photos in a folder and its subfolders, by name. */
async function filesIn(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader(), within = [];
  for (let some; (some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length;) within.push(...some);
  const wanted = within.filter(({ isDirectory, name }) => isDirectory || PICTURE.test(name));
  wanted.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  return (await Promise.all(wanted.map(filesIn))).flat();
}

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
