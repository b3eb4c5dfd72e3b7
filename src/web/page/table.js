// The table of rows, and the rail beside it: notifications, bytes without an owner, how it counts.
"use strict";

// The rows that are shown before the button that shows all.
const FEW = 100;
const MOST_REMOTES = 12;
const COLUMNS = [
  ["name", "Application", ""],
  ["in", "In", "cn"],
  ["out", "Out", "cn"],
  ["spark", "Last minute", "cs"],
  ["received", "Received", "ct"],
  ["sent", "Sent", "ct"],
  ["connections", "Conns", "cc"],
  ["user", "User", "cu"],
  ["where", "Unit or container", "cu cx"],
];
const whereOf = (row) =>
  [...new Set(row.members.map((app) => (app.container === "(host)" ? app.unit : app.container)))]
    .slice(0, 8)
    .join(", ");
const VALUES = {
  name: (row) => row.key.toLowerCase(),
  in: (row) => row.in,
  out: (row) => row.out,
  both: (row) => row.in + row.out,
  received: (row) => row.received,
  sent: (row) => row.sent,
  connections: (row) => row.connections,
  user: (row) => distinct(row, "user"),
  where: whereOf,
};
let sortBy = "both";
let isAscending = false;
let query = "";
// Rows keep their places while the pointer or the focus is among them.
let isHeld = false;
let showsAll = false;
// The keys of the rows as they stand, and when they were last sorted.
let order = [];
let orderedAt = 0;
const opened = new Set();

const heads = {};
for (const [key, title, style] of COLUMNS) {
  const content = key === "spark" ? el("span", null, title) : el("button", { type: "button" }, title);
  heads[key] = el("th", { scope: "col", class: style }, content);
  $("hd").append(heads[key]);
  if (key === "spark") continue;
  content.addEventListener("click", () => {
    isAscending = sortBy === key ? !isAscending : ["name", "user", "where"].includes(key);
    sortBy = key;
    isHeld = false;
    render(true);
  });
}

const svg = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) element.setAttribute(name, attributes[name]);
  return element;
};
const cell = (style) => el("td", { class: style }, el("span"), el("small"));
const setCell = (cell, value, isRate) => {
  const [digits, unitName] = figure(value, isRate);
  text(cell.firstChild, digits);
  text(cell.lastChild, unitName);
};

// The elements of the rows, by their keys.
const elements = new Map();
let ids = 0;
const elementsOf = (row) => {
  let found = elements.get(row.key);
  if (found) return found;
  const id = "d" + ids++;
  const label = el("small");
  const button = el(
    "button",
    { type: "button", "aria-expanded": "false", "aria-controls": id },
    el("i", { class: "tw" }),
    el("i", { class: "sw" }),
    el("span", { class: "t" }, el("span", null, row.key), label),
  );
  const bar = el("i", { class: "bar" });
  const area = svg("path", { class: "a" });
  const line = svg("path", { class: "l" });
  const spark = svg("svg", { viewBox: "0 0 112 30" });
  spark.append(svg("line", { x1: 0, x2: 112, y1: 15, y2: 15 }), area, line);
  const cells = {
    in: cell("cn"),
    out: cell("cn"),
    received: cell("ct"),
    sent: cell("ct"),
    connections: el("td", { class: "cc" }),
    user: el("td", { class: "cu" }),
    where: el("td", { class: "cu cx" }),
  };
  const line1 = el(
    "tr",
    { class: "r" },
    el("th", { scope: "row", class: "nm" }, button, bar),
    cells.in,
    cells.out,
    el("td", { class: "cs", "aria-hidden": "true" }, spark),
    cells.received,
    cells.sent,
    cells.connections,
    cells.user,
    cells.where,
  );
  const box = el("div", { class: "det" });
  const detail = el("tr", { class: "d", id }, el("td", null, box));
  detail.hidden = true;
  button.addEventListener("click", () => {
    if (!opened.delete(row.key)) opened.add(row.key);
    render(true);
  });
  found = { row: line1, detail, box, button, cells, area, line, label, bar };
  elements.set(row.key, found);
  return found;
};

