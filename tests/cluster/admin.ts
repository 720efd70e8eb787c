/** The administrator of the real API server, who reaches it directly. */
import { readFileSync } from "node:fs";
import { Agent, request } from "undici";
import type { Cluster } from "./cluster.ts";
import type { Json } from "../support/json.ts";

/** A look that takes longer is of no use. */
const READ_TIMEOUT_MS = 10_000;
/** A write has to be done, though etcd may just have come back: the API server itself gives it up after a minute. */
const WRITE_TIMEOUT_MS = 65_000;

export type Admin = ReturnType<typeof createAdmin>;

export function createAdmin(cluster: Cluster) {
  const readCa = () => readFileSync(cluster.ca, "utf8");
  const { token } = JSON.parse(readFileSync(cluster.kubeconfig, "utf8")).users[0].user;
  let ca = "";
  let agent = new Agent();

  /** Anew where the CA is another. */
  function dispatcher(): Agent {
    const current = readCa();
    if (current === ca) return agent;
    ca = current;
    void agent.close();
    return agent = new Agent({ allowH2: false, connect: { ca } });
  }

  /** Sends a request; fails unless the answer is a 2xx. */
  async function send(
    method: "GET" | "POST" | "PATCH" | "DELETE",
    path: string,
    body?: object,
  ): Promise<string> {
    const answer = await request(cluster.server + path, {
      method,
      dispatcher: dispatcher(),
      headers: {
        authorization: `Bearer ${token}`,
        "content-type": method === "PATCH" ? "application/merge-patch+json" : "application/json",
      },
      ...body && { body: JSON.stringify(body) },
      signal: AbortSignal.timeout(method === "GET" ? READ_TIMEOUT_MS : WRITE_TIMEOUT_MS),
    });
    const text = await answer.body.text();
    if (answer.statusCode >= 300) {
      throw new Error(`${method} ${path}: ${answer.statusCode} ${text}`);
    }
    return text;
  }
  const json = async (...args: Parameters<typeof send>): Promise<Json> =>
    JSON.parse(await send(...args));

  return {
    /** The CA of the API server. */
    readCa,
    /** The API server's own metrics. */
    metrics: () => send("GET", "/metrics"),
    get: (path: string) => json("GET", path),
    create: (path: string, body: object) => json("POST", path, body),
    patch: (path: string, body: object) => json("PATCH", path, body),
    delete: (path: string) => json("DELETE", path),
    /** A token of a service account, for these audiences or for the API server. */
    async token(namespace: string, account: string, ...audiences: string[]): Promise<string> {
      const spec = { ...audiences.length > 0 && { audiences }, expirationSeconds: 2 * 3600 };
      const answer = await json(
        "POST",
        `/api/v1/namespaces/${namespace}/serviceaccounts/${account}/token`,
        { spec },
      );
      return answer.status.token;
    },
    /** Ends its connections. */
    close: () => agent.destroy(),
  };
}
