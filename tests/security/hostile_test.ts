/**
 * The real program against an issuer, an API server, tenants and callers that mean it harm. Whatever it tells meanwhile,
 * in logs, events and on standard output, is searched for tokens and control characters when it has ended.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { type Attack, inWorld, LONG_MS, peakMemory, type World } from "./gates.ts";
import { IDENTITY, MIB, PREFIX } from "../support/names.ts";
import { HOSTILE } from "../support/leaks.ts";
import { isCounted } from "../support/program.ts";
import { uid } from "../support/secrets.ts";
import { until } from "../support/until.ts";

/** What the manifest allows, with its flags for V8; what is counted runs from source, without. */
const MAX_MEMORY_MIB = isCounted ? Infinity : 256;
const TIMEOUT_MS = 5 * LONG_MS;
const runs: (() => Promise<void>)[] = [];

/** All of them run side by side, since most of their time is waiting: the first test starts them. */
function rule(title: string, run: () => Promise<void>): void {
  let outcome: Promise<void> | undefined;
  const start = () => outcome ??= run();
  runs.push(start);
  test(title, { timeout: TIMEOUT_MS }, async () => {
    for (const each of runs) each().catch(() => {});
    await start();
  });
}

const answer = (status: string, headers: string, body: string | Uint8Array = "") =>
  Buffer.concat([
    Buffer.from(`HTTP/1.1 ${status}\r\n${headers}content-length: ${body.length}\r\n\r\n`),
    Buffer.from(body as string),
  ]);
const json = (value: unknown) =>
  answer("200 OK", "content-type: application/json\r\n", JSON.stringify(value));
const say = (what: string | Uint8Array): Attack => (socket) => void socket.write(what);

/** Sends a piece again and again for as long as the other side takes it. */
function drip(socket: Socket, piece: string | Uint8Array, ms: number): void {
  const timer = setInterval(() => {
    // As fast as it is read, and no faster.
    if (socket.writableLength < MIB) socket.write(piece);
  }, ms);
  socket.on("close", () => clearInterval(timer));
}

const after = (head: string, piece: string | Uint8Array, ms: number): Attack => (socket) => {
  socket.write(head);
  drip(socket, piece, ms);
};

const OK_CHUNKED = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const chunk = (size: number) => `${size.toString(16)}\r\n${"x".repeat(size)}\r\n`;
/** Less than a megabyte, which becomes 800. */
const bomb = Buffer.concat(Array(800).fill(gzipSync(Buffer.alloc(MIB))));
const bearerOf = (request: string) => /^authorization: Bearer (\S+)/im.exec(request)?.[1] ?? "";

const issuerAttacks: Record<string, Attack> = {
  "a megabyte of headers": say(answer("200 OK", `x: ${"y".repeat(MIB)}\r\n`, "{}")),
  "headers without end": after("HTTP/1.1 200 OK\r\n", "x: y\r\n", 20),
  "informational answers without end": after("", "HTTP/1.1 100 Continue\r\n\r\n".repeat(50), 5),
  "a body without end": after(OK_CHUNKED, chunk(65_536), 1),
  "a body that drips": after("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", "x", 100),
  "a gzip bomb": say(answer("200 OK", "content-encoding: gzip\r\n", bomb)),
  "two lengths": say(
    "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
  ),
  "a second answer that nobody asked for": say(
    Buffer.concat([answer("500 x", "", "{}"), json({ token: "a.b.c" })]),
  ),
  "what is not HTTP": say("SSH-2.0-x\r\n"),
  "cookies": say(answer("503 x", "set-cookie: stolen=1; path=/\r\n", "{}")),
  "an upgrade": say(
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
  ),
  "a message of escapes": say(
    answer("403 x", "", JSON.stringify({ message: HOSTILE.repeat(10_000) })),
  ),
  "the subject token in its message": (socket, request) =>
    void socket.write(
      answer("401 x", "", JSON.stringify({ message: `no: ${bearerOf(request)} ${HOSTILE}` })),
    ),
  "the subject token as its token": (socket, request) =>
    void socket.write(json({ token: bearerOf(request) })),
  "a token of escapes": say(json({ token: HOSTILE })),
  "a token that is a header of its own": say(json({ token: "a\r\nx-forged: 1" })),
};

