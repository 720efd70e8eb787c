import { assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ROOT } from "../tests/support/paths.ts";
import { drawPage } from "./publish.ts";

test("docs/bench/README.md is drawn from its figures", () => {
  const read = (name: string) => readFileSync(join(ROOT, "docs/bench", name), "utf8");
  assertEquals(read("README.md"), drawPage(JSON.parse(read("bench.json"))));
});
