// What each component is told: its command line and its files. Nothing here runs a component.

import { generateKeyPairSync, randomBytes } from "node:crypto";
import * as fs from "node:fs";
import { join } from "node:path";
import { PAUSE_IMAGE } from "./binaries.ts";
import { makeAuthority } from "../fake/certificates.ts";

export interface Options {
  /** State folder: everything the cluster writes, gone after `down`. */
  dir: string;
  /** Port of kube-apiserver; the three above it are etcd's two and the kubelet's. */
  port: number;
  /** With scheduler, containerd and kubelet, so that Pods run. Needs root. */
  node: boolean;
  /** The Pods' bridge. Its name is also that of the CNI network and of the Pods' cgroup. */
  bridge: string;
  /** The Pods' addresses; the bridge has the first one, and there the API server listens. */
  podCIDR: string;
  /** Registry hosts that image names begin with, and the URL each is served at instead. */
  registries: Record<string, string>;
  /** Whether kube-apiserver writes logs/audit.log. */
  audit: boolean;
  /** Where etcd's disk counts as full. */
  etcdQuotaMB: number;
}

export const COMPONENTS = [
  "etcd",
  "kube-apiserver",
  "kube-controller-manager",
  "kube-scheduler",
  "containerd",
  "kubelet",
] as const;
export type Component = typeof COMPONENTS[number];
export const CONTROL_PLANE: Component[] = ["etcd", "kube-apiserver", "kube-controller-manager"];

export const NODE_NAME = "node";

const MB = 1024 * 1024;

export const ISSUER = "https://kubernetes.default.svc.cluster.local";

/** kube-apiserver wants a range; its first address is the API server's own, as Pods see it. */
const SERVICE_CIDR = "10.0.0.0/24";
export const SERVICE_ADDRESS = "10.0.0.1";

/** The Pods' address range without its last number, as in "10.244.0". */
function podNetwork(options: Options): string {
  return options.podCIDR.split(".").slice(0, 3).join(".");
}

export function bridgeAddress(options: Options): string {
  return `${podNetwork(options)}.1`;
}

/** Where kube-apiserver listens: Pods reach the bridge, and nobody beyond this machine either one. */
export function apiServerAddress(options: Options): string {
  return options.node ? bridgeAddress(options) : "127.0.0.1";
}

export function etcdAddress(options: Options): string {
  return `http://127.0.0.1:${options.port + 1}`;
}

/** Names of all the files and folders in the state folder. */
export function paths(dir: string) {
  const pki = join(dir, "pki");
  return {
    kubeconfig: join(dir, "kubeconfig"),
    kubectlCache: join(dir, "kubectl"),
    ca: join(pki, "ca.crt"),
    apiServerCert: join(pki, "kube-apiserver.crt"),
    apiServerKey: join(pki, "kube-apiserver.key"),
    kubeletClientCert: join(pki, "kubelet-client.crt"),
    kubeletClientKey: join(pki, "kubelet-client.key"),
    serviceAccountKey: join(pki, "service-account.key"),
    serviceAccountPublicKey: join(pki, "service-account.pub"),
    tokens: join(pki, "tokens.csv"),
    auditPolicy: join(dir, "audit-policy.json"),
    auditLog: join(dir, "logs", "audit.log"),
    etcd: join(dir, "etcd"),
    containerd: join(dir, "containerd"),
    containerdConfig: join(dir, "containerd", "config.toml"),
    containerdSocket: join(dir, "containerd", "containerd.sock"),
    registries: join(dir, "containerd", "registries"),
    cni: join(dir, "cni"),
    kubelet: join(dir, "kubelet"),
    kubeletConfig: join(dir, "kubelet.json"),
    podLogs: join(dir, "logs", "pods"),
    volumePlugins: join(dir, "volume-plugins"),
    overlays: join(dir, "overlays"),
  };
}

/** The kubeconfig of a component; the administrator's is `paths(dir).kubeconfig`. */
function kubeconfigOf(dir: string, component: Component): string {
  return join(dir, "pki", `${component}.kubeconfig`);
}

