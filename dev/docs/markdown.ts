/** Reads the project's Markdown: its fenced blocks, tables, headings and links. */

export interface Block {
  language: string;
  text: string;
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
    line: markdown.slice(0, index).split("\n").length,
  }));
}

/** What is not in a fenced block. */
export function proseOf(markdown: string): string {
  return markdown.replace(/^( *)```.*?^\1```$/gms, "");
}

/** The rows of the tables under a heading, each with its cells; the first is the table's head. */
export function tablesUnder(markdown: string, heading: string): string[][] {
  const prose = proseOf(markdown);
  const start = prose.indexOf(`\n${heading}\n`);
  if (start === -1) throw new Error(`there is no "${heading}"`);
  const [section = ""] = prose.slice(start + heading.length + 2).split(/^#{1,6} /m);
  const lines = section.split("\n").filter((line) =>
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
