// The page: what stands above the chart, the controls, and the loop that follows bwmon.
"use strict";

const CALM = matchMedia("(prefers-reduced-motion:reduce)");
let isPaused = false;
// Since when bwmon does not answer; null while it does.
let lostSince = null;

const showSums = () => {
  const at = pinned ?? N - 1;
  const sums = { in: [0, 0], out: [0, 0] };
  const moving = rows.filter((row) => row.hin !== SILENT);
  for (let k = 0; k < N; k++) {
    let [bytesIn, bytesOut] = [0, 0];
    for (const row of moving) {
      bytesIn += row.hin[k];
      bytesOut += row.hout[k];
    }
    sums.in[1] = Math.max(sums.in[1], bytesIn);
    sums.out[1] = Math.max(sums.out[1], bytesOut);
    if (k === at) [sums.in[0], sums.out[0]] = [bytesIn, bytesOut];
  }
  for (const way of ["in", "out"]) {
    const [digits, unitName] = figure(sums[way][0]);
    text($(way + "b"), digits);
    text($(way + "u"), unitName);
    text($(way + "p"), "peak " + shown(sums[way][1]));
  }
  const started = Date.parse(program.started);
  const received = rows.reduce((sum, row) => sum + row.received, 0);
  const sent = rows.reduce((sum, row) => sum + row.sent, 0);
  const facts = [
    ["Received", shown(received, false)],
    ["Sent", shown(sent, false)],
    ["Since " + new Date(started).toTimeString().slice(0, 5), duration(now - started / 1000)],
    ["Counted by", tick.source ?? "pipes"],
  ];
  keep($("facts"), program.started, () => facts.map(([name]) => el("div", null, el("dt", null, name), el("dd"))));
  facts.forEach(([, value], at) => text($("facts").children[at].lastChild, value));
  const state =
    lostSince !== null ? "no answer" : isPaused ? "paused " : pinned !== null ? "looking back" : "live " + clock(now);
  text($("live"), isPaused && lostSince === null ? state + clock(now) : state);
  const ago = N - 1 - at;
  text(
    $("read"),
    pinned !== null
      ? "Showing " + clock(now - ago) + ", " + duration(ago) + " ago"
      : hover !== null
        ? ""
        : innerWidth > 760
          ? "Point at a moment to see who moved what; click to keep it"
          : "Tap a moment to keep it",
  );
  document.title =
    "in " + shown(sums.in[0]) + ", out " + shown(sums.out[0]) + " · " + program.host.split(".")[0] + " · bwmon";
};

const render = (isForced) => {
  if (!tick) return;
  buildRows();
  showSums();
  draw();
  showTable(isForced);
  showRail();
  $("page").classList.toggle(
    "empty",
    rows.every((row) => row.sum === 0),
  );
};

/* notices */
let noticeSays = "";
const notice = (style, head, ...rest) => {
  const says = [style, head, ...rest.map((element) => element.textContent)].join("\n");
  if (says === noticeSays) return;
  noticeSays = says;
  $("notice").className = head ? "notice on " + style : "notice";
  $("notice").replaceChildren(el("b", null, head), ...rest);
};
const showNotice = () => {
  $("page").classList.toggle("lost", lostSince !== null);
  if (lostSince !== null) {
    const rest = el("span", null, "Trying again every 2 s. What you see is the last that it said.");
    notice("bad", "No answer from bwmon since " + clock(lostSince) + ".", rest);
  } else if (tick?.source === "sockets") {
    const counted = "the TCP payload of the sockets.";
    if (program.is_root) notice("", "What you see is " + counted, el("span", null, "The messages say what more needs."));
    else
      notice(
        "",
        "What you see is your own processes, and " + counted,
        el("span", null, "All traffic of all processes:"),
        el("code", null, "sudo " + (program.rows === "process" ? "runmonitor" : "runaggregator") + " --http"),
      );
  } else notice("", "");
};

