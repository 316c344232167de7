// Asks /search for candidates and shows them as they end. What a policy wrote is only ever put in as text.
"use strict";
const $ = (id) => document.getElementById(id);
const PYTHON = new RegExp(
  [
    /(?<string>[fFrRbBuU]{0,2}(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?))/,
    /(?<comment>#[^\n]*)/,
    /\b(?<keyword>False|None|True|and|as|assert|async|await|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|nonlocal|not|or|pass|raise|return|try|while|with|yield)\b/,
    /\b(?<number>\d[\w.]*)/,
  ].map((part) => part.source).join("|"),
  "g",
);
const FENCE = /^[ \t]*```([^\n`]*)$/m;

let settings = null;
let running = null; // an AbortController while a request is under way
let found = null; // the last event of a request
let candidates = []; // {index, text, mean_logprob, verdicts, card} by index

function element(name, css, ...children) {
  const made = document.createElement(name);
  if (css) made.className = css;
  made.append(...children);
  return made;
}

function highlighted(code) {
  const box = element("code", "");
  let end = 0;
  for (const match of code.matchAll(PYTHON)) {
    const [kind, text] = Object.entries(match.groups).find(([, value]) => value !== undefined);
    box.append(code.slice(end, match.index), element("span", kind, text));
    end = match.index + match[0].length;
  }
  box.append(code.slice(end));
  return element("pre", "", box);
}

