/**
 * Keeps image pull Secrets filled with registry tokens that have not expired.
 *
 * Data goes one way: list and watch → the store → `reconcile` → `decide` → exchange or patch → the
 * patch comes back by the watch → `decide` says wait. Kept between steps: each identity's token,
 * and when the next step may run. Every replica does all of this; there is no leader.
 *
 * Two clocks: token lifetimes use the wall clock (`now`), delays the monotonic one (`tick`).
 */
import { existsSync } from "node:fs";
import { createServer, setDefaultAutoSelectFamilyAttemptTimeout } from "node:net";
import process from "node:process";
import {
  ApiError,
  keyOf,
  type KubernetesApi,
  KubernetesClient,
  listAndWatch,
  readMounted,
  type Secret,
} from "./k8s.ts";
import {
  cut,
  decode,
  exchange,
  findLifeFlaw,
  findSubjectTokenFlaw,
  IDENTITY,
  issuerAgent,
  RENEW_FRACTION,
  renewalTime,
  StsError,
  TokenSource,
} from "./sts.ts";

const VERSION = "0.2.0";

const IDENTITY_KEY = "pull-secret-updater.chainguard.dev/identity";
const ACCOUNT_KEY = "pull-secret-updater.chainguard.dev/service-account";
const REFRESH_KEY = "pull-secret-updater.chainguard.dev/refresh";
/** The `refresh` value that was served last, as `status.observedGeneration` is for a spec. */
const REFRESHED_KEY = "pull-secret-updater.chainguard.dev/refreshed";
const TOKEN_IDENTITY_KEY = "pull-secret-updater.chainguard.dev/token-identity";
const TOKEN_EXPIRES_KEY = "pull-secret-updater.chainguard.dev/token-expires";
const SECRET_TYPE = "kubernetes.io/dockerconfigjson";
const DATA_KEY = ".dockerconfigjson";
const INVALID_CONFIG = "InvalidDockerConfig";

/** A random part of a token's life, up to this, is added for each Secret: it spreads the writes. */
const RENEW_SPREAD = 0.1;
/**
 * The spacing of writes to one Secret, and of exchanges for one identity: half of the token's
 * remaining life, within these limits. While a Secret stays labelled, it causes at most 360 writes
 * an hour, of tokens with 20 s left or more; and 3,600 tries of an exchange or a write, two
 * requests each, if it is changed all the time and each try fails. Recreating or relabelling it
 * starts over, at two writes of its owner for one of ours.
 */
const MIN_SPACING_MS = 1_000;
const MAX_SPACING_MS = 10_000;
/** After a failure: exponential, with a jitter of 50 to 100 %. */
const MIN_BACKOFF_MS = 1_000;
const MAX_BACKOFF_MS = 60_000;
/** Time for many large pages, and more than a watch lives (100 s). */
const LIST_WATCH_TIMEOUT_MS = 120_000;
/** A watch that ends sooner has failed: an API server that ends each must not make us spin. */
const WATCH_SHORT_MS = 1_000;
/** One that lived this long has not failed, whatever ended it: load balancers cut connections. */
const WATCH_GOOD_MS = 10_000;
/**
 * For lists and watches: an API server that is back is noticed soon, as tokens may live for
 * seconds.
 */
const MAX_WATCH_BACKOFF_MS = 5_000;
/** The limit of Retry-After: a token of an hour has some 13 min left when it is due. */
const MAX_RETRY_AFTER_MS = 5 * 60_000;
/** Those 4xx that are transient: timeout, conflict, gone, too early, throttled, cancelled. */
const TRANSIENT_STATUSES = [408, 409, 410, 425, 429, 499];
/** Every Secret is reconciled this often, to notice that the clock was set or the machine slept. */
const SWEEP_MS = 60_000;

/** Long for a response, short beside a token's life: a hanging issuer frees its slot soon. */
const EXCHANGE_TIMEOUT_MS = 10_000;
/** As long as the slowest admission webhook may take. */
const REQUEST_TIMEOUT_MS = 30_000;
/**
 * For each address of a host that has several. The runtimes' defaults, 250 and 500 ms, are too
 * short for many connects.
 */
const ADDRESS_TIMEOUT_MS = 2_500;
/**
 * Concurrent exchanges, and concurrent writes: at a second each, a thousand identities take a
 * minute, and the API server gets some hundreds of writes a second. One namespace gets half of the
 * slots at most.
 */
const MAX_AT_ONCE = 16;
/** The shortest life that a token request may ask for. */
const SUBJECT_TOKEN_LIFE_S = 600;
/** A request that is still running this long after its abort is a bug of ours. */
const STUCK_MS = 60_000;

/** As client-go: one reason for one Secret every 5 min. */
const EVENT_SPACING_MS = 5 * 60_000;
/** Each event holds a slot this long: 25 may be written at once, 5 a second in the long run. */
const EVENT_PLACE_MS = 5_000;
const MAX_EVENTS = 25;
const MAX_EVENTS_OF_NAMESPACE = 6;
/** Shared by the namespaces that wait. Beyond its share, a namespace's Warnings are only logged. */
const MAX_WAITING_EVENTS = 2_000;
/** The part of the slots that Normal events may take: the rest is kept for Warnings. */
const NORMAL_EVENTS_PART = 0.5;
/** The API server's limit. */
const MAX_NOTE_BYTES = 1024;
/** A note that is too long keeps its beginning, and its end, where a refusal has its reason. */
const NOTE_START_BYTES = 300;
const NOTE_END_BYTES = 700;
/** Rendering blocks everything else, for 25 ms with 5,000 Secrets. */
const METRICS_MAX_AGE_MS = 1_000;
/**
 * The listen backlog, as long as the kernel allows: beyond it a connect is tried again after a
 * second, a probe's too.
 */
const BACKLOG = 4_096;
/** Idle callers are cut off after this, more than the kubelet waits for a probe. */
const CALL_TIMEOUT_MS = 5_000;
/** For a caller to read what the kernel has taken: metrics of 10,000 Secrets have a megabyte. */
const READ_TIMEOUT_MS = 2_000;
/** Conflicts in a row that are normal: another replica, and a user. */
const MAX_CONFLICTS = 2;
/** The limit of samples, one for each Secret: a scrape would be megabytes. */
const MAX_SAMPLES = 10_000;

// ───── Configuration ─────

/** Bad configuration: one line that names the variable, its value and what is allowed. */
export class ConfigError extends Error {}

