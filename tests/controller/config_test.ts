/**
 * The configuration, as rules: a bad value ends the program at its start, with one line.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { clean, ConfigError, readConfig } from "../../main.ts";

const IN_CLUSTER = { KUBERNETES_SERVICE_HOST: "10.0.0.1", KUBERNETES_SERVICE_PORT: "443" };
const configure = (env: Record<string, string>) => readConfig({ ...IN_CLUSTER, ...env });

test("Every variable has the default that the README names", () => {
  assertEquals(configure({}), {
    api: {
      url: "https://10.0.0.1:443",
      tokenFile: "/var/run/secrets/kubernetes.io/serviceaccount/token",
      caFile: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
      servername: undefined,
    },
    namespaces: [undefined],
    ownNamespace: "pull-secret-updater",
    issuer: "https://issuer.enforce.dev",
    issuerHost: "issuer.enforce.dev",
    audience: "cgr.dev",
    registries: ["cgr.dev"],
    subjectTokenFile: "/var/run/chainguard/oidc/oidc-token",
    httpsProxy: undefined,
    noProxy: undefined,
    port: 8080,
  });
});

test("A variable that is set is taken; an empty one counts as unset", () => {
  assertEquals(configure({ ISSUER_URL: "" }).issuer, "https://issuer.enforce.dev");
  assertEquals(
    configure({ ISSUER_URL: "https://issuer.example/" }).issuer,
    "https://issuer.example",
  );
  assertEquals(configure({ ISSUER_URL: "http://127.0.0.1:8002" }).issuer, "http://127.0.0.1:8002");
  assertEquals(configure({ ISSUER_URL: "http://[::1]:8002" }).issuer, "http://[::1]:8002");
  assertEquals(configure({ ISSUER_URL: "http://localhost" }).issuer, "http://localhost");
  assertEquals(configure({ AUDIENCE: "x" }).audience, "x");
  assertEquals(configure({ REGISTRIES: "cgr.dev, apk.cgr.dev:5000,cgr.dev" }).registries, [
    "cgr.dev",
    "apk.cgr.dev:5000",
  ]);
  assertEquals(configure({ WATCH_NAMESPACES: "a,b" }).namespaces, ["a", "b"]);
  assertEquals(configure({ SERVICE_ACCOUNT_DIR: "/sa" }).api.tokenFile, "/sa/token");
  assertEquals(configure({ SUBJECT_TOKEN_FILE: "token" }).subjectTokenFile, "token");
  assertEquals(
    configure({ HTTPS_PROXY: "http://u:p@proxy:3128" }).httpsProxy,
    "http://u:p@proxy:3128",
  );
  assertEquals(configure({ NO_PROXY: "a,b" }).noProxy, "a,b");
  assertEquals(configure({ PORT: "65535" }).port, 65535);
  const proxied = { KUBERNETES_API: "http://127.0.0.1:8001", SERVICE_ACCOUNT_DIR: "." };
  assertEquals(configure(proxied).api, {
    url: "http://127.0.0.1:8001",
    tokenFile: undefined,
    caFile: undefined,
    servername: undefined,
  });
});

test("To KUBERNETES_API the token goes on https alone, and the files of it and of the CA are used where they are", () => {
  const dir = mkdtempSync(join(tmpdir(), "config-test-"));
  try {
    const of = (KUBERNETES_API: string) => {
      const { tokenFile, caFile } = readConfig({ KUBERNETES_API, SERVICE_ACCOUNT_DIR: dir }).api;
      return [tokenFile, caFile];
    };
    assertEquals(of("https://api.example"), [undefined, undefined]);
    const files = ["token", "ca.crt"].map((name) => join(dir, name));
    for (const file of files) writeFileSync(file, "x");
    assertEquals(of("https://api.example"), files);
    assertEquals(of("http://127.0.0.1:8001"), [undefined, undefined]);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("A bad value ends it with one line: the variable, the value and what is allowed", () => {
  const wrong: Record<string, [string[], string]> = {
    ISSUER_URL: [[
      "http://issuer.example",
      "issuer.example",
      "https://u@x",
      "https://x?a=b",
      "https://x#a",
      "ftp://x",
      "http://localhost.example",
    ], "https URL"],
    KUBERNETES_API: [["http://10.0.0.1:8001", "https://u:p@x", "8001"], "https URL"],
    KUBERNETES_SERVICE_HOST: [["a/b", "a b", "a@b", "10.0.0.1:443", "host:1"], "a host"],
    KUBERNETES_SERVICE_PORT: [["0", "65536", "x", "-1"], "a port"],
    AUDIENCE: [["a b", "a\nb", "é"], "without spaces"],
    REGISTRIES: [
      [
        "https://cgr.dev",
        "cgr.dev/a",
        "CGR.dev",
        ",",
        "a,,b",
        "cgr.dev,",
        "a,\nb,",
        "__proto__",
        "a:x",
      ],
      "comma-separated list of hosts",
    ],
    WATCH_NAMESPACES: [
      ["A", "a,", "a,\nb,\n", "\na,", " ", "a b", "-a", "a".repeat(64)],
      "comma-separated list of namespaces",
    ],
    HTTPS_PROXY: [["proxy:3128", "socks5://proxy"], "http or https URL"],
    https_proxy: [["proxy:3128", "socks5://proxy"], "http or https URL"],
    PORT: [["0", "70000", "8080x", "80 80", "1e3"], "from 1 to 65535"],
  };
  for (const [name, [values, allowed]] of Object.entries(wrong)) {
    for (const value of values) {
      const { message } = assertThrows(
        () => configure({ [name]: value }),
        ConfigError,
        `${name}="`,
      );
      assertStringIncludes(message, allowed, value);
      if (!/[@?#]|:x/.test(value)) assertStringIncludes(message, clean(value), value);
      assert(!message.includes("\n"), message);
    }
  }
});

/** URLs that hold a password, or what may be meant as one. */
const WITH_PASSWORD = [
  "user:hunter2@proxy:3128",
  "http://user:hun/hunter2@proxy:3128",
  "ftp://user:hunter2@proxy",
  "//user:hunter2@proxy",
  "http:user:hunter2@:x",
  "http://user:hunter2@",
  "http://user:hunter2",
  "https://user:hunter2",
  "https://user:hunter2/path",
  "http://:hunter2@proxy:3128",
  "http://hunter2@proxy:99999",
  "http://user:50%hunter2@proxy:3128",
  "http://user:a@hunter2@proxy:99999",
  "http://user:hunter2@proxy:99999",
  "http://user:hunter2@pro xy",
  "http://user:\nhunter2@proxy",
  "socks5://user:hunter2@proxy",
  "https://x?password=hunter2",
  "https://x/path?a=b&password=hunter2",
  "https://x#hunter2",
  "user:hunter2",
  "user:hunter2 @proxy",
];

