/** The port of the probes under those who ask it for more than it can give. */
import { assert, assertEquals } from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { RUNTIME } from "../support/program.ts";
import { inWorld, LONG_MS, peakMemory } from "./gates.ts";
import { IDENTITY } from "../support/names.ts";
import { uid } from "../support/secrets.ts";
import { until } from "../support/until.ts";

const SECRETS = 1_000;
/**
 * Few enough for a machine of two cores that has other tests to run, whose tokens live for seconds. With 3,000 the slowest
 * probe took 0.1 s on Deno, 1.5 s on Node, with 5,000 Secrets.
 */
const CONNECTIONS = 100;
const FLOOD_MS = 2_000;
const PROBE_EVERY_MS = 50;
/** What the kubelet waits, and what a new Secret has. */
const PROBE_TIMEOUT_MS = 5_000;
/** What a caller has for what the kernel took over, and what an idle one has: more than either. */
const READ_MS = 6_000;
/** What the manifest allows. */
const MAX_MEMORY_MIB = 256;

/** Asks on a connection of its own, as the kubelet does, and waits no longer than it. */
async function probe(port: string): Promise<void> {
  const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
  const headers = { connection: "close" };
  const response = await fetch(`http://127.0.0.1:${port}/healthz`, { headers, signal });
  assertEquals([response.status, await response.text()], [200, "ok\n"]);
}

async function probeFor(ms: number, port: string): Promise<void> {
  for (const endAt = performance.now() + ms; performance.now() < endAt;) {
    await probe(port);
    await sleep(PROBE_EVERY_MS);
  }
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

/** What the kernel has left to send to callers of the port, in bytes: columns 1 and 4 (proc(5)). */
function unread(port: string): number {
  const local = `:${Number(port).toString(16).toUpperCase().padStart(4, "0")}`;
  // A dual-stack socket is in the second.
  return ["tcp", "tcp6"]
    .flatMap((file) => readFileSync(`/proc/net/${file}`, "utf8").split("\n").slice(1))
    .map((line) => line.trim().split(/\s+/))
    .filter(([, address]) => address?.endsWith(local))
    .reduce((bytes, [, , , , queues = ""]) => bytes + parseInt(queues, 16), 0);
}

test(
  "What a caller does not read is dropped after seconds, and not kept by the kernel for minutes",
  { skip: process.platform !== "linux", timeout: 3 * LONG_MS },
  inWorld(async (world) => {
    world.bind(uid(1));
    const program = await world.start();
    // Long ones, so that the metrics are more than a caller's kernel takes.
    const nameOf = (index: number) => `pull-${index}-${"x".repeat(240)}`;
    for (let index = 0; index < SECRETS; index++) {
      world.create(nameOf(index), "team", { [IDENTITY]: uid(1) });
    }
    const isFilled = () => world.token(nameOf(SECRETS - 1), "team") !== undefined;
    await until(isFilled, "all Secrets are filled", LONG_MS);
    const callers = Array.from({ length: 50 }, () => {
      const caller = connect(+world.port, "127.0.0.1").on("error", () => {}).pause();
      caller.write("GET /metrics HTTP/1.1\r\n\r\n");
      return caller;
    });
    try {
      await until(() => unread(world.port) > 0, "the metrics are under way");
      await until(() => unread(world.port) === 0, "nothing of them is kept", 2 * READ_MS);
      assert(program.isAlive());
    } finally {
      for (const caller of callers) caller.destroy();
    }
  }),
);

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
      await Promise.all([
        probeFor(FLOOD_MS / 2, world.port),
        until(() => isFilled("late"), "a new Secret is filled", PROBE_TIMEOUT_MS),
      ]);
    });
    assert(program.isAlive());
    assert(peakMemory(program) < MAX_MEMORY_MIB, `${peakMemory(program)} MiB`);
  }),
);
