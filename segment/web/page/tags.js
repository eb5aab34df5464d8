// Where the names of objects go. No tag lies on another.

/**
 * The place of a tag of [width, height] at `box`, inside `bounds`, off every tag of `taken`; null if there is none.
 *
 * `box` and `bounds` are [left, top, right, bottom]; so are the elements of `taken` and the result. Tried in turn: above the
 * box, at its top, at its bottom and below it, each at its left, its right and its middle.
 */
export function placeTag(box, [width, height], bounds, taken) {
  const [left, top, right, bottom] = box;
  for (const y of [top - height, top, bottom - height, bottom]) {
    if (y < bounds[1] || y + height > bounds[3]) continue;
    for (const x of [left, right - width, (left + right - width) / 2]) {
      const x0 = Math.max(bounds[0], Math.min(x, bounds[2] - width));
      const tag = [x0, y, x0 + width, y + height];
      const away = tag[2] < left - 1 || tag[0] > right + 1; // shifted so far that it no longer touches its box
      if (x0 >= bounds[0] && !away && !taken.some((other) => overlap(tag, other))) return tag;
    }
  }
  return null;
}

export const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
