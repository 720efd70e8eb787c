/**
 * What events and the log say, as rules: what happened, to what, and the command to type, with its values
 * filled in. One for each mistake that a person is likely to make.
 */
import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { ApiError } from "../../k8s.ts";
import { readResponse, StsError } from "../../sts.ts";
import { VirtualWorld } from "../virtual/world.ts";
import {
  answer,
  asked,
  blank,
  fresh,
  held,
  logged,
  metric,
  reported,
  rule,
  warnings,
  written,
} from "./rules.ts";
import { CONTROLLER, DATA_KEY, MIN, S, SERVICE_ACCOUNT } from "../support/names.ts";
import { ALICE, BOB, ORG, type Parts, secret, token, uid } from "../support/secrets.ts";

const KEY = "pull-secret-updater.chainguard.dev/identity";

/** The note of the one Warning in a world, which the log has as well. */
function warningOf(world: VirtualWorld, name = "a"): { reason: string; note: string } {
  const own = warnings(world).filter(({ regarding }) => regarding.name === name);
  assertEquals(own.map(({ reason }) => reason).length, 1, JSON.stringify(own));
  const [{ reason, note }] = own;
  const [line] = logged(world, reason).filter((line) => line.name === name);
  assertEquals([line.level, line.namespace, line.message], ["warn", "apps", note]);
  return { reason, note };
}

/** A mistake in a Secret: it is reported within a second, with its command, and costs nothing else. */
function mistake(
  title: string,
  parts: Parts,
  reason: string,
  says: (string | RegExp)[],
  saysNot: string[] = [],
): void {
  rule(title, async (world) => {
    world.cluster.create(secret("a", parts));
    world.start();
    await world.clock.advance(1 * S);
    const warning = warningOf(world);
    assertEquals(warning.reason, reason);
    for (const text of says) {
      if (typeof text === "string") assertStringIncludes(warning.note, text);
      else assertMatch(warning.note, text);
    }
    for (const text of ["[removed]", "undefined", "null", "…", ...saysNot]) {
      assert(!warning.note.includes(text), warning.note);
    }
    assertEquals(world.issuer.requests, []);
    assertEquals([...asked(world, "patch"), ...asked(world, "get"), ...asked(world, "token")], []);
  });
}

const setTo = (uid: string) =>
  `kubectl label secret a -n apps --overwrite ${KEY}= && ` +
  `kubectl annotate secret a -n apps --overwrite ${KEY}=${uid}`;

// ───── Mistakes in a Secret ─────

mistake(
  "A name for the UID is quoted, with how to find the UID and the command that sets it",
  { identity: "my-identity" },
  "InvalidIdentity",
  ['the identity "my-identity"', "UID", "chainctl iam identities list", setTo("UID")],
);
mistake(
  "A UID that is one digit short is quoted in full",
  { identity: `${ORG}/${"0".repeat(15)}` },
  "InvalidIdentity",
  [`the identity "${ORG}/${"0".repeat(15)}"`, "40 hex digits", setTo("UID")],
);
mistake(
  "A UID in capitals is shown, and the command has it in small letters",
  { identity: ALICE.toUpperCase() },
  "InvalidIdentity",
  [`the identity "${ALICE.toUpperCase()}"`, "lower-case", setTo(ALICE)],
);
mistake(
  "An empty label without an annotation is said to name no identity",
  { identity: "", label: "" },
  "InvalidIdentity",
  ['the identity ""', "chainctl iam identities list", setTo("UID")],
);
mistake(
  "A label and an annotation that disagree are both shown, and no token of either is fetched",
  { label: BOB.replace("/", "."), identity: ALICE },
  "InvalidIdentity",
  [`the identity "${ALICE}"`, `the label "${BOB}"`, setTo(ALICE)],
);
mistake(
  "A service account that is no valid name is quoted, with the command that does without it",
  { annotations: { [SERVICE_ACCOUNT]: "Not Valid" } },
  "InvalidIdentity",
  [
    'the service account "Not Valid"',
    "kubectl annotate secret a -n apps pull-secret-updater.chainguard.dev/service-account-",
  ],
);
mistake(
  "An empty service account is reported as well, and is no fall-back to the controller's",
  { annotations: { [SERVICE_ACCOUNT]: "" } },
  "InvalidIdentity",
  ['the service account ""'],
);
mistake(
  "A Secret of another type is told with the commands that make it anew",
  { type: "Opaque" },
  "UnsupportedSecret",
  [
    'of type "Opaque"',
    "kubectl delete secret a -n apps",
    "kubectl create secret generic a -n apps --type=kubernetes.io/dockerconfigjson " +
    "--from-literal=.dockerconfigjson={}",
  ],
);
mistake(
  "An immutable Secret is told with the commands that make it anew",
  { immutable: true },
  "UnsupportedSecret",
  ["the Secret is immutable", "kubectl delete secret a -n apps"],
);
for (
  const [what, config, says] of [
    ["no JSON", "{", ".dockerconfigjson is not JSON"],
    ["Latin-1", new Uint8Array([0x7b, 0x22, 0xe4, 0x22, 0x3a, 0x31, 0x7d]), "is not UTF-8 text"],
    ["a list", "[]", "is not a JSON object whose auths is one too"],
    ["auths of text", '{"auths":"x"}', "is not a JSON object whose auths is one too"],
  ] as [string, string | Uint8Array, string][]
) {
  mistake(
    `A docker config that is ${what} is said to be so, with the command that empties it`,
    { config },
    "InvalidDockerConfig",
    [
      says,
      `kubectl patch secret a -n apps -p '{"stringData":{".dockerconfigjson":"{}"}}'`,
    ],
  );
}

