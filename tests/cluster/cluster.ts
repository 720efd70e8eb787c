// A whole Kubernetes cluster on this machine, made of its ordinary programs. From the command line:
//
//   node tests/cluster/cluster.ts up|down [flags]     (--help lists them)
//
// and as a library, for tests:
//
//   const cluster = await up({ dir, port, node: true });
//   await cluster.stop("kube-apiserver");
//   await cluster.start("kube-apiserver");
//   await cluster.ready();
//   await down({ dir });

import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { Agent, request } from "undici";
import { binFolder, build, isBuilt, seconds } from "./binaries.ts";
import {
  apiServerAddress,
  commandLine,
  type Component,
  COMPONENTS,
  CONTROL_PLANE,
  makeCertificates,
  NODE_NAME,
  type Options,
  paths,
  writeConfiguration,
} from "./components.ts";
import {
  addCgroups,
  addMountNamespace,
  addNetwork,
  checkMachine,
  CNI_PLUGINS,
  cniFolder,
  hasMounted,
  MOUNTS,
  podProcesses,
  readSysctls,
  removeCgroups,
  removeNetwork,
  writeSysctls,
} from "./host.ts";
import { until } from "../support/until.ts";
import {
  isInstalled,
  killAll,
  logTail,
  PATH,
  pidOf,
  processesOf,
  run,
  start,
  stop,
} from "../support/processes.ts";

export type { Component, Options };

export const DEFAULTS: Options = {
  dir: join(tmpdir(), "pull-secret-updater-cluster"),
  port: 16443, // Kubernetes' own 6443, out of the way of a cluster that is here already
  node: false,
  bridge: "psu0",
  podCIDR: "10.244.0.0/24",
  registries: {},
  audit: false,
  etcdQuotaMB: 2048, // etcd's own default
};

/** Two idle cores have the API server ready in 3 s and the node in 4; a busy machine may take its time. */
const READY_TIMEOUT_MS = 120_000;
/** One look at /readyz; the API server answers it within milliseconds, or hangs. */
const READYZ_TIMEOUT_MS = 2_000;

/** kube-apiserver ends its watches first, and hangs if etcd is gone: then it is killed. */
const STOP_TIMEOUT_MS = 10_000;

/** The end of every failure to come up. */
const WHAT_NEXT = "mend it, then start anew, after: cluster.ts down --dir";

/** Unix sockets' names end at 107 characters, and containerd's and the kubelet's are 35 longer. */
const DIR_LENGTH = 70;
/** Names of network links end at 15. */
const BRIDGE_PATTERN = /^[a-z][a-z0-9-]{0,14}$/;
const POD_CIDR_PATTERN = /^\d{1,3}\.\d{1,3}\.\d{1,3}\.0\/24$/;
const PORT_MAX = 65535 - 3;

/** What is kept in cluster.json: enough to end the cluster, whatever happened to it. */
interface State {
  options: Options;
  /** Kernel parameters as they were before the kubelet. */
  sysctls: Record<string, string>;
}

/** A cluster that is up, or was. */
export class Cluster {
  readonly options: Options;
  /** The API server's URL. */
  readonly server: string;
  /** Path of the administrator's kubeconfig (JSON, with a token of the group system:masters). */
  readonly kubeconfig: string;
  /** Path of the CA that signed the API server's certificate. */
  readonly ca: string;
  /** Folder of kubectl, ctr and the others. */
  readonly bin: string;

  constructor(options: Options) {
    const at = paths(options.dir);
    this.options = options;
    this.server = `https://${apiServerAddress(options)}:${options.port}`;
    this.kubeconfig = at.kubeconfig;
    this.ca = at.ca;
    this.bin = binFolder();
  }

  /** The components that this cluster is made of. */
  get components(): Component[] {
    return this.options.node ? [...COMPONENTS] : CONTROL_PLANE;
  }

  /** What a shell or a child process needs for a bare `kubectl` to mean this cluster. */
  get environment(): Record<string, string> {
    return {
      KUBECONFIG: this.kubeconfig,
      // What kubectl remembers of a cluster's resources goes by its address, and would outlive it.
      KUBECACHEDIR: paths(this.options.dir).kubectlCache,
      PATH: `${this.bin}:${PATH}`,
    };
  }

