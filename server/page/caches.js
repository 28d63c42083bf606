// Step caches in the form: a preset, or TeaCache and FBCache with their thresholds.

import { byId, make } from "./dom.js";
import { numberField, segments } from "./fields.js";

const PRESETS = { none: "Exact", low: "Low", medium: "Medium", high: "High", custom: "Custom" };
const KINDS = {
  teaCache: {
    text: "TeaCache",
    threshold: "teaCacheDistance",
    label: "TeaCache distance",
    value: 0.5,
  },
  fbCache: {
    text: "FBCache",
    threshold: "fbCacheThreshold",
    label: "FBCache threshold",
    value: 0.25,
  },
};

export class CacheFields {
  #checks = {};
  #thresholds = {};

  constructor(config) {
    const custom = byId("cache-custom");
    for (const [name, { text, threshold, label, value }] of Object.entries(KINDS)) {
      const check = make("input", { type: "checkbox", id: name, checked: name === "teaCache" });
      const field = make("div", { class: "field" });
      custom.append(make("label", { class: "check" }, check, text), field);
      this.#checks[name] = check;
      this.#thresholds[name] = numberField(field, {
        id: threshold,
        label,
        min: 0,
        max: 1,
        most: 1,
        step: 0.01,
        value,
      });
    }
    this.most = numberField(custom.appendChild(make("div", { class: "field" })), {
      id: "cacheMaxConsecutiveSteps",
      label: "Most reused in a row",
      min: 1,
      max: 5,
      most: 5,
      step: 1,
      value: 3,
    });
    this.preset = segments(
      byId("acceleration"),
      "acceleration",
      PRESETS,
      config.defaultAcceleration,
      (choice) => {
        custom.hidden = choice !== "custom";
      },
    );
  }

  /** Return the parameters of the task. */
  read() {
    if (this.preset.value !== "custom") return { acceleration: this.preset.value };
    const options = { cacheMaxConsecutiveSteps: this.most.value };
    for (const [name, { threshold }] of Object.entries(KINDS)) {
      options[name] = this.#checks[name].checked;
      if (options[name]) options[threshold] = this.#thresholds[name].value;
    }
    return { acceleratorOptions: options };
  }

  /** Show the parameters of a task. */
  set(task) {
    const options = task.acceleratorOptions;
    this.preset.set(options ? "custom" : (task.acceleration ?? "none"));
    if (!options) return;
    this.most.set(options.cacheMaxConsecutiveSteps ?? 3);
    for (const [name, { threshold, value }] of Object.entries(KINDS)) {
      this.#checks[name].checked = Boolean(options[name]);
      this.#thresholds[name].set(options[threshold] ?? value);
    }
  }
}
