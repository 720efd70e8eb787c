/**
 * Bundles the program into one file, out/main.js, that runs unchanged on Deno and Node. Of undici only what the program
 * imports goes in: its index also has fetch, WebSocket, a cache and HTTP/2, which cost memory and are never used.
 *
 * The same sources give the same bytes, wherever they lie and wherever this is called.
 *
 * Usage: node scripts/bundle.ts
 */
import { Buffer } from "node:buffer";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build, type Plugin } from "esbuild";

const ROOT = join(import.meta.dirname!, "..");
const OUTFILE = "out/main.js";

/** Where undici keeps what main.ts, k8s.ts and sts.ts import from it (an exact version is pinned: this may move). */
const UNDICI = `
  export { default as Agent } from "undici/lib/dispatcher/agent.js";
  export { default as buildConnector } from "undici/lib/core/connect.js";
  export { default as Pool } from "undici/lib/dispatcher/pool.js";
  export { default as EnvHttpProxyAgent } from "undici/lib/dispatcher/env-http-proxy-agent.js";
  import Dispatcher from "undici/lib/dispatcher/dispatcher.js";
  import apiRequest from "undici/lib/api/api-request.js";
  import apiConnect from "undici/lib/api/api-connect.js";
  // As undici's index does it. Its proxy agent calls connect().
  Object.assign(Dispatcher.prototype, { request: apiRequest, connect: apiConnect });
  export function request(url, { dispatcher, ...options }) {
    const { origin, pathname, search } = new URL(url);
    return dispatcher.request({ method: "GET", ...options, origin, path: pathname + search });
  }
`;

/** Files of undici that are imported but never called, as neither HTTP/2, SOCKS nor fetch and its kin are used. */
const UNUSED = /undici\/lib\/(dispatcher\/(client-h2|socks5-proxy-agent)|web\/.*)\.js$/;

const undici: Plugin = {
  name: "undici",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^undici$/ }, () => ({ path: "undici", namespace: "undici" }));
    onLoad({ filter: /.*/, namespace: "undici" }, () => ({ contents: UNDICI, resolveDir: ROOT }));
    onLoad({ filter: UNUSED }, () => ({ contents: "module.exports = {};" }));
  },
};

/** Both libraries ask for their licence to go with each copy. */
const LICENSES = [
  "pull-secret-updater, Apache-2.0; with undici and jose, whose licences follow.",
  ...["undici/LICENSE", "jose/LICENSE.md"].map((name) =>
    readFileSync(join(ROOT, "node_modules", name), "utf8").trim()
  ),
].join("\n\n").replace(/^/gm, "// ").replace(/ +$/gm, "");

/** Bundles one of the three files with all that it imports; returns the text. */
export async function bundle(entry: "main.ts" | "k8s.ts" | "sts.ts"): Promise<string> {
  const { outputFiles: [file] } = await build({
    // Paths stand in the bundle, as seen from here.
    absWorkingDir: ROOT,
    preserveSymlinks: true,
    entryPoints: [entry],
    write: false,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "es2024",
    plugins: [undici],
    // undici's own switch: it leaves out another HTTP parser.
    define: { esbuildDetection: "true" },
    banner: {
      // undici is CommonJS and requires Node's own modules.
      js:
        `${LICENSES}\nimport { createRequire } from "node:module"; const require = createRequire(import.meta.url);`,
    },
  });
  return file!.text;
}

if (import.meta.main ?? process.argv[1] === import.meta.filename) {
  const text = await bundle("main.ts");
  mkdirSync("out", { recursive: true });
  writeFileSync(OUTFILE, text);
  console.log(`${OUTFILE}: ${Buffer.byteLength(text)} bytes`);
}
