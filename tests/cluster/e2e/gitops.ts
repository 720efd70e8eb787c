/** Tools that apply a Secret again and again, each as it does it: what they take out, and what they leave. */
import { setTimeout as sleep } from "node:timers/promises";
import { type Context, expect, refused } from "./context.ts";
import { needBlock } from "./blocks.ts";
import { IDENTITY, PREFIX, SECRET_TYPE } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { tokenIn } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

const NS = "gitops";
/** Of this part's own. */
const IDENTITY_UID = `${"2".repeat(40)}/${"d".repeat(16)}`;
/** No token is renewed meanwhile: what changes is what a tool has done. */
const LIFE_S = 3600;
/** Between two writes to one Secret. */
const SPACING_MS = 10_000;
/** For the work itself, on a busy machine. */
const MARGIN_MS = 5_000;
const ROUND = "example.com/round";
const OURS = "pull-secret-updater";

interface Tool {
  name: string;
  /** How it stands in managedFields. */
  manager: string;
  /** How it applies. Default: by force, from the server's side. */
  args?: string[];
  /** What becomes of a manifest with data, once there is a token. */
  withData: "empties the Secret" | "meets a conflict";
}

const ARGO_CD: Tool = {
  name: "argocd",
  manager: "argocd-controller",
  withData: "empties the Secret",
};
const TOOLS: Tool[] = [
  { name: "helm", manager: "helm", withData: "empties the Secret" },
  ARGO_CD,
  { name: "flux", manager: "kustomize-controller", withData: "empties the Secret" },
  {
    name: "kubectl",
    manager: "kubectl-client-side-apply",
    args: [],
    withData: "empties the Secret",
  },
  {
    name: "kubectl-server-side",
    manager: "kubectl",
    args: ["--server-side"],
    withData: "meets a conflict",
  },
];

export async function gitops(context: Context): Promise<void> {
  const { kubectl, need, setLife, step } = context;
  context.bind(IDENTITY_UID);
  setLife(IDENTITY_UID, LIFE_S);

  await need("the README's policy lets Secrets be created without data", async () => {
    await context.createNamespace(NS);
    await kubectl(["apply", "-f", "-"], needBlock("name: pull-secret-updater-empty"));
    const args = ["create", "--dry-run=server", "-f", "-"];
    const secret = JSON.stringify(manifest("tried", 1));
    await until(async () => await kubectl(args, secret) !== "", "it is taken");
  });

  await Promise.all(TOOLS.flatMap((tool) => [
    step(
      `${tool.name} applies a Secret without data three times: it keeps its token`,
      () => without(context, tool),
    ),
    step(
      `${tool.name} applies one with data: it ${tool.withData}, until data is left out`,
      () => withData(context, tool),
    ),
  ]));

  await step(
    "argocd, which puts back what it ignores as it has found it: it keeps its token, and gets new ones",
    () => ignored(context),
  );
  await step("Overwritten is reported where a Secret was emptied, and nowhere else", async () => {
    const { items } = await context.get("events.events.k8s.io", "-n", NS);
    const warnings: Json[] = items.filter(({ type }: Json) => type === "Warning");
    const told = [
      ...new Set(warnings.map(({ reason, regarding }) => `${reason} ${regarding.name}`)),
    ];
    const emptied = TOOLS.filter(({ withData }) => withData === "empties the Secret");
    const expected = emptied.map(({ name }) => `Overwritten with-${name}`);
    expect(`${told.sort()}` === `${expected.sort()}`, `${told}`);
  });

  await context.remove(NS);
}

/** What stands in Git; each round changes a label, an annotation, and what there is of other data. */
function manifest(name: string, round: number, data?: object): Json {
  const own = { [ROUND]: `${round}` };
  const labels = { ...own, [IDENTITY]: IDENTITY_UID.replace("/", ".") };
  return {
    apiVersion: "v1",
    kind: "Secret",
    metadata: { namespace: NS, name, labels, annotations: own },
    type: SECRET_TYPE,
    ...data && { data: { ...data, other: other(round) } },
  };
}

const EMPTY = { ".dockerconfigjson": Buffer.from("{}").toString("base64") };
const other = (round: number) => Buffer.from(`${round}`).toString("base64");

async function without(context: Context, tool: Tool): Promise<void> {
  const name = `without-${tool.name}`;
  await apply(context, tool, manifest(name, 1));
  const token = await filled(context, name);
  for (const round of [2, 3]) {
    await apply(context, tool, manifest(name, round));
    await check(context, tool, name, round, token);
  }
}

