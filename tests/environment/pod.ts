/**
 * The program as a Pod runs it: what `npm run manifest` prints, with its own arguments and variables, in a network
 * namespace and on a read-only root file system of its own. Nothing of it outlives the process that began it: no
 * namespace has a name, and mounts and links go with their namespaces.
 */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, realpathSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { selfContained } from "../../scripts/manifest.ts";
import type { Settings } from "../../scripts/manifest_flags.ts";
import { ROOT } from "../support/paths.ts";
import { readContainer, type Runtime } from "../support/program.ts";

const DEPLOY = readFileSync(join(ROOT, "deploy.yaml"), "utf8");
/** Where each Pod has its root, in a mount namespace of its own. */
const ROOT_FOLDER = "/mnt";
/** Bound into the Pod's root, as far as the machine has them. */
const LIBRARIES = ["/usr/lib", "/usr/lib64"];
const DEVICES = ["null", "zero", "random", "urandom"];
const run = promisify(execFile);

export interface Network {
  /** An AAAA record leads nowhere, at once. */
  hasNoIPv6Route?: boolean;
  /** As with `ipv6.disable=1`. */
  hasNoIPv6?: boolean;
  /** The first SYN of each connection is lost: it takes a second longer. */
  isSlow?: boolean;
}

export interface PodOptions {
  /** A number that no other Pod of this time has: its addresses. */
  slot: number;
  runtime: Runtime;
  /** The program's file. */
  program: string;
  /** Flags of `npm run manifest`. */
  flags: Settings;
  /** Added to the manifest's own variables. */
  env: Record<string, string>;
  resolvConf: string;
  /** Folders of this machine, by where the Pod has them. */
  mounts: Record<string, string>;
  network: Network;
  user: { uid: number; gid: number };
}

export type Pod = Awaited<ReturnType<typeof startPod>>;

/** Of the Pod, and of its gateway, where all servers are. */
function addressesOf(slot: number) {
  const network = `2001:db8:f0${`${slot}`.padStart(2, "0")}`;
  return {
    own: [`172.20.${slot}.2`, `${network}::2`],
    gateway: [`172.20.${slot}.1`, `${network}::1`],
  };
}

export async function startPod(options: PodOptions) {
  const { slot, runtime, network } = options;
  const manifest = { runtime, image: "IMAGE", settings: options.flags };
  const { args, env } = readContainer(selfContained(DEPLOY, "", manifest));
  const variables: Record<string, string> = { PATH: "/runtime", ...env, ...options.env };
  // As the kubelet does it.
  const expanded = args.map((arg) =>
    arg.replace(/\$\((\w+)\)/g, (all, name) => variables[name] ?? all)
  );
  const script = [
    "set -e; echo ready; read -r _",
    networkScript(slot, network),
    rootScript(options),
    `exec env -i ${
      Object.entries(variables).map(([name, value]) => quote(`${name}=${value}`)).join(" ")
    } \\`,
    `  /usr/sbin/chroot --userspec=${options.user.uid}:${options.user.gid} --groups= ${ROOT_FOLDER} \\`,
    `  /runtime/${[runtime, ...expanded].map(quote).join(" ")} </dev/null`,
  ].join("\n");
  const child = spawn("unshare", ["--net", "--mount", "sh", "-c", script]);
  const lines: string[] = [];
  const ready = Promise.withResolvers<void>();
  const exited = once(child, "close").then(([code, signal]) => {
    ready.resolve();
    return (code ?? signal) as number | string;
  });
  for (const stream of [child.stdout, child.stderr]) {
    createInterface(stream).on("line", (line) => {
      if (line === "ready") ready.resolve();
      else lines.push(line);
    });
  }
  await ready.promise;
  await connect(slot, child.pid!);
  child.stdin.on("error", () => {}).end("go\n");
  return {
    /** What it wrote on both of its outputs. */
    lines,
    isAlive: () => child.exitCode === null && child.signalCode === null,
    /** The exit status, or the signal. */
    exited,
    end(signal: NodeJS.Signals): Promise<number | string> {
      if (child.exitCode === null && child.signalCode === null) process.kill(child.pid!, signal);
      return exited;
    },
  };
}

/** The link between the Pod's network namespace and this one. */
async function connect(slot: number, pid: number): Promise<void> {
  const name = `pod${slot}`;
  const [ipv4, ipv6] = addressesOf(slot).gateway;
  const commands = `link add ${name} type veth peer name eth0 netns ${pid}
    address add ${ipv4}/24 dev ${name}
    address add ${ipv6}/64 dev ${name} nodad
    link set ${name} up
`;
  const child = run("ip", ["-batch", "-"]);
  child.child.stdin!.end(commands);
  await child;
}

function networkScript(slot: number, network: Network): string {
  const { own: [ipv4, ipv6], gateway: [gateway4, gateway6] } = addressesOf(slot);
  const slow = (tables: string) =>
    `${tables} -A OUTPUT -o eth0 -p tcp --syn -m hashlimit --hashlimit-upto 1/day --hashlimit-burst 1` +
    " --hashlimit-mode srcip,srcport,dstip --hashlimit-name first -j DROP";
  return [
    network.hasNoIPv6 ? "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6" : "",
    "ip link set lo up",
    `ip address add ${ipv4}/24 dev eth0`,
    network.hasNoIPv6 ? "" : `ip address add ${ipv6}/64 dev eth0 nodad`,
    "ip link set eth0 up",
    `ip route add default via ${gateway4}`,
    network.hasNoIPv6 || network.hasNoIPv6Route ? "" : `ip route add default via ${gateway6}`,
    ...network.isSlow ? ["iptables", "ip6tables"].map(slow) : [],
  ].filter(Boolean).join("\n");
}

/** Read-only, without a shell, without /etc/passwd: what the program finds in the stock image, or less. */
function rootScript({ program, runtime, resolvConf, mounts }: PodOptions): string {
  const binary = realpathSync(join(ROOT, "node_modules/.bin", runtime));
  const files = { [`/runtime/${runtime}`]: binary, "/main.js": program };
  const devices = DEVICES.map((name) => `/dev/${name}`);
  const bind = (from: string, to: string) => `mount --rbind ${quote(from)} ${quote(to)}`;
  return [
    `mount -t tmpfs pod ${ROOT_FOLDER}`,
    `cd ${ROOT_FOLDER}`,
    "mkdir -p runtime usr etc proc sys/fs/cgroup dev run var",
    "ln -s ../run var/run; ln -s usr/lib lib; ln -s usr/lib64 lib64",
    ...LIBRARIES.filter((folder) => existsSync(folder)).map((folder) =>
      `mkdir .${folder}; ${bind(folder, `.${folder}`)}`
    ),
    bind("/proc", "proc"),
    bind("/sys/fs/cgroup", "sys/fs/cgroup"),
    ...Object.entries({ ...files, ...Object.fromEntries(devices.map((name) => [name, name])) })
      .map(([to, from]) => `touch .${to}; ${bind(from, `.${to}`)}`),
    ...Object.entries(mounts).map(([to, from]) => `mkdir -p .${to}; ${bind(from, `.${to}`)}`),
    `printf %s ${quote(resolvConf)} >etc/resolv.conf`,
    "echo '127.0.0.1 localhost' >etc/hosts",
    "echo 'hosts: files dns' >etc/nsswitch.conf",
    `cd /; mount -o remount,bind,ro ${ROOT_FOLDER}`,
  ].join("\n");
}

const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
