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

export const EVENTS: Resource = {
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

const SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const LABEL = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;
const QUALIFIED_NAME = /^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$/;
const ANNOTATIONS_LIMIT = 256 * 1024;
const SECRET_LIMIT = 1024 * 1024;

const SUBDOMAIN_RULE =
  "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', " +
  "and must start and end with an alphanumeric character (e.g. 'example.com', regex used for " +
  "validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_RULE =
  "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must " +
  "start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for " +
  "validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE_RULE =
  "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', " +
  "and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or " +
  "'12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED_NAME_RULE =
  "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an " +
  "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation " +
  "is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const CONFIG_KEY_RULE =
  "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  " +
  "or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/** The rules of `metadata`, common to all resources. */
export function validateMeta({ kind, metadata }: KubeObject, old?: KubeObject): Cause[] {
  const { name, generateName, uid, labels = {}, annotations = {} } = metadata;
  const causes: Cause[] = [];
  const [pattern, rule, limit] = kind === "Namespace"
    ? [LABEL, LABEL_RULE, 63]
    : [SUBDOMAIN, SUBDOMAIN_RULE, 253];
  if (!name) return [required("metadata.name", "name or generateName is required")];
  if (generateName && !pattern.test(generateName.replace(/-$/, "a"))) {
    causes.push(wrong("metadata.generateName", generateName, rule));
  } else if (!pattern.test(name)) {
    causes.push(wrong("metadata.name", name, rule));
  }
  if (name.length > limit) {
    causes.push(wrong("metadata.name", name, `must be no more than ${limit} characters`));
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
    if (value.length > 63) {
      causes.push(wrong("metadata.labels", value, "must be no more than 63 bytes"));
    }
    if (value && !QUALIFIED_NAME.test(value)) {
      causes.push(wrong("metadata.labels", value, LABEL_VALUE_RULE));
    }
  }
  return causes;
}

/** The key of a label or an annotation: a name, or a domain, a slash and a name. */
function validateKey(field: string, key: string): Cause[] {
  const [prefix, name, ...rest] = key.includes("/") ? key.split("/") : [undefined, key];
  if (rest.length > 0 || name === undefined) {
    return [wrong(
      field,
      key,
      `a valid label key ${QUALIFIED_NAME_RULE} with an optional DNS ` +
        "subdomain prefix and '/' (e.g. 'example.com/MyName')",
    )];
  }
  const rules: string[] = [];
  if (prefix === "") rules.push("prefix part must be non-empty");
  else if (prefix && !SUBDOMAIN.test(prefix)) rules.push(`prefix part ${SUBDOMAIN_RULE}`);
  if (name === "") rules.push("name part must be non-empty");
  if (name.length > 63) rules.push("name part must be no more than 63 bytes");
  if (!QUALIFIED_NAME.test(name)) rules.push(`name part ${QUALIFIED_NAME_RULE}`);
  return rules.map((rule) => wrong(field, key, rule));
}

function validateSecret(secret: KubeObject, old?: KubeObject): Cause[] {
  const data = (secret.data ?? {}) as Record<string, string>;
  const causes = Object.keys(data).flatMap(validateConfigKey);
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

function validateConfigKey(key: string): Cause[] {
  const field = `data[${key}]`;
  if (key.length > 253) return [wrong(field, key, "must be no more than 253 characters")];
  if (!/^[-._a-zA-Z0-9]+$/.test(key)) return [wrong(field, key, CONFIG_KEY_RULE)];
  if (key === "." || key === "..") return [wrong(field, key, `must not be '${key}'`)];
  if (key.startsWith("..")) return [wrong(field, key, "must not start with '..'")];
  return [];
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
