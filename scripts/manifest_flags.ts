/**
 * What an installation may need otherwise than deploy.yaml has it: one flag for each, which changes it in all the places
 * that have to agree.
 */
import { parseArgs } from "node:util";
import { type Document, stringify } from "yaml";
import { ConfigError, readConfig } from "../main.ts";

/** The values of the flags that were given; of one without a value it is "true", of one given twice a list with commas. */
export type Settings = Record<string, string>;

interface Flag {
  /** What --help calls its value. A flag without is on or off. */
  value?: string;
  help: string;
  multiple?: boolean;
  /** Makes no sense without this other flag. */
  needs?: string;
  /** Which values it takes, and how a refusal says that. */
  allowed?: [pattern: Pick<RegExp, "test">, words: string];
  /** The program is given the value by this variable, and takes it. */
  variable?: string;
  /** Edits deploy.yaml as text, as comments name what it changes, too. */
  text?(deploy: string, value: string): string;
  /** Edits the Deployment. */
  deployment?(deployment: Document, value: string): void;
}

const LABEL = /^[a-z\d]([-a-z\d]{0,61}[a-z\d])?$/;
const NAME = /^(?=.{1,253}$)[a-z\d]([-a-z\d]*[a-z\d])?(\.[a-z\d]([-a-z\d]*[a-z\d])?)*$/;
const IMAGE =
  /^[a-z\d][a-z\d._-]*(:\d+)?(\/[a-z\d][a-z\d._-]*)*(:\w[\w.-]{0,127})?(@sha256:[a-f\d]{64})?$/;
const NO_PROXY = /^[\w.*:/[\]-]+(\s*,\s*[\w.*:/[\]-]+)*$/;
const HOST = /^([\w.-]+|\[[\da-f:.]+\])$/;
/** It becomes one that Pod Security holds and whose Pods may get all tokens: not one that others use. */
const SHARED_NAMESPACE = /^(default|kube-.*)$/;

export const POD = ["spec", "template", "spec"];
export const CONTAINER = [...POD, "containers", 0];
const CA_FOLDER = "/etc/private-ca";
const CA_KEY = "ca.crt";
const DEFAULT_PORTS: Record<string, number> = { "http:": 80, "https:": 443 };

