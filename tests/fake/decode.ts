/** Reads JSON as the API server's decoder does, which is Go's. */
import { badRequest } from "./failure.ts";
import type { Resource } from "./resources.ts";
import type { KubeObject, ObjectMeta } from "./store.ts";
import { isRecord } from "../support/json.ts";

/** An object that Go's types cannot hold. */
export class DecodeError extends Error {
  override name = "DecodeError";
}

/** Fields of `metadata` in the order in which they are sent; managed fields are left out. */
const META_FIELDS = [
  "name",
  "generateName",
  "namespace",
  "uid",
  "resourceVersion",
  "creationTimestamp",
  "deletionTimestamp",
  "deletionGracePeriodSeconds",
  "labels",
  "annotations",
  "ownerReferences",
  "finalizers",
];

/** The JSON of a request's body. */
export function parse(kind: string, body: string): unknown {
  try {
    return JSON.parse(body);
  } catch (error) {
    throw unrecognized(kind, (error as Error).message);
  }
}

export function unrecognized(kind: string, why: string): Error {
  return badRequest(
    `the object provided is unrecognized (must be of type ${kind}): couldn't get version/kind; ` +
      `json parse error: ${why}`,
  );
}

/** Known fields only, in their order, maps sorted, empty ones left out, base64 checked. */
export function decode(resource: Resource, input: Record<string, unknown>): KubeObject {
  const { kind = resource.kind, apiVersion = resource.apiVersion } = input;
  if (kind !== resource.kind || apiVersion !== resource.apiVersion) {
    throw new DecodeError(`no kind "${kind}" is registered for version "${apiVersion}"`);
  }
  const metadata = decodeMeta(input.metadata ?? {});
  const fields = { ...input };
  if (resource.kind === "Secret") decodeSecret(fields);
  if (resource.kind === "Event") checkMicroTime(String(input.eventTime ?? ""));
  return { kind, apiVersion, metadata, ...pick(fields, resource.fields) };
}

function decodeMeta(metadata: unknown): ObjectMeta {
  if (!isRecord(metadata)) throw mistyped(metadata, "metadata", "v1.ObjectMeta");
  const labels = stringMap(metadata.labels, "ObjectMeta.metadata.labels");
  const annotations = stringMap(metadata.annotations, "ObjectMeta.metadata.annotations");
  return pick({ ...metadata, labels, annotations }, META_FIELDS) as unknown as ObjectMeta;
}

/** `stringData` goes into `data`, and base64 comes out as Go writes it. */
function decodeSecret(secret: Record<string, unknown>): void {
  const data = stringMap(secret.data, "Secret.data", "[]uint8");
  const strings = stringMap(secret.stringData, "Secret.stringData");
  secret.data = sorted({
    ...mapValues(data, (value) => decodeBase64(value).toString("base64")),
    ...mapValues(strings, (value) => Buffer.from(value).toString("base64")),
  });
  secret.type ||= "Opaque";
}

/** Go takes padded standard base64 and newlines in it, nothing else. */
function decodeBase64(value: string): Buffer {
  const text = value.replace(/[\r\n]/g, "");
  const wrong = /[^A-Za-z0-9+/=]|=[^=]/.exec(text);
  if (wrong || text.length % 4 !== 0) {
    const at = wrong?.index ?? text.length - text.length % 4;
    throw new DecodeError(`illegal base64 data at input byte ${at}`);
  }
  return Buffer.from(text, "base64");
}

/** Go's `MicroTime` has exactly six decimals. */
function checkMicroTime(time: string): void {
  if (/^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d))?$/.test(time)) return;
  throw new DecodeError(
    `parsing time "${time}" as "2006-01-02T15:04:05.000000Z07:00": cannot parse`,
  );
}

function stringMap(map: unknown, field: string, type = "string"): Record<string, string> {
  if (map === undefined || map === null) return {};
  if (!isRecord(map)) throw mistyped(map, field, `map[string]${type}`);
  return sorted(mapValues(map, (value) => {
    if (typeof value !== "string" && value !== null) throw mistyped(value, field, type);
    return value ?? "";
  }));
}

function mistyped(value: unknown, field: string, type: string): DecodeError {
  const kind = Array.isArray(value) ? "array" : typeof value;
  return new DecodeError(
    `json: cannot unmarshal ${kind} into Go struct field ${field} of type ${type}`,
  );
}

function pick(from: Record<string, unknown>, fields: string[]): Record<string, unknown> {
  const known = fields.map((field) => [field, from[field]] as const);
  return Object.fromEntries(known.filter(([, value]) => !isEmpty(value)));
}

function isEmpty(value: unknown): boolean {
  if (value === undefined || value === null || value === "") return true;
  return typeof value === "object" && Object.keys(value).length === 0;
}

function sorted<V>(map: Record<string, V>): Record<string, V> {
  return Object.fromEntries(Object.entries(map).sort(([a], [b]) => a < b ? -1 : 1));
}

function mapValues<V, W>(map: Record<string, V>, change: (value: V) => W): Record<string, W> {
  return Object.fromEntries(Object.entries(map).map(([key, value]) => [key, change(value)]));
}
