import { assertEquals } from "@std/assert";
import { test } from "node:test";
import {
  findExcesses,
  MAX_COLUMNS,
  MAX_COMPLEXITY,
  MAX_LINES,
  MAX_TOKENS,
  measure,
} from "./size.ts";

const excessesIn = async (...texts: string[]) =>
  findExcesses(
    await measure(Object.fromEntries(texts.map((text, index) => [`${index}.ts`, text]))),
  );

async function tokensOf(text: string) {
  const [file] = await measure({ "file.ts": text });
  return file!.tokens;
}

async function functionsOf(text: string) {
  const [file] = await measure({ "file.ts": text });
  return file!.functions.map(({ name, complexity }) => [name, complexity]);
}

/** The complexity of a function with this body. */
async function complexityOf(body: string) {
  const [first] = await functionsOf(`function first() { ${body} }`);
  return first![1];
}

/** Two tokens each. */
const statements = (count: number) => "x;\n".repeat(count);
const longFunction = (lines: number) => `function long() {\n${statements(lines - 2)}}\n`;
const complexFunction = (complexity: number) =>
  `\nfunction complex() {\n${"if (x);\n".repeat(complexity)}}\n`;

test("A function that is too complex is told, and by how much", async () => {
  assertEquals(await excessesIn(complexFunction(MAX_COMPLEXITY)), []);
  assertEquals(await excessesIn(complexFunction(MAX_COMPLEXITY + 2)), [
    `0.ts:2: complex: ${
      MAX_COMPLEXITY + 2
    } points of complexity, 2 over the budget of ${MAX_COMPLEXITY}`,
  ]);
});

test("A function that is too long is told, and by how much", async () => {
  assertEquals(await excessesIn(longFunction(MAX_LINES)), []);
  assertEquals(await excessesIn(longFunction(MAX_LINES + 3)), [
    `0.ts:1: long: ${MAX_LINES + 3} lines, 3 over the budget of ${MAX_LINES}`,
  ]);
});

test("Files that have too many tokens together are told, and by how much", async () => {
  const half = statements(MAX_TOKENS / 4);
  assertEquals(await excessesIn(half, half), []);
  assertEquals(await excessesIn(half, half, "x;"), [
    `0.ts, 1.ts, 2.ts: ${MAX_TOKENS + 2} tokens, 2 over the budget of ${MAX_TOKENS}`,
  ]);
});

test("A line that is too wide is told, and by how much", async () => {
  const comment = (columns: number) => `x;\n${"/".repeat(columns)}\nx;\n`;
  assertEquals(await excessesIn(comment(MAX_COLUMNS)), []);
  assertEquals(await excessesIn(comment(MAX_COLUMNS + 1)), [
    `0.ts:2: ${MAX_COLUMNS + 1} columns, 1 over the budget of ${MAX_COLUMNS}`,
  ]);
});

test("Comments, blank lines and formatting do not count as tokens", async () => {
  const code = "export const sum = (a: number, b: number) => a + b;";
  const spread = `/** Adds. */
    // Both.

    export const sum = (a: number /* one */,
      b: number)
      =>

      a + b; // All.
  `;
  assertEquals(await tokensOf(code), 18);
  assertEquals(await tokensOf(spread), 18);
});

test("Each token counts once, whatever the scanner has to know to find its end", async () => {
  assertEquals(await tokensOf("return;"), 2);
  assertEquals(await tokensOf("a = /[/;]+\\/ b/g.test(c);"), 9);
  assertEquals(await tokensOf("a = `one ${b} two ${`${c}`} three`;"), 10);
  assertEquals(await tokensOf("let a: Map<b, Set<c>> = d >> e >>> f;"), 19);
  assertEquals(await tokensOf(""), 0);
});

test("What branches or repeats costs one, and one more for each that it stands in", async () => {
  assertEquals(await complexityOf("if (a) { for (const b of c) { while (d) {} } }"), 6);
  assertEquals(await complexityOf("try { a(); } catch { b ? c : d; }"), 3);
  assertEquals(await complexityOf("switch (a) { case 1: b(); case 2: c(); }"), 1);
  assertEquals(await complexityOf("if (a) {} else if (b) {} else {}"), 3);
});

test("A sequence of the same operator costs one", async () => {
  assertEquals(await complexityOf("return a && b && c;"), 1);
  assertEquals(await complexityOf("return a && b || c;"), 2);
  assertEquals(await complexityOf("return a ?? b ?? c;"), 0);
});

test("A function without a name counts within the one that it stands in, one that has a name by itself", async () => {
  assertEquals(await functionsOf("function outer() { list.map((a) => a ? 1 : 2); }"), [
    ["outer", 2],
  ]);
  assertEquals(await functionsOf("function outer() { const inner = (a) => a ? 1 : 2; }"), [
    ["outer", 0],
    ["inner", 1],
  ]);
});

test("A function that has no name and stands in no other is measured too", async () => {
  assertEquals(await functionsOf("list.map((a) => a ? 1 : 2);"), [[
    "a function without a name",
    1,
  ]]);
});
