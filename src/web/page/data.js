// The model: what /data.json says, the last ten minutes of each application, and the groups that the table shows.
"use strict";

// The seconds of the chart. The last of each array is the second of the last tick.
const N = 600;
const $ = (id) => document.getElementById(id);
const el = (tag, attributes, ...children) => {
  const element = document.createElement(tag);
  for (const name in attributes || {})
    name === "class" ? (element.className = attributes[name]) : element.setAttribute(name, attributes[name]);
  element.append(...children);
  return element;
};
const text = (element, content) => {
  if (element.textContent !== content) element.textContent = content;
};

/* text from outside */
// Characters that cannot be seen or turn the reading direction are escaped.
const plain = (value) =>
  (value ?? "").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
const programOf = (command) => {
  const word = command.trim().split(" ")[0];
  return word.slice(word.lastIndexOf("/") + 1) || command || "(no name)";
};

/* figures */
const UNITS = {
  bytes: { base: 1000, factor: 1, names: ["B", "kB", "MB", "GB", "TB"] },
  bits: { base: 1000, factor: 8, names: ["bit", "kbit", "Mbit", "Gbit", "Tbit"] },
  binary: { base: 1024, factor: 1, names: ["B", "KiB", "MiB", "GiB", "TiB"] },
};
let unit = "bytes";
// A number of three digits, and its unit. Totals stay in bytes where rates are in bits.
const figure = (value, isRate = true) => {
  const { base, factor, names } = UNITS[!isRate && unit === "bits" ? "bytes" : unit];
  let at = 0;
  for (value *= factor; value >= base * 0.9995 && at < 4; at++) value /= base;
  const digits = at === 0 || value >= 99.95 ? 0 : value < 9.995 ? 2 : 1;
  return [value.toFixed(digits), names[at] + (isRate ? "/s" : "")];
};
const shown = (value, isRate) => figure(value, isRate).join("\u00a0");
const duration = (seconds) => {
  seconds = Math.round(seconds);
  const hours = Math.floor(seconds / 3600);
  const minutes = Math.floor(seconds / 60) % 60;
  return hours
    ? hours + " h " + minutes + " min"
    : minutes
      ? minutes + " min " + (seconds % 60) + " s"
      : seconds + " s";
};
// The second of the last tick, in Unix time.
let now = Math.floor(Date.now() / 1000);
const clock = (second) => new Date(second * 1000).toTimeString().slice(0, 8);

/* what bwmon says */
let program = { host: "", version: "", started: null, ticks: null, rows: "process", is_root: true, has_history: false };
let tick = null;
let unowned = [];
let notifications = [];
// The messages of the program, the latest first.
let notes = [];
// Who has used much of a quota, the latest first.
let quotas = [];
// The applications by the key of their record.
const apps = new Map();
// What has not moved shares this.
const SILENT = new Float64Array(N);

// Text that is not UTF-8 has its bytes in a second field, in which two equal texts may differ.
const TEXTS = ["command_line", "cgroup", "executable", "application", "pipe", "group"];
const KEYS = ["kind", "uid", "has_command_line", ...TEXTS, ...TEXTS.map((name) => name + "_hex")];
const keyOf = (record) => JSON.stringify(KEYS.map((name) => record[name] ?? null));

const nameOfContainer = (container) =>
  container ? plain(container.name ?? container.pod ?? container.id).slice(0, 60) : "(host)";

const appOf = (record) => {
  const key = keyOf(record);
  let app = apps.get(key);
  if (!app) {
    const command = plain(record.command_line).trim();
    const name =
      record.kind === "process"
        ? record.has_command_line
          ? programOf(command)
          : command
        : record.kind === "others"
          ? "(other processes)"
          : plain(record.application ?? record.pipe ?? record.group).trim();
    app = { key, name, command: command || name, hin: SILENT, hout: SILENT, detail: null, seen: 0 };
    apps.set(key, app);
  }
  app.unit = plain(record.unit ?? record.user_unit) || "(no unit)";
  app.container = nameOfContainer(record.container);
  app.user = plain(record.user ?? record.uid?.toString());
  return app;
};

const shift = (app, seconds) => {
  if (app.hin === SILENT) return;
  for (const history of [app.hin, app.hout]) {
    history.copyWithin(0, seconds);
    history.fill(0, N - seconds);
  }
};

