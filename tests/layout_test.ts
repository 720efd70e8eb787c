/** Holds the tree to its floors: no file imports from a floor above its own, from beside, or in a circle. */
import { assertEquals } from "@std/assert";
import { globSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { test } from "node:test";
import { ROOT } from "./support/paths.ts";

/** From below; a folder imports from itself and from the floors below its own. */
const FLOORS = [
  ["main.ts", "k8s.ts", "sts.ts", "vendor/std-assert"],
  ["scripts"],
  ["tests/support"],
  ["tests/fake"],
  ["tests/virtual", "tests/cluster", "scripts/demo", "scripts/pictures"],
  [
    ...["main_test.ts", "k8s_test.ts", "sts_test.ts", "tests"],
    ...["contract", "controller", "docs", "environment", "fuzz", "program", "release", "security"]
      .map((name) => `tests/${name}`),
    "tests/simulation",
    ...["e2e", "faults", "soak"].map((name) => `tests/cluster/${name}`),
    ...["bench", "bench/sdk"],
  ],
];

/** What a file is counted to: the product's files and their tests by themselves, all others to their folder. */
const placeOf = (file: string) => dirname(file) === "." ? file : dirname(file);
const floorOf = (file: string) => FLOORS.findIndex((places) => places.includes(placeOf(file)));

/** What each file imports of ours, types included. */
function readImports(): Map<string, string[]> {
  const files = globSync(["*.ts", "{bench,scripts,tests,vendor}/**/*.ts"], { cwd: ROOT });
  return new Map(files.map((file) => {
    const imports = readFileSync(join(ROOT, file), "utf8").matchAll(
      /^(?:(?:import|export)\b[^;"]*\bfrom |import )"(\.[^"]+)"|\bimport\("(\.[^"]+)"\)/gm,
    );
    return [
      file,
      [...imports].map(([, named, called]) => normalize(join(dirname(file), named ?? called!))),
    ];
  }));
}

const IMPORTS = readImports();

/** The first circle that is met from a file on, if there is one. */
function circleFrom(file: string, path: string[], isDone: Set<string>): string[] | undefined {
  if (path.includes(file)) return [...path.slice(path.indexOf(file)), file];
  if (isDone.has(file)) return undefined;
  for (const next of IMPORTS.get(file) ?? []) {
    const circle = circleFrom(next, [...path, file], isDone);
    if (circle) return circle;
  }
  isDone.add(file);
}

test("Each file that is imported is there, and each folder has its floor", () => {
  const missing = [...IMPORTS].flatMap(([file, imports]) =>
    imports.filter((each) => !IMPORTS.has(each)).map((each) => `${file}: ${each}`)
  );
  assertEquals(missing, []);
  assertEquals([...IMPORTS.keys()].filter((file) => floorOf(file) === -1), []);
});

test("Nothing imports from a floor above its own, or from another folder on its own", () => {
  const wrong = [...IMPORTS].flatMap(([file, imports]) =>
    imports.filter((each) =>
      placeOf(each) !== placeOf(file) && floorOf(each) >= floorOf(file) &&
      floorOf(each) + floorOf(file) > 0
    ).map((each) => `${file}: ${each}`)
  );
  assertEquals(wrong, []);
});

test("Nothing imports in a circle, be it for a type", () => {
  const isDone = new Set<string>();
  const circles = [...IMPORTS.keys()].flatMap((file) => {
    const circle = circleFrom(file, [], isDone);
    return circle ? [circle.join(" → ")] : [];
  });
  assertEquals(circles, []);
});
