/** Carries out the plans of the seeds that it is given. */
import { parentPort, workerData } from "node:worker_threads";
import { makePlan, partOf } from "./plan.ts";
import { simulate } from "./run.ts";

const { days, part } = workerData;
parentPort!.on("message", async (seed: number) => {
  parentPort!.postMessage({ seed, report: await simulate(partOf(makePlan(seed, days), part)) });
});
