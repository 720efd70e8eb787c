/** The real program between an API server and an issuer that can turn hostile: each stands behind a gate. */
import { assert, assertEquals } from "@std/assert";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isCounted, type Program, RUNTIME, startProgram } from "../support/program.ts";
import { startApiServer } from "../fake/apiserver.ts";
import { startIssuer } from "../fake/issuer.ts";
import { memoryOf } from "../support/usage.ts";
import { IDENTITY, SECRET_TYPE } from "../support/names.ts";
import { CONTROLS, findToken } from "../support/leaks.ts";
import { findPort } from "../support/ports.ts";
import { tokenOf } from "../support/secrets.ts";
import { until } from "../support/until.ts";

/** For what takes a moment, on a machine that is busy with other things. */
export const LONG_MS = 60_000;
const OWN = ["pull-secret-updater", "controller"] as const;

/** What a hostile server does with a connection; `request` is the head and body that came. */
export type Attack = (socket: Socket, request: string) => void;

/** Stands before a server; what a request meets is for `choose` to say, and nothing is passed on. */
async function openGate(target: string) {
  const { hostname, port } = new URL(target);
  const sockets = new Set<Socket>();
  const gate = {
    choose: (_request: string): Attack | undefined => undefined,
    /** What was asked of the hostile server. */
    attacked: [] as string[],
    url: "",
    /** Has all connections made anew. */
    cut: () => sockets.forEach((socket) => socket.destroy()),
    close(): void {
      server.close();
      gate.cut();
    },
  };
  function keep(socket: Socket): Socket {
    sockets.add(socket);
    return socket.on("error", () => {}).on("close", () => sockets.delete(socket));
  }
  const server = createServer((socket) => {
    let upstream: Socket | undefined;
    keep(socket).on("close", () => upstream?.destroy()).on("data", (chunk) => {
      const request = chunk.toString("latin1");
      const attack = gate.choose(request);
      if (attack) {
        gate.attacked.push(request);
        return attack(socket, request);
      }
      upstream ??= keep(connect(+port, hostname)).on("close", () => socket.destroy());
      if (upstream.listenerCount("data") === 0) {
        upstream.on("data", (answer) => socket.write(answer));
      }
      upstream.write(chunk);
    });
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  gate.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return gate;
}

export type World = Awaited<ReturnType<typeof makeWorld>>;

/** The API server is on plain http, as `kubectl proxy`. */
async function makeWorld(settings: Record<string, string>) {
  const api = await startApiServer();
  const issuer = await startIssuer({ keys: api.jwks });
  const [apiGate, issuerGate] = [await openGate(api.url), await openGate(issuer.url)];
  api.createServiceAccount(...OWN);
  const folder = mkdtempSync(join(tmpdir(), "hostile-"));
  const subjectToken = await api.serviceAccountToken(...OWN, issuer.audience);
  const subjectFile = join(folder, "oidc-token");
  writeFileSync(subjectFile, subjectToken);
  const port = `${await findPort()}`;
  const env = {
    KUBERNETES_API: apiGate.url,
    ISSUER_URL: issuerGate.url,
    SUBJECT_TOKEN_FILE: subjectFile,
    SERVICE_ACCOUNT_DIR: folder,
    PORT: port,
    ...settings,
  };
  const programs: Program[] = [];
  const world = {
    api,
    issuer,
    apiGate,
    issuerGate,
    port,
    /** Starts the program, and waits until it watches. */
    async start(): Promise<Program> {
      const program = await startProgram(RUNTIME, env, [], { shipped: !isCounted });
      programs.push(program);
      await until(() => api.openWatches > 0, "the program watches", 2 * LONG_MS);
      return program;
    },
    bind: (identity: string) => issuer.bind(identity, api.issuer, ...OWN),
    create(
      name: string,
      namespace: string,
      annotations: Record<string, string>,
      text = "{}",
      label = "",
    ): void {
      const metadata = { namespace, name, labels: { [IDENTITY]: label }, annotations };
      api.createSecret({ metadata, type: SECRET_TYPE, stringData: { ".dockerconfigjson": text } });
    },
    token: (name: string, namespace: string): string | undefined =>
      tokenOf(api.secret(namespace, name)!.data),
    /** All that the programs wrote, and the events. */
    told: (): string[] => [
      ...programs.flatMap(({ lines }) => lines),
      ...api.events().map((event) => JSON.stringify(event)),
    ],
    /** Ends everything; nothing that was told may have a token or a control character in it. */
    async end(): Promise<void> {
      for (const program of programs) program.kill("SIGTERM");
      const statuses = await Promise.all(programs.map(({ exited }) => exited));
      apiGate.close();
      issuerGate.close();
      await api.close();
      await issuer.close();
      rmSync(folder, { recursive: true });
      assertEquals(statuses, programs.map(() => 0), "it ends well, whatever has happened");
      const tokens = [
        subjectToken,
        ...issuer.exchanges.flatMap(({ token }) => token ?? []),
      ];
      assertEquals(findToken(world.told().join("\n"), tokens), undefined);
      for (const line of world.told()) {
        assert(!CONTROLS.test(line), `a control character: ${JSON.stringify(line)}`);
      }
    },
  };
  return world;
}

/** A test in a world of its own. */
export function inWorld(
  run: (world: World) => Promise<void>,
  settings: Record<string, string> = {},
) {
  return async () => {
    const world = await makeWorld(settings);
    try {
      await run(world);
    } finally {
      await world.end();
    }
  };
}

/** The most memory (MiB) that a process has had, where the system tells. */
export function peakMemory({ pid }: Program): number {
  return existsSync(`/proc/${pid}/status`) ? memoryOf(pid).peakMiB : 0;
}
