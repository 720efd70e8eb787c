/**
 * Prints what the image holds as a CycloneDX document, the same for the same checkout: npm's own list of the packages
 * that ship, and the base image that the Containerfile names.
 *
 * Usage: npm run -s sbom
 */
import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

const ROOT = join(import.meta.dirname!, "..");
const read = (name: string) => readFileSync(join(ROOT, name), "utf8");

export interface Component {
  "bom-ref"?: string;
  type: string;
  name: string;
  version: string;
  purl: string;
  hashes?: { alg: string; content: string }[];
  properties?: unknown;
}

export interface Sbom {
  serialNumber?: string;
  metadata: { timestamp?: string; tools?: unknown; component: Component };
  components: Component[];
  [field: string]: unknown;
}

/** What npm knows of the packages that ship, from the lock file alone. */
function askNpm(version: string): Sbom {
  // npm takes no package without a version, which only the program itself has, and names the package by its folder.
  const dir = mkdtempSync(join(tmpdir(), "sbom-"));
  try {
    const manifest = { ...JSON.parse(read("package.json")), version };
    writeFileSync(join(dir, "package.json"), JSON.stringify(manifest));
    cpSync(join(ROOT, "package-lock.json"), join(dir, "package-lock.json"));
    const args = [
      "sbom",
      "--sbom-format=cyclonedx",
      "--package-lock-only",
      "--omit=dev",
      "--omit=optional",
    ];
    return JSON.parse(execFileSync("npm", args, { cwd: dir, encoding: "utf8" }));
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** The image that the program is put on. */
function baseImage(): Component {
  const [, repository = "", version = ""] =
    /^ARG BASE=docker\.io\/(\S+):(\S+)$/m.exec(read("Containerfile")) ?? [];
  return {
    type: "container",
    name: repository,
    version,
    purl: `pkg:docker/${repository}@${version}`,
  };
}

/** What is left differs neither from run to run nor from one npm to the next: npm 10 notes each folder, npm 11 does not. */
function withoutNotes({ properties: _, ...component }: Component): Component {
  return component;
}

export function makeSbom(): Sbom {
  const [, version = ""] = /^const VERSION = "(.*)";$/m.exec(read("main.ts")) ?? [];
  const { serialNumber: _, metadata, components, ...rest } = askNpm(version);
  const { name } = JSON.parse(read("package.json"));
  const program = { ...withoutNotes(metadata.component), name, type: "application" };
  return {
    ...rest,
    metadata: { component: program },
    components: [...components.map(withoutNotes), baseImage()],
  };
}

if (import.meta.main ?? process.argv[1] === import.meta.filename) {
  console.log(JSON.stringify(makeSbom(), null, 2));
}
