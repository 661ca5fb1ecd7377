"use strict";
// What is shown lies in `data`, how in `choices`, which the address keeps behind its #.
let data = null;
let choices = null;
let timer = null;
const KEYS = ["x", "y", "logx", "logy", "condition", "seeds", "hidden"];
const $ = (id) => document.getElementById(id);

// Called by the page or by runs.js, the latter again and again.
function show(next) {
  data = next;
  choices = readChoices();
  fillControls();
  draw();
  fillTable();
  sayWritten();
  if (EVERY_S && data.goes_on && timer === null) timer = setInterval(look, 1000 * EVERY_S);
  if (!data.goes_on && timer !== null) { clearInterval(timer); timer = null; }
}

// A page from a file may load a script beside it, but not read it in another way.
function look() {
  const script = document.createElement("script");
  script.src = "runs.js?" + Date.now();
  script.onload = script.onerror = () => { script.remove(); sayWritten(); };
  document.body.append(script);
}

function sayWritten() {
  const age_s = Math.round(Date.now() / 1000 - data.written_s);
  const isLate = data.goes_on && age_s > 60 && age_s > 5 * EVERY_S;
  let text = `Written ${data.written}`;
  if (EVERY_S) text += data.goes_on ? `, renewed every ${EVERY_S} s` : "; nothing more will come";
  if (isLate) text += `: ${Math.floor(age_s / 60)} min ago, so its watch may have been stopped`;
  $("written").textContent = text + ".";
  $("written").className = isLate ? "warn" : "";
}

const columnsOf = (axis) => data.columns.filter((column) => column.axis === axis);
const columnOf = (key) => data.columns.find((column) => column.key === key);
// Accuracies on a logarithmic axis are placed by their errors, upside down.
const isByError = () => Boolean(choices.logy && choices.y && columnOf(choices.y).is_accuracy);
const placed = (y) => (isByError() ? Math.max(100 - y, data.least_error) : y);
const called = (name) => (Object.hasOwn(data.titles, name) ? data.titles[name] : name);
const conditions = () => [...new Set(data.runs.map((run) => run.condition))];

function readChoices() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const among = (name, known) => (known.includes(kept.get(name)) ? kept.get(name) : known[0]);
  const [x, y] = ["x", "y"].map((axis) => among(axis, columnsOf(axis).map((c) => c.key)));
  const isLog = (name, key) => (kept.has(name) ? kept.get(name) === "1" : opensLog(key));
  return {
    x, y, logx: isLog("logx", x), logy: isLog("logy", y),
    condition: among("condition", conditions()),
    seeds: among("seeds", data.shows_runs ? ["each", "mean"] : ["mean", "each"]),
    hidden: new Set(kept.getAll("hidden")),
  };
}

const opensLog = (key) => Boolean(columnOf(key) && columnOf(key).is_log);

function keepChoices() {
  const kept = new URLSearchParams();
  for (const key of KEYS.slice(0, -1)) {
    const value = choices[key];
    if (value !== undefined) kept.set(key, typeof value === "boolean" ? Number(value) : value);
  }
  for (const name of choices.hidden) kept.append("hidden", name);
  location.replace("#" + kept); // which adds nothing to the history
}

function changed() {
  keepChoices();
  fillControls();
  draw();
}

function fillControls() {
  for (const axis of ["x", "y"]) fillSelect($(axis), columnsOf(axis).map((c) => [c.key, c.label]), choices[axis]);
  fillSelect($("condition"), conditions().map((name) => [name, called(name)]), choices.condition);
  $("of-condition").hidden = conditions().length < 2;
  $("seeds").value = choices.seeds;
  $("logx").checked = choices.logx;
  $("logy").checked = choices.logy;
  fillMethods();
  fillTexts();
}

// Only what differs is made anew, so that the focus stays where it is.
function fillSelect(select, options, value) {
  const wanted = JSON.stringify(options);
  if (select.dataset.made !== wanted) {
    select.dataset.made = wanted;
    select.replaceChildren(...options.map(([key, text]) => new Option(text, key)));
  }
  select.value = value;
}

function fillMethods() {
  const wanted = JSON.stringify([data.methods, data.titles]);
  if ($("keys").dataset.made !== wanted) {
    $("keys").dataset.made = wanted;
    $("keys").replaceChildren(...data.methods.map(methodKey));
    const longest = Math.max(0, ...data.methods.map((method) => called(method.name).length));
    $("keys").style.setProperty("--key", `calc(${longest}ch + 5rem)`);
  }
  for (const box of $("keys").querySelectorAll("input")) box.checked = !choices.hidden.has(box.value);
}

