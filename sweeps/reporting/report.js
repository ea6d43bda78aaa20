"use strict";
const symbols = {healthy: "circle", "still-improving": "triangle-up", underfit: "square", overfit: "x", diverged: "diamond", failed: "cross"};
const dashes = {overfit: "dash", diverged: "dot", failed: "dot"};
const page = document.documentElement;
const MANY = 100;  // lines of trials that a plot has one by one; of more it has
const SHARES = 20;  // parts of several lines each, so that it is darker where many run
const panel = document.getElementById("trial");
const hidden = new Set();  // tones of trials that are not shown
const written = new WeakMap();  // of each part of the page its HTML as it came
const listened = new WeakSet();  // plots whose clicks are heard
let figures, details, faint;  // read from the page
let focused = null;  // the trial that is followed
let opener = null;  // finds what it was chosen by
let sorted = null;  // [column, ascending] of the leaderboard

function read() {
  figures = JSON.parse(document.getElementById("figures").textContent);
  details = JSON.parse(document.getElementById("details").textContent);
  faint = Math.max(0.2, Math.min(0.75, 6 / Math.sqrt(document.querySelectorAll("#leaderboard tbody tr").length)));  // the more lines, the fainter
}

function color(tone) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + tone).trim();
}

function painted(trace) {
  const {trial, tone, winner, around: [before, after] = ["", ""]} = trace.meta;
  if (trace.type === "bar") {
    return {...trace, marker: {color: color(tone)}, textfont: {color: color("ink")}};
  }
  const star = tone === "winner";
  const stands = focused === null ? winner : trial === focused;
  const width = stands ? 3.5 : 1.5;
  return {
    ...trace,
    text: Array.isArray(trace.text) ? trace.text.map(told => before + told + after) : before + trace.text + after,
    visible: !hidden.has(tone) || trial === focused,
    opacity: stands ? 1 : focused === null ? faint : 0.12,
    zorder: star ? 3 : stands ? 2 : 1,
    line: {color: color(tone), width, dash: dashes[tone] || "solid"},
    marker: {
      symbol: symbols[tone] || "circle", size: stands ? 8 : 6, ...trace.marker, color: color(tone),
      line: {color: color("panel"), width: star ? 1.5 : 0.5},
    },
  };
}

/** The traces as they are drawn. Lines of many trials that do not stand out share a few traces for each verdict: the library takes milliseconds for every trace. */
function joined(traces) {
  if (traces.length <= MANY) return traces;
  const alone = [], together = new Map();
  for (const [at, trace] of traces.entries()) {
    const {trial, tone} = trace.meta, share = `${tone} ${Math.floor(SHARES * at / traces.length)}`;
    if (trace.zorder > 1) {
      alone.push(trace);
      continue;
    }
    if (!together.has(share)) together.set(share, {...trace, mode: "lines", x: [], y: [], text: [], customdata: []});
    const own = together.get(share);
    own.x.push(...trace.x, null);
    own.y.push(...trace.y, null);
    own.text.push(...trace.x.map((_, at) => Array.isArray(trace.text) ? trace.text[at] : trace.text), "");
    own.customdata.push(...trace.x.map(() => trial), trial);
  }
  return [...together.values(), ...alone];
}

function laidOut(layout) {
  const axis = {
    gridcolor: color("line"), linecolor: color("line"), zeroline: false, tickfont: {color: color("muted")}, automargin: true,
  };
  const named = a => ({...axis, ...a, title: a.title && {...a.title, font: {color: color("muted"), size: 12}}});
  return {
    ...layout,
    margin: {l: 8, r: 12, t: layout.xaxis.fixedrange ? 4 : 28, b: 8, ...layout.margin},
    xaxis: named(layout.xaxis), yaxis: named(layout.yaxis),
    shapes: (layout.shapes || []).map(shape => ({...shape, line: {...shape.line, color: color("muted"), width: 1}})),
    annotations: (layout.annotations || []).map(note => ({
      ...note, font: {color: color(note.name === "axis" ? "ink" : "muted"), size: 12, weight: note.name === "axis" ? 600 : 400},
    })),
    autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: color("ink")},
    hoverlabel: {align: "left", bgcolor: color("panel"), bordercolor: color("line"), font: {color: color("ink"), size: 12}},
    hovermode: "closest", hoverdistance: 24, uirevision: "kept",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",  // a finger scrolls the page
    showlegend: Boolean(layout.showlegend), legend: {orientation: "h", y: 1, yanchor: "bottom", x: 0},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: color("muted"), activecolor: color("ink")},
  };
}

