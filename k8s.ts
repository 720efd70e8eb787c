/**
 * A minimal client of the Kubernetes REST API: the six requests that the controller makes, each of them one attempt but
 * for what the client can mend itself, an old token (401) and a page that is too large. What to do after any other
 * failure is the caller's to decide.
 *
 * The numbers follow client-go where it has one for the same purpose.
 */
import { readFileSync } from "node:fs";
import { Agent, type Dispatcher, request } from "undici";

/** As client-go: a projected token is replaced long before its last minute. */
const TOKEN_MAX_AGE_MS = 60_000;
/** As client-go; a cluster's CA is replaced with weeks of overlap. After a failed connection it is read at once. */
const CA_MAX_AGE_MS = 5 * 60_000;
/** As undici's own. */
const CONNECT_TIMEOUT_MS = 10_000;
/** For the headers of an answer, and for silence within its body; a watch sets its own. */
const SILENCE_TIMEOUT_MS = 30_000;
/** What a watch may outlive its own time-out by before its connection counts as dead. */
const WATCH_GRACE_S = 10;
/** Half of client-go's: what a page leaves behind is what a start takes of memory. */
const PAGE_LIMIT = 250;
/** A page of ordinary pull Secrets has 1 MiB; tenants may make each of theirs a MiB. */
const MAX_BODY_BYTES = 16 * 1024 * 1024;
/** By how much a page that is too large is made smaller. */
const PAGE_SHRINK = 4;

/** A failed request. Its message may quote the API server's, and is to be cleaned where it is told. */
export class ApiError extends Error {
  override name = "ApiError";
  /** The HTTP status, or the code of a watch's ERROR record; undefined without either. */
  declare readonly status?: number;
  /**
   * The reason in the answer's Status, the error code of the connection or file, or InvalidAnswer, BodyTooLarge,
   * InvalidName.
   */
  declare readonly reason?: string;
  /** The answer's `Retry-After` header, as it came. */
  declare readonly retryAfter?: string;

  constructor(
    message: string,
    { cause, ...fields }: Omit<Partial<ApiError>, "message" | "refused">,
  ) {
    super(message, { cause });
    Object.assign(this, fields);
  }

  /**
   * Whether it takes a person to mend it; otherwise it may pass by itself, as an expired token's 401 or a proxy's 404.
   */
  get refused(): boolean {
    return /^4/.test(`${this.status}`) && ![401, 404, 408, 409, 410, 429].includes(this.status!);
  }
}

