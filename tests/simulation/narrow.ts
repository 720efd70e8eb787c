/** Finds how little of a plan is enough to break the same invariant. */
import { type Part, partOf } from "./plan.ts";
import { type Report, simulate } from "./run.ts";
import type { Plan } from "./stage.ts";

/** The letter of the invariant that a run broke. */
export const letterOf = ({ breach }: Report) => breach?.what.slice(0, "(a)".length);

/** Narrows a plan that breaks an invariant; returns what of it still does. */
export async function narrow(plan: Plan, letter: string): Promise<Part> {
  const breaks = async (part: Part) => letterOf(await simulate(partOf(plan, part))) === letter;
  let keep = await narrowList(plan.actions.map(({ id }) => id), (keep) => breaks({ keep }));
  const secrets = await least(plan.secrets, (secrets) => breaks({ keep, secrets }));
  const replicas = await least(plan.replicas, (replicas) => breaks({ keep, secrets, replicas }));
  keep = await narrowList(keep, (keep) => breaks({ keep, secrets, replicas }));
  return { keep, secrets, replicas };
}

/** Delta debugging: leaves out ever smaller parts of the list, as long as what is left still fails. */
async function narrowList(
  items: number[],
  fails: (items: number[]) => Promise<boolean>,
): Promise<number[]> {
  let size = Math.ceil(items.length / 2);
  while (size > 0) {
    const before = items.length;
    // From the end: what comes after the breach goes at once.
    for (let end = items.length; end > 0; end -= size) {
      const rest = items.toSpliced(Math.max(end - size, 0), Math.min(size, end));
      if (await fails(rest)) items = rest;
    }
    if (size > 1) size = Math.ceil(size / 2);
    else if (items.length === before) size = 0;
  }
  return items;
}

async function least(most: number, fails: (number: number) => Promise<boolean>): Promise<number> {
  for (let number = 1; number < most; number++) if (await fails(number)) return number;
  return most;
}
