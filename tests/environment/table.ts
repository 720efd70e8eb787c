/** docs/environments.md, made from the rows: node tests/environment/table.ts writes it. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "../support/paths.ts";
import type { Runtime } from "../support/program.ts";
import { type Outcome, type Row, ROWS } from "./rows.ts";

const PAGE = join(ROOT, "docs/environments.md");
const HEAD = ["Environment", "Node", "Deno", "What the log has; what to know"];
const INTRO = `# Environments

What the program that ships was tried in, on both runtimes: proxies, private CAs, names with several
addresses, DNS, and what a Pod may lack. It runs with the manifest's own flags, in network and mount
namespaces, behind proxies that tunnel (\`CONNECT\`). \`npm run environment\` (as root) runs every row
again, and fails where one is not as this page has it.

- **works**: the Secret is filled; where there is a proxy, by the proxy. **direct**: without it.
- **no**: it is not filled for as long as it is so. The log says why, and the program tries again; a
  configuration that is refused ends it with exit status 2.

How to set a proxy, a CA or the DNS: [flags](install.md#flags).

`;

export function outcomeOn({ expect }: Row, runtime: Runtime): Outcome {
  return "works" in expect ? expect : expect[runtime];
}

export function drawPage(): string {
  const groups = Map.groupBy(ROWS, ({ group }) => group);
  const rows = [...groups].flatMap(([group, ofGroup]) => [
    [`**${group}**`, "", "", ""],
    ...ofGroup.map((row) => [row.what, cellOf(row, "node"), cellOf(row, "deno"), noteOf(row)]),
  ]);
  const widths = HEAD.map((_, column) =>
    Math.max(...[HEAD, ...rows].map((row) => [...row[column]!].length))
  );
  const draw = (row: string[], fill = " ") =>
    `| ${row.map((cell, column) => cell.padEnd(widths[column]!, fill)).join(" | ")} |\n`;
  return INTRO +
    [draw(HEAD), draw(HEAD.map(() => ""), "-"), ...rows.map((row) => draw(row))].join("");
}

function cellOf(row: Row, runtime: Runtime): string {
  const outcome = outcomeOn(row, runtime);
  if (!outcome.works) return "no";
  return outcome.by === "itself" ? "direct" : "works";
}

function noteOf(row: Row): string {
  const outcomes = [outcomeOn(row, "node"), outcomeOn(row, "deno")];
  const quotes = new Set(outcomes.flatMap((outcome) => outcome.works ? [] : outcome.log));
  const said = [...quotes].map((quote) => `\`${quote}\``);
  return [...said, ...row.note ? [row.note] : []].join("; ");
}

if (import.meta.main) writeFileSync(PAGE, drawPage());