/** The parts of a Secret that are looked at. */
export interface Secret {
  metadata: {
    namespace: string;
    name: string;
    uid: string;
    resourceVersion: string;
    deletionTimestamp?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
  type?: string;
  immutable?: boolean;
  data?: Record<string, string>;
}

/** One record of a watch. ERROR is not among them: it is thrown as an {@linkcode ApiError}. */
export type WatchEvent =
  | { type: "ADDED" | "MODIFIED" | "DELETED"; secret: Secret; resourceVersion: string }
  | { type: "BOOKMARK"; resourceVersion: string };

/** What the controller asks of the API server. */
export type KubernetesApi = Omit<ReturnType<typeof createClient>, "close">;

export interface ClientOptions {
  /** Of the API server, without a slash at the end. */
  url: string;
  /** The file of the bearer token; undefined: none is ever sent. */
  tokenFile?: string;
  /** The file of the API server's CA; undefined: the system's roots. */
  caFile?: string;
  /** Selects the Secrets to list and watch. */
  labelSelector: string;
  userAgent: string;
  /** Told of each answer: the HTTP status, or `error`. */
  onAnswer: (verb: string, code: string) => void;
  /** Told why a file could not be read again; what it held goes on being used. */
  onStale: (message: string) => void;
}

type SecretList = { items?: unknown; metadata?: { resourceVersion?: unknown; continue?: string } };
type TokenRequest = { status?: { token?: unknown } };
type RequestOptions = Partial<Dispatcher.RequestOptions> & { signal: AbortSignal };

/** The client of one API server. A namespace of undefined means all of them. */
export function createClient(
  { url, tokenFile, caFile, labelSelector, userAgent, onAnswer, onStale }: ClientOptions,
) {
  const token = tokenFile === undefined
    ? undefined
    : openRotatingFile(tokenFile, TOKEN_MAX_AGE_MS, onStale);
  const ca = caFile === undefined ? undefined : openRotatingFile(caFile, CA_MAX_AGE_MS, onStale);
  let agent: Agent | undefined;
  let agentCa: string | undefined;

  function dispatcher(): Agent {
    const currentCa = ca?.read();
    if (agent && currentCa === agentCa) return agent;
    // Not awaited: this waits for the watch that still runs on it.
    agent?.close();
    // Some Node releases reject the valid IP SAN of an IPv6 address; this name is in every API server's certificate.
    const servername = url.includes("//[") ? "kubernetes.default.svc" : undefined;
    const connect = { ca: currentCa, servername, timeout: CONNECT_TIMEOUT_MS };
    // undici's HTTP/2 ping has no time-out for its answer: a dead connection would stall the watch.
    agent = new Agent({
      allowH2: false,
      headersTimeout: SILENCE_TIMEOUT_MS,
      bodyTimeout: SILENCE_TIMEOUT_MS,
      connect,
    });
    agentCa = currentCa;
    return agent;
  }

  /**
   * Sends a request, and once more after a 401 if there may be another token by now. Throws unless the answer is a 2xx.
   */
  async function send(
    verb: string,
    path: string,
    options: RequestOptions,
  ): Promise<Dispatcher.ResponseData> {
    const startedAt = performance.now();
    const sent = token?.read();
    const authorization = sent && { authorization: `Bearer ${sent}` };
    const type = options.method === "PATCH" ? "application/merge-patch+json" : "application/json";
    const headers = {
      accept: "application/json",
      "content-type": type,
      "user-agent": userAgent,
      ...authorization,
    };
    const answer = await request(url + path, { ...options, headers, dispatcher: dispatcher() })
      .catch((cause) => {
        onAnswer(verb, "error");
        // The API server's certificate may have been replaced.
        ca?.expire(Infinity);
        throw noAnswer(verb, cause);
      });
    const { statusCode: status, headers: { "retry-after": retryAfter } } = answer;
    onAnswer(verb, `${status}`);
    if (status < 300) return answer;
    const { message, reason } = parseStatus(await readText(verb, answer.body));
    if (status === 401 && (token?.expire(startedAt) || token?.read() !== sent)) {
      return send(verb, path, options);
    }
    const fields = { status, reason, retryAfter: `${retryAfter ?? ""}` };
    throw new ApiError(`${verb}: the API server answered ${status}: ${message}`, fields);
  }

  async function json(verb: string, path: string, options: RequestOptions): Promise<unknown> {
    return parseJson(
      await readText(verb, (await send(verb, path, options)).body),
      `${verb}: the answer`,
    );
  }

  return {
    /**
     * Lists the selected Secrets page by page; a page that is too large is asked for again, smaller. Yields its Secrets,
     * and the resource version to watch from.
     */
    async *list(namespace: string | undefined, signal: AbortSignal, limit = PAGE_LIMIT) {
      let next: string | undefined = "";
      while (next !== undefined) {
        try {
          const query = { labelSelector, limit, ...(next !== "" && { continue: next }) };
          const answer = await json("list", secretsPath(namespace), { query, signal }) as
            | SecretList
            | null;
          const { items, metadata } = answer ?? {};
          if (!Array.isArray(items) || typeof metadata?.resourceVersion !== "string") {
            throw invalid("list: not a list");
          }
          yield { items: items.map(asSecret), resourceVersion: metadata.resourceVersion };
          next = metadata.continue || undefined;
        } catch (error) {
          if ((error as ApiError).reason !== "BodyTooLarge" || limit === 1) throw error;
          limit = Math.ceil(limit / PAGE_SHRINK);
        }
      }
    },

    /** Watches the selected Secrets from a resource version on, until the API server ends it. */
    async *watch(
      namespace: string | undefined,
      resourceVersion: string,
      timeoutSeconds: number,
      signal: AbortSignal,
    ) {
      const query = {
        labelSelector,
        resourceVersion,
        timeoutSeconds,
        watch: 1,
        allowWatchBookmarks: true,
      };
      const bodyTimeout = (timeoutSeconds + WATCH_GRACE_S) * 1000;
      yield* parseWatch(
        (await send("watch", secretsPath(namespace), { query, bodyTimeout, signal })).body,
      );
    },

    /** Reads one Secret. Throws an {@linkcode ApiError}, as all of these do. */
    async get(namespace: string, name: string, signal: AbortSignal): Promise<Secret> {
      return asSecret(await json("get", secretsPath(namespace, name), { signal }));
    },

    /** Applies a merge patch. With `uid` and `resourceVersion` in its metadata, a Secret that differs is a 409. */
    async patch(
      namespace: string,
      name: string,
      patch: object,
      signal: AbortSignal,
    ): Promise<Secret> {
      const query = { fieldManager: "pull-secret-updater" };
      const path = secretsPath(namespace, name);
      return asSecret(
        await json("patch", path, { method: "PATCH", query, body: JSON.stringify(patch), signal }),
      );
    },

    /** Creates an Event of events.k8s.io/v1. */
    async createEvent(namespace: string, event: object, signal: AbortSignal): Promise<void> {
      const path = resourcePath("apis", "events.k8s.io", "v1", "namespaces", namespace, "events");
      const body = JSON.stringify({ apiVersion: "events.k8s.io/v1", kind: "Event", ...event });
      await json("create", path, { method: "POST", body, signal });
    },

    /** Requests a token of a service account (TokenRequest) for one audience, to live so many seconds. */
    async requestToken(
      namespace: string,
      account: string,
      audience: string,
      seconds: number,
      signal: AbortSignal,
    ) {
      const path = resourcePath(
        "api",
        "v1",
        "namespaces",
        namespace,
        "serviceaccounts",
        account,
        "token",
      );
      const spec = { audiences: [audience], expirationSeconds: seconds };
      const body = JSON.stringify({
        apiVersion: "authentication.k8s.io/v1",
        kind: "TokenRequest",
        spec,
      });
      const answer = await json("create", path, { method: "POST", body, signal }) as
        | TokenRequest
        | null;
      if (typeof answer?.status?.token !== "string") {
        throw invalid("create: the answer bears no token");
      }
      return answer.status.token;
    },

    /** Ends all connections, and what is under way on them. */
    close: () => agent?.destroy(),
  };
}

/** A mounted file that is replaced now and then; what it held is kept while it cannot be read. */
function openRotatingFile(path: string, maxAgeMs: number, onStale: (message: string) => void) {
  let content: string | undefined;
  let readAt = -Infinity;
  return {
    read(): string {
      if (content !== undefined && performance.now() < readAt + maxAgeMs) return content;
      readAt = performance.now();
      try {
        const text = readFileSync(path, "utf8").trim();
        if (text === "") throw new Error("it is empty");
        content = text;
      } catch (cause) {
        const { code, message } = cause as NodeJS.ErrnoException;
        if (content === undefined) {
          throw new ApiError(`${path}: ${message}`, { reason: code, cause });
        }
        onStale(`${path}: ${message}`);
      }
      return content;
    },
    /** Has the file read anew next time, unless it was since `time`; returns whether. */
    expire(time: number): boolean {
      const isStale = readAt < time;
      if (isStale) readAt = -Infinity;
      return isStale;
    },
  };
}

function parseJson(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw invalid(`${what} is not JSON`);
  }
}

