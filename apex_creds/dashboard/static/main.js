// Logs in, listens, and hands what it hears to the parts of the page.

import { forget, loggedIn, logIn, post, stream } from "./api.js";
import { $, h, say, word } from "./dom.js";
import { count, moment, plural, setClock, span, now } from "./words.js";
import { sealKeys, showKeys } from "./keys.js";
import { showLeases } from "./leases.js";
import { showMatrix } from "./matrix.js";
import { setDecisions, showRequests } from "./requests.js";
import { addEvents, showVerified, startAudit } from "./audit.js";
import { startDetail } from "./detail.js";

const facts = {};
let leaving = false;
const WHY = "apex-creds-why"; // the tab was left

function enter(inside) {
  document.body.dataset.state = inside ? "inside" : "outside";
}

function live(kind, text) {
  if ($("live").dataset.kind === kind && $("live").textContent === text) return;
  Object.assign($("live"), { textContent: text }).dataset.kind = kind;
}

const hear = {
  alive() {},
  hello(value) {
    setClock(value.now);
    facts.shared = value.shared;
    $("vault").textContent = value.vault.slice(0, 8);
    $("vault").title = `Vault ${value.vault}`;
    $("mode").textContent = value.decisions ? "takes decisions" : "read only";
    $("mode").dataset.kind = value.decisions ? "accent" : "quiet";
    $("leases-shared").hidden = $("audit-shared").hidden = !value.shared;
    setDecisions(value.decisions, value.hidden);
  },
  keys(value) { facts.keys = value; showKeys(value); },
  leases(value) { facts.leases = value; showLeases(value); },
  matrix(value) { facts.matrix = value; showMatrix(value); },
  requests(value) { facts.requests = value; showRequests(value); },
  verified(value) { facts.verified = value; showVerified(value); alerts(); },
  lockdown(value) {
    facts.lockdown = value;
    sealKeys(Boolean(value?.sealed));
    if (value?.sealed && !facts.matrix) $("permissions-note").textContent = "sealed: can't be read until the lockdown ends";
    alerts();
  },
  trouble(value) { facts.trouble = value; alerts(); },
  log: addEvents,
};

// -- what must not be missed ------------------------------------------------------------

let alerted = "";

function alerts() {
  const found = [];
  if (facts.away) found.push(["Not connected", h("p", {}, word(facts.away.why), ` What is shown is as it was at ${moment(facts.away.since)}.`)]);
  if (facts.lockdown) {
    const why = facts.lockdown.reason ? [", “", word(facts.lockdown.reason), "”"] : "";
    const then = facts.lockdown.sealed ? " No key is in memory; what is shown of keys is from before." : "";
    found.push(["Locked down", h("p", {}, `since ${moment(facts.lockdown.since)}`, why, ": nothing is released until ", h("code", {}, "apex-creds unlock"), ".", then)]);
  }
  if (facts.verified?.state === "bad") {
    found.push(["The audit log does not verify", h("p", {}, word(facts.verified.what))]);
  }
  for (const [place, told] of Object.entries(facts.trouble ?? {})) {
    found.push([`The ${place} can't be read`, h("p", {}, word(told.error), " ", word(told.hint, "muted"))]);
  }
  const text = found.map(([title, body]) => title + body.textContent).join();
  if (text === alerted) return;
  alerted = text;
  $("alarm").hidden = !found.length;
  $("alarm").textContent = found.length > 1 ? `${found.length} alerts` : found[0]?.[0] ?? "";
  $("alerts").replaceChildren(...found.map(([title, body]) => h("div", { class: "alert" }, h("strong", {}, title), body)));
}

// -- at a glance ------------------------------------------------------------------------

function tile(id, label, value, note, kind) {
  return h("li", {}, h("a", { href: `#${id}`, data: { kind: kind ?? "" } },
    h("span", { class: "tile-label" }, label), h("strong", {}, value), h("span", { class: "muted" }, note)));
}

