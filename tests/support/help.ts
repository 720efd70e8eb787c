/** `--help` of what a person runs: the comment that its file begins with. */
import { readFileSync } from "node:fs";
import process from "node:process";

/** If it is asked for, prints it and ends the process. */
export function helpIfAsked(file: string): void {
  if (!process.argv.slice(2).includes("--help")) return;
  const [, comment = ""] = /^\/\*\*([^]*?)\*\//.exec(readFileSync(file, "utf8")) ?? [];
  console.log(comment.replace(/^ \* ?/gm, "").trim());
  process.exit(0);
}
