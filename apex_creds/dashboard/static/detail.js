// The dialog: details of a permission, or the whole story of an invocation.

import { get } from "./api.js";
import { $, h, word } from "./dom.js";
import { clock, count, micro, moment, utc } from "./words.js";

let shown = 0; // grows with what the dialog shows

export function openDetail(title, body) {
  shown += 1;
  $("detail-title").replaceChildren(title);
  $("detail-body").replaceChildren(body);
  if (!$("detail").open) $("detail").showModal();
  $("detail-title").focus();
}

function closeDetail() {
  if ($("detail").open) $("detail").close();
}

export function startDetail() {
  $("detail-close").addEventListener("click", closeDetail);
  $("detail").addEventListener("click", (event) => {
    if (event.target === $("detail")) closeDetail(); // beside it
  });
}

export async function openStory(invocation) {
  openDetail("The story of an invocation", h("p", { class: "muted" }, "Reading the log…"));
  const mine = shown;
  const gone = () => shown !== mine || !$("detail").open; // closed meanwhile, it stays closed
  try {
    const story = await get(`/api/story/${encodeURIComponent(invocation)}`);
    if (!gone()) tell(invocation, story);
  } catch (error) {
    if (!gone()) openDetail("The story of an invocation", h("p", { class: "error" }, word(error.message), " ", word(error.hint ?? "")));
  }
}

// -- the story --------------------------------------------------------------------------

function depths(events) {
  const parentOf = new Map();
  for (const event of events) if (event.kind === "invocation" && event.parent) parentOf.set(event.invocation, event.parent);
  const depth = (id, seen = 0) => (parentOf.has(id) && seen < 8 ? 1 + depth(parentOf.get(id), seen + 1) : 0);
  return (event) => depth(event.invocation);
}

function summary(events, invocation, whole) {
  const own = events.filter((event) => event.invocation === invocation);
  const end = own.find((event) => event.kind === "invocation");
  const first = own[0] ?? events[0];
  const uses = own.filter((event) => event.kind === "redeem").length;
  const bad = own.filter((event) => event.tone === "bad" || event.kind === "denial").length;
  const rows = [
    h("dt", {}, "plugin"), h("dd", {}, word(first.plugin, "strong"), " ", word(first.plugin_version ?? "", "muted")),
    h("dt", {}, "action"), h("dd", {}, word(first.action || "-")),
    first.principal ? [h("dt", {}, "for"), h("dd", {}, word(first.principal))] : [],
    h("dt", {}, "began"), h("dd", {}, h("time", { datetime: utc(first.time) }, moment(first.time))),
    h("dt", {}, "ended"), h("dd", {}, end ? `${end.outcome} after ${micro(end.duration_us ?? 0)}` : "not yet, as far as the log tells"),
    end?.parent ? [h("dt", {}, "called by"), h("dd", {}, h("button", { type: "button", class: "link", onclick: () => openStory(end.parent) }, "another invocation"))] : [],
    h("dt", {}, "secrets used"), h("dd", {}, `${count(uses)}×${bad ? `, ${count(bad)} refused or leaked` : ""}`),
    h("dt", {}, "invocation"), h("dd", { class: "mono" }, invocation)];
  const part = whole ? "" : h("p", { class: "warning" }, "There is more of it in the log than is shown here.");
  return [h("dl", { class: "facts" }, rows), part];
}

function entry(event, first, deep, invocation) {
  const other = event.invocation && event.invocation !== invocation;
  const after = event === first ? clock(event.time) : `+${micro(Math.max(0, Math.round((event.time - first.time) * 1e6)))}`;
  return h("li", { data: { tone: event.tone, depth: Math.min(deep, 4) } },
    h("span", { class: "after mono muted", title: utc(event.time) }, after),
    h("div", {},
      h("p", {}, h("span", { class: "kind" }, event.word), " ", event.credential ? word(event.credential, "mono strong") : "",
        other ? h("span", { class: "muted" }, " in ", word(event.plugin), " ", h("button", { type: "button", class: "link", onclick: () => openStory(event.invocation) }, "its story")) : ""),
      h("p", { class: "muted" }, word(event.says), event.lease ? h("span", { class: "mono fine" }, ` lease ${event.lease.slice(0, 8)}`) : "",
        event.trace_id ? h("span", { class: "mono fine" }, ` trace ${event.trace_id.slice(0, 8)}`) : "", h("span", { class: "mono fine" }, ` #${event.seq}`))));
}

function tell(invocation, { events, whole }) {
  const known = events.some((event) => event.invocation === invocation) ? invocation : events[0].invocation;
  const deep = depths(events);
  openDetail("The story of an invocation", h("div", {}, summary(events, known, whole),
    h("ol", { class: "story", "aria-label": "Events, in their order" }, events.map((event) => entry(event, events[0], deep(event), known)))));
}
