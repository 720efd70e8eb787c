/** Holds the README's Troubleshooting and what the program can report of failures together. */
import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { tablesUnder } from "./markdown.ts";

const ROOT = join(import.meta.dirname!, "../..");
const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const README = read("README.md");
const SOURCE = ["main.ts", "k8s.ts", "sts.ts"].map(read).join("\n");

const [, ...BY_EVENT] = tablesUnder(README, "### By event");
// The section has another table, of two columns.
const [, ...BY_LOG] = tablesUnder(README, "### By log message").filter(({ length }) =>
  length === 4
);
const [, ...BY_PROBE] = tablesUnder(README, "### By probe");
const EVENTS = tablesUnder(README, "## What it tells");

/** Where a failure's message stands in the source, and its literals. */
const FAILURE =
  /(?:new (?:StsError|ApiError|Error)\(|\binvalid\(|\bunusable\(|(?<=(?:\bunusable\(|\b(?:what|said) = ).*)[?:] |\bflaw: rival && |\? findFlaw\(.*\)\s+: |\bmessage(?: =|:)\s+|\breturn |\? undefined : |\? (?=".*" : undefined;))\s*((?:"[^"\n]+"|`[^`]+`)(?:\s*\+\s*(?:"[^"\n]+"|`[^`]+`))*)/g;
/** A word of it that says something: else it is made of what others say. */
const WORDS = /[a-z]{2,} [a-z]{2,}/i;
/** What is added to a failure's message, a metric's name, and the one message that is of no failure. */
const NO_FAILURE = /^(…[;.]|# HELP|the Secret holds a token of )/;
/** What the system says, and is passed on. */
const SYSTEM = /^(list: no response from the API server: )?ENOENT|^…\/ca\.crt is empty$/;

/** A constant's literal; what is no constant's name stays. */
const constant = (name: string) =>
  new RegExp(`^const ${name} = (["'].*["']);$`, "m").exec(SOURCE)?.[1] ?? name;

/** The messages of failures, with … for what is put in. */
function failuresOf(source: string): string[] {
  const found = [...source.matchAll(FAILURE)].map(([, literals = ""]) =>
    literals.slice(1, -1).replace(/["`]\s*\+\s*["`]/g, "")
      .replace(/\$\{([A-Z_]+)\}/g, (_, name) => /^["'](.*)["']$/.exec(constant(name))?.[1] ?? "…")
      .replace(/\$\{[^}]*(\}|$)/g, "…")
  );
  return [...new Set(found)].filter((message) => WORDS.test(message) && !NO_FAILURE.test(message));
}

/** What a cell of the README quotes. */
const quotesIn = (cell = "") => [...cell.matchAll(/`([^`]+)`/g)].map(([, quote = ""]) => quote);

/** Whether a quote is of this message: either may be the more general, as the README abbreviates and gives examples. */
function isOf(message: string, quote: string): boolean {
  const shown = message.startsWith("…: ")
    ? quote.replace(/^(list|watch|get|patch|create): /, "…: ")
    : quote;
  const general = shown.replace(/\b\d{3}\b/g, "…");
  return patternOf(general).test(message) || patternOf(message).test(quote) ||
    quote.endsWith(message);
}

const patternOf = (text: string) =>
  new RegExp(`^${text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll("…", ".*")}`);

const rows = [...BY_EVENT, ...BY_LOG, ...BY_PROBE];
const quotes = rows.flatMap(([, message]) => quotesIn(message)).filter((quote) =>
  WORDS.test(quote)
);
const failures = failuresOf(SOURCE);

test("The failures are found in the source", () => {
  for (
    const message of [
      "no response from the issuer at ISSUER_URL=…: …",
      ".dockerconfigjson …; if nothing in it is needed: kubectl patch … " +
      `-p '{"stringData":{".dockerconfigjson":"{}"}}'`,
      "is not UTF-8 text",
      "a request goes on, though it was given up a minute ago",
      "it lives longer than a day",
      "watch: a record is of no known type",
    ]
  ) {
    assert(failures.includes(message), `${message}: not among ${failures.length}`);
  }
});

test("Each failure that the program can report is in the README's Troubleshooting", () => {
  assertEquals(failures.filter((message) => !quotes.some((quote) => isOf(message, quote))), []);
});

test("Each message that the README's Troubleshooting explains is one that the program can report", () => {
  const stale = rows.map(([, message]) => quotesIn(message).filter((quote) => WORDS.test(quote)))
    .filter((own) =>
      own.length > 0 &&
      !own.some((quote) => SYSTEM.test(quote) || failures.some((message) => isOf(message, quote)))
    );
  assertEquals(stale, []);
});

test("Each reason of a Warning has its rows in the README, and each is of an event that there is", () => {
  const main = read("main.ts");
  const [, normal] = /\bisWarning = reason !== "(\w+)"/.exec(main) ?? [];
  assert(normal);
  const given = [
    ...main.matchAll(/\breason: ("\w+"|[A-Z_]+)/g),
    ...main.matchAll(/\breason = .*\? ("\w+") : ([A-Z_]+)/g),
  ].flatMap(([, ...literals]) => literals).map((literal) => /"(.*)"/.exec(constant(literal))?.[1]);
  assert(!given.includes(undefined), "each is a literal or a constant");
  const reasons = [...new Set(given)].filter((reason) => reason !== normal).sort();
  assert(reasons.length > 0);
  const explained = BY_EVENT.flatMap(([reason]) => quotesIn(reason));
  assertEquals([...new Set(explained)].sort(), reasons);
  const listed = EVENTS.filter(([type]) => type === "Warning").flatMap(([, reason]) =>
    quotesIn(reason)
  );
  assertEquals(listed.sort(), reasons);
});

test("Each warning in the log has its rows in the README, and each row is of one that there is", () => {
  const warned = [...SOURCE.matchAll(/log\("(?:warn|error)", "([^"]+)"/g)].map(([, msg = ""]) =>
    msg
  );
  assertEquals(
    [...new Set(BY_LOG.flatMap(([msg]) => quotesIn(msg)))].sort(),
    [...new Set(warned)].sort(),
  );
});

test("Each row names a cause and a fix", () => {
  for (const [name, message, cause = "", fix = ""] of rows) {
    assert(cause.length > 2 && fix.length > 2, `${name} ${message}: "${cause}", "${fix}"`);
  }
});
