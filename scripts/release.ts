/**
 * Writes what a release holds into a folder: both forms of the manifest, the program as one file, what it is made of, and
 * the hash of each. The same sources give the same bytes, wherever they lie.
 *
 * Usage: npm run release -- --help
 */
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { bundle } from "./bundle.ts";
import { makeInstall } from "./install.ts";
import { makeSbom } from "./sbom.ts";

const OUT = join("out", "release");
const SUMS = "SHA256SUMS";
const HELP = `npm run release [-- --out DIR]

Writes the files of a release, the same bytes for the same sources:

  install.yaml        the manifest with the program in it, for Deno
  install-node.yaml   the same for Node
  main.js             the program as one file
  sbom.cdx.json       what it is made of, as CycloneDX
  ${SUMS}          the hash of each, for sha256sum --check

  --out DIR   the folder [${OUT}]
`;

async function makeRelease(): Promise<[name: string, text: string][]> {
  const files: [name: string, text: string][] = [
    ["install-node.yaml", await makeInstall("node")],
    ["install.yaml", await makeInstall("deno")],
    ["main.js", await bundle("main.ts")],
    ["sbom.cdx.json", `${JSON.stringify(makeSbom(), null, 2)}\n`],
  ];
  const hash = (text: string) => createHash("sha256").update(text).digest("hex");
  const sums = files.map(([name, text]) => `${hash(text)}  ${name}\n`);
  return [...files, [SUMS, sums.join("")]];
}

async function main(): Promise<void> {
  const { out, help } = parseArgs({
    args: process.argv.slice(2).filter((arg) => arg !== "--"),
    options: {
      out: { type: "string", default: join(import.meta.dirname!, "..", OUT) },
      help: { type: "boolean" },
    },
  }).values;
  if (help) return void process.stdout.write(HELP);
  if (out === "") throw new Error('--out "": must be a folder');
  mkdirSync(out, { recursive: true });
  for (const [name, text] of await makeRelease()) {
    writeFileSync(join(out, name), text);
    console.log(`${join(out, name)}: ${Buffer.byteLength(text)} bytes`);
  }
}

if (import.meta.main ?? process.argv[1] === import.meta.filename) {
  try {
    await main();
  } catch (error) {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 2;
  }
}
