// Helpers for the document and for numbers in text.

export const $ = (id) => document.getElementById(id);

/** An element with these properties (`class`, `data` and ARIA attributes included) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name.startsWith("aria-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export const seconds = (ms) => ms < 950 ? `${Math.max(0.01, ms / 1000).toFixed(2)}\u00a0s` : `${(ms / 1000).toFixed(1)}\u00a0s`;
export const fileSize = (bytes) => bytes < 1e5 ? `${(bytes / 2 ** 10).toFixed(1)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
export const percent = (part) => `${Math.round(part * 100)}%`;

/** The name of a file without its extension. */
export const stemOf = (name) => name.replace(/\.[^.]*$/, "") || "photo";

/** A function that calls `act` once, `ms` milliseconds after its own last call. */
export function debounce(act, ms) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(act, ms); };
}

/** Offer `blob` as a file to save. */
export function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
