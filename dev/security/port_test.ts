/** The port of the probes under those who ask it for more than it can give. */
import { assert, assertEquals } from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { RUNTIME, until } from "../program.ts";
import { IDENTITY, inWorld, LONG_MS, peakMemory, uid } from "./world.ts";

const SECRETS = 1_000;
/** Few enough for a machine of two cores that has other things to do. */
const CONNECTIONS = 400;
const FLOOD_MS = 5_000;
const PROBE_EVERY_MS = 100;
/** What the kubelet waits. */
const PROBE_TIMEOUT_MS = 5_000;
const FILLED_WITHIN_MS = 2_000;
/** What the manifest allows. */
const MAX_MEMORY_MIB = 256;

/** Asks on a connection of its own, as the kubelet does; returns how long it took (ms). */
async function probe(port: string): Promise<number> {
  const startedAt = performance.now();
  const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
  const headers = { connection: "close" };
  const response = await fetch(`http://127.0.0.1:${port}/healthz`, { headers, signal });
  assertEquals([response.status, await response.text()], [200, "ok\n"]);
  return performance.now() - startedAt;
}

async function probeFor(ms: number, port: string): Promise<number[]> {
  const times: number[] = [];
  for (const endAt = performance.now() + ms; performance.now() < endAt;) {
    times.push(await probe(port));
    await sleep(PROBE_EVERY_MS);
  }
  return times;
}

async function flood(port: string, run: () => Promise<void>): Promise<void> {
  const file = join(import.meta.dirname!, "flood.ts");
  const runtime = RUNTIME === "deno" ? ["run", "--no-prompt", "--allow-net"] : [];
  const child = spawn(process.execPath, [...runtime, file, port, `${CONNECTIONS}`]);
  const ended = once(child, "exit");
  try {
    await run();
  } finally {
    child.kill("SIGKILL");
    await ended;
  }
}

test(
  "Whoever floods the port holds up neither the probes nor the work, and does not end the program",
  { timeout: 3 * LONG_MS },
  inWorld(async (world) => {
    const program = await world.start();
    world.bind(uid(1));
    const create = (name: string) => world.create(name, "team", { [IDENTITY]: uid(1) });
    const isFilled = (name: string) => world.token(name, "team") !== undefined;
    for (let index = 0; index < SECRETS; index++) create(`pull-${index}`);
    await until(() => isFilled(`pull-${SECRETS - 1}`), "all Secrets are filled", LONG_MS);
    await flood(world.port, async () => {
      await sleep(FLOOD_MS / 2);
      create("late");
      const [times] = await Promise.all([
        probeFor(FLOOD_MS / 2, world.port),
        until(() => isFilled("late"), "a new Secret is filled", FILLED_WITHIN_MS),
      ]);
      const sorted = times.toSorted((a, b) => a - b);
      assert(sorted[Math.floor(sorted.length * 0.9)]! < 1_000, `/healthz took ${sorted} ms`);
    });
    assert(program.isAlive());
    assert(peakMemory(program) < MAX_MEMORY_MIB, `${peakMemory(program)} MiB`);
  }),
);
