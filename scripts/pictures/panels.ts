/** Draws the panels of a Grafana dashboard as an SVG, from what Prometheus answered. */
import { escape, UNFORMATTED } from "./terminal.ts";

export interface Panel {
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  fieldConfig: {
    defaults: { unit: string; min?: number; custom: { stacking: { mode: string } } };
    overrides: { matcher: { options: string }; properties: { value: { fixedColor: string } }[] }[];
  };
  targets: { expr: string; legendFormat: string }[];
}

/** Of a dashboard. */
export interface Variable {
  name: string;
  /** What matches all values, if they are a label's. */
  allValue?: string;
}

export interface Series {
  labels: Record<string, string>;
  /** Time in s, and the value. */
  points: [number, number][];
}

interface Line {
  name: string;
  color: string;
  points: [number, number][];
}

/** A place in Grafana's grid, in pixels. */
const UNIT = { width: 40, height: 29 };
const GAP = 8;
const INNER = { left: 52, right: 14, top: 34, bottom: 60 };
/** `letter` is the width that a letter of this size has at most, on average. */
const LEGEND = { left: 12, mark: 28, letter: 6.6, height: 17 };
const GRID_LINES = 4;
/** Points further apart are not joined: nothing was measured in between. */
const MAX_GAP_S = 12;
const COLORS: Record<string, string> = {
  green: "#73bf69",
  orange: "#ff9830",
  red: "#f2495c",
  blue: "#5794f2",
  gray: "#8e8e8e",
};
const PALETTE = [
  "#73bf69",
  "#f2cc0c",
  "#8ab8ff",
  "#ff780a",
  "#f2495c",
  "#5794f2",
  "#b877d9",
  "#37872d",
  "#fade2a",
];
const FONT = "12px system-ui,sans-serif";

export function drawDashboard(
  panels: Panel[],
  answers: Map<string, Series[]>,
  start: number,
  end: number,
): string {
  const width = Math.max(...panels.map(({ gridPos: { x, w } }) => x + w)) * UNIT.width;
  const height = Math.max(...panels.map(({ gridPos: { y, h } }) => y + h)) * UNIT.height;
  const drawn = panels.map((panel) => drawPanel(panel, linesOf(panel, answers), start, end));
  return `${UNFORMATTED}
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">
<title>The queries of the dashboard, drawn from a Prometheus that scraped two replicas</title>
<style>text{font:${FONT};fill:#ccccdc}.t{font-weight:bold}</style>
<rect width="${width}" height="${height}" fill="#111217"/>
${drawn.join("\n")}
</svg>
`;
}

/** A query as Grafana sends it while all values of its variables are chosen. */
export function fillIn(expr: string, variables: Variable[], rateInterval = "1m"): string {
  return expr.replace(/\$(\w+)/g, (found, name) => {
    if (name === "__rate_interval") return rateInterval;
    const value = variables.find((variable) => variable.name === name)?.allValue;
    if (value === undefined) throw new Error(`${found} is no variable that has a value for all`);
    return value;
  });
}

function linesOf(panel: Panel, answers: Map<string, Series[]>): Line[] {
  const fixed = new Map(
    panel.fieldConfig.overrides.map(({ matcher, properties }) =>
      [matcher.options, properties[0]?.value.fixedColor ?? ""] as const
    ),
  );
  const found = panel.targets.flatMap(({ expr, legendFormat }) =>
    (answers.get(expr) ?? []).map(({ labels, points }) => ({
      name: legendFormat.replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? ""),
      points: points.filter(([, value]) => Number.isFinite(value)),
    }))
  );
  // All counters are there from the start, with 0: their names alone would fill the legend.
  const moving = found.filter(({ points }) => points.some(([, value]) => value !== 0));
  return (moving.length > 0 ? moving : found).map((line, i) => {
    const color = COLORS[fixed.get(line.name) ?? ""] ?? PALETTE[i % PALETTE.length]!;
    return { ...line, color };
  });
}

