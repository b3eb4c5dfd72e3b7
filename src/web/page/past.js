// The history behind the chart: a day, a month, and what the reader narrows down, in bars; in upwards and out downwards.
"use strict";

const DAY = 86_400;
const pastPlot = $("pastplot"),
  pastCanvas = $("pastcv"),
  pastPaint = pastCanvas.getContext("2d"),
  pastTip = $("pasttip");
// The ranges of time from the widest to the one that is shown; none while the page is live.
let ranges = [];
// What bwmon says of the last of them, and the step that is pointed at.
let past = null;
let pastAt = null;
const pastMarks = [];

/* ranges */
const midnight = (second, days = 0) => {
  const date = new Date(second * 1000);
  return new Date(date.getFullYear(), date.getMonth(), date.getDate() + days) / 1000;
};
const WIDEST = {
  live: () => [],
  day: () => [{ from: (Math.floor(now / 3600) - 23) * 3600, to: now, name: "Last 24 hours" }],
  month: () => [{ from: midnight(now, -30), to: now, name: "Last 31 days" }],
};
const dayName = (second) =>
  new Date(second * 1000).toLocaleDateString("en", { weekday: "long", day: "numeric", month: "long" });
const minute = (second) => clock(second).slice(0, 5);
// The day or hour in which a step lies; null where there is nothing finer.
const within = (second) => {
  const { from, to } = ranges.at(-1);
  if (to - from > 1.5 * DAY) return { from: midnight(second), to: midnight(second, 1), name: dayName(second) };
  if (to - from <= 3600) return null;
  const hour = Math.floor(second / 3600) * 3600;
  return { from: hour, to: hour + 3600, name: dayName(hour) + ", " + minute(hour) + " to " + minute(hour + 3600) };
};

/* the figures */
const seriesColours = () => {
  // Who has a colour in the live chart has it here as well.
  const free = [0, 1, 2, 3, 4, 5].filter((slot) => !past.series.some((one) => slots[slot] === nameOf(one)));
  for (const one of past.series) {
    const slot = one.kind === "others" ? -1 : slots.indexOf(nameOf(one));
    one.slot = slot >= 0 ? slot : one.kind === "others" ? 6 : (free.shift() ?? 6);
  }
};
const nameOf = (one) => (one.kind === "process" ? programOf(one.name) : one.name);
const labelOf = (one) => plain(one.name) + (one.user ? " (" + plain(one.user) + ")" : "");
const sum = (numbers) => numbers.reduce((all, number) => all + number, 0);

const fetchPast = async () => {
  const range = ranges.at(-1);
  if (!range) return;
  try {
    const url = "history.json?from=" + Math.floor(range.from) + "&to=" + Math.ceil(range.to);
    const response = await fetch(url, { signal: AbortSignal.timeout(60_000) });
    if (!response.ok) throw new Error(await response.text());
    const data = await response.json();
    if (range !== ranges.at(-1)) return;
    past = data;
    text($("pastsays"), past.series.length ? "" : "Nothing was recorded in this time.");
    seriesColours();
  } catch (error) {
    if (range !== ranges.at(-1)) return;
    past = null;
    text($("pastsays"), "The history cannot be shown: " + plain(error.message));
  }
  showPast();
};

const showRange = (which) => {
  ranges = which;
  past = pastAt = null;
  const range = ranges.at(-1);
  $("page").classList.toggle("past", !!range);
  $("widen").hidden = ranges.length < 2;
  text($("ch"), range ? range.name : "Last ten minutes");
  text($("pastsays"), "");
  showPast();
  if (range) fetchPast();
  else render(true);
  say($("ch").textContent);
};

