// The page: connects the form, the images and the server.

import { Api } from "./api.js";
import { showComparison } from "./compare.js";
import { Composer } from "./composer.js";
import { setUpCode, setUpKey } from "./dialogs.js";
import { announce, byId } from "./dom.js";
import { Gallery } from "./gallery.js";
import { isOpen, Library } from "./library.js";
import { taskOf } from "./snippets.js";
import { Stage } from "./stage.js";
import { Store } from "./store.js";

const RETRY_MS = 3000;

/** Object URLs of images, one for each entry for as long as the page lives. */
class ImageUrls {
  #urls = new Map();

  of(entry) {
    if (!this.#urls.has(entry.id)) this.#urls.set(entry.id, URL.createObjectURL(entry.blob));
    return this.#urls.get(entry.id);
  }

  drop(entry) {
    URL.revokeObjectURL(this.#urls.get(entry.id));
    this.#urls.delete(entry.id);
  }
}

class Page {
  #urls = new ImageUrls();
  #selectedId = null;
  #reference = null; // the first image of a comparison

  constructor(api, config, store) {
    this.composer = new Composer(config);
    this.library = new Library(api, store);
    this.stage = new Stage(byId("stage"), this.#urls);
    this.gallery = new Gallery(this.#urls);
    this.showCode = setUpCode(config);
    byId("gallery-note").textContent = store.keeps
      ? ""
      : "This browser stores nothing: they are gone when the page is left.";
    this.#connect();
  }

  async start() {
    await this.library.load();
    const first = this.library.entries.find(isOpen) ?? this.library.entries[0];
    this.#select(first ?? null);
  }

  #connect() {
    this.composer.addEventListener("task", ({ detail }) =>
      this.#generate(detail.task, detail.comparedTo),
    );
    this.composer.addEventListener("compare-end", () => this.#endComparison());
    this.library.addEventListener("change", ({ detail }) => this.#refresh(detail));
    this.gallery.addEventListener("choose", ({ detail }) => this.#choose(detail));
    const actions = {
      example: () => this.composer.useExample(),
      cancel: (entry) => this.library.cancel(entry),
      again: (entry) => this.#generate(entry.task, entry.comparedTo),
      vary: (entry) =>
        this.#generate({
          ...entry.task,
          numberResults: 1,
          seed: Math.floor(Math.random() * 2 ** 31),
        }),
      use: (entry) => this.#use(entry),
      compare: (entry) => this.#startComparison(entry),
      code: (entry) => this.showCode(entry),
      delete: (entry) => this.#delete(entry),
    };
    for (const [name, act] of Object.entries(actions)) {
      this.stage.addEventListener(name, ({ detail }) => act(detail));
    }
    byId("gallery-clear").addEventListener("click", () => {
      if (confirm("Delete all images of this browser? They cannot be brought back.")) this.#clear();
    });
  }

  #generate(task, comparedTo = null) {
    const entry = this.library.start(task, comparedTo);
    this.#select(entry);
    if (matchMedia("(max-width: 900px)").matches)
      byId("stage").scrollIntoView({ behavior: "smooth", block: "start" });
  }

  #choose(entry) {
    const reference = this.#reference;
    if (reference && entry !== reference && isComparable(reference, entry)) {
      this.#compare(reference, entry);
      return;
    }
    this.#select(entry);
    byId("stage").scrollIntoView({ behavior: "smooth", block: "nearest" });
  }

  #select(entry) {
    this.#selectedId = entry?.id ?? null;
    this.stage.show(entry);
    showTitle(entry);
    this.#showTiles();
  }

  #showTiles() {
    this.gallery.show(this.library.entries, this.#selectedId, this.#reference);
  }

  #refresh(entry) {
    if (!entry) {
      this.#showTiles();
      return;
    }
    this.gallery.update(entry);
    if (!isOpen(entry)) this.#showTiles();
    const first = this.library.find(entry.comparedTo);
    if (entry.id === this.#selectedId && entry.state === "done" && first?.state === "done") {
      this.#compare(first, entry);
      return;
    }
    this.#moveOn(entry);
    if (entry.id !== this.#selectedId) return;
    this.stage.show(entry);
    showTitle(entry);
    announceState(entry);
  }

  /** Of several images of a task, keep the one in sight that is being generated. */
  #moveOn(entry) {
    const selected = this.library.find(this.#selectedId);
    const isNext = entry.state === "running" && selected?.taskUUID === entry.taskUUID;
    if (
      isNext &&
      selected !== entry &&
      selected.state === "done" &&
      selected.index === entry.index - 1
    )
      this.#select(entry);
  }

  #use(entry) {
    this.composer.set(taskOf(entry));
    byId("prompt").focus();
  }

