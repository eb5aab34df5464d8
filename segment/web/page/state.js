// The state that the modules share. A module that changes it emits an event; the modules that show it listen.
//
//   model   the model has been loaded
//   photos  a photo was added or removed, or its progress changed
//   photo   another photo is shown, or the one shown has a new result
//   filter  the lowest score, the classes, the layers or the colours have changed
//   focus   another object is highlighted
//   again   what has failed should be tried again

export const LOWEST_SCORE = 0.05; // min_score of requests; the score slider filters their results

export const state = {
  model: null,             // the answer of GET /model
  problem: null,           // why the model could not be loaded
  photos: [],              // in the order in which they were added, see photos.js
  current: null,           // the photo shown
  minScore: 0.5,
  hiddenClasses: new Set(),
  layers: { masks: true, boxes: true, labels: true },
  colours: "instance",     // or "class"
  lit: null,               // the object under the pointer or the focus
  pinned: null,            // the object that was chosen
};

const events = new EventTarget();
export const emit = (...names) => names.forEach((name) => events.dispatchEvent(new Event(name)));
export const on = (names, listener) => names.split(" ").forEach((name) => events.addEventListener(name, listener));

/** The detections of the photo shown, best score first. */
export const found = () => state.current?.objects ?? [];
export const classesFound = () => [...new Set(found().map((object) => object.category_name))].sort();
export const isShown = (object) => object.score >= state.minScore && !state.hiddenClasses.has(object.category_name);
export const shown = () => found().filter(isShown);
/** The highlighted object, or null. */
export const alone = () => state.lit ?? state.pinned;

/** {colour, clear} of an object, see colours.js; before the photo is decoded, a colour of the palette by rank. */
export function paintOf(object) {
  const { palette } = state.model, at = state.colours === "class" ? object.category_id - 1 : object.rank;
  return object.colours?.[state.colours] ?? { colour: palette[at % palette.length], clear: true };
}

export function light(object) {
  if (state.lit === object) return;
  state.lit = object;
  emit("focus");
}

export function pin(object) {
  state.pinned = state.pinned === object ? null : object;
  if (!state.pinned) state.lit = null;
  emit("focus");
}

on("photo filter", () => { // a hidden object cannot be highlighted
  const objects = shown();
  if (!objects.includes(state.pinned)) state.pinned = null;
  if (!objects.includes(state.lit)) state.lit = null;
});
