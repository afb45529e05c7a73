// Puts the parts that live.js and cases/*.js bring into their places, and draws charts. It decides nothing about results.
"use strict";
(() => {
  const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800"];
  const PRINTED = 320; // pixels of a chart on paper
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
  const seen = {}; // text of every part that stands in the page, by place
  const charts = new Map(); // element -> uPlot
  const STALE = 75; // s; a session writes every 30 s at least
  let versions = {}, poll = 3, ticking = false;
  let written = 0, live = false, changed = performance.now(); // of live.js: when it was written, when that was new here
  const byId = (id) => document.getElementById(id);

  function place(scope, where, parts) {
    for (const [name, html] of Object.entries(parts)) {
      const key = `${where}/${name}`;
      if (seen[key] === html) continue;
      let target = scope.querySelector(`[data-part="${name}"]`);
      if (!target) {
        target = document.createElement("div");
        target.dataset.part = name;
        scope.append(target);
      }
      const open = [...target.querySelectorAll("details[id]")].map((d) => [d.id, d.open]);
      const places = new Map([...target.querySelectorAll(".log[id] pre")].map((p) => // of logs; null: at the end
        [p.parentElement.id, p.scrollTop + p.clientHeight >= p.scrollHeight - 4 ? null : p.scrollTop]));
      const focus = target.contains(document.activeElement) ? document.activeElement : null;
      const kept = [...target.querySelectorAll("select[id], input[id]")].map((field) => [field.id, field.value]);
      const link = focus?.getAttribute("href"), owner = focus?.closest("details[id]")?.id;
      const again = focus && (focus.id ? `#${CSS.escape(focus.id)}` : link ? `a[href="${CSS.escape(link)}"]`
        : owner && `#${CSS.escape(owner)} > ${focus.tagName}`);
      const scroll = [...target.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
      const films = new Map([...target.querySelectorAll("video")].map((film) => [film.getAttribute("src"), film]));
      target.innerHTML = html;
      for (const film of target.querySelectorAll("video")) {
        const old = films.get(film.getAttribute("src"));
        if (old) { const going = !old.paused; film.replaceWith(old); if (going) old.play().catch(() => {}); }
      }
      for (const [id, was] of open) if (byId(id)) byId(id).open = was;
      for (const [id, value] of kept) if (byId(id)) byId(id).value = value;
      target.querySelectorAll(".scroll").forEach((box, i) => { box.scrollLeft = scroll[i] || 0; });
      for (const pre of target.querySelectorAll(".log pre")) pre.scrollTop = places.get(pre.parentElement.id) ?? pre.scrollHeight;
      if (again) target.querySelector(again)?.focus({preventScroll: true});
      seen[key] = html;
    }
  }

  function load(file, stamp) {
    const script = document.createElement("script");
    script.src = `page/${file}?${stamp}`;
    script.onload = script.onerror = () => script.remove();
    document.head.append(script);
  }

  function filter() {
    const state = byId("filter")?.value || "", word = (byId("find")?.value || "").toLowerCase();
    for (const line of document.querySelectorAll("[data-name]"))
      line.hidden = (state && line.dataset.state !== state) || !line.dataset.name.toLowerCase().includes(word);
    for (const panel of document.querySelectorAll(".panel"))
      panel.hidden = (state && panel.dataset.state !== state) || !panel.dataset.panel.toLowerCase().includes(word);
  }

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    for (const [unit, of] of [["G", 1e9], ["M", 1e6], ["k", 1e4]])
      if (size >= of) return `${+(value / (unit === "k" ? 1e3 : of)).toPrecision(4)}${unit}`;
    return `${+value.toPrecision(4)}`;
  };

  function draw(box, chart) {
    const line = css("--line"), ink = css("--ink");
    const axis = {stroke: ink, grid: {stroke: line, width: 1}, ticks: {stroke: line, width: 1}, font: "12px sans-serif"};
    const options = {
      width: Math.max(240, box.clientWidth), height: 210, scales: {x: {time: chart.x === "time"}},
      axes: [{...axis, ...(chart.x === "time" ? {} : {values: (_, ticks) => ticks.map(short)})},
             {...axis, size: 58, values: (_, ticks) => ticks.map(short)}],
      series: [{label: chart.x, value: chart.names ? (_, v, s, i) => i === null ? "–" : chart.names[i] : chart.x === "time" ? undefined : (_, v) => short(v)},
        ...chart.series.map((series, i) => ({
          label: series.label, stroke: series.color ? css(series.color) : COLORS[i % COLORS.length], width: series.width ?? 2,
          dash: series.dash ?? DASHES[Math.floor(i / COLORS.length) % DASHES.length], spanGaps: true, value: (_, v) => short(v),
          points: {show: series.points ?? chart.data[0].length < 40, size: 6}}))],
      bands: chart.bands || [],
      hooks: {drawClear: [(plot) => marks(plot, chart)], ready: [settle],
        setCursor: [(plot) => { if (plot.cursor.idx == null) settle(plot); }]},
    };
    if (chart.bands) options.bands = chart.bands.map((band) => ({...band, fill: css("--band")}));
    return new uPlot(options, chart.data, box);
  }

  // the legend shows the last values until the pointer is over the chart
  function settle(plot) {
    const last = plot.data.map((values) => values.findLastIndex((v) => v !== null));
    plot.setLegend({idxs: last.map((index) => index < 0 ? null : index)}, false);
  }

  function marks(plot, chart) {
    const {ctx, bbox} = plot;
    for (const mark of chart.marks || []) {
      const x = Math.round(plot.valToPos(mark.x, "x", true));
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = css(mark.color || "--quiet");
      ctx.setLineDash([4, 4]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.font = `${11 * devicePixelRatio}px sans-serif`;
      ctx.fillText(mark.text, x + 3, bbox.top + 12 * devicePixelRatio);
      ctx.restore();
    }
  }

  function chartBoxes(body, list) {
    let part = body.querySelector('[data-part="charts"]');
    if (!part) {
      part = document.createElement("div");
      part.dataset.part = "charts";
      part.className = "charts";
      body.insertBefore(part, body.children[3] || null);
    }
    const same = part.children.length === list.length && list.every((chart, i) =>
      part.children[i].dataset.chart === `${chart.title}/${chart.series.map((s) => s.label)}`);
    if (!same) {
      for (const box of part.children) { charts.get(box)?.destroy(); charts.delete(box); }
      part.replaceChildren(...list.map((chart) => {
        const box = document.createElement("figure"), title = document.createElement("figcaption");
        box.dataset.chart = `${chart.title}/${chart.series.map((s) => s.label)}`;
        box.setAttribute("role", "img");
        title.textContent = chart.title;
        box.append(title);
        return box;
      }));
    }
    list.forEach((chart, i) => {
      const box = part.children[i], last = chart.data[1].filter((v) => v !== null).at(-1);
      box.setAttribute("aria-label", `${chart.title}: ${chart.series[0].label} ends at ${short(last)}`);
      if (charts.has(box)) charts.get(box).setData(chart.data);
      else charts.set(box, draw(box, chart));
    });
  }

  function redraw() {
    for (const [box, plot] of charts) if (box.clientWidth) plot.setSize({width: Math.max(240, box.clientWidth), height: 210});
  }

  window.page = {
    live(parts, about) {
      place(document, "page", parts);
      document.title = about.title;
      poll = about.poll;
      if (about.written !== written) changed = performance.now();
      written = about.written;
      live = about.live;
      versions = about.panels;
      for (const panel of document.querySelectorAll(".panel")) {
        const name = panel.dataset.panel, state = about.states[name];
        if (state && state !== panel.dataset.state) {
          panel.dataset.state = state;
          panel.querySelector(".state").textContent = ` ${about.words?.[state] ?? state}`;
        }
        if (panel.open && versions[name] && panel.dataset.version !== versions[name]) open(panel);
      }
      if (Object.keys(versions).some((name) => !byId(`case-${name}`))) location.reload(); // a case came to be
      filter();
      age();
      tick();
    },
    panel(name, parts, list) {
      const panel = byId(`case-${name}`), body = panel.querySelector(".body");
      body.querySelector(":scope > .quiet")?.remove();
      place(body, name, parts);
      chartBoxes(body, list);
      panel.dataset.shown = "1";
    },
  };

  function open(panel) {
    panel.dataset.version = versions[panel.dataset.panel];
    load(`cases/${panel.dataset.panel}.js`, panel.dataset.version);
  }

  // a page that says "running" has to say when nobody writes it any more: its server or its session may be gone
  function age() {
    const still = (performance.now() - changed) / 1000, old = Date.now() / 1000 - written;
    const box = byId("stale");
    box.hidden = !(live && written && (still > STALE || old > 2 * STALE));
    if (!box.hidden) box.textContent = `Nothing new since ${new Date(1000 * written).toLocaleString()}: the session or its server has ended, or cannot be reached.`;
  }

  function tick() {
    if (ticking) return;
    ticking = true;
    setTimeout(() => { ticking = false; load("live.js", Date.now()); age(); tick(); }, 1000 * poll);
  }

  function follow() {
    const panel = byId(decodeURIComponent(location.hash.slice(1)));
    if (panel?.matches(".panel")) { panel.hidden = false; panel.open = true; panel.scrollIntoView(); panel.querySelector("summary").focus({preventScroll: true}); }
  }

  document.addEventListener("toggle", (event) => {
    const panel = event.target;
    if (panel.matches?.(".panel") && panel.open && versions[panel.dataset.panel] !== panel.dataset.version) open(panel);
  }, true);
  document.addEventListener("input", (event) => { if (["filter", "find"].includes(event.target.id)) filter(); });
  document.addEventListener("click", (event) => {
    if (event.target.id === "play-all") {
      const films = [...document.querySelectorAll(".gallery video")].filter((film) => !film.closest("[hidden]"));
      const going = films.some((film) => !film.paused);
      for (const film of films) going ? film.pause() : film.play().catch(() => {});
      event.target.textContent = going ? "Play all" : "Pause all";
    } else if (event.target.closest?.('a[href^="#case-"]') && event.target.closest("a").hash === location.hash) follow();
  });
  addEventListener("hashchange", follow);
  addEventListener("resize", redraw);
  addEventListener("beforeprint", () => { for (const plot of charts.values()) plot.setSize({width: PRINTED, height: 150}); });
  addEventListener("afterprint", redraw);
  addEventListener("DOMContentLoaded", () => setTimeout(follow));
})();
