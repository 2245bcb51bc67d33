// Talks to the dashboard. The page key lives in this tab of this origin alone; the cookie
// beside it can't be read here. Each is worth nothing without the other.

const KEY = "apex-creds-key";

export class Refused extends Error {
  constructor(status, body) {
    super(body.error ?? "The dashboard does not answer.");
    Object.assign(this, { status, hint: body.hint ?? "", factor: Boolean(body.factor) });
  }
}

export const loggedIn = () => sessionStorage.getItem(KEY) !== null;
export const forget = () => sessionStorage.removeItem(KEY);

const PATIENCE = 60_000;
const QUIET = 30_000; // the dashboard shows every ten seconds that it is there

function unheard() {
  throw new Refused(0, {});
}

async function ask(path, body, signal = AbortSignal.timeout(PATIENCE)) {
  const headers = { "x-apex-creds-key": sessionStorage.getItem(KEY) ?? "" };
  const options = { headers, credentials: "same-origin", cache: "no-store", redirect: "error", signal };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    headers["content-type"] = "application/json";
  }
  const answer = await fetch(path, options).catch(unheard);
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

export const get = async (path) => (await ask(path)).json();
export const post = async (path, body) => (await ask(path, body)).json();

export async function logIn(token) {
  const { key } = await post("/login", { token });
  sessionStorage.setItem(KEY, key);
}

/** Reads server-sent events, over fetch since EventSource can't send the page key. */
export async function stream(told) {
  const quiet = new AbortController(); // where the network went, nothing else says so
  let timer = 0;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => quiet.abort(), QUIET);
  };
  try {
    heard();
    const answer = await ask("/api/stream", undefined, quiet.signal);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read().catch(unheard);
      if (done) return;
      heard();
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
      for (const frame of frames) one(frame, told);
    }
  } finally {
    clearTimeout(timer);
  }
}

function one(frame, told) {
  if (frame.startsWith(":")) return told("alive", null);
  const [event, data] = frame.split("\n");
  told(event.slice("event: ".length), JSON.parse(data.slice("data: ".length)));
}
