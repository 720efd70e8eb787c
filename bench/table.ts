/** The figures as a table for a terminal. */
import { type Bounds, type Figure, isWithin, median, ratioOf } from "./figures.ts";

const HEAD = [
  "row",
  "figure",
  "side",
  "median",
  "from",
  "to",
  "unit",
  "runs",
  "ratio",
  "to",
  "must",
  "",
];

export function drawTable(figures: Figure[]): string {
  const table = [HEAD, ...figures.map(cells)];
  const widths = HEAD.map((_, column) => Math.max(...table.map((row) => row[column]!.length)));
  return table.map((row) =>
    row.map((cell, column) => cell.padEnd(widths[column]!)).join("  ").trimEnd()
  ).join("\n");
}

function cells(figure: Figure): string[] {
  const { row, what, side, unit, values, base, must } = figure;
  const ratio = ratioOf(figure);
  const isMet = isWithin(figure, must);
  const numbers = [median(values), Math.min(...values), Math.max(...values)].map(rounded);
  const verdict = isMet === undefined ? "" : isMet ? "met" : "NOT MET";
  const compared = [ratio === undefined ? "" : rounded(ratio), base?.side ?? ""];
  return [
    row,
    what,
    side,
    ...numbers,
    unit,
    `${values.length}`,
    ...compared,
    boundsText(must),
    verdict,
  ];
}

function boundsText({ atMost, atLeast }: Bounds = {}): string {
  if (atMost !== undefined) return `≤ ${rounded(atMost)}`;
  return atLeast !== undefined ? `≥ ${rounded(atLeast)}` : "";
}

/** Three digits that count, and no fewer than the whole number has. */
export function rounded(value: number): string {
  if (Number.isInteger(value)) return `${value}`;
  const digits = 2 - Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Math.min(Math.max(digits, 0), 3));
}

/** The figures that are beyond what may never be. */
export function findBroken(figures: Figure[]): string[] {
  return figures.filter((figure) => isWithin(figure, figure.guard) === false).map((figure) => {
    const { row, what, side, base, guard, values } = figure;
    const value = rounded(ratioOf(figure) ?? median(values));
    return `${row}: ${what}, ${side}${base ? ` to ${base.side}` : ""}: ${value}, must be ${
      boundsText(guard)
    }`;
  });
}
