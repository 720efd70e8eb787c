/** What npm run manifest makes of deploy.yaml and the program. */
import { assert, assertEquals, assertMatch, assertNotEquals, assertThrows } from "@std/assert";
import { readFileSync } from "node:fs";
import { isBuiltin } from "node:module";
import { join } from "node:path";
import { test } from "node:test";
import { defaultImage, type Options, selfContained } from "../../scripts/manifest.ts";
import { objectsOf, ofKind, podOf } from "../support/yaml.ts";
import { ROOT } from "../support/paths.ts";
import type { Json } from "../support/json.ts";

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const DEPLOY = read("deploy.yaml");
const CONTAINERFILE = read("Containerfile");
const MAX_DATA_BYTES = 1_048_576;
/** Fewer than the bundle has as esbuild formats it, more than it has minified. */
const LINES = 8_000;
const ON_DENO: Options = { runtime: "deno", image: "registry.example/deno:1" };
const ON_NODE: Options = { runtime: "node", image: "registry.example/node:1" };

/** What the command prints, which release_test.ts compares. */
const INSTALL = read("install.yaml");
const PROGRAM: string = ofKind("ConfigMap", INSTALL).data["main.js"];

test("Nothing but the Deployment differs from deploy.yaml, to the byte", () => {
  const made = selfContained(DEPLOY, "program\n", ON_DENO);
  const [text = ""] = DEPLOY.slice(DEPLOY.indexOf("apiVersion")).split("---\napiVersion: apps/v1");
  assert(made.includes(text));
  const others = (yaml: string) =>
    objectsOf(yaml).filter(({ kind }) => !["ConfigMap", "Deployment"].includes(kind));
  assertEquals(others(made), others(DEPLOY));
});

test("The Pods have the rights and the arguments that deploy.yaml gives them, and the program in a ConfigMap", () => {
  const made = selfContained(DEPLOY, "program\n", ON_DENO);
  const { name } = ofKind("ConfigMap", made).metadata;
  const pod = podOf(made);
  const [container] = pod.containers;
  assertEquals(container.image, ON_DENO.image);
  assertEquals(container.command, ["deno"]);
  assertEquals(pod.volumes.pop(), { name: "program", configMap: { name } });
  const mount = { name: "program", mountPath: "/main.js", subPath: "main.js", readOnly: true };
  assertEquals(container.volumeMounts.pop(), mount);
  delete container.command;
  const expected = podOf(DEPLOY);
  expected.containers[0].image = ON_DENO.image;
  assertEquals(pod, expected);
});

test("On Node it may read what it may read on Deno, and the program, and nothing else; V8 is set as on Deno", () => {
  const [{ args, command, env, image }] =
    podOf(selfContained(DEPLOY, "program\n", ON_NODE)).containers;
  assertEquals({ command, image }, { command: ["node"], image: ON_NODE.image });
  const [onDeno] = podOf(DEPLOY).containers;
  assertEquals(env, onDeno.env.filter(({ name }: Json) => name !== "DENO_NO_UPDATE_CHECK"));
  const folders = ["/var/run/secrets/kubernetes.io/serviceaccount", "/var/run/chainguard/oidc"];
  const v8 = ["--max-semi-space-size=4", "--heap-growing-percent=20", "--liftoff-only"];
  assert(onDeno.args.includes(`--allow-read=${folders.join()}`));
  assert(onDeno.args.includes(`--v8-flags=${v8.join()}`));
  const reads = ["/main.js", ...folders].map((path) => `--allow-fs-read=${path}`);
  assertEquals(args, ["--permission", ...reads, ...v8, "/main.js"]);
});

test("Another program has another ConfigMap, which replaces the Pods; the same has the same", () => {
  const [one, other, again] = ["1\n", "2\n", "1\n"].map((program) =>
    selfContained(DEPLOY, program, ON_DENO)
  );
  assertEquals(one, again);
  assertNotEquals(podOf(one!), podOf(other!));
  const configMap = ofKind("ConfigMap", one!);
  assertEquals(configMap.immutable, true);
  assertEquals(configMap.data, { "main.js": "1\n" });
  assertMatch(configMap.metadata.name, /^controller-[0-9a-f]{12}$/);
});

test("A program that no ConfigMap holds is refused", () => {
  const largest = selfContained(DEPLOY, "x".repeat(MAX_DATA_BYTES), ON_DENO);
  assertEquals(ofKind("ConfigMap", largest).data["main.js"].length, MAX_DATA_BYTES);
  assertThrows(
    () => selfContained(DEPLOY, "x".repeat(MAX_DATA_BYTES + 1), ON_DENO),
    Error,
    "a ConfigMap holds 1048576",
  );
});

