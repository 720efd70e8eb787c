/** Rows about starting, reacting and the passing of time. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Agent, request } from "undici";
import { identityOf } from "../tests/cluster/objects.ts";
import { parseWatch } from "../k8s.ts";
import { type Figure, percentile } from "./figures.ts";
import { type Ground, LIFE_S, namespaceOf } from "./ground.ts";
import {
  type Bench,
  counting,
  gather,
  metricsOf,
  peersOf,
  RUNTIMES,
  settle,
  SHORT_SECRETS,
  withSide,
} from "./measure.ts";
import { arrange, mint } from "./arrangement.ts";
import { bare, bundle, limit, type Running, source, startSide } from "./sides.ts";
import { ACCOUNT, IDENTITY, NAMESPACE } from "../tests/support/names.ts";
import { repeat, timed } from "../tests/support/until.ts";
import { pullSecret } from "../tests/support/secrets.ts";

/** A start varies more than all else, and takes little. */
const MIN_STARTS = 5;
/** A new Secret after the one before has come to rest. */
const PAUSE_MS = 30;
/** Whatever a start with valid Secrets writes or exchanges, it does by then. */
const AFTERMATH_MS = 1_000;
/** The first few have the token fetched and the code compiled. */
const WARM_UP = 5;
/** Creations; fewer of upstream, which writes some five a second. */
const MANY = 200;
const FEW = 50;
/** Often enough for a 99th percentile within half a minute. */
const PROBE_MS = 50;
/** The controller's own. */
const REFRESH_FRACTION = 0.67;
/** Until the tokens are first due: time to write them into all Secrets, to start, and to probe while nothing is due. */
const STEADY_LEAD_S = 80;
/** What the API server and etcd still do with 10,000 writes is over by then. */
const AFTER_FILLING_MS = 10_000;
const IDLE_PROBE_MS = 30_000;
/** What answering for the metrics took is over by then. */
const AFTER_METRICS_MS = 1_000;

export async function startRow({ ground, runs, sdks }: Bench): Promise<Figure[]> {
  const { add, compare, all } = gather("start");
  const what = "start → /readyz";
  await arrange(ground, { secrets: 0 });
  const sides = [
    ...RUNTIMES.map(bare),
    ...RUNTIMES.flatMap((runtime) => [bundle(runtime), source(runtime)]),
    ...sdks,
  ];
  for (let run = 0; run < Math.max(runs, MIN_STARTS); run++) {
    for (const side of sides) {
      await withSide(ground, side, async ({ ready, usage }) => {
        add(what, side.name, "ms", await ready());
        const { cpuS, anonymousMiB } = usage();
        add("CPU time", side.name, "ms", cpuS * 1000);
        add("anonymous", side.name, "MiB", anonymousMiB);
      });
    }
  }
  for (const runtime of RUNTIMES) {
    const { name } = bundle(runtime);
    compare(what, name, `bare ${runtime}`, {});
    compare(what, name, `${runtime} SDK`, { must: { atMost: 1 / 3 } });
    compare(what, name, source(runtime).name, { must: { atMost: 1 } });
    // Of CPU time, which a busy machine changes less; it is counted in steps of 10 ms.
    compare("CPU time", name, source(runtime).name, { guard: { atMost: 1.4 } });
  }
  return all();
}

