/**
 * The whole story on a whole real cluster: deploy.yaml and the Containerfile as they stand, Pods that pull private images.
 *
 * Usage: node tests/cluster/e2e/e2e.ts [--keep] [--dir D] [--port P] [--bridge B] [--pod-cidr C] [--only PART[,PART…]]
 *
 * Parts: laptop, story, moving and pods (which need it), tenants, gitops, tools, policies, manifest, resilience, narrow (which needs tenants).
 * And upgrade, which takes longer than the others and is not run unless it is named.
 * Prints one line a step. When one fails, everything that was said is kept in D-logs, and the exit status is 1.
 */
import * as fs from "node:fs";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type Cluster, DEFAULTS, describeMissing, down, type Options, up } from "../cluster.ts";
import { bridgeAddress } from "../components.ts";
import { runToTheEnd } from "../ending.ts";
import { helpIfAsked } from "../../support/help.ts";
import { ACCOUNT, NAMESPACE } from "../../support/names.ts";
import { isInstalled } from "../../support/processes.ts";
import { makeAuthority } from "../../fake/certificates.ts";
import { startIssuer } from "../../fake/issuer.ts";
import { type Context, createHands, createSteps, type Kubectl } from "./context.ts";
import { deploy } from "./deploy.ts";
import { gitops } from "./gitops.ts";
import { laptop } from "./laptop.ts";
import { collectLogs } from "./logs.ts";
import { manifest } from "./manifest.ts";
import { moving } from "./moving.ts";
import { pods } from "./pods.ts";
import { policies } from "./policies.ts";
import { startRegistry } from "./registry.ts";
import { resilience, watchSecrets } from "./resilience.ts";
import { story } from "./pulling.ts";
import { narrow, tenants } from "./tenants.ts";
import { tools } from "./tools.ts";
import { upgrade } from "./upgrade.ts";

/** Programs, and Debian's packages that have them, beside those that the cluster itself asks for. */
const PROGRAMS = {
  "docker-registry": "docker-registry",
  skopeo: "skopeo",
  buildah: "buildah",
  promtool: "prometheus",
};
const ISSUER_HOST = "issuer.enforce.dev";
/** In seconds: long enough to outlive a restart of the API server when two thirds are gone. */
const LIFE_S = 150;
/** From --port on: the cluster's four, then the registry's, the token server's, kubectl proxy's, and the lock's. */
const REGISTRY_PORT = 4;
const LOCK_PORT = 7;

helpIfAsked(import.meta.filename!);
const { values: flags } = parseArgs({
  options: {
    keep: { type: "boolean", default: false },
    dir: { type: "string", default: join(tmpdir(), "pull-secret-updater-e2e") },
    port: { type: "string", default: "17543" },
    bridge: { type: "string", default: "psue2e" },
    "pod-cidr": { type: "string", default: "10.247.0.0/24" },
    only: { type: "string" },
  },
});
const logs = `${flags.dir}-logs`;
/** What is to be closed in the end, beside the cluster. */
const closing: (() => unknown)[] = [];
let cluster: Cluster | undefined;
const { need, step, fail, hasFailed, tell } = createSteps((failure) =>
  cluster ? collectLogs(cluster, logs, `failure-${failure}.txt`) : Promise.resolve()
);

/** Sees to it that no other run uses the same folder and ports: a port is free again however its process ends. */
function lockOut(port: number): Promise<void> {
  return new Promise((done, failed) => {
    const lock = net.createServer().unref();
    const what = "another run goes on: choose another --dir, --port, --bridge and --pod-cidr";
    lock.once("error", ({ message }) => failed(new Error(`${what} (${message})`)));
    lock.listen(port, "127.0.0.1", done);
  });
}

async function startCluster(options: Options): Promise<Cluster> {
  const [missing] = describeMissing(
    Object.entries(PROGRAMS).filter(([program]) => !isInstalled(program)),
  );
  if (missing) throw new Error(missing);
  await down({ dir: flags.dir }); // what a run that was killed has left
  return await up(options, (line) => line.startsWith("build") && console.log(line));
}

