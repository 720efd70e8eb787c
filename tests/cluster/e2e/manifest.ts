/** The install that needs no image of ours: the program in a ConfigMap, run by a stock Node and by a stock Deno. */
import * as fs from "node:fs";
import { join } from "node:path";
import { run } from "../../support/processes.ts";
import { defaultImage, selfContained } from "../../../scripts/manifest.ts";
import { readSettings } from "../../../scripts/manifest_flags.ts";
import { type Context, expect } from "./context.ts";
import { expectQuiet, readyPods, rolledOut } from "./deploy.ts";
import { type Bases, save } from "./images.ts";
import { aliasPatch, trustOfTheIssuer } from "./patch.ts";
import { runCommands } from "./blocks.ts";
import { ROOT } from "../../support/paths.ts";
import { ACCOUNT, NAMESPACE } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { pullSecret } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

const NS = "self-contained";
/** For the manifest of another namespace. */
const ELSEWHERE = "self-contained-elsewhere";
/** Of this part's own; another for each runtime, as a new exchange is to be seen. */
const IDENTITIES = {
  node: `${"9".repeat(40)}/${"a".repeat(16)}`,
  deno: `${"9".repeat(40)}/${"b".repeat(16)}`,
};

/** Each flag, with what it may take. */
const FLAGS = [
  [
    "--image",
    "registry.example/runtime:1",
    "--image-pull-secret",
    "one",
    "--image-pull-secret=two",
  ],
  ["--namespace", ELSEWHERE],
  ["--issuer", "https://[fd00::1]:8443/path"],
  ["--audience", "registry.example", "--registries", "cgr.dev,mirror.example:5000"],
  ["--proxy", "http://proxy.example:3128", "--no-proxy", ".example,10.0.0.0/8"],
  ["--ca-configmap", "private-ca"],
  ["--namespaces", `default,${ELSEWHERE}`],
  ["--ipv6"],
  ["--openshift"],
  ["--replicas", "1"],
  ["--priority-class", "system-cluster-critical"],
  ["--dns", "ClusterFirst"],
];

/** Leaves the install on Deno behind. */
export async function manifest(context: Context, { BASE, BUILD }: Bases): Promise<void> {
  const { step } = context;
  Object.values(IDENTITIES).forEach((identity) => context.bind(identity));
  await context.createNamespace(NS);
  await flags(context);
  await step("kustomize's base and components", async () => {
    await run("node", ["--test", "--test-reporter=tap", "tests/release/kustomize_test.ts"], {
      cwd: ROOT,
    });
  });

  await step("npm run manifest: the program in a ConfigMap, on a stock Node", async () => {
    await provide(context, "node", BUILD);
    await runCommands(context, "manifest -- --runtime node", here);
    return await check(context, "node");
  });
  await step("install.yaml: the program in a ConfigMap, on a stock Deno", async () => {
    await provide(context, "deno", BASE);
    await runCommands(
      context,
      "kubectl apply --server-side -f install.yaml\nkubectl rollout status",
      force,
    );
    // It knows the real issuer alone: what the other was told by a flag.
    await patch(context, { spec: { template: { spec: trustOfTheIssuer() } } });
    return await check(context, "deno");
  });
  await step(
    "ConfigMaps of programs before are deleted by the README's command, and no other",
    async () => {
      const names = async (): Promise<string[]> =>
        (await context.get("configmaps", "-n", NAMESPACE)).items
          .map(({ metadata }: Json) => metadata.name);
      const before = await names();
      expect(before.some((name) => name.startsWith("controller-")), `${before}`);
      const labels = { "app.kubernetes.io/name": "pull-secret-updater" };
      const metadata = { namespace: NAMESPACE, name: "controller-000000000000", labels };
      const old = { apiVersion: "v1", kind: "ConfigMap", metadata };
      await context.create(old);
      await runCommands(context, "kubectl delete configmap -n pull-secret-updater");
      expect(`${await names()}` === `${before}`, `${await names()}`);
    },
  );
}

/** What the flags give, as the API server takes it; nothing of it stays. */
export async function flags(
  { createNamespace, kubectl, step }: Pick<Context, "createNamespace" | "kubectl" | "step">,
): Promise<void> {
  await step("npm run manifest: what each flag gives passes a dry run at the server", async () => {
    const deploy = fs.readFileSync(join(ROOT, "deploy.yaml"), "utf8");
    // In a dry run no namespace comes into being.
    await createNamespace(ELSEWHERE);
    const cases = ["deno", "node"].flatMap((runtime) =>
      [...FLAGS, FLAGS.flat()].map((args) => [...args, "--runtime", runtime])
    );
    for (const args of cases) {
      const settings = readSettings(args);
      const runtime = settings.runtime === "node" ? "node" : "deno";
      const text = selfContained(deploy, "program\n", { runtime, image: "example", settings });
      const flags = ["--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"];
      await kubectl(["apply", ...flags, "-f", "-"], text).catch((error: Error) => {
        throw new Error(`${args.join(" ")}: ${error.message}`);
      });
    }
    await kubectl(["delete", "namespace", ELSEWHERE, "--wait=false"]);
    return `${cases.length} manifests`;
  });
}

/** As the README tells those who have applied deploy.yaml before. */
const force = (block: string) => block.replace("--server-side", "--server-side --force-conflicts");
/** For this cluster's issuer; the packages are there. */
const here = (block: string) =>
  force(block).replace("npm ci && ", "")
    .replace(/-s manifest( --)?/, "-s manifest -- --ca-configmap private-ca");

/** Gives the node the stand-in for a public image, under the name that the manifest has. */
export async function provide(
  { cluster, work }: Context,
  runtime: "node" | "deno",
  image: string,
): Promise<void> {
  const archive = join(work, "runtime.tar");
  await save(image, archive);
  await cluster.ctr(["image", "import", archive]);
  fs.rmSync(archive);
  const name = defaultImage(fs.readFileSync(join(ROOT, "Containerfile"), "utf8"), runtime);
  await cluster.ctr(["image", "tag", "--force", image, name]);
}

const patch = ({ kubectl }: Context, deployment: Json) =>
  kubectl(["patch", "deployment", "-n", NAMESPACE, ACCOUNT, "-p", JSON.stringify(deployment)]);

async function check(context: Context, runtime: "node" | "deno"): Promise<string> {
  await patch(context, aliasPatch(context));
  await rolledOut(context);
  const { spec } = (await context.get("deployment", "-n", NAMESPACE, ACCOUNT)).spec.template;
  expect(spec.containers[0].command.join() === runtime, `it runs ${spec.containers[0].command}`);

  await context.create(pullSecret(NS, runtime, IDENTITIES[runtime]));
  const created = Date.now();
  await until(
    () => context.tokenIn(NS, runtime),
    "the Secret is filled",
  );
  const took = Date.now() - created;
  await readyPods(context);
  await expectQuiet(context);
  return `filled after ${took} ms`;
}
