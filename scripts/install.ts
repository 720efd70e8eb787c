/**
 * Keeps install.yaml: what `npm run manifest` prints for Deno, in the repository, so that who installs it needs a clone and
 * no npm.
 *
 * Usage: npm run install-yaml (writes it), npm run check (compares it: --check)
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { bundle } from "./bundle.ts";
import { defaultImage, type Options, selfContained } from "./manifest.ts";

const ROOT = join(import.meta.dirname!, "..");
const FILE = "install.yaml";
const read = (name: string) => readFileSync(join(ROOT, name), "utf8");

/** The manifest with the program in it, as the sources give it now. */
export async function makeInstall(runtime: Options["runtime"]): Promise<string> {
  const options = { runtime, image: defaultImage(read("Containerfile"), runtime) };
  return selfContained(read("deploy.yaml"), await bundle("main.ts"), options);
}

async function main(args: string[]): Promise<void> {
  const made = await makeInstall("deno");
  if (!args.includes("--check")) writeFileSync(join(ROOT, FILE), made);
  else if (!existsSync(join(ROOT, FILE)) || read(FILE) !== made) {
    console.error(`${FILE} is not what the sources give: npm run install-yaml writes it anew`);
    process.exitCode = 1;
  }
}

if (import.meta.main ?? process.argv[1] === import.meta.filename) await main(process.argv.slice(2));
