// Paints the charts in the page's colours, and lets the legend show and hide a label in all of them at once.
(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const clear = (colour, share) => colour + Math.round(255 * share).toString(16).padStart(2, "0");

  function painted(trace) {
    const { series: place, part, stage } = trace.meta;
    const colour = css(`--series-${place}`);
    const copy = { ...trace, showlegend: false, visible: !hidden.has(place) };
    if (part === "line") copy.line = { ...trace.line, color: colour };
    if (part === "band") copy.fillcolor = clear(colour, 0.14);
    if (part === "lost") copy.fillcolor = clear(colour, 0.13);
    if (part === "peak" || part === "end") {
      copy.marker = { ...trace.marker, color: colour, line: { color: css("--paper"), width: 1.2 } };
      copy.cliponaxis = false;
    }
    if (part === "bar") {
      copy.marker = { color: css(`--stage-${stage}`), line: { color: css("--paper"), width: 1 } };
    }
    return copy;
  }

  function layout(figure) {
    const axis = { gridcolor: css("--grid"), linecolor: css("--rule"), zerolinecolor: css("--rule"), automargin: true };
    const font = { family: css("--sans"), size: 12, color: css("--soft") };
    const hover = { bgcolor: css("--card"), bordercolor: css("--rule"), font: { ...font, color: css("--ink") } };
    return {
      ...figure.layout,
      xaxis: { ...axis, ...figure.layout.xaxis },
      yaxis: { ...axis, ...figure.layout.yaxis },
      font,
      hoverlabel: { ...hover, align: "left", namelength: -1 },
      margin: { l: 46, r: 14, t: 8, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
      autosize: true,
      uirevision: "kept", // clicks in the legend keep the zoom
    };
  }

  const config = { displayModeBar: false, responsive: true };

  function draw() {
    for (const figure of figures) {
      Plotly.react(`chart-${figure.key}`, figure.data.map(painted), layout(figure), config);
    }
  }

  function toggle(button) {
    const place = Number(button.dataset.series);
    if (!hidden.delete(place)) hidden.add(place);
    button.setAttribute("aria-pressed", String(!hidden.has(place)));
    document.querySelector(`.conclusion[data-series="${place}"]`).classList.toggle("off", hidden.has(place));
    draw();
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => toggle(button));
  }
  dark.addEventListener("change", draw);
  for (const event of ["beforeprint", "afterprint"]) {
    addEventListener(event, () => {
      root.classList.toggle("paper", event === "beforeprint"); // light, and as wide as paper
      draw();
      for (const figure of figures) Plotly.Plots.resize(`chart-${figure.key}`);
    });
  }
  draw();
})();
