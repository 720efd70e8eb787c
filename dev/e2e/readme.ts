/** The README's YAML and its commands, as they stand. */
import * as fs from "node:fs";
import { join } from "node:path";
import { run } from "../cluster/processes.ts";
import { type Context, ROOT } from "./context.ts";

/** The fenced blocks of a language. */
function blocks(language: string): string[] {
  const readme = fs.readFileSync(join(ROOT, "README.md"), "utf8");
  return [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, "gms"))].map(([, block = ""]) => block);
}

/** The first block that holds this text. */
export function needBlock(text: string, language = "yaml"): string {
  const block = blocks(language).find((block) => block.includes(text));
  if (block === undefined) throw new Error(`README.md has no ${language} with "${text}"`);
  return block;
}

/** Runs the first block of commands that holds this text, where the README's files are; they begin with their names. */
export async function runCommands({ cluster, work }: Context, text: string): Promise<string> {
  const folder = join(work, "readme");
  fs.mkdirSync(folder, { recursive: true });
  for (const block of blocks("yaml")) {
    const [, name] = /^# (\S+\.yaml)$/m.exec(block) ?? [];
    if (name) fs.writeFileSync(join(folder, name), block);
  }
  fs.copyFileSync(join(ROOT, "deploy.yaml"), join(folder, "deploy.yaml"));
  const env = { ...cluster.environment, NO_PROXY: "*" };
  return await run("sh", ["-ec", needBlock(text, "sh")], { cwd: folder, env });
}
