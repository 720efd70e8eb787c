/** Holds SECURITY.md to the tests that it names. */
import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

const ROOT = join(import.meta.dirname!, "../..");
const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const document = read("SECURITY.md");

const listed = document.slice(
  document.indexOf("<!-- threats: begin -->"),
  document.indexOf("<!-- threats: end -->"),
);
const rows = [...document.matchAll(/^\| ([TC]\d+) +\|/gm)].map(([, row]) => row!);
/** A title may go on over several lines, and Markdown escapes what would else mean something in it. */
const shown = listed.split(/^- \*\*/m).slice(1).map((part) => {
  const [row = "", ...items] = part.split(/^ {2}- /m);
  return { row: row.replace(/\*\*\s*$/, ""), tests: items.map(readItem) };
});

function readItem(item: string): { file: string; title: string } {
  const [, file = "", title = ""] = /^`([^`]+)`: ([^]+)$/.exec(item.replace(/\s+/g, " ").trim()) ??
    [];
  return { file, title: title.replace(/\\(\W|_)/g, "$1") };
}

/** The texts in a file that may be titles: its string literals. */
function literals(file: string): Set<string> {
  return new Set([...read(file).matchAll(/"((?:[^"\\\n]|\\.)*)"/g)].map(([, text]) => text!));
}

test("Each row of the threat model has tests that show it, or is among those that say there are none", () => {
  const [, without = ""] = /No test shows ([^:]+):/.exec(document.replace(/\s+/g, " ")) ?? [];
  const named = [...shown.map(({ row }) => row), ...without.match(/[TC]\d+/g) ?? []];
  assert(rows.length > 20, "the tables are found");
  assertEquals(named.toSorted(), rows.toSorted());
  for (const { row, tests } of shown) assert(tests.length > 0, row);
});

test("Each test that the threat model names exists, in that file and under that title", () => {
  for (const { row, tests } of shown) {
    for (const { file, title } of tests) {
      assert(literals(file).has(title), `${row}: ${file} has no test "${title}"`);
    }
  }
});

test("Each row that what remains speaks of is in the threat model", () => {
  const [, remains = ""] = document.split(/^## What remains$|^## What shows it$/m);
  const named = remains.match(/\b[TC]\d+\b/g) ?? [];
  assert(named.length > 10, "the list is found");
  for (const row of named) assert(rows.includes(row), row);
});
