/**
 * Tries the properties with ever other cases, until so many of each were tried or so many minutes are over. At the first
 * that does not hold it says with which case, how to run it again, and ends with exit status 1.
 *
 * Usage: npm run fuzz [-- --minutes N | --runs N] [--seed N]
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { RUNTIME } from "../support/program.ts";
import { PROPERTIES, type Property } from "./properties.ts";
import { WHOLES } from "./wholes.ts";

/** Of each property, before the next has its turn. */
const CASES_A_ROUND = 1_000;
const DEFAULT_RUNS = 100_000;

const { values } = parseArgs({
  options: { minutes: { type: "string" }, runs: { type: "string" }, seed: { type: "string" } },
});
const endsAt = performance.now() + Number(values.minutes ?? Infinity) * 60_000;
const runs = Number(values.runs ?? (values.minutes === undefined ? DEFAULT_RUNS : Infinity));
const firstSeed = Number(values.seed ?? Date.now() % 2 ** 31);
if ([endsAt, runs, firstSeed].some(Number.isNaN)) {
  throw new Error("--minutes, --runs and --seed take a number");
}

const tried = new Map<Property, number>();

/** Whether the property held. */
async function tryOut(property: Property, cases: number, seed: number): Promise<boolean> {
  const numRuns = Math.ceil(cases * (property.share ?? 1));
  try {
    await property.run({ numRuns, seed });
  } catch (error) {
    console.log(`${(error as Error).message}\n${(error as Error).cause}`);
    console.log(
      `does not hold: ${property.title}\nagain: npm run fuzz -- --seed ${seed} --runs ${cases}`,
    );
    return false;
  }
  tried.set(property, (tried.get(property) ?? 0) + numRuns);
  return true;
}

async function tryAll(): Promise<boolean> {
  for (
    let done = 0, seed = firstSeed;
    done < runs && performance.now() < endsAt;
    done += CASES_A_ROUND, seed++
  ) {
    const cases = Math.min(CASES_A_ROUND, runs - done);
    for (const property of [...PROPERTIES, ...WHOLES]) {
      if (!await tryOut(property, cases, seed)) return false;
    }
  }
  return true;
}

const isWell = await tryAll();
for (const { close } of WHOLES) await close?.();
for (const [{ title }, cases] of tried) console.log(`${`${cases}`.padStart(10)}  ${title}`);
const sum = [...tried.values()].reduce((a, b) => a + b, 0);
console.log(
  `${sum} cases on ${RUNTIME} from seed ${firstSeed}: ${
    isWell ? "all properties hold" : "one does not hold"
  }`,
);
process.exitCode = isWell ? 0 : 1;
