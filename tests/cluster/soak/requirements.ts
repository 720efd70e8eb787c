/**
 * What a long run has to hold, and the figures that it is judged by. How many exchanges and patches it may take is for
 * virtual time: tests/simulation/budgets.ts.
 */

export const API_SERVER = "kube-apiserver";
/** Seconds that tokens live: as short as tests may make them, so that an hour sees each replaced some 500 times. */
export const LIFE_S = 10;
export const IDENTITIES = 10;
export const SECRETS = 500;
/** Beyond that a mean is no longer the garbage collector's mood. */
const MEMORY_GROWTH = 1.2;
const MEMORY_NOISE_MB = 8;
/** Connections come and go with the patches that are under way. */
const FILE_NOISE = 12;

/** What a process holds. */
export interface Usage {
  rssAnonMB: number;
  rssMB: number;
  files: number;
  sockets: number;
}

/** One process over a time in which it was never killed, at its beginning and at its end. */
export interface Steady {
  name: string;
  /** Minutes that each of the two means is of. */
  minutes: number;
  first: Usage;
  last: Usage;
}

export interface Minute {
  minute: number;
  looks: number;
  /** Looks that the API server did not answer. */
  unanswered: number;
  /** How busy the machine was at its end. */
  machine: string;
}

export interface Figures {
  minutes: Minute[];
  kills: number;
  exchanges: number;
  /** Patches of Secrets, by the status that they were answered with. */
  patches: Record<string, number>;
  /** Secrets that were seen with a token that had expired. */
  expired: string[];
  /** Secrets that were seen without a token of their identity. */
  unfilled: string[];
  steady: Steady[];
  /** Warnings in the replicas' logs, by message. */
  warnings: Record<string, number>;
  /** Whether a line of the logs looked like a token. */
  isTokenLogged: boolean;
}

export function mean(usages: Usage[]): Usage {
  const of = (key: keyof Usage) =>
    usages.reduce((sum, usage) => sum + usage[key], 0) / usages.length;
  return {
    rssAnonMB: of("rssAnonMB"),
    rssMB: of("rssMB"),
    files: of("files"),
    sockets: of("sockets"),
  };
}

/** Says what is not as it has to be. */
export function findBroken(
  { minutes, expired, unfilled, steady, isTokenLogged }: Figures,
): string[] {
  const broken: string[] = [];
  for (const { minute, looks, unanswered } of minutes) {
    if (looks <= unanswered) {
      broken.push(`minute ${minute}: ${looks} looks, and ${unanswered} without an answer`);
    }
  }
  if (expired.length > 0) broken.push(`${expired.length} times a Secret held an expired token`);
  if (unfilled.length > 0) {
    broken.push(`${unfilled.length} times a Secret held no token of its identity`);
  }
  if (isTokenLogged) broken.push("a token is in a log");
  for (const { name, first, last } of steady) {
    // The API server's own memory says little of us; its connections do.
    const isFatter = name !== API_SERVER &&
      last.rssAnonMB > first.rssAnonMB * MEMORY_GROWTH + MEMORY_NOISE_MB;
    if (isFatter) {
      broken.push(`${name}: ${first.rssAnonMB.toFixed(1)} MB grew to ${last.rssAnonMB.toFixed(1)}`);
    }
    if (last.files > first.files + FILE_NOISE) {
      broken.push(`${name}: ${first.files} open files grew to ${last.files}`);
    }
  }
  return broken;
}