// A minute of a row, mirrored as the chart is: the path of the areas, and that of their lines.
const sparkOf = (row) => {
  const end = Math.max(60, (pinned ?? N - 1) + 1);
  const [bytesIn, bytesOut] = [row.hin.slice(end - 60, end), row.hout.slice(end - 60, end)];
  const top = Math.max(1, ...bytesIn, ...bytesOut);
  let above = "";
  let below = "";
  for (let k = 0; k < 60; k++) {
    const x = ((k * 112) / 59).toFixed(1);
    above += "L" + x + " " + (15 - (14 * bytesIn[k]) / top).toFixed(1);
    below += "L" + x + " " + (15 + (14 * bytesOut[k]) / top).toFixed(1);
  }
  return ["M0 15" + above + "L112 15ZM0 15" + below + "L112 15Z", "M" + above.slice(1) + "M" + below.slice(1)];
};

// Fills an element anew only when what it is made of has changed, so that its text can be selected.
const keep = (element, content, build) => {
  const signature = JSON.stringify(content);
  if (element.signature === signature) return;
  element.signature = signature;
  element.replaceChildren(...build());
};

// Both ends of the table of remote hosts: their addresses, and the sum of all others.
const remotesOf = (row) => {
  const ends = new Map();
  let others = [0, 0];
  const add = (name, bytesIn, bytesOut) => {
    const end = ends.get(name) ?? [name, 0, 0];
    ends.set(name, [name, end[1] + bytesIn, end[2] + bytesOut]);
  };
  for (const { detail } of row.members) {
    for (const end of detail?.remotes ?? [])
      add(
        end.protocol + " " + (end.address.includes(":") ? "[" + end.address + "]" : end.address) + ":" + end.port,
        end.in_bytes_total,
        end.out_bytes_total,
      );
    const rest = detail?.other_remotes;
    if (rest) others = [others[0] + rest.in_bytes_total, others[1] + rest.out_bytes_total];
  }
  const sorted = [...ends.values()].sort((a, b) => b[1] + b[2] - a[1] - a[2]);
  for (const [, bytesIn, bytesOut] of sorted.splice(MOST_REMOTES)) others = [others[0] + bytesIn, others[1] + bytesOut];
  if (others[0] + others[1] > 0) sorted.push(["others", ...others]);
  return sorted;
};

const showDetail = (row, { box }) => {
  const remotes = remotesOf(row);
  const members = [...row.members].sort((a, b) => b.tin + b.tout - a.tin - a.tout).slice(0, MOST_REMOTES);
  const processes = members.map((app) => [app.command, (app.detail?.pids ?? []).join(" "), app.user]);
  const rest = row.members.length - members.length;
  const facts = [
    ["Unit", distinct(row, "unit")],
    ["Container", distinct(row, "container")],
  ].filter(([, value]) => value && !value.startsWith("(") && program.rows === "process");
  const started = members
    .map((app) => app.detail?.started)
    .filter(Boolean)
    .sort()[0];
  if (started) facts.push(["Since", new Date(started).toLocaleString("sv")]);
  const head = (...titles) =>
    el("thead", null, el("tr", null, ...titles.map((title) => el("th", { scope: "col", class: "mut" }, title))));
  keep(box, [remotes.map(([name]) => name), processes, facts, rest], () => [
    el(
      "div",
      null,
      el(
        "table",
        null,
        head("Remote ends", "received", "sent"),
        el(
          "tbody",
          null,
          ...remotes.map(([name]) =>
            el(
              "tr",
              null,
              el("td", { class: "mono", title: name }, name),
              el("td", { class: "v" }),
              el("td", { class: "v" }),
            ),
          ),
        ),
      ),
      remotes.length ? "" : el("p", { class: "mut" }, "None is known."),
    ),
    el(
      "div",
      null,
      el(
        "table",
        null,
        head("Command lines", "pid", "user"),
        el(
          "tbody",
          null,
          ...processes.map(([command, pids, user]) =>
            el(
              "tr",
              null,
              el("td", { class: "mono", title: command }, command),
              el("td", null, pids),
              el("td", null, user),
            ),
          ),
        ),
      ),
      rest > 0 ? el("p", { class: "mut" }, "and " + rest + " more") : "",
      ...facts.map(([name, value]) => el("p", { class: "mut" }, name + " " + value)),
    ),
  ]);
  const cells = box.querySelectorAll(".v");
  remotes.forEach(([, bytesIn, bytesOut], at) => {
    text(cells[2 * at], shown(bytesIn, false));
    text(cells[2 * at + 1], shown(bytesOut, false));
  });
};