function draw() {
  return Promise.all(figures.map(figure => Plotly.react(
    figure.id, joined(figure.data.map(painted)), laidOut(figure.layout),
    {
      responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",  // this page sends nothing
      displayModeBar: figure.layout.xaxis.fixedrange || figure.layout.showlegend ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    },
  ))).then(() => {
    for (const plot of figures.map(figure => document.getElementById(figure.id))) {
      if (listened.has(plot)) continue;
      listened.add(plot);
      plot.on("plotly_click", event => {
        const [point] = event.points, trial = point.customdata ?? point.data.meta.trial;
        if (trial !== undefined) focusOn(trial);
      });
    }
  });
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// --- one trial ---

function focusOn(trial) {
  const left = focused;
  focused = trial === focused ? null : trial;
  if (focused !== null && !panel.contains(document.activeElement)) opener = place(document.activeElement);
  mark();
  tell();
  draw();
  if (focused !== null) panel.focus({preventScroll: true});
  else {
    const found = opener?.();
    (found?.closest("tr[data-trial]") ? found : buttonOf("leaderboard", left))?.focus({preventScroll: true});
  }
}

function buttonOf(section, trial) {
  return document.querySelector(`#${section} tr[data-trial="${CSS.escape(trial)}"] button`);
}

function mark() {
  for (const row of document.querySelectorAll("tr[data-trial]")) {
    const own = row.dataset.trial === focused;
    row.classList.toggle("focus", own);
    row.querySelector("button").setAttribute("aria-pressed", own);
  }
}

function pairs(title, entries) {
  const list = element("dl");
  for (const [name, value] of entries) {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    list.append(pair);
  }
  return [element("h3", title), list];
}

function tell() {
  const trial = details[focused];
  panel.hidden = trial === undefined;
  if (panel.hidden) return;
  const scrolled = panel.scrollTop, opened = panel.querySelector("details")?.open;
  const close = element("button", "Close", {type: "button", class: "close"});
  close.addEventListener("click", () => focusOn(focused));
  const parts = [close, element("h2", focused, {id: "trial-name"}), ...pairs("What became of it", trial.facts), ...pairs("Configuration", trial.params)];
  if (trial.evaluations.length > 0) {
    const table = element("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    for (const name of trial.columns) head.append(element("th", name, {scope: "col"}));
    for (const cells of trial.evaluations) {
      const row = body.insertRow();
      for (const cell of cells) row.append(element("td", cell));
    }
    const scroll = element("div", undefined, {class: "scroll table", tabindex: "0", role: "region", "aria-label": "Evaluations, scrolls sideways"});
    scroll.append(table);
    scroll.id = "trial-evaluations";
    parts.push(element("h3", "Evaluations"), scroll);
  }
  if (trial.log.length > 0) {
    const lines = element("ol", undefined, {class: "log", id: "trial-log", tabindex: "0", "aria-label": "Log, scrolls"});
    for (const line of trial.log) lines.append(element("li", line));
    parts.push(element("h3", "Log"), lines);
  }
  if (trial.answers.length > 0) {
    const answers = element("details", undefined, {id: "trial-answers"});
    answers.append(element("summary", "What it wrote"));
    for (const [row, prompt, reference, own] of trial.answers) {
      answers.append(element("h4", `row ${row}`), element("pre", prompt), element("small", "its own answer"), element("pre", reference), element("small", focused), element("pre", own));
    }
    answers.open = Boolean(opened);
    parts.push(answers);
  }
  panel.replaceChildren(...parts);
  panel.scrollTop = scrolled;
}

// --- the leaderboard ---

function show(tone, shown) {
  shown ? hidden.delete(tone) : hidden.add(tone);
  hide();
  draw();
}

function hide() {
  for (const chip of document.querySelectorAll(".chips button")) chip.setAttribute("aria-pressed", !hidden.has(chip.dataset.tone));
  for (const row of document.querySelectorAll("#leaderboard tbody tr")) row.hidden = hidden.has(row.dataset.tone);
}

function sort() {
  if (sorted === null) return;
  const [name, ascending] = sorted;
  const headers = [...document.querySelectorAll("#leaderboard thead th")];
  const column = headers.findIndex(header => header.textContent.trim() === name);
  if (column < 0) return;
  const body = headers[column].closest("table").tBodies[0];
  const value = row => row.children[column].dataset.value;
  const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === "" || b === "") return (a === "") - (b === "");  // what is absent stays last either way
    return ascending ? compare(a, b) : compare(b, a);
  });
  for (const header of headers) header.setAttribute("aria-sort", "none");
  headers[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  if (rows.some((row, at) => row !== body.rows[at])) body.append(...rows);
}

