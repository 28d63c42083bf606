// What stands under a finished image: actions, settings, steps, warnings.

import { listSettings, listStepKinds } from "./describe.js";
import { icon, make } from "./dom.js";

/** Return all that stands under a finished image; `emit` gets the name of the chosen action. */
export function buildAbout(entry, href, emit) {
  const action = (name, text, symbol) =>
    make(
      "button",
      {
        type: "button",
        class: "action",
        data: { action: name },
        onclick: () => emit(name),
      },
      icon(symbol),
      text,
    );
  const { task } = entry;
  const extension = { JPG: "jpg", PNG: "png", WEBP: "webp" }[task.outputFormat];
  const download = make(
    "a",
    {
      class: "action",
      href: href,
      download: `hyimage-${entry.seed}.${extension}`,
    },
    icon("download"),
    "Download",
  );
  return make(
    "div",
    { class: "about" },
    make(
      "div",
      { class: "actions", role: "group", "aria-label": "Actions on this image" },
      download,
      action("vary", "Another seed", "vary"),
      action("use", "Use settings", "settings"),
      action("compare", "Compare", "compare"),
      action("code", "Copy as code", "code"),
      action("delete", "Delete", "delete"),
    ),
    make("h2", { class: "caption" }, task.positivePrompt),
    buildWarnings(entry),
    buildFacts(entry),
    buildEvaluations(entry.diagnostics),
    buildText(entry.diagnostics?.text),
  );
}

/** Fill a strip with a mark for each step; a kind may be empty. */
export function fillStrip(strip, kinds) {
  strip.replaceChildren(...kinds.map((kind) => make("i", { data: { kind } })));
}

function buildFacts(entry) {
  const copy = make("button", { type: "button", title: "Copy the seed" }, String(entry.seed));
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(String(entry.seed));
    copy.textContent = "copied";
    setTimeout(() => {
      copy.textContent = String(entry.seed);
    }, 1200);
  });
  // Without TLS there is no clipboard.
  const pairs = [["Seed", navigator.clipboard ? copy : String(entry.seed)], ...listSettings(entry)];
  if (entry.seconds) pairs.push(["Took", `${entry.seconds.toFixed(1)} s`]);
  return make(
    "dl",
    { class: "facts" },
    pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

function buildEvaluations(diagnostics) {
  const kinds = listStepKinds(diagnostics);
  if (!kinds) return null;
  const strip = make("div", { class: "strip", role: "img", "aria-label": "Steps, in order" });
  fillStrip(strip, kinds);
  const { stepsComputed, stepsReused, modelEvaluations } = diagnostics;
  const text = `${stepsComputed} steps computed, ${stepsReused} reused; the model was evaluated ${modelEvaluations} times. Solver: ${diagnostics.scheduler.resolved}.`;
  return make("div", { class: "evaluations" }, strip, make("p", {}, text));
}

function buildWarnings(entry) {
  const warnings = [...(entry.diagnostics?.warnings ?? [])];
  if (entry.isKept === false)
    warnings.push(
      "This browser has no room for the image: it is gone when the page is left. Download it.",
    );
  return warnings.length
    ? make(
        "ul",
        { class: "warnings", "aria-label": "Warnings" },
        warnings.map((text) => make("li", {}, text)),
      )
    : null;
}

function buildText(text) {
  if (!text) return null;
  return make(
    "details",
    { class: "written" },
    make("summary", {}, "What the model wrote before it drew"),
    make("p", {}, text),
  );
}
