// Sends the same request twice in one batch, as is and with the switches, and shows the differences.
// Data enters the document as text only; an answer to an outdated request is dropped.

const DEBOUNCE_MS = 250;
const MAX_RETRY_S = 30;
const SHOWN_EXAMPLES = 6;
const CANNOT_BE_SERVED = "No recommendations: one of your choices cannot be served.";
const REASONS = {
  "unknown user": "this user id is unknown",
  "no known title in the history": "none of these titles is in the catalogue",
  "store unavailable": "the user store cannot be reached now",
};

const language = document.documentElement.lang;
const decimals = (value, places = 0) =>
  value.toLocaleString(language, { minimumFractionDigits: places, maximumFractionDigits: places });
const percent = (ratio) => ratio.toLocaleString(language, { style: "percent" });

const byId = (id) => document.getElementById(id);
const state = { key: null, catalogue: null, examples: { users: [], titles: [] }, titlesByText: new Map(), watched: [] };
const pending = { request: null, timer: 0 };

// ---- Text and elements

const words = (name) => name.replaceAll("_", " ");
const capital = (text) => text.charAt(0).toLocaleUpperCase(language) + text.slice(1);
const lowerCase = (text) => text.toLocaleLowerCase(language);
const listed = (names) => new Intl.ListFormat(language).format(names.map(words));
const titleCount = (count) => `${count} ${count === 1 ? "title" : "titles"}`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const button = (text, onclick) => element("button", { type: "button", onclick }, text);
const items = (texts, draw = (text) => text) => texts.map((text) => element("li", {}, draw(text)));

// ---- The API

class Refusal extends Error {
  constructor(status, field, message) {
    super(message);
    Object.assign(this, { status, field });
  }
}

async function call(path, { body, signal, retry = true } = {}) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store" };
  const response = await fetch(path, { ...options, signal });
  const wait = Number(response.headers.get("Retry-After") ?? NaN);
  if (retry && [429, 503].includes(response.status) && wait <= MAX_RETRY_S) {
    summarise(`The service is busy; trying again in ${decimals(wait)} s.`);
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    return call(path, { body, signal, retry: false });
  }
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  throw new Refusal(response.status, problem.field, problem.message || `The service answered ${response.status}.`);
}

// ---- Start

async function start() {
  clearProblems();
  try {
    const examples = call("v1/examples").catch(() => state.examples);
    const catalogue = await call("v1/combinations");
    state.examples = await examples;
    drawExamples();
    useCatalogue(catalogue, catalogue.combinations.find(({ ignore }) => ignore.length > 0)?.ignore ?? []);
    acceptKey();
    recommend();
  } catch (error) {
    showError(error, start);
  }
}

function useCatalogue(catalogue, ignored) {
  const territory = byId("territory").value;
  const known = readAttributes();
  state.catalogue = catalogue;
  byId("territory").replaceChildren(...catalogue.territories.map((name) => new Option(name)));
  if (catalogue.territories.includes(territory)) byId("territory").value = territory;
  const names = Object.keys(catalogue.attributes);
  byId("switches").querySelector(".row").replaceChildren(...names.map((name) => drawSwitch(name, ignored)));
  byId("attributes").querySelector(".selects").replaceChildren(...names.map((name) => drawSelect(name, known[name])));
  byId("version").textContent = `Model version ${catalogue.bundle_version}`;
  drawAudit();
}

function drawSwitch(name, ignored) {
  const input = element("input", { type: "checkbox", role: "switch", value: name, checked: ignored.includes(name) });
  return element("label", { className: "switch" }, input, element("span", {}, capital(words(name))));
}

function drawSelect(name, known) {
  const values = state.catalogue.attributes[name];
  const options = values.map((value) => new Option(value, value, false, value === known));
  return element("label", {}, capital(words(name)), element("select", { name }, new Option("Unknown", ""), ...options));
}

function drawExamples() {
  const { users, titles } = state.examples;
  const pick = (user) => () => ((byId("user").value = user), changed());
  byId("examples").querySelector("ul").replaceChildren(
    ...items(users.slice(0, SHOWN_EXAMPLES), (user) => button(user, pick(user))),
  );
  byId("examples").hidden = users.length === 0;
  const labels = titleLabels(titles);
  state.titlesByText = new Map(titles.flatMap((one, i) => [[one.title_id, one], [lowerCase(labels[i]), one]]));
  byId("titles").replaceChildren(...titles.map(({ title_id }, i) => new Option(title_id, labels[i])));
  if (!byId("user").value && users.length > 0) byId("user").value = users[0];
  drawWatched();
}

