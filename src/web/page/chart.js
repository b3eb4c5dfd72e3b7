// The chart: in stacked upwards and out downwards from one line, on one scale.
"use strict";

const canvas = $("cv"),
  paint = canvas.getContext("2d"),
  plot = $("plot");
let hover = null;
let place = {},
  axisIn = 0,
  axisOut = 0,
  lowSince = 0,
  colours = {};
const readCss = () => {
  const s = getComputedStyle(document.documentElement);
  for (const k of ["bg", "ink", "mut", "grid", "zero", "foc", "bad", "c0", "c1", "c2", "c3", "c4", "c5", "c6"])
    colours[k] = s.getPropertyValue("--" + k).trim();
};
const nice = (v) => {
  v = Math.max(v, 1e3);
  if (unit === "binary") {
    let p = 1024;
    while (p * 1024 <= v) p *= 1024;
    for (const m of [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]) if (p * m >= v) return p * m;
  }
  if (unit === "bits") v *= 8;
  const p = 10 ** Math.floor(Math.log10(v));
  let r = 10 * p;
  for (const m of [1, 2, 5])
    if (m * p >= v * 0.9999) {
      r = m * p;
      break;
    }
  return unit === "bits" ? r / 8 : r;
};
// The six rows with a colour, and the sum of all others.
const layers = () => {
  const L = [];
  for (let s = 0; s < 6; s++) {
    const r = rows.find((r) => r.slot === s);
    L.push(r ? { r, hin: r.hin, hout: r.hout, s, name: r.key } : null);
  }
  const rest = rows.filter((r) => r.slot === 6);
  if (rest.length) {
    const hin = new Float64Array(N),
      hout = new Float64Array(N);
    for (const r of rest)
      for (let k = 0; k < N; k++) {
        hin[k] += r.hin[k];
        hout[k] += r.hout[k];
      }
    L.push({ hin, hout, s: 6, name: rest.length + " others" });
  }
  return L.filter(Boolean);
};
const labels = [],
  marks = [],
  peakNames = [];
