/** Rows about filling: how fast, with what memory, and what it asks of others. */
import { join } from "node:path";
import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Runtime } from "../tests/support/program.ts";
import { identityOf } from "../tests/cluster/objects.ts";
import { type Figure, median } from "./figures.ts";
import type { Ground } from "./ground.ts";
import {
  type Bench,
  fill,
  type Filling,
  gather,
  KIB_PER_MIB,
  MENDED,
  peersOf,
  RUNTIMES,
  settle,
  SHORT_SECRETS,
  withSide,
} from "./measure.ts";
import { arrange, countFilled, mint } from "./arrangement.ts";
import { bundle, FOUND_VALID, limit, peer, type Side, source } from "./sides.ts";

/** The limit says the first and the last of its writes. */
const LIMIT_LINES = 2;
/** Upstream is timed so long: it writes some five a second. */
const PEER_S = 30;
const PEER_SECRETS = 300;
/** Of 10,000 Secrets: less than half of the manifest's limit. */
const MAX_PEAK_MIB = 100;
/** The controller's own limit of exchanges at a time. */
const EXCHANGES_AT_ONCE = 16;
const ISSUER_DELAY_MS = 50;

/** The bare loop, with a token to write. */
async function bareLoop(
  ground: Ground,
  runtime: Runtime,
  mode: "patch" | "watched" = "patch",
): Promise<Side> {
  const file = join(ground.work, "registry-token");
  writeFileSync(file, await mint(ground, identityOf("bench 0")));
  return limit(runtime, mode, file);
}

export async function fillRow(bench: Bench): Promise<Figure[]> {
  const { ground, runs, isShort, sdks } = bench;
  const sizes = isShort ? [SHORT_SECRETS] : [1_000, 10_000];
  // The short form has no time for what it does not judge.
  const modes = isShort ? ["patch"] as const : ["patch", "watched"] as const;
  const secrets = sizes.at(-1)!;
  const { add, compare, demand, all } = gather("fill");
  const own = RUNTIMES.map(bundle);
  const others = isShort ? [] : [...RUNTIMES.map(source), ...sdks];

  const time = (side: string, size: number, { writingS, totalS, cpuS }: Filling) => {
    add(`from start to last, ${size}`, side, "s", totalS);
    if (size !== secrets) return;
    add("Secrets a second", side, "a second", (size - 1) / writingS);
    add("CPU time", side, "s", cpuS);
  };
  async function fillWith(side: Side, size: number): Promise<void> {
    const isRested = !isShort && size === secrets && own.some(({ name }) => name === side.name);
    const filling = await fill(ground, side, { secrets: size }, {
      async then({ usage }) {
        if (!isRested) return;
        await settle(bench);
        add("anonymous at rest after it", side.name, "MiB", usage().anonymousMiB);
      },
    });
    time(side.name, size, filling);
    add(`peak, ${size}`, side.name, "MiB", filling.peakMiB);
    if (size !== secrets) return;
    add("exchanges", side.name, "", filling.counts.exchanges);
    add("patches", side.name, "", filling.counts.secrets.get("PATCH") ?? 0);
    add("reads", side.name, "", filling.counts.secrets.get("GET") ?? 0);
  }

  for (const size of sizes) {
    for (let run = 0; run < runs; run++) {
      for (const mode of modes) {
        for (const runtime of RUNTIMES) {
          const loop = await bareLoop(ground, runtime, mode);
          time(
            loop.name,
            size,
            await fill(ground, loop, { secrets: size }, { lines: LIMIT_LINES }),
          );
        }
      }
      for (const side of [...own, ...others]) await fillWith(side, size);
      if (bench.peer !== undefined) {
        add(`peak, ${size}`, MENDED, "MiB", await peerPeak(ground, bench.peer, size));
      }
    }
  }
  for (const side of peersOf(bench)) {
    for (let run = 0; run < runs; run++) {
      add("Secrets a second", side.name, "a second", await peerRate(ground, side));
    }
  }

  for (const { name } of own) {
    const base = `${name.split(" ")[0]} limit`;
    compare("Secrets a second", name, base, {});
    // On a machine that the API server shares, what it takes to tell of each write is missing for the next.
    compare("Secrets a second", name, `${base}, watched`, { must: { atLeast: 0.88 } });
    compare("Secrets a second", name, MENDED, { must: { atLeast: 100 } });
    if (!isShort) demand(`peak, ${secrets}`, name, { must: { atMost: MAX_PEAK_MIB } });
    // The loop reads no watch, keeps no log and decodes nothing; with V8's small heap all of it costs more. CPU time and
    // not wall time, which on a busy machine is mostly the others'.
    compare("CPU time", name, base, { must: { atMost: 1.6 }, guard: { atMost: 3 } });
    const once = (count: number) => ({ must: { atMost: count }, guard: { atMost: count } });
    demand("exchanges", name, once(1));
    demand("patches", name, once(secrets));
    // The watch bears all that is needed.
    demand("reads", name, once(0));
  }
  return all();
}

