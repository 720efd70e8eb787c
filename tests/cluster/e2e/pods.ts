/** Pods that name no pull Secret: the README's two ways to have them get it. */
import { type Context, expect, getJson } from "./context.ts";
import { needBlock, runCommands } from "./blocks.ts";
import { ACCOUNT, NAMESPACE } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { until } from "../../support/until.ts";

/** As the README has them. */
const [BY_POLICY, BY_ACCOUNT] = ["team-b", "team-c"];
const SECRET = "pull-secret";
const README_IDENTITY = "1234567890abcdef1234567890abcdef12345678/0123456789abcdef";
const IMAGE = "cgr.dev/acme/app:1";
const OTHER_IMAGE = "localhost/pause:1";

export async function pods(context: Context): Promise<void> {
  const { clusterIssuer, issuer, kubectl, need, registry, step } = context;
  const created = async (object: Json) =>
    JSON.parse(await kubectl(["create", "-o", "json", "-f", "-"], JSON.stringify(object)));
  const dryRun = async (object: Json) =>
    JSON.parse(
      await kubectl(
        ["create", "--dry-run=server", "-o", "json", "-f", "-"],
        JSON.stringify(object),
      ),
    );
  const runs = (namespace: string, name: string) =>
    until(
      async () => (await getJson(context, "pod", "-n", namespace, name)).status.phase === "Running",
      "it runs",
    );
  const names = ({ spec }: Json) =>
    (spec.imagePullSecrets ?? []).map(({ name }: Json) => name).join();

  await need("namespaces with a filled pull Secret", async () => {
    issuer.bind(README_IDENTITY, clusterIssuer, NAMESPACE, ACCOUNT);
    registry.grants.set(README_IDENTITY, ["acme/app"]);
    for (const namespace of [BY_POLICY, BY_ACCOUNT]) {
      await kubectl(["create", "namespace", namespace]);
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
      await runs(BY_POLICY, "plain");
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
    await runs(BY_ACCOUNT, "plain");
  });

  // At once, so that they are gone when others count them.
  for (const namespace of [BY_POLICY, BY_ACCOUNT]) {
    await kubectl(["delete", "secret", "-n", namespace, SECRET]);
  }
  await kubectl(["delete", "namespace", BY_POLICY, BY_ACCOUNT, "--wait=false"]);
}

const container = (image: string): Json => ({ name: "app", image, imagePullPolicy: "Always" });

function pod(namespace: string, name: string, spec: Json = {}): Json {
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
