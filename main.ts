/**
 * Keeps image pull Secrets filled with registry tokens that have not expired.
 *
 * Data goes one way: a record of the watch → the verdict → a timer → the refresh (subject token → exchange → patch) →
 * the patch comes back as a record of the watch. Every replica does all of this; none of them leads.
 */
import { existsSync, readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { join } from "node:path";
import process from "node:process";
import {
  ApiError,
  type ClientOptions,
  createClient,
  type KubernetesApi,
  type Secret,
} from "./k8s.ts";
import {
  type Claims,
  decode,
  exchange,
  findFlaw,
  IDENTITY,
  issuerAgent,
  type Life,
  StsError,
  verify,
} from "./sts.ts";

const VERSION = "0.1.0";
const USER_AGENT = `pull-secret-updater/${VERSION}`;

const PREFIX = "pull-secret-updater.chainguard.dev";
const IDENTITY_KEY = `${PREFIX}/identity`;
const ACCOUNT_KEY = `${PREFIX}/service-account`;
const REFRESH_KEY = `${PREFIX}/refresh`;
const TOKEN_IDENTITY_KEY = `${PREFIX}/token-identity`;
const TOKEN_EXPIRES_KEY = `${PREFIX}/token-expires`;
const SECRET_TYPE = "kubernetes.io/dockerconfigjson";
const DATA_KEY = ".dockerconfigjson";
const EMPTY_CONFIG = '{"auths":{}}';

/** A token is replaced from two thirds of its life on: about a quarter is left to mend what fails. */
const REFRESH_FRACTION = 0.67;
/** The Secrets of one token are written spread over this part of its life, to be gentle with the API server. */
const REFRESH_SPREAD = 0.1;
/** Assumed of a token that does not say when it was issued: the issuer's live up to an hour. */
const ASSUMED_LIFE_MS = 3600_000;
/**
 * Two writes to one Secret are this far apart, or half a token's life if that is less: no fight over it makes us spin.
 */
const WRITE_SPACING_MS = 30_000;
/** The same for what a user asked for, and between two exchanges for one identity and subject. */
const SHORT_SPACING_MS = 10_000;
/** Long for an answer, short beside a token's life: a hanging issuer holds a place no longer. */
const EXCHANGE_TIMEOUT_MS = 10_000;
/** As long as the slowest admission webhook may take. */
const REQUEST_TIMEOUT_MS = 30_000;
/** Time for many large pages, and more than a watch lives (100 s); well below what `/healthz` takes for stuck. */
const LIST_WATCH_TIMEOUT_MS = 120_000;
/** At a second each, a thousand identities take a minute. */
const MAX_EXCHANGES = 16;
/** One namespace's hanging exchanges leave room for the others'. */
const MAX_EXCHANGES_OF_NAMESPACE = 8;
/** Gentle with the API server, and still thousands a second where it is near. */
const MAX_PATCHES = 16;
/** Added to the rank (an instant in ms) of whatever failed the last time. */
const BEHIND_ALL = 1e15;
/** The shortest life that a token request may ask for. */
const SUBJECT_TOKEN_LIFE_S = 600;

/** For what may pass by itself. */
const PASSING = { baseMs: 1_000, capMs: 60_000 };
/** For a Secret that somebody else wrote first: nothing is wrong with it. */
const CONFLICT = { ...PASSING };
/** For what a person has to mend. */
const REFUSED = { baseMs: 30_000, capMs: 5 * 60_000 };
/** For lists and watches: begins as client-go's, and ends at 5 s, as tokens may live for seconds. */
const WATCH = { baseMs: 800, capMs: 5_000 };
/** Two conflicts in a row are chance: replicas, and a user. */
const MAX_CHANCE = 2;
/** No header may cost more: a token of an hour has some 13 min left when it is due. */
const MAX_RETRY_AFTER_MS = 5 * 60_000;
/** Watches are short, so that a deaf one is noticed soon: to open another costs one request and no list. */
const WATCH_MIN_S = 60;
/** 60 to 90 s, in whole seconds, so that not all come again at once. */
const WATCH_SPREAD_S = 31;
/** A watch that ends sooner counts as failed: an API server that ends them at once would make us spin. */
const WATCH_SHORT_MS = 1_000;
/** A watch that lived so long ends the back-off of those before it. */
const WATCH_GOOD_MS = 10_000;

/** All Secrets are looked through for those whose time has come: not more often than this. */
const ALARM_SPACING_MS = 100;
/** How late a clock that was set, or a sleep, may be noticed. */
const HEARTBEAT_MS = 30_000;
/** The wall clock leaves the monotonic one by more only if it was set, or the machine slept. */
const MAX_DRIFT_MS = 5_000;
/** Twice what the longest request takes. With less, one that is waited for would count as stuck. */
const STUCK_WORK_MS = 60_000;
/** Well over what a list (120 s) or a watch with its grace (100 s) takes. */
const STUCK_WATCH_MS = 5 * 60_000;

/** Events: 25 at once and 5 a second in the long run, and a quarter of that for one namespace. */
const EVENT_WINDOW_MS = 5_000;
const MAX_EVENTS = 25;
const MAX_EVENTS_OF_NAMESPACE = 6;
/** The same reason for the same Secret at most so often; a problem that stands is told again more rarely. */
const EVENT_SPACING_MS = 5 * 60_000;
const EVENT_STANDING_MS = 30 * 60_000;
/** The API server takes notes of up to 1,024 bytes. */
const MAX_NOTE_BYTES = 1000;
/** Enough for a message, too little for a page of HTML. */
const MAX_FOREIGN_CHARS = 200;
/** More would make each scrape megabytes. */
const MAX_EXPIRY_SERIES = 10_000;

// ───── Configuration ─────

/** Bad configuration: one line that names the variable, its value and what is allowed. */
export class ConfigError extends Error {}

const LOG_LEVELS = ["debug", "info", "warn", "error"];
const BASE_URL = "an https URL (http to a loopback host only) without user, query and fragment";
const REGISTRY_HOST = /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:\d{1,5})?$/;
const ACCOUNT_NAME =
  /^(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const DNS_LABEL = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;

export type Config = ReturnType<typeof readConfig>;

/** Reads the environment, once; throws a {@linkcode ConfigError}. A variable that is empty counts as unset. */
export function readConfig(env: (name: string) => string | undefined) {
  function read(
    name: string,
    isAllowed: (text: string) => boolean,
    allowed: string,
    fallback = "",
  ): string {
    const text = env(name) || fallback;
    if (isAllowed(text)) return text;
    // A URL may bear a password, even one that is none.
    throw new ConfigError(`${name}="${clean(text.replace(/.*@/s, "…@"))}": must be ${allowed}`);
  }
  const listOf = (item: RegExp) => (text: string) =>
    splitList(text).every((part) => item.test(part));
  const dir = env("SERVICE_ACCOUNT_DIR") || "/var/run/secrets/kubernetes.io/serviceaccount";
  const [tokenFile, caFile, namespaceFile] = [
    join(dir, "token"),
    join(dir, "ca.crt"),
    join(dir, "namespace"),
  ];
  let api: Pick<ClientOptions, "url" | "tokenFile" | "caFile">;
  if (env("KUBERNETES_API")) {
    const url = read("KUBERNETES_API", isBaseUrl, BASE_URL).replace(/\/+$/, "");
    const ifUsed = (path: string) =>
      url.startsWith("https:") && existsSync(path) ? path : undefined;
    api = { url, tokenFile: ifUsed(tokenFile), caFile: ifUsed(caFile) };
  } else {
    const allowed = "a host, as each Pod is given it (elsewhere set KUBERNETES_API)";
    const host = read("KUBERNETES_SERVICE_HOST", (text) => /^[\w.:-]+$/.test(text), allowed);
    const port = read("KUBERNETES_SERVICE_PORT", isPort, "a port, as each Pod is given it");
    api = { url: `https://${host.includes(":") ? `[${host}]` : host}:${port}`, tokenFile, caFile };
  }
  return Object.freeze({
    api,
    /** One list and watch each; undefined is the whole cluster. */
    namespaces: env("WATCH_NAMESPACES")
      ? splitList(read("WATCH_NAMESPACES", listOf(DNS_LABEL), "a comma list of namespaces"))
      : [undefined],
    /** The controller's own; elsewhere than in a Pod the name that the manifest gives it. */
    ownNamespace: existsSync(namespaceFile)
      ? readFileSync(namespaceFile, "utf8").trim()
      : "pull-secret-updater",
    issuer: read("ISSUER_URL", isBaseUrl, BASE_URL, "https://issuer.enforce.dev").replace(
      /\/+$/,
      "",
    ),
    audience: read(
      "AUDIENCE",
      (text) => /^[!-~]+$/.test(text),
      "printable characters without spaces",
      "cgr.dev",
    ),
    registries: splitList(
      read("REGISTRIES", listOf(REGISTRY_HOST), "a comma list of hosts", "cgr.dev"),
    ),
    subjectTokenFile: env("SUBJECT_TOKEN_FILE") || "/var/run/chainguard/oidc/oidc-token",
    httpsProxy: env("HTTPS_PROXY")
      ? read("HTTPS_PROXY", isHttpUrl, "an http or https URL")
      : undefined,
    noProxy: env("NO_PROXY") ?? "",
    port: +read("PORT", isPort, "a port from 1 to 65535", "8080"),
    logLevel: read(
      "LOG_LEVEL",
      (text) => LOG_LEVELS.includes(text),
      `one of ${LOG_LEVELS.join(", ")}`,
      "info",
    ),
  });
}

const splitList = (text: string) => [...new Set(text.split(",").map((part) => part.trim()))];
const isPort = (text: string) => /^\d{1,5}$/.test(text) && +text >= 1 && +text <= 65535;
const isHttpUrl = (text: string) => /^https?:/.test(text) && URL.canParse(text);

function isBaseUrl(text: string): boolean {
  const { hostname = "", username, password } = URL.parse(text) ?? {};
  const isSafe = text.startsWith("https://") ||
    (text.startsWith("http://") && /^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname));
  return isSafe && username === "" && password === "" && !/[?#\s]/.test(text);
}

// ───── What is told ─────

/**
 * Makes foreign text fit for a log, an event or a table: nothing like a token, no control and bidirectional characters,
 * 200 characters at most.
 */
export function clean(text: string, limit = MAX_FOREIGN_CHARS): string {
  const cleaned = text
    .replace(/\bbearer\s+\S+/gi, "[removed]")
    .replace(/eyJ[\w+/=-]*(\.[\w-]*){0,2}/g, "[removed]")
    // Any other long run with capitals; identities and names have none.
    .replace(/[\w+/=-]{40,}/g, (run) => /[A-Z]/.test(run) ? "[removed]" : run)
    .replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");
  return [...cleaned].slice(0, limit).join("");
}

export type Log = (
  level: "debug" | "info" | "warn" | "error",
  msg: string,
  fields: Record<string, unknown>,
) => void;

/** Logs one JSON object a line, from the level `threshold` on. */
export function createLog(
  threshold: string,
  now: () => number,
  write: (line: string) => void,
): Log {
  return (level, msg, fields) => {
    if (LOG_LEVELS.indexOf(level) < LOG_LEVELS.indexOf(threshold)) return;
    const tidy = (key: string, value: unknown) =>
      typeof value === "string"
        ? clean(value, key === "message" ? MAX_NOTE_BYTES : undefined)
        : value;
    write(
      JSON.stringify({ time: new Date(now()).toISOString(), level, msg, ...fields }, tidy) + "\n",
    );
  };
}

// ───── The verdict ─────

/** Why something is not as it should be, and what to do about it. */
export interface Problem {
  reason:
    | "ExchangeFailed"
    | "InvalidIdentity"
    | "UnsupportedSecret"
    | "InvalidDockerConfig"
    | "Overwritten";
  message: string;
}

const INVALID_DOCKER_CONFIG: Problem = {
  reason: "InvalidDockerConfig",
  message:
    `${DATA_KEY} is not a JSON object whose auths is one too: mend it, or set it to ${EMPTY_CONFIG}`,
};
const OVERWRITTEN: Problem = {
  reason: "Overwritten",
  message:
    "somebody else replaces the token, which is written again, but more slowly: see GitOps in the README",
};

export type Facts = ReturnType<typeof observe>;

/** Takes from a Secret what the verdict needs, and all that is kept of each: ten thousands of them are. */
export function observe(secret: Secret, config: Observer) {
  const { namespace, name, uid, resourceVersion, labels, annotations, deletionTimestamp } =
    secret.metadata;
  const identity = annotations?.[IDENTITY_KEY] ||
    (labels?.[IDENTITY_KEY] ?? "").replaceAll(".", "/");
  const account = annotations?.[ACCOUNT_KEY];
  const problem = findProblem(secret, identity, account, config.ownNamespace);
  const docker = problem ? undefined : readDockerConfig(secret.data?.[DATA_KEY], config.registries);
  return {
    namespace,
    name,
    uid,
    resourceVersion,
    /** Being deleted, or no longer selected: a read may tell sooner than the watch. */
    isGone: deletionTimestamp !== undefined || labels?.[IDENTITY_KEY] === undefined,
    problem: problem ?? (docker ? undefined : INVALID_DOCKER_CONFIG),
    identity,
    /** The service account to exchange as; undefined is the controller itself. */
    account,
    refresh: annotations?.[REFRESH_KEY],
    /** Of each registry; undefined is no token of ours. Registries with the same token count once. */
    tokens: docker?.claims.map((claims) => observeToken(claims, secret, identity, config)) ?? [],
    /** Whether the docker config has nothing but our entries: then it need not be read again to be written. */
    isPlain: docker?.isPlain ?? false,
  };
}

type Observer = Pick<Config, "audience" | "registries" | "ownNamespace">;

function observeToken(
  claims: Claims | undefined,
  secret: Secret,
  identity: string,
  config: Observer,
) {
  if (!claims?.audiences.includes(config.audience)) return undefined;
  const { fingerprint, issuedAt, expiresAt, subject, actor } = claims;
  const { namespace, annotations } = secret.metadata;
  const isOfIdentity =
    (IDENTITY.test(subject) ? subject : annotations?.[TOKEN_IDENTITY_KEY]) === identity;
  const account = annotations?.[ACCOUNT_KEY];
  const ofNamespace = `system:serviceaccount:${namespace}:`;
  // Without an account the controller's own subject is meant, which is of none but its own namespace.
  const isOfSubject = account === undefined
    ? namespace === config.ownNamespace || !actor?.startsWith(ofNamespace)
    : actor === undefined || actor === ofNamespace + account;
  return { fingerprint, issuedAt, expiresAt, isForAnother: !isOfIdentity || !isOfSubject };
}

function findProblem(
  secret: Secret,
  identity: string,
  account: string | undefined,
  own: string,
): Problem | undefined {
  const { metadata: { namespace }, type, immutable } = secret;
  if (!IDENTITY.test(identity)) {
    const message =
      `the identity "${
        clean(identity)
      }" is not a UID (40 hexadecimal digits, then / and 16 for each ` +
      `level): set the annotation ${IDENTITY_KEY} to one, or the label to one with . for /`;
    return { reason: "InvalidIdentity", message };
  }
  if (account !== undefined && (!ACCOUNT_NAME.test(account) || namespace === own)) {
    const message =
      `the service account "${
        clean(account)
      }" cannot be used: set the annotation ${ACCOUNT_KEY} to ` +
      "one of the Secret's namespace, which must not be the controller's, or take it off";
    return { reason: "InvalidIdentity", message };
  }
  if (type === SECRET_TYPE && !immutable) return undefined;
  const message =
    `the Secret is ${
      immutable ? "immutable" : `of type ${clean(`${type}`)}`
    }, which no write can mend: ` +
    `delete it, and create it with type ${SECRET_TYPE} and without immutable`;
  return { reason: "UnsupportedSecret", message };
}

/** Returns nothing for a docker config that cannot be written again with a token in it. */
const readDockerConfig = rememberLast((data: string | undefined, registries: string[]) => {
  try {
    const config: unknown = JSON.parse(decodeConfig(data));
    const auths = isObject(config) ? config.auths ?? {} : undefined;
    if (!isObject(config) || !isObject(auths)) return undefined;
    const others = Object.keys(auths).filter((host) => !registries.includes(host));
    const isPlain = others.length === 0 && Object.keys(config).every((key) => key === "auths");
    const passwords = registries.map((host) =>
      Object.hasOwn(auths, host) ? passwordOf(auths[host]) : ""
    );
    return { claims: [...new Set(passwords)].map(decode), isPlain };
  } catch {
    return undefined;
  }
});

/** Thousands of Secrets may hold the same: what is the same as the last time is not worked out again. */
function rememberLast<A, B, R>(work: (a: A, b: B) => R) {
  let last: { a?: A; b?: B; result?: R } = {};
  return (a: A, b: B) =>
    (last.a === a && last.b === b ? last : last = { a, b, result: work(a, b) }).result;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const UTF_8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Throws where the text is not UTF-8, which would not survive. */
const decodeConfig = (data = "") => UTF_8.decode(Buffer.from(data, "base64"));

function passwordOf(entry: unknown): string {
  const encoded = isObject(entry) && typeof entry.auth === "string" ? entry.auth : "";
  return /^_token:(.*)/s.exec(Buffer.from(encoded, "base64").toString())?.[1] ?? "";
}

// ES2026; not yet in the types.
const { rawJSON } = JSON as unknown as { rawJSON: (text: string) => unknown };

/** Merges the token into a docker config, the rest of which stays equal, numbers to the last digit. */
export function withToken(config: string, registries: string[], token: string): string {
  const keepDigits = (_key: string, value: unknown, context?: { source: string }) =>
    typeof value === "number" ? rawJSON(context!.source) : value;
  const { auths, ...rest } = JSON.parse(config, keepDigits);
  const auth = Buffer.from(`_token:${token}`).toString("base64");
  const ours = Object.fromEntries(registries.map((host) => [host, { auth }]));
  return JSON.stringify({ ...rest, auths: { ...auths, ...ours } });
}

/** Why a Secret is refreshed. */
export type RefreshReason = "requested" | "missing" | "identity-changed" | "expired" | "due";

/**
 * The verdict for a Secret at the instant `now`, in this order:
 *
 * 1. being deleted or not selected any more, or its identity or service account is invalid: skip
 * 2. not of the one type, or immutable: skip
 * 3. its docker config cannot be merged with: skip (1 to 3 are found by {@linkcode observe})
 * 4. a `refresh` value other than the one `satisfied` last: refresh (requested)
 * 5. a registry without a token of ours: refresh (missing)
 * 6. a token of another identity or service account: refresh (identity-changed)
 * 7. a token that has expired: refresh (expired)
 * 8. otherwise wait until `dueAt`, drawn once for this Secret and token ({@linkcode refreshDelay}); then refresh (due)
 */
export function decide(facts: Facts, now: number, dueAt: number, satisfied?: string) {
  if (facts.isGone || facts.problem) return "skip";
  if (facts.refresh !== undefined && facts.refresh !== satisfied) return "requested";
  const state = tokenState(facts, now);
  if (state !== "valid") return state;
  return dueAt <= now ? "due" : "wait";
}

/** Rules 5 to 7. */
function tokenState({ tokens }: Facts, now: number) {
  if (tokens.some((token) => !token || findFlaw(token, now))) return "missing";
  if (tokens.some((token) => token!.isForAnother)) return "identity-changed";
  return tokens.some((token) => token!.expiresAt <= now) ? "expired" : "valid";
}

/**
 * How long (ms) after `now` a token is to be replaced, at a `fraction` of its life. One that has just arrived counts
 * from now, whatever the issuer's clock says; one that was found counts from its time of issue.
 */
export function refreshDelay(
  { issuedAt, expiresAt }: Life,
  fraction: number,
  now: number,
  arrived: boolean,
): number {
  const issued = issuedAt ?? expiresAt - ASSUMED_LIFE_MS;
  const life = expiresAt - issued;
  return arrived ? fraction * Math.min(life, expiresAt - now) : issued + fraction * life - now;
}

const soonestToExpire = (tokens: Facts["tokens"]) =>
  tokens.reduce((a, b) => a && b && a.expiresAt <= b.expiresAt ? a : b ?? a, undefined);

/** For metrics and `--status`. */
function stateOf(facts: Facts, now: number) {
  if (facts.isGone || facts.problem) return "skipped";
  const state = tokenState(facts, now);
  return state === "identity-changed" ? "missing" : state;
}

// ───── The refresh ─────

/** Real time; tests hand in a clock that they advance. */
export const systemClock = {
  /** The wall clock, in ms since the epoch. */
  now: () => Date.now(),
  /** A clock that never jumps, in ms. */
  monotonic: () => performance.now(),
  setTimeout: (callback: () => void, ms: number): unknown => setTimeout(callback, ms),
  clearTimeout: (timer: unknown) => clearTimeout(timer as Parameters<typeof clearTimeout>[0]),
};

/** All that the controller reaches the world through. */
export interface Dependencies {
  api: KubernetesApi;
  /** Reads the controller's own subject token, anew each time. */
  readSubjectToken: () => string;
  /** One attempt for one identity; gives the JWT, or throws a {@linkcode StsError}. */
  exchange: (subjectToken: string, identity: string, signal: AbortSignal) => Promise<string>;
  clock: typeof systemClock;
  /** Uniform between 0 and 1, as `Math.random`. */
  random: () => number;
  log: Log;
}

/** Runs jobs, `limit` at once and `limitOfNamespace` of one namespace, those of the lowest rank first. */
function createPool<T>(limit: number, limitOfNamespace: number, run: (job: T) => Promise<void>) {
  const queue: { job: T; namespace: string; rank: number }[] = [];
  const running: string[] = [];
  const isFree = (namespace: string) =>
    running.filter((other) => other === namespace).length < limitOfNamespace;
  function startNext(): void {
    const index = running.length < limit
      ? queue.findIndex(({ namespace }) => isFree(namespace))
      : -1;
    const [next] = index === -1 ? [] : queue.splice(index, 1);
    if (!next) return;
    running.push(next.namespace);
    run(next.job).finally(() => {
      running.splice(running.indexOf(next.namespace), 1);
      startNext();
    });
  }
  return {
    isBusy: () => queue.length + running.length > 0,
    add(job: T, namespace: string, rank: number): void {
      queue.splice(queue.findLastIndex((other) => other.rank <= rank) + 1, 0, {
        job,
        namespace,
        rank,
      });
      startNext();
    },
  };
}

/**
 * How long what failed is left alone: until `retryAt`, which a user's wish skips, and `heldUntil`, by `Retry-After`,
 * which nothing does. These times, and all that follow, are of the monotonic clock.
 */
const NO_BACKOFF = { range: PASSING, failures: 0, retryAt: 0, heldUntil: 0 };

/** The token of one identity and subject, shared by all Secrets that ask for it. */
class SharedToken {
  /** The namespace is that of the first Secret that asked: the exchanges count as that namespace's. */
  readonly asker: Pick<Facts, "identity" | "account" | "namespace">;
  /** Its life is what it had left when it arrived, or its whole life if that is less. */
  token: { jwt: string; claims: Claims; arrivedAt: number; life: number } | undefined;
  /** When the exchange began that brought the token. */
  askedAt = -Infinity;
  /** Until then the issuer is not asked again, whoever asks. */
  settledUntil = 0;
  /** From then on the token is due to be exchanged for the next. */
  staleAt = 0;
  /** Whether an exchange is under way, or waits for its turn. */
  isBusy = false;
  backoff = NO_BACKOFF;
  /** The Secrets that wait for the next token. */
  readonly waiting = new Set<Entry>();
  /** What the subject token says of itself, for the message of a refusal. */
  subject: Claims | undefined;

  constructor(asker: SharedToken["asker"]) {
    this.asker = asker;
  }
}

/** A Secret that is looked after. */
class Entry {
  facts: Facts;
  shared: SharedToken | undefined;
  /** When its token is to be replaced. */
  dueAt = Infinity;
  /** When it is to be looked at again, whatever happens. */
  wakeAt = Infinity;
  /** Whether a write is under way, or waits for its turn. */
  isBusy = false;
  backoff = NO_BACKOFF;
  /** A user asks for a refresh, or has named another identity: the back-off is skipped, once. */
  isHurried = false;
  /** When that last had its try. */
  hurriedAt = -Infinity;
  /** When its `refresh` value was first seen. */
  requestedAt = 0;
  /** The last `refresh` value that a write took off. */
  satisfied: string | undefined;
  wroteAt = -Infinity;
  spacing = 0;
  /** The spacing where nobody else replaced the token, which may have had little left when it was written. */
  renewalSpacing = 0;
  /** Whether it holds a token and that was told: then the next one is nothing to tell. */
  isSettled: boolean;
  /** What was told last, and when. */
  standing: { message: string; at: number } | undefined;

  constructor(facts: Facts, isSettled: boolean) {
    this.facts = facts;
    this.isSettled = isSettled;
  }
}

/** What is next for a Secret. */
type Step = { do: "sleep"; until: number; problem?: Problem } | RefreshStep;
type RefreshStep = { do: "exchange" | "patch"; shared: SharedToken; reason: RefreshReason };

const keyOf = ({ namespace, name }: { namespace: string; name: string }) => `${namespace}/${name}`;

/** Whether a resource version is older than another: they are decimal numbers, of any length. */
const isOlder = (version: string, than: string) =>
  version.length === than.length ? version < than : version.length < than.length;

export type Controller = ReturnType<typeof createController>;

/** The whole controller: lists, watches and refreshes from `start` to `stop`. */
export function createController(config: Config, deps: Dependencies) {
  const { api, clock, clock: { monotonic }, random, log } = deps;
  /** Tells the replicas apart. */
  const instance = `controller-${random().toString(36).slice(2, 10)}`;
  const entries = new Map<string, Entry>();
  const sharedTokens = new Map<string, SharedToken>();
  const exchanges = createPool(MAX_EXCHANGES, MAX_EXCHANGES_OF_NAMESPACE, runExchange);
  const patches = createPool(MAX_PATCHES, MAX_PATCHES, runPatch);
  /**
   * What is listed and watched in one go, a namespace or the whole cluster: the version to watch from (none: list first),
   * and when it last tried or received something, which is ahead of now while it waits.
   */
  const scopes = config.namespaces.map((namespace) => ({
    namespace,
    version: "",
    synced: false,
    aliveAt: Infinity,
  }));
  type Scope = typeof scopes[number];
  const requests = new Set<AbortController>();
  const counters = new Map<string, number>();
  /** When each reason was last told, by "namespace/name reason". */
  const toldAt = new Map<string, number>();
  let events = { endsAt: -Infinity, namespaces: [] as string[] };
  /** Set by the issuer's 429: holds for all exchanges. */
  let heldUntil = 0;
  let progressAt = monotonic();
  let clockOffset = clock.now() - progressAt;
  let alarm: { at: number; timer?: unknown } = { at: Infinity };
  let beatAt = progressAt;
  let stopped = false;

  // The watch

  async function follow(scope: Scope): Promise<void> {
    const { namespace } = scope;
    let failures = 0;
    let wasGone = false;
    let isUnsure = false;
    while (!stopped) {
      let openedAt = Infinity;
      let error: Partial<ApiError> | undefined;
      scope.aliveAt = monotonic();
      try {
        // etcd may have been restored meanwhile: a watch from a version that is yet to come again would be silent.
        const page = isUnsure &&
          await within(LIST_WATCH_TIMEOUT_MS, (signal) => api.list(namespace, signal, 1).next());
        if (page && isOlder(page.value?.resourceVersion ?? "", scope.version)) scope.version = "";
        scope.version ||= await within(LIST_WATCH_TIMEOUT_MS, (signal) => list(scope, signal));
        openedAt = monotonic();
        await within(LIST_WATCH_TIMEOUT_MS, (signal) => watch(scope, signal));
      } catch (caught) {
        error = caught as ApiError;
      }
      if (stopped) return;
      const lived = monotonic() - openedAt;
      const { status, reason, message = "it ended at once" } = error ?? {};
      const isShort = lived < WATCH_SHORT_MS;
      const isGone = status === 410;
      const isFirstGone = isGone && !(wasGone && isShort);
      wasGone = isGone;
      // What the resource version may be to blame for (a bad record, a 410, another status) leads to a new list; what
      // passes (no answer, 401, 403, 429) keeps it.
      const isKept = lived < 0 ||
        (reason !== "InvalidAnswer" && [undefined, 401, 403, 429].includes(status));
      if (!isKept) scope.version = "";
      count(
        `watch_restarts_total{reason="${
          isGone ? "gone" : error ? "error" : isShort ? "short" : "ended"
        }"}`,
      );
      if (lived >= WATCH_GOOD_MS) failures = 0;
      const hasFailed = error !== undefined || isShort;
      isUnsure = hasFailed && scope.version !== "";
      if (isFirstGone || !hasFailed) continue;
      failures++;
      const delay = Math.max(drawDelay(WATCH, failures), retryAfter(error));
      log("warn", "watch failed", { namespace, error: message, retryInMs: Math.round(delay) });
      scope.aliveAt = monotonic() + delay;
      await within(
        delay,
        (signal) => new Promise((resolve) => signal.addEventListener("abort", resolve)),
      );
    }
  }

  /** Takes over a whole list: what is not in it is gone, though its DELETED was missed. */
  async function list(scope: Scope, signal: AbortSignal): Promise<string> {
    const listed = new Set<string>();
    const since = monotonic();
    let version = "";
    for await (const page of api.list(scope.namespace, signal)) {
      scope.aliveAt = monotonic();
      version = page.resourceVersion;
      for (const secret of page.items) listed.add(takeIn(secret, "LISTED", since));
    }
    for (const [key, entry] of entries) {
      const isInScope = scope.namespace === undefined || scope.namespace === entry.facts.namespace;
      if (isInScope && !listed.has(key)) forget(entry);
    }
    log("info", "listed", { namespace: scope.namespace, secrets: listed.size });
    scope.synced = true;
    return version;
  }

  /** Only schedules: while a record is handled nothing is read, and a dead connection goes unnoticed. */
  async function watch(scope: Scope, signal: AbortSignal): Promise<void> {
    const seconds = WATCH_MIN_S + Math.floor(random() * WATCH_SPREAD_S);
    for await (const event of api.watch(scope.namespace, scope.version, seconds, signal)) {
      scope.aliveAt = monotonic();
      if (event.type === "DELETED") {
        const known = entries.get(keyOf(event.secret.metadata));
        if (known && !isOlder(event.resourceVersion, known.facts.resourceVersion)) forget(known);
      } else if (event.type !== "BOOKMARK") {
        takeIn(event.secret, event.type);
      }
      if (scope.version) scope.version = event.resourceVersion;
    }
  }

  /**
   * Takes in a Secret as it is now; returns its key. A token that is new in it has just been issued if it was modified;
   * otherwise it may be of any age. Only a list may take a Secret back to an older version, as etcd may have been; unless
   * the Secret was written since the list began.
   */
  function takeIn(secret: Secret, how: "LISTED" | "ADDED" | "MODIFIED", since = Infinity): string {
    const key = keyOf(secret.metadata);
    const known = entries.get(key);
    // What a patch was answered with comes again by the watch.
    const mayBeOld = how === "LISTED" && !(known && known.wroteAt >= since);
    if (
      known && !mayBeOld && !isOlder(known.facts.resourceVersion, secret.metadata.resourceVersion)
    ) return key;
    const facts = observe(secret, config);
    const same = known?.facts.uid === facts.uid ? known : undefined;
    if (known && !same) forget(known);
    const before = same?.facts;
    const entry = same ?? new Entry(facts, stateOf(facts, clock.now()) === "valid");
    entries.set(key, entry);
    entry.facts = facts;
    const isRenamed = before &&
      (before.identity !== facts.identity || before.account !== facts.account);
    const isAsked = ![undefined, before?.refresh, entry.satisfied].includes(facts.refresh);
    if (isRenamed) entry.isSettled = false;
    if (isAsked) entry.requestedAt = monotonic();
    if (isRenamed || isAsked) entry.isHurried = true;
    const token = soonestToExpire(facts.tokens);
    if (token && token.fingerprint !== soonestToExpire(before?.tokens ?? [])?.fingerprint) {
      const fraction = REFRESH_FRACTION + random() * REFRESH_SPREAD;
      const own = entry.shared?.token;
      entry.dueAt = own?.claims.fingerprint === token.fingerprint
        ? own.arrivedAt + fraction * own.life
        : monotonic() + refreshDelay(token, fraction, clock.now(), how === "MODIFIED");
      // Somebody could write it: what passes has passed, and a replica that always comes too late waits no longer.
      const { range, failures, retryAt } = entry.backoff;
      const eased = { failures: 1, retryAt: Math.min(retryAt, entry.dueAt) };
      if (range !== REFUSED && failures > 0) entry.backoff = { ...entry.backoff, ...eased };
    }
    consider(entry);
    return key;
  }

  function forget(entry: Entry): void {
    entry.shared?.waiting.delete(entry);
    entries.delete(keyOf(entry.facts));
  }

  // The refresh

  /** Decides what is next for a Secret, in place of what was decided before; one that is queued is when its turn comes. */
  function consider(entry: Entry): void {
    entry.wakeAt = Infinity;
    const asked = entry.shared?.waiting.delete(entry) ? entry.shared : undefined;
    if (entry.isBusy || stopped) return;
    const step = nextStep(entry, asked);
    if (step.do === "sleep") {
      if (step.problem) tell(entry, step.problem.reason, step.problem.message);
      entry.wakeAt = step.until;
      return setAlarm(step.until);
    }
    const { shared, reason } = step;
    const current = reason === "due" || reason === "requested"
      ? soonestToExpire(entry.facts.tokens)
      : undefined;
    const { range, failures } = entry.backoff;
    const hasFailed = (failures > 0 && range !== CONFLICT) || shared.backoff.failures > 0;
    const rank = (hasFailed ? BEHIND_ALL : 0) + (current?.expiresAt ?? 0);
    if (step.do === "patch") {
      entry.isBusy = true;
      return patches.add(entry, entry.facts.namespace, rank);
    }
    shared.waiting.add(entry);
    if (entry.isHurried) entry.hurriedAt = monotonic();
    if (shared.isBusy) return;
    shared.isBusy = true;
    exchanges.add(shared, shared.asker.namespace, rank);
  }

  /**
   * What is next for a Secret, by the first of these that holds:
   *
   * 1. the verdict is to skip or to wait: sleep
   * 2. the spacing of its writes, or its own back-off, is not over: sleep
   * 3. a token in hand will do: write it. Unless the Secret has it already (a `refresh` has it written all the same,
   *    which takes the annotation off) or, where it is only due, has one that lives longer: then sleep for half of what
   *    that one has left
   * 4. the issuer may be asked: exchange
   * 5. otherwise wait for the next token, and sleep until the issuer may be asked
   *
   * A user's wish (`isHurried`) shortens the spacing and skips the back-offs, but nothing that `Retry-After` asks for; it
   * goes on waiting for the exchange under way that it has `asked` for.
   */
  function nextStep(entry: Entry, asked?: SharedToken): Step {
    const { facts, isHurried, backoff } = entry;
    const now = clock.now();
    const tick = monotonic();
    const sleep = (until: number, problem?: Problem): Step => ({ do: "sleep", until, problem });
    const reason = decide(facts, now, now + entry.dueAt - tick, entry.satisfied);
    if (reason === "skip") {
      return sleep(tick + EVENT_STANDING_MS, facts.isGone ? undefined : facts.problem);
    }
    entry.isHurried &&= reason !== "wait"; // another replica may have fulfilled the wish
    if (reason === "wait") return sleep(entry.dueAt);

    const shared = entry.shared = sharedFor(facts);
    const spacing = reason === "due" || reason === "expired" ? entry.renewalSpacing : entry.spacing;
    const writableAt = entry.wroteAt + Math.min(spacing, isHurried ? SHORT_SPACING_MS : Infinity);
    const hurryAt = asked === shared && shared.isBusy ? 0 : entry.hurriedAt + SHORT_SPACING_MS;
    const retryAt = Math.max(backoff.heldUntil, isHurried ? hurryAt : backoff.retryAt);
    if (Math.max(writableAt, retryAt) > tick) {
      const isReplaced = writableAt > tick && !isHurried &&
        (reason === "missing" || reason === "identity-changed");
      return sleep(Math.max(writableAt, retryAt), isReplaced ? OVERWRITTEN : undefined);
    }

    const { token, staleAt, settledUntil, backoff: asking } = shared;
    const askableAt = Math.max(
      settledUntil,
      heldUntil,
      asking.heldUntil,
      isHurried ? 0 : asking.retryAt,
    );
    const isRecent = reason !== "requested" ||
      shared.askedAt >= entry.requestedAt - SHORT_SPACING_MS;
    const isFresh = staleAt > tick && isRecent;
    // While the issuer fails or is not to be asked, the token in hand still serves those who have none.
    const isNeeded = reason !== "due" && reason !== "requested" && askableAt > tick;
    if (token && token.claims.expiresAt > now && (isFresh || settledUntil > tick || isNeeded)) {
      const isHeld = facts.tokens.every((own) => own?.fingerprint === token.claims.fingerprint);
      if (isHeld && reason !== "requested") return sleep(isFresh ? staleAt : askableAt);
      const left = (soonestToExpire(facts.tokens)?.expiresAt ?? 0) - now;
      const isNoGain = reason === "due" && token.claims.expiresAt - now <= left;
      // By then the issuer may have given a better one.
      return isNoGain ? sleep(tick + left / 2) : { do: "patch", shared, reason };
    }
    if (askableAt <= tick) return { do: "exchange", shared, reason };
    shared.waiting.add(entry);
    return sleep(askableAt);
  }

  const isKnown = (entry: Entry) => !stopped && entries.get(keyOf(entry.facts)) === entry;

  /** The wish has had its one try. */
  const endHurry = (entry: Entry) =>
    entry.isHurried && Object.assign(entry, { isHurried: false, hurriedAt: monotonic() });

  function sharedFor({ identity, account, namespace }: Facts): SharedToken {
    const key = account === undefined ? identity : `${identity} ${namespace}/${account}`;
    const shared = sharedTokens.get(key) ?? new SharedToken({ identity, account, namespace });
    sharedTokens.set(key, shared);
    return shared;
  }

  async function runExchange(shared: SharedToken): Promise<void> {
    const { asker: { identity, account }, waiting } = shared;
    const askedAt = progress();
    // While it waited for its turn those who asked may have left, or the issuer may have asked for a pause.
    if (stopped || waiting.size === 0 || heldUntil > askedAt) {
      shared.isBusy = false;
      return [...waiting].forEach(consider);
    }
    // Somebody's wish skipped the back-off.
    const isHurried = shared.backoff.retryAt > askedAt;
    const error = await within(EXCHANGE_TIMEOUT_MS, (signal) => mint(shared, signal))
      .then((jwt) => accept(shared, jwt, askedAt))
      .catch((caught: StsError) => caught);
    shared.isBusy = false;
    if (stopped) return;
    const endedAt = progress();
    count("exchange_duration_seconds_count");
    count("exchange_duration_seconds_sum", (endedAt - askedAt) / 1000);
    if (error) {
      shared.backoff = nextBackoff(isHurried ? NO_BACKOFF : shared.backoff, error);
      if (error instanceof StsError && error.status === 429) {
        heldUntil = Math.max(heldUntil, shared.backoff.heldUntil);
      }
      // Nobody who asks for one refresh after another makes us spin.
      if (isHurried) {
        shared.backoff.heldUntil = Math.max(shared.backoff.heldUntil, endedAt + SHORT_SPACING_MS);
      }
      log("warn", "exchange failed", {
        identity,
        account,
        error: error.message,
        secrets: waiting.size,
      });
    }
    const message = error ? explain(error, shared) : "";
    for (const entry of [...waiting]) {
      if (error) failed(entry, error, message);
      // Served: only the spacing of writes holds it up now.
      else entry.hurriedAt = -Infinity;
      consider(entry);
    }
  }

  /** Gets a subject token, and a registry token in return for it. */
  async function mint(shared: SharedToken, signal: AbortSignal): Promise<string> {
    const { identity, account, namespace } = shared.asker;
    const subjectToken = account === undefined ? deps.readSubjectToken() : await api.requestToken(
      namespace,
      account,
      new URL(config.issuer).hostname,
      SUBJECT_TOKEN_LIFE_S,
      signal,
    );
    shared.subject = decode(subjectToken);
    if (shared.subject && shared.subject.expiresAt <= clock.now()) {
      throw new StsError(
        "the subject token has expired: the kubelet has not renewed it (elsewhere: make another)",
      );
    }
    return deps.exchange(subjectToken, identity, signal);
  }

  function accept(shared: SharedToken, jwt: string, askedAt: number): undefined {
    const now = clock.now();
    const arrivedAt = monotonic();
    // Issuers may give the same token again. That is no failure: they are asked again after half of what is left of it.
    const again = shared.token?.jwt === jwt && shared.token.claims.expiresAt > now
      ? shared.token
      : undefined;
    const claims = again?.claims ?? verify(jwt, shared.asker.identity, config.audience, now);
    const life = refreshDelay(claims, 1, now, true);
    const settle = Math.max(PASSING.baseMs, Math.min(SHORT_SPACING_MS, life / 2));
    shared.token = again ?? { jwt, claims, arrivedAt, life };
    shared.askedAt = askedAt;
    shared.settledUntil = arrivedAt + settle;
    shared.staleAt = arrivedAt + (again ? Math.max(settle, life / 2) : REFRESH_FRACTION * life);
    shared.backoff = NO_BACKOFF;
  }

  async function runPatch(entry: Entry): Promise<void> {
    entry.isBusy = false;
    if (!isKnown(entry)) return;
    const step = nextStep(entry);
    if (step.do !== "patch") return consider(entry);
    const { facts } = entry;
    entry.isBusy = true;
    progress();
    const secret = await within(REQUEST_TIMEOUT_MS, (signal) => write(entry, step, signal))
      .catch((error: ApiError) => patchFailed(entry, facts, error));
    entry.isBusy = false;
    progress();
    // It may have been deleted meanwhile or made anew; and what came of it was taken in, but not acted on.
    if (secret && isKnown(entry)) takeIn(secret, "MODIFIED");
    if (isKnown(entry)) consider(entry);
  }

  async function write(
    entry: Entry,
    { shared, reason }: RefreshStep,
    signal: AbortSignal,
  ): Promise<Secret> {
    const { namespace, name, uid, resourceVersion, identity, refresh, isPlain } = entry.facts;
    const { jwt, claims, arrivedAt, life } = shared.token!;
    const current = isPlain
      ? EMPTY_CONFIG
      : decodeConfig((await api.get(namespace, name, signal)).data?.[DATA_KEY]);
    const data = Buffer.from(withToken(current, config.registries, jwt)).toString("base64");
    const expires = new Date(claims.expiresAt).toISOString();
    const annotations = {
      [TOKEN_IDENTITY_KEY]: identity,
      [TOKEN_EXPIRES_KEY]: expires,
      [REFRESH_KEY]: null,
    };
    // A Secret that is not the one that was decided on, or not as it was, is a conflict.
    const patch = { metadata: { uid, resourceVersion, annotations }, data: { [DATA_KEY]: data } };
    const secret = await api.patch(namespace, name, patch, signal);
    entry.wroteAt = monotonic();
    entry.spacing = Math.min(WRITE_SPACING_MS, life / 2);
    entry.renewalSpacing = Math.min(entry.spacing, (arrivedAt + life - entry.wroteAt) / 2);
    entry.satisfied = refresh ?? entry.satisfied;
    entry.backoff = NO_BACKOFF;
    endHurry(entry);
    count('refreshes_total{result="success"}');
    log("info", "token written", { namespace, name, identity, reason, expires });
    if (!entry.isSettled) {
      tell(entry, "TokenIssued", `the Secret holds a token of ${clean(identity)} until ${expires}`);
    }
    entry.isSettled = true;
    return secret;
  }

  /** Returns the Secret as it is now, if the one that was to be written is no more or has changed. */
  async function patchFailed(
    entry: Entry,
    facts: Facts,
    error: Partial<ApiError>,
  ): Promise<Secret | undefined> {
    if (error.status === 409 || error.status === 404) {
      count('refreshes_total{result="conflict"}');
      const isFirst = entry.backoff.failures === 0;
      entry.backoff = isFirst
        ? { ...NO_BACKOFF, range: CONFLICT, failures: 1 }
        : nextBackoff(entry.backoff, error);
      // A user's wish may run into one write of another's; where there is a second, no hurry helps.
      if (!isFirst) endHurry(entry);
      if (entry.backoff.failures > MAX_CHANCE) tell(entry, OVERWRITTEN.reason, OVERWRITTEN.message);
      progress();
      const { namespace, name, resourceVersion } = entry.facts;
      const read = within(REQUEST_TIMEOUT_MS, (signal) => api.get(namespace, name, signal));
      const secret = await read.catch(({ status }) => status === 404 ? vanish(entry) : undefined);
      // etcd was restored from a backup, which nobody has told yet: what is known has to be listed anew.
      return secret && isOlder(secret.metadata.resourceVersion, resourceVersion)
        ? vanish(entry)
        : secret;
    }
    if (!isKnown(entry)) return undefined;
    entry.backoff = nextBackoff(entry.isHurried ? NO_BACKOFF : entry.backoff, error);
    endHurry(entry);
    // Else the docker config could not be merged with; unless somebody has mended it meanwhile.
    if (error instanceof ApiError) {
      failed(entry, error, `the token could not be written: ${clean(error.message)}`);
    } else if (entry.facts === facts) entry.facts = { ...facts, problem: INVALID_DOCKER_CONFIG };
  }

  /** It was not found twice, or as it was long ago. The list after this watch brings it back if it is still there. */
  function vanish(entry: Entry): undefined {
    if (!isKnown(entry)) return;
    forget(entry);
    for (const scope of scopes) scope.version = "";
  }

  function failed(entry: Entry, error: Partial<StsError>, message: string): void {
    count(`refreshes_total{result="${error.refused ? "refused" : "failed"}"}`);
    entry.isSettled = false;
    endHurry(entry);
    tell(entry, "ExchangeFailed", message);
  }

  /** The back-off after one more failure; a refusal after what may pass begins anew, and the other way round. */
  function nextBackoff(
    { range: lastRange, failures: before }: typeof NO_BACKOFF,
    error: Partial<StsError>,
  ) {
    const range = error.refused
      ? REFUSED
      : error.status === 409 || error.status === 404
      ? CONFLICT
      : PASSING;
    const failures = (range === REFUSED) === (lastRange === REFUSED) ? before + 1 : 1;
    const now = monotonic();
    return {
      range,
      failures,
      retryAt: now + drawDelay(range, failures),
      heldUntil: now + retryAfter(error),
    };
  }

  const drawDelay = ({ baseMs, capMs }: typeof PASSING, failures: number) =>
    Math.min(capMs, baseMs * 2 ** (failures - 1)) * (0.5 + random() / 2);

  /** In ms. The header bears seconds or a date. */
  function retryAfter({ status = 0, retryAfter = "" }: Partial<ApiError> = {}): number {
    if (status !== 429 && status < 500) return 0;
    const ms = /^\d+$/.test(retryAfter) ? +retryAfter * 1000 : Date.parse(retryAfter) - clock.now();
    return Math.min(Math.max(ms || 0, 0), MAX_RETRY_AFTER_MS);
  }

  /** Runs a request, which is ended after so long, or with the program. */
  async function within<T>(ms: number, send: (signal: AbortSignal) => Promise<T>): Promise<T> {
    // One each: a signal that lived as long as the program would gather listeners.
    const request = new AbortController();
    const timer = clock.setTimeout(
      () => request.abort(new Error(`no answer within ${ms / 1000} s`)),
      ms,
    );
    requests.add(request);
    try {
      return await send(request.signal);
    } finally {
      clock.clearTimeout(timer);
      requests.delete(request);
    }
  }

  /** Marks, for /healthz, that work began or ended; returns the instant. */
  const progress = () => progressAt = monotonic();

  /** One timer for all: one each would cost as much memory as all else that is kept of a Secret. */
  function setAlarm(at: number): void {
    if (at >= alarm.at) return;
    clock.clearTimeout(alarm.timer);
    alarm = { at, timer: clock.setTimeout(ring, Math.max(at - monotonic(), ALARM_SPACING_MS)) };
  }

  function ring(): void {
    const tick = monotonic();
    alarm = { at: Infinity };
    if (beatAt <= tick) beat(tick);
    setAlarm(beatAt);
    for (const entry of entries.values()) {
      if (entry.wakeAt <= tick) consider(entry);
      else setAlarm(entry.wakeAt);
    }
  }

  /** Now and then: notices a clock that was set or a machine that slept, and lets go of what is no longer used. */
  function beat(tick: number): void {
    const drift = clock.now() - tick - clockOffset;
    if (Math.abs(drift) > MAX_DRIFT_MS) {
      clockOffset += drift;
      for (const shared of sharedTokens.values()) {
        shared.staleAt -= Math.max(drift, 0);
        if (shared.token) shared.token.arrivedAt -= Math.max(drift, 0);
      }
      for (const entry of entries.values()) {
        entry.dueAt -= Math.max(drift, 0);
        consider(entry);
      }
    }
    const used = new Set(entries.values().map((entry) => entry.shared));
    for (const [key, { isBusy, settledUntil, backoff }] of sharedTokens) {
      const isAtRest = !isBusy &&
        Math.max(settledUntil, backoff.retryAt, backoff.heldUntil) <= tick;
      if (isAtRest && !used.has(sharedTokens.get(key))) sharedTokens.delete(key);
    }
    for (const [key, at] of toldAt) if (at <= tick - EVENT_SPACING_MS) toldAt.delete(key);
    beatAt = tick + HEARTBEAT_MS;
  }

  // What is told

  /** Logs and writes an event, if it is news or a problem that still stands. */
  function tell(entry: Entry, reason: Problem["reason"] | "TokenIssued", message: string): void {
    const { namespace, name, uid } = entry.facts;
    const tick = monotonic();
    const key = `${namespace}/${name} ${reason}`;
    const stands = entry.standing?.message === message &&
      entry.standing.at > tick - EVENT_STANDING_MS;
    if (stands || (toldAt.get(key) ?? -Infinity) > tick - EVENT_SPACING_MS) return;
    if (tick >= events.endsAt) events = { endsAt: tick + EVENT_WINDOW_MS, namespaces: [] };
    const own = events.namespaces.filter((other) => other === namespace).length;
    // A problem that is dropped has not been told: it is the next time.
    if (events.namespaces.length >= MAX_EVENTS || own >= MAX_EVENTS_OF_NAMESPACE) {
      return count("events_dropped_total");
    }
    events.namespaces.push(namespace);
    entry.standing = { message, at: tick };
    toldAt.set(key, tick);
    const type = reason === "TokenIssued" ? "Normal" : "Warning";
    if (type === "Warning") log("warn", reason, { namespace, name, message });
    const event = {
      metadata: { generateName: "pull-secret-updater-", namespace },
      // A MicroTime of Kubernetes has six digits.
      eventTime: new Date(clock.now()).toISOString().replace("Z", "000Z"),
      reportingController: `${PREFIX}/controller`,
      reportingInstance: instance,
      action: "Refresh",
      regarding: { apiVersion: "v1", kind: "Secret", namespace, name, uid },
      reason,
      type,
      note: Buffer.from(message).subarray(0, MAX_NOTE_BYTES).toString(),
    };
    within(REQUEST_TIMEOUT_MS, (signal) => api.createEvent(namespace, event, signal))
      .catch(({ message }) =>
        log("warn", "event not written", { namespace, name, reason, error: message })
      );
  }

  const count = (series: string, by = 1) =>
    void counters.set(series, (counters.get(series) ?? 0) + by);

  return {
    /** Starts to list and watch. */
    start(): void {
      log("info", "started", {
        version: VERSION,
        instance,
        api: config.api.url,
        issuer: config.issuer,
      });
      for (const scope of scopes) follow(scope);
      ring();
    },
    /** Ends all requests and timers. */
    stop(): void {
      stopped = true;
      for (const request of requests) request.abort(new Error("the program ends"));
      clock.clearTimeout(alarm.timer);
    },
    /** Says what /readyz waits for, if anything: every first list. */
    findUnready: () =>
      scopes.every(({ synced }) => synced) ? undefined : "the first list is not done",
    /** Says why this process is stuck, if it is; that others are down, slow or hang is no reason. */
    findStuck(): string | undefined {
      const tick = monotonic();
      const isOverdue = entries.values().some(({ wakeAt }) => wakeAt < tick - STUCK_WORK_MS);
      const isDue = isOverdue || exchanges.isBusy() || patches.isBusy();
      if (isDue && progressAt < tick - STUCK_WORK_MS) {
        return "work is due, and none was done for a minute";
      }
      if (scopes.every(({ aliveAt }) => aliveAt >= tick - STUCK_WATCH_MS)) return undefined;
      return "a watch has neither tried nor received anything for 5 minutes";
    },
    /** Told of each answer of the API server. */
    countAnswer: (verb: string, code: string) =>
      count(`api_requests_total{verb="${verb}",code="${code}"}`),
    /** The metrics, in Prometheus' text format. */
    renderMetrics(): string {
      const now = clock.now();
      const states = { valid: 0, missing: 0, expired: 0, skipped: 0 };
      const expiries = new Map<string, number>();
      for (const { facts } of entries.values()) {
        states[stateOf(facts, now)]++;
        const token = expiries.size < MAX_EXPIRY_SERIES ? soonestToExpire(facts.tokens) : undefined;
        if (!token) continue;
        const labels = `namespace=${quote(facts.namespace)},name=${quote(facts.name)}`;
        expiries.set(`token_expiry_timestamp_seconds{${labels}}`, token.expiresAt / 1000);
      }
      const gauges = Object.entries(states).map(([state, size]) =>
        [`secrets{state="${state}"}`, size] as const
      );
      const samples = [
        [`build_info{version="${VERSION}"}`, 1] as const,
        ...gauges,
        ...expiries,
        ...counters,
      ];
      const lines = samples.map(([series, value]) => `${METRIC_PREFIX}${series} ${value}\n`);
      return METRICS.map(([name, type, help]) => {
        const own = lines.filter((line) => line.startsWith(METRIC_PREFIX + name));
        return `# HELP ${METRIC_PREFIX}${name} ${help}\n# TYPE ${METRIC_PREFIX}${name} ${type}\n${
          own.join("")
        }`;
      }).join("");
    },
  };
}

/** For a label's value. Of JSON's escapes Prometheus knows those of quotes, backslashes and line feeds only. */
const quote = (text: string) => JSON.stringify(text.replace(/\p{C}/gu, "?"));

const METRIC_PREFIX = "pull_secret_updater_";
const METRICS = [
  ["build_info", "gauge", "The version that runs."],
  ["secrets", "gauge", "Selected Secrets by state."],
  ["token_expiry_timestamp_seconds", "gauge", "When the token in a Secret expires."],
  ["refreshes_total", "counter", "Refreshes of Secrets by result."],
  ["exchange_duration_seconds", "summary", "How long exchanges took."],
  ["api_requests_total", "counter", "Requests to the API server by verb and status."],
  ["watch_restarts_total", "counter", "Lists and watches that ended, by reason."],
  ["events_dropped_total", "counter", "Events not written, being too many."],
] as const;
/** The message of a failed exchange; of a refusal, with what it takes to mend it. */
function explain(error: Partial<StsError>, { asker: { identity }, subject }: SharedToken): string {
  const message = clean(`${"path" in error ? "SUBJECT_TOKEN_FILE: " : ""}${error.message}`);
  if (error instanceof ApiError && error.refused) {
    return `${message}; it takes create on serviceaccounts/token`;
  }
  if (!(error instanceof StsError) || ![401, 403].includes(error.status ?? 0)) return message;
  const { issuer = "?", subject: sub = "?", audiences = [] } = subject ?? {};
  return `${message}. The subject token has iss=${clean(issuer)} sub=${clean(sub)} aud=${
    clean(audiences.join())
  }. ` +
    "Bind the identity to it, or another by: chainctl iam identities create NAME --identity-issuer=ISS --subject=SUB " +
    `--parent=${identity.replace(/\/[^/]*$/, "")} --role=registry.pull`;
}

// ───── The program ─────

const HELP =
  `Keeps image pull Secrets filled with registry tokens that have not expired, as environment variables say.

Usage: main.ts [--status | --status=json | --version | --help]

--status lists the selected Secrets. Exit status: 0 none lacks a valid token, 1 some do, 3 it could not look.
`;

/** Prints what state the selected Secrets are in; returns the exit status. */
async function printStatus(api: KubernetesApi, config: Config, asJson: boolean): Promise<number> {
  const rows: Record<string, string | undefined>[] = [];
  const now = Date.now();
  for (const scope of config.namespaces) {
    for await (const { items } of api.list(scope, AbortSignal.timeout(LIST_WATCH_TIMEOUT_MS))) {
      for (const facts of items.map((secret) => observe(secret, config))) {
        const [namespace, name, identity] = [facts.namespace, facts.name, facts.identity].map((
          text,
        ) => clean(text));
        const state = stateOf(facts, now);
        const expires = soonestToExpire(facts.tokens)?.expiresAt;
        const expiresIn = expires === undefined ? "" : `${Math.round((expires - now) / 1000)}s`;
        const wrong = facts.problem?.message ??
          (state === "valid" ? "" : "see its events and the controller's log");
        rows.push({ namespace, name, identity, state, expiresIn, problem: wrong });
      }
    }
  }
  const table = [
    ["NAMESPACE", "NAME", "IDENTITY", "STATE", "EXPIRES IN", "PROBLEM"],
    ...rows.map(Object.values),
  ];
  const widths = table[0]!.map((_, column) => Math.max(...table.map((row) => row[column]!.length)));
  const lines = table.map((row) =>
    row.map((cell, column) => cell.padEnd(widths[column]!)).join("  ").trimEnd()
  );
  const text = rows.length === 0 ? `no Secret has the label ${IDENTITY_KEY}` : lines.join("\n");
  process.stdout.write(`${asJson ? JSON.stringify(rows, null, 2) : text}\n`);
  return rows.every(({ state }) => state === "valid") ? 0 : 1;
}

/** Serves the probes and the metrics. */
function serve(controller: Controller, port: number): Server {
  return createServer(({ url = "" }, response) => {
    const isKnown = ["/healthz", "/readyz", "/metrics"].includes(url);
    const why = url === "/healthz"
      ? controller.findStuck()
      : url === "/readyz"
      ? controller.findUnready()
      : undefined;
    response.writeHead(why ? 503 : isKnown ? 200 : 404, {
      "content-type": "text/plain; version=0.0.4",
    });
    response.end(
      url === "/metrics"
        ? controller.renderMetrics()
        : `${why ?? (isKnown ? "ok" : "not found")}\n`,
    );
  }).listen(port);
}

/** The program: returns the exit status, or nothing while it runs. */
async function main([flag = "", ...others]: string[]): Promise<number | undefined> {
  if (
    !["", "--help", "--version", "--status", "--status=json"].includes(flag) || others.length > 0
  ) {
    const given = clean([flag, ...others].join(" "));
    throw new ConfigError(
      `unknown argument "${given}": must be --status, --status=json, --version or --help`,
    );
  }
  if (flag === "--help") return void process.stdout.write(HELP);
  if (flag === "--version") return void process.stdout.write(`${VERSION}\n`);
  const config = readConfig((name) => process.env[name]);
  const log = createLog(config.logLevel, Date.now, (line) => process.stderr.write(line));
  let controller: Controller | undefined = undefined;
  const api = createClient({
    ...config.api,
    labelSelector: IDENTITY_KEY,
    userAgent: USER_AGENT,
    onAnswer: (verb, code) => controller?.countAnswer(verb, code),
    onStale: (error) => log("warn", "file not read again", { error }),
  });
  if (flag !== "") {
    return await printStatus(api, config, flag === "--status=json").finally(api.close);
  }
  const { issuer, audience, subjectTokenFile } = config;
  const dispatcher = issuerAgent(config.httpsProxy, config.noProxy);
  controller = createController(config, {
    api,
    readSubjectToken: () => readFileSync(subjectTokenFile, "utf8").trim(),
    exchange: (subjectToken, identity, signal) =>
      exchange({ issuer, subjectToken, identity, audience }, {
        dispatcher,
        userAgent: USER_AGENT,
        signal,
      }),
    clock: systemClock,
    random: Math.random,
    log,
  });
  serve(controller, config.port).on("listening", controller.start).on("error", ({ message }) => {
    process.stderr.write(`PORT="${config.port}": must be a port that is free: ${message}\n`);
    process.exit(2);
  });
  const stop = (signal: string) => {
    log("info", "stopped", { signal });
    controller.stop();
    process.exit(0);
  };
  process.on("SIGTERM", stop).on("SIGINT", stop);
}

// Node before 24.2 does not know import.meta.main.
if (import.meta.main ?? process.argv[1] === import.meta.filename) {
  main(process.argv.slice(2)).then((status) => process.exitCode = status, (error) => {
    process.stderr.write(
      `${error instanceof ConfigError ? error.message : clean(error.message)}\n`,
    );
    process.exitCode = error instanceof ConfigError ? 2 : 3;
  });
}
