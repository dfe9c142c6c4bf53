// The page: what people do becomes state, state becomes what they see.

import { answer, askAbout, failDrafter, Refused } from "./asking.js";
import {
  barsPicture, detailOf, element, ghostText, lanesPicture, legend, milliseconds, percent,
  summaryOf, tokenElement, treePicture, visible,
} from "./drawing.js";
import { change, chosenRun, lookAt, onChange, say, state } from "./state.js";
import { draftersOf, fileOf, firstDifference, guessedPlain, isPlain, plainOf, runsOf, spentOf, tellingRound, tokensOf } from "./traces.js";

const PICTURE_MS = 250; // between two drawings while an answer comes
const LARGEST_FILE = 64 << 20;
const at = (id) => document.getElementById(id);

// --- asking --------------------------------------------------------------------------------------

function asked() {
  const mode = document.querySelector("input[name=mode]:checked").value;
  const prompt = at("prompt").value;
  return {
    mode,
    prompt,
    turns: [...state.turns, { role: "user", content: prompt }],
    temperature: Number(at("temperature").value) || 0,
    tokens: Math.max(1, Math.round(Number(at("tokens").value) || 96)),
    seed: Math.max(0, Math.round(Number(at("seed").value) || 0)),
    key: at("key").value,
  };
}

// Answers one after another, so that neither slows the other down.
async function runAll(wanted, finish) {
  const question = asked();
  const busy = new AbortController();
  change({ busy, runs: [], chosen: 0, round: 0, proof: null, note: "reading the prompt …", isWrong: false });
  const done = [];
  try {
    for (const [label, speculation] of wanted) {
      const told = (run) => {
        const note = run.rounds.length ? `writing ${label} …` : "reading the prompt …";
        change({ runs: [...done, run], chosen: done.length, round: run.rounds.length - 1, note });
      };
      done.push(await answer(question, label, speculation, told, busy.signal));
      learnPlain(done.at(-1));
    }
    change({ note: "", chosen: done.findIndex((run) => !isPlain(run)) < 1 ? 0 : 1 });
    lookAt(state.chosen, tellingRound(chosenRun()));
    finish(done, question);
  } catch (error) {
    complain(error);
  } finally {
    change({ busy: null });
  }
}

function learnPlain(run) {
  if (isPlain(run) && run.speculation === "off") change({ plain: plainOf(run) });
}

function complain(error) {
  if (error.name === "AbortError") return say("stopped");
  if (error instanceof Refused && error.status === 401) at("keyed").hidden = false;
  return say(error.message, true);
}

function keepTurn([run], question) {
  if (question.mode !== "chat") return;
  at("prompt").value = "";
  change({ turns: [...question.turns, { role: "assistant", content: run.text }] });
}

function prove([plain, drafted], question) {
  const found = firstDifference(plain, drafted);
  const num = tokensOf(plain).length;
  change({ proof: { at: found } });
  const how = `temperature ${question.temperature}, seed ${question.seed}`;
  if (isPlain(drafted)) return say("nothing was drafted, so this proves nothing: is the drafter off?", true);
  if (found < 0) return say(`identical: all ${num} tokens, ${how}`);
  const [a, b] = [plain, drafted].map((run) => tokensOf(run)[found]?.token_text);
  const told = [a, b].map((text) => (text === undefined ? "the end" : `“${visible(text)}”`));
  return say(`different from token ${found + 1} on (${how}): ${told[0]} plain, ${told[1]} with drafts`, true);
}

async function fail(num) {
  try {
    await failDrafter(at("key").value, num);
    const next = num === 1 ? "its next proposal fails" : "its next proposals fail, then it is switched off";
    say(`the server's own drafter, ${state.about.drafter}: ${next}; the text does not change`);
  } catch (error) {
    complain(error);
  }
}

async function connect() {
  try {
    change({ about: await askAbout(at("key").value) });
  } catch (error) {
    if (error instanceof Refused) complain(error);
  }
}

// --- files ---------------------------------------------------------------------------------------

async function openFile(file) {
  if (file.size > LARGEST_FILE) return say(`${file.name} is no trace: it is larger than 64 MiB`, true);
  return openText(file.name, await file.text());
}

function openText(name, text) {
  try {
    const { header, runs } = runsOf(text);
    const reference = runs.find(isPlain);
    const plain = reference ? plainOf(reference) : null;
    const note = `${name}${header.model ? `, of ${header.model}` : ""}`;
    change({ runs, chosen: 0, round: tellingRound(runs[0]), proof: null, plain, note, isWrong: false });
  } catch (error) {
    say(`${name} is no trace: ${error.message}`, true);
  }
}

