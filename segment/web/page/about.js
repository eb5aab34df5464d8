// The name and the classes of the served model.

import { $ } from "./dom.js";
import { on, state } from "./state.js";

const NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

on("model", () => {
  const { name, labels, demo } = state.model, count = NUMBERS[labels.length] ?? labels.length;
  $("model-chip").textContent = `${name} · ${labels.length} ${labels.length === 1 ? "class" : "classes"}`;
  $("model-chip").hidden = false;
  $("demo").hidden = !demo;
  $("demo-title").textContent = `Demo: ${count} shapes.`;
  $("demo-text").textContent = `This model only detects ${list(labels)}.`;
  $("about-text").textContent = demo
    ? `The small demo model that is included in the service. It detects ${count} shapes:`
    : `The model ${name} detects ${count} ${labels.length === 1 ? "class" : "classes"}:`;
  $("about-labels").textContent = labels.join(", ");
});

const list = (names) => names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names.join();

$("model-chip").addEventListener("click", () => $("about").showModal());
$("about-close").addEventListener("click", () => $("about").close());