async function withData(context: Context, tool: Tool): Promise<string | void> {
  const name = `with-${tool.name}`;
  await apply(context, tool, manifest(name, 1, EMPTY));
  let token = await filled(context, name);
  let wroteAt = Date.now();
  const took: number[] = [];
  for (const round of [2, 3]) {
    const applied = apply(context, tool, manifest(name, round, EMPTY));
    if (tool.withData === "meets a conflict") {
      await refused(applied, /conflict with "pull-secret-updater".*: \.data\.\.dockerconfigjson/s);
      await check(context, tool, name, 1, token);
      continue;
    }
    await applied;
    const since = Date.now();
    const writableAt = Math.max(since, wroteAt + SPACING_MS);
    // Each replica has a token of its own in hand.
    token = await filled(context, name, writableAt - since + MARGIN_MS);
    wroteAt = Date.now();
    took.push(wroteAt - since);
    await check(context, tool, name, round, token);
    // The last round comes when it may be filled at once.
    if (round === 2) await sleep(wroteAt + SPACING_MS - Date.now());
  }

  const last = manifest(name, 4, {});
  if (tool.name === "kubectl") {
    // It takes out what it applied before.
    await refused(apply(context, tool, last), /data\[\.dockerconfigjson\]: Required value/);
    await context.kubectl(["apply", "set-last-applied", "-f", "-"], JSON.stringify(last));
  }
  await apply(context, tool, last);
  await check(context, tool, name, 4, token);
  if (took.length > 0) return `filled again after ${took.join(" and ")} ms`;
}

/** What Argo CD applies where it ignores the difference, and respects that: the Secret's own data. */
async function ignored(context: Context): Promise<void> {
  const { kubectl } = context;
  const name = "ignored";
  await apply(context, ARGO_CD, manifest(name, 1, EMPTY));
  const token = await filled(context, name);
  for (const round of [2, 3]) {
    const { data } = await context.get("secret", "-n", NS, name);
    await apply(context, ARGO_CD, manifest(name, round, data));
    await check(context, ARGO_CD, name, round, token, [ARGO_CD.manager, OURS]);
  }
  await kubectl(["annotate", "secret", name, "-n", NS, `${PREFIX}refresh=now`]);
  const renewed = await until(async () => {
    const found = await filled(context, name);
    return found !== token && found;
  }, "it has another token");
  await check(context, ARGO_CD, name, 3, renewed);
}

function apply({ kubectl }: Context, { manager, args }: Tool, object: Json): Promise<string> {
  const byForce = ["--server-side", "--force-conflicts", `--field-manager=${manager}`];
  return kubectl(["apply", ...args ?? byForce, "-f", "-"], JSON.stringify(object));
}

/** Waits for a token, and gives it. */
async function filled(context: Context, name: string, ms?: number): Promise<string> {
  const look = async () => (await context.tokenIn(NS, name))?.token;
  return await until(look, `${name} is filled`, ms);
}

/** Expects what this round has applied beside that token, and each field to be its writer's. */
async function check(
  context: Context,
  { manager }: Tool,
  name: string,
  round: number,
  token: string,
  ofData = [OURS],
): Promise<void> {
  const args = ["secret", "-n", NS, name, "--show-managed-fields"];
  const secret = await context.get(...args);
  const { annotations, labels, managedFields } = secret.metadata;
  const expected = secret.data.other === undefined ? undefined : other(round);
  const rounds = [annotations[ROUND], labels[ROUND], secret.data.other];
  expect(`${rounds}` === `${[round, round, expected]}`, `${rounds} in round ${round}`);
  expect(tokenIn(secret)?.token === token, `the token was replaced in round ${round}`);
  const ownersOf = (...path: string[]) =>
    managedFields.filter(({ fieldsV1 }: Json) =>
      path.reduce((fields, key) => fields?.[`f:${key}`], fieldsV1)
    ).map((entry: Json) => entry.manager);
  const owners = {
    ofData: ownersOf("data", ".dockerconfigjson").sort(),
    ours: [
      ownersOf("metadata", "annotations", `${PREFIX}token-identity`),
      ownersOf("metadata", "annotations", `${PREFIX}token-expires`),
    ],
    theirs: [
      ownersOf("metadata", "annotations", ROUND),
      ownersOf("metadata", "labels", ROUND),
      ownersOf("metadata", "labels", IDENTITY),
    ],
  };
  if (expected) owners.theirs.push(ownersOf("data", "other"));
  const right = `${owners.ofData}` === `${ofData}` &&
    owners.ours.every((each) => `${each}` === OURS) &&
    owners.theirs.every((each) => `${each}` === manager);
  expect(right, `in round ${round}: ${JSON.stringify(owners)}`);
}
