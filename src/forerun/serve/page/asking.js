// Talking to the server: what it is, and one answer as it comes.

import { newRun, roundOf } from "./traces.js";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function refuse(response) {
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? `the server said ${response.status}`);
}

function headersOf(key) {
  const headers = { "content-type": "application/json" };
  return key ? { ...headers, authorization: `Bearer ${key}` } : headers;
}

export async function askAbout(key) {
  const response = await fetch("/page/about.json", { headers: headersOf(key) });
  return response.ok ? response.json() : refuse(response);
}

export async function failDrafter(key, num) {
  const [method, headers, body] = ["POST", headersOf(key), JSON.stringify({ num })];
  const response = await fetch("/page/drafter-failure", { method, headers, body });
  if (!response.ok) await refuse(response);
}

// One answer. `asked`: {mode, prompt, turns, temperature, tokens, seed, key}; `told` is called with
// the run after each round.
export async function answer(asked, label, speculation, told, signal) {
  const run = newRun(label, speculation);
  const isChat = asked.mode === "chat";
  const path = isChat ? "/v1/chat/completions" : "/v1/completions";
  const response = await fetch(path, {
    method: "POST",
    headers: headersOf(asked.key),
    body: JSON.stringify(bodyOf(asked, isChat, speculation)),
    signal,
  });
  if (!response.ok) await refuse(response);
  told(run);
  for await (const event of events(response.body)) {
    if (event.error) throw new Refused(0, event.error.message);
    hear(run, event);
    told(run);
  }
  if (!run.finish) throw new Refused(0, "the stream ended before the answer did");
  return run;
}

function bodyOf(asked, isChat, speculation) {
  const common = {
    stream: true,
    temperature: asked.temperature,
    max_tokens: asked.tokens,
    seed: asked.seed,
    speculation,
    forerun: { trace: true },
  };
  return isChat
    ? { ...common, messages: asked.turns, logprobs: true, top_logprobs: 3 }
    : { ...common, prompt: asked.prompt, logprobs: 3 };
}

function hear(run, event) {
  const choice = event.choices?.[0];
  run.text += choice?.text ?? choice?.delta?.content ?? "";
  run.finish = choice?.finish_reason ?? run.finish;
  run.timings = event.timings ?? run.timings;
  run.isDegraded = event.metrics?.speculative_decoding?.degraded ?? run.isDegraded;
  if (event.forerun?.round) run.rounds.push(roundOf(event.forerun.round, run));
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      yield JSON.parse(part.slice(6));
    }
  }
}
