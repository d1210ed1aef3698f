// @ts-check
// The moving parts of a report's page. All numbers come from the JSON embedded in the page; nothing is fetched, and
// text of the report only ever becomes text nodes.

/**
 * @typedef {number | string} Label
 * @typedef {(List | number | null)[]} List
 * @typedef {List | number | null} Nested
 * @typedef {(Texts | string)[]} Texts
 * @typedef {{ description: string, axes: Record<string, Label[]>, values: List, texts?: Texts }} Table
 * @typedef {{ kind: "diverging", limit: number | null } | { kind: "sequential", limits: [number, number] | null }} Scale
 * @typedef {{ kind: string, table: string, alternatives: string[], scale: Scale, caption: string, y_label: string }} Section
 * @typedef {{ sections: Section[], tables: Record<string, Table> }} PageReport
 * @typedef {{ name: string, labels: Label[] }} Axis
 */

// ---- small things ---------------------------------------------------------------------------------------------

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag @param {Record<string, string>} [attributes] @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * @param {string} tag @param {Record<string, string | number>} attributes @param {(Node | string)[]} children
 * @returns {SVGElement}
 */
function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** A label on one line with its whitespace and unprintable characters shown, as the terminal shows it. @param {Label} label */
function visible(label) {
  if (typeof label === "number") return String(label);
  if (label === "") return '""';
  const spaces = (/** @type {string} */ run) => "·".repeat(run.length);
  return label
    .replace(/^ +/, spaces)
    .replace(/ +$/, spaces)
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(
      /[\p{Cc}\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu,
      (found) => `\\u{${(found.codePointAt(0) ?? 0).toString(16)}}`,
    );
}

/** A label isolated from the direction of the text around it. @param {Label} label */
const isolated = (label) => element("bdi", {}, visible(label));

/** One short format for all numbers of a figure. @param {number[]} values @returns {(value: number) => string} */
function shortFormat(values) {
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (largest < 1e6 && values.every(Number.isInteger)) return (value) => String(value);
  if (largest < 1e-2 || largest >= 1e5) return (value) => (value === 0 ? "0" : value.toExponential(1).replace("e+", "e"));
  const exponent = Math.floor(Math.log10(largest));
  const after = Math.max(0, 3 - (exponent < 0 ? 2 : 1) - exponent);
  return (value) => value.toFixed(after).replace(/^-(0\.?0*)$/, "$1");
}

/** A number for a readout. @param {number | null} value */
const exact = (value) => (value === null ? "not defined" : String(Number(value.toPrecision(6))));

/** @param {Table} table @returns {Axis[]} */
const axesOf = (table) => Object.entries(table.axes).map(([name, labels]) => ({ name, labels }));

/** @param {Nested} nested @returns {number[]} */
function present(nested) {
  const found = /** @type {number[]} */ ([]);
  const visit = (/** @type {Nested} */ part) => {
    if (Array.isArray(part)) part.forEach(visit);
    else if (part !== null) found.push(part);
  };
  visit(nested);
  return found;
}

/** @param {Nested} nested @param {number[]} at @returns {number | null} */
function valueAt(nested, at) {
  const found = at.reduce((/** @type {Nested} */ part, index) => (Array.isArray(part) ? part[index] : null), nested);
  return typeof found === "number" ? found : null;
}

/** What a cell shows in the place of its number, if anything. @param {Table} table @param {number[]} at */
function textAt(table, at) {
  const found = at.reduce((/** @type {Texts | string | undefined} */ part, index) => (Array.isArray(part) ? part[index] : undefined), table.texts);
  return typeof found === "string" ? visible(found) : null;
}

/** `position 3 “·upon”`, or `layer 3` where the labels are numbers. @param {Axis} axis @param {number} index */
function place(axis, index) {
  const label = axis.labels[index];
  return typeof label === "number" ? `${axis.name} ${label}` : `${axis.name} ${index} “${visible(label)}”`;
}

// ---- heat map -------------------------------------------------------------------------------------------------

/** The values at the ends of the scale. @param {Scale} scale @param {number[]} values @returns {[number, number]} */
function limitsOf(scale, values) {
  if (scale.kind === "diverging") {
    const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const limit = scale.limit !== null && scale.limit > 0 ? scale.limit : largest || 1;
    return [-limit, limit];
  }
  if (scale.limits && scale.limits[0] < scale.limits[1]) return scale.limits;
  const low = values.reduce((least, value) => Math.min(least, value), 0);
  const high = values.reduce((most, value) => Math.max(most, value), low);
  return [low, high > low ? high : low + 1];
}

/** The scale without limits given for another table. @param {Scale} scale @returns {Scale} */
const derived = (scale) =>
  scale.kind === "diverging" ? { kind: "diverging", limit: null } : { kind: "sequential", limits: null };

/** @param {HTMLElement} figure @param {Section} section @param {PageReport} report */
function heatMap(figure, section, report) {
  const first = report.tables[section.table];
  if (!first || present(first.values).length === 0) return;
  const axes = axesOf(first);
  const columns = axes[axes.length - 1];
  const rows = axes.length > 1 ? axes[axes.length - 2] : { name: "", labels: [""] };
  const leading = axes.slice(0, -2);

  let name = section.table;
  const at = leading.map(() => 0);
  let active = { row: 0, column: 0 };

  const readout = element("output", { class: "readout", "aria-live": "polite" });
  const legend = element("p", { class: "legend" });
  const controls = element("div", { class: "controls" });
  const { grid, cells, rowHeads, columnHeads } = buildGrid(rows, columns, axes.length > 1);
  const scroller = element("div", { class: "scroll" }, grid);

  const table = () => report.tables[name];
  const path = (/** @type {number} */ row, /** @type {number} */ column) =>
    axes.length > 1 ? [...at, row, column] : [column];

  function draw() {
    const values = present(table().values);
    const scale = name === section.table ? section.scale : derived(section.scale);
    const limits = limitsOf(scale, values);
    const format = shortFormat(values);
    grid.setAttribute("aria-label", `${name}: ${table().description}`);
    cells.forEach((line, row) =>
      line.forEach((cell, column) => {
        paint(cell, valueAt(table().values, path(row, column)), scale, limits, format);
        const text = textAt(table(), path(row, column));
        if (text !== null) cell.replaceChildren(element("bdi", {}, text));
      }),
    );
    const [low, high] = limits.map(shortFormat(limits));
    const middle = scale.kind === "diverging" ? [element("span", {}, "0")] : [];
    const ends = element("span", { class: "ends" }, element("span", {}, low), ...middle, element("span", {}, high));
    const bar = element("span", { class: `bar ${scale.kind}` });
    legend.replaceChildren(element("span", { class: "scale" }, bar, ends), element("span", {}, table().description));
    say();
  }

  function say() {
    const { row, column } = active;
    const parts = leading.map((axis, index) => place(axis, at[index]));
    if (axes.length > 1) parts.push(place(rows, row));
    parts.push(place(columns, column));
    const value = element("strong", {}, exact(valueAt(table().values, path(row, column))));
    const text = textAt(table(), path(row, column));
    const said = text === null ? [] : [element("strong", {}, element("bdi", {}, text)), " "];
    readout.replaceChildren(element("bdi", {}, parts.join(", ")), element("span", {}, `${name}: `, ...said, value));
  }

  /** @param {number} row @param {number} column */
  function activate(row, column) {
    cells[active.row][active.column].tabIndex = -1;
    for (const head of [rowHeads[active.row], columnHeads[active.column]]) head?.classList.remove("active");
    active = { row, column };
    cells[row][column].tabIndex = 0;
    for (const head of [rowHeads[row], columnHeads[column]]) head?.classList.add("active");
    say();
  }

  if (section.alternatives.length > 0) {
    const options = [section.table, ...section.alternatives].map((each) => element("option", { value: each }, each));
    const select = element("select", {}, ...options);
    select.addEventListener("change", () => {
      name = select.value;
      draw();
    });
    controls.append(element("label", {}, "Values ", select));
  }
  leading.forEach((axis, index) => {
    const range = element("input", { type: "range", min: "0", max: String(axis.labels.length - 1), value: "0" });
    const shown = element("output", {});
    const show = () => {
      at[index] = Number(range.value);
      shown.replaceChildren(isolated(axis.labels[at[index]]));
      range.setAttribute("aria-valuetext", place(axis, at[index]));
    };
    range.addEventListener("input", () => {
      show();
      draw();
    });
    show();
    controls.append(element("label", {}, `${axis.name} `, range, shown));
  });

  const find = (/** @type {EventTarget | null} */ target) => {
    const cell = target instanceof Element ? target.closest("td") : null;
    if (cell) activate(Number(cell.dataset.row), Number(cell.dataset.column));
  };
  grid.addEventListener("mouseover", (event) => find(event.target));
  grid.addEventListener("focusin", (event) => find(event.target));
  grid.addEventListener("keydown", (event) => {
    const { row, column } = active;
    const [bottom, right] = [rows.labels.length - 1, columns.labels.length - 1];
    /** @type {Record<string, [number, number]>} */
    const moves = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      PageUp: [0, column],
      PageDown: [bottom, column],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? bottom : row, right],
    };
    const move = moves[event.key];
    if (!move || event.altKey || event.metaKey) return;
    event.preventDefault();
    cells[Math.min(Math.max(move[0], 0), bottom)][Math.min(Math.max(move[1], 0), right)].focus();
  });

  const axisNames = axes.length > 1 ? `${rows.name} down, ${columns.name} across` : `${columns.name} across`;
  const hint = element("p", { class: "axes" }, axisNames);
  figure.prepend(controls, hint, scroller, readout, legend);
  draw();
  activate(0, 0);
}