export async function restartRow({ ground, runs, isShort, sdks }: Bench): Promise<Figure[]> {
  const { add, compare, demand, all } = gather("restart");
  const secrets = isShort ? SHORT_SECRETS : 10_000;
  const what = "start → /readyz";
  await arrange(ground, { secrets, isFilled: true });
  const own = RUNTIMES.map(bundle);
  for (let run = 0; run < runs; run++) {
    for (const side of [...RUNTIMES.map((runtime) => limit(runtime, "list")), ...own, ...sdks]) {
      const restart = async ({ ready, usage }: Running) => {
        add(what, side.name, "ms", await ready());
        add("CPU time", side.name, "ms", usage().cpuS * 1000);
        await sleep(AFTERMATH_MS);
      };
      const [, { exchanges, secrets: requests }] = await counting(
        ground,
        () => withSide(ground, side, restart),
      );
      add("exchanges", side.name, "", exchanges);
      add("writes", side.name, "", (requests.get("PATCH") ?? 0) + (requests.get("PUT") ?? 0));
    }
  }
  for (const { name } of own) {
    compare(what, name, `${name.split(" ")[0]} limit`, { must: { atMost: 1.15 } });
    // Of CPU time, which a busy machine changes less; to judge 5,000 Secrets in a small heap takes its part.
    compare("CPU time", name, `${name.split(" ")[0]} limit`, { guard: { atMost: 2.5 } });
    for (const none of ["exchanges", "writes"]) {
      demand(none, name, { must: { atMost: 0 }, guard: { atMost: 0 } });
    }
  }
  return all();
}

export async function latencyRow(bench: Bench): Promise<Figure[]> {
  const { ground, runs, isShort, sdks } = bench;
  const { add, compare, all } = gather("latency");
  const file = join(ground.work, "registry-token");
  writeFileSync(file, await mint(ground, identityOf("bench 0")));
  await arrange(ground, { secrets: 0 });
  const peers = peersOf({ ...bench, publishedPeer: undefined });
  const limits = RUNTIMES.map((runtime) => limit(runtime, "reflex", file));
  for (let run = 0; run < runs; run++) {
    for (const side of [...limits, ...RUNTIMES.map(bundle), ...sdks, ...peers]) {
      await withSide(ground, side, async (running) => {
        if (side.hasReadyz) await running.ready();
        const times = await timeCreations(ground, isShort || !side.hasReadyz ? FEW : MANY);
        for (const percent of [50, 99]) {
          add(`created → filled, p${percent}`, side.name, "ms", percentile(times, percent));
        }
      });
    }
  }
  for (const runtime of RUNTIMES) {
    const { name } = bundle(runtime);
    // Wide, as milliseconds on a busy machine are.
    compare("created → filled, p50", name, `${runtime} limit`, {
      must: { atMost: 1.3 },
      guard: { atMost: 3 },
    });
    compare("created → filled, p99", name, `${runtime} limit`, { must: { atMost: 2 } });
  }
  return all();
}

/** Creates Secrets one after another; returns how long each took (ms) until a watch of ours saw a token in it. */
async function timeCreations(ground: Ground, count: number): Promise<number[]> {
  const namespace = namespaceOf(0);
  const path = `/api/v1/namespaces/${namespace}/secrets`;
  const identity = identityOf("bench 0");
  const observer = await watchFillings(ground, namespace);
  const times: number[] = [];
  for (let index = 0; index < count + WARM_UP; index++) {
    const name = `new-${index}`;
    const seen = observer.next(name);
    const startedAt = performance.now();
    await ground.admin.create(
      path,
      pullSecret(namespace, name, identity, { [IDENTITY]: identity }),
    );
    const seenAt = await seen;
    if (index >= WARM_UP) times.push(seenAt - startedAt);
    await sleep(PAUSE_MS);
    await ground.admin.delete(`${path}/${name}`);
  }
  observer.close();
  return times;
}

/** Tells when a Secret of a namespace has got a token. */
async function watchFillings({ admin, cluster }: Ground, namespace: string) {
  const path = `/api/v1/namespaces/${namespace}/secrets`;
  const { metadata: { resourceVersion } } = await admin.get(`${path}?limit=1`);
  const token = await admin.token(NAMESPACE, ACCOUNT);
  const dispatcher = new Agent({ allowH2: false, connect: { ca: admin.readCa() }, bodyTimeout: 0 });
  const url = `${cluster.server}${path}?watch=1&resourceVersion=${resourceVersion}`;
  const { body } = await request(url, {
    dispatcher,
    headers: { authorization: `Bearer ${token}` },
  });
  const waiting = new Map<string, (at: number) => void>();
  const read = async () => {
    for await (const event of parseWatch(body)) {
      if (event.type !== "MODIFIED") continue;
      const { name } = event.secret.metadata;
      waiting.get(name)?.(performance.now());
      waiting.delete(name);
    }
  };
  read().catch(() => {}); // close() ends it
  return {
    next: (name: string) => new Promise<number>((done) => waiting.set(name, done)),
    close: () => void dispatcher.destroy(),
  };
}

