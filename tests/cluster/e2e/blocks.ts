/** The YAML and the commands of the README and of the pages under docs, as they stand. */
import * as fs from "node:fs";
import { join } from "node:path";
import { run } from "../../support/processes.ts";
import { blocksOf, DOCUMENTS } from "../../support/markdown.ts";
import { type Context } from "./context.ts";
import { ROOT } from "../../support/paths.ts";

/** The fenced blocks of a language, document by document. */
function blocks(language: string): string[] {
  const all = DOCUMENTS.flatMap((page) => blocksOf(fs.readFileSync(join(ROOT, page), "utf8")));
  return all.filter((block) => block.language === language).map(({ text }) => text);
}

/** The first block that holds this text. */
export function needBlock(text: string, language = "yaml"): string {
  const block = blocks(language).find((block) => block.includes(text));
  if (block === undefined) throw new Error(`no document has ${language} with "${text}"`);
  return block;
}

/**
 * Runs the first block of commands that holds this text, where the documents' files are; they begin with their names. `edit`
 * puts in what a user does, or takes off what has been done.
 */
export async function runCommands(
  { cluster, work }: Context,
  text: string,
  edit: (block: string) => string = (block) => block,
): Promise<string> {
  const folder = join(work, "readme");
  fs.mkdirSync(folder, { recursive: true });
  for (const block of blocks("yaml")) {
    const [, name] = /^# (\S+\.yaml)$/m.exec(block) ?? [];
    if (name) fs.writeFileSync(join(folder, name), block);
  }
  for (
    const name of [
      "deploy.yaml",
      "install.yaml",
      "package.json",
      "Containerfile",
      "node_modules",
      "main.ts",
      "scripts",
      "docs",
    ]
  ) {
    fs.rmSync(join(folder, name), { force: true });
    fs.symlinkSync(join(ROOT, name), join(folder, name));
  }
  const env = { ...cluster.environment, NO_PROXY: "*" };
  return await run("sh", ["-ec", edit(needBlock(text, "sh"))], { cwd: folder, env });
}
