/** Checks the Markdown by the rules of .markdownlint.json, and that its links within the repository lead somewhere. */
import { lint, readConfig } from "markdownlint/promise";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import process from "node:process";
import { anchorsOf, linksOf, PAGES } from "../support/markdown.ts";
import { ROOT } from "../support/paths.ts";

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");

async function brokenRules(): Promise<string[]> {
  const config = await readConfig(join(ROOT, ".markdownlint.json"));
  const results = await lint({ files: PAGES.map((page) => join(ROOT, page)), config });
  return Object.entries(results).flatMap(([file, errors]) =>
    errors.map(({ lineNumber, ruleNames, ruleDescription, errorDetail, errorContext }) => {
      const details = [errorDetail, errorContext].filter(Boolean);
      const detail = details.map((text) => ` [${text}]`).join("");
      return `${relative(ROOT, file)}:${lineNumber}: ${
        ruleNames.join("/")
      }: ${ruleDescription}${detail}`;
    })
  );
}

function leadsSomewhere(page: string, target: string): boolean {
  const [path = "", anchor] = target.split("#");
  const file = path === "" ? page : join(dirname(page), path);
  if (!existsSync(join(ROOT, file))) return false;
  return anchor === undefined || anchorsOf(read(file)).has(anchor);
}

const brokenLinks = PAGES.flatMap((page) =>
  linksOf(read(page))
    .filter((target) => !/^https?:/.test(target) && !leadsSomewhere(page, target))
    .map((target) => `${page}: ${target} leads nowhere`)
);
const broken = [...await brokenRules(), ...brokenLinks];
for (const line of broken) console.error(line);
if (broken.length > 0) process.exitCode = 1;
