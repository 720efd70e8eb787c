/** Line charts as SVG, readable on light and on dark pages: no background, and text that follows the page's scheme. */
import { UNFORMATTED } from "../scripts/pictures/terminal.ts";

/** All of a length is in pixels. */
const WIDTH = 720;
const HEIGHT = 400;
const LEFT = 70;
const RIGHT = 190;
const TOP = 44;
const BOTTOM = 56;
/** Lines of text that would stand closer are moved apart. */
const LABEL_HEIGHT = 16;
const STYLE = `
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-size: 15px; font-weight: 600; }
  .axis { stroke: #6e7781; }
  .grid { stroke: #6e7781; stroke-opacity: 0.25; }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } }
`;

export interface Line {
  label: string;
  /** To stand out from light and from dark. */
  colour: string;
  points: { x: number; y: number }[];
  /** Not measured but reckoned: drawn dashed. */
  isReckoned?: boolean;
}

export interface Chart {
  title: string;
  xLabel: string;
  yLabel: string;
  /** Powers of ten are equally far apart. All values must be above zero. */
  isLogarithmic?: boolean;
  /** Stands below: the date and what it was measured on. */
  note: string;
  lines: Line[];
}

export function draw({ title, xLabel, yLabel, isLogarithmic = false, note, lines }: Chart): string {
  const all = lines.flatMap(({ points }) => points);
  const axis = isLogarithmic ? logarithmicAxis : linearAxis;
  const x = axis(all.map((point) => point.x), LEFT, WIDTH - RIGHT);
  const y = axis(all.map((point) => point.y), HEIGHT - BOTTOM, TOP);
  const grid = [
    ...x.ticks.flatMap((tick) => [
      line(x.place(tick), TOP, x.place(tick), HEIGHT - BOTTOM, "grid"),
      text(x.place(tick), HEIGHT - BOTTOM + 18, numberText(tick), "middle"),
    ]),
    ...y.ticks.flatMap((tick) => [
      line(LEFT, y.place(tick), WIDTH - RIGHT, y.place(tick), "grid"),
      text(LEFT - 8, y.place(tick) + 4, numberText(tick), "end"),
    ]),
  ];
  const labels = moveApart(lines.map(({ points }) => y.place(points.at(-1)!.y)));
  const curves = lines.flatMap(({ label, colour, points, isReckoned }, index) => {
    const places = points.map((point) =>
      `${x.place(point.x).toFixed(1)},${y.place(point.y).toFixed(1)}`
    );
    const dots = places.map((place) =>
      `<circle cx="${place.replace(",", '" cy="')}" r="3.5" fill="${colour}"/>`
    );
    const dashes = isReckoned ? ' stroke-dasharray="5 4"' : "";
    return [
      `<polyline points="${
        places.join(" ")
      }" fill="none" stroke="${colour}" stroke-width="2"${dashes}/>`,
      ...dots,
      `<circle cx="${WIDTH - RIGHT + 14}" cy="${labels[index]! - 4}" r="4.5" fill="${colour}"/>`,
      text(WIDTH - RIGHT + 24, labels[index]!, label, "start"),
    ];
  });
  return [
    UNFORMATTED,
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img">`,
    `<title>${escape(title)}</title>`,
    `<style>${STYLE}</style>`,
    text(LEFT, 20, title, "start", "title"),
    text(LEFT, 37, yLabel, "start"),
    ...grid,
    line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"),
    line(LEFT, TOP, LEFT, HEIGHT - BOTTOM, "axis"),
    ...curves,
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 22, xLabel, "middle"),
    text(LEFT, HEIGHT - 5, note, "start"),
    "</svg>\n",
  ].join("\n");
}

/** From zero, with round numbers as ticks. */
function linearAxis(values: number[], from: number, to: number) {
  const most = Math.max(...values);
  const rough = most / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough)!;
  const end = Math.ceil(most / step) * step;
  const ticks = Array.from({ length: Math.round(end / step) + 1 }, (_, index) => index * step);
  return { ticks, place: (value: number) => from + (to - from) * value / end };
}

function logarithmicAxis(values: number[], from: number, to: number) {
  const start = Math.floor(Math.log10(Math.min(...values)));
  const end = Math.ceil(Math.log10(Math.max(...values)));
  const ticks = Array.from({ length: end - start + 1 }, (_, index) => 10 ** (start + index));
  return {
    ticks,
    place: (value: number) => from + (to - from) * (Math.log10(value) - start) / (end - start),
  };
}

/** Heights of labels, in the same order, none closer to another than a line of text. */
function moveApart(heights: number[]): number[] {
  const sorted = heights.map((height, index) => ({ height: height + 4, index })).sort((a, b) =>
    a.height - b.height
  );
  sorted.forEach((each, rank) => {
    const above = sorted[rank - 1];
    if (above) each.height = Math.max(each.height, above.height + LABEL_HEIGHT);
  });
  return sorted.sort((a, b) => a.index - b.index).map(({ height }) => height);
}

const line = (x1: number, y1: number, x2: number, y2: number, kind: string) =>
  `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${
    y2.toFixed(1)
  }" class="${kind}"/>`;

function text(
  x: number,
  y: number,
  content: string,
  anchor: "start" | "middle" | "end",
  kind = "",
): string {
  const place = `x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}"`;
  return `<text ${place}${kind && ` class="${kind}"`}>${escape(content)}</text>`;
}

const numberText = (value: number) => value >= 1000 ? value.toLocaleString("en-GB") : `${value}`;

const escape = (content: string) => content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
