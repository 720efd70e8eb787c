/**
 * A minimal client of the Kubernetes REST API: the six requests that the controller makes, each of
 * them one attempt, and the round of list and watch that two of them make.
 *
 * The numbers follow client-go where it has one for the same purpose.
 */
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { Agent, buildConnector, type Dispatcher, request } from "undici";

/** For the headers of a response, and for silence within its body; a watch sets its own. */
const SILENCE_TIMEOUT_MS = 30_000;
/**
 * Watches end after 60 to 90 s, so that a stalled connection is noticed soon: another watch costs
 * one request.
 */
const WATCH_MIN_S = 60;
const WATCH_SPREAD_S = 31;
/** Grace after a watch's timeout before its connection counts as dead. */
const WATCH_GRACE_S = 10;
/** Half of client-go's: the garbage of a page sets the peak of memory at the start. */
const PAGE_LIMIT = 250;
/**
 * A page of ordinary pull Secrets has 1 MiB. The objects of one that is full of labels take ten
 * times its bytes.
 */
const MAX_BODY_BYTES = 4 * 1024 * 1024;
/** The largest page of one: 1.5 MiB in etcd, each character escaped. */
const MAX_SECRET_BYTES = 16 * 1024 * 1024;
/** By how much a page that is too large is divided; each that is not doubles the next. */
const PAGE_SHRINK = 4;

/** A failed request. Its message may quote the API server's. */
export class ApiError extends Error {
  override name = "ApiError";
  /** The HTTP status, or the code of a watch's ERROR record; undefined without either. */
  status?: number;
  /**
   * The reason in the response's Status, the error code of the connection or file, or one of ours.
   */
  reason?: string;
  /** The response's `Retry-After` header, as it came. */
  retryAfter?: string;

  constructor(message: string, fields: Partial<ApiError> = {}) {
    super(message);
    Object.assign(this, fields);
  }
}

/** The parts of a Secret that are read. Only the four strings that have to be there are checked. */
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
export type KubernetesApi = Omit<KubernetesClient, "close">;

interface ClientOptions {
  /** Of the API server, without a slash at the end. */
  url: string;
  /** The name that its certificate has to have; undefined: the host of the URL. */
  servername?: string;
  /** The file of the bearer token; undefined: none is ever sent. */
  tokenFile?: string;
  /** The file of the API server's CA; undefined: the system's roots. */
  caFile?: string;
  /** Selects the Secrets to list and watch. */
  labelSelector: string;
  userAgent: string;
  /** Called for each response: the HTTP status, or `error`. */
  onResponse: (verb: string, code: string) => void;
}

type RequestOptions = Partial<Dispatcher.RequestOptions> & { signal: AbortSignal };

/** Reads a mounted file; an empty token or CA would silently count as none. */
export function readMounted(path: string) {
  const text = readFileSync(path, "utf8").trim();
  if (text) return text;
  throw new Error(`${path} is empty`);
}

/** One certificate that is broken would end Deno, and hide those behind it from Node. */
const certificatesIn = (pem: string) =>
  pem.split(/(?=-----BEGIN)/).filter((part) => {
    try {
      return new X509Certificate(part);
    } catch {
      return false;
    }
  });

/** The client of one API server. A namespace of undefined means all of them. */
export class KubernetesClient {
  #options: ClientOptions;
  #agent: Agent;

