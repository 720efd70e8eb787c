/** Carries out one row: all well, the fault, its end, and all well again; and judges what was seen. */
import { mkdirSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { type LogRecord, type Runtime } from "../../support/program.ts";
import type { Standing } from "../objects.ts";
import { type Look, peakRise, type Sample, total } from "./observe.ts";
import { FAULT_S, nothing, type Row } from "./rows.ts";
import { type Ground, LIFE_S, startTrial, type Trial } from "./trial.ts";
import { METRIC_PREFIX } from "../../support/names.ts";
import { until } from "../../support/until.ts";
import { findToken } from "../../support/leaks.ts";

/** A busy machine starts a dozen programs, and fills their Secrets. */
const FILL_MS = 90_000;
/** Beyond its limit, so that a row that breaks it still says by how much. */
const BACK_FACTOR = 2;
/** After a fault every token is replaced within its life, and all stays well meanwhile. */
const SETTLE_LIVES = 1.5;
const WINDOW_MS = 10_000;
/** Two namespaces, with twenty lists and watches each; four tries of twenty writes; events as many as are allowed. */
const MAX_REQUESTS = 2 * 20 + 4 * 20 + 24;
/** Five tries in ten seconds of each of four identities. */
const MAX_EXCHANGES = 5 * 4;
/** The program answers its probes at once; the machine may be busy. */
const MAX_SILENCE_MS = 10_000;
/** Where the programs' logs of broken rows are kept. */
const LOGS = "out/faults";

export interface Outcome {
  row: Row;
  runtime: Runtime;
  /** Secrets that held an expired token, and the longest that one did. */
  expired: number;
  expiredMs: number;
  secrets: number;
  /** From the fault's end until all was well; undefined: never. */
  backMs?: number;
  /** In any 10 s from the fault's beginning on. */
  requests: number;
  exchanges: number;
  /** The Warning events, as "reason: note". */
  events: string[];
  /** How many warnings are in the log. */
  warnings: number;
  /** Each of them once, as "msg: error". */
  log: string[];
  /** The counters of trouble that rose. */
  metrics: string[];
  /** What is not as it has to be. */
  broken: string[];
}

interface Times {
  injectedAt: number;
  mendedAt: number;
  backAt: number | undefined;
}

export async function runRow(ground: Ground, row: Row, runtimes: Runtime[]): Promise<Outcome[]> {
  const conditions = row.conditions ?? {};
  const trials = await Promise.all(
    runtimes.map((runtime) => startTrial(ground, row.name, runtime, conditions)),
  );
  for (const trial of trials) {
    await until(
      () => findWell(trial) && trial.samples.at(-1)?.readyz === 200,
      () => `${trial.run} is filled:\n${trial.program.lines.join("\n")}`,
      FILL_MS,
    );
  }
  const injectedAt = Date.now();
  const mend = await row.inject(trials, ground);
  await sleep((row.lastsS ?? FAULT_S) * 1000);
  await mend();
  const mendedAt = Date.now();
  return await Promise.all(trials.map(async (trial) => {
    // That a new Secret is filled shows that the watch is well too.
    await trial.addSecret("late");
    const isRenewed = ({ issuedAt }: Standing) => issuedAt >= mendedAt - 1000; // whole seconds
    const isSettled = () => findWell(trial)?.secrets.values().every(isRenewed);
    const withinS = BACK_FACTOR * row.backS + SETTLE_LIVES * (conditions.lifeS ?? LIFE_S);
    // If it is not, judge() says so.
    await until(isSettled, "all is settled", withinS * 1000).catch(() => {});
    return await judge(row, trial, { injectedAt, mendedAt, backAt: findBack(trial, mendedAt) });
  }));
}

/** When all Secrets were well again for good, if they were. */
function findBack(trial: Trial, mendedAt: number): number | undefined {
  const after = trial.looks.filter(({ at }) => at >= mendedAt);
  return after[after.findLastIndex((look) => !isWell(trial, look)) + 1]?.at;
}

function isWell({ identities }: Trial, { secrets }: Look): boolean {
  return secrets.size === identities.size &&
    secrets.values().every(({ state }) => state === "valid");
}

/** The last look, if all Secrets were well in it. */
function findWell(trial: Trial): Look | undefined {
  const last = trial.looks.at(-1);
  return last && isWell(trial, last) ? last : undefined;
}

async function judge(row: Row, trial: Trial, times: Times): Promise<Outcome> {
  const { looks, samples, program, identities } = trial;
  const broken = program.isAlive() ? [] : ["the program has ended"];
  const events = await warningEvents(trial);
  const status = await trial.end();
  if (status !== 0) broken.push(`the program ended with ${status} on SIGTERM`);
  const { injectedAt, mendedAt, backAt } = times;
  const records = program.log();
  const isFromStart = row.inject === nothing;
  const warnings = records.filter(({ level, time }) =>
    level === "warn" && (isFromStart || Date.parse(time) >= injectedAt)
  );
  const expired = findExpired(looks, records);
  const during = samples.filter(({ at }) => at >= injectedAt);
  const outcome: Outcome = {
    row,
    runtime: trial.runtime,
    secrets: identities.size,
    expired: expired.size,
    expiredMs: Math.max(0, ...expired.values()),
    ...backAt && { backMs: backAt - mendedAt },
    requests: peakOf(during, "api_requests_total"),
    exchanges: peakOf(during, "exchange_duration_seconds_count"),
    events,
    warnings: warnings.length,
    log: [...new Set(warnings.map(({ msg, error, message }) => `${msg}: ${error ?? message}`))],
    metrics: troubleOf(during),
    broken,
  };
  for (const [key, why] of findUnwell(looks, trial, row.suffers, times)) {
    broken.push(`${key} ${why}`);
  }
  broken.push(...findExceeded(outcome), ...findUntold(outcome), ...findSilent(during, injectedAt));
  const tokens = [...trial.given, ...trial.issuer.exchanges.flatMap(({ token }) => token ?? [])];
  if (findToken(program.lines.join("\n"), tokens) !== undefined) {
    broken.push("a token is in the log");
  }
  if (broken.length > 0) keepLog(trial);
  return outcome;
}

/** The limits that were exceeded. */
function findExceeded({ row, backMs = Infinity, requests, exchanges }: Outcome): string[] {
  return [
    ...backMs > row.backS * 1000 ? [`not back to normal within ${row.backS} s`] : [],
    ...requests > MAX_REQUESTS ? [`${requests} requests within 10 s, over ${MAX_REQUESTS}`] : [],
    ...exchanges > MAX_EXCHANGES
      ? [`${exchanges} exchanges within 10 s, over ${MAX_EXCHANGES}`]
      : [],
  ];
}

/** What should have been told and was not, or the other way round. */
function findUntold({ row, log, warnings, events, metrics }: Outcome): string[] {
  const missing = (lines: string[], pattern: RegExp) => !lines.some((line) => pattern.test(line));
  return [
    ...(row.log ?? []).filter((pattern) => missing(log, pattern)).map((like) =>
      `no warning in the log is like ${like}`
    ),
    ...row.metric && missing(metrics, row.metric) ? [`no counter that rose is ${row.metric}`] : [],
    ...warnings > (row.maxWarnings ?? Infinity)
      ? [`${warnings} warnings in the log, over ${row.maxWarnings}: ${log}`]
      : [],
    ...row.maxWarnings === 0 && metrics.some((series) => /watch_restarts/.test(series))
      ? [`counters of trouble rose: ${metrics}`]
      : [],
    ...row.event && missing(events, row.event) ? [`no Warning event is like ${row.event}`] : [],
    ...row.suffers === "none" && events.length > 0 ? [`there are Warning events: ${events}`] : [],
  ];
}

/** What is wrong with the probes, which have nothing to do with others' faults. */
function findSilent(samples: Sample[], since: number): string[] {
  const gaps = samples.map(({ at }, index) => at - (samples[index - 1]?.at ?? since));
  const longest = Math.max(0, ...gaps);
  return [
    ...samples.some(({ healthz }) => healthz !== 200) ? ["/healthz failed"] : [],
    ...samples.some(({ readyz }) => readyz !== 200) ? ["/readyz failed"] : [],
    ...longest > MAX_SILENCE_MS ? [`no answer of the probes for ${longest} ms`] : [],
  ];
}

function keepLog({ run, program }: Trial): void {
  mkdirSync(LOGS, { recursive: true });
  writeFileSync(`${LOGS}/${run}.log`, program.lines.join("\n"));
}

/** By Secret, the longest (ms) that it held an expired token. */
function findExpired(looks: Look[], log: LogRecord[]): Map<string, number> {
  const longest = new Map<string, number>();
  const add = (key: string, ms: number) => longest.set(key, Math.max(longest.get(key) ?? 0, ms));
  for (const { at, secrets } of looks) {
    for (const [key, { state, expiresAt }] of secrets) {
      if (state === "expired") add(key, at - expiresAt);
    }
  }
  // While the API server or etcd is down there are no looks: then it is known by the next token only.
  const expiresAt = new Map<string, number>();
  for (const { msg, time, namespace, name, expires } of log) {
    if (msg !== "token written") continue;
    const key = `${namespace}/${name}`;
    const [endedAt = Infinity, writtenAt] = [expiresAt.get(key), Date.parse(time)];
    const isUnseen = !looks.some(({ at }) => at >= endedAt && at < writtenAt);
    if (endedAt < writtenAt && isUnseen) add(key, writtenAt - endedAt);
    expiresAt.set(key, Date.parse(`${expires}`));
  }
  return longest;
}

/** The Secrets that had no valid token where they must have one, each once. */
function findUnwell(looks: Look[], trial: Trial, suffers: Row["suffers"], times: Times) {
  const { injectedAt, backAt = Infinity } = times;
  const { victim, loner, identities } = trial;
  const sufferers: Record<Row["suffers"], string[]> = {
    all: [...identities.keys()],
    victim: [victim],
    loner: [loner],
    none: [],
  };
  const unwell = new Map<string, string>();
  const filled = new Set<string>();
  for (const { at, secrets } of looks) {
    for (const [key, { state }] of secrets) {
      if (state === "valid") filled.add(key);
      const isFault = at >= injectedAt && at < backAt;
      const isExcused = !filled.has(key) || (isFault && sufferers[suffers].includes(key));
      if (state !== "valid" && !isExcused) {
        unwell.set(key, `was ${state}${isFault ? "" : ", without a fault"}`);
      }
    }
  }
  return unwell;
}

function peakOf(samples: Sample[], name: string): number {
  return peakRise(
    samples.map(({ at, metrics }) => ({ at, value: total(metrics, METRIC_PREFIX + name) })),
    WINDOW_MS,
  );
}

/** The counters of failures and of watches that ended. */
function troubleOf(samples: Sample[]): string[] {
  const [first, last] = [samples[0]?.metrics, samples.at(-1)?.metrics];
  return [...last ?? []].flatMap(([series, value]) => {
    const rise = value - (first?.get(series) ?? 0);
    const isTrouble = /_(refreshes|watch_restarts|events_dropped)_total/.test(series) &&
      !/success|ended/.test(series);
    return isTrouble && rise > 0 ? [series.slice(METRIC_PREFIX.length)] : [];
  });
}

async function warningEvents({ namespaces, ground: { admin } }: Trial): Promise<string[]> {
  const path = (namespace: string) => `/apis/events.k8s.io/v1/namespaces/${namespace}/events`;
  const lists = await Promise.all(namespaces.map((namespace) => admin.get(path(namespace))));
  const warnings = lists.flatMap(({ items }) => items).filter(({ type }) => type === "Warning");
  return [...new Set(warnings.map(({ reason, note }) => `${reason}: ${note}`))] as string[];
}
