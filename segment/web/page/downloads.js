// Downloads of results, and the same requests as code to copy.

import { $, save, stemOf } from "./dom.js";
import { showProblem } from "./photolist.js";
import { networkOptions } from "./network.js";
import { Problem, segment } from "./service.js";
import { OUTPUTS, snippet } from "./snippets.js";
import { classesFound, on, state } from "./state.js";

/** The request options, as strings, for a result that equals what the page shows. */
function optionsSeen(format) {
  const options = { ...networkOptions(), min_score: String(state.minScore), format };
  const chosen = classesFound().filter((name) => !state.hiddenClasses.has(name));
  if (state.hiddenClasses.size && chosen.length) options.classes = chosen.join(",");
  if (format === "png") {
    for (const [layer, seen] of Object.entries(state.layers)) if (!seen) options[layer] = "false";
    if (state.colours !== "instance") options.colours = state.colours;
  }
  return options;
}

async function download(button) {
  const photo = state.current, { download: format } = button.dataset;
  showProblem(null);
  button.disabled = true;
  $("said").textContent = "Preparing the file";
  try {
    const { blob } = await segment(photo, optionsSeen(format));
    save(blob, `${stemOf(photo.name)}-${OUTPUTS[format]}`);
    $("said").textContent = "";
  } catch (error) {
    $("said").textContent = "";
    showProblem(error instanceof Problem ? error : new Problem("Failed", "The file could not be made."));
  } finally {
    button.disabled = false;
  }
}

function showSnippet() {
  if (!state.current) return;
  const language = document.querySelector("[name=language]:checked").value;
  const address = new URL("segment", location.href).href;
  $("snippet").textContent = snippet(language, address, state.current, optionsSeen($("snippet-format").value));
  $("copy").textContent = "Copy";
}

async function copySnippet() {
  try {
    await navigator.clipboard.writeText($("snippet").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("snippet"));
    $("copy").textContent = "Selected: press Ctrl+C";
  }
}

for (const button of document.querySelectorAll("[data-download]")) button.addEventListener("click", () => download(button));
$("code").addEventListener("click", () => { showSnippet(); $("code-dialog").showModal(); });
$("code-close").addEventListener("click", () => $("code-dialog").close());
$("code-dialog").addEventListener("change", showSnippet);
$("copy").addEventListener("click", copySnippet);
on("photo", () => { if ($("code-dialog").open) showSnippet(); });
