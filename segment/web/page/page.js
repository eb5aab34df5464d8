// The page: one photo, its detections as JSON, and everything shown from those without asking the server again.

const LOWEST_SCORE = 0.05;      // asked of the server once; the slider filters from there
const LONGEST = 1600;           // pixels of the canvases' longer side
const FILL = 0.42;              // a mask's opacity
const PALETTE = ("ff3d5a 1e88ff 14c96b ffb300 a855f7 00c8d7 ff7a1a e84ad0 8bd31a 5b6bff "
  + "ff8fa3 00a58e ffe14d c77dff 4dc3ff d94f1e 6fe3a8 b8860b ff5fa8 7f8fa9").split(" ").map((c) => "#" + c);

const $ = (id) => document.getElementById(id);
const state = {
  model: null,                  // what GET /model says
  source: null,                 // {blob, name} or {url, name}
  objects: [],                  // detections, best score first
  size: [0, 0],                 // the photo's width and height
  lit: null, pinned: null,      // the object seen alone: under the pointer or the focus, or chosen
  hiddenClasses: new Set(),
  request: null,
};

// What is served

async function loadModel() {
  try {
    const response = await fetch("model");
    if (!response.ok) throw await problemOf(response);
    state.model = await response.json();
  } catch (error) {
    return showProblem(error);
  }
  const { name, labels, options, largest_render_factor: largest } = state.model;
  $("model-chip").textContent = `${name} · ${labels.length} classes`;
  $("model-chip").hidden = false;
  const demo = name === "shapes";
  $("about-text").textContent = demo
    ? `This is the small demo model that comes with the service. It knows ${labels.length} shapes and nothing else: ${labels.join(", ")}.`
    : `It knows ${labels.length} classes${labels.length > 12 ? ", among them " + labels.slice(0, 8).join(", ") : ": " + labels.join(", ")}.`;
  $("about-labels").textContent = labels.join(", ");
  $("about-more").hidden = demo || labels.length <= 12;
  $("about").hidden = false;
  const factor = options.render_factor, range = factor.anyOf[0];
  $("factor").min = range.minimum;
  $("factor").max = Math.max(range.minimum, Math.min(range.maximum, largest, 64));
  $("factor").value = factor.default === "auto" ? $("factor").max : factor.default;
  $("score").value = Math.max(LOWEST_SCORE, options.min_score.default);
  for (const choice of ["fit", "detail"]) if (options[choice]) addChoice(choice, options[choice]);
  showCost();
  showScore();
}

function addChoice(name, schema) {
  const label = document.createElement("label"), text = document.createElement("span"), select = document.createElement("select");
  label.className = "field";
  label.htmlFor = select.id = name;
  text.textContent = name[0].toUpperCase() + name.slice(1);
  label.title = schema.description;
  for (const value of schemaValues(schema)) {
    select.add(new Option(value, value, false, String(schema.default) === String(value)));
  }
  select.addEventListener("change", () => { showCost(); rerun(); });
  label.append(text, select);
  $("choices").append(label);
}

function schemaValues(schema) {
  if (schema.anyOf) return schema.anyOf.flatMap(schemaValues);
  if (schema.enum) return schema.enum;
  if ("const" in schema) return [schema.const];
  return Array.from({ length: schema.maximum - schema.minimum + 1 }, (_, i) => schema.minimum + i);
}

function showCost() {
  const factor = Number($("factor").value), pixels = (16 * factor) ** 2;
  $("factor-out").textContent = factor;
  const parts = [`${(pixels / 1e6).toFixed(pixels < 1e5 ? 3 : 2)} megapixels for the network`];
  const { fixed_bytes: fixed, bytes_per_pixel: each, bytes_per_instance: more, milliseconds_per_megapixel: speed } = state.model ?? {};
  if (each) parts.push(`about ${Math.round((fixed + each * pixels + more * 100) / 2 ** 20)} MiB of memory`);
  const looks = views();
  if (looks > 1) parts.push(`seen ${looks} times`);
  if (speed && looks) parts.push(`about ${seconds(speed * looks * pixels / 1e6)}`);
  $("cost").textContent = parts.join(" · ");
}

/** How often the network runs on one photo: once for the whole, once per tile; null where the server decides. */
function views(detail = $("detail")?.value ?? "1") {
  return detail === "auto" ? null : detail === "1" ? 1 : detail ** 2 + 1;
}