// ---- The history

/** Each title's name, with its id if another title has the same name. */
function titleLabels(titles) {
  const counts = new Map();
  for (const { name } of titles) counts.set(lowerCase(name), (counts.get(lowerCase(name)) ?? 0) + 1);
  return titles.map(({ title_id, name }) => (counts.get(lowerCase(name)) > 1 ? `${name} (${title_id})` : name));
}

/** The example title of this id or label; otherwise the text itself is the title id. */
const findTitle = (text) =>
  state.titlesByText.get(text) ?? state.titlesByText.get(lowerCase(text)) ?? { title_id: text, name: text };

function addTitles(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  state.watched.push(...lines.map(findTitle));
  byId("title").value = "";
  drawWatched();
  if (lines.length > 0) changed();
}

function removeTitle(index) {
  state.watched.splice(index, 1);
  drawWatched();
  const buttons = byId("watched").querySelectorAll("button");
  (buttons[Math.min(index, buttons.length - 1)] ?? byId("title")).focus();
  changed();
}

function drawWatched() {
  const rows = state.watched.map(({ name }, index) => {
    const remove = button("×", () => removeTitle(index));
    remove.ariaLabel = `Remove ${name}`;
    return element("li", {}, element("span", {}, name), remove);
  });
  byId("watched").replaceChildren(...rows);
  byId("fill").hidden = state.watched.length > 0 || state.examples.titles.length === 0;
}

function fillExample() {
  state.watched = state.examples.titles.slice(0, 3);
  drawWatched();
  byId("title").focus();
  changed();
}

// ---- The request

const byHistory = () => document.querySelector("input[name=who]:checked").value === "history";
const switchedOn = () => [...byId("switches").querySelectorAll("input:checked")].map((input) => input.value);

function readAttributes() {
  const selects = [...byId("attributes").querySelectorAll("select")].filter((select) => select.value);
  return Object.fromEntries(selects.map((select) => [select.name, select.value]));
}

/** The request as is, or null if something is missing. */
function readRequest() {
  const { valueAsNumber: k, validity, min, max } = byId("k");
  if (!Number.isInteger(k) || !validity.valid) {
    showProblem("k", `Give a whole number of titles from ${min} to ${max}.`);
    return null;
  }
  const common = { territory: byId("territory").value, k, exclude_seen: byId("exclude-seen").checked, ignore: [] };
  if (byHistory()) {
    const history = state.watched.map((title) => title.title_id);
    return history.length > 0 ? { history, attributes: readAttributes(), ...common } : null;
  }
  const user_id = byId("user").value.trim();
  return user_id ? { user_id, ...common } : null;
}

function findCombination(ignored) {
  const same = ({ ignore }) => ignore.length === ignored.length && ignore.every((name) => ignored.includes(name));
  return state.catalogue.combinations.find(same);
}

function cancel() {
  pending.request?.abort();
  pending.request = null;
  clearTimeout(pending.timer);
}

function changed() {
  cancel();
  if (!state.catalogue) return;
  drawAudit();
  byId("outcome").ariaBusy = "true";
  pending.timer = setTimeout(recommend, DEBOUNCE_MS);
}

async function recommend() {
  cancel();
  const mine = (pending.request = new AbortController());
  clearProblems();
  const asIs = readRequest();
  const ignored = switchedOn();
  try {
    if (asIs === null) return askForInput();
    byId("outcome").ariaBusy = "true";
    const requests = findCombination(ignored) ? [asIs, { ...asIs, ignore: ignored }] : [asIs];
    const { responses } = await call("v1/recommend:batch", { body: { requests }, signal: mine.signal });
    await followVersion(responses[0].bundle_version, ignored, mine.signal);
    if (mine !== pending.request) return;
    checkServed(responses, ignored);
    acceptKey();
    drawAnswer(asIs, responses, ignored);
  } catch (error) {
    if (mine === pending.request) showError(error, recommend);
  } finally {
    if (mine === pending.request) byId("outcome").ariaBusy = null;
  }
}

