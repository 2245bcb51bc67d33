// The key hierarchy as a picture: which key wraps which, in which state, and what each
// protects. Drawn for the width that there is; the table below it says the same.

import { $, h, reconcile, s, word } from "./dom.js";
import { axis, list } from "./windows.js";
import { count, keyName, moment, now, plural, span } from "./words.js";

const WIDE = 820;
const SEALED = "sealed: no key is in memory, until the lockdown ends";
let value = null;
let deks = []; // those of the window
let sealed = false;

// -- measuring --------------------------------------------------------------------------

const pen = document.createElement("canvas").getContext("2d");

function fit(text, width, font) {
  pen.font = font;
  if (pen.measureText(text).width <= width) return text;
  let cut = text;
  while (cut && pen.measureText(`${cut}…`).width > width) cut = cut.slice(0, -1);
  return `${cut}…`;
}

const FONT = { name: "600 14px system-ui, sans-serif", small: "12.5px system-ui, sans-serif" };

function label(x, y, text, width, kind = "small", anchor = "start") {
  const font = kind === "name" ? FONT.name : FONT.small;
  const shown = fit(text, width, font);
  return s("text", { x, y, class: `t-${kind}`, "text-anchor": anchor }, shown, shown === text ? "" : s("title", {}, text));
}

// -- what a key is like -----------------------------------------------------------------

const look = (version) => (version.compromised ? "compromised" : version.state);
const primary = (key) => key.versions.find((v) => v.state === "primary");
const held = (key) => key.versions.reduce((sum, v) => sum + Math.max(0, v.protects), 0);
const moving = (key) => key.versions.some((v) => v.state !== "primary" && v.protects > 0);
const KEPT = { keyring: "in the OS keyring", file: "in a key file", passphrase: "from a passphrase" };

function weight(key) {
  if (key.versions.some((v) => v.compromised)) return 0;
  if (moving(key) || key.versions.some((v) => v.state === "pending")) return 1;
  return key.label === "root" ? 3 : 2;
}

function protects(key) {
  if (key.label === "root") return "names, log signing";
  if (primary(key).protects < 0) return key.label.startsWith("access/") ? "seeds, recovery codes" : "";
  const total = held(key);
  if (moving(key)) return `${count(primary(key).protects)} of ${count(total)} under v${primary(key).version}`;
  return plural(total, key.label === "documents" ? "document" : "credential");
}

// -- pieces -----------------------------------------------------------------------------

function chip(x, y, version, text = `v${version.version} ${version.state}${version.compromised ? ", compromised" : ""}`) {
  pen.font = FONT.small;
  const width = pen.measureText(text).width + 18;
  const node = s("g", { class: "chip", data: { state: look(version) } },
    s("rect", { x, y, width, height: 22, rx: 11 }), s("text", { x: x + width / 2, y: y + 15, "text-anchor": "middle" }, text));
  return [node, width];
}

function chips(x, y, versions, room) {
  const nodes = [];
  let at = x;
  const order = [...versions].sort((a, b) => (b.state === "primary") - (a.state === "primary") || b.version - a.version);
  for (const [n, version] of order.entries()) {
    const [node, width] = chip(at, y, version);
    if (at + width > x + room && n) {
      nodes.push(s("text", { x: at + 2, y: y + 15, class: "t-small" }, `+${order.length - n}`));
      return [nodes, at + 26 - x];
    }
    nodes.push(node);
    at += width + 6;
  }
  return [nodes, at - x];
}

function bar(x, y, width, key) {
  const total = held(key);
  if (!total || width < 30) return [];
  let at = x;
  const nodes = [s("rect", { x, y, width, height: 6, rx: 3, class: "bar-back" })];
  const order = [...key.versions].sort((a, b) => (b.state === "primary") - (a.state === "primary"));
  for (const version of order.filter((v) => v.protects > 0)) {
    const part = (width * version.protects) / total;
    nodes.push(s("rect", { x: at, y, width: Math.max(2, part - 1), height: 6, rx: 3, class: "bar", data: { state: look(version) } },
      s("title", {}, `v${version.version}: ${count(version.protects)}`)));
    at += part;
  }
  return nodes;
}

