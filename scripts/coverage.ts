/**
 * Says which lines of the product no test reaches, on each runtime, the programs that tests start included. Exit status
 * 1 if there is any, or a test fails.
 *
 * Usage: node scripts/coverage.ts [node | deno]
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

const ROOT = join(import.meta.dirname!, "..");
const PRODUCT = ["main.ts", "k8s.ts", "sts.ts"];
const TESTS = [
  "main_test.ts",
  ...readdirSync(join(ROOT, "tests/controller"))
    .filter((name) => name.endsWith("_test.ts"))
    .map((name) => `tests/controller/${name}`),
  "k8s_test.ts",
  "sts_test.ts",
  "tests/program/program_test.ts",
  "tests/security/hostile_test.ts",
];

type Runtime = "node" | "deno";

/** Runs the tests; returns their coverage as lcov. */
const MEASURE: Record<Runtime, (dir: string) => string> = {
  /** Node hands its own variable for coverage on to the programs that it starts, and merges what they leave. */
  node(dir) {
    const file = join(dir, "lcov");
    run("node", [
      ...["--test", "--experimental-test-coverage", "--test-concurrency=3"],
      ...PRODUCT.map((name) => `--test-coverage-include=${name}`),
      ...["--test-reporter=lcov", `--test-reporter-destination=${file}`],
      ...["--test-reporter=dot", "--test-reporter-destination=stderr"],
      ...TESTS,
    ]);
    return readFileSync(file, "utf8");
  },
  /** Deno does neither: tests/support/program.ts hands the variable on. */
  deno(dir) {
    const flags = ["--no-prompt", "--allow-all", "--parallel", "--reporter=dot"];
    run("deno", ["test", ...flags, ...TESTS], { DENO_COVERAGE_DIR: dir });
    const include = `^file://${ROOT}/(${PRODUCT.join("|")})$`;
    return run("deno", ["coverage", "--lcov", `--include=${include}`, dir]);
  },
};

/** Returns what it wrote on stdout. */
function run(command: Runtime, args: string[], env: Record<string, string> = {}): string {
  const { status, stdout, error } = spawnSync(command, args, {
    cwd: ROOT,
    env: { ...process.env, ...env },
    encoding: "utf8",
    maxBuffer: Infinity,
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (error) throw error;
  if (status !== 0) {
    console.log(`${command} ${args[0]}: exit status ${status}\n${stdout}`);
    process.exitCode = 1;
  }
  return stdout;
}

/** The lines of each file of the product that were never reached. */
function findUncovered(lcov: string): Map<string, number[]> {
  const uncovered = new Map<string, number[]>();
  for (const record of lcov.split("end_of_record")) {
    const file = PRODUCT.find((name) => new RegExp(`^SF:(.*/)?${name}$`, "m").test(record));
    if (file === undefined) continue;
    const lines = [...record.matchAll(/^DA:(\d+),0$/gm)].map(([, line]) => Number(line));
    uncovered.set(file, lines.filter((line) => isCode(file, line)));
  }
  const missing = PRODUCT.filter((file) => !uncovered.has(file));
  if (missing.length > 0) throw new Error(`no coverage of ${missing.join(", ")}`);
  return uncovered;
}

/** Both runtimes count the lines of a comment, and empty ones, within a function that is never called. */
const isCode = (file: string, line: number) => !/^\s*(\/\/|\/?\*|$)/.test(linesOf(file)[line - 1]!);
const linesOf = (file: string) => readFileSync(join(ROOT, file), "utf8").split("\n");

function report(runtime: Runtime): number {
  const dir = mkdtempSync(join(tmpdir(), "coverage-"));
  try {
    const uncovered = findUncovered(MEASURE[runtime](dir));
    for (const [file, lines] of uncovered) {
      const said = lines.length === 0 ? "every line is reached" : `${lines.length} are not`;
      console.log(`${runtime}: ${file}: ${said}`);
      for (const line of lines) {
        console.log(`  ${file}:${line}: ${linesOf(file)[line - 1]!.trim()}`);
      }
    }
    return [...uncovered.values()].flat().length;
  } finally {
    rmSync(dir, { recursive: true });
  }
}

const runtimes = process.argv.length > 2 ? process.argv.slice(2) : ["node", "deno"];
if (runtimes.some((name) => !Object.hasOwn(MEASURE, name))) {
  throw new Error("usage: node scripts/coverage.ts [node | deno]");
}
const count = (runtimes as Runtime[]).map(report).reduce((sum, lines) => sum + lines, 0);
if (count > 0) process.exitCode = 1;
