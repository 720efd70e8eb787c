/** Makes a variant of the product from its real files. */
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import type { Variant } from "./variants.ts";
import { ROOT } from "../support/paths.ts";

const FILES = ["main.ts", "k8s.ts", "sts.ts", "tests/simulation", "tests/virtual", "tests/support"];

export type Simulation = typeof import("./run.ts") & typeof import("./plan.ts");

/** Replaces a text that stands in the source once; says so if it does not. */
export function replaceOnce(source: string, { file, text, by }: Variant): string {
  const places = source.split(text).length - 1;
  if (places === 1) return source.replace(text, () => by);
  throw new Error(
    `${file} has ${places} places with "${text}": give the variant a text that stands there once`,
  );
}

/** Lends a variant and its simulation, in a folder beneath the project, where its packages are found. */
export async function withVariant<T>(
  variant: Variant,
  use: (folder: string) => T | Promise<T>,
): Promise<T> {
  const folder = join(ROOT, "out/variants", `${process.pid}-${variant.name.replace(/\W+/g, "-")}`);
  try {
    for (const file of FILES) cpSync(join(ROOT, file), join(folder, file), { recursive: true });
    const file = join(folder, variant.file);
    writeFileSync(file, replaceOnce(readFileSync(file, "utf8"), variant));
    return await use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Loads the simulation of a variant. */
export const load = (variant: Variant): Promise<Simulation> =>
  withVariant(variant, async (folder) => ({
    ...await import(`file://${folder}/tests/simulation/run.ts`),
    ...await import(`file://${folder}/tests/simulation/plan.ts`),
  }));
