// What becomes of a task, as a stream of events: from the server's event stream, read with fetch
// because EventSource sends no Authorization header; by polling where there is no such stream.

const LAST = ["done", "failed", "cancelled"];
const MAX_TRIES = 5;
const PATIENCE_MS = 5 * 60_000; // a server that starts again goes on with the tasks it accepted
const POLL_MS = [300, 500, 800, 1200, 2000];

/** Yield {kind, data} of a task until it has ended. */
export async function* follow(api, taskUUID, signal) {
  let after = "";
  for (let tries = 0; tries < MAX_TRIES; tries += 1) {
    try {
      const body = await api.openEvents(taskUUID, after, signal);
      for await (const event of parseEvents(body)) {
        tries = 0;
        after = event.id || after;
        yield event;
        if (LAST.includes(event.kind)) return;
      }
    } catch (error) {
      if (signal?.aborted || error.needsKey) throw error;
      if (error.status === 404) break; // an older server, or another one behind a balancer
    }
    await pause(Math.min(4000, 250 * 2 ** tries), signal);
  }
  yield* poll(api, taskUUID, signal);
}

/** Yield the events of a stream of bytes, without comments. */
export async function* parseEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split(/\r?\n\r?\n/);
      text = blocks.pop();
      for (const block of blocks) {
        const event = parseBlock(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseBlock(block) {
  const fields = { id: "", event: "", data: [] };
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^(\w+): ?(.*)$/s.exec(line) ?? [];
    if (name === "data") fields.data.push(value);
    else if (name in fields) fields[name] = value;
  }
  if (!fields.event || !fields.data.length) return null;
  return { id: fields.id, kind: fields.event, data: JSON.parse(fields.data.join("\n")) };
}

/** Yield the same kinds of events from polls: progress of the whole task instead of steps. */
async function* poll(api, taskUUID, signal) {
  let answeredAt = Date.now();
  for (let turn = 0; ; turn += 1) {
    await pause(POLL_MS[Math.min(turn, POLL_MS.length - 1)], signal);
    let items;
    try {
      items = await api.run({ taskType: "getResponse", taskUUID });
      answeredAt = Date.now();
    } catch (error) {
      if (signal?.aborted) throw error;
      const isPassing = [0, 429, 502, 503, 504].includes(error.status);
      if (isPassing && Date.now() - answeredAt < PATIENCE_MS) continue;
      const kind = error.code === "taskCancelled" ? "cancelled" : "failed";
      yield { kind, data: { error: { code: error.code, message: error.message } } };
      return;
    }
    const waiting = items.filter((item) => item.status === "processing");
    if (waiting.length) {
      yield { kind: "progress", data: { progress: waiting[0].progress } };
      continue;
    }
    for (const item of items) yield { kind: "image", data: item };
    yield { kind: "done", data: { taskUUID } };
    return;
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
