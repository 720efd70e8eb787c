/** A proxy in front of the real API server that has the faults of the stand-ins. */
import { createInterface } from "node:readline";
import type { Dispatcher } from "undici";
import type { LoggedRequest } from "../server/faults.ts";
import { bind, type Bound, Listener, type ListenOptions, type Reply } from "../server/listener.ts";

/** What is handed on of a request, and of an answer. */
const REQUEST_HEADERS = ["accept", "authorization", "content-type", "user-agent"];
const ANSWER_HEADERS = ["content-type", "retry-after"];

/** `upstream` reaches the API server, whatever the URL. */
export async function startProxy(
  options: ListenOptions & { url: string; upstream: Dispatcher },
): Promise<ApiProxy> {
  return new ApiProxy(await bind(options), options.url, options.upstream);
}

export class ApiProxy extends Listener<LoggedRequest> {
  #url: string;
  #upstream: Dispatcher;

  constructor(bound: Bound, url: string, upstream: Dispatcher) {
    super(bound);
    this.#url = url;
    this.#upstream = upstream;
  }

  protected describe(request: LoggedRequest): LoggedRequest {
    const isOne = /\/secrets\/[^/]+$/.test(request.path);
    const verbs: Record<string, string> = {
      GET: isOne ? "get" : request.query.has("watch") ? "watch" : "list",
      POST: "create",
      PATCH: "patch",
    };
    return { ...request, verb: verbs[request.method] ?? "" };
  }

  protected failure(status: number): Pick<Reply, "body"> {
    const message = "a fault was injected";
    return {
      body: {
        kind: "Status",
        apiVersion: "v1",
        metadata: {},
        status: "Failure",
        message,
        code: status,
      },
    };
  }

  protected async answer(
    { verb, method, path, query, headers, body }: LoggedRequest,
  ): Promise<Reply> {
    const answer = await this.#upstream.request({
      origin: this.#url,
      path: `${path}?${query}`,
      method: method as Dispatcher.HttpMethod,
      headers: pick(headers, REQUEST_HEADERS),
      ...body && { body },
      bodyTimeout: 0,
    });
    const reply = { status: answer.statusCode, headers: pick(answer.headers, ANSWER_HEADERS) };
    if (verb !== "watch" || reply.status !== 200) {
      return { ...reply, body: await answer.body.text() };
    }
    return {
      ...reply,
      stream(output) {
        output.onClose(() => answer.body.destroy());
        const lines = createInterface({ input: answer.body });
        lines.on("line", (line) => output.write(`${line}\n`)).on("close", () => output.end());
        // It was destroyed above, or the API server is gone.
        for (const source of [answer.body, lines]) source.on("error", () => output.cut());
      },
    };
  }
}

function pick(headers: Record<string, unknown>, names: string[]): Record<string, string> {
  return Object.fromEntries(
    names.filter((name) => headers[name]).map((name) => [name, `${headers[name]}`]),
  );
}
