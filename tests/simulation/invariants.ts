/**
 * What has to hold in every run, whatever happens in it:
 *
 * - (a) while both sides work, each Secret holds a token of its own that has not expired
 * - (b) exchanges, writes and watches stay under a budget
 * - (c) nothing else is written, and nothing in a Secret is lost
 * - (d) nothing is kept of a Secret that is gone
 * - (e) after the last fault all is well
 * - (f) no token is told
 * - (g) `/healthz` and `/readyz` are right
 * - (h) a Secret that cannot be filled is reported
 *
 * What befalls some of the Secrets only excuses these; all of this holds for the others.
 */
import type { Secret } from "../../k8s.ts";
import { type ApiRequest, type Change, keyOf } from "../virtual/cluster.ts";
import { CANARY, type Replica } from "../virtual/world.ts";
import type { ExchangeRequest } from "../virtual/issuer.ts";
import { Budgets, spacingFor } from "./budgets.ts";
import {
  accountOf,
  dueAt,
  encode,
  goodUntil,
  identityOf,
  isEligible,
  isLabelled,
  lifeOf,
  othersOf,
  refreshOf,
  tokensOf,
} from "./judge.ts";
import { CONTROLLER, HOUR, MIN, S } from "../support/names.ts";
import type { Plan, Stage } from "./stage.ts";

/** After another writer's last change: the back-off of failed writes (1 min), that of watches (5 s), slow answers. */
const SETTLING_MS = 80 * S;
/** A request that was given up goes on for a minute; a list or watch is given up after 2 min. */
const STUCK_MS = 3 * MIN + S;
/** A list or watch that fails is tried again after 5 s at most. */
const LISTING_MS = 10 * S;
/** What a Secret needs is reported within this time, once the API server takes events again. */
const REPORTING_MS = 30 * S;
/** One reason for one Secret is reported every 5 min at most; each Secret is looked at every minute at least. */
const EVENT_SPACING_MS = 5 * MIN;
const REPORTING_AGAIN_MS = EVENT_SPACING_MS + MIN + REPORTING_MS;
/** An event takes a place for so long. */
const EVENT_PLACE_MS = 5 * S;
/** A refresh is served with a token that was issued since, or just before: exchanges are 10 s apart. */
const NEW_TOKEN_MS = 11 * S;
/** A clock shows whole seconds in a token. */
const ROUNDING_MS = 1 * S;
/**
 * Of one replica between two looks, half a minute at most: one each time that it is woken (300, as they are 100 ms apart),
 * and a few for each request.
 */
const MAX_TIMERS = 1_000;
/** Once all Secrets are gone: longer than any request under way, and than a report is remembered. */
const LETTING_GO_MS = 6 * MIN;
/** Longer than any token lives, and any clock is off. */
const REMEMBERED_MS = 6 * HOUR;

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
  /** From then on it has to be well. */
  settledAt: number;
  /** Since when nothing can be done for it, if nothing can. */
  idleFrom: number;
  /**
   * When each replica wrote it last, and how far the next write of that one has to be apart. Who takes the label off and
   * puts it on again makes as many changes as the controller writes: it starts afresh, as a Secret that is deleted.
   */
  wrote: Map<string, { at: number; spacing: number }>;
  /** It asks for a refresh, and must not from then on. */
  servedAt: number;
  refresh: string | undefined;
  /** When that was asked for. */
  askedAt: number;
}

/** A token that the issuer gave. */
interface Issued {
  identity: string;
  subject: string;
  /** The replicas that it was given to, and when each was last. */
  to: Map<string, number>;
  forgottenAt: number;
}

export class Invariants {
  /** What was found between two looks. */
  breach: string | undefined;
  readonly figures = { exchanges: 0, writes: 0, requests: 0 };
  readonly #run: Stage;
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
  /** Which Secrets nothing is promised for, though it is for the others. */
  readonly #excuses = new Set<(secret: Secret) => boolean>();
  /** Those of a namespace whose list gets no answer, which a replica waits for; and until when one does. */
  readonly #unlisted = new Set<(secret: Secret) => boolean>();
  #listedAt = 0;
  /** Until then some were. */
  #excusedUntil = 0;
  /** How much lets tokens, as a replica sees them, live for seconds; and until when one did. */
  #shorteners = 0;
  #shortLivedUntil = 0;
  /** When a Secret came or went last. */
  #cameOrWentAt = 0;
  /** When the last Warning was written: that a Secret was made anew is no reason for another. */
  readonly #reportedAt = new Map<string, number>();
  /** Until when nothing need be reported, by Secret. */
  readonly #silentUntil = new Map<string, number>();
  /** Requests of events, of the last minute. */
  #events: ApiRequest[] = [];
  /** When a replica was seen first. */
  readonly #startedAt = new Map<string, number>();

