"use strict";
// Addresses are relative, so that they hold under the stage's path of API Gateway too.
const API = "../api/";
// As many as there are currencies, and unlike for the colour-blind too. Each has a contrast of 3 to a light and a dark page.
const COLOURS = ["#0292ff", "#ff5c0e", "#03a84e", "#d10771", "#8e4cc3", "#0e7688", "#ff17f5", "#a58b9f"];
const byId = (id) => document.getElementById(id);
const range = byId("range"), signin = byId("signin"), notice = byId("notice");

// What was asked for last. It aborts what is still under way, so that no late reply is shown over a newer one.
let running = new AbortController();

const UNREACHABLE = "The server could not be reached. Try again in a moment.";

class Refused extends Error {
  constructor(status, problem) {
    super(problem?.errors?.map((error) => `${error.field}: ${error.message}`).join(" ") || problem?.detail || problem?.title || UNREACHABLE);
    this.status = status;
  }
}

async function call(path, options) {
  let reply, body;
  try {
    reply = await fetch(API + path, { credentials: "same-origin", signal: running.signal, ...options });
    if (reply.status === 204) return null;
    body = await reply.json();
  } catch {
    // There is no network, or something on the way answered instead, and not in JSON.
    throw new Error(UNREACHABLE);
  }
  if (!reply.ok) throw new Refused(reply.status, body);
  return body;
}

const sendJson = (body) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

const seconds = (name) => Date.parse(name.length === 10 ? `${name}T00:00:00Z` : name) / 1000;

// Rows of one key each become one line a key over common buckets.
function byKey(rows, bucket, key, value) {
  const names = [...new Set(rows.map((row) => row[bucket]))];
  const lines = {};
  for (const row of rows) {
    (lines[row[key]] ??= new Map()).set(row[bucket], row[value]);
  }
  return {
    dates: names,
    lines: Object.entries(lines).map(([label, at]) => [label, names.map((name) => at.get(name) ?? 0)]),
  };
}

const columns = (rows, labels) => ({
  dates: rows.map((row) => row.date),
  lines: Object.entries(labels).map(([field, label]) => [label, rows.map((row) => row[field])]),
});

// Minor units of a currency as its own: a cent is a hundredth of a dollar, while a yen has no smaller coin.
const coins = (currency) => {
  try {
    return new Intl.NumberFormat(undefined, { style: "currency", currency });
  } catch {
    return new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  }
};
const major = (currency, minor) => minor / 10 ** coins(currency).resolvedOptions().maximumFractionDigits;
const money = (lines) => lines.map(([currency, values]) => [currency, values.map((minor) => major(currency, minor))]);

const CHARTS = [
  ["Users", "users/growth", (data) => columns(data, { totalUsers: "users" })],
  ["Active users", "users/active", (data) => columns(data.series, { activeUsers: "active" })],
  ["Sign-ups", "users/signups", (data) => columns(data, { signups: "signed up", verified: "verified" })],
  ["Chat", "chat/activity", (data) => columns(data, { messages: "messages", conversations: "conversations", errors: "errors" })],
  ["Requests by provider", "providers/usage-over-time", (data) => byKey(data, "bucket", "provider", "requests")],
  ["Net revenue", "revenue/over-time", (data) => {
    const { dates, lines } = byKey(data, "date", "currency", "net");
    return { dates, lines: money(lines) };
  }],
  ["Monthly recurring revenue", "revenue/mrr", (data) => ({
    dates: (data[0]?.series ?? []).map((point) => point.date),
    lines: money(data.map((row) => [row.currency, row.series.map((point) => point.mrr)])),
  })],
];

const TOTALS = [
  ["users/count", (data) => [["Users", data.total], ["Verified", data.verified]]],
  ["users/active", (data) => [["Daily active", data.dau], ["Weekly active", data.wau], ["Monthly active", data.mau]]],
  ["chat/messages", (data) => [["Messages", data.total], ["Failed", data.failed]]],
  ["revenue/total", (data) => data.map((row) => [`Net ${row.currency}`, coins(row.currency).format(major(row.currency, row.net))])],
];

