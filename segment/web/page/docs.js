// The form in /docs that sends a photo and shows the answer as it came.

import { $, mib, seconds } from "./dom.js";

const MOST = 20_000; // characters of a body that are shown

async function send() {
  const form = new FormData(), start = performance.now();
  form.append("file", $("try-file").files[0]);
  $("try-answer").hidden = false;
  $("try-status").textContent = "Sending";
  for (const part of ["try-headers", "try-text"]) $(part).textContent = "";
  $("try-picture").hidden = true;
  try {
    const answer = await fetch(`segment?${$("try-options").value}`, { method: "POST", body: form });
    const body = await answer.blob();
    $("try-status").textContent = `${answer.status} ${answer.statusText}, ${mib(body.size)}, ${seconds(performance.now() - start)}`;
    $("try-headers").textContent = [...answer.headers].map((pair) => pair.join(": ")).join("\n");
    await show(body);
  } catch {
    $("try-status").textContent = "No answer. The service cannot be reached.";
  }
}

async function show(body) {
  URL.revokeObjectURL($("try-picture").src);
  $("try-picture").hidden = !body.type.startsWith("image/");
  $("try-body").hidden = !body.type.includes("json");
  if (body.type.startsWith("image/")) $("try-picture").src = URL.createObjectURL(body);
  if (!body.type.includes("json")) return;
  const text = JSON.stringify(JSON.parse(await body.text()), null, 2);
  $("try-text").textContent = text.length > MOST ? `${text.slice(0, MOST)}\n(${text.length - MOST} more characters)` : text;
}

$("try-form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