  constructor(run: Stage) {
    this.#run = run;
  }

  beginFault(): void {
    this.#faults++;
  }

  /** Everything is well again so much later. */
  endFault(recoveryMs: number): void {
    this.#faults--;
    this.#calmAt = Math.max(this.#calmAt, this.#run.world.clock.tick + recoveryMs);
  }

  /** Nothing is promised for these Secrets, whose lists may get no answer at all; returns what ends it, to be well again so much later. */
  excuse(
    isExcused: (secret: Secret) => boolean,
    recoveryMs: number,
    isListed = true,
  ): () => void {
    const own = (secret: Secret) => isExcused(secret);
    this.#excuses.add(own);
    if (!isListed) this.#unlisted.add(own);
    return () => {
      this.#excuses.delete(own);
      this.#unlisted.delete(own);
      if (!isListed) this.#listedAt = this.#run.world.clock.tick + recoveryMs;
      const until = this.#run.world.clock.tick + recoveryMs;
      this.#excusedUntil = Math.max(this.#excusedUntil, until);
      for (const [key, standing] of this.#standings) {
        if (!isExcused(standing.secret)) continue;
        standing.settledAt = Math.max(standing.settledAt, until);
        // A report that was not written counts as one.
        this.#silentUntil.set(key, until + EVENT_SPACING_MS);
      }
    };
  }

  /** Tokens live for seconds, as a replica sees them: exchanges and writes may be a second apart. */
  shortenLives(): () => void {
    this.#shorteners++;
    return () => {
      this.#shorteners--;
      this.#shortLivedUntil = this.#run.world.clock.tick + 2 * MIN;
    };
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
    this.#events = this.#events.filter(({ at }) => at > tick - EVENT_SPACING_MS - MIN);
    for (const [key, standing] of this.#standings) {
      this.#judge(key, standing, tick, world.clock.now());
    }
    for (const replica of replicas) {
      this.#judgeHealth(replica, tick);
      this.#judgePending(replica, tick);
      const { armed } = replica.clock;
      replica.clock.armed = 0;
      if (armed > MAX_TIMERS) throw new Breach(`(b) ${replica.name} set ${armed} timers`);
    }
    if (world.broken.length > 0) throw new Breach(`(c) ${world.broken[0]}`);
  }

  /** What a replica knows of, once all has been well for a while: this many Secrets. */
  checkKnown(): void {
    const { world, replicas } = this.#run;
    const { tick } = world.clock;
    const isExcused = this.#excuses.size > 0 || tick < this.#excusedUntil;
    if (!this.#isCalm() || isExcused || tick < this.#cameOrWentAt + LISTING_MS) return;
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
    // One for the sweep, and one for each watch.
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
      this.#take(secret, clock.tick, clock.tick + SETTLING_MS, Infinity);
    }
  }

  #readLines(): void {
    const { lines, cluster: { events } } = this.#run.world;
    for (const line of lines.splice(0)) {
      this.#run.onLine(line);
      if (isLeak(line)) throw new Breach(`(f) a part of a token in the log: ${line}`);
    }
    for (const { note, type, regarding, at } of events.splice(0)) {
      if (isLeak(note)) throw new Breach(`(f) a part of a token in an event: ${note}`);
      if (type === "Warning") this.#reportedAt.set(keyOf(regarding), at);
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

  #note({ identity, subject, replica, endedAt }: ExchangeRequest, token: string): void {
    const { clock } = this.#run.world;
    const issued = this.#issued.get(token) ?? { identity, subject, to: new Map(), forgottenAt: 0 };
    issued.to.set(replica, Math.min(endedAt, clock.tick));
    issued.forgottenAt = clock.tick + REMEMBERED_MS;
    this.#issued.set(token, issued);
    const [oldest] = this.#issued;
    if (oldest![1].forgottenAt < clock.tick) this.#issued.delete(oldest![0]);
  }

