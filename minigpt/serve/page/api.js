// Talk with the server. Every answer that is not 200 becomes a Problem with the server's own message.
const KEY = "minigpt-key";

export class Problem extends Error {}

// How many requests the server did not answer to the end
export const unanswered = { count: 0 };

const brokeOff = (error) => {
  if (error?.name === "AbortError") throw error;
  unanswered.count += 1;
  throw new Problem("the server's answer broke off; try again");
};

// Set by main.js: asks the person for the server's key, after a wrong one if true; resolves when there is a new one
export const door = { ask: async () => { throw new Problem("the server wants a key"); } };
export const keep = (key) => sessionStorage.setItem(KEY, key);

async function send(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    unanswered.count += 1;
    throw new Problem("the server does not answer; start it again with: minigpt serve");
  }
  if (answer.status === 401) {
    if (key === sessionStorage.getItem(KEY)) await door.ask(Boolean(key)); // else another request has asked
    return send(path, body, signal);
  }
  if (!answer.ok) {
    const found = await answer.json().catch(() => null);
    throw new Problem(found?.error?.message ?? `the server answered ${answer.status}`);
  }
  return answer;
}

// A GET if there is no body, else a POST
export async function ask(path, body, signal) {
  const answer = await send(path, body, signal);
  return answer.json().catch(brokeOff);
}

// The text of a file
export async function read(path) {
  const answer = await send(path);
  return answer.text().catch(brokeOff);
}

export const query = (values) => new URLSearchParams(values).toString();

// The objects of a stream of server-sent events, as they arrive, up to [DONE]. Throws a Problem if the stream sends an
// error, or ends before
export async function* stream(path, body, signal) {
  const answer = await send(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(brokeOff);
      if (done) brokeOff();
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const text = event.replace(/^data: /, "");
        if (text === "[DONE]") return;
        const found = JSON.parse(text);
        if (found.error) throw new Problem(found.error.message);
        yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => null);
  }
}