  /** Runs kubectl, as the administrator or as whoever has this token, and gives its output. */
  kubectl(args: string[], input = "", token?: string): Promise<string> {
    const as = [
      "--kubeconfig=/dev/null",
      `--server=${this.server}`,
      `--certificate-authority=${this.ca}`,
      `--token=${token}`,
    ];
    // A proxy would not find the way to the bridge.
    const env = { ...this.environment, NO_PROXY: "*" };
    return run(join(this.bin, "kubectl"), [...token ? as : [], ...args], { input, env });
  }

  /** Runs containerd's client, in the namespace of the kubelet's images and containers. */
  ctr(args: string[]): Promise<string> {
    const { containerdSocket } = paths(this.options.dir);
    return run(join(this.bin, "ctr"), ["-a", containerdSocket, "-n", "k8s.io", ...args]);
  }

  pid(component: Component): number | undefined {
    return pidOf(this.options.dir, component);
  }

  /** Starts a component that does not run, with the same arguments as ever; `ready` waits for it. */
  async start(component: Component): Promise<void> {
    if (this.pid(component) !== undefined) return;
    const { dir } = this.options;
    const program = join(this.bin, component);
    const args = commandLine(this.options, component);
    if (component !== "containerd" && component !== "kubelet") {
      await start(dir, component, program, args, this.bin);
      return;
    }
    const mounts = pidOf(dir, MOUNTS);
    if (mounts === undefined) throw new Error("the node's mount namespace is gone: down, then up");
    const entered = [`--mount=/proc/${mounts}/ns/mnt`, "--", program, ...args];
    await start(dir, component, "nsenter", entered, this.bin);
    if (component === "containerd") {
      // The kubelet ends if nobody answers at containerd's socket.
      const answers = () => this.ctr(["version"]).then(() => true);
      await this.waitFor("containerd's socket", [component], answers);
    }
  }

  /** Ends a component and waits until it is gone. etcd must not go before the API server does. */
  stop(component: Component, signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    return stop(this.options.dir, component, signal, STOP_TIMEOUT_MS);
  }

  /** Waits until the API server is ready, and with a node until Pods can be scheduled to it. */
  async ready(): Promise<void> {
    await this.apiServerReady();
    await this.waitFor("the default service account", CONTROL_PLANE, async () => {
      const made = ["get", "serviceaccount/default", "configmap/kube-root-ca.crt", "-o", "name"];
      return await this.kubectl(["-n", "default", ...made]) !== "";
    });
    if (!this.options.node) return;
    await this.waitFor("the ready node", this.components, async () => {
      const node = JSON.parse(await this.kubectl(["get", "node", NODE_NAME, "-o", "json"]));
      const conditions: { type: string; status: string }[] = node.status.conditions;
      return node.spec.taints === undefined &&
        conditions.some(({ type, status }) => type === "Ready" && status === "True");
    });
  }

  apiServerReady(): Promise<void> {
    const needed: Component[] = ["etcd", "kube-apiserver"];
    return this.waitFor("the API server's /readyz", needed, () => this.answersReadyz());
  }

  /**
   * Repeats a check until it holds. Fails as soon as one of the needed components does not run, and when it takes too
   * long, with the log of the last of them.
   */
  async waitFor(
    what: string,
    needed: (Component | typeof MOUNTS)[],
    check: () => boolean | Promise<boolean>,
  ): Promise<void> {
    const { dir } = this.options;
    const findDead = () => needed.find((component) => pidOf(dir, component) === undefined);
    const fail = (why: string, component = needed.at(-1) ?? "") => {
      throw new Error(`${why}\n${logTail(dir, component)}\n${WHAT_NEXT} ${dir}`);
    };
    await until(async () => findDead() !== undefined || await check(), what, READY_TIMEOUT_MS)
      .catch(({ message }) => fail(message));
    const dead = findDead();
    if (dead !== undefined) fail(`${dead} does not run`, dead);
  }

  private async answersReadyz(): Promise<boolean> {
    const dispatcher = new Agent({ connect: { ca: fs.readFileSync(this.ca, "utf8") } });
    const signal = AbortSignal.timeout(READYZ_TIMEOUT_MS);
    const { statusCode } = await request(`${this.server}/readyz`, { dispatcher, signal })
      .finally(() => dispatcher.destroy());
    return statusCode === 200;
  }
}

type Say = (line: string) => void;
const SILENT: Say = () => {};

