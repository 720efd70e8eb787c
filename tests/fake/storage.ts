/** What can be done to stored objects, with the real server's checks and preconditions. */
import { randomUUID } from "node:crypto";
import { decode, DecodeError, unrecognized } from "./decode.ts";
import {
  alreadyExists,
  ApiFailure,
  badRequest,
  conflict,
  expired,
  invalid,
  MODIFIED,
  notFound,
  type Status,
  tooLargeVersion,
} from "./failure.ts";
import { named, NAMESPACES, type Resource, RESOURCES, validateMeta, wrong } from "./resources.ts";
import { parseSelector } from "./selector.ts";
import { type KubeObject, type ObjectMeta, Store } from "./store.ts";
import { isRecord } from "../support/json.ts";

/** How many first pages are kept for `continue`. */
const SNAPSHOTS = 100;

export class ObjectStorage {
  readonly store: Store;
  #snapshots = new Map<string, KubeObject[]>();

  constructor() {
    this.store = new Store();
    for (const name of ["default", "kube-system", "kube-public", "kube-node-lease"]) {
      this.create(NAMESPACES, "", { metadata: { name } });
    }
    this.store.forget();
  }

  get({ plural, group }: Resource, namespace: string, name: string): KubeObject {
    const object = this.store.get(plural, namespace, name);
    if (!object) throw notFound(named({ plural, group }, name));
    return object;
  }

  create(resource: Resource, namespace: string, input: unknown): KubeObject {
    const object = decoded(resource, input);
    const { metadata } = object;
    checkNamespace(metadata, namespace);
    if (metadata.resourceVersion) {
      throw new ApiFailure(500, "", "resourceVersion should not be set on objects to be created");
    }
    const { generateName } = metadata;
    const name = metadata.name ?? (generateName ? generateName + randomUUID().slice(-5) : "");
    object.metadata = {
      name,
      ...generateName && { generateName },
      ...resource.namespaced && { namespace },
      uid: randomUUID(),
      resourceVersion: "",
      creationTimestamp: timestamp(),
      ...writable(metadata),
    };
    if (resource === NAMESPACES) completeNamespace(object);
    if (resource.namespaced) this.get(NAMESPACES, "", namespace);
    validate(resource, object);
    if (this.store.get(resource.plural, namespace, name)) {
      throw alreadyExists(named(resource, name));
    }
    return this.store.put(resource.plural, object);
  }

  /** PUT: a wrong UID is a conflict, and no resource version means an unconditional update. */
  update(resource: Resource, namespace: string, name: string, input: unknown): KubeObject {
    const object = decoded(resource, input);
    checkName(object.metadata, namespace, name);
    const old = this.get(resource, namespace, name);
    const { uid = old.metadata.uid } = object.metadata;
    if (uid !== old.metadata.uid) {
      throw conflict(named(resource, name), `Precondition failed: the UID is not ${uid}`);
    }
    return this.#write(resource, object, old);
  }

  /** Merge-patch: a wrong resource version is a conflict, a wrong UID alone an invalid change. */
  patch(resource: Resource, namespace: string, name: string, patch: unknown): KubeObject {
    if (patch === null) throw badRequest("Invalid JSON Patch");
    if (!isRecord(patch)) {
      const type = Array.isArray(patch) ? "array" : typeof patch;
      throw badRequest(
        `error decoding patch: json: cannot unmarshal ${type} into Go value of type ` +
          "map[string]interface {}",
      );
    }
    const old = this.get(resource, namespace, name);
    const merged = mergePatch(old, patch) as Record<string, unknown>;
    let object: KubeObject;
    try {
      object = decode(resource, merged);
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      const cause = wrong("patch", JSON.stringify(merged), error.message);
      throw invalid({ kind: "" }, [cause]);
    }
    checkName(object.metadata, namespace, name);
    return this.#write(resource, object, old);
  }

