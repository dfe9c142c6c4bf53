// Pictures of runs: values in, elements out. Text of models only ever becomes text nodes.

import { isPlain, keptByPosition, spentOf, tokensOf } from "./traces.js";

const SVG = "http://www.w3.org/2000/svg";
const NODE_WIDTH = 130;
const NODE_HEIGHT = 24;
const COLUMN = 158;
const LINE = 34;
const LONGEST_LABEL = 13;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function picture(width, height, label, ...children) {
  const size = { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label };
  return svg("svg", size, ...children);
}

// Characters that would not be seen, seen.
export function visible(text) {
  const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
  return shown === "" ? "∅" : shown;
}

function shortened(text) {
  const shown = [...visible(text)];
  return shown.length > LONGEST_LABEL ? `${shown.slice(0, LONGEST_LABEL - 1).join("")}…` : shown.join("");
}

export function milliseconds(seconds) {
  return seconds < 1 ? `${(seconds * 1e3).toFixed(seconds < 0.01 ? 2 : 1)} ms` : `${seconds.toFixed(2)} s`;
}

export function percent(value) {
  return `${(value * 100).toFixed(value < 0.0995 ? 1 : 0)} %`;
}

// --- the ribbon ----------------------------------------------------------------------------------

export function tokenClass(origin, drafter, drafters) {
  if (origin !== "draft") return `tok ${origin}`;
  return `tok draft d${Math.max(0, drafters.indexOf(drafter)) % 4}`;
}

export function tokenElement(one, round, place, drafters) {
  const made = element("span", { class: tokenClass(one.origin, round.drafter, drafters) });
  made.dataset.round = round.round;
  made.dataset.place = place;
  made.tabIndex = place === 0 ? 0 : -1;
  made.setAttribute("role", "option");
  if (one.text === "") made.classList.add("held");
  one.text.split("\n").forEach((line, at) => {
    if (at) made.append(element("i", { class: "end" }), "\n");
    made.append(line);
  });
  made.setAttribute("aria-label", `${visible(one.token_text)}, ${sourceOf(one, round)}`);
  return made;
}

export function sourceOf(one, round) {
  if (one.origin === "draft") return `accepted draft of ${round.drafter}`;
  return one.origin === "bonus" ? "bonus of the target" : "the target's own";
}

// All that is known of a token.
export function detailOf(one, round) {
  const parts = [`“${visible(one.token_text)}”  id ${one.token}`, sourceOf(one, round)];
  parts.push(`round ${round.round + 1}`);
  if (one.node !== null && one.node !== undefined) parts.push(...figuresOf(round, one.node));
  else if (typeof one.logprob === "number") parts.push(`model's p ${percent(Math.exp(one.logprob))}`);
  const others = (one.top ?? []).filter(([text]) => text !== one.token_text).slice(0, 3);
  const told = others.map(([text, p]) => `${visible(text)} ${percent(Math.exp(p))}`);
  if (told.length) parts.push(`others: ${told.join(", ")}`);
  const rivals = rivalsOf(one, round);
  if (rivals.length) parts.push(`drafted instead, not kept: ${rivals.map(visible).join(", ")}`);
  return parts.join("  ·  ");
}

function rivalsOf(one, round) {
  const at = one.node ?? round.path.at(-1);
  const parent = one.node === null || one.node === undefined ? at : round.parents[at];
  return round.texts.filter((_, node) => round.parents[node] === parent && node !== one.node);
}

// What is known of a drafted node, and in words why something is not.
export function figuresOf(round, node) {
  if (node === 0) return [];
  const parts = [];
  const add = (name, value, show, why) => {
    if (typeof value === "number") parts.push(`${name} ${show(value)}`);
    else if (why) parts.push(`no ${name}: ${why}`);
  };
  const logprob = logprobOf(round, node);
  const model = typeof logprob === "number" ? Math.exp(logprob) : undefined;
  if (model !== undefined) add("model's p", model, percent);
  const isUnknown = model === undefined && !round.p && !round.target_laws;
  add("p", round.p?.[node], percent, isUnknown && "match compares tokens, not laws");
  add("q", round.q?.[node], percent, whyNoChance(round));
  add("margin", round.margins?.[node], (value) => value.toFixed(2), whyNoMargin(round));
  add("expected to be kept", round.scores?.[node], percent);
  return parts;
}

