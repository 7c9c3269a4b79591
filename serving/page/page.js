// Sends the same request twice in one batch, as is and with the switches, and shows the differences.
// Data enters the document as text only; an answer to an outdated request is dropped.

const DEBOUNCE_MS = 250;

const byId = (id) => document.getElementById(id);
const state = { key: null, catalogue: null, titles: [], watched: [] };
let [pending, timer] = [new AbortController(), 0];

const words = (name) => name.replaceAll("_", " ");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const listed = (names) => new Intl.ListFormat("en").format(names.map(words));
const titleCount = (count) => `${count} ${count === 1 ? "title" : "titles"}`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const badge = (text, kind) => element("span", { className: `badge ${kind}` }, text);
const button = (text, onclick, ariaLabel = null) => element("button", { type: "button", onclick, ariaLabel }, text);

// ---- The API

async function call(path, { body, signal } = {}) {
  const headers = { "Content-Type": "application/json" };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const options = body && { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
  if (response.ok) return response.json();
  const { field, message } = await response.json().catch(() => ({}));
  const name = field?.replace(/^requests\[\d+\]\.?/, "");
  const text = `${name ? `${name}: ` : ""}${message ?? `the service answered ${response.status}`}`;
  throw Object.assign(new Error(text), { status: response.status });
}

async function start() {
  byId("problem").replaceChildren();
  try {
    const catalogue = await call("v1/combinations");
    drawExamples(await call("v1/examples").catch(() => ({ users: [], titles: [] })));
    byId("exclude-seen").checked = catalogue.exclude_seen;
    useCatalogue(catalogue, catalogue.combinations.find(({ ignore }) => ignore.length > 0)?.ignore ?? []);
    recommend();
  } catch (error) {
    showError(error, start);
  }
}

/** Show the switches and choices of a bundle, at first or after a promotion. */
function useCatalogue(catalogue, ignored) {
  const [territory, known] = [byId("territory").value, readAttributes()];
  const option = (value, chosen) => new Option(value, value, false, value === chosen);
  const names = Object.keys(catalogue.attributes);
  state.catalogue = catalogue;
  byId("territory").replaceChildren(...catalogue.territories.map((value) => option(value, territory)));
  byId("switches").replaceChildren(byId("switches").firstElementChild, ...names.map((name) => {
    const input = element("input", { type: "checkbox", role: "switch", value: name, checked: ignored.includes(name) });
    return element("label", { className: "tick" }, input, capital(words(name)));
  }));
  byId("attributes").replaceChildren(...names.map((name) => {
    const options = catalogue.attributes[name].map((value) => option(value, known[name]));
    return element("label", {}, capital(words(name)), element("select", { name }, new Option("Unknown", ""), ...options));
  }));
  byId("version").textContent = `Model version ${catalogue.bundle_version}`;
}

// ---- The user

/** Start with a stored user if there is one, otherwise with some titles. */
function drawExamples({ users, titles }) {
  byId("examples").replaceChildren(...users.map((user) => button(user, () => {
    byId("user").value = user;
    changed(0);
  })));
  byId("stored-user").checked = users.length > 0;
  byId("user").value = users[0] ?? "";
  state.titles = titles;
  byId("titles").replaceChildren(...titles.map(({ title_id, name }) => new Option(title_id, name)));
  watch(titles.slice(0, 3));
}

function addTitle() {
  const text = byId("title").value.trim();
  if (!text) return;
  const known = ({ title_id, name }) => title_id === text || name.toLowerCase() === text.toLowerCase();
  watch([...state.watched, state.titles.find(known) ?? { title_id: text, name: text }]);
  byId("title").value = "";
  changed();
}

function watch(titles) {
  state.watched = titles;
  byId("watched").replaceChildren(...titles.map(({ name }, index) => {
    const remove = () => {
      watch(titles.toSpliced(index, 1));
      byId("title").focus();
      changed();
    };
    return element("li", {}, element("span", {}, name), button("×", remove, `Remove ${name}`));
  }));
}

// ---- The request

const switchedOn = () => [...byId("switches").querySelectorAll("input:checked")].map((input) => input.value);

function readAttributes() {
  const selects = [...byId("attributes").querySelectorAll("select")].filter((select) => select.value);
  return Object.fromEntries(selects.map((select) => [select.name, select.value]));
}

/** The request without its switches, or the sentence that names what is missing. */
function readRequest() {
  const k = byId("k").valueAsNumber;
  if (!Number.isInteger(k) || !byId("k").validity.valid) return "Give a whole number of titles from 1 to 100.";
  const byUser = byId("ask").elements.who.value === "user";
  const user_id = byId("user").value.trim();
  const history = state.watched.map((title) => title.title_id);
  if (byUser && !user_id) return "Give a user id to see recommendations.";
  if (!byUser && history.length === 0) return "Add watched titles to see recommendations.";
  const user = byUser ? { user_id } : { history, attributes: readAttributes() };
  return { ...user, territory: byId("territory").value, k, exclude_seen: byId("exclude-seen").checked };
}

function findCombination(ignored) {
  const same = ({ ignore }) => ignore.length === ignored.length && ignore.every((name) => ignored.includes(name));
  return state.catalogue.combinations.find(same);
}

function changed(delay = DEBOUNCE_MS) {
  pending.abort();
  clearTimeout(timer);
  if (state.catalogue) timer = setTimeout(recommend, delay);
}

async function recommend() {
  const { signal } = (pending = new AbortController());
  byId("problem").replaceChildren();
  const request = readRequest();
  const ignored = switchedOn();
  drawAudit(ignored);
  if (typeof request === "string") return clearLists(request);
  const requests = findCombination(ignored) ? [request, { ...request, ignore: ignored }] : [request];
  try {
    const { responses } = await call("v1/recommend:batch", { body: { requests }, signal });
    if (responses[0].bundle_version !== state.catalogue.bundle_version) {
      useCatalogue(await call("v1/combinations", { signal }), ignored);
      drawAudit(ignored);
    }
    drawAnswer(request, responses, ignored);
  } catch (error) {
    if (!signal.aborted) showError(error, () => changed(0));
  }
}

function showError(error, again) {
  const needsKey = error.status === 401;
  clearLists(needsKey ? "Enter an API key to see recommendations." : "No recommendations.");
  byId("key-form").hidden = !needsKey;
  if (needsKey) {
    byId("problem").replaceChildren(state.key ? "This key was not accepted." : "This service requires an API key.");
    byId("key").focus();
  } else {
    if (!error.status) console.warn(error);
    const problem = error.status ? error.message : "The service cannot be reached.";
    byId("problem").replaceChildren(problem, " ", button("Try again", again));
  }
}

// ---- The answer

function clearLists(sentence) {
  byId("summary").textContent = sentence;
  byId("notices").replaceChildren();
  byId("dropped").replaceChildren();
  byId("lists").hidden = true;
}

const row = ({ name }) => element("li", {}, element("span", { className: "name" }, name));

function moveBadge(move) {
  const kind = move === null ? "new" : ["down", "same", "up"][1 + Math.sign(move)];
  return badge(move ? `${kind} ${Math.abs(move)}` : kind, kind);
}

/** `ignoring` is undefined if no eliminator was trained for the switches. */
function drawAnswer(request, [asIs, ignoring], ignored) {
  const [before, after] = [asIs.titles, ignoring?.titles ?? []];
  const rank = (titles, { title_id }) => titles.findIndex((title) => title.title_id === title_id);
  const moves = after.map((title, i) => (rank(before, title) < 0 ? null : rank(before, title) - i));
  const dropped = ignoring ? before.filter((title) => rank(after, title) < 0).map(({ name }) => name) : [];
  byId("lists").hidden = false;
  byId("ignoring-title").textContent = `Ignoring ${ignored.length > 0 ? listed(ignored) : "nothing"}`;
  byId("as-is").replaceChildren(...before.map(row));
  byId("ignoring").replaceChildren(...after.map(row));
  moves.forEach((move, i) => byId("ignoring").children[i].append(moveBadge(move)));
  byId("dropped").textContent = dropped.length > 0 ? `Dropped out: ${dropped.join("; ")}` : "";
  byId("summary").textContent = ignoring ? changeSentence(moves, ignored) : missingSentence(ignored);
  byId("notices").replaceChildren(...notices(request, asIs, ignoring).map((text) => element("li", {}, text)));
  byId("key-form").hidden = true;
}

function changeSentence(moves, ignored) {
  const changes = moves.filter((move) => move === null).length;
  const moved = moves.filter(Boolean).length;
  if (moves.length === 0) return "No title is offered here.";
  if (ignored.length === 0) return "Nothing is ignored, so both lists are the same.";
  const stayed = moves.length - changes - moved;
  return `${changes} of ${titleCount(moves.length)} changed, ${moved} moved, ${stayed} stayed in place.`;
}

function missingSentence(ignored) {
  const settings = state.catalogue.combinations.filter(({ ignore }) => ignore.length > 0);
  const choices = settings.map(({ ignore }) => listed(ignore)).join("; ");
  return `There is no setting that ignores ${listed(ignored)}. Available: ${choices}.`;
}

const notices = (request, asIs, ignoring) => [
  asIs.source === "popularity" &&
    `The same popular titles of ${request.territory} for all users, whatever is ignored: ${asIs.reason}.`,
  asIs.unknown_titles > 0 && `Skipped: ${titleCount(asIs.unknown_titles)} not in the catalogue.`,
  ...(ignoring?.unknown_values ?? []).map(
    (name) => `The ${words(name)} of this user is unknown, so it may be hidden less well.`),
  ...(ignoring?.warnings ?? []).map((sentence) => `${capital(sentence)}.`),
].filter(Boolean);

// ---- The audit

function drawAudit(ignored) {
  const combination = findCombination(ignored);
  byId("audit").hidden = !combination;
  if (!combination) return;
  byId("accuracy").textContent = accuracySentence(combination, findCombination([]));
  byId("readings").replaceChildren(...Object.keys(state.catalogue.attributes).map((attribute) => {
    const audit = combination.audit[attribute];
    const name = words(attribute);
    const [text, kind, sentence] = verdict(name, audit, ignored.includes(attribute));
    const row = element("li", {}, element("h3", {}, `${capital(name)} `, badge(text, kind)));
    if (audit) {
      const { value, chance: optimum, null_low: low, null_high: high } = audit.balanced_accuracy;
      row.append(element("meter", { low, high, optimum, value, ariaHidden: "true" })); // green in the range of chance
    }
    row.append(element("p", {}, sentence));
    return row;
  }));
}

/** Badge text, badge class and explanation for one attribute; `audit` is that of the best attacker, if any. */
function verdict(name, audit, isIgnored) {
  if (!audit) return ["Not audited", "unknown", `${capital(name)} was not audited for this setting.`];
  const { value, chance, null_low: low, null_high: high } = audit.balanced_accuracy;
  const [guessed, random, from, to] = [value, chance, low, high].map((ratio) => (100 * ratio).toFixed(1));
  const guess = `guesses ${name} correctly ${guessed} of 100 times; ` +
    `random guessing ${random} (${from} to ${to} is chance).`;
  if (!isIgnored) return ["Not hidden", "unknown", `${capital(name)} is not hidden: an attacker ${guess}`];
  const attack = `A strong attacker who sees only the hidden profile ${guess}`;
  if (!audit.leaks) return ["At chance level", "good", `${attack} That is no better than chance.`];
  const [auc, limit] = [audit.auc.value, audit.auc.null_high].map((one) => one.toFixed(2));
  const what = value > high ? "That" : `Its ranking of users (AUC ${auc}, chance reaches ${limit})`;
  return ["Leaks", "bad", `${attack} ${what} is better than chance: the attribute still leaks.`];
}

function accuracySentence(combination, backbone) {
  if (combination.ignore.length === 0) return "Nothing is ignored. Switch an attribute off to see how it is hidden.";
  const ratio = combination.metrics["ndcg@10"]?.value / backbone?.metrics["ndcg@10"]?.value;
  if (!Number.isFinite(ratio)) return "The accuracy of this setting was not audited.";
  return `Recommendations stay ${Math.round(100 * ratio)}% as accurate.`;
}

// ---- Events

byId("ask").oninput = ({ target }) => target.id !== "title" && changed();
byId("add").onclick = addTitle;
byId("title").onkeydown = ({ key, isComposing }) => {
  if (key === "Enter" && !isComposing) addTitle();
};
byId("key-form").onsubmit = (event) => {
  event.preventDefault();
  state.key = byId("key").value.trim();
  byId("key").value = "";
  if (state.catalogue) changed(0);
  else start();
};

start();