  /** Removes an object, or marks it as being deleted while it has finalizers. */
  delete(resource: Resource, namespace: string, name: string, options?: unknown): object {
    const object = this.get(resource, namespace, name);
    const { uid, finalizers, deletionTimestamp } = object.metadata;
    checkPreconditions(resource, object, options);
    if (finalizers) {
      if (deletionTimestamp) return object;
      const marks = { deletionTimestamp: timestamp(), deletionGracePeriodSeconds: 0 };
      const metadata = { ...system(object.metadata), ...marks, ...writable(object.metadata) };
      return this.store.put(resource.plural, { ...object, metadata });
    }
    if (resource === NAMESPACES) this.#empty(name);
    this.store.delete(resource.plural, namespace, name);
    const details = { ...named(resource, name), uid };
    return { kind: "Status", apiVersion: "v1", metadata: {}, status: "Success", details } as Status;
  }

  /** One page, or all. */
  list(resource: Resource, namespace: string, query: URLSearchParams): Record<string, unknown> {
    const limit = integer(query.get("limit"));
    const token = query.get("continue");
    const selector = query.get("labelSelector") ?? "";
    const select = parseSelector(selector);
    const asked = this.#checkVersion(query);
    if (token && asked) {
      throw badRequest("specifying resource version is not allowed when using continue");
    }
    const from = token ? readContinue(token) : { version: this.store.version, start: "" };
    const id = [from.version, resource.plural, namespace, selector].join(" ");
    const known = token && from.version > 0
      ? this.#snapshots.get(id)
      : this.store.list(resource.plural, namespace).filter(select);
    if (!known) throw expiredContinue(from.start);
    const version = from.version > 0 ? from.version : this.store.version;
    const rest = known.filter((object) => keyOf(object) >= from.start);
    const items = limit > 0 && asked !== "0" ? rest.slice(0, limit) : rest;
    const left = rest.length - items.length;
    if (left > 0) this.#keep(id, known);
    return {
      kind: `${resource.kind}List`,
      apiVersion: resource.apiVersion,
      metadata: {
        resourceVersion: String(version),
        ...left > 0 && { continue: writeContinue(version, `${keyOf(items.at(-1)!)}\0`) },
        ...left > 0 && !selector && { remainingItemCount: left },
      },
      items: items.map(({ kind: _kind, apiVersion: _apiVersion, ...item }) => item),
    };
  }

  /** Forgets the history that watches replay and the pages that `continue` names. */
  expire(): void {
    this.store.forget();
    this.#snapshots.clear();
  }

  #write(resource: Resource, object: KubeObject, old: KubeObject): KubeObject {
    const { uid = old.metadata.uid, resourceVersion: version } = object.metadata;
    if (version && !/^\d+$/.test(version)) {
      throw new ApiFailure(500, "", `strconv.ParseUint: parsing "${version}": invalid syntax`);
    }
    if (version && version !== old.metadata.resourceVersion) {
      throw conflict(named(resource, old.metadata.name), MODIFIED);
    }
    object.metadata = { ...system(old.metadata), uid, ...writable(object.metadata) };
    validate(resource, object, old);
    if (JSON.stringify(object) === JSON.stringify(old)) return old;
    const { namespace = "", name, deletionTimestamp, finalizers } = object.metadata;
    if (!deletionTimestamp || finalizers) return this.store.put(resource.plural, object);
    this.store.delete(resource.plural, namespace, name);
    return object;
  }

  /** The resource version of a list, which may not lie in the future. */
  #checkVersion(query: URLSearchParams): string | undefined {
    const version = query.get("resourceVersion");
    if (!version) return undefined;
    if (!/^\d+$/.test(version)) {
      throw badRequest(`invalid resource version: "${version}": invalid syntax`);
    }
    if (Number(version) > this.store.version) {
      throw tooLargeVersion(version, this.store.version);
    }
    return version;
  }

  #keep(id: string, snapshot: KubeObject[]): void {
    this.#snapshots.set(id, snapshot);
    if (this.#snapshots.size <= SNAPSHOTS) return;
    this.#snapshots.delete(this.#snapshots.keys().next().value!);
  }

  /** Removes all that a namespace holds; the real server leaves that to a controller. */
  #empty(namespace: string): void {
    for (const { plural } of RESOURCES.filter(({ namespaced }) => namespaced)) {
      for (const { metadata } of this.store.list(plural, namespace)) {
        this.store.delete(plural, namespace, metadata.name);
      }
    }
  }
}

/** RFC 7386. */
function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isRecord(patch)) return patch;
  const merged = new Map(Object.entries(isRecord(target) ? target : {}));
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) merged.delete(key);
    else merged.set(key, mergePatch(merged.get(key), value));
  }
  return Object.fromEntries(merged);
}