function link(from, to, kind) {
  const middle = (from[0] + to[0]) / 2;
  return s("path", { class: "link-line", data: { kind }, d: `M${from[0]},${from[1]} C${middle},${from[1]} ${middle},${to[1]} ${to[0]},${to[1]}` });
}

function box(x, y, width, height, kind = "") {
  return s("rect", { x: x + 0.5, y: y + 0.5, width: width - 1, height: height - 1, rx: 12, class: `box ${kind}`.trim() });
}

/** A level above the DEKs: a title and a line for each version. */
function level(x, y, width, key, title, note, says) {
  const nodes = [box(x, y, width, 58 + 30 * key.versions.length, "upper"), label(x + 16, y + 26, title, width - 32, "name"), label(x + 16, y + 44, note, width - 32)];
  const anchors = new Map();
  [...key.versions].sort((a, b) => b.version - a.version).forEach((version, n) => {
    const top = y + 56 + 30 * n;
    const [node, taken] = chip(x + 14, top, version);
    nodes.push(node, label(x + 20 + taken, top + 15, says(version), width - taken - 34));
    anchors.set(version.version, top + 11);
  });
  return { nodes, anchors, height: 58 + 30 * key.versions.length };
}

function row(x, y, width, height, key, stacked) {
  const text = protects(key);
  pen.font = FONT.small;
  const textWidth = stacked ? 0 : pen.measureText(text).width + 4;
  const state = weight(key) === 0 ? "compromised" : moving(key) ? "moving" : "";
  const nodes = [box(x, y, width, height, state), label(x + 14, y + 24, key.name, width - textWidth - 28, "name"),
    stacked ? label(x + 14, y + 42, text, width - 28) : label(x + width - 14, y + 24, text, textWidth + 8, "small", "end")];
  const [made, taken] = chips(x + 12, y + (stacked ? 50 : 34), key.versions, stacked ? width - 24 : width - 130);
  nodes.push(...made);
  if (stacked) nodes.push(...bar(x + 14, y + 80, width - 28, key));
  else nodes.push(...bar(x + 18 + taken, y + 42, Math.max(0, width - taken - 32), key));
  const destroyed = key.destroyed ? `, ${plural(key.destroyed, "version")} destroyed` : "";
  const versions = key.versions.map((v) => `v${v.version} ${v.state}${v.compromised ? " (compromised)" : ""}`).join(", ");
  return s("g", {}, s("title", {}, `${keyName(key)}: ${versions}; ${text}${destroyed}`), nodes);
}

// -- the picture ------------------------------------------------------------------------

function parts() {
  const [master, kek] = ["master", "kek"].map((name) => value.upper.find((key) => key.level === name));
  return { master, kek, shown: deks };
}

const dueText = (name) => (value.due[name] ? `next in ${span(value.due[name] - now())}` : "no date set");
const masterSays = (version) => (version.state === "primary" ? "opens KEKs" : "kept for a while");
const kekSays = (version) => (version.protects ? `wraps ${count(version.protects)}` : "wraps nothing");

function wide(width) {
  const { master, kek, shown } = parts();
  const gap = Math.round(Math.min(84, width * 0.065));
  const side = Math.round(Math.min(236, width * 0.2));
  const left = 2 * (side + gap);
  const height = 62;
  const total = Math.max(shown.length * (height + 10) - 10, 150);
  const middle = (key) => Math.max(0, Math.min(total, 520) / 2 - (58 + 30 * key.versions.length) / 2);
  const top = level(0, middle(master), side, master, "Master key", KEPT[value.master] ?? value.master, masterSays);
  const kekTop = middle(kek);
  const second = level(side + gap, kekTop, side, kek, "KEK", dueText("kek"), kekSays);
  const lines = [], rows = [];
  for (const version of kek.versions) {
    const from = top.anchors.get(version.parent) ?? top.anchors.get(primary(master).version);
    lines.push(link([side, from], [side + gap, second.anchors.get(version.version)], look(version)));
  }
  shown.forEach((key, n) => {
    const y = n * (height + 10);
    for (const parent of new Set(key.versions.map((v) => v.parent))) {
      const of = key.versions.filter((v) => v.parent === parent);
      const from = second.anchors.get(parent);
      if (from) lines.push(link([2 * side + gap, from], [left, y + height / 2], of.some((v) => v.state === "primary") ? "primary" : "active"));
    }
    rows.push(row(left, y, width - left - 1, height, key, false));
  });
  const deepest = Math.max(total, middle(master) + top.height, kekTop + second.height);
  return [deepest + 2, [lines, top.nodes, second.nodes, rows]];
}

