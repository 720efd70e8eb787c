/** Holds docs/troubleshooting.md and what the program can report of failures together. */
import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ConfigError, readConfig } from "../../main.ts";
import { itemsIn, itemsUnder, proseOf } from "../support/markdown.ts";
import { ROOT } from "../support/paths.ts";

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const PAGE = proseOf(read("docs/troubleshooting.md"));
const SOURCE = ["main.ts", "k8s.ts", "sts.ts"].map(read).join("\n");

/** What a heading quotes, and the section and the reason or log message that it is under. */
interface Entry {
  section: string;
  /** The `###` that it is under, or is. */
  name: string;
  /** A message as the program prints it; none for a reason that needs no message. */
  message: string;
  items: string[];
}

/** The headings of the page. Those that follow each other share what is below the last. */
function entriesOf(page: string): Entry[] {
  let [section, name] = ["", ""];
  const waiting: Entry[] = [];
  return page.split(/^(?=#{1,4} )/m).flatMap((part) => {
    const [, marks = "", heading = "", body = ""] = /^(#+) (.*)\n([^]*)$/.exec(part) ?? [];
    const [, quote = ""] = /^`([^`]+)`/.exec(heading) ?? [];
    if (marks.length < 3) [section, name] = [heading, ""];
    if (marks.length === 3) name = quote;
    if (quote === "") return [];
    const entry = { section, name, message: marks.length === 4 ? quote : "", items: itemsIn(body) };
    waiting.push(entry);
    if (entry.message === "" || entry.items.length > 0) {
      for (const each of waiting.splice(0)) each.items = entry.items;
    }
    return [entry];
  });
}

const entries = entriesOf(PAGE);
const messages = entries.filter(({ message }) => message !== "");
const namesIn = (section: string) =>
  [...new Set(entries.filter((entry) => entry.section === section).map(({ name }) => name))].sort();

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

/**
 * Whether a heading is of this message: either may be the more general, as the page abbreviates and gives examples. The
 * program puts some messages into others: "the issuer gave an unusable token: it lives …".
 */
function isOf(message: string, heading: string): boolean {
  const shown = message.startsWith("…: ")
    ? heading.replace(/^(list|watch|get|patch|create): /, "…: ")
    : heading;
  const general = shown.replace(/\b\d{3}\b/g, "…");
  const withoutCommand = message.replace(/kubectl .*$/, "…");
  return patternOf(general).test(message) || patternOf(withoutCommand).test(heading) ||
    heading.replace(/; .*$/, "").endsWith(message);
}

const patternOf = (text: string) =>
  new RegExp(`^${text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll("…", ".*")}`);

const failed = messages.filter(({ section }) => section !== "On stderr");
const failures = failuresOf(SOURCE);

test("The failures are found in the source", () => {
  for (
    const message of [
      "no response from the issuer at ISSUER_URL=…: …",
      ".dockerconfigjson …; if nothing in it is needed: kubectl patch … " +
      `-p '{"stringData":{".dockerconfigjson":"{}"}}'`,
      "is not UTF-8 text",
      "a request is still running, a minute after its abort",
      "it lives longer than a day",
      "watch: a record is of no known type",
    ]
  ) {
    assert(failures.includes(message), `${message}: not among ${failures.length}`);
  }
});

const isExplained = (failure: string) => failed.some(({ message }) => isOf(failure, message));

test("Each failure that the program can report has a heading in Troubleshooting", () => {
  assertEquals(failures.filter((failure) => !isExplained(failure)), []);
});

test("Each message that Troubleshooting explains is one that the program can report", () => {
  const stale = failed.map(({ message }) => message).filter((message) =>
    WORDS.test(message) && !SYSTEM.test(message) &&
    !failures.some((failure) => isOf(failure, message))
  );
  assertEquals(stale, []);
});

/** What is said of each variable that has no value, or one that it cannot have, by running what reads them. */
function configErrors(): string[] {
  const pod = { KUBERNETES_SERVICE_HOST: "10.0.0.1", KUBERNETES_SERVICE_PORT: "443" };
  const quoted = new Set(SOURCE.match(/(?<=")[A-Za-z]+(_[A-Za-z]+)*(?=")/g));
  return [...quoted].flatMap((name) => ["", "b@d ://\u0001"].map((value) => ({ name, value })))
    .flatMap(({ name, value }) => {
      try {
        readConfig({ ...pod, [name]: value });
        return [];
      } catch (error) {
        assert(error instanceof ConfigError, `${name}: ${error}`);
        return [error.message];
      }
    });
}

/** What else the source prints on stderr: of flags, and of a port that is taken. */
const printed = [
  ...SOURCE.matchAll(/(?:new ConfigError|console\.error)\(\s*(?:clean\()?`([^`]+)`/g),
]
  .map(([, text = ""]) => text.replace(/\$\{[^}]*\}/g, "…"))
  .filter((text) => WORDS.test(text) && !text.startsWith('…="…"'));

test("What stderr says of each variable and flag has a heading, and each heading is of one of these", () => {
  const general = (text: string) => text.replace(/="[^"]*"/, '="…"');
  const said = configErrors();
  assert(said.length > 8 && printed.length > 1, "they are found");
  const all = [...said, ...printed].map(general);
  const headings = messages.filter(({ section, message }) =>
    section === "On stderr" && WORDS.test(message)
  ).map(({ message }) => general(message));
  const isIts = (text: string, heading: string) => patternOf(heading).test(text);
  assertEquals(all.filter((text) => !headings.some((heading) => isIts(text, heading))), []);
  assertEquals(headings.filter((heading) => !all.some((text) => isIts(text, heading))), []);
});

test("Each reason of an event has its heading, and each heading is of a reason that there is", () => {
  const main = read("main.ts");
  const [, normal] = /\bisWarning = reason !== "(\w+)"/.exec(main) ?? [];
  assert(normal);
  const given = [
    ...main.matchAll(/\breason: ("\w+"|[A-Z_]+)/g),
    ...main.matchAll(/\breason = .*\? ("\w+") : ([A-Z_]+)/g),
  ].flatMap(([, ...literals]) => literals).map((literal) => /"(.*)"/.exec(constant(literal))?.[1]);
  assert(!given.includes(undefined), "each is a literal or a constant");
  const reasons = [...new Set(given)].sort();
  assert(reasons.length > 1 && reasons.includes(normal));
  assertEquals(namesIn("Events").filter(Boolean), reasons);
  const listed = itemsUnder(read("docs/monitoring.md"), "## Events").map((item) =>
    /^(\w+), `(\w+)`: /.exec(item)?.slice(1)
  );
  assertEquals(
    listed.map((row) => `${row}`).sort(),
    reasons.map((reason) => `${reason === normal ? "Normal" : "Warning"},${reason}`).sort(),
  );
});

test("Each warning in the log has its heading, and each heading is of one that there is", () => {
  const warned = [...SOURCE.matchAll(/log\("(?:warn|error)", "([^"]+)"/g)].map(([, msg = ""]) =>
    msg
  );
  assertEquals(namesIn("Log messages").filter(Boolean), [...new Set(warned)].sort());
});

test("Each message has a cause and a fix, of 118 characters at most", () => {
  for (const { message, items } of messages) {
    assertEquals(items.map((item) => item.split(":")[0]), ["Cause", "Fix"], message);
    for (const item of items) assert(item.length <= 118, `${message}: ${item.length}: ${item}`);
  }
});