/** @param {Axis} rows @param {Axis} columns @param {boolean} hasRows */
function buildGrid(rows, columns, hasRows) {
  const longest = Math.max(...columns.labels.map((label) => visible(label).length));
  const upright = longest > 5 || columns.labels.length > 24;
  const grid = element("table", { role: "grid", "aria-readonly": "true" });
  grid.classList.toggle("upright", upright);
  grid.classList.toggle("compact", columns.labels.length > 40);
  const columnHeads = columns.labels.map((label) =>
    element("th", { scope: "col", role: "columnheader", title: visible(label) }, element("span", {}, isolated(label))),
  );
  const corner = hasRows ? [element("td", { role: "presentation", class: "corner" })] : [];
  grid.append(element("thead", {}, element("tr", { role: "row" }, ...corner, ...columnHeads)));
  const rowHeads = /** @type {HTMLElement[]} */ ([]);
  const body = element("tbody");
  const cells = rows.labels.map((label, row) => {
    const line = columns.labels.map((_, column) =>
      element("td", { role: "gridcell", tabindex: "-1", "data-row": String(row), "data-column": String(column) }),
    );
    const head = element("th", { scope: "row", role: "rowheader" }, isolated(label));
    if (hasRows) rowHeads.push(head);
    body.append(element("tr", { role: "row" }, ...(hasRows ? [head] : []), ...line));
    return line;
  });
  grid.append(body);
  return { grid, cells, rowHeads, columnHeads };
}

