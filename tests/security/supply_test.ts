/** What the product is made of: what ships, what is pinned, and what runs at an installation. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import { bundle } from "../../scripts/bundle.ts";
import { makeSbom } from "../../scripts/sbom.ts";
import { ROOT } from "../support/paths.ts";

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const manifest = JSON.parse(read("package.json"));

interface Locked {
  version?: string;
  integrity?: string;
  resolved?: string;
  link?: boolean;
  hasInstallScript?: boolean;
}

const locked: [path: string, package_: Locked][] = Object.entries(
  JSON.parse(read("package-lock.json")).packages,
);
const installed = locked.filter(([path, { link }]) => path.startsWith("node_modules/") && !link);
const nameOf = (path: string) => path.split("node_modules/").at(-1)!;

/** The packages that a bundle has a module of: it says before each where it comes from. */
async function bundledPackages(): Promise<string[]> {
  const modules = (await bundle("main.ts")).matchAll(
    /^\s*\/\/ .*node_modules\/((@[^/]+\/)?[^/]+)\//gm,
  );
  return [...new Set([...modules].map(([, name]) => name!))].sort();
}

test("The SBOM names the packages that are in the bundle, and the image that it is put on, and nothing else", async () => {
  const { components } = makeSbom();
  const libraries = components.filter(({ type }) => type === "library");
  assertEquals(libraries.map(({ name }) => name).sort(), await bundledPackages());
  for (const { name, version, hashes = [] } of libraries) {
    assertEquals(version, manifest.dependencies[name]);
    const { integrity = "" } = locked.find(([path]) => path === `node_modules/${name}`)![1];
    const hash = Buffer.from(hashes.find(({ alg }) => alg === "SHA-512")!.content, "hex").toString(
      "base64",
    );
    assertEquals(`sha512-${hash}`, integrity);
  }
  const others = components.filter(({ type }) => type !== "library");
  assertEquals(others.map(({ purl }) => purl), ["pkg:docker/denoland/deno@distroless-2.9.6"]);
});

test("The bundle has the licence of each package in it, and one HTTP parser", async () => {
  const text = await bundle("main.ts");
  for (const file of ["undici/LICENSE", "jose/LICENSE.md"]) {
    const words = (text: string) => text.replace(/^\/\/ ?/gm, "").split(/\s+/).join(" ").trim();
    assert(words(text).includes(words(read(`node_modules/${file}`))), file);
  }
  // One with SIMD instructions, one without.
  assertEquals(text.match(/\/llhttp\/.*wasm.*"\(/g)?.length, 2);
  assert(!/WebAssembly[^]*milo-/.test(text) && text.length < 600_000, `${text.length} bytes`);
});

test("The SBOM is the same each time, without an instant, a number of its own or what only some npm notes", () => {
  const [one, two] = [makeSbom(), makeSbom()].map((sbom) => JSON.stringify(sbom));
  assertEquals(one, two);
  assert(!/serialNumber|timestamp|cdx:npm/.test(one!));
});

test("The product depends on undici and jose alone, and imports nothing but them, Node's modules and itself", () => {
  assertEquals(Object.keys(manifest.dependencies), ["jose", "undici"]);
  for (const name of ["undici", "jose"]) {
    const { dependencies = {} } = JSON.parse(read(`node_modules/${name}/package.json`));
    assertEquals(dependencies, {}, `${name} has dependencies of its own`);
  }
  for (const file of ["main.ts", "k8s.ts", "sts.ts"]) {
    const imports = [...read(file).matchAll(/\bfrom "([^"]+)"|\bimport\(/g)].map((
      [, name = "a dynamic import"],
    ) => name);
    for (const name of imports) {
      assertMatch(name, /^(node:\w+|undici|jose\/jwt\/decode|\.\/(k8s|sts)\.ts)$/, file);
    }
  }
});