// Takes in an answer. Returns false if too much time has passed since the last one: the history is needed.
const takeIn = (data) => {
  const second = Math.round(Date.parse(data.tick.timestamp) / 1000);
  const seconds = second - now;
  const isNew = program.started !== data.program.started;
  if (!data.history && (isNew || seconds < 0 || seconds > N)) return false;
  ({ program, tick } = data);
  now = second;
  if (data.history) {
    apps.clear();
    for (const record of data.history) {
      const app = appOf(record);
      app.hin = Float64Array.from(record.in_bytes_each_second);
      app.hout = Float64Array.from(record.out_bytes_each_second);
    }
    const others = data.other_history;
    if (others.in_bytes_each_second.some(Boolean) || others.out_bytes_each_second.some(Boolean)) {
      const app = appOf({ kind: "history", application: "(smaller ones)" });
      app.hin = Float64Array.from(others.in_bytes_each_second);
      app.hout = Float64Array.from(others.out_bytes_each_second);
    }
  } else for (const app of apps.values()) shift(app, seconds);

  unowned = [];
  // What is not in an answer with all records is over.
  if (!program.moved_only) for (const app of apps.values()) Object.assign(app, { tin: 0, tout: 0, connections: 0 });
  for (const record of data.records) {
    if (record.kind === "unowned") unowned.push(record);
    if (!["process", "others", "application", "pipe", "group"].includes(record.kind)) continue;
    const app = appOf(record);
    const rates = [record.in_bytes_per_second, record.out_bytes_per_second];
    if (!data.history && rates[0] + rates[1] > 0) {
      if (app.hin === SILENT) [app.hin, app.hout] = [new Float64Array(N), new Float64Array(N)];
      app.hin.fill(rates[0], N - Math.max(1, seconds));
      app.hout.fill(rates[1], N - Math.max(1, seconds));
    }
    app.tin = record.in_bytes_total;
    app.tout = record.out_bytes_total;
    app.detail = record;
    app.connections = record.connections ?? 0;
    app.seen = program.ticks;
  }
  if (!program.moved_only)
    for (const app of apps.values())
      if (app.seen !== program.ticks && !app.hin.some(Boolean) && !app.hout.some(Boolean)) apps.delete(app.key);

  notes = data.notes.map((note) => ({
    message: plain(note.message),
    at: clock(Math.round(Date.parse(note.timestamp) / 1000)),
  }));
  notes.reverse();
  quotas = data.notifications.filter((record) => record.kind === "quota").reverse();
  notifications = [];
  for (const record of data.notifications.filter((record) => record.kind !== "quota")) {
    const app = plain(record.application).trim();
    const at = Math.round(Date.parse(record.timestamp) / 1000);
    const begun = notifications.find(
      (other) =>
        other.isActive &&
        other.app === app &&
        other.direction === record.direction &&
        other.threshold === record.threshold_bytes_per_second,
    );
    if (record.event === "recovered") {
      if (begun) Object.assign(begun, { isActive: false, end: at });
      continue;
    }
    notifications.unshift({
      isActive: true,
      app,
      direction: record.direction,
      threshold: record.threshold_bytes_per_second,
      value: record.value_bytes_per_second,
      at,
    });
  }
  return true;
};

/* rows: groups of applications */
const GROUPS = {
  application: { one: "Application", many: "Applications", of: (app) => app.name },
  program: { one: "Program", many: "Programs", of: (app) => app.name },
  command: { one: "Command line", many: "Command lines", of: (app) => app.command },
  unit: { one: "Unit", many: "Units", of: (app) => app.unit },
  container: { one: "Container", many: "Containers", of: (app) => app.container },
  user: { one: "User", many: "Users", of: (app) => app.user || "(no user)" },
};
let groupBy = "program";
// The second that is held, as an index; null while the page is live.
let pinned = null;
let rows = [];
// The rows by their keys, which keep their arrays from tick to tick.
let rowOf = new Map();
const distinct = (row, property) =>
  [...new Set(row.members.map((app) => app[property]))].filter(Boolean).slice(0, 8).join(", ");

const buildRows = () => {
  const before = rowOf;
  rowOf = new Map();
  for (const app of apps.values()) {
    const key = GROUPS[groupBy].of(app);
    let row = rowOf.get(key);
    if (!row) rowOf.set(key, (row = { key, members: [], own: before.get(key)?.own }));
    row.members.push(app);
  }
  rows = [...rowOf.values()];
  const at = pinned ?? N - 1;
  for (const row of rows) {
    const moving = row.members.filter((app) => app.hin !== SILENT);
    if (moving.length <= 1) [row.hin, row.hout] = moving.length ? [moving[0].hin, moving[0].hout] : [SILENT, SILENT];
    else {
      row.own ??= [new Float64Array(N), new Float64Array(N)];
      [row.hin, row.hout] = row.own;
      row.hin.fill(0);
      row.hout.fill(0);
      for (const app of moving)
        for (let k = 0; k < N; k++) {
          row.hin[k] += app.hin[k];
          row.hout[k] += app.hout[k];
        }
    }
    row.in = row.hin[at];
    row.out = row.hout[at];
    row.received = row.sent = row.connections = row.sum = 0;
    for (const app of row.members) {
      row.received += app.tin;
      row.sent += app.tout;
      row.connections += app.connections;
    }
    if (row.hin !== SILENT) for (let k = 0; k < N; k++) row.sum += row.hin[k] + row.hout[k];
    row.label = groupBy === "program" || groupBy === "application" ? distinct(row, "command") : distinct(row, "name");
    if (row.label === row.key) row.label = distinct(row, groupBy === "command" ? "unit" : "user");
  }
  colourRows();
};

// Six colours: who has one keeps it until another has moved a fifth more.
let slots = [];
const colourRows = () => {
  const biggest = rows.filter((row) => row.sum > 0).sort((a, b) => b.sum - a.sum);
  slots = slots.map((key) => (key !== null && rowOf.has(key) ? key : null));
  for (let slot = 0; slot < 6; slot++) slots[slot] ??= biggest.find((row) => !slots.includes(row.key))?.key ?? null;
  for (const row of biggest.slice(0, 6)) {
    if (slots.includes(row.key)) continue;
    const sums = slots.map((key) => (key === null ? 0 : rowOf.get(key).sum));
    const least = sums.indexOf(Math.min(...sums));
    if (row.sum > sums[least] * 1.2) slots[least] = row.key;
  }
  for (const row of rows) {
    const slot = slots.indexOf(row.key);
    row.slot = slot < 0 ? 6 : slot;
  }
};