test("A password in a URL is never shown, however the URL is broken", () => {
  for (const url of WITH_PASSWORD) {
    for (const name of ["HTTPS_PROXY", "https_proxy", "ISSUER_URL", "KUBERNETES_API"]) {
      const env: Record<string, string> = { KUBERNETES_API: "http://127.0.0.1:1", [name]: url };
      try {
        readConfig(env);
      } catch (error) {
        assert(error instanceof ConfigError, url);
        assert(!error.message.includes("hunter2"), error.message);
        assertStringIncludes(error.message, `${name}="`);
        assert(!error.message.includes("\n"), error.message);
      }
    }
    for (const name of ["ISSUER_URL", "KUBERNETES_API"]) {
      assertThrows(() => configure({ [name]: url }), ConfigError, name);
    }
  }
});

test("Each form of proxy URL is taken: http and https, name, IPv4 and IPv6, credentials percent-encoded", () => {
  for (const scheme of ["http", "https"]) {
    for (const user of ["", "user@", "user:secret@", "user:50%25off@", "us%40er:p%3Aw%2F@", ":@"]) {
      for (const host of ["proxy", "proxy.example", "127.0.0.1", "[::1]", "[fd00::1]"]) {
        for (const rest of ["", "/", ":3128", ":3128/"]) {
          const url = `${scheme}://${user}${host}${rest}`;
          for (const name of ["HTTPS_PROXY", "https_proxy"]) {
            assertEquals(configure({ [name]: url }).httpsProxy, url);
          }
        }
      }
    }
  }
});

test("A proxy URL that cannot be used ends it at the start", () => {
  const wrong = [
    "proxy",
    "proxy:3128",
    "127.0.0.1:3128",
    "//proxy:3128",
    "http://",
    "http://user@",
    "http://user:50%off@127.0.0.1:3128",
    "http://us%er@proxy",
    "http://user:%zz@proxy",
    "http://user:%e4@proxy",
    "http://proxy:99999",
    "http://proxy:x",
    "http://[::1",
    "http://pro xy",
    "http://proxy:3128\u0001",
    "http://pro\u0000xy",
    "http://user:\u0007x@proxy",
    "http://proxy\u00ad.example",
    "http://proxy\u202e",
    " http://proxy",
    "http://proxy ",
    "socks5://proxy:1080",
    "ftp://proxy",
    "file:///proxy",
  ];
  for (const url of wrong) {
    for (const name of ["HTTPS_PROXY", "https_proxy"]) {
      const { message } = assertThrows(() => configure({ [name]: url }), ConfigError, `${name}="`);
      assertStringIncludes(message, "must be an http or https URL", url);
    }
  }
});

