/** What the rows share: what they are given, and how a side is run and what it did is counted. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Runtime } from "../tests/support/program.ts";
import { type Figure, median, type Unit } from "./figures.ts";
import type { Ground } from "./ground.ts";
import type { Usage } from "../tests/support/usage.ts";
import { arrange, type Arrangement, countFilled } from "./arrangement.ts";
import { peer, type Running, type Side, startSide } from "./sides.ts";
import { parseMetrics } from "../tests/support/metrics.ts";

/** A heap shrinks some time after its last work, as its runtime sees fit; nobody is made to collect garbage. */
const SETTLE_MS = 60_000;
/** In the short form, whose guard is wide: a tenth more is left than after 25 s. */
const SHORT_SETTLE_MS = 15_000;

/** In the short form. */
export const SHORT_SECRETS = 5_000;

export const KIB_PER_MIB = 1024;

export const RUNTIMES: Runtime[] = ["node", "deno"];

export interface Bench {
  ground: Ground;
  /** How often each figure is taken. */
  runs: number;
  /** The form for CI: fewer Secrets and runs, and only what it judges. */
  isShort: boolean;
  /** The controllers on the SDK; none if it is not installed. */
  sdks: Side[];
  /** The Go controller, mended and as published. */
  peer: string | undefined;
  publishedPeer: string | undefined;
}

export interface Row {
  name: string;
  /** What it measures, for the reader of `--help`. */
  about: string;
  /** Left out of the short form, which has no time for it. */
  isLong?: boolean;
  /** How often it is taken at the most: it takes minutes. */
  maxRuns?: number;
  run(bench: Bench): Promise<Figure[]>;
}

/** The names of the Go controller. */
export const MENDED = "upstream, mended";
const PUBLISHED = "upstream";

/** The Go controller, in the forms that were given. */
export function peersOf({ peer: mended, publishedPeer: published }: Bench): Side[] {
  return [
    ...mended === undefined ? [] : [peer(mended, MENDED)],
    ...published === undefined ? [] : [peer(published, PUBLISHED)],
  ];
}

/** Runs a side for as long as it is used. */
export async function withSide<T>(
  ground: Ground,
  side: Side,
  use: (running: Running) => Promise<T>,
): Promise<T> {
  const running = await startSide(ground, side);
  try {
    return await use(running);
  } finally {
    await running.stop();
  }
}

/** Waits for memory to come to rest. */
export const settle = ({ isShort }: Bench) => sleep(isShort ? SHORT_SETTLE_MS : SETTLE_MS);

/** What was asked of the API server and of the issuer. */
export interface Counts {
  /** Requests for Secrets by verb, as the API server counted them. */
  secrets: Map<string, number>;
  exchanges: number;
}

async function countRequests({ cluster }: Ground): Promise<Map<string, number>> {
  const counts = new Map<string, number>();
  const metrics = await cluster.kubectl(["get", "--raw", "/metrics"]);
  for (
    const [, labels = "", value] of metrics.matchAll(/^apiserver_request_total\{(.*)\} (\S+)$/gm)
  ) {
    if (!labels.includes('resource="secrets"') || !labels.includes('subresource=""')) continue;
    const verb = /verb="(\w+)"/.exec(labels)?.[1] ?? "";
    counts.set(verb, (counts.get(verb) ?? 0) + Number(value));
  }
  return counts;
}

/** Counts what is asked while something is done. Nobody else asks for Secrets, but that watches end. */
export async function counting<T>(ground: Ground, act: () => Promise<T>): Promise<[T, Counts]> {
  const before = await countRequests(ground);
  ground.issuer.exchanges.length = 0;
  ground.issuer.requests.length = 0;
  const result = await act();
  const after = await countRequests(ground);
  const secrets = new Map(
    [...after].map(([verb, count]) => [verb, count - (before.get(verb) ?? 0)]),
  );
  return [result, { secrets, exchanges: ground.issuer.exchanges.length }];
}

export interface Filling extends Usage {
  /** From the start of the process. */
  totalS: number;
  /** From the first write. */
  writingS: number;
  counts: Counts;
}

export interface FillOptions {
  /** How many lines say that all are written; the limit says the first and the last only. */
  lines?: number;
  /** Taken once all are written, before the side ends. */
  then?: (running: Running) => Promise<void>;
}

/** Has a side fill empty Secrets at full speed, and checks that it did. */
export async function fill(
  ground: Ground,
  side: Side,
  arrangement: Arrangement,
  { lines, then }: FillOptions = {},
): Promise<Filling> {
  const { secrets } = arrangement;
  await arrange(ground, arrangement);
  // From before the start to after the end, so that no request is missed.
  const [filling, counts] = await counting(ground, () =>
    withSide(ground, side, async (running) => {
      const { totalMs, writingMs } = await running.filled(lines ?? secrets);
      const usage = running.usage();
      await then?.(running);
      return { totalS: totalMs / 1000, writingS: writingMs / 1000, ...usage };
    }));
  const filled = await countFilled(ground);
  if (filled !== secrets) {
    throw new Error(`${side.name}: says that all are filled, but ${filled} of ${secrets} are`);
  }
  ground.say(
    `  ${side.name}, ${secrets} Secrets: ${filling.writingS.toFixed(1)} s, ${
      filling.cpuS.toFixed(1)
    } s CPU`,
  );
  return { ...filling, counts };
}

/** Starts several sides, and gives what each uses when all are at rest. */
export async function together(
  bench: Bench,
  sides: Side[],
  secrets: number,
): Promise<Map<string, Usage>> {
  const { ground } = bench;
  const running: Running[] = [];
  try {
    for (const side of sides) {
      const next = await startSide(ground, side);
      running.push(next);
      // One after the other, as they share two cores.
      if (side.hasReadyz) await next.ready();
      else await next.filled(secrets);
    }
    ground.say(`  ${running.length} at rest with ${secrets} Secrets`);
    await settle(bench);
    return new Map(running.map(({ side, usage }) => [side.name, usage()]));
  } finally {
    await Promise.all(running.map((each) => each.stop()));
  }
}

/** The program's own metrics. */
export async function metricsOf({ port }: Running): Promise<Map<string, number>> {
  return parseMetrics(await (await fetch(`http://127.0.0.1:${port}/metrics`)).text());
}

/** Gathers the values of figures, by what they are of. */
export function gather(row: string) {
  const figures = new Map<string, Figure>();
  const find = (what: string, side: string) => figures.get(`${what}\n${side}`);
  return {
    add(what: string, side: string, unit: Unit, value: number): void {
      const figure = find(what, side) ?? { row, what, side, unit, values: [] };
      figure.values.push(value);
      figures.set(`${what}\n${side}`, figure);
    },
    find,
    /** Compares a figure with the same one of another side; a second comparison stands beside the first. */
    compare(
      what: string,
      side: string,
      base: string,
      bounds: Pick<Figure, "must" | "guard">,
    ): void {
      const [own, other] = [find(what, side), find(what, base)];
      if (!own || !other) return;
      const { must: _must, guard: _guard, ...plain } = own;
      const key = `${what}\n${side}${own.base ? `\n${base}` : ""}`;
      figures.set(key, { ...plain, base: { side: base, value: median(other.values) }, ...bounds });
    },
    /** Says what a figure must be, or its ratio to something else. */
    demand(what: string, side: string, bounds: Pick<Figure, "must" | "guard" | "base">): void {
      const own = find(what, side);
      if (own) Object.assign(own, bounds);
    },
    all: (): Figure[] => [...figures.values()],
  };
}
