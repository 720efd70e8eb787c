// What the cluster's node needs of its host, and how it is taken back: bridge, address translation, cgroups,
// a mount namespace and kernel settings.

import * as fs from "node:fs";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  apiServerAddress,
  bridgeAddress,
  type Options,
  paths,
  SERVICE_ADDRESS,
} from "./components.ts";
import { readIfThere, run, start } from "../support/processes.ts";

/** The process that keeps the mount namespace alive, named as a component is. */
export const MOUNTS = "mounts";

/** Where the CNI plug-ins are: Debian's package, the upstream archive. */
const CNI_FOLDERS = ["/usr/lib/cni", "/opt/cni/bin"];
export const CNI_PLUGINS = ["bridge", "host-local", "loopback"];

/**
 * containerd, the shims, CNI and the kubelet write to places below these, whatever they are told
 * (/run/containerd/s, /var/lib/cni, /var/lib/kubelet/device-plugins, /var/log/containers, /opt/containerd).
 */
const OVERLAID = ["/opt", "/run", "/var"];

/** What the kubelet sets these kernel parameters to; it never puts them back. */
const KUBELET_SYSCTLS: Record<string, string> = {
  "vm/overcommit_memory": "1",
  "vm/panic_on_oom": "0",
  "kernel/panic": "10",
  "kernel/panic_on_oops": "1",
  "kernel/keys/root_maxkeys": "1000000",
  "kernel/keys/root_maxbytes": "25000000",
};

/** The kubelet insists on these in its cgroup (v2), if the machine has them. */
const CGROUP_CONTROLLERS = ["cpu", "cpuset", "hugetlb", "memory", "pids"];

/** A bridge without an address of its own takes its lowest port's, and Pods lose their gateway. */
const BRIDGE_MAC = "02:00:00:00:00:01";

/** A killed process leaves its cgroup a little after it has left /proc. */
const CGROUP_TRIES = 100;
const CGROUP_POLL_MS = 50;

export function cniFolder(): string | undefined {
  return CNI_FOLDERS.find((folder) =>
    CNI_PLUGINS.every((plugin) => fs.existsSync(join(folder, plugin)))
  );
}

/** Says what stands in the way of this node, before anything is changed. */
export function checkMachine(options: Options): void {
  if (process.getuid?.() !== 0) {
    throw new Error("a node needs root: run it with sudo, or without --node");
  }
  if (OVERLAID.some((folder) => `${options.dir}/`.startsWith(`${folder}/`))) {
    throw new Error(
      `${options.dir}: a node's state folder must not lie in ${
        OVERLAID.join(", ")
      }: choose another --dir`,
    );
  }
  if (fs.existsSync(`/sys/class/net/${options.bridge}`)) {
    throw new Error(
      `there is a network link ${options.bridge} already: end the cluster it belongs to (down --dir …), ` +
        `choose another --bridge, or remove it with: ip link delete ${options.bridge}`,
    );
  }
  const address = bridgeAddress(options);
  for (const [name, addresses] of Object.entries(networkInterfaces())) {
    if (addresses?.some((each) => each.address === address)) {
      throw new Error(`${name} has the address ${address}: choose another --pod-cidr`);
    }
  }
}

/** The kernel parameters that the kubelet is going to change, as they are now. */
export function readSysctls(): Record<string, string> {
  const now = Object.keys(KUBELET_SYSCTLS).map((name) =>
    [name, readIfThere(`/proc/sys/${name}`).trim()] as const
  );
  return Object.fromEntries(now.filter(([name, value]) => value !== KUBELET_SYSCTLS[name]));
}

export function writeSysctls(sysctls: Record<string, string>): void {
  for (const [name, value] of Object.entries(sysctls)) fs.writeFileSync(`/proc/sys/${name}`, value);
}

/** The bridge, and the way from the API server's service address to its real one. */
export async function addNetwork(options: Options): Promise<void> {
  const { bridge } = options;
  await run("ip", ["link", "add", bridge, "address", BRIDGE_MAC, "type", "bridge"]);
  await run("ip", ["address", "add", `${bridgeAddress(options)}/24`, "dev", bridge]);
  await run("ip", ["link", "set", bridge, "up"]);
  await run("iptables", [
    ...["-w", "-t", "nat", "-A", "PREROUTING", "-i", bridge, "-d", SERVICE_ADDRESS],
    ...["-p", "tcp", "--dport", "443", "-j", "DNAT"],
    ...["--to-destination", `${apiServerAddress(options)}:${options.port}`],
  ]);
}