// ───── What clients take instead of the token ─────

for (
  const [what, config, says] of [
    ["an entry under another key", '{"auths":{"https://cgr.dev/v2/":{"auth":"eDp5"}}}', [
      "https://cgr.dev/v2/",
    ]],
    ["an entry for a path", '{"auths":{"cgr.dev/org":{"auth":"eDp5"}}}', ["cgr.dev/org"]],
    ["a credential helper", '{"credHelpers":{"cgr.dev":"gcr"}}', ["a credential helper"]],
    ["a credential store", '{"credsStore":"desktop"}', ["a credential helper"]],
  ] as [string, string, string[]][]
) {
  rule(
    `A Secret is filled though it has ${what}, which is kept and reported each 5 min`,
    async (world) => {
      world.cluster.create(secret("a", { config }));
      world.start();
      await world.clock.advance(2 * S);
      assertNotEquals(held(world), undefined);
      const { reason, note } = warningOf(world);
      assertEquals(reason, "InvalidDockerConfig");
      for (const key of says) {
        assertStringIncludes(note, `.dockerconfigjson has "${key}" too`);
      }
      assertStringIncludes(note, "clients prefer to the token");
      const { data } = world.cluster.get("apps/a");
      const kept = JSON.parse(Buffer.from(data![DATA_KEY]!, "base64").toString());
      const before = JSON.parse(config);
      assertEquals({ ...kept, auths: { ...kept.auths, "cgr.dev": 0 } }, {
        ...before,
        auths: { ...before.auths, "cgr.dev": 0 },
      });
      await world.clock.advance(30 * MIN);
      const times = reported(world, "InvalidDockerConfig").map(({ at }) => at);
      assert(times.length >= 5 && times.length <= 7, `${times}`);
      assertEquals([world.issuer.requests.length, written(world).length], [1, 1]);
    },
  );
}

// ───── The subject token ─────

const now = (world: VirtualWorld) => Math.floor(world.clock.now() / S);
const FILE = "/var/run/chainguard/oidc/oidc-token";
const MAKE =
  `kubectl create token controller -n pull-secret-updater --audience=issuer.enforce.dev > ${FILE}`;
