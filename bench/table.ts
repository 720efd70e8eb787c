/** The figures as tables for a terminal: what was measured, and what it is compared with. */
import { drawTable } from "../tests/support/table.ts";
import { type Bounds, type Figure, isWithin, median, ratioOf } from "./figures.ts";

const MEASURED = ["row", "figure", "side", "median", "from", "to", "unit", "runs"];
const COMPARED = ["row", "figure", "side", "value", "ratio to", "must", ""];

/** What was measured, each figure once, however many it is compared with. */
export function drawMeasured(figures: Figure[]): string {
  const rows = figures.map(({ row, what, side, unit, values }) => {
    const numbers = [median(values), Math.min(...values), Math.max(...values)].map(rounded);
    return [row, what, side, ...numbers, unit, `${values.length}`];
  });
  return unique(drawTable([MEASURED, ...rows]));
}

/** Ratios to a base, and what has an aim; empty: there is neither. */
export function drawCompared(figures: Figure[]): string {
  const rows = figures.filter(({ base, must }) => base || must).map((figure) => {
    const { row, what, side, values, base, must } = figure;
    const isMet = isWithin(figure, must);
    const verdict = isMet === undefined ? "" : isMet ? "met" : "NOT MET";
    const value = rounded(ratioOf(figure) ?? median(values));
    return [row, what, side, value, base?.side ?? "", boundsText(must), verdict];
  });
  return rows.length === 0 ? "" : unique(drawTable([COMPARED, ...rows]));
}

const unique = (table: string) => [...new Set(table.split("\n"))].join("\n");

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
