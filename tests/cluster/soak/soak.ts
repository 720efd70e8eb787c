/**
 * The long run: the real program, two replicas of it, on the real API server, with tokens that live ten seconds. Every
 * minute one replica is killed, and started again a token's life later: of Deno in the first half, of Node in the
 * second, so that each runtime is seen for half of the time without a break. Every second all Secrets are looked at.
 * The exit status is 1 if a Secret ever held an expired token, a budget was exceeded, or memory or sockets grew.
 *
 * Usage: node tests/cluster/soak/soak.ts [--minutes N] [--dir DIR] [--port PORT]
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type Cluster, down, up } from "../cluster.ts";
import { ISSUER as CLUSTER_ISSUER } from "../components.ts";
import { runToTheEnd } from "../ending.ts";
import { mountAccount } from "../account.ts";
import { type Admin, createAdmin } from "../admin.ts";
import {
  createNamespace,
  grantCluster,
  identityOf,
  RUN_LABEL,
  secretOf,
  standingOf,
} from "../objects.ts";
import { helpIfAsked } from "../../support/help.ts";
import { type Program, type Runtime, startProgram } from "../../support/program.ts";
import { type Issuer, startIssuer } from "../../fake/issuer.ts";
import { holdingsOf, machineLoad } from "./load.ts";
import { drawExpired, drawFigures, drawMinute } from "./summary.ts";
import {
  API_SERVER,
  type Expired,
  type Figures,
  findBroken,
  IDENTITIES,
  LIFE_S,
  mean,
  type Minute,
  SECRETS,
  type Steady,
  type Usage,
} from "./requirements.ts";
import { ACCOUNT, NAMESPACE } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { parseMetrics } from "../../support/metrics.ts";
import { findPort } from "../../support/ports.ts";

const RUN = "soak";
const NAMESPACES = Array.from({ length: 10 }, (_, index) => `${RUN}-${index}`);
const LOOK_MS = 1_000;
const MINUTE_MS = 60_000;
/** The other replica has every token to replace meanwhile. */
const DEAD_MS = LIFE_S * 1000;
/** Each of the two means of a process is of so many minutes, or of half of its time if that is less. */
const MEAN_MINUTES = 10;
/** A busy machine fills that many Secrets, and starts the programs. */
const FILL_MS = 60_000;
/** How a token begins: as it is, and as a docker config has it. */
const TOKEN_START = /eyJ|X3Rva2Vu/;
const RESULT = "out/soak.json";

/** What is not killed, at least for half of the time. */
type Steadfast = Runtime | typeof API_SERVER;

helpIfAsked(import.meta.filename!);
const { values: flags } = parseArgs({
  options: {
    minutes: { type: "string", default: "60" },
    dir: { type: "string", default: join(tmpdir(), "pull-secret-updater-soak") },
    port: { type: "string", default: "18743" },
  },
});
const { dir } = flags;
const say = (line: string) => console.log(line);

async function main(): Promise<number> {
  const minutes = Number(flags.minutes);
  if (!(minutes >= 2)) throw new Error("--minutes: 2 or more, as each replica has its half");
  await down({ dir }); // what a run that was killed has left
  const cluster = await up({ dir, port: Number(flags.port) }, say);
  const admin = createAdmin(cluster);
  const issuer = await startIssuer({ keys: await admin.get("/openid/v1/jwks"), life: LIFE_S });
  await createPlaces(admin);
  const replicas = await createReplicas(cluster, admin, issuer);
  const identities = await createSecrets(admin, issuer);
  const figures = await soak(minutes, { cluster, admin, issuer, identities, replicas });
  await admin.close();
  await issuer.close();

  const broken = findBroken(figures);
  say(drawFigures(figures));
  mkdirSync("out", { recursive: true });
  writeFileSync(RESULT, JSON.stringify({ ...figures, broken }, null, 2));
  say(broken.length === 0 ? `all held; ${RESULT}` : `broken: ${broken.join("; ")}; ${RESULT}`);
  return broken.length === 0 ? 0 : 1;
}