const SUBJECTS: [what: string, read: (world: VirtualWorld) => string, says: string[]][] = [
  ["is empty", () => "", ["is not a JWT"]],
  ["holds kubectl's error", () => "error: You must be logged in to the server", ["is not a JWT"]],
  [
    "holds two lines",
    (world) => `${world.subjectToken(CONTROLLER, "issuer.enforce.dev", 600)}\nx`,
    ["is not a JWT"],
  ],
  ["holds a token without expiry", (world) => world.jwt({ sub: CONTROLLER }), ["is not a JWT"]],
  [
    "holds a token that has expired",
    (world) =>
      world.jwt({
        sub: CONTROLLER,
        aud: ["issuer.enforce.dev"],
        iat: now(world) - 3600,
        exp: now(world),
      }),
    ["expired at 2027-01-01T00:00:0", "compare the clocks", "kubelet"],
  ],
  [
    "holds a token for another audience",
    (world) => world.subjectToken(CONTROLLER, "https://kubernetes.default.svc", 600),
    ['has the audience "https://kubernetes.default.svc"', '"issuer.enforce.dev"'],
  ],
  [
    "holds a token for no audience",
    (world) => world.jwt({ sub: CONTROLLER, exp: now(world) + 600 }),
    ['has the audience ""', '"issuer.enforce.dev"'],
  ],
  ["is missing", () => {
    throw new Error(`ENOENT: no such file or directory, open '${FILE}'`);
  }, ["ENOENT: no such file or directory"]],
  ["is a folder", () => {
    throw new Error("EISDIR: illegal operation on a directory, read");
  }, ["EISDIR: illegal operation on a directory"]],
  ["may not be read", () => {
    throw new Error(`EACCES: permission denied, open '${FILE}'`);
  }, ["EACCES: permission denied"]],
];
for (const [what, read, says] of SUBJECTS) {
  rule(
    `Of a subject token file that ${what} nothing is sent; variable, path and command are named`,
    async (world) => {
      const rightOne = world.readSubjectToken;
      world.cluster.create(secret("a"));
      world.readSubjectToken = () => read(world);
      world.start();
      await world.clock.advance(1 * S);
      assertEquals(world.issuer.requests, []);
      const { reason, note } = warningOf(world);
      assertEquals(reason, "ExchangeFailed");
      for (const text of ["SUBJECT_TOKEN_FILE", FILE, MAKE, ...says]) {
        assertStringIncludes(note, text);
      }
      assert(!note.includes("chainctl") && !note.includes("[removed]"), note);
      await world.clock.advance(4 * MIN);
      assertEquals(world.issuer.requests, []);
      world.readSubjectToken = rightOne;
      await world.clock.advance(61 * S);
      assertNotEquals(held(world), undefined);
    },
  );
  rule(
    `A subject token file that ${what} is told at the start, though no Secret needs it yet`,
    async (world) => {
      world.readSubjectToken = () => read(world);
      world.start();
      await world.clock.advance(10 * MIN);
      const [line, ...others] = logged(world, "no subject token");
      assertEquals([line.level, others], ["warn", []]);
      for (const text of ["SUBJECT_TOKEN_FILE", FILE, MAKE, ...says]) {
        assertStringIncludes(JSON.stringify(Object.values(line)).replaceAll('\\"', '"'), text);
      }
    },
  );
}

rule("Of a subject token that is well nothing is said at the start", async (world) => {
  world.start();
  await world.clock.advance(1 * MIN);
  assertEquals(logged(world, "no subject token"), []);
});

rule("A file that is fixed within a second after the start harms nothing", async (world) => {
  const rightOne = world.readSubjectToken;
  world.readSubjectToken = () => "";
  world.start();
  await world.clock.advance(1 * S);
  world.readSubjectToken = rightOne;
  world.cluster.create(secret("a"));
  await world.clock.advance(1 * S);
  assertNotEquals(held(world), undefined);
  assertEquals(warnings(world), []);
});

rule(
  "The token of a service account is judged as well, and named, before it is sent",
  async (world) => {
    const client = world.cluster.client("replica-1");
    world.cluster.client = () => ({
      ...client,
      requestToken: () => Promise.resolve(world.subjectToken("x", "elsewhere", 600)),
    });
    world.cluster.create(secret("a", { annotations: { [SERVICE_ACCOUNT]: "puller" } }));
    world.start();
    await world.clock.advance(1 * S);
    assertEquals(world.issuer.requests, []);
    const { note } = warningOf(world);
    assertStringIncludes(note, "puller");
    assertStringIncludes(note, 'has the audience "elsewhere"');
    assert(!note.includes("SUBJECT_TOKEN_FILE"), note);
  },
);

rule(
  "A service account whose token may not be requested is named, with the Role that it takes",
  async (world) => {
    world.cluster.create(secret("a", { annotations: { [SERVICE_ACCOUNT]: "puller" } }));
    world.cluster.fault = ({ verb }) =>
      verb === "token"
        ? new ApiError("create: the API server answered 403: no", { status: 403 })
        : undefined;
    world.start();
    await world.clock.advance(1 * S);
    const { note } = warningOf(world);
    for (
      const text of [
        "answered 403: no",
        "puller",
        '"One service account per tenant" in the README',
      ]
    ) {
      assertStringIncludes(note, text);
    }
    assert(!note.includes("SUBJECT_TOKEN_FILE"), note);
  },
);

// ───── What the issuer answers ─────

/** Reports what the issuer answers for Alice. */
async function refuse(world: VirtualWorld, fault: Error): Promise<string> {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => fault;
  world.start();
  await world.clock.advance(1 * S);
  const { reason, note } = warningOf(world);
  assertEquals(reason, "ExchangeFailed");
  assert(!note.includes("undefined"), note);
  return note;
}
const ABOUT =
  `the subject token has iss=https://cluster.example sub=${CONTROLLER} aud=issuer.enforce.dev`;