// The model's own log-probability of a node, where the answer tells it: of tokens that were kept, and
// of the likeliest in their place.
function logprobOf(round, node) {
  const kept = round.emitted.find((one) => one.node === node);
  if (kept) return kept.logprob;
  const instead = round.emitted[round.path.indexOf(round.parents[node])];
  return instead?.top?.find(([text]) => text === round.texts[node] && !text.includes("\ufffd"))?.[1];
}

function whyNoChance(round) {
  if (round.draw === "point") return round.ranks ? "the likeliest are taken" : "copied text has no law";
  return "it was not recorded";
}

function whyNoMargin(round) {
  if (round.draw === "point") return whyNoChance(round);
  return round.draw === "coupled" ? "it was not recorded" : "children are drawn from q";
}

export function legend(drafters) {
  const sample = (origin, drafter, text, label) =>
    element("span", {}, element("span", { class: tokenClass(origin, drafter, drafters) }, text), ` ${label}`);
  return [
    ...drafters.map((name) => sample("draft", name, "draft", `accepted draft of ${name}`)),
    ...(drafters.length ? [sample("bonus", "", "bonus", "the target's, behind accepted drafts, at no pass of its own")] : []),
    sample("target", "", "target", "the target's, as in plain decoding"),
  ];
}

// --- the tree of a round -------------------------------------------------------------------------

// Where each node stands: children spread over lines, parents in the middle of theirs.
function places(round) {
  const nodes = [...round.tokens.keys()];
  const children = nodes.map((node) => nodes.filter((other) => round.parents[other] === node));
  const exit = round.path.at(-1) ?? 0;
  const lines = [];
  let next = 0;
  const order = [...nodes].reverse();
  const leafOrder = [];
  const stack = [0];
  while (stack.length) {
    const node = stack.pop();
    if (!children[node].length || node === exit) leafOrder.push(node);
    stack.push(...[...children[node]].reverse());
  }
  for (const node of leafOrder) {
    if (node === exit) lines.bonus = next++;
    if (!children[node].length) lines[node] = node === exit ? lines.bonus : next++;
  }
  for (const node of order) {
    const below = children[node].map((child) => lines[child]);
    if (below.length) lines[node] = (Math.min(...below) + Math.max(...below)) / 2;
  }
  return { lines, height: next };
}

export function treePicture(round) {
  const { lines, height } = places(round);
  const exit = round.path.at(-1) ?? 0;
  const deepest = Math.max(...round.depths, round.depths[exit] + 1);
  const at = (node) => [8 + round.depths[node] * COLUMN, 8 + lines[node] * LINE];
  const drawn = picture((deepest + 1) * COLUMN, height * LINE + 12, summaryOf(round));
  const isKept = (node) => round.path.includes(node);
  const widest = (node) => round.scores?.[node] ?? round.q?.[node] ?? round.p?.[node] ?? 0.2;
  round.tokens.forEach((_, node) => {
    if (node === 0) return;
    const name = isKept(node) ? "edge kept" : "edge";
    drawn.append(edge(at(round.parents[node]), at(node), name, 1 + 4 * widest(node)));
  });
  const own = [8 + (round.depths[exit] + 1) * COLUMN, 8 + lines.bonus * LINE];
  const origin = round.numAccepted ? "bonus" : "target"; // as the ribbon calls it
  drawn.append(edge(at(exit), own, `edge ${origin}`, 2));
  round.tokens.forEach((_, node) => {
    const kind = node === 0 ? "pending" : isKept(node) ? "kept" : "dropped";
    drawn.append(box(at(node), round.texts[node], kind, figuresOf(round, node)));
  });
  drawn.append(box(own, round.bonus_text, origin, ["the target's own token"]));
  return drawn;
}

