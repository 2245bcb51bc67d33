// The log as it grows, newest first, and whether it verifies.

import { get, post } from "./api.js";
import { $, h, reconcile, say, word } from "./dom.js";
import { openStory } from "./detail.js";
import { oneStop } from "./windows.js";
import { count, moment, plural, utc } from "./words.js";

const FIRST = 100; // rows that are shown unasked
const STEP = 200;
const MOST = 3000;
const FOUND = 50; // what a search looks for; each is shown as soon as it is found
const LISTED = 1000; // rows that were asked for; the newest of them give way to more
const events = new Map(); // the newest, by number
const kept = new Map(); // what somebody asked to see besides, for this filter
let searched = null; // from where on the server has looked for what the filter wants
let failed = "";
let faults = 0; // lines that a search came by and that are not what was written
let paused = false;
let waiting = [];

// -- rows -------------------------------------------------------------------------------

function row(event) {
  const who = event.fault !== undefined ? [] : [
    event.plugin ? word(event.plugin, "strong") : h("span", { class: "muted" }, "operator"),
    event.action ? h("span", { class: "muted" }, " ", word(event.action)) : "",
    event.credential ? h("span", {}, " ", word(event.credential, "mono")) : "",
    event.principal ? h("span", {}, " for ", word(event.principal)) : ""];
  const link = event.invocation ? h("button", { type: "button", class: "link", data: { stop: event.seq }, onclick: () => openStory(event.invocation), "aria-label": `Story of the invocation of event ${event.seq}` }, "story") : "";
  return h("li", { data: { seq: event.seq, tone: event.tone } },
    h("span", { class: "seq mono muted" }, String(event.seq)),
    h("time", event.time ? { datetime: utc(event.time), title: utc(event.time), class: "mono muted" } : {}, event.time ? moment(event.time) : ""),
    h("span", { class: "kind" }, event.word),
    h("span", { class: "who" }, who), h("span", { class: "rest" }, word(event.says)), link);
}

// -- which of them ----------------------------------------------------------------------

const filter = () => ({ text: $("filter-text").value.trim().toLowerCase(), kind: $("filter-kind").value });
const filtered = () => Object.values(filter()).some(Boolean);

function loaded() {
  const { text, kind } = filter();
  return [...new Map([...events, ...kept]).values()]
    .filter((event) => (!kind || event.groups.includes(kind)) && (!text || event.line.toLowerCase().includes(text)))
    .sort((a, b) => b.seq - a.seq);
}

function split() {
  const shown = [], hidden = [];
  loaded().forEach((event, n) => (n < FIRST || kept.has(event.seq) ? shown : hidden).push(event));
  return { shown, hidden };
}

/** From which number on all is here, or was looked at. */
function reached() {
  if (searched !== null) return searched;
  let at = Infinity;
  for (const seq of [...events.keys(), ...kept.keys()].sort((a, b) => b - a)) {
    if (seq < at - 1 && at !== Infinity) break;
    at = seq;
  }
  return at === Infinity ? 1 : at; // nothing came yet
}

const note = (text) => h("li", { class: "muted none" }, text);
const arrange = oneStop($("audit-list"));

function redraw() {
  const { shown, hidden } = split();
  const all = !filtered();
  const rows = shown.flatMap((event, n) => {
    const between = all && n ? shown[n - 1].seq - event.seq - 1 : 0;
    const gap = between > 0 ? [{ key: `${event.seq} ${between}`, text: `${plural(between, "event")} between are not shown.` }] : [];
    return [...gap, { key: event.seq, event }];
  });
  if (!rows.length) rows.push({ key: "none", text: "No event matches." });
  reconcile($("audit-list"), rows, (item) => item.key, (item) => (item.event ? row(item.event) : note(item.text)));
  arrange();
  $("earlier").hidden = !hidden.length && reached() <= 1;
  $("earlier").textContent = all ? "Earlier events" : "Search earlier events";
  const from = reached();
  const far = from > 1 ? `searched from event ${count(from)} on` : "all of the log was searched";
  const altered = faults ? `${plural(faults, "line")} on the way ${faults === 1 ? "is" : "are"} not what was written` : "";
  $("searched").textContent = failed || [all ? "" : far, altered].filter(Boolean).join("; ");
}