const BASE_URL = "an https URL (http to a loopback host only) without user, query and fragment";
const HOSTS = /^(?!.*,\s*$)(\s*[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:\d{1,5})?\s*(,|$))+$/s;
const NAMESPACES = /^(?!.*,\s*$)(\s*[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\s*(,|$))+$/s;
const ACCOUNT_NAME =
  /^(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const PORT = /^([1-9]\d{0,3}|[1-5]\d{4}|6([0-4]\d{3}|5([0-4]\d\d|5([0-2]\d|3[0-5]))))$/;

export type Config = ReturnType<typeof readConfig>;

/**
 * Reads the environment; throws a {@linkcode ConfigError}. A variable that is empty counts as
 * unset.
 */
export function readConfig(env: NodeJS.ProcessEnv) {
  function read(name: string, pattern: Pick<RegExp, "test">, allowed: string, fallback = "") {
    const text = env[name] || fallback;
    if (pattern.test(text)) return text;
    throw new ConfigError(`${name}="${clean(withoutPassword(text))}": must be ${allowed}`);
  }
  const readUrl = (name: string, allowed: string, fallback?: string) =>
    read(name, { test: isBaseUrl }, allowed, fallback).replace(/\/+$/, "");
  const dir = env.SERVICE_ACCOUNT_DIR || "/var/run/secrets/kubernetes.io/serviceaccount";
  const isPod = !env.KUBERNETES_API;
  const host = isPod
    ? read(
      "KUBERNETES_SERVICE_HOST",
      /^([\w.-]+|[\da-f]*:[\da-f.]*:[\da-f:.]*)$/i,
      "a host (elsewhere: KUBERNETES_API=http://127.0.0.1:8001 of kubectl proxy)",
    )
    : "";
  const isIPv6 = host.includes(":");
  const url = isPod
    ? `https://${isIPv6 ? `[${host}]` : host}:${
      read("KUBERNETES_SERVICE_PORT", PORT, "a port, as a Pod is given it")
    }`
    : readUrl("KUBERNETES_API", `${BASE_URL}, as http://127.0.0.1:8001 of kubectl proxy`);
  const ifUsed = (path: string) =>
    isPod || (url.startsWith("https:") && existsSync(path)) ? path : undefined;
  const issuer = readUrl("ISSUER_URL", BASE_URL, "https://issuer.enforce.dev");
  const proxy = env.HTTPS_PROXY ? "HTTPS_PROXY" : "https_proxy";
  const namespaceFile = `${dir}/namespace`;
  return {
    api: {
      url,
      tokenFile: ifUsed(`${dir}/token`),
      caFile: ifUsed(`${dir}/ca.crt`),
      // Some Node releases reject the valid IP SAN of an IPv6 address; that of the cluster's own
      // has this name, too.
      servername: isIPv6 ? "kubernetes.default.svc" : undefined,
    },
    /** One list and watch each; undefined is the whole cluster. */
    namespaces: env.WATCH_NAMESPACES
      ? splitList(read("WATCH_NAMESPACES", NAMESPACES, "a comma-separated list of namespaces"))
      : [undefined],
    /** The controller's own; elsewhere than in a Pod the name that the manifest gives it. */
    ownNamespace: existsSync(namespaceFile) ? readMounted(namespaceFile) : "pull-secret-updater",
    issuer,
    /** The audience of subject tokens. */
    issuerHost: new URL(issuer).hostname,
    audience: read("AUDIENCE", /^[!-~]+$/, "printable characters without spaces", "cgr.dev"),
    registries: splitList(read("REGISTRIES", HOSTS, "a comma-separated list of hosts", "cgr.dev")),
    subjectTokenFile: env.SUBJECT_TOKEN_FILE || "/var/run/chainguard/oidc/oidc-token",
    httpsProxy: env[proxy] &&
      read(
        proxy,
        { test: isProxyUrl },
        "an http or https URL, its user and password percent-encoded",
      ),
    noProxy: env.NO_PROXY || env.no_proxy,
    port: +read("PORT", PORT, "a port from 1 to 65535", "8080"),
  };
}

const splitList = (text: string) => [...new Set(text.split(",").map((part) => part.trim()))];

/** Masks whatever may be a password, even where the text is not a URL: user, query, a non-port. */
const withoutPassword = (text: string) =>
  text.replace(/^.*@/s, "…@").replace(/([?#]|:(?!\/\/|\d{1,5}(\/|$))).*/s, "$1…");

const isBaseUrl = (text: string) =>
  /^(https:\/\/|http:\/\/(localhost|127(\.\d+){3}|\[::1\])(?=[:/]|$))[^@?#\s\p{C}]*$/u.test(text) &&
  URL.canParse(text);

function isProxyUrl(text: string) {
  try {
    decodeURIComponent(new URL(text).href);
    return /^https?:\/\/[^\s\p{C}]+$/u.test(text);
  } catch {
    return false;
  }
}

// ───── Text from elsewhere, and the log ─────

/**
 * Makes text fit for a log, an event or a table: without tokens, line breaks and control
 * characters.
 */
export function clean(text: string) {
  return text
    .replace(/\bbearer\s+\S{16,}/gi, "[removed]")
    .replace(/eyJ[\w+/=-]*(\.[\w-]*){0,2}/g, "[removed]")
    // Any other long run with capitals: names and addresses have none, an identity is hexadecimal.
    .replace(
      /[\w+/=-]{40,}/g,
      (run) => /[A-Z]/.test(run) && !/^[\da-f/]+$/i.test(run) ? "[removed]" : run,
    )
    .replace(/\s+/g, " ")
    .replace(/\p{C}/gu, "\ufffd");
}

/** The same, as long as an event's note may be. */
export function toNote(text: string) {
  const note = clean(text);
  const bytes = Buffer.from(note);
  if (bytes.length <= MAX_NOTE_BYTES) return note;
  return `${bytes.subarray(0, NOTE_START_BYTES)}…${bytes.subarray(-NOTE_END_BYTES)}`;
}

/** A string that a tenant wrote, cut to what is kept of it; undefined for any other value. */
const textOf = (value: unknown) => typeof value === "string" ? cut(value) : undefined;

type Level = "info" | "warn";
type Log = ReturnType<typeof createLog>;

/** Logs one JSON object a line. */
export const createLog =
  (now: () => number, write: (level: Level, line: string) => void) =>
  (level: Level, msg: string, fields: object) => {
    const line = JSON.stringify(
      { time: new Date(now()).toISOString(), level, msg, ...fields },
      (_key, value) => typeof value === "string" ? toNote(value) : value,
    );
    write(level, `${line}\n`);
  };

// ───── The Secret ─────

/** What an event says about a Secret: what happened, and the command that fixes it. */
export type Report = NonNullable<PullSecret["problem"]>;

/** What is read from a Secret, and all of it that is kept. */
type PullSecret = ReturnType<typeof parseSecret>;

/** Reads a Secret, whoever wrote it: it decides no value's type, and not how much is kept. */
export function parseSecret(
  secret: Secret,
  { audience, registries, ownNamespace }: Pick<Config, "audience" | "registries" | "ownNamespace">,
  now: number,
) {
  const { namespace, name, uid, resourceVersion, labels, annotations, deletionTimestamp } =
    secret.metadata;
  const annotation = (key: string) => textOf(annotations?.[key]);
  const label = textOf(labels?.[IDENTITY_KEY])?.replaceAll(".", "/");
  const identity = annotation(IDENTITY_KEY) || (label ?? "");
  const account = annotation(ACCOUNT_KEY);
  const refresh = annotation(REFRESH_KEY);
  const { tokens, isPlain, flaw } = readDockerConfig(secret.data?.[DATA_KEY], registries);
  // No signature is verified: a forged token only blocks its own Secret, for a day at most.
  const lives = tokens.map((claims) => {
    const { audiences = [], subject = "", issuedAt, expiresAt = 0 } = claims ?? {};
    const life = { issuedAt, expiresAt };
    const owner = IDENTITY.test(subject) ? subject : annotation(TOKEN_IDENTITY_KEY);
    return owner === identity && audiences.includes(audience) && !findLifeFlaw(life, now)
      ? life
      : undefined;
  });
  const isGone = !!deletionTimestamp || label === undefined;
  const problem = isGone
    ? undefined
    : findProblem(secret, label, identity, account, ownNamespace, flaw);
  return {
    namespace,
    name,
    uid,
    resourceVersion,
    identity,
    /** The service account to exchange as; undefined is the controller itself. */
    account,
    /** Whether nothing can be done for it: gone, or any problem but a rival entry. */
    isSkipped: isGone || tokens.length === 0 ||
      (problem !== undefined && problem.reason !== INVALID_CONFIG),
    /** The reason, or why clients would not use the token. */
    problem,
    /** The value of a refresh request that was not served yet. */
    refresh: refresh === annotation(REFRESHED_KEY) ? undefined : refresh,
    /** The life of the token that expires first, if each registry has one of ours. */
    token: lives.reduce((a, b) => a && b && (a.expiresAt <= b.expiresAt ? a : b), lives[0]),
    /**
     * Whether the docker config holds nothing but our entries, so that it need not be read before
     * it is written. A conflict makes this false, until list or watch bring the Secret again.
     */
    isPlain,
  };
}

/** Why nothing can be done for a Secret, and the command that fixes it. */
function findProblem(
  { type, immutable, metadata: { namespace, name } }: Secret,
  label: string,
  identity: string,
  account: string | undefined,
  ownNamespace: string,
  flaw: string | undefined,
) {
  const it = `secret ${name} -n ${namespace}`;
  const lower = identity.toLowerCase();
  const uid = IDENTITY.test(lower) ? lower : "UID (see chainctl iam identities list)";
  const invalid = (message: string) => ({ reason: "InvalidIdentity", message });
  if (!IDENTITY.test(identity) || !["", identity].includes(label)) {
    return invalid(
      `the identity "${identity}" must be a lower-case UID (40 hex digits, / and 16 a level) ` +
        `and match the label "${label}"; to set: kubectl label ${it} --overwrite ` +
        `${IDENTITY_KEY}= && kubectl annotate ${it} --overwrite ${IDENTITY_KEY}=${uid}`,
    );
  }
  if (account !== undefined && (!ACCOUNT_NAME.test(account) || namespace === ownNamespace)) {
    return invalid(
      `the service account "${account}" must be a valid name, and the Secret not in ` +
        `${ownNamespace}; to remove it: kubectl annotate ${it} ${ACCOUNT_KEY}-`,
    );
  }
  if (type !== SECRET_TYPE || immutable) {
    return {
      reason: "UnsupportedSecret",
      message:
        `the Secret is ${immutable ? "immutable" : `of type "${textOf(type)}"`}, which stays so; ` +
        `kubectl delete ${it} && kubectl create secret generic ${name} -n ${namespace} ` +
        `--type=${SECRET_TYPE} --from-literal=${DATA_KEY}={}; then label it`,
    };
  }
  const message = `${DATA_KEY} ${flaw}; if nothing in it is needed: kubectl patch ${it} ` +
    `-p '{"stringData":{"${DATA_KEY}":"{}"}}'`;
  return flaw ? { reason: INVALID_CONFIG, message } : undefined;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const toBase64 = (text: string) => Buffer.from(text).toString("base64");
const UTF_8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Throws if the text is not UTF-8, which would not survive a write. */
const decodeConfig = (data = "") => UTF_8.decode(Buffer.from(data, "base64"));

/** The tokens of the registries' entries whose user is ours; none if the config is unusable. */
function parseDockerConfig(data: string, registries: string[]) {
  const unusable = (flaw: string) => ({ data, registries, tokens: [], isPlain: false, flaw });
  let config;
  try {
    config = JSON.parse(decodeConfig(data)) ?? {};
  } catch (error) {
    return unusable(error instanceof SyntaxError ? "is not JSON" : "is not UTF-8 text");
  }
  const auths = isObject(config) && (config.auths ?? {});
  if (!isObject(auths)) return unusable("is not a JSON object whose auths is one too");
  const others = Object.keys(auths).filter((key) => !registries.includes(key));
  // The kubelet tries longer keys first; docker, crane and kaniko ask a helper first.
  const isRival = (key: string) =>
    registries.includes(key.replace(/^(https?:\/\/)?([^/]*).*$/s, "$2"));
  const hasHelper = config.credsStore ||
    registries.some((host) => Object.hasOwn(Object(config.credHelpers), host));
  const rival = hasHelper ? "a credential helper" : others.find(isRival);
  return {
    data,
    registries,
    tokens: registries.map((host) => Object.hasOwn(auths, host) ? tokenOf(auths[host]) : undefined),
    isPlain: others.length === 0 && Object.keys(config).every((key) => key === "auths"),
    flaw: rival && `has "${textOf(rival)}" too, which clients prefer to the token`,
  };
}

/**
 * The last that held our entries only, as all Secrets of an identity hold the same. No other docker
 * config is kept.
 */
let last = parseDockerConfig("", []);

function readDockerConfig(value: unknown, registries: string[]) {
  const data = typeof value === "string" ? value : "";
  if (data === last.data && registries === last.registries) return last;
  const read = parseDockerConfig(data, registries);
  if (read.isPlain) last = read;
  return read;
}

function tokenOf(entry: unknown) {
  const { auth } = Object(entry);
  const encoded = typeof auth === "string" ? auth : "";
  return decode(/^_token:(.*)/s.exec(Buffer.from(encoded, "base64").toString())?.[1] ?? "");
}

/** Merges the token into a docker config. The rest of it stays equal, numbers to the last digit. */
export function withToken(config: string, registries: string[], token: string) {
  const keepDigits = (_key: string, value: unknown, context?: { source: string }) =>
    // @ts-ignore: ES2026, not yet in the types
    typeof value === "number" ? JSON.rawJSON(context!.source) : value;
  const { auths, ...rest } = JSON.parse(config, keepDigits) ?? {};
  const auth = toBase64(`_token:${token}`);
  const ours = Object.fromEntries(registries.map((host) => [host, { auth }]));
  return JSON.stringify({ ...rest, auths: { ...auths, ...ours } });
}

// ───── The decision ─────

/** For metrics and `--status`. */
function stateOf({ isSkipped, token }: PullSecret, now: number) {
  if (isSkipped) return "skipped";
  if (!token) return "missing";
  return token.expiresAt <= now ? "expired" : "valid";
}

/**
 * What a Secret needs at the instant `now` (ms since the epoch), by the first of these that holds:
 *
 * 1. It is being deleted or no longer selected, or nothing can be done for it: skip.
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
const systemClock = {
  /** The wall clock, in ms since the epoch. */
  now: Date.now,
  /** A clock that never jumps, in ms; it may stand still while the machine sleeps. */
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
  retryAt = 0;
  /** The failure that was logged last. */
  logged = "";

  /** Returns how long to wait, in ms. */
  fail({ clock, random }: Time, error: Partial<ApiError>, maxMs = MAX_BACKOFF_MS) {
    const waitMs = Math.max(
      Math.min(MIN_BACKOFF_MS * 2 ** this.failures++, maxMs) * (0.5 + random() / 2),
      retryAfterMs(error, clock.now()),
    );
    this.retryAt = Math.max(this.retryAt, clock.monotonic() + waitMs);
    return waitMs;
  }

  /** Spaces the next try by half of what the token has left. */
  space({ clock }: Time, leftMs: number) {
    const ms = Math.min(Math.max(leftMs / 2, MIN_SPACING_MS), MAX_SPACING_MS);
    this.retryAt = Math.max(this.retryAt, clock.monotonic() + ms);
  }
}

/** Whether a person has to fix something; any other failure may be transient. */
const isRefusal = ({ status = 500 }: Partial<ApiError>) =>
  status < 500 && !TRANSIENT_STATUSES.includes(status);

/** The header has seconds or a date. */
function retryAfterMs({ status = 0, retryAfter = "" }: Partial<ApiError>, now: number) {
  if (status !== 429 && status < 500) return 0;
  const ms = /^\d+$/.test(retryAfter) ? +retryAfter * 1000 : Date.parse(retryAfter) - now;
  return Math.min(Math.max(ms || 0, 0), MAX_RETRY_AFTER_MS);
}

/** Starts a job, which must not reject; or returns nothing if it is no longer needed. */
type Start = () => Promise<unknown> | void;

/**
 * Runs a limited number of jobs at once. Turns go round the namespaces that wait, so that nobody
 * waits for all that one namespace has. Within one, what failed before comes after what did not,
 * the oldest first.
 */
function createTurns(limit: number, limitOfNamespace = limit / 2) {
  /** The namespaces in the order of their turns; of each what did not fail before, and what did. */
  const waiting = new Map<string, Set<Start>[]>();
  /** The namespaces of the jobs that run. */
  const running: string[] = [];

  /** Whether one more fits into this part of the slots. */
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
    /** How many jobs would wait if all namespaces that do had as many as this one. */
    loadOf: (namespace: string) => (waiting.get(namespace)?.[0]?.size ?? 0) * waiting.size,
    /** Starts a job in its turn; resolves when it is done, or not needed. */
    run: (namespace: string, hasFailed: boolean, start: Start) =>
      new Promise((resolve) => {
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

/** Starts the first job that is still needed, and drops those before it. */
function startOne(queues: Set<Start>[]) {
  for (const queue of queues) {
    for (const start of queue) {
      queue.delete(start);
      const job = start();
      if (job) return job;
    }
  }
}

/** Gives each request a timeout, and tracks those that ignore it. */
function createRequests({ clock }: Time) {
  const deadlines = new Set<{ at: number }>();
  return {
    isStuck: () => deadlines.values().some(({ at }) => at < clock.monotonic() - STUCK_MS),
    async within<T>(ms: number, send: (signal: AbortSignal) => Promise<T>) {
      const request = new AbortController();
      const timer = clock.setTimeout(
        () => request.abort(new Error(`no response within ${ms / 1000} s`)),
        ms,
      );
      const deadline = { at: clock.monotonic() + ms };
      deadlines.add(deadline);
      try {
        return await send(request.signal);
      } finally {
        clock.clearTimeout(timer);
        deadlines.delete(deadline);
      }
    },
  };
}

const sleep = ({ clock }: Time, ms: number) =>
  new Promise<void>((resolve) => clock.setTimeout(resolve, ms));

// ───── Events and metrics ─────

type Count = (series: string, by?: number) => void;
type Requests = ReturnType<typeof createRequests>;

/** Returns the writer of events. A Warning is logged too, and waits if there are too many. */
function createReporter(
  deps: Dependencies,
  { within }: Requests,
  count: Count,
) {
  const { api, clock, random, log } = deps;
  /** Tells the replicas apart. */
  const reportingInstance = `controller-${random().toString(36).slice(2, 10)}`;
  const turns = createTurns(MAX_EVENTS, MAX_EVENTS_OF_NAMESPACE);
  /** What was reported lately, as "namespace/name reason". */
  const reported = new Set<string>();

  return (secret: PullSecret, { reason, message }: Report) => {
    const { namespace, name, uid } = secret;
    const key = `${keyOf(secret)} ${reason}`;
    if (reported.has(key)) return;
    const isWarning = reason !== "TokenIssued";
    if (isWarning) log("warn", reason, { namespace, name, message });
    const hasPlace = isWarning
      ? turns.loadOf(namespace) < MAX_WAITING_EVENTS
      : turns.hasRoom(namespace, NORMAL_EVENTS_PART);
    if (!hasPlace) return count("pull_secret_updater_events_dropped_total");
    reported.add(key);
    sleep(deps, EVENT_SPACING_MS).then(() => reported.delete(key));
    const event = {
      metadata: { generateName: "pull-secret-updater-", namespace },
      // A MicroTime of Kubernetes has six digits.
      eventTime: new Date(clock.now()).toISOString().replace("Z", "000Z"),
      reportingController: "pull-secret-updater.chainguard.dev/controller",
      reportingInstance,
      action: "Refresh",
      regarding: { apiVersion: "v1", kind: "Secret", namespace, name, uid },
      reason,
      type: isWarning ? "Warning" : "Normal",
      note: toNote(message),
    };
    turns.run(namespace, false, () => {
      within(REQUEST_TIMEOUT_MS, (signal) => api.createEvent(namespace, event, signal))
        .catch((error) =>
          log("warn", "event not written", { namespace, name, reason, error: error.message })
        );
      return sleep(deps, EVENT_PLACE_MS);
    });
  };
}

const METRICS = `# HELP pull_secret_updater_build_info The version that runs.
# TYPE pull_secret_updater_build_info gauge
# HELP pull_secret_updater_secrets Labelled Secrets by state.
# TYPE pull_secret_updater_secrets gauge
# HELP pull_secret_updater_token_expiry_timestamp_seconds When the token in a Secret expires.
# TYPE pull_secret_updater_token_expiry_timestamp_seconds gauge
# HELP pull_secret_updater_refreshes_total Refreshes of Secrets by result.
# TYPE pull_secret_updater_refreshes_total counter
# HELP pull_secret_updater_exchange_duration_seconds How long exchanges took.
# TYPE pull_secret_updater_exchange_duration_seconds summary
# HELP pull_secret_updater_api_requests_total Requests to the API server by verb and status.
# TYPE pull_secret_updater_api_requests_total counter
# HELP pull_secret_updater_watch_restarts_total Lists and watches that ended, by reason.
# TYPE pull_secret_updater_watch_restarts_total counter
# HELP pull_secret_updater_events_dropped_total Events not written, being too many.
# TYPE pull_secret_updater_events_dropped_total counter`.split(/\n(?=# HELP)/);
/** These are there from the start, with 0, so that `increase` sees the first one. */
const COUNTERS = `pull_secret_updater_refreshes_total{result="success"}
pull_secret_updater_refreshes_total{result="failed"}
pull_secret_updater_refreshes_total{result="refused"}
pull_secret_updater_refreshes_total{result="conflict"}
pull_secret_updater_exchange_duration_seconds_count
pull_secret_updater_exchange_duration_seconds_sum
pull_secret_updater_api_requests_total{verb="list",code="200"}
pull_secret_updater_api_requests_total{verb="list",code="403"}
pull_secret_updater_api_requests_total{verb="list",code="error"}
pull_secret_updater_api_requests_total{verb="watch",code="200"}
pull_secret_updater_api_requests_total{verb="watch",code="403"}
pull_secret_updater_api_requests_total{verb="watch",code="error"}
pull_secret_updater_api_requests_total{verb="get",code="200"}
pull_secret_updater_api_requests_total{verb="get",code="error"}
pull_secret_updater_api_requests_total{verb="patch",code="200"}
pull_secret_updater_api_requests_total{verb="patch",code="403"}
pull_secret_updater_api_requests_total{verb="patch",code="409"}
pull_secret_updater_api_requests_total{verb="patch",code="error"}
pull_secret_updater_api_requests_total{verb="create",code="201"}
pull_secret_updater_api_requests_total{verb="create",code="403"}
pull_secret_updater_api_requests_total{verb="create",code="error"}
pull_secret_updater_watch_restarts_total{reason="ended"}
pull_secret_updater_watch_restarts_total{reason="gone"}
pull_secret_updater_watch_restarts_total{reason="forbidden"}
pull_secret_updater_watch_restarts_total{reason="error"}
pull_secret_updater_events_dropped_total`.split("\n");

/** Renders the metrics in Prometheus' text format. */
function renderMetrics(counters: Map<string, number>, secrets: Iterable<PullSecret>, now: number) {
  const states = { valid: 0, missing: 0, expired: 0, skipped: 0 };
  const samples = [`pull_secret_updater_build_info{version="${VERSION}"} 1`];
  for (const [series, value] of counters) samples.push(`${series} ${value}`);
  for (const secret of secrets) {
    const { namespace, name, token, isSkipped } = secret;
    states[stateOf(secret, now)]++;
    if (!token || isSkipped || samples.length > MAX_SAMPLES) continue;
    const labels = `namespace="${namespace}",name="${name}"`;
    samples.push(
      `pull_secret_updater_token_expiry_timestamp_seconds{${labels}} ${token.expiresAt / 1000}`,
    );
  }
  for (const [state, size] of Object.entries(states)) {
    samples.push(`pull_secret_updater_secrets{state="${state}"} ${size}`);
  }
  const lines = METRICS.flatMap((head) => {
    const [, , name = ""] = head.split(" ");
    return [head, ...samples.filter((sample) => sample.startsWith(name))];
  });
  return `${lines.join("\n")}\n`;
}

// ───── The controller ─────

/** The controller's I/O, injected. */
interface Dependencies extends Time {
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
  /** The part of a token's life after which it is renewed. */
  fraction: number;
  /** Backoff of its writes. */
  backoff: Backoff;
  /** Whether one of its steps is under way. */
  isBusy?: boolean;
  /** Whether the Secret is no longer selected, or is another of the same name by now. */
  isRemoved?: boolean;
  timer?: unknown;
}

/**
 * Where Secrets get their token from, one for each identity and account, and when the issuer may be
 * asked for it again.
 */
class Source extends TokenSource {
  backoff = new Backoff();
  /** Why the last exchange brought none. */
  failure?: Report;
}

/**
 * What is next for a Secret. The cached token is written if it outlives what the Secret has. If it
 * is to be renewed itself, or a new one is requested, it is exchanged first. While that fails, the
 * cached one is still written, but not for a request. `tick` is the monotonic time.
 */
function nextStep(
  secret: PullSecret,
  { fraction, backoff }: Entry,
  source: Source,
  now: number,
  tick: number,
) {
  const { problem, token } = secret;
  const decision = decide(secret, now, fraction);
  const next = (step: "sleep" | "exchange" | "write", ms = 0, report?: Report) => ({
    do: step,
    decision,
    ms,
    report,
  });
  if (decision === "skip") return next("sleep", SWEEP_MS, problem);
  if (decision === "wait") return next("sleep", renewalTime(token!, fraction) - now, problem);
  // Nothing bypasses this, not even a refresh request. A new or relabelled Secret starts over.
  if (backoff.retryAt > tick) return next("sleep", backoff.retryAt - tick);

  // Judged anew: the clock may have been set back.
  const cached = source.token;
  const { expiresAt = 0, renewAt = 0 } = cached && !findLifeFlaw(cached, now) ? cached : {};
  const isRequested = decision === "requested";
  const askInMs = source.backoff.retryAt - tick;
  // A request accepts a token that was renewed within the spacing (10 s at most); all else, one
  // that is not due.
  const hasJustRenewed = askInMs > 0 && !source.failure;
  const isFresh = isRequested ? hasJustRenewed : renewAt > now;
  // Keeps expired tokens out of Secrets: the cached one has to outlive the Secret's valid token, or
  // at least this instant.
  const outlives = expiresAt > (decision === "due" ? token!.expiresAt : now);
  // While the source backs off, an older token is better than none. A request is for a new one.
  const mayServeStale = askInMs > 0 && !isRequested;
  if (outlives && (isFresh || mayServeStale)) return next("write");
  // The only way to the issuer. When its turn comes, this is decided again.
  if (!isFresh && askInMs <= 0) return next("exchange");
  return next("sleep", Math.max(askInMs, isFresh ? renewAt - now : 0), source.failure);
}

/** Gets a subject token that the issuer can take: of a service account, or the controller's own. */
async function getSubjectToken(
  { issuerHost, ownNamespace, subjectTokenFile }: Config,
  { api, clock, readSubjectToken }: Dependencies,
  namespace = "",
  account?: string,
  signal?: AbortSignal,
) {
  const isOwn = account === undefined;
  try {
    const token = isOwn
      ? readSubjectToken()
      : await api.requestToken(namespace, account, issuerHost, SUBJECT_TOKEN_LIFE_S, signal!);
    const flaw = findSubjectTokenFlaw(token, issuerHost, clock.now());
    if (!flaw) return token;
    throw new StsError(`the subject token ${flaw}`);
  } catch (error) {
    error.message += isOwn
      ? `; SUBJECT_TOKEN_FILE is "${subjectTokenFile}", renewed by the kubelet; or kubectl ` +
        `create token controller -n ${ownNamespace} --audience=${issuerHost} > ${subjectTokenFile}`
      : `; see "One service account per tenant" in the README: ${account} or its Role is missing`;
    throw error;
  }
}

/** The tokens that Secrets share, and the exchanges that renew them. */
function createTokens(config: Config, deps: Dependencies, { within }: Requests, count: Count) {
  const { clock, exchange } = deps;
  /** By identity and subject; no valid identity contains a space. */
  const sources = new Map<string, Source>();
  const turns = createTurns(MAX_AT_ONCE);

  /** Never rejects. */
  async function renew(source: Source, requester: PullSecret) {
    const { namespace, account, identity } = requester;
    const startedAt = clock.monotonic();
    let subjectToken = "";
    try {
      const jwt = await within(EXCHANGE_TIMEOUT_MS, async (signal) => {
        subjectToken = await getSubjectToken(config, deps, namespace, account, signal);
        return await exchange(subjectToken, identity, signal);
      });
      source.backoff.space(deps, source.store(jwt, identity, config.audience, clock.now()));
      source.backoff.failures = 0;
      source.failure = undefined;
    } catch (error) {
      source.backoff.fail(deps, error);
      const message = explain(error, identity, subjectToken, config.issuer);
      source.failure = { reason: "ExchangeFailed", message };
      const result = isRefusal(error) ? "refused" : "failed";
      count(`pull_secret_updater_refreshes_total{result="${result}"}`);
    }
    const seconds = (clock.monotonic() - startedAt) / 1000;
    count("pull_secret_updater_exchange_duration_seconds_count");
    count("pull_secret_updater_exchange_duration_seconds_sum", seconds);
  }

  function sourceOf({ namespace, identity, account }: PullSecret) {
    const key = account === undefined ? identity : `${identity} ${namespace}/${account}`;
    const source = sources.get(key) ?? new Source();
    sources.set(key, source);
    return source;
  }

  return {
    sourceOf,
    /** Waits for the exchange that is under way, or makes one in its turn if it is still needed. */
    renew(secret: PullSecret, whoNeeds: () => PullSecret | undefined) {
      const { pending, failure } = sourceOf(secret);
      return pending ?? turns.run(secret.namespace, failure !== undefined, () => {
        const requester = whoNeeds();
        const source = requester && sourceOf(requester);
        if (source && !source.pending) return source.renew(() => renew(source, requester));
      });
    },
    /** Drops unused sources. */
    sweep(used: Set<Source>) {
      for (const [key, source] of sources) {
        const isBusy = source.pending || source.backoff.retryAt > clock.monotonic();
        if (!used.has(source) && !isBusy) sources.delete(key);
      }
    },
  };
}

/** The whole controller: lists, watches and refreshes from `start` to the end of the process. */
export class Controller {
  #config: Config;
  #deps: Dependencies;
  #requests: Requests;
  #report: ReturnType<typeof createReporter>;
  #tokens: ReturnType<typeof createTokens>;
  #counters = new Map(COUNTERS.map((series) => [series, 0]));
  #writes = createTurns(MAX_AT_ONCE);
  #entries = new Map<string, Entry>();
  /** The namespaces whose first list was not answered yet. */
  #unanswered: Set<string | undefined>;

  constructor(config: Config, deps: Dependencies) {
    this.#config = config;
    this.#deps = deps;
    this.#requests = createRequests(deps);
    this.#report = createReporter(deps, this.#requests, this.#count);
    this.#tokens = createTokens(config, deps, this.#requests, this.#count);
    this.#unanswered = new Set(config.namespaces);
  }

  /** Starts to list and watch. */
  start() {
    const { api: { url }, issuer, namespaces } = this.#config;
    this.#deps.log("info", "started", { version: VERSION, api: url, issuer });
    getSubjectToken(this.#config, this.#deps)
      .catch(({ message }) => this.#deps.log("warn", "no subject token", { error: message }));
    for (const namespace of namespaces) this.#follow(namespace);
    this.#sweep();
  }

  /** Says what readiness waits for, if anything. */
  readinessError = () => this.#unanswered.size === 0 ? undefined : "the first list is not done";

  /** Says why this process is stuck, if it is. Others being down, slow or hanging is no reason. */
  livenessError = () =>
    this.#requests.isStuck() ? "a request is still running, a minute after its abort" : undefined;

  /** The metrics, in Prometheus' text format. */
  renderMetrics = () => renderMetrics(this.#counters, this.#secrets(), this.#deps.clock.now());

  /** To be called for each response of the API server. */
  countResponse = (verb: string, code: string) =>
    this.#count(`pull_secret_updater_api_requests_total{verb="${verb}",code="${code}"}`);

  #secrets = () => this.#entries.values().map(({ secret }) => secret);

  #count = (series: string, by = 1) =>
    void this.#counters.set(series, (this.#counters.get(series) ?? 0) + by);

  /**
   * Lists and watches, round after round. Relists after every failure and never on a schedule; the
   * store is kept meanwhile. Backs off after whatever goes wrong.
   */
  async #follow(namespace: string | undefined) {
    const { monotonic } = this.#deps.clock;
    let backoff = new Backoff();
    let version = "";
    for (;;) {
      const isWatch = version !== "";
      const startedAt = monotonic();
      try {
        version = await this.#requests.within(
          LIST_WATCH_TIMEOUT_MS,
          (signal) => this.#listAndWatch(namespace, version, signal),
        );
        if (!isWatch) continue;
        if (monotonic() < startedAt + WATCH_SHORT_MS) {
          throw new ApiError("watch: it ended at once");
        }
        backoff = new Backoff();
        this.#count('pull_secret_updater_watch_restarts_total{reason="ended"}');
      } catch (error) {
        version = "";
        const hasLived = isWatch && monotonic() > startedAt + WATCH_GOOD_MS;
        if (hasLived) backoff = new Backoff();
        await this.#pause(namespace, error, backoff, hasLived);
      }
    }
  }

  #pause(namespace: string | undefined, error: ApiError, backoff: Backoff, hasLived: boolean) {
    const reason = hasLived
      ? "ended"
      : { 403: "forbidden", 404: "forbidden", 410: "gone" }[error.status!] ?? "error";
    this.#count(`pull_secret_updater_watch_restarts_total{reason="${reason}"}`);
    // It was answered, and must not hold up /readyz for the others.
    if (namespace && reason === "forbidden") this.#unanswered.delete(namespace);
    // A failure that repeats is logged once.
    if (!hasLived && error.message !== backoff.logged) {
      backoff.logged = error.message;
      this.#deps.log("warn", "list or watch failed", { namespace, error: error.message });
    }
    return sleep(this.#deps, backoff.fail(this.#deps, error, MAX_WATCH_BACKOFF_MS));
  }

  /** Returns the version to go on from. */
  async #listAndWatch(namespace: string | undefined, version: string, signal: AbortSignal) {
    const { api, random } = this.#deps;
    for await (const event of listAndWatch(api, namespace, version, random, signal)) {
      version = event.resourceVersion;
      if (event.type === "LISTED") this.#listed(namespace, event.keys);
      else if (event.type === "DELETED") this.#remove(keyOf(event.secret.metadata));
      else if (event.type !== "BOOKMARK") this.#upsert(event.secret);
    }
    return version;
  }

  /** All others are gone; their DELETED was missed. */
  #listed(namespace: string | undefined, keys: Set<string>) {
    for (const secret of this.#secrets()) {
      const isListed = keys.has(keyOf(secret)) ||
        (namespace ?? secret.namespace) !== secret.namespace;
      if (!isListed) this.#remove(keyOf(secret));
    }
    this.#unanswered.delete(namespace);
    this.#deps.log("info", "listed", { namespace, secrets: keys.size });
  }

  #upsert(object: Secret) {
    const { clock, random } = this.#deps;
    const now = clock.now();
    const tick = clock.monotonic();
    const key = keyOf(object.metadata);
    const secret = parseSecret(object, this.#config, now);
    // Another Secret of the same name starts afresh.
    if (this.#entries.get(key)?.secret.uid !== secret.uid) this.#remove(key);
    const entry: Entry = this.#entries.get(key) ?? {
      secret,
      fraction: RENEW_FRACTION + random() * RENEW_SPREAD,
      backoff: new Backoff(),
    };
    const { secret: before, backoff } = entry;
    const isSame = before.identity === secret.identity && before.account === secret.account;
    const isBlanked = before.token && !secret.token && isSame && !secret.isSkipped;
    const isSpaced = backoff.failures === 0 && backoff.retryAt > tick;
    if (isBlanked && isSpaced) {
      const seconds = Math.ceil((backoff.retryAt - tick) / 1000);
      this.#report(secret, {
        reason: "Overwritten",
        message:
          "the token was overwritten by another client (kubectl apply, GitOps?); it will be " +
          `written again in ${seconds} s. Leave data out of what is applied: see GitOps, README`,
      });
    }
    // Whichever replica wrote it, the next write is spaced. Without a token that is by a second:
    // changing the identity in a loop causes one exchange a second at most.
    const { expiresAt = 0 } = secret.token ?? {};
    const hasNewToken = expiresAt > now && expiresAt !== before.token?.expiresAt;
    if (hasNewToken || !isSame) backoff.space(this.#deps, expiresAt - now);
    // Never older than the one in the store: one loop for each namespace, in the API server's
    // order, and nothing else upserts. Only a restored etcd goes back. A stale write gets a 409.
    entry.secret = secret;
    this.#entries.set(key, entry);
    this.#reconcile(entry);
  }

  #remove(key: string) {
    const entry = this.#entries.get(key);
    if (!entry) return;
    entry.isRemoved = true;
    this.#deps.clock.clearTimeout(entry.timer);
    this.#entries.delete(key);
  }

  #stepOf(entry: Entry, secret = entry.secret) {
    const { clock } = this.#deps;
    return nextStep(secret, entry, this.#tokens.sourceOf(secret), clock.now(), clock.monotonic());
  }

  /** Reconciles each Secret, and drops the tokens that none uses any more. */
  #sweep = () => {
    for (const entry of this.#entries.values()) this.#reconcile(entry);
    this.#tokens.sweep(new Set(this.#secrets().map(this.#tokens.sourceOf)));
    this.#deps.clock.setTimeout(this.#sweep, SWEEP_MS);
  };

  /** Does for a Secret one step after another, until there is nothing more to be done for now. */
  async #reconcile(entry: Entry) {
    const { clock } = this.#deps;
    clock.clearTimeout(entry.timer);
    while (!entry.isBusy && !entry.isRemoved) {
      const { secret, backoff } = entry;
      const step = this.#stepOf(entry);
      if (step.decision === "wait") backoff.failures = 0;
      if (step.do === "sleep") {
        if (step.report) this.#report(secret, step.report);
        // The sweep does the others: a timer each would take as much memory as all that is kept.
        if (step.ms < SWEEP_MS) {
          entry.timer = clock.setTimeout(() => this.#reconcile(entry), step.ms);
        }
        return;
      }
      const whoNeeds = () =>
        !entry.isRemoved && this.#stepOf(entry).do === step.do ? entry.secret : undefined;
      entry.isBusy = true;
      await (step.do === "exchange"
        ? this.#tokens.renew(secret, whoNeeds)
        : this.#writes.run(secret.namespace, backoff.failures > 0, () =>
          whoNeeds() && this.#write(entry)));
      entry.isBusy = false;
    }
  }

  /**
   * Writes the cached token. After a 409, or a 404 alike: back off, sleep, read the Secret unless
   * the watch brings it meanwhile, decide again, patch. Reported from the third failure in a row.
   */
  #write(entry: Entry) {
    const { secret, backoff } = entry;
    return this.#requests.within(REQUEST_TIMEOUT_MS, (signal) => this.#patch(entry, signal)).catch(
      (error) => {
        backoff.fail(this.#deps, error);
        const isConflict = [404, 409].includes(error.status);
        secret.isPlain &&= !isConflict;
        const result = isConflict ? "conflict" : isRefusal(error) ? "refused" : "failed";
        this.#count(`pull_secret_updater_refreshes_total{result="${result}"}`);
        if (entry.isRemoved || (isConflict && backoff.failures <= MAX_CONFLICTS)) return;
        this.#report(secret, {
          reason: error instanceof ApiError ? "ExchangeFailed" : INVALID_CONFIG,
          message: `the token could not be written: ${error.message}`,
        });
      },
    );
  }

  /**
   * A docker config with more than our entries is read first, and decided on anew. So is a Secret
   * whose last write was a conflict: what the watch said may be from before etcd was restored.
   */
  async #patch(entry: Entry, signal: AbortSignal) {
    const { api, clock, log } = this.#deps;
    const { namespace, name, isPlain } = entry.secret;
    const found = isPlain ? undefined : await api.get(namespace, name, signal);
    const secret = found ? parseSecret(found, this.#config, clock.now()) : entry.secret;
    const step = this.#stepOf(entry, secret);
    if (step.do !== "write") {
      // Unless the cached token became due meanwhile, another replica was faster: list or watch
      // will say so, which may be behind.
      if (this.#stepOf(entry).do !== "exchange") entry.backoff.fail(this.#deps, {});
      return;
    }
    const { uid, resourceVersion, identity, refresh } = secret;
    const { jwt, expiresAt } = this.#tokens.sourceOf(secret).token!;
    const expires = new Date(expiresAt).toISOString();
    const before = found ? decodeConfig(found.data?.[DATA_KEY]) : "{}";
    await api.patch(namespace, name, {
      metadata: {
        // A Secret that is not the one that was decided on, or not as it was, is a conflict.
        uid,
        resourceVersion,
        annotations: {
          [TOKEN_IDENTITY_KEY]: identity,
          [TOKEN_EXPIRES_KEY]: expires,
          [REFRESHED_KEY]: refresh,
        },
      },
      data: { [DATA_KEY]: toBase64(withToken(before, this.#config.registries, jwt)) },
    }, signal);
    entry.backoff.failures = 0;
    entry.backoff.space(this.#deps, expiresAt - clock.now());
    this.#count('pull_secret_updater_refreshes_total{result="success"}');
    log("info", "token written", { namespace, name, identity, reason: step.decision, expires });
    if (step.decision !== "due") {
      this.#report(secret, {
        reason: "TokenIssued",
        message: `the Secret holds a token of ${identity} until ${expires}`,
      });
    }
  }
}

/** The message of a failed exchange, with what fixes it. */
function explain(error: StsError, identity: string, subjectToken: string, url: string) {
  const { message, status = 0, code } = error;
  const { issuer, subject, audiences } = decode(subjectToken) ?? {};
  const parent = identity.replace(/\/[^/]*$/, "");
  const about = `the subject token has iss=${issuer} sub=${subject} aud=${audiences}`;
  if (!isRefusal(error) || subjectToken === "") return message;
  if (code === undefined) {
    return `${message}; that is not an STS: is ISSUER_URL=${url} right, or does a proxy answer?`;
  }
  const hint = {
    401: `${about}; what the identity expects: chainctl iam identities describe ${identity}`,
    403: `${about}; bind this identity to it, or create one: chainctl iam identities create pull ` +
      `--identity-issuer=${issuer} --subject=${subject} --parent=${parent} --role=registry.pull`,
    404: `there is no identity ${identity}: chainctl iam identities list --parent=${parent}`,
  }[status];
  return hint ? `${message}; ${hint}` : message;
}

// ───── The program ─────

const COLUMNS = ["NAMESPACE", "NAME", "IDENTITY", "STATE", "EXPIRES IN", "PROBLEM"];
/** Of all columns but the last; an identity under an organisation has 57 characters. */
const WIDTHS = [20, 24, 57, 7, 10, 0];
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
  WATCH_NAMESPACES         the namespaces to watch, comma-separated (all)
  HTTPS_PROXY, NO_PROXY    the proxy to the issuer, and the hosts to be reached without it; also in
                           lower case (none)
  NODE_EXTRA_CA_CERTS      a file of more CAs for the issuer, read by Node and Deno (none)
  KUBERNETES_API           the API server elsewhere than in a Pod, as http://127.0.0.1:8001 (none)
  KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT
                           the API server in a Pod (each Pod is given them)
  SERVICE_ACCOUNT_DIR      of token, ca.crt, namespace
                           (/var/run/secrets/kubernetes.io/serviceaccount)
  PORT                     of /healthz, /readyz and /metrics (8080)`;

/** Prints what state the labelled Secrets are in; returns the exit status. */
async function printStatus(api: KubernetesApi, config: Config, asJson: boolean) {
  const rows: ReturnType<typeof statusOf>[] = [];
  let isComplete = true;
  for (const namespace of config.namespaces) {
    try {
      for await (
        const { items } of api.list(namespace, AbortSignal.timeout(LIST_WATCH_TIMEOUT_MS))
      ) {
        for (const item of items) {
          rows.push(statusOf(parseSecret(item, config, Date.now()), Date.now()));
        }
      }
    } catch (error) {
      isComplete = false;
      console.error(clean(`${namespace ?? "all namespaces"}: ${error.message}`));
    }
  }
  const table = rows.length > 0
    ? [COLUMNS, ...rows.map(Object.values)].map((row) =>
      row.map((cell, column) => cell.padEnd(WIDTHS[column]!)).join("  ").trimEnd()
    ).join("\n")
    : `no Secret has the label ${IDENTITY_KEY}`;
  if (isComplete || rows.length > 0) console.log(asJson ? JSON.stringify(rows, null, 2) : table);
  return isComplete ? +rows.some(({ state }) => state !== "valid") : 3;
}

function statusOf(secret: PullSecret, now: number) {
  const { namespace, name, token, problem } = secret;
  const state = stateOf(secret, now);
  const why = state === "valid" ? "" : `kubectl events -n ${namespace} --for secret/${name}`;
  return {
    namespace,
    name,
    identity: clean(secret.identity),
    state,
    expiresIn: token ? `${Math.round((token.expiresAt - now) / 1000)}s` : "",
    problem: clean(problem?.message ?? why),
  };
}

/**
 * Serves the probes and the metrics: to each connection one response, by the first line that comes.
 * node:http would first parse all that a caller sends, a thousand requests at once.
 */
function serve(controller: Controller, port: number) {
  let metrics = Buffer.of();
  let renderAt = 0;
  const pages: Record<string, () => string | undefined> = {
    "/healthz": controller.livenessError,
    "/readyz": controller.readinessError,
    "/metrics": () => {
      if (performance.now() < renderAt) return;
      renderAt = performance.now() + METRICS_MAX_AGE_MS;
      metrics = Buffer.from(controller.renderMetrics());
    },
  };
  return createServer((socket) => {
    // A reset drops what the caller has not read, which the kernel would keep for minutes.
    const close = () => socket.resetAndDestroy();
    socket.setTimeout(CALL_TIMEOUT_MS, close).on("error", close).once("data", (chunk) => {
      const path = /^\w+ (\/[^? ]*)/.exec(`${chunk}`)?.[1] ?? "";
      const page = pages[path];
      const error = page ? page() : "not found";
      const status = error ? page ? "503 Service Unavailable" : "404 Not Found" : "200 OK";
      const body = path === "/metrics" ? metrics : Buffer.from(`${error ?? "ok"}\n`);
      socket.pause().write(
        `HTTP/1.1 ${status}\r\ncontent-type: text/plain; version=0.0.4\r\n` +
          `content-length: ${body.length}\r\nconnection: close\r\n\r\n`,
      );
      socket.end(body, () => setTimeout(close, READ_TIMEOUT_MS));
    });
  }).listen({ port, backlog: BACKLOG });
}

/** The program: returns the exit status, or nothing while it runs. */
async function main(args: string[]) {
  const flag = args.join(" ");
  if (!/^(--(help|version|status(=json)?))?$/.test(flag)) {
    throw new ConfigError(
      `unknown argument "${clean(flag)}": must be --status, --status=json, --version or --help`,
    );
  }
  if (flag === "--help") return void console.log(HELP);
  if (flag === "--version") return void console.log(VERSION);
  const config = readConfig(process.env);
  setDefaultAutoSelectFamilyAttemptTimeout(ADDRESS_TIMEOUT_MS);
  const userAgent = `pull-secret-updater/${VERSION}`;
  const api = new KubernetesClient({
    ...config.api,
    labelSelector: IDENTITY_KEY,
    userAgent,
    onResponse: (verb, code) => controller.countResponse(verb, code),
  });
  const dispatcher = issuerAgent(config.issuer, config.httpsProxy, config.noProxy);
  const log = createLog(
    Date.now,
    (level, line) => process[level === "info" ? "stdout" : "stderr"].write(line),
  );
  const controller = new Controller(config, {
    api,
    clock: systemClock,
    random: Math.random,
    log,
    readSubjectToken: () => readMounted(config.subjectTokenFile),
    exchange: (subjectToken, identity, signal) =>
      exchange(config.issuer, subjectToken, { aud: config.audience, identity }, {
        dispatcher,
        signal,
        userAgent,
      }),
  });
  if (flag !== "") return await printStatus(api, config, flag === "--status=json");
  serve(controller, config.port).on("listening", () => controller.start()).on(
    "error",
    ({ message }) => {
      console.error(`PORT="${config.port}": must be a port that is free: ${message}`);
      process.exit(2);
    },
  );
  const stop = (signal: string) => {
    log("info", "stopped", { signal });
    process.exit(0);
  };
  process.on("SIGTERM", stop).on("SIGINT", stop);
}

if (import.meta.main) {
  main(process.argv.slice(2)).catch((error) => {
    const isConfig = error instanceof ConfigError;
    console.error(isConfig ? error.message : clean(error.message));
    return isConfig ? 2 : 3;
  }).then((status) => process.exitCode = status);
}
