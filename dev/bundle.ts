/**
 * Bundles the program into one file, out/main.js, that runs unchanged on Deno and Node. Of undici only what the program
 * imports goes in: its index also has fetch, WebSocket, a cache and HTTP/2, which cost memory and are never used.
 *
 * Usage: node dev/bundle.ts
 */
import { readFileSync } from "node:fs";
import { build, type Plugin } from "esbuild";

/** Where undici keeps what main.ts, k8s.ts and sts.ts import from it (an exact version is pinned: this may move). */
const UNDICI = `
  export { default as Agent } from "undici/lib/dispatcher/agent.js";
  export { default as EnvHttpProxyAgent } from "undici/lib/dispatcher/env-http-proxy-agent.js";
  import api from "undici/lib/api/index.js";
  export function request(url, { dispatcher, ...options }) {
    const { origin, pathname, search } = new URL(url);
    return api.request.call(dispatcher, { method: "GET", ...options, origin, path: pathname + search });
  }
`;

/** Files of undici that are imported but never called, as neither HTTP/2, SOCKS nor fetch and its kin are used. */
const UNUSED = /undici\/lib\/(dispatcher\/(client-h2|socks5-proxy-agent)|web\/.*)\.js$/;

const undici: Plugin = {
  name: "undici",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^undici$/ }, () => ({ path: "undici", namespace: "undici" }));
    onLoad(
      { filter: /.*/, namespace: "undici" },
      () => ({ contents: UNDICI, resolveDir: import.meta.dirname }),
    );
    onLoad({ filter: UNUSED }, () => ({ contents: "module.exports = {};" }));
  },
};

const license = "pull-secret-updater, Apache-2.0; with undici (MIT) and jose (MIT)";
await build({
  entryPoints: ["main.ts"],
  outfile: "out/main.js",
  bundle: true,
  platform: "node",
  format: "esm",
  target: "es2024",
  plugins: [undici],
  // undici is CommonJS and requires Node's own modules.
  banner: {
    js:
      `// ${license}\nimport { createRequire } from "node:module"; const require = createRequire(import.meta.url);`,
  },
});
console.log(`out/main.js: ${readFileSync("out/main.js").length} bytes`);