/** Pods' ends of the cables vanish with their namespaces, the bridge's ends with them. */
export async function removeNetwork({ bridge }: Options): Promise<void> {
  const rules = await run("iptables", ["-w", "-t", "nat", "-S", "PREROUTING"]);
  for (const rule of rules.split("\n").filter((rule) => rule.includes(` -i ${bridge} `))) {
    await run("iptables", ["-w", "-t", "nat", ...rule.replace(/^-A/, "-D").split(" ")]);
  }
  if (fs.existsSync(`/sys/class/net/${bridge}`)) await run("ip", ["link", "delete", bridge]);
}

/**
 * A mount namespace for containerd and kubelet. What they write outside of the state folder goes into
 * overlays that lie in it, and all their mounts end with the last of its processes.
 */
export async function addMountNamespace(options: Options, bin: string): Promise<void> {
  const { overlays } = paths(options.dir);
  const script = ["set -e"];
  for (const folder of OVERLAID) {
    const upper = join(overlays, folder, "upper");
    const work = join(overlays, folder, "work");
    fs.mkdirSync(upper, { recursive: true });
    fs.mkdirSync(work);
    fs.mkdirSync(folder, { recursive: true });
    script.push(
      `mount -t overlay overlay -o lowerdir=${folder},upperdir=${upper},workdir=${work} ${folder}`,
    );
  }
  // Shared within the namespace, so that a volume which the kubelet mounts is seen by running Pods.
  script.push("mount --make-rshared /", "exec sleep infinity");
  await start(
    options.dir,
    MOUNTS,
    "unshare",
    ["--mount", "--propagation", "private", "sh", "-c", script.join("\n")],
    bin,
  );
}

/** Whether the script above has come to its end. */
export function hasMounted(pid: number): boolean {
  return readIfThere(`/proc/${pid}/comm`).trim() === "sleep";
}

/** The Pods' cgroup: one folder in each mounted hierarchy (v1 has many, v2 one). */
function cgroups(options: Options): { mount: string; folder: string; version: string }[] {
  const mounts = fs.readFileSync("/proc/self/mounts", "utf8").split("\n");
  return mounts.map((line) => line.split(" ")).flatMap(([, mount, type]) =>
    mount !== undefined && (type === "cgroup" || type === "cgroup2")
      ? [{ mount, folder: join(mount, options.bridge), version: type }]
      : []
  );
}

export function addCgroups(options: Options): void {
  for (const { mount, folder, version } of cgroups(options)) {
    if (version === "cgroup2") {
      const available = readIfThere(join(mount, "cgroup.controllers")).trim().split(" ");
      const wanted = CGROUP_CONTROLLERS.filter((name) => available.includes(name));
      fs.writeFileSync(
        join(mount, "cgroup.subtree_control"),
        wanted.map((name) => `+${name}`).join(" "),
      );
    }
    fs.mkdirSync(folder, { recursive: true });
  }
}

/** Every process in a Pod. */
export function podProcesses(options: Options): number[] {
  const pids = cgroups(options).flatMap(({ folder }) => folders(folder)).flatMap((folder) =>
    readIfThere(join(folder, "cgroup.procs")).split("\n").map(Number).filter((pid) => pid > 0)
  );
  return [...new Set(pids)];
}

export async function removeCgroups(options: Options): Promise<void> {
  for (const { folder } of cgroups(options)) {
    for (const each of folders(folder).reverse()) await removeCgroup(each);
  }
}

async function removeCgroup(folder: string): Promise<void> {
  for (let tries = 1;; tries++) {
    try {
      return fs.rmdirSync(folder);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      if (tries === CGROUP_TRIES) throw error;
    }
    await sleep(CGROUP_POLL_MS);
  }
}

/** A folder and all those below it, parents first; they may vanish while they are listed. */
function folders(top: string): string[] {
  let entries: fs.Dirent[] = [];
  try {
    entries = fs.readdirSync(top, { withFileTypes: true });
  } catch (error) {
    if (["ENOENT", "ENODEV"].includes((error as NodeJS.ErrnoException).code ?? "")) return [];
    throw error;
  }
  const below = entries.filter((entry) => entry.isDirectory());
  return [top, ...below.flatMap((entry) => folders(join(top, entry.name)))];
}
