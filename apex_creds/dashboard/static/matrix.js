// Plugins by credentials: what is granted, refused, asked; and what was done.

import { $, h, word } from "./dom.js";
import { openDetail } from "./detail.js";
import { count, moment, plural } from "./words.js";

const MARKS = { allow: "✓", deny: "✕", over: "◷", ask: "?" };
const GRANTS = { allow: "granted", deny: "refused for good", over: "its grant is over" };
const VERDICTS = { allow: "allowed", deny: "denied", ask: "a person is asked" };

/** What holds for a pair: a word, and how it looks. */
function stand(cell, credential) {
  if (cell?.grant === "deny") return ["refused", "deny"];
  if (cell?.verdict === "deny") return ["denied by a rule", "deny"];
  if (cell?.verdict === "allow") return ["allowed by a rule", "allow"];
  if (cell?.grant === "allow") return [cell.until ? `granted until ${moment(cell.until)}` : "granted", "allow"];
  if (cell?.grant === "over") return ["its grant is over", "over"];
  if (credential.rule === "deny") return ["denied", "deny"];
  return credential.rule === "allow" ? ["allowed", "allow"] : ["asks", "ask"];
}

function about(cell, plugin, credential) {
  const rows = [];
  const add = (name, ...value) => rows.push(h("dt", {}, name), h("dd", {}, ...value));
  if (credential.kind) add("level", credential.level, credential.factor ? `, with a second factor ${credential.factor === "each" ? "for each lease" : "now and then"}` : "");
  else add("credential", "there is none of that name");
  if (credential.origins.length) add("sent to", credential.origins.flatMap((o, at) => [at ? ", " : "", word(o)]));
  if (cell.grant) {
    add("grant", GRANTS[cell.grant], cell.created ? ` since ${moment(cell.created)}` : "", cell.by ? [" by ", word(cell.by)] : "");
    if (cell.until) add("until", moment(cell.until));
    if (cell.scopes?.length) add("scopes", cell.scopes.flatMap((o, at) => [at ? ", " : "", word(o)]));
    add("secret", cell.reveal ? "may be read, if the manifest asks for it" : "only added to requests");
    add("bound", cell.bound ? "to the plugin as it was" : "to its first use");
  }
  if (cell.verdict) add("policy file", `${VERDICTS[cell.verdict]}, by rule `, word(cell.rule, "mono"));
  else if (credential.rule) add("level decides", VERDICTS[credential.rule]);
  const use = cell.use;
  if (use?.answer) add("last answer", use.answer.replaceAll("_", " "), ` at ${moment(use.answered)}`);
  if (use?.redeems) add("used", `${count(use.redeems)}×, last at ${moment(use.used)}`);
  if (use?.denials) add("denied", `${count(use.denials)}×, last at ${moment(use.denied)}: `, word(use.why.replaceAll("_", " ")));
  return h("dl", { class: "facts" }, rows);
}

function square(cell, plugin, credential) {
  const [text, kind] = stand(cell, credential);
  if (!cell) return h("td", {}, h("span", { class: "cell", data: { kind: "none" } }, h("span", { class: "sr" }, text), h("span", { "aria-hidden": "true" }, "·")));
  const used = cell.use?.redeems ? h("span", { class: "cell-use" }, `${count(cell.use.redeems)}×`) : "";
  const denied = cell.use?.denials ? h("span", { class: "cell-use warn" }, `${count(cell.use.denials)} denied`) : "";
  const show = () => openDetail(h("span", {}, word(plugin), h("span", { class: "light" }, " and "), word(credential.name, "mono")), about(cell, plugin, credential));
  return h("td", {}, h("button", { type: "button", class: "cell", data: { kind, pair: JSON.stringify([plugin, credential.name]) }, title: text, onclick: show },
    h("span", { "aria-hidden": "true" }, MARKS[kind]), h("span", { class: "sr" }, `${text}; more`), used, denied));
}

const isOver = (credential) => Boolean(credential.expires && credential.expires * 1000 < Date.now());

function head(credential) {
  return h("th", { scope: "row" }, word(credential.name, "mono"),
    h("span", { class: "level", data: { level: credential.level } }, credential.kind ? credential.level : "not there"),
    credential.factor ? h("span", { class: "level", title: "takes a second factor", data: { level: "factor" } }, "2nd factor") : "",
    isOver(credential) ? h("span", { class: "level", data: { level: "critical" } }, "expired") : "");
}

// -- by keyboard: one stop for Tab, arrows from there -------------------------------------

const pairOf = (button) => button?.dataset.pair;
let stop = ""; // the pair that Tab reaches

function arrange(box) {
  const buttons = [...box.querySelectorAll("button")];
  const chosen = buttons.find((button) => pairOf(button) === stop) ?? buttons[0];
  for (const button of buttons) button.tabIndex = button === chosen ? 0 : -1;
  box.tabIndex = chosen ? -1 : 0;
  return chosen;
}

const DIRECTIONS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function move(event) {
  const [down, right] = DIRECTIONS[event.key] ?? [0, 0];
  const cell = event.target.closest("td");
  if (!cell || !(down || right)) return;
  event.preventDefault();
  const rows = cell.closest("table").rows;
  let [r, c] = [cell.parentElement.rowIndex, cell.cellIndex];
  for (;;) {
    [r, c] = [r + down, c + right];
    const found = rows[r]?.cells[c];
    if (!found) return;
    const button = found.querySelector("button");
    if (button) return button.focus();
  }
}

export function startMatrix() {
  $("permissions-table").addEventListener("keydown", move);
  $("permissions-table").addEventListener("focusin", (event) => {
    stop = pairOf(event.target) ?? stop;
    arrange($("permissions-table"));
  });
}

// -- all of it ----------------------------------------------------------------------------

let made = new Map(); // rows by what they show: only those that changed are made anew

export function showMatrix(value) {
  const cells = new Map(value.cells.map((cell) => [`${cell.c} ${cell.p}`, cell]));
  const box = $("permissions-table");
  const had = box.contains(document.activeElement) && document.activeElement !== box;
  const columns = value.plugins.map((plugin) => h("th", { scope: "col" }, word(plugin)));
  const before = made;
  made = new Map();
  value.credentials.forEach((credential, c) => {
    const row = value.plugins.map((_, p) => cells.get(`${c} ${p}`) ?? null);
    const same = JSON.stringify([credential, isOver(credential), value.plugins, row.map((cell) => cell && { ...cell, c: 0 })]);
    const shown = made.has(same) ? `${same}${c}` : same; // names that are cut may be equal
    const make = () => h("tr", {}, head(credential), value.plugins.map((plugin, p) => square(row[p], plugin, credential)));
    made.set(shown, before.get(shown) ?? make());
  });
  const rows = [...made.values()];
  const empty = !value.credentials.length ? "There is no credential yet." : !value.plugins.length ? "No plugin has asked for anything yet." : "";
  const next = !value.credentials.length ? "apex-creds set NAME" : "apex-creds grant PLUGIN NAME";
  const step = h("p", {}, empty, " Next: ", h("code", {}, next));
  if (empty) box.replaceChildren(step);
  else box.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "sr" }, "Credential")), columns)), h("tbody", {}, rows)));
  const chosen = arrange(box);
  if (had) chosen?.focus({ preventScroll: true });
  const more = value.more[0] + value.more[1] ? `; ${plural(value.more[0], "credential")} and ${plural(value.more[1], "plugin")} more` : "";
  const rules = value.rules < 0 ? "the policy file can't be read" : value.rules ? `${plural(value.rules, "rule")} in the policy file` : "no policy file";
  $("permissions-note").textContent = `${rules}${more}`;
}
