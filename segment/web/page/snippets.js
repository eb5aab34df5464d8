// The request for the shown result, as a complete command or program.

/** The name of the file for each format. */
export const OUTPUTS = { png: "overlay.png", json: "detections.json", cutouts: "cutouts.zip" };

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(address, { name, url }, options, output) {
  const pairs = new URLSearchParams(options);
  const lines = url
    ? [`curl --fail-with-body --get ${quoted(address)}`, ...[["url", url], ...pairs].map((pair) => `--data-urlencode ${quoted(pair.join("="))}`)]
    : ["curl --fail-with-body", `-F ${quoted(`file=@"${name.replace(/["\\]/g, "\\$&")}"`)}`, quoted(`${address}?${pairs}`)];
  return [...lines, `-o ${output}`].join(" \\\n  ");
}

const javascript = (address, { name, url }, options, output) => url ? `// Node 20 or later. Saved as segment.mjs: node segment.mjs
import { writeFile } from "node:fs/promises";

const options = new URLSearchParams(${json({ url, ...options })});
const answer = await fetch(${json(address)} + "?" + options);
if (!answer.ok) throw new Error((await answer.json()).detail);
await writeFile(${json(output)}, Buffer.from(await answer.arrayBuffer()));
` : `// Node 20 or later. Saved as segment.mjs: node segment.mjs
// In a browser, the photo is the file of an <input type="file">: form.append("file", input.files[0])
import { openAsBlob } from "node:fs";
import { writeFile } from "node:fs/promises";

const form = new FormData();
form.append("file", await openAsBlob(${json(name)}), ${json(name)});
const options = new URLSearchParams(${json(options)});
const answer = await fetch(${json(address)} + "?" + options, { method: "POST", body: form });
if (!answer.ok) throw new Error((await answer.json()).detail);
await writeFile(${json(output)}, Buffer.from(await answer.arrayBuffer()));
`;

const python = (address, { name, url }, options, output) => url ? `import requests  # pip install requests

options = ${json({ url, ...options })}
answer = requests.get(${json(address)}, params=options, timeout=60)
answer.raise_for_status()
with open(${json(output)}, "wb") as file:
    file.write(answer.content)
` : `import requests  # pip install requests

options = ${json(options)}
with open(${json(name)}, "rb") as photo:
    answer = requests.post(${json(address)}, params=options, files={"file": photo}, timeout=60)
answer.raise_for_status()
with open(${json(output)}, "wb") as file:
    file.write(answer.content)
`;

/** Literals of texts and of objects of texts are the same in JavaScript and in Python. */
const json = (value) => JSON.stringify(value, null, 4);

const LANGUAGES = { curl, javascript, python };

/**
 * The request in "curl", "javascript" or "python". `address` is that of /segment, `photo` {name} or {name, url}, `options` the
 * options of the request as texts.
 */
export function snippet(language, address, photo, options) {
  return LANGUAGES[language](address, photo, options, OUTPUTS[options.format]);
}
