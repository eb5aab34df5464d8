// The network's options, from the schemas in GET /model, and an estimate of their memory and time.

import { $, debounce, element, seconds } from "./dom.js";
import { LOWEST_SCORE, on, state } from "./state.js";

const LARGEST_FACTOR = 64; // of the slider; the service accepts larger ones

let speed = 0;             // milliseconds per megapixel, measured in the last response

export function networkOptions() {
  const options = { render_factor: $("factor").value };
  for (const name of ["fit", "detail"]) if ($(name)) options[name] = $(name).value;
  return options;
}

/** Number of runs of the network per photo: one for the whole photo and one per tile; null if the service decides. */
export function passes(detail = $("detail")?.value ?? "1") {
  return detail === "auto" ? null : detail === "1" ? 1 : detail ** 2 + 1;
}

export function learnSpeed(header) {
  const [width, height] = header("Segment-Network-Size").split("x").map(Number);
  const network = /network;dur=([\d.]+)/.exec(header("Server-Timing"));
  if (!network || !width || !height) return;
  speed = Number(network[1]) / (passes(header("Segment-Detail") || "1") * width * height / 1e6);
  showCost();
}

const pixels = () => (16 * Number($("factor").value)) ** 2;
const duration = () => speed && passes() ? seconds(speed * passes() * pixels() / 1e6) : "";

/** The expected duration, such as ", about 0.3 s", if it is known. */
export const estimate = () => duration() ? `, about ${duration()}` : "";

function showCost() {
  $("factor-out").textContent = $("factor").value;
  const size = `${(pixels() / 1e6).toFixed(pixels() < 1e5 ? 3 : 2)} megapixels`;
  const { fixed_bytes: fixed, bytes_per_pixel: each, bytes_per_instance: more } = state.model ?? {};
  const memory = each ? `${Math.round((fixed + each * pixels() + more * 100) / 2 ** 20)} MiB` : "";
  const cost = [memory, duration()].filter(Boolean).join(", ");
  $("cost").textContent = size + (passes() > 1 ? ` × ${passes()}` : "") + (cost && ` · about ${cost}`);
}

/** Call `act` after the options were changed. */
export function onNetworkChange(act) {
  const later = debounce(act, 250);
  $("network").addEventListener("change", later);
  $("network").addEventListener("input", showCost);
}

function addChoice(name, schema) {
  const select = element("select", { id: name });
  for (const value of schemaValues(schema)) select.add(new Option(value, value, false, String(schema.default) === String(value)));
  const text = element("span", {}, name[0].toUpperCase() + name.slice(1));
  $("choices").append(element("label", { class: "field", htmlFor: name, title: schema.description }, text, select));
}

function schemaValues(schema) {
  if (schema.anyOf) return schema.anyOf.flatMap(schemaValues);
  if (schema.enum) return schema.enum;
  if ("const" in schema) return [schema.const];
  return Array.from({ length: schema.maximum - schema.minimum + 1 }, (_, i) => schema.minimum + i);
}

on("model", () => {
  const { options, largest_render_factor: largest, milliseconds_per_megapixel: measured } = state.model;
  const { default: preset, anyOf: [{ minimum, maximum }] } = options.render_factor;
  speed = measured;
  $("factor").closest("label").hidden = largest === null; // null: the model's input has a fixed size
  $("factor").min = minimum;
  $("factor").max = Math.max(minimum, Math.min(maximum, largest ?? maximum, LARGEST_FACTOR));
  $("factor").value = preset === "auto" ? $("factor").max : preset;
  $("choices").replaceChildren();
  for (const name of largest === null ? ["detail"] : ["fit", "detail"]) addChoice(name, options[name]);
  state.minScore = Math.max(LOWEST_SCORE, options.min_score.default);
  showCost();
});
