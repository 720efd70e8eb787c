/** Reads the project's Markdown: which documents there are, their fenced blocks, tables, lists, headings and links. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./paths.ts";

const markdownIn = (folder: string) =>
  readdirSync(join(ROOT, folder)).filter((name) => name.endsWith(".md")).sort().map((name) =>
    join(folder, name)
  );

/** What users read, in the order in which a block is looked for. */
export const DOCUMENTS = ["README.md", ...markdownIn("docs")];
/** Those, and what else is read: of contributors, and of figures. */
export const PAGES = [
  ...markdownIn("."),
  ...markdownIn("docs"),
  "docs/bench/README.md",
  "kustomize/README.md",
];

export interface Block {
  language: string;
  text: string;
  /** What the HTML comment right above it says, which readers do not see. */
  mark: string;
  /** Where it begins. */
  line: number;
}

/** The fenced blocks, without what they are indented by in a list. */
export function blocksOf(markdown: string): Block[] {
  return [...markdown.matchAll(/^( *)```(\w+)\n(.*?)^\1```$/gms)].map((
    { 1: indent = "", 2: language = "", 3: text = "", index },
  ) => ({
    language,
    text: text.replaceAll(new RegExp(`^${indent}`, "gm"), ""),
    mark: /<!-- (?:(?!-->)[^])* -->\s*$/.exec(markdown.slice(0, index))?.[0].slice(5).replace(
      / -->\s*$/,
      "",
    ) ?? "",
    line: markdown.slice(0, index).split("\n").length,
  }));
}

/** What is not in a fenced block. */
export function proseOf(markdown: string): string {
  return markdown.replace(/^( *)```.*?^\1```$/gms, "");
}

/** What stands between a heading and the next, without the blocks. */
function proseUnder(markdown: string, heading: string): string {
  const prose = proseOf(markdown);
  const start = prose.indexOf(`\n${heading}\n`);
  if (start === -1) throw new Error(`there is no "${heading}"`);
  return prose.slice(start + heading.length + 2).split(/^#{1,6} /m)[0]!;
}

/** The items of the lists under a heading, each on one line. */
export function itemsUnder(markdown: string, heading: string): string[] {
  return itemsIn(proseUnder(markdown, heading));
}

/** The items of the lists in some prose, each on one line. */
export function itemsIn(prose: string): string[] {
  return [...prose.matchAll(/^- (.*\n(?: {2,}\S.*\n|\n(?= ))*)/gm)].map(([, item = ""]) =>
    item.replace(/\s+/g, " ").trim()
  );
}

/** The rows of the tables under a heading, each with its cells; the first is the table's head. */
export function tablesUnder(markdown: string, heading: string): string[][] {
  const lines = proseUnder(markdown, heading).split("\n").filter((line) =>
    line.startsWith("|") && !/^\|[ |:-]+$/.test(line)
  );
  return lines.map((line) => line.split(/(?<!\\)\|/).slice(1, -1).map((cell) => cell.trim()));
}

/** The names by which links reach the headings, as GitHub makes them. */
export function anchorsOf(markdown: string): Set<string> {
  const anchors = new Set<string>();
  for (const [, heading = ""] of proseOf(markdown).matchAll(/^#{1,6} (.+)$/gm)) {
    const slug = heading.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, "").replaceAll(" ", "-");
    const others = [...anchors].filter((other) => other.replace(/-\d+$/, "") === slug).length;
    anchors.add(others === 0 ? slug : `${slug}-${others}`);
  }
  return anchors;
}

/** The targets of links and pictures. */
export function linksOf(markdown: string): string[] {
  return [...proseOf(markdown).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target = ""]) => target);
}
