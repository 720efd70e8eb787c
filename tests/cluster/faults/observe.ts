/** What is seen of a program and its Secrets, all the while. */
import { request } from "undici";
import type { Admin } from "../admin.ts";
import { RUN_LABEL, type Standing, standingOf } from "../objects.ts";
import type { Json } from "../../support/json.ts";
import { parseMetrics } from "../../support/metrics.ts";
import { repeat } from "../../support/until.ts";

const LOOK_MS = 200;
const SAMPLE_MS = 500;
/** The program answers its probes within milliseconds, or is stuck. */
const PROBE_TIMEOUT_MS = 5_000;

/** One look at all Secrets, straight at the API server. */
export interface Look {
  /** When it was asked for (ms): what had expired by then was still held when it was read. */
  at: number;
  /** By "namespace/name". */
  secrets: Map<string, Standing>;
}

/** What the program said of itself at an instant (ms). */
export interface Sample {
  at: number;
  healthz: number;
  readyz: number;
  /** By name and labels. */
  metrics: Map<string, number>;
}

/** Looks at the Secrets of a run until it is stopped; while the API server does not answer there are no looks. */
export function watchSecrets(admin: Admin, run: string, identities: Map<string, string>) {
  const looks: Look[] = [];
  const stop = repeat(LOOK_MS, async () => {
    const at = Date.now();
    const { items } = await admin.get(`/api/v1/secrets?labelSelector=${RUN_LABEL}=${run}`);
    const standings = (items as Json[]).map((secret): [string, Standing] => {
      const key = `${secret.metadata.namespace}/${secret.metadata.name}`;
      return [key, standingOf(secret, identities.get(key) ?? "", at)];
    });
    looks.push({ at, secrets: new Map(standings) });
  });
  return { looks, stop };
}

/** Asks a program for its probes and metrics until it is stopped. */
export function watchProgram(host: string, port: number) {
  const samples: Sample[] = [];
  const ask = async (path: string) => {
    const answer = await request(`http://${host}:${port}/${path}`, {
      signal: AbortSignal.timeout(PROBE_TIMEOUT_MS),
    });
    return { status: answer.statusCode, text: await answer.body.text() };
  };
  const stop = repeat(SAMPLE_MS, async () => {
    const at = Date.now();
    const [healthz, readyz, metrics] = await Promise.all([
      ask("healthz"),
      ask("readyz"),
      ask("metrics"),
    ]);
    samples.push({
      at,
      healthz: healthz.status,
      readyz: readyz.status,
      metrics: parseMetrics(metrics.text),
    });
  });
  return { samples, stop };
}

/** The sum of all series of a metric. */
export function total(metrics: Map<string, number>, name: string): number {
  const ofName = [...metrics].filter(([series]) =>
    series === name || series.startsWith(`${name}{`)
  );
  return ofName.reduce((sum, [, value]) => sum + value, 0);
}

/** By how much a counter that was read now and then rose at most within so long (ms). */
export function peakRise(readings: { at: number; value: number }[], windowMs: number): number {
  let peak = 0;
  let first = 0;
  for (const { at, value } of readings) {
    while (at - readings[first]!.at > windowMs) first++;
    peak = Math.max(peak, value - readings[first]!.value);
  }
  return peak;
}
