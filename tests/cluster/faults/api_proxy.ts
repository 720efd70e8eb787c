/** A proxy in front of the real API server that has the faults of the stand-ins. */
import { createInterface } from "node:readline";
import type { Dispatcher } from "undici";
import type { LoggedRequest } from "../../fake/injection.ts";
import { bind, type Bound, Listener, type ListenOptions, type Reply } from "../../fake/listener.ts";

/** What is handed on of a request, and of an answer. */
const REQUEST_HEADERS = ["accept", "authorization", "content-type", "user-agent"];
const ANSWER_HEADERS = ["content-type", "retry-after"];

export interface ProxyOptions extends ListenOptions {
  url: string;
  /** Reaches the API server, whatever the URL. */
  upstream: Dispatcher;
  /** Each watch is cut after so long, as by a load balancer that takes it for idle. Default: never. */
  cutWatchesMs?: number;
}

export async function startProxy(options: ProxyOptions): Promise<ApiProxy> {
  return new ApiProxy(await bind(options), options);
}

export class ApiProxy extends Listener<LoggedRequest> {
  #options: ProxyOptions;

  constructor(bound: Bound, options: ProxyOptions) {
    super(bound);
    this.#options = options;
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
    const { url, upstream, cutWatchesMs } = this.#options;
    const answer = await upstream.request({
      origin: url,
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
        const timer = cutWatchesMs && setTimeout(() => output.cut(), cutWatchesMs);
        output.onClose(() => {
          clearTimeout(timer);
          answer.body.destroy();
        });
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
