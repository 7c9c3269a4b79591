// Asks for the same recommendations twice in one batch, as is and with the switches, and shows what moved.
// Data enters the document as text alone; an answer that a later question has overtaken is dropped.

const DEBOUNCE_MS = 250;
const LONGEST_RETRY_S = 30;
const SHOWN_EXAMPLES = 6;

const language = document.documentElement.lang;
const decimals = (places) => new Intl.NumberFormat(language, { maximumFractionDigits: places });
const thousandths = new Intl.NumberFormat(language, { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const percent = new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 0 });
const seconds = new Intl.NumberFormat(language, { style: "unit", unit: "second", unitDisplay: "long" });
const both = new Intl.ListFormat(language, { type: "conjunction" });
const plural = new Intl.PluralRules(language);

const REASONS = {
  "unknown user": "nobody with this id is known",
  "no known title in the history": "none of these titles is in the catalogue",
  "store unavailable": "the store of users cannot be reached right now",
};

const UNSERVED = "No recommendations yet: one of your choices cannot be served.";

const byId = (id) => document.getElementById(id);
const state = { key: null, catalogue: null, examples: { users: [], titles: [] }, meant: new Map(), watched: [] };
const asking = { newest: null, timer: 0 };

// ---- Words and elements

const words = (name) => name.replaceAll("_", " ");
const capital = (text) => text.charAt(0).toLocaleUpperCase(language) + text.slice(1);
const listed = (names) => both.format(names.map(words));
const titles = (count) => `${decimals(0).format(count)} ${plural.select(count) === "one" ? "title" : "titles"}`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function button(text, onclick, properties = {}) {
  const made = element("button", { type: "button", ...properties }, text);
  made.addEventListener("click", onclick);
  return made;
}

// ---- The API

