/**
 * A stand-in of kube-apiserver, in memory: Secrets, ServiceAccounts, Namespaces and events, with lists,
 * watches, merge-patches, preconditions and failures as the real one sends them. The contract suite
 * (`tests/contract`) holds it to that.
 *
 * Left out: managed fields, server-side apply and the other patch types, tables and protobuf, dry runs,
 * field selectors, `resourceVersionMatch` and `sendInitialEvents`, owners' garbage collection, the rules
 * for Secret types other than `kubernetes.io/dockerconfigjson`. A deleted namespace is gone at once.
 */
import { randomUUID } from "node:crypto";
import type { JSONWebKeySet } from "jose";
import { parse } from "./decode.ts";
import {
  ApiFailure,
  badRequest,
  conflict,
  expired,
  forbidden,
  internalError,
  invalid,
  methodNotAllowed,
  MODIFIED,
  noSuchResource,
  notFound,
  type Status,
  tooLarge,
  unauthorized,
  unsupportedMediaType,
} from "./failure.ts";
import type { LoggedRequest, Output } from "./injection.ts";
import { makeSigningKey, type SigningKey } from "./keys.ts";
import { bind, type Bound, Listener, type ListenOptions, type Reply } from "./listener.ts";
import { integer, ObjectStorage, timestamp } from "./storage.ts";
import {
  named,
  NAMESPACES,
  type Resource,
  RESOURCES,
  SECRETS,
  SERVICE_ACCOUNTS,
  wrong,
} from "./resources.ts";
import { parseSelector, type Selector } from "./selector.ts";
import type { Change, KubeObject, ObjectMeta } from "./store.ts";
import { isRecord } from "../support/json.ts";

export { errorEvent } from "./failure.ts";
export type { KubeObject, ObjectMeta, Status };

export interface ApiServerOptions extends ListenOptions {
  /**
   * Bearer tokens and whom they belong to; service-account tokens with the server's issuer as audience
   * are taken as well. Default: no authentication.
   */
  tokens?: Map<string, string>;
  /** Whether a request is allowed; a string forbids it and says why. Default: all are. */
  authorize?: (request: ApiRequest) => boolean | string;
  /** Issuer of service-account tokens. Default: the server's own URL. */
  issuer?: string;
  /** Milliseconds between bookmarks. Default 60,000, as the real one. */
  bookmarkInterval?: number;
}

/** A request to the API server, with what its path says. */
export interface ApiRequest extends LoggedRequest {
  /** Who asks, if there is authentication. */
  user: string;
  resource: string;
  group: string;
  subresource: string;
  namespace: string;
  name: string;
}

export interface Secret extends KubeObject {
  data?: Record<string, string>;
  type?: string;
  immutable?: boolean;
}

/** What a test writes to create a Secret; the server fills in the rest. */
export interface NewSecret {
  metadata: Partial<ObjectMeta> & { name: string };
  type?: string;
  data?: Record<string, string>;
  stringData?: Record<string, string>;
  immutable?: boolean;
}

const BODY_LIMIT = 3 * 1024 * 1024;
const MERGE_PATCH = "application/merge-patch+json";
const METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/** A bookmark comes this long before the end of a watch. */
const LAST_BOOKMARK_MS = 2_000;
const TOKEN_MIN_S = 600;
const TOKEN_MAX_S = 2 ** 32;

export async function startApiServer(options: ApiServerOptions = {}): Promise<ApiServer> {
  return new ApiServer(await bind(options), await makeSigningKey(), options);
}

export class ApiServer extends Listener<ApiRequest> {
  /** May be changed while it runs; unset: no authentication. */
  tokens: Map<string, string> | undefined;
  /** May be changed while it runs. */
  authorize: (request: ApiRequest) => boolean | string;
  /** How a watch learns that its resource version is too old: by an event or by the HTTP status. */
  expiredAs: "event" | "status" = "event";
  /** Issuer of the service-account tokens. */
  readonly issuer: string;
  #key: SigningKey;
  #storage: ObjectStorage;
  #bookmarkInterval: number;
  #watches = new Set<Output>();

