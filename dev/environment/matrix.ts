/** Each row on both runtimes, as a test. Runs in the namespaces that environment.ts makes. */
import { assertEquals, assertMatch } from "@std/assert";
import process from "node:process";
import { describe, test } from "node:test";
import { parseArgs } from "node:util";
import { type Runtime, until } from "../program.ts";
import { memoryHierarchy, RUN_VARIABLE } from "./pod.ts";
import { type Outcome, type Row, ROWS } from "./rows.ts";
import { outcomeOn } from "./table.ts";
import { makeWorld, type World } from "./world.ts";

/** Rows at the same time: most of them wait, but each starts a program. */
const AT_ONCE = 6;
/** A busy machine starts the programs of all of them. */
const START_S = 40;
/** Longer than an exchange may take, and the first tries after it. */
const WITHIN_S = 20;
/** What was told is followed by no success so soon. */
const SETTLE_MS = 3_000;
const NAMES: Record<Runtime, string> = { node: "Node", deno: "Deno" };

const { values: { only, runtime: wanted } } = parseArgs({
  options: { only: { type: "string", default: "" }, runtime: { type: "string" } },
});

if (process.env[RUN_VARIABLE] === undefined) throw new Error("run dev/environment/environment.ts");
// As the first process of its namespace it gets no signal that it does not ask for.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(1));

const slots = Array.from({ length: 2 * AT_ONCE }, (_, index) => index + 1);

async function check(row: Row, runtime: Runtime): Promise<void> {
  const slot = slots.shift()!;
  const world = await makeWorld(row, runtime, slot);
  const { pod } = world;
  const expected = outcomeOn(row, runtime);
  let ended: Awaited<ReturnType<World["end"]>> | undefined;
  try {
    await until(() => pod.lines.length > 0 || !pod.isAlive(), "it says something", START_S * 1000);
    await observe(world, expected);
    if (row.rotates) {
      world.rotate(row.rotates);
      await observe(world, expected, 2);
    }
    ended = await world.end();
    const exits = expected.works ? 0 : expected.exits ?? 0;
    assertEquals(ended.status, exits, "the exit status");
    if (expected.works && row.proxy) {
      assertEquals(
        ended.asked.length > 0 ? "proxy" : "itself",
        expected.by,
        "the way to the issuer",
      );
    }
  } catch (error) {
    error.message += `\n${pod.lines.join("\n")}`;
    throw error;
  } finally {
    if (!ended) await world.end();
    slots.push(slot);
  }
}

async function observe(world: World, expected: Outcome, index = 1): Promise<void> {
  const { pod } = world;
  const isOver = () => world.isFilled(index) || !pod.isAlive();
  const within = (expected.withinS ?? WITHIN_S) * 1000;
  if (expected.works) {
    await until(isOver, "the Secret is filled", within);
  } else {
    const isTold = () => pod.lines.some((line) => expected.log.test(line));
    await until(() => isOver() || isTold(), `the log has ${expected.log}`, within);
    if (expected.exits === undefined) {
      await until(isOver, "", SETTLE_MS).catch(() => {});
    } else {
      await pod.exited;
    }
    assertMatch(pod.lines.join("\n"), expected.log);
  }
  assertEquals(world.isFilled(index), expected.works, "the Secret is filled");
}

/** Says why a row cannot be run on this machine. */
function findObstacle({ pod }: Row): string | false {
  if (pod?.memoryMiB && !memoryHierarchy()) return "this machine's control groups limit no memory";
  return false;
}

const runtimes = (["node", "deno"] as const).filter((runtime) =>
  [runtime, undefined].includes(wanted)
);

describe("the environment matrix", { concurrency: AT_ONCE }, () => {
  for (const row of ROWS) {
    for (const runtime of runtimes) {
      const end = outcomeOn(row, runtime).works ? "it works" : "it says why it does not";
      const title = `${row.group}: ${row.what}: ${end}, on ${NAMES[runtime]}`;
      if (!new RegExp(only, "i").test(title)) continue;
      test(title, { skip: findObstacle(row) }, () => check(row, runtime));
    }
  }
});
