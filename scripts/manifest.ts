/**
 * Prints deploy.yaml with the program itself in it: bundled, readable, in a ConfigMap that a stock Deno or Node runs. There
 * is no image to build, to push or to trust but the runtime's own.
 *
 *   npm run -s manifest -- [FLAG…] | kubectl apply --server-side -f -
 *
 * --help lists the flags. The manifest alone goes to stdout. The same sources give the same bytes.
 */
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { Document, isMap, isScalar, isSeq, parseAllDocuments, Scalar, type YAMLMap } from "yaml";
import { bundle } from "./bundle.ts";
import {
  add,
  CONTAINER,
  editDeployment,
  editText,
  POD,
  readSettings,
  type Settings,
  usage,
} from "./manifest_flags.ts";

const ROOT = join(import.meta.dirname!, "..");
/** Where the image of the Containerfile has the program, too: so the arguments are the same. */
const PROGRAM = "/main.js";
const KEY = "main.js";
/** What the API server takes as the data of one ConfigMap. */
const MAX_DATA_BYTES = 1_048_576;
/** Digits of the hash in the ConfigMap's name: enough to tell one program from all others that were ever installed. */
const HASH_DIGITS = 12;

/** As deploy.yaml is formatted. */
const LINE_WIDTH = 100;

const HEADER =
  `# pull-secret-updater: keeps image pull Secrets filled with short-lived cgr.dev tokens. This is deploy.yaml with the
# program in a ConfigMap, as \`npm run manifest\` makes it.
#
#   kubectl apply --server-side -f install.yaml        (Kubernetes 1.30 and later)
#
# Without --server-side kubectl would store a copy in an annotation, for which this is too large. To uninstall, delete the
# Deployment first: the policies restrict the controller while it runs (docs/upgrade.md).
`;
const NODE_ARGS =
  " Node grants nothing but this: to read three places; no child process, no worker, no other file. It has no\n" +
  " permissions for the network before Node 25.";

export interface Options {
  runtime: "deno" | "node";
  /** Has the runtime on its path. */
  image: string;
  /** What else differs from deploy.yaml. */
  settings?: Settings;
}

/** The image that runs the program unless another is asked for: the Containerfile's own base of that runtime. */
export function defaultImage(containerfile: string, runtime: Options["runtime"]): string {
  const argument = runtime === "deno" ? "BASE" : "BUILD";
  const [, image] = new RegExp(`^ARG ${argument}=(\\S+)$`, "m").exec(containerfile) ?? [];
  if (image === undefined) throw new Error(`the Containerfile has no ARG ${argument}=…`);
  return image;
}

/** Puts the program into the manifest of an install by image. What no setting changes before the Deployment stays as it is. */
export function selfContained(
  deploy: string,
  program: string,
  { runtime, image, settings = {} }: Options,
): string {
  const size = Buffer.byteLength(program);
  if (size > MAX_DATA_BYTES) {
    throw new Error(`the program has ${size} bytes, a ConfigMap holds ${MAX_DATA_BYTES}`);
  }
  const text = editText(deploy, settings);
  const deployment = (parseAllDocuments(text) as Document[]).find((document) =>
    document.get("kind") === "Deployment"
  );
  const container = deployment?.getIn(CONTAINER);
  if (!deployment?.range || !isMap(container)) {
    throw new Error("deploy.yaml has no Deployment with a container");
  }
  const before = text.slice(0, deployment.range[0]).replace(/^(#.*\n)+/, "").replace(
    /---\s*$/,
    "",
  );

  editDeployment(deployment, settings);
  container.set("image", new Scalar(image));
  if (runtime === "node") runOnNode(deployment, container);
  const beforeArgs = container.items.findIndex(({ key }) => isScalar(key) && key.value === "args");
  container.items.splice(beforeArgs, 0, deployment.createPair("command", [runtime]));
  const hash = createHash("sha256").update(program).digest("hex").slice(0, HASH_DIGITS);
  const name = `controller-${hash}`;
  const mount = { name: "program", mountPath: PROGRAM, subPath: KEY, readOnly: true };
  add(deployment, [...CONTAINER, "volumeMounts"], mount);
  add(deployment, [...POD, "volumes"], { name: "program", configMap: { name } });
  // Not being the first in its file, the last one begins with a line of its own.
  return `${HEADER}${before}---\n${programMap(deployment, name, program)}${
    deployment.toString({ lineWidth: LINE_WIDTH })
  }`;
}

/**
 * Its name changes with the program: then the Pods are replaced, and `kubectl rollout undo` finds the one before. GitOps
 * leaves that one, as old Pods may still mount it.
 */
function programMap(deployment: Document, name: string, program: string): string {
  const { namespace, labels } = deployment.toJS().metadata;
  const annotations = {
    "argocd.argoproj.io/sync-options": "Prune=false",
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
  };
  const text = new Scalar(program);
  text.type = Scalar.BLOCK_LITERAL;
  const document = new Document({
    apiVersion: "v1",
    kind: "ConfigMap",
    metadata: { name, namespace, labels, annotations },
    immutable: true,
    data: { [KEY]: text },
  });
  return `# The program: main.ts, k8s.ts and sts.ts with what they import, in one file.\n${document.toString()}`;
}

/** Replaces Deno's permissions by those that Node has. What is set for V8 stays. */
function runOnNode(deployment: Document, container: YAMLMap): void {
  const args = container.get("args", true);
  const flags = isSeq(args) ? args.items.map((item) => isScalar(item) ? `${item.value}` : "") : [];
  const listOf = (flag: string) =>
    flags.find((each) => each.startsWith(`${flag}=`))?.slice(flag.length + 1).split(",") ?? [];
  const reads = [PROGRAM, ...listOf("--allow-read")].map((path) => `--allow-fs-read=${path}`);
  container.set(
    "args",
    deployment.createNode(["--permission", ...reads, ...listOf("--v8-flags"), PROGRAM]),
  );
  const pair = container.items.find(({ key }) => isScalar(key) && key.value === "args");
  if (isScalar(pair?.key)) pair.key.commentBefore = NODE_ARGS;
  const env = container.get("env", true);
  if (!isSeq(env)) return;
  env.items = env.items.filter((item) =>
    !(isMap(item) && `${item.get("name")}`.startsWith("DENO_"))
  );
}

async function main(): Promise<void> {
  const settings = readSettings(process.argv.slice(2).filter((arg) => arg !== "--"));
  if (settings.help) {
    process.stdout.write(usage());
    return;
  }
  const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
  const runtime = settings.runtime === "node" ? "node" : "deno";
  const image = settings.image ?? defaultImage(read("Containerfile"), runtime);
  const options = { runtime, image, settings } as const;
  process.stdout.write(selfContained(read("deploy.yaml"), await bundle("main.ts"), options));
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n`);
    process.exitCode = 2;
  }
}