const BIND =
  `--identity-issuer=https://cluster.example --subject=${CONTROLLER} --parent=${ORG} --role=registry.pull`;

rule(
  "An identity that is bound to another subject (403) is told with the command that binds one to this",
  async (world) => {
    const note = await refuse(world, answer(403, "denied"));
    for (
      const text of [
        "the issuer answered 403: denied",
        ABOUT,
        "chainctl iam identities create ",
        BIND,
      ]
    ) {
      assertStringIncludes(note, text);
    }
  },
);

rule(
  "A subject token that is not accepted (401) is told with what the identity expects, and no advice to bind",
  async (world) => {
    const note = await refuse(world, answer(401, "missing bearer token"));
    assertStringIncludes(note, "the issuer answered 401: missing bearer token");
    assertStringIncludes(note, ABOUT);
    assertStringIncludes(note, `chainctl iam identities describe ${ALICE}`);
    assert(!note.includes("create"), note);
  },
);

rule(
  "An identity that the issuer does not know (404) is named, with the command that lists them",
  async (world) => {
    const note = await refuse(world, answer(404, "identity not found"));
    assertStringIncludes(note, "the issuer answered 404: identity not found");
    assertStringIncludes(note, `there is no identity ${ALICE}`);
    assertStringIncludes(note, `chainctl iam identities list --parent=${ORG}`);
  },
);

const page = (status: number, text: string) =>
  assertThrows(() => readResponse(status, text, ""), StsError);
for (
  const [status, text] of [
    [401, "Unauthorized"],
    [403, "<html><h1>Blocked by your company</h1></html>"],
    [404, "404 page not found"],
    [404, '{"message":"Not Found"}'],
    [403, '{"kind":"Status","message":"forbidden","code":403}'],
    [400, ""],
    [302, ""],
    [307, "moved"],
    [200, "<html>Welcome</html>"],
  ] as const
) {
  rule(
    `A ${status} that is no response of an STS (${text}) is told as a matter of ISSUER_URL or a proxy`,
    async (world) => {
      const note = await refuse(world, page(status, text));
      assertStringIncludes(note, `the issuer answered ${status}`);
      assertStringIncludes(note, "ISSUER_URL=https://issuer.enforce.dev");
      for (const advice of ["chainctl", "bind the", "there is no identity", "<html>"]) {
        assert(!note.includes(advice), note);
      }
    },
  );
}

for (const status of [408, 409, 425, 429, 499, 500, 502, 503, 504]) {
  rule(
    `A ${status} passes by itself: it counts as failed, and comes with no advice`,
    async (world) => {
      const note = await refuse(world, page(status, '{"code":10,"message":"ABORTED"}'));
      assertEquals(note, `the issuer answered ${status}: ABORTED`);
      assert(metric(world.replicas[0]!, 'refreshes_total{result="failed"}')! >= 1);
      assertEquals(metric(world.replicas[0]!, 'refreshes_total{result="refused"}'), 0);
    },
  );
}

rule("A page of a proxy with a 503 passes by itself, and comes with no advice", async (world) => {
  const note = await refuse(world, page(503, "<html>overloaded</html>"));
  assertEquals(note, "the issuer answered 503: not a response of an STS");
});

rule("Commands have the issuers of EKS, GKE and AKS in full", async (world) => {
  const issuers = [
    "https://oidc.eks.eu-central-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE",
    "https://container.googleapis.com/v1/projects/my-project/locations/europe-west1/clusters/one",
    "https://eastus.oic.prod-aks.azure.com/11111111-2222-3333-4444-555555555555/66666666-7777-8888-9999-000000000000/",
  ];
  const exp = now(world) + 36_000;
  for (const [index, iss] of issuers.entries()) {
    world.cluster.create(secret(`s-${index}`, { identity: uid(index) }));
    world.readSubjectToken = () =>
      world.jwt({ iss, sub: CONTROLLER, aud: ["issuer.enforce.dev"], exp });
    world.issuer.fault = () => answer(403, "denied");
    if (index === 0) world.start();
    await world.clock.advance(1 * S);
    const { note } = warningOf(world, `s-${index}`);
    assertStringIncludes(note, `--identity-issuer=${iss} --subject=${CONTROLLER}`);
  }
});

