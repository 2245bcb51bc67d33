// Plugins by credentials: what is granted, refused, asked; and what was done.

import { $, h, word } from "./dom.js";
import { openDetail } from "./detail.js";
import { axis, fill, list, oneStop } from "./windows.js";
import { count, moment, now, plural } from "./words.js";

const MARKS = { allow: "✓", deny: "✕", over: "◷", ask: "?" };
const GRANTS = { allow: "granted", deny: "refused for good", over: "its grant is over" };
const VERDICTS = { allow: "allowed", deny: "denied", ask: "a person is asked" };
const ROTATIONS = { works: "rotated", failed: "its rotation failed", needs_person: "its rotation needs a person: apex-creds rotate credential NAME" };

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
  if (credential.connection) add("connection", credential.connection.replaceAll("_", " "), `, last refresh ${moment(credential.renewed)}: `, word(credential.outcome), credential.by ? [", connected by ", word(credential.by)] : "");
  if (credential.rotation) add("at its provider", ROTATIONS[credential.rotation], credential.replaced ? `, replaced ${moment(credential.replaced)}` : "", credential.due ? `, ${credential.due < now() ? "was due" : "next"} ${moment(credential.due)}` : "", credential.stage === "idle" || credential.rotation === "needs_person" ? "" : `, next step ${credential.stage}`, credential.step_outcome ? [", last step: ", word(credential.step_outcome)] : "");
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

function square({ cell, plugin, credential }) {
  const [text, kind] = stand(cell, credential);
  const used = cell?.use?.redeems ? h("span", { class: "cell-use" }, `${count(cell.use.redeems)}×`) : "";
  const denied = cell?.use?.denials ? h("span", { class: "cell-use warn" }, `${count(cell.use.denials)} denied`) : "";
  const show = () => openDetail(h("span", {}, word(plugin), h("span", { class: "light" }, " and "), word(credential.name, "mono")), about(cell ?? {}, plugin, credential));
  return h("td", {}, h("button", { type: "button", class: "cell", data: { kind: cell ? kind : "none", stop: JSON.stringify([plugin, credential.name]) }, title: text, onclick: show },
    h("span", { "aria-hidden": "true" }, cell ? MARKS[kind] : "·"), h("span", { class: "sr" }, `${text}; more`), used, denied));
}

function head(credential) {
  return h("th", { scope: "row" }, word(credential.name, "mono"),
    credential.badges.map(([text, level]) => h("span", { class: "level", data: { level } }, text)));
}

// -- the window ---------------------------------------------------------------------------

const box = $("permissions-table");
const narrow = () => box.clientWidth < 640;
const size = { rows: () => (narrow() ? 8 : 15), columns: () => Math.max(1, Math.floor((box.clientWidth - (narrow() ? 130 : 240)) / (narrow() ? 72 : 104))) };
const credentials = axis("permissions-tools", { many: "credentials", size: size.rows });
const plugins = axis("permissions-tools", { many: "plugins", size: size.columns, prefix: "plugin_" });
const refresh = list("permissions", [credentials, plugins], show);
const arrange = oneStop(box, move);
const WAYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** The cell that an arrow leads to; beyond the edge it is in the next window. */
function move(key, from) {
  const [down, right] = WAYS[key] ?? [0, 0];
  if (!down && !right) return undefined;
  const cell = from.closest("td");
  const [r, c] = [cell.parentElement.rowIndex + down, cell.cellIndex + right];
  const at = (row, column) => box.querySelector("table").rows[row]?.cells[column]?.querySelector("button") ?? null;
  const found = at(r, c);
  if (found) return found;
  return (down ? credentials : plugins).step(down + right).then((turned) => {
    if (!turned) return null;
    const last = box.querySelector("table").rows.length - 1;
    const row = down > 0 ? 1 : down < 0 ? last : Math.min(r, last);
    const end = box.querySelector("table").rows[row].cells.length - 1;
    return at(row, right > 0 ? 1 : right < 0 ? end : Math.min(c, end));
  });
}

function show(value) {
  credentials.took(value.credentials);
  plugins.took(value.plugins);
  const rows = value.credentials.items, columns = value.plugins.items;
  const cells = new Map(value.cells.map((cell) => [`${cell.c} ${cell.p}`, cell]));
  const searched = credentials.searched || plugins.searched;
  const empty = !rows.length ? "There is no credential yet." : !columns.length ? "No plugin has asked for anything yet." : "";
  const next = !rows.length ? "apex-creds set NAME" : "apex-creds grant PLUGIN NAME";
  if (empty) box.replaceChildren(searched ? h("p", {}, "Nothing matches.") : h("p", {}, empty, " Next: ", h("code", {}, next)));
  else if (!box.querySelector("table")) box.replaceChildren(h("table", {}, h("thead", {}, h("tr", {})), h("tbody", {})));
  if (!empty) draw(box.querySelector("table"), rows, columns, cells);
  arrange();
}

function draw(table, rows, columns, cells) {
  fill(table.tHead.rows[0], [null, ...columns], (name) => h("th", { scope: "col" }, name === null ? h("span", { class: "sr" }, "Credential") : word(name)));
  const body = table.tBodies[0];
  while (body.rows.length < rows.length) body.append(h("tr", {}));
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((credential, c) => {
    const own = columns.map((plugin, p) => {
      const cell = cells.get(`${c} ${p}`);
      return { cell: cell && { ...cell, p: 0, c: 0 }, plugin, credential };
    });
    fill(body.rows[c], [credential, ...own], (found) => (found.plugin === undefined ? head(found) : square(found)));
  });
}

export function showMatrix(value) {
  const rules = value.rules < 0 ? "the policy file can't be read" : value.rules ? `${plural(value.rules, "rule")} in the policy file` : "no policy file";
  $("permissions-note").textContent = `${plural(value.credentials, "credential")}, ${plural(value.plugins, "plugin")}; ${rules}`;
  refresh();
}
