// Runs as values: an answer's rounds, whether they come from a server or out of a file.
// The schema is docs/page.md; files of docs/trace.md open too, without the tokens' text.

const MOST_LINES = 100000;

export function newRun(label, speculation) {
  return { label, speculation, rounds: [], text: "", finish: "", timings: null, isDegraded: false };
}

// A round as it came, with what older or shorter schemas leave out.
export function roundOf(raw, run) {
  if (!Array.isArray(raw.tokens) || !Array.isArray(raw.parents) || !Array.isArray(raw.path))
    throw new Error("a round without tokens, parents and path");
  if (raw.tokens.length === 0 || raw.parents.length !== raw.tokens.length)
    throw new Error("a round whose tree has no nodes, or not a parent for each");
  raw.tokens.forEach((_, node) => {
    const parent = raw.parents[node];
    const isFit = node === 0 ? parent === -1 : Number.isInteger(parent) && parent >= 0 && parent < node;
    if (!isFit) throw new Error("a tree whose parents do not come before their children");
  });
  if (!raw.path.every((node) => Number.isInteger(node) && node in raw.tokens))
    throw new Error("a verdict outside its tree");
  const previous = run.rounds.at(-1);
  const round = { drafter: raw.tokens.length > 1 ? (run.drafter ?? "draft") : "", lane: null, ...raw };
  round.round = run.rounds.length;
  round.texts ??= raw.tokens.map(named);
  round.bonus_text ??= named(raw.bonus);
  for (const name of ["draft_s", "verify_s", "round_s"]) round[name] = Number(round[name]) || 0;
  round.began_s ??= previous ? previous.began_s + previous.round_s : 0;
  round.emitted ??= emittedOf(round);
  round.depths = depthsOf(round.parents);
  round.numAccepted = round.emitted.filter((one) => one.origin === "draft").length;
  return round;
}

function named(token) {
  return token < 0 ? "" : `⟨${token}⟩`;
}

function emittedOf(round) {
  const path = round.path.slice(1);
  const drafts = path.map((node) => {
    const text = round.texts[node];
    return { token: round.tokens[node], text, token_text: text, origin: "draft", node };
  });
  const origin = path.length ? "bonus" : "target";
  const text = round.bonus_text;
  const own = { token: round.bonus, text, token_text: text, origin, node: null };
  return [...drafts, own].slice(0, round.kept);
}

function depthsOf(parents) {
  const depths = [];
  for (const parent of parents) depths.push(parent < 0 ? 0 : depths[parent] + 1);
  return depths;
}

export function tokensOf(run) {
  return run.rounds.flatMap((round) => round.emitted);
}

export function draftersOf(runs) {
  const names = runs.flatMap((run) => run.rounds.map((round) => round.drafter)).filter(Boolean);
  return [...new Set(names)];
}

// Seconds inside rounds. Between them a traced answer is written, which takes longer the more rounds
// there are and would flatter drafts.
export function spentOf(rounds) {
  return rounds.reduce((sum, one) => sum + one.round_s, 0);
}

// Seconds a token took where nothing was drafted, in the same time that drafts are judged by.
export function plainOf(run) {
  return spentOf(run.rounds) / tokensOf(run).length;
}

// The same out of the rounds that happened to have no draft; null where there are none.
export function guessedPlain(run) {
  const rounds = run.rounds.filter((one) => one.tokens.length === 1);
  return rounds.length ? spentOf(rounds) / rounds.length : null;
}

export function isPlain(run) {
  return run.rounds.length > 0 && run.rounds.every((round) => round.tokens.length === 1);
}

// The first round that shows something: a draft that was kept, else any draft, else the first.
export function tellingRound(run) {
  const kept = run.rounds.findIndex((round) => round.numAccepted > 0);
  if (kept >= 0) return kept;
  return Math.max(0, run.rounds.findIndex((round) => round.tokens.length > 1));
}

// The first place where two runs differ, -1 where they do not.
export function firstDifference(one, other) {
  const [a, b] = [tokensOf(one), tokensOf(other)];
  for (let at = 0; at < Math.max(a.length, b.length); at++)
    if (a[at]?.token !== b[at]?.token) return at;
  return -1;
}

// Of the rounds that drafted so deep, how many kept so many.
export function keptByPosition(run) {
  const found = [];
  for (const round of run.rounds) {
    const deepest = Math.max(...round.depths);
    for (let at = 0; at < deepest; at++) {
      found[at] ??= { drafted: 0, kept: 0 };
      found[at].drafted += 1;
      found[at].kept += round.numAccepted > at ? 1 : 0;
    }
  }
  return found;
}

export function fileOf(runs, about) {
  const lines = [{ kind: "header", format: 1, ...(about ?? {}) }];
  runs.forEach((run, request) => {
    const { label, speculation, finish, timings } = run;
    lines.push({ kind: "request", request, label, speculation, finish, timings });
    for (const { depths, numAccepted, ...round } of run.rounds) lines.push({ ...round, request });
  });
  return lines.map((line) => JSON.stringify(line) + "\n").join("");
}

// Runs out of a file's text; what is cut off at its end is left out.
export function runsOf(text) {
  const runs = new Map();
  let header = {};
  const lines = text.split("\n").filter((line) => line.trim());
  if (lines.length > MOST_LINES) throw new Error(`more than ${MOST_LINES} lines`);
  lines.forEach((line, at) => {
    const value = parsed(line, at === lines.length - 1);
    if (value?.kind === "header") header = value;
    if (value?.kind === "request") {
      const label = String(value.label ?? `request ${value.request}`);
      const run = newRun(label, String(value.speculation ?? ""));
      runs.set(value.request, { ...run, finish: value.finish ?? "", timings: value.timings ?? null });
    }
    if (value?.kind === "round") take(runs, header, value);
  });
  const found = [...runs.values()].filter((run) => run.rounds.length);
  if (!found.length) throw new Error("there is no round in it");
  return { header, runs: found };
}

function take(runs, header, value) {
  const request = value.request ?? 0;
  if (!runs.has(request)) runs.set(request, newRun(`request ${request}`, ""));
  const run = runs.get(request);
  if (typeof header.drafter === "string") run.drafter = header.drafter;
  run.rounds.push(roundOf(value, run));
}

function parsed(line, isLast) {
  try {
    return JSON.parse(line);
  } catch (error) {
    if (isLast) return null;
    throw new Error("a line that is not JSON", { cause: error });
  }
}