function drawPanel(panel: Panel, lines: Line[], start: number, end: number): string {
  const { x, y, w, h } = panel.gridPos;
  const { unit, custom: { stacking } } = panel.fieldConfig.defaults;
  const size = { width: w * UNIT.width - GAP, height: h * UNIT.height - GAP };
  const plot = {
    width: size.width - INNER.left - INNER.right,
    height: size.height - INNER.top - INNER.bottom,
  };
  const isStacked = stacking.mode === "normal";
  const shown = isStacked
    ? stack(lines)
    : lines.map((line) => ({ ...line, base: [] as [number, number][] }));
  const top = niceTop(
    Math.max(...shown.flatMap(({ points }) => points.map(([, value]) => value)), 0),
  );
  const atX = (time: number) =>
    +(INNER.left + plot.width * (time - start) / (end - start)).toFixed(1);
  const atY = (value: number) =>
    +(INNER.top + plot.height * (1 - Math.max(value, 0) / top)).toFixed(1);
  const path = (points: [number, number][]) =>
    points.map(([time, value]) => `${atX(time)},${atY(value)}`).join(" ");

  const parts = [
    `<rect width="${size.width}" height="${size.height}" rx="3" fill="#181b1f" stroke="#2a2d33"/>`,
    `<text class="t" x="12" y="21">${escape(panel.title)}</text>`,
  ];
  for (let i = 0; i <= GRID_LINES; i++) {
    const value = top * i / GRID_LINES;
    parts.push(`<path d="M${INNER.left} ${atY(value)}h${plot.width}" stroke="#2a2d33"/>`);
    parts.push(
      `<text x="${INNER.left - 6}" y="${atY(value) + 4}" text-anchor="end">${
        format(value, unit)
      }</text>`,
    );
  }
  const minutes = Math.round((end - start) / 60);
  for (let minute = 0; minute <= minutes; minute += 2) {
    const place = `x="${atX(start + minute * 60)}" y="${INNER.top + plot.height + 15}"`;
    const anchor = minute === minutes ? "end" : "middle"; // the last one would stand over the edge
    parts.push(`<text ${place} text-anchor="${anchor}">${minute} min</text>`);
  }
  for (const { color, points, base } of shown) {
    if (isStacked) {
      parts.push(
        `<polygon points="${
          path([...points, ...base.toReversed()])
        }" fill="${color}" opacity=".6"/>`,
      );
    }
    for (const run of runs(points)) {
      parts.push(
        `<polyline points="${path(run)}" fill="none" stroke="${color}" stroke-width="1.5"/>`,
      );
    }
  }
  parts.push(drawLegend(lines, size.width, size.height - 26));
  return `<g transform="translate(${x * UNIT.width + GAP / 2} ${y * UNIT.height + GAP / 2})">${
    parts.join("")
  }</g>`;
}

/** In as many rows as it takes; there is room for two. */
function drawLegend(lines: Line[], width: number, y: number): string {
  let [x, row] = [LEGEND.left, 0];
  return lines.map(({ name, color }) => {
    const size = LEGEND.mark + name.length * LEGEND.letter;
    if (x + size > width) [x, row] = [LEGEND.left, row + 1];
    const top = y + row * LEGEND.height;
    const mark = `<rect x="${x}" y="${top - 6}" width="12" height="3" fill="${color}"/>`;
    const text = `<text x="${x + 16}" y="${top}">${escape(name)}</text>`;
    x = Math.round(x + size);
    return mark + text;
  }).join("");
}

/** Each line upon those before it. */
function stack(lines: Line[]): (Line & { base: [number, number][] })[] {
  const sums = new Map<number, number>();
  return lines.map((line) => {
    const base = line.points.map(([time]): [number, number] => [time, sums.get(time) ?? 0]);
    const points = line.points.map((
      [time, value],
    ): [number, number] => [time, (sums.get(time) ?? 0) + value]);
    for (const [time, value] of points) sums.set(time, value);
    return { ...line, points, base };
  });
}

/** The parts of a line between which nothing was measured. */
function runs(points: [number, number][]): [number, number][][] {
  const all: [number, number][][] = [];
  for (const point of points) {
    const last = all.at(-1)?.at(-1);
    if (last && point[0] - last[0] <= MAX_GAP_S) all.at(-1)!.push(point);
    else all.push([point]);
  }
  return all;
}

/** The least of 1, 2, 4, 6, 8 times a power of ten that is not below the value: its quarters are short numbers. */
function niceTop(value: number): number {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 4, 6, 8, 10].find((times) => times * power >= value) ?? 10) * power;
}

function format(value: number, unit: string): string {
  if (unit !== "s") return `${+value.toPrecision(3)}`;
  return value === 0
    ? "0"
    : value < 1
    ? `${+(value * 1000).toPrecision(3)} ms`
    : `${+value.toPrecision(3)} s`;
}
