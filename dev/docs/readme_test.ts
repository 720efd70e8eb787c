import { assert, assertEquals, assertMatch } from "@std/assert";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { parse, parseAllDocuments } from "yaml";
import { MAX_COLUMNS, MAX_COMPLEXITY, MAX_LINES, MAX_TOKENS, PRODUCT } from "../size.ts";
import { expose } from "./exposed.ts";
import {
  anchorsOf,
  type Block,
  blocksOf,
  DOCUMENTS,
  linksOf,
  PAGES,
  tablesUnder,
} from "./markdown.ts";

const ROOT = join(import.meta.dirname!, "../..");
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
/** How a block says that it is not run as it stands. */
const MARK = /^# .*(not run|the tests)|# the tests /m;

test("Links and pictures within the repository lead somewhere", () => {
  const broken = PAGES.flatMap((page) =>
    linksOf(read(page)).filter((target) => !/^https?:/.test(target)).filter((target) => {
      const [path = "", anchor] = target.split("#");
      const file = path === "" ? page : join(dirname(page), path);
      if (!existsSync(join(ROOT, file))) return true;
      return anchor !== undefined && !anchorsOf(read(file)).has(anchor);
    }).map((target) => `${page}: ${target}`)
  );
  assertEquals(broken, []);
});

/** The first block of a language that holds a text, as dev/e2e/readme.ts finds it. */
const findBlock = (text: string, language: string) =>
  BLOCKS.find((block) => block.language === language && block.text.includes(text));

/** The blocks that the end-to-end test and `.ci/run` run, and those that are a part of them or are named in them. */
function blocksThatAreRun(): Set<Block> {
  const run = new Set<Block>();
  for (const file of filesIn("dev/e2e", ".ts")) {
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
  const steps = read(".ci/run").split("\n");
  for (const block of BLOCKS) {
    const { text } = block;
    const [, file = ""] = /^# (\S+\.yaml)$/m.exec(text) ?? [];
    const isNamed = file !== "" && commands.some((each) => each.includes(` ${file}`));
    const isPart = commands.some((each) => each.includes(text));
    const isStep = text.trim().split(" && ").every((command) => steps.includes(command));
    if (isNamed || isPart || isStep) run.add(block);
  }
  run.add(SIZE);
  return run;
}

test("Each block of YAML and each of commands is run by the end-to-end test, or says that it is not", () => {
  const run = blocksThatAreRun();
  const neither = BLOCKS
    .filter(({ language }) => ["sh", "yaml"].includes(language))
    .filter((block) => !run.has(block) && !MARK.test(block.text))
    .map(({ page, line, text }) => `${page}:${line}: ${text.split("\n")[0]}`);
  assertEquals(neither, []);
});

test("No block says that it is not run, and is", () => {
  const both = [...blocksThatAreRun()].filter(({ text }) => /^# .*not run/m.test(text));
  assertEquals(both.map(({ line }) => line), []);
});

test("The README's command for the size measures each file of the product", () => {
  const [command = ""] = SIZE.text.split("\n");
  const { stdout } = spawnSync("sh", ["-c", command], { cwd: ROOT, encoding: "utf8" });
  const files = [...stdout.matchAll(/^(\S+\.ts): \d+ tokens$/gm)].map(([, file]) => file);
  assertEquals(files, PRODUCT);
});

test("README and CONTRIBUTING name the budget that is measured", () => {
  const tokens = `at most ${MAX_TOKENS.toLocaleString("en")} tokens`;
  const functions = `complexity above ${MAX_COMPLEXITY}, or more than ${MAX_LINES} lines`;
  for (const page of ["README.md", "CONTRIBUTING.md"]) {
    const text = read(page).replace(/\s+/g, " ");
    for (const words of [tokens, functions]) assert(text.includes(words), `${page}: ${words}`);
  }
  assert(read("CONTRIBUTING.md").includes(`wider than ${MAX_COLUMNS} columns`));
  assertEquals(JSON.parse(read("deno.json")).fmt.lineWidth, MAX_COLUMNS);
});

test("Each YAML block parses, and each of commands is a language that a shell may read", () => {
  for (const { language, text, page, line } of BLOCKS) {
    assert(
      ["sh", "yaml", "text", ""].includes(language),
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
  assertEquals([...new Set(README.match(/(?<=pull-secret-updater:)\d+\.\d+\.\d+/g))], [VERSION]);
  assertEquals(/^## (\d+\.\d+\.\d+)/m.exec(read("CHANGELOG.md"))?.[1], VERSION);
  assertEquals(JSON.parse(read("package.json")).version ?? VERSION, VERSION);
});

test("The images that the README names are the manifest's", () => {
  const bases = [...read("Containerfile").matchAll(/^ARG \w+=(\S+)$/gm)].map(([, image]) => image);
  for (const [, image] of README.matchAll(/`(docker\.io\/\S+:\S+)`/g)) {
    assert(bases.includes(image), image);
  }
});

test("The README's table of metrics is the program's", async () => {
  const { types, samples } = await expose();
  const rows = tablesUnder(README, "## What it tells").filter(([, type = ""]) =>
    ["gauge", "counter", "summary"].includes(type)
  );
  const named = rows.map(([name = "", type]) => [/\w+/.exec(name)?.[0], type]);
  assertEquals(named.sort(), [...types].sort());
  for (const [cell = ""] of rows) {
    const [, name, labels = ""] = /(\w+)(?:\{([\w,]+)\})?/.exec(cell) ?? [];
    const sample = samples.find((each) => each.name.replace(/_(sum|count)$/, "") === name);
    assertEquals(Object.keys(sample!.labels).join(), labels, name);
  }
});

test("The README's table of alerts is that of the rules", () => {
  const rules: { alert: string; labels: { severity: string } }[] =
    parse(read("docs/alerts/rules.yaml")).groups[0].rules;
  const rows = tablesUnder(README, "## What it tells").filter(([name = ""]) =>
    /^`Pull\w+`$/.test(name)
  );
  assertEquals(
    rows.map(([name, severity]) => [name, severity]),
    rules.map(({ alert, labels }) => [`\`${alert}\``, labels.severity]),
  );
});
