/** Some thousands of cases of each property, always the same; `npm run fuzz` tries others, and more. */
import { test } from "node:test";
import { PROPERTIES } from "./properties.ts";
import { WHOLES } from "./wholes.ts";

const CASES = 1_000;
const SEED = 42;

for (const { title, run, share = 1, close } of [...PROPERTIES, ...WHOLES]) {
  test(title, async () => {
    try {
      await run({ numRuns: Math.ceil(CASES * share), seed: SEED });
    } finally {
      await close?.();
    }
  });
}
