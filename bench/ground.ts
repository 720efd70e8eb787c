/** What all that is measured stands on: a real control plane, an issuer, a service account and its files. */
import { join } from "node:path";
import { type Cluster, down, up } from "../tests/cluster/cluster.ts";
import { ISSUER as CLUSTER_ISSUER } from "../tests/cluster/components.ts";
import { type Account, mountAccount } from "../tests/cluster/account.ts";
import { type Admin, createAdmin } from "../tests/cluster/admin.ts";
import { createNamespace, grantCluster, identityOf } from "../tests/cluster/objects.ts";
import { makeAuthority } from "../tests/fake/certificates.ts";
import { type Issuer, startIssuer } from "../tests/fake/issuer.ts";
import { ACCOUNT, NAMESPACE } from "../tests/support/names.ts";

/** Of the Secrets: as many tenants as make no single namespace's limit the bound. */
const NAMESPACES = 50;
/** As many as any row takes. */
const IDENTITIES = 500;
/** The peer knows the issuer by this name only, at the port of https. */
export const ISSUER_HOST = "issuer.enforce.dev";
/** A loopback address of its own, so that port 443 of others stays free. */
const PEER_ISSUER_ADDRESS = "127.18.94.3";
/** Room for 100 MB of other Secrets and the history of 50,000 written over and over. */
const ETCD_QUOTA_MB = 8192;
/** Registry tokens, where a row does not say otherwise. */
export const LIFE_S = 3600;

export interface Ground {
  cluster: Cluster;
  admin: Admin;
  issuer: Issuer;
  /** The service account that all have. */
  account: Account;
  /** The issuer's CA. */
  issuerCaFile: string;
  kubeconfig: string;
  /** A folder for files; it ends with the cluster. */
  work: string;
  say: (line: string) => void;
}

interface GroundOptions {
  dir: string;
  port: number;
  /** The peer is measured too, which takes port 443 of a loopback address, and root. */
  withPeer: boolean;
  say: (line: string) => void;
}

export async function prepare({ dir, port, withPeer, say }: GroundOptions): Promise<Ground> {
  await down({ dir }); // what a run that was killed has left
  const cluster = await up({ dir, port, etcdQuotaMB: ETCD_QUOTA_MB }, say);
  const admin = createAdmin(cluster);
  const authority = makeAuthority();
  const host = withPeer ? PEER_ISSUER_ADDRESS : "127.0.0.1";
  const issuer = await startIssuer({
    host,
    port: withPeer ? 443 : 0,
    certificate: authority.issue([host, ISSUER_HOST]),
    keys: await admin.get("/openid/v1/jwks"),
    life: LIFE_S,
    issuer: `https://${ISSUER_HOST}`,
  });
  await createObjects(admin);
  if (withPeer) await createPeerSettings(admin);
  for (let index = 0; index < IDENTITIES; index++) {
    issuer.bind(identityOf(`bench ${index}`), CLUSTER_ISSUER, NAMESPACE, ACCOUNT);
  }
  const work = join(dir, "bench");
  // The name that the peer knows, and the address that the others are given.
  const audiences = [ISSUER_HOST, new URL(issuer.url).hostname];
  const account = await mountAccount(admin, {
    dir: work,
    namespace: NAMESPACE,
    account: ACCOUNT,
    audiences,
  });
  return {
    cluster,
    admin,
    issuer,
    account,
    issuerCaFile: account.write("issuer-ca.crt", authority.certificate),
    kubeconfig: join(work, "kubeconfig"),
    work,
    say,
  };
}

export async function end({ cluster, admin, issuer, say }: Ground): Promise<void> {
  await issuer.close();
  await admin.close();
  await down({ dir: cluster.options.dir }, say);
}

/** What the kubelet does in a Pod; they live two hours, and a whole bench may take longer. */
export async function giveTokens({ cluster, account }: Ground): Promise<void> {
  await account.giveSubjectToken();
  await account.giveToken();
  const token = account.given.at(-1);
  const kubeconfig = {
    apiVersion: "v1",
    kind: "Config",
    clusters: [{
      name: "bench",
      cluster: { server: cluster.server, "certificate-authority": cluster.ca },
    }],
    users: [{ name: "bench", user: { token } }],
    contexts: [{ name: "bench", context: { cluster: "bench", user: "bench" } }],
    "current-context": "bench",
  };
  account.write("kubeconfig", JSON.stringify(kubeconfig));
}

/** One account for all, with what any of them needs: the cost of a right that is checked is the same for all. */
async function createObjects(admin: Admin): Promise<void> {
  const verbs = ["get", "list", "watch", "create", "update", "patch", "delete"];
  const rules = [
    { apiGroups: [""], resources: ["secrets", "configmaps"], verbs },
    { apiGroups: ["", "events.k8s.io"], resources: ["events"], verbs },
    { apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs },
  ];
  await createNamespace(admin, NAMESPACE, ACCOUNT);
  await grantCluster(admin, NAMESPACE, rules);
  for (let index = 0; index < NAMESPACES; index++) {
    await admin.create("/api/v1/namespaces", { metadata: { name: namespaceOf(index) } });
  }
}

/** What upstream does not start without: at its defaults, but that no line of its log is left out, as we count them. */
async function createPeerSettings(admin: Admin): Promise<void> {
  const path = `/api/v1/namespaces/${NAMESPACE}/configmaps`;
  const logging = {
    level: "info",
    encoding: "json",
    outputPaths: ["stdout"],
    errorOutputPaths: ["stderr"],
  };
  const encoderConfig = {
    messageKey: "message",
    levelKey: "severity",
    timeKey: "timestamp",
    timeEncoder: "iso8601",
  };
  const data = {
    "zap-logger-config": JSON.stringify({ ...logging, encoderConfig, sampling: null }),
  };
  await admin.create(path, { metadata: { name: "config-logging" }, data });
  await admin.create(path, { metadata: { name: "config-leader-election" } });
  const metrics = { "metrics.backend-destination": "prometheus" };
  await admin.create(path, { metadata: { name: "config-observability" }, data: metrics });
}

/** The namespace of the Secret with this number. */
export const namespaceOf = (index: number) => `tenant-${index % NAMESPACES}`;
