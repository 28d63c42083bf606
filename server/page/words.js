// The vocabulary of a checkpoint that draws only some things, and what a prompt names of it.

import { make } from "./dom.js";

/** Return {known, hasSubject} of a prompt; the same rule as pipeline/vocabulary.py. */
export function readPrompt(groups, prompt) {
  const text = prompt.toLowerCase().split(/\s+/).join(" ");
  const known = [];
  let hasSubject = false;
  for (const group of groups) {
    for (const [word, others] of Object.entries(group.words)) {
      if ([word, ...others].some((spelling) => spellingIn(text, spelling))) {
        known.push(word);
        hasSubject ||= group.has_subjects;
      }
    }
  }
  return { known, hasSubject };
}

function spellingIn(text, spelling) {
  const escaped = spelling.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`(?<![\\p{L}\\p{N}_])${escaped}(?:e?s)?(?![\\p{L}\\p{N}_])`, "u").test(text);
}

/** Fill the list of words; a click puts a word into the prompt. */
export function showGroups(container, groups, onWord) {
  for (const group of groups) {
    const words = Object.keys(group.words).map((word) =>
      make("button", { type: "button", class: "chip", onclick: () => onWord(word) }, word),
    );
    container.append(
      make(
        "section",
        { class: "word-group" },
        make("h3", {}, group.name),
        make("div", { class: "chips" }, words),
        group.note ? make("p", { class: "note" }, group.note) : null,
      ),
    );
  }
}

/** Show under the prompt what of it the checkpoint draws, or that it draws none of it. */
export function showNote(note, groups, prompt) {
  note.replaceChildren();
  delete note.dataset.kind;
  if (!groups || prompt.trim().length < 2) return;
  const { known, hasSubject } = readPrompt(groups, prompt);
  if (hasSubject) {
    note.append("Draws: ", ...known.map((word) => make("span", { class: "known" }, word)));
    return;
  }
  const some = Object.keys(groups.find((group) => group.has_subjects).words).slice(0, 6);
  note.dataset.kind = "warning";
  note.append(
    make("strong", {}, "This checkpoint draws none of that."),
    make(
      "span",
      {},
      `It will draw something else. Try ${some.join(", ")}; all words are listed below.`,
    ),
  );
}
