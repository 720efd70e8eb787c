/**
 * Says which lines of the product no test reaches, on each runtime, the programs that tests start included. Some lines
 * are for one runtime only. Exit status 1 if there is one that is reached on neither, or a test fails.
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

/** Both runtimes count the lines of a comment, and empty ones, within a function that is never called. */
const NO_CODE = /^(\/\/|\/?\*|$)/;

/** The lines of the product that were not reached, each with its place. */
function findUnreached(runtime: Runtime): Set<string> {
  const dir = mkdtempSync(join(tmpdir(), "coverage-"));
  try {
    const records = MEASURE[runtime](dir).split("end_of_record");
    return new Set(PRODUCT.flatMap((file) => {
      const record = records.find((text) => new RegExp(`^SF:(.*/)?${file}$`, "m").test(text));
      if (record === undefined) throw new Error(`no coverage of ${file} on ${runtime}`);
      const lines = readFileSync(join(ROOT, file), "utf8").split("\n");
      return [...record.matchAll(/^DA:(\d+),0$/gm)]
        .map(([, number]) => ({ number, line: lines[Number(number) - 1]!.trim() }))
        .filter(({ line }) => !NO_CODE.test(line))
        .map(({ number, line }) => `${file}:${number}: ${line}`);
    }));
  } finally {
    rmSync(dir, { recursive: true });
  }
}

const runtimes = process.argv.length > 2 ? process.argv.slice(2) : ["node", "deno"];
if (runtimes.some((name) => !Object.hasOwn(MEASURE, name))) {
  throw new Error("usage: node scripts/coverage.ts [node | deno]");
}
const unreached = (runtimes as Runtime[]).map((runtime) => {
  const lines = findUnreached(runtime);
  console.log([`${runtime}: ${lines.size} lines are not reached`, ...lines].join("\n  "));
  return lines;
});
const never = unreached.reduce((all, lines) => all.intersection(lines));
console.log(never.size === 0 ? "every line is reached" : `never reached: ${[...never].join("\n")}`);
if (never.size > 0) process.exitCode = 1;