const seconds = (ms) => ms < 950 ? `${Math.max(0.01, ms / 1000).toFixed(2)}\u00a0s` : `${(ms / 1000).toFixed(1)}\u00a0s`;

// Asking

function networkOptions() {
  const options = { render_factor: $("factor").value };
  for (const name of ["fit", "detail"]) if ($(name)) options[name] = $(name).value;
  return options;
}

/** The options that make the server draw what is seen. */
function viewOptions(format) {
  const chosen = new Set(classesFound().filter((name) => !state.hiddenClasses.has(name)));
  const options = { ...networkOptions(), min_score: $("score").value, format };
  if (state.hiddenClasses.size && chosen.size) options.classes = [...chosen].join(",");
  if (format === "png") {
    for (const layer of ["masks", "boxes", "labels"]) if (!$(layer).checked) options[layer] = "false";
    if ($("colours").value !== "instance") options.colours = $("colours").value;
  }
  return options;
}

/** POST the photo with these options; resolves to {body, headers}, rejects with {title, detail}. */
function ask(options, responseType, onSent) {
  return new Promise((resolve, reject) => {
    const { blob, url } = state.source;
    const request = state.request = new XMLHttpRequest();
    request.open("POST", "segment?" + new URLSearchParams(options));
    request.responseType = "blob";
    request.upload.onprogress = (event) => onSent?.(event.loaded / event.total);
    request.upload.onload = () => onSent?.(1);
    request.onload = async () => {
      if (request.status !== 200) return reject(await problemOf(new Response(request.response, { status: request.status })));
      const body = responseType === "json" ? JSON.parse(await request.response.text()) : request.response;
      resolve({ body, header: (name) => request.getResponseHeader(name) });
    };
    request.onerror = () => reject({ title: "No answer", detail: "The service cannot be reached. Check the connection and try again." });
    request.onabort = () => reject({ aborted: true });
    if (url) {
      request.setRequestHeader("Content-Type", "application/json");
      request.send(JSON.stringify({ url }));
    } else {
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.send(blob);
    }
  });
}

async function problemOf(response) {
  try {
    const { title, detail } = await response.json();
    return { title, detail };
  } catch {
    return { title: `Error ${response.status}`, detail: "The service gave no reason. Try again in a moment." };
  }
}

/** Segment `source` and show it. */
async function run(source) {
  const limit = state.model?.max_upload;
  if (source.blob && limit && source.blob.size > limit) {
    return showProblem({ title: "Too large", detail: `This photo has ${mib(source.blob.size)}; at most ${mib(limit)} are taken.` });
  }
  state.request?.abort();
  state.source = source;
  showProblem(null);
  setBusy(source.url ? "Fetching the photo and finding objects" : "Sending the photo");
  try {
    const asked = ask({ ...networkOptions(), min_score: LOWEST_SCORE, format: "json" }, "json", (part) => {
      if (source.url) return;
      if (part < 1) setBusy(`Sending the photo: ${Math.round(part * 100)} %`, part * 100);
      else setBusy(`Finding objects${estimate()}`);
    });
    const { body, header } = await asked;
    if (state.source !== source) return;
    state.size = [body.image.width, body.image.height];
    if (!source.shown) {
      const picture = await pictureOf(source);
      if (state.source !== source) return picture.close();
      showPhoto(picture);
      picture.close();
      source.shown = true;
    }
    takeObjects(body);
    learnSpeed(header);
    say(header);
  } catch (error) {
    if (state.source === source && !error.aborted) showProblem(error.title ? error : { title: "Failed", detail: "The answer could not be shown." });
  } finally {
    if (state.source === source) setBusy(null);
  }
}

const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

function estimate() {
  const speed = state.model?.milliseconds_per_megapixel;
  return speed && views() ? `, about ${seconds(speed * views() * (16 * $("factor").value) ** 2 / 1e6)}` : "";
}

/** The photo itself; what this browser cannot read, or may not fetch, the service returns undrawn. */
async function pictureOf(source) {
  if (source.blob) {
    try {
      return await createImageBitmap(source.blob);
    } catch { /* HEIC or TIFF */ }
  }
  const bare = { render_factor: 4, format: "jpeg", min_score: 1, masks: false, boxes: false, labels: false };
  const { body } = await ask(bare, "blob");
  return createImageBitmap(body);
}