rule(
  "An issuer that turns hostile gets one exchange at a time of it, and costs neither memory nor the other identities",
  inWorld(async (world) => {
    const { issuerGate } = world;
    const names = Object.keys(issuerAttacks);
    const program = await world.start();
    issuerGate.choose = (request) => {
      const identity = new URLSearchParams(request.split("\r\n\r\n")[1]).get("identity") ?? "";
      return issuerAttacks[names[parseInt(identity.slice(-4), 16)]!];
    };
    for (const index of [...names.keys(), names.length]) {
      world.bind(uid(index));
      world.create("pull", `team-${index}`, { [IDENTITY]: uid(index) });
    }
    await until(
      () => world.token("pull", `team-${names.length}`) !== undefined,
      "the well-behaved one is filled",
      LONG_MS,
    );
    const failures = () =>
      new Set(
        program.log().filter(({ msg }) => msg === "ExchangeFailed").map((line) => line.namespace),
      );
    await until(() => failures().size === names.length, "each attack has failed", LONG_MS);
    for (const [index, name] of names.entries()) {
      assertEquals(world.token("pull", `team-${index}`), undefined, name);
      const tries = issuerGate.attacked.filter((request) =>
        request.includes(encodeURIComponent(uid(index)))
      ).length;
      assert(tries >= 1 && tries <= 8, `${name}: ${tries} tries`);
    }
    for (const request of issuerGate.attacked) {
      assert(!/^cookie:/im.test(request), "no cookie is sent back");
    }
    issuerGate.choose = () => undefined;
    issuerGate.cut();
    const next = names.length + 1;
    world.bind(uid(next));
    world.create("pull", "next", { [IDENTITY]: uid(next) });
    await until(() => world.token("pull", "next") !== undefined, "the next is filled", LONG_MS);
    const memory = peakMemory(program);
    assert(memory < MAX_MEMORY_MIB, `${memory} MiB`);
  }),
);

const gone = say(answer("410 Gone", "", "{}"));

const apiAttacks: Record<string, Attack> = {
  "a megabyte of headers": say(answer("200 OK", `x: ${"y".repeat(MIB)}\r\n`, "{}")),
  "a body without end": after(OK_CHUNKED, chunk(MIB), 1),
  "informational answers without end": after("", "HTTP/1.1 100 Continue\r\n\r\n".repeat(50), 5),
  "a redirect": say(answer("307 x", "location: http://192.0.2.1/\r\n")),
  "a message of escapes": say(
    answer("500 x", "", JSON.stringify({ message: HOSTILE.repeat(100_000) })),
  ),
  "a wait for a century": say(
    answer("429 x", "retry-after: 1\r\n", JSON.stringify({ message: HOSTILE })),
  ),
  "names of escapes": say(json({
    metadata: { resourceVersion: "1" },
    items: [{
      metadata: {
        namespace: HOSTILE,
        name: HOSTILE,
        uid: "u",
        resourceVersion: "1",
        labels: { [IDENTITY]: "" },
      },
    }],
  })),
};

rule(
  "An API server that turns hostile is asked again ever more slowly, and followed once it is well again",
  inWorld(async (world) => {
    const { api, apiGate } = world;
    world.bind(uid(1));
    const program = await world.start();
    for (const [name, attack] of Object.entries(apiAttacks)) {
      const failuresBefore = countFailures(program);
      apiGate.attacked.length = 0;
      // Without a watch to go on with, it lists.
      apiGate.choose = (request) =>
        request.includes("watch=1") ? gone : request.startsWith("GET ") ? attack : undefined;
      apiGate.cut();
      const isMet = () => countFailures(program) > failuresBefore || apiGate.attacked.length > 4;
      await until(isMet, `${name} is met`, LONG_MS);
      await sleep(700);
      assert(apiGate.attacked.length <= MAX_TRIES, `${name}: ${apiGate.attacked.length} tries`);
      assert(program.isAlive(), name);
    }
    apiGate.choose = () => undefined;
    apiGate.cut();
    world.create("pull", "team", { [IDENTITY]: uid(1) });
    await until(() => world.token("pull", "team") !== undefined, "a new Secret is filled", LONG_MS);
    const memory = peakMemory(program);
    assert(memory < MAX_MEMORY_MIB, `${memory} MiB`);
    assert(api.requests.every(({ path }) => path.startsWith("/api")));
  }),
);

