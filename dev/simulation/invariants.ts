/**
 * What has to hold in every run, whatever happens in it:
 *
 * - (a) while both sides work, each Secret holds a token of its own that has not expired
 * - (b) exchanges, writes and watches stay under a budget
 * - (c) nothing else is written, and nothing in a Secret is lost
 * - (d) nothing is kept of a Secret that is gone
 * - (e) after the last fault all is well
 * - (f) no token is told
 * - (g) `/healthz` is right
 */
import type { Secret } from "../../k8s.ts";
import {
  type ApiRequest,
  CANARY,
  type Change,
  CONTROLLER,
  type ExchangeRequest,
  keyOf,
  type Replica,
} from "../virtual.ts";
import { Budgets } from "./budgets.ts";
import {
  accountOf,
  encode,
  goodUntil,
  identityOf,
  isEligible,
  isLabelled,
  othersOf,
  refreshOf,
  tokensOf,
} from "./judge.ts";
import { HOUR_MS, MINUTE_MS, SECOND_MS } from "./plan.ts";
import type { Run } from "./run.ts";

/** After the last fault: a pause that was asked for (5 min), or a refusal's back-off (5 min), and a failed try's after it. */
const RECOVERY_MS = 11 * MINUTE_MS;
/** After another writer's last change: a back-off of conflicts (1 min), the spacing of writes (30 s), slow answers. */
const SETTLING_MS = 3 * MINUTE_MS;
/** A replica that is stuck says so: 5 min after its watch last did anything, which a pause of 5 min may precede. */
const STUCK_MS = 11 * MINUTE_MS;
/** A token that is due is not replaced by one that ends sooner; by a clock that is off by 10 s. */
const CLOCK_OFF_MS = 11 * SECOND_MS;
/**
 * Of one replica between two looks, half a minute at most: one each time that it is woken (300, as they are 100 ms apart),
 * and a few for each request.
 */
const MAX_TIMERS = 1_000;
/** Once all Secrets are gone: longer than any request and back-off under way. */
const LETTING_GO_MS = 2 * MINUTE_MS;
/** Longer than any token lives, and any clock is off. */
const REMEMBERED_MS = 6 * HOUR_MS;

/** One of these is in any part of a token: its beginning, or any of its signature, as it is or within an `auth`. */
const TOKEN_PARTS = ["eyJ", CANARY, ...[0, 1, 2].map(encodedCanary)];
const isLeak = (text: string) => TOKEN_PARTS.some((part) => text.includes(part));

/** What base64 surely makes of the canary that so many bytes stand before. */
function encodedCanary(before: number): string {
  const [start, end] = [before, before + CANARY.length].map((bytes) => bytes * 8 / 6);
  return encode("x".repeat(before) + CANARY).slice(Math.ceil(start!), Math.floor(end!));
}

/** An invariant that does not hold. */
export class Breach extends Error {}

/** What is known of a Secret, and judged. */
interface Standing {
  secret: Secret;
  isEligible: boolean;
  /** Until when it holds a good token, in true time. */
  goodUntil: number;
  /** Somebody has put a token into it that the issuer never gave: nothing is promised until that is replaced. */
  isForged: boolean;
  /** From then on it has to be well. */
  settledAt: number;
  /** It asks for a refresh, and must not from then on. */
  servedAt: number;
}

/** A token that the issuer gave. */
interface Issued {
  identity: string;
  subject: string;
  /** The replicas that it was given to. */
  to: Set<string>;
  forgottenAt: number;
}

export class Invariants {
  /** What was found between two looks. */
  breach: string | undefined;
  readonly figures = { exchanges: 0, writes: 0, requests: 0 };
  readonly #run: Run;
  readonly #standings = new Map<string, Standing>();
  readonly #budgets = new Budgets();
  readonly #issued = new Map<string, Issued>();
  /** The exchanges that are under way. */
  readonly #open = new Set<ExchangeRequest>();
  /** The service accounts, and the pairs of identity and subject, that a Secret has ever named. */
  readonly #named = new Set<string>();
  #seenVersion = 0;
  #faults = 0;
  #calmAt = 0;
  /** When a fault began or ended last. */
  #changedAt = 0;

  constructor(run: Run) {
    this.#run = run;
  }

  beginFault(): void {
    this.#faults++;
    this.#changedAt = this.#run.world.clock.tick;
  }

  endFault(): void {
    this.#faults--;
    this.#changedAt = this.#run.world.clock.tick;
    this.#calmAt = this.#run.world.clock.tick + RECOVERY_MS;
  }