test("Of the proxy's variables the lower-case forms count as well; the upper-case ones come first", () => {
  assertEquals(configure({ https_proxy: "http://low" }).httpsProxy, "http://low");
  const both = {
    HTTPS_PROXY: "http://up",
    https_proxy: "http://low",
    NO_PROXY: "u",
    no_proxy: "l",
  };
  assertEquals([configure(both).httpsProxy, configure(both).noProxy], ["http://up", "u"]);
  const empty = { ...both, HTTPS_PROXY: "", NO_PROXY: "" };
  assertEquals([configure(empty).httpsProxy, configure(empty).noProxy], ["http://low", "l"]);
  assertEquals(configure({ HTTPS_PROXY: "", https_proxy: "" }).httpsProxy || undefined, undefined);
  assertEquals(configure({ no_proxy: "10.0.0.0/8,.example" }).noProxy, "10.0.0.0/8,.example");
  const other = { HTTPS_PROXY: "http://up", https_proxy: "not used" };
  assertEquals(configure(other).httpsProxy, "http://up");
});

test("A control character, a space or a bidirectional one makes a URL unfit", () => {
  for (const character of ["\u0001", "\u0000", "\u007f", "\t", "\n", " ", "\u202e", "\u00a0"]) {
    for (const name of ["ISSUER_URL", "KUBERNETES_API"]) {
      for (
        const url of [`https://x${character}`, `https://x${character}y`, `https://x/${character}`]
      ) {
        const { message } = assertThrows(() => configure({ [name]: url }), ConfigError, name);
        assert(!/[\p{C}\p{Zl}\p{Zp}]/u.test(message.replaceAll("\ufffd", "")), message);
      }
    }
  }
});

test("The address of the API server that a Pod is given may be IPv6; its certificate is that of kubernetes.default.svc", () => {
  const { api } = configure({ KUBERNETES_SERVICE_HOST: "fd00::1" });
  assertEquals(api, {
    url: "https://[fd00::1]:443",
    servername: "kubernetes.default.svc",
    tokenFile: "/var/run/secrets/kubernetes.io/serviceaccount/token",
    caFile: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
  });
  for (const host of ["10.0.0.1", "api.example", "kubernetes.default.svc"]) {
    const { url, servername } = configure({ KUBERNETES_SERVICE_HOST: host }).api;
    assertEquals([url, servername], [`https://${host}:443`, undefined]);
  }
});

test("The certificate of KUBERNETES_API is that of its own address, also of an IPv6 one", () => {
  for (
    const url of ["https://[::1]:6443", "https://[fd00::1]", "https://10.0.0.1", "https://api"]
  ) {
    const { api } = configure({ KUBERNETES_API: url, KUBERNETES_SERVICE_HOST: "fd00::1" });
    assertEquals([api.url, api.servername], [url, undefined]);
  }
  assertEquals(
    configure({ KUBERNETES_API: "https://api.example///" }).api.url,
    "https://api.example",
  );
});

test("LOG_LEVEL is no variable any more: whatever it is changes nothing", () => {
  assertEquals(configure({ LOG_LEVEL: "nonsense" }), configure({}));
});

test("A URL is written as it is used: without spaces, its scheme in small letters", () => {
  for (
    const url of [
      "HTTPS://api.example",
      " https://api.example",
      "https://api.example ",
      "HTTP://127.0.0.1:8001",
    ]
  ) {
    assertThrows(
      () => readConfig({ KUBERNETES_API: url }),
      ConfigError,
      "an https URL",
    );
  }
});

test("A value is taken as it is, or refused: nothing is silently cut off", () => {
  const env = (name: string, value: string) => ({
    KUBERNETES_API: "http://127.0.0.1:1",
    [name]: value,
  });
  assertEquals(
    readConfig(env("AUDIENCE", "https://registry.example/")).audience,
    "https://registry.example/",
  );
  for (
    const [name, value] of [["PORT", "8080/"], ["REGISTRIES", "cgr.dev/"], [
      "WATCH_NAMESPACES",
      "a/",
    ]] as const
  ) {
    assertThrows(() => readConfig(env(name, value)), ConfigError, name);
  }
});

test("Without the address of an API server the message says which variable is missing", () => {
  const { message } = assertThrows(() => readConfig({}), ConfigError);
  assertStringIncludes(message, "KUBERNETES_SERVICE_HOST");
  assertStringIncludes(message, "KUBERNETES_API=http://127.0.0.1:8001");
  assertStringIncludes(message, "kubectl proxy");
});
