// The form in /docs that sends a photo and shows the response.

import { $, fileSize, seconds } from "./dom.js";

const MAX_CHARACTERS = 20_000; // shown of a response's body

async function send() {
  const form = new FormData(), start = performance.now();
  form.append("file", $("try-file").files[0]);
  $("try-answer").hidden = false;
  $("try-status").textContent = "Sending";
  for (const part of ["try-headers", "try-text"]) $(part).textContent = "";
  $("try-picture").hidden = $("try-save").hidden = true;
  $("try").scrollIntoView(); // on a phone, the response would be below the window
  try {
    const answer = await fetch(`segment?${$("try-options").value}`, { method: "POST", body: form });
    const body = await answer.blob();
    $("try-status").textContent = `${answer.status} ${answer.statusText}, ${fileSize(body.size)}, ${seconds(performance.now() - start)}`;
    $("try-headers").textContent = [...answer.headers].map((pair) => pair.join(": ")).join("\n");
    $("try-link").download = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition"))?.[1] ?? "response.json";
    await show(body);
  } catch {
    $("try-status").textContent = "No response. The service cannot be reached.";
  }
}

async function show(body) {
  URL.revokeObjectURL($("try-link").href);
  $("try-link").href = URL.createObjectURL(body);
  $("try-save").hidden = false;
  $("try-picture").hidden = !body.type.startsWith("image/");
  $("try-body").hidden = !body.type.includes("json");
  if (body.type.startsWith("image/")) $("try-picture").src = $("try-link").href;
  if (!body.type.includes("json")) return;
  const text = JSON.stringify(JSON.parse(await body.text()), null, 2)
    .replace(/\[\s+([-\d.,\s]+?)\s+\]/g, (_, numbers) => `[${numbers.replace(/\s+/g, " ")}]`); // lists of numbers on one line
  $("try-text").textContent = text.length > MAX_CHARACTERS
    ? `${text.slice(0, MAX_CHARACTERS)}\n(${text.length - MAX_CHARACTERS} more characters)` : text;
}

$("try-form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
