// The page. The service segments each photo once and returns JSON; the page draws everything else from it.
//
// state.js contains the shared state, service.js the requests to the service, photos.js the queue of photos, viewer.js the
// photo that is shown. masks.js, detections.js, tags.js, drawing.js and snippets.js do not use the document.

import "./about.js";
import "./downloads.js";
import "./objects.js";
import "./sources.js";
import "./viewer.js";
import { $ } from "./dom.js";
import { onNetworkChange } from "./network.js";
import { segmentAgain } from "./photos.js";
import { showProblem } from "./photolist.js";
import { getModel } from "./service.js";
import { prepared } from "./startup.js";
import { emit, on, state } from "./state.js";

onNetworkChange(segmentAgain);

// On a phone, the panel shows one section at a time.
function showSection(id) {
  $("work").dataset.section = id;
  for (const button of $("sections").children) button.setAttribute("aria-pressed", button.dataset.section === id);
}
for (const button of $("sections").children) button.addEventListener("click", () => showSection(button.dataset.section));
on("focus", () => { if (state.pinned) showSection("result"); });

async function load() {
  state.problem = null;
  showProblem(null);
  const patience = setTimeout(() => { $("loading").hidden = false; }, 300); // the first request for the model loads it
  try {
    await prepared();
    state.model = await getModel();
    emit("model");
  } catch (problem) {
    state.problem = problem;
    showProblem(null);
  } finally {
    clearTimeout(patience);
    $("loading").hidden = true;
  }
}

on("again", () => { if (state.problem) load(); });
addEventListener("online", () => emit("again"));
load();
