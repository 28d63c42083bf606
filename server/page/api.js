// Calls of the server's API. The key stands in a header and in this tab's session storage only.

const KEY = "hyimage-key";

/** An answer with an error: `code` and `message` of the API, and the HTTP status (0: no answer). */
export class ApiError extends Error {
  constructor(code, message, status, details = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.parameter = details.parameter;
  }

  get needsKey() {
    return this.status === 401;
  }
}

export class Api {
  #key = readKey();
  /** Called when the server refuses the key; returns a promise of whether another was given. */
  requestKey = async () => false;

  get hasKey() {
    return Boolean(this.#key);
  }

  setKey(key) {
    this.#key = key;
    try {
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
    } catch {
      // it is kept until the page is left
    }
  }

  /** Return what the page needs of this server. */
  async config() {
    return this.#json(await this.#fetch("page/config.json"));
  }

  /** Run one task; return its items. */
  async run(task) {
    const body = JSON.stringify([task]);
    const headers = { "Content-Type": "application/json", "X-Diagnostics": "1" };
    const { data } = await this.#json(await this.#fetch("v1", { method: "POST", body, headers }));
    return data;
  }

  /** Cancel a task; one that has ended already is no error. */
  async cancel(taskUUID) {
    return this.#json(await this.#fetch(`v1/tasks/${taskUUID}`, { method: "DELETE" }));
  }

  /** Open the stream of a task's events, after the event with the id `after`. */
  async openEvents(taskUUID, after, signal) {
    const headers = { Accept: "text/event-stream" };
    if (after) headers["Last-Event-ID"] = after;
    const url = `v1/tasks/${taskUUID}/events?previews=1&diagnostics=1`;
    const response = await this.#fetch(url, { headers, signal, cache: "no-store" });
    if (!response.ok) await this.#json(response);
    return response.body;
  }

  async #fetch(url, options = {}) {
    const key = this.#key;
    const headers = { ...options.headers };
    if (key) headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(url, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("unreachable", "The server does not answer. Is it still running?", 0);
    }
    if (response.status !== 401) return response;
    // Another call may have got a key meanwhile.
    const isAnswered = (this.#key !== key && this.#key) || (await this.requestKey(Boolean(key)));
    return isAnswered ? this.#fetch(url, options) : response;
  }

  async #json(response) {
    let body;
    try {
      body = await response.json();
    } catch {
      throw new ApiError(
        "badAnswer",
        `The server answered ${response.status} without JSON.`,
        response.status,
      );
    }
    const fault = body.errors?.[0] ?? body.error;
    if (fault) throw new ApiError(fault.code, fault.message, response.status, fault);
    if (!response.ok)
      throw new ApiError(
        "refused",
        body.detail ?? `The server answered ${response.status}.`,
        response.status,
      );
    return body;
  }
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is off in this browser
  }
}