  #startComparison(entry) {
    this.#reference = entry;
    this.composer.startComparing(entry);
    this.#showTiles();
    announce("Change settings, then generate and compare. Prompt, size and seed stay.");
  }

  #compare(first, second) {
    this.#selectedId = second.id;
    this.#reference = null;
    if (this.composer.isComparing) this.composer.stopComparing();
    this.stage.forget();
    showComparison(byId("stage"), first, second, this.#urls, () => this.#select(second));
    this.#showTiles();
    announce("Comparison of two images. The arrow keys move the edge.");
  }

  #endComparison() {
    this.#reference = null;
    this.#showTiles();
  }

  async #delete(entry) {
    const at = this.library.entries.indexOf(entry);
    await this.library.delete(entry);
    this.#urls.drop(entry);
    this.#select(this.library.entries[Math.min(at, this.library.entries.length - 1)] ?? null);
    byId("stage").focus();
  }

  async #clear() {
    this.library.entries.filter((entry) => entry.blob).forEach((entry) => this.#urls.drop(entry));
    await this.library.clear();
    this.#select(this.library.entries[0] ?? null);
  }
}

function isComparable(first, second) {
  return (
    second.state === "done" &&
    first.seed === second.seed &&
    first.width === second.width &&
    first.height === second.height
  );
}

const announced = new Map();

/** Show the share that is done in the tab's title, for those who look at another tab meanwhile. */
function showTitle(entry) {
  const isDrawn = entry && isOpen(entry) && entry.numSteps;
  document.title = isDrawn
    ? `${Math.round((100 * entry.step) / entry.numSteps)} % · hyimage`
    : "hyimage";
}

/** Announce the quarters of a generation and its end, not every step. */
function announceState(entry) {
  const quarter = entry.numSteps ? Math.floor((4 * entry.step) / entry.numSteps) : 0;
  const texts = {
    queued: entry.position ? `Queued, position ${entry.position}` : "Queued",
    running: quarter ? `${25 * quarter} percent` : "Drawing",
    done: "The image is finished",
    failed: "",
    cancelled: "Cancelled",
  };
  const text = texts[entry.state];
  if (announced.get(entry.id) === text) return;
  announced.set(entry.id, text);
  announce(text);
}

function showServed(config) {
  byId("served").dataset.state = config.ready ? "ready" : "waiting";
  byId("served-text").textContent = config.ready ? config.worker : `starting: ${config.worker}`;
  byId("key-button").hidden = !config.needsKey;
}

async function connect(api) {
  for (;;) {
    try {
      return await api.config();
    } catch (error) {
      byId("served").dataset.state = "lost";
      byId("served-text").textContent = error.message;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

const api = new Api();
setUpKey(api);
const config = await connect(api);
showServed(config);
const page = new Page(api, config, await Store.open());
await page.start();
document.documentElement.dataset.loaded = "true";

// The server may start, stop and start again while the page is open.
for (let { ready } = config; ;) {
  await new Promise((resolve) => setTimeout(resolve, ready ? 10 * RETRY_MS : RETRY_MS));
  if (document.hidden) continue;
  const latest = await connect(api);
  showServed(latest);
  ready = latest.ready;
}
