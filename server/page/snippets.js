// The same image from code. The API key never stands in it: it is read from the environment.

import { EXTENSIONS, fileName } from "./inputs.js";

const KEY_NAME = "HYIMAGE_API_KEY";

/** Return the languages: name, text for the tab, a note, and the code for an entry. */
export function listSnippets(entry, address, needsKey) {
  const { referenceImages, ...rest } = taskOf(entry);
  const files = referenceImages?.map(fileName) ?? [];
  const task = files.length ? { ...rest, referenceImages: files.map(marker) } : rest;
  const snippets = [
    {
      name: "curl",
      text: "curl",
      note: "Any shell with curl and Python.",
      code: curl(task, address, needsKey),
    },
    {
      name: "python",
      text: "Python",
      note: "pip install runware-sdk",
      code: python(task, address),
    },
    {
      name: "javascript",
      text: "JavaScript",
      note: "npm install @runware/sdk-js",
      code: javascript(task, address),
    },
    {
      name: "openai",
      text: "OpenAI SDK",
      note: "pip install openai",
      code: openai(task, address, files),
    },
  ];
  if (!files.length) return snippets;
  const place = `. Put the input images beside it as ${files.join(", ")}.`;
  return snippets.map((snippet) => ({ ...snippet, note: snippet.note.replace(/\.?$/, place) }));
}

/** Return the parameters that generate exactly this image again. */
export function taskOf(entry) {
  // An aligned image was resized: its own sides are not those of the task.
  const isResized = entry.task.hunyuan?.align;
  const size = isResized ? {} : { width: entry.width, height: entry.height };
  return { ...entry.task, ...size, seed: entry.seed, numberResults: 1 };
}

/** Return what stands for a file's data URI until a language writes how it is read. */
function marker(file) {
  return `@@${file}@@`;
}

/** Return code in which each marker is what `write` makes of a file's name and type. */
function withFiles(code, write) {
  return code.replaceAll(/"@@(input-\d+\.(\w+))@@"/g, (_, file, extension) => {
    const [type] = Object.entries(EXTENSIONS).find(([, known]) => known === extension);
    return write(file, type);
  });
}

function curl(task, address, needsKey) {
  const fields = { taskType: "imageInference", taskUUID: "@UUID@", ...task };
  if (task.referenceImages) return curlWithFiles(fields, address, needsKey);
  const json = JSON.stringify([fields], null, 2)
    .replaceAll("'", String.raw`'\''`)
    .replace("@UUID@", `'"$(python3 -c 'import uuid; print(uuid.uuid4())')"'`);
  const key = needsKey ? ` \\\n  -H "Authorization: Bearer $${KEY_NAME}"` : "";
  return `curl -s ${address.http} -H 'Content-Type: application/json'${key} -d '${json}'`;
}

/** A shell's arguments are too short for an image: the body goes through standard input. */
function curlWithFiles(fields, address, needsKey) {
  const escaped = JSON.stringify([fields], null, 2).replaceAll(/[\\$`]/g, String.raw`\$&`);
  const body = withFiles(
    escaped.replace("@UUID@", "$(python3 -c 'import uuid; print(uuid.uuid4())')"),
    (file, type) => String.raw`"data:${type};base64,$(base64 < ${file} | tr -d '\n')"`,
  );
  const key = needsKey ? ` -H "Authorization: Bearer $${KEY_NAME}"` : "";
  return `curl -s ${address.http} -H 'Content-Type: application/json'${key} -d @- <<JSON\n${body}\nJSON`;
}

function python(task, address) {
  const literal = withFiles(
    pythonLiteral({ taskType: "imageInference", ...task }),
    (file, type) => `data_uri("${file}", "${type}")`,
  );
  const reader = task.referenceImages
    ? `

def data_uri(name, type):
    with open(name, "rb") as file:
        return f"data:{type};base64,{base64.b64encode(file.read()).decode()}"
`
    : "";
  return `import asyncio, ${reader && "base64, "}os
from runware import Runware
${reader}

async def main():
    client = Runware(
        api_key=os.environ.get("${KEY_NAME}", "any"),
        transport="rest",
        http_base_url="${address.http}",
        ws_base_url="${address.ws}",
    )
    await client.connect()
    images = await client.run(${indent(literal, 4)})
    print(images[0]["imageURL"])
    await client.close()


asyncio.run(main())
`;
}

function javascript(task, address) {
  const literal = withFiles(
    JSON.stringify(task, null, 2),
    (file, type) => `dataURI("${file}", "${type}")`,
  );
  const reader = task.referenceImages
    ? `import { readFileSync } from "node:fs";

const dataURI = (name, type) => \`data:\${type};base64,\${readFileSync(name, "base64")}\`;
`
    : "";
  return `import { Runware } from "@runware/sdk-js";
${reader}
const runware = new Runware({
  apiKey: process.env.${KEY_NAME} ?? "any",
  url: "${address.ws}",
});
const images = await runware.imageInference(${literal});
console.log(images[0].imageURL);
await runware.disconnect();
`;
}

function openai(task, address, files) {
  const extra = {
    seed: task.seed,
    steps: task.steps,
    guidance_scale: task.CFGScale,
    ...(task.negativePrompt && { negative_prompt: task.negativePrompt }),
  };
  const opened = files.map((file) => `open("${file}", "rb")`).join(", ");
  const format = { JPG: "jpeg", PNG: "png", WEBP: "webp" }[task.outputFormat];
  const lost = ["scheduler", "acceleration", "acceleratorOptions", "hunyuan"].filter(
    (name) => task[name] !== undefined && !["Default", "none"].includes(task[name]),
  );
  const warning = lost.length
    ? `# The OpenAI form has no ${lost.join(", ")}: the image differs.\n`
    : "";
  return `${warning}import os
from openai import OpenAI

client = OpenAI(base_url="${address.http}", api_key=os.environ.get("${KEY_NAME}", "any"))
result = client.images.${files.length ? "edit" : "generate"}(
    model=${quote(task.model)},${files.length ? `\n    image=[${opened}],` : ""}
    prompt=${quote(task.positivePrompt)},
    size="${task.width ? `${task.width}x${task.height}` : "auto"}",
    output_format="${format}",
    output_compression=95,
    response_format="url",
    extra_body=${indent(pythonLiteral(extra), 4)},
)
print(result.data[0].url)
`;
}

/** Return a JSON value as Python writes it. */
function pythonLiteral(value, depth = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "string") return quote(value);
  if (typeof value === "number") return String(value);
  const pad = " ".repeat(4 * (depth + 1));
  const inner = Array.isArray(value)
    ? value.map((item) => pythonLiteral(item, depth + 1))
    : Object.entries(value).map(([name, item]) => `"${name}": ${pythonLiteral(item, depth + 1)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return `${open}\n${inner.map((item) => `${pad}${item},`).join("\n")}\n${" ".repeat(4 * depth)}${close}`;
}

/** Return a string that JSON, JavaScript and Python read alike. */
function quote(text) {
  return JSON.stringify(text);
}

function indent(text, spaces) {
  return text.replaceAll("\n", `\n${" ".repeat(spaces)}`);
}
