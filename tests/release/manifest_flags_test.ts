/** What each flag of npm run manifest changes, and which values are refused. */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { blocksOf, itemsUnder } from "../support/markdown.ts";
import { type Options, selfContained } from "../../scripts/manifest.ts";
import { FLAGS, readSettings, usage } from "../../scripts/manifest_flags.ts";
import { objectsOf, ofKind } from "../support/yaml.ts";
import { ROOT } from "../support/paths.ts";
import type { Json } from "../support/json.ts";

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const DEPLOY = read("deploy.yaml");
const PAGE = read("docs/install.md");
const RUNTIMES = ["deno", "node"] as const;
type Runtime = Options["runtime"];

const made = (runtime: Runtime, ...args: string[]) =>
  selfContained(DEPLOY, "program\n", {
    runtime,
    image: "registry.example/runtime:1",
    settings: readSettings(args),
  });

const WITHOUT_FLAGS = Object.fromEntries(
  RUNTIMES.map((runtime) => [runtime, objectsOf(made(runtime))]),
);

/** What is installed without flags, and is changed here by hand as a flag should change it. */
class Expected {
  readonly runtime: Runtime;
  objects: Json[];

  constructor(runtime: Runtime) {
    this.runtime = runtime;
    this.objects = structuredClone(WITHOUT_FLAGS[runtime]!);
  }

  ofKind(kind: string): Json {
    return this.objects.find((object) => object.kind === kind);
  }

  get pod(): Json {
    return this.ofKind("Deployment").spec.template.spec;
  }

  get container(): Json {
    return this.pod.containers[0];
  }

  setEnv(name: string, value: string): void {
    this.container.env.push({ name, value });
  }

  /** Of Deno's arguments, one of which has to have this; Node has none for the network and for variables. */
  editArgs(from: string, to: string): void {
    const { args } = this.container;
    const index = args.findIndex((arg: string) => arg.includes(from));
    assertEquals(index !== -1, this.runtime === "deno", from);
    if (index !== -1) args[index] = args[index].replace(from, to);
  }

  replaceAll(from: string, to: string): void {
    const text = JSON.stringify(this.objects);
    assert(text.includes(from), from);
    this.objects = JSON.parse(text.replaceAll(from, to));
  }
}

