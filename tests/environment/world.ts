/** What stands around the Pod of one row: API server, issuer, proxy and name server, each at an address of its own. */
import { mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { connect, createServer, isIPv6, type Server } from "node:net";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Settings } from "../../scripts/manifest_flags.ts";
import { ACCOUNT, NAMESPACE } from "../support/names.ts";
import { readManifest, type Runtime } from "../support/program.ts";
import { pullSecret, tokenOf, uid as identityOf } from "../support/secrets.ts";
import { ApiServer } from "../fake/apiserver.ts";
import { Issuer } from "../fake/issuer.ts";
import { makeSigningKey } from "../fake/keys.ts";
import { bind } from "../fake/listener.ts";
import { type Proxy, startProxy } from "../fake/proxy.ts";
import { startNameServer } from "./dns.ts";
import { startPod } from "./pod.ts";
import type { Address, Row } from "./rows.ts";
import { makeTrust, type Trust } from "./trust.ts";

export const ISSUER_NAME = "issuer.enforce.dev";
export const PROXY_NAME = "proxy.example.com";
/** What a Service is called, for those who ask the cluster's DNS. */
const PROXY_SERVICE = "proxy.tools.svc.cluster.local";
const CLUSTER_DNS =
  "search tools.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
const HTTPS_PORT = 443;
const PROXY_PORT = 3128;
/** Documentation prefixes: nothing here answers for them, not even that nobody is there. */
const DEAD = ["10.0.0.1", "2001:db8:f0ff::1"] as const;
const OWN = [NAMESPACE, ACCOUNT] as const;
const ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount";
const SUBJECT_FOLDER = "/var/run/chainguard/oidc";
const CA_FOLDER = "/etc/private-ca";

const key = makeSigningKey();

export type World = Awaited<ReturnType<typeof makeWorld>>;

/** The addresses of a slot: each server has one of each family; at the last one nobody listens. */
function placesOf(slot: number) {
  const place = (
    host: number,
  ): [string, string] => [`10.${128 + slot}.0.${host}`, `2001:db8:${slot}::${host}`];
  return { nobody: place(1), api: place(2), issuer: place(3), proxy: place(4), dns: place(53) };
}

