/** Figures: what was measured, in several runs, and how it stands to a base. */

export type Unit = "s" | "ms" | "MiB" | "KiB" | "a second" | "% of a core" | "";

export interface Figure {
  /** The row of the bench. */
  row: string;
  /** What of it, as in "peak". */
  what: string;
  side: string;
  unit: Unit;
  /** One of each run. */
  values: number[];
  /** What it is compared with: a figure of the same bench. */
  base?: { side: string; value: number };
  /** What it is meant to be. */
  must?: Bounds;
  /** What it may never be beyond: the short form fails. Wider than `must`, for machines that are busy. */
  guard?: Bounds;
}

/** Of the ratio to the base if there is one, else of the figure. */
export interface Bounds {
  atMost?: number;
  atLeast?: number;
}

export function median(values: number[]): number {
  return percentile(values, 50);
}

/** The smallest value that so many percent of them do not exceed; between the two middle ones for an even median. */
export function percentile(values: number[], percent: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * percent / 100;
  const [low, high] = [sorted[Math.floor(at)] ?? NaN, sorted[Math.ceil(at)] ?? NaN];
  return low + (high - low) * (at - Math.floor(at));
}

/** The slope of the straight line through points, by least squares. */
export function slope(points: (readonly [x: number, y: number])[]): number {
  const mean = (axis: 0 | 1) => points.reduce((sum, point) => sum + point[axis], 0) / points.length;
  const [meanX, meanY] = [mean(0), mean(1)];
  const covariance = points.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0);
  return covariance / points.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0);
}

/** The ratio to the base; undefined: it has none. */
export const ratioOf = ({ values, base }: Figure) => base && median(values) / base.value;

/** Whether it is within bounds; undefined: it has none. */
export function isWithin(figure: Figure, bounds: Bounds | undefined): boolean | undefined {
  if (!bounds) return undefined;
  const value = ratioOf(figure) ?? median(figure.values);
  return value <= (bounds.atMost ?? Infinity) && value >= (bounds.atLeast ?? -Infinity);
}
