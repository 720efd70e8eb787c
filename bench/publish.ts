/** What is left of a bench: the tables, and for docs/bench the figures too. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Figure } from "./figures.ts";
import type { Machine } from "./machine.ts";
import { drawCompared, drawMeasured } from "./table.ts";
import { ROOT } from "../tests/support/paths.ts";

const DOCS = join(ROOT, "docs", "bench");

export interface Report extends Machine {
  runs: number;
  isShort: boolean;
  figures: Figure[];
}

/** For a terminal. */
export function drawReport(report: Report): string {
  const { figures } = report;
  return [origin(report), drawMeasured(figures), drawCompared(figures)].filter(Boolean).join(
    "\n\n",
  );
}

const origin = ({ date, machine, versions, runs }: Report) =>
  `${date}, ${machine}\n${versions}\n${runs} ${runs === 1 ? "run" : "runs"}`;

/** Writes what is checked in. */
export function publish(report: Report): void {
  mkdirSync(DOCS, { recursive: true });
  writeFileSync(join(DOCS, "bench.json"), JSON.stringify(report, null, 2) + "\n");
  writeFileSync(join(DOCS, "README.md"), drawPage(report));
}

/** docs/bench/README.md; a test holds the one that is checked in to its figures. */
export function drawPage(report: Report): string {
  const { figures } = report;
  const block = (text: string) => `\`\`\`text\n${text}\n\`\`\``;
  return [
    "# Measured",
    "Written by `npm run bench -- --publish`. What the rows measure: `npm run bench -- --help`.",
    block(origin(report)),
    "## Figures",
    block(drawMeasured(figures)),
    "## Compared, and the aims",
    "A ratio where there is a side that it is the ratio to; else the figure itself.",
    block(drawCompared(figures)),
  ].join("\n\n") + "\n";
}