function draw(section, { dates, lines }) {
  const x = dates.map(seconds);
  // The heading is as wide as the section has room, and a chart in it does not change that.
  const heading = section.querySelector("h2");
  const room = () => ({ width: Math.max(200, heading.clientWidth), height: 240 });
  const series = lines.map(([label], n) => ({ label, stroke: COLOURS[n % COLOURS.length], width: 2, points: { show: x.length < 40 } }));
  const ink = { stroke: getComputedStyle(document.body).color, grid: { stroke: "#8884" }, ticks: { stroke: "#8884" } };
  // From zero, so that a line's height is what it says.
  const scales = { y: { range: (_, low, high) => uPlot.rangeNum(Math.min(low ?? 0, 0), Math.max(high ?? 0, 1), 0.1, true) } };
  const chart = new uPlot(
    { ...room(), scales, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"), series: [{}, ...series], axes: [ink, { ...ink, size: sizeOfAxis }] },
    [x, ...lines.map(([, values]) => values)],
    section,
  );
  new ResizeObserver(() => chart.setSize(room())).observe(heading);
}

// Room for the longest number beside the line. A size that depends on the labels has settled after the second round.
function sizeOfAxis(chart, labels, index, round) {
  const axis = chart.axes[index];
  if (round > 1) return axis._size;
  chart.ctx.font = axis.font[0];
  const widths = (labels ?? []).map((label) => chart.ctx.measureText(label ?? "").width / devicePixelRatio);
  return Math.ceil(axis.ticks.size + axis.gap + Math.max(0, ...widths));
}

// The same figures to read, copy, and hear. An hourly year has two hundred thousand cells, so they wait to be asked for.
function offerTable(section, figure) {
  const details = element("details", "", section);
  element("summary", "As a table", details);
  details.addEventListener("toggle", () => tabulate(details, figure), { once: true });
}

function tabulate(details, { dates, lines }) {
  const table = element("table", "", details);
  const head = element("tr", "", element("thead", "", table));
  for (const name of ["Date", ...lines.map(([label]) => label)]) element("th", name, head);
  const body = element("tbody", "", table);
  dates.forEach((date, n) => {
    const row = element("tr", "", body);
    element("td", date, row);
    for (const [, values] of lines) element("td", values[n]?.toLocaleString() ?? "", row);
  });
}

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent?.append(made);
  return made;
}

// A figure, or why it alone is refused, such as for a range that is too long for it. Who may see none sees none.
const orRefusal = (figure) => figure.catch((error) => {
  if (error instanceof Refused && ![401, 403].includes(error.status)) return error;
  throw error;
});

async function show() {
  const query = new URLSearchParams(new FormData(range));
  notice.textContent = "Loading";
  const replies = new Map();
  const load = (path) => {
    if (!replies.has(path)) replies.set(path, call(`analytics/${path}?${query}`).then((reply) => reply.data));
    return replies.get(path);
  };
  const totals = Promise.all(TOTALS.map(([path, rows]) => orRefusal(load(path).then(rows))));
  const charts = Promise.all(CHARTS.map(async ([title, path, shape]) => [title, await orRefusal(load(path).then(shape))]));
  const [rows, figures] = await Promise.all([totals, charts]);
  if (figures.every(([, figure]) => figure instanceof Refused)) throw figures[0][1];
  const refused = rows.find((row) => row instanceof Refused);
  byId("totals").replaceChildren(...rows.filter(Array.isArray).flat().map(([label, value]) => {
    const box = element("div", "");
    element("dt", label, box);
    element("dd", typeof value === "number" ? value.toLocaleString() : value, box);
    return box;
  }));
  const sections = figures.map(([title]) => {
    const section = element("section", "");
    element("h2", title, section);
    return section;
  });
  // All in place first: a chart is as wide as its section, and a section as the others leave room for.
  byId("charts").replaceChildren(...sections);
  figures.forEach(([, figure], n) => {
    if (figure instanceof Refused) element("p", figure.message, sections[n]);
    else if (figure.dates.length && figure.lines.length) {
      draw(sections[n], figure);
      offerTable(sections[n], figure);
    } else element("p", "Nothing in this range.", sections[n]);
  });
  notice.textContent = refused?.message ?? "";
}

function clear() {
  byId("totals").replaceChildren();
  byId("charts").replaceChildren();
}

function ask(text) {
  range.hidden = true;
  signin.hidden = false;
  clear();
  notice.textContent = text;
}

async function enter() {
  const { user } = await call("auth/me");
  if (user.role !== "admin") return ask("This account is not an admin's.");
  signin.hidden = true;
  range.hidden = false;
  await show();
}

function attempt(work) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  return work().catch((error) => {
    if (signal.aborted) return;
    clear();
    if (error.status === 401) ask(signin.hidden ? "Sign in as an admin." : error.message);
    else notice.textContent = error.message;
  });
}

const on = (form, event, work) => form.addEventListener(event, (happened) => {
  happened.preventDefault();
  attempt(work);
});

on(signin, "submit", async () => {
  await call("auth/signin", sendJson(Object.fromEntries(new FormData(signin))));
  signin.reset();
  await enter();
});
on(range, "submit", show);
on(byId("signout"), "click", async () => {
  await call("auth/signout", { method: "POST" });
  ask("Signed out.");
});

const day = (offset) => new Date(Date.now() + offset * 86_400_000).toISOString().slice(0, 10);
range.elements.startDate.value = day(-29);
range.elements.endDate.value = day(0);
attempt(enter);