/** A list is tried with ever smaller pages, each of them an attempt. */
const MAX_TRIES = 16;

const countFailures = (program: { lines: string[] }) =>
  program.lines.filter((line) => line.includes('"list or watch failed"')).length;

rule(
  "A watch whose line has no end is given up, and costs no more memory than a list may",
  inWorld(async (world) => {
    const { apiGate } = world;
    const program = await world.start();
    const endless = after(OK_CHUNKED, chunk(MIB), 1);
    apiGate.choose = (request) => request.includes("watch=1") ? endless : undefined;
    apiGate.cut();
    await until(() => apiGate.attacked.length > 1, "it has given the first one up", LONG_MS);
    apiGate.choose = () => undefined;
    apiGate.cut();
    world.bind(uid(1));
    world.create("pull", "team", { [IDENTITY]: uid(1) });
    await until(() => world.token("pull", "team") !== undefined, "a new Secret is filled", LONG_MS);
    const memory = peakMemory(program);
    assert(memory < MAX_MEMORY_MIB, `${memory} MiB`);
  }),
);

/** Asks a probe; what is stuck or killed does not answer. */
async function isWell(world: World): Promise<boolean> {
  const request = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
  return (await send(world, request)).startsWith("HTTP/1.1 200 ");
}

/** A page of a list, of parts that are ready: a stand-in would make 60 MB anew for each that is asked for. */
function listing(items: (string | Buffer)[][], resourceVersion: string, asked: URLSearchParams) {
  const first = Number(asked.get("continue") ?? 0);
  const next = first + Number(asked.get("limit"));
  const metadata = { resourceVersion, continue: next < items.length ? `${next}` : "" };
  const page = items.slice(first, next).flatMap((item, index) =>
    index === 0 ? item : [",", ...item]
  );
  const parts = [`{"metadata":${JSON.stringify(metadata)},"items":[`, ...page, "]}"];
  const length = parts.reduce((sum, part) => sum + Buffer.byteLength(part), 0);
  return (socket: Socket) => {
    const type = "content-type: application/json";
    socket.write(`HTTP/1.1 200 OK\r\n${type}\r\ncontent-length: ${length}\r\n\r\n`);
    for (const part of parts) socket.write(part);
  };
}

rule(
  "Six hundred Secrets with annotations of 250 KiB and sixteen with 47,300 labels cost little memory at a start, and others are filled meanwhile",
  inWorld(async (world) => {
    const { api, apiGate } = world;
    world.bind(uid(1));
    for (let index = 0; index < 500; index++) {
      world.create(`pull-${index}`, "victim", { [IDENTITY]: uid(1) });
    }
    const metadata = { namespace: "attacker", uid: "u", resourceVersion: "1" };
    const [before = "", after = ""] = JSON.stringify({
      metadata: {
        ...metadata,
        name: "large-NUMBER",
        labels: { [IDENTITY]: "" },
        annotations: { [`${PREFIX}refresh`]: "TEXT" },
      },
    }).split("TEXT");
    const text = Buffer.from(`€${"x".repeat(249 * 1024)}`);
    const bombs = Array.from({ length: 47_300 }, (_, index) => [`l${index}`, "x"]);
    const labels = { ...Object.fromEntries(bombs), [IDENTITY]: "" };
    const items: (string | Buffer)[][] = [
      ...Array.from(
        { length: 600 },
        (_, index) => [before.replace("NUMBER", `${index}`), text, after],
      ),
      ...Array.from({ length: 16 }, (_, index) => [
        JSON.stringify({ metadata: { ...metadata, name: `bomb-${index}`, labels } }),
      ]),
      ...api.secrets("victim").map((secret) => [JSON.stringify(secret)]),
    ];
    apiGate.choose = (request) => {
      const [, query] = /^GET \S+\?(\S+)/.exec(request) ?? [];
      const asked = new URLSearchParams(query);
      return asked.has("limit") ? listing(items, api.resourceVersion, asked) : undefined;
    };
    const program = await world.start();
    const isFilled = () => world.token("pull-499", "victim") !== undefined;
    await until(isFilled, "they are filled", LONG_MS);
    assert(await isWell(world));
    const memory = peakMemory(program);
    assert(memory < MAX_MEMORY_MIB, `${memory} MiB`);
  }),
);

