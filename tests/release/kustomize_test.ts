/** kustomize's base and components, where there is a kubectl: that of the end-to-end test, or one on the path. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join, relative } from "node:path";
import process from "node:process";
import { after, describe, test } from "node:test";
import { binFolder } from "../cluster/binaries.ts";
import { blocksOf, tablesUnder } from "../support/markdown.ts";
import { selfContained } from "../../scripts/manifest.ts";
import { readSettings } from "../../scripts/manifest_flags.ts";
import { objectsOf, podOf } from "../support/yaml.ts";
import { ROOT } from "../support/paths.ts";
import type { Json } from "../support/json.ts";

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const DEPLOY = read("deploy.yaml");
const PAGE = read("kustomize/README.md");
const COMPONENTS = readdirSync(join(ROOT, "kustomize")).filter((name) => !name.includes("."))
  .sort();
const KUBECTL = [binFolder(), ...process.env.PATH!.split(delimiter)]
  .map((folder) => join(folder, "kubectl")).find(existsSync);
const work = mkdtempSync(join(tmpdir(), "kustomize-"));
after(() => rmSync(work, { recursive: true }));

const withFlags = (...args: string[]) =>
  selfContained(DEPLOY, "program\n", {
    runtime: "deno",
    image: "IMAGE",
    settings: readSettings(args),
  });

/** Writes a folder beside the clone, in which that is `../pull-secret-updater`, and builds it. */
function build(kustomization: string, files: Record<string, string> = {}) {
  const folder = mkdtempSync(join(work, "overlay-"));
  const text = kustomization.replaceAll("../pull-secret-updater", relative(folder, ROOT));
  for (const [name, content] of Object.entries({ ...files, "kustomization.yaml": text })) {
    writeFileSync(join(folder, name), content);
  }
  return spawnSync(KUBECTL!, ["kustomize", folder], { encoding: "utf8" });
}

function built(components: string[], base = "../pull-secret-updater", files = {}): string {
  const folders = components.map((name) => `../pull-secret-updater/kustomize/${name}`);
  const { stdout, stderr } = build(
    JSON.stringify({ resources: [base], components: folders }),
    files,
  );
  assertEquals(stderr, "");
  return stdout;
}

/** The lists of Deno's flags, each of which may be given several times. */
function rightsOf(yaml: string): Record<string, string[]> {
  const rights: Record<string, string[]> = {};
  for (const arg of podOf(yaml).containers[0].args) {
    const [flag, list = ""] = arg.split(/=(.*)/s);
    rights[flag] = [...rights[flag] ?? [], ...list.split(",")].sort();
  }
  return rights;
}

/** In no order of theirs; without the program, which is not in deploy.yaml. */
const named = (items: Json[]): Record<string, Json> =>
  Object.fromEntries(
    items.filter(({ name }) => name !== "program").map((item) => [item.name, item]),
  );

const keyed = (yaml: string): Record<string, Json> =>
  Object.fromEntries(
    objectsOf(yaml).map((object) => [`${object.kind}/${object.metadata.name}`, object]),
  );

describe("kustomize", { skip: KUBECTL ? false : "there is no kubectl" }, () => {
  test("The base is deploy.yaml", () => {
    assertEquals(keyed(built([])), keyed(DEPLOY));
  });

  test("ipv6 and openshift give what the flags of their names give", () => {
    for (const name of ["ipv6", "openshift"]) {
      const { args } = podOf(withFlags(`--${name}`)).containers[0];
      const { securityContext } = podOf(withFlags(`--${name}`));
      const pod = podOf(built([name]));
      assertEquals(pod.containers[0].args, args, name);
      assertEquals(pod.securityContext, securityContext, name);
    }
  });

  test("private-ca gives what --ca-configmap private-ca gives", () => {
    const [flag, component] = [withFlags("--ca-configmap", "private-ca"), built(["private-ca"])]
      .map(podOf);
    assertEquals(named(component.volumes), named(flag.volumes));
    const [container] = component.containers;
    assertEquals(named(container.env), named(flag.containers[0].env));
    assertEquals(named(container.volumeMounts), named(flag.containers[0].volumeMounts));
  });

  test("proxy grants what --proxy and --no-proxy grant, at the address that its Secret has", () => {
    const flag = withFlags("--proxy", "http://proxy.example:3128", "--no-proxy", ".example");
    const component = built(["proxy"]);
    const expected = rightsOf(flag);
    expected["--allow-net"] = expected["--allow-net"]!
      .map((host) => host === "proxy.example:3128" ? "$(PROXY_ADDRESS)" : host).sort();
    assertEquals(rightsOf(component), expected);
    const [{ args, env }] = podOf(component).containers;
    assertEquals(args.at(-1), "/main.js");
    const names = ["HTTPS_PROXY", "NO_PROXY", "PROXY_ADDRESS"];
    const text = read("kustomize/proxy/kustomization.yaml");
    for (const name of names) {
      const { secretKeyRef: { optional = false, ...rest } } = named(env)[name].valueFrom;
      assertEquals({ optional, ...rest }, {
        optional: name === "NO_PROXY",
        name: "proxy",
        key: name,
      });
      assert(text.includes(`--from-literal=${name}=`), "the command creates it");
    }
  });

  test("All components go together in any order, on deploy.yaml and on the manifest with the program for Deno", () => {
    const [one, other] = [COMPONENTS, COMPONENTS.toReversed()].map((names) => built(names));
    assertEquals(rightsOf(other!), rightsOf(one!));
    const manifest = built(COMPONENTS, "install.yaml", { "install.yaml": withFlags() });
    assertEquals(rightsOf(manifest), rightsOf(one!));
    assert(podOf(manifest).volumes.some(({ name }: Json) => name === "program"));
  });

  test("A component that does not fit the arguments fails", () => {
    const { status, stdout, stderr } = build(
      JSON.stringify({
        resources: ["install.yaml"],
        components: ["../pull-secret-updater/kustomize/proxy"],
      }),
      { "install.yaml": withFlags("--proxy", "http://proxy.example") },
    );
    assertEquals({ status, stdout }, { status: 1, stdout: "" });
    assertMatch(stderr, /\/args\/7/);
  });

  test("The page's example does what it shows, and its table has each component", () => {
    const rows = tablesUnder(`\n${PAGE}`, "# With kustomize").slice(1);
    assertEquals(rows.map(([cell = ""]) => cell.replaceAll("`", "")), COMPONENTS);
    const [example] = blocksOf(PAGE);
    const { stdout, stderr } = build(example!.text);
    assertEquals(stderr, "");
    const { spec } = objectsOf(stdout).at(-1);
    const { containers: [container], imagePullSecrets, priorityClassName } = spec.template.spec;
    assertEquals(spec.replicas, 3);
    const [, version] = /^const VERSION = "(.+)";$/m.exec(read("main.ts"))!;
    assertEquals(container.image, `registry.example.com/pull-secret-updater:${version}`);
    assertEquals(imagePullSecrets, [{ name: "registry" }]);
    assertEquals(priorityClassName, "system-cluster-critical");
    assertEquals(named(container.env).REGISTRIES.value, "cgr.dev,mirror.example.com");
  });
});
