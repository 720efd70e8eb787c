/** The lines and the table of a long run. */
import { drawTable } from "../../support/table.ts";
import { type Figures, type Minute, SECRETS, type Usage } from "./requirements.ts";

export function drawMinute(
  minute: Minute,
  expired: number,
  usages: { name: string; usage: Usage }[],
): string {
  return [
    `${`${minute.minute}`.padStart(3)} min: ${minute.looks} looks`,
    `${expired} expired`,
    ...usages.map(({ name, usage: { rssAnonMB, sockets } }) =>
      `${name} ${rssAnonMB.toFixed(0)} MB ${sockets} sockets`
    ),
    minute.machine,
  ].join("; ");
}

export function drawFigures(figures: Figures): string {
  const { minutes, kills, exchanges, patches, expired, unfilled, steady, warnings } = figures;
  const sum = (pick: (minute: Minute) => number) =>
    minutes.reduce((total, minute) => total + pick(minute), 0);
  const list = (counts: Record<string, number>) =>
    Object.entries(counts).map(([what, times]) => `${what} ${times}`).join(", ") || "none";
  return drawTable([
    ["minutes", `${minutes.length}`],
    ["times that a replica was killed", `${kills}`],
    ["Secrets looked at", `${sum(({ looks }) => looks) * SECRETS}`],
    ["looks without an answer", `${sum(({ unanswered }) => unanswered)}`],
    ["Secrets seen with an expired token", `${expired.length}`],
    ["Secrets seen without a token of the identity", `${unfilled.length}`],
    ["exchanges", `${exchanges}`],
    ["patches, by status", list(patches)],
    ["warnings", list(warnings)],
    ...steady.map(({ name, minutes, first, last }) => {
      const change = (what: string, key: keyof Usage, unit = "") =>
        `${what} ${first[key].toFixed(1)} → ${last[key].toFixed(1)}${unit}`;
      return [
        `${name}, first and last ${minutes.toFixed(1)} min`,
        [
          change("anonymous", "rssAnonMB", " MB"),
          change("resident", "rssMB", " MB"),
          change("sockets", "sockets"),
          change("open files", "files"),
        ].join(", "),
      ];
    }),
  ]);
}
