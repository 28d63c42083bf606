// All images of the page: those being generated and those that this browser keeps.
//
// An entry is one image of a task: {id, taskUUID, index, task, createdAt, state, ...}. `state` is
// queued, running, done, failed or cancelled. Entries of a task have the same taskUUID.

import { follow } from "./events.js";
import { newUUID } from "./uuid.js";

const RUNNING = "hyimage-running"; // tasks that this tab waits for: a reload goes on waiting

export class Library extends EventTarget {
  entries = []; // newest first
  #api;
  #store;
  #stops = new Map();

  constructor(api, store) {
    super();
    this.#api = api;
    this.#store = store;
  }

  /** Load the images that are kept, and go on waiting for tasks of this tab. */
  async load() {
    this.entries = await this.#store.list();
    for (const { taskUUID, task, createdAt, comparedTo } of readRunning()) {
      const referenceImages = await this.#store.inputsOf(taskUUID);
      const whole = referenceImages ? { ...task, referenceImages } : task;
      const waiting = this.#add(taskUUID, whole, createdAt, comparedTo);
      this.#follow(taskUUID, waiting);
    }
    this.#changed(null);
  }

  find(id) {
    return this.entries.find((entry) => entry.id === id);
  }

  /** Send a task; return its first entry at once. */
  start(task, comparedTo = null) {
    const taskUUID = newUUID();
    const entries = this.#add(taskUUID, task, Date.now(), comparedTo);
    this.#changed(entries[0]);
    this.#send(taskUUID, task, entries);
    return entries[0];
  }

  /** Cancel the task of an entry. */
  async cancel(entry) {
    const entries = this.#of(entry.taskUUID);
    this.#update(entries.filter(isOpen), { isCancelling: true });
    try {
      await this.#api.cancel(entry.taskUUID);
    } catch (error) {
      this.#update(entries.filter(isOpen), { isCancelling: false, notice: error.message });
    }
  }

  async delete(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    await this.#store.delete(entry.id).catch(() => {});
    this.#changed(null);
  }

  /** Delete all finished images; those being generated stay. */
  async clear() {
    this.entries = this.entries.filter(isOpen);
    await this.#store.clear().catch(() => {});
    this.#changed(null);
  }

  #of(taskUUID) {
    return this.entries.filter((entry) => entry.taskUUID === taskUUID);
  }

  #add(taskUUID, task, createdAt, comparedTo) {
    const entries = Array.from({ length: task.numberResults }, (_, index) => ({
      id: `${taskUUID}:${index}`,
      taskUUID,
      index,
      task,
      createdAt: createdAt + index / 100,
      comparedTo,
      state: "queued",
      seed: task.seed + index,
      width: task.width,
      height: task.height,
      steps: [],
    }));
    this.entries = [...entries, ...this.entries];
    return entries;
  }

  async #send(taskUUID, task, entries) {
    const delivery = { deliveryMethod: "async", outputType: ["base64Data"] };
    try {
      await this.#api.run({ taskType: "imageInference", taskUUID, ...task, ...delivery });
    } catch (error) {
      this.#update(entries, {
        state: "failed",
        error: { code: error.code, message: error.message },
      });
      return;
    }
    const { referenceImages, ...rest } = task;
    const isKept = referenceImages && (await this.#store.putInputs(taskUUID, referenceImages));
    const { createdAt, comparedTo } = entries[0];
    writeRunning([
      ...readRunning(),
      { taskUUID, task: isKept ? rest : task, createdAt, comparedTo },
    ]);
    this.#follow(taskUUID, entries);
  }

  async #follow(taskUUID, entries) {
    const stop = new AbortController();
    this.#stops.set(taskUUID, stop);
    try {
      for await (const { kind, data } of follow(this.#api, taskUUID, stop.signal)) {
        await this.#take(entries, kind, data);
      }
    } catch (error) {
      const { code = "lost", message } = error;
      this.#update(entries.filter(isOpen), { state: "failed", error: { code, message } });
    }
    this.#stops.delete(taskUUID);
    writeRunning(readRunning().filter((running) => running.taskUUID !== taskUUID));
    await this.#store.deleteInputs(taskUUID);
  }

  async #take(entries, kind, data) {
    const open = entries.filter(isOpen);
    const image = entries[data.image] ?? open[0];
    switch (kind) {
      case "queued":
        return this.#update(open, { position: data.position, remaining: data.estimatedSeconds });
      case "started":
        return this.#update(open.slice(0, 1), {
          state: "running",
          startedAt: Date.now(),
          remaining: data.estimatedSeconds,
          hasPreviews: data.hasPreviews,
        });
      case "text":
        return this.#update([image], { state: "running", text: data.text });
      case "step":
        image.steps[data.step - 1] = data.reused ? "reused" : "computed";
        return this.#update([image], {
          state: "running",
          step: data.step,
          numSteps: data.numSteps,
          remaining: data.estimatedSeconds,
          startedAt: image.startedAt ?? Date.now(),
        });
      case "progress":
        return this.#update(open, {
          state: data.progress ? "running" : "queued",
          progress: data.progress,
          startedAt: open[0]?.startedAt ?? Date.now(),
        });
      case "preview":
        return this.#update([image], { preview: data.dataURI });
      case "image":
        return this.#finish(
          open.find((entry) => entry.seed === data.seed),
          data,
        );
      case "cancelled":
        return this.#update(open, { state: "cancelled" });
      case "failed":
        return this.#update(open, {
          state: data.error.code === "taskCancelled" ? "cancelled" : "failed",
          error: data.error,
        });
      default:
        return undefined;
    }
  }

  async #finish(entry, item) {
    if (!entry) return; // finished already: the server started again, and sends all events of the task
    const blob = toBlob(item.imageBase64Data, entry.task.outputFormat);
    const size = await measure(blob);
    const seconds = entry.startedAt ? (Date.now() - entry.startedAt) / 1000 : null;
    const kept = {
      id: entry.id,
      taskUUID: entry.taskUUID,
      index: entry.index,
      task: entry.task,
      createdAt: entry.createdAt,
      comparedTo: entry.comparedTo,
      state: "done",
      seed: item.seed,
      ...size,
      blob,
      diagnostics: item.diagnostics ?? null,
      seconds,
    };
    const isKept = await this.#store.put(kept);
    this.#update([entry], { ...kept, isKept });
  }

  #update(entries, values) {
    for (const entry of entries) {
      Object.assign(entry, values);
      this.#changed(entry);
    }
  }

  /** Report that an entry is another now, or with null that the list is. */
  #changed(entry) {
    this.dispatchEvent(new CustomEvent("change", { detail: entry }));
  }
}

/** Return whether an entry's image is still to come. */
export function isOpen(entry) {
  return entry.state === "queued" || entry.state === "running";
}

function toBlob(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const type = { JPG: "image/jpeg", PNG: "image/png", WEBP: "image/webp" }[format];
  return new Blob([bytes], { type });
}

async function measure(blob) {
  const bitmap = await createImageBitmap(blob);
  const size = { width: bitmap.width, height: bitmap.height };
  bitmap.close();
  return size;
}

function readRunning() {
  try {
    return JSON.parse(sessionStorage.getItem(RUNNING) ?? "[]");
  } catch {
    return [];
  }
}

function writeRunning(running) {
  try {
    sessionStorage.setItem(RUNNING, JSON.stringify(running));
  } catch {
    // then a reload does not go on waiting
  }
}
