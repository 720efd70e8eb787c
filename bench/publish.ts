/** What is left of a bench: the table, and for docs/bench the figures and pictures too. */
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import type { Figure } from "./figures.ts";
import type { Machine } from "./machine.ts";
import { drawPictures } from "./charts.ts";
import { drawTable } from "./table.ts";
import { ROOT } from "../tests/support/paths.ts";

const DOCS = join(ROOT, "docs", "bench");

export interface Report extends Machine {
  runs: number;
  isShort: boolean;
  figures: Figure[];
}

export function drawReport({ date, machine, versions, runs, figures }: Report): string {
  return `${date}, ${machine}\n${versions}\n${runs} ${runs === 1 ? "run" : "runs"}\n\n${
    drawTable(figures)
  }`;
}

/** Writes what is checked in. */
export function publish(report: Report): void {
  const { date, versions, figures } = report;
  const pictures = drawPictures(figures, `${date}, ${cpus().length} cores for all, ${versions}`);
  mkdirSync(DOCS, { recursive: true });
  for (const [name, svg] of pictures) writeFileSync(join(DOCS, name), svg);
  writeFileSync(join(DOCS, "bench.json"), JSON.stringify(report, null, 2) + "\n");
  writeFileSync(join(DOCS, "README.md"), page(report, [...pictures.keys()]));
}

function page(report: Report, pictures: string[]): string {
  const images = pictures.map((name) =>
    `![${name.replace(".svg", "")} over the number of Secrets](${name})`
  );
  return [
    "# Measured",
    "Written by `npm run bench -- --publish`. What the rows measure: `npm run bench -- --help`.",
    ...images,
    `\`\`\`text\n${drawReport(report)}\n\`\`\`\n`,
  ].join("\n\n");
}
