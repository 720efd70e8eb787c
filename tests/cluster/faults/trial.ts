/** One program under test, with namespaces, an issuer and ways to both servers of its own. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import type { JSONWebKeySet } from "jose";
import type { Agent } from "undici";
import type { Cluster } from "../cluster.ts";
import { ISSUER as CLUSTER_ISSUER } from "../components.ts";
import { type Program, type Runtime, startProgram } from "../../support/program.ts";
import { makeAuthority } from "../../fake/certificates.ts";
import { startIssuer } from "../../fake/issuer.ts";
import { mountAccount } from "../account.ts";
import type { Admin } from "../admin.ts";
import type { Network } from "./network.ts";
import { createNamespace, createTenant, identityOf, secretOf, TENANT } from "../objects.ts";
import { watchProgram, watchSecrets } from "./observe.ts";
import { startProxy } from "./api_proxy.ts";
import { startWire } from "./wire.ts";
import { ACCOUNT, SERVICE_ACCOUNT } from "../../support/names.ts";
import { findPort } from "../../support/ports.ts";

/** Seconds that tokens live: longer than the first tries after a failure take, and short enough to see many. */
export const LIFE_S = 15;
const SECRETS_OF_NAMESPACE = 10;
/** The servers' names, for programs in the network namespace: the one that is in each API server's certificate. */
const API_NAME = "kubernetes.default.svc";
const ISSUER_NAME = "issuer.test";

/** What all trials share. */
export interface Ground {
  cluster: Cluster;
  admin: Admin;
  /** Public keys of the cluster's service-account tokens. */
  keys: JSONWebKeySet;
  /** The proxies' connections to the API server. */
  upstream: Agent;
  network: Network;
  /** A folder for files. */
  work: string;
}

export interface Conditions {
  /** The program reaches the API server itself, without the proxy. */
  isDirect?: boolean;
  /** The program runs in the network namespace, and knows both servers by their names. */
  isApart?: boolean;
  /** Seconds that tokens live, where {@linkcode LIFE_S} are too few. */
  lifeS?: number;
  /** It is told to look after one more namespace, which there is not: the API server answers 403. */
  hasGone?: boolean;
  /** Each watch is cut after so many seconds. */
  cutsWatchesS?: number;
}

export type Trial = Awaited<ReturnType<typeof startTrial>>;

export async function startTrial(
  ground: Ground,
  name: string,
  runtime: Runtime,
  conditions: Conditions,
) {
  const run = `${name}-${runtime}`;
  const tenants = await createTenants(ground.admin, run);
  const ways = await openWays(ground, conditions);
  for (const { identity, namespace, account } of tenants.bindings) {
    ways.issuer.bind(identity, CLUSTER_ISSUER, namespace, account);
  }
  const files = await writeFiles(ground, run, tenants.home, ways, conditions);
  const port = await findPort();
  const settings = {
    ...files.settings,
    KUBERNETES_API: ways.apiUrl,
    ISSUER_URL: ways.issuerUrl,
    WATCH_NAMESPACES: [...tenants.namespaces, ...conditions.hasGone ? [`${run}-gone`] : []].join(),
    PORT: `${port}`,
  };
  const through = conditions.isApart ? ground.network.enter(files.hosts) : [];
  const program: Program = await startProgram(runtime, settings, [], {
    shipped: true,
    through,
  });
  const watchers = [
    watchSecrets(ground.admin, run, tenants.identities),
    watchProgram(conditions.isApart ? ground.network.there : "127.0.0.1", port),
  ] as const;

  return {
    ...tenants,
    ...ways,
    ...files,
    ground,
    runtime,
    program,
    looks: watchers[0].looks,
    samples: watchers[1].samples,
    /** Ends the program; returns its exit status. */
    async end(): Promise<number | string> {
      await Promise.all(watchers.map(({ stop }) => stop()));
      program.kill("SIGTERM");
      const status = await program.exited;
      await Promise.all([ways.apiWire.refuse(), ways.issuerWire.refuse()]);
      await Promise.all([ways.proxy.close(), ways.issuer.close()]);
      rmSync(files.dir, { recursive: true });
      return status;
    },
  };
}

