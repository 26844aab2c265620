"use strict";
// Draws the charts from the JSON in #charts, anew when the theme changes or the page is printed, and notes on <body> how that
// went (data-charts, data-errors), for tests.
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const SMALL = 11; // pixels of a label's letters
const MOST = 0.42; // of the width that labels of bars may take
const HUES = ["--mark", "--best", "--third", "--fourth", "--fifth", "--sixth"];

Chart.defaults.font.family = "system-ui, sans-serif";
Chart.defaults.animation = false;
Chart.defaults.maintainAspectRatio = false;

// The head says what it is and the tail which one: the middle is left out, and what is alike then gets a number.
function shortened(names, most) {
  const counts = new Map();
  return names.map((name) => {
    const head = Math.floor(most / 3);
    const short = name.length <= most ? name : `${name.slice(0, head)}…${name.slice(head + 1 - most)}`;
    const seen = (counts.get(short) || 0) + 1;
    counts.set(short, seen);
    return seen === 1 ? short : `${short} (${seen})`;
  });
}

// Lines of an axis title, which Chart.js would squeeze into one.
function wrapped(text, wide) {
  const most = Math.max(12, Math.floor(wide / 7));
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines[lines.length - 1];
    if (last && last.length + word.length >= most) lines.push(word);
    else lines[lines.length - 1] = last ? `${last} ${word}` : word;
  }
  return lines;
}

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
      if (!chart.isDatasetVisible(number)) return;
      chart.getDatasetMeta(number).data.forEach((element, index) => {
        const point = set.points[index];
        if (!point || set.spans || point.low === null || point.high === null) return;
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

// A span's histogram: cells, the darker the more lies there.
const strips = {
  id: "strips",
  afterDatasetsDraw(chart) {
    const { ctx, scales } = chart;
    chart.data.datasets.forEach((set, number) => {
      if (!set.spans) return;
      chart.getDatasetMeta(number).data.forEach((element, index) => {
        const point = set.points[index];
        const most = Math.max(...point.density);
        if (!point.density.length) return;
        const step = (point.high - point.low) / point.density.length;
        ctx.save();
        ctx.fillStyle = colour("--mark");
        point.density.forEach((share, cell) => {
          const from = scales.x.getPixelForValue(point.low + cell * step);
          const to = scales.x.getPixelForValue(point.low + (cell + 1) * step);
          ctx.globalAlpha = Math.sqrt(share / most);
          ctx.fillRect(from, element.y - element.height / 2, Math.max(to - from, 1), element.height);
        });
        ctx.restore();
      });
    });
  },
};

function digits(value) {
  const size = Math.abs(value);
  if (size >= 1e4 && size < 1e7) return String(Math.round(value));
  const text = size && (size < 1e-3 || size >= 1e7) ? value.toExponential(3) : value.toPrecision(4);
  return text.includes("e") ? text.replace(/\.?0+e/, "e") : String(Number(text));
}

function told(point, lying) {
  const interval = point.low === null ? "" : ` [${digits(point.low)}, ${digits(point.high)}]`;
  const group = point.group ? `${point.group}: ` : "";
  return group + (lying ? `${digits(point.x)}${interval}` : `${point.name}: ${digits(point.x)}, ${digits(point.y)}${interval}`);
}

// One set of marks for each group, in the order in which they first appear.
function datasets(body, names) {
  const spans = body.kind === "spans";
  const lying = spans || body.kind === "bars";
  const groups = [...new Set(body.points.map((p) => p.group))];
  return groups.map((group, number) => {
    const own = body.points.filter((p) => p.group === group);
    const points = lying ? names.map((name) => own.find((p) => p.name === name) || null) : own;
    const value = (p) => (p === null ? null : spans ? [p.low, p.high] : lying ? p.x : { x: p.x, y: p.y });
    const hue = colour(HUES[number % HUES.length]);
    const fill = groups.length > 1 ? hue : points.map((p) => colour(p !== null && p.chosen ? "--best" : "--mark"));
    return {
      label: group,
      points,
      lying,
      spans,
      data: points.map(value),
      backgroundColor: points.some((p) => p !== null && p.density.length) ? colour("--card") : fill,
      borderColor: fill,
      borderWidth: body.kind === "lines" ? 2 : 0,
      showLine: body.kind === "lines",
      pointRadius: points.map((p) => (p !== null && (p.size > 0 || own.length === 1) ? 4 + 8 * p.size : 0)),
      pointHoverRadius: points.map((p) => (p === null ? 0 : 6 + 8 * p.size)),
      pointHitRadius: 6,
      barPercentage: 0.85,
      categoryPercentage: 0.85,
    };
  });
}

function configured(body, width) {
  const lying = body.kind === "spans" || body.kind === "bars";
  const names = lying ? [...new Set(body.points.map((p) => p.name))] : [];
  const ends = body.points.flatMap((p) => [p.low, p.high]).filter((end) => end !== null);
  const room = ends.length ? { suggestedMin: Math.min(...ends), suggestedMax: Math.max(...ends) } : {};
  const flat = !lying && body.points.every((p) => Math.abs(p.y) < 1e-9) ? { suggestedMin: -0.01, suggestedMax: 0.01 } : {};
  const ticks = { callback: (value) => digits(value), color: colour("--faint"), maxRotation: 0 };
  const grid = { color: colour("--line") };
  const title = (text, wide) => ({ display: true, text: wrapped(text, wide), color: colour("--faint") });
  const sets = datasets(body, names);
  const most = Math.max(14, Math.floor((MOST * width) / (0.6 * SMALL)));
  return {
    type: lying ? "bar" : "scatter",
    data: { labels: shortened(names, most), datasets: sets },
    plugins: [whiskers, strips],
    options: {
      indexAxis: lying ? "y" : "x",
      plugins: {
        legend: { display: sets.length > 1, labels: { color: colour("--ink"), boxWidth: 14 } },
        tooltip: {
          callbacks: {
            title: (items) => (lying && items.length ? names[items[0].dataIndex] : ""),
            label: (item) => told(item.dataset.points[item.dataIndex], lying),
          },
        },
      },
      scales: {
        x: { title: title(body.x, lying ? (1 - MOST) * width : width - 80), beginAtZero: lying, ticks, grid, ...(lying ? room : { grace: "5%" }) },
        y: lying
          ? { ticks: { autoSkip: false, color: colour("--ink"), font: { size: SMALL } }, grid }
          : { title: title(body.y, 280), ticks, grid, ...room, ...flat },
      },
    },
  };
}

function inked(canvas) {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) return true;
  return false;
}

const bodies = JSON.parse(document.getElementById("charts").textContent);
let charts = [];

function draw() {
  charts.forEach((chart) => chart.destroy());
  charts = [];
  let drawn = 0;
  for (const place of document.querySelectorAll("[data-chart]")) {
    try {
      const canvas = place.querySelector("canvas");
      charts.push(new Chart(canvas, configured(bodies[Number(place.dataset.chart)], place.clientWidth)));
      if (inked(canvas)) drawn += 1;
    } catch (error) {
      errors.push(String(error));
    }
  }
  document.body.dataset.charts = `${drawn} of ${bodies.length}`;
  document.body.dataset.wide = String(document.documentElement.scrollWidth - document.documentElement.clientWidth);
  document.body.dataset.errors = errors.join("; ");
}

draw();
for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
