/** What breaks a soak, and how that is told. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { test } from "node:test";
import {
  API_SERVER,
  type Figures,
  findBroken,
  mean,
  type Minute,
  type Usage,
} from "./requirements.ts";

const usage: Usage = { rssAnonMB: 40, rssMB: 80, files: 30, sockets: 20 };
const minute: Minute = {
  minute: 1,
  looks: 60,
  unanswered: 0,
  machine: "",
};

function figures(changes: Partial<Figures> = {}): Figures {
  const steady = [{ name: "node", minutes: 10, first: usage, last: usage }];
  return {
    minutes: [minute],
    kills: 1,
    exchanges: 1,
    patches: {},
    expired: [],
    unfilled: [],
    steady,
    warnings: {},
    isTokenLogged: false,
    ...changes,
  };
}

test("a run in which all is well has nothing broken", () => {
  assertEquals(findBroken(figures()), []);
});

const grown = (
  last: Partial<Usage>,
) => [{ name: "node", minutes: 10, first: usage, last: { ...usage, ...last } }];
const broken: [title: string, changes: Partial<Figures>, says: string][] = [
  ["one expired token", { expired: ["a/b"] }, "expired token"],
  ["a Secret without a token", { unfilled: ["a/b"] }, "no token of its identity"],
  ["a minute without a look", { minutes: [minute, { ...minute, looks: 0 }] }, "0 looks"],
  ["memory that grew", { steady: grown({ rssAnonMB: 60 }) }, "40.0 MB grew to 60.0"],
  ["open files that grew", { steady: grown({ files: 60 }) }, "30 open files grew to 60"],
  ["a token in a log", { isTokenLogged: true }, "in a log"],
];
for (const [title, changes, says] of broken) {
  test(`${title} breaks a run`, () => {
    const found = findBroken(figures(changes));
    assertEquals(found.length, 1);
    assertStringIncludes(found[0]!, says);
  });
}

test("more memory of the API server breaks nothing, more connections do", () => {
  const [grownServer] = grown({ rssAnonMB: 60 });
  assertEquals(findBroken(figures({ steady: [{ ...grownServer!, name: API_SERVER }] })), []);
  const [leaking] = grown({ files: 60 });
  assertEquals(findBroken(figures({ steady: [{ ...leaking!, name: API_SERVER }] })).length, 1);
});

test("a mean is of each figure by itself", () => {
  assertEquals(mean([usage, { rssAnonMB: 60, rssMB: 100, files: 32, sockets: 22 }]), {
    rssAnonMB: 50,
    rssMB: 90,
    files: 31,
    sockets: 21,
  });
});