/** Two namespaces with their Secrets: most share two identities, one has its own, one an account of its namespace. */
async function createTenants(admin: Admin, run: string) {
  const [home, namespace, other] = [run, `${run}-a`, `${run}-b`];
  const [first, second, own, tenant] = ["first", "second", "own", "tenant"].map((name) =>
    identityOf(`${run} ${name}`)
  );
  const identities = new Map<string, string>();

  async function addSecret(
    namespace: string,
    name: string,
    identity: string,
    annotations = {},
  ): Promise<string> {
    const secret = secretOf(run, namespace, name, identity, annotations);
    identities.set(`${namespace}/${name}`, identity);
    await admin.create(`/api/v1/namespaces/${namespace}/secrets`, secret);
    return `${namespace}/${name}`;
  }
  await createNamespace(admin, home, ACCOUNT);
  for (const tenancy of [namespace, other]) {
    await createTenant(admin, tenancy, home);
    for (let index = 1; index < SECRETS_OF_NAMESPACE; index++) {
      await addSecret(tenancy, `s${index}`, index % 2 === 0 ? first! : second!);
    }
  }
  const loner = await addSecret(namespace, "loner", own!);
  await addSecret(other, "tenant", tenant!, { [SERVICE_ACCOUNT]: TENANT });

  return {
    run,
    /** The program's own namespace. */
    home,
    /** The others. */
    namespaces: [namespace, other],
    /** By Secret, as "namespace/name". */
    identities,
    /** A Secret that shares its identity with others. */
    victim: `${namespace}/s1`,
    /** The one Secret of its identity. */
    loner,
    ownIdentity: own!,
    bindings: [
      ...[first!, second!, own!].map((identity) => ({
        identity,
        namespace: home,
        account: ACCOUNT,
      })),
      { identity: tenant!, namespace: other, account: TENANT },
    ],
    /** Adds one more, of an identity that others have. */
    addSecret: (name: string) => addSecret(other, name, first!),
  };
}

/** Program → wire → proxy → API server, and program → wire → issuer. */
async function openWays(
  { cluster, keys, upstream, network }: Ground,
  { isDirect, isApart, lifeS, cutsWatchesS }: Conditions,
) {
  const address = isApart ? network.here : "127.0.0.1";
  const [apiName, issuerName] = isApart ? [API_NAME, ISSUER_NAME] : [address, address];
  const authority = makeAuthority();
  const certificate = authority.issue([apiName, issuerName]);
  const proxy = await startProxy({
    certificate,
    url: cluster.server,
    upstream,
    ...cutsWatchesS && { cutWatchesMs: cutsWatchesS * 1000 },
  });
  const issuer = await startIssuer({
    certificate,
    keys,
    life: lifeS ?? LIFE_S,
    issuer: `https://${issuerName}`,
  });
  const portOf = (url: string) => Number(new URL(url).port);
  const apiWire = await startWire(address, portOf(isDirect ? cluster.server : proxy.url));
  const issuerWire = await startWire(address, portOf(issuer.url));
  return {
    authority,
    certificate,
    proxy,
    issuer,
    apiWire,
    issuerWire,
    apiUrl: `https://${apiName}:${apiWire.port}`,
    issuerUrl: `https://${issuerName}:${issuerWire.port}`,
  };
}

async function writeFiles(
  { admin, network, work }: Ground,
  run: string,
  home: string,
  { authority, issuer }: Awaited<ReturnType<typeof openWays>>,
  { isDirect }: Conditions,
) {
  const account = await mountAccount(admin, {
    dir: join(work, run),
    namespace: home,
    account: ACCOUNT,
    audiences: [issuer.audience],
    readCa: isDirect ? admin.readCa : () => authority.certificate,
  });
  const nameHosts = (...names: string[]) =>
    account.write("hosts", `127.0.0.1 localhost\n${network.here} ${names.join(" ")}\n`);
  return {
    ...account,
    hosts: nameHosts(API_NAME, ISSUER_NAME),
    forgetIssuer: () => nameHosts(API_NAME),
    nameIssuer: () => nameHosts(API_NAME, ISSUER_NAME),
    settings: {
      ...account.settings,
      NODE_EXTRA_CA_CERTS: account.write("issuer-ca.crt", authority.certificate),
    },
  };
}
