/** The program's image and its manifest, installed as users do it. */
import * as fs from "node:fs";
import { join } from "node:path";
import { type Context, expect } from "./context.ts";
import { type Bases, buildBases, buildProgram } from "./images.ts";
import { patchedManifest } from "./patch.ts";
import { NAMESPACE } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";
import { until } from "../../support/until.ts";
import { ROOT } from "../../support/paths.ts";
import { run } from "../../support/processes.ts";

const IMAGE = "localhost/pull-secret-updater:e2e";
const REPLICAS = 2;

/** Gives the images of both runtimes, for other ways to install. */
export async function deploy(context: Context): Promise<Bases> {
  const { cluster, need, step, work } = context;

  const image = need("the image, from the Containerfile", async () => {
    const archive = join(work, "program.tar");
    const bases = await buildBases(work);
    await buildProgram(bases, IMAGE, archive);
    await cluster.ctr(["image", "import", archive]);
    fs.rmSync(archive);
    return bases;
  });
  // Before the admission policies are there: it writes Secrets of all kinds.
  const [bases] = await Promise.all([
    image,
    step("the contract suite, on this kube-apiserver", () => contract(context)),
  ]);

  const deploy = fs.readFileSync(join(ROOT, "deploy.yaml"), "utf8");
  const manifest = await patchedManifest(context, deploy, IMAGE);
  await applyTwice(context, manifest);

  await need("both Pods are ready, under Pod Security restricted", async () => {
    await readyPods(context);
    const namespace = await context.get("namespace", NAMESPACE);
    expect(
      namespace.metadata.labels["pod-security.kubernetes.io/enforce"] === "restricted",
      "it is not enforced",
    );
  });
  return bases;
}

/** Applies deploy.yaml to a cluster that has not seen it, and again. */
export async function applyTwice(
  { kubectl, need, step }: Pick<Context, "kubectl" | "need" | "step">,
  text: string,
): Promise<void> {
  const apply = (...flags: string[]) => kubectl(["apply", "-f", "-", ...flags], text);
  /** What changes with an object but not with its status. */
  const generations = async () => {
    const { items } = JSON.parse(await kubectl(["get", "-f", "-", "-o", "json"], text));
    return items.map(({ kind, metadata }: Json) =>
      [kind, metadata.name, metadata.uid, metadata.generation ?? metadata.resourceVersion].join(" ")
    ).join("\n");
  };
  await need("deploy.yaml is applied", () => apply().then(() => {}));
  await step("deploy.yaml applied again changes nothing", async () => {
    const before = await generations();
    const lines = (await apply()).trim().split("\n");
    expect(await generations() === before, "an object was changed");
    // Of a disruption budget kubectl always sends the selector, and says so, though nothing changes.
    const changed = lines.filter((line) => !/ unchanged$|^poddisruptionbudget/.test(line));
    expect(changed.length === 0, changed.join("\n"));
    return `${lines.length} objects`;
  });
  await step("deploy.yaml passes a dry run at the server, by both ways to apply", async () => {
    await apply("--dry-run=server");
    await apply("--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict");
  });
}

/** The rules that the fake API server is held to, on this real one. */
async function contract({ cluster }: Context): Promise<string> {
  const { token } = JSON.parse(fs.readFileSync(cluster.kubeconfig, "utf8")).users[0].user;
  const env = { CONTRACT_API: cluster.server, CONTRACT_TOKEN: token, CONTRACT_CA: cluster.ca };
  const said = await run(
    "node",
    ["--test", "--test-reporter=tap", "tests/contract/contract_test.ts"],
    {
      cwd: ROOT,
      env,
    },
  );
  const [, passed] = /^# pass (\d+)$/m.exec(said) ?? [];
  expect(Number(passed) > 0 && /^# (fail|skipped) 0$/m.test(said), said);
  return `${passed} tests`;
}

export interface ControllerPod {
  name: string;
  uid: string;
  ready: boolean;
  restarts: number;
}

/** The controller's Pods that are not about to end. */
export async function controllerPods({ get }: Pick<Context, "get">): Promise<ControllerPod[]> {
  const { items } = await get(
    "pods",
    "-n",
    NAMESPACE,
    "-l",
    "app.kubernetes.io/name=pull-secret-updater",
  );
  return items.filter(({ metadata }: Json) => !metadata.deletionTimestamp).map((
    { metadata, status }: Json,
  ) => ({
    name: metadata.name,
    uid: metadata.uid,
    ready: status.containerStatuses?.[0]?.ready === true,
    restarts: status.containerStatuses?.[0]?.restartCount ?? 0,
  }));
}

/** Waits until there are as many as there are to be, all ready; and none may have been restarted. */
export async function readyPods(context: Context): Promise<void> {
  const pods = await until(async () => {
    const pods = await controllerPods(context);
    return pods.length === REPLICAS && pods.every(({ ready }) => ready) && pods;
  }, "the Pods are ready, and no others there");
  expect(pods.every(({ restarts }) => restarts === 0), JSON.stringify(pods));
}

/** No Pod warns of anything, and each has listed the Secrets. */
export async function expectQuiet(context: Context): Promise<void> {
  for (const { name } of await controllerPods(context)) {
    const said = await context.kubectl(["logs", "-n", NAMESPACE, name]);
    const isQuiet = /"msg":"listed"/.test(said) && !/"level":"(warn|error)"/.test(said);
    expect(isQuiet, `the log of ${name}:\n${said}`);
  }
}

/** Waits until all Pods are of the Deployment's latest form, and ready. */
export async function rolledOut({ kubectl }: Context): Promise<void> {
  await kubectl(["rollout", "status", "-n", NAMESPACE, "deployment/controller", "--timeout=90s"]);
}