function learnSpeed(header) {
  const [width, height] = (header("Segment-Network-Size") ?? "0x0").split("x").map(Number);
  const network = /network;dur=([\d.]+)/.exec(header("Server-Timing") ?? "");
  if (!network || !width || !state.model) return;
  const looks = views(header("Segment-Detail") ?? "1");
  state.model.milliseconds_per_megapixel = Number(network[1]) / (looks * width * height / 1e6);
  showCost();
}

function say(header) {
  const total = (header("Server-Timing") ?? "").split(",").reduce((sum, part) => sum + Number(/dur=([\d.]+)/.exec(part)?.[1] ?? 0), 0);
  const size = (header("Segment-Network-Size") ?? "").replace("x", " × ");
  const looks = views(header("Segment-Detail") ?? "1");
  state.summary = `The network saw ${size} pixels${looks > 1 ? `, ${looks} times` : ""}; ${seconds(total)} in all.`;
  update();
}

const rerun = debounce(() => state.source && run(state.source), 250);

function debounce(act, ms) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(act, ms); };
}

function setBusy(text, percent) {
  $("progress").hidden = text === null;
  document.body.classList.toggle("busy", text !== null);
  $("work").setAttribute("aria-busy", text !== null);
  if (text === null) return;
  $("progress-text").textContent = text;
  if (percent === undefined) $("bar").removeAttribute("value"); else $("bar").value = percent;
}

function showProblem(problem) {
  $("problem").hidden = !problem;
  $("problem-title").textContent = problem ? problem.title + ":" : "";
  $("problem-detail").textContent = problem?.detail ?? "";
}

// Masks

/** COCO's compressed run lengths, as numbers: 0s and 1s by turns, column after column (cocoapi, maskApi.c, rleFrString). */
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

/** The mask's own rectangle, sampled at `scale`: {x, y, width, height, bits}, in scaled pixels. */
function decodeMask({ size: [height], counts }, scale) {
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
  if (right < 0) return { x: 0, y: 0, width: 0, height: 0, bits: new Uint8Array(0) };
  const x = Math.floor(left * scale), y = Math.floor(top * scale);
  const mask = { x, y, width: Math.ceil((right + 1) * scale) - x, height: Math.ceil(bottom * scale) - y };
  mask.bits = new Uint8Array(mask.width * mask.height);
  for (const [column, y0, y1] of runs) {
    const first = Math.ceil(column * scale - 0.5), last = Math.ceil((column + 1) * scale - 0.5);
    for (let cx = first; cx < last; cx++) {
      for (let cy = Math.ceil(y0 * scale - 0.5); cy < Math.ceil(y1 * scale - 0.5); cy++) {
        if (cx >= x && cx < x + mask.width && cy >= y && cy < y + mask.height) mask.bits[(cy - y) * mask.width + cx - x] = 1;
      }
    }
  }
  return mask;
}

/** The mask as a picture in `colour`, its contour opaque. */
function paint(mask, colour) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, mask.width);
  canvas.height = Math.max(1, mask.height);
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const { width, height, bits } = mask;
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(x, y)) continue;
      const edge = !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1));
      image.data.set([red, green, blue, edge ? 255 : Math.round(255 * FILL)], 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function takeObjects({ annotations }) {
  const scale = maskScale();
  state.objects = annotations.map((a, index) => ({ ...a, index, mask: decodeMask(a.segmentation, scale) }));
  state.objects.sort((a, b) => b.score - a.score);
  state.lit = state.pinned = null;
  colourObjects();
  const names = new Set(state.objects.map((o) => o.category_name));
  state.hiddenClasses = new Set([...state.hiddenClasses].filter((name) => names.has(name)));
  for (const part of ["result", "view", "save"]) $(part).hidden = false;
  $("work").dataset.state = "shown";
  listClasses();
  update();
}

const maskScale = () => Math.min(1, LONGEST / Math.max(...state.size));

function colourObjects() {
  const byClass = $("colours").value === "class";
  state.objects.forEach((object, rank) => {
    object.colour = PALETTE[(byClass ? object.category_id : rank) % PALETTE.length];
    object.picture = paint(object.mask, object.colour);
  });
}

// What is shown

const classesFound = () => [...new Set(state.objects.map((o) => o.category_name))].sort();
const shown = () => state.objects.filter((o) => o.score >= Number($("score").value) && !state.hiddenClasses.has(o.category_name));
const alone = () => state.lit ?? state.pinned;

function showPhoto(picture) {
  const scale = LONGEST / Math.max(...state.size);
  for (const canvas of [$("photo"), $("layer")]) {
    canvas.width = Math.round(state.size[0] * scale);
    canvas.height = Math.round(state.size[1] * scale);
  }
  const context = $("photo").getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, $("photo").width, $("photo").height);
  $("viewer").style.setProperty("--aspect", state.size[0] / state.size[1]);
  $("viewer").hidden = false;
  $("drop").hidden = $("intro").hidden = true;
}

