// Places the labels (tags), by the same rules as the service's overlay (segment/output/tags.py): tags do not overlap, do not
// cover more than a tenth of any object's core, and have a leader line if they are not beside their object.
//
// Boxes, tags and bounds are [left, top, right, bottom] in CSS pixels.

const COVERED = 0.1;                // maximum share of an object's core that a tag covers
const CORE = [0.2, 0, 0.8, 0.7];    // the core, relative to the box: where the faces of people and animals are
const REACH = [0.8, 1.6];           // lengths of leader lines that are tried, relative to the tag's height
const DIRECTIONS = 16;
const LEADER = 0.3;                 // distance from its box, relative to its height, from which a tag has a leader line

const LONGEST = 24;                 // maximum number of characters of a name in a tag

/** The alternatives for the text of a tag, the longest first. */
export function tagTexts(name, score) {
  const characters = [...name], shown = characters.length > LONGEST ? `${characters.slice(0, LONGEST - 1).join("").trimEnd()}…` : name;
  return [`${shown} ${Math.round(score * 100)}%`, shown];
}

export const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

/** The core of an object in this box. */
export function core([left, top, right, bottom]) {
  const width = right - left, height = bottom - top;
  return [left + CORE[0] * width, top + CORE[1] * height, left + CORE[2] * width, top + CORE[3] * height];
}

/** The share of `core` that `tag` covers. */
export function covered(tag, [left, top, right, bottom]) {
  const width = Math.min(tag[2], right) - Math.max(tag[0], left), height = Math.min(tag[3], bottom) - Math.max(tag[1], top);
  return width > 0 && height > 0 ? width * height / Math.max(1, (right - left) * (bottom - top)) : 0;
}

/**
 * The best place inside `bounds` for a tag of [width, height] of the object in `box`, or null if there is none. It does not
 * overlap the tags in `taken`. `cores`: the cores of all objects.
 */
export function placeTag(box, [width, height], bounds, cores, taken) {
  if (width > bounds[2] - bounds[0] || height > bounds[3] - bounds[1]) return null;
  let best = null, least = Infinity;
  for (const [x, y, penalty] of candidates(box, width, height)) {
    const left = Math.max(bounds[0], Math.min(x, bounds[2] - width)), top = Math.max(bounds[1], Math.min(y, bounds[3] - height));
    const cost = penalty + Math.hypot(x - left, y - top) / height; // how far it was moved to be inside the bounds
    const tag = [left, top, left + width, top + height];
    if (cost >= least || taken.some((other) => overlap(tag, other))) continue;
    const shares = cores.map((one) => covered(tag, one)), sum = cost + shares.reduce((a, b) => a + b, 0) / COVERED;
    if (sum < least && Math.max(...shares) <= COVERED) [best, least] = [tag, sum];
  }
  return best;
}

/** Possible places for a tag of this size: [x, y, penalty]. */
function candidates([x0, y0, x1, y1], width, height) {
  const across = [x0, (x0 + x1 - width) / 2, x1 - width], down = [y0, (y0 + y1 - height) / 2, y1 - height];
  const places = [[y0 - height, 0], [y1, 0.3], [y1 - height, 0.4], [y0, 0.6]].flatMap(([y, p]) => across.map((x) => [x, y, p]));
  places.push(...[x1, x0 - width].flatMap((x) => down.map((y) => [x, y, 0.8])));
  for (const reach of REACH) {
    for (let direction = 0; direction < DIRECTIONS; direction++) {
      const angle = 2 * Math.PI * direction / DIRECTIONS;
      const x = across[1] + Math.cos(angle) * ((x1 - x0 + width) / 2 + reach * height);
      const y = down[1] - Math.sin(angle) * ((y1 - y0 + height) / 2 + reach * height);
      places.push([x, y, 1.5 + reach]);
    }
  }
  return places;
}

/** The leader line [x0, y0, x1, y1] from a tag to its object's core; null if the tag is beside the box. */
export function leader([left, top, right, bottom], box) {
  const gap = Math.max(box[0] - right, left - box[2], box[1] - bottom, top - box[3]);
  if (gap <= LEADER * (bottom - top)) return null;
  const one = core(box), between = (value, low, high) => Math.min(Math.max(value, low), high);
  const x = between((one[0] + one[2]) / 2, left, right), y = between((one[1] + one[3]) / 2, top, bottom);
  return [x, y, between(x, one[0], one[2]), between(y, one[1], one[3])];
}
