// Requests to the service. All errors are thrown as a Problem, including unexpected responses.

const TRIES = 6; // maximum number of attempts if the service asks to repeat a request

/** `passing`: whether the same request may succeed later. `retryAfter`: the seconds after which the service asks for it again. */
export class Problem extends Error {
  constructor(title, detail, passing = false, retryAfter = null) {
    super(detail);
    this.title = title;
    this.passing = passing;
    this.retryAfter = retryAfter;
  }
}

export class Aborted extends Error {}

const UNREACHABLE = ["No response", "The service cannot be reached. Check the connection and try again.", true];
const UNREADABLE = ["Unexpected response", "This page cannot read the service's response. If it happens again, reload the page.", true];

/** The served model: GET /model. */
export const getModel = () => getJson("model");

/** The progress of the preparation of the model: GET /progress. */
export const getProgress = () => getJson("progress");

async function getJson(path) {
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new Problem(...UNREACHABLE);
  }
  if (!response.ok) throw await problemOf(await response.blob(), response.status, response.headers.get("Retry-After"));
  try {
    const answer = await response.json();
    return answer;
  } catch {
    throw new Problem(...UNREADABLE);
  }
}

/**
 * POST a photo with these options, again while the service is busy (Retry-After), with growing pauses.
 *
 * `source`: {blob} or {url}. `onSent` gets the part that has been sent, 0 to 1; `onWait` each second those until the next try. Resolves
 * to {blob, header}, where `header` gives a header's value by name; rejects with a Problem, or with Aborted after `signal` was
 * aborted.
 */
export async function segment(source, options, { signal, onSent, onWait } = {}) {
  for (let tried = 1; ; tried++) {
    try {
      return await post(source, options, signal, onSent);
    } catch (problem) {
      if (!problem.retryAfter || tried === TRIES) throw problem;
      const wait = Math.max(problem.retryAfter, 2 ** (tried - 1));
      for (let left = wait; left > 0; left--) {
        onWait?.(left);
        await pause(1000, signal);
      }
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(new Aborted());
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(new Aborted()); });
  });
}

function post(source, options, signal, onSent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not report an upload's progress
    request.open("POST", "segment?" + new URLSearchParams(options));
    request.responseType = "blob";
    request.upload.onprogress = (event) => onSent?.(event.loaded / event.total);
    request.upload.onload = () => onSent?.(1);
    request.onload = () => {
      const header = (name) => request.getResponseHeader(name) ?? "";
      if (request.status === 200) resolve({ blob: request.response, header });
      else problemOf(request.response, request.status, header("Retry-After")).then(reject);
    };
    request.onerror = () => reject(new Problem(...UNREACHABLE));
    request.onabort = () => reject(new Aborted());
    signal?.addEventListener("abort", () => request.abort());
    const [type, body] = source.blob
      ? ["application/octet-stream", source.blob]
      : ["application/json", JSON.stringify({ url: source.url })];
    request.setRequestHeader("Content-Type", type);
    request.send(body);
  });
}

/** Parse the JSON in `blob` with `reader`, which throws if the content is invalid. Rejects with a Problem. */
export async function readAnswer(blob, reader) {
  try {
    return reader(JSON.parse(await blob.text()));
  } catch {
    throw new Problem(...UNREADABLE);
  }
}

async function problemOf(blob, status, retryAfter) {
  const passing = status >= 500 || [408, 429].includes(status), after = Number(retryAfter) || null; // not a date
  try {
    const { title, detail } = JSON.parse(await blob.text());
    if (typeof title === "string" && typeof detail === "string") return new Problem(title, detail, passing, after);
  } catch { /* not a problem document */ }
  return new Problem(`Error ${status}`, `The service gave no reason.${passing ? " Try again in a moment." : ""}`, passing, after);
}