/* drawing */
const stepName = (step) => {
  const second = past.from + step * past.step_seconds;
  if (past.step_seconds >= DAY) return dayName(second + DAY / 2);
  const end = second + past.step_seconds;
  return (past.steps * past.step_seconds > DAY ? dayName(second) + ", " : "") + minute(second) + " to " + minute(end);
};
const pastMark = (at, style, content) => {
  let mark = pastMarks[at];
  if (!mark) pastPlot.append((mark = pastMarks[at] = el("div", { "aria-hidden": "true" })));
  mark.className = style;
  mark.hidden = false;
  text(mark, content);
  return mark;
};
const showPast = () => {
  drawPast();
  const rows = past?.series ?? [];
  const all = sum(rows.map((one) => sum(one.in_bytes) + sum(one.out_bytes)));
  $("pastbody").replaceChildren(
    ...rows.map((one) => {
      const [received, sent] = [sum(one.in_bytes), sum(one.out_bytes)];
      return el(
        "tr",
        { class: "s" + one.slot },
        el("th", { scope: "row" }, el("i", { class: "sw" }), el("span", null, labelOf(one))),
        el("td", null, shown(received, false)),
        el("td", null, shown(sent, false)),
        el("td", null, (((received + sent) / all) * 100).toFixed(1) + " %"),
      );
    }),
  );
};
const drawPast = () => {
  if (!ranges.length) return;
  const width = pastPlot.clientWidth,
    height = pastPlot.clientHeight - 24,
    ratio = devicePixelRatio || 1;
  pastCanvas.width = Math.round(width * ratio);
  pastCanvas.height = Math.round((height + 24) * ratio);
  pastPaint.setTransform(ratio, 0, 0, ratio, 0, 0);
  let marks = 0;
  if (past?.series.length) {
    const bars = (field) =>
      Array.from({ length: past.steps }, (_, step) => sum(past.series.map((one) => one[field][step])));
    const most = ["in_bytes", "out_bytes"].map((field) => Math.max(1, ...bars(field)));
    const zero = Math.round(Math.min(0.84, Math.max(0.16, most[0] / (most[0] + most[1]))) * height);
    const scale = Math.min((zero - 14) / most[0], (height - zero - 14) / most[1]);
    const x = (step) => (width * step) / past.steps;
    pastPaint.strokeStyle = colours.grid;
    pastPaint.beginPath();
    const line = nice((most[0] + most[1]) / 6);
    for (const [way, sign, room] of [
      [" in", -1, zero],
      [" out", 1, height - zero],
    ])
      for (let value = line; value * scale < room - 7; value += line) {
        const y = Math.round(zero + sign * value * scale) + 0.5;
        pastPaint.moveTo(0, y);
        pastPaint.lineTo(width, y);
        pastMark(marks++, "ax y", shown(value, false) + way).style.top = y + "px";
      }
    pastPaint.stroke();
    const gap = width / past.steps > 4 ? 1 : 0;
    for (const [field, sign] of [
      ["in_bytes", -1],
      ["out_bytes", 1],
    ]) {
      const base = new Float64Array(past.steps);
      for (const one of past.series) {
        pastPaint.fillStyle = colours["c" + one.slot];
        one[field].forEach((bytes, step) => {
          const tall = bytes * scale;
          const top = zero + sign * base[step];
          pastPaint.fillRect(x(step), sign < 0 ? top - tall : top, x(step + 1) - x(step) - gap, tall);
          base[step] += tall;
        });
      }
    }
    pastPaint.fillStyle = colours.zero;
    pastPaint.fillRect(0, zero, width, 1);
    // Hours or days, as many as have room.
    const seconds = past.steps * past.step_seconds;
    const unitSeconds = seconds > 1.5 * DAY ? DAY : seconds > 7200 ? 3600 : 600;
    const every = unitSeconds * Math.ceil((70 * seconds) / width / unitSeconds);
    const first = unitSeconds === DAY ? midnight(past.from, 1) : Math.ceil(past.from / every) * every;
    for (let second = first; second < past.from + seconds; second += every) {
      const left = ((second - past.from) / seconds) * width;
      if (left < 24 || left > width - 24) continue;
      const day = new Date((second + DAY / 2) * 1000).toLocaleDateString("en", { day: "numeric", month: "short" });
      const mark = pastMark(marks++, "ax x", unitSeconds === DAY ? day : minute(second));
      mark.style.left = left + "px";
      mark.style.top = "";
    }
    if (pastAt !== null) {
      pastPaint.strokeStyle = colours.ink;
      pastPaint.strokeRect(x(pastAt) + 0.5, 0.5, Math.max(1, x(pastAt + 1) - x(pastAt) - gap - 1), height - 1);
    }
  }
  for (; marks < pastMarks.length; marks++) pastMarks[marks].hidden = true;
  showPastTip(width);
};
const showPastTip = (width) => {
  pastTip.hidden = pastAt === null || !past?.series.length;
  if (pastTip.hidden) return;
  const moved = past.series
    .map((one) => [one, one.in_bytes[pastAt], one.out_bytes[pastAt]])
    .filter(([, received, sent]) => received + sent > 0)
    .sort((a, b) => b[1] + b[2] - a[1] - a[2]);
  const row = (style, head, received, sent) =>
    el("tr", { class: style }, head, el("td", null, shown(received, false)), el("td", null, shown(sent, false)));
  const name = (one) => el("th", null, el("i", { class: "sw" }), el("span", null, labelOf(one)));
  const sums = [1, 2].map((at) => sum(moved.map((one) => one[at])));
  const head = el("tr", null, el("th", null, "Who"), el("td", null, "In"), el("td", null, "Out"));
  pastTip.replaceChildren(
    el("p", null, stepName(pastAt)),
    el(
      "table",
      null,
      el("thead", null, head),
      el("tbody", null, ...moved.map(([one, ...bytes]) => row("s" + one.slot, name(one), ...bytes))),
      el("tfoot", null, row("", el("th", null, "All"), ...sums)),
    ),
  );
  const left = (width * (pastAt + 0.5)) / past.steps;
  pastTip.style.left = Math.max(0, Math.min(width - 264, left > width / 2 ? left - 278 : left + 14)) + "px";
  pastPlot.setAttribute("aria-valuemax", past.steps - 1);
  pastPlot.setAttribute("aria-valuenow", pastAt);
  pastPlot.setAttribute(
    "aria-valuetext",
    stepName(pastAt) + ", in " + shown(sums[0], false) + ", out " + shown(sums[1], false),
  );
};

