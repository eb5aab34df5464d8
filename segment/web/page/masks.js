// Converts COCO's run-length encoded masks to paths, which a canvas can fill, stroke, clip and hit-test.

/** Decompress COCO's run lengths: alternating runs of 0s and 1s in column-major order (cocoapi, maskApi.c, rleFrString). */
function runLengths(text) {
  const lengths = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, code;
    do {
      code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    lengths.push(value);
  }
  return lengths;
}

/**
 * The mask's bounding box, sampled at `scale`: {x, y, width, height, bits} in scaled pixels, `bits` in row-major order.
 * Throws RangeError if the run lengths do not add up to the mask's size.
 */
function decodeMask({ size: [height, width], counts }, scale) {
  const runs = [], lengths = runLengths(counts);
  let at = 0, left = Infinity, right = -1, top = Infinity, bottom = -1;
  lengths.forEach((length, i) => {
    for (let start = at, end = at + length; i % 2 && start < end;) {
      const column = Math.floor(start / height), y0 = start - column * height, y1 = Math.min(height, y0 + end - start);
      runs.push([column, y0, y1]);
      left = Math.min(left, column); right = Math.max(right, column);
      top = Math.min(top, y0); bottom = Math.max(bottom, y1);
      start += y1 - y0;
    }
    at += length;
  });
  if (at !== height * width) throw new RangeError(`The runs cover ${at} pixels, the mask has ${height * width}`);
  if (right < 0) return { x: 0, y: 0, width: 0, height: 0, bits: new Uint8Array(0) };
  const x = Math.floor(left * scale), y = Math.floor(top * scale);
  const mask = { x, y, width: Math.ceil((right + 1) * scale) - x, height: Math.ceil(bottom * scale) - y };
  mask.bits = new Uint8Array(mask.width * mask.height);
  for (const [column, y0, y1] of runs) {
    const first = Math.ceil(column * scale - 0.5), last = Math.ceil((column + 1) * scale - 0.5);
    const from = Math.max(y, Math.ceil(y0 * scale - 0.5)), to = Math.min(y + mask.height, Math.ceil(y1 * scale - 0.5));
    for (let cx = Math.max(x, first); cx < Math.min(x + mask.width, last); cx++) {
      for (let cy = from; cy < to; cy++) mask.bits[(cy - y) * mask.width + cx - x] = 1;
    }
  }
  return mask;
}

/**
 * The closed contours of a mask, as lists of [x, y] in the mask's pixels.
 *
 * Marching squares: in each square of four pixel centres, the contour connects the midpoints of two sides. The mask is on the
 * right of the contour, so outer contours run clockwise and those of holes counterclockwise.
 */
export function outlines({ x, y, width, height, bits }) {
  const wide = width + 2, padded = new Uint8Array(wide * (height + 2));
  for (let row = 0; row < height; row++) padded.set(bits.subarray(row * width, (row + 1) * width), (row + 1) * wide + 1);
  // Midpoints of the square's sides, in half pixels from the upper left corner of its lower right pixel (column, row).
  const LEFT = [-1, 0], TOP = [0, -1], RIGHT = [1, 0], BOTTOM = [0, 1];
  // Lines [from, to] by the sum of the pixels in the mask: upper left 1, upper right 2, lower left 4, lower right 8.
  const CASES = [
    [], [[TOP, LEFT]], [[RIGHT, TOP]], [[RIGHT, LEFT]], [[LEFT, BOTTOM]], [[TOP, BOTTOM]], [[RIGHT, TOP], [LEFT, BOTTOM]],
    [[RIGHT, BOTTOM]], [[BOTTOM, RIGHT]], [[TOP, LEFT], [BOTTOM, RIGHT]], [[BOTTOM, TOP]], [[BOTTOM, LEFT]],
    [[LEFT, RIGHT]], [[TOP, RIGHT]], [[LEFT, TOP]], [],
  ];
  const next = new Map(), stride = 2 * width + 5, key = (px, py) => (2 * py + 1) * stride + 2 * px + 1;
  for (let row = 0; row <= height; row++) {
    for (let column = 0; column <= width; column++) {
      const at = row * wide + column;
      const which = padded[at] + 2 * padded[at + 1] + 4 * padded[at + wide] + 8 * padded[at + wide + 1];
      for (const [from, to] of CASES[which]) {
        next.set(key(column + from[0] / 2, row + from[1] / 2), [column + to[0] / 2, row + to[1] / 2]);
      }
    }
  }
  const lines = [];
  for (const start of next.keys()) {
    const line = [];
    for (let at = start, point; (point = next.get(at)); at = key(...point)) {
      next.delete(at);
      const [a, b] = line.slice(-2);
      if (b && (b[0] - a[0]) * (point[1] - b[1]) === (b[1] - a[1]) * (point[0] - b[0])) line.pop();
      line.push(point);
    }
    if (line.length > 2) lines.push(line.map(([px, py]) => [x + px, y + py]));
  }
  return lines;
}

const SPECK = 0.02; // parts and holes of a mask that are smaller than this share of its area get no contour

/**
 * The mask of a COCO segmentation as two Path2D in pixels of the photo: `path`, to be filled with the even-odd rule, and
 * `outline`, to be stroked, which lacks very small parts and holes.
 */
export function maskPaths(segmentation, scale) {
  const lines = outlines(decodeMask(segmentation, scale)), areas = lines.map(signedArea);
  const least = SPECK * Math.abs(areas.reduce((sum, area) => sum + area, 0));
  return { path: closed(lines, scale), outline: closed(lines.filter((_, i) => Math.abs(areas[i]) >= least), scale) };
}

/** The area inside a contour of [x, y]. Outer contours and holes have different signs. */
function signedArea(line) {
  return line.reduce((sum, [x, y], i) => { const [u, v] = line[(i + 1) % line.length]; return sum + x * v - u * y; }, 0) / 2;
}

function closed(lines, scale) {
  const path = new Path2D();
  for (const line of lines) {
    line.forEach(([x, y], i) => path[i ? "lineTo" : "moveTo"](x / scale, y / scale));
    path.closePath();
  }
  return path;
}
