// Parse the response of /segment?format=json. Throws an error for anything else.

import { maskPaths } from "./masks.js";

const LONGEST = 1600; // pixels of the longer side at which masks are traced

/** {size: [width, height], objects}, best score first; each object has its annotation's fields, a `rank`, a `path` and an `outline`. */
export function readDetections({ image: { width, height }, annotations }) {
  if (!(width > 0 && height > 0)) throw new TypeError("No size");
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const objects = annotations.map(({ id, category_id, category_name, score, bbox, area, segmentation }) => {
    const numbers = [id, category_id, score, area, ...bbox];
    if (bbox.length !== 4 || !numbers.every(Number.isFinite) || typeof category_name !== "string") throw new TypeError("No detection");
    if (segmentation.size[0] !== height || segmentation.size[1] !== width) throw new TypeError("A mask of another size");
    return { id, category_id, category_name, score, bbox, area, ...maskPaths(segmentation, scale) };
  });
  objects.sort((a, b) => b.score - a.score);
  objects.forEach((object, rank) => { object.rank = rank; });
  return { size: [width, height], objects };
}
