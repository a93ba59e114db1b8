// Elements out of names and text. Nothing is ever parsed as HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SHAPES = {
  paid: "M10 34 L26 50 L56 16",
  failed: "M16 16 L50 50 M50 16 L16 50",
  pending: "M33 12 V34 L47 42",
  back: "M40 12 L20 33 L40 54",
  erase: "M24 14 H58 V52 H24 L8 33 Z M32 24 L48 42 M48 24 L32 42",
  gear: "M10 18 H56 M10 33 H56 M10 48 H56",
  take: "M14 12 H52 V54 H14 Z M22 22 H44 M22 34 H28 M38 34 H44 M22 44 H28 M38 44 H44",
  offers: "M12 26 H54 V54 H12 Z M8 16 H58 V26 H8 Z M33 16 V54",
  book: "M16 10 H50 V56 L42 50 L33 56 L24 50 L16 56 Z M24 22 H42 M24 34 H42",
  scan: "M8 22 V8 H22 M44 8 H58 V22 M58 44 V58 H44 M22 58 H8 V44 M14 33 H52",
};

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("viewBox", "0 0 66 66");
  picture.setAttribute("aria-hidden", "true");
  picture.setAttribute("class", "icon");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", SHAPES[name]);
  picture.append(path);
  return picture;
}
