/** Properties of the client, the controller and the program as a whole. */
import { assert, assertEquals } from "@std/assert";
import { once } from "node:events";
import { createServer, type OutgoingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import fc from "fast-check";
import { ApiError, KubernetesClient, type Secret } from "../../k8s.ts";
import { RUNTIME, startProgram } from "../support/program.ts";
import { VirtualWorld } from "../virtual/world.ts";
import { anyJson, anySecret, anyText, BOB, damaged } from "./arbitraries.ts";
import { isNamed, type Property, property, UNFIT } from "./properties.ts";
import { CONTROLLER, IDENTITY, SECRET_TYPE } from "../support/names.ts";

// The client

interface Answer {
  status: number;
  headers: OutgoingHttpHeaders;
  body: string | Uint8Array;
}

/** An API server that gives one answer to whatever it is asked. */
function standIn() {
  let answer: Answer;
  const server = createServer((request, response) => {
    request.resume().on(
      "end",
      () => response.writeHead(answer.status, answer.headers).end(answer.body),
    );
  });
  return {
    /** Sets the answer; returns the URL to ask. */
    async give(next: Answer): Promise<string> {
      answer = next;
      if (!server.listening) await once(server.listen(0, "127.0.0.1"), "listening");
      return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    },
    close(): void {
      server.close();
      server.closeAllConnections();
    },
  };
}

const anyAnswer: fc.Arbitrary<Answer> = fc.record({
  status: fc.constantFrom(
    200,
    201,
    204,
    301,
    304,
    400,
    401,
    403,
    404,
    409,
    410,
    422,
    429,
    500,
    503,
  ),
  headers: fc.record({
    "retry-after": fc.constantFrom("1", "-1", "never", "Wed, 21 Oct 2026 07:28:00 GMT"),
    "content-encoding": fc.constantFrom("gzip", "identity"),
    location: fc.constantFrom("/elsewhere", "//other.example/"),
  }, { requiredKeys: [] }),
  body: damaged(
    fc.oneof(
      fc.record({
        items: fc.oneof(fc.array(anySecret, { maxLength: 3 }), anyJson),
        metadata: anyJson,
      }),
      fc.record({
        items: fc.array(anySecret, { maxLength: 3 }),
        metadata: fc.constant({ resourceVersion: "7" }),
      }),
      fc.record({ status: fc.oneof(fc.record({ token: fc.oneof(anyText, anyJson) }), anyJson) }),
      fc.record({
        message: fc.oneof(anyText, anyJson),
        reason: fc.oneof(anyText, anyJson),
        code: anyJson,
      }),
      anySecret,
      anyJson,
    ).map((value) => JSON.stringify(value)),
  ),
});

/** What each request ended with, as text of a kind; throws at an error that is no ApiError. */
async function ask(api: KubernetesClient): Promise<unknown[]> {
  const signal = new AbortController().signal;
  async function listed() {
    const { value } = await api.list("apps", signal).next();
    return value?.items;
  }
  const requests = [
    listed(),
    api.get("apps", "pull", signal),
    api.patch("apps", "pull", {}, signal),
    api.requestToken("apps", "puller", "issuer", 600, signal),
    api.createEvent("apps", {}, signal),
  ];
  return await Promise.all(requests.map((request) =>
    request.catch((error) => {
      if (!(error instanceof ApiError)) throw error;
    })
  ));
}

const isWhole = ({ metadata }: Secret) =>
  [metadata.uid, metadata.resourceVersion].every((field) => typeof field === "string") &&
  isNamed(metadata);

// The controller

const MINUTE_MS = 60_000;
/** Six for one Secret, as the spacing has it; one that is made anew starts afresh. */
const MAX_A_MINUTE = 8;
/** A sample of Prometheus' text format. */
const SAMPLE =
  /^[a-z_]+(\{[a-z]+="([^"\\\n]|\\[\\"n])*"(,[a-z]+="([^"\\\n]|\\[\\"n])*")*\})? [-+\d.e]+$/;

interface Deed {
  afterMs: number;
  as: Secret;
  isDeletion: number;
}

const anyDeed: fc.Arbitrary<Deed> = fc.record({
  afterMs: fc.constantFrom(0, 40, 900, 11_000),
  as: anySecret,
  isDeletion: fc.nat(9),
});

/** What a tenant makes of a Secret of his, one change after the other, while a neighbour's is looked after. */
async function liveThrough(world: VirtualWorld, deeds: Deed[]): Promise<void> {
  const metadata = {
    namespace: "neighbour",
    name: "pull",
    labels: { [IDENTITY]: BOB.replace("/", ".") },
  };
  world.cluster.create({ metadata, type: SECRET_TYPE, data: { ".dockerconfigjson": btoa("{}") } });
  world.start();
  await world.clock.advance(1_000);
  for (const { afterMs, as, isDeletion } of deeds) {
    await world.clock.advance(afterMs);
    const { type, immutable, data, metadata: { labels, annotations } } = as;
    const [key, metadata] = ["team/pull", { namespace: "team", name: "pull", labels, annotations }];
    if (isDeletion === 0 && world.cluster.secrets.has(key)) world.cluster.delete(key);
    if (world.cluster.secrets.has(key)) {
      world.cluster.update(key, { metadata: { labels: null, annotations: null }, data: null });
      world.cluster.update(key, { metadata: { labels, annotations }, data });
    } else {
      world.cluster.create({ metadata, type, immutable, data });
    }
  }
  await world.clock.advance(5 * MINUTE_MS);
}

function assertUnharmed(world: VirtualWorld): void {
  assertEquals(world.broken, []);
  const { requests, events } = world.cluster;
  const own = requests.filter(({ verb, namespace }) =>
    verb === "patch" && namespace === "neighbour"
  );
  assertEquals(own.length, 1, "the neighbour's Secret is filled, once");
  const minutes = new Map<string, number>();
  const deeds = [
    ...requests.filter(({ verb }) => verb === "patch").map(({ at, namespace }) =>
      `patches of ${namespace} ${minute(at)}`
    ),
    ...world.issuer.requests.map(({ at, identity }) => `exchanges for ${identity} ${minute(at)}`),
  ];
  for (const deed of deeds) minutes.set(deed, (minutes.get(deed) ?? 0) + 1);
  for (const [deed, count] of minutes) assert(count <= MAX_A_MINUTE, `${count} ${deed}`);
  for (const { subject } of world.issuer.requests) {
    assert(subject === CONTROLLER || subject.startsWith("system:serviceaccount:team:"), subject);
  }
  for (const { namespace, note } of events) {
    assert(
      ["team", "neighbour"].includes(namespace ?? "team") && !UNFIT.test(note),
      JSON.stringify(note),
    );
  }
  for (const line of world.lines) assert(JSON.parse(line) && !UNFIT.test(line.slice(0, -1)), line);
}

const minute = (at: number) => `in minute ${Math.floor(at / MINUTE_MS)}`;

function assertMetrics(world: VirtualWorld): void {
  for (const line of world.replicas[0]!.renderMetrics().trimEnd().split("\n")) {
    assert(line.startsWith("# ") || SAMPLE.test(line), JSON.stringify(line));
  }
}

// The program

const SECRETS_A_LIST = 100;
/** Of the form that the API server holds names to. */
const anyName = fc.stringMatching(/^[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?$/);
// To make a list smaller would take one process after the other.
const anyList = fc.noShrink(
  fc.array(
    fc.tuple(anySecret, anyName, anyName).map(([secret, namespace, name]) => ({
      ...secret,
      metadata: { ...secret.metadata, namespace, name },
    })),
    { minLength: SECRETS_A_LIST, maxLength: SECRETS_A_LIST },
  ),
);

async function showStatus(api: string, flag: string) {
  // A folder that has none of a service account's files; Node grants only one that is there.
  const settings = { KUBERNETES_API: api, SERVICE_ACCOUNT_DIR: import.meta.dirname! };
  const program = await startProgram(RUNTIME, settings, [flag], { shipped: true });
  return { status: await program.exited, stdout: program.stdout(), stderr: program.warnings };
}

const metricsProperty = {
  ...property(
    "Each sample of the metrics is one line of Prometheus' format, whatever a Secret is called",
    [fc.array(fc.tuple(anyName, anyName), { maxLength: 4 })],
    async (names) => {
      const world = new VirtualWorld();
      const labels = { [IDENTITY]: BOB.replace("/", ".") };
      for (const [namespace, name] of names) {
        world.cluster.create({
          metadata: { namespace, name, labels },
          type: SECRET_TYPE,
          data: { ".dockerconfigjson": btoa("{}") },
        });
      }
      world.start();
      await world.clock.advance(1_000);
      assertMetrics(world);
      world.replicas[0]!.stop();
      await world.clock.advance(0);
    },
  ),
  share: 0.2,
};

function answeringProperty(): Property {
  const server = standIn();
  let client: KubernetesClient | undefined;
  return {
    ...property(
      "Whatever the API server answers, the client gives Secrets or an ApiError",
      [anyAnswer],
      async (answer) => {
        const url = await server.give(answer);
        const onResponse = () => {};
        client ??= new KubernetesClient({
          url,
          labelSelector: IDENTITY,
          userAgent: "fuzz",
          onResponse,
        });
        const [listed, got, patched, token] = await ask(client) as [
          Secret[] | undefined,
          ...(Secret | undefined)[],
        ];
        assertEquals(patched, undefined);
        for (const secret of [...listed ?? [], got]) {
          assert(secret === undefined || isWhole(secret));
        }
        assert(token === undefined || typeof token === "string");
      },
    ),
    share: 0.2,
    close(): void {
      client?.close();
      server.close();
    },
  };
}

function statusProperty(): Property {
  const server = standIn();
  return {
    ...property(
      "--status has one line for each Secret, whatever is in it",
      [anyList],
      async (items) => {
        const body = JSON.stringify({ metadata: { resourceVersion: "1" }, items });
        const url = await server.give({ status: 200, headers: {}, body });
        const [table, json] = [
          await showStatus(url, "--status"),
          await showStatus(url, "--status=json"),
        ];
        assertEquals([table.stderr, json.stderr], [[], []]);
        const lines = table.stdout.trimEnd().split("\n");
        const rows: Record<string, string>[] = JSON.parse(json.stdout);
        assertEquals([lines.length, rows.length], [1 + items.length, items.length]);
        for (const text of [...lines, ...rows.flatMap(Object.values)]) {
          assert(
            !UNFIT.test(text),
            JSON.stringify(text),
          );
        }
        const isWell = rows.every(({ state }) => state === "valid");
        assertEquals([table.status, json.status], isWell ? [0, 0] : [1, 1]);
      },
    ),
    share: 0.001,
    close: server.close,
  };
}

export const WHOLES: Property[] = [
  answeringProperty(),
  statusProperty(),
  metricsProperty,
  {
    share: 0.2,
    ...property(
      "Whatever a tenant does to a Secret, nothing spins or is told of a token, and a neighbour's is looked after",
      [fc.array(anyDeed, { minLength: 1, maxLength: 8 }), fc.nat()],
      async (deeds, seed) => {
        const world = new VirtualWorld(seed);
        await liveThrough(world, deeds);
        assertUnharmed(world);
        assertMetrics(world);
        assertEquals(world.findLeak(), undefined);
        world.replicas[0]!.stop();
        await world.clock.advance(0);
      },
    ),
  },
];
