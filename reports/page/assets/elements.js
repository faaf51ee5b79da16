// Elements, data, numbers and charts: what the other parts share.

/** An element. Texts become text nodes: what documents and models wrote is shown, and never read as markup. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

const parsed = new Map();

/** The content of a block of data, or null; parsed when it is first asked for. */
function data(name) {
  if (!parsed.has(name)) {
    const block = document.getElementById(name);
    parsed.set(name, block && JSON.parse(block.textContent));
  }
  return parsed.get(name);
}

const boards = data("boards");

/** A number in three or so significant digits: 0.345, 1.23k, 4.5M, 2e-5. */
function short(value) {
  if (value == null) return "";
  if (Math.abs(value) < 1e-12) return "0";
  if (Math.abs(value) < 0.001) return value.toExponential(1);
  return Math.abs(value) < 1000 ? String(+value.toPrecision(3)) : d3.format(".3~s")(value);
}

/** A value as a reader writes it: null, true, 0.5, a text. */
const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** The type of a table's columns of numbers: a missing one ("") comes last in either order. */
const missingLast = (order) => (a, b) => (a === "") - (b === "") || order(a, b);
DataTable.type("number", { className: "dt-type-numeric", order: { asc: missingLast(d3.ascending), desc: missingLast(d3.descending) } });

/** A row's label in two parts: the method with its arm, and the settings that distinguish it ("" if there are none). */
function labelParts(row) {
  const settings = row.label.match(/^[^ ]+ \((.*=.*?)\)/)?.[1] ?? "";
  return [settings ? row.label.replace(` (${settings})`, "") : row.label, settings];
}

/** A link to a row's details. Long settings are cut to two lines; the details have them all. */
function rowLink(b, r) {
  const row = boards[b].rows[r];
  const [name, settings] = labelParts(row);
  return el("a", { href: `#row-${b}-${r}`, title: row.label }, name.replaceAll("_", "_\u200b"), settings && el("small", {}, settings));
}

/** A row's name in a chart. */
function chartName(row) {
  const [name, settings] = labelParts(row);
  const text = settings ? `${name} (${settings})` : name;
  return text.length > 34 ? `${text.slice(0, 33)}…` : text;
}

/** A labelled choice. `options` are texts, or pairs of a value and a text. */
function choice(label, options, onchange) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const select = el("select", { onchange: () => onchange(select.value) }, pairs.map(([value, text]) => el("option", { value }, text)));
  return el("label", {}, el("span", {}, label), select);
}

/** A simple table. Cells are texts or elements; the first one of a row is its heading; numbers stand at the right. */
function grid(caption, headings, rows) {
  const numeric = headings.map((_, i) => rows.length > 0 && rows.every((row) => typeof row[i] === "number" || row[i] === ""));
  const shown = (cell) => (typeof cell === "number" ? short(cell) : cell);
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", { class: "grid" },
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, headings.map((text, i) => el("th", { scope: "col", class: numeric[i] && "number" }, text)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) =>
        el(i ? "td" : "th", { scope: i ? null : "row", class: numeric[i] && "number" }, shown(cell))))))));
}

/** A chart by Observable Plot, in the page's colours, with a text that says what it shows. */
function chart(description, { marks, ...options }) {
  const style = { background: "transparent", color: "inherit", fontSize: "12px", overflow: "visible" };
  const figure = Plot.plot({ style, ...options, marks: marks.filter(Boolean) });
  // the ground of tips, which Plot makes white
  for (const part of [figure, ...figure.querySelectorAll("svg")]) part.style.setProperty("--plot-background", "var(--surface)");
  for (const part of figure.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label"); // parts of one image
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", description);
  return figure;
}

const SVG = "http://www.w3.org/2000/svg";

/** A dot with its interval on a scale from `low` to `high`, as a small drawing for a cell. */
function interval(mean, half, low, high) {
  const width = 84;
  const x = (value) => (4 + (width - 8) * (high > low ? (value - low) / (high - low) : 0.5)).toFixed(1);
  const drawing = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ class: "interval", width, height: 10, "aria-hidden": true })) drawing.setAttribute(name, value);
  const add = (tag, attributes) => {
    const part = drawing.appendChild(document.createElementNS(SVG, tag));
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
  };
  add("line", { class: "track", x1: 4, x2: width - 4, y1: 5, y2: 5 });
  if (half != null) add("line", { class: "error", x1: x(Math.max(low, mean - half)), x2: x(Math.min(high, mean + half)), y1: 5, y2: 5 });
  add("circle", { cx: x(mean), cy: 5, r: 3 });
  return drawing;
}
