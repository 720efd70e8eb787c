/** The table of all rows, for the terminal and for the README. */
import type { Runtime } from "../program.ts";
import type { Outcome } from "./run.ts";

const COLUMNS = ["fault", "what a user sees", "tokens expired", "back to normal after"];
/** Widest column on the terminal; the Markdown has all of it. */
const MAX_WIDTH = 70;
/** Enough of a message to know it again. */
const MAX_QUOTE = 110;
const NAMES: Record<Runtime, string> = { node: "Node", deno: "Deno" };

/** A row for each fault, with the runtimes' figures side by side. */
export function tabulate(outcomes: Outcome[]): string[][] {
  const rows = Map.groupBy(outcomes, ({ row }) => row);
  return [...rows].map(([row, ofRow]) => [
    row.fault,
    describe(ofRow),
    byRuntime(
      ofRow,
      ({ expired, secrets, expiredMs }) =>
        expired === 0 ? "none" : `${expired} of ${secrets}, up to ${inSeconds(expiredMs)}`,
    ),
    byRuntime(ofRow, ({ backMs }) => backMs === undefined ? "never" : inSeconds(backMs)),
  ]);
}

export function drawTable(outcomes: Outcome[]): string {
  const rows = [COLUMNS, ...tabulate(outcomes)].map((row) => row.map((cell) => cell.slice(0, MAX_WIDTH)));
  const widths = COLUMNS.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) => row.map((cell, column) => cell.padEnd(widths[column]!)).join("  ").trimEnd()).join("\n");
}

export function writeMarkdown(outcomes: Outcome[]): string {
  const rows = [COLUMNS, COLUMNS.map(() => "---"), ...tabulate(outcomes)];
  return rows.map((row) => `| ${row.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |\n`).join("");
}

/** An event, a line of the log and the counters: of each the one that the row asks for, else the first. */
function describe(ofRow: Outcome[]): string {
  const { row } = ofRow[0]!;
  const pick = (lines: string[], pattern?: RegExp) => lines.find((line) => pattern?.test(line)) ?? lines[0];
  const event = pick(ofRow.flatMap(({ events }) => events), row.event);
  const logged = pick(ofRow.flatMap(({ log }) => log), row.log?.[0]);
  const counters = new Set(ofRow.flatMap(({ metrics }) => metrics));
  const parts = [
    ...event ? [`Warning event \`${shorten(event)}\``] : [],
    ...logged ? [`log \`${shorten(logged)}\``] : [],
    ...counters.size > 0 ? [[...counters].map((series) => `\`${series}\``).join(", ")] : [],
  ];
  return parts.join("; ") || "nothing";
}

/** Without what differs from run to run, and no longer than what tells one fault from another. */
function shorten(line: string): string {
  const general = line.replaceAll(/[0-9a-f]{40}\/[0-9a-f]{16}/g, "IDENTITY").replaceAll(
    /\d+(\.\d+){3}(:\d+)?/g,
    "ADDRESS",
  );
  return general.length <= MAX_QUOTE ? general : `${general.slice(0, MAX_QUOTE)}…`;
}

/** One figure where they are the same. */
function byRuntime(ofRow: Outcome[], figure: (outcome: Outcome) => string): string {
  const figures = ofRow.map((outcome) => figure(outcome));
  if (new Set(figures).size === 1) return figures[0]!;
  return ofRow.map(({ runtime }, index) => `${figures[index]} (${NAMES[runtime]})`).join(", ");
}

const inSeconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;