test("Every package is pinned to one version, and by its hash in both lock files", () => {
  for (const group of ["dependencies", "devDependencies", "optionalDependencies"]) {
    for (const [name, version] of Object.entries(manifest[group])) {
      assertMatch(`${version}`, /^(\d+\.\d+\.\d+|file:vendor\/std-assert)$/, name);
    }
  }
  for (const [path, { version, integrity }] of installed) {
    assertMatch(`${version} ${integrity}`, /^\d\S* sha512-[\w+/]{86}==$/, path);
  }
  const { npm } = JSON.parse(read("deno.lock")) as { npm: Record<string, { integrity?: string }> };
  for (const [name, { integrity }] of Object.entries(npm)) {
    assertMatch(`${integrity}`, /^sha512-/, name);
  }
  const hashes = new Set(installed.map(([, { integrity }]) => integrity));
  for (const name of ["undici", "jose"]) {
    const [, entry] = Object.entries(npm).find(([key]) => key.startsWith(`${name}@`))!;
    assert(hashes.has(entry.integrity), `${name} differs between the lock files`);
  }
});

test("No package but those that package.json names runs a script when it is installed, and none in the image", () => {
  const scripted = installed.filter(([, { hasInstallScript }]) => hasInstallScript).map(([path]) =>
    nameOf(path)
  );
  assertEquals([...new Set(scripted)].sort(), Object.keys(manifest.allowScripts).sort());
  assertMatch(read("Containerfile"), /^RUN npm ci --ignore-scripts$/m);
  const hooks = Object.keys(manifest.scripts).filter((name) =>
    /^(pre|post)|^(install|prepare|dependencies)$/.test(name)
  );
  assertEquals(hooks, []);
});

interface Step {
  uses?: string;
  with?: Record<string, unknown>;
  run?: string;
}

test("Each workflow starts without rights, names those of each job, and each action by its whole commit", () => {
  const files = readdirSync(join(ROOT, ".github/workflows"));
  assertEquals(files.sort(), ["ci.yaml", "release.yaml"]);
  for (const text of files.map((file) => read(`.github/workflows/${file}`))) {
    const { permissions, jobs } = parse(text);
    assertEquals(permissions, {});
    const each: { permissions: Record<string, string>; steps: Step[] }[] = Object.values(jobs);
    for (const { permissions, steps } of each) {
      const mayWrite = Object.values(permissions).includes("write");
      for (const { uses = "", with: inputs, run = "" } of steps) {
        if (uses.includes("/checkout@")) assertEquals(inputs?.["persist-credentials"], false);
        // Whoever may write runs no script of a package, and no test.
        if (mayWrite) assert(!/npm ci(?! --ignore-scripts)|\.ci\/run/.test(run), run);
      }
    }
    for (const [line] of text.matchAll(/^.*\buses:.*$/gm)) {
      assertMatch(line, /^ +(- )?uses: [\w-]+\/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
    }
  }
});

/** In two parts each, as this file is looked through too. */
const REGISTRIES = [
  ["npm", "js.org"],
  ["npm", "js.com"],
  ["js", "r.io"],
  ["proxy.go", "lang.org"],
  ["py", "pi.org"],
  ["deb", "ian.org"],
].map((parts) => parts.join(""));
const NOT_OURS = [".git", "node_modules", "out", "coverage"];

function* walk(dir: string): Generator<string> {
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    if (NOT_OURS.includes(entry.name)) continue;
    const path = join(dir, entry.name);
    if (entry.isDirectory()) yield* walk(path);
    else if (entry.isFile()) yield path;
  }
}

test("No file names a package registry: the lock files work with any mirror", () => {
  for (const path of walk(ROOT)) {
    const text = readFileSync(path, "utf8");
    for (const host of REGISTRIES) assert(!text.includes(host), `${path} names ${host}`);
  }
  for (const [path, { resolved }] of installed) assertEquals(resolved, undefined, path);
});
