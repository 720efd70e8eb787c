/**
 * RBAC and the admission policies of deploy.yaml, from both sides: what the controller may do with its own token and
 * nothing more, and who may name an identity.
 *
 *   node tests/cluster/e2e/policies.ts [MANIFEST]      alone, on a control plane of its own; no root needed
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { KubernetesClient } from "../../../k8s.ts";
import { down as endCluster, up as startCluster } from "../cluster.ts";
import { ROOT } from "../../support/paths.ts";
import { isInstalled, pidOf, run } from "../../support/processes.ts";
import { usageOf } from "../../support/usage.ts";
import { type Context, expect, getJson, type Kubectl, kubectlAs, refused } from "./context.ts";
import { flags } from "./manifest.ts";
import {
  ACCOUNT,
  API_GROUP,
  IDENTITY,
  NAMESPACE,
  PREFIX,
  REFRESH,
  REFRESHED,
  SERVICE_ACCOUNT,
  TOKEN_EXPIRES,
  TOKEN_IDENTITY,
} from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { until } from "../../support/until.ts";
import { pullSecret } from "../../support/secrets.ts";

type Given = Pick<Context, "cluster" | "kubectl" | "as" | "step" | "work">;

/** Two tenants; the users that follow may write Secrets in both. */
const TEAM = "policies-team";
const OTHER = "policies-other";
/** Bound nowhere, so that a controller that runs meanwhile gets no token for it, and writes nothing. */
const UID = `${"0a".repeat(20)}/${"1b".repeat(8)}`;
const OTHER_UID = `${"0c".repeat(20)}/${"1d".repeat(8)}`;
/** As label, and as the name that Roles give it. */
const NAME = UID.replace("/", ".");
const OTHER_NAME = OTHER_UID.replace("/", ".");
const FIELD_MANAGER = "pull-secret-updater";
const CONTROLLER = `system:serviceaccount:${NAMESPACE}:${ACCOUNT}`;
const GITOPS = `system:serviceaccount:${TEAM}:gitops`;
const AUDIENCE = "issuer.enforce.dev";
const DOCKER_CONFIG = base64('{"auths":{"cgr.dev":{"auth":"X3Rva2VuOng="}}}');
const YEAR_S = 365 * 24 * 3600;
/** The limits of a labelled Secret. */
const MAX_KEYS = 16;
const MAX_VALUE_BYTES = 96 * 1024;
const MAX_LABELS = 100;
/** Ours are not counted. */
const MAX_ANNOTATIONS = 100;
const MAX_CHARS = 300;
const MAX_TYPE_CHARS = 253;
const MAX_OWNERS = 16;
const MAX_FINALIZERS = 16;
const MAX_MANAGERS = 32;
const MAX_MANAGERS_BYTES = 64 * 1024;

/** What is said to whom a right is missing: the rule of the Role to ask for. */
const needsUse = (user: string, name = NAME, namespace = TEAM) =>
  literally(
    `${user} needs a Role: apiGroup ${API_GROUP}, resource identities, verb use, resourceName ${name}, namespace ${namespace}`,
  );
const needsAccount = (user: string, account: string) =>
  literally(
    `${user} needs a Role: verb create, resource serviceaccounts/token, resourceName ${account}, namespace ${TEAM}`,
  );
/** What is said where label and annotation differ: what both say, and what to type. */
const differ = (name: string, label = NAME, annotation = OTHER_UID) =>
  literally(
    `the label ${IDENTITY} says ${label}, the annotation ${annotation}: put the same into both, ` +
      `with . for / in the label; if the label is right: kubectl annotate secret ${name} ` +
      `--namespace ${TEAM} ${IDENTITY}-`,
  );
const OTHER_SECRET =
  /pull-secret-updater-controller.*the controller writes labelled pull Secrets only/;
const OTHER_KEY = /pull-secret-updater-controller.*the controller writes \.dockerconfigjson only/;
const OTHER_ANNOTATION =
  /pull-secret-updater-controller.*the controller writes its own annotations only/;
const OTHER_TOKEN = /pull-secret-updater-tokens.*tokens for the issuer only, for an hour at most/;
const OTHER_MANAGER =
  /pull-secret-updater-controller.*the controller leaves the managedFields of others alone/;
const TOO_MUCH =
  /pull-secret-updater-controller.*at most 96 KiB of .* 30\d characters of an annotation/;
const BAD_ACCOUNT =
  /pull-secret-updater-identity.*service-account must be the name of a service account of this name/;
const NOT_APPLIED =
  /pull-secret-updater-identity.*service-account is changed by an apply that does not name the identity/;
const TOO_LARGE = /pull-secret-updater-identity.*at most 16 keys of at most 96 KiB/;
const TOO_MANY = /pull-secret-updater-identity.*at most 100 labels and 100 annotations/;
const TOO_LONG = /pull-secret-updater-identity.*has at most 300 characters/;
const LONG_TYPE = /pull-secret-updater-identity.*type of .* at most 253 characters/;
const TOO_MANY_OWNERS =
  /pull-secret-updater-identity.*at most 16 ownerReferences of at most 1024 char/;
const TOO_MANY_FINALIZERS = /pull-secret-updater-identity.*at most 16 finalizers/;
const TOO_MANY_MANAGERS = /pull-secret-updater-identity.*at most 32 managedFields of .* 64 KiB/;
const NO_RIGHT = /cannot \w+ resource/;

/** On a cluster with deploy.yaml applied. */
export async function policies(context: Given): Promise<void> {
  await prepare(context);
  await controllerSide(context);
  await userSide(context);
  // Or it would stay, if a step has failed.
  const released = '{"metadata":{"finalizers":null}}';
  for (const name of ["oversized", "to-edit"]) {
    const args = ["patch", "secret", name, "-n", TEAM, "--type=merge", "-p", released];
    await context.kubectl(args).catch(() => {});
  }
  // First what is in them: while a namespace ends, what a starting controller says of its Secrets is not of interest.
  for (const namespace of [TEAM, OTHER]) {
    await context.kubectl(["delete", "secret", "--all", "-n", namespace]);
  }
  await context.kubectl(["delete", "namespace", TEAM, OTHER, "--wait=false"]);
}

/** The tenants, their users' Roles and their Secrets, all made by the administrator. */
async function prepare({ kubectl }: Given): Promise<void> {
  const secrets = [
    labelled("plain"),
    labelled("of-gitops", { note: "a user's" }, { data: { key: base64("a user's") } }),
    labelled("by-note", { [IDENTITY]: UID }, {}, ""),
    labelled("stamped", { note: "a user's" }),
    ...["of-nothing-else", "of-kubectl", "of-a-person", "of-many", "of-nobody"].map((name) =>
      labelled(name, { note: "a user's" })
    ),
    labelled("to-write", { [REFRESH]: "now", note: "a user's" }),
    labelled("with-key", { note: "a user's" }, { data: { key: base64("a user's") } }),
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
  const users = ["alice", "bob", "carol", "erin", GITOPS].map((name) => ({ kind: "User", name }));
  const controller = { kind: "ServiceAccount", name: ACCOUNT, namespace: NAMESPACE };
  const write = { apiGroups: [""], resources: ["secrets"], verbs: ["*"] };
  const use = {
    apiGroups: [API_GROUP],
    resources: ["identities"],
    verbs: ["use"],
    resourceNames: [NAME],
  };
  // With it the policy about identities lets the controller pass, and the controller's own is seen to refuse.
  const useBoth = { ...use, resourceNames: [NAME, OTHER_NAME] };
  const everything = { apiGroups: ["*"], resources: ["*"], verbs: ["*"] };
  const token = {
    apiGroups: [""],
    resources: ["serviceaccounts/token"],
    verbs: ["create"],
    resourceNames: ["puller"],
  };
  const roles = [
    ...grant(TEAM, "secrets", write, users),
    ...grant(OTHER, "secrets", write, users),
    ...grant(TEAM, "use", use, [{ kind: "User", name: "bob" }]),
    ...grant(TEAM, "use-both", useBoth, [controller]),
    ...grant(TEAM, "everything", everything, [{ kind: "User", name: "dave" }]),
    ...grant(TEAM, "token", token, [{ kind: "User", name: "carol" }, controller]),
  ];
  const anyIdentity = {
    apiVersion: "rbac.authorization.k8s.io/v1",
    kind: "RoleBinding",
    metadata: { name: "any-identity", namespace: TEAM },
    roleRef: {
      apiGroup: "rbac.authorization.k8s.io",
      kind: "ClusterRole",
      name: "pull-secret-updater-user",
    },
    subjects: [{ kind: "User", name: "erin" }],
  };
  await createAll(kubectl, [...namespaces, ...accounts, ...roles, anyIdentity, ...secrets]);
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
    const data = { ".dockerconfigjson": base64('{"auths":{}, "x": 1}') };
    const metadata = { name, namespace: TEAM };
    const labels = { labels: { [IDENTITY]: NAME } };
    const more = name === "of-gitops" ? { ...metadata, ...labels } : metadata;
    await apply(kubectl, { apiVersion: "v1", kind: "Secret", metadata: more, data });
  }
}

