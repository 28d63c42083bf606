// Tiles of all images of this page, newest first.

import { byId, make } from "./dom.js";
import { isOpen } from "./library.js";

const STATES = { queued: "waiting", running: "drawing", failed: "failed", cancelled: "cancelled" };

export class Gallery extends EventTarget {
  #tiles = byId("tiles");
  #urls;

  constructor(urls) {
    super();
    this.#urls = urls;
  }

  /** Build all tiles anew. `reference` is the image that a comparison starts from. */
  show(entries, selectedId, reference) {
    this.#tiles.replaceChildren(
      ...entries.map((entry) => {
        const tile = make("button", {
          type: "button",
          class: "tile",
          data: { id: entry.id },
          onclick: () => this.#choose(entry),
        });
        this.#fill(tile, entry);
        mark(tile, entry, selectedId, reference);
        return make("li", {}, tile);
      }),
    );
    if (!entries.length) {
      this.#tiles.append(
        make(
          "li",
          { class: "tiles-empty" },
          "Images that you generate are kept here, in this browser.",
        ),
      );
    }
    byId("gallery-clear").hidden = !entries.some((entry) => !isOpen(entry));
  }

  /** Bring the tile of one entry up to date. */
  update(entry) {
    const tile = this.#tiles.querySelector(`[data-id="${CSS.escape(entry.id)}"]`);
    if (tile) this.#fill(tile, entry);
  }

  #fill(tile, entry) {
    const src =
      entry.state === "done" ? this.#urls.of(entry) : isOpen(entry) ? entry.preview : null;
    const image = tile.querySelector("img");
    if (src && image) image.setAttribute("src", src);
    else if (src) tile.prepend(make("img", { src, alt: "", loading: "lazy" }));
    else image?.remove();
    tile.classList.toggle("preview", isOpen(entry));
    tile.querySelector(".state")?.remove();
    tile.querySelector(".line")?.remove();
    const state = STATES[entry.state];
    tile.setAttribute(
      "aria-label",
      [entry.task.positivePrompt, `seed ${entry.seed}`, state].filter(Boolean).join(", "),
    );
    if (state) tile.append(make("span", { class: "state" }, state));
    if (isOpen(entry)) {
      const share = entry.numSteps ? entry.step / entry.numSteps : (entry.progress ?? 0) / 100;
      const line = make("span", { class: "line" });
      line.style.setProperty("--done", `${Math.round(100 * share)}%`);
      tile.append(line);
    }
  }

  #choose(entry) {
    this.dispatchEvent(new CustomEvent("choose", { detail: entry }));
  }
}

function mark(tile, entry, selectedId, reference) {
  if (entry.id === selectedId) tile.setAttribute("aria-current", "true");
  const isComparable =
    reference &&
    entry !== reference &&
    entry.state === "done" &&
    entry.seed === reference.seed &&
    entry.width === reference.width &&
    entry.height === reference.height;
  tile.classList.toggle("comparable", Boolean(isComparable));
}
