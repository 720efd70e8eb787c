/** All rows as a list, for docs/reliability.md. */
import type { Outcome } from "./outcome.ts";

/** Enough of a message to know it again. */
const MAX_QUOTE = 110;

/** An item for each fault, with the figures of the runtime that fared worse. */
export function writeMarkdown(outcomes: Outcome[]): string {
  const rows = Map.groupBy(outcomes, ({ row }) => row);
  return [...rows].map(([{ fault }, ofRow]) => {
    const worst = (figure: (outcome: Outcome) => number) => Math.max(...ofRow.map(figure));
    const [expired, secrets] = [worst(({ expired }) => expired), worst(({ secrets }) => secrets)];
    const tokens = expired === 0
      ? "No token expired"
      : `${expired} of ${secrets} tokens expired, for up to ` +
        inSeconds(worst(({ expiredMs }) => expiredMs));
    const back = inSeconds(worst(({ backMs = Infinity }) => backMs));
    return `- **${fault}**: ${describe(ofRow)}. ${tokens}; back to normal within ${back}.\n`;
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
