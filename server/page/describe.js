// Settings and diagnostics of an image in words.

const REUSE = { none: "exact", low: "low", medium: "medium", high: "high" };

/** Return the step caches of a task in a few words. */
export function describeCaches(task) {
  const options = task.acceleratorOptions;
  if (!options) return REUSE[task.acceleration ?? "none"];
  const tea = options.teaCache ? `TeaCache ${options.teaCacheDistance}` : "";
  const fb = options.fbCache ? `FBCache ${options.fbCacheThreshold}` : "";
  return [tea, fb].filter(Boolean).join(", ") || "exact";
}

/** Return the settings that an image was generated with, as [name, text] pairs. */
export function listSettings(entry) {
  const { task } = entry;
  const pairs = [
    ["Size", entry.width ? `${entry.width} × ${entry.height}` : "automatic"],
    ["Steps", String(task.steps)],
    ["Guidance", String(task.CFGScale)],
    ["Scheduler", task.scheduler],
    ["Step caches", describeCaches(task)],
    ["Format", task.outputFormat],
  ];
  if (task.referenceImages) pairs.push(["Input images", String(task.referenceImages.length)]);
  if (task.hunyuan?.align) pairs.push(["Shape", "of the input image"]);
  if (task.negativePrompt) pairs.push(["Negative prompt", task.negativePrompt]);
  if (task.hunyuan?.rewrite) pairs.push(["Rewritten", task.hunyuan.rewrite]);
  return pairs;
}

/** Return what differs between two images: [name, first, second], their seconds last. */
export function listDifferences(first, second) {
  const settings = [
    Object.fromEntries(listSettings(first)),
    Object.fromEntries(listSettings(second)),
  ];
  const names = [...new Set(settings.flatMap(Object.keys))];
  const rows = names
    .map((name) => [name, settings[0][name] ?? "–", settings[1][name] ?? "–"])
    .filter(([, a, b]) => a !== b);
  const evaluations = [first, second].map((entry) => entry.diagnostics?.modelEvaluations);
  if (evaluations.every(Boolean)) rows.push(["Model evaluations", ...evaluations.map(String)]);
  if (first.seconds && second.seconds)
    rows.push(["Seconds", ...[first, second].map((e) => e.seconds.toFixed(1))]);
  return rows;
}

/** Return a duration in words, or nothing if it is not known. */
export function describeSeconds(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return `${Math.round(seconds / 60)} min`;
}

/** Return "computed" or "reused" for each step of a finished image, or null without diagnostics. */
export function listStepKinds(diagnostics) {
  if (!diagnostics) return null;
  const reused = new Set(diagnostics.reusedSteps);
  const numSteps = diagnostics.stepsComputed + diagnostics.stepsReused;
  return Array.from({ length: numSteps }, (_, step) => (reused.has(step) ? "reused" : "computed"));
}