  constructor(options: ClientOptions) {
    const { servername, caFile } = options;
    this.#options = options;
    this.#agent = new Agent({
      // undici's HTTP/2 ping has no time-out for its response: a dead connection would stall the
      // watch.
      allowH2: false,
      headersTimeout: SILENCE_TIMEOUT_MS,
      bodyTimeout: SILENCE_TIMEOUT_MS,
      // Each connection reads the CA anew, as each request reads the token: the kubelet replaces
      // both.
      connect: (connection, callback) => {
        // undici's own time-out is 10 s.
        buildConnector({
          ca: caFile && certificatesIn(readMounted(caFile)),
          servername,
          // If only an intermediate CA is trusted, OpenSSL demands the root too, unless told so.
          allowPartialTrustChain: true,
          allowH2: false,
        })(connection, callback);
      },
    });
  }

  /** Sends a request. Throws unless the response is a 2xx. */
  async #send(
    verb: string,
    path: string,
    options: RequestOptions,
  ) {
    const { url, tokenFile, userAgent, onResponse } = this.#options;
    let response: Dispatcher.ResponseData;
    try {
      response = await request(url + path, {
        ...options,
        headers: {
          accept: "application/json",
          "content-type": "application/json",
          "user-agent": userAgent,
          ...tokenFile && { authorization: `Bearer ${readMounted(tokenFile)}` },
          ...options.headers as object,
        },
        dispatcher: this.#agent,
      });
    } catch (cause) {
      onResponse(verb, "error");
      throw noResponse(verb, cause);
    }
    const { statusCode: status, headers: { "retry-after": retryAfter = "" } } = response;
    onResponse(verb, `${status}`);
    if (status < 300) return response;
    const { message, reason } = parseStatus(await readText(verb, response.body));
    throw new ApiError(`${verb}: the API server answered ${status}: ${message}`, {
      status,
      reason,
      retryAfter: `${retryAfter}`,
    });
  }

  async #json(
    verb: string,
    path: string,
    options: RequestOptions,
    maxBytes?: number,
  ) {
    const { body } = await this.#send(verb, path, options);
    return parseJson(await readText(verb, body, maxBytes), `${verb}: the response`);
  }

  /**
   * Lists the selected Secrets page by page; a page that is too large is asked for again, smaller.
   * Yields its Secrets, and the resource version to watch from.
   */
  async *list(namespace: string | undefined, signal: AbortSignal) {
    let limit = PAGE_LIMIT;
    let next = "";
    for (;;) {
      try {
        const { items, metadata } = await this.#json(
          "list",
          secretsPath(namespace),
          {
            query: {
              labelSelector: this.#options.labelSelector,
              limit,
              ...next && { continue: next },
            },
            signal,
          },
          limit === 1 ? MAX_SECRET_BYTES : MAX_BODY_BYTES,
        ) ?? {};
        if (!Array.isArray(items) || !metadata?.resourceVersion) throw invalid("list: not a list");
        yield { items: items.map(asSecret), resourceVersion: metadata.resourceVersion };
        next = metadata.continue;
        if (!next) return;
        limit = Math.min(limit * 2, PAGE_LIMIT);
      } catch (error) {
        if (error.reason !== "BodyTooLarge" || limit === 1) throw error;
        limit = Math.ceil(limit / PAGE_SHRINK);
      }
    }
  }

  /** Watches the selected Secrets from a resource version on, until the API server ends it. */
  async *watch(
    namespace: string | undefined,
    resourceVersion: string,
    timeoutSeconds: number,
    signal: AbortSignal,
  ) {
    const { body } = await this.#send("watch", secretsPath(namespace), {
      query: {
        labelSelector: this.#options.labelSelector,
        resourceVersion,
        timeoutSeconds,
        watch: 1,
        allowWatchBookmarks: true,
      },
      bodyTimeout: (timeoutSeconds + WATCH_GRACE_S) * 1000,
      signal,
    });
    yield* parseWatch(body);
  }

  /** Reads one Secret. Throws an {@linkcode ApiError}, as all of these do. */
  async get(namespace: string, name: string, signal: AbortSignal) {
    return asSecret(await this.#json("get", secretsPath(namespace, name), { signal }));
  }

  /**
   * Applies a merge patch. With `uid` and `resourceVersion` in its metadata, a Secret that differs
   * is a 409. The response's body is drained, not read: only list and watch say what a Secret is.
   */
  async patch(namespace: string, name: string, patch: object, signal: AbortSignal) {
    const { body } = await this.#send("patch", secretsPath(namespace, name), {
      method: "PATCH",
      headers: {
        // Asks for the metadata only: less to encode.
        accept: "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json",
        "content-type": "application/merge-patch+json",
      },
      query: { fieldManager: "pull-secret-updater" },
      body: JSON.stringify(patch),
      signal,
    });
    await body.dump();
  }

  /** Creates an Event of events.k8s.io/v1. */
  async createEvent(namespace: string, event: object, signal: AbortSignal) {
    await this.#json("create", `/apis/events.k8s.io/v1/namespaces/${namespace}/events`, {
      method: "POST",
      body: JSON.stringify({ apiVersion: "events.k8s.io/v1", kind: "Event", ...event }),
      signal,
    });
  }

  /**
   * Requests a token of a service account (TokenRequest) for one audience, to live so many seconds.
   */
  async requestToken(
    namespace: string,
    account: string,
    audience: string,
    seconds: number,
    signal: AbortSignal,
  ) {
    const token = (await this.#json(
      "create",
      `/api/v1/namespaces/${namespace}/serviceaccounts/${account}/token`,
      {
        method: "POST",
        body: JSON.stringify({
          apiVersion: "authentication.k8s.io/v1",
          kind: "TokenRequest",
          spec: { audiences: [audience], expirationSeconds: seconds },
        }),
        signal,
      },
    ))?.status?.token;
    if (typeof token === "string") return token;
    throw invalid("create: the response has no token");
  }

  /** Ends all connections, and what is under way on them. */
  close() {
    return this.#agent.destroy();
  }
}

export const keyOf = ({ namespace, name }: { namespace: string; name: string }) =>
  `${namespace}/${name}`;

