/** All rows: a table for the terminal, a list for docs/reliability.md. */
import { drawTable } from "../../support/table.ts";
import type { Outcome } from "./outcome.ts";

const COLUMNS = ["fault", "what a user sees", "tokens expired, for up to", "back to normal within"];
/** Widest column on the terminal; the list has all of it. */
const MAX_WIDTH = 70;
/** Enough of a message to know it again. */
const MAX_QUOTE = 110;

/** A row for each fault, with the figures of the runtime that fared worse. */
export function tabulate(outcomes: Outcome[]): string[][] {
  const rows = Map.groupBy(outcomes, ({ row }) => row);
  return [...rows].map(([row, ofRow]) => {
    const worst = (figure: (outcome: Outcome) => number) => Math.max(...ofRow.map(figure));
    const [expired, secrets] = [worst(({ expired }) => expired), worst(({ secrets }) => secrets)];
    const expiredFor = inSeconds(worst(({ expiredMs }) => expiredMs));
    return [
      row.fault,
      describe(ofRow),
      expired === 0 ? "none" : `${expired} of ${secrets}, ${expiredFor}`,
      inSeconds(worst(({ backMs = Infinity }) => backMs)),
    ];
  });
}

export function drawOutcomes(outcomes: Outcome[]): string {
  const rows = [COLUMNS, ...tabulate(outcomes)].map((row) =>
    row.map((cell) => cell.slice(0, MAX_WIDTH))
  );
  return drawTable(rows);
}

export function writeMarkdown(outcomes: Outcome[]): string {
  return tabulate(outcomes).map(([fault, seen, expired = "", back]) => {
    const [count, seconds] = expired.split(", ");
    const tokens = seconds ? `${count} tokens expired, for up to ${seconds}` : "No token expired";
    return `- **${fault}**: ${seen}. ${tokens}; back to normal within ${back}.\n`;
  }).join("");
}

/** The event; else the line of the log; else the counters. Of several the one that the row asks for, else the first. */
function describe(ofRow: Outcome[]): string {
  const { row } = ofRow[0]!;
  const pick = (lines: string[], pattern?: RegExp) =>
    lines.find((line) => pattern?.test(line)) ?? lines[0];
  const event = pick(ofRow.flatMap(({ events }) => events), row.event);
  if (event) return `event \`${shorten(event)}\``;
  const logged = pick(ofRow.flatMap(({ log }) => log), row.log?.[0]);
  if (logged) return `log \`${shorten(logged)}\``;
  const counters = new Set(ofRow.flatMap(({ metrics }) => metrics));
  return [...counters].map((series) => `\`${series}\``).join(", ") || "nothing";
}

/** Without what differs from run to run, and no longer than what tells one fault from another. */
function shorten(line: string): string {
  const general = line
    .replaceAll(/[0-9a-f]{40}\/[0-9a-f]{16}/g, "IDENTITY")
    .replaceAll(/\d+(\.\d+){3}(:\d+)?/g, "ADDRESS")
    .replaceAll(/'\/[^']+'/g, "FILE");
  return general.length <= MAX_QUOTE ? general : `${general.slice(0, MAX_QUOTE)}…`;
}

const inSeconds = (ms: number) => ms === Infinity ? "never" : `${Math.ceil(ms / 1000)} s`;
