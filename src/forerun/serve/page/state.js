// All that the page knows, in one place; views are told when it changes.

export const state = {
  about: null, // what the server says of itself; null where there is none
  runs: [], // answers that are shown, one or two: see traces.js
  chosen: 0, // which of them is looked into
  round: 0, // which of its rounds
  turns: [], // of a chat: {role, content}
  plain: null, // seconds a round of plain decoding took here, once it was measured
  proof: null, // {at} the first difference of two runs, -1 if there is none
  note: "",
  isWrong: false,
  busy: null, // an AbortController while an answer comes
};

const listeners = [];

export function onChange(listener) {
  listeners.push(listener);
}

export function change(patch) {
  Object.assign(state, patch);
  for (const listener of listeners) listener(state);
}

export function say(note, isWrong = false) {
  change({ note, isWrong });
}

export function chosenRun() {
  return state.runs[state.chosen] ?? null;
}

// Which round is looked at; anything outside is brought inside.
export function lookAt(chosen, round) {
  const num = state.runs[chosen]?.rounds.length ?? 0;
  change({ chosen, round: Math.max(0, Math.min(round, num - 1)) });
}