function saveFile() {
  const blob = new Blob([fileOf(state.runs, state.about)], { type: "application/jsonl" });
  const link = element("a", { href: URL.createObjectURL(blob), download: "trace.jsonl" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- showing -------------------------------------------------------------------------------------

const shown = { runs: [], drafters: "", pictures: "", drawn_ms: 0, timer: 0 };

function show() {
  showForm();
  showRibbons();
  showChosen();
  if (!state.busy || performance.now() - shown.drawn_ms > PICTURE_MS) showPictures();
}

function showForm() {
  const { about, busy, note, isWrong, turns } = state;
  at("note").textContent = note;
  at("note").classList.toggle("wrong", isWrong);
  const drafter = about && (about.drafter === "none" ? "no drafter" : `drafter ${about.drafter}`);
  at("about").textContent = about ? `${about.model} · ${drafter} · ${about.numerics}` : "no server: open a trace";
  for (const id of ["run", "both", "prove"]) at(id).disabled = Boolean(busy) || !about;
  at("stop").disabled = !busy;
  at("save").disabled = Boolean(busy) || !state.runs.length;
  for (const id of ["fail", "fail-for-good"]) at(id).hidden = !about?.can_fail;
  const isChat = document.querySelector("input[name=mode]:checked").value === "chat";
  at("untaught").hidden = !isChat || !about || about.has_chat_template;
  at("turns").hidden = at("fresh").hidden = !isChat || !turns.length;
  if (at("turns").childElementCount !== turns.length)
    showTurns(turns);
}

function showTurns(turns) {
  at("turns").replaceChildren(...turns.map((one) => element("li", { class: one.role }, one.content)));
  at("turns").scrollTop = at("turns").scrollHeight;
}

// Only what is new is added: an answer may be long.
function showRibbons() {
  const drafters = draftersOf(state.runs);
  const isNew = state.runs.length !== shown.runs.length || drafters.join() !== shown.drafters
    || state.runs.some((run, index) => shown.runs[index]?.run !== run);
  if (isNew) {
    shown.drafters = drafters.join();
    shown.runs = state.runs.map(newRibbon);
    at("results").replaceChildren(...shown.runs.map((one) => one.whole));
    at("legend").replaceChildren(...legend(drafters));
    at("legend").hidden = !state.runs.length;
    at("hint").hidden = Boolean(state.runs.length);
    if (!state.runs.length) at("detail").hidden = true;
  }
  for (const one of shown.runs) extend(one, drafters);
}

function newRibbon(run, index) {
  const ribbon = element("div", { class: "ribbon", role: "listbox", "aria-label": `Tokens of ${run.label}` });
  const figures = element("p", { class: "figures" });
  const whole = element("article", {}, element("h2", {}, run.label), figures, ribbon);
  ribbon.dataset.run = index;
  return { run, ribbon, figures, whole, numRounds: 0, numTokens: 0 };
}

function extend(one, drafters) {
  const isAtEnd = one.ribbon.scrollHeight - one.ribbon.scrollTop - one.ribbon.clientHeight < 40;
  for (const round of one.run.rounds.slice(one.numRounds))
    one.ribbon.append(...round.emitted.map((token) => tokenElement(token, round, one.numTokens++, drafters)));
  if (one.numRounds !== one.run.rounds.length && isAtEnd && state.busy) one.ribbon.scrollTop = one.ribbon.scrollHeight;
  one.numRounds = one.run.rounds.length;
  one.figures.textContent = figuresOf(one.run);
  const differs = state.proof && state.proof.at >= 0 ? state.proof.at : -1;
  one.ribbon.querySelector(".differs")?.classList.remove("differs");
  one.ribbon.children[differs]?.classList.add("differs");
}

function figuresOf(run) {
  const num = tokensOf(run).length;
  const drafted = run.rounds.reduce((sum, round) => sum + round.tokens.length - 1, 0);
  const kept = run.rounds.reduce((sum, round) => sum + round.numAccepted, 0);
  const took = spentOf(run.rounds);
  const parts = [`${num} tokens`, `${run.rounds.length} rounds`];
  if (run.rounds.length) parts.push(`${(num / run.rounds.length).toFixed(2)} a round`);
  if (drafted) parts.push(`${percent(kept / drafted)} of ${drafted} drafted kept`);
  if (took > 0) parts.push(`${milliseconds(took)}, ${(num / took).toFixed(0)} tokens/s`);
  if (run.isDegraded) parts.push("the drafter failed and rests");
  return [...parts, run.finish].filter(Boolean).join(" · ");
}

function showChosen() {
  for (const one of document.querySelectorAll(".tok.here")) one.classList.remove("here");
  const ribbon = shown.runs[state.chosen]?.ribbon;
  if (!ribbon || state.busy) return;
  for (const one of ribbon.querySelectorAll(`[data-round="${state.round}"]`)) one.classList.add("here");
}

function showPictures() {
  const run = chosenRun();
  at("inside").hidden = !run?.rounds.length;
  if (!run?.rounds.length) return;
  const key = [state.runs.length, state.chosen, state.round, run.rounds.length, state.plain, Boolean(state.busy)].join();
  if (shown.pictures === key && shown.of === run) return;
  Object.assign(shown, { pictures: key, of: run, drawn_ms: performance.now() });
  const round = run.rounds[state.round];
  at("which-run").hidden = state.runs.length < 2;
  at("of").replaceChildren(...state.runs.map((one, index) => element("option", { value: index }, one.label)));
  at("of").value = String(state.chosen);
  at("round").value = state.round + 1;
  at("round").max = run.rounds.length;
  at("num-rounds").textContent = `of ${run.rounds.length}`;
  at("told").textContent = summaryOf(round);
  at("tree").replaceChildren(treePicture(round));
  showTimes(run);
  at("bars").replaceChildren(...barsPicture(run));
}

function showTimes(run) {
  const plain = state.plain ?? guessedPlain(run);
  const choose = (round) => lookAt(state.chosen, round);
  at("ghost").textContent = ghostText(run, plain, state.plain !== null);
  const left = at("lanes").scrollLeft;
  at("lanes").replaceChildren(...lanesPicture(run, state.round, plain, choose));
  at("lanes").scrollLeft = left;
  const mark = at("lanes").querySelector(".chosen");
  if (!mark) return;
  const names = at("lanes").firstChild.clientWidth;
  const [x, width] = [Number(mark.getAttribute("x")), at("lanes").clientWidth - names];
  if (x < left || x > left + width - 60) at("lanes").scrollLeft = x - width / 2;
}

// --- tokens under the pointer or the focus -------------------------------------------------------

function tokenAt(target) {
  const made = target.closest?.(".ribbon .tok");
  if (!made) return null;
  const index = Number(made.parentElement.dataset.run);
  const round = state.runs[index]?.rounds[Number(made.dataset.round)];
  return { made, index, round, one: tokensOf(state.runs[index])[Number(made.dataset.place)] };
}

function showDetail(event) {
  const found = tokenAt(event.target);
  if (!found?.one) return;
  at("detail").hidden = false;
  at("detail").textContent = detailOf(found.one, found.round);
}

function chooseToken(event) {
  const found = tokenAt(event.target);
  if (found) lookAt(found.index, found.round.round);
}

function walkRibbon(event) {
  const found = tokenAt(event.target);
  if (!found) return;
  const all = found.made.parentElement.children;
  const place = [...all].indexOf(found.made);
  const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: all.length - 1 }[event.key];
  if (event.key === "Enter" || event.key === " ") chooseToken(event);
  else if (to === undefined || !all[to]) return;
  else {
    found.made.tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
    lookAt(found.index, Number(all[to].dataset.round));
  }
  event.preventDefault();
}

function walkRounds(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step === undefined || /INPUT|SELECT/.test(event.target.tagName)) return;
  lookAt(state.chosen, state.round + step);
  event.preventDefault();
}

// --- wiring --------------------------------------------------------------------------------------

// A composition as it was written, `auto` where nothing was.
const named = (letter, written) => {
  const speculation = written.trim() || "auto";
  return [`${letter}: speculation ${speculation}`, speculation];
};

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!state.busy && state.about) runAll([named("A", at("a").value)], keepTurn);
});
at("both").addEventListener("click", () => runAll([named("A", at("a").value), named("B", at("b").value)], () => {}));
at("prove").addEventListener("click", () => runAll([["plain", "off"], ["with drafts", "auto"]], prove));
at("stop").addEventListener("click", () => state.busy?.abort());
at("fail").addEventListener("click", () => fail(1));
at("fail-for-good").addEventListener("click", () => fail(3));
at("fresh").addEventListener("click", () => change({ turns: [] }));
at("key").addEventListener("change", connect);
at("save").addEventListener("click", saveFile);
at("open").addEventListener("change", (event) => {
  if (event.target.files[0]) openFile(event.target.files[0]);
  event.target.value = "";
});
at("of").addEventListener("change", (event) => {
  const chosen = Number(event.target.value);
  lookAt(chosen, tellingRound(state.runs[chosen]));
});
at("round").addEventListener("change", (event) => lookAt(state.chosen, Number(event.target.value) - 1));
at("previous").addEventListener("click", () => lookAt(state.chosen, state.round - 1));
at("next").addEventListener("click", () => lookAt(state.chosen, state.round + 1));
at("inside").addEventListener("keydown", walkRounds);
for (const name of ["pointerover", "focusin"]) at("results").addEventListener(name, showDetail);
at("results").addEventListener("click", chooseToken);
at("results").addEventListener("keydown", walkRibbon);
for (const one of document.querySelectorAll("input[name=mode]")) one.addEventListener("change", show);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer?.files[0];
  if (file && !state.busy) openFile(file);
});

onChange(show);
show();
// A page that `forerun trace page` wrote holds its trace and has no server.
const held = at("trace");
if (held) openText(held.dataset.name, held.textContent);
else connect();