function rendered(text) {
  // Text and fenced programs in turns; the last fence may be open.
  const parts = [];
  let isCode = false;
  for (let rest = text; ; ) {
    const fence = FENCE.exec(rest);
    const part = fence ? rest.slice(0, fence.index) : rest;
    if (isCode) parts.push(highlighted(part.replace(/^\n|\n$/g, "")));
    else if (part.trim()) parts.push(element("p", "text", part.trim()));
    if (!fence) break;
    rest = rest.slice(fence.index + fence[0].length);
    isCode = !isCode;
  }
  return parts.length ? parts : [element("p", "soft", "It holds no answer.")];
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function numPassed(candidate) {
  return candidate.verdicts.filter((verdict) => verdict === "passed").length;
}

function chips(candidate) {
  return candidate.verdicts.map((verdict, place) =>
    element("span", `verdict ${verdict}`, `test ${place + 1}: ${verdict.replaceAll("_", " ")}`));
}

function describe(candidate) {
  const { card, verdicts } = candidate;
  const parts = [element("span", "name", `#${candidate.index + 1}`)];
  if (verdicts) {
    const [passed, all] = [numPassed(candidate), verdicts.length];
    const kind = passed === all ? "passed" : passed ? "wrong_answer" : "runtime_error";
    parts.push(element("span", `verdict ${kind}`, `${passed} of ${plural(all, "test")}`));
  } else if (running && candidate.hasTests) parts.push(element("span", "verdict", "testing"));
  if (candidate.mean_logprob !== null) {
    const logprob = element("span", "soft", `log-prob ${candidate.mean_logprob.toFixed(3)}`);
    logprob.title = "mean log-prob of its tokens, in nats";
    parts.push(logprob);
  }
  card.querySelector("summary").replaceChildren(...parts);
  card.classList.toggle("is-chosen", found !== null && found.answer.index === candidate.index);
  const body = card.querySelector("div");
  if (card.open) body.replaceChildren(...(verdicts ? chips(candidate) : []), ...rendered(candidate.text));
}

function group(title, members, share) {
  const box = element("div", "group");
  if (title) box.append(element("h3", "", title));
  if (share !== null) {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const filled = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    filled.setAttribute("width", `${100 * share}%`);
    filled.setAttribute("height", "100%");
    bar.append(filled);
    box.append(element("div", "share", bar));
  }
  box.append(element("div", "cards", ...members.map((candidate) => candidate.card)));
  return box;
}

function better(a, b) {
  const chosen = found.answer.index;
  return (b.index === chosen) - (a.index === chosen) ||
    (b.verdicts ? numPassed(b) : 0) - (a.verdicts ? numPassed(a) : 0) ||
    (b.mean_logprob ?? -Infinity) - (a.mean_logprob ?? -Infinity) || a.index - b.index;
}

function showGroups() {
  const clusters = new Map();
  for (const candidate of [...candidates].sort(better)) {
    const number = found.clusters[candidate.index];
    if (!clusters.has(number)) clusters.set(number, []);
    clusters.get(number).push(candidate);
  }
  const own = found.clusters[found.answer.index];
  const numbers = [...clusters.keys()].sort((a, b) =>
    (b === own) - (a === own) || (a === null) - (b === null) || a - b);
  const isCompared = numbers.some((number) => number !== null) || found.answer.num_public > 0;
  $("groups").replaceChildren(...numbers.map((number) => {
    const members = clusters.get(number);
    if (!isCompared) return group("", members, null);
    const isMath = !settings.has_tests;
    const same = isMath ? "the same answer" : "compute the same";
    const title = number === null ? `Compared with nobody: ${isMath ? "no answer" : "no output"}`
      : `Cluster ${number}${number === own ? ", the chosen one's" : ""}: ${same}`;
    return group(`${title} (${members.length} of ${candidates.length})`, members, members.length / candidates.length);
  }));
}

function showChosen() {
  const { answer } = found;
  const chosen = candidates[answer.index];
  const passed = answer.num_public ? `; it passes ${answer.num_public_passed} of ${plural(answer.num_public, "public test")}` : "";
  const agreed = answer.confidence === null ? "" : `; confidence ${Math.round(100 * answer.confidence)} %: the share that ${settings.has_tests ? "computes the same" : "gives the same answer"}`;
  $("how").textContent = `#${answer.index + 1}, chosen by ${answer.how} among ${answer.num_candidates}${passed}${agreed}.`;
  $("answer").replaceChildren(...rendered(chosen.text));
  $("chosen").hidden = false;
}

const handlers = {
  waiting({ before }) {
    say(`Waiting: ${plural(before, "request")} before this one.`);
  },
  sampling() {
    say("Sampling; the first request also loads the policy.");
  },
  candidate(event) {
    const card = element("details", "", element("summary", ""), element("div", ""));
    const candidate = { ...event, card, verdicts: null, hasTests: running.hasTests };
    card.addEventListener("toggle", () => describe(candidate));
    candidates[event.index] = candidate;
    if (!$("groups").firstChild) $("groups").append(group("", [], null));
    $("groups").querySelector(".cards").append(card);
    describe(candidate);
    const count = Object.keys(candidates).length;
    $("candidates").hidden = false;
    $("progress").value = count;
    say(`${count} of ${$("progress").max} candidates have ended.`);
    if (count === $("progress").max) say("All candidates have ended; comparing what they compute.");
  },
  tests({ index, verdicts }) {
    candidates[index].verdicts = verdicts;
    describe(candidates[index]);
  },
  found(event) {
    found = event;
    event.verdicts.forEach((verdicts, index) => { candidates[index].verdicts = verdicts; });
    showGroups();
    candidates.forEach(describe);
    showChosen();
    const number = new Set(event.clusters.filter((cluster) => cluster !== null)).size;
    say(`${plural(candidates.length, "candidate")}${number ? ` in ${plural(number, "cluster")}` : ""}.`);
    if (!number && settings.has_tests && !event.answer.num_public)
      say(`${plural(candidates.length, "candidate")}; without a public test there is no input to compare them on.`);
  },
  error({ error }) {
    throw new Error(error);
  },
};

async function* lines(stream) {
  const decoder = new TextDecoder();
  let rest = "";
  for (const reader = stream.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

async function ask(question) {
  const reply = await fetch("/search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
    signal: running.signal,
  });
  if (!reply.ok) throw new Error((await reply.json()).error);
  for await (const line of lines(reply.body)) {
    const event = JSON.parse(line);
    handlers[event.event](event);
  }
  if (found === null) throw new Error("The server has ended.");
}

function begin(question) {
  running = new AbortController();
  running.hasTests = question.tests.length > 0;
  [found, candidates] = [null, []];
  $("groups").replaceChildren();
  $("chosen").hidden = $("candidates").hidden = true;
  $("progress").max = question.num_samples;
  $("progress").value = 0;
  setRunning(true);
  say("Asking.");
}

function setRunning(isRunning) {
  $("sample").disabled = isRunning;
  $("stop").hidden = $("progress").hidden = !isRunning;
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  const question = {
    prompt: $("prompt").value,
    tests: $("tests").value.split("\n").filter((line) => line.trim()),
    num_samples: $("num_samples").valueAsNumber,
    seed: $("seed").valueAsNumber,
  };
  begin(question);
  try {
    await ask(question);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error instanceof TypeError ? "The server cannot be reached, or has ended." : error.message, true);
  }
  running = null;
  setRunning(false);
  if (!found) candidates.forEach(describe);
});
$("stop").addEventListener("click", () => running?.abort());
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});

(async () => {
  $("sample").disabled = true;
  try {
    settings = await (await fetch("/settings")).json();
  } catch {
    say("The server cannot be reached.", true);
    return;
  }
  $("about").textContent = `Policy ${settings.policy}; chosen by ${settings.select}, without hidden tests.`;
  $("tests-field").hidden = !settings.has_tests;
  $("num_samples").max = settings.num_samples;
  $("num_samples").value = settings.num_samples;
  $("sample").disabled = false;
})();
