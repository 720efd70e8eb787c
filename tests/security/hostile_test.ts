/**
 * The real program against an issuer, an API server, tenants and callers that mean it harm. Whatever it tells meanwhile,
 * in logs, events and on standard output, is searched for tokens and control characters when it has ended.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { type Attack, inWorld, LONG_MS, peakMemory, type World } from "./gates.ts";
import { IDENTITY, MIB, PREFIX, SECRET_TYPE } from "../support/names.ts";
import { HOSTILE } from "../support/leaks.ts";
import { uid } from "../support/secrets.ts";
import { until } from "../support/until.ts";

/** What the manifest allows. */
const MAX_MEMORY_MIB = 256;
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
    const isFilled = (index: number) => world.token("pull", `team-${index}`) !== undefined;
    await until(
      () => [...names.keys()].every(isFilled),
      "all are filled once it is well again",
      // As long as its back-off may be.
      2 * LONG_MS,
    );
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

rule(
  "A service account's token that cannot be read is told of, without it; requests fail until it can be read again",
  inWorld(async (world) => {
    const { api, folder } = world;
    const program = await world.start();
    const file = join(folder, "token");
    const token = readFileSync(file);
    rmSync(file);
    api.cutWatches();
    await until(() => program.warnings.some((line) => line.includes(file)), "it is told", LONG_MS);
    writeFileSync(file, token);
    world.bind(uid(1));
    world.create("pull", "team", { [IDENTITY]: uid(1) });
    await until(() => world.token("pull", "team") !== undefined, "a new Secret is filled", LONG_MS);
  }, { secure: true }),
);

const tricks: [what: string, annotations: Record<string, string>, label?: string][] = [
  ["an annotation beside another identity's label", {}, uid(2).replace("/", ".")],
  ["an annotation beside a label that is no UID", {}, "approved"],
  ["an account of another namespace, by a path", {
    [`${PREFIX}service-account`]: "../../victim/serviceaccounts/puller",
  }],
  ["an account of another namespace, by a slash", {
    [`${PREFIX}service-account`]: "victim/puller",
  }],
  ["an account of another namespace, by its subject", {
    [`${PREFIX}service-account`]: "system:serviceaccount:victim:puller",
  }],
  ["an encoded path", {
    [`${PREFIX}service-account`]: "..%2f..%2fvictim%2fserviceaccounts%2fpuller",
  }],
  ["an account of one dot", { [`${PREFIX}service-account`]: "." }],
  ["an account of two dots", { [`${PREFIX}service-account`]: ".." }],
  ["no account", { [`${PREFIX}service-account`]: "" }],
  ["an account in capitals", { [`${PREFIX}service-account`]: "Puller" }],
  ["an account that looks like another", { [`${PREFIX}service-account`]: "pullеr" }],
  ["an account with a query", { [`${PREFIX}service-account`]: "puller?dryRun=All" }],
  ["an identity with a path", { [IDENTITY]: `${uid(1)}/../${uid(2)}` }],
  ["an identity in capitals", { [IDENTITY]: uid(1).replace("abcdef", "ABCDEF") }],
  ["an identity that looks like another", { [IDENTITY]: uid(1).replace("abcdef", "аbcdef") }],
  ["an identity with a second line", { [IDENTITY]: `${uid(1)}\n${uid(2)}` }],
  ["an identity with another parameter", { [IDENTITY]: `${uid(1)}&aud=other` }],
  ["two identities", { [IDENTITY]: `${uid(1)},${uid(2)}` }],
  ["no identity", { [IDENTITY]: "" }],
  ["the name of what every object has", {
    [IDENTITY]: "__proto__",
    [`${PREFIX}service-account`]: "constructor",
  }],
];

rule(
  "No trick in an annotation has anything sent: no exchange, no token request, no write, but one Warning each",
  inWorld(async (world) => {
    const { api, issuer } = world;
    world.bind(uid(1));
    api.createServiceAccount("victim", "puller");
    await world.start();
    for (const [index, [, annotations, label]] of tricks.entries()) {
      const all = { [IDENTITY]: uid(1), ...annotations };
      world.create("pull", `team-${index}`, all, "{}", label);
    }
    await until(() => api.events().length === tricks.length, "each is told", LONG_MS);
    for (const event of api.events() as { reason?: string }[]) {
      assertEquals(event.reason, "InvalidIdentity");
    }
    assertEquals([issuer.requests.length, api.count("patch")], [0, 0]);
    const created = api.requests.filter(({ verb }) => verb === "create").map(({ path }) => path);
    for (const path of created) {
      assertMatch(path, /^\/apis\/events\.k8s\.io\/v1\/namespaces\/team-\d+\/events$/);
    }
  }),
);

