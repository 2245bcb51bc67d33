// Elements from values. Text is only ever set as text, so nothing in it can become markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}

export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

export const s = (tag, props, ...children) =>
  fill(document.createElementNS(SVG, tag), props, children);

/** Text of somebody else's: kept apart from what is around it, whatever its direction. */
export const word = (text, kind = "") => h("bdi", { class: `word ${kind}`.trim() }, parts(text));

/** A long name may break after what joins its parts, rather than within one. */
function parts(text) {
  return String(text ?? "").split(/(?<=[./_@:-])(?=[^./_@:-])/).flatMap((part, n) => (n ? [h("wbr"), part] : [part]));
}

/** Makes the children of a list those of `items`; a node lives as long as its key. */
export function reconcile(parent, items, key, make, update) {
  const before = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  const after = items.map((item) => {
    const id = String(key(item));
    const node = before.get(id) ?? Object.assign(make(item), {});
    node.dataset.key = id;
    before.delete(id);
    update?.(node, item);
    return node;
  });
  for (const node of before.values()) node.remove();
  after.forEach((node, at) => {
    if (parent.children[at] !== node) parent.insertBefore(node, parent.children[at] ?? null);
  });
}

export function say(text) {
  $("polite").textContent = "";
  // A reader only speaks of what changed after it looked.
  requestAnimationFrame(() => { $("polite").textContent = text; });
}