  /** Throws a {@linkcode Breach} if anything does not hold. */
  check(): void {
    const { world, replicas } = this.#run;
    const { tick } = world.clock;
    if (this.breach) throw new Breach(this.breach);
    this.#readLines();
    const exchanges = this.#readExchanges();
    this.#readChanges();
    for (const request of exchanges) this.#judgeExchange(request);
    for (const request of world.cluster.requests.splice(0)) this.#judgeRequest(request);
    for (const [key, standing] of this.#standings) {
      this.#judge(key, standing, tick, world.clock.now());
    }
    for (const replica of replicas) {
      this.#judgeHealth(replica, tick);
      const { armed } = replica.clock;
      replica.clock.armed = 0;
      if (armed > MAX_TIMERS) throw new Breach(`(b) ${replica.name} set ${armed} timers`);
    }
    if (world.broken.length > 0) throw new Breach(`(c) ${world.broken[0]}`);
  }

  /** What a replica knows of, once all has been well for a while: this many Secrets. */
  checkKnown(): void {
    const { world, replicas } = this.#run;
    const isSettled = [...this.#standings.values()].every(({ settledAt }) =>
      settledAt <= world.clock.tick
    );
    if (!this.#isCalm() || !isSettled) return;
    const expected = [...world.cluster.secrets.values()].filter(isLabelled).length;
    for (const replica of replicas) compareKnown(replica, expected);
  }

  /** What has to hold at the end, when all has long been well; and nothing is left of Secrets that are gone. */
  async checkEnd(): Promise<void> {
    const { world, replicas, scopes } = this.#run;
    this.check();
    this.checkKnown();
    for (const key of [...world.cluster.secrets.keys()]) world.cluster.delete(key);
    await world.clock.advance(LETTING_GO_MS);
    this.check();
    // One timer for all Secrets, and one for each watch.
    const timers = 1 + scopes;
    for (const replica of replicas) {
      compareKnown(replica, 0);
      const pending = replica.clock.pending();
      if (pending > timers) {
        throw new Breach(`(d) ${replica.name} has ${pending} timers and no Secret`);
      }
    }
  }

  /** After a restore from a backup all may be as it was long ago: a `refresh` that was served, too. */
  forgetChanges(): void {
    const { cluster, clock } = this.#run.world;
    this.#seenVersion = cluster.version;
    this.#standings.clear();
    for (const secret of cluster.secrets.values()) {
      this.#take(secret, clock.tick + SETTLING_MS, Infinity);
    }
  }

  #readLines(): void {
    const { lines, cluster: { events } } = this.#run.world;
    for (const line of lines.splice(0)) {
      this.#run.onLine(line);
      if (isLeak(line)) throw new Breach(`(f) a part of a token in the log: ${line}`);
    }
    for (const { note } of events.splice(0)) {
      if (isLeak(note)) throw new Breach(`(f) a part of a token in an event: ${note}`);
    }
  }

