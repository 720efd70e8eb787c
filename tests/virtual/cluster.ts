/** The API server in memory: Secrets, their history and versions, lists, watches, events and token requests. */
import { Buffer } from "node:buffer";
import { ApiError, type KubernetesApi, type Secret, type WatchEvent } from "../../k8s.ts";
import { IDENTITY } from "../support/names.ts";
import { Waiter } from "./clock.ts";
import { delayOf, type Fault, never, type Surroundings } from "./shared.ts";

/** As a kube-apiserver: a bookmark about every minute, and one before the end. */
const BOOKMARK_MS = 60_000;
const LAST_BOOKMARK_MS = 2_000;
/** What the client waits for an answer. */
const SILENCE_MS = 30_000;
/** What the client lets a silent watch live beyond its time-out. */
const WATCH_GRACE_MS = 10_000;
/** What a kube-apiserver takes in the note of an event. */
const MAX_NOTE_BYTES = 1024;

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
class Watch extends Waiter {
  isDeaf = false;
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
  #watches: Watch[] = [];
  /** How often all connections broke. */
  #cuts = 0;
  readonly #world: Surroundings;

  constructor(world: Surroundings) {
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
      const waiter = new Waiter(clock, signal);
      try {
        const ms = fault === "hang" ? SILENCE_MS : delayOf(fault);
        await waiter.wait(ms);
        if (isDead()) return never();
        if (cuts !== this.#cuts) {
          throw new ApiError("other side closed", { reason: "UND_ERR_SOCKET" });
        }
        if (fault === "hang") throw new ApiError("silence", { reason: "UND_ERR_HEADERS_TIMEOUT" });
        if (fault instanceof Error) throw fault;
        const result = work();
        if (typeof fault === "object") {
          await waiter.wait(fault.answerMs ?? 0);
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
    const watch = new Watch(clock, signal);
    watch.isDeaf = this.isDeaf;
    this.#watches.push(watch);
    const end = () => this.#watches = this.#watches.filter((other) => other !== watch);
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
        await watch.wait(until - clock.tick);
        if (!this.#world.dead.has(replica)) continue;
        end();
        await never();
      }
    } finally {
      end();
    }
  }
}