function methodKey(method) {
  const label = document.createElement("label");
  const box = Object.assign(document.createElement("input"), { type: "checkbox", value: method.name });
  box.onchange = () => {
    if (box.checked) choices.hidden.delete(method.name);
    else choices.hidden.add(method.name);
    changed();
  };
  label.append(box, swatch(method), called(method.name));
  return label;
}

function swatch(method) {
  const make = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const dash = method.dash === "solid" ? "none" : method.dash;
  const svg = make("svg", { width: 42, height: 14, viewBox: "-21 -7 42 14", "aria-hidden": "true" });
  svg.append(
    make("path", { d: "M-20,0H20", stroke: method.colour, "stroke-width": method.width, "stroke-dasharray": dash }),
    make("path", { d: method.outline, fill: method.fill, stroke: method.colour }),
  );
  return svg;
}

function fillTexts() {
  const paragraphs = data.notes.map((text) => Object.assign(document.createElement("p"), { className: "note", textContent: text }));
  $("notes").replaceChildren(...paragraphs);
  const links = data.links.map(([href, text]) => Object.assign(document.createElement("a"), { href, textContent: text }));
  $("links").replaceChildren(...links);
}

function fillTable() {
  const row = (cells, name) => {
    const made = document.createElement("tr");
    made.append(...cells.map((text, i) => Object.assign(document.createElement(name), { textContent: text, className: data.numeric[i] ? "num" : "" })));
    return made;
  };
  const head = document.createElement("thead");
  const body = document.createElement("tbody");
  if (data.heads.length) head.append(row(data.heads, "th"));
  body.append(...data.rows.map((cells) => row(cells, "td")));
  $("runs").replaceChildren(head, body);
}