/** Arguments, and what becomes of the objects. */
const EFFECTS: [args: string[], effect: (expected: Expected) => void][] = [
  [
    ["--image-pull-secret", "one", "--image-pull-secret=two", "--image-pull-secret=one"],
    ({ pod }) => {
      pod.imagePullSecrets = [{ name: "one" }, { name: "two" }];
    },
  ],
  [["--namespace", "elsewhere"], (expected) => {
    expected.ofKind("Namespace").metadata.name = "elsewhere";
    for (
      const [from, to] of [
        ['"namespace":"pull-secret-updater"', '"namespace":"elsewhere"'],
        ["serviceaccount:pull-secret-updater:", "serviceaccount:elsewhere:"],
        ['namespace != \\"pull-secret-updater\\"', 'namespace != \\"elsewhere\\"'],
      ] as const
    ) expected.replaceAll(from, to);
  }],
  [["--issuer", "https://sts.example.com/path/"], (expected) => {
    expected.editArgs("issuer.enforce.dev:443", "sts.example.com:443");
    expected.replaceAll("issuer.enforce.dev", "sts.example.com");
    expected.setEnv("ISSUER_URL", "https://sts.example.com/path/");
  }],
  [["--issuer", "https://[fd00::1]:8443"], (expected) => {
    expected.editArgs("issuer.enforce.dev:443", "[fd00::1]:8443");
    expected.replaceAll("issuer.enforce.dev", "[fd00::1]");
    expected.setEnv("ISSUER_URL", "https://[fd00::1]:8443");
  }],
  [["--audience", "registry.example"], (expected) => {
    expected.setEnv("AUDIENCE", "registry.example");
  }],
  [["--registries", "cgr.dev, mirror.example:5000"], (expected) => {
    expected.setEnv("REGISTRIES", "cgr.dev, mirror.example:5000");
  }],
  [["--proxy", "http://proxy.example:3128"], (expected) => {
    expected.editArgs("--ignore-env=HTTPS_PROXY,", "--ignore-env=");
    expected.editArgs("AUDIENCE,", "AUDIENCE,HTTPS_PROXY,");
    expected.editArgs(",[::]:8080", ",[::]:8080,proxy.example:3128");
    expected.setEnv("HTTPS_PROXY", "http://proxy.example:3128");
  }],
  [["--no-proxy", ".example,10.0.0.0/8", "--proxy", "https://[fd00::1]"], (expected) => {
    expected.editArgs("--ignore-env=HTTPS_PROXY,", "--ignore-env=");
    expected.editArgs("JEST_WORKER_ID,NO_PROXY,", "JEST_WORKER_ID,");
    expected.editArgs("AUDIENCE,", "AUDIENCE,HTTPS_PROXY,");
    expected.editArgs("KUBERNETES_SERVICE_PORT,", "KUBERNETES_SERVICE_PORT,NO_PROXY,");
    expected.editArgs(",[::]:8080", ",[::]:8080,[fd00::1]:443");
    expected.setEnv("HTTPS_PROXY", "https://[fd00::1]");
    expected.setEnv("NO_PROXY", ".example,10.0.0.0/8");
  }],
  [["--ca-configmap", "our-ca"], (expected) => {
    expected.setEnv("NODE_EXTRA_CA_CERTS", "/etc/private-ca/ca.crt");
    const program = expected.container.volumeMounts.pop();
    const mount = { name: "private-ca", mountPath: "/etc/private-ca", readOnly: true };
    expected.container.volumeMounts.push(mount, program);
    const volume = expected.pod.volumes.pop();
    const items = [{ key: "ca.crt", path: "ca.crt" }];
    expected.pod.volumes.push({ name: "private-ca", configMap: { name: "our-ca", items } }, volume);
  }],
  [["--namespaces", "team-a,team-b"], (expected) => {
    expected.setEnv("WATCH_NAMESPACES", "team-a,team-b");
    expected.objects = expected.objects.flatMap((object) => {
      const { kind, metadata } = object;
      if (!/^ClusterRole/.test(kind) || metadata.name !== "pull-secret-updater") return [object];
      return ["team-a", "team-b"].map((namespace) => {
        const { metadata: { name, labels }, ...rest } = JSON.parse(
          JSON.stringify(object).replaceAll('"ClusterRole', '"Role'),
        );
        return { ...rest, metadata: { name, namespace, labels } };
      });
    });
  }],
  [["--ipv6"], (expected) => {
    expected.editArgs("$(KUBERNETES_SERVICE_HOST)", "[$(KUBERNETES_SERVICE_HOST)]");
  }],
  [["--openshift"], ({ pod }) => {
    assertEquals(pod.securityContext.runAsUser, 65532);
    pod.securityContext = { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } };
  }],
  [["--replicas", "1"], (expected) => {
    expected.ofKind("Deployment").spec.replicas = 1;
  }],
  [["--priority-class", "system-cluster-critical"], ({ pod }) => {
    pod.priorityClassName = "system-cluster-critical";
  }],
  [["--dns", "ClusterFirst"], ({ pod }) => {
    assertEquals(pod.dnsPolicy, "Default");
    pod.dnsPolicy = "ClusterFirst";
  }],
  [["--dns", "Default", "--namespace", "pull-secret-updater"], () => {}],
];

test("Each flag changes what it is for in all its places and nothing else, on either runtime", () => {
  for (const [args, effect] of EFFECTS) {
    for (const runtime of RUNTIMES) {
      const expected = new Expected(runtime);
      effect(expected);
      const yaml = made(runtime, ...args);
      assertEquals(objectsOf(yaml), expected.objects, `${args.join(" ")}, on ${runtime}`);
    }
  }
});

