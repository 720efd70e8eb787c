/**
 * The registry behind the name cgr.dev: Debian's docker-registry, which trusts a token server, and that token server. It
 * gives a registry token to whoever shows a token of the issuer's, of an identity that has been granted the repository.
 */
import { randomBytes, randomUUID, X509Certificate } from "node:crypto";
import * as fs from "node:fs";
import * as http from "node:http";
import * as net from "node:net";
import { join } from "node:path";
import * as tls from "node:tls";
import { createLocalJWKSet } from "jose/jwks/local";
import { SignJWT } from "jose/jwt/sign";
import { jwtVerify } from "jose/jwt/verify";
import { importPKCS8 } from "jose/key/import";
import { run, start } from "../../support/processes.ts";
import { makeAuthority } from "../../fake/certificates.ts";
import type { Issuer } from "../../fake/issuer.ts";
import { until } from "../../support/until.ts";

const SERVICE = "cgr.dev";
const TOKEN_SECONDS = 60;

interface Options {
  /** State folder of the cluster: the registry ends with it. */
  dir: string;
  work: string;
  /** A loopback address, on which port 443 is used too. */
  host: string;
  /** The registry's; the next one is the token server's. */
  port: number;
  issuer: Issuer;
  /** For the name cgr.dev. */
  certificate: { key: string; cert: string };
}

export type Registry = Awaited<ReturnType<typeof startRegistry>>;

export async function startRegistry(options: Options) {
  const { dir, work, host, port, issuer, certificate } = options;
  const authority = makeAuthority();
  const { key, cert } = authority.issue(["registry tokens"]);
  const signingKey = await importPKCS8(key, "ES256");
  const x5c = [new X509Certificate(cert).raw.toString("base64")];
  const publisher = { user: "publisher", password: randomBytes(16).toString("hex") };
  const grants = new Map<string, string[]>();

  /** The identity that a token was issued for, if it is one of the issuer's and holds. */
  async function identityOf(token: string): Promise<string | undefined> {
    const options = { audience: SERVICE, issuer: issuer.issuer, requiredClaims: ["exp"] };
    const verified = await jwtVerify(token, createLocalJWKSet(issuer.jwks), options).catch(() =>
      undefined
    );
    return verified?.payload.sub;
  }

  async function answer(
    url: URL,
    authorization: string,
  ): Promise<{ status: number; body: object }> {
    const [user = "", password = ""] = Buffer.from(authorization.replace(/^Basic /i, ""), "base64")
      .toString().split(
        ":",
      );
    const scope = url.searchParams.get("scope") ?? "";
    const [, name = "", wanted = ""] = /^repository:([^:]+):(.+)$/.exec(scope) ?? [];
    const isPublisher = user === publisher.user && password === publisher.password;
    const identity = user === "_token" ? await identityOf(password) : undefined;
    const isGranted = identity !== undefined && grants.get(identity)?.includes(name);
    const allowed = isPublisher ? wanted.split(",") : isGranted ? ["pull"] : [];
    const status = isPublisher || isGranted ? 200 : identity === undefined ? 401 : 403;
    if (status !== 200) {
      return { status, body: { errors: [{ code: status === 401 ? "UNAUTHORIZED" : "DENIED" }] } };
    }
    const token = await new SignJWT({ access: [{ type: "repository", name, actions: allowed }] })
      .setProtectedHeader({ alg: "ES256", typ: "JWT", x5c })
      .setIssuer("tokens").setSubject(user).setAudience(SERVICE).setJti(randomUUID())
      .setIssuedAt().setNotBefore("-10s").setExpirationTime(`${TOKEN_SECONDS}s`)
      .sign(signingKey);
    return { status, body: { token, expires_in: TOKEN_SECONDS } };
  }

  const tokenServer = http.createServer((request, response) => {
    const url = new URL(request.url ?? "", "http://registry");
    answer(url, request.headers.authorization ?? "").then(({ status, body }) => {
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
    });
  });
  await listen(tokenServer, host, port + 1);

  // skopeo finds its credentials by the registry's name, and so must meet it under that name.
  const front = tls.createServer(certificate, (client) => {
    const server = net.connect(port, host);
    client.on("error", () => server.destroy()).pipe(server);
    server.on("error", () => client.destroy()).pipe(client);
  });
  await listen(front, host, 443);

  const bundle = join(work, "token-ca.crt");
  fs.writeFileSync(bundle, authority.certificate);
  const configuration = join(work, "registry.yaml"); // JSON is YAML
  const realm = `http://${host}:${port + 1}/token`;
  fs.writeFileSync(
    configuration,
    JSON.stringify({
      version: 0.1,
      log: { level: "info" },
      storage: { filesystem: { rootdirectory: join(work, "registry") } },
      http: { addr: `${host}:${port}` },
      auth: { token: { realm, service: SERVICE, issuer: "tokens", rootcertbundle: bundle } },
    }),
  );
  await start(dir, "docker-registry", "docker-registry", ["serve", configuration], "/usr/bin");
  await until(
    async () => (await fetch(`http://${host}:${port}/v2/`)).status === 401,
    "the registry answers",
  );

  const hosts = join(work, "hosts");
  fs.writeFileSync(hosts, `${fs.readFileSync("/etc/hosts", "utf8")}\n${host} ${SERVICE}\n`);
  return {
    /** Which repositories an identity may pull from. */
    grants,
    /** May push and pull everything, with a password that does not run out. */
    publisher,
    async push(archive: string, repository: string): Promise<void> {
      await run("skopeo", [
        ...["copy", "--quiet", "--dest-tls-verify=false"],
        ...["--dest-creds", `${publisher.user}:${publisher.password}`],
        ...[`docker-archive:${archive}`, `docker://${host}:${port}/${repository}`],
      ]);
    },
    /** Asks cgr.dev, over TLS, for an image's digest, with a docker config or without; fails where it may not be pulled. */
    digestOf(image: string, config?: string): Promise<string> {
      const file = join(work, `${randomUUID()}.json`);
      fs.writeFileSync(file, config ?? "", { mode: 0o600 });
      // A name space of mounts, in which cgr.dev is this registry.
      const script = `mount --bind "$0" /etc/hosts && exec "$@"`;
      return run("unshare", [
        ...["--mount", "--propagation", "private", "sh", "-ec", script, hosts],
        ...["skopeo", "inspect", "--format", "{{.Digest}}", `docker://${SERVICE}/${image}`],
        ...config === undefined ? ["--no-creds"] : ["--authfile", file],
      ], { env: { SSL_CERT_FILE: join(work, "ca.crt"), NO_PROXY: "*" } })
        .finally(() => fs.rmSync(file));
    },
    close(): void {
      tokenServer.close().closeAllConnections();
      front.close();
    },
  };
}

function listen(server: net.Server, host: string, port: number): Promise<void> {
  return new Promise((done, failed) => server.once("error", failed).listen(port, host, done));
}
