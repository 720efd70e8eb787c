/** What a long run has to hold, and the figures that it is judged by. */

export const API_SERVER = "kube-apiserver";
/** Seconds that tokens live: as short as tests may make them, so that an hour sees each replaced some 500 times. */
export const LIFE_S = 10;
export const IDENTITIES = 10;
export const SECRETS = 500;
const REPLICAS = 2;
/** Where the program replaces a token at the earliest. */
const REFRESH_FRACTION = 0.67;
/** Each replica draws an instant of its own, the first one writes; now and then both do, or a token has little left. */
const PATCH_ALLOWANCE = 1.5;
/** A replica that starts has none of the tokens: it may ask for each once more. */
const EXCHANGES_OF_START = IDENTITIES;
/** Beyond that a mean is no longer the garbage collector's mood. */
const MEMORY_GROWTH = 1.2;
const MEMORY_NOISE_MB = 8;
/** Connections come and go with the patches that are under way. */
const FILE_NOISE = 12;

const REFRESHES_A_MINUTE = 60 / (REFRESH_FRACTION * LIFE_S);
/** In any minute. */
export const MAX_EXCHANGES = Math.ceil(REPLICAS * IDENTITIES * REFRESHES_A_MINUTE) +
  EXCHANGES_OF_START;
export const MAX_PATCHES = Math.ceil(SECRETS * REFRESHES_A_MINUTE * PATCH_ALLOWANCE);

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

/** A Secret that was seen with a token that had expired. */
export interface Expired {
  secret: string;
  time: string;
  lateMs: number;
  /** How long ago a replica was killed. */
  sinceKillMs: number;
  /** The machine's load, and the share of the last 10 s in which something waited for a CPU. */
  load: number;
  cpuPressure: number;
}

export interface Minute {
  minute: number;
  looks: number;
  /** Looks that the API server did not answer. */
  unanswered: number;
  exchanges: number;
  patches: number;
  conflicts: number;
  /** Writes and reads that the API server refused otherwise. */
  failures: number;
  load: number;
  cpuPressure: number;
}

export interface Figures {
  minutes: Minute[];
  kills: number;
  expired: Expired[];
  /** Secrets that were seen without a token of their identity. */
  unfilled: string[];
  steady: Steady[];
  /** Warnings in the replicas' logs, by message. */
  warnings: Record<string, number>;
  /** Whether a line of the logs looked like a token. */
  isTokenLogged: boolean;
}

export function mean(usages: Usage[]): Usage {
  const of = (pick: (usage: Usage) => number) =>
    usages.reduce((sum, usage) => sum + pick(usage), 0) / usages.length;
  return {
    rssAnonMB: of(({ rssAnonMB }) => rssAnonMB),
    rssMB: of(({ rssMB }) => rssMB),
    files: of(({ files }) => files),
    sockets: of(({ sockets }) => sockets),
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
  for (const { minute, exchanges, patches, conflicts } of minutes) {
    if (exchanges > MAX_EXCHANGES) {
      broken.push(`minute ${minute}: ${exchanges} exchanges, over ${MAX_EXCHANGES}`);
    }
    const writes = patches + conflicts;
    if (writes > MAX_PATCHES) {
      broken.push(`minute ${minute}: ${writes} patches, over ${MAX_PATCHES}`);
    }
  }
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
