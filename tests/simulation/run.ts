/** One run: the whole controller through all that its plan has in store, judged at every step. */
import { createHash } from "node:crypto";
import type { Secret } from "../../k8s.ts";
import { type ApiRequest, keyOf } from "../virtual/cluster.ts";
import type { ExchangeRequest } from "../virtual/issuer.ts";
import type { Fault } from "../virtual/shared.ts";
import { type Replica, VirtualWorld } from "../virtual/world.ts";
import { seeded } from "../virtual/clock.ts";
import { begin, isFault, isShortening } from "./actions.ts";
import { Breach, Invariants } from "./invariants.ts";
import { encode } from "./judge.ts";
import { CONTROLLER, DATA_KEY, IDENTITY, MIN, NAMESPACE, PREFIX, S } from "../support/names.ts";
import type { Action, Plan, Stage } from "./stage.ts";
import { recoveryFrom } from "./recovery.ts";

/** How often all is judged, beside each change and each action. */
const STEP_MS = 30 * S;
/** And what is only to be seen in the metrics: before a token is due, when what was forgotten comes to light. */
const LOOK_MS = 10 * MIN;
/** As a kube-apiserver has etcd forget what is older. */
const COMPACT_MS = 5 * MIN;
/** At one instant, by all replicas: more than exchanges are made at a time. */
const MAX_READS = 100;
/** The life of the controller's own subject tokens: the shortest that the API server gives. */
const SUBJECT_TOKEN_S = 600;
const ENDLESS_S = 1e7;
/** What is shown of the log of a broken run. */
const KEPT_LINES = 40;

const NAMESPACES = ["apps", "web", NAMESPACE];
const REGISTRIES = ["cgr.dev", "mirror.example:5000"];
const IDENTITIES = [
  "a".repeat(40),
  `${"b".repeat(40)}/${"1".repeat(16)}`,
  `${"b".repeat(40)}/${"2".repeat(16)}`,
];
const CONFIGS = [
  "{}",
  '{"auths":{}}',
  '{"auths":{"other.example":{"auth":"eDp5"}},"credsStore":"x","n":1.50}',
];
/** One of so many Secrets is of another kind. */
const RARE = 0.1;
const WITH_ACCOUNT = 0.25;

export interface Report {
  /** SHA-256 of the whole log, and of all figures. */
  digest: string;
  exchanges: number;
  writes: number;
  requests: number;
  breach?: { what: string; at: string; lines: string[] };
}

export class Run implements Stage {
  readonly plan: Plan;
  readonly world: VirtualWorld;
  readonly random: () => number;
  readonly registries: string[];
  readonly apiFaults = new Set<(request: ApiRequest) => Fault>();
  readonly issuerFaults = new Set<(request: ExchangeRequest) => Fault | string>();
  /** What the file of the controller's own subject token holds: the last of these, or else a good one. */
  readonly subjectTokens = new Set<() => string>();
  readonly invariants: Invariants;
  onLine: (line: string) => void;
  readonly #slots: (Replica | undefined)[] = [];
  /** What never settles any more, and since when one did not, by replica. */
  readonly #wedged = new Map<string, { verb: string; since: number }>();
  #reads = { tick: 0, count: 0 };
  #lookAt = 0;
  #compactAt = 0;
  #compactTo = 0;

  constructor(plan: Plan, onLine: (line: string) => void) {
    this.plan = plan;
    this.onLine = onLine;
    this.world = new VirtualWorld(plan.seed);
    // Not the world's: what is left out of a plan shall change as little as may be of the rest.
    this.random = seeded(plan.seed + 1);
    this.registries = REGISTRIES.slice(0, plan.registries);
    const { cluster, issuer } = this.world;
    issuer.life = plan.life;
    cluster.fault = (request) =>
      this.#wedge(request.replica, request.verb) ?? first(this.apiFaults, request) ??
        this.#latency(plan.latency.api, request.verb);
    issuer.fault = (request) =>
      this.#wedge(request.replica, "exchange") ?? first(this.issuerFaults, request) ??
        this.random() * plan.latency.issuer;
    this.world.readSubjectToken = () => this.#readSubjectToken();
    this.invariants = new Invariants(this);
    for (let number = 0; number < plan.secrets; number++) this.make(number);
    for (let slot = 0; slot < plan.replicas; slot++) this.#start(slot);
  }

