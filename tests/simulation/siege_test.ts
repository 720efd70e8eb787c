/** Tenants that want to harm others reach nobody, and broken variants of the product would be noticed. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import process from "node:process";
import { test } from "node:test";
import v8 from "node:v8";
import vm from "node:vm";
import type { Secret } from "../../k8s.ts";
import { parseSecret } from "../../main.ts";
import { VirtualWorld } from "../virtual/world.ts";
import { ATTACKS, besiege, everything } from "./siege.ts";
import { Breach } from "./invariants.ts";
import { encode } from "./judge.ts";
import { withVariant } from "./scratch.ts";
import { OPEN_VARIANTS } from "./variants.ts";
import { DATA_KEY, IDENTITY, MIB, PREFIX, SERVICE_ACCOUNT } from "../support/names.ts";

/** What an attack comes to. */
type Siege = Pick<typeof import("./siege.ts"), "ATTACKS" | "besiege">;
async function outcomeOf({ ATTACKS, besiege }: Siege, attack: string): Promise<string> {
  try {
    await besiege(ATTACKS[attack]!);
    return "nothing";
  } catch (error) {
    return (error as Error).message;
  }
}

for (const name of Object.keys(ATTACKS)) {
  test(`tenants who ${name} reach nobody else`, async () => {
    assertEquals(await outcomeOf({ ATTACKS, besiege }, name), "nothing");
  });
}

for (const seed of [1, 7, 11]) {
  test(`tenants who do all of it by turns reach nobody else: seed ${seed}`, async () => {
    await besiege(everything(seed)).catch((error) => assert(!(error instanceof Breach), error));
  });
}

for (const { attack, breaks, ...variant } of OPEN_VARIANTS) {
  test(`the siege of those who ${attack} finds it when ${variant.name}`, async () => {
    await withVariant({ breaks, ...variant }, async (folder) => {
      const siege = await import(`file://${folder}/tests/simulation/siege.ts`);
      assertMatch(await outcomeOf(siege, attack), breaks);
    });
  });
}

/** What the heap has in MiB, once all is dropped that nobody keeps. */
function heapMiB(): number {
  v8.setFlagsFromString("--expose-gc");
  vm.runInNewContext("gc")();
  return process.memoryUsage().heapUsed / MIB;
}

const SECRETS = 600;
const HUGE = 250 * 1024;

/** A Secret that is full of text, which is another one each time that it comes over the wire. */
function fill(secret: Secret): Secret {
  const text = () => "€".repeat(HUGE / 4) + Math.random();
  const names = ["refresh", "refreshed", "service-account", "token-identity", "token-expires"];
  return {
    ...secret,
    type: text(),
    metadata: {
      ...secret.metadata,
      labels: { [IDENTITY]: text() },
      annotations: Object.fromEntries(names.map((name) => [`${PREFIX}${name}`, text()])),
    },
  };
}

test("of what a tenant writes no more is kept than is valid: memory stays as it is", async () => {
  const world = new VirtualWorld();
  const { clock, cluster } = world;
  for (let number = 0; number < SECRETS; number++) {
    const metadata = { namespace: "aaa", name: `secret-${number}`, labels: { [IDENTITY]: "" } };
    cluster.create({ metadata, type: "Opaque", data: { [DATA_KEY]: encode("{}") } });
  }
  const before = heapMiB();
  cluster.onWire = fill;
  cluster.pageSize = 4;
  world.start();
  await clock.advance(10 * 60_000);
  world.lines.length = cluster.events.length = 0;
  const grown = heapMiB() - before;
  assert(grown < SECRETS / 100, `${grown} MiB for ${SECRETS} Secrets`);
});

test("a docker config is kept only if it holds nothing but our entries, and only the last", () => {
  const registries = ["cgr.dev"];
  const parse = (...hosts: string[]) => {
    const auths = Object.fromEntries(hosts.map((host) => [host, { auth: "A".repeat(12 * MIB) }]));
    const metadata = { namespace: "aaa", name: "a", uid: "1", resourceVersion: "1" };
    const secret = { metadata, data: { [DATA_KEY]: encode(JSON.stringify({ auths })) } };
    const options = { audience: "cgr.dev", registries, ownNamespace: "own" };
    parseSecret(JSON.parse(JSON.stringify(secret)), options, 0);
    assert(/a/.test("a")); // The runtime keeps the text that matched last.
  };
  const heapAfter = (...hosts: string[]) => {
    parse(...hosts);
    return heapMiB();
  };
  const none = heapAfter();
  const other = heapAfter("cgr.dev", "docker.io");
  const ours = heapAfter("cgr.dev");
  const again = heapAfter("cgr.dev");
  const figures = [none, other, ours, again].join();
  // One has 16 MiB; the garbage of the tests before may go meanwhile.
  assert(other - none < 8 && ours - other > 8 && again - ours < 8, `${figures} MiB`);
});

test("nothing is kept of Secrets that come and go: memory stays as it is", async () => {
  const world = new VirtualWorld();
  const { clock, cluster, issuer } = world;
  issuer.life = 300_000;
  world.start();
  let number = 0;
  const churn = async (minutes: number) => {
    for (let second = 0; second < minutes * 60; second++) {
      for (let write = 0; write < 15; write++) {
        const metadata = {
          namespace: `aaa-${number % 2}`,
          name: `secret-${number}`,
          labels: { [IDENTITY]: `${number}`.padStart(40, "0") },
          annotations: { [SERVICE_ACCOUNT]: number % 3 ? "puller" : "../x" },
        };
        cluster.create({
          metadata,
          type: "kubernetes.io/dockerconfigjson",
          data: { [DATA_KEY]: encode("{}") },
        });
        const gone = `aaa-${(number - 60) % 2}/secret-${number - 60}`;
        if (cluster.secrets.has(gone)) cluster.delete(gone);
        number++;
      }
      await clock.advance(1000);
      cluster.compact(cluster.version);
      world.secrets.clear();
      for (const list of [cluster.requests, cluster.events, issuer.requests]) list.length = 0;
      world.lines.length = 0;
    }
    return heapMiB();
  };
  const [first, last] = [await churn(4), await churn(6)];
  assert(last - first < 5, `${first} MiB after 4 min, ${last} MiB after 10 min`);
});