rule(
  "A tenant who holds copies and forgeries of tokens gets his own identity's token, and no other Secret changes",
  inWorld(async (world) => {
    const { api, issuer } = world;
    const now = Math.floor(Date.now() / 1000);
    world.bind(uid(1));
    world.bind(uid(2));
    await world.start();
    world.create("pull", "victim", { [IDENTITY]: uid(1) });
    await until(
      () => world.token("pull", "victim") !== undefined,
      "the victim's is filled",
      LONG_MS,
    );
    const stolen = world.token("pull", "victim")!;
    const forged = forge({ sub: uid(2), aud: "cgr.dev", iat: now - 60, exp: now + 30 * 24 * 3600 });
    const secrets = {
      stolen,
      forged,
      other: forge({ sub: uid(2), aud: "other", iat: now, exp: now + 3600 }),
    };
    for (const [name, token] of Object.entries(secrets)) {
      const annotations = { [IDENTITY]: uid(2), [`${PREFIX}token-identity`]: uid(2) };
      world.create(
        name,
        "team",
        annotations,
        JSON.stringify({ auths: { "cgr.dev": { auth: btoa(`_token:${token}`) } } }),
      );
    }
    await until(() => api.count("patch") === 4, "each is written", LONG_MS);
    await until(() => issuer.exchanges.length === 2, "there were two exchanges", LONG_MS);
    const [, { token: own } = {}] = issuer.exchanges;
    for (const name of Object.keys(secrets)) assertEquals(world.token(name, "team"), own, name);
    assertEquals(world.token("pull", "victim"), stolen);
    const text = world.told().join("\n");
    for (const part of forged.split(".").slice(1)) assert(!text.includes(part), part);
  }),
);