document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button === null || panel.contains(button)) return;
  const row = button.closest("tr[data-trial]"), header = button.closest("#leaderboard thead th");
  if (row !== null) focusOn(row.dataset.trial);
  else if (header !== null) {
    sorted = [header.textContent.trim(), header.getAttribute("aria-sort") !== "ascending"];
    sort();
  } else if (button.dataset.tone !== undefined) show(button.dataset.tone, button.getAttribute("aria-pressed") === "false");
});
document.addEventListener("keydown", event => { if (event.key === "Escape" && focused !== null) focusOn(focused); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// --- a sweep that runs ---

/** Where in the page something is, so that it is found again in a page that was written later. */
function place(node) {
  const row = node.closest("tr[data-trial]");
  if (row !== null) {
    const section = row.closest("section").id;
    return () => buttonOf(section, row.dataset.trial);
  }
  const path = [];
  for (; node.id === "" && node.parentElement !== null; node = node.parentElement) path.unshift([...node.parentElement.children].indexOf(node));
  const id = node.id;
  return () => path.reduce((found, at) => found?.children[at], id === "" ? page : document.getElementById(id));
}

/** Put what `text`, the page as it is now, shows in the place of what is shown otherwise; the reader's view stays. Gives its version. */
function renew(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const active = document.activeElement === document.body ? null : place(document.activeElement);
  const scrolled = [...document.querySelectorAll(".scroll, .log, pre")].filter(box => box.scrollLeft || box.scrollTop).map(box => [place(box), box.scrollLeft, box.scrollTop]);
  const opened = [...document.querySelectorAll("main details[open]")].map(place);
  const before = JSON.stringify(details[focused]);
  const [x, y] = [scrollX, scrollY];
  replaceParts(fresh.querySelector("main"));
  for (const id of ["figures", "details"]) document.getElementById(id).textContent = fresh.getElementById(id).textContent;
  document.title = fresh.title;
  read();
  mark();
  if (JSON.stringify(details[focused]) !== before) tell();
  hide();
  sort();
  for (const find of opened) find()?.setAttribute("open", "");
  for (const [find, left, top] of scrolled) find()?.scrollTo(left, top);
  scrollTo(x, y);
  const found = active?.();
  if (found !== document.activeElement) found?.focus({preventScroll: true});
  return draw().then(() => fresh.documentElement.dataset.version);
}

/** Sections that show what they showed stay as they are: what is selected in them, and where a screen reader is. */
function replaceParts(main) {
  const shown = document.querySelector("main"), had = new Map();
  for (const part of shown.children) {
    if (!written.has(part)) continue;
    had.set(written.get(part), part);
  }
  for (const part of [...main.children]) {
    const html = part.outerHTML, same = had.get(html);
    if (same !== undefined) {
      had.delete(html);
      part.replaceWith(same);
      continue;
    }
    written.set(part, html);
    for (const plot of part.querySelectorAll(".plot")) {
      const drawn = document.getElementById(plot.id);
      if (drawn === null) continue;
      drawn.style.cssText = plot.style.cssText;
      plot.replaceWith(drawn);  // with its zoom
    }
  }
  shown.replaceChildren(...main.children);
}

async function follow() {
  for (;;) {
    await new Promise(wake => setTimeout(wake, document.hidden ? 5000 : 1000));
    const version = await ask("version"), same = version === page.dataset.version;
    const text = version === null || same ? null : await ask("");
    page.classList.toggle("stale", text === null && !same);
    if (text !== null) page.dataset.version = await renew(text);
  }
}

/** What the server says; null where there is none any more, or it cannot read the sweep. */
async function ask(address) {
  try {
    const answer = await fetch(address, {cache: "no-store"});
    return answer.ok ? await answer.text() : null;
  } catch {
    return null;
  }
}

for (const part of document.querySelector("main").children) written.set(part, part.outerHTML);
read();
draw().then(() => {
  page.dataset.drawn = figures.length;
  if (page.dataset.version !== undefined) follow();
  else if (page.dataset.reloads !== undefined) setInterval(() => { if (focused === null && sorted === null && hidden.size === 0 && !document.hidden) location.reload(); }, 60000);
});
