/** Rows about memory at rest. All sides begin with Secrets that are filled: upstream takes half an hour to fill 10,000. */
import { type Figure, median, slope } from "./figures.ts";
import type { Runtime } from "../tests/support/program.ts";
import type { Ground } from "./ground.ts";
import {
  type Bench,
  gather,
  KIB_PER_MIB,
  MENDED,
  RUNTIMES,
  SHORT_SECRETS,
  together,
} from "./measure.ts";
import { arrange } from "./arrangement.ts";
import { bare, bundle, FOUND_VALID, peer, type Side } from "./sides.ts";

function sidesOf({ sdks, peer: file }: Bench): Side[] {
  return [
    ...RUNTIMES.map(bundle),
    ...sdks,
    ...file === undefined ? [] : [peer(file, MENDED, FOUND_VALID)],
  ];
}

/** By the number of Secrets. */
const MAX_MIB: Record<Runtime, Record<number, number>> = {
  node: { 1_000: 26, 10_000: 42 },
  deno: { 1_000: 24, 10_000: 40 },
};
/** With none, beyond the bare runtime. */
const MAX_OWN_MIB: Record<Runtime, number> = { node: 0, deno: 6 };

export async function memoryRow(bench: Bench): Promise<Figure[]> {
  const { ground, runs, isShort } = bench;
  const sizes = isShort ? [0, SHORT_SECRETS] : [0, 1_000, 10_000];
  const { add, demand, find, all } = gather("memory");
  const sides = sidesOf(bench);
  for (const secrets of sizes) {
    await arrange(ground, { secrets, isFilled: true });
    const resting = secrets === 0 ? [...RUNTIMES.map(bare), ...sides] : sides;
    for (let run = 0; run < runs; run++) {
      for (const [side, usage] of await together(bench, resting, secrets)) {
        add(`peak of a start, ${secrets}`, side, "MiB", usage.peakMiB);
        add(`resident at rest, ${secrets}`, side, "MiB", usage.residentMiB);
        add(`anonymous at rest, ${secrets}`, side, "MiB", usage.anonymousMiB);
      }
    }
  }
  for (const { name } of sides) {
    const rest = sizes.map((secrets) => find(`anonymous at rest, ${secrets}`, name)!.values);
    for (let run = 0; run < runs; run++) {
      const points = sizes.map((secrets, index) => [secrets, rest[index]![run]!] as const);
      add("slope per Secret", name, "KiB", slope(points) * KIB_PER_MIB);
    }
  }
  for (const runtime of RUNTIMES) {
    const { name } = bundle(runtime);
    const bareMiB = median(find("anonymous at rest, 0", bare(runtime).name)!.values);
    const most = { 0: bareMiB + MAX_OWN_MIB[runtime], ...MAX_MIB[runtime] };
    for (const [secrets, mib] of Object.entries(most)) {
      demand(`anonymous at rest, ${secrets}`, name, { must: { atMost: mib } });
    }
    // A heap that has not yet given back what the list took must pass, one that keeps Secrets must not.
    demand("slope per Secret", name, { guard: { atMost: 10 } });
  }
  return all();
}

export async function besideRow(bench: Bench): Promise<Figure[]> {
  const { ground, runs } = bench;
  const { add, demand, find, all } = gather("beside");
  const secrets = 1_000;
  const sides = sidesOf(bench);
  await arrange(ground, { secrets, isFilled: true });
  for (const what of ["without", "with 100 MB beside"]) {
    if (what !== "without") await addOthers(ground);
    for (let run = 0; run < runs; run++) {
      for (const [side, { anonymousMiB }] of await together(bench, sides, secrets)) {
        add(`anonymous, ${what}`, side, "MiB", anonymousMiB);
      }
    }
  }
  await removeOthers(ground);
  const own = RUNTIMES.map((runtime) => bundle(runtime).name);
  for (const { name } of sides) {
    const base = { side: "without", value: median(find("anonymous, without", name)!.values) };
    // What one start differs from the next by.
    const aim = own.includes(name) && { must: { atMost: 1.1 } };
    demand("anonymous, with 100 MB beside", name, { base, ...aim });
  }
  return all();
}

/** As Helm's: large, and none of ours. */
const OTHERS = 110;
const OTHER_BYTES = 900_000;

async function addOthers({ admin }: Ground): Promise<void> {
  const data = { release: Buffer.alloc(OTHER_BYTES, "helm").toString("base64") };
  for (let index = 0; index < OTHERS; index++) {
    await admin.create("/api/v1/namespaces/default/secrets", {
      metadata: { name: `release-${index}` },
      data,
    });
  }
}

async function removeOthers({ admin }: Ground): Promise<void> {
  for (let index = 0; index < OTHERS; index++) {
    await admin.delete(`/api/v1/namespaces/default/secrets/release-${index}`);
  }
}