/** The metadata that writers decide. */
const WRITABLE = ["labels", "annotations", "ownerReferences", "finalizers"] as const;

function writable(metadata: ObjectMeta): Partial<ObjectMeta> {
  const fields = WRITABLE.filter((field) => metadata[field] !== undefined);
  return Object.fromEntries(fields.map((field) => [field, metadata[field]]));
}

/** The metadata that the server decides. */
function system(metadata: ObjectMeta): ObjectMeta {
  const rest = { ...metadata };
  for (const field of WRITABLE) delete rest[field];
  return rest;
}

function decoded(resource: Resource, input: unknown): KubeObject {
  if (!isRecord(input)) {
    const type = Array.isArray(input) ? "array" : typeof input;
    throw unrecognized(resource.kind, `json: cannot unmarshal ${type} into Go value`);
  }
  try {
    return decode(resource, input);
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    const { kind = resource.kind, apiVersion = resource.apiVersion } = input;
    const version = String(apiVersion).split("/").at(-1);
    throw badRequest(
      `${kind} in version "${version}" cannot be handled as a ${resource.kind}: ${error.message}`,
    );
  }
}

function checkNamespace(metadata: ObjectMeta, namespace: string): void {
  if (!metadata.namespace || metadata.namespace === namespace) return;
  throw badRequest(
    "the namespace of the provided object does not match the namespace sent on the request",
  );
}

function checkName(metadata: ObjectMeta, namespace: string, name: string): void {
  if (metadata.name !== name) {
    throw badRequest(
      `the name of the object (${metadata.name}) does not match the name on the URL (${name})`,
    );
  }
  checkNamespace(metadata, namespace);
}

function checkPreconditions(resource: Resource, { metadata }: KubeObject, options: unknown): void {
  if (!isRecord(options) || !isRecord(options.preconditions)) return;
  for (const field of ["uid", "resourceVersion"] as const) {
    const wanted = options.preconditions[field];
    if (!wanted || wanted === metadata[field]) continue;
    const message = `the ${field} in the precondition (${wanted}) is not ${metadata[field]}`;
    throw conflict({ name: metadata.name, kind: resource.kind }, message);
  }
}

function validate(resource: Resource, object: KubeObject, old?: KubeObject): void {
  const causes = [...validateMeta(object, old), ...resource.validate(object, old)];
  if (causes.length === 0) return;
  throw invalid({ name: object.metadata.name, kind: resource.kind }, causes);
}

function completeNamespace(namespace: KubeObject): void {
  const { metadata } = namespace;
  metadata.labels = { ...metadata.labels, "kubernetes.io/metadata.name": metadata.name };
  namespace.spec = { finalizers: ["kubernetes"] };
  namespace.status = { phase: "Active" };
}

/** An object's key in etcd, after the resource's prefix. */
function keyOf({ metadata: { namespace = "", name } }: KubeObject): string {
  return `${namespace}/${name}`;
}

function readContinue(token: string): { version: number; start: string } {
  try {
    const { rv, start } = JSON.parse(Buffer.from(token, "base64url").toString());
    return { version: Number(rv), start: String(start) };
  } catch (error) {
    const message = (error as Error).message;
    throw badRequest(`invalid continue token: continue key is not valid: ${message}`);
  }
}

function writeContinue(rv: number, start: string): string {
  return Buffer.from(JSON.stringify({ v: "meta.k8s.io/v1", rv, start })).toString("base64url");
}

/** The failure bears a token with which the rest can be had, inconsistent with the first pages. */
function expiredContinue(start: string): ApiFailure {
  const failure = expired(
    "The provided continue parameter is too old to display a consistent list result.",
  );
  failure.status.metadata.continue = writeContinue(-1, start);
  return failure;
}

/** A query parameter that must be a number if it is there. */
export function integer(text: string | null): number {
  if (text !== null && !/^-?\d*$/.test(text)) {
    throw badRequest(`strconv.ParseInt: parsing "${text}": invalid syntax`);
  }
  return Number(text);
}

export function timestamp(ms = Date.now()): string {
  return new Date(ms).toISOString().replace(/\.\d+Z$/, "Z");
}
