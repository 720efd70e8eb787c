/**
 * A world in virtual time to run the whole controller in: a clock that is advanced, an API server and an issuer in
 * memory, any number of replicas. Nothing in it waits, and nothing is random but by the seed. Everything that a replica
 * tells is kept and can be searched for tokens.
 */
import process from "node:process";
import { type Config, Controller, createLog, readConfig } from "../../main.ts";
import { ApiError, type KubernetesApi, type Secret, type WatchEvent } from "../../k8s.ts";
import { CONTROLLER, DATA_KEY, IDENTITY } from "../support/names.ts";

const EPOCH_MS = Date.parse("2027-01-01T00:00:00Z");
/** Of each answer, unless a fault says otherwise. */
const LATENCY_MS = 5;
/** As a kube-apiserver: a bookmark about every minute, and one before the end. */
const BOOKMARK_MS = 60_000;
const LAST_BOOKMARK_MS = 2_000;
/** What the client waits for an answer. */
const SILENCE_MS = 30_000;
/** What the client lets a silent watch live beyond its time-out. */
const WATCH_GRACE_MS = 10_000;
/** What a kube-apiserver takes in the note of an event. */
const MAX_NOTE_BYTES = 1024;

/** Uniform between 0 and 1 (mulberry32). */
export function seeded(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let hash = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    hash = (hash + Math.imul(hash ^ (hash >>> 7), 61 | hash)) ^ hash;
    return ((hash ^ (hash >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Lets all promises settle that do not wait for time. */
const settle = () => new Promise<void>((resolve) => void process.nextTick(resolve));

interface Timer {
  at: number;
  callback: () => void;
}

/** Time that passes by {@linkcode VirtualClock.advance} only. */
export class VirtualClock {
  /** The monotonic time: a process has lived a moment before it looks at it. */
  tick = 40;
  /** What the true time is ahead by: the machines slept. */
  slept = 0;
  readonly #timers: Timer[] = [];

  /** The true time, which the issuer's clock shows. */
  now = () => EPOCH_MS + this.slept + this.tick;

  /** As the runtimes' own: in whole ms, a fraction early at times, and at once beyond 2^31 ms. */
  setTimeout(callback: () => void, ms: number): Timer {
    const delay = ms >= 1 && ms < 2 ** 31 ? Math.floor(ms) : 1;
    const timer = { at: this.tick + delay, callback };
    this.#timers.splice(this.#timers.findLastIndex(({ at }) => at <= timer.at) + 1, 0, timer);
    return timer;
  }

  clearTimeout(timer: unknown): void {
    const index = this.#timers.indexOf(timer as Timer);
    if (index !== -1) this.#timers.splice(index, 1);
  }

  /** Lets time pass: what is due happens in its order. */
  async advance(ms: number): Promise<void> {
    const end = this.tick + ms;
    await settle();
    for (let timer; (timer = this.#timers[0]) && timer.at <= end;) {
      this.#timers.shift();
      this.tick = Math.max(this.tick, timer.at);
      timer.callback();
      await settle();
    }
    this.tick = end;
  }

  /** Resolves after so long, or when `waiter` is woken; rejects when the signal says so. */
  wait(waiter: { wake: () => void }, ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = () => {
        this.clearTimeout(timer);
        signal.removeEventListener("abort", end);
        if (signal.aborted) reject(signal.reason);
        else resolve();
      };
      const timer = ms === Infinity ? undefined : this.setTimeout(end, ms);
      waiter.wake = end;
      signal.addEventListener("abort", end);
      if (signal.aborted) end();
    });
  }

  /** Resolves after so long, or never; rejects when the signal says so. */
  sleep = (ms: number, signal: AbortSignal) => this.wait({ wake: () => {} }, ms, signal);

  /** The clock of one replica: its wall clock may be wrong, its timers are counted and may be lost. */
  view() {
    const own = new Set<unknown>();
    const view = {
      /** What its wall clock is ahead by. */
      skew: 0,
      /** How many timers it was asked for. */
      armed: 0,
      now: () => this.now() + view.skew,
      monotonic: () => this.tick,
      setTimeout: (callback: () => void, ms: number): unknown => {
        view.armed++;
        const timer = this.setTimeout(() => {
          own.delete(timer);
          callback();
        }, ms);
        own.add(timer);
        return timer;
      },
      clearTimeout: (timer: unknown) => {
        own.delete(timer);
        this.clearTimeout(timer);
      },
      pending: () => own.size,
      /** As the process ends. */
      kill: () => {
        view.loseTimers();
        view.setTimeout = () => undefined;
      },
      loseTimers: () => own.forEach((timer) => this.clearTimeout(timer)),
    };
    return view;
  }
}

/** Base64url of JSON. */
const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
const HEADER = part({ alg: "RS256", kid: "1" });
/** Stands in each signature, again and again, and nowhere else: any part of one betrays itself by it. */
export const CANARY = "CaNaRy";
/** So that a signature is as long as that of a real one. */
const SIGNATURE_REPEATS = 20;

/**
 * What happens to a request: it fails, hangs until the client gives it up, never settles though it was given up (the
 * client is at fault), takes so many ms (infinitely: until the caller gives it up); or it has its effect after `ms`, and
 * then fails, or its answer is under way for so long.
 */
export type Fault = Error | "hang" | "wedged" | number | {
  after?: Error;
  ms?: number;
  answerMs?: number;
} | undefined;

/** One each: what waits for it is kept by nothing else. */
const never = () => new Promise<never>(() => {});

const delayOf = (fault: Fault | string) =>
  typeof fault === "number" ? fault : (fault as { ms?: number } | undefined)?.ms ?? LATENCY_MS;

export interface ApiRequest {
  /** Of the monotonic clock, as all such times. */
  at: number;
  endedAt: number;
  replica: string;
  verb: "list" | "watch" | "get" | "patch" | "event" | "token";
  namespace?: string;
  name?: string;
  /** The version that a watch is to begin from. */
  from?: number;
  body?: unknown;
  /** What it ended with; 0 is no answer. */
  status: number;
}

/** What happened to a Secret. */
export interface Change {
  at: number;
  /** The true time. */
  now: number;
  version: number;
  type: "ADDED" | "MODIFIED" | "DELETED";
  secret: Secret;
  /** The replica that wrote it; undefined is anybody else. */
  by?: string;
  /** Whether it is seen by those who select by the label, and as what. */
  seen?: "ADDED" | "MODIFIED" | "DELETED";
}

export const keyOf = ({ namespace, name }: { namespace: string; name: string }) =>
  `${namespace}/${name}`;
const isSelected = (secret?: Secret) => secret?.metadata.labels?.[IDENTITY] !== undefined;

const isIn = (namespace: string | undefined, { metadata }: Secret) =>
  (namespace ?? metadata.namespace) === metadata.namespace;

/** Merges as RFC 7396 says. */
function merge(target: unknown, patch: unknown): unknown {
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch;
  const merged: Record<string, unknown> = { ...(target as object) };
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete merged[key];
    else merged[key] = merge(merged[key], value);
  }
  return merged;
}

/** A watch that is open. */
interface Watch {
  wake: () => void;
  isDeaf: boolean;
  end?: Error | "end";
}

type Send = <T>(
  fields: Partial<ApiRequest> & Pick<ApiRequest, "verb">,
  signal: AbortSignal,
  work: () => T,
) => Promise<T>;

/**
 * Nodes, leases and Pods are written all the time: what comes in the first minutes after a restore does not reach the
 * version from before it.
 */
const OTHER_WRITES = 100_000;

/** The API server. */
export class VirtualCluster {
  readonly secrets = new Map<string, Secret>();
  readonly history: Change[] = [];
  readonly requests: ApiRequest[] = [];
  // deno-lint-ignore no-explicit-any
  readonly events: any[] = [];
  pageSize = 500;
  /** What happens to each request. */
  fault: (request: ApiRequest) => Fault = () => undefined;
  /** Watches that are opened see nothing, not even their end. */
  isDeaf = false;
  /** What a Secret is once it has come over the wire: by default the very object. */
  onWire: (secret: Secret) => Secret = (secret) => secret;
  /** How long watches live, in ms. */
  watchLife = Infinity;
  /** Watches from an older version than this are refused. */
  compactedTo = 0;
  /** Watches from an older version than this end at once. */
  emptyTo = 0;
  #version = 1000;
  #uid = 0;
  /** How many changes the history has forgotten. */
  #dropped = 0;
  readonly #watches = new Set<Watch>();
  /** How often all connections broke. */
  #cuts = 0;
  readonly #world: VirtualWorld;

  constructor(world: VirtualWorld) {
    this.#world = world;
  }

  /** The newest version. */
  get version(): number {
    return this.#version;
  }

  #record(type: Change["type"], before: Secret | undefined, secret: Secret, by?: string): Secret {
    const version = ++this.#version;
    const stored = { ...secret, metadata: { ...secret.metadata, resourceVersion: `${version}` } };
    if (type === "DELETED") this.secrets.delete(keyOf(stored.metadata));
    else this.secrets.set(keyOf(stored.metadata), stored);
    const isSeen = type !== "DELETED" && isSelected(stored);
    const seen = isSelected(before)
      ? isSeen ? "MODIFIED" : "DELETED"
      : isSeen
      ? "ADDED"
      : undefined;
    this.history.push({
      at: this.#world.clock.tick,
      now: this.#world.clock.now(),
      version,
      type,
      secret: stored,
      by,
      seen,
    });
    for (const watch of this.#watches) watch.wake();
    return stored;
  }

  create(secret: Omit<Secret, "metadata"> & { metadata: Partial<Secret["metadata"]> }): Secret {
    const metadata = { ...secret.metadata, uid: `uid-${++this.#uid}` } as Secret["metadata"];
    return this.#record("ADDED", undefined, structuredClone({ ...secret, metadata }));
  }

  /** Another writer's change, a merge patch. */
  update(key: string, patch: object, by?: string): Secret {
    const before = this.get(key);
    return this.#record("MODIFIED", before, merge(before, patch) as Secret, by);
  }

  delete(key: string): void {
    const before = this.get(key);
    this.#record("DELETED", before, before);
  }

  get(key: string): Secret {
    const secret = this.secrets.get(key);
    if (!secret) {
      throw new ApiError(`secrets "${key}" not found`, { status: 404, reason: "NotFound" });
    }
    return secret;
  }

  /** Ends all watches, by an error or cleanly. */
  endWatches(end: Error | "end" = "end"): void {
    for (const watch of this.#watches) {
      watch.end = end;
      watch.wake();
    }
  }

  /** Breaks all connections: watches end, and what is under way is never answered. */
  cut(error: ApiError): void {
    this.#cuts++;
    this.endWatches(error);
  }

  /** Forgets the changes up to a version: watches from before it are refused. */
  compact(version: number): void {
    this.compactedTo = version;
    const old = this.history.findLastIndex((change) => change.version <= version) + 1;
    this.history.splice(0, old);
    this.#dropped += old;
  }

  /**
   * Keeps all as it is now; returns what restores it, and the version from which it counts. Meanwhile so many other
   * objects are written.
   */
  backUp(otherWrites = OTHER_WRITES): () => void {
    const [secrets, version] = [new Map(this.secrets), this.#version];
    this.#version += otherWrites;
    return () => {
      this.secrets.clear();
      for (const [key, secret] of secrets) this.secrets.set(key, secret);
      this.#version = version;
      // An API server that has just started knows of no change before.
      this.compactedTo = version;
      this.#dropped += this.history.length;
      this.history.length = 0;
    };
  }

  /** Has the watches that are open see nothing any more, as a connection that is half-open. */
  deafen(): void {
    for (const watch of this.#watches) watch.isDeaf = true;
  }

  #patch(key: string, patch: Partial<Secret>, replica: string): Secret {
    const before = this.get(key);
    const { uid, resourceVersion } = patch.metadata ?? {} as Partial<Secret["metadata"]>;
    this.#world.judge(before, patch);
    const isSame = (uid ?? before.metadata.uid) === before.metadata.uid;
    if (
      isSame &&
      (resourceVersion ?? before.metadata.resourceVersion) === before.metadata.resourceVersion
    ) {
      return this.update(key, patch, replica);
    }
    throw new ApiError("the object has been modified", { status: 409, reason: "Conflict" });
  }

  #createEvent(event: { note: string }): void {
    if (Buffer.byteLength(event.note) > MAX_NOTE_BYTES) {
      throw new ApiError("note: can have at most 1024 bytes", { status: 422, reason: "Invalid" });
    }
    this.events.push({ ...event, at: this.#world.clock.tick });
  }

  /** What a replica reaches the API server by. */
  client(replica: string): KubernetesApi {
    const { clock } = this.#world;
    const send: Send = async (fields, signal, work) => {
      const request: ApiRequest = {
        at: clock.tick,
        endedAt: Infinity,
        replica,
        status: 0,
        ...fields,
      };
      this.requests.push(request);
      const fault = this.fault(request);
      if (fault === "wedged") return never();
      const isDead = () => this.#world.dead.has(replica);
      const cuts = this.#cuts;
      try {
        const ms = fault === "hang" ? SILENCE_MS : delayOf(fault);
        await clock.sleep(ms, signal);
        if (isDead()) return never();
        if (cuts !== this.#cuts) {
          throw new ApiError("other side closed", { reason: "UND_ERR_SOCKET" });
        }
        if (fault === "hang") throw new ApiError("silence", { reason: "UND_ERR_HEADERS_TIMEOUT" });
        if (fault instanceof Error) throw fault;
        const result = work();
        if (typeof fault === "object") {
          await clock.sleep(fault.answerMs ?? 0, signal);
          if (isDead()) return never();
          if (fault.after) throw fault.after;
          if (cuts !== this.#cuts) {
            throw new ApiError("other side closed", { reason: "UND_ERR_SOCKET" });
          }
        }
        request.status = 200;
        return result;
      } catch (cause) {
        request.status = (cause as ApiError).status ?? 0;
        if (cause instanceof ApiError) throw cause;
        throw new ApiError(
          `${fields.verb}: no answer of the API server: ${(cause as Error).message}`,
          { cause },
        );
      } finally {
        request.endedAt = clock.tick;
      }
    };
    return {
      list: (namespace, signal) => this.#list(send, namespace, signal),
      watch: (namespace, from, seconds, signal) =>
        this.#watch(send, replica, namespace, +from, seconds * 1000, signal),
      get: (namespace, name, signal) =>
        send(
          { verb: "get", namespace, name },
          signal,
          () => this.onWire(this.get(`${namespace}/${name}`)),
        ),
      patch: (namespace, name, patch, signal) => {
        // As it comes over the wire.
        const body = JSON.parse(JSON.stringify(patch));
        return send({ verb: "patch", namespace, name, body }, signal, () => {
          this.#patch(`${namespace}/${name}`, body, replica);
        });
      },
      createEvent: (namespace, body, signal) =>
        send(
          { verb: "event", namespace, body },
          signal,
          () => this.#createEvent(body as { note: string }),
        ),
      requestToken: (namespace, name, audience, seconds, signal) =>
        send({ verb: "token", namespace, name, body: { audience, seconds } }, signal, () => {
          return this.#world.subjectToken(
            `system:serviceaccount:${namespace}:${name}`,
            audience,
            seconds,
          );
        }),
    };
  }

  async *#list(send: Send, namespace: string | undefined, signal: AbortSignal) {
    let resourceVersion = "";
    let items: Secret[] = [];
    for (let start = 0; start === 0 || start < items.length; start += this.pageSize) {
      await send({ verb: "list", namespace }, signal, () => {
        if (start > 0) return;
        resourceVersion = `${this.#version}`;
        items = [...this.secrets.values()].filter((secret) =>
          isSelected(secret) && isIn(namespace, secret)
        );
      });
      const page = items.slice(start, start + this.pageSize);
      yield { items: page.map((secret) => this.onWire(secret)), resourceVersion };
    }
  }

  async *#watch(
    send: Send,
    replica: string,
    namespace: string | undefined,
    from: number,
    ms: number,
    signal: AbortSignal,
  ) {
    await send({ verb: "watch", namespace, from }, signal, () => {
      if (from < this.compactedTo) {
        throw new ApiError("too old", { status: 410, reason: "Expired" });
      }
    });
    const { clock } = this.#world;
    const endsAt = clock.tick + (from < this.emptyTo ? 0 : Math.min(ms, this.watchLife));
    const deafUntil = clock.tick + ms + WATCH_GRACE_MS;
    const bookmarks = [clock.tick + BOOKMARK_MS, endsAt - LAST_BOOKMARK_MS].filter((at) =>
      at > clock.tick
    ).sort();
    const watch: Watch = { wake: () => {}, isDeaf: this.isDeaf };
    this.#watches.add(watch);
    let next = this.#dropped + this.history.findLastIndex(({ version }) => version <= from) + 1;
    try {
      while (true) {
        for (let change; !watch.isDeaf && (change = this.history[next - this.#dropped]); next++) {
          const { seen: type, secret } = change;
          const { resourceVersion } = secret.metadata;
          // As the real one: a watch from a version that is yet to come is silent until then.
          if (type && change.version > from && isIn(namespace, secret)) {
            yield { type, secret: this.onWire(secret), resourceVersion } as WatchEvent;
          }
        }
        if (watch.end instanceof Error) throw watch.end;
        if (watch.end || (clock.tick >= endsAt && !watch.isDeaf)) return;
        if (clock.tick >= deafUntil) {
          throw new ApiError("watch: silence", { reason: "UND_ERR_BODY_TIMEOUT" });
        }
        if (clock.tick >= (bookmarks[0] ?? Infinity)) {
          bookmarks.shift();
          if (!watch.isDeaf && this.#version > from) {
            yield { type: "BOOKMARK", resourceVersion: `${this.#version}` } as WatchEvent;
          }
        }
        const until = Math.min(bookmarks[0] ?? Infinity, watch.isDeaf ? deafUntil : endsAt);
        await clock.wait(watch, until - clock.tick, signal);
        if (!this.#world.dead.has(replica)) continue;
        this.#watches.delete(watch);
        await never();
      }
    } finally {
      this.#watches.delete(watch);
    }
  }
}

/** How the issuer answers. */
export interface ExchangeRequest {
  at: number;
  endedAt: number;
  replica: string;
  identity: string;
  /** The subject's `sub`. */
  subject: string;
  /** What it was answered with. */
  token?: string;
  /** Whether the answer arrived. */
  isAnswered?: boolean;
}

/** The issuer. */
export class VirtualIssuer {
  readonly requests: ExchangeRequest[] = [];
  /** Of the tokens, in ms. */
  life = 3600_000;
  /** What its clock is ahead by. */
  skew = 0;
  /** It gives the same token again until that has so many ms left. */
  renewBefore = Infinity;
  /** What happens to each request; a text is the token that it is answered with. */
  fault: (request: ExchangeRequest) => Fault | string = () => undefined;
  /** Claims that differ from what they ought to be. */
  claims: (request: ExchangeRequest) => object = () => ({});
  readonly #issued = new Map<string, { token: string; endsAt: number }>();
  readonly #world: VirtualWorld;

  constructor(world: VirtualWorld) {
    this.#world = world;
  }

  client(replica: string) {
    const { clock } = this.#world;
    return async (subjectToken: string, identity: string, signal: AbortSignal): Promise<string> => {
      const act = JSON.parse(Buffer.from(subjectToken.split(".")[1]!, "base64url").toString());
      const request: ExchangeRequest = {
        at: clock.tick,
        endedAt: Infinity,
        replica,
        identity,
        subject: act.sub,
      };
      this.requests.push(request);
      const fault = this.fault(request);
      if (fault === "wedged") return never();
      try {
        await clock.sleep(fault === "hang" ? Infinity : delayOf(fault), signal);
        if (this.#world.dead.has(replica)) return never();
        if (fault instanceof Error) throw fault;
        request.token = typeof fault === "string" ? fault : this.#issue(request, act);
        this.#world.secrets.add(request.token);
        if (typeof fault === "object" && fault.after) throw fault.after;
        request.isAnswered = true;
        return request.token;
      } finally {
        request.endedAt = clock.tick;
      }
    };
  }

  #issue(request: ExchangeRequest, act: { iss: string; sub: string; aud: string[] }): string {
    const now = this.#world.clock.now() + this.skew;
    const key = `${request.identity} ${act.sub}`;
    const known = this.#issued.get(key);
    if (known && known.endsAt - now > this.renewBefore) return known.token;
    const iat = Math.floor(now / 1000);
    const exp = iat + this.life / 1000;
    const { iss, sub, aud } = act;
    const claims = {
      iss: "https://issuer.enforce.dev",
      aud: ["cgr.dev"],
      sub: request.identity,
      iat,
      exp,
    };
    const token = this.#world.jwt({ ...claims, act: { iss, sub, aud }, ...this.claims(request) });
    if (this.renewBefore < Infinity) this.#issued.set(key, { token, endsAt: exp * 1000 });
    return token;
  }
}

/** A process of the controller. */
export interface Replica extends Controller {
  /** Kills it, as a SIGKILL does. */
  stop: () => void;
  name: string;
  clock: ReturnType<VirtualClock["view"]>;
  config: Config;
}

const ENVIRONMENT: Record<string, string> = { KUBERNETES_API: "http://127.0.0.1:8001" };

/** All of it, and what was told and broken in it. */
export class VirtualWorld {
  readonly clock = new VirtualClock();
  readonly random: () => number;
  readonly cluster = new VirtualCluster(this);
  readonly issuer = new VirtualIssuer(this);
  /** All tokens there ever were, registry and subject. */
  readonly secrets = new Set<string>();
  /** Every line that any replica logged, at any level. */
  readonly lines: string[] = [];
  /** What was written, or asked for, that must not be. */
  readonly broken: string[] = [];
  readonly replicas: Replica[] = [];
  /** The names of those that were killed. */
  readonly dead = new Set<string>();
  #started = 0;
  readSubjectToken = () => this.subjectToken(CONTROLLER, "issuer.enforce.dev", 600);

  constructor(seed = 1) {
    this.random = seeded(seed);
  }

  /** Starts another replica, by default in a namespace and environment as the manifest has it. */
  start({ env = {}, skew = 0 }: { env?: Record<string, string>; skew?: number } = {}): Replica {
    const name = `replica-${++this.#started}`;
    const clock = Object.assign(this.clock.view(), { skew });
    const config: Config = readConfig((variable) => ({ ...ENVIRONMENT, ...env })[variable]);
    const controller = new Controller(config, {
      api: this.cluster.client(name),
      exchange: this.issuer.client(name),
      readSubjectToken: () => this.readSubjectToken(),
      clock,
      random: seeded(Math.floor(this.random() * 2 ** 32)),
      log: createLog(clock.now, (_level, line) => this.lines.push(line)),
    });
    const stop = () => {
      this.dead.add(name);
      clock.kill();
    };
    const replica = Object.assign(controller, { name, clock, config, stop });
    this.replicas.push(replica);
    replica.start();
    return replica;
  }

  /** A JWT that looks as real ones do; nobody here checks its signature. */
  jwt(claims: object): string {
    const own = Math.floor(this.random() * 2 ** 52).toString(36).padStart(11, "0");
    const token = `${HEADER}.${part(claims)}.${`${CANARY}${own}`.repeat(SIGNATURE_REPEATS)}`;
    this.secrets.add(token);
    return token;
  }

  subjectToken(sub: string, audience: string, seconds: number): string {
    const iat = Math.floor(this.clock.now() / 1000);
    return this.jwt({
      iss: "https://cluster.example",
      aud: [audience],
      sub,
      iat,
      exp: iat + seconds,
    });
  }

  /** Notes what a patch of the controller must not do. */
  judge({ metadata: { namespace, name } }: Secret, patch: Partial<Secret>): void {
    const breach = (what: string) => this.broken.push(`${namespace}/${name}: ${what}`);
    const { metadata, data, ...rest } = patch as {
      metadata: Secret["metadata"];
      data: Record<string, string>;
    };
    const { uid, resourceVersion, annotations: own = {}, ...meta } = metadata;
    if (!uid || !resourceVersion) breach("writes without preconditions");
    if (Object.keys({ ...rest, ...meta }).length > 0) {
      breach(`writes ${Object.keys({ ...rest, ...meta })}`);
    }
    if (Object.keys(data).join() !== DATA_KEY) breach(`writes the data ${Object.keys(data)}`);
    const names = Object.keys(own).map((key) =>
      key.replace(/^pull-secret-updater\.chainguard\.dev\//, "")
    );
    if (!/^token-identity,token-expires(,refreshed)?$/.test(names.join())) {
      breach(`writes the annotations ${names}`);
    }
  }

  /** Says where a token, or a part of one, was told: in a log, an event, the metrics. */
  findLeak(): string | undefined {
    const told = [
      ...this.lines,
      JSON.stringify(this.cluster.events),
      ...this.replicas.map((own) => own.renderMetrics()),
    ];
    const jwts = [...this.secrets];
    const hidden = [...jwts, ...jwts.map((jwt) => Buffer.from(`_token:${jwt}`).toString("base64"))]
      .join("\n");
    const runs = new Set(told.flatMap((text) => text.match(/[\w+/=-]{16,}/g) ?? []));
    for (const run of runs) {
      for (let start = 0; start + 16 <= run.length; start += 4) {
        const piece = run.slice(start, start + 16);
        if (hidden.includes(piece)) return `${piece} in ${told.find((text) => text.includes(run))}`;
      }
    }
  }
}
