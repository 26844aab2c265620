"use strict";
// Draws the charts from the JSON in #charts, and notes on <body> how that went (data-charts, data-errors), for tests.
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
const style = getComputedStyle(document.documentElement);
const colour = (name) => style.getPropertyValue(name).trim();
const shorten = (text, most) => (text.length <= most ? text : "…" + text.slice(1 - most));

Chart.defaults.color = colour("--faint");
Chart.defaults.borderColor = colour("--line");
Chart.defaults.font.family = "system-ui, sans-serif";
Chart.defaults.animation = false;
Chart.defaults.maintainAspectRatio = false;

// Intervals as thin lines over the marks.
const whiskers = {
  id: "whiskers",
  afterDatasetsDraw(chart) {
    const { ctx, scales, chartArea: area } = chart;
    ctx.save();
    ctx.beginPath();
    ctx.rect(area.left, area.top, area.width, area.height);
    ctx.clip();
    ctx.strokeStyle = colour("--ink");
    ctx.lineWidth = 1;
    chart.data.datasets.forEach((set, number) => {
      chart.getDatasetMeta(number).data.forEach((element, index) => {
        const point = set.points[index];
        if (set.spans || point.low === null || point.high === null) return;
        ctx.beginPath();
        if (set.lying) {
          ctx.moveTo(scales.x.getPixelForValue(point.low), element.y);
          ctx.lineTo(scales.x.getPixelForValue(point.high), element.y);
        } else {
          ctx.moveTo(element.x, scales.y.getPixelForValue(point.low));
          ctx.lineTo(element.x, scales.y.getPixelForValue(point.high));
        }
        ctx.stroke();
      });
    });
    ctx.restore();
  },
};

function digits(value) {
  const size = Math.abs(value);
  const text = size && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : value.toPrecision(4);
  return text.includes("e") ? text.replace(/\.?0+e/, "e") : String(Number(text));
}

function told(point, lying) {
  const interval = point.low === null ? "" : ` [${digits(point.low)}, ${digits(point.high)}]`;
  return lying ? `${digits(point.x)}${interval}` : `${point.name}: ${digits(point.x)}, ${digits(point.y)}${interval}`;
}

function configured(body, width) {
  const spans = body.kind === "spans";
  const lying = spans || body.kind === "bars";
  const ends = body.points.flatMap((p) => [p.low, p.high]).filter((end) => end !== null);
  const room = ends.length ? { suggestedMin: Math.min(...ends), suggestedMax: Math.max(...ends) } : {};
  const flat = !lying && body.points.every((p) => Math.abs(p.y) < 1e-9) ? { suggestedMin: -0.01, suggestedMax: 0.01 } : {};
  const ticks = { callback: (value) => digits(value) };
  const fill = body.points.map((p) => colour(p.chosen ? "--best" : "--mark"));
  const most = Math.max(12, Math.floor(width / 22));
  const set = {
    points: body.points,
    lying,
    spans,
    data: body.points.map((p) => (spans ? [p.low, p.high] : lying ? p.x : { x: p.x, y: p.y })),
    backgroundColor: fill,
    borderColor: fill,
    pointRadius: body.points.map((p) => 4 + 8 * p.size),
    pointHoverRadius: body.points.map((p) => 6 + 8 * p.size),
    barPercentage: 0.7,
  };
  return {
    type: lying ? "bar" : "scatter",
    data: { labels: body.points.map((p) => shorten(p.name, most)), datasets: [set] },
    plugins: [whiskers],
    options: {
      indexAxis: lying ? "y" : "x",
      plugins: {
        legend: { display: false },
        tooltip: {
          callbacks: {
            title: (items) => (lying ? body.points[items[0].dataIndex].name : ""),
            label: (item) => told(body.points[item.dataIndex], lying),
          },
        },
      },
      scales: {
        x: { title: { display: true, text: body.x }, beginAtZero: lying, ticks, ...(lying ? room : { grace: "5%" }) },
        y: lying ? { ticks: { autoSkip: false } } : { title: { display: true, text: body.y }, ticks, ...room, ...flat },
      },
    },
  };
}

function inked(canvas) {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) return true;
  return false;
}

let drawn = 0;
const bodies = JSON.parse(document.getElementById("charts").textContent);
for (const place of document.querySelectorAll("[data-chart]")) {
  try {
    const canvas = place.querySelector("canvas");
    new Chart(canvas, configured(bodies[Number(place.dataset.chart)], place.clientWidth));
    if (inked(canvas)) drawn += 1;
  } catch (error) {
    errors.push(String(error));
  }
}
document.body.dataset.charts = `${drawn} of ${bodies.length}`;
document.body.dataset.wide = String(document.documentElement.scrollWidth - document.documentElement.clientWidth);
document.body.dataset.errors = errors.join("; ");
