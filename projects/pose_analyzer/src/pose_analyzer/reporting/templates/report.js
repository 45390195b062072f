"use strict";
(() => {
  const video = document.getElementById("overlay");
  const isCoarse = matchMedia("(pointer: coarse)").matches;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const phaseNames = ["top", "eccentric", "bottom", "concentric", "unknown"];
  const PX = { progress: 90, angle: 140, keypoint: 14, gap: 34, margin: 50 };

  // Closed outlines of value +- 2 sd over each run of points where keep(i) holds.
  function band(time, angle, keep) {
    const x = [], y = [];
    let run = [];
    const flush = () => {
      if (run.length > 1) {
        for (const i of run) { x.push(time[i]); y.push(Math.min(180, angle.deg[i] + 2 * angle.sd[i])); }
        for (const i of run.reverse()) { x.push(time[i]); y.push(Math.max(0, angle.deg[i] - 2 * angle.sd[i])); }
        x.push(null); y.push(null);
      }
      run = [];
    };
    for (let i = 0; i < time.length; i++) {
      if (angle.deg[i] !== null && angle.sd[i] !== null && keep(i)) run.push(i); else flush();
    }
    flush();
    return { x, y };
  }

  function angleTraces(time, angle, axis) {
    const line = colour(angle.side);
    const base = { type: "scatter", mode: "lines", yaxis: axis, name: angle.side, showlegend: false };
    const isTrusted = (i) => angle.trusted[i] === 1;
    const shade = (keep, opacity) => ({ ...base, ...band(time, angle, keep), fill: "toself", fillcolor: line,
      opacity, line: { width: 0 }, hoverinfo: "skip" });
    const note = angle.deg.map((_, i) => `±${Math.round(2 * angle.sd[i])}${isTrusted(i) ? "" : " not to be trusted"}`);
    const traces = [
      shade((i) => !isTrusted(i), 0.07),
      shade(isTrusted, 0.22),
      { ...base, x: time, y: angle.deg, text: note, opacity: 0.4, line: { color: line, width: 1 },
        hovertemplate: "%{y:.0f}° %{text}" },
      { ...base, x: time, y: angle.deg.map((v, i) => (isTrusted(i) ? v : null)), line: { color: line, width: 2 },
        hoverinfo: "skip" },
    ];
    if (angle.deg3d) {
      traces.push({ ...base, x: time, y: angle.deg3d, name: `${angle.side} 3D`, visible: false, meta: "3d",
        line: { color: line, width: 1.5, dash: "dot" }, hovertemplate: "%{y:.0f}°" });
    }
    return traces;
  }

  function progressTraces(data, axis) {
    const n = phaseNames.length;
    const scale = phaseNames.flatMap((name, k) => {
      const shade = name === "unknown" ? "rgba(0,0,0,0)" : colour(name);
      return [[k / n, shade], [(k + 1) / n, shade]];
    });
    return [
      { type: "heatmap", x: data.time, y: [0.5], z: [data.phase], zmin: -0.5, zmax: n - 0.5,
        colorscale: scale, showscale: false, yaxis: axis, opacity: 0.55, hoverinfo: "skip" },
      { type: "scatter", mode: "lines", x: data.time, y: data.progress, yaxis: axis, name: "progress",
        text: data.phase.map((k) => (k === null ? "" : phaseNames[k])), showlegend: false,
        line: { color: colour("text"), width: 1.5 }, hovertemplate: "%{y:.0%} %{text}" },
    ];
  }

  // Rows from top to bottom, each with its height, its y axis and what is drawn in it.
  function rowsOf(data) {
    const rows = [];
    if (data.progress.some((value) => value !== null)) {
      rows.push({ title: "Progress through the repetition, and phase", px: PX.progress,
        axis: { range: [-0.1, Math.max(1.1, ...data.progress) + 0.05], tickvals: [0, 1], ticktext: ["0", "100%"] },
        traces: (axis) => progressTraces(data, axis) });
    }
    for (const row of data.rows) {
      rows.push({ title: `${row.title} in degrees`, px: PX.angle, axis: { nticks: 5 },
        traces: (axis) => row.angles.flatMap((angle) => angleTraces(data.time, angle, axis)) });
    }
    rows.push({ title: "Confidence of the keypoints, 0 dark to 1 bright", px: PX.keypoint * data.keypoints.length,
      axis: { autorange: "reversed", tickfont: { size: 10 }, showgrid: false },
      traces: (axis) => [{ type: "heatmap", x: data.time, y: data.keypoints, z: data.confidences, zmin: 0, zmax: 1,
        colorscale: "Cividis", showscale: false, yaxis: axis,
        hovertemplate: "%{y} %{z:.2f}<extra></extra>" }] });
    return rows;
  }

  function figure(data) {
    const rows = rowsOf(data);
    const total = rows.reduce((sum, row) => sum + row.px + PX.gap, 0);
    const line = { gridcolor: colour("rule"), zeroline: false, linecolor: colour("rule") };
    const layout = {
      height: total + PX.margin, margin: { l: 92, r: 12, t: 4, b: PX.margin - 4 }, hovermode: "x unified",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: isCoarse ? false : "zoom",
      font: { color: colour("text"), size: 12 }, hoverlabel: { bgcolor: colour("card"), font: { color: colour("text") } },
      annotations: [], shapes: [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: 0, x1: 0, visible: false,
        line: { color: colour("cursor"), width: 2 } }],
      xaxis: { ...line, title: { text: "seconds" }, anchor: `y${rows.length}`, showspikes: true, spikemode: "across",
        spikethickness: 1, spikedash: "dot", spikecolor: colour("quiet"), range: [data.time[0], data.time.at(-1)] },
    };
    const traces = [];
    let used = 0;
    rows.forEach((row, k) => {
      const name = k === 0 ? "y" : `y${k + 1}`;
      used += PX.gap;
      const top = 1 - used / total;
      used += row.px;
      layout[`yaxis${k === 0 ? "" : k + 1}`] = { ...line, fixedrange: true, domain: [Math.max(0, 1 - used / total), top], ...row.axis };
      layout.annotations.push({ text: row.title, xref: "paper", yref: "paper", x: 0, y: top, xanchor: "left",
        yanchor: "bottom", showarrow: false, font: { size: 13 } });
      traces.push(...row.traces(name));
    });
    // More edges and numbers than this would cover each other.
    const isSparse = data.repetitions.length <= 60;
    data.repetitions.forEach((rep) => {
      layout.shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0: rep.start, x1: rep.end, layer: "below",
        fillcolor: colour("shade"), line: { color: colour("quiet"), width: isSparse ? 0.5 : 0, dash: "dot" } });
    });
    if (isSparse) {
      data.repetitions.forEach((rep) => layout.annotations.push({ text: `<b>${rep.number}</b>`, yref: "paper", y: 1,
        yanchor: "top", x: (rep.start + rep.end) / 2, showarrow: false, font: { color: colour("quiet") } }));
    }
    return { traces, layout };
  }

  const plots = [...document.querySelectorAll(".plot")].map((element) => ({
    element, data: JSON.parse(element.parentElement.querySelector(".plot-data").textContent), drawn: false,
    box: element.parentElement.querySelector(".show-3d"),
  }));

  function draw(plot) {
    const { traces, layout } = figure(plot.data);
    for (const trace of traces) if (trace.meta === "3d") trace.visible = plot.box.checked;
    Plotly.react(plot.element, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    if (plot.drawn) return;
    plot.drawn = true;
    if (plot.box) plot.box.addEventListener("change", () => draw(plot));
    plot.element.on("plotly_click", (event) => seek(event.points[0].x));
  }

  function seek(time) {
    if (video) video.currentTime = time;
  }

  // The first one is what people came for; the others are drawn when they are scrolled to.
  if (plots.length) draw(plots[0]);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const plot = plots.find(({ element }) => element === entry.target);
      if (entry.isIntersecting && !plot.drawn) draw(plot);
    }
  }, { rootMargin: "600px" });
  plots.forEach(({ element }) => seen.observe(element));
  addEventListener("beforeprint", () => plots.filter((plot) => !plot.drawn).forEach(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.filter((plot) => plot.drawn).forEach(draw));

  if (video) {
    document.querySelectorAll(".seek").forEach((button) => button.addEventListener("click", () => {
      seek(Number(button.dataset.time));
      video.scrollIntoView({ behavior: "smooth", block: "nearest" });
    }));
    video.addEventListener("timeupdate", () => {
      const time = video.currentTime;
      for (const { element, drawn } of plots) {
        if (drawn) Plotly.relayout(element, { "shapes[0].x0": time, "shapes[0].x1": time, "shapes[0].visible": true });
      }
    });
  }
})();
