/**
 * Measures the program on a real kube-apiserver, side by side in one run with the least that the work takes, with a
 * controller on the Kubernetes SDK and with the Go controller of the same name, where its binary is given.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { down } from "../tests/cluster/cluster.ts";
import type { Figure } from "./figures.ts";
import { fillRow, identitiesRow, manyRow } from "./filling.ts";
import { end, prepare } from "./ground.ts";
import { type Bench, type Row, RUNTIMES } from "./measure.ts";
import { describeMachine } from "./machine.ts";
import { besideRow, memoryRow } from "./memory.ts";
import { drawReport, publish, type Report } from "./publish.ts";
import { installSdk, sdk } from "./sides.ts";
import { findBroken } from "./table.ts";
import { idleRow, latencyRow, restartRow, startRow, steadyRow } from "./time.ts";

/** Each begins with about as many Secrets as the one before ended with. */
const ROWS: Row[] = [
  { name: "start", about: "from the start to /readyz, with no Secret", run: startRow },
  { name: "latency", about: "from the creation of a Secret to its token", run: latencyRow },
  {
    name: "beside",
    about: "memory with 100 MB of other Secrets beside",
    isLong: true,
    maxRuns: 2,
    run: besideRow,
  },
  {
    name: "memory",
    about: "memory at rest, with 0, 1,000 and 10,000 Secrets",
    maxRuns: 2,
    run: memoryRow,
  },
  { name: "fill", about: "filling 10,000 Secrets of one identity", run: fillRow },
  {
    name: "identities",
    about: "filling 10,000 Secrets of 500 identities, the issuer taking 50 ms",
    run: identitiesRow,
  },
  { name: "restart", about: "start with 10,000 valid Secrets", run: restartRow },
  {
    name: "idle",
    about: "CPU and requests with 10,000 valid Secrets, for 5 minutes",
    maxRuns: 2,
    run: idleRow,
  },
  {
    name: "steady",
    about: "what other clients notice while 10,000 tokens fall due",
    isLong: true,
    run: steadyRow,
  },
  { name: "many", about: "50,000 Secrets", isLong: true, maxRuns: 1, run: manyRow },
];
/** Enough for a median and a spread. */
const RUNS = 5;

const HELP = `Usage: node bench/bench.ts [flags]

  --short                what CI runs: fewer Secrets, one run, and no SDK; exit status 1 on a regression
  --only ROW             that row only (repeatable); rows are listed below
  --runs N               how often each figure is taken  [${RUNS}, with --short 1]; what takes minutes, less often
  --peer FILE            the Go controller's binary, its issuer line mended; as root
  --peer-published FILE  the same as published
  --json FILE            writes the figures there too
  --with FILE            takes the figures of all other rows from there: of a run before, here and with the same versions
  --publish              writes figures and tables to docs/bench
  --dir DIR --port PORT  of the cluster that it brings up and takes down

${
  ROWS.map(({ name, about, isLong }) =>
    `  ${name.padEnd(12)} ${about}${isLong ? "; not in --short" : ""}`
  ).join("\n")
}
`;

const { values: flags } = parseArgs({
  options: {
    short: { type: "boolean", default: false },
    only: { type: "string", multiple: true },
    runs: { type: "string" },
    peer: { type: "string" },
    "peer-published": { type: "string" },
    json: { type: "string" },
    with: { type: "string" },
    publish: { type: "boolean", default: false },
    dir: { type: "string", default: join(tmpdir(), "pull-secret-updater-bench") },
    port: { type: "string", default: "18943" },
    help: { type: "boolean", default: false },
  },
});
const say = (line: string) => console.error(line);

async function main(): Promise<number> {
  if (flags.help) {
    console.log(HELP);
    return 0;
  }
  const isShort = flags.short;
  const rows = ROWS.filter(({ name, isLong }) =>
    flags.only?.includes(name) ?? !(isShort && isLong)
  );
  if (rows.length === 0) {
    throw new Error(`--only: one of ${ROWS.map(({ name }) => name).join(", ")}`);
  }
  if (!isShort) await installSdk();
  const { peer, "peer-published": publishedPeer } = flags;
  const withPeer = peer !== undefined || publishedPeer !== undefined;
  if (!withPeer) say("no --peer: nothing is compared with the Go controller");
  const ground = await prepare({ dir: flags.dir, port: Number(flags.port), withPeer, say });
  const runs = Number(flags.runs ?? (isShort ? 1 : RUNS));
  const bench: Bench = {
    ground,
    runs,
    isShort,
    sdks: isShort ? [] : RUNTIMES.map(sdk),
    peer,
    publishedPeer,
  };
  const figures: Figure[] = [];
  const failures: string[] = [];
  try {
    for (const row of rows) {
      say(`${row.name}: ${row.about}`);
      // What the other rows measured, perhaps for an hour, is not lost with one.
      const measured = row.run({ ...bench, runs: Math.min(runs, row.maxRuns ?? runs) });
      figures.push(
        ...await measured.catch(({ message }: Error) => {
          failures.push(`${row.name} not measured: ${message}`);
          return [];
        }),
      );
    }
  } finally {
    await end(ground);
  }
  const broken = findBroken(figures);
  figures.push(...otherFigures(rows));
  figures.sort((a, b) => rankOf(a) - rankOf(b));
  const report = { ...await describeMachine(), runs, isShort, figures };
  if (flags.json) writeFileSync(flags.json, JSON.stringify(report, null, 2) + "\n");
  if (flags.publish) publish(report);
  console.log(drawReport(report));
  for (const line of broken) console.log(`regression: ${line}`);
  for (const line of failures) console.log(line);
  return failures.length > 0 ? 2 : broken.length > 0 ? 1 : 0;
}

const rankOf = ({ row }: Figure) => ROWS.findIndex(({ name }) => name === row);

/** What was measured before of the rows that were not run now. */
function otherFigures(rows: Row[]): Figure[] {
  if (flags.with === undefined) return [];
  const { figures }: Report = JSON.parse(readFileSync(flags.with, "utf8"));
  return figures.filter(({ row }) => !rows.some(({ name }) => name === row));
}

for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => void down({ dir: flags.dir }).finally(() => process.exit(2)));
}
main().then((status) => process.exitCode = status, (error: Error) => {
  console.error(error.message);
  process.exitCode = 2;
});