/* controls */
const narrow = () => {
  if (pastAt === null || !past) return;
  const range = within(past.from + pastAt * past.step_seconds);
  if (range) showRange([...ranges, range]);
};
const widen = () => {
  if (ranges.length > 1) showRange(ranges.slice(0, -1));
};
$("span").addEventListener("change", (event) => showRange(WIDEST[event.target.value]()));
$("widen").addEventListener("click", widen);
pastPlot.addEventListener("pointermove", (event) => {
  if (!past) return;
  const box = pastPlot.getBoundingClientRect();
  const step = Math.floor(((event.clientX - box.left) / box.width) * past.steps);
  pastAt = step >= 0 && step < past.steps ? step : null;
  drawPast();
});
for (const away of ["pointerleave", "blur"])
  pastPlot.addEventListener(away, () => {
    pastAt = null;
    drawPast();
  });
pastPlot.addEventListener("click", narrow);
pastPlot.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -12, PageDown: 12 }[event.key];
  if (!past) return;
  if (move || event.key === "Home" || event.key === "End") {
    event.preventDefault();
    const last = past.steps - 1;
    const from = event.key === "Home" ? 0 : event.key === "End" ? last : (pastAt ?? last) + move;
    pastAt = Math.max(0, Math.min(last, from));
    drawPast();
  } else if (event.key === "Enter") narrow();
  else if (event.key === "Escape") {
    event.stopPropagation();
    widen();
  }
});
new ResizeObserver(drawPast).observe(pastPlot);
// The last minute is in the history when it is over.
setInterval(() => {
  const range = ranges.at(-1);
  if (!range || document.hidden || range.to < now - 120) return;
  if (ranges.length === 1) range.to = now;
  fetchPast();
}, 60_000);
