/**
 * What the tests of the controller share: Secrets and tokens to put into a world in virtual time, and
 * what is to be seen of that world afterwards.
 */
import { test } from "node:test";
import { assertEquals, assertThrows } from "@std/assert";
import { ApiError, type Secret } from "../../k8s.ts";
import { decode, readResponse, StsError } from "../../sts.ts";
import { type Replica, VirtualWorld } from "../virtual/world.ts";
import { DATA_KEY, IDENTITY, SECRET_TYPE } from "../support/names.ts";

export const S = 1000;
export const MIN = 60 * S;
export const HOUR = 60 * MIN;
export const NOW = Date.parse("2027-06-01T12:00:00Z");

/** The identity of a number, under one organisation. */
export const identityOf = (number: number) =>
  `${"a".repeat(40)}/${number.toString(16).padStart(16, "0")}`;
export const ALICE = identityOf(1);
export const BOB = identityOf(2);

export const base64 = (text: string | Uint8Array) => Buffer.from(text as string).toString("base64");
const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** A token for Alice that was issued now and lives an hour, unless the claims say otherwise. */
export function token(claims: Record<string, unknown> = {}): string {
  const all = { aud: "cgr.dev", sub: ALICE, iat: NOW / S, exp: NOW / S + 3600, ...claims };
  return `${part({ alg: "RS256" })}.${part(all)}.c2lnbmF0dXJl`;
}

/** A token of the issuer in a world, but for some claims. */
export function fresh(world: VirtualWorld, claims: Record<string, unknown> = {}): string {
  const iat = Math.floor(world.clock.now() / S);
  return world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 3600, ...claims });
}

export const entryOf = (jwt: string, user = "_token") => ({ auth: base64(`${user}:${jwt}`) });
export const configOf = (jwt: string, ...hosts: string[]) =>
  JSON.stringify({
    auths: Object.fromEntries(
      (hosts.length ? hosts : ["cgr.dev"]).map((host) => [host, entryOf(jwt)]),
    ),
  });

export interface Parts {
  namespace?: string;
  identity?: string;
  label?: string;
  annotations?: Record<string, string>;
  config?: string | Uint8Array;
  type?: string;
  immutable?: boolean;
  deletionTimestamp?: string;
}

/** A Secret as a user makes it, for Alice unless `identity` or `label` says otherwise. */
export function secret(name: string, parts: Parts = {}): Secret {
  const {
    namespace = "apps",
    label = "",
    identity = label ? "" : ALICE,
    annotations,
    config = "{}",
  } = parts;
  const { type = SECRET_TYPE, immutable, deletionTimestamp } = parts;
  return {
    metadata: {
      namespace,
      name,
      uid: "uid-0",
      resourceVersion: "1",
      ...(deletionTimestamp && { deletionTimestamp }),
      labels: { [IDENTITY]: label },
      annotations: { ...(identity && { [IDENTITY]: identity }), ...annotations },
    },
    type,
    ...(immutable !== undefined && { immutable }),
    data: { [DATA_KEY]: base64(config) },
  };
}

/** A test in a world of its own; nothing that must not be was written in it, and no token reported. */
export function rule(title: string, run: (world: VirtualWorld) => Promise<void>, seed = 1): void {
  test(title, async () => {
    const world = new VirtualWorld(seed);
    await run(world);
    for (const replica of world.replicas) replica.stop();
    await world.clock.advance(0);
    assertEquals(world.broken, []);
    assertEquals(world.findLeak(), undefined);
  });
}

/** The same where so many tokens are issued that to look for each of them everywhere takes minutes. */
export function largeRule(title: string, run: (world: VirtualWorld) => Promise<void>): void {
  test(title, async () => {
    const world = new VirtualWorld(1);
    await run(world);
    for (const replica of world.replicas) replica.stop();
    assertEquals(world.broken, []);
  });
}

/** The patches that were taken. */
export const written = (world: VirtualWorld, name?: string) =>
  world.cluster.requests.filter(({ verb, status, ...own }) =>
    verb === "patch" && status === 200 && own.name === (name ?? own.name)
  );
export const asked = (world: VirtualWorld, verb: string, name?: string) =>
  world.cluster.requests.filter((request) =>
    request.verb === verb && request.name === (name ?? request.name)
  );