test("All flags at once do what each does", () => {
  const all = EFFECTS.filter(([args]) =>
    !args.includes("Default") && !args.includes("https://[fd00::1]:8443")
  )
    .filter(([args]) => !args.includes("http://proxy.example:3128"));
  for (const runtime of RUNTIMES) {
    const args = all.flatMap(([args]) => args);
    const expected = new Expected(runtime);
    for (const [, effect] of all) effect(expected);
    assertEquals(objectsOf(made(runtime, ...args)), expected.objects);
    const given = args.filter((arg) => arg.startsWith("--")).map((arg) =>
      arg.slice(2).split("=")[0]
    );
    const others = ["runtime", "image", "help"];
    assertEquals([...new Set([...given, ...others])].sort(), Object.keys(FLAGS).sort());
  }
});

test("What the flags leave alone keeps its text, and no comment says what is no longer so", () => {
  const policies = DEPLOY.slice(
    DEPLOY.indexOf("# Who may name an identity"),
    DEPLOY.indexOf("kind: Pod"),
  );
  assert(policies.length > 10_000);
  for (
    const args of [["--proxy", "http://proxy.example"], ["--namespaces", "a"], ["--openshift"]]
  ) {
    assert(made("deno", ...args).includes(policies), args.join(" "));
  }
  const elsewhere = made("deno", "--namespace", "elsewhere", "--issuer", "https://sts.example");
  assert(elsewhere.includes("this account: system:serviceaccount:elsewhere:controller"));
  assert(!/issuer\.enforce\.dev|serviceaccount:pull-secret-updater/.test(elsewhere));
  const proxied = made("deno", "--proxy", "http://proxy.example");
  assert(!proxied.includes("variables are hidden"));
  assert(proxied.includes("Who may read HTTPS_PROXY may also set it"));
  assert(!made("deno", "--dns", "ClusterFirst").includes("needs no cluster DNS"));
  assert(!made("deno", "--namespaces", "a,b").includes("narrows it"));
});

test("The rights in single namespaces are those of the page on it", () => {
  const block = blocksOf(PAGE).find(({ text }) => text.startsWith("# narrow.yaml"))!;
  const rights = objectsOf(made("deno", "--namespaces", "team-a"))
    .filter(({ kind }) => ["Role", "RoleBinding"].includes(kind));
  for (const { metadata } of rights) delete metadata.labels;
  assertEquals(rights, objectsOf(block.text));
});

test("Names that YAML would take for something else stay names", () => {
  const yaml = made(
    "deno",
    "--namespace=123",
    "--namespaces=1e3,null",
    "--priority-class=true",
    "--ca-configmap=0x1",
  );
  assertEquals(ofKind("Namespace", yaml).metadata.name, "123");
  const rights = objectsOf(yaml).filter(({ kind }) => kind === "Role");
  assertEquals(rights.map(({ metadata }) => metadata.namespace), ["1e3", "null"]);
  const { priorityClassName, volumes } = ofKind("Deployment", yaml).spec.template.spec;
  assertEquals(priorityClassName, "true");
  assertEquals(volumes.find(({ name }: Json) => name === "private-ca").configMap.name, "0x1");
  assertEquals(
    ofKind("Deployment", made("deno", "--issuer=https://1e3")).spec.template.spec.volumes[0]
      .projected.sources[0].serviceAccountToken.audience,
    "1e3",
  );
});

