/** Each row on both runtimes, as a test. Runs in the namespaces that environment.ts makes. */
import { assertEquals, assertMatch } from "@std/assert";
import process from "node:process";
import { describe, test } from "node:test";
import { parseArgs } from "node:util";
import type { Runtime } from "../support/program.ts";
import { until } from "../support/until.ts";
import { type Outcome, type Row, ROWS } from "./rows.ts";
import { outcomeOn } from "./table.ts";
import { makeWorld, type World } from "./world.ts";

/** Rows at the same time: most of them wait, but each starts a program. */
const AT_ONCE = 8;
/** A busy machine starts the programs of all of them. */
const START_S = 90;
/** Longer than an exchange may take, and the first tries after it. */
const WITHIN_S = 40;
/** What was told is followed by no success so soon. */
const SETTLE_MS = 3_000;
/** Of one row, all in all. */
const TIMEOUT_MS = 240_000;
const NAMES: Record<Runtime, string> = { node: "Node", deno: "Deno" };

const { values: { only, runtime: wanted } } = parseArgs({
  options: { only: { type: "string", default: "" }, runtime: { type: "string" } },
});

if (!process.env.TMPDIR?.includes("psu-environment-")) {
  throw new Error("run tests/environment/environment.ts");
}
const slots = Array.from({ length: 2 * AT_ONCE }, (_, index) => index + 1);

async function check(row: Row, runtime: Runtime): Promise<void> {
  const slot = slots.shift()!;
  const toEnd: (() => unknown)[] = [];
  try {
    await judge(row, outcomeOn(row, runtime), await makeWorld(row, runtime, slot, toEnd));
  } finally {
    for (const end of toEnd.toReversed()) await end();
    slots.push(slot);
  }
}

async function judge(row: Row, expected: Outcome, world: World): Promise<void> {
  const { pod } = world;
  try {
    await until(() => pod.lines.length > 0 || !pod.isAlive(), "it says something", START_S * 1000);
    await observe(world, row.rotates ? { works: true } : expected);
    if (row.rotates) {
      await world.rotate(row.rotates);
      await observe(world, expected, 2);
    }
    const status = await pod.end("SIGTERM");
    const exits = expected.works ? 0 : expected.exits ?? 0;
    assertEquals(status, exits, "the exit status");
    if (!expected.works || !row.proxy) return;
    assertEquals(world.isProxyUsed() ? "proxy" : "itself", expected.by, "the way to the issuer");
  } catch (error) {
    throw new Error(`${error.message}\n${pod.lines.join("\n")}`);
  }
}

async function observe(world: World, expected: Outcome, index = 1): Promise<void> {
  const { pod } = world;
  const isOver = () => world.isFilled(index) || !pod.isAlive();
  const within = WITHIN_S * 1000;
  if (expected.works) {
    await until(isOver, "the Secret is filled", within);
  } else {
    const told = patternOf(expected.log);
    const isTold = () => pod.lines.some((line) => told.test(line));
    await until(() => isOver() || isTold(), `the log has ${told}`, within);
    if (expected.exits !== undefined) await pod.exited;
    else if (!isOver()) await until(isOver, "", SETTLE_MS).catch(() => {});
    assertMatch(pod.lines.join("\n"), told);
  }
  if (!pod.isAlive()) await pod.exited;
  assertEquals(world.isFilled(index), expected.works, "the Secret is filled");
}

const patternOf = (quotes: string[]) =>
  new RegExp(quotes.map((quote) => RegExp.escape(quote).replaceAll("…", ".*")).join("|"));

const runtimes = (["node", "deno"] as const).filter((runtime) =>
  wanted === undefined || runtime === wanted
);

describe("the environment matrix", { concurrency: AT_ONCE }, () => {
  for (const row of ROWS) {
    for (const runtime of runtimes) {
      const end = outcomeOn(row, runtime).works ? "it works" : "it says why it does not";
      const title = `${row.group}: ${row.what}: ${end}, on ${NAMES[runtime]}`;
      if (!new RegExp(only, "i").test(title)) continue;
      test(title, { timeout: TIMEOUT_MS }, () => check(row, runtime));
    }
  }
});
