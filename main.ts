/**
 * Keeps image pull Secrets filled with registry tokens that have not expired.
 *
 * Data goes one way: list and watch → the store → `reconcile` → `decide` → exchange or patch → the
 * patch comes back by the watch → `decide` says wait. All that is remembered between two steps is
 * when the next one may be tried. Every replica does all of this; there is no leader.
 *
 * Two clocks: lives of tokens are told by the wall clock (`now`), pauses by the monotonic one (`tick`).
 */
import { existsSync, readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { setDefaultAutoSelectFamilyAttemptTimeout } from "node:net";
import { join } from "node:path";
import process from "node:process";
import {
  ApiError,
  type ClientOptions,
  keyOf,
  type KubernetesApi,
  KubernetesClient,
  listAndWatch,
  type Secret,
} from "./k8s.ts";
import {
  decode,
  exchange,
  findLifeFlaw,
  findSubjectTokenFlaw,
  IDENTITY,
  issuerAgent,
  RENEW_FRACTION,
  renewalTime,
  type Requester,
  StsError,
  TokenSource,
} from "./sts.ts";

const VERSION = "0.2.0";
const USER_AGENT = `pull-secret-updater/${VERSION}`;

const PREFIX = "pull-secret-updater.chainguard.dev";
const IDENTITY_KEY = `${PREFIX}/identity`;
const ACCOUNT_KEY = `${PREFIX}/service-account`;
const REFRESH_KEY = `${PREFIX}/refresh`;
/** The `refresh` value that was served last, as `status.observedGeneration` is for a spec. */
const REFRESHED_KEY = `${PREFIX}/refreshed`;
const TOKEN_IDENTITY_KEY = `${PREFIX}/token-identity`;
const TOKEN_EXPIRES_KEY = `${PREFIX}/token-expires`;
const SECRET_TYPE = "kubernetes.io/dockerconfigjson";
const DATA_KEY = ".dockerconfigjson";

/** Each Secret is renewed after another part of a token's life, up to so much later: writes are spread. */
const RENEW_SPREAD = 0.1;
/** Between two writes to one Secret, and two exchanges for one identity; or half of what the token has left. */
const MIN_SPACING_MS = 1_000;
const MAX_SPACING_MS = 10_000;
/** After a failure, doubling; a random half to the whole of it is waited. */
const MIN_BACKOFF_MS = 1_000;
const MAX_BACKOFF_MS = 60_000;
/** For lists and watches: an API server that is back is noticed soon, as tokens may live for seconds. */
const MAX_WATCH_BACKOFF_MS = 5_000;
/** No header may cost more: a token of an hour has some 13 min left when it is due. */
const MAX_RETRY_AFTER_MS = 5 * 60_000;
/** A Secret is reconciled at least so often: a clock that was set, or a sleep, is noticed by then. */
const MAX_SLEEP_MS = 60_000;

/** Long for a response, short beside a token's life: a hanging issuer holds a place no longer. */
const EXCHANGE_TIMEOUT_MS = 10_000;
/** As long as the slowest admission webhook may take. */
const REQUEST_TIMEOUT_MS = 30_000;
/** For each address of a host that has several. The runtimes' own 250 and 500 ms are less than many a connect takes. */
const ADDRESS_TIMEOUT_MS = 2_500;
/** At a second each, a thousand identities take a minute; one namespace leaves half of the places to others. */
const MAX_EXCHANGES = 16;
const MAX_EXCHANGES_OF_NAMESPACE = 8;
/** Gentle with the API server, and still hundreds a second. */
const MAX_WRITES = 16;
const MAX_WRITES_OF_NAMESPACE = 8;
/** Time for many large pages. */
const STATUS_TIMEOUT_MS = 120_000;
/** The shortest life that a token request may ask for. */
const SUBJECT_TOKEN_LIFE_S = 600;
/** A request that goes on so long after it was given up is a fault of ours. */
const STUCK_MS = 60_000;
const SWEEP_MS = 60_000;

/** As client-go: one reason for one Secret every 5 min. */
const EVENT_SPACING_MS = 5 * 60_000;
/** Each event takes a place for so long: 25 may be written at once, 5 a second in the long run. */
const EVENT_PLACE_MS = 5_000;
const MAX_EVENTS = 25;
const MAX_EVENTS_OF_NAMESPACE = 6;
/** Of a namespace that has more, further Warnings are only logged. */
const MAX_WAITING_EVENTS = 1_000;
/** The part of the places that Normal events may take: the rest is kept for Warnings. */
const NORMAL_EVENTS_PART = 0.5;
/** What the API server takes. */
const MAX_NOTE_BYTES = 1024;
/** Of a note that is too long its beginning is kept, and its end, where a refusal has its reason. */
const NOTE_START_BYTES = 300;
const NOTE_END_BYTES = 700;
/** No value that is valid has more: of what tenants write no more is kept. */
const MAX_FOREIGN_CHARS = 300;
/** Two conflicts in a row are chance: replicas, and a user. */
const MAX_CHANCE = 2;
/** More would make each scrape megabytes. */
const MAX_EXPIRY_SERIES = 10_000;

// ───── Configuration ─────

/** Bad configuration: one line that names the variable, its value and what is allowed. */
export class ConfigError extends Error {}

const BASE_URL = "an https URL (http to a loopback host only) without user, query and fragment";
const PROXY_URL = "an http or https URL, its user and password percent-encoded";
const REGISTRY_HOST = /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:\d{1,5})?$/;
const ACCOUNT_NAME =
  /^(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const DNS_LABEL = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;

export type Config = ReturnType<typeof readConfig>;
type Environment = (name: string) => string | undefined;

/** Reads the environment; throws a {@linkcode ConfigError}. A variable that is empty counts as unset. */
export function readConfig(env: Environment) {
  const read = readerOf(env);
  const dir = env("SERVICE_ACCOUNT_DIR") || "/var/run/secrets/kubernetes.io/serviceaccount";
  const namespaceFile = join(dir, "namespace");
  const listOf = (item: RegExp) => (text: string) =>
    splitList(text).every((part) => item.test(part));
  const issuer = read("ISSUER_URL", isBaseUrl, BASE_URL, "https://issuer.enforce.dev").replace(
    /\/+$/,
    "",
  );
  const proxy = env("HTTPS_PROXY") ? "HTTPS_PROXY" : "https_proxy";
  return Object.freeze({
    api: readApiServer(env, dir),
    /** One list and watch each; undefined is the whole cluster. */
    namespaces: env("WATCH_NAMESPACES")
      ? splitList(
        read("WATCH_NAMESPACES", listOf(DNS_LABEL), "a comma-separated list of namespaces"),
      )
      : [undefined],
    /** The controller's own; elsewhere than in a Pod the name that the manifest gives it. */
    ownNamespace: existsSync(namespaceFile)
      ? readFileSync(namespaceFile, "utf8").trim()
      : "pull-secret-updater",
    issuer,
    /** The audience of subject tokens. */
    issuerHost: new URL(issuer).hostname,
    audience: read(
      "AUDIENCE",
      (text) => /^[!-~]+$/.test(text),
      "printable characters without spaces",
      "cgr.dev",
    ),
    registries: splitList(
      read("REGISTRIES", listOf(REGISTRY_HOST), "a comma-separated list of hosts", "cgr.dev"),
    ),
    subjectTokenFile: env("SUBJECT_TOKEN_FILE") || "/var/run/chainguard/oidc/oidc-token",
    httpsProxy: env(proxy) && read(proxy, isProxyUrl, PROXY_URL),
    noProxy: env("NO_PROXY") || env("no_proxy"),
    port: +read("PORT", isPort, "a port from 1 to 65535", "8080"),
  });
}

const readerOf =
  (env: Environment) =>
  (name: string, isAllowed: (text: string) => boolean, allowed: string, fallback = "") => {
    const text = env(name) || fallback;
    if (isAllowed(text)) return text;
    throw new ConfigError(`${name}="${clean(withoutPassword(text))}": must be ${allowed}`);
  };

function readApiServer(
  env: Environment,
  dir: string,
): Pick<ClientOptions, "url" | "tokenFile" | "caFile" | "servername"> {
  const read = readerOf(env);
  const [tokenFile, caFile] = [join(dir, "token"), join(dir, "ca.crt")];
  if (env("KUBERNETES_API")) {
    const url = read(
      "KUBERNETES_API",
      isBaseUrl,
      `${BASE_URL}, as kubectl proxy's: http://127.0.0.1:8001`,
    );
    const ifUsed = (path: string) =>
      url.startsWith("https:") && existsSync(path) ? path : undefined;
    return { url: url.replace(/\/+$/, ""), tokenFile: ifUsed(tokenFile), caFile: ifUsed(caFile) };
  }
  const allowed =
    "a host, as each Pod is given it (elsewhere: kubectl proxy, and KUBERNETES_API=http://127.0.0.1:8001)";
  const host = read("KUBERNETES_SERVICE_HOST", (text) => /^[\w.:-]+$/.test(text), allowed);
  const port = read("KUBERNETES_SERVICE_PORT", isPort, "a port, as each Pod is given it");
  if (!host.includes(":")) return { url: `https://${host}:${port}`, tokenFile, caFile };
  // Some Node releases reject the valid IP SAN of an IPv6 address; that of the cluster's own has this name, too.
  return {
    url: `https://[${host}]:${port}`,
    tokenFile,
    caFile,
    servername: "kubernetes.default.svc",
  };
}

const splitList = (text: string) => [...new Set(text.split(",").map((part) => part.trim()))];
const isPort = (text: string) => /^\d{1,5}$/.test(text) && +text >= 1 && +text <= 65535;

/** Leaves nothing that may be a password, even of a text that is no URL: user, query, what is no port. */
const withoutPassword = (text: string) =>
  text.replace(/.*@/s, "…@").replace(/([?#]|:(?!\/\/|\d{1,5}(\/|$))).*/s, "$1…");

function isProxyUrl(text: string) {
  try {
    const { username, password } = new URL(text);
    [username, password].forEach(decodeURIComponent);
    return /^https?:\/\/\S+$/.test(text);
  } catch {
    return false;
  }
}

function isBaseUrl(text: string) {
  const { hostname = "", username, password } = URL.parse(text) ?? {};
  const isSafe = text.startsWith("https://") ||
    (text.startsWith("http://") && /^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname));
  return isSafe && username === "" && password === "" && !/[?#\s\p{C}]/u.test(text);
}

// ───── Text from elsewhere, and the log ─────

/** Makes text fit for a log, an event or a table: without tokens, line breaks and control characters. */
export function clean(text: string) {
  return text
    .replace(/\bbearer\s+\S{16,}/gi, "[removed]")
    .replace(/eyJ[\w+/=-]*(\.[\w-]*){0,2}/g, "[removed]")
    // Any other long run with capitals; names and addresses have none, and an identity is hexadecimal.
    .replace(
      /[\w+/=-]{40,}/g,
      (run) => /[A-Z]/.test(run) && !/^[\da-f/]+$/i.test(run) ? "[removed]" : run,
    )
    .replace(/\s+/g, " ")
    .replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");
}

/** The same, as long as an event's note may be. */
export function toNote(text: string) {
  const bytes = Buffer.from(clean(text));
  if (bytes.length <= MAX_NOTE_BYTES) return bytes.toString();
  return `${bytes.subarray(0, NOTE_START_BYTES)}…${bytes.subarray(-NOTE_END_BYTES)}`;
}

/** A string that a tenant wrote, cut to what may be kept of it; nothing for any other value. */
function textOf(value: unknown): string | undefined {
  if (typeof value !== "string") return undefined;
  if (value.length <= MAX_FOREIGN_CHARS) return value;
  // Copied: what is merely sliced would keep the whole in memory.
  return `${Buffer.from(value.slice(0, MAX_FOREIGN_CHARS))}…`;
}

export type Log = (level: "info" | "warn", msg: string, fields: Record<string, unknown>) => void;

/** Logs one JSON object a line. */
export function createLog(
  now: () => number,
  write: (level: "info" | "warn", line: string) => void,
): Log {
  const tidy = (_key: string, value: unknown) => typeof value === "string" ? toNote(value) : value;
  return (level, msg, fields) =>
    write(
      level,
      JSON.stringify({ time: new Date(now()).toISOString(), level, msg, ...fields }, tidy) + "\n",
    );
}

// ───── The Secret ─────

type Reason =
  | "TokenIssued"
  | "ExchangeFailed"
  | "InvalidIdentity"
  | "UnsupportedSecret"
  | "InvalidDockerConfig"
  | "Overwritten";

/** What an event says of a Secret: what happened, and the command that fixes it. */
export interface Report {
  reason: Reason;
  message: string;
}

/** What is read from a Secret, and all that is kept of it. */
export type PullSecret = ReturnType<typeof parseSecret>;
type SecretConfig = Pick<Config, "audience" | "registries" | "ownNamespace">;

/** Reads a Secret, whoever wrote it: nothing in it decides the type of anything, or how much is kept. */
export function parseSecret(
  secret: Secret,
  { audience, registries, ownNamespace }: SecretConfig,
  now: number,
) {
  const { namespace, name, uid, resourceVersion, labels, annotations, deletionTimestamp } =
    secret.metadata;
  const annotation = (key: string) => textOf(annotations?.[key]);
  const label = textOf(labels?.[IDENTITY_KEY]);
  const names = [label?.replaceAll(".", "/") ?? "", annotation(IDENTITY_KEY) ?? ""];
  const identity = names[1] || names[0]!;
  const account = annotation(ACCOUNT_KEY);
  const { passwords, isPlain, flaw, shadow } = parseDockerConfig(
    secret.data?.[DATA_KEY],
    registries,
  );
  const lives = passwords.map((password) => {
    const { audiences = [], subject = "", issuedAt, expiresAt = 0 } = decode(password) ?? {};
    const life = { issuedAt, expiresAt };
    const isOurs = audiences.includes(audience) && !findLifeFlaw(life, now) &&
      (IDENTITY.test(subject) ? subject : annotation(TOKEN_IDENTITY_KEY)) === identity;
    return isOurs ? life : undefined;
  });
  const refresh = annotation(REFRESH_KEY);
  return {
    namespace,
    name,
    uid,
    resourceVersion,
    identity,
    /** The service account to exchange as; undefined is the controller itself. */
    account,
    isGone: !!deletionTimestamp || label === undefined,
    /** Why nothing can be done for it. */
    problem: findProblem(secret, names, account, ownNamespace) ??
      (flaw && invalidConfig(secret, flaw) || undefined),
    /** What keeps clients from the token, though it is there. */
    warning: shadow && invalidConfig(secret, shadow) || undefined,
    /** Its value, if a refresh is requested that was not served yet. */
    refresh: refresh === annotation(REFRESHED_KEY) ? undefined : refresh,
    /** Of the tokens the life of the one that expires first, if each registry has one that is ours. */
    token: lives.reduce((a, b) => a && b && (a.expiresAt <= b.expiresAt ? a : b), lives[0]),
    /** Whether the docker config holds nothing but ours, so that it need not be read to be written. */
    isPlain,
  };
}

/** Why nothing can be done for a Secret, with the command that fixes it. */
function findProblem(
  { type, immutable, metadata: { namespace, name } }: Secret,
  [labelled, annotated]: string[],
  account: string | undefined,
  own: string,
): Report | undefined {
  const identity = annotated || labelled!;
  const it = `secret ${name} -n ${namespace}`;
  const setTo = (uid: string) =>
    `kubectl label ${it} --overwrite ${IDENTITY_KEY}= && kubectl annotate ${it} --overwrite ${IDENTITY_KEY}=${uid}`;
  const setToOne = `set it to one of chainctl iam identities list: ${setTo("UID")}`;
  const isLower = IDENTITY.test(identity.toLowerCase());
  const isAccount = account === undefined || (ACCOUNT_NAME.test(account) && namespace !== own);
  const invalid = (message: string): Report => ({ reason: "InvalidIdentity", message });

  if (identity === "") {
    return invalid(`no identity in label or annotation ${IDENTITY_KEY}: ${setToOne}`);
  }
  if (![labelled, ""].includes(annotated) && labelled !== "") {
    return invalid(
      `the label names ${labelled}, the annotation ${annotated}: empty the label, or ${setToOne}`,
    );
  }
  if (!isLower) {
    return invalid(
      `the identity "${identity}" is not a UID (40 hexadecimal digits, then / and 16 for each level): ${setToOne}`,
    );
  }
  if (!IDENTITY.test(identity)) {
    return invalid(
      `the identity ${identity} has capital letters: ${setTo(identity.toLowerCase())}`,
    );
  }
  if (!isAccount) {
    return invalid(
      `the service account "${account}" cannot be used: it has to be one of the Secret's own namespace, which ` +
        `must not be ${own}. To do without: kubectl annotate ${it} ${ACCOUNT_KEY}-`,
    );
  }
  if (type === SECRET_TYPE && !immutable) return undefined;
  const what = immutable ? "immutable" : `of type "${textOf(type)}"`;
  const message =
    `the Secret is ${what}, which no write can change: kubectl delete ${it}, then kubectl create ` +
    `secret generic ${name} -n ${namespace} --type=${SECRET_TYPE} --from-literal=${DATA_KEY}='{}', and label it again`;
  return { reason: "UnsupportedSecret", message };
}

const invalidConfig = ({ metadata: { namespace, name } }: Secret, flaw: string): Report => ({
  reason: "InvalidDockerConfig",
  message: `${DATA_KEY} ${flaw}. To empty it: kubectl patch secret ${name} -n ${namespace} ` +
    `-p '{"stringData":{"${DATA_KEY}":"{}"}}'`,
});

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const UTF_8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Throws where the text is not UTF-8, which would not survive. */
const decodeConfig = (data: unknown) =>
  UTF_8.decode(Buffer.from(typeof data === "string" ? data : "", "base64"));

/** Says of a docker config what keeps it from being used, or clients from the token. */
function parseDockerConfig(data: unknown, registries: string[]) {
  const unusable = (flaw: string) => ({ passwords: [], isPlain: false, flaw, shadow: "" });
  let config: unknown;
  try {
    config = JSON.parse(decodeConfig(data)) ?? {};
  } catch (error) {
    return unusable(error instanceof SyntaxError ? "is not JSON" : "is not UTF-8 text");
  }
  const auths = isObject(config) && (config.auths ?? {});
  if (!isObject(config) || !isObject(auths)) {
    return unusable("is not a JSON object whose auths is one too");
  }
  const others = Object.keys(auths).filter((host) => !registries.includes(host));
  return {
    passwords: registries.map((host) => Object.hasOwn(auths, host) ? passwordOf(auths[host]) : ""),
    isPlain: others.length === 0 && Object.keys(config).every((key) => key === "auths"),
    flaw: "",
    shadow: findShadow(config, others, registries),
  };
}

/** Says what clients take instead of the token: the kubelet the longest key, others what a helper gives. */
function findShadow(
  { credHelpers, credsStore }: Record<string, unknown>,
  others: string[],
  registries: string[],
) {
  const hasHelper = (host: string) =>
    credsStore || (isObject(credHelpers) && Object.hasOwn(credHelpers, host));
  const isOf = (key: string) => (host: string) =>
    `${key.replace(/^https?:\/\//, "")}/`.startsWith(`${host}/`);
  const helped = registries.find(hasHelper);
  if (helped) {
    return `has a credential helper for ${helped}, which docker, crane and kaniko ask instead of reading the token`;
  }
  const other = others.find((key) => registries.some(isOf(key)));
  return other
    ? `has the entry "${textOf(other)}", too, which the kubelet tries before the token`
    : "";
}

function passwordOf(entry: unknown) {
  const encoded = isObject(entry) && typeof entry.auth === "string" ? entry.auth : "";
  return /^_token:(.*)/s.exec(Buffer.from(encoded, "base64").toString())?.[1] ?? "";
}

// ES2026; not yet in the types.
const { rawJSON } = JSON as unknown as { rawJSON: (text: string) => unknown };

/** Merges the token into a docker config, the rest of which stays equal, numbers to the last digit. */
export function withToken(config: string, registries: string[], token: string) {
  const keepDigits = (_key: string, value: unknown, context?: { source: string }) =>
    typeof value === "number" ? rawJSON(context!.source) : value;
  const { auths, ...rest } = JSON.parse(config, keepDigits) ?? {};
  const auth = Buffer.from(`_token:${token}`).toString("base64");
  const ours = Object.fromEntries(registries.map((host) => [host, { auth }]));
  return JSON.stringify({ ...rest, auths: { ...auths, ...ours } });
}

// ───── The decision ─────

/** For metrics and `--status`. */
function stateOf({ isGone, problem, token }: PullSecret, now: number) {
  if (isGone || problem) return "skipped";
  if (!token) return "missing";
  return token.expiresAt <= now ? "expired" : "valid";
}

/**
 * What a Secret needs at the instant `now` (ms since the epoch), by the first of these that holds:
 *
 * 1. It is being deleted or no longer selected, or has a problem: skip.
 * 2. A refresh is requested that was not served yet: a new token (requested).
 * 3. A registry has no token of ours: a token (missing). One has expired: a token (expired).
 * 4. Past `fraction` of the token's life: a token that lives longer (due). Else wait until then.
 */
export function decide(secret: PullSecret, now: number, fraction: number) {
  const state = stateOf(secret, now);
  if (state === "skipped") return "skip";
  if (secret.refresh !== undefined) return "requested";
  if (state !== "valid") return state;
  return renewalTime(secret.token!, fraction) <= now ? "due" : "wait";
}

// ───── Time and turns ─────

/** Real time; tests hand in a clock that they advance. */
export const systemClock = {
  /** The wall clock, in ms since the epoch. */
  now: () => Date.now(),
  /** A clock that never jumps, in ms. */
  monotonic: () => performance.now(),
  setTimeout: (callback: () => void, ms: number): unknown => setTimeout(callback, ms),
  clearTimeout: (timer: unknown) => clearTimeout(timer as number),
};

interface Time {
  clock: typeof systemClock;
  /** Uniform between 0 and 1, as `Math.random`. */
  random: () => number;
}

/** When something may be tried again. */
class Backoff {
  /** How often it has failed in a row. */
  failures = 0;
  /** Monotonic. */
  retryAt = -Infinity;

  /** Returns how long to wait, in ms. */
  fail({ clock, random }: Time, error: Partial<ApiError>, maxMs = MAX_BACKOFF_MS) {
    const ms = Math.min(MIN_BACKOFF_MS * 2 ** this.failures++, maxMs) * (0.5 + random() / 2);
    const waitMs = Math.max(ms, retryAfterMs(error, clock.now()));
    this.retryAt = clock.monotonic() + waitMs;
    return waitMs;
  }

  /** For a token that has so much left. */
  succeed({ clock }: Time, leftMs: number) {
    this.failures = 0;
    this.retryAt = clock.monotonic() +
      Math.min(Math.max(leftMs / 2, MIN_SPACING_MS), MAX_SPACING_MS);
  }
}

/** The header bears seconds or a date. */
function retryAfterMs({ status = 0, retryAfter = "" }: Partial<ApiError>, now: number) {
  if (status !== 429 && status < 500) return 0;
  const ms = /^\d+$/.test(retryAfter) ? +retryAfter * 1000 : Date.parse(retryAfter) - now;
  return Math.min(Math.max(ms || 0, 0), MAX_RETRY_AFTER_MS);
}

/** Starts a job, which must not fail; or returns nothing where it is no longer needed. */
type Start = () => Promise<unknown> | void;

/**
 * Runs a limited number of jobs at once. Turns go round the namespaces that wait, so that nobody waits
 * for all that one namespace has. Within one, what failed before comes after what did not, the oldest first.
 */
function createTurns(limit: number, limitOfNamespace: number) {
  /** The namespaces in the order of their turns; of each what did not fail before, and what did. */
  const waiting = new Map<string, Set<Start>[]>();
  /** The namespaces of the jobs that run. */
  const running: string[] = [];

  /** Whether a part of the places would be enough for one more. */
  function hasRoom(namespace: string, part = 1) {
    const own = running.filter((other) => other === namespace).length;
    return running.length < limit * part && own < limitOfNamespace * part;
  }

  function startNext() {
    for (const [namespace, queues] of waiting) {
      if (running.length >= limit) return;
      if (!hasRoom(namespace)) continue;
      waiting.delete(namespace);
      const job = startOne(queues);
      if (!job) continue;
      // Behind all others that wait.
      waiting.set(namespace, queues);
      running.push(namespace);
      job.finally(() => {
        running.splice(running.indexOf(namespace), 1);
        startNext();
      });
    }
  }

  return {
    hasRoom,
    sizeOf: (namespace: string) => waiting.get(namespace)?.[0]!.size ?? 0,
    /** Has a job started in its turn; resolves when it is done, or not needed. */
    run: (namespace: string, hasFailed: boolean, start: Start) =>
      new Promise<unknown>((resolve) => {
        const queues = waiting.get(namespace) ?? [new Set(), new Set()];
        queues[+hasFailed]!.add(() => {
          const job = start();
          resolve(job);
          return job;
        });
        waiting.set(namespace, queues);
        startNext();
      }),
  };
}

/** Drops what is no longer needed, up to the first job that is. */
function startOne(queues: Set<Start>[]) {
  for (const queue of queues) {
    for (const start of queue) {
      queue.delete(start);
      const job = start();
      if (job) return job;
    }
  }
}

/** What is under way: each request ends after so long, or with the program. */
class Requests {
  isStopped = false;
  #deadlines = new Map<AbortController, number>();
  #clock;

  constructor({ clock }: Time) {
    this.#clock = clock;
  }

  within = async <T>(ms: number, send: (signal: AbortSignal) => Promise<T>) => {
    const clock = this.#clock;
    // One each: a signal that lived as long as the program would gather listeners.
    const request = new AbortController();
    const timer = clock.setTimeout(
      () => request.abort(new Error(`no response within ${ms / 1000} s`)),
      ms,
    );
    this.#deadlines.set(request, clock.monotonic() + ms);
    try {
      if (this.isStopped) throw new Error("the program ends");
      return await send(request.signal);
    } finally {
      clock.clearTimeout(timer);
      this.#deadlines.delete(request);
    }
  };

  sleep = (ms: number) =>
    this.within(
      ms,
      (signal) => new Promise((resolve) => signal.addEventListener("abort", resolve)),
    );

  stop() {
    this.isStopped = true;
    for (const request of this.#deadlines.keys()) request.abort(new Error("the program ends"));
  }

  isStuck = () =>
    this.#deadlines.values().some((deadline) => deadline < this.#clock.monotonic() - STUCK_MS);
}

// ───── Events and metrics ─────

type Count = (series: string, by?: number) => void;
type Reporter = (secret: PullSecret, report: Report) => void;

/** Returns what writes events on Secrets. A Warning is logged as well, and waits where there are too many. */
function createReporter(
  { api, clock, random, log }: Dependencies,
  requests: Requests,
  count: Count,
): Reporter {
  /** Tells the replicas apart. */
  const reportingInstance = `controller-${random().toString(36).slice(2, 10)}`;
  const turns = createTurns(MAX_EVENTS, MAX_EVENTS_OF_NAMESPACE);
  /** What was reported lately, the oldest first: when, by "namespace/name reason". */
  const reportedAt = new Map<string, number>();

  return (secret, { reason, message }) => {
    const { namespace, name, uid } = secret;
    const key = `${keyOf(secret)} ${reason}`;
    const tick = clock.monotonic();
    for (const [oldest, at] of reportedAt) {
      if (at > tick - EVENT_SPACING_MS) break;
      reportedAt.delete(oldest);
    }
    if (reportedAt.has(key)) return;
    reportedAt.set(key, tick);
    const type = reason === "TokenIssued" ? "Normal" : "Warning";
    const isWarning = type === "Warning";
    if (isWarning) log("warn", reason, { namespace, name, message });
    const hasPlace = isWarning
      ? turns.sizeOf(namespace) < MAX_WAITING_EVENTS
      : turns.hasRoom(namespace, NORMAL_EVENTS_PART);
    if (!hasPlace) return count("events_dropped_total");
    const event = {
      metadata: { generateName: "pull-secret-updater-", namespace },
      // A MicroTime of Kubernetes has six digits.
      eventTime: new Date(clock.now()).toISOString().replace("Z", "000Z"),
      reportingController: `${PREFIX}/controller`,
      reportingInstance,
      action: "Refresh",
      regarding: { apiVersion: "v1", kind: "Secret", namespace, name, uid },
      reason,
      type,
      note: toNote(message),
    };
    turns.run(namespace, false, () => {
      requests.within(REQUEST_TIMEOUT_MS, (signal) => api.createEvent(namespace, event, signal))
        .catch((error) =>
          log("warn", "event not written", { namespace, name, reason, error: error.message })
        );
      return requests.sleep(EVENT_PLACE_MS).catch(() => {});
    });
  };
}

const METRIC_PREFIX = "pull_secret_updater_";
const METRICS = [
  ["build_info", "gauge", "The version that runs."],
  ["secrets", "gauge", "Labelled Secrets by state."],
  ["token_expiry_timestamp_seconds", "gauge", "When the token in a Secret expires."],
  ["refreshes_total", "counter", "Refreshes of Secrets by result."],
  ["exchange_duration_seconds", "summary", "How long exchanges took."],
  ["api_requests_total", "counter", "Requests to the API server by verb and status."],
  ["watch_restarts_total", "counter", "Lists and watches that ended, by reason."],
  ["events_dropped_total", "counter", "Events not written, being too many."],
];
/** What can be foreseen is there from the start, with 0, so that its first increase is seen as one. */
const COUNTERS = [
  ...["success", "failed", "refused", "conflict"].map((result) =>
    `refreshes_total{result="${result}"}`
  ),
  ...["count", "sum"].map((what) => `exchange_duration_seconds_${what}`),
  ...["list", "watch", "get", "patch", "create"].flatMap((verb) =>
    ["200", "201", "403", "409", "429", "500", "503", "error"].map((code) =>
      `api_requests_total{verb="${verb}",code="${code}"}`
    )
  ),
  ...["ended", "gone", "forbidden", "error"].map((reason) =>
    `watch_restarts_total{reason="${reason}"}`
  ),
  "events_dropped_total",
];

/** For a label's value. Of JSON's escapes Prometheus knows those of quotes, backslashes and line feeds only. */
const quote = (text: string) => JSON.stringify(text.replace(/\p{C}/gu, "?"));

/** Renders the metrics in Prometheus' text format. */
function renderMetrics(counters: Map<string, number>, secrets: Iterable<PullSecret>, now: number) {
  const samples = new Map([[`build_info{version="${VERSION}"}`, 1], ...counters]);
  const states = { valid: 0, missing: 0, expired: 0, skipped: 0 };
  let left = MAX_EXPIRY_SERIES;
  for (const secret of secrets) {
    const { namespace, name, token } = secret;
    states[stateOf(secret, now)]++;
    if (!token || left-- <= 0) continue;
    const labels = `namespace=${quote(namespace)},name=${quote(name)}`;
    samples.set(`token_expiry_timestamp_seconds{${labels}}`, token.expiresAt / 1000);
  }
  for (const [state, size] of Object.entries(states)) {
    samples.set(`secrets{state="${state}"}`, size);
  }
  const text = METRICS.map(([name = "", type, help]) => {
    const own = [...samples].filter(([series]) => series.startsWith(name));
    const lines = own.map(([series, value]) => `${METRIC_PREFIX}${series} ${value}\n`);
    return `# HELP ${METRIC_PREFIX}${name} ${help}\n# TYPE ${METRIC_PREFIX}${name} ${type}\n${
      lines.join("")
    }`;
  });
  return text.join("");
}

// ───── The controller ─────

/** All that the controller reaches the world through. */
export interface Dependencies extends Time {
  api: KubernetesApi;
  /** Reads the controller's own subject token, anew each time. */
  readSubjectToken: () => string;
  /** One attempt for one identity; gives the JWT, or throws a {@linkcode StsError}. */
  exchange: (subjectToken: string, identity: string, signal: AbortSignal) => Promise<string>;
  log: Log;
}

/** A managed Secret. */
interface Entry {
  secret: PullSecret;
  /** After which part of their lives its tokens are renewed. */
  fraction: number;
  /** Of its writes. */
  backoff: Backoff;
  /** Whether one of its steps is under way. */
  isBusy?: boolean;
  timer?: unknown;
}

/** Where Secrets get their token from, and when the issuer may be asked for it again. */
class Source extends TokenSource {
  backoff = new Backoff();
  /** Why the last exchange brought none. */
  failure?: Report;
}

type Step = { do: "exchange" | "write"; decision: string } | {
  do: "sleep";
  ms: number;
  report?: Report;
};

/**
 * What is next for a Secret. The cached token is written if it outlives what the Secret has. If it is
 * to be renewed itself, or a new one is requested, it is exchanged first; while that fails it still
 * serves those who have none. `tick` is the monotonic time.
 */
function nextStep(
  secret: PullSecret,
  { fraction, backoff }: Entry,
  source: Source,
  now: number,
  tick: number,
): Step {
  const { problem, warning, token } = secret;
  const decision = decide(secret, now, fraction);
  const sleep = (ms: number, report?: Report): Step => ({ do: "sleep", ms, report });
  if (decision === "skip") return sleep(MAX_SLEEP_MS, secret.isGone ? undefined : problem);
  if (decision === "wait") return sleep(renewalTime(token!, fraction) - now, warning);
  if (backoff.retryAt > tick) return sleep(backoff.retryAt - tick);

  const { expiresAt = 0, renewAt = 0 } = source.token ?? {};
  const isRequested = decision === "requested";
  const askInMs = source.backoff.retryAt - tick;
  const hasJustRenewed = askInMs > 0 && !source.failure;
  const isFresh = isRequested ? hasJustRenewed : renewAt > now;
  const outlives = expiresAt > (decision === "due" ? token!.expiresAt : now);
  const hasToServe = askInMs > 0 && !isRequested;
  if (outlives && (isFresh || hasToServe)) return { do: "write", decision };
  if (!isFresh && askInMs <= 0) return { do: "exchange", decision };
  return sleep(Math.max(askInMs, isFresh ? renewAt - now : 0), source.failure);
}

/** The whole controller: lists, watches and refreshes from `start` to `stop`. */
export class Controller {
  #config: Config;
  #deps: Dependencies;
  #requests: Requests;
  #report: Reporter;
  #counters = new Map(COUNTERS.map((series) => [series, 0]));
  #exchanges = createTurns(MAX_EXCHANGES, MAX_EXCHANGES_OF_NAMESPACE);
  #writes = createTurns(MAX_WRITES, MAX_WRITES_OF_NAMESPACE);
  #entries = new Map<string, Entry>();
  /** By identity and subject. */
  #sources = new Map<string, Source>();
  /** The namespaces whose first list was not answered yet. */
  #unanswered: Set<string | undefined>;
  #isListed = false;
  #sweepTimer: unknown;

  constructor(config: Config, deps: Dependencies) {
    this.#config = config;
    this.#deps = deps;
    this.#requests = new Requests(deps);
    this.#report = createReporter(deps, this.#requests, this.#count);
    this.#unanswered = new Set(config.namespaces);
  }

  /** Starts to list and watch. */
  start() {
    const { api, issuer, namespaces } = this.#config;
    const { log } = this.#deps;
    log("info", "started", { version: VERSION, api: api.url, issuer });
    try {
      this.#readSubjectToken();
    } catch (error) {
      log("warn", "no subject token", { error: (error as Error).message });
    }
    for (const namespace of namespaces) this.#follow(namespace);
    this.#sweep();
  }

  /** Ends all requests and timers. */
  stop() {
    this.#requests.stop();
    for (const key of this.#entries.keys()) this.#remove(key);
    this.#deps.clock.clearTimeout(this.#sweepTimer);
  }

  /** Says what /readyz waits for, if anything. */
  readinessError = () =>
    this.#isListed && this.#unanswered.size === 0 ? undefined : "the first list is not done";

  /** Says why this process is stuck, if it is; that others are down, slow or hang is no reason. */
  livenessError = () =>
    this.#requests.isStuck() ? "a request goes on, though it was given up a minute ago" : undefined;

  /** The metrics, in Prometheus' text format. */
  renderMetrics = () =>
    renderMetrics(
      this.#counters,
      this.#entries.values().map(({ secret }) => secret),
      this.#deps.clock.now(),
    );

  /** To be called for each response of the API server. */
  countResponse = (verb: string, code: string) =>
    this.#count(`api_requests_total{verb="${verb}",code="${code}"}`);

  #count = (series: string, by = 1) =>
    void this.#counters.set(series, (this.#counters.get(series) ?? 0) + by);

  #follow(namespace: string | undefined) {
    const { api, clock: { monotonic }, random, log } = this.#deps;
    const { within } = this.#requests;
    const backoff = new Backoff();
    let lastError = "";
    const listed = (keys: Set<string>) => {
      for (const [key, { secret }] of this.#entries) {
        if (!keys.has(key) && [undefined, secret.namespace].includes(namespace)) this.#remove(key);
      }
      this.#isListed = true;
      this.#unanswered.delete(namespace);
      log("info", "listed", { namespace, secrets: keys.size });
    };
    const ended = async (error: ApiError | undefined, isFailure: boolean) => {
      if (this.#requests.isStopped) return false;
      const { status, message = "" } = error ?? {};
      const isRefused = status === 403 || status === 404;
      // It was answered, and must not hold up the others.
      if (isRefused) this.#unanswered.delete(namespace);
      const reason = status === 410
        ? "gone"
        : isRefused
        ? "forbidden"
        : isFailure
        ? "error"
        : "ended";
      this.#count(`watch_restarts_total{reason="${reason}"}`);
      if (!isFailure) backoff.failures = 0;
      // The same failure over and over is logged once.
      else if (message !== lastError) {
        log("warn", "list or watch failed", { namespace, error: message });
      }
      lastError = isFailure ? message : "";
      if (error) await this.#requests.sleep(backoff.fail(this.#deps, error, MAX_WATCH_BACKOFF_MS));
      return !this.#requests.isStopped;
    };
    return listAndWatch(namespace, {
      api,
      monotonic,
      random,
      within,
      upsert: this.#upsert,
      remove: this.#remove,
      listed,
      ended,
    });
  }

  #upsert = (object: Secret) => {
    const { clock, random } = this.#deps;
    const now = clock.now();
    const key = keyOf(object.metadata);
    const secret = parseSecret(object, this.#config, now);
    let entry = this.#entries.get(key);
    if (entry?.secret.uid !== secret.uid) {
      // Another Secret of the same name starts afresh.
      this.#remove(key);
      entry = {
        secret,
        fraction: RENEW_FRACTION + random() * RENEW_SPREAD,
        backoff: new Backoff(),
      };
      this.#entries.set(key, entry);
    }
    const { secret: before, backoff } = entry!;
    entry!.secret = secret;
    const isSpaced = backoff.failures === 0 && backoff.retryAt > clock.monotonic();
    const isBlanked = before.token && !secret.token && before.identity === secret.identity;
    if (isBlanked && isSpaced && !secret.problem) this.#reportOverwritten(entry!);
    // Whoever wrote it, a replica or this one: the next write keeps its distance.
    const { expiresAt = 0 } = secret.token ?? {};
    if (expiresAt > now && expiresAt !== before.token?.expiresAt) {
      backoff.succeed(this.#deps, expiresAt - now);
    }
    this.#reconcile(entry!);
  };

  #remove = (key: string) => {
    this.#deps.clock.clearTimeout(this.#entries.get(key)?.timer);
    this.#entries.delete(key);
  };

  #isCurrent = (entry: Entry) =>
    !this.#requests.isStopped && this.#entries.get(keyOf(entry.secret)) === entry;

  /** Does for a Secret one step after another, until there is nothing more to be done for now. */
  async #reconcile(entry: Entry) {
    const { clock } = this.#deps;
    clock.clearTimeout(entry.timer);
    while (!entry.isBusy && this.#isCurrent(entry)) {
      const step = this.#nextStep(entry, entry.secret);
      if (step.do === "sleep") {
        if (step.report) this.#report(entry.secret, step.report);
        entry.timer = clock.setTimeout(
          () => this.#reconcile(entry),
          Math.min(step.ms, MAX_SLEEP_MS),
        );
        return;
      }
      entry.isBusy = true;
      await (step.do === "exchange" ? this.#getToken(entry) : this.#write(entry));
      entry.isBusy = false;
    }
  }

  #nextStep(entry: Entry, secret: PullSecret) {
    const { clock } = this.#deps;
    return nextStep(secret, entry, this.#sourceOf(secret), clock.now(), clock.monotonic());
  }

  #needs = (entry: Entry, what: string) =>
    this.#isCurrent(entry) && this.#nextStep(entry, entry.secret).do === what;

  #sourceOf({ namespace, identity, account }: Requester) {
    const key = account === undefined ? identity : `${identity} ${namespace}/${account}`;
    const source = this.#sources.get(key) ?? new Source();
    this.#sources.set(key, source);
    return source;
  }

  /** Waits for the exchange that is under way, or begins one in its turn. */
  #getToken(entry: Entry) {
    const { secret } = entry;
    const { pending, backoff } = this.#sourceOf(secret);
    return pending ?? this.#exchanges.run(secret.namespace, backoff.failures > 0, () => {
      const source = this.#sourceOf(entry.secret);
      if (!source.pending && this.#needs(entry, "exchange")) {
        return source.renew(() => this.#exchange(source, entry.secret));
      }
    });
  }

  async #exchange(source: Source, requester: Requester) {
    const { clock, exchange } = this.#deps;
    const { identity } = requester;
    const startedAt = clock.monotonic();
    let subjectToken = "";
    try {
      const jwt = await this.#requests.within(EXCHANGE_TIMEOUT_MS, async (signal) => {
        subjectToken = await this.#getSubjectToken(requester, signal);
        return await exchange(subjectToken, identity, signal);
      });
      source.backoff.succeed(
        this.#deps,
        source.store(jwt, identity, this.#config.audience, clock.now()),
      );
      source.failure = undefined;
    } catch (caught) {
      const error = caught as StsError;
      source.backoff.fail(this.#deps, error);
      source.failure = {
        reason: "ExchangeFailed",
        message: explain(error, requester, subjectToken, this.#config),
      };
      this.#count(`refreshes_total{result="${error.refused ? "refused" : "failed"}"}`);
    }
    this.#count("exchange_duration_seconds_count");
    this.#count("exchange_duration_seconds_sum", (clock.monotonic() - startedAt) / 1000);
  }

  async #getSubjectToken({ namespace, account }: Requester, signal: AbortSignal) {
    const { api, clock } = this.#deps;
    const { issuerHost } = this.#config;
    if (account === undefined) return this.#readSubjectToken();
    const token = await api.requestToken(
      namespace,
      account,
      issuerHost,
      SUBJECT_TOKEN_LIFE_S,
      signal,
    );
    const flaw = findSubjectTokenFlaw(token, issuerHost, clock.now());
    if (flaw) throw new StsError(`the token of service account ${namespace}/${account} ${flaw}`);
    return token;
  }

  #readSubjectToken() {
    const { ownNamespace, issuerHost, subjectTokenFile } = this.#config;
    let flaw: string | undefined;
    try {
      const token = this.#deps.readSubjectToken();
      flaw = findSubjectTokenFlaw(token, issuerHost, this.#deps.clock.now());
      if (!flaw) return token;
    } catch (error) {
      flaw = `cannot be read: ${(error as Error).message}`;
    }
    throw new StsError(
      `the subject token in SUBJECT_TOKEN_FILE=${subjectTokenFile} ${flaw}. In a Pod the kubelet renews it; elsewhere: ` +
        `kubectl create token controller -n ${ownNamespace} --audience=${issuerHost} > ${subjectTokenFile}`,
    );
  }

  /** Writes the cached token in its turn. */
  #write(entry: Entry) {
    const { secret: { namespace }, backoff } = entry;
    return this.#writes.run(namespace, backoff.failures > 0, () => {
      if (!this.#needs(entry, "write")) return;
      return this.#requests.within(REQUEST_TIMEOUT_MS, (signal) => this.#patch(entry, signal))
        .catch((error) => this.#writeFailed(entry, error));
    });
  }

  /** A docker config with more than our entries is read first, and decided on anew. */
  async #patch(entry: Entry, signal: AbortSignal) {
    const { api, clock, log } = this.#deps;
    const { namespace, name, isPlain } = entry.secret;
    const source = this.#sourceOf(entry.secret);
    const found = isPlain ? undefined : await api.get(namespace, name, signal);
    const secret = found ? parseSecret(found, this.#config, clock.now()) : entry.secret;
    const step = this.#nextStep(entry, secret);
    if (step.do !== "write" || this.#sourceOf(secret) !== source) {
      throw new ApiError("the Secret has changed", { status: 409 });
    }
    const { uid, resourceVersion, identity, refresh } = secret;
    const { jwt, expiresAt } = source.token!;
    const expires = new Date(expiresAt).toISOString();
    const served = refresh === undefined ? {} : { [REFRESHED_KEY]: refresh };
    const annotations = { [TOKEN_IDENTITY_KEY]: identity, [TOKEN_EXPIRES_KEY]: expires, ...served };
    const config = withToken(
      found ? decodeConfig(found.data?.[DATA_KEY]) : "{}",
      this.#config.registries,
      jwt,
    );
    const data = { [DATA_KEY]: Buffer.from(config).toString("base64") };
    // A Secret that is not the one that was decided on, or not as it was, is a conflict.
    await api.patch(
      namespace,
      name,
      { metadata: { uid, resourceVersion, annotations }, data },
      signal,
    );
    entry.backoff.succeed(this.#deps, expiresAt - clock.now());
    this.#count('refreshes_total{result="success"}');
    log("info", "token written", { namespace, name, identity, reason: step.decision, expires });
    const message = `the Secret holds a token of ${identity} until ${expires}`;
    if (step.decision !== "due") this.#report(secret, { reason: "TokenIssued", message });
  }

  #writeFailed(entry: Entry, error: Partial<ApiError>) {
    const { backoff, secret } = entry;
    const { status, refused } = error;
    const isConflict = status === 409 || status === 404;
    backoff.fail(this.#deps, error);
    this.#count(
      `refreshes_total{result="${isConflict ? "conflict" : refused ? "refused" : "failed"}"}`,
    );
    if (!this.#isCurrent(entry) || (isConflict && backoff.failures <= MAX_CHANCE)) return;
    if (status === 409) return this.#reportOverwritten(entry);
    const reason = error instanceof ApiError ? "ExchangeFailed" : "InvalidDockerConfig";
    this.#report(secret, { reason, message: `the token could not be written: ${error.message}` });
  }

  #reportOverwritten({ secret, backoff }: Entry) {
    const seconds = Math.ceil((backoff.retryAt - this.#deps.clock.monotonic()) / 1000);
    const message =
      "the token was overwritten by another client (kubectl apply, GitOps?); it will be written again in " +
      `${seconds} s. Leave data out of what is applied: see GitOps in the README`;
    this.#report(secret, { reason: "Overwritten", message });
  }

  /** Drops what no Secret uses any more. */
  #sweep = () => {
    const { clock } = this.#deps;
    const used = new Set(this.#entries.values().map(({ secret }) => this.#sourceOf(secret)));
    for (const [key, source] of this.#sources) {
      const isBusy = source.pending || source.backoff.retryAt > clock.monotonic();
      if (!used.has(source) && !isBusy) this.#sources.delete(key);
    }
    this.#sweepTimer = clock.setTimeout(this.#sweep, SWEEP_MS);
  };
}

/** The message of a failed exchange, and what it takes to fix it. */
function explain(
  error: StsError,
  { namespace, account, identity }: Requester,
  subjectToken: string,
  config: Config,
) {
  const { message, status, code, refused } = error;
  const { issuer, subject, audiences } = decode(subjectToken) ?? {};
  const parent = identity.replace(/\/[^/]*$/, "");
  const about = `The subject token has iss=${issuer} sub=${subject} aud=${audiences}`;
  const role = `pull-secret-updater-token -n ${namespace}`;
  const advice: Record<number, string> = {
    401: `${about}. What the identity expects: chainctl iam identities describe ${identity}`,
    403:
      `${about}. Bind the identity to it, or another by: chainctl iam identities create pull-secret-updater ` +
      `--identity-issuer=${issuer} --subject=${subject} --parent=${parent} --role=registry.pull`,
    404: `There is no identity ${identity}: chainctl iam identities list --parent=${parent}`,
  };
  let what = (code === undefined ? undefined : advice[status ?? 0]) ?? "";
  if (refused && code === undefined) {
    what = error instanceof ApiError
      ? `Allow it: kubectl create role ${role} --verb=create --resource=serviceaccounts/token --resource-name=${account} && ` +
        `kubectl create rolebinding ${role} --role=pull-secret-updater-token --serviceaccount=${config.ownNamespace}:controller`
      : `That is not a response of an STS: is ISSUER_URL=${config.issuer} right, or does a proxy answer in its place?`;
  }
  return what ? `${message}. ${what}` : message;
}

// ───── The program ─────

const HELP = `Keeps image pull Secrets filled with registry tokens that have not expired.

Usage: main.ts [--status | --status=json | --version | --help]

  --status         lists the labelled Secrets. Exit status: 0 all hold a valid token, 1 some do not,
                   3 not all could be listed
  --status=json    the same as JSON

Environment:
  ISSUER_URL               the STS (https://issuer.enforce.dev)
  AUDIENCE                 the audience of the tokens (cgr.dev)
  REGISTRIES               the hosts that get an entry in each Secret, comma-separated (cgr.dev)
  SUBJECT_TOKEN_FILE       the token to exchange (/var/run/chainguard/oidc/oidc-token)
  WATCH_NAMESPACES         the namespaces to look after, comma-separated (all)
  HTTPS_PROXY, NO_PROXY    the proxy to the issuer, and the hosts to be reached without it; also in
                           lower case (none)
  NODE_EXTRA_CA_CERTS      a file of more CAs for the issuer, read by Node and Deno (none)
  KUBERNETES_API           the API server elsewhere than in a Pod, as http://127.0.0.1:8001 (none)
  KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT
                           the API server in a Pod (each Pod is given them)
  SERVICE_ACCOUNT_DIR      token, ca.crt and namespace (/var/run/secrets/kubernetes.io/serviceaccount)
  PORT                     of /healthz, /readyz and /metrics (8080)
`;

/** Prints what state the labelled Secrets are in; returns the exit status. */
async function printStatus(api: KubernetesApi, config: Config, asJson: boolean) {
  const rows: ReturnType<typeof statusOf>[] = [];
  let isComplete = true;
  for (const namespace of config.namespaces) {
    try {
      for await (const { items } of api.list(namespace, AbortSignal.timeout(STATUS_TIMEOUT_MS))) {
        for (const item of items) rows.push(statusOf(parseSecret(item, config, Date.now())));
      }
    } catch (error) {
      isComplete = false;
      process.stderr.write(
        `${clean(`${namespace ?? "all namespaces"}: ${(error as Error).message}`)}\n`,
      );
    }
  }
  const table = () =>
    rows.length === 0
      ? `no Secret has the label ${IDENTITY_KEY}`
      : tableOf(rows.map(Object.values));
  if (isComplete || rows.length > 0) {
    process.stdout.write(`${asJson ? JSON.stringify(rows, null, 2) : table()}\n`);
  }
  return !isComplete ? 3 : rows.some(({ state }) => state !== "valid") ? 1 : 0;
}

function statusOf(secret: PullSecret) {
  const { namespace, name, identity, token, problem, warning } = secret;
  const now = Date.now();
  const state = stateOf(secret, now);
  const expiresIn = token ? `${Math.round((token.expiresAt - now) / 1000)}s` : "";
  const why = state === "valid" ? "" : `kubectl events -n ${namespace} --for secret/${name}`;
  return {
    namespace,
    name,
    identity: clean(identity),
    state,
    expiresIn,
    problem: clean((problem ?? warning)?.message ?? why),
  };
}

function tableOf(rows: string[][]) {
  const table = [["NAMESPACE", "NAME", "IDENTITY", "STATE", "EXPIRES IN", "PROBLEM"], ...rows];
  const widths = table[0]!.map((_, column) =>
    table.reduce((most, row) => Math.max(most, row[column]!.length), 0)
  );
  return table.map((row) =>
    row.map((cell, column) => cell.padEnd(widths[column]!)).join("  ").trimEnd()
  ).join("\n");
}

/** Serves the probes and the metrics. */
function serve(controller: Controller, port: number): Server {
  return createServer(({ url = "" }, response) => {
    const [path = ""] = url.split("?");
    const isKnown = ["/healthz", "/readyz", "/metrics"].includes(path);
    const why = path === "/healthz"
      ? controller.livenessError()
      : path === "/readyz"
      ? controller.readinessError()
      : undefined;
    response.writeHead(why ? 503 : isKnown ? 200 : 404, {
      "content-type": "text/plain; version=0.0.4",
    });
    response.end(
      path === "/metrics"
        ? controller.renderMetrics()
        : `${why ?? (isKnown ? "ok" : "not found")}\n`,
    );
  }).listen(port);
}

/** The program: returns the exit status, or nothing while it runs. */
async function main([flag = "", ...others]: string[]) {
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
  setDefaultAutoSelectFamilyAttemptTimeout(ADDRESS_TIMEOUT_MS);
  let controller: Controller | undefined;
  const api = new KubernetesClient({
    ...config.api,
    labelSelector: IDENTITY_KEY,
    userAgent: USER_AGENT,
    onResponse: (verb, code) => controller?.countResponse(verb, code),
  });
  if (flag !== "") {
    return await printStatus(api, config, flag === "--status=json").finally(() => api.close());
  }
  const log = createLog(
    Date.now,
    (level, line) => process[level === "info" ? "stdout" : "stderr"].write(line),
  );
  controller = new Controller(config, {
    api,
    clock: systemClock,
    random: Math.random,
    log,
    ...issuerOf(config),
  });
  serve(controller, config.port).on("listening", () => controller.start()).on(
    "error",
    ({ message }) => {
      process.stderr.write(`PORT="${config.port}": must be a port that is free: ${message}\n`);
      process.exit(2);
    },
  );
  const stop = (signal: string) => {
    log("info", "stopped", { signal });
    controller.stop();
    process.exit(0);
  };
  process.on("SIGTERM", stop).on("SIGINT", stop);
}

function issuerOf({ issuer, audience, subjectTokenFile, httpsProxy, noProxy }: Config) {
  const dispatcher = issuerAgent(issuer, httpsProxy, noProxy);
  return {
    readSubjectToken: () => readFileSync(subjectTokenFile, "utf8").trim(),
    exchange: (subjectToken: string, identity: string, signal: AbortSignal) =>
      exchange(issuer, subjectToken, { aud: audience, identity }, {
        dispatcher,
        signal,
        userAgent: USER_AGENT,
      }),
  };
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