/** Starts what stands around the cluster. */
async function surround(
  cluster: Cluster,
  registryAt: { host: string; port: number },
): Promise<Context> {
  const { dir } = cluster.options;
  const address = bridgeAddress(cluster.options);
  const kubectl: Kubectl = (args, input) => cluster.kubectl(args, input);
  const work = join(dir, "e2e");
  fs.mkdirSync(work);
  const authority = makeAuthority();
  const caFile = join(work, "ca.crt");
  fs.writeFileSync(caFile, authority.certificate);

  const keys = JSON.parse(await kubectl(["get", "--raw", "/openid/v1/jwks"]));
  const certificate = authority.issue([ISSUER_HOST, address]);
  const issuer = await startIssuer({
    host: address,
    port: 443,
    certificate,
    keys,
    life: LIFE_S,
    issuer: `https://${ISSUER_HOST}`,
  });
  closing.push(() => issuer.close());
  const registry = await startRegistry({
    dir,
    work,
    ...registryAt,
    issuer,
    certificate: authority.issue(["cgr.dev"]),
  });
  closing.push(() => registry.close());
  const clusterIssuer =
    JSON.parse(await kubectl(["get", "--raw", "/.well-known/openid-configuration"])).issuer;
  return {
    ...createHands(kubectl),
    cluster,
    issuer,
    registry,
    address,
    work,
    ca: authority.certificate,
    caFile,
    clusterIssuer,
    bind: (identity, namespace = NAMESPACE, account = ACCOUNT) =>
      issuer.bind(identity, clusterIssuer, namespace, account),
    setLife: (identity, seconds) => {
      const form = new URLSearchParams({ identity }).toString();
      const claims = {
        get exp() {
          return Math.floor(Date.now() / 1000) + seconds;
        },
      };
      const match = ({ body }: { body: string }) => body.includes(form);
      issuer.faults.add({ verb: "exchange", times: Infinity, match, claims });
    },
    as: (token) => (args, input) => cluster.kubectl(args, input, token),
    step,
    need,
  };
}

async function main(): Promise<void> {
  const { dir, bridge, "pod-cidr": podCIDR, only } = flags;
  const port = Number(flags.port);
  const options = { ...DEFAULTS, dir, port, bridge, podCIDR, node: true, audit: true };
  // An address of its own, as it needs port 443 too.
  const registryAt = {
    host: bridgeAddress(options).replace(/^\d+/, "127"),
    port: port + REGISTRY_PORT,
  };
  options.registries = { "cgr.dev": `http://${registryAt.host}:${registryAt.port}` };
  cluster = await need("a whole cluster", () => startCluster(options));
  const context = await need(
    "an issuer and a registry",
    () => surround(cluster as Cluster, registryAt),
  );

  if (!only || only.split(",").includes("laptop")) await laptop(context);
  const bases = await deploy(context);
  const watcher = await watchSecrets(context);
  closing.push(() => watcher.stop());
  const parts = {
    story: () => story(context, watcher.namespaces),
    moving: () => moving(context),
    pods: () => pods(context),
    tenants: () => tenants(context),
    gitops: () => gitops(context),
    tools: () => tools(context),
    policies: () => policies(context),
    manifest: () => manifest(context, bases),
    resilience: () => resilience(context, watcher),
    narrow: () => narrow(context),
    upgrade: () => upgrade(context, bases),
  };
  for (const [name, part] of Object.entries(parts)) {
    if (only ? only.split(",").includes(name) : name !== "upgrade") await part();
  }
}

async function takeDown(): Promise<void> {
  if (hasFailed() && cluster) {
    await collectLogs(cluster, logs, "end.txt").catch(console.error);
    console.log(`what was said is in ${logs}`);
  }
  for (const close of closing.reverse()) await Promise.try(close).catch(console.error);
  if (flags.keep) {
    console.log(`kept: ${flags.dir}; end it with: npm run cluster down -- --dir ${flags.dir}`);
  } else await down({ dir: flags.dir });
}

await lockOut(Number(flags.port) + LOCK_PORT).catch(({ message }) => {
  console.error(message);
  process.exit(1);
});
fs.rmSync(logs, { recursive: true, force: true });
runToTheEnd(() => main().catch(fail).then(tell), takeDown);
