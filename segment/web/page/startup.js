// Wait for a model that the service is still preparing, and show the progress.

import { $ } from "./dom.js";
import { Problem, getProgress } from "./service.js";

const POLL_MS = 500;

/** Resolves when the service is ready for requests; rejects with a Problem when it cannot prepare its model. */
export async function prepared() {
  for (;;) {
    const progress = await getProgress();
    if (progress.stage === "failed") throw new Problem("The model could not be prepared", progress.text);
    if (progress.stage === "ready") return;
    show(progress);
    if (progress.stage === "load") return; // the request for the model waits for it
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function show({ text, done, total }) {
  say("loading-text", `${text} Photos that you add now are segmented as soon as the model is ready.`);
  say("loading-amount", total ? `${megabytes(done)} of ${megabytes(total)} MB` : "");
  if (total) $("loading-bar").value = done / total; else $("loading-bar").removeAttribute("value");
  $("loading").hidden = false;
}

/** Set a text only when it changes, so that screen readers announce it once. */
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

const megabytes = (bytes) => Math.round(bytes / 1e6);
