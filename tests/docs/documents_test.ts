/**
 * Holds what the documents say to the program, and their commands to what is run. `cluster/e2e/blocks.ts` runs them.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parse, parseAllDocuments } from "yaml";
import { MAX_COLUMNS, MAX_COMPLEXITY, MAX_LINES, MAX_TOKENS, PRODUCT } from "../../scripts/size.ts";
import { expose } from "./exposed.ts";
import {
  type Block,
  blocksOf,
  DOCUMENTS,
  itemsUnder,
  linksOf,
  PAGES,
  proseOf,
} from "../support/markdown.ts";
import { ROOT } from "../support/paths.ts";

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const filesIn = (folder: string, ending: string) =>
  readdirSync(join(ROOT, folder)).filter((name) => name.endsWith(ending)).map((name) =>
    join(folder, name)
  );
const README = read("README.md");
const BLOCKS = DOCUMENTS.flatMap((page) =>
  blocksOf(read(page)).map((block) => ({ ...block, page }))
);
const [, VERSION = ""] = /^const VERSION = "(.+)";$/m.exec(read("main.ts")) ?? [];
/** How to measure the product. */
const SIZE = BLOCKS.find(({ text }) => text.startsWith("npm run -s size"))!;
/** How the comment above a block says that it is not run as it stands. */
const MARK = /^test: /;
/** The one variable that is named and not ours. */
const OF_NODE = "`NODE_OPTIONS`";
/** What the documents may have: the README's limit is also one of bytes. */
const LIMITS = { readmeLines: 250, readmeBytes: 15 * 1024, pageLines: 400, columns: 120 };

test("No document is longer than a person reads, or wider than a terminal", () => {
  const lines = (page: string) => read(page).trimEnd().split("\n");
  assert(lines("README.md").length <= LIMITS.readmeLines, `${lines("README.md").length} lines`);
  assert(Buffer.byteLength(README) <= LIMITS.readmeBytes, `${Buffer.byteLength(README)} bytes`);
  const long = [...DOCUMENTS, "docs/bench/README.md"].filter((page) =>
    lines(page).length > LIMITS.pageLines
  );
  const wide = PAGES.flatMap((page) =>
    lines(page).flatMap((line, i) =>
      [...line].length > LIMITS.columns ? [`${page}:${i + 1}: ${line}`] : []
    )
  );
  assertEquals([...long, ...wide], []);
});

test("Each page is linked from the README", () => {
  const linked = linksOf(README).map((target) => target.split("#")[0]);
  assertEquals(DOCUMENTS.slice(1).filter((page) => !linked.includes(page)), []);
});

test("What messages send people to has its heading in the README, with a link", () => {
  for (const name of ["GitOps", "One service account per tenant"]) {
    assert(read("main.ts").includes(name), name);
    const [, below = ""] = README.split(`\n### ${name}\n`);
    assertMatch(below.split("\n## ")[0]!.split("\n### ")[0]!, /\]\(docs\/.*\)/, name);
  }
});

test("Blocks that are the same file are the same", () => {
  const files = new Map<string, string>();
  for (const { text } of BLOCKS) {
    const [, file] = /^# (\S+\.yaml)$/m.exec(text) ?? [];
    if (file) assertEquals(text, files.get(file) ?? text, file);
    if (file) files.set(file, text);
  }
});

/** The first block of a language that holds a text, as tests/cluster/e2e/blocks.ts finds it. */
const findBlock = (text: string, language: string) =>
  BLOCKS.find((block) => block.language === language && block.text.includes(text));