/** The events of a reason. */
export const reported = (world: VirtualWorld, reason: string, name?: string) =>
  world.cluster.events.filter((event) =>
    event.reason === reason && event.regarding.name === (name ?? event.regarding.name)
  );
export const warnings = (world: VirtualWorld) =>
  world.cluster.events.filter(({ type }) => type === "Warning");
/** The lines of the log with a message. */
export const logged = (world: VirtualWorld, msg: string) =>
  world.lines.map((line) => JSON.parse(line)).filter((line) => line.msg === msg);

/** The token that a Secret holds for a registry. */
export function jwtOf({ data }: Secret, host = "cgr.dev"): string | undefined {
  const { auths } = JSON.parse(Buffer.from(data![DATA_KEY]!, "base64").toString());
  return auths?.[host] &&
    Buffer.from(auths[host].auth, "base64").toString().slice("_token:".length);
}
export const held = (world: VirtualWorld, name = "a", namespace = "apps") =>
  jwtOf(world.cluster.get(`${namespace}/${name}`));
export const claimsOf = (jwt = "") => decode(jwt)!;
/** The subject that a token was exchanged for. */
export const actorOf = (jwt = "") =>
  JSON.parse(Buffer.from(jwt.split(".")[1]!, "base64url").toString()).act.sub;
export const annotationOf = (world: VirtualWorld, key: string, name = "a", namespace = "apps") =>
  world.cluster.get(`${namespace}/${name}`).metadata.annotations?.[key];

/** How often all was listed. */
export const listings = (world: VirtualWorld) => logged(world, "listed").length;

/** For how long Secrets held tokens that had expired, in true time. */
export function expiredFor(world: VirtualWorld): number {
  const since = new Map<string, { now: number; expiresAt: number }>();
  let sum = 0;
  function close(key: string, now: number): void {
    const last = since.get(key);
    if (last) sum += Math.max(0, now - Math.max(last.now, last.expiresAt));
    since.delete(key);
  }
  for (const { now, type, secret } of world.cluster.history) {
    const key = `${secret.metadata.namespace}/${secret.metadata.name}`;
    close(key, now);
    const jwt = type === "DELETED" ? undefined : jwtOf(secret);
    if (jwt) since.set(key, { now, expiresAt: claimsOf(jwt).expiresAt });
  }
  for (const key of since.keys()) close(key, world.clock.now());
  return sum;
}

/** How far into its life each token was when it was replaced. */
export function agesAtReplacement(world: VirtualWorld, name = "a"): number[] {
  const changes = world.cluster.history.filter(({ secret }) => secret.metadata.name === name);
  return changes.slice(1).flatMap(({ now }, index) => {
    const jwt = jwtOf(changes[index]!.secret);
    if (!jwt) return [];
    const { issuedAt = 0, expiresAt } = claimsOf(jwt);
    return [(now - issuedAt) / (expiresAt - issuedAt)];
  });
}

/** The most that were under way at once. */
export function peak(requests: { at: number; endedAt: number }[]): number {
  return Math.max(
    0,
    ...requests.map(({ at }) =>
      requests.filter((other) => other.at <= at && at < other.endedAt).length
    ),
  );
}

export const gaps = (times: number[]) => times.slice(1).map((time, index) => time - times[index]!);
export const blank = { data: { [DATA_KEY]: base64('{"auths":{}}') } };
export const annotate = (annotations: Record<string, string | null>) => ({
  metadata: { annotations },
});

/** What the issuer's response makes of an exchange. */
export function answer(status: number, message = "no", retryAfter = ""): Error {
  return assertThrows(
    () => readResponse(status, JSON.stringify({ code: 7, message }), retryAfter),
    StsError,
  );
}
export const apiAnswer = (status: number, retryAfter = "") =>
  new ApiError(`answered ${status}`, { status, retryAfter });

export function metric(replica: Replica, series: string): number | undefined {
  const line = replica.renderMetrics().split("\n").find((line) =>
    line.startsWith(`pull_secret_updater_${series} `)
  );
  return line === undefined ? undefined : +line.split(" ").at(-1)!;
}