export function commandLine(options: Options, component: Component): string[] {
  const at = paths(options.dir);
  const address = apiServerAddress(options);
  const etcd = etcdAddress(options);
  const etcdPeer = `http://127.0.0.1:${options.port + 2}`;

  switch (component) {
    case "etcd":
      return [
        `--data-dir=${at.etcd}`,
        `--listen-client-urls=${etcd}`,
        `--advertise-client-urls=${etcd}`,
        `--listen-peer-urls=${etcdPeer}`,
        `--initial-advertise-peer-urls=${etcdPeer}`,
        `--initial-cluster=default=${etcdPeer}`,
        `--quota-backend-bytes=${options.etcdQuotaMB * MB}`,
        "--unsafe-no-fsync", // a killed etcd keeps its data, a machine without power need not
        "--log-level=warn",
      ];

    case "kube-apiserver":
      return [
        `--etcd-servers=${etcd}`,
        `--bind-address=${address}`,
        `--advertise-address=${address}`,
        `--secure-port=${options.port}`,
        `--service-cluster-ip-range=${SERVICE_CIDR}`,
        `--tls-cert-file=${at.apiServerCert}`,
        `--tls-private-key-file=${at.apiServerKey}`,
        `--service-account-issuer=${ISSUER}`,
        `--service-account-signing-key-file=${at.serviceAccountKey}`,
        `--service-account-key-file=${at.serviceAccountPublicKey}`,
        `--token-auth-file=${at.tokens}`,
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--shutdown-watch-termination-grace-period=1s", // else a stop waits a minute for watches
        // An Endpoints object with a loopback address is not valid.
        ...(options.node ? [] : ["--endpoint-reconciler-type=none"]),
        // kubectl logs and exec: the way to the kubelet.
        `--kubelet-client-certificate=${at.kubeletClientCert}`,
        `--kubelet-client-key=${at.kubeletClientKey}`,
        "--kubelet-preferred-address-types=InternalIP",
        ...(options.audit
          ? [`--audit-policy-file=${at.auditPolicy}`, `--audit-log-path=${at.auditLog}`]
          : []),
      ];

    case "kube-controller-manager":
      return [
        `--kubeconfig=${kubeconfigOf(options.dir, component)}`,
        `--root-ca-file=${at.ca}`,
        `--service-account-private-key-file=${at.serviceAccountKey}`,
        "--use-service-account-credentials",
        `--flex-volume-plugin-dir=${at.volumePlugins}`, // else made in /usr/libexec
        "--kube-api-qps=200", // it makes 40 service accounts first, and 20 a second is its default
        "--kube-api-burst=200",
        "--leader-elect=false",
        "--secure-port=0",
      ];

    case "kube-scheduler":
      return [
        `--kubeconfig=${kubeconfigOf(options.dir, component)}`,
        "--leader-elect=false",
        "--secure-port=0",
      ];

    case "containerd":
      return [`--config=${at.containerdConfig}`];

    case "kubelet":
      return [
        `--kubeconfig=${kubeconfigOf(options.dir, component)}`,
        `--config=${at.kubeletConfig}`,
        `--root-dir=${at.kubelet}`,
        `--cert-dir=${join(at.kubelet, "pki")}`,
        `--hostname-override=${NODE_NAME}`,
        `--node-ip=${bridgeAddress(options)}`,
      ];
  }
}

/** Writes all files that the components read, but for the certificates. */
export function writeConfiguration(options: Options, cniFolder: string): void {
  const at = paths(options.dir);
  fs.mkdirSync(join(options.dir, "pki"), { recursive: true });
  const serviceAccount = generateKeyPairSync("rsa", {
    modulusLength: 2048,
    privateKeyEncoding: { type: "pkcs1", format: "pem" },
    publicKeyEncoding: { type: "spki", format: "pem" },
  });
  fs.writeFileSync(at.serviceAccountKey, serviceAccount.privateKey);
  fs.writeFileSync(at.serviceAccountPublicKey, serviceAccount.publicKey);

  // One line: token,user,uid,"groups".
  const users: [kubeconfig: string, user: string, group: string][] = [
    [at.kubeconfig, "admin", "system:masters"],
    [kubeconfigOf(options.dir, "kube-controller-manager"), "system:kube-controller-manager", ""],
    [kubeconfigOf(options.dir, "kube-scheduler"), "system:kube-scheduler", ""],
    [kubeconfigOf(options.dir, "kubelet"), `system:node:${NODE_NAME}`, "system:nodes"],
  ];
  const lines = users.map(([kubeconfig, user, group]) => {
    const token = randomBytes(24).toString("base64url");
    writeJSON(kubeconfig, kubeconfigFor(options, user, token));
    return `${token},${user},${user},"${group}"\n`;
  });
  fs.writeFileSync(at.tokens, lines.join(""));

  if (options.audit) {
    writeJSON(at.auditPolicy, {
      apiVersion: "audit.k8s.io/v1",
      kind: "Policy",
      omitStages: ["RequestReceived"],
      rules: [{ level: "Metadata" }],
    });
  }
  if (options.node) {
    writeJSON(at.kubeletConfig, kubeletConfiguration(options));
    fs.mkdirSync(at.cni);
    writeJSON(join(at.cni, `${options.bridge}.conflist`), cniNetwork(options));
    fs.mkdirSync(at.containerd);
    fs.writeFileSync(at.containerdConfig, containerdConfig(options, cniFolder));
    for (const [host, url] of Object.entries(options.registries)) {
      fs.mkdirSync(join(at.registries, host), { recursive: true });
      fs.writeFileSync(
        join(at.registries, host, "hosts.toml"),
        `server = "${url}"\n[host."${url}"]\ncapabilities = ["pull", "resolve"]\n`,
      );
    }
  }
}