function forge(claims: object): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "none" })}.${part(claims)}.${part({ forged: "by nobody in particular" })}`;
}

const hostileConfigs: Record<string, string> = {
  "arrays a hundred thousand deep": `{"auths":{"x":${"[".repeat(100_000)}${"]".repeat(100_000)}}}`,
  "arrays three hundred thousand deep, beside its auths": `{"x":${"[".repeat(300_000)}${
    "]".repeat(300_000)
  }}`,
  "twenty thousand registries": JSON.stringify({
    auths: Object.fromEntries(
      Array.from({ length: 20_000 }, (_, index) => [`r-${index}.example`, { auth: "eDp5" }]),
    ),
  }),
  "prototype keys":
    '{"__proto__":{"auths":1},"auths":{"__proto__":{"auth":"eDp5"},"constructor":{"auth":"eDp5"}},"toString":1}',
  "a token of a megabyte": JSON.stringify({ auths: { "cgr.dev": { auth: "A".repeat(700_000) } } }),
  "a key that stands twice": '{"auths":{"a":{}},"auths":{"b":{"auth":"eDp5"}}}',
};

rule(
  "A docker config of any size, depth and key harms no other Secret, and prototype keys are written back as they were",
  inWorld(async (world) => {
    const { api } = world;
    world.bind(uid(1));
    const program = await world.start();
    const configs = Object.entries(hostileConfigs);
    for (const [index, [, text]] of configs.entries()) {
      world.create("pull", `team-${index}`, { [IDENTITY]: uid(1) }, text);
    }
    world.create("pull", "neighbour", { [IDENTITY]: uid(1) });
    await until(
      () => world.token("pull", "neighbour") !== undefined,
      "the neighbour's is filled",
      LONG_MS,
    );
    const isTold = () =>
      api.events().filter((event) =>
        (event as { reason?: string }).reason === "InvalidDockerConfig"
      );
    await until(() => isTold().length === 2, "those that are too deep are told", LONG_MS);
    const index = configs.findIndex(([what]) => what === "prototype keys");
    await until(
      () => world.token("pull", `team-${index}`) !== undefined,
      "the one with prototype keys is filled",
      LONG_MS,
    );
    const data = api.secret(`team-${index}`, "pull")!.data![".dockerconfigjson"]!;
    const text = Buffer.from(data, "base64").toString();
    assertStringIncludes(
      text,
      '{"__proto__":{"auths":1},"toString":1,"auths":{"__proto__":{"auth":"eDp5"},"constructor":',
    );
    assert(program.isAlive());
  }),
);

/** Asks a probe; what is stuck or killed does not answer. */
async function isWell(world: World): Promise<boolean> {
  const request = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
  return (await send(world, request)).startsWith("HTTP/1.1 200 ");
}

rule(
  "Six hundred Secrets with annotations of 250 KiB cost little memory at a start, and others are filled meanwhile",
  inWorld(async (world) => {
    const text = `€${"x".repeat(249 * 1024)}`;
    for (let index = 0; index < 600; index++) {
      world.create(`large-${index}`, "attacker", { [`${PREFIX}refresh`]: text });
    }
    world.bind(uid(1));
    world.create("pull", "victim", { [IDENTITY]: uid(1) });
    const program = await world.start();
    await until(() => world.token("pull", "victim") !== undefined, "it is filled", LONG_MS);
    assert(await isWell(world));
    const memory = peakMemory(program);
    assert(memory < MAX_MEMORY_MIB, `${memory} MiB`);
  }),
);

rule(
  "Sixteen Secrets with 47,300 labels each cost little memory at a start, and others are filled meanwhile",
  inWorld(async (world) => {
    const labels = Object.fromEntries(
      Array.from({ length: 47_300 }, (_, index) => [`l${index}`, "x"]),
    );
    for (let index = 0; index < 16; index++) {
      const metadata = { namespace: "attacker", name: `bomb-${index}` };
      world.api.createSecret({ metadata: { ...metadata, labels: { ...labels, [IDENTITY]: "" } } });
    }
    world.bind(uid(1));
    for (let index = 0; index < 500; index++) {
      world.create(`pull-${index}`, "victim", { [IDENTITY]: uid(1) });
    }
    const program = await world.start();
    const isFilled = () => world.token("pull-499", "victim") !== undefined;
    await until(isFilled, "they are filled", LONG_MS);
    assert(await isWell(world));
    const memory = peakMemory(program);
    assert(memory < MAX_MEMORY_MIB, `${memory} MiB`);
  }),
);

/** What no API server sends: each value in the place of a map, a string, a truth. */
const oddValues: unknown[] = [
  ...[1, "x", true, null, [], {}, [[]], { length: 1_000_000_000 }, { toString: 1 }],
  ...[{ replaceAll: 1, length: 5 }, { __proto__: null }, "\ud800"],
];

rule(
  "A record whose fields are of odd types harms nothing: no type is decided by a foreign value",
  inWorld(async (world) => {
    const { api } = world;
    const program = await world.start();
    const metadata = { namespace: "odd", uid: "u", resourceVersion: api.resourceVersion };
    const labels = { [IDENTITY]: "" };
    const objectsOf = (odd: unknown): object[] => [
      { metadata: { ...metadata, labels: odd } },
      { metadata: { ...metadata, labels: { [IDENTITY]: odd } } },
      { metadata: { ...metadata, labels, annotations: odd } },
      ...[IDENTITY, `${PREFIX}service-account`, `${PREFIX}refresh`, `${PREFIX}refreshed`].map((
        key,
      ) => ({
        metadata: { ...metadata, labels, annotations: { [IDENTITY]: uid(1), [key]: odd } },
      })),
      ...["type", "immutable", "data"].map((key) => ({
        metadata: { ...metadata, labels, annotations: { [IDENTITY]: uid(1) } },
        type: SECRET_TYPE,
        [key]: odd,
      })),
      {
        metadata: {
          ...metadata,
          labels,
          annotations: { [IDENTITY]: uid(1) },
          deletionTimestamp: odd,
        },
        type: SECRET_TYPE,
        data: { ".dockerconfigjson": odd },
      },
      {
        metadata: { ...metadata, labels, annotations: { [IDENTITY]: uid(1) } },
        type: SECRET_TYPE,
        data: { ".dockerconfigjson": odd },
      },
    ];
    const objects = oddValues.flatMap(objectsOf);
    for (const [index, object] of objects.entries()) {
      const { metadata } = object as { metadata: object };
      api.sendToWatches({
        type: "ADDED",
        object: { ...object, metadata: { ...metadata, name: `odd-${index}` } },
      });
    }
    world.bind(uid(2));
    world.create("pull", "team", { [IDENTITY]: uid(2) });
    await until(() => world.token("pull", "team") !== undefined, "the next is filled", LONG_MS);
    assertEquals(api.openWatches, 1, "the watch goes on");
    assertEquals(api.count("list"), 1);
    assert(await isWell(world));
    assert(program.isAlive());
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
    settings: {
      HTTPS_PROXY: "http://user:pass-word@127.0.0.1:1",
      ISSUER_URL: "https://issuer.invalid",
    },
  }),
);