function edge([x, y], [toX, toY], name, width) {
  const [left, top, middle] = [x + NODE_WIDTH, y + NODE_HEIGHT / 2, toY + NODE_HEIGHT / 2];
  const bend = (left + toX) / 2;
  const d = `M${left} ${top}C${bend} ${top} ${bend} ${middle} ${toX} ${middle}`;
  return svg("path", { class: name, d, "stroke-width": width.toFixed(1) });
}

function box([x, y], text, kind, figures) {
  const size = { x, y, width: NODE_WIDTH, height: NODE_HEIGHT, rx: 4, class: `node ${kind}` };
  const mark = { pending: "● ", kept: "✓ ", bonus: "★ ", target: "★ ", dropped: "" }[kind];
  const label = svg("text", { x: x + 6, y: y + 17, class: kind }, mark + shortened(text));
  const title = svg("title", {}, [visible(text), ...figures].join("  ·  "));
  return svg("g", {}, title, svg("rect", size), label);
}

export function summaryOf(round) {
  const drafted = round.tokens.length - 1;
  const by = round.drafter ? ` by ${round.drafter}` : "";
  const took = `${milliseconds(round.round_s)}: draft ${milliseconds(round.draft_s)}, verify ${milliseconds(round.verify_s)}`;
  const company = round.num_rows > 1 ? `; ${round.num_rows} requests shared it` : "";
  const own = `${drafted} drafted${by}, ${round.numAccepted} kept, then “${visible(round.bonus_text)}”`;
  return `${own} · ${took}${company}${aheadOf(round)}`;
}

// Whether the draft was prepared while the round before was verified.
function aheadOf({ lane }) {
  if (!lane) return "";
  const told = {
    num_hits: "prepared for",
    num_wrong: "guessed wrong",
    num_short: "guessed, with nothing below",
    num_late: "too late",
    num_cold: "no guess yet",
  };
  const found = Object.entries(told).filter(([name]) => lane[name]);
  const parts = found.map(([name, text]) => (lane[name] > 1 ? `${lane[name]} × ${text}` : text));
  return parts.length ? ` · ahead: ${parts.join(", ")}` : "";
}

// --- lanes over time -----------------------------------------------------------------------------

const NAMES = 72; // of the lanes, which stay where they are
const LEFT = 4;
const MOST_ROUNDS = 400;

