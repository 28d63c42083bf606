// The form: settings in, a task out. A task is what the API takes, without taskUUID and delivery.

import { byId, make } from "./dom.js";
import { combobox, numberField, segments } from "./fields.js";
import { CacheFields } from "./caches.js";
import { InputImages } from "./inputs.js";
import { ShapeField } from "./shapes.js";
import { taskOf } from "./snippets.js";
import { showGroups, showNote } from "./words.js";

const MAX_RANDOM_SEED = 2 ** 31;
const MAX_SEED = Number.MAX_SAFE_INTEGER; // beyond it JavaScript's numbers skip some
const NUM_EXAMPLES = 2; // shown at first
const MOST_STEPS = 60; // where the sliders end
const MOST_GUIDANCE = 15;
const SOLVERS = {
  euler: "Euler",
  euler_a: "Euler ancestral",
  dpmpp_m: "DPM++ multistep",
  dpmpp_s: "DPM++ singlestep",
  deis: "DEIS",
  heun: "Heun",
  ipndm: "iPNDM",
  dpm2_a: "DPM2 ancestral",
  midpoint: "midpoint",
  lcm: "LCM",
  lms: "LMS",
  unipc: "UniPC",
};

export class Composer extends EventTarget {
  #config;
  #form = byId("composer");
  #prompt = byId("prompt");
  #negative = byId("negative");
  #seed = byId("seed");
  #count = byId("count");
  #fixed = null; // of a comparison: the parameters that stay