function tiles() {
  const { keys, leases, matrix, requests, verified } = facts;
  const made = [];
  if (requests) made.push(tile(requests.count ? "requests" : "main", "Waiting for you", count(requests.count), requests.count ? "to be decided" : "nothing to decide", requests.count ? "accent" : ""));
  if (leases) made.push(tile("leases", "Open leases", `${count(leases.count)}${leases.full ? "+" : ""}`, facts.shared ? "on this machine" : "in all processes"));
  if (matrix) made.push(tile("permissions", "Credentials", count(matrix.credentials), plural(matrix.plugins, "plugin")));
  if (keys) made.push(tile("keys", "Rotation", ...rotation(keys)));
  if (verified) made.push(tile("audit", "Audit log", ...logState(verified)));
  const shown = made.map((node) => node.textContent).join();
  if ($("tiles").dataset.shown !== shown) {
    $("tiles").dataset.shown = shown;
    // Replaced in place: a link that has the focus keeps it.
    const at = [...$("tiles").children].findIndex((node) => node.contains(document.activeElement));
    $("tiles").replaceChildren(...made);
    if (at >= 0) $("tiles").children[at]?.firstElementChild.focus({ preventScroll: true });
  }
}

function rotation(keys) {
  if (keys.moving) return ["under way", plural(keys.moving, "key"), "accent"];
  if (keys.todo) return ["due now", plural(keys.todo, "step"), "warn"];
  const next = Math.min(...Object.values(keys.due));
  return Number.isFinite(next) ? [span(next - now()), "until the next"] : ["by hand", "nothing is scheduled"];
}

function logState(verified) {
  const events = plural(verified.count, "event");
  if (verified.state === "ok") return ["verified", events, "ok"];
  if (verified.state === "bad") return ["ALTERED", verified.bad ? `at event ${verified.bad}` : "see below", "bad"];
  return verified.state === "unknown" ? ["unknown", "can't be checked"] : ["checking", "for the first time"];
}

// -- the connection ---------------------------------------------------------------------

async function listen() {
  let pause = 0.5;
  while (loggedIn() && !leaving) {
    let why = "";
    try {
      await stream((topic, value) => {
        pause = 0.5;
        enter(true);
        live("ok", "live");
        away("");
        hear[topic]?.(value);
        tiles();
      });
      say("The connection ended; trying again.");
    } catch (error) {
      if (error.status === 401) return leave(error.message);
      why = error.message;
    }
    if (leaving) return;
    live("bad", "not connected");
    if (why) away(why);
    await new Promise((go) => setTimeout(go, pause * 1000));
    pause = Math.min(pause * 2, 8);
  }
  if (!leaving) leave();
}

/** Why nothing new is heard; since when, of what somebody sees. */
function away(why) {
  if (why === (facts.away?.why ?? "")) return;
  facts.away = why ? { why, since: facts.away?.since ?? now() } : null;
  $("door-error").textContent = why;
  alerts();
}

/** Nothing of what was shown stays in the page. */
function leave(why = "") {
  forget();
  sessionStorage.setItem(WHY, why);
  leaving = true;
  location.reload();
}

async function start() {
  const given = /^#login=([\w-]{20,100})$/.exec(location.hash);
  if (given) {
    // Out of the address bar, the history and whatever is copied from them.
    history.replaceState(null, "", "/");
    try {
      await logIn(given[1]);
    } catch (error) {
      return leave(`${error.message} ${error.hint}`);
    }
  }
  if (loggedIn()) return listen();
  $("door-error").textContent = sessionStorage.getItem(WHY) ?? "";
  sessionStorage.removeItem(WHY);
}

startDetail();
startAudit();
$("leave").addEventListener("click", async () => {
  leaving = true;
  await post("/api/logout", {}).catch(() => undefined);
  leave();
});
// Another link, maybe of another vault: nothing of this one stays.
addEventListener("hashchange", () => {
  if (location.hash.startsWith("#login=")) location.reload();
});
start();