/** Bad arguments, and what the one line says. */
const REFUSALS: [args: string[], message: RegExp][] = [
  [["--runtime", "bun"], /^--runtime "bun": must be deno or node$/],
  [["--image", "Not An Image"], /^--image "Not An Image": must be the name of an image/],
  [["--image", "deno@sha256:12"], /^--image .* must be/],
  [
    ["--image-pull-secret", "ok", "--image-pull-secret", "a,b"],
    /^--image-pull-secret "a,b": must be/,
  ],
  [["--namespace", "Team"], /^--namespace "Team": must be the name of a namespace/],
  [["--namespace", "kube-system"], /^--namespace "kube-system": must be .* of its own/],
  [["--namespace", "default"], /^--namespace "default": must be .* of its own/],
  [["--namespace", "a".repeat(64)], /^--namespace "a+": must be/],
  [["--namespace", ""], /^--namespace "": must be/],
  [["--issuer", "http://sts.example"], /^--issuer "http:\/\/sts\.example": must be an https URL/],
  [["--issuer", 'https://a"b.example'], /^--issuer .* must be a URL whose host/],
  [["--issuer", "https://a,b.example"], /^--issuer .* must be a URL whose host/],
  [["--audience", "two words"], /^--audience "two words": must be printable characters/],
  [["--audience", ""], /^--audience "": must be/],
  [
    ["--registries", "cgr.dev,"],
    /^--registries "cgr\.dev,": must be a comma-separated list of hosts$/,
  ],
  [
    ["--proxy", "proxy.example:3128"],
    /^--proxy "proxy\.example:3128": must be an http or https URL/,
  ],
  [
    ["--proxy", "http://me:secret@proxy.example"],
    /^--proxy "…@proxy\.example": must be .* without user/,
  ],
  [["--proxy", "http://me:%secret@proxy.example"], /^--proxy "…@proxy\.example": must be an http/],
  [["--no-proxy", "a b", "--proxy", "http://proxy.example"], /^--no-proxy "a b": must be/],
  [["--no-proxy", ".example"], /^--no-proxy "\.example": only with --proxy$/],
  [["--ca-configmap", "-ca"], /'--ca-configmap' argument is ambiguous\. .* \(see --help\)$/],
  [["--ca-configmap=Ca"], /^--ca-configmap "Ca": must be the name of a ConfigMap$/],
  [["--namespaces", "a,B"], /^--namespaces "a,B": must be a comma-separated list of namespaces$/],
  [["--replicas", "0"], /^--replicas "0": must be a number from 1 to 99$/],
  [["--replicas", "two"], /^--replicas "two": must be/],
  [["--priority-class", "High"], /^--priority-class "High": must be/],
  [["--dns", "None"], /^--dns "None": must be ClusterFirst or Default$/],
  [["--ipv6=yes"], /'--ipv6' does not take an argument/],
  [["--image"], /'--image <value>' argument missing/],
  [["--images", "x"], /'--images'/],
  [["stray\nline"], /'stray line'/],
];

test("A value that is not allowed is refused by one line with the argument, the value and what is", () => {
  for (const [args, message] of REFUSALS) {
    const error = assertThrows(() => readSettings(args), Error);
    assertMatch(error.message, message);
    assert(!/[\n\r]|secret@/.test(error.message), error.message);
  }
});

test("The command refuses with exit status 2 and one line on stderr, and helps with 0", () => {
  const manifest = (...args: string[]) => {
    const file = join(ROOT, "scripts/manifest.ts");
    return spawnSync(process.execPath, [file, ...args], { encoding: "utf8" });
  };
  for (const args of [["--namespace", "Team"], ["--ca-configmap", "-ca"]]) {
    const { status, stdout, stderr } = manifest(...args);
    assertEquals({ status, stdout }, { status: 2, stdout: "" });
    assertMatch(stderr, /^[^\n]*--(namespace|ca-configmap)[^\n]*\n$/);
  }
  const { status, stdout, stderr } = manifest("--help");
  assertEquals({ status, stdout, stderr }, { status: 0, stdout: usage(), stderr: "" });
  for (const flag of Object.keys(FLAGS)) {
    assertMatch(stdout, new RegExp(`^  --${flag} .*[\\w)]$`, "m"));
  }
});

test("The list of flags has each, its value and no other", () => {
  const listed = itemsUnder(PAGE, "## Flags").map((item) => /^`[^`]+`/.exec(item)?.[0]);
  const flags = Object.entries(FLAGS).filter(([name]) => name !== "help");
  assertEquals(
    listed,
    flags.map(([name, { value }]) => `\`--${name}${value ? ` ${value}` : ""}\``),
  );
});
