/** Pods that name no pull Secret: the README's two ways to have them get it. */
import { type Context, expect, README_IDENTITY } from "./context.ts";
import { needBlock, runCommands } from "./blocks.ts";
import type { Json } from "../../support/json.ts";
import { until } from "../../support/until.ts";

/** As the README has them. */
const [BY_POLICY, BY_ACCOUNT] = ["team-b", "team-c"];
const SECRET = "pull-secret";
const IMAGE = "cgr.dev/acme/app:1";
const OTHER_IMAGE = "localhost/pause:1";

export async function pods(context: Context): Promise<void> {
  const { kubectl, need, registry, step } = context;
  const created = async (object: Json, ...flags: string[]): Promise<Json> =>
    JSON.parse(
      await kubectl(["create", "-o", "json", "-f", "-", ...flags], JSON.stringify(object)),
    );
  const dryRun = (object: Json) => created(object, "--dry-run=server");
  const names = ({ spec }: Json) =>
    (spec.imagePullSecrets ?? []).map(({ name }: Json) => name).join();

  await need("namespaces with a filled pull Secret", async () => {
    context.bind(README_IDENTITY);
    registry.grants.set(README_IDENTITY, ["acme/app"]);
    for (const namespace of [BY_POLICY, BY_ACCOUNT]) {
      await context.createNamespace(namespace);
      await kubectl(["create", "-n", namespace, "-f", "-"], needBlock("# pull-secret.yaml"));
    }
  });

  await step(
    "by a MutatingAdmissionPolicy, Pods with an image of cgr.dev in labelled namespaces get it",
    async () => {
      await runCommands(context, "kubectl apply -f add-pull-secret.yaml");
      await until(
        async () => names(await dryRun(pod(BY_POLICY, "probe"))) === SECRET,
        "the policy is in force",
      );
      await created(pod(BY_POLICY, "plain"));
      await runs(context, BY_POLICY, "plain");
      const init = {
        initContainers: [{ ...container(IMAGE), name: "init" }],
        containers: [container(OTHER_IMAGE)],
      };
      const cases: [string, string, Json][] = [
        ["with a pull Secret of its own", `own,${SECRET}`, { imagePullSecrets: [{ name: "own" }] }],
        ["that names it already", SECRET, { imagePullSecrets: [{ name: SECRET }] }],
        ["whose init container alone is of cgr.dev", SECRET, init],
        ["without an image of cgr.dev", "", { containers: [container(OTHER_IMAGE)] }],
      ];
      for (const [what, expected, spec] of cases) {
        const found = names(await dryRun(pod(BY_POLICY, "case", spec)));
        expect(found === expected, `a Pod ${what} names "${found}"`);
      }
      const elsewhere = names(await dryRun(pod(BY_ACCOUNT, "case")));
      expect(elsewhere === "", `in a namespace without the label a Pod names "${elsewhere}"`);
      return `${cases.length + 2} Pods`;
    },
  );

  await step("by a service account, Pods that name none get it, on any Kubernetes", async () => {
    await runCommands(context, "kubectl patch serviceaccount default");
    const found = names(await created(pod(BY_ACCOUNT, "plain")));
    expect(found === SECRET, `a Pod names "${found}"`);
    await runs(context, BY_ACCOUNT, "plain");
  });

  await context.remove(BY_POLICY, BY_ACCOUNT);
}

/** Waits until a Pod runs. */
export const runs = ({ get }: Context, namespace: string, name: string) =>
  until(
    async () => (await get("pod", "-n", namespace, name)).status.phase === "Running",
    `${name} runs`,
  );

export const container = (image: string): Json => ({
  name: "app",
  image,
  imagePullPolicy: "Always",
});

export function pod(namespace: string, name: string, spec: Json = {}): Json {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace, name },
    spec: {
      automountServiceAccountToken: false,
      terminationGracePeriodSeconds: 1,
      containers: [container(IMAGE)],
      ...spec,
    },
  };
}