// `plain`: seconds of a round without drafts, null where it is not known.
export function lanesPicture(run, chosen, plain, choose) {
  const first = Math.max(0, Math.min(chosen - MOST_ROUNDS / 2, run.rounds.length - MOST_ROUNDS));
  const rounds = run.rounds.slice(first, first + MOST_ROUNDS);
  const start = rounds[0].began_s;
  const last = rounds.at(-1);
  const numTokens = rounds.reduce((sum, one) => sum + one.emitted.length, 0);
  const ghost_s = plain === null ? 0 : plain * numTokens;
  const end_s = Math.max(last.began_s + last.round_s - start, ghost_s);
  const typical = (last.began_s + last.round_s - start) / rounds.length;
  const scale = Math.min(36 / typical, 12000 / end_s);
  const hasLane = rounds.some((one) => one.lane);
  const names = ["draft", "verify", ...(hasLane ? ["ahead"] : []), ...(plain === null ? [] : ["plain"])];
  const width = LEFT + end_s * scale + 70;
  const height = names.length * 26 + 40;
  const drawn = picture(width, height, `${rounds.length} rounds over time`);
  const side = svg("svg", { class: "names", width: NAMES, height, "aria-hidden": "true" });
  const x = (seconds) => LEFT + (seconds - start) * scale;
  const line = (name) => 8 + names.indexOf(name) * 26;
  const span = (name, from, seconds, kind) =>
    svg("rect", { class: kind, x: x(from), y: line(name), width: Math.max(seconds * scale, 0.5), height: 18 });
  names.forEach((name) => side.append(svg("text", { x: 10, y: line(name) + 14 }, name)));
  for (const one of rounds) {
    if (one.round === chosen) drawn.append(whole(one, x, scale, names.length, "chosen"));
    drawn.append(span("draft", one.began_s, one.draft_s, "time-draft"));
    drawn.append(span("verify", one.began_s + one.draft_s, one.verify_s, "time-verify"));
    if (isPrepared(one, start)) drawn.append(span("ahead", one.lane.began_s, one.lane.busy_s, "time-ahead"));
    const touch = whole(one, x, scale, names.length, "touch");
    touch.append(svg("title", {}, `round ${one.round + 1}: ${summaryOf(one)}`));
    touch.addEventListener("click", () => choose(one.round));
    drawn.append(touch);
  }
  if (plain !== null)
    for (let at = 0; at < numTokens; at++) drawn.append(span("plain", start + at * plain, plain, "time-ghost"));
  drawn.append(...axis(end_s, scale, names.length * 26 + 10));
  return [side, drawn];
}

// What the first round collects may have been prepared for somebody else, long before.
function isPrepared({ lane }, start) {
  return lane !== null && lane.busy_s > 0 && lane.began_s >= start;
}

function whole(round, x, scale, num, kind) {
  const size = { x: x(round.began_s), width: Math.max(round.round_s * scale, 2), y: 4, height: num * 26 };
  return svg("rect", { class: kind, ...size });
}

function axis(end_s, scale, y) {
  const step = niceStep(90 / scale);
  const found = [svg("line", { class: "axis", x1: LEFT, x2: LEFT + end_s * scale, y1: y, y2: y })];
  for (let at = 0; at <= end_s; at += step) {
    const x = LEFT + at * scale;
    found.push(svg("line", { class: "axis", x1: x, x2: x, y1: y, y2: y + 5 }));
    const label = end_s < 2 ? `${Number((at * 1e3).toPrecision(4))} ms` : `${Number(at.toPrecision(4))} s`;
    found.push(svg("text", { class: "faint", x: x + 3, y: y + 17 }, label));
  }
  return found;
}

function niceStep(least) {
  const unit = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((one) => one * unit).find((one) => one >= least);
}

// What the ghost lane says, as a sentence.
export function ghostText(run, plain, isMeasured) {
  const took = spentOf(run.rounds);
  const num = tokensOf(run).length;
  const own = `${num} tokens in ${run.rounds.length} rounds of ${milliseconds(took)} together`;
  if (isPlain(run)) return `${own}, a token each: this is plain decoding.`;
  if (plain === null) return `${own}. Run once with speculation off to see plain decoding beside it.`;
  const how = isMeasured
    ? "as measured with speculation off"
    : "estimated by this answer's rounds without a draft; speculation off measures it";
  const ratio = `${((plain * num) / took).toFixed(2)} times`;
  return `${own}. Plain decoding, a round a token, takes ${milliseconds(plain * num)} (${ratio} as long), ${how}.`;
}

// --- acceptance ----------------------------------------------------------------------------------

export function barsPicture(run) {
  const found = keptByPosition(run);
  if (!found.length) return [element("p", {}, "Nothing was drafted.")];
  return found.flatMap(({ drafted, kept }, at) => {
    const bar = element("div", { class: "bar" });
    bar.style.width = `${(100 * kept) / drafted}%`;
    const label = `${percent(kept / drafted)} (${kept} of ${drafted} rounds)`;
    return [element("span", {}, `${at + 1}`), element("div", { class: "bar-room" }, bar), element("span", {}, label)];
  });
}
