// How is anything put on the page? As elements and text only: nothing that comes from outside is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (null and false ones left out) and children, which are nodes or text. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Set text only where it differs, so that nothing is laid out again for it. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Replace the children of a node and give focus back to what had it, if it is still there. */
export function placeChildren(node, children) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  node.replaceChildren(...children);
  if (focused && node.contains(focused)) focused.focus({ preventScroll: true });
}

let lastSaid = "";

/** Tell it to those who listen to the page, once what is being said has ended. */
export function say(text) {
  if (text === lastSaid) return;
  lastSaid = text;
  byId("said").textContent = text;
}