  /** Which tokens there are, and who has them. */
  #readExchanges(): ExchangeRequest[] {
    const asked = this.#run.world.issuer.requests.splice(0);
    for (const request of asked) this.#open.add(request);
    for (const request of this.#open) {
      if (request.token) this.#note(request, request.token);
      if (request.endedAt !== Infinity) this.#open.delete(request);
    }
    return asked;
  }

  #note({ identity, subject, replica }: ExchangeRequest, token: string): void {
    const { clock } = this.#run.world;
    const issued = this.#issued.get(token) ?? { identity, subject, to: new Set(), forgottenAt: 0 };
    issued.to.add(replica);
    issued.forgottenAt = clock.tick + REMEMBERED_MS;
    this.#issued.set(token, issued);
    const [oldest] = this.#issued;
    if (oldest![1].forgottenAt < clock.tick) this.#issued.delete(oldest![0]);
  }

  #judgeExchange(request: ExchangeRequest): void {
    const { identity, subject } = request;
    this.figures.exchanges++;
    const excess = this.#budgets.spendExchange(request);
    if (excess) throw new Breach(`(b) ${excess}`);
    if (!this.#named.has(`${identity} ${subject}`)) {
      throw new Breach(`(c) ${subject} never asked for ${identity}`);
    }
  }

  #judgeRequest(request: ApiRequest): void {
    this.figures.requests++;
    const excess = this.#budgets.spendApi(request);
    if (excess) throw new Breach(`(b) ${excess}`);
    const account = `system:serviceaccount:${request.namespace}:${request.name}`;
    if (request.verb === "token" && !this.#named.has(account)) {
      throw new Breach(`(c) nobody named ${account}`);
    }
  }

  #readChanges(): void {
    const { history } = this.#run.world.cluster;
    const start = history.findLastIndex(({ version }) => version <= this.#seenVersion) + 1;
    for (const change of history.slice(start)) this.#readChange(change);
    this.#seenVersion = history.at(-1)?.version ?? this.#seenVersion;
  }

  #readChange({ at, now, type, secret, by }: Change): void {
    const key = keyOf(secret.metadata);
    const before = this.#standings.get(key);
    if (before) this.#judge(key, before, at, now);
    if (type === "DELETED") return void this.#standings.delete(key);
    if (by) this.#judgeWrite(before!, secret, by, now);
    const settledAt = by ? before!.settledAt : at + SETTLING_MS;
    const isServed = refreshOf(secret) === undefined;
    this.#take(
      secret,
      settledAt,
      isServed ? Infinity : Math.min(before?.servedAt ?? Infinity, settledAt),
    );
  }

  #take(secret: Secret, settledAt: number, servedAt: number): void {
    const { registries } = this.#run;
    const eligible = isEligible(secret);
    const until = eligible ? goodUntil(secret, registries) : 0;
    const isForged = until > 0 &&
      tokensOf(secret, registries).some((token) => !this.#issued.has(token));
    const standing = {
      secret,
      isEligible: eligible,
      goodUntil: until,
      isForged,
      settledAt,
      servedAt,
    };
    this.#standings.set(keyOf(secret.metadata), standing);
    const subject = subjectOf(secret);
    if (subject !== undefined) this.#named.add(subject).add(`${identityOf(secret)} ${subject}`);
  }

  /** Whether both sides have worked for a while, so that all can be well. */
  #isCalm = () => this.#faults === 0 && this.#run.world.clock.tick >= this.#calmAt;

  /** (a), and (e) at the end: it holds a good token, if it had the time; and no wish is left. */
  #judge(key: string, standing: Standing, at: number, now: number): void {
    const { secret, goodUntil } = standing;
    if (!standing.isEligible || standing.isForged || !this.#isCalm() || at < standing.settledAt) {
      return;
    }
    if (goodUntil === 0) {
      throw new Breach(`(a) ${key} holds no token of its own: ${JSON.stringify(secret.metadata)}`);
    }
    if (goodUntil <= now) {
      throw new Breach(`(a) ${key} holds a token that expired ${now - goodUntil} ms ago`);
    }
    if (at >= standing.servedAt) throw new Breach(`(a) ${key} asks for a refresh in vain`);
  }

  /** (c): a write of the controller brings a good token to a Secret that asks for it, and changes nothing else. */
  #judgeWrite(before: Standing, secret: Secret, by: string, now: number): void {
    this.figures.writes++;
    const { registries } = this.#run;
    const key = keyOf(secret.metadata);
    const fail = (what: string) => {
      throw new Breach(`(c) ${key} ${what}`);
    };
    if (!before.isEligible) fail("is written to, though it is not eligible");
    const [was, is] = [before.secret, secret].map((one) => othersOf(one, registries));
    if (was !== is) fail(`loses something: ${was} becomes ${is}`);
    for (const token of tokensOf(secret, registries)) {
      const issued = this.#issued.get(token);
      if (!issued?.to.has(by)) fail("gets a token that the issuer never gave to its writer");
      if (issued?.identity !== identityOf(secret)) fail(`gets a token of ${issued?.identity}`);
      if (issued?.subject !== subjectOf(secret)) {
        fail(`gets a token that ${issued?.subject} was given`);
      }
    }
    if (!this.#isCalm()) return;
    const until = goodUntil(secret, registries);
    if (until <= now) fail("gets a token that is no good");
    const isSooner = before.goodUntil > until && before.goodUntil > now + CLOCK_OFF_MS;
    if (isSooner && refreshOf(before.secret) === undefined) {
      fail("gets a token that ends sooner than the one it had");
    }
  }

  /** (g): a process that works says so, and one that is stuck says that. */
  #judgeHealth({ name, livenessError }: Replica, tick: number): void {
    const stuck = livenessError();
    const since = this.#run.wedgedAt(name);
    if (stuck && since === undefined) throw new Breach(`(g) /healthz of ${name} fails: ${stuck}`);
    // While something else fails, that counts as work that is done.
    const isAlone = this.#faults === 1 && tick > this.#changedAt + STUCK_MS;
    if (!stuck && isAlone && since !== undefined && tick > since + STUCK_MS) {
      throw new Breach(`(g) ${name} is stuck and well`);
    }
    // As the kubelet does.
    if (stuck) this.#run.restart(name);
  }
}

/** Whom a Secret names to be exchanged for; undefined if that is no valid account. */
function subjectOf(secret: Secret): string | undefined {
  const account = accountOf(secret);
  if (account === undefined) return CONTROLLER;
  return isEligible(secret)
    ? `system:serviceaccount:${secret.metadata.namespace}:${account}`
    : undefined;
}

/** (d) */
function compareKnown({ name, renderMetrics }: Replica, expected: number): void {
  const metrics = renderMetrics();
  const sum = [...metrics.matchAll(/_secrets\{state="\w+"\} (\d+)/g)].reduce(
    (all, [, size]) => all + +size!,
    0,
  );
  if (sum !== expected) throw new Breach(`(d) ${name} knows ${sum} Secrets of ${expected}`);
  if (isLeak(metrics)) throw new Breach("(f) a part of a token in the metrics");
}