/** How many hold a token after a while; as published it writes the same ones again and again. */
async function peerRate(ground: Ground, side: Side): Promise<number> {
  await arrange(ground, { secrets: 0 });
  await arrange(ground, { secrets: PEER_SECRETS });
  return await withSide(ground, side, async (running) => {
    await running.filled(1);
    await sleep(PEER_S * 1000);
    const [written, filled] = [running.written(), await countFilled(ground)];
    ground.say(`  ${side.name}: ${filled} filled by ${written} writes in ${PEER_S} s`);
    return filled / PEER_S;
  });
}

/** Upstream's, once it has found all of them valid: it would take half an hour to fill them. */
function peerPeak(ground: Ground, file: string, secrets: number): Promise<number> {
  return withSide(ground, peer(file, MENDED, FOUND_VALID), async ({ filled, usage }) => {
    await filled(secrets);
    return usage().peakMiB;
  });
}

export async function identitiesRow({ ground, runs, isShort }: Bench): Promise<Figure[]> {
  const arrangement = isShort
    ? { secrets: SHORT_SECRETS, identities: 250 }
    : { secrets: 10_000, identities: 500 };
  const { secrets, identities } = arrangement;
  const { add, compare, demand, all } = gather("identities");
  const what = `${secrets} Secrets of ${identities} identities`;
  const exchangingS = identities / EXCHANGES_AT_ONCE * ISSUER_DELAY_MS / 1000;
  for (let run = 0; run < runs; run++) {
    for (const runtime of RUNTIMES) {
      if (!isShort) {
        const loop = await bareLoop(ground, runtime);
        const { writingS } = await fill(ground, loop, { secrets }, { lines: LIMIT_LINES });
        add(what, loop.name, "s", Math.max(writingS, exchangingS));
      }
      const delay = ground.issuer.faults.add({
        verb: "exchange",
        delay: ISSUER_DELAY_MS,
        times: Infinity,
      });
      const filling = await fill(ground, bundle(runtime), arrangement).finally(delay.remove);
      add(what, bundle(runtime).name, "s", filling.writingS);
      add("exchanges", bundle(runtime).name, "", filling.counts.exchanges);
    }
  }
  const bounds = { atMost: identities };
  for (const runtime of RUNTIMES) {
    const { name } = bundle(runtime);
    compare(what, name, `${runtime} limit`, { must: { atMost: 1.15 } });
    demand("exchanges", name, { must: bounds, guard: bounds });
  }
  return all();
}

/** Two sizes, so that it shows whether time and memory grow with the number of Secrets and no faster. */
export async function manyRow(bench: Bench): Promise<Figure[]> {
  const { ground, runs } = bench;
  const { add, demand, find, all } = gather("many");
  const [few, many] = [10_000, 50_000] as const;
  for (let run = 0; run < runs; run++) {
    for (const side of RUNTIMES.map(bundle)) {
      for (const secrets of [few, many]) {
        const { writingS, totalS, peakMiB } = await fill(ground, side, { secrets }, {
          async then({ usage }) {
            await settle(bench);
            add(`anonymous at rest, ${secrets}`, side.name, "MiB", usage().anonymousMiB);
          },
        });
        add(`per 10,000 Secrets, ${secrets}`, side.name, "s", writingS / secrets * 10_000);
        add(`from start to last, ${secrets}`, side.name, "s", totalS);
        add(`peak, ${secrets}`, side.name, "MiB", peakMiB);
      }
    }
  }
  for (const { name } of RUNTIMES.map(bundle)) {
    const base = {
      side: `${name}, ${few}`,
      value: median(find(`per 10,000 Secrets, ${few}`, name)!.values),
    };
    demand(`per 10,000 Secrets, ${many}`, name, { base, must: { atMost: 1.2 } });
    const [before, after] = [few, many].map((secrets) =>
      find(`anonymous at rest, ${secrets}`, name)!.values
    );
    for (const [run, mib] of after!.entries()) {
      add("slope per Secret", name, "KiB", (mib - before![run]!) / (many - few) * KIB_PER_MIB);
    }
    demand("slope per Secret", name, { must: { atMost: 1.5 } });
  }
  return all();
}