/** The blocks that the end-to-end test and `.ci/run` run, and those that are a part of them or are named in them. */
function blocksThatAreRun(): Set<Block> {
  const run = new Set<Block>();
  for (const file of filesIn("tests/cluster/e2e", ".ts")) {
    const calls =
      /\b(needBlock|runCommands)\(\s*(?:context,\s*)?(["'])((?:(?!\2)[^\\]|\\.)+)\2(,\s*"sh")?/g;
    for (const [, name, , literal = "", language] of read(file).matchAll(calls)) {
      const text = literal.replace(/\\(.)/g, (_, char) => char === "n" ? "\n" : char);
      const found = findBlock(text, name === "runCommands" || language ? "sh" : "yaml");
      assert(found, `${file} asks for a block with ${text}`);
      run.add(found);
    }
  }
  const commands = [...run].filter(({ language }) => language === "sh").map(({ text }) => text);
  const steps = read(".ci/run").split("\n").map((step) => step.replace(/ &$/, ""));
  for (const block of BLOCKS) {
    const { text } = block;
    const [, file = ""] = /^# (\S+\.yaml)$/m.exec(text) ?? [];
    const isNamed = file !== "" && commands.some((each) => each.includes(` ${file}`));
    const isPart = commands.some((each) => each.includes(text));
    const isStep = text.trim().split(/ && |\n/).every((command) => steps.includes(command));
    if (isNamed || isPart || isStep) run.add(block);
  }
  run.add(SIZE);
  return run;
}

test("Each block of YAML and each of commands is run by the end-to-end test, or says that it is not", () => {
  const run = blocksThatAreRun();
  const neither = BLOCKS
    .filter(({ language }) => ["sh", "yaml"].includes(language))
    .filter((block) => !run.has(block) && !MARK.test(block.mark))
    .map(({ page, line, text }) => `${page}:${line}: ${text.split("\n")[0]}`);
  assertEquals(neither, []);
});

test("No block says that it is not run, and is", () => {
  const both = [...blocksThatAreRun()].filter(({ mark }) => /^test: not run/.test(mark));
  assertEquals(both.map(({ line, text }) => `${line}: ${text}`), []);
});

test("Each constant and function that the documents name is in the sources", () => {
  const sources = [...PRODUCT, "package.json", "scripts/manifest_flags.ts"].map(read).join("\n");
  const pages = [...DOCUMENTS, "SECURITY.md"].filter((page) => page !== "docs/environments.md");
  const constants = pages.flatMap((page) =>
    (proseOf(read(page)).match(/`[A-Z]+(_[A-Z]+)+`/g) ?? []).map((name) => ({ page, name }))
  );
  const functions = ["docs/reviewing.md", "CONTRIBUTING.md"].flatMap((page) =>
    (proseOf(read(page)).match(/`#?[a-z]+[A-Z]\w*`|`#\w+`/g) ?? []).map((name) => ({ page, name }))
  );
  assert(constants.length > 10 && functions.length > 5, "they are found");
  const unknown = [...constants, ...functions].filter(({ name }) =>
    name !== OF_NODE &&
    !new RegExp(`(?<!\\w)${name.slice(1, -1)}(?!\\w)`).test(sources)
  );
  assertEquals(unknown, []);
});

test("SECURITY.md links to each of its threats from the list at its beginning", () => {
  const [, below = ""] = read("SECURITY.md").split("\n## Who can do what\n");
  const [list = "", ...threats] = below.split("\n### ");
  const linked = linksOf(list).flatMap((link) => /^#t(\d+)-/.exec(link)?.[1] ?? []).map(Number);
  const all = threats.flatMap((threat) => /^T(\d+)\. /.exec(threat)?.[1] ?? []).map(Number);
  assertEquals(linked.sort((a, b) => a - b), all);
});

test("The command for the size measures each file of the product", () => {
  const [command = ""] = SIZE.text.split("\n");
  const { stdout } = spawnSync("sh", ["-c", command], { cwd: ROOT, encoding: "utf8" });
  const files = [...stdout.matchAll(/^(\S+\.ts): \d+ tokens$/gm)].map(([, file]) => file);
  assertEquals(files, PRODUCT);
});

test("Reviewing and CONTRIBUTING name the budget that is measured", () => {
  const tokens = `at most ${MAX_TOKENS.toLocaleString("en")} tokens`;
  const functions = `complexity above ${MAX_COMPLEXITY}, or more than ${MAX_LINES} lines`;
  for (const page of ["docs/reviewing.md", "CONTRIBUTING.md"]) {
    const text = read(page).replace(/\s+/g, " ");
    for (const words of [tokens, functions]) assert(text.includes(words), `${page}: ${words}`);
  }
  assert(read("CONTRIBUTING.md").includes(`wider than ${MAX_COLUMNS} columns`));
  assertEquals(JSON.parse(read("deno.json")).fmt.lineWidth, MAX_COLUMNS);
});

test("Each YAML block parses, and each of commands is a language that a shell may read", () => {
  for (const { language, text, page, line } of BLOCKS) {
    assert(
      ["sh", "yaml", "hcl", "text"].includes(language),
      `${page}:${line} is of language ${language}`,
    );
    if (language === "yaml") {
      for (const document of parseAllDocuments(text)) assertEquals(document.errors, []);
    }
  }
});

test("README, changelog and package name the version that main.ts has", () => {
  assertMatch(VERSION, /^\d+\.\d+\.\d+$/);
  assertEquals(/^Status: version (\S+)/m.exec(README)?.[1], VERSION);
  const images = DOCUMENTS.flatMap((page) =>
    read(page).match(/(?<=pull-secret-updater:)\d+\.\d+\.\d+/g) ?? []
  );
  assertEquals([...new Set(images)], [VERSION]);
  assertEquals(/^## (\d+\.\d+\.\d+)/m.exec(read("CHANGELOG.md"))?.[1], VERSION);
  assertEquals(JSON.parse(read("package.json")).version ?? VERSION, VERSION);
});

test("The images that the documents name are the manifest's", () => {
  const bases = [...read("Containerfile").matchAll(/^ARG \w+=(\S+)$/gm)].map(([, image]) => image);
  for (const page of DOCUMENTS) {
    for (const [image] of read(page).matchAll(/\bdocker\.io\/[\w/-]+:[\w.-]+\w/g)) {
      assert(bases.includes(image), `${page}: ${image}`);
    }
  }
});

test("The list of metrics is the program's", async () => {
  const { types, samples } = await expose();
  const items = itemsUnder(read("docs/monitoring.md"), "## Metrics").map((item) =>
    /^`(\w+)(?:\{([\w,]+)\})?` \((\w+)\): ./.exec(item)?.slice(1) ?? []
  );
  assertEquals(items.map(([name, , type]) => [name, type]).sort(), [...types].sort());
  for (const [name, labels = ""] of items) {
    const sample = samples.find((each) => each.name.replace(/_(sum|count)$/, "") === name);
    assertEquals(Object.keys(sample!.labels).join(), labels, name);
  }
});

test("The list of alerts is that of the rules", () => {
  const rules: { alert: string; labels: { severity: string } }[] =
    parse(read("docs/alerts/rules.yaml")).groups[0].rules;
  const items = itemsUnder(read("docs/monitoring.md"), "## Alerts").map((item) =>
    /^`(\w+)` \((\w+)\): ./.exec(item)?.slice(1)
  );
  assertEquals(items, rules.map(({ alert, labels }) => [alert, labels.severity]));
});

test("The list of variables is the program's", () => {
  const items = itemsUnder(read("docs/reference.md"), "## Environment");
  const names = items.flatMap((item) => item.split(" (")[0]!.match(/\w+/g) ?? []);
  const { stdout } = spawnSync("node", ["main.ts", "--help"], { cwd: ROOT, encoding: "utf8" });
  const told = [...stdout.matchAll(/^ {2}([A-Z][A-Z_]+)\b/gm)].map(([, name]) => name!);
  assert(told.length > 8, stdout);
  assertEquals(told.filter((name) => !names.includes(name)), []);
});