/** Starts a cluster and waits until it is ready. One that is up with the same options is left as it is. */
export async function up(given: Partial<Options> = {}, say: Say = SILENT): Promise<Cluster> {
  const options = checked(given);
  const { dir } = options;
  const cluster = new Cluster(options);

  const found = readState(dir);
  if (found !== undefined) {
    if (JSON.stringify(found.options) !== JSON.stringify(options)) {
      throw new Error(
        `a cluster with other options is in ${dir}: end it first (down --dir ${dir})`,
      );
    }
    const dead = cluster.components.filter((component) => cluster.pid(component) === undefined);
    if (dead.length > 0) {
      throw new Error(
        `a cluster is in ${dir}, without ${dead.join(", ")}: end it first (down --dir ${dir})`,
      );
    }
    say(`already up: ${dir}`);
    return cluster;
  }

  if (options.node) checkMachine(options);
  checkInstalled(options);
  await build(options.node, say);

  const started = Date.now();
  claim(options);
  writeConfiguration(options, cniFolder() ?? "");
  makeCertificates(options);
  if (options.node) {
    addCgroups(options);
    await addNetwork(options);
    await addMountNamespace(options, cluster.bin);
    const mounts = () => hasMounted(pidOf(dir, MOUNTS) ?? 0);
    await cluster.waitFor("the node's mounts", [MOUNTS], mounts);
    await cluster.start("containerd");
    await cluster.ctr(["image", "import", join(cluster.bin, "pause.tar")]);
  }
  await cluster.start("etcd");
  await cluster.start("kube-apiserver");
  await cluster.apiServerReady();
  say(`API server ready after ${seconds(started)}`);

  await cluster.start("kube-controller-manager");
  if (options.node) {
    await cluster.start("kube-scheduler");
    await cluster.start("kubelet");
  }
  await cluster.ready();
  say(`cluster ready after ${seconds(started)}`);
  return cluster;
}

/**
 * Ends a cluster, or what is left of one, and removes all traces. Everything is killed: the state is
 * thrown away, and so the same path serves after any crash.
 */
export async function down(given: Partial<Options> = {}, say: Say = SILENT): Promise<void> {
  const began = Date.now();
  const { dir } = checked(given);
  const state = readState(dir);
  if (state === undefined) {
    const files = fs.existsSync(dir) ? fs.readdirSync(dir) : [];
    if (files.some((name) => name !== "cluster.json")) {
      throw new Error(
        `${dir} is no cluster's state folder (it has no cluster.json): nothing is done`,
      );
    }
    const left = processesOf(dir);
    await killAll(() => processesOf(dir)); // the folder was removed by someone else
    fs.rmSync(dir, { recursive: true, force: true });
    say(left.length > 0 ? `killed ${left.length} processes` : `nothing was up in ${dir}`);
    return;
  }

  const { options, sysctls } = state;
  if (options.node && process.getuid?.() !== 0) {
    throw new Error(`${dir} has a node: run it with sudo`);
  }
  await killAll(() => [...processesOf(dir), ...(options.node ? podProcesses(options) : [])]);
  if (options.node) {
    await removeCgroups(options);
    await removeNetwork(options);
    writeSysctls(sysctls);
  }
  // cluster.json goes last: a `down` that is broken off here can be repeated.
  for (const name of fs.readdirSync(dir).filter((name) => name !== "cluster.json")) {
    fs.rmSync(join(dir, name), { recursive: true });
  }
  fs.rmSync(dir, { recursive: true });
  say(`down after ${seconds(began)}`);
}

function checked(given: Partial<Options>): Options {
  const options = { ...DEFAULTS, ...given };
  const { dir, port, bridge, podCIDR } = options;
  options.dir = resolve(dir);
  if (options.dir.length > DIR_LENGTH || /\s/.test(options.dir)) {
    throw new Error(`dir ${dir}: at most ${DIR_LENGTH} characters, without spaces`);
  }
  if (!Number.isInteger(port) || port < 1 || port > PORT_MAX) {
    throw new Error(`port ${port}: a number from 1 to ${PORT_MAX}`);
  }
  if (!BRIDGE_PATTERN.test(bridge)) {
    throw new Error(`bridge ${bridge}: at most 15 small letters, digits and dashes`);
  }
  if (!POD_CIDR_PATTERN.test(podCIDR)) {
    throw new Error(`podCIDR ${podCIDR}: 256 addresses, such as ${DEFAULTS.podCIDR}`);
  }
  return options;
}

/** Says which programs are missing, with the one line that brings their Debian packages. */
export function describeMissing(missing: [program: string, debianPackage: string][]): string[] {
  if (missing.length === 0) return [];
  const programs = missing.map(([program]) => program).join(", ");
  const packages = [...new Set(missing.map(([, name]) => name))].join(" ");
  return [`missing: ${programs}\n  apt-get install --no-install-recommends ${packages}`];
}

