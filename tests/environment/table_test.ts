import { assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ROOT } from "../support/paths.ts";
import { ROWS } from "./rows.ts";
import { drawPage } from "./table.ts";

test("docs/environments.md is what the rows give: node tests/environment/table.ts writes it", () => {
  const page = join(ROOT, "docs/environments.md");
  assertEquals(readFileSync(page, "utf8"), drawPage());
});

test("No two rows of the environment matrix are called the same", () => {
  const names = ROWS.map(({ group, what }) => `${group}: ${what}`);
  assertEquals(names.filter((name, index) => names.indexOf(name) !== index), []);
});
