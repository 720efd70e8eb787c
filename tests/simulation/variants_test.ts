/** What the simulation is worth: each variant of the product, which has one fault, breaks an invariant. */
import { assert, assertThrows } from "@std/assert";
import { test } from "node:test";
import { load, replaceOnce, type Simulation } from "./scratch.ts";
import { type Variant, VARIANTS } from "./variants.ts";

/** What a change of the simulation makes of a recorded seed is looked for in so many others. */
const SPARE_SEEDS = 60;
const SPARE_DAYS = 0.5;

/** What breaks in the days of a seed. */
async function findBreach({ makePlan, simulate }: Simulation, seed: number, days: number) {
  return (await simulate(makePlan(seed, days))).breach?.what ?? "nothing";
}

/** Which seed finds a variant, if its own does not any more. */
async function findSeed(simulation: Simulation, { breaks }: Variant): Promise<string> {
  for (let seed = 1; seed <= SPARE_SEEDS; seed++) {
    if (breaks.test(await findBreach(simulation, seed, SPARE_DAYS))) {
      return `foundBy: { seed: ${seed}, days: ${SPARE_DAYS} } does`;
    }
  }
  return `none of ${SPARE_SEEDS} others does`;
}

for (const variant of VARIANTS) {
  const { name, breaks, foundBy: { seed, days } } = variant;
  test(`the simulation finds it when ${name}`, async () => {
    const simulation = await load(variant);
    const found = await findBreach(simulation, seed, days);
    const isFound = breaks.test(found);
    const instead = isFound ? "" : await findSeed(simulation, variant);
    assert(isFound, `seed ${seed} finds ${found}, not ${breaks}: ${instead}`);
  });
}

test("a variant whose text is not in the product once is no variant", () => {
  const variant = { name: "", file: "main.ts", text: "now", by: "then", breaks: /^/ } as const;
  for (const source of ["never", "now and now"]) {
    assertThrows(() => replaceOnce(source, variant), Error, "places with");
  }
  assert(replaceOnce("right now", variant) === "right then");
});