/** Over each limit but that of data. */
function oversized(name: string): Json {
  const secret = labelled(name, {
    ...many(MAX_ANNOTATIONS + 50),
    [REFRESH]: "x".repeat(MAX_CHARS + 100),
  });
  Object.assign(secret.metadata.labels, many(MAX_LABELS + 50));
  secret.metadata.finalizers = finalizers(MAX_FINALIZERS + 4);
  return secret;
}

const many = (count: number, size = 1): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, index) => [`x-${index}`, "x".repeat(size)]));
const finalizers = (count: number) => Object.keys(many(count)).map((name) => `example.com/${name}`);

/** As GitOps does. */
const apply = (who: Kubectl, secret: Json, manager = "gitops") =>
  who(
    ["apply", "--server-side", "--force-conflicts", `--field-manager=${manager}`, "-f", "-"],
    JSON.stringify(secret),
  );

async function fieldsOf({ kubectl }: Pick<Given, "kubectl">, name: string): Promise<Json[]> {
  const flags = ["-n", TEAM, "-o", "json", "--show-managed-fields"];
  return JSON.parse(await kubectl(["get", "secret", name, ...flags])).metadata.managedFields ?? [];
}

/** Creates objects. */
const createAll = (kubectl: Kubectl, items: object[]) =>
  kubectl(["create", "-f", "-"], JSON.stringify({ apiVersion: "v1", kind: "List", items }));

/** Whether both policies about Secrets are; undefined while they differ. A change takes a moment. */
async function areInForce(kubectl: Kubectl): Promise<boolean | undefined> {
  const dry = "--dry-run=server";
  const refusedBy = (attempt: Promise<string>, message: RegExp) =>
    attempt.then(() => false, (error: Error) => message.test(error.message));
  const identity = await refusedBy(
    kubectl(["--as=alice", "create", dry, "-f", "-"], JSON.stringify(labelled("first"))),
    needsUse("alice"),
  );
  const patch = `{"metadata":{"annotations":{"${TOKEN_IDENTITY}":"x"}}}`;
  const args = ["patch", "secret", "unlabelled", "-n", TEAM, "--type=merge", "-p", patch];
  const controller = await refusedBy(kubectl([`--as=${CONTROLLER}`, ...args, dry]), OTHER_SECRET);
  return identity === controller ? identity : undefined;
}

