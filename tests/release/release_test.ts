/** What a release holds: the same from wherever it is made, and what its sources give. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { spawnSync } from "node:child_process";
import {
  appendFileSync,
  cpSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { parse } from "yaml";
import { ROOT } from "../support/paths.ts";

const NAMES = ["SHA256SUMS", "install-node.yaml", "install.yaml", "main.js", "sbom.cdx.json"];
const work = mkdtempSync(join(tmpdir(), "release-test-"));
after(() => rmSync(work, { recursive: true }));

const read = (...path: string[]) => readFileSync(join(...path), "utf8");
const filesOf = (folder: string) =>
  Object.fromEntries(readdirSync(folder).sort().map((name) => [name, read(folder, name)]));

/** Runs one of the commands of a clone, from another folder. */
function run(root: string, file: string, ...args: string[]) {
  return spawnSync(process.execPath, [join(root, "scripts", file), ...args], {
    cwd: work,
    encoding: "utf8",
    maxBuffer: 4_000_000,
  });
}

/** A copy of the sources in a deeper folder. */
function clone(name: string): string {
  const root = join(work, name, "deeper", "folder");
  const scripts = readdirSync(join(ROOT, "scripts")).filter((file) => file.endsWith(".ts"));
  const files = ["main.ts", "k8s.ts", "sts.ts", "deploy.yaml", "install.yaml", "Containerfile"];
  const settings = ["package.json", "package-lock.json", "deno.json", "vendor"];
  const packages = ["undici", "jose"].map((name) => `node_modules/${name}`);
  for (
    const path of [
      ...files,
      ...settings,
      ...packages,
      ...scripts.map((file) => `scripts/${file}`),
    ]
  ) {
    cpSync(join(ROOT, path), join(root, path), { recursive: true });
  }
  for (const name of ["esbuild", "@esbuild", "yaml"]) {
    symlinkSync(join(ROOT, "node_modules", name), join(root, "node_modules", name));
  }
  return root;
}

const here = join(work, "here");

test("A release is the same to the byte, wherever its sources lie, and its hashes are right", () => {
  const there = join(work, "there");
  for (const [root, out] of [[ROOT, here], [clone("copy"), there]] as const) {
    const { status, stderr } = run(root, "release.ts", "--out", out);
    assertEquals({ status, stderr }, { status: 0, stderr: "" });
  }
  const files = filesOf(here);
  assertEquals(Object.keys(files), NAMES);
  assert(Object.values(files).every((text) => text.length > 0));
  for (const name of NAMES) assert(read(there, name) === files[name], name);
  assert(!/^ *\/\/ \.\.\//m.test(files["main.js"]!), "a path leads out of the folder");
  const sums = files.SHA256SUMS!.trim().split("\n").map((line) => line.split("  ")[1]);
  assertEquals(sums, NAMES.slice(1));
  const { status, stdout } = spawnSync("sha256sum", ["--check", "--strict", "SHA256SUMS"], {
    cwd: here,
    encoding: "utf8",
  });
  assertEquals({ status, lines: stdout.trim().split("\n").length }, { status: 0, lines: 4 });
});

test("A release has the install.yaml of its commit, and what the commands for each of its files print", () => {
  const { "install.yaml": onDeno, "install-node.yaml": onNode, "main.js": program, ...others } =
    filesOf(here);
  assert(onDeno === read(ROOT, "install.yaml"), "install.yaml: npm run install-yaml");
  assert(onDeno === run(ROOT, "manifest.ts").stdout);
  assert(onNode === run(ROOT, "manifest.ts", "--runtime", "node").stdout);
  assertEquals(others["sbom.cdx.json"], run(ROOT, "sbom.ts").stdout);
  assertEquals(run(ROOT, "bundle.ts").status, 0);
  assert(program === read(work, "out", "main.js"));
});

test("An install.yaml that is not what the sources give fails the check, with one line that says what to type", () => {
  const root = clone("stale");
  const assertStale = () => {
    const { status, stdout, stderr } = run(root, "install.ts", "--check");
    assertEquals({ status, stdout }, { status: 1, stdout: "" });
    assertMatch(stderr, /^install\.yaml [^\n]*npm run install-yaml[^\n]*\n$/);
  };
  appendFileSync(join(root, "install.yaml"), "\n");
  assertStale();
  rmSync(join(root, "install.yaml"));
  assertStale();
  assertEquals(run(root, "install.ts").status, 0);
  assertEquals(run(root, "install.ts", "--check").status, 0);
  appendFileSync(join(root, "main.ts"), "\nexport const EXTRA = 1;\n");
  assertStale();
});

test("A release that is asked for wrongly ends with exit status 2 and one line, and --help says how to ask", () => {
  const file = join(ROOT, "package.json");
  for (const args of [["--into", "x"], ["--out="], ["--out", file]]) {
    const { status, stdout, stderr } = run(ROOT, "release.ts", ...args);
    assertEquals({ status, stdout }, { status: 2, stdout: "" }, args.join(" "));
    assertMatch(stderr, /^[^\n]+\n$/);
  }
  const { status, stdout } = run(ROOT, "release.ts", "--help");
  assertEquals(status, 0);
  for (const word of [...NAMES, "--out DIR"]) assert(stdout.includes(word), word);
});

test("The release workflow takes no tag but the version's", () => {
  const { jobs } = parse(read(ROOT, ".github/workflows/release.yaml"));
  const { run: script } = jobs.check.steps.find(({ id }: { id?: string }) => id === "version");
  const [, version = ""] = /^const VERSION = "(.+)";$/m.exec(read(ROOT, "main.ts")) ?? [];
  const statuses = [`v${version}`, version, `v${version}.1`, "v"].map((tag) =>
    spawnSync("bash", ["-e", "-c", script], {
      cwd: ROOT,
      env: { ...process.env, GITHUB_REF_NAME: tag },
    }).status
  );
  assertEquals(statuses, [0, 1, 1, 1]);
});