/** Show the switches and the audit of a bundle that was promoted meanwhile. */
async function followVersion(version, ignored, signal) {
  if (version === state.catalogue.bundle_version) return;
  const catalogue = await call("v1/combinations", { signal });
  if (!signal.aborted) useCatalogue(catalogue, ignored);
}

function checkServed(responses, ignored) {
  const expected = ["none", findCombination(ignored)?.name];
  responses.forEach(({ source, combination }, i) => {
    if (source === "model" && combination !== expected[i]) {
      throw new Refusal(500, "ignore", `The service answered for another setting (${combination}); it is not shown.`);
    }
  });
}

// ---- Problems

function showProblem(field, message) {
  const slot = byId(`problem-${field}`);
  slot.textContent = message;
  document.querySelector(`[aria-describedby~="${slot.id}"]`)?.setAttribute("aria-invalid", "true");
}

function clearProblems() {
  document.querySelectorAll(".problem").forEach((slot) => slot.replaceChildren());
  document.querySelectorAll("[aria-invalid]").forEach((control) => control.removeAttribute("aria-invalid"));
}

/** `requests[1].ignore[0]` -> `ignore`; `general` for fields that are not on the page. */
function fieldOf(path) {
  const name = /^(?:body\.)?(?:requests\[?\.?\d+\]?\.)?([a-z_]+)/.exec(path ?? "")?.[1];
  const slot = name && name !== "key" ? byId(`problem-${name}`) : null;
  return slot && !slot.closest("[hidden]") ? name : "general";
}

function showError(error, again) {
  clearOutcome("");
  if (error.status === 401) return askForKey();
  const refused = error instanceof Refusal;
  if (!refused) console.warn(error);
  const field = refused ? fieldOf(error.field) : "general";
  showProblem(field, refused ? error.message : "The service cannot be reached.");
  if (field !== "general") summarise(CANNOT_BE_SERVED);
  else byId("problem-general").append(" ", button("Try again", again));
}

function askForKey() {
  byId("key-form").hidden = false;
  showProblem("key", state.key ? "This key was not accepted." : "This service requires an API key.");
  summarise("Enter an API key to see recommendations.");
  byId("key").focus();
}

function acceptKey() {
  byId("key-form").hidden = true;
  byId("key").value = "";
}

// ---- The answer

const summarise = (sentence) => (byId("summary").textContent = sentence);

function clearOutcome(sentence) {
  summarise(sentence);
  byId("notices").replaceChildren();
  byId("lists").hidden = true;
  byId("dropped").hidden = true;
}

function askForInput() {
  if (byId("k").getAttribute("aria-invalid")) return clearOutcome(CANNOT_BE_SERVED);
  clearOutcome(byHistory() ? "Add watched titles to see recommendations." : "Give a user id to see recommendations.");
}

/** Ranks that each title gained since `before`, null if it is new, and the titles that are gone. */
function compare(before, after) {
  const ranks = new Map(before.map(({ title_id }, rank) => [title_id, rank]));
  const moves = after.map(({ title_id }, rank) => (ranks.has(title_id) ? ranks.get(title_id) - rank : null));
  const remaining = new Set(after.map(({ title_id }) => title_id));
  return { moves, dropped: before.filter(({ title_id }) => !remaining.has(title_id)) };
}

function drawMove(move) {
  const kind = move === null ? "new" : move > 0 ? "up" : move < 0 ? "down" : "same";
  return element("span", { className: `move ${kind}` }, move ? `${kind} ${Math.abs(move)}` : kind);
}

function drawTitles(id, titles, moves) {
  const rows = titles.map(({ name }, i) => {
    const row = element("li", {}, element("span", { className: "name" }, name));
    if (moves) row.append(" ", drawMove(moves[i]));
    return row;
  });
  byId(id).replaceChildren(...rows);
}

