// The large view: nothing yet, an image in the making, a finished one, or a fault.

import { icon, make } from "./dom.js";
import { buildAbout, fillStrip } from "./about.js";
import { describeSeconds } from "./describe.js";

const BLUR_PX = 12; // of the first preview; it falls to a third with the steps

export class Stage extends EventTarget {
  #root;
  #urls;
  #shown = null; // {id, phase} of what is built now
  #frame = null;

  constructor(root, urls) {
    super();
    this.#root = root;
    this.#urls = urls;
  }

  /** Show an entry, or what the page is for if there is none. */
  show(entry) {
    if (!entry) return this.#build("empty", null, () => this.#buildEmpty());
    if (entry.state === "done") return this.#showDone(entry);
    if (entry.state === "failed" || entry.state === "cancelled") {
      return this.#build(entry.state, entry, () => this.#buildEnd(entry));
    }
    this.#build("busy", entry, () => this.#buildBusy(entry));
    this.#updateBusy(entry);
  }

  /** Forget what is shown, so that the next call builds it anew. */
  forget() {
    this.#shown = null;
  }

  #build(phase, entry, build) {
    const id = entry?.id ?? "";
    if (this.#shown?.id === id && this.#shown.phase === phase) return;
    this.#shown = { id, phase };
    build();
  }

  #emit(name, entry) {
    this.dispatchEvent(new CustomEvent(name, { detail: entry }));
  }

  #newFrame(kind, entry) {
    this.#frame = make("div", { class: `frame ${kind}` });
    setShape(this.#frame, entry);
    return this.#frame;
  }

  #buildEmpty() {
    const start = make(
      "button",
      { type: "button", class: "primary", onclick: () => this.#emit("example") },
      "Draw an example",
    );
    const frame = this.#newFrame("empty");
    frame.append(
      make(
        "div",
        { class: "blank" },
        make("h2", {}, "What should it draw?"),
        make(
          "p",
          {},
          "Describe an image, or take one of the examples. It appears here while it is drawn, and stays in this browser.",
        ),
        start,
      ),
    );
    this.#root.replaceChildren(frame);
  }

  #buildBusy(entry) {
    const frame = this.#newFrame("busy", entry);
    const cancel = make(
      "button",
      { type: "button", class: "cancel", onclick: () => this.#emit("cancel", entry) },
      icon("stop"),
      "Cancel",
    );
    frame.append(
      make(
        "div",
        { class: "hud" },
        make("div", { class: "hud-row" }, make("p", { class: "hud-text" }), cancel),
        make("div", { class: "strip", "aria-hidden": "true" }),
      ),
    );
    const about = make(
      "div",
      { class: "about" },
      make("p", { class: "caption" }, entry.task.positivePrompt),
      make("p", { class: "note written-note" }),
    );
    this.#root.replaceChildren(frame, about);
  }

  #updateBusy(entry) {
    const frame = this.#frame;
    const numSteps = entry.numSteps ?? entry.task.steps;
    const [what, left] = describeProgress(entry);
    frame.querySelector(".hud-text").replaceChildren(what, make("small", {}, left));
    const cancel = frame.querySelector(".cancel");
    cancel.disabled = Boolean(entry.isCancelling);
    cancel.lastChild.textContent = entry.isCancelling ? "Cancelling" : "Cancel";
    const strip = frame.querySelector(".strip");
    if (strip.childElementCount !== numSteps)
      fillStrip(
        strip,
        Array.from({ length: numSteps }, () => ""),
      );
    entry.steps.forEach((kind, index) => {
      if (strip.children[index]) strip.children[index].dataset.kind = kind;
    });
    frame.style.setProperty(
      "--blur",
      `${(BLUR_PX * (1 - (0.67 * (entry.step ?? 0)) / numSteps)).toFixed(1)}px`,
    );
    if (entry.preview && frame.dataset.preview !== entry.preview.slice(-64)) {
      frame.dataset.preview = entry.preview.slice(-64);
      addLayer(frame, entry.preview, "preview", entry);
    }
    const note = entry.notice ?? (entry.text ? `Rewritten: ${entry.text}` : "");
    this.#root.querySelector(".written-note").textContent = note;
  }

  async #showDone(entry) {
    const isNew = this.#shown?.id === entry.id && this.#shown.phase === "busy";
    if (this.#shown?.id === entry.id && this.#shown.phase === "done") return;
    this.#shown = { id: entry.id, phase: "done" };
    if (!isNew) this.#newFrame("", entry);
    const frame = this.#frame;
    setShape(frame, entry);
    this.#root.replaceChildren(
      frame,
      buildAbout(entry, this.#urls.of(entry), (name) => this.#emit(name, entry)),
    );
    await addLayer(frame, this.#urls.of(entry), "final", entry, entry.task.positivePrompt);
    frame.classList.remove("busy");
    frame.querySelector(".hud")?.remove();
  }

  #buildEnd(entry) {
    const isFault = entry.state === "failed";
    const again = make(
      "button",
      { type: "button", class: "quiet", onclick: () => this.#emit("again", entry) },
      "Try again",
    );
    const frame = this.#newFrame("failed");
    frame.append(
      make(
        "div",
        { class: "blank", role: isFault ? "alert" : null },
        isFault ? icon("fault") : null,
        make("h2", {}, isFault ? "That did not work" : "Cancelled"),
        make("p", {}, isFault ? entry.error.message : entry.task.positivePrompt),
        isFault ? make("code", {}, entry.error.code) : null,
        again,
      ),
    );
    this.#root.replaceChildren(frame);
  }
}

function describeProgress(entry) {
  const left = describeSeconds(entry.remaining);
  if (entry.state === "queued") {
    const place =
      entry.position > 1 ? `Position ${entry.position} in the queue` : "Next in the queue";
    return [
      entry.index > 0 && !entry.position ? "Waiting for the images before it" : place,
      left ? `about ${left}` : "",
    ];
  }
  if (entry.step) return [`Step ${entry.step} of ${entry.numSteps}`, left ? `${left} left` : ""];
  if (entry.text) return ["Rewriting the prompt", ""];
  if (entry.progress !== undefined) return [`${entry.progress} %`, ""];
  return ["Reading the prompt", left ? `${left} left` : ""];
}

function setShape(frame, entry) {
  if (!entry?.width) return;
  frame.style.setProperty("--w", entry.width);
  frame.style.setProperty("--h", entry.height);
}

/** Lay an image over the last one, and take that away once this one covers it. */
async function addLayer(frame, src, kind, entry, alt = "") {
  const layer = make("img", { class: `layer ${kind}`, src, alt });
  try {
    await layer.decode();
  } catch {
    return;
  }
  if (!entry.width && layer.naturalWidth)
    setShape(frame, { width: layer.naturalWidth, height: layer.naturalHeight });
  const older = [...frame.querySelectorAll(".layer")];
  if (kind === "preview" && older.some((other) => other.classList.contains("final"))) return;
  const last = older.at(-1);
  if (last) last.after(layer);
  else frame.prepend(layer);
  await Promise.allSettled(layer.getAnimations().map((animation) => animation.finished));
  for (const other of older) other.remove();
}
