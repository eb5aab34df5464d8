// The list of photos; the progress, the problems and the summary of the result.

import { $, element } from "./dom.js";
import { cancel, removeAll, removePhoto, showPhoto } from "./photos.js";
import { Problem } from "./service.js";
import { emit, found, isShown, on, shown, state } from "./state.js";

const rows = new Map(); // photo -> its <li>

function listPhotos() {
  $("photos-bar").hidden = !state.photos.length;
  for (const [photo, item] of rows) if (!state.photos.includes(photo)) { item.remove(); rows.delete(photo); }
  for (const photo of state.photos) {
    if (!rows.has(photo)) {
      rows.set(photo, row(photo));
      $("photos").append(rows.get(photo));
    }
    update(photo, rows.get(photo));
  }
}

function row(photo) {
  const open = element("button", { type: "button", class: "open", title: photo.name },
    element("span", { class: "thumbnail" }), element("span", { class: "words" },
      element("span", { class: "name" }, element("bdi", {}, photo.name)), element("span", { class: "state" })));
  const remove = element("button", { type: "button", class: "remove", "aria-label": `Remove ${photo.name}` }, "×");
  open.addEventListener("click", () => showPhoto(photo));
  const item = element("li", {}, open, remove);
  remove.addEventListener("click", () => {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    removePhoto(photo);
    (next?.lastElementChild ?? $("file")).focus();
  });
  return item;
}

function update(photo, item) {
  const open = item.firstElementChild, current = photo === state.current;
  open.setAttribute("aria-current", current);
  open.dataset.status = photo.status;
  open.querySelector(".state").textContent = statusOf(photo);
  if (photo.thumbnail && !photo.thumbnail.parentNode) open.querySelector(".thumbnail").replaceChildren(photo.thumbnail);
}

function statusOf({ status, objects }) {
  if (status !== "done") return { waiting: "Waiting", busy: "Working", failed: "Failed", cancelled: "Cancelled" }[status];
  const count = objects.filter(isShown).length;
  return `${count} ${count === 1 ? "object" : "objects"}`;
}

/** Hide or show a part of the page. The focus in a part that is hidden moves to the photo, not to the start of the page. */
function hide(part, hidden) {
  if (hidden && part.contains(document.activeElement)) $($("viewer").hidden ? "file" : "frame").focus();
  part.hidden = hidden;
}

function showProgress() {
  const busy = state.photos.find((photo) => photo.status === "busy"), at = state.photos.indexOf(busy) + 1;
  hide($("progress"), !busy);
  document.body.classList.toggle("busy", busy !== undefined && busy === state.current);
  $("work").setAttribute("aria-busy", Boolean(busy));
  if (!busy) return;
  const { text, part } = busy.progress;
  $("progress-text").textContent = state.photos.length > 1 ? `Photo ${at} of ${state.photos.length}: ${text}` : text;
  if (part === undefined) $("bar").removeAttribute("value"); else $("bar").value = part * 100;
}

/** Show the problem of something that was just done; null shows that of the model, of the current photo or of others, if any. */
export function showProblem(problem) {
  const lasting = state.problem ?? state.current?.problem ?? problemOfOthers(), seen = problem ?? lasting;
  hide($("problem"), !seen);
  $("again").hidden = seen !== lasting || !seen?.passing;
  $("problem-title").textContent = seen ? `${seen.title}:` : "";
  $("problem-detail").textContent = seen?.message ?? "";
}

/** What can be tried again after all photos have been sent. */
function problemOfOthers() {
  const { photos } = state, failed = photos.filter(({ status, problem }) => status === "failed" && problem.passing);
  if (!failed.length || photos.some(({ status }) => ["waiting", "busy"].includes(status))) return null;
  return new Problem(`${failed.length} of ${photos.length} photos failed`, failed[0].problem.message, true);
}

/** How many photos cannot be segmented; their entries may be out of view. */
function failures() {
  const { photos } = state, failed = photos.filter(({ status, problem }) => status === "failed" && !problem.passing).length;
  return failed ? ` ${failed} of ${photos.length} photos failed.` : "";
}

function showState() {
  const { current } = state, done = Boolean(current?.objects);
  $("work").dataset.state = current?.picture ? "shown" : "empty";
  $("viewer").hidden = !current?.picture;
  if (current?.picture && !$("drop").hidden) {
    if ($("drop").contains(document.activeElement)) $("frame").focus();
    $("work").scrollIntoView(); // where the window is too low for all
  }
  $("drop").hidden = Boolean(current?.picture);
  $("intro").classList.toggle("sr-only", state.photos.length > 0); // it holds the page's only h1
  for (const part of ["result", "view", "save", "sections", "under"]) $(part).hidden = !current?.picture;
  const count = shown().length;
  $("status-count").textContent = done ? `${count} ${count === 1 ? "object" : "objects"} shown.${failures()}` : "";
  $("summary").textContent = done ? current.summary : "";
  for (const button of document.querySelectorAll("[data-download]")) button.disabled = !done || (!count && found().length > 0);
  $("said").textContent = "";
}

on("photos filter", listPhotos);
on("photos", showProgress);
on("photos photo", () => showProblem(null));
on("photos photo filter", showState);
on("photo", () => rows.get(state.current)?.scrollIntoView({ block: "nearest", inline: "nearest" }));
$("cancel").addEventListener("click", cancel);
$("again").addEventListener("click", () => emit("again"));
$("clear").addEventListener("click", () => { removeAll(); $("file").focus(); });