function update() {
  const objects = shown();
  if (!objects.includes(state.pinned)) state.pinned = null;
  if (!objects.includes(state.lit)) state.lit = null;
  list(objects);
  draw(objects);
  showScore();
  showCurl();
  $("count").textContent = state.objects.length ? `${objects.length} of ${state.objects.length}` : "";
  $("none").hidden = objects.length > 0;
  for (const button of document.querySelectorAll("[data-download]")) button.disabled = !classesFound().some((c) => !state.hiddenClasses.has(c)) && state.objects.length > 0;
  const found = `${objects.length} ${objects.length === 1 ? "object" : "objects"} shown`;
  $("photo").setAttribute("aria-label", `The photo, ${found}: ${summarise(objects) || "none"}`);
  if (state.objects.length || state.summary) $("status").textContent = `${found}. ${state.summary ?? ""}`;
}

function summarise(objects) {
  const counts = new Map();
  for (const o of objects) counts.set(o.category_name, (counts.get(o.category_name) ?? 0) + 1);
  return [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
}

function showScore() {
  $("score-out").textContent = Number($("score").value).toFixed(2);
}

function listClasses() {
  $("classes").replaceChildren(...classesFound().map((name) => {
    const label = document.createElement("label"), box = document.createElement("input");
    label.className = "chip";
    box.type = "checkbox";
    box.checked = !state.hiddenClasses.has(name);
    box.addEventListener("change", () => {
      state.hiddenClasses[box.checked ? "delete" : "add"](name);
      update();
    });
    label.append(box, name);
    return label;
  }));
}

function list(objects) {
  const focused = Number(document.activeElement?.dataset?.index ?? -1);
  $("objects").replaceChildren(...objects.map((object) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.dataset.index = object.index;
    button.setAttribute("aria-pressed", state.pinned === object);
    button.classList.toggle("lit", alone() === object);
    button.style.setProperty("--swatch", object.colour);
    button.style.setProperty("--score", `${object.score * 100}%`);
    const parts = { swatch: "", name: object.category_name, meter: "", score: `${Math.round(object.score * 100)} %` };
    for (const [kind, text] of Object.entries(parts)) {
      const span = document.createElement("span");
      span.className = kind;
      span.textContent = text;
      button.append(span);
    }
    button.addEventListener("mouseenter", () => light(object));
    button.addEventListener("mouseleave", () => light(null));
    button.addEventListener("focus", () => light(object));
    button.addEventListener("blur", () => light(null));
    button.addEventListener("click", () => pin(object));
    item.append(button);
    return item;
  }));
  if (focused >= 0) $("objects").querySelector(`[data-index="${focused}"]`)?.focus();
}

function light(object) {
  if (state.lit === object) return;
  state.lit = object;
  showAlone();
}

function pin(object) {
  state.pinned = state.pinned === object ? null : object;
  if (!state.pinned) state.lit = null;
  showAlone();
}

function showAlone() {
  for (const button of $("objects").querySelectorAll("button")) {
    const index = Number(button.dataset.index);
    button.classList.toggle("lit", alone()?.index === index);
    button.setAttribute("aria-pressed", state.pinned?.index === index);
  }
  draw(shown());
}