  /** Some of it for the request, and some for the answer: what happens meanwhile may be known before that. */
  #latency(most: number, verb: ApiRequest["verb"]): Fault {
    const [total, part] = [this.random() * most, this.random()];
    // A watch misses nothing from its effect on, which is its answer.
    return verb === "watch" ? total : { ms: total * part, answerMs: total * (1 - part) };
  }

  /** Reading takes no time, so that a replica which reads and reads would never let any pass. */
  #readSubjectToken(): string {
    const { tick } = this.world.clock;
    this.#reads = tick === this.#reads.tick
      ? { tick, count: this.#reads.count + 1 }
      : { tick, count: 1 };
    const isEndless = this.#reads.count > MAX_READS;
    if (isEndless) {
      this.invariants.breach ??= "(b) the subject token is read without end";
      for (const replica of this.replicas) replica.stop();
    }
    // With one that is good by any clock they go on to an exchange, which is never answered.
    const life = isEndless ? ENDLESS_S : SUBJECT_TOKEN_S;
    const read = isEndless ? undefined : [...this.subjectTokens].at(-1);
    return read?.() ?? this.world.subjectToken(CONTROLLER, "issuer.enforce.dev", life);
  }

  say(what: string): void {
    this.onLine(`${new Date(this.world.clock.now()).toISOString()} ${what}\n`);
  }

  pick = <T>(items: readonly T[]): T => items[Math.floor(this.random() * items.length)]!;

  // Replicas

  /** Those that run now. */
  get replicas(): Replica[] {
    return this.#slots.filter((replica) => replica !== undefined);
  }

  /** How many lists and watches each has. */
  get scopes(): number {
    return this.plan.isNarrow ? NAMESPACES.length : 1;
  }

  replicaAt(number: number): Replica {
    return this.replicas[number % this.replicas.length]!;
  }

  #start(slot: number): void {
    const { isNarrow, skew } = this.plan;
    const env = {
      REGISTRIES: this.registries.join(),
      WATCH_NAMESPACES: isNarrow ? NAMESPACES.join() : "",
    };
    this.#slots[slot] = this.world.start({ env, skew: Math.round((this.random() - 0.5) * skew) });
  }

  #stop(slot: number): void {
    const replica = this.#slots[slot]!;
    replica.stop();
    this.world.replicas.splice(this.world.replicas.indexOf(replica), 1);
    this.#slots[slot] = undefined;
    this.#wedged.delete(replica.name);
  }

  /** Ends a replica at once; returns what starts it again. At least one goes on. */
  crash(number: number): () => void {
    const slot = number % this.plan.replicas;
    if (!this.#slots[slot] || this.replicas.length === 1) return () => {};
    this.#stop(slot);
    return () => this.#start(slot);
  }

  /** Starts a replica anew, if it still runs. */
  restart(name: string): void {
    const slot = this.#slots.findIndex((replica) => replica?.name === name);
    if (slot === -1) return;
    this.say(`${name} is restarted`);
    this.#stop(slot);
    this.#start(slot);
  }

  /** Has none of a replica's requests of one kind settle any more; returns what mends it. */
  wedge(number: number, verb: string): () => void {
    const { name } = this.replicaAt(number);
    this.#wedged.set(name, { verb, since: Infinity });
    return () => this.restart(name);
  }

  /** Since when one of a replica's requests does not settle: infinity if none was made yet. */
  wedgedAt = (name: string) => this.#wedged.get(name)?.since;

  #wedge(name: string, verb: string): "wedged" | undefined {
    const wedged = this.#wedged.get(name);
    if (wedged?.verb !== verb) return undefined;
    wedged.since = Math.min(wedged.since, this.world.clock.tick);
    return "wedged";
  }

  // Secrets

  identityAt = (fraction: number) => IDENTITIES[Math.floor(fraction * this.plan.identities)]!;

  secretAt(number: number): Secret | undefined {
    const secrets = [...this.world.cluster.secrets.values()];
    return secrets[number % secrets.length];
  }

  /** Another writer's change, if the Secret is there. */
  disturb(key: string, patch: object): void {
    if (this.world.cluster.secrets.has(key)) this.world.cluster.update(key, patch);
  }

  /** Somebody asks for a refresh of each Secret. */
  askForAll(): void {
    const { clock, cluster } = this.world;
    const annotations = { [`${PREFIX}refresh`]: `${clock.tick}` };
    for (const key of cluster.secrets.keys()) this.disturb(key, { metadata: { annotations } });
  }

  /** Another writer makes a Secret, if it is not there. */
  make(number: number): void {
    const name = `secret-${number % this.plan.secrets}`;
    const namespace = NAMESPACES[number % this.plan.namespaces]!;
    if (this.world.cluster.secrets.has(keyOf({ namespace, name }))) return;
    const identity = this.identityAt(this.random());
    const annotations: Record<string, string> = { note: "kept" };
    if (this.random() < WITH_ACCOUNT) annotations[`${PREFIX}service-account`] = "puller";
    this.world.cluster.create({
      metadata: {
        namespace,
        name,
        labels: { [IDENTITY]: identity.replaceAll("/", "."), team: "x" },
        annotations,
      },
      type: this.random() < RARE ? "Opaque" : "kubernetes.io/dockerconfigjson",
      ...this.random() < RARE && { immutable: true },
      data: { [DATA_KEY]: encode(this.pick(CONFIGS)), other: "AAAA" },
    });
  }

  /** Another writer puts a Secret right, or makes it anew if no write can. */
  mend(key: string, { target, amount }: Action): void {
    const secret = this.world.cluster.secrets.get(key);
    if (!secret || secret.metadata.deletionTimestamp) {
      if (secret) this.world.cluster.delete(key);
      this.make(target);
    } else {
      const labels = { [IDENTITY]: this.identityAt(amount).replaceAll("/", ".") };
      const annotations = { [`${PREFIX}service-account`]: null, [IDENTITY]: null };
      this.disturb(key, { metadata: { labels, annotations }, data: { [DATA_KEY]: encode("{}") } });
    }
  }

  remove(number: number): void {
    const secret = this.secretAt(number);
    if (secret) this.world.cluster.delete(keyOf(secret.metadata));
  }

  /** Backs etcd up; returns what restores it. */
  backUp(): () => void {
    const restore = this.world.cluster.backUp();
    return () => {
      restore();
      this.#compactTo = 0;
      this.invariants.forgetChanges();
    };
  }

  // Time

  /** Does something again and again; returns what ends it. */
  every(ms: number, act: () => void): () => void {
    const { clock } = this.world;
    const again = () => {
      act();
      timer = clock.setTimeout(again, ms);
    };
    let timer = clock.setTimeout(again, ms);
    return () => clock.clearTimeout(timer);
  }

  /** Lets time pass to the given instant, and judges what comes of it. */
  async passTo(tick: number): Promise<void> {
    const { clock } = this.world;
    while (clock.tick < tick) {
      await clock.advance(Math.min(STEP_MS, tick - clock.tick));
      this.invariants.check();
      if (clock.tick >= this.#compactAt) this.#compact();
      if (clock.tick < this.#lookAt) continue;
      this.#lookAt = clock.tick + LOOK_MS;
      this.invariants.checkKnown();
    }
  }

  #compact(): void {
    const { clock, cluster } = this.world;
    if (cluster.compactedTo < this.#compactTo) cluster.compact(this.#compactTo);
    this.#compactTo = cluster.version;
    this.#compactAt = clock.tick + COMPACT_MS;
  }
}

function first<T, R>(faults: Set<(request: T) => R>, request: T): R | undefined {
  for (const fault of faults) {
    const result = fault(request);
    if (result !== undefined) return result;
  }
}

/** Carries out a plan. The same plan gives the same report, to the byte. */
export async function simulate(
  plan: Plan,
  onLine: (line: string) => void = () => {},
): Promise<Report> {
  const hash = createHash("sha256");
  const lines: string[] = [];
  const run = new Run(plan, (line) => {
    hash.update(line);
    lines.push(line);
    if (lines.length > KEPT_LINES) lines.shift();
    onLine(line);
  });
  let breach: Report["breach"];
  try {
    await carryOut(run);
    await run.invariants.checkEnd();
  } catch (error) {
    if (!(error instanceof Breach)) throw error;
    breach = { what: error.message, at: new Date(run.world.clock.now()).toISOString(), lines };
  }
  for (const replica of run.replicas) replica.stop();
  await run.world.clock.advance(0);
  const { figures } = run.invariants;
  hash.update(JSON.stringify(figures));
  return { digest: hash.digest("hex"), ...figures, ...breach && { breach } };
}

interface Ending {
  at: number;
  action: Action;
  end: () => void;
}

async function carryOut(run: Run): Promise<void> {
  const start = run.world.clock.tick;
  const endings: Ending[] = [];
  async function passTo(at: number): Promise<void> {
    for (let next; (next = endings[0]) && next.at <= at;) {
      await run.passTo(start + next.at);
      endings.shift();
      endAction(run, next);
    }
    await run.passTo(start + at);
  }
  for (const action of run.plan.actions) {
    await passTo(action.at);
    const ending = beginAction(run, action);
    endings.splice(endings.findLastIndex(({ at }) => at <= ending.at) + 1, 0, ending);
  }
  await passTo(run.plan.length);
}

function beginAction(run: Run, action: Action): Ending {
  const { invariants } = run;
  invariants.check();
  invariants.checkKnown();
  run.say(`begins: ${action.kind} (${action.id})`);
  if (isFault(action)) invariants.beginFault();
  const endShort = isShortening(action) ? invariants.shortenLives() : undefined;
  const end = begin(run, action);
  const endAll = () => {
    end?.();
    endShort?.();
  };
  return { at: action.at + (end ? action.lasts : 0), action, end: endAll };
}

function endAction(run: Run, { action, end }: Ending): void {
  run.say(`ends: ${action.kind} (${action.id})`);
  end();
  if (isFault(action)) run.invariants.endFault(recoveryFrom(action));
}