const matches = (row) => {
  const of = (app) => [
    app.command,
    app.unit,
    app.container,
    app.user,
    ...(app.detail?.remotes ?? []).map((end) => end.address),
  ];
  return [row.key, ...row.members.flatMap(of)].join("\n").toLowerCase().includes(query.toLowerCase());
};

const showTable = (isForced) => {
  const all = rows.filter((row) => row.received + row.sent > 0);
  const visible = query ? all.filter(matches) : all;
  const value = VALUES[sortBy];
  const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : a.key < b.key ? -1 : 1);
  const sorted = (rows) => rows.sort((a, b) => compare(a, b) * (isAscending ? 1 : -1)).map((row) => row.key);
  // Rows change places each fifth second; until then, new ones stand below.
  if (isForced || (!isHeld && now - orderedAt >= 5)) {
    order = sorted([...visible]);
    orderedAt = now;
  } else {
    const placed = new Set(order);
    const shownKeys = new Set(visible.map((row) => row.key));
    order = order.filter((key) => shownKeys.has(key)).concat(sorted(visible.filter((row) => !placed.has(row.key))));
  }
  const listed = showsAll ? order : order.slice(0, FEW);
  const sum = rows.reduce((sum, row) => sum + row.in + row.out, 0) || 1;
  const wanted = [];
  for (const key of listed) {
    const row = rowOf.get(key);
    const parts = elementsOf(row);
    const { cells } = parts;
    parts.row.className = "r s" + row.slot + (row.in + row.out ? "" : " q");
    text(parts.label, row.label);
    setCell(cells.in, row.in, true);
    setCell(cells.out, row.out, true);
    setCell(cells.received, row.received, false);
    setCell(cells.sent, row.sent, false);
    text(cells.connections, String(row.connections));
    text(cells.user, distinct(row, "user"));
    text(cells.where, whereOf(row));
    const [area, line] = sparkOf(row);
    parts.area.setAttribute("d", area);
    parts.line.setAttribute("d", line);
    const share = (row.in + row.out) / sum;
    parts.bar.style.width = share < 0.004 ? "0" : 100 * share + "%";
    parts.button.setAttribute("aria-expanded", opened.has(key));
    parts.detail.hidden = !opened.has(key);
    if (opened.has(key)) {
      parts.detail.firstChild.colSpan = Object.values(heads).filter((head) => head.offsetWidth).length;
      showDetail(row, parts);
    }
    wanted.push(parts.row, parts.detail);
  }
  for (const key of elements.keys()) if (!rowOf.has(key)) elements.delete(key);
  const body = $("body");
  if (wanted.length !== body.children.length || wanted.some((element, at) => body.children[at] !== element)) {
    const focused = document.activeElement;
    body.replaceChildren(...wanted);
    if (body.contains(focused)) focused.focus({ preventScroll: true });
  }
  for (const key in heads) {
    if (key === sortBy) heads[key].setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    else heads[key].removeAttribute("aria-sort");
  }
  const { one, many } = GROUPS[groupBy];
  text(heads.spark.firstChild, pinned === null ? "Last minute" : "Minute before");
  text(heads.name.firstChild, one);
  text($("ah"), many + (visible.length ? " · " + visible.length + (query ? " of " + all.length : "") : ""));
  const isCut = visible.length > listed.length;
  $("all").hidden = !isCut;
  text($("all"), "Show all " + visible.length);
  text(
    $("cut"),
    visible.length
      ? ""
      : query
        ? "Nothing matches “" + query + "”. Esc clears the filter."
        : "No application has moved anything since bwmon started.",
  );
};