const invalid = (message: string) => new ApiError(message, { reason: "InvalidAnswer" });

function noAnswer(verb: string, cause: unknown): ApiError {
  const { code, message } = cause as NodeJS.ErrnoException;
  return new ApiError(`${verb}: no answer of the API server: ${message}`, { reason: code, cause });
}

async function readText(verb: string, body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const chunk of body) {
      chunks.push(chunk);
      size += chunk.length;
      if (size > MAX_BODY_BYTES) {
        throw new ApiError(`${verb}: over 16 MiB`, { reason: "BodyTooLarge" });
      }
    }
  } catch (cause) {
    throw cause instanceof ApiError ? cause : noAnswer(verb, cause);
  }
  return Buffer.concat(chunks).toString();
}

/** The fields of a Status, where the text is one. */
function parseStatus(text: string): { code?: number; message: string; reason?: string } {
  try {
    const { code, message, reason } = JSON.parse(text);
    return { code, message: `${message}`, reason };
  } catch {
    return { message: "not an answer of the API server" };
  }
}

function secretsPath(namespace?: string, name?: string): string {
  const scope = namespace === undefined ? [] : ["namespaces", namespace];
  return resourcePath("api", "v1", ...scope, "secrets", ...(name === undefined ? [] : [name]));
}

/** Joins the parts of a path; none of them can reach beyond its place. */
function resourcePath(...parts: string[]): string {
  const unfit = parts.find((part) => ["", ".", ".."].includes(part));
  if (unfit !== undefined) {
    throw new ApiError(`"${unfit}" is no resource's name`, { reason: "InvalidName" });
  }
  return "/" + parts.map(encodeURIComponent).join("/");
}