/** In the order in which they are applied: what one puts in, no later one takes for deploy.yaml's own. */
export const FLAGS: Record<string, Flag> = {
  runtime: {
    value: "deno|node",
    help: "what runs the program (default: deno)",
    allowed: [/^(deno|node)$/, "deno or node"],
  },
  image: {
    value: "IMAGE",
    help: "an image that has it on its path, by tag or by digest (default: the stock one)",
    allowed: [IMAGE, "the name of an image, as registry.example.com/deno:TAG or …@sha256:DIGEST"],
  },
  "image-pull-secret": {
    value: "NAME",
    help: "a Secret to pull that image with; may be repeated",
    multiple: true,
    allowed: [NAME, "the name of a Secret"],
    deployment: (deployment, value) => {
      const names = [...new Set(value.split(","))].map((name) => ({ name }));
      deployment.setIn(
        [...POD, "imagePullSecrets"],
        deployment.createNode(names, { flow: true }),
      );
    },
  },
  namespace: {
    value: "NAME",
    help: "the namespace of the controller (default: pull-secret-updater)",
    allowed: [
      { test: (name) => LABEL.test(name) && !SHARED_NAMESPACE.test(name) },
      "the name of a namespace of its own: lower-case letters, digits and -, 63 at most",
    ],
    text: (deploy, name) =>
      deploy
        .replace(/(?<=^kind: Namespace\nmetadata:\n {2}name: ).+/m, quoted(name))
        .replace(/(?<=^ +namespace: )pull-secret-updater$/gm, quoted(name))
        .replace(/(?<=system:serviceaccount:|namespace != ")pull-secret-updater\b/g, name),
  },
  issuer: {
    value: "URL",
    help: "the issuer (default: https://issuer.enforce.dev)",
    variable: "ISSUER_URL",
    allowed: [{ test: hasPlainHost }, "a URL whose host is a name or an address"],
    text: (deploy, value) => {
      const { issuerHost } = configOf("ISSUER_URL", value);
      return deploy
        .replace(/\bissuer\.enforce\.dev:443\b/, () => hostAndPort(value))
        .replace(/(?<=^ +audience: )issuer\.enforce\.dev$/m, quoted(issuerHost))
        .replaceAll("issuer.enforce.dev", issuerHost);
    },
  },
  audience: {
    value: "AUDIENCE",
    help: "the audience of the registry tokens (default: cgr.dev)",
    variable: "AUDIENCE",
  },
  registries: {
    value: "HOST,…",
    help: "the registries that get the token (default: cgr.dev)",
    variable: "REGISTRIES",
  },
  proxy: {
    value: "URL",
    help: "a proxy to the issuer; on Deno any host can then be reached (see docs/install.md)",
    variable: "HTTPS_PROXY",
    allowed: [
      { test: (url) => hasPlainHost(url) && !url.includes("@") },
      "an http or https URL without user and password, which would stand in the Deployment",
    ],
    text: (deploy, url) =>
      grant(deploy, "HTTPS_PROXY")
        .replace(/(?<=--allow-net=\S+)$/m, `,${hostAndPort(url)}`)
        .replace(
          /A proxy's variables are hidden: .*/,
          "Who may read HTTPS_PROXY may also set it, and Deno then connects there past --allow-net.",
        ),
  },
  "no-proxy": {
    value: "LIST",
    help: "hosts, domains, addresses and subnets that are reached without --proxy",
    needs: "proxy",
    variable: "NO_PROXY",
    allowed: [NO_PROXY, "a comma-separated list of hosts, domains, addresses and subnets"],
    text: (deploy) => grant(deploy, "NO_PROXY"),
  },
  "ca-configmap": {
    value: "NAME",
    help: `trust the CAs in the key ${CA_KEY} of this ConfigMap, for the issuer or the proxy`,
    allowed: [NAME, "the name of a ConfigMap"],
    deployment: (deployment, name) => {
      const items = [{ key: CA_KEY, path: CA_KEY }];
      const file = { name: "NODE_EXTRA_CA_CERTS", value: `${CA_FOLDER}/${CA_KEY}` };
      const mount = { name: "private-ca", mountPath: CA_FOLDER, readOnly: true };
      add(deployment, [...CONTAINER, "env"], file);
      add(deployment, [...CONTAINER, "volumeMounts"], mount);
      add(deployment, [...POD, "volumes"], { name: "private-ca", configMap: { name, items } });
    },
  },
  namespaces: {
    value: "NAME,…",
    help: "fill Secrets of these namespaces only, with permissions in them alone",
    variable: "WATCH_NAMESPACES",
    text: (deploy, value) => {
      const { namespaces } = configOf("WATCH_NAMESPACES", value);
      const separator = "---\n";
      return deploy.split(separator).flatMap((text) =>
        /^kind: ClusterRole(Binding)?\nmetadata:\n {2}name: pull-secret-updater$/m.test(text)
          ? namespaces.map((name = "") => narrowed(text, name))
          : [text]
      ).join(separator);
    },
  },
  ipv6: {
    help: "the API server has an IPv6 address, around which Deno wants brackets",
    text: (deploy) =>
      deploy.replace(/(?<=--allow-net=)\$\(KUBERNETES_SERVICE_HOST\)/, (host) => `[${host}]`),
  },
  openshift: {
    help: "leave user and groups to OpenShift, which assigns them by namespace",
    text: (deploy) => deploy.replace(/^ +(runAsUser|runAsGroup|fsGroup): .*\n/gm, ""),
  },
  replicas: {
    value: "N",
    help: "how many Pods, all of them active (default: 2)",
    allowed: [/^[1-9]\d?$/, "a number from 1 to 99"],
    deployment: (deployment, count) => deployment.setIn(["spec", "replicas"], Number(count)),
  },
  "priority-class": {
    value: "NAME",
    help: "the Pods' PriorityClass, such as system-cluster-critical",
    allowed: [NAME, "the name of a PriorityClass"],
    deployment: (deployment, name) => deployment.setIn([...POD, "priorityClassName"], name),
  },
  dns: {
    value: "ClusterFirst|Default",
    help: "ClusterFirst finds an issuer or a proxy that is a Service (default: Default)",
    allowed: [/^(ClusterFirst|Default)$/, "ClusterFirst or Default"],
    text: (deploy, policy) =>
      policy === "Default"
        ? deploy
        : deploy.replace(/ +#.*\n( +dnsPolicy: )Default$/m, `$1${policy}`),
  },
  help: { help: "print this" },
};

const quoted = (text: string) => stringify(text).trim();

const configOf = (variable: string, value: string) =>
  readConfig({ KUBERNETES_SERVICE_HOST: "api", KUBERNETES_SERVICE_PORT: "443", [variable]: value });

/** What could end a host name's place in a list, a string or an expression is in none. */
function hasPlainHost(url: string): boolean {
  return HOST.test(new URL(url).hostname);
}

/** As --allow-net has it. */
function hostAndPort(url: string): string {
  const { hostname, port, protocol } = new URL(url);
  return `${hostname}:${port || DEFAULT_PORTS[protocol]}`;
}

/** Has Deno let the program read a variable that is hidden from it. */
function grant(deploy: string, variable: string): string {
  return deploy
    .replace(new RegExp(`(?<=--ignore-env=(\\S+,)?)${variable},`), "")
    .replace(/(?<=--allow-env=)\S+/, (list) => [...list.split(","), variable].sort().join());
}

/** A right in the cluster as one in a namespace. */
function narrowed(clusterWide: string, namespace: string): string {
  return clusterWide
    .replaceAll("kind: ClusterRole", "kind: Role")
    .replace(/ `npm run manifest .* narrows it\./, "")
    .replace(/^ {2}name: pull-secret-updater$/m, `$&\n  namespace: ${quoted(namespace)}`);
}

/** To a list, in one line. */
export function add(deployment: Document, path: (string | number)[], item: object): void {
  deployment.addIn(path, deployment.createNode(item, { flow: true }));
}

/** Reads the arguments, --help too. An error is one line with the argument, its value and what is allowed. */
export function readSettings(args: string[]): Settings {
  const given = parse(args);
  for (const [name, values] of given) {
    for (const value of values) check(name, value);
    const { needs } = FLAGS[name]!;
    if (needs && !given.some(([other]) => other === needs)) {
      throw new Error(`--${name} ${shown(values.join())}: only with --${needs}`);
    }
  }
  return Object.fromEntries(given.map(([name, values]) => [name, values.join()]));
}

function parse(args: string[]): [name: string, values: string[]][] {
  const options = Object.fromEntries(
    Object.entries(FLAGS).map(([name, { value, multiple = false }]) => [
      name,
      { type: value ? "string" as const : "boolean" as const, multiple },
    ]),
  );
  try {
    return Object.entries(parseArgs({ args, options }).values)
      .map(([name, found]) => [name, [found].flat().map(String)]);
  } catch (error) {
    // Some have several lines.
    throw new Error(`${(error as Error).message.replace(/\s+/g, " ")} (see --help)`);
  }
}

function check(name: string, value: string): void {
  const { variable, allowed: [pattern, words] = [/./, "something"] } = FLAGS[name]!;
  const refusal = (words: string) => new Error(`--${name} ${shown(value)}: must be ${words}`);
  if (value === "") throw refusal(words);
  try {
    if (variable) configOf(variable, value);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw refusal(error.message.replace(/^.*?: must be /s, ""));
  }
  if (!pattern.test(value)) throw refusal(words);
}

/** In one line, and without what may be a password. */
const shown = (value: string) => JSON.stringify(value.replace(/.*@/s, "…@"));

/** What --help prints. */
export function usage(): string {
  const rows = Object.entries(FLAGS).map(([name, { value, help }]) =>
    [`--${name}${value ? ` ${value}` : ""}`, help] as const
  );
  const width = Math.max(...rows.map(([flag]) => flag.length));
  return [
    "Prints what installs the controller, with the program in it.",
    "",
    "  npm run -s manifest -- [FLAG…] | kubectl apply --server-side -f -",
    "",
    ...rows.map(([flag, help]) => `  ${flag.padEnd(width)}  ${help}`),
    "",
  ].join("\n");
}

/** What is to be changed as text. */
export function editText(deploy: string, settings: Settings): string {
  return Object.entries(FLAGS).reduce((text, [name, flag]) => {
    const value = settings[name];
    return value === undefined ? text : flag.text?.(text, value) ?? text;
  }, deploy);
}

/** The rest. */
export function editDeployment(deployment: Document, settings: Settings): void {
  for (const [name, flag] of Object.entries(FLAGS)) {
    const value = settings[name];
    if (value === undefined) continue;
    flag.deployment?.(deployment, value);
    if (flag.variable) add(deployment, [...CONTAINER, "env"], { name: flag.variable, value });
  }
}
