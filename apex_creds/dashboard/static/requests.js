// Questions that wait for a person. A card stays the same element while its question is
// open, so that nothing moves under who is about to answer.

import { post } from "./api.js";
import { $, h, reconcile, say, word } from "./dom.js";
import { axis, list } from "./windows.js";
import { now, plural, span } from "./words.js";

let decisions = false;
let hidden = false;
let shown = [];
const known = new Set();

// A plugin can withdraw a question, or ask one, at the moment of a click: what has just moved
// is not answered.
const SETTLE = 700;
let settled = 0;
let order = "";

export function setDecisions(allowed, pseudonyms) {
  decisions = allowed;
  hidden = pseudonyms;
}

const TERMS = [
  ["once", "this once"], ["session", "for this session"], ["until:3600", "for an hour"], ["until:86400", "for a day"],
  ["until:2592000", "for 30 days"], ["always", "always"],
];

function row(name, values) {
  if (!values.length) return [];
  return [h("dt", {}, name), h("dd", {}, values.flatMap((v, at) => [at ? ", " : "", word(v)]))];
}

function facts(item) {
  return h("dl", {},
    item.reason ? [h("dt", {}, "it says"), h("dd", {}, h("q", {}, word(item.reason)))] : [h("dt", {}, "it says"), h("dd", { class: "muted" }, "nothing")],
    row("sent to", item.origins.length ? item.origins : ["nowhere"]),
    row("methods", item.methods), row("paths", item.paths), row("scopes", item.scopes),
    item.action ? row("action", [item.action]) : [],
    hidden ? [] : row("before", [item.before || "nothing was granted"]),
    item.changes.map((change) => [h("dt", { class: "warn" }, "new"), h("dd", {}, word(change))]));
}

function warnings(item) {
  return [
    item.unverified ? "Its code is not what its metadata says (checksum)." : "",
    item.unknown ? "There is no credential of that name (yet)." : "",
    item.reveal ? "It would read the secret itself, not only have it added to requests." : "",
  ].filter(Boolean).map((text) => h("p", { class: "warning" }, text));
}

function title(item, id) {
  return h("h3", { id }, word(item.plugin), item.version ? h("span", { class: "muted" }, " ", word(item.version)) : "",
    h("span", { class: "light" }, item.reveal ? " wants to read " : " wants to use "), word(item.credential, "mono"), item.principal ? h("span", {}, " for ", word(item.principal)) : "",
    item.level ? h("span", { class: "level", data: { level: item.level } }, item.level) : "");
}

function controls(item) {
  if (!decisions) {
    return h("p", { class: "muted" }, "This page only shows. Answer with ", h("code", {}, `apex-creds approve ${item.id}`), " or ", h("code", {}, `apex-creds deny ${item.id}`), ".");
  }
  const code = item.factor ? h("label", { class: "code" }, "Code of your second factor ",
    h("input", { name: "code", inputmode: "text", autocomplete: "one-time-code", spellcheck: "false", maxlength: 64, size: 12, required: true })) : "";
  const term = h("select", { name: "term", "aria-label": "For how long" }, TERMS.map(([value, text]) => h("option", { value }, text)));
  const error = h("p", { class: "error", role: "alert" });
  const form = h("form", { class: "answer" }, code,
    h("span", { class: "allow" }, h("button", { class: "primary", type: "submit" }, "Allow"), term),
    h("button", { type: "button", onclick: () => answer(form, item, { choice: "deny" }, error) }, "Deny"),
    h("button", { type: "button", class: "quiet", title: "Deny, and don't ask again", onclick: () => answer(form, item, { choice: "never" }, error) }, "Deny for good"),
    error);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [choice, seconds] = term.value.split(":");
    const said = { choice, ...(seconds ? { seconds: Number(seconds) } : {}), code: form.elements.code?.value ?? "" };
    answer(form, item, said, error);
  });
  return form;
}

async function answer(form, item, said, error) {
  if (performance.now() < settled) {
    error.textContent = "The list changed just now: look again.";
    return;
  }
  const buttons = [...form.querySelectorAll("button")];
  buttons.forEach((button) => { button.disabled = true; });
  error.textContent = "";
  try {
    await post(`/api/requests/${encodeURIComponent(item.id)}`, said);
    const verb = said.choice === "deny" || said.choice === "never" ? "Denied" : "Allowed";
    say(`${verb}: ${item.plugin} and ${item.credential}.`);
    remove(item);
  } catch (problem) {
    error.textContent = `${problem.message} ${problem.hint ?? ""}`;
    buttons.forEach((button) => { button.disabled = false; });
    (problem.factor ? form.elements.code : buttons[0])?.focus();
  }
}

/** The focus goes to what is next, never to nowhere. */
function remove(item) {
  show(shown.filter((other) => other.id !== item.id));
  const next = $("requests-list").querySelector("select, input, button") ?? $("keys-title");
  if (next === $("keys-title")) next.tabIndex = -1;
  next.focus();
}

function make(item) {
  const id = `request-${item.id}`;
  return h("li", { "aria-labelledby": id },
    title(item, id), warnings(item), facts(item), controls(item),
    h("p", { class: "left" }, h("span", { class: "muted left-text" }), h("progress", { max: Math.max(1, item.expires - item.asked), value: 0, "aria-hidden": "true" })));
}

function update(node, item) {
  const left = item.expires - now();
  node.querySelector(".left-text").textContent = left > 0 ? `${span(left)} left` : "over";
  node.querySelector("progress").value = Math.max(0, left);
}

const questions = axis("requests-tools", { many: "requests", size: () => (innerWidth < 640 ? 3 : 6) });
const refresh = list("requests", [questions], (part) => {
  questions.took(part);
  show(part.items);
});

function show(items) {
  shown = items;
  const ids = items.map((item) => item.id).join();
  if (ids !== order) settled = performance.now() + SETTLE;
  order = ids;
  reconcile($("requests-list"), items, (item) => item.id, make, update);
  const fresh = items.filter((item) => !known.has(item.id));
  items.forEach((item) => known.add(item.id));
  if (fresh.length) say(fresh.map((item) => `${item.plugin} wants to use ${item.credential}.`).join(" "));
}

export function showRequests({ count }) {
  $("requests").hidden = !count;
  $("requests-note").textContent = plural(count, "request");
  document.title = count ? `(${count}) apex-creds` : "apex-creds";
  refresh();
}

setInterval(() => shown.forEach((item, at) => {
  const node = $("requests-list").children[at];
  if (node) update(node, item);
}), 1000);