function draw() {
  const shown = data.methods.filter((method) => !choices.hidden.has(method.name));
  const traces = choices.x && choices.y ? shown.flatMap(methodTraces) : [];
  Plotly.react("plot", traces, layout(), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"] });
  const means = traces.some((trace) => trace.fill);
  $("legend-note").textContent = means ? "Lines: means over seeds where all have values; bands: from the least to the greatest." : "";
  $("plot").setAttribute("aria-label", choices.x ? `${titleOf(choices.y)} against ${titleOf(choices.x)}: ${shown.map((m) => called(m.name)).join(", ")}` : "no curves yet");
}

function methodTraces(method) {
  const runs = data.runs.filter((run) => run.method === method.name && run.condition === choices.condition);
  const known = runs.map((run) => [run, pointsOf(run)]).filter(([, points]) => points.length);
  if (choices.seeds === "mean" && known.length > 1) return meanTraces(method, known);
  return known.map(([run, points]) => lineTrace(method, points.map((p) => [p.x, p.y, readOff(run, p.i)])));
}

// The points where a run has both values, and a place on a logarithmic axis.
function pointsOf(run) {
  const [xs, ys] = [run.values[choices.x] || [], run.values[choices.y] || []];
  const isPlaced = (value, isLog) => typeof value === "number" && (!isLog || value > 0);
  return xs.map((x, i) => ({ x, y: ys[i], i }))
    .filter((p) => isPlaced(p.x, choices.logx) && isPlaced(p.y, choices.logy && !isByError()));
}

function lineTrace(method, points) {
  return {
    x: points.map((p) => p[0]), y: points.map((p) => placed(p[1])), text: points.map((p) => p[2]), hoverinfo: "text",
    name: method.name, legendgroup: method.name, mode: "lines+markers", showlegend: false,
    line: { color: method.colour, width: method.width, dash: method.dash, shape: columnOf(choices.y).is_step ? "hv" : "linear" },
    marker: { symbol: method.symbol, size: 7, maxdisplayed: 12 },
  };
}

// The mean over runs at every x that any of them has, as far as all of them go, and their range.
function meanTraces(method, known) {
  const series = known.map(([, points]) => points);
  const from = Math.max(...series.map((points) => points[0].x));
  const to = Math.min(...series.map((points) => points[points.length - 1].x));
  const grid = [...new Set(series.flat().map((p) => p.x))].filter((x) => x >= from && x <= to).sort((a, b) => a - b);
  if (!grid.length) return [];
  const rows = series.map((points) => readAt(grid, points, columnOf(choices.y).is_step));
  const at = (i) => rows.map((row) => row[i]);
  const low = grid.map((_, i) => Math.min(...at(i)));
  const high = grid.map((_, i) => Math.max(...at(i)));
  const seeds = known.map(([run]) => run.seed).join(", ");
  const means = grid.map((x, i) => {
    const mean = at(i).reduce((sum, y) => sum + y, 0) / rows.length;
    const lines = [`<b>${escaped(called(method.name))}</b>, mean of ${rows.length} runs, seeds ${escaped(seeds)}`, worded(choices.x, x),
      `${worded(choices.y, mean)} (${number(choices.y, low[i])} to ${number(choices.y, high[i])})`];
    return [x, mean, lines.join("<br>")];
  });
  const band = {
    x: [...grid, ...[...grid].reverse()], y: [...high, ...[...low].reverse()].map(placed), fill: "toself", fillcolor: faint(method.colour),
    line: { width: 0 }, mode: "lines", hoverinfo: "skip", name: method.name, legendgroup: method.name, showlegend: false,
  };
  return [band, lineTrace(method, means)];
}

function readAt(grid, points, isStep) {
  let k = 0;
  return grid.map((x) => {
    while (k + 1 < points.length && points[k + 1].x <= x) k += 1;
    const [a, b] = [points[k], points[k + 1]];
    return isStep || !b || b.x === a.x ? a.y : a.y + ((b.y - a.y) * (x - a.x)) / (b.x - a.x);
  });
}

function readOff(run, i) {
  const read = data.columns.filter((c) => c.is_read && run.values[c.key] && run.values[c.key][i] !== null);
  const head = [`<b>${escaped(called(run.method))}</b>, seed ${escaped(run.seed)}, ${escaped(run.state)}`, escaped(run.name)];
  return [...head, ...read.map((c) => worded(c.key, run.values[c.key][i]))].join("<br>");
}

const worded = (key, value) => `${columnOf(key).label} ${number(key, value)}${columnOf(key).unit ? " " + columnOf(key).unit : ""}`;
const number = (key, value) => value.toLocaleString("en", { maximumFractionDigits: columnOf(key).decimals });
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const titleOf = (key) => columnOf(key).label + (columnOf(key).unit ? ` (${columnOf(key).unit})` : "");
const axisTitle = (name) => {
  if (!choices[name]) return "";
  return name === "y" && isByError() ? `${columnOf(choices.y).label} (%, log scale of the error)` : titleOf(choices[name]);
};
const faint = (colour) => `rgba(${[1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16))},0.15)`;

// 1, 2, 5, 10, 20 and so on, written out.
const LOG_TICKS = [...Array(14).keys()].flatMap((i) => [1, 2, 5].map((digit) => digit * 10 ** (i - 4)));
const ERROR_TICKS = [0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100];
const plain = (tick) => tick.toLocaleString("en", { maximumFractionDigits: 4 });

function logAxis(name) {
  if (name === "x" || !isByError()) return { type: "log", tickvals: LOG_TICKS, ticktext: LOG_TICKS.map(plain) };
  return { type: "log", autorange: "reversed", tickvals: ERROR_TICKS, ticktext: ERROR_TICKS.map((error) => plain(100 - error)) };
}

function layout() {
  const axis = (name) => ({
    ...(choices["log" + name] ? logAxis(name) : { type: "linear" }),
    title: { text: axisTitle(name) },
    automargin: true, rangemode: "nonnegative", zeroline: false, gridcolor: "#e6e6e6", linecolor: "#888", showline: true, ticks: "outside", exponentformat: "none",
  });
  const at = data.marks[choices.x];
  const mark = { type: "line", xref: "x", yref: "paper", x0: at, x1: at, y0: 0, y1: 1, line: { color: "grey", width: 1.2, dash: "dot" } };
  return {
    xaxis: axis("x"), yaxis: axis("y"), margin: { l: 10, r: 12, t: 26, b: 10 }, hovermode: "closest", showlegend: false,
    hoverlabel: { bgcolor: "white", font: { color: "#222" }, align: "left" }, paper_bgcolor: "white", plot_bgcolor: "white",
    font: { family: "system-ui,sans-serif", size: 13, color: "#222" }, shapes: at === undefined ? [] : [mark],
    uirevision: JSON.stringify(["x", "y", "logx", "logy", "condition"].map((key) => choices[key])), // a zoom stays with it
  };
}

for (const [id, event] of [["x", "change"], ["y", "change"], ["condition", "change"], ["seeds", "change"]]) {
  $(id).addEventListener(event, () => {
    choices[id] = $(id).value;
    if (id === "x" || id === "y") choices["log" + id] = opensLog(choices[id]);
    changed();
  });
}
for (const id of ["logx", "logy"]) $(id).addEventListener("change", () => { choices[id] = $(id).checked; changed(); });
$("all").onclick = () => { choices.hidden = new Set(); changed(); };
$("none").onclick = () => { choices.hidden = new Set(data.methods.map((method) => method.name)); changed(); };
$("controls").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", () => { if (data) { choices = readChoices(); fillControls(); draw(); } });