class Refusal extends Error {
  constructor(status, field, message) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

function retryAfterS(response) {
  const header = response.headers.get("Retry-After");
  if (![429, 503].includes(response.status) || !header) return null;
  const wait = Number.isNaN(Number(header)) ? (Date.parse(header) - Date.now()) / 1000 : Number(header);
  return wait <= LONGEST_RETRY_S ? Math.max(wait, 0) : null;
}

function pause(wait_s, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, wait_s * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

async function call(path, { body, signal, retry = true } = {}) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store" };
  const response = await fetch(path, { ...options, signal });
  const wait_s = retryAfterS(response);
  if (retry && wait_s !== null) {
    say(`The service is busy; asking again in ${seconds.format(Math.ceil(wait_s))}.`);
    await pause(wait_s, signal);
    return call(path, { body, signal, retry: false });
  }
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  throw new Refusal(response.status, problem.field, problem.message || `The service answered ${response.status}.`);
}

// ---- Starting

async function start() {
  clearProblems();
  try {
    const [catalogue, examples] = await Promise.all([call("v1/combinations"), call("v1/examples").catch(noExamples)]);
    state.examples = examples;
    drawExamples();
    useCatalogue(catalogue, firstSetting(catalogue));
    acceptKey();
    ask();
  } catch (error) {
    showError(error, start);
  }
}

function noExamples(error) {
  if (error.status === 401) throw error;
  return { users: [], titles: [] };
}

const firstSetting = (catalogue) => catalogue.combinations.find(({ ignore }) => ignore.length > 0)?.ignore ?? [];

function useCatalogue(catalogue, ignored) {
  const chosen = byId("territory").value;
  const told = readAttributes();
  state.catalogue = catalogue;
  byId("territory").replaceChildren(...catalogue.territories.map((name) => new Option(name)));
  if (catalogue.territories.includes(chosen)) byId("territory").value = chosen;
  const names = Object.keys(catalogue.attributes);
  byId("switches").querySelector(".row").replaceChildren(...names.map((name) => drawSwitch(name, ignored)));
  byId("attributes").querySelector(".selects").replaceChildren(...names.map((name) => drawSelect(name, told[name])));
  byId("version").textContent = `Model version ${catalogue.bundle_version}`;
  drawAudit();
}

function drawSwitch(name, ignored) {
  const input = element("input", { type: "checkbox", value: name, checked: ignored.includes(name) });
  input.setAttribute("role", "switch");
  return element("label", { className: "switch" }, input, element("span", {}, capital(words(name))));
}

function drawSelect(name, chosen = "") {
  const values = state.catalogue.attributes[name].map((value) => new Option(value));
  const select = element("select", { name }, new Option("Not told", ""), ...values);
  select.value = chosen;
  if (select.selectedIndex < 0) select.value = "";
  return element("label", {}, capital(words(name)), select);
}

function drawExamples() {
  const { users, titles: known } = state.examples;
  const pick = (user) => () => ((byId("user").value = user), changed());
  const items = users.slice(0, SHOWN_EXAMPLES).map((user) => element("li", {}, button(user, pick(user))));
  byId("examples").querySelector("ul").replaceChildren(...items);
  byId("examples").hidden = users.length === 0;
  const labels = labelTitles(known);
  state.meant = new Map(known.flatMap((one, place) => [[one.title_id, one], [folded(labels[place]), one]]));
  byId("titles").replaceChildren(...known.map(({ title_id }, place) => new Option(title_id, labels[place])));
  if (!byId("user").value && users.length > 0) byId("user").value = users[0];
  drawWatched();
}

// ---- The history

const folded = (text) => text.toLocaleLowerCase(language);

/** What stands for each title in the suggestions: its name, with its id where another has the same name. */
function labelTitles(known) {
  const counts = new Map();
  for (const { name } of known) counts.set(folded(name), (counts.get(folded(name)) ?? 0) + 1);
  return known.map(({ title_id, name }) => (counts.get(folded(name)) > 1 ? `${name} (${title_id})` : name));
}

/** The example title that is meant, else what was typed, taken for a title id. */
function findTitle(typed) {
  return state.meant.get(typed) ?? state.meant.get(folded(typed)) ?? { title_id: typed, name: typed };
}

function addTitles(text) {
  const typed = text.split("\n").map((line) => line.trim()).filter(Boolean);
  state.watched.push(...typed.map(findTitle));
  byId("title").value = "";
  drawWatched();
  if (typed.length > 0) changed();
}

function removeTitle(place) {
  state.watched.splice(place, 1);
  drawWatched();
  const left = byId("watched").querySelectorAll("button");
  (left[Math.min(place, left.length - 1)] ?? byId("title")).focus();
  changed();
}

function drawWatched() {
  const items = state.watched.map(({ name }, place) => {
    const remove = button("×", () => removeTitle(place));
    remove.setAttribute("aria-label", `Remove ${name}`);
    return element("li", {}, element("span", {}, name), remove);
  });
  byId("watched").replaceChildren(...items);
  byId("fill").hidden = state.watched.length > 0 || state.examples.titles.length === 0;
}

function fillExample() {
  state.watched = state.examples.titles.slice(0, 3);
  drawWatched();
  byId("title").focus();
  changed();
}

// ---- The question

const byHistory = () => document.querySelector("input[name=who]:checked").value === "history";
const switchedOn = () => [...byId("switches").querySelectorAll("input:checked")].map((input) => input.value);

function readAttributes() {
  const selects = [...byId("attributes").querySelectorAll("select")].filter((select) => select.value);
  return Object.fromEntries(selects.map((select) => [select.name, select.value]));
}

/** The request as is, or null where something is still to be said. */
function readRequest() {
  const k = byId("k").valueAsNumber;
  if (!Number.isInteger(k) || !byId("k").validity.valid) {
    showProblem("k", `Give a whole number of titles from ${byId("k").min} to ${byId("k").max}.`);
    return null;
  }
  const offer = { territory: byId("territory").value, k, exclude_seen: byId("exclude-seen").checked, ignore: [] };
  if (byHistory()) {
    const history = state.watched.map((title) => title.title_id);
    return history.length > 0 ? { history, attributes: readAttributes(), ...offer } : null;
  }
  const user_id = byId("user").value.trim();
  return user_id ? { user_id, ...offer } : null;
}

function findCombination(ignored) {
  const wanted = new Set(ignored);
  return state.catalogue.combinations.find(
    ({ ignore }) => ignore.length === wanted.size && ignore.every((name) => wanted.has(name)),
  );
}

function changed() {
  asking.newest?.abort();
  asking.newest = null;
  clearTimeout(asking.timer);
  if (!state.catalogue) return;
  drawAudit();
  byId("outcome").setAttribute("aria-busy", "true");
  asking.timer = setTimeout(ask, DEBOUNCE_MS);
}

async function ask() {
  asking.newest?.abort();
  const mine = (asking.newest = new AbortController());
  clearTimeout(asking.timer);
  clearProblems();
  const asIs = readRequest();
  const ignored = switchedOn();
  const exists = ignored.length === 0 || findCombination(ignored) !== undefined;
  try {
    if (asIs === null) return invite();
    byId("outcome").setAttribute("aria-busy", "true");
    const requests = exists ? [asIs, { ...asIs, ignore: ignored }] : [asIs];
    const { responses } = await call("v1/recommend:batch", { body: { requests }, signal: mine.signal });
    await followVersion(responses[0].bundle_version, ignored, mine.signal);
    if (mine !== asking.newest) return;
    checkServed(responses, ignored);
    acceptKey();
    drawAnswer(asIs, responses, ignored);
  } catch (error) {
    if (mine === asking.newest) showError(error, ask);
  } finally {
    if (mine === asking.newest) byId("outcome").removeAttribute("aria-busy");
  }
}

/** Another bundle was promoted meanwhile: its switches and figures replace those on the page. */
async function followVersion(version, ignored, signal) {
  if (version === state.catalogue.bundle_version) return;
  const catalogue = await call("v1/combinations", { signal });
  if (!signal.aborted) useCatalogue(catalogue, ignored);
}

function checkServed(responses, ignored) {
  const wanted = [undefined, ignored.length > 0 ? findCombination(ignored)?.name : undefined];
  responses.forEach(({ source, combination }, place) => {
    if (source === "model" && combination !== (wanted[place] ?? "none")) {
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

/** `requests[1].ignore[0]` -> `ignore`; `general` for what has no place on the page. */
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
  if (field !== "general") say(UNSERVED);
  else byId("problem-general").append(" ", button("Try again", again));
}

function askForKey() {
  byId("key-form").hidden = false;
  showProblem("key", state.key ? "This key was not accepted." : "This service answers only with an API key.");
  say("An API key is needed before anything can be shown.");
  byId("key").focus();
}

function acceptKey() {
  byId("key-form").hidden = true;
  byId("key").value = "";
}

// ---- The answer

const say = (sentence) => (byId("summary").textContent = sentence);

function clearOutcome(sentence) {
  say(sentence);
  byId("notices").replaceChildren();
  byId("lists").hidden = true;
  byId("dropped").hidden = true;
}

function invite() {
  if (byId("k").getAttribute("aria-invalid")) return clearOutcome(UNSERVED);
  clearOutcome(byHistory() ? "Add what was watched to see recommendations." : "Give a user id to see recommendations.");
}

/** Titles with what moved: places risen since `before`, or null for a new one. */
function compare(before, after) {
  const places = new Map(before.map(({ title_id }, place) => [title_id, place]));
  const moves = after.map(({ title_id }, place) => (places.has(title_id) ? places.get(title_id) - place : null));
  const kept = new Set(after.map(({ title_id }) => title_id));
  return { moves, dropped: before.filter(({ title_id }) => !kept.has(title_id)) };
}

function drawMove(move) {
  const kind = move === null ? "new" : move > 0 ? "up" : move < 0 ? "down" : "same";
  const text = move ? `${kind} ${decimals(0).format(Math.abs(move))}` : kind;
  return element("span", { className: `move ${kind}` }, text);
}

function drawTitles(list, recommended, moves) {
  const items = recommended.map(({ name }, place) => {
    const item = element("li", {}, element("span", { className: "name" }, name));
    if (moves) item.append(" ", drawMove(moves[place]));
    return item;
  });
  list.replaceChildren(...items);
}

function drawAnswer(request, [asIs, ignoring], ignored) {
  const { moves, dropped } = compare(asIs.titles, ignoring?.titles ?? asIs.titles);
  byId("lists").hidden = false;
  byId("ignoring-title").textContent = `Ignoring ${ignored.length > 0 ? listed(ignored) : "nothing"}`;
  drawTitles(byId("as-is"), asIs.titles);
  drawTitles(byId("ignoring"), ignoring?.titles ?? [], moves);
  byId("missing").hidden = ignoring !== undefined;
  if (!ignoring) drawMissing(ignored);
  byId("dropped").hidden = dropped.length === 0;
  byId("dropped").querySelector("ul").replaceChildren(...dropped.map(({ name }) => element("li", {}, name)));
  say(ignoring ? summarise(moves, ignored) : missingSentence(ignored));
  byId("notices").replaceChildren(...notices(request, asIs, ignoring).map((text) => element("li", {}, text)));
}

function summarise(moves, ignored) {
  const fresh = moves.filter((move) => move === null).length;
  const moved = moves.filter(Boolean).length;
  if (moves.length === 0) return "No title can be offered here.";
  if (ignored.length === 0) return "Nothing is ignored, so both lists are the same.";
  if (fresh + moved === 0) return `Ignoring ${listed(ignored)} changes nothing here: same titles, same order.`;
  const changedTitles = `${decimals(0).format(fresh)} of ${titles(moves.length)} changed`;
  const stayed = moves.length - fresh - moved;
  return `${changedTitles}, ${decimals(0).format(moved)} moved, ${decimals(0).format(stayed)} stayed in place.`;
}

function missingSentence(ignored) {
  const together = ignored.length > 1 ? " together" : "";
  return `There is no setting that ignores ${listed(ignored)}${together}.`;
}

function drawMissing(ignored) {
  const settings = state.catalogue.combinations.map(({ ignore }) => ignore).filter((ignore) => ignore.length > 0);
  const items = settings.map((ignore) => element("li", {}, button(capital(listed(ignore)), () => setSwitches(ignore))));
  const offer = settings.length > 0 ? "What there is:" : "This model has no such settings.";
  byId("missing").replaceChildren(
    element("p", {}, missingSentence(ignored), " Nothing else is shown in its place."),
    element("p", {}, offer),
    element("ul", { className: "settings", role: "list" }, ...items),
  );
}

function setSwitches(ignored) {
  const inputs = [...byId("switches").querySelectorAll("input")];
  for (const input of inputs) input.checked = ignored.includes(input.value);
  inputs.find((input) => input.checked)?.focus();
  changed();
}

function notices(request, asIs, ignoring) {
  const found = [];
  const popular = [asIs, ignoring].find((answer) => answer?.source === "popularity");
  if (popular) {
    const why = REASONS[popular.reason] ?? popular.reason;
    found.push(
      `These are the most watched titles of ${request.territory}, the same for everybody` +
        `${why ? `: ${why}` : ""}. The switches make no difference to them.`,
    );
  }
  if (asIs.unknown_titles > 0) {
    found.push(`Left out, being in no catalogue: ${titles(asIs.unknown_titles)} of the history.`);
  }
  for (const name of ignoring?.unknown_values ?? []) {
    const hint = request.history ? ` Say it under “Known about them” to hide it better.` : "";
    found.push(`The ${words(name)} of this person is not known, so it is hidden only as far as that goes.${hint}`);
  }
  return found;
}

// ---- The audit

function drawAudit() {
  const ignored = switchedOn();
  const combination = findCombination(ignored);
  const reference = findCombination([]);
  const names = Object.keys(state.catalogue.attributes);
  byId("audit").hidden = ignored.length > 0 && !combination;
  const read = names.map((name) => reading(name, combination?.audit?.[name]));
  byId("accuracy").textContent = accuracySentence(ignored, combination?.metrics, reference?.metrics);
  byId("readings").replaceChildren(...read.map((one, place) => drawReading(names[place], one, ignored)));
  byId("meter-key").hidden = read.every((one) => one === null);
  byId("figures").replaceChildren(...figures(names, combination, reference).map((text) => element("li", {}, text)));
}

/** Figures of one attribute with what follows from them; null where it was not audited. */
function reading(name, audit) {
  if (!Number.isFinite(audit?.balanced_accuracy)) return null;
  const chance = Number.isFinite(audit.chance) ? audit.chance : 1 / state.catalogue.attributes[name].length;
  const { balanced_accuracy: value, null_low: low, null_high: high } = audit;
  const bounded = Number.isFinite(low) && Number.isFinite(high);
  return { ...audit, value, chance, bounded, beyond: bounded && value > high, trace: audit.auc > audit.auc_null_high };
}

function guessSentence(name, one) {
  const near = Math.round(one.value * 100) === Math.round(one.null_high * 100) && one.value !== one.null_high;
  const of100 = (share) => decimals(near ? 1 : 0).format(share * 100);
  const chance = one.bounded ? ` (${of100(one.null_low)} to ${of100(one.null_high)} is chance)` : "";
  return `guesses ${name} right ${of100(one.value)} of 100 times; blind guessing gets ${of100(one.chance)}${chance}.`;
}

/** Badge, its look and the sentences for one attribute. */
function verdict(name, one, isIgnored) {
  if (one === null) return ["Not audited", "unsure", `${capital(name)} was not audited for this setting.`];
  const guess = guessSentence(name, one);
  if (!isIgnored) {
    const even = one.bounded && !one.beyond && !one.trace ? " Even so, that is no better than chance." : "";
    return ["Not hidden", "open", `${capital(name)} is not hidden: an attacker ${guess}${even}`];
  }
  const attack = `A strong attacker who sees only the hidden profile ${guess}`;
  if (!one.bounded) return ["Chance not measured", "unsure", attack];
  if (one.beyond) return ["Still readable", "leak", `${attack} That beats chance: some of it can still be read.`];
  if (one.trace) {
    const auc = `AUC ${decimals(2).format(one.auc)}, where chance reaches ${decimals(2).format(one.auc_null_high)}`;
    return ["A trace is left", "leak", `${attack} Yet its guesses lean the right way beyond chance (${auc}).`];
  }
  return ["At chance level", "safe", `${attack} That is no better than chance.`];
}

function drawReading(attribute, one, ignored) {
  const name = words(attribute);
  const [badge, look, sentence] = verdict(name, one, ignored.includes(attribute));
  const heading = element("h3", {}, capital(name), " ", element("span", { className: `badge ${look}` }, badge));
  const item = element("li", {}, heading, element("p", {}, sentence));
  if (one !== null) heading.after(drawMeter(one, look));
  return item;
}

function drawMeter(one, look) {
  const draw = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const at = (share) => `${(share * 100).toFixed(2)}%`;
  const svg = draw("svg", { class: `meter ${look}`, "aria-hidden": "true", focusable: "false" });
  svg.append(draw("rect", { class: "scale", x: 0, y: 9, width: "100%", height: 6, rx: 3 }));
  if (one.bounded) {
    const width = at(one.null_high - one.null_low);
    svg.append(draw("rect", { class: "band", x: at(one.null_low), y: 6, width, height: 12, rx: 3 }));
  }
  svg.append(draw("line", { class: "chance", x1: at(one.chance), x2: at(one.chance), y1: 2, y2: 22 }));
  svg.append(draw("circle", { class: "guess", cx: at(one.value), cy: 12, r: 6 }));
  return svg;
}

function accuracySentence(ignored, metrics, reference) {
  if (ignored.length === 0) return "Nothing is ignored. Switch something off to see how well it hides.";
  const share = metrics?.["ndcg@10"] / reference?.["ndcg@10"];
  if (!Number.isFinite(share)) return "How accurate the recommendations stay was not audited.";
  const rounded = Math.round(share * 100);
  if (rounded === 100) return "Recommendations stay as accurate as before.";
  if (rounded > 100) return `Recommendations stay as accurate as before (measured: ${percent.format(share)}).`;
  return `Recommendations ${rounded >= 95 ? "stay" : "are only"} ${percent.format(share)} as accurate.`;
}

function figures(names, combination, reference) {
  const found = [];
  const within = (of, key) => {
    const [value, low, high] = [key, `${key}_low`, `${key}_high`].map((one) => thousandths.format(of[one]));
    return Number.isFinite(of[`${key}_low`]) ? `${value} (95%: ${low} to ${high})` : value;
  };
  for (const [title, metrics] of [["as is", reference?.metrics], ["with the switches", combination?.metrics]]) {
    if (Number.isFinite(metrics?.["ndcg@10"])) found.push(`NDCG@10 ${title}: ${within(metrics, "ndcg@10")}`);
  }
  for (const name of names) {
    const audit = combination?.audit?.[name];
    if (!Number.isFinite(audit?.balanced_accuracy)) continue;
    const attacker = audit.attacker ? `, best attacker: ${audit.attacker}` : "";
    const users = audit.num_users ? `, ${decimals(0).format(audit.num_users)} users` : "";
    found.push(`${capital(words(name))}: guessed right ${within(audit, "balanced_accuracy")}${attacker}${users}`);
  }
  return found;
}

// ---- Events

byId("ask").addEventListener("input", (event) => event.target.id !== "title" && changed());
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.catalogue) ask();
});
for (const radio of document.querySelectorAll("input[name=who]")) {
  radio.addEventListener("change", () => {
    byId("user-pane").hidden = byHistory();
    byId("history-pane").hidden = !byHistory();
  });
}
byId("add").addEventListener("click", () => {
  addTitles(byId("title").value);
  byId("title").focus();
});
byId("fill").addEventListener("click", fillExample);
byId("title").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  addTitles(byId("title").value);
});
byId("title").addEventListener("paste", (event) => {
  const text = event.clipboardData.getData("text/plain");
  if (!text.includes("\n")) return;
  event.preventDefault();
  addTitles(text);
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = byId("key").value.trim();
  if (state.catalogue) ask();
  else start();
});

start();