/** What is to be ended, in the order in which it began, goes into `toEnd`, whatever happens. */
export async function makeWorld(
  row: Row,
  runtime: Runtime,
  slot: number,
  toEnd: (() => unknown)[],
) {
  const places = placesOf(slot);
  const locate = (server: "issuer" | "proxy", addresses: Address[]) =>
    addresses.map((address) => {
      const family = address.startsWith("AAAA") ? 1 : 0;
      return address.endsWith("dead")
        ? DEAD[family]
        : address.endsWith("refusing")
        ? places.nobody[family]
        : places[server][family];
    });
  const names: Record<string, string[]> = {};
  const folder = mkdtempSync(join(tmpdir(), "environment-"));
  toEnd.push(() => rmSync(folder, { recursive: true }));

  // Three authorities, so that none is taken for another.
  const [apiTrust, issuerTrust, proxyTrust] = [makeTrust(), makeTrust(), makeTrust()];
  const trusted = (of: "api" | "issuer", trust: Trust) =>
    row.ca?.of === of ? row.ca.file(trust) : trust.root;
  const certify = (of: "api" | "issuer", trust: Trust, hosts: string[]) =>
    row.ca?.of === of && row.ca.signer ? trust.issue(hosts, row.ca.signer) : trust.issue(hosts);

  const apiHost = places.api[row.flags?.ipv6 ? 1 : 0];
  const apiHosts = [apiHost, "kubernetes.default.svc"];
  const signingKey = await key;
  const api = new ApiServer(
    await bind({
      host: apiHost,
      port: HTTPS_PORT,
      certificate: certify("api", apiTrust, apiHosts),
    }),
    signingKey,
    { tokens: new Map() },
  );
  const issuerAddresses = locate("issuer", row.issuer ?? ["A"]);
  const issuerUrl = row.flags?.issuer && replace(row.flags.issuer);
  const [main = places.issuer[0], ...more] = [
    ...new Set(issuerAddresses.filter((each) => places.issuer.includes(each))),
  ];
  const hosts = [ISSUER_NAME, ...places.issuer];
  const issuer = new Issuer(
    await bind({
      host: main,
      port: HTTPS_PORT,
      certificate: certify("issuer", issuerTrust, hosts),
    }),
    signingKey,
    { keys: api.jwks, issuer: issuerUrl ?? `https://${ISSUER_NAME}` },
  );
  toEnd.push(() => api.close(), () => issuer.close());
  // None is left idle, to be found closed after the rotation: that would be told in its place.
  if (row.rotates) issuer.faults.add({ headers: { connection: "close" }, times: Infinity });
  for (const host of more) toEnd.push(await relay(host, main));
  names[ISSUER_NAME] = issuerAddresses;

  const { tls, at = ["A"], untrusted, ...options } = row.proxy ?? {};
  const proxyAddresses = locate("proxy", at);
  names[PROXY_NAME] = names[PROXY_SERVICE] = proxyAddresses;
  const proxies: Proxy[] = [];
  for (const host of new Set(proxyAddresses.filter((each) => places.proxy.includes(each)))) {
    if (!row.proxy) break;
    const certificate = tls ? proxyTrust.issue([PROXY_NAME, ...places.proxy]) : undefined;
    const listens = { certificate, host, port: PROXY_PORT, upstream: main };
    const proxy = await startProxy({ ...options, ...listens });
    proxies.push(proxy);
    toEnd.push(proxy.close);
  }

  /** Replaces what a row writes for an address that only the slot has. */
  function replace(text: string): string {
    const url = (host: string) => isIPv6(host) ? `[${host}]` : host;
    return text
      .replaceAll("{proxy}", `${PROXY_NAME}:${PROXY_PORT}`)
      .replace(/\{proxy (A|AAAA)( refusing)?\}/g, (_, family, refusing) => {
        const place = refusing ? places.nobody : places.proxy;
        return `${url(place[family === "A" ? 0 : 1])}:${PROXY_PORT}`;
      })
      .replace(/\{(A|AAAA)\}/g, (_, family) => places.issuer[family === "A" ? 0 : 1])
      .replace(/\{octet\}/g, `${128 + slot}`);
  }
  const replaceAll = <T extends Settings>(values: T = {} as T): Settings =>
    Object.fromEntries(Object.entries(values).map(([name, value]) => [name, replace(value)]));

  const dns = row.dns ?? "node";
  if (dns !== "dead") {
    toEnd.push(
      (await startNameServer({ host: places.dns[0], names, fails: dns === "failing" })).close,
    );
  }
  const servers = [
    ...dns === "first dead" ? [DEAD[0]] : [],
    dns === "dead" ? DEAD[0] : places.dns[0],
  ];
  const resolvConf = servers.map((server) => `nameserver ${server}\n`).join("") +
    (dns === "cluster" ? CLUSTER_DNS : "");

  const files = {
    account: createVolume(folder, "account"),
    subject: createVolume(folder, "subject"),
    ca: createVolume(folder, "ca"),
  };
  api.createServiceAccount(...OWN);
  const ofProxy = tls && !untrusted ? proxyTrust.root : "";
  files.account.write({
    token: await api.serviceAccountToken(...OWN, api.issuer),
    "ca.crt": trusted("api", apiTrust),
    namespace: NAMESPACE,
  });
  files.subject.write({
    "oidc-token": await api.serviceAccountToken(...OWN, issuer.audience),
  });
  files.ca.write({ "ca.crt": trusted("issuer", issuerTrust) + ofProxy });
  const program = join(folder, "main.js");
  writeFileSync(program, (await readManifest("deno")).program);

  const create = (index: number) => {
    issuer.bind(identityOf(index), api.issuer, ...OWN);
    api.createSecret(pullSecret("team", `pull-${index}`, identityOf(index)));
  };
  create(1);
  const { uid = 65532, gid = 65532, hasNoHome } = row.pod ?? {};
  const pod = await startPod({
    slot,
    runtime,
    program,
    flags: { "ca-configmap": "private-ca", ...replaceAll(row.flags) },
    env: {
      ...hasNoHome ? {} : { HOME: "/" },
      KUBERNETES_SERVICE_HOST: apiHost,
      KUBERNETES_SERVICE_PORT: `${HTTPS_PORT}`,
      ...replaceAll(row.env),
    },
    resolvConf,
    mounts: {
      [ACCOUNT_FOLDER]: files.account.folder,
      [SUBJECT_FOLDER]: files.subject.folder,
      [CA_FOLDER]: files.ca.folder,
    },
    network: row.network ?? {},
    user: { uid, gid },
  });
  toEnd.push(() => pod.end("SIGKILL"));

  return {
    pod,
    isFilled: (index = 1) => tokenOf(api.secret("team", `pull-${index}`)?.data) !== undefined,
    /** Gives server and Pod another authority, as a rotation does, and then something to do. */
    async rotate(of: "api" | "issuer"): Promise<void> {
      const trust = makeTrust();
      const [server, volume, names] = of === "api"
        ? [api, files.account, apiHosts] as const
        : [issuer, files.ca, hosts] as const;
      await server.refuse();
      server.useCertificate(trust.issue(names));
      volume.write({ "ca.crt": trust.root });
      await server.accept();
      create(2);
    },
    /** Whether the proxies were asked for anything. */
    isProxyUsed: () => proxies.some(({ requests }) => requests.length > 0),
  };
}

/** Has a second address lead where the first does. */
async function relay(host: string, to: string): Promise<() => void> {
  const server: Server = createServer((socket) => {
    const upstream = connect(HTTPS_PORT, to);
    for (const end of [socket, upstream]) end.on("error", () => {});
    socket.pipe(upstream).pipe(socket);
  }).listen(HTTPS_PORT, host);
  await once(server, "listening");
  return () => void server.close();
}

/** A folder that the kubelet keeps: all files are replaced at once, by one link. */
function createVolume(parent: string, name: string) {
  const folder = join(parent, name);
  mkdirSync(folder);
  const all: Record<string, string> = {};
  let version = 0;
  return {
    folder,
    write(files: Record<string, string>): void {
      const current = `..${++version}`;
      mkdirSync(join(folder, current));
      for (const [name, text] of Object.entries(files)) {
        if (!(name in all)) symlinkSync(join("..data", name), join(folder, name));
        all[name] = text;
      }
      for (const [name, text] of Object.entries(all)) {
        writeFileSync(join(folder, current, name), text);
      }
      symlinkSync(current, join(folder, "..tmp"));
      renameSync(join(folder, "..tmp"), join(folder, "..data"));
    },
  };
}