function asSecret(value: unknown): Secret {
  const { namespace, name, uid, resourceVersion } = (value as Partial<Secret> | null)?.metadata ??
    {};
  if ([namespace, name, uid, resourceVersion].every((field) => typeof field === "string")) {
    return value as Secret;
  }
  throw invalid("an object lacks the metadata of a Secret");
}

/**
 * Parses the body of a watch, one JSON object a line. A part of a line at the end is dropped. Whatever else is not a
 * record of a watch ends it with an {@linkcode ApiError}, as does an ERROR record.
 */
export async function* parseWatch(body: AsyncIterable<Uint8Array>): AsyncGenerator<WatchEvent> {
  // undici's own decoding breaks characters that are split across chunks.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let rest = "";
  try {
    for await (const chunk of body) {
      const lines = decoder.decode(chunk, { stream: true }).split("\n");
      lines[0] = rest + lines[0];
      rest = lines.pop()!;
      if (rest.length > MAX_BODY_BYTES) throw invalid("watch: a line is over 16 MiB");
      for (const line of lines) yield parseWatchEvent(line);
    }
  } catch (cause) {
    throw cause instanceof ApiError ? cause : noAnswer("watch", cause);
  }
}

function parseWatchEvent(line: string): WatchEvent {
  const { type, object } = (parseJson(line, "watch: a line") ?? {}) as {
    type?: unknown;
    object?: unknown;
  };
  if (type === "ERROR") {
    const { code: status, message, reason } = parseStatus(JSON.stringify(object));
    throw new ApiError(`watch: the API server sent an error: ${message}`, { status, reason });
  }
  if (type === "BOOKMARK") {
    const resourceVersion = (object as Partial<Secret> | null)?.metadata?.resourceVersion;
    if (typeof resourceVersion !== "string") {
      throw invalid("watch: a bookmark has no resource version");
    }
    return { type, resourceVersion };
  }
  if (type !== "ADDED" && type !== "MODIFIED" && type !== "DELETED") {
    throw invalid("watch: a record is of no known type");
  }
  const secret = asSecret(object);
  return { type, secret, resourceVersion: secret.metadata.resourceVersion };
}