/**
 * One round of list and watch. Without a version it lists the selected Secrets: yields each, and
 * LISTED with the keys of all that there are. With one it watches from there until the API server
 * ends that. Any failure is thrown, and is to be followed by a list: whatever was wrong with the
 * version, be it compacted, refused or from before etcd was restored, is behind us then.
 */
export async function* listAndWatch(
  api: Pick<KubernetesApi, "list" | "watch">,
  namespace: string | undefined,
  version: string,
  random: () => number,
  signal: AbortSignal,
) {
  if (version !== "") {
    return yield* api.watch(
      namespace,
      version,
      WATCH_MIN_S + Math.floor(random() * WATCH_SPREAD_S),
      signal,
    );
  }
  const keys = new Set<string>();
  for await (const { items, resourceVersion } of api.list(namespace, signal)) {
    version = resourceVersion;
    for (const secret of items) {
      keys.add(keyOf(secret.metadata));
      yield { type: "ADDED", secret, resourceVersion } as const;
    }
  }
  yield { type: "LISTED", keys, resourceVersion: version } as const;
}

function parseJson(text: string, what: string) {
  try {
    return JSON.parse(text);
  } catch {
    throw invalid(`${what} is not JSON`);
  }
}

const invalid = (message: string) => new ApiError(message, { reason: "InvalidResponse" });

const noResponse = (verb: string, cause: NodeJS.ErrnoException) =>
  cause instanceof ApiError
    ? cause
    // If all addresses of a host fail, the error has only a code.
    : new ApiError(`${verb}: no response from the API server: ${cause.message || cause.code}`, {
      reason: cause.code,
    });

async function readText(
  verb: string,
  body: AsyncIterable<Uint8Array>,
  maxBytes = MAX_BODY_BYTES,
) {
  const chunks: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const chunk of body) {
      chunks.push(chunk);
      size += chunk.length;
      if (size > maxBytes) {
        throw new ApiError(`${verb}: the response is over ${maxBytes} bytes`, {
          reason: "BodyTooLarge",
        });
      }
    }
  } catch (cause) {
    throw noResponse(verb, cause);
  }
  return Buffer.concat(chunks).toString();
}

/** The fields of a Status, where the text is one. */
function parseStatus(text: string) {
  let status;
  try {
    status = JSON.parse(text);
  } catch {
    // A proxy in between may answer with HTML.
  }
  const { code, message, reason } = status ?? {};
  return {
    code,
    message: typeof message === "string" ? message : "not a response of the API server",
    reason,
  };
}

const secretsPath = (namespace?: string, name?: string) =>
  `/api/v1${namespace ? `/namespaces/${namespace}` : ""}/secrets${name ? `/${name}` : ""}`;

/** Names are judged here, as they become parts of paths: none can leave its segment. */
function asSecret(value: Partial<Secret> | null) {
  const { namespace, name, uid, resourceVersion } = value?.metadata ?? {};
  const isWhole = [namespace, name, uid, resourceVersion].every((field) =>
    typeof field === "string"
  );
  if (isWhole && /^[a-z0-9][-.a-z0-9]*[a-z0-9]$/.test(`${namespace}.${name}`)) {
    return value as Secret;
  }
  throw invalid("an object lacks the metadata of a Secret");
}

/**
 * Parses the body of a watch, one JSON object a line. A part of a line at the end is dropped.
 * Whatever else is not a record of a watch ends it with an {@linkcode ApiError}, as does an ERROR
 * record.
 */
export async function* parseWatch(body: AsyncIterable<Uint8Array>) {
  // undici's own decoding breaks characters that are split across chunks.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let rest = "";
  try {
    for await (const chunk of body) {
      const lines = decoder.decode(chunk, { stream: true }).split("\n");
      lines[0] = rest + lines[0];
      rest = lines.pop()!;
      if (rest.length > MAX_SECRET_BYTES) throw invalid("watch: a line is over 16 MiB");
      for (const line of lines) yield parseWatchEvent(line);
    }
  } catch (cause) {
    throw noResponse("watch", cause);
  }
}

function parseWatchEvent(line: string): WatchEvent {
  const { type, object } = parseJson(line, "watch: a line") ?? {};
  if (type === "ERROR") {
    const { code, message, reason } = parseStatus(JSON.stringify(object));
    throw new ApiError(`watch: the API server sent an error: ${message}`, {
      status: +code || undefined,
      reason,
    });
  }
  const { resourceVersion } = object?.metadata ?? {};
  if (typeof resourceVersion !== "string") throw invalid("watch: a record has no resource version");
  if (type === "BOOKMARK") return { type, resourceVersion };
  if (type !== "ADDED" && type !== "MODIFIED" && type !== "DELETED") {
    throw invalid("watch: a record is of no known type");
  }
  return { type, secret: asSecret(object), resourceVersion };
}