  #judgeExchange(request: ExchangeRequest): void {
    const { identity, subject } = request;
    this.figures.exchanges++;
    const excess = this.#budgets.spendExchange(
      request,
      this.#isShortLived(),
      (token, at) => this.#leftOf(token, request.replica, at),
    );
    if (excess) throw new Breach(`(b) ${excess}`);
    if (!this.#named.has(`${identity} ${subject}`)) {
      throw new Breach(`(c) ${subject} never asked for ${identity}`);
    }
  }

  #isShortLived = () => this.#shorteners > 0 || this.#run.world.clock.tick < this.#shortLivedUntil;

  /** What a token had left for a replica, at a time since which no clock was set; undefined if one may have been. */
  #leftOf(token: string, name: string, at: number): number | undefined {
    const { clock } = this.#run.world;
    const skew = this.#run.replicas.find((replica) => replica.name === name)?.clock.skew;
    const isKnown = this.#isCalm() && at >= this.#calmAt && skew !== undefined;
    return isKnown ? lifeOf(token).expiresAt - (clock.now() - clock.tick + at + skew) : undefined;
  }

  #judgeRequest(request: ApiRequest): void {
    this.figures.requests++;
    if (request.verb === "event") this.#events.push(request);
    const excess = this.#budgets.spendApi(request, this.#isShortLived());
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

  #readChange({ at, now, type, secret, by, seen }: Change): void {
    const key = keyOf(secret.metadata);
    const before = this.#standings.get(key);
    if (before) this.#judge(key, before, at, now);
    if (seen === "ADDED" || seen === "DELETED") this.#cameOrWentAt = at;
    if (type === "DELETED") return void this.#standings.delete(key);
    if (seen === "DELETED") before?.wrote.clear();
    if (by) this.#judgeWrite(before!, secret, by, at, now);
    // A change does not end what excuses the Secret for longer, as a Retry-After does.
    const settledAt = Math.max(before?.settledAt ?? 0, by ? 0 : at + SETTLING_MS);
    const isServed = refreshOf(secret) === undefined;
    this.#take(
      secret,
      at,
      settledAt,
      isServed ? Infinity : Math.min(before?.servedAt ?? Infinity, settledAt),
    );
  }

  #take(secret: Secret, at: number, settledAt: number, servedAt: number): void {
    const eligible = isEligible(secret);
    const before = this.#standings.get(keyOf(secret.metadata));
    const isIdle = isLabelled(secret) && !eligible && !secret.metadata.deletionTimestamp;
    this.#standings.set(keyOf(secret.metadata), {
      secret,
      isEligible: eligible,
      goodUntil: eligible ? goodUntil(secret, this.#run.registries) : 0,
      settledAt,
      servedAt,
      askedAt: refreshOf(secret) === before?.refresh ? before?.askedAt ?? at : at,
      refresh: refreshOf(secret),
      idleFrom: isIdle ? Math.min(before?.idleFrom ?? Infinity, at) : Infinity,
      wrote: before?.wrote ?? new Map(),
    });
    const subject = subjectOf(secret);
    if (subject !== undefined) this.#named.add(subject).add(`${identityOf(secret)} ${subject}`);
  }

  /** Whether both sides have worked for a while, so that all can be well. */
  #isCalm = () => this.#faults === 0 && this.#run.world.clock.tick >= this.#calmAt;

  /** (a), and (e) at the end: it holds a good token, if it had the time; and no wish is left. */
  #judge(key: string, standing: Standing, at: number, now: number): void {
    const { secret, goodUntil } = standing;
    const isExcused = [...this.#excuses].some((isExcused) => isExcused(secret));
    if (!this.#isCalm() || isExcused) return;
    this.#judgeReports(key, standing, at);
    if (!standing.isEligible || at < standing.settledAt) return;
    if (goodUntil === 0) {
      throw new Breach(`(a) ${key} holds no token of its own: ${JSON.stringify(secret.metadata)}`);
    }
    if (goodUntil <= now) {
      throw new Breach(`(a) ${key} holds a token that expired ${now - goodUntil} ms ago`);
    }
    if (at >= standing.servedAt) throw new Breach(`(a) ${key} asks for a refresh in vain`);
  }

  /** (h): what cannot be filled is reported soon; and from time to time, as long as it cannot. */
  #judgeReports(key: string, { idleFrom, settledAt }: Standing, at: number): void {
    const reportedAt = this.#reportedAt.get(key) ?? -Infinity;
    const silentUntil = this.#silentUntil.get(key) ?? 0;
    const since = Math.max(idleFrom, this.#calmAt + EVENT_SPACING_MS, settledAt, silentUntil);
    const isNew = at >= since + REPORTING_MS && reportedAt < idleFrom - EVENT_SPACING_MS;
    const isOld = at >= since + REPORTING_AGAIN_MS && reportedAt < at - REPORTING_AGAIN_MS;
    if (isNew || isOld) throw new Breach(`(h) ${key} cannot be filled, which is not reported`);
  }

  /** (c): a write of the controller brings a good token to a Secret that asks for it, and changes nothing else. */
  #judgeWrite(before: Standing, secret: Secret, by: string, at: number, now: number): void {
    this.figures.writes++;
    const { registries, plan } = this.#run;
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
      const isRefreshed = before.refresh !== undefined && refreshOf(secret) === undefined;
      if (isRefreshed && issued!.to.get(by)! < before.askedAt - NEW_TOKEN_MS) {
        fail("gets a token from before a refresh was asked for");
      }
    }
    const until = goodUntil(secret, registries);
    if (until === 0) fail("gets a token that is no good");
    const wrote = before.wrote.get(by);
    before.wrote.set(by, { at, spacing: spacingFor(until - now - clockOff(plan)) });
    if (!this.#isCalm()) return;
    if (until <= now) fail("gets a token that has expired");
    if (wrote && at < wrote.at + wrote.spacing && wrote.at >= this.#calmAt) {
      fail(`is written again after ${at - wrote.at} ms, not ${wrote.spacing}`);
    }
    if (refreshOf(before.secret) !== undefined || before.goodUntil <= now + clockOff(plan)) return;
    if (before.goodUntil > until) fail("gets a token that ends sooner than the one it had");
    if (dueAt(before.secret, registries) > now + clockOff(plan)) {
      fail("gets a token before that which it had is due");
    }
  }

  /** (d): a timer for each Secret at most, and for what is under way. */
  #judgePending({ name, clock }: Replica, tick: number): void {
    const { scopes, plan } = this.#run;
    const own = this.#events.filter(({ replica }) => replica === name);
    const events = own.filter(({ at, endedAt }) =>
      endedAt === Infinity || at > tick - EVENT_PLACE_MS
    );
    const remembered = own.filter(({ at }) => at > tick - EVENT_SPACING_MS);
    // A Warning that waits for its turn is remembered, too. The plan's actions may make further Secrets.
    const secrets = Math.max(plan.secrets, this.#standings.size);
    const most = 2 * secrets + 1 + scopes + 2 * events.length + remembered.length;
    const pending = clock.pending();
    if (pending > most) throw new Breach(`(d) ${name} has ${pending} timers, not ${most}`);
  }

  /** (g): a process that works says so, and one that is stuck says that. */
  #judgeHealth({ name, livenessError, readinessError }: Replica, tick: number): void {
    const stuck = livenessError();
    const since = this.#run.wedgedAt(name);
    if (stuck && since === undefined) throw new Breach(`(g) /healthz of ${name} fails: ${stuck}`);
    if (!stuck && since !== undefined && tick > since + STUCK_MS) {
      throw new Breach(`(g) ${name} is stuck and well`);
    }
    const startedAt = this.#startedAt.get(name) ?? tick;
    this.#startedAt.set(name, startedAt);
    const unready = readinessError();
    const isListed = this.#unlisted.size === 0 && tick > this.#listedAt;
    if (unready && isListed && this.#isCalm() && tick > startedAt + LISTING_MS) {
      throw new Breach(`(g) /readyz of ${name} fails: ${unready}`);
    }
    // As the kubelet does.
    if (stuck) this.#run.restart(name);
  }
}

/** Whom a Secret names to be exchanged for; undefined if nothing is to be exchanged for it. */
function subjectOf(secret: Secret): string | undefined {
  const account = accountOf(secret);
  if (!isEligible(secret)) return undefined;
  return account === undefined
    ? CONTROLLER
    : `system:serviceaccount:${secret.metadata.namespace}:${account}`;
}

/** What a replica's clock is off by at most, and what is lost where a token shows whole seconds. */
const clockOff = ({ skew }: Plan) => skew / 2 + ROUNDING_MS;

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