/* controls */
$("unit").addEventListener("change", (event) => {
  unit = event.target.value;
  axisIn = axisOut = 0;
  render(true);
});
$("group").addEventListener("change", (event) => {
  groupBy = event.target.value;
  opened.clear();
  elements.clear();
  rowOf.clear();
  slots = [];
  render(true);
});
let saysLater = 0;
const say = (what) => text($("say"), what);
$("filter").addEventListener("input", (event) => {
  query = event.target.value.trim();
  render(true);
  clearTimeout(saysLater);
  saysLater = setTimeout(() => say($("ah").textContent + " shown"), 600);
});
$("all").addEventListener("click", () => {
  showsAll = true;
  render(true);
});
const setPaused = (paused) => {
  isPaused = paused;
  $("pause").setAttribute("aria-pressed", paused);
  text($("pause"), paused ? "Resume" : "Pause");
  $("page").classList.toggle("paused", paused);
  say(paused ? "Paused. Counting goes on." : "Live");
  if (paused) showSums();
  else render(true);
};
$("pause").addEventListener("click", () => setPaused(!isPaused));
const body = $("body");
body.addEventListener("pointerenter", () => (isHeld = true));
body.addEventListener("pointerleave", () => (isHeld = body.contains(document.activeElement)));
body.addEventListener("focusin", () => (isHeld = true));
body.addEventListener("focusout", () => (isHeld = false));
addEventListener("keydown", (event) => {
  const { target } = event;
  const isTyping = /INPUT|SELECT|TEXTAREA/.test(target.tagName) && target.type !== "radio";
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (target.id === "filter") target.blur();
    $("filter").value = query = "";
    if (pinned !== null) setPin(null);
    hover = null;
    render(true);
  } else if (isTyping) return;
  else if (event.key === "/") {
    event.preventDefault();
    $("filter").focus();
  } else if (event.key === " " && !["BUTTON", "SUMMARY"].includes(target.tagName)) {
    event.preventDefault();
    setPaused(!isPaused);
  } else if (event.key === "u") {
    const units = [...document.getElementsByName("u")];
    units[(units.findIndex((radio) => radio.checked) + 1) % units.length].click();
  } else if (event.key === "g" && !$("group").hidden) {
    const group = $("group");
    group.selectedIndex = (group.selectedIndex + 1) % group.length;
    group.dispatchEvent(new Event("change"));
  }
});
new ResizeObserver(() => render(false)).observe(plot);
matchMedia("(prefers-color-scheme:dark)").addEventListener("change", () => {
  readCss();
  render(false);
});

/* following bwmon */
const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const untilVisible = () => new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));

const show = (seconds) => {
  if (program.rows === "application" && groupBy !== "application") {
    groupBy = "application";
    $("group").hidden = true;
    $("page").classList.add("named");
  }
  $("span").hidden = !program.has_history;
  text($("host"), program.host);
  text($("ver"), "bwmon " + program.version);
  if (pinned !== null && (pinned -= seconds) < 0) setPin(null);
  if (isPaused) return;
  if (CALM.matches && now % 5) showSums();
  else render(false);
};

// Asks for each tick as soon as it is there; first, and after a gap, for the history as well, and at each tenth for what rests, too.
const follow = async () => {
  let after = null;
  for (;;) {
    if (document.hidden) {
      await untilVisible();
      after = null;
      continue;
    }
    try {
      const patience = 40_000 + (tick?.interval_microseconds ?? 0) / 1000;
      const url = "data.json?" + (after === null ? "history" : "after=" + after + (after % 10 ? "&moved" : ""));
      const response = await fetch(url, { signal: AbortSignal.timeout(patience) });
      if (!response.ok) throw new Error(response.statusText);
      const data = await response.json();
      const before = now;
      const isTaken = takeIn(data);
      after = isTaken ? program.ticks : null;
      if (lostSince !== null) say("Live");
      lostSince = null;
      showNotice();
      if (isTaken) show(after === null || data.history ? 0 : now - before);
    } catch {
      if (lostSince === null) say("No answer from bwmon");
      lostSince ??= Math.floor(Date.now() / 1000);
      after = null;
      showNotice();
      if (tick) showSums();
      await sleep(2000);
    }
  }
};

readCss();
follow();