  constructor(config) {
    super();
    this.#config = config;
    this.#buildPrompt();
    this.shape = new ShapeField(config);
    this.inputs = new InputImages(config);
    this.#buildNumbers();
    this.#buildRest();
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#submit();
    });
    byId("compare-stop").addEventListener("click", () => this.stopComparing());
    if (/Mac|iPhone|iPad/.test(navigator.platform)) byId("generate-keys").textContent = "⌘ ↵";
    byId("generate").disabled = false;
  }

  /** Show the settings of a task. */
  set(task) {
    this.#prompt.value = task.positivePrompt ?? "";
    this.#negative.value = task.negativePrompt ?? "";
    this.inputs.set(task);
    this.shape.set(task.width ? `${task.width}x${task.height}` : "auto");
    this.steps.set(task.steps ?? this.#config.steps);
    this.guidance.set(task.CFGScale ?? this.#config.guidance);
    this.#seed.value = task.seed ?? "";
    this.#setCount(task.numberResults ?? 1);
    this.scheduler.set(task.scheduler ?? "Default");
    this.caches.set(task);
    this.rewrite.set(task.hunyuan?.rewrite ?? "off");
    this.format.set(task.outputFormat ?? "JPG");
    this.#note();
  }

  /** Generate the first example. */
  useExample() {
    this.#prompt.value = this.#config.examples[0];
    this.#note();
    this.#submit();
  }

  /** Keep prompt, size and seed of an image, so that the next one differs in settings alone. */
  startComparing(entry) {
    this.set(taskOf(entry));
    this.#fixed = entry;
    this.#showComparing();
    byId("steps").focus({ preventScroll: false });
  }

  stopComparing() {
    this.#fixed = null;
    this.#showComparing();
    this.dispatchEvent(new Event("compare-end"));
  }

  get isComparing() {
    return this.#fixed !== null;
  }

  /** Return the task as the form states it, or null with the fault shown at its field. */
  read() {
    const prompt = this.#prompt.value.trim();
    const isBlank = prompt.length < 2;
    this.#prompt.setAttribute("aria-invalid", String(isBlank));
    if (isBlank) {
      byId("prompt-note").replaceChildren(
        make("span", { class: "fault" }, "Describe the image in at least 2 characters."),
      );
      this.#prompt.focus();
      return null;
    }
    const seed = this.#readSeed();
    if (seed === null) return null;
    const negative = this.#negative.value.trim();
    const [width, height] = this.shape.size;
    const hunyuan = {
      ...(this.rewrite.value !== "off" && { rewrite: this.rewrite.value }),
      ...this.inputs.options,
    };
    return {
      model: this.#config.model,
      positivePrompt: prompt,
      ...(negative.length > 1 && this.#config.takesNegativePrompt && { negativePrompt: negative }),
      ...(width && { width, height }),
      steps: this.steps.value,
      CFGScale: this.guidance.value,
      scheduler: this.scheduler.value,
      seed,
      numberResults: this.#readCount(),
      outputFormat: this.format.value,
      ...this.caches.read(),
      ...this.inputs.task,
      ...(Object.keys(hunyuan).length && { hunyuan }),
    };
  }

  #submit() {
    const task = this.read();
    if (!task) return;
    const detail = { task, comparedTo: this.#fixed?.id ?? null };
    this.dispatchEvent(new CustomEvent("task", { detail }));
  }

  #buildPrompt() {
    const { examples, vocabulary, about, maxPrompt } = this.#config;
    this.#prompt.maxLength = maxPrompt;
    this.#prompt.addEventListener("input", () => this.#note());
    const use = (text) => {
      this.#prompt.value = text;
      this.#note();
      this.#prompt.focus();
    };
    const chips = examples.map((text, index) =>
      make(
        "button",
        {
          type: "button",
          class: "chip",
          title: text,
          hidden: index >= NUM_EXAMPLES,
          onclick: () => use(text),
        },
        text,
      ),
    );
    const others = make(
      "button",
      { type: "button", class: "chip others", hidden: chips.length <= NUM_EXAMPLES },
      "More examples",
    );
    others.addEventListener("click", () => {
      for (const chip of chips) chip.hidden = false;
      others.hidden = true;
      chips[NUM_EXAMPLES].focus();
    });
    byId("examples").append(...chips, others);
    byId("negative-field").hidden = !this.#config.takesNegativePrompt;
    if (!vocabulary) return;
    byId("words").hidden = false;
    byId("about").textContent = about;
    showGroups(byId("word-groups"), vocabulary, (word) =>
      use(`${this.#prompt.value.trimEnd()} ${word}`.trim()),
    );
  }

  #note() {
    this.#prompt.removeAttribute("aria-invalid");
    showNote(byId("prompt-note"), this.#config.vocabulary, this.#prompt.value);
  }

  #buildNumbers() {
    const { bounds, steps, guidance, hasFixedSteps } = this.#config;
    const field = (name, id, label, most, step, value) => {
      const { min, max } = bounds[name];
      return numberField(byId(`${id}-field`), { id, label, min, max, most, step, value });
    };
    this.steps = field("steps", "steps", "Steps", MOST_STEPS, 1, steps);
    this.guidance = field("CFGScale", "guidance", "Guidance", MOST_GUIDANCE, 0.1, guidance);
    byId("steps-field").hidden = hasFixedSteps;
    const { min, max } = bounds.numberResults;
    this.#setCount(min);
    byId("count-less").addEventListener("click", () =>
      this.#setCount(Math.max(min, this.#readCount() - 1)),
    );
    byId("count-more").addEventListener("click", () =>
      this.#setCount(Math.min(max, this.#readCount() + 1)),
    );
    this.#count.addEventListener("change", () => this.#setCount(this.#readCount()));
    byId("seed-clear").addEventListener("click", () => {
      this.#seed.value = "";
      this.#readSeed();
    });
    this.#seed.addEventListener("input", () => this.#readSeed());
  }

  #buildRest() {
    const { schedulers, rewrites } = this.#config;
    const options = schedulers.map(({ name, solver, sigmas, status }) => ({
      name,
      note: `${SOLVERS[solver] ?? solver}${sigmas === "shifted" ? "" : `, ${sigmas}`}`,
      hint:
        status === "substituted"
          ? "Does not exist for flow models; the nearest solver stands in."
          : "",
    }));
    const find = (name) => options.find((option) => option.name === name);
    this.scheduler = combobox(
      byId("scheduler"),
      byId("scheduler-list"),
      options,
      "Default",
      (name) => {
        byId("scheduler-note").textContent = [`Solver: ${find(name).note}.`, find(name).hint].join(
          " ",
        );
      },
    );
    this.caches = new CacheFields(this.#config);
    this.rewrite = segments(
      byId("rewrite"),
      "rewrite",
      { off: "No", recaption: "Rewrite", think: "Think first" },
      "off",
    );
    byId("rewrite-field").hidden = !rewrites;
    this.format = segments(
      byId("format"),
      "format",
      { JPG: "JPG", PNG: "PNG", WEBP: "WebP" },
      "JPG",
    );
  }

  #readSeed() {
    const text = this.#seed.value.trim();
    const seed = text ? Number(text) : Math.floor(Math.random() * MAX_RANDOM_SEED);
    const isRight = Number.isInteger(seed) && seed >= 0 && seed <= MAX_SEED;
    this.#seed.setAttribute("aria-invalid", String(!isRight));
    byId("seed-fault").textContent = isRight
      ? ""
      : `A whole number of 0 to ${MAX_SEED}, or nothing.`;
    return isRight ? seed : null;
  }

  #readCount() {
    const { min, max } = this.#config.bounds.numberResults;
    return Math.min(max, Math.max(min, Math.round(Number(this.#count.value)) || min));
  }

  #setCount(count) {
    this.#count.value = String(count);
  }

  #showComparing() {
    const isOn = this.isComparing;
    byId("compare-note").hidden = !isOn;
    byId("generate-text").textContent = isOn ? "Generate and compare" : "Generate";
    this.#form.classList.toggle("comparing", isOn);
    const fixed = [
      this.#prompt,
      this.#seed,
      this.#count,
      byId("seed-clear"),
      byId("count-less"),
      byId("count-more"),
    ];
    for (const element of fixed) element.disabled = isOn;
    this.shape.disable(isOn);
    this.inputs.disable(isOn);
    for (const chip of byId("examples").children) chip.disabled = isOn;
  }
}
