// Long lists: a page has one window of each, which the server searches and cuts; and each is
// one stop for Tab, with arrows from there.

import { get } from "./api.js";
import { $, h, say } from "./dom.js";
import { count } from "./words.js";

/** One direction of a list: what of it is asked for, and the controls that choose it. */
export function axis(place, { many, size, prefix = "" }) {
  let at = 0, of = 0, here = 0, changed = () => undefined;
  const input = h("input", { type: "search", maxlength: 200, autocomplete: "off", spellcheck: "false", placeholder: `Filter ${many}`, "aria-label": `Filter ${many}` });
  const range = h("span", { class: "muted" });
  const turn = (way, text, name) => h("button", { type: "button", class: "quiet", onclick: () => step(way), "aria-label": `${name} ${many}` }, text);
  const back = turn(-1, "‹", "Previous"), on = turn(1, "›", "Next");
  const box = h("div", { class: "tools", role: "group", "aria-label": many, hidden: true }, input, h("span", { class: "pager" }, back, range, on));
  $(place).append(box);

  /** Goes one window on or back; false: there is none. */
  async function step(way) {
    const next = Math.max(0, at + way * size());
    if (next === at || next >= of) return false;
    at = next;
    await changed();
    say(`${many}: ${range.textContent}`);
    return true;
  }

  input.addEventListener("input", async () => {
    at = 0;
    await changed();
    say(`${many}: ${range.textContent}`);
  });
  return {
    step,
    size,
    query: () => ({ [`${prefix}text`]: input.value.trim(), [`${prefix}at`]: at, [`${prefix}size`]: size() }),
    took(part) {
      ({ at, of } = part);
      here = part.items.length;
      range.textContent = of ? `${count(at + 1)}–${count(at + here)} of ${count(of)}` : "none of that name";
      // Not disabled: who has just pressed it keeps the focus.
      back.setAttribute("aria-disabled", String(at === 0));
      on.setAttribute("aria-disabled", String(at + here >= of));
      box.hidden = of <= size() && !input.value;
    },
    busy() { range.textContent = "looking…"; },
    failed(why) {
      range.textContent = why;
      box.hidden = false;
    },
    onchange(then) { changed = then; },
    get searched() { return input.value.trim() !== ""; },
  };
}

/** A list: asks for its window again when something changed, one request at a time. */
export function list(name, axes, show) {
  let running = null, again = false, fitted = "";
  const sizes = () => axes.map((each) => each.size()).join();
  async function read() {
    do {
      again = false;
      fitted = sizes();
      const slow = setTimeout(() => axes.forEach((each) => each.busy()), 400);
      const asked = new URLSearchParams(Object.assign({}, ...axes.map((each) => each.query())));
      try {
        show(await get(`/api/lists/${name}?${asked}`));
      } catch (error) {
        axes.forEach((each) => each.failed(error.message));
      } finally {
        clearTimeout(slow);
      }
    } while (again);
    running = null;
  }
  function refresh() {
    again = running !== null;
    return (running ??= read());
  }
  axes.forEach((each) => each.onchange(refresh));
  addEventListener("resize", () => { if (fitted && fitted !== sizes()) refresh(); });
  return refresh;
}

/** Makes what can be pressed in a box one stop for Tab; `data-stop` says which is which. */
export function oneStop(box, next = neighbour) {
  const all = () => [...box.querySelectorAll("[data-stop]")];
  let stop = "";
  function arrange() {
    const buttons = all();
    const chosen = buttons.find((button) => button.dataset.stop === stop) ?? buttons[0];
    for (const button of buttons) button.tabIndex = button === chosen ? 0 : -1;
    box.tabIndex = chosen || !box.children.length ? -1 : 0; // what has no buttons may scroll
    return chosen;
  }
  box.addEventListener("focusin", (event) => {
    stop = event.target.dataset.stop ?? stop;
    arrange();
  });
  box.addEventListener("keydown", (event) => {
    if (event.target.dataset.stop === undefined) return;
    const found = next(event.key, event.target, all());
    if (found === undefined) return;
    event.preventDefault();
    Promise.resolve(found).then((button) => button?.focus());
  });
  return arrange;
}

function neighbour(key, from, all) {
  const at = { ArrowUp: all.indexOf(from) - 1, ArrowDown: all.indexOf(from) + 1, Home: 0, End: all.length - 1 }[key];
  return at === undefined ? undefined : all[at] ?? null;
}

const shows = new WeakMap();

/** Makes a node's children what `values` say: only those whose value changed, anew. */
export function fill(parent, values, make) {
  values.forEach((value, at) => {
    const same = JSON.stringify(value);
    const node = parent.children[at];
    if (node && shows.get(node) === same) return;
    const made = make(value, at);
    shows.set(made, same);
    const focused = node?.contains(document.activeElement);
    if (node) node.replaceWith(made);
    else parent.append(made);
    if (focused) made.querySelector("button")?.focus({ preventScroll: true });
  });
  while (parent.children.length > values.length) parent.lastElementChild.remove();
}
