/**
 * RBAC and the admission policies of deploy.yaml, from both sides: what the controller may do with its own token and
 * nothing more, and who may name an identity.
 *
 *   node dev/e2e/policies.ts [MANIFEST]      alone, on a control plane of its own; no root needed
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createClient } from "../../k8s.ts";
import { down as endCluster, up as startCluster } from "../cluster/cluster.ts";
import { isInstalled, run } from "../cluster/processes.ts";
import {
  ACCOUNT,
  type Context,
  expect,
  getJson,
  IDENTITY,
  type Json,
  type Kubectl,
  kubectlAs,
  NAMESPACE,
  PREFIX,
  pullSecret,
  refused,
  until,
} from "./context.ts";

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
const SERVICE_ACCOUNT = `${PREFIX}/service-account`;
const REFRESH = `${PREFIX}/refresh`;
const GITOPS = `system:serviceaccount:${TEAM}:gitops`;
const AUDIENCE = "issuer.enforce.dev";
const DOCKER_CONFIG = base64('{"auths":{"cgr.dev":{"auth":"X3Rva2VuOng="}}}');
const YEAR_S = 365 * 24 * 3600;
/** The limits of a labelled Secret. */
const MAX_KEYS = 16;
const MAX_VALUE_BYTES = 96 * 1024;

/** What is said to whom a right is missing: the rule of the Role to ask for. */
const needsUse = (user: string, name = NAME, namespace = TEAM) =>
  literally(
    `${user} needs a Role: apiGroup ${PREFIX}, resource identities, verb use, resourceName ${name}, namespace ${namespace}`,
  );
const needsAccount = (user: string, account: string) =>
  literally(
    `${user} needs a Role: verb create, resource serviceaccounts/token, resourceName ${account}, namespace ${TEAM}`,
  );
const OTHER_SECRET =
  /pull-secret-updater-controller.*the controller writes labelled pull Secrets only/;
const OTHER_KEY = /pull-secret-updater-controller.*the controller writes \.dockerconfigjson only/;
const OTHER_ANNOTATION =
  /pull-secret-updater-controller.*the controller writes its own annotations only/;
const OTHER_TOKEN = /pull-secret-updater-tokens.*tokens for the issuer only, for an hour at most/;
const BAD_ACCOUNT =
  /pull-secret-updater-identity.*service-account must be the name of a service account of this name/;
const TOO_LARGE = /pull-secret-updater-identity.*at most 16 keys of at most 96 KiB/;
const NO_RIGHT = /cannot \w+ resource/;

/** On a cluster with deploy.yaml applied. */
export async function policies(context: Given): Promise<void> {
  await prepare(context);
  await controllerSide(context);
  await userSide(context);
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
    labelled("to-write", { [REFRESH]: "now", note: "a user's" }),
    labelled("with-key", { note: "a user's" }, { data: { key: base64("a user's") } }),
    labelled("opaque", {}, { type: "Opaque" }),
    unlabelled("unlabelled"),
    unlabelled("noted", { [IDENTITY]: UID }),
    labelled("hidden", { [IDENTITY]: UID }, {}, OTHER_UID),
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
  const users = ["alice", "bob", "carol", GITOPS].map((name) => ({ kind: "User", name }));
  const controller = { kind: "ServiceAccount", name: ACCOUNT, namespace: NAMESPACE };
  const write = { apiGroups: [""], resources: ["secrets"], verbs: ["*"] };
  const use = {
    apiGroups: [PREFIX],
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
  const items = [...namespaces, ...accounts, ...roles, ...secrets];
  await kubectl(["create", "-f", "-"], JSON.stringify({ apiVersion: "v1", kind: "List", items }));
  // A policy takes a moment to be in force.
  await until("the policies are in force", async () => {
    const attempt = kubectl(
      ["--as=alice", "create", "--dry-run=server", "-f", "-"],
      JSON.stringify(labelled("first")),
    );
    return await attempt.then(() => false, (error: Error) => needsUse("alice").test(error.message));
  });
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

// ───── What the controller may do ─────

async function controllerSide(context: Given): Promise<void> {
  const { cluster, kubectl, as, step, work } = context;
  const token = (await kubectl(["create", "token", ACCOUNT, "-n", NAMESPACE])).trim();
  const tokenFile = join(work, "controller-token");
  writeFileSync(tokenFile, token, { mode: 0o600 });
  const controller = as(token);
  // The program's own client, for requests exactly as the program makes them.
  const client = createClient({
    url: cluster.server,
    tokenFile,
    caFile: cluster.ca,
    labelSelector: IDENTITY,
    userAgent: "policies",
    onAnswer: () => {},
    onStale: () => {},
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
      [`${PREFIX}/token-identity`]: UID,
      [`${PREFIX}/token-expires`]: "2030-01-01T00:00:00.000Z",
      [REFRESH]: null,
    };
    const data = { ".dockerconfigjson": DOCKER_CONFIG };
    const written = await patch("to-write", {
      metadata: { uid, resourceVersion, annotations },
      data,
    });
    expect(written.data?.[".dockerconfigjson"] === DOCKER_CONFIG, "the token is not in it");
    expect(written.metadata.annotations?.[REFRESH] === undefined, "`refresh` is still there");
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
            reportingController: `${PREFIX}/controller`,
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
        refused(annotate("opaque", { [`${PREFIX}/token-identity`]: UID }), OTHER_SECRET),
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
        refused(annotate("hidden", { [IDENTITY]: null }), OTHER_ANNOTATION),
      "the annotation `service-account`": () =>
        refused(annotate("plain", { [SERVICE_ACCOUNT]: "puller" }), OTHER_ANNOTATION),
      "the annotation `service-account`, off": () =>
        refused(annotate("of-account", { [SERVICE_ACCOUNT]: null }), OTHER_ANNOTATION),
      "`refresh` where it is not": () =>
        refused(annotate("plain", { [REFRESH]: "now" }), OTHER_ANNOTATION),
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
          annotate(alice, "hidden", `${IDENTITY}=${OTHER_UID}`),
          needsUse("alice", OTHER_NAME),
        ),
      "cover the label": () =>
        refused(
          annotate(alice, "plain", `${IDENTITY}=${OTHER_UID}`),
          needsUse("alice", OTHER_NAME),
        ),
      "uncover the label": () =>
        refused(annotate(alice, "hidden", `${IDENTITY}-`), needsUse("alice", OTHER_NAME)),
      "uncover the label, by an empty annotation": () =>
        refused(annotate(alice, "hidden", `${IDENTITY}=`), needsUse("alice", OTHER_NAME)),
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
        create(user("dave"), labelled("by-dave", {}, {}, OTHER_UID)),
      "the cluster's administrator": () => create(kubectl, labelled("by-admin", {}, {}, OTHER_UID)),
    }));

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
    // What is hidden may be changed, as long as it stays hidden.
    await label(alice, "hidden", `${IDENTITY}=`);
    // Off with the label, and what the annotations say is of no account.
    const annotations = { [IDENTITY]: OTHER_UID, [SERVICE_ACCOUNT]: "No Name" };
    await patch(alice, "to-unlabel", { metadata: { labels: { [IDENTITY]: null }, annotations } });
    await refused(label(alice, "to-unlabel", `${IDENTITY}=${NAME}`), BAD_ACCOUNT);
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
    process.argv[2] ?? join(import.meta.dirname!, "../../deploy.yaml"),
  );
}
