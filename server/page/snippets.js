// The same image from code. The API key never stands in it: it is read from the environment.

const KEY_NAME = "HYIMAGE_API_KEY";

/** Return the languages: name, text for the tab, a note, and the code for an entry. */
export function listSnippets(entry, address, needsKey) {
  const task = taskOf(entry);
  return [
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
    { name: "openai", text: "OpenAI SDK", note: "pip install openai", code: openai(task, address) },
  ];
}

/** Return the parameters that generate exactly this image again. */
export function taskOf(entry) {
  const size = { width: entry.width, height: entry.height };
  return { ...entry.task, ...size, seed: entry.seed, numberResults: 1 };
}

function curl(task, address, needsKey) {
  const fields = { taskType: "imageInference", taskUUID: "@UUID@", ...task };
  const json = JSON.stringify([fields], null, 2)
    .replaceAll("'", String.raw`'\''`)
    .replace("@UUID@", `'"$(python3 -c 'import uuid; print(uuid.uuid4())')"'`);
  const key = needsKey ? ` \\\n  -H "Authorization: Bearer $${KEY_NAME}"` : "";
  return `curl -s ${address.http} -H 'Content-Type: application/json'${key} -d '${json}'`;
}

function python(task, address) {
  return `import asyncio, os
from runware import Runware


async def main():
    client = Runware(
        api_key=os.environ.get("${KEY_NAME}", "any"),
        transport="rest",
        http_base_url="${address.http}",
        ws_base_url="${address.ws}",
    )
    await client.connect()
    images = await client.run(${indent(pythonLiteral({ taskType: "imageInference", ...task }), 4)})
    print(images[0]["imageURL"])
    await client.close()


asyncio.run(main())
`;
}

function javascript(task, address) {
  return `import { Runware } from "@runware/sdk-js";

const runware = new Runware({
  apiKey: process.env.${KEY_NAME} ?? "any",
  url: "${address.ws}",
});
const images = await runware.imageInference(${JSON.stringify(task, null, 2)});
console.log(images[0].imageURL);
await runware.disconnect();
`;
}

function openai(task, address) {
  const extra = {
    seed: task.seed,
    steps: task.steps,
    guidance_scale: task.CFGScale,
    ...(task.negativePrompt && { negative_prompt: task.negativePrompt }),
  };
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
result = client.images.generate(
    model=${quote(task.model)},
    prompt=${quote(task.positivePrompt)},
    size="${task.width}x${task.height}",
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