function drawAnswer(request, [asIs, ignoring], ignored) {
  const { moves, dropped } = compare(asIs.titles, ignoring?.titles ?? asIs.titles);
  byId("lists").hidden = false;
  byId("ignoring-title").textContent = `Ignoring ${ignored.length > 0 ? listed(ignored) : "nothing"}`;
  drawTitles("as-is", asIs.titles);
  drawTitles("ignoring", ignoring?.titles ?? [], moves);
  byId("missing").hidden = ignoring !== undefined;
  if (!ignoring) drawMissing(ignored);
  byId("dropped").hidden = dropped.length === 0;
  byId("dropped").querySelector("ul").replaceChildren(...items(dropped.map(({ name }) => name)));
  summarise(ignoring ? changeSentence(moves, ignored) : missingSentence(ignored));
  byId("notices").replaceChildren(...items(notices(request, asIs, ignoring)));
}

function changeSentence(moves, ignored) {
  const changes = moves.filter((move) => move === null).length;
  const moved = moves.filter(Boolean).length;
  if (moves.length === 0) return "No title is offered here.";
  if (ignored.length === 0) return "Nothing is ignored, so both lists are the same.";
  if (changes + moved === 0) return `Ignoring ${listed(ignored)} changes nothing here: same titles, same order.`;
  const stayed = moves.length - changes - moved;
  return `${changes} of ${titleCount(moves.length)} changed, ${moved} moved, ${stayed} stayed in place.`;
}

function missingSentence(ignored) {
  return `There is no setting that ignores ${listed(ignored)}${ignored.length > 1 ? " together" : ""}.`;
}

function drawMissing(ignored) {
  const settings = state.catalogue.combinations.map(({ ignore }) => ignore).filter((ignore) => ignore.length > 0);
  const choices = items(settings, (ignore) => button(capital(listed(ignore)), () => setSwitches(ignore)));
  const text = `${missingSentence(ignored)} Another setting is never shown instead. Available:`;
  byId("missing").replaceChildren(element("p", {}, text), element("ul", { className: "settings" }, ...choices));
}

function setSwitches(ignored) {
  const inputs = [...byId("switches").querySelectorAll("input")];
  for (const input of inputs) input.checked = ignored.includes(input.value);
  inputs.find((input) => input.checked)?.focus();
  changed();
}

function notices(request, asIs, ignoring) {
  const texts = [];
  const popular = [asIs, ignoring].find((answer) => answer?.source === "popularity");
  if (popular) {
    const reason = REASONS[popular.reason] ?? popular.reason;
    texts.push(
      `These are the most popular titles of ${request.territory}, the same for all users` +
        `${reason ? `: ${reason}` : ""}. The switches do not change them.`,
    );
  }
  if (asIs.unknown_titles > 0) texts.push(`Skipped: ${titleCount(asIs.unknown_titles)} not in the catalogue.`);
  for (const name of ignoring?.unknown_values ?? []) {
    const hint = request.history ? ` Choose it under “Known attributes” to hide it better.` : "";
    texts.push(`The ${words(name)} of this user is unknown, so it may be hidden less well.${hint}`);
  }
  return texts;
}

// ---- The audit

function drawAudit() {
  const ignored = switchedOn();
  const combination = findCombination(ignored);
  const backbone = findCombination([]);
  const names = Object.keys(state.catalogue.attributes);
  byId("audit").hidden = !combination;
  const results = names.map((name) => auditResult(combination?.audit[name]));
  byId("accuracy").textContent = accuracySentence(ignored, combination?.metrics, backbone?.metrics);
  byId("readings").replaceChildren(...results.map((result, i) => drawResult(names[i], result, ignored)));
  byId("meter-key").hidden = results.every((result) => result === null);
  byId("figures").replaceChildren(...items(figures(names, combination, backbone)));
}

/** Balanced accuracy of the best attacker, with conclusions; null if the attribute was not audited. */
function auditResult(audit) {
  if (!audit) return null;
  const { balanced_accuracy: accuracy, auc } = audit;
  return { ...accuracy, auc, leaks: accuracy.value > accuracy.null_high, traces: auc.value > auc.null_high };
}

function guessSentence(name, { value, chance, null_low: low, null_high: high }) {
  const near = Math.round(value * 100) === Math.round(high * 100) && value !== high;
  const [guessed, random, from, to] = [value, chance, low, high].map((ratio) => decimals(ratio * 100, near ? 1 : 0));
  return `guesses ${name} correctly ${guessed} of 100 times; random guessing ${random} (${from} to ${to} is chance).`;
}

