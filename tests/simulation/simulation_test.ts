import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
} from "@std/assert";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { makePlan, partOf } from "./plan.ts";
import { simulate } from "./run.ts";
import { withVariant } from "./scratch.ts";
import { VARIANTS } from "./variants.ts";
import { ROOT } from "../support/paths.ts";

const RUNTIMES = [["node"], ["deno", "run", "--allow-all", "--no-prompt"]];
const SEEDS = [1, 2, 3, 4, 5];

/** Runs the program as `npm run simulate` does. */
function run(args: string[], folder = ROOT, [command, ...flags] = RUNTIMES[0]!) {
  const file = join(folder, "tests/simulation/simulate.ts");
  return spawnSync(command!, [...flags, file, ...args], { encoding: "utf8", cwd: ROOT });
}

for (const seed of SEEDS) {
  test(`every invariant holds in the days of seed ${seed}`, async () => {
    const { breach, writes } = await simulate(makePlan(seed, 2));
    assertEquals(breach, undefined);
    assert(writes > 0);
  });
}

test("one seed is one run, to the byte of its log", async () => {
  const logs: string[] = [];
  const reports = [];
  for (let time = 0; time < 2; time++) {
    logs.push("");
    reports.push(await simulate(makePlan(7, 1), (line) => logs[time] += line));
  }
  assertEquals(logs[0], logs[1]!);
  assertEquals(reports[0], reports[1]!);
  assertNotEquals((await simulate(makePlan(8, 1))).digest, reports[0]!.digest);
});

test("one seed is one run, whichever runtime it runs on", () => {
  const outputs = RUNTIMES.map((runtime) =>
    run(["--from", "9", "--days", "1", "--log"], ROOT, runtime).stdout
  );
  assertMatch(outputs[0]!, /token written.*\n1 seeds, 1 simulated days, .* 0 broken\n$/s);
  assertEquals(outputs[0], outputs[1]!);
});

test("a part of a plan has only what is kept, all else being equal", () => {
  const plan = makePlan(3, 7);
  const part = partOf(plan, { keep: [2, 5], secrets: 1 });
  assertEquals(part, { ...plan, secrets: 1, actions: [plan.actions[2]!, plan.actions[5]!] });
  assertEquals(partOf(plan, {}), plan);
});

test("what breaks an invariant is told, and narrowed down to a command that shows it again", async () => {
  const variant = VARIANTS.find(({ name }) => name === "a docker config is believed to be empty")!;
  await withVariant(variant, (folder) => {
    const { status, stdout } = run(["--seeds", "50", "--days", "1", "--narrow"], folder);
    assertEquals(status, 1);
    assertMatch(stdout, /\nseed \d+ broke an invariant at 2027-.*:\n\(c\) .* loses something/);
    assertMatch(stdout, /, 1 broken\n$/);
    const [, command] = /Less is enough: npm run simulate -- (.*)/.exec(stdout)!;
    const again = run(command!.split(" "), folder);
    assertEquals(again.status, 1);
    assertStringIncludes(again.stdout, "loses something");
    assert(/--keep=(\S*)/.exec(command!)![1]!.split(",").length <= 2, command);
  });
});

for (
  const args of [
    ["--seeds", "0"],
    ["--seeds", "x"],
    ["--days", "-1"],
    ["--from", ""],
    ["--keep", "a"],
    ["--replicas", "4"],
    ["--unknown"],
    ["more"],
    ["--log", "--seeds", "2"],
  ]
) {
  test(`bad arguments end it with one line and exit status 2: ${args.join(" ")}`, () => {
    const { status, stdout, stderr } = run(args);
    assertEquals([status, stdout], [2, ""]);
    assertMatch(stderr, /^.+\n$/);
  });
}

test("--help says what there is", () => {
  const { status, stdout } = run(["--help"]);
  assertEquals(status, 0);
  assertStringIncludes(stdout, "--narrow");
});
