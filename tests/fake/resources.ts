/** The resources that the stand-in serves, and the rules by which the real server judges objects. */
import type { Cause, Named } from "./failure.ts";
import type { KubeObject } from "./store.ts";
import { DATA_KEY, SECRET_TYPE } from "../support/names.ts";
import { isRecord } from "../support/json.ts";

export interface Resource {
  plural: string;
  kind: string;
  group: string;
  /** As objects carry it: `v1`, `events.k8s.io/v1`. */
  apiVersion: string;
  namespaced: boolean;
  /** Fields beside `kind`, `apiVersion` and `metadata`, in the order in which they are sent. */
  fields: string[];
  /** What is wrong with an object, its predecessor given on updates. */
  validate: (object: KubeObject, old?: KubeObject) => Cause[];
}

export const SECRETS: Resource = {
  plural: "secrets",
  kind: "Secret",
  group: "",
  apiVersion: "v1",
  namespaced: true,
  fields: ["immutable", "data", "type"],
  validate: validateSecret,
};

export const SERVICE_ACCOUNTS: Resource = {
  plural: "serviceaccounts",
  kind: "ServiceAccount",
  group: "",
  apiVersion: "v1",
  namespaced: true,
  fields: ["secrets", "imagePullSecrets", "automountServiceAccountToken"],
  validate: () => [],
};

export const NAMESPACES: Resource = {
  plural: "namespaces",
  kind: "Namespace",
  group: "",
  apiVersion: "v1",
  namespaced: false,
  fields: ["spec", "status"],
  validate: () => [],
};

const EVENTS: Resource = {
  plural: "events",
  kind: "Event",
  group: "events.k8s.io",
  apiVersion: "events.k8s.io/v1",
  namespaced: true,
  fields: [
    "eventTime",
    "series",
    "reportingController",
    "reportingInstance",
    "action",
    "reason",
    "regarding",
    "related",
    "note",
    "type",
    "deprecatedSource",
    "deprecatedFirstTimestamp",
    "deprecatedLastTimestamp",
    "deprecatedCount",
  ],
  validate: validateEvent,
};

export const RESOURCES: Resource[] = [SECRETS, SERVICE_ACCOUNTS, NAMESPACES, EVENTS];

/** How failures name an object, or all of a resource. */
export function named({ plural, group }: Pick<Resource, "plural" | "group">, name = ""): Named {
  return { ...name && { name }, ...group && { group }, kind: plural };
}

const LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN = String.raw`${LABEL}(\.${LABEL})*`;
const QUALIFIED_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?";
const isNamespaceName = new RegExp(`^${LABEL}$`);
const isName = new RegExp(`^${SUBDOMAIN}$`);
/** The key of a label or an annotation: a name, or a domain, a slash and a name. */
const isKey = new RegExp(`^(${SUBDOMAIN}/)?${QUALIFIED_NAME}$`);
const isLabelValue = new RegExp(`^(${QUALIFIED_NAME})?$`);
const isConfigKey = /^(?!\.\.|\.$)[-._a-zA-Z0-9]{1,253}$/;
const ANNOTATIONS_LIMIT = 256 * 1024;
const SECRET_LIMIT = 1024 * 1024;

/** The rules of `metadata`, common to all resources. */
export function validateMeta({ kind, metadata }: KubeObject, old?: KubeObject): Cause[] {
  const { name, generateName, uid, labels = {}, annotations = {} } = metadata;
  const causes: Cause[] = [];
  const [pattern, limit] = kind === "Namespace" ? [isNamespaceName, 63] : [isName, 253];
  if (!name) return [required("metadata.name", "name or generateName is required")];
  if (generateName && !pattern.test(generateName.replace(/-$/, "a"))) {
    causes.push(wrong("metadata.generateName", generateName, "must begin a name"));
  } else if (!pattern.test(name) || name.length > limit) {
    causes.push(wrong("metadata.name", name, "must be a lowercase RFC 1123 name"));
  }
  if (old && uid !== old.metadata.uid) {
    causes.push(wrong("metadata.uid", uid, "field is immutable"));
  }
  for (const key of Object.keys(annotations)) {
    causes.push(...validateKey("metadata.annotations", key.toLowerCase()));
  }
  const sizes = Object.entries(annotations).map(([key, value]) => Buffer.byteLength(key + value));
  if (sum(sizes) > ANNOTATIONS_LIMIT) {
    causes.push(tooLong("metadata.annotations", ANNOTATIONS_LIMIT));
  }
  for (const [key, value] of Object.entries(labels)) {
    causes.push(...validateKey("metadata.labels", key));
    if (!isLabelValue.test(value)) {
      causes.push(wrong("metadata.labels", value, "must be a valid label value"));
    }
  }
  return causes;
}

