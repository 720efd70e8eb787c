/** The install that needs no image of ours: the program in a ConfigMap, run by a stock Node and by a stock Deno. */
import * as fs from "node:fs";
import { join } from "node:path";
import { defaultImage } from "../manifest.ts";
import {
  ACCOUNT,
  type Context,
  expect,
  getJson,
  NAMESPACE,
  pullSecret,
  ROOT,
  tokenIn,
  until,
} from "./context.ts";
import { controllerPods, rolledOut } from "./deploy.ts";
import { type Bases, save } from "./images.ts";
import { aliasPatch } from "./patch.ts";
import { runCommands } from "./readme.ts";

const NS = "self-contained";
const REPLICAS = 2;
/** Of this part's own; another for each runtime, as a new exchange is to be seen. */
const IDENTITIES = {
  node: `${"9".repeat(40)}/${"a".repeat(16)}`,
  deno: `${"9".repeat(40)}/${"b".repeat(16)}`,
};

/** Leaves the install on Deno behind. */
export async function manifest(context: Context, { BASE, BUILD }: Bases): Promise<void> {
  const { clusterIssuer, issuer, kubectl, step } = context;
  for (const identity of Object.values(IDENTITIES)) {
    issuer.bind(identity, clusterIssuer, NAMESPACE, ACCOUNT);
  }
  await kubectl(["create", "namespace", NS]);

  await step("npm run manifest: the program in a ConfigMap, on a stock Node", async () => {
    await provide(context, "node", BUILD);
    await runCommands(context, "manifest -- --runtime node", installed);
    return await check(context, "node");
  });
  await step("install.yaml: the program in a ConfigMap, on a stock Deno", async () => {
    await provide(context, "deno", BASE);
    await runCommands(
      context,
      "kubectl apply --server-side -f install.yaml\nkubectl rollout status",
      force,
    );
    return await check(context, "deno");
  });
}

/** As the README tells those who have applied deploy.yaml before. */
const force = (block: string) => block.replace("--server-side", "--server-side --force-conflicts");
/** The packages are there. */
const installed = (block: string) => force(block).replace("npm ci && ", "");

/** Gives the node the stand-in for a public image, under the name that the manifest has. */
async function provide(
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

async function check(context: Context, runtime: "node" | "deno"): Promise<string> {
  const { kubectl } = context;
  await runCommands(context, "--patch-file private-ca.yaml");
  await kubectl([
    "patch",
    "deployment",
    "-n",
    NAMESPACE,
    ACCOUNT,
    "-p",
    JSON.stringify(aliasPatch(context)),
  ]);
  await rolledOut(context);
  const { spec } = (await getJson(context, "deployment", "-n", NAMESPACE, ACCOUNT)).spec.template;
  expect(spec.containers[0].command.join() === runtime, `it runs ${spec.containers[0].command}`);

  await kubectl(
    ["create", "-f", "-"],
    JSON.stringify(pullSecret(NS, runtime, IDENTITIES[runtime])),
  );
  const created = Date.now();
  await until(
    "the Secret is filled",
    async () => tokenIn(await getJson(context, "secret", "-n", NS, runtime)),
  );
  const took = Date.now() - created;
  const pods = await until("the old Pods are gone", async () => {
    const pods = await controllerPods(context);
    return pods.length === REPLICAS && pods;
  });
  expect(pods.every(({ ready, restarts }) => ready && restarts === 0), JSON.stringify(pods));
  for (const { name } of pods) {
    const said = await kubectl(["logs", "-n", NAMESPACE, name]);
    expect(
      /"msg":"listed"/.test(said) && !/"level":"(warn|error)"/.test(said),
      `the log of ${name}:\n${said}`,
    );
  }
  return `filled after ${took} ms`;
}
