/** What the steps of policies.ts stand on: tenants and their Secrets, users and their acts, and the words of a refusal. */
import { expect, type Kubectl, refused } from "./context.ts";
import {
  ACCOUNT,
  API_GROUP,
  CONTROLLER,
  IDENTITY,
  NAMESPACE,
  REFRESH,
  SERVICE_ACCOUNT,
  TOKEN_IDENTITY,
} from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { base64, pullSecret } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

/** Two tenants; the users that follow may write Secrets in both. */
export const TEAM = "policies-team";
export const OTHER = "policies-other";
/** Bound nowhere, so that a controller that runs meanwhile gets no token for it, and writes nothing. */
export const UID = `${"0a".repeat(20)}/${"1b".repeat(8)}`;
export const OTHER_UID = `${"0c".repeat(20)}/${"1d".repeat(8)}`;
/** As label, and as the name that Roles give it. */
export const NAME = UID.replace("/", ".");
export const OTHER_NAME = OTHER_UID.replace("/", ".");
export const GITOPS = `system:serviceaccount:${TEAM}:gitops`;
export const DOCKER_CONFIG = base64('{"auths":{"cgr.dev":{"auth":"X3Rva2VuOng="}}}');

/** The limits of a labelled Secret. */
export const MAX = {
  keys: 16,
  valueBytes: 96 * 1024,
  labels: 100,
  /** Ours are not counted. */
  annotations: 100,
  /** Of an annotation of ours. */
  chars: 300,
  typeChars: 253,
  owners: 16,
  finalizers: 16,
  managers: 32,
  managersBytes: 64 * 1024,
};

// ───── The words of a refusal ─────

/** They may depend on who is refused. */
type Words = RegExp | ((user: string) => RegExp);

const literally = (text: string) => new RegExp(RegExp.escape(text) + "($|\\s)");

/** What is said to whom a right is missing: the rule of the Role to ask for. */
export const needsUse = (name = NAME, namespace = TEAM) => (user: string) =>
  literally(
    `${user} needs a Role: apiGroup ${API_GROUP}, resource identities, verb use, resourceName ${name}, namespace ${namespace}`,
  );
export const needsAccount = (account = "puller") => (user: string) =>
  literally(
    `${user} needs a Role: verb create, resource serviceaccounts/token, resourceName ${account}, namespace ${TEAM}`,
  );
/** What is said where label and annotation differ: what both say, and what to type. */
export const differ = (name: string, label = NAME, annotation = OTHER_UID) =>
  literally(
    `the label ${IDENTITY} says ${label}, the annotation ${annotation}: put the same into both, ` +
      `with . for / in the label; if the label is right: kubectl annotate secret ${name} ` +
      `--namespace ${TEAM} ${IDENTITY}-`,
  );
export const SAYS = {
  noRight: /cannot \w+ resource/,
  otherSecret: /pull-secret-updater-controller.*the controller writes labelled pull Secrets only/,
  otherKey: /pull-secret-updater-controller.*the controller writes \.dockerconfigjson only/,
  otherAnnotation: /pull-secret-updater-controller.*the controller writes its own annotations only/,
  otherToken: /pull-secret-updater-tokens.*tokens for the issuer only, for an hour at most/,
  otherManager:
    /pull-secret-updater-controller.*the controller leaves the managedFields of others alone/,
  tooMuch: /pull-secret-updater-controller.*at most 96 KiB of .* 30\d characters of an annotation/,
  badAccount:
    /pull-secret-updater-identity.*service-account must be the name of a service account of this name/,
  notApplied:
    /pull-secret-updater-identity.*service-account is changed by an apply that does not name the identity/,
  tooLarge: /pull-secret-updater-identity.*at most 16 keys of at most 96 KiB/,
  tooMany: /pull-secret-updater-identity.*at most 100 labels and 100 annotations/,
  tooLong: /pull-secret-updater-identity.*has at most 300 characters/,
  longType: /pull-secret-updater-identity.*type of .* at most 253 characters/,
  tooManyOwners: /pull-secret-updater-identity.*at most 16 ownerReferences of at most 1024 char/,
  tooManyFinalizers: /pull-secret-updater-identity.*at most 16 finalizers/,
  tooManyManagers: /pull-secret-updater-identity.*at most 32 managedFields of .* 64 KiB/,
};