/** What is done before there were policies: without the bindings, which are put back. */
async function withoutPolicies<T>(kubectl: Kubectl, attempt: () => Promise<T>): Promise<T> {
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

function labelled(name: string, annotations: object = {}, more: object = {}, identity = UID): Json {
  return { ...pullSecret(TEAM, name, identity, annotations), ...more };
}

function unlabelled(name: string, annotations: object = {}): Json {
  const secret = labelled(name, annotations);
  delete secret.metadata.labels;
  return secret;
}

/** A Role and its binding. */
function grant(namespace: string, name: string, rule: object, subjects: object[]): object[] {
  const [apiVersion, metadata] = ["rbac.authorization.k8s.io/v1", { name, namespace }];
  const roleRef = { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name };
  return [
    { apiVersion, kind: "Role", metadata, rules: [rule] },
    { apiVersion, kind: "RoleBinding", metadata, roleRef, subjects },
  ];
}

/** As large as it may be: all that it has for the controller's write and for the policies to look through. */
function largest(name: string): Json {
  const secret = labelled(name, many(MAX_ANNOTATIONS, 2_400));
  Object.assign(secret.metadata.labels, many(MAX_LABELS - 1));
  return { ...secret, data: many(MAX_KEYS - 1, 60_000) };
}

/** With as many managers as there may be, of whom each wrote the docker config and a lot beside. */
function crowded(name: string): Json {
  const fields = Object.fromEntries(Object.keys(many(150)).map((key) => [`f:${key}`, {}]));
  const managedFields = Object.keys(many(MAX_MANAGERS - 2)).map((manager) => ({
    manager,
    operation: "Apply",
    apiVersion: "v1",
    fieldsType: "FieldsV1",
    fieldsV1: { "f:data": { "f:.dockerconfigjson": {}, ...fields } },
  }));
  const secret = labelled(name);
  return { ...secret, metadata: { ...secret.metadata, managedFields } };
}

/** What GitOps applies: the label, and the empty config. */
function applied(name: string): Json {
  const secret = labelled(name);
  delete secret.metadata.annotations;
  delete secret.stringData;
  return { ...secret, data: { ".dockerconfigjson": base64('{"auths":{}}') } };
}

/** Adds an annotation and a label to each Secret of the team that is updated. */
function mutatingPolicy(name: string): string {
  const apiVersion = "admissionregistration.k8s.io/v1";
  const rule = { apiGroups: [""], apiVersions: ["v1"], resources: ["secrets"], scope: "*" };
  const expression =
    'Object{metadata: Object.metadata{annotations: {"stamp": "yes"}, labels: {"stamp": "yes"}}}';
  const spec = {
    matchConstraints: {
      namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": TEAM } },
      resourceRules: [{ ...rule, operations: ["UPDATE"] }],
    },
    reinvocationPolicy: "Never",
    mutations: [{ patchType: "ApplyConfiguration", applyConfiguration: { expression } }],
  };
  const items = [
    { apiVersion, kind: "MutatingAdmissionPolicy", metadata: { name }, spec },
    {
      apiVersion,
      kind: "MutatingAdmissionPolicyBinding",
      metadata: { name },
      spec: { policyName: name },
    },
  ];
  return JSON.stringify({ apiVersion: "v1", kind: "List", items });
}

// ───── What the controller may do ─────

async function controllerSide(context: Given): Promise<void> {
  const { cluster, kubectl, as, step, work } = context;
  const token = (await kubectl(["create", "token", ACCOUNT, "-n", NAMESPACE])).trim();
  const tokenFile = join(work, "controller-token");
  writeFileSync(tokenFile, token, { mode: 0o600 });
  const controller = as(token);
  // The program's own client, for requests exactly as the program makes them.
  const client = new KubernetesClient({
    url: cluster.server,
    tokenFile,
    caFile: cluster.ca,
    labelSelector: IDENTITY,
    userAgent: "policies",
    onResponse: () => {},
  });
  const { signal } = new AbortController();
  const patch = (name: string, body: object) => client.patch(TEAM, name, body, signal);
  const annotate = (name: string, annotations: object) =>
    patch(name, { metadata: { annotations } });
  const requestToken = (account: string, audience: string, seconds: number) =>
    client.requestToken(TEAM, account, audience, seconds, signal);
  const tokenRequest = (spec: object) =>
    controller(
      ["create", "--raw", `/api/v1/namespaces/${TEAM}/serviceaccounts/puller/token`, "-f", "-"],
      JSON.stringify({ apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec }),
    );

  await step("the controller lists, watches, reads and writes labelled pull Secrets", async () => {
    const listed: string[] = [];
    let version = "";
    for await (const page of client.list(undefined, signal)) {
      listed.push(...page.items.map(({ metadata }) => `${metadata.namespace}/${metadata.name}`));
      version = page.resourceVersion;
    }
    expect(listed.includes(`${TEAM}/to-write`), "it is not in the list");
    expect(!listed.includes(`${TEAM}/unlabelled`), "the list has Secrets without the label");

    const { metadata: { uid, resourceVersion } } = await client.get(TEAM, "to-write", signal);
    const annotations = {
      [TOKEN_IDENTITY]: UID,
      [TOKEN_EXPIRES]: "2030-01-01T00:00:00.000Z",
      [REFRESHED]: "now",
    };
    const data = { ".dockerconfigjson": DOCKER_CONFIG };
    await patch("to-write", { metadata: { uid, resourceVersion, annotations }, data });
    const written = await client.get(TEAM, "to-write", signal);
    expect(written.data?.[".dockerconfigjson"] === DOCKER_CONFIG, "the token is not in it");
    expect(written.metadata.annotations?.[REFRESHED] === "now", "`refreshed` is not in it");
    expect(written.metadata.annotations?.[REFRESH] === "now", "`refresh` is gone");
    expect(written.metadata.annotations?.note === "a user's", "the user's annotation is gone");

    for await (const event of client.watch(undefined, version, 5, signal)) {
      if (event.type === "MODIFIED" && event.secret.metadata.uid === uid) return;
    }
    throw new Error("the watch does not show the write");
  });

  await step(
    "the controller writes events, and requests tokens where a Role grants it",
    () =>
      each({
        event: async () => {
          const event = {
            metadata: { generateName: "policies-", namespace: TEAM },
            eventTime: new Date().toISOString().replace("Z", "000Z"),
            reportingController: `${PREFIX}controller`,
            reportingInstance: "policies",
            action: "Refresh",
            regarding: { apiVersion: "v1", kind: "Secret", namespace: TEAM, name: "plain" },
            reason: "TokenIssued",
            type: "Normal",
            note: "from policies.ts",
          };
          await client.createEvent(TEAM, event, signal);
        },
        "token request": async () => {
          const claims = claimsOf(await requestToken("puller", AUDIENCE, 600));
          expect(
            claims.sub === `system:serviceaccount:${TEAM}:puller`,
            `another's token: ${claims.sub}`,
          );
          expect(
            `${claims.aud}` === AUDIENCE && claims.exp - claims.iat === 600,
            "another audience or life",
          );
        },
      }),
  );

  const write = (name: string) =>
    patch(name, {
      metadata: { annotations: { [TOKEN_IDENTITY]: UID, [TOKEN_EXPIRES]: `${performance.now()}` } },
      data: { ".dockerconfigjson": base64(`{"auths":{},"x":${performance.now()}}`) },
    });
  const ownersOf = async (name: string) =>
    (await fieldsOf(context, name)).map(({ manager }) => manager).sort();
  await step("the controller writes the token whoever wrote it before", () =>
    each({
      "a key of GitOps": async () => {
        await apply(kubectl, applied("taken"));
        await write("taken");
        await write("taken");
        const { fieldsV1 } = (await fieldsOf(context, "taken")).find(({ manager }) =>
          manager === "gitops"
        );
        expect(fieldsV1["f:data"] === undefined, "GitOps still owns it");
        // And back, and again.
        await apply(kubectl, applied("taken"));
        await write("taken");
      },
      "all that a manager had": async () => {
        await write("of-nothing-else");
        const owners = await ownersOf("of-nothing-else");
        expect(!owners.includes("gitops"), `there is something left of it: ${owners}`);
      },
      "kubectl apply": async () => {
        const secret = JSON.stringify(labelled("of-kubectl", { note: "a user's", more: "x" }));
        await kubectl(["apply", "-f", "-"], secret);
        await write("of-kubectl");
        await kubectl(["apply", "-f", "-"], secret);
        await write("of-kubectl");
      },
      "its own annotations": async () => {
        const notes = [`${TOKEN_IDENTITY}=x`, `${TOKEN_EXPIRES}=x`, `${REFRESHED}=x`];
        await kubectl(["annotate", "secret", "of-a-person", "-n", TEAM, ...notes]);
        await write("of-a-person");
      },
      "more than ten managers": async () => {
        // The API server keeps ten entries of updates, and merges the oldest.
        for (const name of Object.keys(many(10))) {
          const flags = ["--overwrite", `--field-manager=${name}`];
          await kubectl(["annotate", "secret", "of-many", "-n", TEAM, ...flags, `${name}=x`]);
        }
        await write("of-many");
        const owners = await ownersOf("of-many");
        expect(owners.includes("ancient-changes"), `nothing was merged: ${owners}`);
        await refused(annotate("of-many", { note: "x" }), OTHER_ANNOTATION);
      },
      "where nobody knows": async () => {
        const nobody = '{"metadata":{"managedFields":[{}]}}';
        await kubectl(["patch", "secret", "of-nobody", "-n", TEAM, "--type=merge", "-p", nobody]);
        await write("of-nobody");
        await refused(annotate("of-nobody", { more: "x" }), OTHER_ANNOTATION);
        await refused(annotate("of-nobody", { note: "x" }), OTHER_ANNOTATION);
        await refused(patch("of-nobody", { metadata: { labels: { more: "x" } } }), OTHER_SECRET);
      },
      "of a Secret over all limits, from before there were any": async () => {
        await write("oversized");
        await refused(annotate("oversized", { more: "x" }), OTHER_ANNOTATION);
        await refused(annotate("oversized", { "x-1": "y" }), OTHER_ANNOTATION);
        await refused(annotate("oversized", { "x-1": null }), OTHER_ANNOTATION);
        await refused(annotate("oversized", { "x-1": null, more: "x" }), OTHER_ANNOTATION);
        await refused(patch("oversized", { metadata: { labels: { "x-1": null } } }), OTHER_SECRET);
        // A long `refresh` is served cut, with … at its end.
        await annotate("oversized", { [REFRESHED]: "x".repeat(MAX_CHARS) + "…" });
      },
    }));

  await step("what mutating admission adds to its write is not the controller's", async () => {
    const stamp = mutatingPolicy("policies-stamp");
    await kubectl(["apply", "-f", "-"], stamp);
    try {
      const stamped = async () => {
        await write("stamped");
        const { annotations, labels } = (await getJson(context, "secret", "stamped", "-n", TEAM))
          .metadata;
        return annotations.stamp === "yes" && labels.stamp === "yes";
      };
      await until(stamped, "it adds to a write");
      await write("stamped");
      const label = (name: string, value: string | null) =>
        patch("stamped", { metadata: { labels: { [name]: value } } });
      await refused(annotate("stamped", { more: "x" }), OTHER_ANNOTATION);
      await refused(annotate("stamped", { note: "x" }), OTHER_ANNOTATION);
      await refused(annotate("stamped", { note: null }), OTHER_ANNOTATION);
      await refused(annotate("stamped", { [IDENTITY]: UID }), OTHER_ANNOTATION);
      await refused(label("more", "x"), OTHER_SECRET);
      await refused(label(IDENTITY, OTHER_NAME), OTHER_SECRET);
      // Also in the same write as the first stamp.
      await refused(annotate("plain", { note: "x" }), OTHER_ANNOTATION);
      await refused(annotate("of-nothing-else", { note: null }), OTHER_ANNOTATION);
    } finally {
      await kubectl(["delete", "-f", "-"], stamp);
    }
    await until(async () => {
      await kubectl(["annotate", "secret", "stamped", "-n", TEAM, "stamp-"]);
      const { metadata } = await getJson(context, "secret", "stamped", "-n", TEAM);
      return metadata.annotations.stamp === undefined;
    }, "it adds nothing any more");
  });

  const before = await versions(context);

  await step("the controller cannot write another Secret", () =>
    each({
      unlabelled: () =>
        refused(
          patch("unlabelled", { data: { ".dockerconfigjson": DOCKER_CONFIG } }),
          OTHER_SECRET,
        ),
      "labelled in the same patch": () =>
        refused(patch("unlabelled", { metadata: { labels: { [IDENTITY]: NAME } } }), OTHER_SECRET),
      "with the annotation but no label": () =>
        refused(patch("noted", { data: { ".dockerconfigjson": DOCKER_CONFIG } }), OTHER_SECRET),
      "of another type": () =>
        refused(patch("opaque", { data: { ".dockerconfigjson": DOCKER_CONFIG } }), OTHER_SECRET),
      "its own annotation on another type": () =>
        refused(annotate("opaque", { [`${PREFIX}token-identity`]: UID }), OTHER_SECRET),
      "another type": () =>
        refused(patch("plain", { type: "Opaque" }), /type: Invalid value|field is immutable/),
    }));

  await step("the controller cannot write anything else of a labelled Secret", () =>
    each({
      "a key more": () => refused(patch("plain", { data: { key: DOCKER_CONFIG } }), OTHER_KEY),
      "a key more, by stringData": () =>
        refused(patch("plain", { stringData: { key: "x" } }), OTHER_KEY),
      "another value of a key": () =>
        refused(patch("with-key", { data: { key: DOCKER_CONFIG } }), OTHER_KEY),
      "a key less": () => refused(patch("with-key", { data: { key: null } }), OTHER_KEY),
      "no data": () =>
        refused(patch("with-key", { data: null }), /data\[\.dockerconfigjson\]: Required value/),
      "an annotation more": () => refused(annotate("plain", { note: "x" }), OTHER_ANNOTATION),
      "another value of an annotation": () =>
        refused(annotate("with-key", { note: "x" }), OTHER_ANNOTATION),
      "an annotation less": () => refused(annotate("with-key", { note: null }), OTHER_ANNOTATION),
      "the annotation `identity`": () =>
        refused(annotate("plain", { [IDENTITY]: OTHER_UID }), OTHER_ANNOTATION),
      "the annotation `identity`, off": () =>
        refused(annotate("both", { [IDENTITY]: null }), OTHER_ANNOTATION),
      "the annotation `service-account`": () =>
        refused(annotate("plain", { [SERVICE_ACCOUNT]: "puller" }), OTHER_ANNOTATION),
      "the annotation `service-account`, off": () =>
        refused(annotate("of-account", { [SERVICE_ACCOUNT]: null }), OTHER_ANNOTATION),
      "`refresh` where it is not": () =>
        refused(annotate("plain", { [REFRESH]: "now" }), OTHER_ANNOTATION),
      "`refresh`, another value": () =>
        refused(annotate("to-write", { [REFRESH]: "later" }), OTHER_ANNOTATION),
      "`refresh`, off": () => refused(annotate("to-write", { [REFRESH]: null }), OTHER_ANNOTATION),
      "an annotation of its own, too long": async () => {
        for (const name of [TOKEN_IDENTITY, TOKEN_EXPIRES, REFRESHED]) {
          await refused(annotate("plain", { [name]: "x".repeat(MAX_CHARS + 2) }), TOO_MUCH);
        }
      },
      "a docker config that is too large": () =>
        refused(
          patch("with-key", {
            data: {
              ".dockerconfigjson": base64(
                JSON.stringify({ auths: {}, x: "x".repeat(MAX_VALUE_BYTES) }),
              ),
            },
          }),
          TOO_MUCH,
        ),
      generateName: () =>
        refused(patch("plain", { metadata: { generateName: "x-" } }), OTHER_SECRET),
      "all annotations off": () =>
        refused(patch("with-key", { metadata: { annotations: null } }), OTHER_ANNOTATION),
      "a label more": () =>
        refused(patch("plain", { metadata: { labels: { more: "x" } } }), OTHER_SECRET),
      "another identity, by label": () =>
        refused(patch("plain", { metadata: { labels: { [IDENTITY]: OTHER_NAME } } }), OTHER_SECRET),
      "the label off": () => refused(patch("plain", { metadata: { labels: null } }), OTHER_SECRET),
      "an owner": () => {
        const owner = {
          apiVersion: "v1",
          kind: "ConfigMap",
          name: "x",
          uid: "7e3f3f5a-0000-4000-8000-000000000000",
        };
        return refused(patch("plain", { metadata: { ownerReferences: [owner] } }), OTHER_SECRET);
      },
      "a finalizer": () =>
        refused(patch("plain", { metadata: { finalizers: ["example.com/x"] } }), OTHER_SECRET),
      immutable: () => refused(patch("plain", { immutable: true }), OTHER_SECRET),
    }));

  await step("the controller cannot say who wrote what of a Secret", async () => {
    const managedFields = await fieldsOf(context, "of-gitops");
    const claim = (manager: string, operation: string, fieldsV1: object) => ({
      manager,
      operation,
      apiVersion: "v1",
      time: "2026-01-01T00:00:00Z",
      fieldsType: "FieldsV1",
      fieldsV1,
    });
    const write = (entries: object[]) =>
      patch("of-gitops", { metadata: { managedFields: entries } });
    const change = (fields: object, other: object = {}) =>
      managedFields.map((entry: Json) =>
        entry.manager === "gitops"
          ? { ...entry, ...other, fieldsV1: { ...entry.fieldsV1, ...fields } }
          : entry
      );
    return each({
      "gitops wrote a key more": () =>
        refused(
          write(change({ "f:data": { "f:.dockerconfigjson": {}, "f:key": {} } })),
          OTHER_MANAGER,
        ),
      "gitops wrote all data": () => refused(write(change({ "f:data": {} })), OTHER_MANAGER),
      "gitops wrote an annotation": () =>
        refused(
          write(change({ "f:metadata": { "f:annotations": { "f:note": {} } } })),
          OTHER_MANAGER,
        ),
      "gitops wrote the type": () => refused(write(change({ "f:type": {} })), OTHER_MANAGER),
      "gitops wrote less": () => refused(write(change({ "f:metadata": {} })), OTHER_MANAGER),
      "gitops wrote nothing": () =>
        refused(
          write(managedFields.filter(({ manager }: Json) => manager !== "gitops")),
          OTHER_MANAGER,
        ),
      "gitops wrote at another time": () => {
        const entries = change({}, { time: "2026-01-01T00:00:00Z" });
        // Without a change beside, the API server leaves the time as it is.
        const annotations = { [TOKEN_IDENTITY]: UID };
        return refused(
          patch("of-gitops", { metadata: { managedFields: entries, annotations } }),
          OTHER_MANAGER,
        );
      },
      "gitops wrote in another version": () =>
        refused(write(change({}, { apiVersion: "v0" })), OTHER_MANAGER),
      "another wrote": async () => {
        const fields = { "f:data": { "f:key": {} } };
        for (const operation of ["Apply", "Update"]) {
          for (const manager of ["other", "kubectl-client-side-apply", "ancient-changes"]) {
            await refused(
              write([...managedFields, claim(manager, operation, fields)]),
              OTHER_MANAGER,
            );
          }
        }
        await refused(
          write([...managedFields, claim(FIELD_MANAGER, "Apply", fields)]),
          OTHER_MANAGER,
        );
      },
      "nobody wrote anything": () => refused(write([{}]), OTHER_MANAGER),
      "and a key beside": () =>
        refused(
          patch("with-key", { metadata: { managedFields: [{}] }, data: { key: DOCKER_CONFIG } }),
          OTHER_KEY,
        ),
      "in another's name": () => {
        const body = { metadata: { annotations: { [TOKEN_IDENTITY]: UID } } };
        const flags = ["--type=merge", "--field-manager=gitops", "-p", JSON.stringify(body)];
        return refused(
          controller(["patch", "secret", "of-gitops", "-n", TEAM, ...flags]),
          OTHER_MANAGER,
        );
      },
      "by server-side apply": () => {
        const secret = labelled("of-gitops", { [TOKEN_IDENTITY]: UID }, { stringData: undefined });
        const flags = ["--server-side", "--force-conflicts", `--field-manager=${FIELD_MANAGER}`];
        return refused(
          controller(["apply", ...flags, "-f", "-"], JSON.stringify(secret)),
          OTHER_MANAGER,
        );
      },
    });
  });

  await step("the controller cannot create, replace or delete a Secret", () =>
    each({
      create: () =>
        refused(controller(["create", "-f", "-"], JSON.stringify(labelled("new"))), NO_RIGHT),
      "create by server-side apply": () => {
        const apply = ["apply", "--server-side", "-f", "-"];
        // Kubernetes 1.30 does not say why.
        return refused(
          controller(apply, JSON.stringify(labelled("new"))),
          /secrets "new" is forbidden/,
        );
      },
      replace: async () => {
        const secret = await getJson(context, "secret", "plain", "-n", TEAM);
        return refused(controller(["replace", "-f", "-"], JSON.stringify(secret)), NO_RIGHT);
      },
      delete: () => refused(controller(["delete", "secret", "plain", "-n", TEAM]), NO_RIGHT),
      "delete all": () => refused(controller(["delete", "secrets", "--all", "-n", TEAM]), NO_RIGHT),
    }));

  await step("the controller's requests that were refused changed nothing", async () => {
    const after = await versions(context);
    expect(before === after, `before:\n${before}\nafter:\n${after}`);
  });

  await step("the controller cannot request any other token", () =>
    each({
      "of an account that has not granted it": () =>
        refused(requestToken("private", AUDIENCE, 600), NO_RIGHT),
      "of its own": () =>
        refused(
          controller(["create", "token", ACCOUNT, "-n", NAMESPACE, `--audience=${AUDIENCE}`]),
          NO_RIGHT,
        ),
      "for the API server": () =>
        refused(requestToken("puller", "https://kubernetes.default.svc", 600), OTHER_TOKEN),
      "for whatever is the default": () =>
        refused(tokenRequest({ expirationSeconds: 600 }), OTHER_TOKEN),
      "for another audience beside": () =>
        refused(
          tokenRequest({ audiences: [AUDIENCE, "other"], expirationSeconds: 600 }),
          OTHER_TOKEN,
        ),
      "for a year": () => refused(requestToken("puller", AUDIENCE, YEAR_S), OTHER_TOKEN),
      "for a second more than an hour": () =>
        refused(requestToken("puller", AUDIENCE, 3601), OTHER_TOKEN),
    }));

  const COPIES = 8;
  const copiesOf = (name: string) =>
    Array.from({ length: COPIES }, (_, index) => `${name}-${index}`);
  /** What a write takes of the API server's CPU time, in ms: a busy machine does not change that much. */
  const cost = async (names: string[]) => {
    const pid = pidOf(cluster.options.dir, "kube-apiserver")!;
    const began = usageOf(pid).cpuS;
    for (const name of names) await write(name);
    return (usageOf(pid).cpuS - began) * 1000 / names.length;
  };
  await step("the policies take the API server no time that a tenant chooses", async () => {
    const kinds = { crowded, largest };
    const measure = async () => {
      const ms: Record<string, number> = {};
      for (const name of ["plain", "20000-annotations"]) {
        ms[name] = await cost(copiesOf(name).map(() => name));
      }
      // Each is written for the first time, which takes the docker config from those who had it.
      for (const [name, secret] of Object.entries(kinds)) {
        await createAll(kubectl, copiesOf(name).map(secret));
        ms[name] = await cost(copiesOf(name));
        await kubectl(["delete", "secret", "-n", TEAM, ...copiesOf(name)]);
      }
      return ms;
    };
    const withThem = await measure();
    const without = await withoutPolicies(kubectl, measure);
    const said = Object.entries(withThem).map(([name, ms]) =>
      `${name}: ${ms.toFixed(0)} ms, without ${without[name]!.toFixed(0)}`
    ).join("; ");
    for (const [name, ms] of Object.entries(withThem)) {
      // Whatever a policy says, the API server converts the Secret for it a few times.
      expect(ms <= 20 + without[name]! * 3, said);
    }
    return said;
  });

  await step("the controller can read nothing but Secrets", () => {
    const kinds = [
      "configmaps",
      "pods",
      "serviceaccounts",
      "events",
      "events.events.k8s.io",
      "nodes",
      "namespaces",
    ];
    const rest = [
      "deployments",
      "roles",
      "clusterroles",
      "validatingadmissionpolicies",
      "tokenreviews",
    ];
    const reads = [...kinds, ...rest].map((kind) => {
      const verb = kind === "tokenreviews" ? "create" : "list";
      return [kind, async () => {
        const said = await controller(["auth", "can-i", verb, kind, "-A"]).catch((error: Error) =>
          error.message
        );
        expect(/(^|: )no\b/.test(said), `it may: ${said}`);
      }];
    });
    const configMaps = () => refused(controller(["get", "configmaps", "-n", TEAM]), NO_RIGHT);
    return each({ ...Object.fromEntries(reads), "config maps, asked for": configMaps });
  });

  client.close();
}

/** Name and resource version of each Secret. */
async function versions(context: Given): Promise<string> {
  const { items } = await getJson(context, "secrets", "-n", TEAM);
  return items.map(({ metadata }: Json) => `${metadata.name} ${metadata.resourceVersion}`).join(
    "\n",
  );
}

// ───── Who may name an identity ─────

async function userSide({ kubectl, step }: Given): Promise<void> {
  const user = (name: string): Kubectl => (args, input) =>
    kubectl([`--as=${name}`, ...args], input);
  /** May write Secrets, and no more. */
  const alice = user("alice");
  /** May use the identity, in one namespace. */
  const bob = user("bob");
  /** May create tokens of the account `puller`. */
  const carol = user("carol");
  /** May do everything in one namespace. */
  const dave = user("dave");
  /** Is bound to the role that the manifest has for users, in one namespace. */
  const erin = user("erin");
  const create = (who: Kubectl, secret: Json) => who(["create", "-f", "-"], JSON.stringify(secret));
  const annotate = (who: Kubectl, name: string, ...notes: string[]) =>
    who(["annotate", "secret", name, "-n", TEAM, "--overwrite", ...notes]);
  const label = (who: Kubectl, name: string, ...labels: string[]) =>
    who(["label", "secret", name, "-n", TEAM, "--overwrite", ...labels]);
  const patch = (who: Kubectl, name: string, body: object) =>
    who(["patch", "secret", name, "-n", TEAM, "--type=merge", "-p", JSON.stringify(body)]);
  const inNamespace = (namespace: string, secret: Json) => ({
    ...secret,
    metadata: { ...secret.metadata, namespace },
  });

  await step("the manifest's role for users allows any identity, where it is bound", () =>
    each({
      "one": () => create(erin, labelled("erins")),
      "another": () => create(erin, labelled("erins-other", {}, {}, OTHER_UID)),
      "elsewhere": () =>
        refused(create(erin, inNamespace(OTHER, labelled("erins"))), needsUse("erin", NAME, OTHER)),
    }));

  await step("without the Role a user cannot name an identity", () =>
    each({
      "create, by label": () => refused(create(alice, labelled("new")), needsUse("alice")),
      "create, by annotation": () =>
        refused(create(alice, labelled("new", { [IDENTITY]: UID }, {}, "")), needsUse("alice")),
      "create, by apply": () =>
        refused(
          alice(["apply", "--server-side", "-f", "-"], JSON.stringify(labelled("new"))),
          needsUse("alice"),
        ),
      "create, of another type": () =>
        refused(create(alice, labelled("new", {}, { type: "Opaque" })), needsUse("alice")),
      "set the label": () =>
        refused(label(alice, "empty", `${IDENTITY}=${NAME}`), needsUse("alice")),
      "set the annotation": () =>
        refused(annotate(alice, "empty", `${IDENTITY}=${UID}`), needsUse("alice")),
      "change the label": () =>
        refused(label(alice, "plain", `${IDENTITY}=${OTHER_NAME}`), needsUse("alice", OTHER_NAME)),
      "change the annotation": () =>
        refused(
          annotate(alice, "by-note", `${IDENTITY}=${OTHER_UID}`),
          needsUse("alice", OTHER_NAME),
        ),
      "change both": () =>
        refused(
          patch(alice, "both", {
            metadata: {
              labels: { [IDENTITY]: OTHER_NAME },
              annotations: { [IDENTITY]: OTHER_UID },
            },
          }),
          needsUse("alice", OTHER_NAME),
        ),
      "uncover the label": () =>
        refused(annotate(alice, "differing", `${IDENTITY}-`), needsUse("alice")),
      "uncover the label, by an empty annotation": () =>
        refused(annotate(alice, "differing", `${IDENTITY}=`), needsUse("alice")),
      "uncover the annotation": () =>
        refused(label(alice, "differing", `${IDENTITY}=`), needsUse("alice", OTHER_NAME)),
      "make the label agree": () =>
        refused(
          label(alice, "differing", `${IDENTITY}=${OTHER_NAME}`),
          needsUse("alice", OTHER_NAME),
        ),
      "make the annotation agree": () =>
        refused(annotate(alice, "differing", `${IDENTITY}=${UID}`), needsUse("alice")),
      "label late": () =>
        refused(label(alice, "unlabelled", `${IDENTITY}=${NAME}`), needsUse("alice")),
      "label late, with the annotation there": () =>
        refused(label(alice, "noted", `${IDENTITY}=`), needsUse("alice")),
      "copy into another namespace": () =>
        refused(create(bob, inNamespace(OTHER, labelled("copy"))), needsUse("bob", NAME, OTHER)),
      "another identity than one's own": () =>
        refused(create(bob, labelled("new", {}, {}, OTHER_UID)), needsUse("bob", OTHER_NAME)),
      "as a service account": () =>
        refused(create(user(GITOPS), labelled("new")), needsUse(GITOPS)),
    }));

  await step("with the Role he can", () =>
    each({
      "create, by label": () => create(bob, labelled("by-label")),
      "create, by annotation": () =>
        create(bob, labelled("by-annotation", { [IDENTITY]: UID }, {}, "")),
      "label late": () => label(bob, "noted", `${IDENTITY}=`),
      "set the annotation": () => annotate(bob, "empty", `${IDENTITY}=${UID}`),
      "an empty identity, without a Role": () => create(alice, labelled("empty-too", {}, {}, "")),
      "whoever may do everything in the namespace": () =>
        create(dave, labelled("by-dave", {}, {}, OTHER_UID)),
      "the cluster's administrator": () => create(kubectl, labelled("by-admin", {}, {}, OTHER_UID)),
    }));

  const identities = (labels: string, annotations: string) => ({
    metadata: { labels: { [IDENTITY]: labels }, annotations: { [IDENTITY]: annotations } },
  });
  await step(
    "a label and an annotation of different identities are approved by nobody",
    () =>
      each({
        create: () =>
          refused(create(bob, labelled("new", { [IDENTITY]: OTHER_UID })), differ("new")),
        "create, by the administrator": () =>
          refused(create(kubectl, labelled("new", { [IDENTITY]: OTHER_UID })), differ("new")),
        "label what a tenant planted": () =>
          refused(label(dave, "planted", `${IDENTITY}=${NAME}`), differ("planted")),
        "label what a tenant planted, by the administrator": () =>
          refused(label(kubectl, "planted", `${IDENTITY}=${NAME}`), differ("planted")),
        "apply over what a tenant planted": () =>
          refused(
            dave(["apply", "-f", "-"], JSON.stringify(applied("planted"))),
            differ("planted"),
          ),
        "server-side apply over what a tenant planted": () =>
          refused(apply(dave, applied("planted")), differ("planted")),
        "server-side apply over what a tenant planted, without a right": () =>
          refused(apply(alice, applied("planted")), differ("planted")),
        "cover the label": () =>
          refused(annotate(alice, "plain", `${IDENTITY}=${OTHER_UID}`), differ("plain")),
        "cover the label, with the right": () =>
          refused(annotate(dave, "plain", `${IDENTITY}=${OTHER_UID}`), differ("plain")),
        "change one of both": () =>
          refused(
            label(dave, "both", `${IDENTITY}=${OTHER_NAME}`),
            differ("both", OTHER_NAME, UID),
          ),
        "change the other of both": () =>
          refused(annotate(dave, "both", `${IDENTITY}=${OTHER_UID}`), differ("both")),
        "a label beside the annotation": () =>
          refused(
            label(dave, "by-note", `${IDENTITY}=${OTHER_NAME}`),
            differ("by-note", OTHER_NAME, UID),
          ),
        "what differs otherwise": () =>
          refused(
            patch(dave, "differing", identities(OTHER_NAME, UID)),
            differ("differing", OTHER_NAME, UID),
          ),
        "a child": () =>
          refused(
            annotate(dave, "plain", `${IDENTITY}=${UID}/${"2c".repeat(8)}`),
            differ("plain", NAME, `${UID}/${"2c".repeat(8)}`),
          ),
        "an annotation of two lines": () =>
          refused(
            annotate(dave, "plain", `${IDENTITY}=x\ny`),
            /name different identities: put the same/,
          ),
        "without a name": () => {
          const secret = labelled("", { [IDENTITY]: OTHER_UID });
          secret.metadata = { ...secret.metadata, name: undefined, generateName: "new-" };
          return refused(create(dave, secret), /says 0a.* --namespace policies-team /);
        },
      }),
  );
  await step("what a tenant planted can be approved by its own name, or taken off", async () => {
    await label(dave, "planted", `${IDENTITY}=${OTHER_NAME}`);
    await label(dave, "planted", `${IDENTITY}-`);
    await annotate(dave, "planted", `${IDENTITY}-`);
    await apply(dave, applied("planted"));
  });
  await step("an account that a tenant planted needs the right to its tokens", () =>
    each({
      label: () =>
        refused(
          label(bob, "planted-account", `${IDENTITY}=${NAME}`),
          needsAccount("bob", "puller"),
        ),
      "server-side apply": () =>
        refused(apply(bob, applied("planted-account")), needsAccount("bob", "puller")),
    }));
  await step(
    "a Secret whose label and annotation differed before can be edited and mended",
    () =>
      each({
        "edited, without a right": async () => {
          await annotate(alice, "differing", "note=x", `${REFRESH}=now`);
          await label(alice, "differing", "more=x");
          await patch(alice, "differing", { data: { key: DOCKER_CONFIG } });
          await alice(["delete", "secret", "differing", "-n", TEAM]);
        },
        "emptied, without a right": () => patch(alice, "differing-too", identities("", "")),
        "mended, with the right": async () => {
          await annotate(bob, "differing-three", `${IDENTITY}=${UID}`);
          await annotate(bob, "differing-three", `${IDENTITY}-`);
        },
      }),
  );

  const needsPrivate = needsAccount("carol", "private");
  await step(
    "`service-account` can be set and changed by whoever may create that account's tokens",
    () =>
      each({
        "create, without the right": () =>
          refused(
            create(alice, labelled("new", { [SERVICE_ACCOUNT]: "puller" })),
            needsAccount("alice", "puller"),
          ),
        "`use` is not that right": () =>
          refused(
            create(bob, labelled("new", { [SERVICE_ACCOUNT]: "puller" })),
            needsAccount("bob", "puller"),
          ),
        "set, another account": () =>
          refused(annotate(carol, "plain", `${SERVICE_ACCOUNT}=private`), needsPrivate),
        "change, another account": () =>
          refused(annotate(carol, "of-account", `${SERVICE_ACCOUNT}=private`), needsPrivate),
        "take it off, without `use`": () =>
          refused(annotate(carol, "of-account", `${SERVICE_ACCOUNT}-`), needsUse("carol")),
        "empty": () => refused(annotate(bob, "plain", `${SERVICE_ACCOUNT}=`), BAD_ACCOUNT),
        "upper case": () =>
          refused(annotate(kubectl, "plain", `${SERVICE_ACCOUNT}=Puller`), BAD_ACCOUNT),
        "another namespace's": () =>
          refused(annotate(kubectl, "plain", `${SERVICE_ACCOUNT}=../x/puller`), BAD_ACCOUNT),
        "two lines": () =>
          refused(annotate(kubectl, "plain", `${SERVICE_ACCOUNT}=puller\n`), BAD_ACCOUNT),
        "254 characters": () =>
          refused(annotate(kubectl, "plain", `${SERVICE_ACCOUNT}=${"a".repeat(254)}`), BAD_ACCOUNT),
        "in the controller's namespace": () => {
          const secret = labelled("new", { [SERVICE_ACCOUNT]: ACCOUNT });
          return refused(create(kubectl, inNamespace(NAMESPACE, secret)), BAD_ACCOUNT);
        },
        "create, with the right": () =>
          create(carol, labelled("with-account", { [SERVICE_ACCOUNT]: "puller" })),
        "253 characters": () =>
          create(kubectl, labelled("long-account", { [SERVICE_ACCOUNT]: `a${".a".repeat(126)}` })),
      }),
  );
  await step("`service-account` can be taken off by whoever may use the identity", async () => {
    await annotate(bob, "of-account", `${SERVICE_ACCOUNT}-`);
  });

  await step(
    "an apply that takes `service-account` off approves only an identity that it names",
    () => {
      const account = { [SERVICE_ACCOUNT]: "puller" };
      const plain = (name: string) => {
        const secret = applied(name);
        delete secret.metadata.labels;
        return secret;
      };
      /** Whoever may create that account's tokens names an identity, and plants the account in another's name. */
      const plant = async (name: string, plantAccount: () => Promise<unknown>) => {
        await create(alice, unlabelled(name));
        await plantAccount();
        await label(carol, name, `${IDENTITY}=${OTHER_NAME}`);
      };
      const withAccount = (name: string) => {
        const secret = plain(name);
        return { ...secret, metadata: { ...secret.metadata, annotations: account } };
      };
      return each({
        "server-side": async () => {
          const name = "planted-server-side";
          await plant(name, () => apply(carol, withAccount(name)));
          await refused(apply(dave, plain(name)), NOT_APPLIED);
          await apply(dave, {
            ...plain(name),
            metadata: labelled(name, {}, {}, OTHER_UID).metadata,
          });
        },
        "client-side": async () => {
          const name = "planted-client-side";
          const clientSide = (who: Kubectl, secret: Json) =>
            who(["apply", "-f", "-"], JSON.stringify(secret));
          await plant(name, () => clientSide(carol, withAccount(name)));
          await refused(clientSide(dave, plain(name)), NOT_APPLIED);
          await clientSide(dave, {
            ...plain(name),
            metadata: labelled(name, {}, {}, OTHER_UID).metadata,
          });
        },
      });
    },
  );

  await step("all else of an approved Secret is its users' to write", async () => {
    // One after another: they are about one Secret.
    await label(alice, "to-edit", "more=x");
    await annotate(alice, "to-edit", "note=x", `${REFRESH}=now`);
    await patch(alice, "to-edit", {
      data: { key: DOCKER_CONFIG, ".dockerconfigjson": DOCKER_CONFIG },
    });
    await patch(alice, "to-edit", { metadata: { finalizers: ["example.com/x"] } });
    await patch(alice, "to-edit", {
      metadata: { finalizers: null, labels: { more: null } },
      data: { key: null },
    });
    // Both forms of one identity.
    await annotate(alice, "to-edit", `${IDENTITY}=${UID}`);
    // And one form of two.
    await label(alice, "both", `${IDENTITY}=`);
    // Off with the label, and what the annotations say is of no account.
    const annotations = { [IDENTITY]: OTHER_UID, [SERVICE_ACCOUNT]: "No Name" };
    await patch(alice, "to-unlabel", { metadata: { labels: { [IDENTITY]: null }, annotations } });
    await refused(label(alice, "to-unlabel", `${IDENTITY}=${OTHER_NAME}`), BAD_ACCOUNT);
    await alice(["delete", "secret", "to-delete", "to-edit", "-n", TEAM]);
  });

  const filled = (sizes: number[]) =>
    Object.fromEntries(sizes.map((size, index) => [`key-${index}`, base64("x".repeat(size))]));
  const opaque = (name: string, sizes: number[], labels: object) => ({
    apiVersion: "v1",
    kind: "Secret",
    metadata: { name, namespace: TEAM, labels },
    type: "Opaque",
    data: filled(sizes),
  });
  const ours = { [IDENTITY]: "" };
  const keys = (count: number) => Array<number>(count).fill(1);
  await step("a labelled Secret is bounded in size, any other is not", () =>
    each({
      "16 keys": () => create(alice, opaque("16-keys", keys(MAX_KEYS), ours)),
      "17 keys": () =>
        refused(create(alice, opaque("17-keys", keys(MAX_KEYS + 1), ours)), TOO_LARGE),
      "96 KiB": () => create(alice, opaque("96-kib", [MAX_VALUE_BYTES], ours)),
      "96 KiB and one byte": () =>
        refused(create(alice, opaque("large", [MAX_VALUE_BYTES + 1], ours)), TOO_LARGE),
      "a large one, by the administrator": () =>
        refused(create(kubectl, opaque("large", [MAX_VALUE_BYTES * 2], ours)), TOO_LARGE),
      "a key more than 16": async () => {
        await create(alice, opaque("16-keys-too", keys(MAX_KEYS), ours));
        await refused(patch(alice, "16-keys-too", { data: { more: "" } }), TOO_LARGE);
      },
      "labelled later": async () => {
        await create(alice, opaque("100-keys", keys(100), {}));
        await refused(label(alice, "100-keys", `${IDENTITY}=`), TOO_LARGE);
      },
      "unlabelled, of 700 KiB": async () => {
        await create(alice, opaque("700-kib", [700 * 1024], { other: "label" }));
        await patch(alice, "700-kib", { data: { more: DOCKER_CONFIG } });
      },
      "unlabelled, with our annotations": () =>
        create(
          alice,
          unlabelled("annotated", { [IDENTITY]: OTHER_UID, [SERVICE_ACCOUNT]: "No Name" }),
        ),
    }));

  const dry = (secret: Json, more: object = {}) => {
    const metadata = { ...secret.metadata, ...more };
    const args = ["create", "--dry-run=server", "-f", "-"];
    return kubectl(args, JSON.stringify({ ...secret, metadata }));
  };
  const nameless = (annotations: object = {}, more: object = {}) =>
    labelled("sized", annotations, more, "");
  const ownAnnotations = [REFRESH, REFRESHED, TOKEN_IDENTITY, TOKEN_EXPIRES];
  const allOwn = Object.fromEntries([IDENTITY, ...ownAnnotations].map((name) => [name, UID]));
  const owners = (count: number, kind = "ConfigMap") =>
    Object.keys(many(count)).map((name) => ({ apiVersion: "v1", kind, name, uid: `uid-${name}` }));
  const managers = (count: number, fields = "f:x") =>
    Object.keys(many(count)).map((manager) => ({
      manager,
      operation: "Update",
      apiVersion: "v1",
      fieldsType: "FieldsV1",
      fieldsV1: { "f:data": { [fields]: {} } },
    }));
  const withManagers = (entries: object[]) => dry(nameless(), { managedFields: entries });
  await step("what a labelled Secret has beside its data is bounded", () =>
    each({
      "100 labels": () => dry(nameless(), { labels: { ...ours, ...many(MAX_LABELS - 1) } }),
      "101 labels": () =>
        refused(dry(nameless(), { labels: { ...ours, ...many(MAX_LABELS) } }), TOO_MANY),
      "100 annotations, and ours": () => dry(nameless({ ...allOwn, ...many(MAX_ANNOTATIONS) })),
      "101 annotations": () => refused(dry(nameless(many(MAX_ANNOTATIONS + 1))), TOO_MANY),
      "what kubectl applied last, of 200 KiB": () =>
        dry(nameless({
          "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(200 * 1024),
        })),
      "annotations of ours of 300 characters": () =>
        dry(
          nameless(Object.fromEntries(ownAnnotations.map((name) => [name, "€".repeat(MAX_CHARS)]))),
        ),
      "annotations of ours of 301 characters": async () => {
        for (const name of [...ownAnnotations, IDENTITY]) {
          await refused(dry(nameless({ [name]: "x".repeat(MAX_CHARS + 1) })), TOO_LONG);
        }
      },
      "a type of 253 characters": () => dry(nameless({}, { type: "x".repeat(MAX_TYPE_CHARS) })),
      "a type of 254 characters": () =>
        refused(dry(nameless({}, { type: "x".repeat(MAX_TYPE_CHARS + 1) })), LONG_TYPE),
      "16 owners": () => dry(nameless(), { ownerReferences: owners(MAX_OWNERS) }),
      "17 owners": () =>
        refused(dry(nameless(), { ownerReferences: owners(MAX_OWNERS + 1) }), TOO_MANY_OWNERS),
      "a large owner": () =>
        refused(dry(nameless(), { ownerReferences: owners(1, "x".repeat(1025)) }), TOO_MANY_OWNERS),
      "16 finalizers": () => dry(nameless(), { finalizers: finalizers(MAX_FINALIZERS) }),
      "17 finalizers": () =>
        refused(
          dry(nameless(), { finalizers: finalizers(MAX_FINALIZERS + 1) }),
          TOO_MANY_FINALIZERS,
        ),
      // Two entries are of the request itself, and the API server merges those of updates.
      "31 managers": () =>
        withManagers(managers(MAX_MANAGERS - 1).map((entry) => ({ ...entry, operation: "Apply" }))),
      "33 managers": () =>
        refused(
          withManagers(managers(MAX_MANAGERS).map((entry) => ({ ...entry, operation: "Apply" }))),
          TOO_MANY_MANAGERS,
        ),
      "large managedFields": () =>
        refused(
          withManagers(managers(1, `f:${"x".repeat(MAX_MANAGERS_BYTES)}`)),
          TOO_MANY_MANAGERS,
        ),
      "labelled later": async () => {
        await create(alice, unlabelled("100-annotations", many(MAX_ANNOTATIONS + 1)));
        await refused(label(alice, "100-annotations", `${IDENTITY}=`), TOO_MANY);
        await create(alice, unlabelled("long-refresh", { [REFRESH]: "x".repeat(MAX_CHARS + 1) }));
        await refused(label(alice, "long-refresh", `${IDENTITY}=`), TOO_LONG);
        await create(alice, { ...unlabelled("long-type"), type: "x".repeat(MAX_TYPE_CHARS + 1) });
        await refused(label(alice, "long-type", `${IDENTITY}=`), LONG_TYPE);
      },
      "what was larger before may stay, and shrink": async () => {
        await annotate(alice, "oversized", "x-1=y", `${REFRESH}=now`);
        await label(alice, "oversized", "x-1=y");
        await patch(alice, "oversized", { data: { key: DOCKER_CONFIG } });
        await refused(annotate(alice, "oversized", "more=x"), TOO_MANY);
        await refused(label(alice, "oversized", "more=x"), TOO_MANY);
        await refused(
          annotate(alice, "oversized", `${REFRESH}=${"x".repeat(MAX_CHARS + 1)}`),
          TOO_LONG,
        );
        await annotate(alice, "oversized", "x-1-", "x-2-", "x-3-");
        await label(alice, "oversized", "x-1-", "x-2-");
        await refused(
          patch(alice, "oversized", { metadata: { finalizers: finalizers(MAX_FINALIZERS + 5) } }),
          TOO_MANY_FINALIZERS,
        );
        await patch(alice, "oversized", {
          metadata: { finalizers: finalizers(MAX_FINALIZERS + 1) },
        });
        await patch(alice, "oversized", { metadata: { finalizers: null } });
      },
    }));
}

// ───── The manifest ─────

/** The checkers that are not everywhere, and how to get them. */
const CHECKERS = {
  "kube-score": "go install github.com/zegl/kube-score/cmd/kube-score@v1.20.0",
  yamllint: "pip install yamllint",
};
/** Kubernetes' own way to indent lists and to write comments, and the line length of this project. */
const YAMLLINT = {
  extends: "default",
  rules: {
    "line-length": { max: 120, "allow-non-breakable-words": true },
    indentation: { "indent-sequences": "consistent" },
    comments: { "min-spaces-from-content": 1 },
    // As deno fmt has it.
    braces: { "max-spaces-inside": 1 },
    "document-start": "disable",
  },
};
const FILLED_IN = "registry.example.com/pull-secret-updater:0.1.0";

/** Applies the manifest to a cluster that has not seen it, and again. */
export async function manifest(context: Given, file: string): Promise<void> {
  const { kubectl, step, work } = context;
  const text = readFileSync(file, "utf8").replace(/\bimage: IMAGE\b/, `image: ${FILLED_IN}`);
  const apply = (...flags: string[]) => kubectl(["apply", "-f", "-", ...flags], text);

  await step("the manifest applies", async () => {
    await apply();
  });
  await step("applied again it changes nothing", async () => {
    const before = await generations(context, text);
    const lines = (await apply()).trim().split("\n");
    expect(await generations(context, text) === before, "an object was changed");
    // kubectl's patch of a PodDisruptionBudget is never empty: its selector is always replaced as a whole.
    const changed = lines.filter((line) => !/ unchanged$|^poddisruptionbudget/.test(line));
    expect(changed.length === 0, changed.join("\n"));
    return `${lines.length} objects`;
  });
  await step("it passes a dry run at the server, by both ways to apply", async () => {
    await apply("--dry-run=server");
    await apply("--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict");
  });

  const path = join(work, "deploy.yaml");
  writeFileSync(path, text);
  const check = async (program: keyof typeof CHECKERS, args: string[]) => {
    if (!isInstalled(program)) return `skipped, not installed: ${CHECKERS[program]}`;
    await run(program, [...args, path]).catch((error: Error & { cause?: Json }) => {
      throw new Error(`${error.message}\n${error.cause?.stdout ?? ""}`);
    });
  };
  await step(
    "kube-score finds nothing",
    () => check("kube-score", ["score", "--kubernetes-version=v1.30"]),
  );
  await step(
    "yamllint finds nothing",
    () => check("yamllint", ["--strict", "-d", JSON.stringify(YAMLLINT)]),
  );
}

/** What changes with an object but not with its status. */
async function generations({ kubectl }: Given, text: string): Promise<string> {
  const { items } = JSON.parse(await kubectl(["get", "-f", "-", "-o", "json"], text));
  const lines = items.map(({ kind, metadata: { name, uid, generation, resourceVersion } }: Json) =>
    [kind, name, uid, generation ?? resourceVersion].join(" ")
  );
  return lines.join("\n");
}

// ───── Helpers ─────

/** Runs cases at once, and tells all that are not as they should be. */
async function each(cases: Record<string, () => Promise<unknown>>): Promise<string> {
  const entries = Object.entries(cases);
  const outcomes = await Promise.allSettled(entries.map(([, attempt]) => attempt()));
  const failures = outcomes.flatMap((outcome, index) =>
    outcome.status === "rejected"
      ? [`${entries[index]![0]}: ${(outcome.reason as Error).message}`]
      : []
  );
  if (failures.length > 0) throw new Error(failures.join("\n"));
  return `${entries.length} cases`;
}

function literally(text: string): RegExp {
  return new RegExp(RegExp.escape(text) + "($|\\s)");
}

function base64(text: string): string {
  return Buffer.from(text).toString("base64");
}

function claimsOf(token: string): Json {
  return JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString());
}

