// The photos on the page. They are segmented one after the other, starting with the one that is shown.
//
// A photo is {name, blob or url, status, problem, objects, size, picture, thumbnail, summary}. Its status is "waiting", "busy",
// "done", "failed" or "cancelled"; `objects` and `size` are those of its last answer, `picture` is an ImageBitmap of the photo.

import { fileSize, percent, seconds } from "./dom.js";
import { networkOptions, passes, learnSpeed, estimate } from "./network.js";
import { chooseColours } from "./colours.js";
import { readDetections } from "./detections.js";
import { Aborted, Problem, readAnswer, segment } from "./service.js";
import { LOWEST_SCORE, emit, on, state } from "./state.js";

const THUMBNAIL = 96; // pixels of the longer side

let running = null;   // {photo, abort} of the request in progress

/** Add photos, each {name, blob} or {name, url}, and show the first of them. */
export function addPhotos(sources) {
  const added = sources.map((source) => ({ ...source, status: "waiting", objects: null }));
  if (!added.length) return;
  state.photos.push(...added);
  showPhoto(added[0]);
}

export function showPhoto(photo) {
  state.current = photo;
  if (photo.status === "cancelled") photo.status = "waiting";
  if (photo.status === "done") photo.problem = null; // it was not shown; this is tried again now
  emit("photos", "photo");
  display(photo).catch((error) => { photo.problem = asProblem(error); emit("photos"); });
  work();
}

const asProblem = (error) => error instanceof Problem ? error : new Problem("Failed", "The photo or its result could not be shown.");

export function removePhoto(photo) {
  const at = state.photos.indexOf(photo);
  state.photos.splice(at, 1);
  if (running?.photo === photo) running.abort.abort();
  photo.picture?.close();
  if (state.current !== photo) return emit("photos");
  state.current = null;
  if (state.photos.length) showPhoto(state.photos[Math.min(at, state.photos.length - 1)]);
  else emit("photos", "photo");
}

export function removeAll() {
  for (const photo of state.photos) photo.picture?.close();
  Object.assign(state, { photos: [], current: null });
  running?.abort.abort();
  emit("photos", "photo");
}

/** Stop. Photos without a result get the status "cancelled". */
export function cancel() {
  for (const photo of state.photos) {
    if (["waiting", "busy"].includes(photo.status)) photo.status = photo.objects ? "done" : "cancelled";
  }
  running?.abort.abort();
  const [only] = state.photos;
  if (state.photos.length === 1 && !only.objects) removePhoto(only); else emit("photos", "photo");
}

/** Segment all photos again with the current options. */
export function segmentAgain() {
  for (const photo of state.photos) photo.status = "waiting";
  running?.abort.abort();
  emit("photos");
  work();
}

/** Try again to segment the photos whose problem may be temporary, and to show the current photo. */
function retry() {
  for (const photo of state.photos) if (photo.status === "failed" && photo.problem.passing) photo.status = "waiting";
  if (state.current) showPhoto(state.current);
}

/** The photo that is segmented next. */
function nextPhoto() {
  const waiting = state.photos.filter((photo) => photo.status === "waiting");
  return waiting.includes(state.current) ? state.current : waiting[0];
}

async function work() {
  if (running || !state.model) return;
  for (let photo; (photo = nextPhoto());) {
    const abort = new AbortController();
    running = { photo, abort };
    await segmentPhoto(photo, abort.signal);
    running = null;
    emit("photos");
    if (photo === state.current) emit("photo");
  }
}

async function segmentPhoto(photo, signal) {
  const progress = (text, part) => { photo.progress = { text, part }; emit("photos"); };
  photo.status = "busy";
  photo.problem = null;
  progress(photo.url ? "Fetching the photo and finding objects" : "Sending the photo");
  try {
    refuseTooLarge(photo);
    const options = { ...networkOptions(), min_score: LOWEST_SCORE, format: "json" };
    const onSent = (part) => {
      if (photo.url) return;
      if (part < 1) progress(`Sending the photo: ${percent(part)}`, part); else progress(`Finding objects${estimate()}`);
    };
    const onWait = (wait) => progress(`The service is busy. Trying again in ${wait} s`);
    const { blob, header } = await segment(photo, options, { signal, onSent, onWait });
    const answer = await readAnswer(blob, readDetections);
    if (signal.aborted) throw new Aborted();
    Object.assign(photo, answer, { summary: summarise(header), status: "done" });
    learnSpeed(header);
    if (photo === state.current) await display(photo, signal); else await addThumbnail(photo);
  } catch (error) {
    if (error instanceof Aborted || signal.aborted) return; // the caller of abort() has set the status
    photo.problem = asProblem(error);
    photo.status = "failed";
  }
}

function refuseTooLarge({ blob }) {
  const limit = state.model?.max_upload;
  if (blob && limit && blob.size > limit) throw new Problem("Too large", `This photo is ${fileSize(blob.size)}. The limit is ${fileSize(limit)}.`);
}

/** Decode the photo and show it. Only one photo is kept decoded. */
async function display(photo, signal) {
  if (!photo.picture) {
    const picture = await decode(photo, signal);
    if (!picture) return;
    if (state.current !== photo || photo.picture) return picture.close();
    for (const other of state.photos) if (other !== photo) { other.picture?.close(); other.picture = null; }
    photo.picture = picture;
    photo.size ??= [picture.width, picture.height];
    photo.thumbnail ??= thumbnail(picture);
  }
  if (photo.objects?.some((object) => !object.colours)) chooseColours(photo.objects, photo.picture, photo.size, state.model.palette);
  emit("photos", "photo");
}

/**
 * The photo as an ImageBitmap. If the browser cannot decode it (HEIC, TIFF) or may not fetch it (a URL), it is requested from
 * the service as a JPEG without drawings, once it has been segmented; until then the result is null.
 */
async function decode(photo, signal) {
  if (photo.blob) {
    try {
      return await createImageBitmap(photo.blob);
    } catch { /* a format that the browser cannot read */ }
  }
  if (!photo.objects) return null;
  if (!photo.plain) {
    const plain = { render_factor: 4, format: "jpeg", min_score: 1, masks: false, boxes: false, labels: false };
    photo.plain = (await segment(photo, plain, { signal })).blob;
  }
  return createImageBitmap(photo.plain);
}

/** The thumbnail of a photo that is not shown, if the browser can read it. */
async function addThumbnail(photo) {
  if (photo.thumbnail || !photo.blob) return;
  try {
    const picture = await createImageBitmap(photo.blob);
    photo.thumbnail = thumbnail(picture);
    picture.close();
  } catch { /* a format that the browser cannot read: no thumbnail */ }
}

function thumbnail(picture) {
  const scale = THUMBNAIL / Math.max(picture.width, picture.height), canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function summarise(header) {
  const total = header("Server-Timing").split(",").reduce((sum, part) => sum + Number(/dur=([\d.]+)/.exec(part)?.[1] ?? 0), 0);
  const size = header("Segment-Network-Size").replace("x", " × "), count = passes(header("Segment-Detail") || "1");
  return `The network saw ${size} pixels${count > 1 ? `, ${count} times` : ""}; ${seconds(total)} in all.`;
}

on("model", work);
on("again", retry);