function draw(objects) {
  const canvas = $("layer"), context = canvas.getContext("2d"), one = alone();
  const scale = canvas.width / state.size[0], stretch = scale / maskScale();
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!state.size[0]) return;
  const place = ({ mask }) => [mask.x * stretch, mask.y * stretch, mask.width * stretch, mask.height * stretch];
  if (one) {
    context.fillStyle = "rgb(0 0 0 / 66%)";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "destination-out";
    for (let i = 0; i < 4; i++) context.drawImage(one.picture, ...place(one)); // its inside is only part opaque
    context.globalCompositeOperation = "source-over";
  }
  const drawn = one ? [one] : [...objects].reverse();
  if ($("masks").checked && !one) for (const object of drawn) context.drawImage(object.picture, ...place(object));
  if ($("boxes").checked) for (const object of drawn) drawBox(context, object, scale);
  if ($("labels").checked || one) {
    const taken = [];
    for (const object of one ? drawn : objects) drawLabel(context, object, scale, taken);
  }
}

function drawBox(context, { bbox, colour }, scale) {
  context.strokeStyle = colour;
  context.lineWidth = 2 * cssPixel();
  context.strokeRect(...bbox.map((value) => value * scale));
}

/** Write on a tag at the box: above it, in it or below it, wherever no tag of `taken` is yet. */
function drawLabel(context, { bbox, category_name: name, score, colour }, scale, taken) {
  const [x, y, , boxHeight] = bbox.map((value) => value * scale);
  const size = 13 * cssPixel(), text = `${name} ${Math.round(score * 100)} %`;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const width = context.measureText(text).width + size * 0.7, height = size * 1.4;
  const left = Math.max(0, Math.min(x, context.canvas.width - width));
  const tops = [y - height, y, y + boxHeight].map((top) => Math.max(0, Math.min(top, context.canvas.height - height)));
  const free = (top) => !taken.some((tag) => left < tag.left + tag.width && tag.left < left + width && Math.abs(top - tag.top) < height);
  const top = tops.find(free) ?? tops[0];
  taken.push({ left, top, width });
  context.fillStyle = colour;
  context.fillRect(left, top, width, height);
  context.fillStyle = luminance(colour) > 0.25 ? "#000" : "#fff";
  context.textBaseline = "middle";
  context.fillText(text, left + size * 0.35, top + height / 2);
}

/** How many of the canvas's pixels one pixel of the page is, so that lines and letters have the same size on any screen. */
const cssPixel = () => $("layer").width / ($("frame").clientWidth || LONGEST);