/** Another filter: what was asked for under the one before goes. */
function choose() {
  kept.clear();
  searched = null;
  failed = "";
  faults = 0;
  redraw();
}

export function addEvents(found) {
  if (paused) {
    waiting.push(...found);
    waiting = waiting.slice(-2000);
    $("pause").textContent = `Go on (${count(waiting.length)} new)`;
    return;
  }
  take(found);
}

function take(found) {
  for (const event of found) events.set(event.seq, event);
  const numbers = [...events.keys()].sort((a, b) => a - b);
  numbers.slice(0, Math.max(0, numbers.length - MOST)).forEach((seq) => events.delete(seq));
  redraw();
}

/** Keeps the list of a length that a browser is quick with. */
function trim() {
  const numbers = [...kept.keys()].sort((a, b) => a - b);
  if (numbers.length <= LISTED) return;
  searched ??= numbers[0];
  numbers.slice(LISTED).forEach((seq) => kept.delete(seq));
}

async function earlier() {
  $("earlier").disabled = true;
  failed = "";
  const chosen = JSON.stringify(filter());
  const { shown, hidden } = split();
  const more = hidden.slice(0, STEP);
  // What is shown now stays, however many new ones come.
  for (const event of [...shown, ...more]) kept.set(event.seq, event);
  try {
    let added = more.length;
    while (added < (filtered() ? FOUND : STEP) && reached() > 1) {
      const { events: found, reached: at, faults: bad } = await get(`/api/log?${new URLSearchParams({ before: reached(), ...filter() })}`);
      if (JSON.stringify(filter()) !== chosen) return;
      if (filtered() || !found.length || searched !== null) searched = at;
      faults += bad;
      for (const event of found) kept.set(event.seq, event);
      trim();
      added += found.length;
      redraw();
    }
    say(plural(added, "earlier event"));
  } catch (error) {
    failed = error.message;
    say(failed);
  } finally {
    $("earlier").disabled = false;
  }
  redraw();
}

// -- verification -----------------------------------------------------------------------

export function showVerified(value) {
  const box = $("verified");
  const busy = value.busy ? ", checking" : "";
  const texts = {
    checking: "being checked for the first time",
    ok: `${count(value.count)} events verify, ${count(value.signed)} signed by ${count(value.checkpoints)} checkpoints`,
    bad: "DOES NOT VERIFY",
    unknown: "can't be checked",
  };
  const at = value.at ? `; ${moment(value.at)}, all of it at ${value.full ? moment(value.full) : "no time"}` : "";
  const text = `${texts[value.state]}${at}${busy}`;
  if (box.dataset.text === text) return;
  const before = box.dataset.kind;
  box.dataset.text = text;
  box.dataset.kind = { ok: "ok", bad: "bad", unknown: "warn" }[value.state] ?? "idle";
  const again = h("button", { type: "button", class: "link", onclick: check }, "check all now");
  const had = box.contains(document.activeElement);
  box.replaceChildren(h("span", { class: "dot", "aria-hidden": "true" }), h("span", { title: value.head ? `Root ${value.head}` : "" }, text), " ", again);
  if (had) again.focus({ preventScroll: true });
  if (before !== box.dataset.kind && value.state === "bad") say("The audit log does not verify.");
}

async function check() {
  await post("/api/verify", {}).catch((error) => say(error.message));
}

export function startAudit() {
  $("audit-filter").addEventListener("submit", (event) => event.preventDefault());
  $("filter-text").addEventListener("input", choose);
  $("filter-kind").addEventListener("change", choose);
  $("earlier").addEventListener("click", earlier);
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    $("pause").textContent = paused ? "Go on" : "Pause";
    if (!paused) take(waiting.splice(0));
  });
}