rule("A message of the issuer never gets into a command", async (world) => {
  const note = await refuse(world, answer(403, "denied \u202e$(rm -rf /)"));
  assertStringIncludes(note, "denied \ufffd$(rm -rf /)");
  assert(!note.slice(note.indexOf("chainctl")).includes("rm"), note);
});

rule("What a subject token says of itself is cleaned before it is reported", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(403);
  const hidden = world.subjectToken("x", "x", 60);
  world.readSubjectToken = () =>
    world.jwt({
      iss: "https://x",
      sub: `a\u001b[2J\u202e${hidden}`,
      aud: ["issuer.enforce.dev", "b\u2028c"],
      exp: now(world) + 600,
    });
  world.start();
  await world.clock.advance(1 * S);
  assertMatch(
    warningOf(world).note,
    /sub=a\ufffd\[2J\ufffd\[removed\] aud=issuer\.enforce\.dev,b c; /,
  );
});

rule(
  "The issuer's message is cleaned before it is reported: a token in it, control characters, its length",
  async (world) => {
    world.cluster.create(secret("a"));
    world.issuer.fault = () =>
      answer(503, `\u001b[31m\u2028${fresh(world).slice(0, 100)} ${"z".repeat(5000)}`);
    world.start();
    await world.clock.advance(1 * S);
    const { note } = warningOf(world);
    assertMatch(note, /^the issuer answered 503: \ufffd\[31m \[removed\] z+…$/);
    assert(note.length < 340, `${note.length}`);
  },
);

rule("An identity that is reported was cleaned, and cut", async (world) => {
  world.cluster.create(
    secret("a", { identity: `${token()}\u001b]0;\u0007\u202e${"q".repeat(400)}` }),
  );
  world.start();
  await world.clock.advance(1 * S);
  const { note } = warningOf(world);
  assertMatch(note, /^the identity "\[removed\]\ufffd\]0;\ufffd\ufffdq{50,300}…"/);
  assertStringIncludes(note, setTo("UID"));
});

// ───── What the API server answers ─────

rule("A refusal by a policy is told to its end, where its reason stands", async (world) => {
  const why = "label and annotation name different identities: ask an administrator";
  const text = 'patch: the API server answered 422: secrets "a" is forbidden: ' +
    `ValidatingAdmissionPolicy 'pull-secret-updater-${"x".repeat(60)}' with binding ` +
    `'pull-secret-updater-${"y".repeat(60)}' denied request: ${why}`;
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) =>
    verb === "patch" ? new ApiError(text, { status: 422 }) : undefined;
  world.start();
  await world.clock.advance(1 * S);
  const { reason, note } = warningOf(world);
  assertEquals(reason, "ExchangeFailed");
  assertStringIncludes(note, "the token could not be written");
  assertStringIncludes(note, text);
});

rule(
  "A refusal too long for an event keeps its beginning and its end, in the log as well",
  async (world) => {
    const text = `patch: the API server answered 403: ${"é".repeat(2_000)} because of this`;
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) =>
      verb === "patch" ? new ApiError(text, { status: 403 }) : undefined;
    world.start();
    await world.clock.advance(1 * S);
    const { note } = warningOf(world);
    assert(Buffer.byteLength(note) <= 1024 && Buffer.byteLength(note) > 950, `${note.length}`);
    assertStringIncludes(
      note,
      "the token could not be written: patch: the API server answered 403",
    );
    assert(note.endsWith(" because of this"), note);
  },
);

rule("An event's note is never too long for the API server, whatever it quotes", async (world) => {
  world.cluster.create(secret("a", { identity: "\u{1f980}".repeat(300) }));
  world.cluster.create(secret("b"));
  world.issuer.fault = () => answer(403, "\u20ac".repeat(300));
  world.readSubjectToken = () =>
    world.jwt({
      iss: "\u20ac".repeat(300),
      sub: "\u20ac".repeat(300),
      aud: ["issuer.enforce.dev"],
      exp: now(world) + 600,
    });
  world.start();
  await world.clock.advance(1 * S);
  assertEquals(reported(world, "InvalidIdentity").length, 1);
  assertEquals(reported(world, "ExchangeFailed").length, 1);
});

rule(
  "A token that was overwritten is told with who may have done it, and when it is written again",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(3 * S);
    world.cluster.update("apps/a", blank);
    await world.clock.advance(1 * S);
    const { reason, note } = warningOf(world);
    assertEquals(reason, "Overwritten");
    assertMatch(
      note,
      /^the token was overwritten by another client \(kubectl apply, GitOps\?\); it will be written again in [678] s\. /,
    );
    await world.clock.advance(8 * S);
    assertNotEquals(held(world), undefined);
  },
);