const put = (pool, i, cls) => {
  let e = pool[i];
  if (!e) {
    e = el("div", { "aria-hidden": "true" });
    pool[i] = e;
    plot.append(e);
  }
  e.className = cls;
  e.hidden = false;
  return e;
};
const draw = () => {
  const W = plot.clientWidth,
    H = plot.clientHeight,
    wide = innerWidth > 760,
    gut = wide ? 194 : 0,
    left = 0,
    ph = H - 24;
  // It is hidden while the history is shown.
  if (!H) return;
  const dpr = devicePixelRatio || 1;
  if (canvas.width !== Math.round(W * dpr) || canvas.height !== Math.round(H * dpr)) {
    canvas.width = Math.round(W * dpr);
    canvas.height = Math.round(H * dpr);
  }
  paint.setTransform(dpr, 0, 0, dpr, 0, 0);
  paint.clearRect(0, 0, W, H);
  const L = layers();
  let mi = 0,
    mo = 0;
  for (let k = 0; k < N; k++) {
    let i = 0,
      o = 0;
    for (const l of L) {
      i += l.hin[k];
      o += l.hout[k];
    }
    mi = Math.max(mi, i);
    mo = Math.max(mo, o);
  }
  const st = nice((mi + mo) / 5),
    up = (v) => (Math.max(1, Math.ceil(((v * 1.07) / st) * 2)) * st) / 2,
    ni = up(mi),
    no = up(mo);
  if (ni > axisIn || no > axisOut || now - lowSince > 20) {
    if (ni > axisIn || no > axisOut) {
      axisIn = Math.max(ni, axisIn);
      axisOut = Math.max(no, axisOut);
    } else {
      axisIn = ni;
      axisOut = no;
    }
    lowSince = now;
  } else if (ni === axisIn && no === axisOut) lowSince = now;
  // one scale for both ways; the zero line moves only with the ends of the axis
  const z = Math.round(Math.min(0.84, Math.max(0.16, axisIn / (axisIn + axisOut))) * ph),
    sc = Math.min((z - 14) / axisIn, (ph - z - 14) / axisOut);
  const x0 = left,
    pw = W - gut - left,
    X = (k) => x0 + (pw * k) / (N - 1);
  place = { x0, pw, z, sc, ph, W };
  // grid
  let ax = 0;
  paint.lineWidth = 1;
  paint.strokeStyle = colours.grid;
  const gv = nice((axisIn + axisOut) / 6),
    lines = [];
  for (let v = gv; v * sc < z - 7; v += gv) lines.push(z - v * sc, v);
  for (let v = gv; v * sc < ph - z - 7; v += gv) lines.push(z + v * sc, v);
  for (let i = 0; i < lines.length; i += 2) {
    const y = Math.round(lines[i]) + 0.5;
    paint.beginPath();
    paint.moveTo(x0, y);
    paint.lineTo(x0 + pw, y);
    paint.stroke();
  }
  const first = Math.ceil((now - N + 1) / 60) * 60;
  for (let t = first; t <= now; t += 60) {
    const x = Math.round(X(N - 1 - (now - t))) + 0.5;
    paint.beginPath();
    paint.moveTo(x, 0);
    paint.lineTo(x, ph);
    paint.stroke();
    const d = new Date(t * 1e3),
      every = pw < 520 ? 3 : pw < 800 ? 2 : 1;
    if (d.getMinutes() % every === 0 && x > 22 && x < x0 + pw - 20) {
      const e = put(marks, ax++, "ax x");
      text(e, d.toTimeString().slice(0, 5));
      e.style.left = x + "px";
      e.style.top = "";
    }
  }
  // bands
  // means over 2 to 5 s, whose borders stand still in time, so that nothing shimmers as the chart moves on
  const w = pw >= 900 ? 2 : pw >= 480 ? 3 : 5,
    cut = [0];
  for (let k = 1; k < N; k++) if ((now + k) % w === 0) cut.push(k);
  cut.push(N);
  const B = cut.length - 1,
    bx = [];
  for (let j = 0; j < B; j++) bx.push(j === 0 ? X(0) : j === B - 1 ? X(N - 1) : X((cut[j] + cut[j + 1] - 1) / 2));
  const bin = (h) => {
      const r = new Float64Array(B);
      for (let j = 0; j < B; j++) {
        for (let k = cut[j]; k < cut[j + 1]; k++) r[j] += h[k];
        r[j] /= cut[j + 1] - cut[j];
      }
      return r;
    },
    bi = new Float64Array(B),
    bo = new Float64Array(B);
  for (const l of L) {
    for (const [raw, b, sg] of [
      [l.hin, bi, -1],
      [l.hout, bo, 1],
    ]) {
      const h = bin(raw);
      paint.beginPath();
      paint.moveTo(bx[0], z + sg * b[0] * sc);
      for (let k = 0; k < B; k++) paint.lineTo(bx[k], z + sg * (b[k] + h[k]) * sc);
      for (let k = B - 1; k >= 0; k--) paint.lineTo(bx[k], z + sg * b[k] * sc);
      paint.closePath();
      paint.fillStyle = colours["c" + l.s];
      paint.fill();
      // a hair of background between neighbours, so that colour alone need not part them
      if (l !== L[0]) {
        paint.beginPath();
        let on = false;
        for (let k = 0; k < B; k++) {
          if (h[k] * sc > 2.5 && b[k] * sc > 2.5) {
            const y = z + sg * b[k] * sc;
            on ? paint.lineTo(bx[k], y) : paint.moveTo(bx[k], y);
            on = true;
          } else on = false;
        }
        paint.strokeStyle = colours.bg;
        paint.lineWidth = 1;
        paint.stroke();
      }
      const m = z + sg * (b[B - 1] + h[B - 1] / 2) * sc,
        th = h[B - 1] * sc;
      l[sg < 0 ? "mi" : "mo"] = m;
      l[sg < 0 ? "hi" : "ho"] = th;
      for (let k = 0; k < B; k++) b[k] += h[k];
    }
  }
  paint.strokeStyle = colours.zero;
  paint.lineWidth = 1;
  paint.beginPath();
  paint.moveTo(x0, z + 0.5);
  paint.lineTo(x0 + pw, z + 0.5);
  paint.stroke();
  // fired notifications
  for (const n of notifications) {
    const x = X(N - 1 - (now - n.at)),
      y = ph;
    if (x < x0) continue;
    paint.fillStyle = colours.bg;
    paint.beginPath();
    paint.arc(x, y, 8, 0, 7);
    paint.fill();
    paint.fillStyle = colours.bad;
    paint.beginPath();
    paint.moveTo(x - 5.5, y + 5);
    paint.lineTo(x + 5.5, y + 5);
    paint.lineTo(x, y - 5);
    paint.fill();
  }
  let hasIn = false,
    hasOut = false;
  for (let i = 0; i < lines.length; i += 2) {
    const y = lines[i],
      dn = y > z;
    if (y < 8 || y > ph - 8) continue;
    dn ? (hasOut = true) : (hasIn = true);
    const e = put(marks, ax++, "ax y");
    text(e, shown(lines[i + 1]) + (dn ? " out" : " in"));
    e.style.left = "0";
    e.style.top = y + "px";
  }
  for (const [ok, t, y] of [
    [hasIn, "in", 8],
    [hasOut, "out", ph - 10],
  ])
    if (!ok) {
      const e = put(marks, ax++, "ax y");
      text(e, t);
      e.style.left = "0";
      e.style.top = y + "px";
    }
  while (ax < marks.length) marks[ax++].hidden = true;
  // what was big and is no more has its name at its peak
  const peaks = [];
  for (const l of L)
    for (const [h, sg] of [
      [l.hin, -1],
      [l.hout, 1],
    ]) {
      let bk = -1,
        bv = 0;
      for (let k = 24; k < N - 24; k += 4) {
        let v = 0;
        for (let j = -12; j < 12; j++) v += h[k + j];
        v /= 24;
        if (v > bv) {
          bv = v;
          bk = k;
        }
      }
      if (bk < 0 || bv * sc < 9 || bv < 2.2 * h[N - 1]) continue;
      let name = l.name;
      if (l.s === 6) {
        let m = null,
          mv = 0;
        for (const r of rows)
          if (r.slot === 6) {
            const v = (sg < 0 ? r.hin : r.hout)[bk];
            if (v > mv) {
              mv = v;
              m = r;
            }
          }
        if (mv < 0.6 * h[bk]) continue;
        name = m.key;
      }
      let edge = 0;
      for (let k = Math.max(0, bk - 22); k < Math.min(N, bk + 22); k++) {
        let s = 0;
        for (const x of L) s += (sg < 0 ? x.hin : x.hout)[k];
        edge = Math.max(edge, s);
      }
      peaks.push({ l, name, x: X(bk), y: z + sg * (edge * sc + 11), bv });
    }
  for (const p of peaks)
    if (p.x < 130)
      for (let i = 0; i < lines.length; i += 2)
        if (Math.abs(lines[i] - p.y) < 15) p.x = Math.max(p.x, innerWidth > 760 ? 134 : 118);
  peaks.sort((a, b) => b.bv - a.bv);
  let pi = 0;
  const done = [];
  for (const p of peaks) {
    if (p.y < 8 || p.y > ph - 8 || p.x < 46 || done.some((q) => Math.abs(q.x - p.x) < 86 && Math.abs(q.y - p.y) < 18))
      continue;
    done.push(p);
    const e = put(peakNames, pi++, "pk s" + p.l.s);
    if (!e.firstChild) e.append(el("i", { class: "sw" }), el("span"));
    text(e.lastChild, p.name);
    e.style.left = Math.min(p.x, pw - 50) + "px";
    e.style.top = p.y + "px";
  }
  while (pi < peakNames.length) peakNames[pi++].hidden = true;
  // direct labels: each application once, on the side where it moves more now
  let li = 0;
  if (wide) {
    for (const up of [true, false]) {
      let q = L.filter((l) => l.hi >= l.ho === up && Math.max(l.hi, l.ho) > 1.2)
        .map((l) => ({ l, y: up ? l.mi : l.mo, v: up ? l.hin[N - 1] : l.hout[N - 1] }))
        .sort((a, b) => a.y - b.y);
      const lo = up ? 9 : z + 10,
        hi = up ? z - 10 : ph - 9,
        cap = Math.max(1, Math.floor((hi - lo) / 19) + 1);
      if (q.length > cap) {
        const keep = new Set([...q].sort((a, b) => b.v - a.v).slice(0, cap));
        q = q.filter((x) => keep.has(x));
      }
      for (let i = 0; i < q.length; i++) q[i].p = Math.max(q[i].y, i ? q[i - 1].p + 19 : lo);
      for (let i = q.length - 1, m = hi; i >= 0; i--) {
        q[i].p = Math.min(q[i].p, m);
        m = q[i].p - 19;
      }
      for (const a of q) {
        const e = put(labels, li++, "lab s" + a.l.s);
        if (!e.firstChild) e.append(el("i", { class: "sw" }), el("span"), el("em"));
        text(e.children[1], a.l.name);
        text(e.children[2], shown(a.v));
        e.style.top = a.p - 9 + "px";
        paint.strokeStyle = colours["c" + a.l.s];
        paint.lineWidth = 1;
        paint.beginPath();
        paint.moveTo(x0 + pw + 1, a.y);
        paint.lineTo(x0 + pw + 6, a.p);
        paint.stroke();
      }
    }
  }
  while (li < labels.length) labels[li++].hidden = true;
  if (!wide) {
    const g = $("leg");
    L.forEach((l, i) => {
      let e = g.children[i];
      if (!e) {
        e = el("li", null, el("i", { class: "sw" }), el("span"), el("em"));
        g.append(e);
      }
      e.className = "s" + l.s;
      text(e.children[1], l.name);
      text(e.children[2], shown(l.hin[N - 1] + l.hout[N - 1]));
    });
    while (g.children.length > L.length) g.lastChild.remove();
  }
  const at = hover ?? pinned;
  if (at !== null) {
    const x = Math.round(X(at)) + 0.5;
    paint.strokeStyle = colours.ink;
    paint.lineWidth = 1;
    paint.setLineDash(pinned === null ? [3, 3] : []);
    paint.beginPath();
    paint.moveTo(x, 0);
    paint.lineTo(x, ph);
    paint.stroke();
    paint.setLineDash([]);
  }
  tipShow(L, hover, X);
};
const tip = $("tip");
const tipShow = (L, at, X) => {
  if (at === null || at === undefined) {
    tip.hidden = true;
    return;
  }
  let ti = 0,
    to = 0;
  const q = L.map((l) => {
    ti += l.hin[at];
    to += l.hout[at];
    return [l, l.hin[at], l.hout[at]];
  })
    .filter((a) => a[1] + a[2] > 0)
    .sort((a, b) => b[1] + b[2] - a[1] - a[2]);
  tip.replaceChildren(
    el(
      "table",
      null,
      el(
        "thead",
        null,
        el("tr", null, el("th", null, clock(now - (N - 1 - at))), el("td", null, "In"), el("td", null, "Out")),
      ),
      el(
        "tbody",
        null,
        ...q.map(([l, i, o]) =>
          el(
            "tr",
            { class: "s" + l.s },
            el("th", null, el("i", { class: "sw" }), el("span", null, l.name)),
            el("td", null, shown(i)),
            el("td", null, shown(o)),
          ),
        ),
      ),
      el("tfoot", null, el("tr", null, el("th", null, "All"), el("td", null, shown(ti)), el("td", null, shown(to)))),
    ),
  );
  for (const n of notifications)
    if (Math.abs(N - 1 - (now - n.at) - at) < 7)
      tip.append(
        el("p", { class: "bad" }, clock(n.at) + " " + n.app + " above " + shown(n.threshold) + " " + n.direction),
      );
  tip.hidden = false;
  const x = X(at),
    w = 264;
  tip.style.left = Math.max(0, Math.min(place.W - w, x > place.pw / 2 ? x - w - 14 : x + 14)) + "px";
  plot.setAttribute("aria-valuenow", at - N + 1);
  plot.setAttribute(
    "aria-valuetext",
    clock(now - (N - 1 - at)) +
      ", in " +
      shown(ti) +
      ", out " +
      shown(to) +
      "; most " +
      (q[0] ? q[0][0].name : "nothing"),
  );
};
const atX = (ev) => {
  const b = plot.getBoundingClientRect(),
    k = Math.round(((ev.clientX - b.left - place.x0) / place.pw) * (N - 1));
  return k < 0 || k >= N ? null : k;
};
plot.addEventListener("pointermove", (ev) => {
  hover = atX(ev);
  draw();
});
plot.addEventListener("pointerleave", () => {
  hover = null;
  draw();
});
plot.addEventListener("click", (ev) => {
  const k = atX(ev);
  setPin(k === null || k === pinned ? null : k);
});
plot.addEventListener("keydown", (ev) => {
  const d = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageUp: -60, PageDown: 60 }[ev.key];
  if (d || ev.key === "Home" || ev.key === "End") {
    ev.preventDefault();
    hover =
      ev.key === "Home"
        ? 0
        : ev.key === "End"
          ? N - 1
          : Math.max(0, Math.min(N - 1, (hover ?? pinned ?? N - 1) + d * (ev.shiftKey ? 10 : 1)));
    draw();
  } else if (ev.key === "Enter") {
    setPin(hover);
  }
});
plot.addEventListener("blur", () => {
  hover = null;
  draw();
});
const setPin = (k) => {
  pinned = k;
  hover = null;
  $("page").classList.toggle("pinned", k !== null);
  render(true);
};
$("now").addEventListener("click", () => {
  setPin(null);
  plot.focus();
});
