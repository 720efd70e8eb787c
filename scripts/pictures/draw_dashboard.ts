/**
 * Draws docs/dashboard.svg: the queries of docs/dashboard.json, as a real Prometheus answers them that has scraped two
 * replicas of the program for some minutes. It is a drawing of what the panels ask for, not a picture of Grafana. The API
 * server and the issuer are the embedded ones, and tokens live two minutes, so that there is something to see.
 *
 *   node scripts/pictures/draw_dashboard.ts        (needs Prometheus, Debian: prometheus; takes ten minutes)
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ROOT } from "../../tests/support/paths.ts";
import { RUNTIME, startProgram } from "../../tests/support/program.ts";
import { startApiServer } from "../../tests/fake/apiserver.ts";
import { startIssuer } from "../../tests/fake/issuer.ts";
import { drawDashboard, fillIn, type Panel, type Series, type Variable } from "./panels.ts";
import { ACCOUNT, IDENTITY, NAMESPACE, SECRET_TYPE } from "../../tests/support/names.ts";
import { findPort } from "../../tests/support/ports.ts";

const LIFE_S = 120;
const SCRAPE_S = 5;
const MINUTES = 10;
const NAMESPACES = ["shop", "web", "jobs", "billing", "search", "mail"];
/** Of each namespace; they share its identity. */
const SECRETS = 6;
/** What Grafana puts in its place with this scrape interval. */
const RATE_INTERVAL = `${4 * SCRAPE_S}s`;

const work = mkdtempSync(join(tmpdir(), "pull-secret-updater-dashboard-"));
const api = await startApiServer();
const issuer = await startIssuer({ keys: api.jwks, life: LIFE_S });
const uid = (index: number) => `${`${index}`.repeat(40)}/${"a".repeat(16)}`;

function createSecret(namespace: string, name: string, identity: string, type = SECRET_TYPE): void {
  const labels = { [IDENTITY]: identity.replace("/", ".") };
  api.createNamespace(namespace);
  api.createSecret({
    metadata: { namespace, name, labels },
    type,
    stringData: { ".dockerconfigjson": "{}" },
  });
}

/** The issuer's and the API server's bad moments, and the users' mistakes, spread over the minutes. */
async function play(stopOne: () => void, startOne: () => Promise<void>): Promise<void> {
  const minute = 60_000;
  await sleep(2 * minute);
  createSecret("beta", "unbound", uid(7));
  createSecret("beta", "opaque", uid(7), "Opaque");
  await sleep(1.5 * minute);
  issuer.bind(uid(7), api.issuer, NAMESPACE, ACCOUNT);
  await sleep(0.5 * minute);
  const outage = issuer.faults.add({ verb: "exchange", times: Infinity, status: 503, delay: 400 });
  await sleep(0.7 * minute);
  outage.remove();
  await sleep(1.3 * minute);
  stopOne();
  await sleep(0.7 * minute);
  await startOne();
  await sleep(1.3 * minute);
  // As long as a watch lives, so that one meets it.
  const deaf = api.faults.add({ verb: "watch", times: Infinity, status: 500 });
  await sleep(1.5 * minute);
  deaf.remove();
  await sleep(0.5 * minute);
}

async function startPrometheus(ports: number[]): Promise<{ url: string; child: ChildProcess }> {
  const targets = ports.map((port) => `127.0.0.1:${port}`);
  const scrape = {
    job_name: "pull-secret-updater",
    honor_labels: true,
    static_configs: [{ targets }],
  };
  const global = { scrape_interval: `${SCRAPE_S}s` };
  const configuration = join(work, "prometheus.yaml"); // JSON is YAML
  writeFileSync(configuration, JSON.stringify({ global, scrape_configs: [scrape] }));
  const address = `127.0.0.1:${await findPort()}`;
  const storage = join(work, "data");
  mkdirSync(storage);
  const child = spawn("prometheus", [
    `--config.file=${configuration}`,
    `--storage.tsdb.path=${storage}`,
    `--web.listen-address=${address}`,
    "--log.level=error",
  ], { stdio: ["ignore", "inherit", "inherit"] });
  return { url: `http://${address}`, child };
}

/** Of Prometheus. */
interface Answer {
  status: string;
  data: { result: { metric: Series["labels"]; values: [number, string][] }[] };
}

async function ask(url: string, query: string, start: number, end: number): Promise<Series[]> {
  const range = new URLSearchParams({
    query,
    start: `${start}`,
    end: `${end}`,
    step: `${SCRAPE_S}`,
  });
  const answer = await (await fetch(`${url}/api/v1/query_range?${range}`)).json() as Answer;
  if (answer.status !== "success") throw new Error(`${query}: ${JSON.stringify(answer)}`);
  return answer.data.result.map(({ metric, values }) => ({
    labels: metric,
    points: values.map(([time, value]) => [time, Number(value)]),
  }));
}

api.createServiceAccount(NAMESPACE, ACCOUNT);
const tokenFile = join(work, "token");
writeFileSync(
  tokenFile,
  await api.serviceAccountToken(NAMESPACE, ACCOUNT, issuer.audience, 24 * 3600),
);
for (const [index, namespace] of NAMESPACES.entries()) {
  issuer.bind(uid(index), api.issuer, NAMESPACE, ACCOUNT);
  for (let number = 1; number <= SECRETS; number++) {
    createSecret(namespace, `pull-${number}`, uid(index));
  }
}
issuer.bindings.set(uid(7), { iss: api.issuer, sub: "somebody else" });

const ports = [await findPort(), await findPort()];
const settings = { KUBERNETES_API: api.url, ISSUER_URL: issuer.url, SUBJECT_TOKEN_FILE: tokenFile };
const startReplica = (port: number) => startProgram(RUNTIME, { ...settings, PORT: `${port}` });
const prometheus = await startPrometheus(ports);
const replicas = await Promise.all(ports.map(startReplica));
const start = Date.now() / 1000;
try {
  await play(() => replicas[1]!.kill("SIGTERM"), async () => {
    replicas[1] = await startReplica(ports[1]!);
  });
  const end = start + MINUTES * 60;
  const dashboard: { panels: Panel[]; templating: { list: Variable[] } } = JSON.parse(
    readFileSync(join(ROOT, "docs/dashboard.json"), "utf8"),
  );
  const { panels, templating } = dashboard;
  const answers = new Map<string, Series[]>();
  for (const { expr } of panels.flatMap(({ targets }) => targets)) {
    const query = fillIn(expr, templating.list, RATE_INTERVAL);
    answers.set(expr, await ask(prometheus.url, query, start, end));
  }
  writeFileSync(join(ROOT, "docs/dashboard.svg"), drawDashboard(panels, answers, start, end));
} finally {
  for (const replica of replicas) replica.kill("SIGTERM");
  prometheus.child.kill("SIGTERM");
  await Promise.all([api.close(), issuer.close()]);
  rmSync(work, { recursive: true, force: true });
}