/** On a control plane of its own. */
async function alone(file: string): Promise<number> {
  const place = { dir: join(tmpdir(), "policies-cluster"), port: 19443 };
  const work = mkdtempSync(join(tmpdir(), "policies-"));
  const counts = { passed: 0, failed: 0 };
  const step: Context["step"] = async (title, attempt) => {
    const began = performance.now();
    const seconds = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
    try {
      const said = await attempt();
      counts.passed++;
      console.log(`ok      ${title}${said ? ` (${said})` : ""}, ${seconds()}`);
    } catch (error) {
      counts.failed++;
      console.log(
        `FAILED  ${title}, ${seconds()}\n${(error as Error).message.replace(/^/gm, "        ")}`,
      );
    }
  };
  await endCluster(place);
  try {
    const cluster = await startCluster(place);
    const kubectl: Kubectl = (args, input) => cluster.kubectl(args, input);
    const context = {
      cluster,
      kubectl,
      as: (token: string) => kubectlAs(cluster, token),
      step,
      work,
    };
    await manifest(context, file);
    await flags(context);
    await policies(context);
  } finally {
    await endCluster(place);
    rmSync(work, { recursive: true });
  }
  console.log(`${counts.passed} passed, ${counts.failed} failed`);
  return counts.failed === 0 ? 0 : 1;
}

if (import.meta.main) {
  process.exitCode = await alone(
    process.argv[2] ?? join(ROOT, "deploy.yaml"),
  );
}
