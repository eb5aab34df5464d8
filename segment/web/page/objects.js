// The list of objects and its filters. The row of the selected object also shows its cut-out.

import { $, element, percent } from "./dom.js";
import { cutoutTools } from "./cutout.js";
import { alone, classesFound, emit, found, light, on, paintOf, pin, shown, state } from "./state.js";

const rows = new Map(); // object -> its <li>

function listObjects() {
  const objects = shown(), focused = document.activeElement?.closest?.("#objects li")?.dataset.id;
  rows.clear();
  for (const object of objects) rows.set(object, row(object));
  $("objects").replaceChildren(...rows.values());
  const before = focused && $("objects").querySelector(`[data-id="${focused}"] button`);
  makeTabStop(before || $("objects").querySelector("button"));
  if (before) before.focus();
  $("count").textContent = found().length ? `${objects.length} of ${found().length}` : "";
  $("none").hidden = objects.length > 0 || !state.current?.objects;
  $("none").textContent = whyNone();
  $("score").value = state.minScore;
  $("score-out").textContent = percent(state.minScore);
  $("score").setAttribute("aria-valuetext", percent(state.minScore));
  showFocus();
}

/** Why no object is shown, and what to do. */
function whyNone() {
  if (!found().length) return "No object was found. Raise the render factor or the detail, or try another photo.";
  if (found().some(({ score }) => score >= state.minScore)) return "No class is chosen. Choose one above.";
  return "No object has this score. Lower the score, or raise the render factor or the detail.";
}

/** Make this button the only one of the list that Tab reaches; the arrow keys move to the others. */
function makeTabStop(chosen) {
  for (const item of rows.values()) item.firstElementChild.tabIndex = item.firstElementChild === chosen ? 0 : -1;
}

function row(object) {
  const { category_name: name, score } = object;
  const button = element("button", { type: "button" },
    element("span", { class: "swatch" }), element("span", { class: "name", title: name }, name),
    element("span", { class: "meter" }), element("span", { class: "score" }, percent(score)));
  button.style.setProperty("--swatch", paintOf(object).colour);
  button.style.setProperty("--score", `${score * 100}%`);
  button.addEventListener("mouseenter", () => light(object));
  button.addEventListener("mouseleave", () => light(null));
  button.addEventListener("focus", () => { makeTabStop(button); light(object); });
  button.addEventListener("blur", () => light(null));
  button.addEventListener("click", () => pin(object));
  return element("li", { data: { id: object.id } }, button);
}

function showFocus() {
  for (const [object, item] of rows) {
    const [button, tools] = item.children, pinned = state.pinned === object;
    button.classList.toggle("lit", alone() === object);
    button.setAttribute("aria-pressed", pinned);
    if (!pinned) tools?.remove();
    else if (!tools) {
      item.append(cutoutTools(object));
      item.scrollIntoView({ block: "nearest" });
    }
  }
}

/** List the classes that have an object with at least the minimum score, and those that were unchecked. */
function listClasses() {
  const high = new Set(found().filter(({ score }) => score >= state.minScore).map((object) => object.category_name));
  state.hiddenClasses = new Set([...state.hiddenClasses].filter((name) => classesFound().includes(name)));
  const names = classesFound().filter((name) => high.has(name) || state.hiddenClasses.has(name));
  $("classes").hidden = names.length < 2 && !state.hiddenClasses.size;
  if ([...$("classes").children].map((label) => label.textContent).join() === names.join()) return; // keep the focus
  $("classes").replaceChildren(...names.map((name) => {
    const box = element("input", { type: "checkbox", checked: !state.hiddenClasses.has(name) });
    box.addEventListener("change", () => {
      state.hiddenClasses[box.checked ? "delete" : "add"](name);
      emit("filter");
    });
    return element("label", { class: "chip", title: name }, box, element("span", {}, name));
  }));
}

on("photo filter", listClasses);
on("photo filter model", listObjects);
on("focus", showFocus);

$("score").addEventListener("input", () => { state.minScore = Number($("score").value); emit("filter"); });
for (const layer of ["masks", "boxes", "labels"]) {
  $(layer).addEventListener("change", () => { state.layers[layer] = $(layer).checked; emit("filter"); });
}
$("colours").addEventListener("change", () => { state.colours = $("colours").value; emit("filter"); });
$("objects").addEventListener("keydown", (event) => {
  const items = [...rows.values()], at = items.indexOf(document.activeElement.closest("li"));
  const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  items[next]?.firstElementChild.focus();
});
