/** The pictures of docs/bench: memory and fill time over the number of Secrets. */
import { type Figure, median } from "./figures.ts";
import { MENDED } from "./measure.ts";
import { type Chart, draw, type Line } from "./plot.ts";

/** The sides that are drawn, each in its colour. Middling in lightness: a contrast of 3 and more to white and to dark grey. */
const COLOURS: Record<string, string> = {
  "node bundle": "#2f81d7",
  "deno bundle": "#2d9a4b",
  "node SDK": "#c8711d",
  "deno SDK": "#a8862a",
  [MENDED]: "#d14b63",
  "node limit": "#7f8690",
  "deno limit": "#a860d0",
};

/** Upstream is timed on some, and writes at the same pace whatever their number. */
const RECKONED = [1_000, 10_000];

/** By file name. */
export function drawPictures(figures: Figure[], note: string): Map<string, string> {
  const common = { xLabel: "Secrets", note };
  const charts: [string, Chart][] = [
    ["memory.svg", {
      ...common,
      title: "Memory at rest",
      yLabel: "MiB that the process allocated (RssAnon)",
      lines: linesOf(figures, /^anonymous at rest/),
    }],
    ["peak.svg", {
      ...common,
      title: "Most memory while filling",
      yLabel: "MiB resident (VmHWM)",
      lines: linesOf(figures, /^peak, /),
    }],
    ["fill.svg", {
      ...common,
      title: "Time to fill all Secrets of one identity",
      yLabel: "seconds, from the start of the process; dashed: reckoned from the pace",
      isLogarithmic: true,
      lines: [...linesOf(figures, /^from start to last, /), ...reckonedLines(figures)],
    }],
  ];
  const drawable = charts.filter(([, { lines }]) => lines.some(({ points }) => points.length > 1));
  return new Map(drawable.map(([name, chart]) => [name, draw(chart)]));
}

/** A line for each side that has figures at several numbers of Secrets. */
function linesOf(figures: Figure[], what: RegExp): Line[] {
  const lines = new Map<string, Map<number, number>>();
  for (const figure of figures) {
    if (!what.test(figure.what) || figure.secrets === undefined || !(figure.side in COLOURS)) {
      continue;
    }
    const points = lines.get(figure.side) ?? new Map<number, number>();
    points.set(figure.secrets, median(figure.values));
    lines.set(figure.side, points);
  }
  return [...lines].map(([label, points]) => ({
    label,
    colour: COLOURS[label]!,
    points: [...points].sort(([a], [b]) => a - b).map(([x, y]) => ({ x, y })),
  }));
}

function reckonedLines(figures: Figure[]): Line[] {
  const figure = figures.find(({ what, side }) => what === "Secrets a second" && side === MENDED);
  if (!figure) return [];
  const points = RECKONED.map((secrets) => ({ x: secrets, y: secrets / median(figure.values) }));
  return [{ label: MENDED, colour: COLOURS[MENDED]!, isReckoned: true, points }];
}