/** Says all that is missing. */
function checkInstalled(options: Options): void {
  // Each program, and Debian's package that has it.
  const needed: [program: string, debianPackage: string][] = [];
  if (!isBuilt(options.node)) {
    needed.push(["tar", "tar"], ["flock", "util-linux"], ["nice", "coreutils"]);
  }
  if (options.node) {
    needed.push(["runc", "runc"], ["iptables", "iptables"], ["ip", "iproute2"]);
    needed.push(["mount", "mount"], ["unshare", "util-linux"], ["nsenter", "util-linux"]);
  }
  const missing = needed.filter(([program]) => !isInstalled(program));
  if (options.node && cniFolder() === undefined) {
    missing.push([`the CNI plug-ins ${CNI_PLUGINS.join(", ")}`, "containernetworking-plugins"]);
  }
  const lines = describeMissing(missing);
  if (!isBuilt(options.node) && !isInstalled("go")) {
    lines.push(
      "missing: go, in the version of tests/cluster/*/go.mod or later, to build the cluster",
    );
  }
  if (lines.length > 0) throw new Error(lines.join("\n"));
}

/** Makes the state folder this cluster's own; of two that try it at once, one fails. */
function claim(options: Options): void {
  const { dir } = options;
  fs.mkdirSync(dir, { recursive: true });
  if (fs.readdirSync(dir).length > 0) {
    throw new Error(`${dir} is in use, by another up or something else: choose another --dir`);
  }
  fs.chmodSync(dir, 0o700); // it will hold the administrator's token
  const state: State = { options, sysctls: options.node ? readSysctls() : {} };
  fs.writeFileSync(join(dir, "cluster.json"), JSON.stringify(state, null, 2) + "\n", {
    flag: "wx",
  });
}

function readState(dir: string): State | undefined {
  try {
    const text = fs.readFileSync(join(dir, "cluster.json"), "utf8");
    return text === "" ? undefined : JSON.parse(text); // empty: killed while writing it
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    if (code === "EACCES") {
      throw new Error(`${dir} is another user's: run it with sudo, or choose another --dir`);
    }
    throw error;
  }
}

const HELP = `A Kubernetes cluster on this machine, built from source and kept in one folder.

  cluster.ts up [flags]                start it; prints the lines to source into a shell
  cluster.ts down [--dir DIR]          end it and remove all that it made, also after a crash

A control plane (etcd, kube-apiserver, kube-controller-manager) needs no root; with --node there are
kube-scheduler, containerd and kubelet too, and Pods run: that needs root.

  --node                 with the node
  --dir DIR              state folder            [${DEFAULTS.dir}]
  --port PORT            kube-apiserver's; the next three are etcd's two and the kubelet's  [${DEFAULTS.port}]
  --bridge NAME          the Pods' bridge, also the name of their cgroup            [${DEFAULTS.bridge}]
  --pod-cidr CIDR        256 addresses for Pods, the first one the bridge's  [${DEFAULTS.podCIDR}]
  --help

Clusters with different --dir and --port (and --bridge and --pod-cidr) run side by side.
The programs are built once and kept in ${binFolder()}.
`;

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      node: { type: "boolean", default: DEFAULTS.node },
      dir: { type: "string", default: DEFAULTS.dir },
      port: { type: "string", default: `${DEFAULTS.port}` },
      bridge: { type: "string", default: DEFAULTS.bridge },
      "pod-cidr": { type: "string", default: DEFAULTS.podCIDR },
      help: { type: "boolean" },
    },
  });
  const { node, dir, port, bridge, "pod-cidr": podCIDR, help } = values;
  const given = { node, dir, port: Number(port), bridge, podCIDR };
  const say = (line: string) => console.error(line);

  if (`${positionals}` === "up" && !help) printExports(await up(given, say));
  else if (`${positionals}` === "down" && !help) await down({ dir }, say);
  else {
    (help ? console.log : console.error)(HELP);
    return help ? 0 : 2;
  }
  return 0;
}

function printExports({ bin, environment: { KUBECONFIG, KUBECACHEDIR } }: Cluster): void {
  console.log(`export KUBECONFIG=${KUBECONFIG} KUBECACHEDIR=${KUBECACHEDIR}`);
  console.log(`export PATH=${bin}:$PATH`);
}

if (process.argv[1] !== undefined && fs.realpathSync(process.argv[1]) === import.meta.filename) {
  main().then((code) => process.exitCode = code, (error: Error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