function luminance(colour) {
  const [red, green, blue] = [1, 3, 5].map((i) => (parseInt(colour.slice(i, i + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** The smallest shown object at a point of the frame. */
function objectAt(event) {
  const frame = $("frame").getBoundingClientRect(), scale = maskScale();
  const x = Math.floor((event.clientX - frame.left) / frame.width * state.size[0] * scale);
  const y = Math.floor((event.clientY - frame.top) / frame.height * state.size[1] * scale);
  const hit = ({ mask }) => x >= mask.x && y >= mask.y && x < mask.x + mask.width && y < mask.y + mask.height
    && mask.bits[(y - mask.y) * mask.width + x - mask.x];
  return shown().filter(hit).sort((a, b) => a.area - b.area)[0] ?? null;
}

// Taking it away

async function download(format) {
  const stem = state.source.name.replace(/\.[^.]*$/, "") || "photo";
  const names = { png: `${stem}-overlay.png`, json: `${stem}-detections.json`, cutouts: `${stem}-cutouts.zip` };
  showProblem(null);
  setBusy("Preparing the download");
  try {
    const { body } = await ask(viewOptions(format), "blob");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(body);
    link.download = names[format];
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    if (!error.aborted) showProblem(error);
  } finally {
    setBusy(null);
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl() {
  const options = new URLSearchParams(viewOptions("png")), address = new URL("segment", location.href);
  const { url, name } = state.source;
  if (url) return `curl --get ${quoted(address.href)} \\\n  ${[["url", url], ...options].map((pair) => "--data-urlencode " + quoted(pair.join("="))).join(" \\\n  ")} \\\n  -o overlay.png`;
  return `curl -F ${quoted("file=@" + name)} \\\n  ${quoted(`${address.href}?${options}`)} \\\n  -o overlay.png`;
}

function showCurl() {
  if (state.source) $("curl").textContent = curl();
}

async function copy() {
  try {
    await navigator.clipboard.writeText(curl());
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("curl"));
    $("copy").textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => { $("copy").textContent = "Copy as curl"; }, 2500);
}

// Where photos come from

function takeFile(blob) {
  if (blob) run({ blob, name: blob.name ?? "photo.jpg" });
}

function takeUrl(text) {
  const url = text.trim();
  if (!/^https?:\/\/./i.test(url)) return showProblem({ title: "No URL", detail: "Write an address that starts with http:// or https://." });
  run({ url, name: url.split(/[?#]/)[0].split("/").pop() || "photo" });
}

async function takeExample(path) {
  const response = await fetch(path);
  run({ blob: await response.blob(), name: path });
}

function reset() {
  state.request?.abort();
  Object.assign(state, { source: null, objects: [], lit: null, pinned: null, summary: null, hiddenClasses: new Set() });
  for (const part of ["viewer", "result", "view", "save"]) $(part).hidden = true;
  $("drop").hidden = $("intro").hidden = false;
  $("work").dataset.state = "empty";
  $("status").textContent = "";
  setBusy(null);
  showProblem(null);
  $("file").value = "";
  $("file").focus();
}

let stream = null;

async function openCamera() {
  showProblem(null);
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch {
    return showProblem({ title: "No camera", detail: "There is no camera here, or the browser may not use it. Choose a photo instead." });
  }
  $("shoot").disabled = true;
  $("camera-dialog").showModal();
  $("video").srcObject = stream;
  await $("video").play().catch(() => {}); // closed before it began
}

function shoot() {
  const video = $("video"), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => {
    $("camera-dialog").close();
    run({ blob, name: "camera.jpg" });
  }, "image/jpeg", 0.92);
}

// Wiring

$("file").addEventListener("change", (event) => takeFile(event.target.files[0]));
$("camera").addEventListener("click", openCamera);
$("video").addEventListener("loadeddata", () => { $("shoot").disabled = false; });
$("shoot").addEventListener("click", shoot);
$("camera-close").addEventListener("click", () => $("camera-dialog").close());
$("camera-dialog").addEventListener("close", () => { stream?.getTracks().forEach((track) => track.stop()); stream = null; });
$("url-form").addEventListener("submit", (event) => { event.preventDefault(); takeUrl($("url").value); });
for (const button of document.querySelectorAll(".example")) button.addEventListener("click", () => takeExample(button.dataset.src));
addEventListener("paste", (event) => {
  if (event.target.closest?.("input")) return;
  const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
  const text = event.clipboardData.getData("text/plain");
  if (file) takeFile(file);
  else if (/^https?:\/\//i.test(text.trim())) takeUrl(text);
});
for (const kind of ["dragenter", "dragover"]) addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const { files } = event.dataTransfer, text = event.dataTransfer.getData("text/uri-list") || event.dataTransfer.getData("text/plain");
  if (files.length) takeFile(files[0]);
  else if (text) takeUrl(text);
});

$("another").addEventListener("click", reset);
$("cancel").addEventListener("click", () => { state.request?.abort(); setBusy(null); });
$("factor").addEventListener("input", showCost);
$("factor").addEventListener("change", rerun);
$("score").addEventListener("input", update);
for (const layer of ["masks", "boxes", "labels"]) $(layer).addEventListener("change", update);
$("colours").addEventListener("change", () => { colourObjects(); update(); });
$("compare").addEventListener("input", () => {
  $("frame").style.setProperty("--compare", `${$("compare").value}%`);
  $("divider").hidden = $("compare").value === "0";
});
$("frame").addEventListener("pointermove", (event) => {
  const object = objectAt(event);
  $("frame").style.cursor = object ? "pointer" : "";
  light(object);
});
$("frame").addEventListener("pointerleave", () => light(null));
$("frame").addEventListener("click", (event) => {
  const object = objectAt(event);
  if (object) pin(object); else if (state.pinned) pin(state.pinned);
});
new ResizeObserver(() => { if (state.objects.length) draw(shown()); }).observe($("frame"));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && alone() && !$("camera-dialog").open) { state.pinned = state.lit = null; showAlone(); }
});
$("objects").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...$("objects").querySelectorAll("button")];
  buttons[buttons.indexOf(document.activeElement) + step]?.focus();
});
for (const button of document.querySelectorAll("[data-download]")) button.addEventListener("click", () => download(button.dataset.download));
$("copy").addEventListener("click", copy);

loadModel();