test("The default images are the Containerfile's, and its Deno is the one that is tested", () => {
  const { devDependencies } = JSON.parse(read("package.json"));
  const deno = defaultImage(CONTAINERFILE, "deno");
  assertEquals(deno, `docker.io/denoland/deno:distroless-${devDependencies.deno}`);
  assertMatch(defaultImage(CONTAINERFILE, "node"), /^docker\.io\/library\/node:24[.\d]*-slim$/);
  assertThrows(() => defaultImage("FROM scratch\n", "deno"), Error, "no ARG BASE=");
});

test("The program is readable in the manifest, which runs it on the Containerfile's image", () => {
  assert(PROGRAM.includes("\nfunction parseSecret("), "main.ts is in it under its own names");
  assert(PROGRAM.split("\n").length > LINES, "it is minified");
  assertEquals(podOf(INSTALL).containers[0].image, defaultImage(CONTAINERFILE, "deno"));
});

test("The program is of no architecture: it loads nothing but modules that each runtime has built in", () => {
  // esbuild writes double quotes; others stand in comments.
  const loads = /(?:^import .* from |\brequire\(|\bimport\()"([^"]+)"/gm;
  const loaded = [...PROGRAM.matchAll(loads)].map(([, name = ""]) => name);
  assert(loaded.length > 0);
  assertEquals(loaded.filter((name) => !isBuiltin(name)), []);
});

test("Each object and each Pod says what it is and of which version; selectors go by the name alone, as they cannot change", () => {
  const [, version] = /^const VERSION = "(.+)";$/m.exec(read("main.ts"))!;
  const labels = {
    "app.kubernetes.io/name": "pull-secret-updater",
    "app.kubernetes.io/version": version,
    "app.kubernetes.io/component": "controller",
    "app.kubernetes.io/part-of": "pull-secret-updater",
  };
  for (const yaml of [DEPLOY, selfContained(DEPLOY, "program\n", ON_DENO)]) {
    const { template, selector } = ofKind("Deployment", yaml).spec;
    for (const { kind, metadata } of [...objectsOf(yaml), { kind: "Pod", ...template }]) {
      assertEquals({ ...metadata.labels, ...labels }, metadata.labels, kind);
    }
    const [spread] = template.spec.topologySpreadConstraints;
    const { selector: budget } = ofKind("PodDisruptionBudget", yaml).spec;
    for (const { matchLabels } of [selector, budget, spread.labelSelector]) {
      assertEquals(matchLabels, { "app.kubernetes.io/name": "pull-secret-updater" });
    }
  }
});

test("Pods go to nodes of Linux, and get no variables of the namespace's services", () => {
  const { nodeSelector, enableServiceLinks } = podOf(DEPLOY);
  assertEquals(nodeSelector, { "kubernetes.io/os": "linux" });
  assertEquals(enableServiceLinks, false);
});

test("A node can be drained though no Pod is ready", () => {
  const { spec } = ofKind("PodDisruptionBudget", DEPLOY);
  assertEquals(spec.unhealthyPodEvictionPolicy, "AlwaysAllow");
  assertEquals(spec.maxUnavailable, 1);
});

test("The role for those who name identities gives what the policy asks for and nothing else, and is added to no other", () => {
  const role = objectsOf(DEPLOY).find(({ kind, metadata }) =>
    kind === "ClusterRole" && metadata.name === "pull-secret-updater-user"
  );
  const check = /authorizer\.group\("([^"]+)"\)\.resource\("identities"\)[^]*?check\("(\w+)"\)/
    .exec(DEPLOY)!;
  const [, group, verb] = check;
  assertEquals(role.rules, [{ apiGroups: [group], resources: ["identities"], verbs: [verb] }]);
  const keys = Object.keys(role.metadata.labels);
  assertEquals(keys.filter((key) => key.includes("aggregate")), []);
  assertEquals(ofKind("ClusterRoleBinding", DEPLOY).roleRef.name, "pull-secret-updater");
});

test("Argo CD and Flux leave the ConfigMap of the program before, which a rollback needs", () => {
  const { annotations } = ofKind("ConfigMap", selfContained(DEPLOY, "program\n", ON_DENO)).metadata;
  assertEquals(annotations, {
    "argocd.argoproj.io/sync-options": "Prune=false",
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
  });
});
