// The colour of each object, by the same rules as the service's overlay (segment/output/colours.py): it contrasts with the photo
// and with the colours of neighbours. Distances are measured in OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab/).

const ENOUGH = 0.25;   // colours at this distance are different enough; larger distances count no more
const CLEAR = 0.2;     // a line whose colour is nearer than this to the photo's colours gets a casing
const BESIDE = 0.25;   // objects are beside each other if their boxes, each enlarged by this share of its longer side, meet
const THUMBNAIL = 256; // the photo's colours are sampled with this many pixels on its longer side

/** A colour (red, green, blue in 0-255) in OKLab. */
function oklab(...channels) {
  const [r, g, b] = channels.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
  ];
}

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);

/** Black or white, whichever has more contrast on `colour` (WCAG 2, relative luminance). */
export function ink(colour) {
  const [red, green, blue] = channels(colour).map((c) => (c / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000" : "#fff";
}

/**
 * Give every object, best score first, its `colours`: {instance, class}, each {colour, clear}; `clear` says that the colour
 * stands out on the photo. The colour of an object does not depend on later ones.
 */
export function chooseColours(objects, picture, size, palette) {
  const labs = palette.map((hex) => oklab(...channels(hex))), used = palette.map(() => 0), grounds = sampler(picture, size);
  objects.forEach((object, at) => {
    const below = grounds(object), onPhoto = labs.map((lab) => Math.min(...below.map((ground) => distance(lab, ground))));
    const near = objects.slice(0, at).filter((other) => beside(object.bbox, other.bbox)).map((other) => labs[other.chosen]);
    const apart = labs.map((lab, i) => Math.min(ENOUGH, onPhoto[i], ...near.map((other) => distance(lab, other))));
    const better = (i, j) => apart[i] - apart[j] || used[j] - used[i];
    object.chosen = palette.reduce((best, _, i) => (better(i, best) > 0 ? i : best), 0);
    used[object.chosen] += 1;
    const paint = (i) => ({ colour: palette[i], clear: onPhoto[i] >= CLEAR });
    object.colours = { instance: paint(object.chosen), class: paint((object.category_id - 1) % palette.length) };
  });
}

function beside(a, b) {
  const margin = BESIDE * (Math.max(a[2], a[3]) + Math.max(b[2], b[3]));
  return [0, 1].every((i) => a[i] - margin <= b[i] + b[i + 2] && b[i] - margin <= a[i] + a[i + 2]);
}

/** Returns a function that gives the photo's mean colours, in OKLab, inside an object's mask and around it. */
function sampler(picture, [width, height]) {
  const scale = Math.min(1, THUMBNAIL / Math.max(width, height));
  const [columns, rows] = [width, height].map((length) => Math.max(1, Math.round(length * scale)));
  const [photo, mask] = [0, 1].map(() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    return canvas.getContext("2d", { willReadFrequently: true });
  });
  photo.imageSmoothingQuality = "high";
  photo.drawImage(picture, 0, 0, columns, rows);
  mask.scale(columns / width, rows / height);
  return ({ bbox: [x, y, w, h], path }) => {
    const left = Math.max(0, Math.floor((x - w / 8) * scale - 1)), top = Math.max(0, Math.floor((y - h / 8) * scale - 1));
    const right = Math.min(columns, Math.ceil((x + w * 9 / 8) * scale + 1));
    const bottom = Math.min(rows, Math.ceil((y + h * 9 / 8) * scale + 1));
    const area = [left, top, Math.max(1, right - left), Math.max(1, bottom - top)];
    mask.clearRect(0, 0, width, height);
    mask.fill(path, "evenodd");
    const pixels = photo.getImageData(...area).data, inside = mask.getImageData(...area).data;
    const sums = [[0, 0, 0, 0], [0, 0, 0, 0]];
    for (let at = 0; at < pixels.length; at += 4) {
      const sum = sums[inside[at + 3] >= 128 ? 0 : 1];
      oklab(pixels[at], pixels[at + 1], pixels[at + 2]).forEach((value, i) => { sum[i] += value; });
      sum[3] += 1;
    }
    return sums.filter((sum) => sum[3]).map((sum) => sum.slice(0, 3).map((value) => value / sum[3]));
  };
}
