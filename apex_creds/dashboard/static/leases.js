// Leases that are open now.

import { $, h, reconcile, word } from "./dom.js";
import { openStory } from "./detail.js";
import { axis, list, oneStop } from "./windows.js";
import { count, now, plural, span, utc } from "./words.js";

let lifetime = 300;
let shown = [];

const begun = (lease) => lease.since || lease.last;

function state(lease) {
  if (lease.revoked) return ["revoked", "bad", "What it rests on was taken back; its next use is refused."];
  if (now() - begun(lease) > lifetime) return ["overdue", "warn", "Older than leases live by default: over, or of a process that was killed, unless its runtime allows more."];
  return ["open", "ok", ""];
}

function update(node, lease) {
  const [name, kind, why] = state(lease);
  const used = lease.uses ? `used ${count(lease.uses)}×` : "not used yet";
  const last = lease.origin || lease.method ? `, last ${[lease.method, lease.origin].filter(Boolean).join(" ")}` : "";
  node.querySelector(".lease-use").textContent = used + last;
  Object.assign(node.querySelector(".pill"), { textContent: name, title: why }).dataset.kind = kind;
  const age = node.querySelector("time");
  age.textContent = `${lease.since ? "" : "> "}${span(now() - begun(lease))}`;
}

function make(lease) {
  return h("li", {},
    h("p", { class: "lease-who" }, word(lease.plugin, "strong"), h("span", { class: "muted" }, " uses "), word(lease.credential, "strong mono"), lease.principal ? h("span", {}, " for ", word(lease.principal)) : "",
      lease.parent ? h("span", { class: "muted" }, " (passed on)") : ""),
    h("p", { class: "lease-use muted" }),
    h("p", { class: "lease-age" }, h("span", { class: "pill" }), h("time", { datetime: utc(begun(lease)) }),
      h("button", { type: "button", class: "link", data: { stop: lease.lease }, onclick: () => openStory(lease.invocation), "aria-label": `The story of the invocation ${lease.action} of ${lease.plugin}` },
        word(lease.action || "invocation"))));
}

const leases = axis("leases-tools", { many: "leases", size: () => (innerWidth < 640 ? 5 : 12) });
const arrange = oneStop($("leases-list"));
const refresh = list("leases", [leases], (part) => {
  leases.took(part);
  shown = part.items;
  reconcile($("leases-list"), shown, (lease) => lease.lease, make, update);
  arrange();
});

export function showLeases(value) {
  lifetime = value.lifetime;
  const from = value.since > 1 ? `; from event ${count(value.since)} on` : "";
  const all = value.full ? `The newest ${plural(value.count, "lease")}; older ones may be open` : plural(value.count, "lease");
  $("leases-note").textContent = value.count ? `${all}${from}` : `No lease is open${from}.`;
  refresh();
}

setInterval(() => {
  for (const [at, lease] of shown.entries()) {
    const node = $("leases-list").children[at];
    if (node) update(node, lease);
  }
}, 1000);