export async function idleRow(bench: Bench): Promise<Figure[]> {
  const { ground, runs, isShort, sdks } = bench;
  const { add, demand, all } = gather("idle");
  const secrets = isShort ? SHORT_SECRETS : 10_000;
  const windowS = isShort ? 20 : 300;
  await arrange(ground, { secrets, isFilled: true });
  const own = RUNTIMES.map(bundle);
  const running: Running[] = [];
  try {
    for (const side of Array.from({ length: runs }, () => [...own, ...sdks]).flat()) {
      running.push(await startSide(ground, side));
      await running.at(-1)!.ready();
    }
    if (!isShort) await settle(bench);
    const before = await Promise.all(running.map(otherRequests));
    await sleep(AFTER_METRICS_MS);
    const cpuBefore = running.map(({ usage }) => usage().cpuS);
    await sleep(windowS * 1000);
    running.forEach(({ side, usage }, index) => {
      add("CPU", side.name, "% of a core", (usage().cpuS - cpuBefore[index]!) / windowS * 100);
    });
    const after = await Promise.all(running.map(otherRequests));
    running.forEach(({ side }, index) => {
      const [from, to] = [before[index], after[index]];
      if (from !== undefined) add("requests but the watch", side.name, "", to! - from);
    });
  } finally {
    await Promise.all(running.map((each) => each.stop()));
  }
  for (const { name } of own) {
    demand("CPU", name, { must: { atMost: 0.1 } });
    demand("requests but the watch", name, { must: { atMost: 0 }, guard: { atMost: 0 } });
  }
  return all();
}

/** Of the program, by its own count: the API server does not tell who asked. */
async function otherRequests(running: Running): Promise<number | undefined> {
  if (!running.side.name.endsWith("bundle")) return undefined;
  const metrics = [...await metricsOf(running)];
  const others = metrics.filter(([series]) =>
    /api_requests_total/.test(series) && !/verb="watch"/.test(series)
  );
  return others.reduce((sum, [, value]) => sum + value, 0);
}

/** With tokens of an hour that were issued together, and are written over six minutes. */
export async function steadyRow({ ground }: Bench): Promise<Figure[]> {
  const { add, compare, all } = gather("steady");
  const secrets = 10_000;
  const what = "probing GET, p99";
  for (const side of RUNTIMES.map(bundle)) {
    const iat = Math.floor(Date.now() / 1000 - REFRESH_FRACTION * LIFE_S + STEADY_LEAD_S);
    ground.issuer.faults.add({ claims: { iat, exp: iat + LIFE_S } });
    await arrange(ground, { secrets, isFilled: true });
    await withSide(ground, side, async (running) => {
      await running.ready();
      await sleep(AFTER_FILLING_MS);
      const idle = startProbe(ground);
      await sleep(IDLE_PROBE_MS);
      add(what, `${side.name}, idle`, "ms", percentile(await idle.end(), 99));
      if (running.written() > 0) throw new Error("the tokens are due before all was ready for it");
      while (running.written() === 0) await sleep(PROBE_MS);
      const startedAt = performance.now();
      const busy = startProbe(ground);
      await running.filled(secrets);
      add("written over", side.name, "s", (performance.now() - startedAt) / 1000);
      add(what, side.name, "ms", percentile(await busy.end(), 99));
    });
    compare(what, side.name, `${side.name}, idle`, { must: { atMost: 1.5 } });
  }
  return all();
}

/** Asks for one object every so often, as another client of the API server would. */
function startProbe({ admin }: Ground) {
  const times: number[] = [];
  const stop = repeat(PROBE_MS, async () => {
    times.push(await timed(admin.get("/api/v1/namespaces/default/configmaps/kube-root-ca.crt")));
  });
  return { end: () => stop().then(() => times) };
}
