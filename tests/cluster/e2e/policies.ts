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
import { isInstalled, pidOf, run as runProgram } from "../../support/processes.ts";
import { usageOf } from "../../support/usage.ts";
import { type Context, createHands, createSteps, expect } from "./context.ts";
import { applyTwice } from "./deploy.ts";
import { flags } from "./manifest.ts";
import {
  ACCOUNT,
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
import { base64 } from "../../support/secrets.ts";
import {
  type Act,
  allowed,
  annotate,
  applied,
  apply,
  applyHere,
  create,
  createAll,
  crowded,
  denied,
  differ,
  DOCKER_CONFIG,
  each,
  elsewhere,
  fieldsOf,
  finalizers,
  GITOPS,
  inTurn,
  label,
  labelled,
  largest,
  many,
  MAX,
  NAME,
  needsAccount,
  needsUse,
  note,
  OTHER,
  OTHER_NAME,
  OTHER_UID,
  patch,
  prepare,
  refuses,
  run,
  SAYS,
  setAccount,
  setData,
  setMeta,
  takeAway,
  TEAM,
  UID,
  unlabelled,
  userOf,
  type Who,
  withoutPolicies,
} from "./policies_stage.ts";

type Given =
  & ReturnType<typeof createHands>
  & Pick<Context, "cluster" | "as" | "need" | "step" | "work">;

const FIELD_MANAGER = "pull-secret-updater";
const AUDIENCE = "issuer.enforce.dev";
const YEAR_S = 365 * 24 * 3600;

/** Attempts, all at once, as a step. */
type Check = (title: string, ...attempts: ReturnType<typeof allowed>[]) => Promise<void>;

/** On a cluster with deploy.yaml applied. */
export async function policies(context: Given): Promise<void> {
  await prepare(context.kubectl);
  const check: Check = (title, ...attempts) => context.step(title, () => each(attempts.flat()));
  await controllerSide(context, check);
  await userSide(context, check);
  await takeAway(context.kubectl);
}

// ───── What the controller may do ─────

async function controllerSide(context: Given, check: Check): Promise<void> {
  const { cluster, kubectl, as, step, work } = context;
  const token = (await kubectl(["create", "token", ACCOUNT, "-n", NAMESPACE])).trim();
  const tokenFile = join(work, "controller-token");
  writeFileSync(tokenFile, token, { mode: 0o600 });
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
  const controller: Who = {
    name: "the controller",
    kubectl: as(token),
    patch: (name, body) => client.patch(TEAM, name, body, signal),
  };
  const admin = userOf(kubectl, "the administrator");
  const annotateByAdmin = (name: string, ...notes: string[]) =>
    kubectl(["annotate", "secret", name, "-n", TEAM, "--overwrite", ...notes]);
  const metaOf = async (name: string): Promise<Json> =>
    (await context.get("secret", name, "-n", TEAM, "--show-managed-fields")).metadata;

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
    await controller.patch("to-write", {
      metadata: { uid, resourceVersion, annotations },
      data,
    });
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

  const requestToken = (account: string, audience: string, seconds: number) =>
    client.requestToken(TEAM, account, audience, seconds, signal);
  await check(
    "the controller writes events, and requests tokens where a Role grants it",
    allowed(controller, {
      event: () =>
        client.createEvent(TEAM, {
          metadata: { generateName: "policies-", namespace: TEAM },
          eventTime: new Date().toISOString().replace("Z", "000Z"),
          reportingController: `${PREFIX}controller`,
          reportingInstance: "policies",
          action: "Refresh",
          regarding: { apiVersion: "v1", kind: "Secret", namespace: TEAM, name: "plain" },
          reason: "TokenIssued",
          type: "Normal",
          note: "from policies.ts",
        }, signal),
      "token request": async () => {
        const { sub, aud, exp, iat } = claimsOf(await requestToken("puller", AUDIENCE, 600));
        expect(sub === `system:serviceaccount:${TEAM}:puller`, `another's token: ${sub}`);
        expect(`${aud}` === AUDIENCE && exp - iat === 600, "another audience or life");
      },
    }),
  );

  const write = (name: string) =>
    patch(name, {
      metadata: { annotations: { [TOKEN_IDENTITY]: UID, [TOKEN_EXPIRES]: `${performance.now()}` } },
      data: { ".dockerconfigjson": base64(`{"auths":{},"x":${performance.now()}}`) },
    });
  const ownersOf = async (name: string): Promise<string[]> =>
    (await metaOf(name)).managedFields?.map(({ manager }: Json) => manager) ?? [];
  await check(
    "the controller writes the token whoever wrote it before",
    allowed(controller, {
      "a key of GitOps": async (controller) => {
        await apply(applied("taken"))(admin);
        await inTurn(write("taken"), write("taken"))(controller);
        const { managedFields } = await metaOf("taken");
        const { fieldsV1 } = managedFields.find(({ manager }: Json) => manager === "gitops");
        expect(fieldsV1["f:data"] === undefined, "GitOps still owns it");
        // And back, and again.
        await apply(applied("taken"))(admin);
        await write("taken")(controller);
      },
      "all that a manager had": async (controller) => {
        await write("of-nothing-else")(controller);
        const owners = await ownersOf("of-nothing-else");
        expect(!owners.includes("gitops"), `there is something left of it: ${owners}`);
      },
      "kubectl apply": async (controller) => {
        const secret = labelled("of-kubectl", { note: "a user's", more: "x" });
        for (let times = 0; times < 2; times++) {
          await applyHere(secret)(admin);
          await write("of-kubectl")(controller);
        }
      },
      "its own annotations": async (controller) => {
        const notes = [`${TOKEN_IDENTITY}=x`, `${TOKEN_EXPIRES}=x`, `${REFRESHED}=x`];
        await annotateByAdmin("of-a-person", ...notes);
        await write("of-a-person")(controller);
      },
      "more than ten managers": async (controller) => {
        // The API server keeps ten entries of updates, and merges the oldest.
        for (const name of Object.keys(many(10))) {
          await annotateByAdmin("of-many", `--field-manager=${name}`, `${name}=x`);
        }
        await write("of-many")(controller);
        const owners = await ownersOf("of-many");
        expect(owners.includes("ancient-changes"), `nothing was merged: ${owners}`);
        await refuses(annotate("of-many", { note: "x" }), SAYS.otherAnnotation)(controller);
      },
      "where nobody knows": async (controller) => {
        await setMeta("of-nobody", { managedFields: [{}] })(admin);
        await inTurn(
          write("of-nobody"),
          refuses(annotate("of-nobody", { more: "x" }), SAYS.otherAnnotation),
          refuses(annotate("of-nobody", { note: "x" }), SAYS.otherAnnotation),
          refuses(setMeta("of-nobody", { labels: { more: "x" } }), SAYS.otherSecret),
        )(controller);
      },
      "of a Secret over all limits, from before there were any": inTurn(
        write("oversized"),
        refuses(annotate("oversized", { more: "x" }), SAYS.otherAnnotation),
        refuses(annotate("oversized", { "x-1": "y" }), SAYS.otherAnnotation),
        refuses(annotate("oversized", { "x-1": null }), SAYS.otherAnnotation),
        refuses(annotate("oversized", { "x-1": null, more: "x" }), SAYS.otherAnnotation),
        refuses(setMeta("oversized", { labels: { "x-1": null } }), SAYS.otherSecret),
        // A long `refresh` is served cut, with … at its end.
        annotate("oversized", { [REFRESHED]: "x".repeat(MAX.chars) + "…" }),
      ),
    }),
  );

  await step("what mutating admission adds to its write is not the controller's", async () => {
    const stamp = mutatingPolicy("policies-stamp");
    await kubectl(["apply", "-f", "-"], stamp);
    try {
      await until(async () => {
        await write("stamped")(controller);
        const { annotations, labels } = await metaOf("stamped");
        return annotations.stamp === "yes" && labels.stamp === "yes";
      }, "it adds to a write");
      await inTurn(
        write("stamped"),
        refuses(annotate("stamped", { more: "x" }), SAYS.otherAnnotation),
        refuses(annotate("stamped", { note: "x" }), SAYS.otherAnnotation),
        refuses(annotate("stamped", { note: null }), SAYS.otherAnnotation),
        refuses(note("stamped"), SAYS.otherAnnotation),
        refuses(setMeta("stamped", { labels: { more: "x" } }), SAYS.otherSecret),
        refuses(label("stamped", OTHER_NAME), SAYS.otherSecret),
        // Also in the same write as the first stamp.
        refuses(annotate("plain", { note: "x" }), SAYS.otherAnnotation),
        refuses(annotate("of-nothing-else", { note: null }), SAYS.otherAnnotation),
      )(controller);
    } finally {
      await kubectl(["delete", "-f", "-"], stamp);
    }
    await until(async () => {
      await annotateByAdmin("stamped", "stamp-");
      return (await metaOf("stamped")).annotations.stamp === undefined;
    }, "it adds nothing any more");
  });

  const before = await versions(context);

  const setConfig = (name: string, config = DOCKER_CONFIG) =>
    setData(name, { ".dockerconfigjson": config });
  await check(
    "the controller cannot write another Secret",
    denied(controller, SAYS.otherSecret, {
      unlabelled: setConfig("unlabelled"),
      "labelled in the same patch": label("unlabelled"),
      "with the annotation but no label": setConfig("noted"),
      "of another type": setConfig("opaque"),
      "its own annotation on another type": annotate("opaque", { [TOKEN_IDENTITY]: UID }),
    }),
    denied(controller, /type: Invalid value|field is immutable/, {
      "another type": patch("plain", { type: "Opaque" }),
    }),
  );

  const owner = {
    apiVersion: "v1",
    kind: "ConfigMap",
    name: "x",
    uid: "7e3f3f5a-0000-4000-8000-000000000000",
  };
  const huge = base64(JSON.stringify({ auths: {}, x: "x".repeat(MAX.valueBytes) }));
  const tooLong = "x".repeat(MAX.chars + 2);
  await check(
    "the controller cannot write anything else of a labelled Secret",
    denied(controller, SAYS.otherKey, {
      "a key more": setData("plain", { key: DOCKER_CONFIG }),
      "a key more, by stringData": patch("plain", { stringData: { key: "x" } }),
      "another value of a key": setData("with-key", { key: DOCKER_CONFIG }),
      "a key less": setData("with-key", { key: null }),
    }),
    denied(controller, /data\[\.dockerconfigjson\]: Required value/, {
      "no data": setData("with-key", null),
    }),
    denied(controller, SAYS.otherAnnotation, {
      "an annotation more": annotate("plain", { note: "x" }),
      "another value of an annotation": annotate("with-key", { note: "x" }),
      "an annotation less": annotate("with-key", { note: null }),
      "all annotations off": annotate("with-key", null),
      "the annotation `identity`": note("plain", OTHER_UID),
      "the annotation `identity`, off": note("both", null),
      "the annotation `service-account`": setAccount("plain", "puller"),
      "the annotation `service-account`, off": setAccount("of-account", null),
      "`refresh` where it is not": annotate("plain", { [REFRESH]: "now" }),
      "`refresh`, another value": annotate("to-write", { [REFRESH]: "later" }),
      "`refresh`, off": annotate("to-write", { [REFRESH]: null }),
    }),
    denied(controller, SAYS.tooMuch, {
      "a long `token-identity`": annotate("plain", { [TOKEN_IDENTITY]: tooLong }),
      "a long `token-expires`": annotate("plain", { [TOKEN_EXPIRES]: tooLong }),
      "a long `refreshed`": annotate("plain", { [REFRESHED]: tooLong }),
      "a docker config that is too large": setConfig("with-key", huge),
    }),
    denied(controller, SAYS.otherSecret, {
      generateName: setMeta("plain", { generateName: "x-" }),
      "a label more": setMeta("plain", { labels: { more: "x" } }),
      "another identity, by label": label("plain", OTHER_NAME),
      "the label off": setMeta("plain", { labels: null }),
      "an owner": setMeta("plain", { ownerReferences: [owner] }),
      "a finalizer": setMeta("plain", { finalizers: ["example.com/x"] }),
      immutable: patch("plain", { immutable: true }),
    }),
  );

  const { managedFields } = await metaOf("of-gitops");
  const time = "2026-01-01T00:00:00Z";
  const own = { annotations: { [TOKEN_IDENTITY]: UID } };
  const say = (entries: object[]) => setMeta("of-gitops", { managedFields: entries });
  const add = (manager: string, operation: "Apply" | "Update") =>
    say([...managedFields, {
      ...fieldsOf(manager, operation, { "f:data": { "f:key": {} } }),
      time,
    }]);
  const changed = (fields: object, other: object = {}) =>
    managedFields.map((entry: Json) =>
      entry.manager === "gitops"
        ? { ...entry, ...other, fieldsV1: { ...entry.fieldsV1, ...fields } }
        : entry
    );
  const change = (fields: object, other?: object) => say(changed(fields, other));
  const twoKeys = { "f:data": { "f:.dockerconfigjson": {}, "f:key": {} } };
  const aNote = { "f:metadata": { "f:annotations": { "f:note": {} } } };
  const nothing = managedFields.filter(({ manager }: Json) => manager !== "gitops");
  const asGitOps = ["-n", TEAM, "--type=merge", "--field-manager=gitops", "-p"];
  const serverSide = ["--server-side", "--force-conflicts", `--field-manager=${FIELD_MANAGER}`];
  const secret = labelled("of-gitops", own.annotations, { stringData: undefined });
  await check(
    "the controller cannot say who wrote what of a Secret",
    denied(controller, SAYS.otherManager, {
      "gitops wrote a key more": change(twoKeys),
      "gitops wrote all data": change({ "f:data": {} }),
      "gitops wrote an annotation": change(aNote),
      "gitops wrote the type": change({ "f:type": {} }),
      "gitops wrote less": change({ "f:metadata": {} }),
      "gitops wrote nothing": say(nothing),
      // Without a change beside, the API server leaves the time as it is.
      "gitops wrote at another time": setMeta("of-gitops", {
        managedFields: changed({}, { time }),
        ...own,
      }),
      "gitops wrote in another version": change({}, { apiVersion: "v0" }),
      "another applied": add("other", "Apply"),
      "another wrote": add("other", "Update"),
      "kubectl applied": add("kubectl-client-side-apply", "Apply"),
      "kubectl wrote": add("kubectl-client-side-apply", "Update"),
      "the merged ones applied": add("ancient-changes", "Apply"),
      "the merged ones wrote": add("ancient-changes", "Update"),
      "it applied itself": add(FIELD_MANAGER, "Apply"),
      "nobody wrote anything": say([{}]),
      "in another's name": run([
        ...["patch", "secret", "of-gitops", ...asGitOps],
        JSON.stringify({ metadata: own }),
      ]),
      "by server-side apply": run(["apply", ...serverSide, "-f", "-"], secret),
    }),
    denied(controller, SAYS.otherKey, {
      "and a key beside": patch("with-key", {
        metadata: { managedFields: [{}] },
        data: { key: DOCKER_CONFIG },
      }),
    }),
  );

  const plain = await context.get("secret", "plain", "-n", TEAM);
  await check(
    "the controller cannot create, replace or delete a Secret",
    denied(controller, SAYS.noRight, {
      create: create(labelled("new")),
      replace: run(["replace", "-f", "-"], plain),
      delete: run(["delete", "secret", "plain", "-n", TEAM]),
      "delete all": run(["delete", "secrets", "--all", "-n", TEAM]),
    }),
    // Kubernetes 1.30 does not say why.
    denied(controller, /secrets "new" is forbidden/, {
      "create by server-side apply": run(["apply", "--server-side", "-f", "-"], labelled("new")),
    }),
  );

  await step("the controller's requests that were refused changed nothing", async () => {
    const after = await versions(context);
    expect(before === after, `before:\n${before}\nafter:\n${after}`);
  });

  const ask = (audience: string, seconds: number, account = "puller"): Act => () =>
    requestToken(account, audience, seconds);
  const askRaw = (spec: object) =>
    run(
      ["create", "--raw", `/api/v1/namespaces/${TEAM}/serviceaccounts/puller/token`, "-f", "-"],
      { apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec },
    );
  const expirationSeconds = 600;
  const askForOwn = ["create", "token", ACCOUNT, "-n", NAMESPACE, `--audience=${AUDIENCE}`];
  await check(
    "the controller cannot request any other token",
    denied(controller, SAYS.noRight, {
      "of an account that has not granted it": ask(AUDIENCE, 600, "private"),
      "of its own": run(askForOwn),
    }),
    denied(controller, SAYS.otherToken, {
      "for the API server": ask("https://kubernetes.default.svc", 600),
      "for whatever is the default": askRaw({ expirationSeconds }),
      "for another audience beside": askRaw({ audiences: [AUDIENCE, "other"], expirationSeconds }),
      "for a year": ask(AUDIENCE, YEAR_S),
      "for a second more than an hour": ask(AUDIENCE, 3601),
    }),
  );

  const COPIES = 8;
  const copiesOf = (name: string) =>
    Array.from({ length: COPIES }, (_, index) => `${name}-${index}`);
  /** What a write takes of the API server's CPU time, in ms: a busy machine does not change that much. */
  const cost = async (names: string[]) => {
    const pid = pidOf(cluster.options.dir, "kube-apiserver")!;
    const began = usageOf(pid).cpuS;
    for (const name of names) await write(name)(controller);
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

  const others = [
    ...["configmaps", "pods", "serviceaccounts", "events", "events.events.k8s.io", "nodes"],
    ...["namespaces", "deployments", "roles", "clusterroles", "validatingadmissionpolicies"],
  ].map((kind) => ["list", kind] as const);
  const asked = [...others, ["create", "tokenreviews"] as const].map(([verb, kind]) =>
    [`${verb} ${kind}`, async ({ kubectl }: Who) => {
      const said = await kubectl(["auth", "can-i", verb, kind, "-A"]).catch(({ message }) =>
        message
      );
      expect(/(^|: )no\b/.test(said), `it may: ${said}`);
    }] as const
  );
  await check(
    "the controller can read nothing but Secrets",
    allowed(controller, Object.fromEntries(asked)),
    denied(controller, SAYS.noRight, { "config maps": run(["get", "configmaps", "-n", TEAM]) }),
  );

  client.close();
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
  const kind = "MutatingAdmissionPolicy";
  const items = [
    { apiVersion, kind, metadata: { name }, spec },
    { apiVersion, kind: `${kind}Binding`, metadata: { name }, spec: { policyName: name } },
  ];
  return JSON.stringify({ apiVersion: "v1", kind: "List", items });
}

/** Name and resource version of each Secret. */
async function versions(context: Given): Promise<string> {
  const { items } = await context.get("secrets", "-n", TEAM);
  return items.map(({ metadata }: Json) => `${metadata.name} ${metadata.resourceVersion}`)
    .join("\n");
}

function claimsOf(token: string): Json {
  return JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString());
}

// ───── Who may name an identity ─────

async function userSide({ kubectl, step }: Given, check: Check): Promise<void> {
  const user = (name: string) =>
    userOf((args, input) => kubectl([`--as=${name}`, ...args], input), name);
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
  const admin = userOf(kubectl, "the administrator");

  /** Of one identity or the other, by label or by annotation. */
  const byLabel = (name: string, identity = UID) => labelled(name, {}, {}, identity);
  const byNote = (name: string) => labelled(name, { [IDENTITY]: UID }, {}, "");
  const withAccount = (name: string, account = "puller") =>
    labelled(name, { [SERVICE_ACCOUNT]: account });
  const setBoth = (name: string, labels: string, annotations: string) =>
    setMeta(name, { labels: { [IDENTITY]: labels }, annotations: { [IDENTITY]: annotations } });
  const ours = { [IDENTITY]: "" };
  const bad = { [IDENTITY]: OTHER_UID, [SERVICE_ACCOUNT]: "No Name" };

  await check(
    "the manifest's role for users allows any identity, where it is bound",
    allowed(erin, {
      one: create(byLabel("erins")),
      another: create(byLabel("erins-other", OTHER_UID)),
    }),
    denied(erin, needsUse(NAME, OTHER), { elsewhere: create(elsewhere(byLabel("erins"))) }),
  );

  await check(
    "without the Role a user cannot name an identity",
    denied(alice, needsUse(), {
      "create, by label": create(byLabel("new")),
      "create, by annotation": create(byNote("new")),
      "create, by apply": apply(byLabel("new")),
      "create, of another type": create(labelled("new", {}, { type: "Opaque" })),
      "set the label": label("empty"),
      "set the annotation": note("empty"),
      "uncover the label": note("differing", null),
      "uncover the label, by an empty annotation": note("differing", ""),
      "make the annotation agree": note("differing"),
      "label late": label("unlabelled"),
      "label late, with the annotation there": label("noted", ""),
    }),
    denied(alice, needsUse(OTHER_NAME), {
      "change the label": label("plain", OTHER_NAME),
      "change the annotation": note("by-note", OTHER_UID),
      "change both": setBoth("both", OTHER_NAME, OTHER_UID),
      "uncover the annotation": label("differing", ""),
      "make the label agree": label("differing", OTHER_NAME),
    }),
    denied(bob, needsUse(NAME, OTHER), {
      "copy into another namespace": create(elsewhere(byLabel("copy"))),
    }),
    denied(bob, needsUse(OTHER_NAME), {
      "another identity than one's own": create(byLabel("new", OTHER_UID)),
    }),
    denied(user(GITOPS), needsUse(), { "as a service account": create(byLabel("new")) }),
  );

  await check(
    "with the Role he can",
    allowed(bob, {
      "create, by label": create(byLabel("by-label")),
      "create, by annotation": create(byNote("by-annotation")),
      "label late": label("noted", ""),
      "set the annotation": note("empty"),
    }),
    allowed(alice, { "an empty identity, without a Role": create(byLabel("empty-too", "")) }),
    allowed(dave, {
      "whoever may do everything in the namespace": create(byLabel("by-dave", OTHER_UID)),
    }),
    allowed(admin, { "the cluster's administrator": create(byLabel("by-admin", OTHER_UID)) }),
  );

  const different = labelled("new", { [IDENTITY]: OTHER_UID });
  const nameless = labelled("", { [IDENTITY]: OTHER_UID });
  Object.assign(nameless.metadata, { name: undefined, generateName: "new-" });
  const child = `${UID}/${"2c".repeat(8)}`;
  await check(
    "a label and an annotation of different identities are approved by nobody",
    denied(bob, differ("new"), { create: create(different) }),
    denied(admin, differ("new"), { "create, by the administrator": create(different) }),
    denied(dave, differ("planted"), {
      "label what a tenant planted": label("planted"),
      "apply over what a tenant planted": applyHere(applied("planted")),
      "server-side apply over what a tenant planted": apply(applied("planted")),
    }),
    denied(admin, differ("planted"), { "label it, by the administrator": label("planted") }),
    denied(alice, differ("planted"), {
      "server-side apply over it, without a right": apply(applied("planted")),
    }),
    denied(alice, differ("plain"), { "cover the label": note("plain", OTHER_UID) }),
    denied(dave, differ("plain"), { "cover the label, with the right": note("plain", OTHER_UID) }),
    denied(dave, differ("both", OTHER_NAME, UID), {
      "change one of both": label("both", OTHER_NAME),
    }),
    denied(dave, differ("both"), { "change the other of both": note("both", OTHER_UID) }),
    denied(dave, differ("by-note", OTHER_NAME, UID), {
      "a label beside the annotation": label("by-note", OTHER_NAME),
    }),
    denied(dave, differ("differing", OTHER_NAME, UID), {
      "what differs otherwise": setBoth("differing", OTHER_NAME, UID),
    }),
    denied(dave, differ("plain", NAME, child), { "a child": note("plain", child) }),
    denied(dave, /name different identities: put the same/, {
      "an annotation of two lines": note("plain", "x\ny"),
    }),
    denied(dave, /says 0a.* --namespace policies-team /, { "without a name": create(nameless) }),
  );
  await step("what a tenant planted can be approved by its own name, or taken off", () =>
    inTurn(
      label("planted", OTHER_NAME),
      label("planted", null),
      note("planted", null),
      apply(applied("planted")),
    )(dave));
  await check(
    "an account that a tenant planted needs the right to its tokens",
    denied(bob, needsAccount(), {
      label: label("planted-account"),
      "server-side apply": apply(applied("planted-account")),
    }),
  );
  await check(
    "a Secret whose label and annotation differed before can be edited and mended",
    allowed(alice, {
      "edited, without a right": inTurn(
        annotate("differing", { note: "x", [REFRESH]: "now" }),
        setMeta("differing", { labels: { more: "x" } }),
        setData("differing", { key: DOCKER_CONFIG }),
        run(["delete", "secret", "differing", "-n", TEAM]),
      ),
      "emptied, without a right": setBoth("differing-too", "", ""),
    }),
    allowed(bob, {
      "mended, with the right": inTurn(note("differing-three"), note("differing-three", null)),
    }),
  );

  await check(
    "`service-account` can be set and changed by whoever may create that account's tokens",
    denied(alice, needsAccount(), { "create, without the right": create(withAccount("new")) }),
    denied(bob, needsAccount(), { "`use` is not that right": create(withAccount("new")) }),
    denied(carol, needsAccount("private"), {
      "set, another account": setAccount("plain", "private"),
      "change, another account": setAccount("of-account", "private"),
    }),
    denied(carol, needsUse(), { "take it off, without `use`": setAccount("of-account", null) }),
    denied(bob, SAYS.badAccount, { empty: setAccount("plain", "") }),
    denied(admin, SAYS.badAccount, {
      "upper case": setAccount("plain", "Puller"),
      "another namespace's": setAccount("plain", "../x/puller"),
      "two lines": setAccount("plain", "puller\n"),
      "254 characters": setAccount("plain", "a".repeat(254)),
      "in the controller's namespace": create(elsewhere(withAccount("new", ACCOUNT), NAMESPACE)),
    }),
    allowed(admin, {
      "253 characters": create(withAccount("long-account", `a${".a".repeat(126)}`)),
    }),
    allowed(carol, { "create, with the right": create(withAccount("with-account")) }),
  );
  await step(
    "`service-account` can be taken off by whoever may use the identity",
    () => inTurn(setAccount("of-account", null))(bob),
  );

  /** Applies a Secret without it, with it, and with an identity instead. */
  const unnamed = (name: string, annotations?: object): Json => {
    const { metadata: { labels: _, ...metadata }, ...secret } = applied(name);
    return { ...secret, metadata: { ...metadata, annotations } };
  };
  const named = (name: string) => ({
    ...unnamed(name),
    metadata: byLabel(name, OTHER_UID).metadata,
  });
  /** Whoever may create that account's tokens names an identity, and plants the account in another's name. */
  const plantAndApply = (name: string, apply: (secret: Json) => Act): Act => async () => {
    const planted = unnamed(name, { [SERVICE_ACCOUNT]: "puller" });
    await create(unlabelled(name))(alice);
    await inTurn(apply(planted), label(name, OTHER_NAME))(carol);
    await inTurn(refuses(apply(unnamed(name)), SAYS.notApplied), apply(named(name)))(dave);
  };
  await check(
    "an apply that takes `service-account` off approves only an identity that it names",
    allowed(dave, {
      "server-side": plantAndApply("planted-server-side", apply),
      "client-side": plantAndApply("planted-client-side", applyHere),
    }),
  );

  const both = { key: DOCKER_CONFIG, ".dockerconfigjson": DOCKER_CONFIG };
  // One after another: they are about one Secret.
  await step("all else of an approved Secret is its users' to write", () =>
    inTurn(
      setMeta("to-edit", { labels: { more: "x" } }),
      annotate("to-edit", { note: "x", [REFRESH]: "now" }),
      setData("to-edit", both),
      setMeta("to-edit", { finalizers: ["example.com/x"] }),
      setMeta("to-edit", { finalizers: null, labels: { more: null } }),
      setData("to-edit", { key: null }),
      // Both forms of one identity.
      note("to-edit"),
      // And one form of two.
      label("both", ""),
      // Off with the label, and what the annotations say is of no account.
      setMeta("to-unlabel", { labels: { [IDENTITY]: null }, annotations: bad }),
      refuses(label("to-unlabel", OTHER_NAME), SAYS.badAccount),
      run(["delete", "secret", "to-delete", "to-edit", "-n", TEAM]),
    )(alice));

  /** Of values of these sizes. */
  const sized = (name: string, sizes: number[], labels: object = ours) =>
    create({
      apiVersion: "v1",
      kind: "Secret",
      metadata: { name, namespace: TEAM, labels },
      type: "Opaque",
      data: Object.fromEntries(sizes.map((size, i) => [`key-${i}`, base64("x".repeat(size))])),
    });
  const ones = (count: number) => Array<number>(count).fill(1);
  await check(
    "a labelled Secret is bounded in size, any other is not",
    allowed(alice, {
      "16 keys": sized("16-keys", ones(MAX.keys)),
      "96 KiB": sized("96-kib", [MAX.valueBytes]),
      "a key more than 16": inTurn(
        sized("16-keys-too", ones(MAX.keys)),
        refuses(setData("16-keys-too", { more: "" }), SAYS.tooLarge),
      ),
      "labelled later": inTurn(
        sized("100-keys", ones(100), {}),
        refuses(label("100-keys", ""), SAYS.tooLarge),
      ),
      "unlabelled, of 700 KiB": inTurn(
        sized("700-kib", [700 * 1024], { other: "label" }),
        setData("700-kib", { more: DOCKER_CONFIG }),
      ),
      "unlabelled, with our annotations": create(unlabelled("annotated", bad)),
    }),
    denied(alice, SAYS.tooLarge, {
      "17 keys": sized("17-keys", ones(MAX.keys + 1)),
      "96 KiB and one byte": sized("large", [MAX.valueBytes + 1]),
    }),
    denied(admin, SAYS.tooLarge, {
      "a large one, by the administrator": sized("large", [MAX.valueBytes * 2]),
    }),
  );

  /** In a dry run. */
  const tried = (metadata: object, more: object = {}) => {
    const secret = labelled("tried", {}, more, "");
    Object.assign(secret.metadata, metadata);
    return run(["create", "--dry-run=server", "-f", "-"], secret);
  };
  const labels = (count: number) => tried({ labels: { ...ours, ...many(count) } });
  const noted = (annotations: object) => tried({ annotations });
  const typed = (chars: number) => tried({}, { type: "x".repeat(chars) });
  const finalized = (count: number) => tried({ finalizers: finalizers(count) });
  const owned = (count: number, kind = "ConfigMap") =>
    tried({
      ownerReferences: Object.keys(many(count)).map((name) => ({
        ...{ apiVersion: "v1", kind, name },
        uid: `uid-${name}`,
      })),
    });
  // Two entries are of the request itself, and the API server merges those of updates.
  const managed = (count: number, operation: "Apply" | "Update" = "Apply", field = "f:x") =>
    tried({
      managedFields: Object.keys(many(count)).map((manager) =>
        fieldsOf(manager, operation, { "f:data": { [field]: {} } })
      ),
    });
  const ownAnnotations = [REFRESH, REFRESHED, TOKEN_IDENTITY, TOKEN_EXPIRES];
  const all = (names: string[], value: string) =>
    Object.fromEntries(names.map((name) => [name, value]));
  const lastApplied = "kubectl.kubernetes.io/last-applied-configuration";
  const long = "x".repeat(MAX.chars + 1);
  const longType = { ...unlabelled("long-type"), type: "x".repeat(MAX.typeChars + 1) };
  /** Whoever labels it late meets the limit as well. */
  const late = (secret: Json, words: RegExp) =>
    inTurn(create(secret), refuses(label(secret.metadata.name, ""), words));
  await check(
    "what a labelled Secret has beside its data is bounded",
    allowed(admin, {
      "100 labels": labels(MAX.labels - 1),
      "100 annotations, and ours": noted({
        ...all([IDENTITY, ...ownAnnotations], UID),
        ...many(MAX.annotations),
      }),
      "what kubectl applied last, of 200 KiB": noted({ [lastApplied]: "x".repeat(200 * 1024) }),
      "annotations of ours of 300 characters": noted(all(ownAnnotations, "€".repeat(MAX.chars))),
      "a type of 253 characters": typed(MAX.typeChars),
      "16 owners": owned(MAX.owners),
      "16 finalizers": finalized(MAX.finalizers),
      "31 managers": managed(MAX.managers - 1),
    }),
    denied(admin, SAYS.tooMany, {
      "101 labels": labels(MAX.labels),
      "101 annotations": noted(many(MAX.annotations + 1)),
    }),
    denied(admin, SAYS.tooLong, {
      ...Object.fromEntries(
        [...ownAnnotations, IDENTITY].map((name) => [`a long ${name}`, noted({ [name]: long })]),
      ),
    }),
    denied(admin, SAYS.longType, { "a type of 254 characters": typed(MAX.typeChars + 1) }),
    denied(admin, SAYS.tooManyOwners, {
      "17 owners": owned(MAX.owners + 1),
      "a large owner": owned(1, "x".repeat(1025)),
    }),
    denied(admin, SAYS.tooManyFinalizers, { "17 finalizers": finalized(MAX.finalizers + 1) }),
    denied(admin, SAYS.tooManyManagers, {
      "33 managers": managed(MAX.managers),
      "large managedFields": managed(1, "Update", `f:${"x".repeat(MAX.managersBytes)}`),
    }),
    allowed(alice, {
      "labelled late, 101 annotations": late(
        unlabelled("100-annotations", many(MAX.annotations + 1)),
        SAYS.tooMany,
      ),
      "labelled late, a long `refresh`": late(
        unlabelled("long-refresh", { [REFRESH]: long }),
        SAYS.tooLong,
      ),
      "labelled late, a long type": late(longType, SAYS.longType),
      "what was larger before may stay, and shrink": inTurn(
        annotate("oversized", { "x-1": "y", [REFRESH]: "now" }),
        setMeta("oversized", { labels: { "x-1": "y" } }),
        setData("oversized", { key: DOCKER_CONFIG }),
        refuses(annotate("oversized", { more: "x" }), SAYS.tooMany),
        refuses(setMeta("oversized", { labels: { more: "x" } }), SAYS.tooMany),
        refuses(annotate("oversized", { [REFRESH]: long }), SAYS.tooLong),
        annotate("oversized", { "x-1": null, "x-2": null, "x-3": null }),
        setMeta("oversized", { labels: { "x-1": null, "x-2": null } }),
        refuses(
          setMeta("oversized", { finalizers: finalizers(MAX.finalizers + 5) }),
          SAYS.tooManyFinalizers,
        ),
        setMeta("oversized", { finalizers: finalizers(MAX.finalizers + 1) }),
        setMeta("oversized", { finalizers: null }),
      ),
    }),
  );
}

// ───── The manifest ─────

const FILLED_IN = "registry.example.com/pull-secret-updater:0.1.0";

/** Applies the manifest to a cluster that has not seen it, and again; and has it looked through. */
async function manifest(context: Given, file: string): Promise<void> {
  const { step, work } = context;
  const text = readFileSync(file, "utf8").replace(/\bimage: IMAGE\b/, `image: ${FILLED_IN}`);
  await applyTwice(context, text);

  const path = join(work, "deploy.yaml");
  writeFileSync(path, text);
  await step("kube-score finds nothing", async () => {
    if (!isInstalled("kube-score")) {
      return "skipped: go install github.com/zegl/kube-score/cmd/kube-score@v1.20.0";
    }
    await runProgram("kube-score", ["score", "--kubernetes-version=v1.30", path])
      .catch((error: Error & { cause?: Json }) => {
        throw new Error(`${error.message}\n${error.cause?.stdout ?? ""}`);
      });
  });
}

/** On a control plane of its own. */
async function alone(file: string): Promise<number> {
  const place = { dir: join(tmpdir(), "policies-cluster"), port: 19443 };
  const work = mkdtempSync(join(tmpdir(), "policies-"));
  const { need, step, tell } = createSteps();
  await endCluster(place);
  try {
    const cluster = await startCluster(place);
    const context: Given = {
      cluster,
      ...createHands((args, input) => cluster.kubectl(args, input)),
      as: (token) => (args, input) => cluster.kubectl(args, input, token),
      need,
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
  return tell();
}

if (import.meta.main) {
  process.exitCode = await alone(process.argv[2] ?? join(ROOT, "deploy.yaml"));
}