/** The rights of the program, and the namespaces. */
async function createPlaces(admin: Admin): Promise<void> {
  await createNamespace(admin, NAMESPACE, ACCOUNT);
  await grantCluster(admin, NAMESPACE);
  for (const namespace of NAMESPACES) {
    await admin.create("/api/v1/namespaces", { metadata: { name: namespace } });
  }
}

/**
 * Returns the Secrets' identities, by "namespace/name". Those of one identity are made at once, and the identities one
 * after the other over a token's life: so they are due one after the other too, as in a cluster that has grown.
 */
async function createSecrets(admin: Admin, issuer: Issuer): Promise<Map<string, string>> {
  const identities = new Map<string, string>();
  for (let index = 0; index < IDENTITIES; index++) {
    const next = sleep(LIFE_S * 1000 / IDENTITIES);
    const identity = identityOf(`${RUN} ${index}`);
    issuer.bind(identity, CLUSTER_ISSUER, NAMESPACE, ACCOUNT);
    for (let number = 0; number < SECRETS / IDENTITIES; number++) {
      const namespace = NAMESPACES[number % NAMESPACES.length]!;
      const name = `s${index}-${number}`;
      identities.set(`${namespace}/${name}`, identity);
      await admin.create(
        `/api/v1/namespaces/${namespace}/secrets`,
        secretOf(RUN, namespace, name, identity),
      );
    }
    await next;
  }
  return identities;
}

type Replicas = Awaited<ReturnType<typeof createReplicas>>;

/** One replica on each runtime. */
async function createReplicas({ server, options }: Cluster, admin: Admin, issuer: Issuer) {
  const account = await mountAccount(admin, {
    dir: join(options.dir, RUN),
    namespace: NAMESPACE,
    account: ACCOUNT,
    audiences: [issuer.audience],
  });
  const settings = { ...account.settings, KUBERNETES_API: server, ISSUER_URL: issuer.url };
  const warnings: Record<string, number> = {};
  let isTokenLogged = false;

  const replicas = new Map<Runtime, Program>();
  /** Counts what a replica that is killed has warned of. */
  const close = ({ lines, warnings: own }: Program) => {
    isTokenLogged ||= lines.some((line) => TOKEN_START.test(line));
    for (const line of own) {
      const { msg } = JSON.parse(line);
      warnings[msg] = (warnings[msg] ?? 0) + 1;
    }
  };
  const start = async (runtime: Runtime) => {
    const port = `${await findPort()}`;
    const own = { ...settings, PORT: port };
    replicas.set(runtime, await startProgram(runtime, own, [], { shipped: true }));
  };
  await start("node");
  await start("deno");
  return {
    pid: (runtime: Runtime) => replicas.get(runtime)!.pid,
    start,
    async end(runtime: Runtime, signal: NodeJS.Signals): Promise<void> {
      const program = replicas.get(runtime)!;
      program.kill(signal);
      await program.exited;
      close(program);
    },
    told: () => ({ warnings, isTokenLogged }),
  };
}

interface Scene {
  cluster: Cluster;
  admin: Admin;
  issuer: Issuer;
  identities: Map<string, string>;
  replicas: Replicas;
}

async function soak(total: number, scene: Scene): Promise<Figures> {
  const { cluster, admin, issuer, replicas } = scene;
  const watcher = createWatcher(scene);
  const filledBy = Date.now() + FILL_MS;
  while (!await watcher.look()) {
    if (Date.now() > filledBy) throw new Error("the Secrets were not filled");
  }
  watcher.unfilled.length = 0; // those that came before

  const minutes: Minute[] = [];
  const usages: Record<Steadfast, Usage[]> = { node: [], deno: [], [API_SERVER]: [] };
  const began = Date.now();
  let before = await countPatches(admin);
  issuer.exchanges.length = 0;
  for (let minute = 1; minute <= total; minute++) {
    const victim = minute <= total / 2 ? "deno" : "node";
    const steady = victim === "deno" ? "node" : "deno";
    const pids = {
      [steady]: replicas.pid(steady),
      [API_SERVER]: cluster.pid(API_SERVER)!,
    } as Record<
      Steadfast,
      number
    >;
    const names = Object.keys(pids) as Steadfast[];
    const restarted = killAndStart(replicas, victim, watcher);
    let looks = 0;
    let unanswered = 0;
    while (Date.now() < began + minute * MINUTE_MS) {
      const next = sleep(LOOK_MS);
      await watcher.look().then(() => looks++, () => unanswered++);
      for (const name of names) usages[name].push(holdingsOf(pids[name]) ?? ended(name));
      await next;
    }
    await restarted;
    const now = await countPatches(admin);
    const exchanges = issuer.exchanges.splice(0).length;
    issuer.requests.length = 0;
    minutes.push({ minute, looks, unanswered, exchanges, ...rise(before, now), ...machineLoad() });
    before = now;
    const held = names.map((name) => ({ name, usage: usages[name].at(-1)! }));
    say(drawMinute(minutes.at(-1)!, watcher.expired.length, held));
  }
  for (const runtime of ["node", "deno"] as const) await replicas.end(runtime, "SIGTERM");
  const steady = (Object.keys(usages) as Steadfast[]).map((name) => compare(name, usages[name]));
  return {
    minutes,
    kills: total,
    expired: watcher.expired,
    unfilled: watcher.unfilled,
    steady,
    ...replicas.told(),
  };
}

