// The log as it grows, newest first, and whether it verifies.

import { get, post } from "./api.js";
import { $, h, say, word } from "./dom.js";
import { openStory } from "./detail.js";
import { clock, count, isRefused, isUse, kindName, moment, rest, tone, utc } from "./words.js";

const MOST = 400;
const events = new Map(); // by number
let paused = false;
let waiting = [];
let oldest = Infinity;

// -- rows -------------------------------------------------------------------------------

function row(event) {
  const who = event.fault !== undefined ? [] : [
    event.plugin ? word(event.plugin, "strong") : h("span", { class: "muted" }, "operator"),
    event.action ? h("span", { class: "muted" }, " ", word(event.action)) : "",
    event.credential ? h("span", {}, " ", word(event.credential, "mono")) : ""];
  const link = event.invocation ? h("button", { type: "button", class: "link", onclick: () => openStory(event.invocation), "aria-label": `Story of the invocation of event ${event.seq}` }, "story") : "";
  return h("li", { data: { seq: event.seq, tone: tone(event) } },
    h("span", { class: "seq mono muted" }, String(event.seq)),
    h("time", event.time ? { datetime: utc(event.time), title: utc(event.time), class: "mono muted" } : {}, event.time ? clock(event.time) : ""),
    h("span", { class: "kind" }, event.fault !== undefined ? "altered" : kindName(event)),
    h("span", { class: "who" }, who), h("span", { class: "rest" }, word(rest(event))), link);
}

function wanted(event) {
  const text = $("filter-text").value.trim().toLowerCase();
  const kind = $("filter-kind").value;
  const kinds = { refused: isRefused, use: isUse, changes: (e) => !isUse(e) };
  if (kind && !kinds[kind](event)) return false;
  return !text || Object.values(event).some((value) => String(value).toLowerCase().includes(text));
}

function redraw() {
  const chosen = [...events.values()].filter(wanted).sort((a, b) => b.seq - a.seq).slice(0, MOST);
  const list = $("audit-list");
  const focused = document.activeElement?.closest?.("#audit-list li")?.dataset.seq;
  const before = new Map([...list.children].map((node) => [Number(node.dataset.seq), node]));
  list.replaceChildren(...chosen.map((event) => before.get(event.seq) ?? row(event)));
  if (!chosen.length) list.append(h("li", { class: "muted none" }, "No event matches."));
  if (focused) list.querySelector(`li[data-seq="${Number(focused)}"] button`)?.focus({ preventScroll: true });
  $("earlier").hidden = oldest <= 1;
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
  for (const event of found) {
    events.set(event.seq, event);
    oldest = Math.min(oldest, event.seq);
  }
  const numbers = [...events.keys()].sort((a, b) => a - b);
  // The newest are kept, but for what somebody asked to see besides.
  if (numbers.length > 3000) numbers.slice(0, numbers.length - 3000).forEach((seq) => events.delete(seq));
  redraw();
}

async function earlier() {
  $("earlier").disabled = true;
  try {
    const { events: found } = await get(`/api/log?before=${oldest}`);
    if (!found.length) oldest = 1;
    take(found);
    say(`${found.length} earlier events.`);
  } catch (error) {
    say(error.message);
  }
  $("earlier").disabled = false;
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
  $("filter-text").addEventListener("input", redraw);
  $("filter-kind").addEventListener("change", redraw);
  $("earlier").addEventListener("click", earlier);
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    $("pause").textContent = paused ? "Go on" : "Pause";
    if (!paused) take(waiting.splice(0));
  });
}