const validateKey = (field: string, key: string): Cause[] =>
  isKey.test(key) ? [] : [wrong(field, key, "must be a qualified name")];

function validateSecret(secret: KubeObject, old?: KubeObject): Cause[] {
  const data = (secret.data ?? {}) as Record<string, string>;
  const causes = Object.keys(data).filter((key) => !isConfigKey.test(key)).map((key) =>
    wrong(`data[${key}]`, key, "must be a valid config key")
  );
  if (old && old.type !== secret.type) {
    causes.push(wrong("type", secret.type, "field is immutable"));
  }
  if (old?.immutable === true) {
    if (secret.immutable !== true) causes.push(frozen("immutable"));
    if (JSON.stringify(old.data) !== JSON.stringify(secret.data)) causes.push(frozen("data"));
  }
  const sizes = Object.values(data).map((value) => Buffer.from(value, "base64").length);
  if (sum(sizes) > SECRET_LIMIT) causes.push(tooLong("data", SECRET_LIMIT));
  if (secret.type === SECRET_TYPE) {
    causes.push(...validateDockerConfig(`data[${DATA_KEY}]`, data[DATA_KEY]));
  }
  return causes;
}

/** A JSON object or, since Go reads it into a map, `null`. */
function validateDockerConfig(field: string, base64?: string): Cause[] {
  if (base64 === undefined) return [required(field)];
  try {
    const config: unknown = JSON.parse(Buffer.from(base64, "base64").toString());
    if (config === null || isRecord(config)) return [];
    const kind = Array.isArray(config) ? "array" : typeof config;
    throw new Error(`json: cannot unmarshal ${kind} into Go value of type map[string]interface {}`);
  } catch (error) {
    return [wrong(field, "<secret contents redacted>", (error as Error).message)];
  }
}

/** An event without `eventTime` counts as one of the old style, which is judged less. */
function validateEvent(event: KubeObject): Cause[] {
  const { regarding, eventTime, type = "", note, reportingController = "" } = event;
  const causes: Cause[] = [];
  const namespace = isRecord(regarding) ? regarding.namespace ?? "" : "";
  if (namespace === "" && event.metadata.namespace !== "default") {
    causes.push(wrong("involvedObject.namespace", "", "does not match event.namespace"));
  }
  if (!eventTime) {
    causes.push(required("eventTime"));
  } else {
    if (!reportingController) causes.push(required("reportingController"));
    causes.push(...validateKey("reportingController", String(reportingController)));
    for (const field of ["reportingInstance", "action", "reason"]) {
      const value = String(event[field] ?? "");
      if (!value) causes.push(required(field));
      if (value.length > 128) causes.push(wrong(field, "", "can have at most 128 characters"));
    }
    if (Buffer.byteLength(String(note ?? "")) > 1024) {
      causes.push(wrong("message", "", "can have at most 1024 characters"));
    }
  }
  if (type !== "Normal" && type !== "Warning") {
    causes.push(wrong("type", "", `has invalid value: ${type}`));
  }
  if (isRecord(event.series) && Number(event.series.count ?? 0) < 2) {
    causes.push(wrong("series.count", "", "should be at least 2"));
  }
  for (const field of ["Source", "FirstTimestamp", "LastTimestamp", "Count"]) {
    if (!event[`deprecated${field}`]) continue;
    const name = field[0]!.toLowerCase() + field.slice(1);
    causes.push(wrong(name, "", "needs to be unset"));
  }
  return causes;
}

function required(field: string, detail?: string): Cause {
  const message = detail ? `Required value: ${detail}` : "Required value";
  return { reason: "FieldValueRequired", message, field };
}

export function wrong(field: string, value: unknown, rule: string): Cause {
  const message = `Invalid value: ${JSON.stringify(value)}: ${rule}`;
  return { reason: "FieldValueInvalid", message, field };
}

function tooLong(field: string, limit: number): Cause {
  const message = `Too long: may not be more than ${limit} bytes`;
  return { reason: "FieldValueTooLong", message, field };
}

function frozen(field: string): Cause {
  const message = "Forbidden: field is immutable when `immutable` is set";
  return { reason: "FieldValueForbidden", message, field };
}

function sum(numbers: number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