/** Badge text, badge class and explanation for one attribute. */
function verdict(name, result, isIgnored) {
  if (result === null) return ["Not audited", "unknown", `${capital(name)} was not audited for this setting.`];
  const { leaks, traces, auc } = result;
  const guess = guessSentence(name, result);
  if (!isIgnored) {
    const even = leaks || traces ? "" : " Even so, that is no better than chance.";
    return ["Not hidden", "unknown", `${capital(name)} is not hidden: an attacker ${guess}${even}`];
  }
  const attack = `A strong attacker who sees only the hidden profile ${guess}`;
  if (leaks) return ["Leaks", "leaks", `${attack} That is better than chance: the attribute still leaks.`];
  if (traces) {
    const range = `AUC ${decimals(auc.value, 2)}, chance reaches ${decimals(auc.null_high, 2)}`;
    return ["Leaks slightly", "leaks", `${attack} Yet its scores rank users better than chance (${range}).`];
  }
  return ["At chance level", "hidden-well", `${attack} That is no better than chance.`];
}

function drawResult(attribute, result, ignored) {
  const name = words(attribute);
  const [badge, kind, sentence] = verdict(name, result, ignored.includes(attribute));
  const heading = element("h3", {}, capital(name), " ", element("span", { className: `badge ${kind}` }, badge));
  return element("li", {}, heading, ...(result ? [drawMeter(result, kind)] : []), element("p", {}, sentence));
}

/** A scale from 0 to 1, drawn by the style sheet. */
function drawMeter({ value, chance, null_low: low, null_high: high }, kind) {
  const meter = element("div", { className: `meter ${kind}`, ariaHidden: "true" });
  const positions = { value, chance, low, high };
  for (const [name, position] of Object.entries(positions)) meter.style.setProperty(`--${name}`, position);
  return meter;
}

function accuracySentence(ignored, metrics, backbone) {
  if (ignored.length === 0) return "Nothing is ignored. Switch an attribute off to see how well it is hidden.";
  const ratio = metrics?.["ndcg@10"]?.value / backbone?.["ndcg@10"]?.value;
  if (!Number.isFinite(ratio)) return "The accuracy of this setting was not audited.";
  if (ratio >= 0.995) return `Recommendations stay as accurate as before (${percent(ratio)}).`;
  return `Recommendations ${ratio >= 0.945 ? "stay" : "are only"} ${percent(ratio)} as accurate.`;
}

function figures(names, combination, backbone) {
  const interval = (metric) => {
    const [value, low, high] = [metric.value, metric.low, metric.high].map((one) => decimals(one, 3));
    return `${value} (95%: ${low} to ${high})`;
  };
  const ndcg = [["as is", backbone?.metrics["ndcg@10"]], ["with the switches", combination?.metrics["ndcg@10"]]]
    .filter(([, metric]) => metric)
    .map(([label, metric]) => `NDCG@10 ${label}: ${interval(metric)}`);
  const guesses = names.filter((name) => combination?.audit[name]).map((name) => {
    const { balanced_accuracy: accuracy, attacker, num_users: users } = combination.audit[name];
    const by = `best attacker: ${attacker}, ${decimals(users)} users`;
    return `${capital(words(name))}: guessed correctly ${interval(accuracy)}, ${by}`;
  });
  return [...ndcg, ...guesses];
}

// ---- Events

byId("ask").oninput = ({ target }) => target.id !== "title" && changed();
byId("ask").onsubmit = (event) => {
  event.preventDefault();
  if (state.catalogue) recommend();
};
for (const radio of document.querySelectorAll("input[name=who]")) {
  radio.onchange = () => {
    byId("user-pane").hidden = byHistory();
    byId("history-pane").hidden = !byHistory();
  };
}
byId("add").onclick = () => {
  addTitles(byId("title").value);
  byId("title").focus();
};
byId("fill").onclick = fillExample;
byId("title").onkeydown = (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  addTitles(byId("title").value);
};
byId("title").onpaste = (event) => {
  const text = event.clipboardData.getData("text/plain");
  if (!text.includes("\n")) return;
  event.preventDefault();
  addTitles(text);
};
byId("key-form").onsubmit = (event) => {
  event.preventDefault();
  state.key = byId("key").value.trim();
  if (state.catalogue) recommend();
  else start();
};

start();