// ───── Who does what ─────

export interface Who {
  name: string;
  kubectl: Kubectl;
  /** Merges a patch into a Secret of the team. */
  patch(name: string, body: object): Promise<unknown>;
}

export function userOf(kubectl: Kubectl, name: string): Who {
  return {
    name,
    kubectl,
    patch: (secret, body) =>
      kubectl(["patch", "secret", secret, "-n", TEAM, "--type=merge", "-p", JSON.stringify(body)]),
  };
}

export type Act = (who: Who) => Promise<unknown>;

export const run = (args: string[], object?: object): Act => ({ kubectl }) =>
  kubectl(args, object && JSON.stringify(object));
export const create = (secret: Json) => run(["create", "-f", "-"], secret);
/** As GitOps does, from the server's side, and as people do. */
export const apply = (secret: Json) =>
  run(["apply", "--server-side", "--force-conflicts", "--field-manager=gitops", "-f", "-"], secret);
export const applyHere = (secret: Json) => run(["apply", "-f", "-"], secret);
export const patch = (name: string, body: object): Act => (who) => who.patch(name, body);
export const setMeta = (name: string, metadata: object) => patch(name, { metadata });
export const setData = (name: string, data: object | null) => patch(name, { data });
export const annotate = (name: string, annotations: object | null) =>
  setMeta(name, { annotations });
/** By label, and by annotation. */
export const label = (name: string, identity: string | null = NAME) =>
  setMeta(name, { labels: { [IDENTITY]: identity } });
export const note = (name: string, identity: string | null = UID) =>
  annotate(name, { [IDENTITY]: identity });
export const setAccount = (name: string, account: string | null) =>
  annotate(name, { [SERVICE_ACCOUNT]: account });

/** One after the other. */
export const inTurn = (...acts: Act[]): Act => async (who) => {
  for (const act of acts) await act(who);
};
export const refuses = (act: Act, words: Words): Act => (who) =>
  refused(act(who), typeof words === "function" ? words(who.name) : words);

/** What somebody may do, and what is refused in these words. */
export const allowed = (who: Who, acts: Record<string, Act>) =>
  Object.entries(acts).map(([what, act]) => ({ what, attempt: () => act(who) }));
export const denied = (who: Who, words: Words, acts: Record<string, Act>) =>
  Object.entries(acts).map(([what, act]) => ({ what, attempt: () => refuses(act, words)(who) }));

/** Tries all at once, and tells all that is not as it should be. */
export async function each(all: ReturnType<typeof allowed>): Promise<string> {
  const outcomes = await Promise.allSettled(all.map(({ attempt }) => attempt()));
  const failures = outcomes.flatMap((outcome, index) =>
    outcome.status === "rejected" ? [`${all[index]!.what}: ${outcome.reason.message}`] : []
  );
  expect(failures.length === 0, failures.join("\n"));
  return `${all.length} cases`;
}

// ───── Secrets ─────

export function labelled(
  name: string,
  annotations: object = {},
  more: object = {},
  identity = UID,
): Json {
  return { ...pullSecret(TEAM, name, identity, annotations), ...more };
}

export function unlabelled(name: string, annotations: object = {}): Json {
  const secret = labelled(name, annotations);
  delete secret.metadata.labels;
  return secret;
}

/** What GitOps applies: the label, and the empty config. */
export function applied(name: string): Json {
  const { metadata: { annotations: _, ...metadata }, stringData: __, ...secret } = labelled(name);
  return { ...secret, metadata, data: { ".dockerconfigjson": base64('{"auths":{}}') } };
}

export const elsewhere = (secret: Json, namespace = OTHER): Json => ({
  ...secret,
  metadata: { ...secret.metadata, namespace },
});

export const many = (count: number, size = 1): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, index) => [`x-${index}`, "x".repeat(size)]));
export const finalizers = (count: number) =>
  Object.keys(many(count)).map((name) => `example.com/${name}`);

/** Over each limit but that of data. */
function oversized(name: string): Json {
  const secret = labelled(name, {
    ...many(MAX.annotations + 50),
    [REFRESH]: "x".repeat(MAX.chars + 100),
  });
  Object.assign(secret.metadata.labels, many(MAX.labels + 50));
  secret.metadata.finalizers = finalizers(MAX.finalizers + 4);
  return secret;
}