function writeJSON(file: string, value: unknown): void {
  fs.writeFileSync(file, JSON.stringify(value, null, 2) + "\n");
}

/** JSON is YAML: every reader of kubeconfigs takes it, and a test can read it without a parser. */
function kubeconfigFor(options: Options, user: string, token: string) {
  const server = `https://${apiServerAddress(options)}:${options.port}`;
  const cluster = { server, "certificate-authority": paths(options.dir).ca };
  return {
    apiVersion: "v1",
    kind: "Config",
    clusters: [{ name: "cluster", cluster }],
    users: [{ name: user, user: { token } }],
    contexts: [{ name: "cluster", context: { cluster: "cluster", user } }],
    "current-context": "cluster",
  };
}

/** A CA, the API server's certificate, and the one with which it shows itself to the kubelet. */
export function makeCertificates(options: Options): void {
  const at = paths(options.dir);
  const authority = makeAuthority();
  const server = authority.issue([
    ...["127.0.0.1", SERVICE_ADDRESS, bridgeAddress(options), "localhost", "kubernetes"],
    ...["kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"],
  ]);
  // system:masters: the kubelet asks the API server whether this user may read logs and run commands.
  const client = authority.issueClient("kube-apiserver-kubelet-client", "system:masters");
  fs.writeFileSync(at.ca, authority.certificate);
  fs.writeFileSync(at.apiServerCert, server.cert);
  fs.writeFileSync(at.apiServerKey, server.key);
  fs.writeFileSync(at.kubeletClientCert, client.cert);
  fs.writeFileSync(at.kubeletClientKey, client.key);
}

function kubeletConfiguration(options: Options) {
  const at = paths(options.dir);
  return {
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    kind: "KubeletConfiguration",
    address: bridgeAddress(options),
    port: options.port + 3,
    healthzPort: 0,
    authentication: {
      anonymous: { enabled: false },
      webhook: { enabled: true },
      x509: { clientCAFile: at.ca },
    },
    authorization: { mode: "Webhook" },
    containerRuntimeEndpoint: `unix://${at.containerdSocket}`,
    podLogsDir: at.podLogs,
    volumePluginDir: at.volumePlugins,
    // Of its own, so that `down` finds the Pods' processes, and two kubelets leave each other's alone.
    cgroupRoot: `/${options.bridge}`,
    cgroupDriver: "cgroupfs",
    failCgroupV1: false,
    failSwapOn: false,
    // There is no cluster DNS, and the machine's own servers are none of the Pods' business.
    resolvConf: "",
    // kube-proxy's chains; there is no kube-proxy.
    makeIPTablesUtilChains: false,
    // A full disk of the developer's must neither evict Pods nor delete images that no registry has.
    evictionHard: {
      "memory.available": "50Mi",
      "nodefs.available": "1%",
      "imagefs.available": "1%",
    },
    imageGCHighThresholdPercent: 100,
  };
}

function cniNetwork(options: Options) {
  return {
    cniVersion: "1.0.0",
    name: options.bridge,
    plugins: [{
      type: "bridge",
      bridge: options.bridge,
      ipam: {
        type: "host-local",
        dataDir: join(options.dir, "cni", "addresses"),
        ranges: [[{ subnet: options.podCIDR, gateway: bridgeAddress(options) }]],
        routes: [{ dst: "0.0.0.0/0" }],
      },
    }],
  };
}

function containerdConfig(options: Options, cniFolder: string): string {
  const at = paths(options.dir);
  return `version = 3
root = "${at.containerd}/root"
state = "${at.containerd}/state"

[grpc]
address = "${at.containerdSocket}"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "${PAUSE_IMAGE}"

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "${at.registries}"

[plugins.'io.containerd.cri.v1.runtime']
# Without CAP_SYS_RESOURCE runc may not lower a score: it ends with "can't get final child's PID from pipe".
restrict_oom_score_adj = true
# It would load its profile into the kernel and leave it there.
disable_apparmor = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["${cniFolder}"]
conf_dir = "${at.cni}"
`;
}
