/**
 * The fault matrix: the real program against the real API server and the embedded issuer, with a fault between them.
 * Of each fault it tells what a user sees, whether tokens expired, and how soon all was back to normal. The exit status
 * is 1 if any row breaks what is expected of it. The rows are in `rows.ts`.
 *
 * Usage, as root:
 * node tests/cluster/faults/faults.ts [--runtime node|deno|both] [--only NAME]… [--at-once N] [--dir DIR] [--port PORT]
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { Agent } from "undici";
import { seconds } from "../binaries.ts";
import { type Cluster, down, up } from "../cluster.ts";
import { runToTheEnd } from "../ending.ts";
import { helpIfAsked } from "../../support/help.ts";
import type { Runtime } from "../../support/program.ts";
import { createAdmin } from "../admin.ts";
import { createNetwork, removeNetwork } from "./network.ts";
import { drawOutcomes, writeMarkdown } from "./matrix.ts";
import { FAULT_S, type Row, ROWS } from "./rows.ts";
import { type Outcome, runRow } from "./outcome.ts";
import { type Ground, LIFE_S } from "./trial.ts";

/** Programs at the same time: they mostly wait. On a machine that has other work it has to be fewer. */
const AT_ONCE = "20";
/** What the run writes stays below it; and it is soon filled up. */
const ETCD_QUOTA_MB = 256;
const MARKDOWN = "out/faults.md";

helpIfAsked(import.meta.filename!);
const { values: flags } = parseArgs({
  options: {
    runtime: { type: "string", default: "both" },
    only: { type: "string", multiple: true },
    "at-once": { type: "string", default: AT_ONCE },
    dir: { type: "string", default: join(tmpdir(), "pull-secret-updater-faults") },
    port: { type: "string", default: "18643" },
  },
});
const { dir } = flags;
const say = (line: string) => console.log(line);

async function main(): Promise<number> {
  const runtimes = (["node", "deno"] as const).filter((runtime) =>
    ["both", runtime].includes(flags.runtime)
  );
  const rows = ROWS.filter(({ name }) => flags.only?.includes(name) ?? true);
  if (runtimes.length === 0) throw new Error("--runtime: node, deno or both");
  if (rows.length === 0) {
    throw new Error(`--only: one of ${ROWS.map(({ name }) => name).join(", ")}`);
  }
  if (process.getuid?.() !== 0) {
    throw new Error("run it as root: some rows drop packets, in a network of their own");
  }

  await down({ dir }); // what a run that was killed has left
  const ground = await prepare(
    await up({ dir, port: Number(flags.port), etcdQuotaMB: ETCD_QUOTA_MB }, say),
  );
  const began = Date.now();
  const outcomes = await runAll(ground, rows, runtimes);
  await Promise.all([ground.upstream.destroy(), ground.admin.close()]);

  say(drawOutcomes(outcomes));
  mkdirSync("out", { recursive: true });
  writeFileSync(MARKDOWN, writeMarkdown(outcomes));
  const broken = outcomes.filter((outcome) => outcome.broken.length > 0);
  say(
    `${outcomes.length - broken.length} of ${outcomes.length} as expected, after ${
      seconds(began)
    }; see ${MARKDOWN}`,
  );
  return broken.length === 0 ? 0 : 1;
}

async function prepare(cluster: Cluster): Promise<Ground> {
  const work = join(dir, "faults");
  mkdirSync(work);
  const admin = createAdmin(cluster);
  const upstream = new Agent({ allowH2: false, connect: { ca: admin.readCa() } });
  return {
    cluster,
    admin,
    keys: await admin.get("/openid/v1/jwks"),
    upstream,
    network: await createNetwork(),
    work,
  };
}

/** First those that can go on side by side, the longest first; then those that the whole control plane is needed for. */
async function runAll(ground: Ground, rows: Row[], runtimes: Runtime[]): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  const carryOut = async (row: Row, on: Runtime[]) => {
    const results = await runRow(ground, row, on);
    for (const { runtime, broken } of results) {
      say(
        [`${broken.length === 0 ? "ok  " : "FAIL"} ${runtime} ${row.fault}`, ...broken].join(
          "\n       ",
        ),
      );
    }
    outcomes.push(...results);
  };
  const alone = rows.filter(({ isAlone }) => isAlone);
  const others = rows.filter(({ isAlone }) => !isAlone).sort((a, b) => lengthOf(b) - lengthOf(a));
  const queue = others.flatMap((row) => runtimes.map((runtime) => ({ row, runtime })));
  const worker = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) {
      await carryOut(next.row, [next.runtime]);
    }
  };
  await Promise.all(Array.from({ length: Number(flags["at-once"]) }, worker));
  for (const row of alone) await carryOut(row, runtimes);
  const rank = ({ row, runtime }: Outcome) => rows.indexOf(row) * 2 + (runtime === "node" ? 0 : 1);
  return outcomes.sort((a, b) => rank(a) - rank(b));
}

/** At the most, in seconds. */
function lengthOf({ lastsS = FAULT_S, backS, conditions }: Row): number {
  return lastsS + backS + (conditions?.lifeS ?? LIFE_S);
}

runToTheEnd(main, async () => {
  await removeNetwork().catch(console.error);
  await down({ dir });
});