function ended(name: string): never {
  throw new Error(`${name} has ended, and nobody killed it`);
}

async function killAndStart(replicas: Replicas, runtime: Runtime, watcher: Watcher): Promise<void> {
  watcher.killedAt = Date.now();
  await replicas.end(runtime, "SIGKILL");
  await sleep(DEAD_MS);
  await replicas.start(runtime);
}

type Watcher = ReturnType<typeof createWatcher>;

function createWatcher({ admin, identities }: Scene) {
  const watcher = {
    expired: [] as Expired[],
    unfilled: [] as string[],
    killedAt: NaN,
    /** Judges each Secret at the instant at which the list was asked for; returns whether all were well. */
    async look(): Promise<boolean> {
      const at = Date.now();
      const { items } = await admin.get(`/api/v1/secrets?labelSelector=${RUN_LABEL}=${RUN}`);
      const time = new Date(at).toISOString();
      const late: Expired[] = [];
      let wellCount = 0;
      for (const secret of items as Json[]) {
        const key = `${secret.metadata.namespace}/${secret.metadata.name}`;
        const { state, expiresAt } = standingOf(secret, identities.get(key)!, at);
        if (state === "valid") {
          wellCount++;
        } else if (state === "expired") {
          const sinceKillMs = at - watcher.killedAt;
          late.push({ secret: key, time, lateMs: at - expiresAt, sinceKillMs, ...machineLoad() });
        } else {
          watcher.unfilled.push(`${time} ${key}: ${state}`);
        }
      }
      watcher.expired.push(...late);
      if (late.length > 0) say(drawExpired(late));
      return wellCount === identities.size;
    },
  };
  return watcher;
}

type Patches = Pick<Minute, "patches" | "conflicts" | "failures">;

/** Patches of Secrets so far, as the API server counts them. */
async function countPatches(admin: Admin): Promise<Patches> {
  const counts = { patches: 0, conflicts: 0, failures: 0 };
  for (const [series, value] of parseMetrics(await admin.metrics())) {
    const labels = /^apiserver_request_total\{(.*)\}$/.exec(series)?.[1] ?? "";
    if (!labels.includes('resource="secrets"') || !labels.includes('verb="PATCH"')) continue;
    counts[
      /code="2/.test(labels) ? "patches" : /code="409"/.test(labels) ? "conflicts" : "failures"
    ] += value;
  }
  return counts;
}

function rise(before: Patches, now: Patches): Patches {
  return {
    patches: now.patches - before.patches,
    conflicts: now.conflicts - before.conflicts,
    failures: now.failures - before.failures,
  };
}

/** The beginning and the end of the time in which a process was not killed, without its very first minute. */
function compare(name: Steadfast, all: Usage[]): Steady {
  const settled = all.slice(Math.min(MINUTE_MS / LOOK_MS, all.length / 3));
  const size = Math.floor(Math.min(MEAN_MINUTES * MINUTE_MS / LOOK_MS, settled.length / 2));
  const minutes = size * LOOK_MS / MINUTE_MS;
  return { name, minutes, first: mean(settled.slice(0, size)), last: mean(settled.slice(-size)) };
}

runToTheEnd(main, () => down({ dir }));
