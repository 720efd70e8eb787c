/**
 * What the tests of the controller share: Secrets and tokens to put into a world in virtual time, and
 * what is to be seen of that world afterwards.
 */
import { test } from "node:test";
import { assertEquals, assertThrows } from "@std/assert";
import { ApiError } from "../../k8s.ts";
import { decode, readResponse, StsError } from "../../sts.ts";
import { type Replica, VirtualWorld } from "../virtual/world.ts";
import { DATA_KEY, S } from "../support/names.ts";
import { ALICE, base64, tokenOf } from "../support/secrets.ts";

/** A token of the issuer in a world, but for some claims. */
export function fresh(world: VirtualWorld, claims: Record<string, unknown> = {}): string {
  const iat = Math.floor(world.clock.now() / S);
  return world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 3600, ...claims });
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
export const held = (world: VirtualWorld, name = "a", namespace = "apps") =>
  tokenOf(world.cluster.get(`${namespace}/${name}`).data);
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
    const jwt = type === "DELETED" ? undefined : tokenOf(secret.data);
    if (jwt) since.set(key, { now, expiresAt: claimsOf(jwt).expiresAt });
  }
  for (const key of since.keys()) close(key, world.clock.now());
  return sum;
}

/** How far into its life each token was when it was replaced. */
export function agesAtReplacement(world: VirtualWorld, name = "a"): number[] {
  const changes = world.cluster.history.filter(({ secret }) => secret.metadata.name === name);
  return changes.slice(1).flatMap(({ now }, index) => {
    const jwt = tokenOf(changes[index]!.secret.data);
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
