import { assert, assertMatch, assertThrows } from "@std/assert";
import { test } from "node:test";
import { load, replaceOnce, type Simulation } from "./scratch.ts";
import { type Variant, VARIANTS } from "./variants.ts";

/** Most are found in the first seeds; what takes several faults at a time needs more of them. */
const SEEDS = 40;
const DAYS = 2;

/** The first broken invariant. */
async function findBreach({ makePlan, simulate }: Simulation): Promise<string> {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const { breach } = await simulate(makePlan(seed, DAYS));
    if (breach) return breach.what;
  }
  return "nothing";
}

for (const variant of VARIANTS) {
  test(`the simulation finds it when ${variant.name}`, async () => {
    assertMatch(await findBreach(await load(variant)), variant.breaks);
  });
}

test("a variant whose text is not in the product once is no variant", () => {
  const variant: Variant = { name: "", file: "main.ts", text: "now", by: "then", breaks: /^/ };
  for (const source of ["never", "now and now"]) {
    assertThrows(() => replaceOnce(source, variant), Error, "places with");
  }
  assert(replaceOnce("right now", variant) === "right then");
});