  constructor(bound: Bound, key: SigningKey, options: ApiServerOptions) {
    super(bound);
    this.tokens = options.tokens;
    this.authorize = options.authorize ?? (() => true);
    this.issuer = options.issuer ?? this.url;
    this.#key = key;
    this.#storage = new ObjectStorage();
    this.#bookmarkInterval = options.bookmarkInterval ?? 60_000;
  }

  // What tests do without a request. The rules are the same, and a failure is thrown.

  createNamespace(name: string): void {
    if (this.#storage.store.get("namespaces", "", name)) return;
    this.#storage.create(NAMESPACES, "", { metadata: { name } });
  }

  /** Creates a service account, and its namespace if need be. */
  createServiceAccount(namespace: string, name: string): void {
    this.createNamespace(namespace);
    this.#storage.create(SERVICE_ACCOUNTS, namespace, { metadata: { name } });
  }

  /** Creates a Secret, and its namespace if need be. */
  createSecret(secret: NewSecret): Secret {
    const { namespace = "default" } = secret.metadata;
    this.createNamespace(namespace);
    return structuredClone(this.#storage.create(SECRETS, namespace, secret));
  }

  /** Merges a patch into a Secret: null deletes a field, `stringData` is welcome. */
  patchSecret(namespace: string, name: string, patch: object): Secret {
    return structuredClone(this.#storage.patch(SECRETS, namespace, name, patch));
  }

  deleteSecret(namespace: string, name: string): void {
    this.#storage.delete(SECRETS, namespace, name);
  }

  /** A copy of a stored Secret. */
  secret(namespace: string, name: string): Secret | undefined {
    return structuredClone(this.#storage.store.get("secrets", namespace, name));
  }

  secrets(namespace?: string): Secret[] {
    return structuredClone(this.#storage.store.list("secrets", namespace));
  }

  events(namespace?: string): KubeObject[] {
    return structuredClone(this.#storage.store.list("events", namespace));
  }

  /** Public keys of the service-account tokens. */
  get jwks(): JSONWebKeySet {
    return this.#key.jwks;
  }

  /** A service-account token, the account unchecked; with a negative life it has expired. */
  async serviceAccountToken(
    namespace: string,
    name: string,
    audiences: string | string[],
    seconds = 3600,
  ): Promise<string> {
    const now = Math.floor(Date.now() / 1000);
    // One that has expired was issued before that.
    const issuedAt = seconds < 0 ? now + seconds - TOKEN_MIN_S : now;
    const account = this.#storage.store.get("serviceaccounts", namespace, name);
    const serviceaccount = { name, uid: account?.metadata.uid };
    return await this.#key.sign({
      aud: [audiences].flat(),
      exp: now + seconds,
      iat: issuedAt,
      iss: this.issuer,
      jti: randomUUID(),
      "kubernetes.io": { namespace, serviceaccount },
      nbf: issuedAt,
      sub: `system:serviceaccount:${namespace}:${name}`,
    });
  }

  get resourceVersion(): string {
    return String(this.#storage.store.version);
  }

  /** Forgets the history: watches from before and `continue` get 410. */
  expire(): void {
    this.#storage.expire();
  }

  get openWatches(): number {
    return this.#watches.size;
  }

  /** Ends the open watches as their time-out does. */
  endWatches(): void {
    for (const watch of this.#watches) watch.end();
  }

  /** Cuts the connections of the open watches. */
  cutWatches(): void {
    for (const watch of this.#watches) watch.cut();
  }

  /** Sends a line to the open watches: a string as it is, an object as JSON. */
  sendToWatches(line: string | object): void {
    for (const watch of this.#watches) {
      watch.write(typeof line === "string" ? line : jsonLine(line));
    }
  }

  protected describe(request: LoggedRequest): ApiRequest {
    const [, root, ...rest] = request.path.split("/").map(decodePart);
    const group = root === "apis" ? rest.shift() ?? "" : "";
    rest.shift(); // the version
    const nested = rest[0] === "namespaces" && rest.length > 2;
    const namespace = nested ? rest[1]! : "";
    const [resource = "", name = "", subresource = ""] = nested ? rest.slice(2) : rest;
    const verbs: Record<string, string> = {
      GET: name ? "get" : isTrue(request.query.get("watch")) ? "watch" : "list",
      POST: "create",
      PUT: "update",
      PATCH: "patch",
      DELETE: name ? "delete" : "deletecollection",
    };
    const verb = verbs[request.method] ?? request.method.toLowerCase();
    return { ...request, verb, user: "", resource, group, subresource, namespace, name };
  }

  protected failure(status: number, request: ApiRequest): Pick<Reply, "body" | "headers"> {
    if (status === 429) {
      const headers = { "retry-after": "1" };
      return { headers, body: "Too many requests, please try again later.\n" };
    }
    const what = named({ plural: request.resource, group: request.group }, request.name);
    const failures: Record<number, () => ApiFailure> = {
      401: unauthorized,
      403: () => forbidden(what, denial(request)),
      404: () => notFound(what),
      409: () => conflict(what, MODIFIED),
      410: () => expired(`too old resource version: 1 (${this.resourceVersion})`),
      422: () => invalid(what, [wrong("metadata", "", "a fault was injected")]),
    };
    const failure = failures[status]?.() ?? internalError("a fault was injected");
    return { body: { ...failure.status, code: status } };
  }

  protected async answer(request: ApiRequest): Promise<Reply> {
    try {
      return await this.#route(request);
    } catch (error) {
      if (!(error instanceof ApiFailure)) throw error;
      return { status: error.code, body: error.status };
    }
  }

  async #route(request: ApiRequest): Promise<Reply> {
    const { path } = request;
    if (["/readyz", "/livez", "/healthz"].includes(path)) return { status: 200, body: "ok" };
    await this.#authenticate(request);
    if (path === "/openid/v1/jwks") {
      const headers = { "content-type": "application/jwk-set+json" };
      return { status: 200, headers, body: this.jwks };
    }
    if (path === "/.well-known/openid-configuration") return this.#discovery();
    const known = RESOURCES.filter(({ apiVersion, group }) =>
      path.startsWith(`/${group ? "apis" : "api"}/${apiVersion}/`)
    );
    if (known.length === 0) return { status: 404, body: "404 page not found\n" };
    const resource = known.find(({ plural }) => plural === request.resource);
    if (!resource) throw noSuchResource();
    const allowed = this.authorize(request);
    if (allowed !== true) {
      const why = allowed ? `: ${allowed}` : "";
      throw forbidden(named(resource, request.name), denial(request) + why);
    }
    if (Buffer.byteLength(request.body) > BODY_LIMIT) throw tooLarge(BODY_LIMIT);
    if (request.subresource) return this.#tokenRequest(resource, request);
    return this.#carryOut(resource, request);
  }

  async #authenticate(request: ApiRequest): Promise<void> {
    if (!this.tokens) return;
    const bearer = /^Bearer (.+)$/i.exec(request.headers.authorization ?? "")?.[1] ?? "";
    const user = this.tokens.get(bearer) ?? (await this.#key.verify(bearer, this.issuer))?.sub;
    if (user === undefined) throw unauthorized();
    request.user = user;
  }

  #carryOut(resource: Resource, request: ApiRequest): Reply {
    const { verb, namespace, name, query } = request;
    const everywhere = resource.namespaced && !namespace;
    switch (verb) {
      case "get":
        return { status: 200, body: this.#storage.get(resource, namespace, name) };
      case "list":
        checkFields(query);
        return { status: 200, body: this.#storage.list(resource, namespace, query) };
      case "watch":
        checkFields(query);
        return this.#watch(resource, namespace, query);
      case "create": {
        if (name || everywhere) throw methodNotAllowed();
        const body = readJson(resource, request);
        return { status: 201, body: this.#storage.create(resource, namespace, body) };
      }
      case "update": {
        if (!name) throw methodNotAllowed();
        const body = readJson(resource, request);
        return { status: 200, body: this.#storage.update(resource, namespace, name, body) };
      }
      case "patch": {
        if (!name) throw methodNotAllowed();
        const patch = readPatch(request);
        const body = this.#storage.patch(resource, namespace, name, patch);
        return { status: 200, body: asAskedFor(body, request) };
      }
      case "delete": {
        const options = request.body ? parse("DeleteOptions", request.body) : undefined;
        return { status: 200, body: this.#storage.delete(resource, namespace, name, options) };
      }
      case "deletecollection": {
        if (everywhere) throw methodNotAllowed();
        const list = this.#storage.list(resource, namespace, query);
        for (const { metadata } of list.items as KubeObject[]) {
          this.#storage.delete(resource, namespace, metadata.name);
        }
        return { status: 200, body: list };
      }
      default:
        throw methodNotAllowed();
    }
  }

  async #tokenRequest(resource: Resource, request: ApiRequest): Promise<Reply> {
    const { namespace, name, subresource, verb } = request;
    if (resource !== SERVICE_ACCOUNTS || subresource !== "token") throw noSuchResource();
    if (verb !== "create") throw methodNotAllowed();
    const { uid } = this.#storage.get(resource, namespace, name).metadata;
    const body = parse("TokenRequest", request.body);
    const spec = isRecord(body) && isRecord(body.spec) ? body.spec : {};
    const { audiences = [this.issuer], expirationSeconds: seconds = 3600 } = spec;
    if (!Array.isArray(audiences) || !Number.isInteger(seconds)) {
      throw badRequest(
        'TokenRequest in version "v1" cannot be handled as a TokenRequest: json: cannot unmarshal',
      );
    }
    checkLife(Number(seconds));
    const token = await this.serviceAccountToken(namespace, name, audiences, Number(seconds));
    const expirationTimestamp = timestamp(Date.now() + Number(seconds) * 1000);
    return {
      status: 201,
      body: {
        kind: "TokenRequest",
        apiVersion: "authentication.k8s.io/v1",
        metadata: { name, namespace, uid, creationTimestamp: timestamp() },
        spec: { audiences, expirationSeconds: seconds, boundObjectRef: null },
        status: { token, expirationTimestamp },
      },
    };
  }

  #discovery(): Reply {
    const body = {
      issuer: this.issuer,
      jwks_uri: `${this.url}/openid/v1/jwks`,
      response_types_supported: ["id_token"],
      subject_types_supported: ["public"],
      id_token_signing_alg_values_supported: ["RS256"],
    };
    return { status: 200, body };
  }

  #watch(resource: Resource, namespace: string, query: URLSearchParams): Reply {
    const select = parseSelector(query.get("labelSelector") ?? "");
    const seconds = integer(query.get("timeoutSeconds")) || 1800 * (1 + Math.random());
    const from = query.get("resourceVersion") || "0";
    if (!/^\d+$/.test(from)) {
      const message = `resourceVersion: Invalid value: "${from}": strconv.ParseUint: parsing ` +
        `"${from}": invalid syntax`;
      throw new ApiFailure(500, "", message);
    }
    const { store } = this.#storage;
    const past = from === "0" ? [] : store.since(Number(from));
    if (!past) return this.#expired(from);
    return {
      status: 200,
      stream: (output) => {
        const send = (change: Change) => {
          if (change.resource !== resource.plural || change.version <= Number(from)) return;
          const event = watchEvent(change, namespace, select);
          if (event) output.write(jsonLine(event));
        };
        if (from === "0") {
          const objects = store.list(resource.plural, namespace).filter(select);
          for (const object of objects) output.write(jsonLine({ type: "ADDED", object }));
        }
        past.forEach(send);
        const unsubscribe = store.subscribe(send);
        const wanted = isTrue(query.get("allowWatchBookmarks"));
        const stopBookmarks = wanted ? this.#bookmarks(resource, output, from, seconds) : () => {};
        const end = setTimeout(() => output.end(), seconds * 1000);
        this.#watches.add(output);
        output.onClose(() => {
          unsubscribe();
          stopBookmarks();
          clearTimeout(end);
          this.#watches.delete(output);
        });
      },
    };
  }

  /** Sends a bookmark each interval, and one shortly before the end; returns how to stop. */
  #bookmarks(resource: Resource, output: Output, from: string, seconds: number): () => void {
    const { kind, apiVersion } = resource;
    const send = () => {
      const { resourceVersion } = this;
      if (Number(resourceVersion) < Number(from)) return;
      const object = { kind, apiVersion, metadata: { resourceVersion } };
      output.write(jsonLine({ type: "BOOKMARK", object }));
    };
    const interval = setInterval(send, this.#bookmarkInterval);
    const lastIn = seconds * 1000 - LAST_BOOKMARK_MS;
    const last = lastIn > 0 ? setTimeout(send, lastIn) : undefined;
    return () => {
      clearInterval(interval);
      clearTimeout(last);
    };
  }

  #expired(version: string): Reply {
    const failure = expired(
      `too old resource version: ${version} (${this.#storage.store.oldest})`,
    );
    if (this.expiredAs === "status") throw failure;
    const stream = (output: Output) => {
      output.write(jsonLine({ type: "ERROR", object: failure.status }));
      output.end();
    };
    return { status: 200, stream };
  }
}

/** A watch sees an object that leaves its selector as deleted, with its last state inside. */
function watchEvent(
  { object, previous, version }: Change,
  namespace: string,
  select: Selector,
): object | undefined {
  const seen = (known: KubeObject) =>
    (!namespace || known.metadata.namespace === namespace) && select(known);
  const before = previous && seen(previous);
  if (object && seen(object)) return { type: before ? "MODIFIED" : "ADDED", object };
  if (!before) return undefined;
  const metadata = { ...previous.metadata, resourceVersion: String(version) };
  return { type: "DELETED", object: { ...previous, metadata } };
}

function denial({ user, verb, resource, subresource, group, namespace }: ApiRequest): string {
  const what = subresource ? `${resource}/${subresource}` : resource;
  const where = namespace ? `in the namespace "${namespace}"` : "at the cluster scope";
  return `User "${user}" cannot ${verb} resource "${what}" in API group "${group}" ${where}`;
}

/** One part of a path; one that is not encoded well stays as it is. */
function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function readJson({ kind }: Resource, { headers, body }: ApiRequest): unknown {
  const type = headers["content-type"] ?? "application/json";
  if (!type.startsWith("application/json")) {
    throw unsupportedMediaType(
      "the body of the request was in an unknown format - accepted media types include: " +
        "application/json, application/yaml, application/vnd.kubernetes.protobuf",
    );
  }
  return parse(kind, body);
}

/** An object, or its metadata alone. */
function asAskedFor(object: KubeObject, { headers }: ApiRequest): object {
  if (!headers.accept?.startsWith(METADATA_ONLY)) return object;
  const { metadata } = object;
  return { kind: "PartialObjectMetadata", apiVersion: "meta.k8s.io/v1", metadata };
}

function readPatch({ headers, body }: ApiRequest): unknown {
  const type = headers["content-type"]?.split(";")[0];
  if (type !== MERGE_PATCH) throw unsupportedMediaType("415: Unsupported Media Type", {});
  try {
    return JSON.parse(body);
  } catch (error) {
    throw badRequest(`error decoding patch: ${(error as Error).message}`);
  }
}

function checkFields(query: URLSearchParams): void {
  if (query.has("fieldSelector")) throw badRequest("the stand-in has no field selectors");
}

function checkLife(seconds: number): void {
  const rule = seconds < TOKEN_MIN_S
    ? "may not specify a duration less than 10 minutes"
    : seconds > TOKEN_MAX_S
    ? "may not specify a duration larger than 2^32 seconds"
    : undefined;
  if (!rule) return;
  const what = { group: "authentication.k8s.io", kind: "TokenRequest" };
  throw invalid(what, [wrong("spec.expirationSeconds", seconds, rule)]);
}

function isTrue(value: string | null): boolean {
  return value === "true" || value === "1";
}

function jsonLine(value: object): string {
  return `${JSON.stringify(value)}\n`;
}