/** As large as it may be: all that it has for the controller's write and for the policies to look through. */
export function largest(name: string): Json {
  const secret = labelled(name, many(MAX.annotations, 2_400));
  Object.assign(secret.metadata.labels, many(MAX.labels - 1));
  return { ...secret, data: many(MAX.keys - 1, 60_000) };
}

/** What managedFields have of a manager. */
export const fieldsOf = (manager: string, operation: "Apply" | "Update", fieldsV1: object) => ({
  manager,
  operation,
  apiVersion: "v1",
  fieldsType: "FieldsV1",
  fieldsV1,
});

/** With as many managers as there may be, of whom each wrote the docker config and a lot beside. */
export function crowded(name: string): Json {
  const fields = Object.fromEntries(Object.keys(many(150)).map((key) => [`f:${key}`, {}]));
  const secret = labelled(name);
  secret.metadata.managedFields = Object.keys(many(MAX.managers - 2)).map((manager) =>
    fieldsOf(manager, "Apply", { "f:data": { "f:.dockerconfigjson": {}, ...fields } })
  );
  return secret;
}

// ───── The stage ─────

/** The tenants, their users' Roles and their Secrets, all made by the administrator. */
export async function prepare(kubectl: Kubectl): Promise<void> {
  const theirs = { note: "a user's" };
  const key = { data: { key: base64("a user's") } };
  const secrets = [
    labelled("plain"),
    labelled("of-gitops", theirs, key),
    labelled("by-note", { [IDENTITY]: UID }, {}, ""),
    ...["stamped", "of-nothing-else", "of-kubectl", "of-a-person", "of-many", "of-nobody"].map(
      (name) => labelled(name, theirs),
    ),
    labelled("to-write", { [REFRESH]: "now", ...theirs }),
    labelled("with-key", theirs, key),
    labelled("opaque", {}, { type: "Opaque" }),
    unlabelled("unlabelled"),
    unlabelled("noted", { [IDENTITY]: UID }),
    labelled("both", { [IDENTITY]: UID }),
    unlabelled("planted", { [IDENTITY]: OTHER_UID }),
    unlabelled("planted-account", { [SERVICE_ACCOUNT]: "puller" }),
    labelled("empty", {}, {}, ""),
    labelled("of-account", { [SERVICE_ACCOUNT]: "puller" }),
    labelled("to-edit"),
    labelled("to-unlabel", { [IDENTITY]: UID }),
    labelled("to-delete"),
  ];
  const namespaces = [TEAM, OTHER].map((name) => ({
    apiVersion: "v1",
    kind: "Namespace",
    metadata: { name },
  }));
  const accounts = ["puller", "private"].map((name) => ({
    apiVersion: "v1",
    kind: "ServiceAccount",
    metadata: { name, namespace: TEAM },
  }));
  await createAll(kubectl, [...namespaces, ...accounts, ...roles(), ...secrets]);
  await until(() => areInForce(kubectl), "the policies are in force");
  const old = ["", "-too", "-three"].map((more) =>
    labelled(`differing${more}`, { [IDENTITY]: OTHER_UID })
  );
  const annotated = labelled("20000-annotations", many(20_000));
  await withoutPolicies(
    kubectl,
    () => createAll(kubectl, [...old, oversized("oversized"), annotated]),
  );
  // What GitOps applies names the identity and the empty config.
  for (const name of ["of-gitops", "of-nothing-else"]) {
    const { metadata, ...secret } = applied(name);
    if (name === "of-nothing-else") delete metadata.labels;
    const data = { ".dockerconfigjson": base64('{"auths":{}, "x": 1}') };
    await apply({ ...secret, type: undefined, metadata, data })(
      userOf(kubectl, "the administrator"),
    );
  }
}