function narrow(width) {
  const { master, kek, shown } = parts();
  const top = level(0, 0, width - 1, master, "Master key", KEPT[value.master] ?? value.master, masterSays);
  const kekTop = top.height + 24;
  const second = level(0, kekTop, width - 1, kek, "KEK", dueText("kek"), kekSays);
  const lines = [s("path", { class: "link-line", data: { kind: "primary" }, d: `M28,${top.height} V${kekTop}` })];
  const rows = [];
  const height = 96;
  let y = kekTop + second.height + 16;
  const from = kekTop + second.height;
  for (const key of shown) {
    lines.push(s("path", { class: "link-line", data: { kind: "primary" }, d: `M14,${from} V${y + height / 2 - 10} q0,10 10,10 H28` }));
    rows.push(row(28, y, width - 29, height, key, true));
    y += height + 10;
  }
  return [y, [lines, top.nodes, second.nodes, rows]];
}

function draw() {
  const place = $("keys-picture");
  const width = Math.floor(place.clientWidth);
  if (!value || width < 100) return;
  const [height, nodes] = width >= WIDE ? wide(width) : narrow(width);
  const said = `Key hierarchy: the master key wraps the KEK, which wraps ${plural(value.count, "data key")}. ${deks.filter(moving).map((key) => `${keyName(key)}: ${protects(key)}.`).join(" ")} The table below says the same.`;
  place.replaceChildren(s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said }, nodes.flat(2)));
}

// -- around it --------------------------------------------------------------------------

function table() {
  const lines = [...value.upper, ...deks].flatMap((key) => key.versions.map((v) => h("tr", {},
    h("td", {}, key.level), h("td", {}, word(keyName(key), "mono")), h("td", {}, `v${v.version}`),
    h("td", {}, v.compromised ? `${v.state}, compromised` : v.state), h("td", {}, v.protects < 0 ? "-" : count(v.protects)),
    h("td", {}, v.encryptions ? count(v.encryptions) : "-"), h("td", {}, v.parent ? `v${v.parent}` : "-"), h("td", {}, moment(v.changed)))));
  const names = ["level", "key", "version", "state", "protects", "encryptions", "wrapped by", "since"];
  return h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, lines));
}

function next() {
  const waiting = Object.entries(value.waiting).map(([kind, n]) => `${kind.replaceAll("_", " ")}${n > 1 ? ` (${count(n)}×)` : ""}`);
  const events = waiting.length ? h("p", { class: "warning" }, `Security events that nobody acted on yet: ${waiting.join(", ")}.`) : "";
  const worker = value.worker ? "A worker runs." : "No worker runs: keys that are due are not rotated.";
  return [events, h("p", { class: "fine" }, worker)];
}

/** In a lockdown nothing of them can be read; what was shown before stays. */
export function sealKeys(found) {
  sealed = found;
  if (value) showKeys(value);
  else if (sealed) $("keys-note").textContent = SEALED;
}

const window = axis("keys-tools", { many: "data keys", size: () => (innerWidth < 640 ? 5 : 8) });
const refresh = list("keys", [window], (part) => {
  window.took(part);
  deks = part.items;
  draw();
  $("keys-table").replaceChildren(table());
});

const steps = axis("steps-tools", { many: "steps", size: () => (innerWidth < 640 ? 5 : 10) });
const refreshSteps = list("steps", [steps], (part) => {
  steps.took(part);
  reconcile($("steps-list"), part.items, (text) => text, (text) => h("li", {}, word(text)));
});

export function showKeys(found) {
  value = found;
  const dates = ["master", "kek", "dek"].filter((name) => value.due[name]).map((name) => `${{ master: "master", kek: "KEK", dek: "DEKs" }[name]} ${span(value.due[name] - now())}`);
  $("keys-note").textContent = sealed ? SEALED : dates.length ? `next rotation: ${dates.join(", ")}` : "no rotation is scheduled";
  $("keys-next").replaceChildren(...next().filter(Boolean));
  $("steps").hidden = !value.todo;
  refresh();
  refreshSteps();
}

new ResizeObserver(draw).observe($("keys-picture"));
