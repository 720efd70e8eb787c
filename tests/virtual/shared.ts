/** What the cluster and the issuer share: what happens to a request, and what they know of the world around them. */
import type { Secret } from "../../k8s.ts";
import type { VirtualClock } from "./clock.ts";

/** Of each answer, unless a fault says otherwise. */
const LATENCY_MS = 5;

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
export const never = () => new Promise<never>(() => {});

export const delayOf = (fault: Fault | string) =>
  typeof fault === "number" ? fault : (fault as { ms?: number } | undefined)?.ms ?? LATENCY_MS;

/** The world as they see it. */
export interface Surroundings {
  readonly clock: VirtualClock;
  /** All tokens there ever were, registry and subject. */
  readonly secrets: Set<string>;
  /** The names of the replicas that were killed. */
  readonly dead: ReadonlySet<string>;
  jwt(claims: object): string;
  subjectToken(sub: string, audience: string, seconds: number): string;
  /** Notes what a patch of the controller must not do. */
  judge(before: Secret, patch: Partial<Secret>): void;
}