const WHY = {
  "no local socket: forwarded": "Routed between other hosts; neither end is on this host.",
  "process gone before the lookup": "It connected and ended before it could be seen.",
  "socket without process": "The kernel itself holds the socket: NFS, WireGuard and their like.",
  "no permission to see the process": "The process is another user’s; as root, bwmon sees it.",
  "too many sockets at once": "More sockets moved bytes within a second than could be counted apart.",
  "equal addresses in several network namespaces":
    "Several network namespaces have such a socket, and nothing tells which it is.",
  "not looked up yet: too many descriptors":
    "The processes have more descriptors than a second can search; later ones go on.",
};
const HOW = {
  packets: "Every packet of a socket, by programs in the kernel: all IP traffic of processes, headers included.",
  conntrack: "The kernel’s connection tracking: all of TCP and UDP, IPv4 and IPv6, packet headers included.",
  sockets:
    "The sockets: TCP payload only, without UDP and packet headers; connections of less than a second are mostly missed.",
};

// A time of microseconds in three digits.
const brief = (microseconds) =>
  microseconds < 999_500
    ? Number((microseconds / 1000).toPrecision(3)) + "\u00a0ms"
    : Number((microseconds / 1e6).toPrecision(3)) + "\u00a0s";

const showRail = () => {
  keep($("nl"), [notifications, quotas, unit], () => {
    if (!notifications.length && !quotas.length) return [el("li", { class: "mut" }, "None has fired.")];
    const ofQuotas = quotas.map((record) => {
      const isUsedUp = record.event === "quota_exceeded";
      return el(
        "li",
        { class: isUsedUp ? "on" : "" },
        el("span", { class: "st" }, isUsedUp ? "quota used up" : "quota nearly used up"),
        el("span", null, plain(record.application).trim() + ", this " + record.period),
        el("p", null, shown(record.used_bytes, false) + " of " + shown(record.quota_bytes, false)),
      );
    });
    const ofThresholds = notifications.map((n) =>
      el(
        "li",
        { class: n.isActive ? "on" : "" },
        el("span", { class: "st" }, n.isActive ? "exceeding" : "over after " + duration(n.end - n.at)),
        el("span", null, n.app + ", " + n.direction),
        el("p", null, clock(n.at) + " · " + shown(n.value) + " of " + shown(n.threshold)),
      ),
    );
    return [...ofQuotas, ...ofThresholds];
  });
  const active = notifications.filter((n) => n.isActive).length;
  text($("nc"), active ? active + " now" : "");

  const bytes = (record) => record.in_bytes_total + record.out_bytes_total;
  const without = unowned.reduce((sum, record) => sum + bytes(record), 0);
  const owned = rows.reduce((sum, row) => sum + row.received + row.sent, 0);
  keep(
    $("ul"),
    unowned.map((record) => record.reason),
    () => {
      if (!unowned.length) return [el("li", { class: "mut" }, "Every byte that is counted has its owner.")];
      return unowned.map(({ reason }) =>
        el(
          "li",
          null,
          el("details", null, el("summary", null, el("span", null, reason), el("span", { class: "mut" })), el("p")),
        ),
      );
    },
  );
  unowned.forEach((record, at) => {
    const [summary, sentence] = $("ul").children[at].firstChild.children;
    text(summary.lastChild, shown(bytes(record), false));
    const [received, sent] = [record.in_bytes_total, record.out_bytes_total].map((total) => shown(total, false));
    text(sentence, (WHY[record.reason] ?? "") + " " + received + " in, " + sent + " out.");
  });
  text($("uc"), without ? ((100 * without) / (without + owned)).toFixed(2) + " %" : "");

  $("ms").hidden = notes.length === 0;
  keep($("ml"), notes, () =>
    notes.map((note) => el("li", null, el("p", null, note.message), el("p", { class: "mut" }, note.at))),
  );

  text($("sc"), tick.source ?? "pipes");
  const lost = tick.ticks_with_lost_events_total;
  text(
    $("sp"),
    (HOW[tick.source] ?? "The bytes that the pipes deliver.") +
      " The last tick took " +
      brief(tick.duration_microseconds) +
      "; " +
      (lost ? "in " + lost + (lost === 1 ? " tick" : " ticks") + " events were lost." : "no event was lost."),
  );
};