function roles(): object[] {
  const person = (name: string) => ({ kind: "User", name });
  const users = ["alice", "bob", "carol", "erin", GITOPS].map(person);
  const controller = { kind: "ServiceAccount", name: ACCOUNT, namespace: NAMESPACE };
  const write = { apiGroups: [""], resources: ["secrets"], verbs: ["*"] };
  const use = (...resourceNames: string[]) => ({
    apiGroups: [API_GROUP],
    resources: ["identities"],
    verbs: ["use"],
    resourceNames,
  });
  const token = {
    apiGroups: [""],
    resources: ["serviceaccounts/token"],
    verbs: ["create"],
    resourceNames: ["puller"],
  };
  const anyIdentity = bind(TEAM, "any-identity", {
    kind: "ClusterRole",
    name: "pull-secret-updater-user",
  }, [person("erin")]);
  return [
    ...grant(TEAM, "secrets", write, users),
    ...grant(OTHER, "secrets", write, users),
    ...grant(TEAM, "use", use(NAME), [person("bob")]),
    // With it the policy about identities lets the controller pass, and the controller's own is seen to refuse.
    ...grant(TEAM, "use-both", use(NAME, OTHER_NAME), [controller]),
    ...grant(TEAM, "everything", { apiGroups: ["*"], resources: ["*"], verbs: ["*"] }, [
      person("dave"),
    ]),
    ...grant(TEAM, "token", token, [person("carol"), controller]),
    anyIdentity,
  ];
}

const RBAC = "rbac.authorization.k8s.io";

/** A Role and its binding. */
function grant(namespace: string, name: string, rule: object, subjects: object[]): object[] {
  const metadata = { name, namespace };
  return [
    { apiVersion: `${RBAC}/v1`, kind: "Role", metadata, rules: [rule] },
    bind(namespace, name, { kind: "Role", name }, subjects),
  ];
}

function bind(namespace: string, name: string, role: object, subjects: object[]): object {
  const roleRef = { apiGroup: RBAC, ...role };
  const metadata = { name, namespace };
  return { apiVersion: `${RBAC}/v1`, kind: "RoleBinding", metadata, roleRef, subjects };
}

export const createAll = (kubectl: Kubectl, items: object[]) =>
  kubectl(["create", "-f", "-"], JSON.stringify({ apiVersion: "v1", kind: "List", items }));

/** Whether both policies about Secrets are; undefined while they differ. A change takes a moment. */
async function areInForce(kubectl: Kubectl): Promise<boolean | undefined> {
  const dry = "--dry-run=server";
  const refusedBy = (attempt: Promise<string>, message: RegExp) =>
    attempt.then(() => false, (error: Error) => message.test(error.message));
  const identity = await refusedBy(
    kubectl(["--as=alice", "create", dry, "-f", "-"], JSON.stringify(labelled("first"))),
    needsUse()("alice"),
  );
  const patch = `{"metadata":{"annotations":{"${TOKEN_IDENTITY}":"x"}}}`;
  const args = ["patch", "secret", "unlabelled", "-n", TEAM, "--type=merge", "-p", patch];
  const controller = await refusedBy(
    kubectl([`--as=${CONTROLLER}`, ...args, dry]),
    SAYS.otherSecret,
  );
  return identity === controller ? identity : undefined;
}

/** What is done before there were policies: without the bindings, which are put back. */
export async function withoutPolicies<T>(kubectl: Kubectl, attempt: () => Promise<T>): Promise<T> {
  const names = ["identity", "controller"].map((name) =>
    `validatingadmissionpolicybinding/${NAMESPACE}-${name}`
  );
  const { items } = JSON.parse(await kubectl(["get", ...names, "-o", "json"]));
  for (const { metadata } of items) {
    for (const key of ["uid", "resourceVersion", "creationTimestamp", "generation"]) {
      delete metadata[key];
    }
  }
  await kubectl(["delete", ...names]);
  try {
    await until(async () => await areInForce(kubectl) === false, "the policies are not in force");
    return await attempt();
  } finally {
    await createAll(kubectl, items);
    await until(() => areInForce(kubectl), "the policies are in force again");
  }
}

/** As if it had never been: what is in the namespaces first, as a starting controller would speak of it. */
export async function takeAway(kubectl: Kubectl): Promise<void> {
  // Or it would stay, if a step has failed.
  for (const name of ["oversized", "to-edit"]) {
    await userOf(kubectl, "").patch(name, { metadata: { finalizers: null } }).catch(() => {});
  }
  for (const namespace of [TEAM, OTHER]) {
    await kubectl(["delete", "secret", "--all", "-n", namespace]);
  }
  await kubectl(["delete", "namespace", TEAM, OTHER, "--wait=false"]);
}
