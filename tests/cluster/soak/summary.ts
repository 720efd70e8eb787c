/** The lines and the table of a long run. */
import {
  type Expired,
  type Figures,
  MAX_EXCHANGES,
  MAX_PATCHES,
  type Minute,
  SECRETS,
  type Usage,
} from "./requirements.ts";
import { drawTable } from "../../support/table.ts";

export function drawMinute(
  { minute, looks, exchanges, patches, conflicts, failures, load, cpuPressure }: Minute,
  expired: number,
  usages: { name: string; usage: Usage }[],
): string {
  const held = usages.map(({ name, usage }) =>
    `${name} ${usage.rssAnonMB.toFixed(0)} MB ${usage.sockets} sockets`
  );
  return [
    `${`${minute}`.padStart(3)} min: ${looks} looks`,
    `${expired} expired`,
    `${exchanges} exchanges`,
    `${patches} patches, ${conflicts} conflicts, ${failures} failures`,
    ...held,
    `load ${load.toFixed(1)}, waiting for a CPU ${cpuPressure} %`,
  ].join("; ");
}

/** Those of one look. */
export function drawExpired(expired: Expired[]): string {
  const { secret, time, sinceKillMs, load, cpuPressure } = expired[0]!;
  const lates = expired.map(({ lateMs }) => lateMs);
  return `EXPIRED at ${time}: ${expired.length} Secrets, ${Math.min(...lates)} to ${
    Math.max(...lates)
  } ms late, ` +
    `${secret} one of them; ${sinceKillMs} ms after a kill; load ${
      load.toFixed(1)
    }, waiting for a CPU ${cpuPressure} %`;
}

export function drawFigures(
  { minutes, kills, expired, unfilled, steady, warnings }: Figures,
): string {
  const sum = (pick: (minute: Minute) => number) =>
    minutes.reduce((total, minute) => total + pick(minute), 0);
  const most = (pick: (minute: Minute) => number) => Math.max(...minutes.map(pick));
  const rows = [
    ["minutes", `${minutes.length}`],
    ["times that a replica was killed", `${kills}`],
    ["Secrets looked at", `${sum(({ looks }) => looks) * SECRETS}`],
    ["looks without an answer", `${sum(({ unanswered }) => unanswered)}`],
    ["Secrets seen with an expired token", `${expired.length}`],
    ["Secrets seen without a token of the identity", `${unfilled.length}`],
    [
      "exchanges",
      `${sum(({ exchanges }) => exchanges)}, ${
        most(({ exchanges }) => exchanges)
      } a minute at most (budget ${MAX_EXCHANGES})`,
    ],
    [
      "patches",
      `${sum(({ patches }) => patches)}, with conflicts ${
        most(({ patches, conflicts }) => patches + conflicts)
      } a minute at most (budget ${MAX_PATCHES})`,
    ],
    ["conflicts", `${sum(({ conflicts }) => conflicts)}`],
    [
      "warnings",
      Object.entries(warnings).map(([msg, times]) => `${msg} ${times}`).join(", ") || "none",
    ],
    ...steady.map(({ name, minutes, first, last }) => [
      `${name}, first and last ${minutes.toFixed(1)} min`,
      `anonymous ${first.rssAnonMB.toFixed(1)} → ${last.rssAnonMB.toFixed(1)} MB, resident ${
        first.rssMB.toFixed(1)
      } → ` +
      `${last.rssMB.toFixed(1)} MB, sockets ${first.sockets.toFixed(1)} → ${
        last.sockets.toFixed(1)
      }, ` +
      `open files ${first.files.toFixed(1)} → ${last.files.toFixed(1)}`,
    ]),
  ];
  return drawTable(rows);
}
