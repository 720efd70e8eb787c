/** Simulates weeks of the whole controller, seed by seed, on all cores. */
import { availableParallelism } from "node:os";
import process from "node:process";
import { parseArgs } from "node:util";
import { Worker } from "node:worker_threads";
import { letterOf, narrow } from "./narrow.ts";
import { makePlan, MAX_REPLICAS, type Part, partOf } from "./plan.ts";
import { type Report, simulate } from "./run.ts";

const PROGRESS_MS = 30_000;
const HELP = `Simulates the whole controller in virtual time, through faults that a seed determines.

Usage: simulate.ts [--seeds N] [--days D] [--from SEED] [--narrow] [--log] [--keep A,B,… --secrets N --replicas N]

--seeds     how many seeds (1)
--days      how many days each (7)
--from      the first seed (1)
--narrow    narrow down what breaks an invariant: which actions, Secrets and replicas it takes
--log       print the whole log, if it is one seed
--keep      only these actions of the plan
--secrets   only so many Secrets
--replicas  only so many replicas

Exit status: 0 all invariants held, 1 one was broken, 2 bad arguments.
`;

class ArgumentError extends Error {}

/** As `parseArgs`. */
const parse: typeof parseArgs = (config) => {
  try {
    return parseArgs(config);
  } catch (error) {
    throw new ArgumentError((error as Error).message.replaceAll("\n", " "));
  }
};

export type Options = ReturnType<typeof readOptions>;

/** Throws an error of one line where an argument is bad. */
export function readOptions(args: string[]) {
  const text = { type: "string" } as const;
  const flag = { type: "boolean", default: false } as const;
  const options = {
    seeds: text,
    days: text,
    from: text,
    keep: text,
    secrets: text,
    replicas: text,
  };
  const { values } = parse({ args, options: { ...options, narrow: flag, log: flag, help: flag } });
  function read(
    name: keyof typeof options,
    pattern: RegExp,
    allowed: string,
    fallback?: string,
  ): string | undefined {
    const value = values[name] ?? fallback;
    if (value === undefined || pattern.test(value)) return value;
    throw new ArgumentError(`--${name}="${value}": must be ${allowed}`);
  }
  const count = (name: keyof typeof options, fallback?: string) => {
    const value = read(name, /^[1-9]\d{0,8}$/, "a whole number from 1 on", fallback);
    return value === undefined ? undefined : +value;
  };
  const keep = read("keep", /^(\d+(,\d+)*)?$/, "a comma list of actions");
  const replicas = read(
    "replicas",
    new RegExp(`^[1-${MAX_REPLICAS}]$`),
    `from 1 to ${MAX_REPLICAS}`,
  );
  const part: Part = {
    keep: keep?.split(",").filter((id) => id !== "").map(Number),
    secrets: count("secrets"),
    replicas: replicas === undefined ? undefined : +replicas,
  };
  const seeds = count("seeds", "1")!;
  if (values.log && seeds > 1) throw new ArgumentError("--log: must be with one seed");
  return {
    seeds,
    days: +read("days", /^\d{1,4}(\.\d+)?$/, "a number of days", "7")!,
    from: +read("from", /^\d{1,9}$/, "a whole number", "1")!,
    part,
    isNarrow: values.narrow,
    isLog: values.log,
    isHelp: values.help,
  };
}

/** The command that runs one seed again. */
export function commandOf(seed: number, days: number, { keep, secrets, replicas }: Part): string {
  const list = keep && ` --keep=${keep.join()}`;
  const parts = [list, secrets && ` --secrets ${secrets}`, replicas && ` --replicas ${replicas}`];
  return `npm run simulate -- --from ${seed} --seeds 1 --days ${days}${
    parts.map((part) => part ?? "").join("")
  }`;
}

interface Totals {
  seeds: number;
  exchanges: number;
  writes: number;
  requests: number;
  broken?: { seed: number; report: Report };
}

function add(totals: Totals, seed: number, report: Report): void {
  totals.seeds++;
  totals.exchanges += report.exchanges;
  totals.writes += report.writes;
  totals.requests += report.requests;
  if (report.breach) totals.broken ??= { seed, report };
}

/** Runs the seeds on all cores, up to the first that breaks an invariant. */
async function simulateAll({ seeds, days, from, part }: Options): Promise<Totals> {
  const totals: Totals = { seeds: 0, exchanges: 0, writes: 0, requests: 0 };
  const progress = setInterval(() => print(`${totals.seeds} of ${seeds} seeds`), PROGRESS_MS);
  let next = from;
  const workers = Array.from({ length: Math.min(availableParallelism(), seeds) }, async () => {
    const worker = new Worker(new URL("./worker.ts", import.meta.url), {
      workerData: { days, part },
    });
    while (next < from + seeds && !totals.broken) {
      worker.postMessage(next++);
      const { seed, report } = await new Promise<{ seed: number; report: Report }>(
        (resolve, reject) => {
          worker.once("message", resolve).once("error", reject);
        },
      );
      worker.removeAllListeners("error");
      add(totals, seed, report);
    }
    await worker.terminate();
  });
  await Promise.all(workers);
  clearInterval(progress);
  return totals;
}

async function simulateHere({ days, from, part, isLog }: Options): Promise<Totals> {
  const totals: Totals = { seeds: 0, exchanges: 0, writes: 0, requests: 0 };
  const onLine = isLog ? (line: string) => void process.stdout.write(line) : undefined;
  add(totals, from, await simulate(partOf(makePlan(from, days), part), onLine));
  return totals;
}

const print = (line: string) => void process.stdout.write(`${line}\n`);

async function printBroken(
  { seed, report }: { seed: number; report: Report },
  options: Options,
): Promise<void> {
  const { days, part, isNarrow, isLog } = options;
  const { what, at, lines } = report.breach!;
  if (!isLog) print(lines.join("").trimEnd());
  print(
    `\nseed ${seed} broke an invariant at ${at}:\n${what}\n\nAgain: ${commandOf(seed, days, part)}`,
  );
  if (!isNarrow) return;
  const plan = partOf(makePlan(seed, days), part);
  const narrowed = await narrow(plan, letterOf(report)!);
  print(`Less is enough: ${commandOf(seed, days, narrowed)}`);
  for (const { id, kind } of partOf(plan, narrowed).actions) print(`  ${id} ${kind}`);
}

/** Returns the exit status. */
async function main(args: string[]): Promise<number> {
  const options = readOptions(args);
  if (options.isHelp) {
    process.stdout.write(HELP);
    return 0;
  }
  const { seeds, exchanges, writes, requests, broken } =
    await (options.isLog ? simulateHere : simulateAll)(options);
  if (broken) await printBroken(broken, options);
  const figures = [
    [seeds, "seeds"],
    [seeds * options.days, "simulated days"],
    [exchanges, "exchanges"],
    [writes, "writes"],
    [requests, "requests to the API server"],
    [broken ? 1 : 0, "broken"],
  ] as const;
  print(figures.map(([number, what]) => `${number.toLocaleString("en")} ${what}`).join(", "));
  return broken ? 1 : 0;
}

if (import.meta.main) {
  main(process.argv.slice(2)).then((status) => process.exitCode = status, (error) => {
    process.stderr.write(
      error instanceof ArgumentError ? `${error.message}\n` : `${error.stack}\n`,
    );
    process.exitCode = error instanceof ArgumentError ? 2 : 3;
  });
}