rule(
  "Callers of the probes and metrics cannot make it write, fail or say more, whatever they send",
  inWorld(async (world) => {
    const program = await world.start();
    world.bind(uid(1));
    world.create("pull", "team", { [IDENTITY]: uid(1) });
    await until(
      () => program.lines.some((line) => line.includes("token written")),
      "the Secret is filled",
      LONG_MS,
    );
    const requests: [request: string, answer: RegExp][] = [
      [
        "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        /^HTTP\/1.1 200 [^]*secrets\{state="valid"\} 1/,
      ],
      ["GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", /^HTTP\/1.1 200 /],
      [
        "GET /healthz?\u001b[31m&x=%00 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        /^HTTP\/1.1 [24]00 /,
      ],
      ["GET /../metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", /^HTTP\/1.1 404 /],
      ["GET //metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", /^HTTP\/1.1 404 /],
      ["GET http://192.0.2.1/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", /^HTTP\/1.1 404 /],
      ["GET /__proto__ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", /^HTTP\/1.1 404 /],
      ["GET /\u001b[31m HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", /^HTTP\/1.1 40[04] /],
      [
        `GET /${"x".repeat(100_000)} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`,
        /^(HTTP\/1.1 4|$)/,
      ],
      ["what is not HTTP\r\n\r\n", /^HTTP\/1.1 404 /],
      [
        "CONNECT 192.0.2.1:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        /^(?!HTTP\/1.1 200)/,
      ],
    ];
    for (const [request, expected] of requests) {
      assertMatch(await send(world, request), expected, request.slice(0, 50));
    }
    const linesBefore = program.lines.length;
    assertMatch(
      await send(
        world,
        "POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
      ),
      /^HTTP\/1.1 \d/,
    );
    assertEquals(program.lines.length, linesBefore);
    assert(program.isAlive());
  }),
);

/** What the program answers to a request as it is, until its end or that of the connection. */
async function send({ port }: World, request: string): Promise<string> {
  const socket = connect(Number(port), "127.0.0.1");
  let text = "";
  socket.on("data", (data) => {
    text += data;
    const [head = "", ...body] = text.split("\r\n\r\n");
    const [, length = "Infinity"] = /^content-length: (\d+)/im.exec(head) ?? [];
    if (Buffer.byteLength(body.join("\r\n\r\n")) >= Number(length)) socket.destroy();
  }).on("error", () => {});
  socket.write(request);
  await Promise.race([
    once(socket, "close").catch(() => {}),
    sleep(LONG_MS / 10, undefined, { ref: false }),
  ]);
  socket.destroy();
  return text;
}

rule(
  "The password of a proxy is in nothing that it tells when the proxy fails",
  inWorld(async (world) => {
    const program = await world.start();
    world.create("pull", "team", { [IDENTITY]: uid(1) });
    await until(() => world.api.events().length > 0, "the failure is told", LONG_MS);
    const text = world.told().join("\n");
    assertStringIncludes(text, "ExchangeFailed");
    for (const form of ["pass-word", "cGFzcy13b3Jk", btoa("user:pass-word")]) {
      assert(!text.includes(form), form);
    }
    assert(
      !(await send(world, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
        .includes("pass-word"),
    );
    assert(program.isAlive());
  }, {
    HTTPS_PROXY: "http://user:pass-word@127.0.0.1:1",
    ISSUER_URL: "https://issuer.invalid",
  }),
);