/**
 * @param {HTMLElement} cell @param {number | null} value @param {Scale} scale @param {[number, number]} limits
 * @param {(value: number) => string} format
 */
function paint(cell, value, scale, [low, high], format) {
  if (value === null) {
    cell.className = "missing";
    cell.textContent = "–";
    return;
  }
  const diverging = scale.kind === "diverging";
  const raw = diverging ? value / high : (value - low) / (high - low);
  const part = Math.min(Math.max(raw, diverging ? -1 : 0), 1);
  cell.className = diverging ? (part < 0 ? "cool" : "warm") : "full";
  if (Math.abs(part) > 0.77) cell.classList.add("strong");
  cell.style.setProperty("--part", `${(Math.abs(part) * 100).toFixed(1)}%`);
  cell.textContent = format(value);
}

// ---- lines ----------------------------------------------------------------------------------------------------

const WIDTH = 760;
const HEIGHT = 320;
const MARGIN = { top: 12, right: 16, bottom: 44, left: 64 };

/** The round distance between about `count` ticks. @param {number} low @param {number} high @param {number} count */
function tickStep(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
}

/** Round numbers from `low` to `high`. @param {number} low @param {number} high @param {number} step */
function ticks(low, high, step) {
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) found.push(index * step);
  return found;
}

/** @param {HTMLElement} figure @param {Section} section @param {PageReport} report */
function lines(figure, section, report) {
  const table = report.tables[section.table];
  const values = table ? present(table.values) : [];
  if (!table || values.length === 0) return;
  const axes = axesOf(table);
  const across = axes[axes.length - 1];
  const series = axes.length > 1 ? axes[0].labels : [section.y_label];
  const curves = /** @type {(number | null)[][]} */ (axes.length > 1 ? table.values : [table.values]);

  // An axis of numbers is drawn to scale, any other in even steps.
  const numeric = across.labels.every((label, index) => typeof label === "number" && (index === 0 || label > Number(across.labels[index - 1])));
  const xs = across.labels.map((label, index) => (numeric ? Number(label) : index));
  const [left, right] = [xs[0], xs[xs.length - 1]];
  let low = values.reduce((least, value) => Math.min(least, value), values[0]);
  let high = values.reduce((most, value) => Math.max(most, value), values[0]);
  if (low > 0 && low < high / 2) low = 0;
  if (high === low) [low, high] = [low - 1, high + 1];
  const height = tickStep(low, high, 5);
  [low, high] = [Math.floor(low / height + 1e-9) * height, Math.ceil(high / height - 1e-9) * height];
  const x = (/** @type {number} */ value) => MARGIN.left + ((value - left) / (right - left || 1)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (/** @type {number} */ value) => HEIGHT - MARGIN.bottom - ((value - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);

  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
  const yTicks = ticks(low, high, height);
  const yFormat = shortFormat(yTicks);
  for (const tick of yTicks) {
    chart.append(svg("line", { class: "rule", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(tick), y2: y(tick) }));
    chart.append(svg("text", { class: "tick", x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, yFormat(tick)));
  }
  const bottom = HEIGHT - MARGIN.bottom;
  const every = Math.ceil(across.labels.length / 8);
  const xTicks = numeric && right > left ? ticks(left, right, tickStep(left, right, 7)).filter(Number.isInteger) : xs.filter((_, index) => index % every === 0);
  for (const tick of xTicks) {
    const text = numeric ? String(tick) : visible(across.labels[tick]).slice(0, 12);
    chart.append(svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 }));
    chart.append(svg("text", { class: "tick", x: x(tick), y: bottom + 18, "text-anchor": "middle" }, text));
  }
  chart.append(svg("line", { class: "axis", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: bottom, y2: bottom }));
  chart.append(svg("text", { class: "name", x: (MARGIN.left + WIDTH - MARGIN.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, across.name));
  chart.append(svg("text", { class: "name", transform: `translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, section.y_label));
  curves.forEach((curve, index) => {
    let pen = "M";
    const path = curve.map((value, step) => {
      if (value === null) {
        pen = "M";
        return "";
      }
      // A point between gaps is a line of no length, which its round ends make visible.
      const part = `${pen}${x(xs[step]).toFixed(1)} ${y(value).toFixed(1)}${pen === "M" ? "h0" : ""}`;
      pen = "L";
      return part;
    });
    chart.append(svg("path", { class: `curve series-${index % 6} round-${Math.floor(index / 6) % 3}`, d: path.join("") }));
  });
  const marker = svg("line", { class: "marker", y1: MARGIN.top, y2: bottom });
  const dots = curves.map((_, index) => svg("circle", { class: `dot series-${index % 6}`, r: 4 }));
  chart.append(marker, ...dots);

  const key = element("ul", { class: "key" });
  const where = element("li", { class: "where" });
  const shown = series.map((label, index) => {
    const value = element("strong");
    key.append(element("li", {}, element("span", { class: `swatch series-${index % 6} round-${Math.floor(index / 6) % 3}` }), isolated(label), value));
    return value;
  });
  key.prepend(where);

  const last = xs.length - 1;
  const slider = element("div", {
    class: "chart", role: "slider", tabindex: "0", "aria-label": `${section.y_label} over ${across.name}`,
    "aria-valuemin": "0", "aria-valuemax": String(last), "aria-valuenow": String(last),
  });
  slider.append(chart);
  let step = last;
  /** @param {number} to */
  function show(to) {
    step = Math.min(Math.max(to, 0), last);
    const position = String(x(xs[step]));
    marker.setAttribute("x1", position);
    marker.setAttribute("x2", position);
    curves.forEach((curve, index) => {
      const value = curve[step];
      shown[index].textContent = exact(value);
      dots[index].setAttribute("cx", position);
      dots[index].setAttribute("cy", String(value === null ? -20 : y(value)));
    });
    where.textContent = place(across, step);
    slider.setAttribute("aria-valuenow", String(step));
    const spoken = series.map((label, index) => `${visible(label)} ${exact(curves[index][step])}`);
    slider.setAttribute("aria-valuetext", `${place(across, step)}: ${spoken.join(", ")}`);
  }
  slider.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const pointer = ((event.clientX - box.left) / box.width) * WIDTH;
    const distances = xs.map((value) => Math.abs(x(value) - pointer));
    show(distances.indexOf(distances.reduce((least, distance) => Math.min(least, distance))));
  });
  slider.addEventListener("keydown", (event) => {
    /** @type {Record<string, number>} */
    const moves = { ArrowLeft: step - 1, ArrowRight: step + 1, ArrowDown: step - 1, ArrowUp: step + 1, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(moves[event.key]);
  });
  figure.prepend(slider, key);
  show(last);
}

// ---- the page -------------------------------------------------------------------------------------------------

/** @type {PageReport} */
const report = JSON.parse(document.getElementById("report")?.textContent ?? "{}");
for (const figure of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("figure[data-section]"))) {
  const section = report.sections[Number(figure.dataset.section)];
  if (section.kind === "heat_map") heatMap(figure, section, report);
  if (section.kind === "lines") lines(figure, section, report);
}
