/** Holds SECURITY.md to the tests that it names. */
import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ROOT } from "../support/paths.ts";

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const document = read("SECURITY.md");

/** A threat's heading, what is below it, and the tests that are listed there. */
const threats = document.split(/^(?=#{2,3} )/m).flatMap((part) => {
  const [, row] = /^### ([TC]\d+)\. \S/.exec(part) ?? [];
  if (!row) return [];
  const [text = "", listed = "", ...more] = part.split(/^- \*\*Tests\*\*:/m);
  assertEquals(more, [], `${row} lists its tests once`);
  // A title may go on over several lines, and Markdown escapes what would else mean something in it.
  const [first = "", ...items] = listed.split(/^ {2}- /m);
  return [{ row, text, isNone: /^ none\. \S/.test(first), tests: items.map(readItem) }];
});
const rows = threats.map(({ row }) => row);

function readItem(item: string): { file: string; title: string } {
  const [, file = "", title = ""] = /^`([^`]+)`: ([^]+)$/.exec(item.replace(/\s+/g, " ").trim()) ??
    [];
  return { file, title: title.replace(/\\(\W|_)/g, "$1") };
}

/** The texts in a file that may be titles: its string literals. */
function literals(file: string): Set<string> {
  return new Set([...read(file).matchAll(/"((?:[^"\\\n]|\\.)*)"/g)].map(([, text]) => text!));
}

test("Each threat has tests that show what stops it, or says that there are none", () => {
  for (const { row, isNone, tests } of threats) {
    assert(isNone ? tests.length === 0 : tests.length > 0, row);
  }
  assert(threats.filter(({ isNone }) => isNone).length < 7, "few have none");
});

test("The threats are numbered without a gap, and no test is listed elsewhere", () => {
  for (const letter of ["T", "C"]) {
    const own = rows.filter((row) => row.startsWith(letter));
    assert(own.length > 8, "they are found");
    assertEquals(own, own.map((_, i) => `${letter}${i + 1}`));
  }
  const items = document.match(/^ *- `[^`]+\.ts`: /gm) ?? [];
  assertEquals(threats.flatMap(({ tests }) => tests).length, items.length);
});

test("Each threat says who, what they reach and what they do not", () => {
  for (const { row, text } of threats) {
    const labels = row.startsWith("T")
      ? ["Who", "May write", "Reaches", "Does not reach"]
      : ["With the manifest", "With its RBAC, without the policies", "With only some namespaces"];
    const found = [...text.matchAll(/^- \*\*([^*]+)\*\*/gm)].map(([, label]) => label);
    assertEquals(found.filter((label) => label !== "Remains"), labels, row);
  }
});

test("Each test that the threat model names exists, in that file and under that title", () => {
  for (const { row, tests } of threats) {
    for (const { file, title } of tests) {
      assert(literals(file).has(title), `${row}: ${file} has no test "${title}"`);
    }
  }
});

test("Each threat that the document speaks of is in it", () => {
  const named = document.match(/\b[TC]\d+\b/g) ?? [];
  assert(named.length > rows.length + 10, "they are found");
  for (const row of named) assert(rows.includes(row), row);
});
