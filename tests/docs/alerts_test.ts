/** Holds the alert rules, the dashboard and docs/monitoring.md to the metrics, and tries the rules. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import { isInstalled } from "../support/processes.ts";
import { expose, type Sample, samplesIn } from "./exposed.ts";
import { fillIn } from "../support/dashboard.ts";
import { ROOT } from "../support/paths.ts";
import { METRIC_PREFIX } from "../support/names.ts";

// deno-lint-ignore no-explicit-any
type Json = any;

const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const RULES = parse(read("docs/alerts/rules.yaml"));
const DASHBOARD = JSON.parse(read("docs/dashboard.json"));
/** Stands for where the documents are to be read: the project has no address of its own. */
const RUNBOOKS = "https://REPOSITORY";
/** What Prometheus adds to each series. */
const SCRAPE_LABELS = ["cluster", "job", "instance"];
/** What names a Secret or a version: any value will do. */
const FREE_LABELS = ["namespace", "name", "version"];
const hasPromtool = {
  skip: isInstalled("promtool") ? false : "promtool is not installed (Debian: prometheus)",
};

const rules: Json[] = RULES.groups.flatMap((group: Json) => group.rules);
const panelQueries: string[] = DASHBOARD.panels.flatMap((panel: Json) =>
  panel.targets.map(({ expr }: Json) => expr)
);

const exposition = await expose();
const given = new Set(exposition.samples.map(({ name }) => name));

/** The samples of ours that queries name, without the prefix. */
function samplesOf(queries: string[]): Set<string> {
  return new Set(
    queries.flatMap((query) => query.match(/\bpull_secret_updater_\w+/g) ?? []).map((name) =>
      name.slice(METRIC_PREFIX.length)
    ),
  );
}

const statesIn = (samples: Sample[]) =>
  samples.filter(({ name }) => name === "secrets").map(({ labels }) => labels.state).sort();

test("Alerts and dashboard ask for samples that the program gives, and for no others", () => {
  const asked = samplesOf([...rules.map(({ expr }) => expr), ...panelQueries]);
  assert(asked.size > 5, "the queries are found");
  assertEquals([...asked].filter((name) => !given.has(name)), []);
});

test("Each metric of the program is on the dashboard", () => {
  const asked = samplesOf(panelQueries);
  const missing = [...exposition.types.keys()].filter((name) =>
    ![name, `${name}_sum`, `${name}_count`].some((sample) => asked.has(sample))
  );
  assertEquals(missing, []);
});

test("promtool has nothing against the metrics", hasPromtool, () => {
  const { text: input } = exposition;
  const { status, stdout, stderr } = spawnSync("promtool", ["check", "metrics"], {
    input,
    encoding: "utf8",
  });
  assertEquals({ status, said: stdout + stderr }, { status: 0, said: "" });
});

/** What promtool says of tests that fail; nothing if all pass. */
function promtoolTest(tests: Json, rules?: Json): string {
  const folder = mkdtempSync(join(tmpdir(), "pull-secret-updater-alerts-"));
  try {
    if (rules) writeFileSync(join(folder, "rules.yaml"), JSON.stringify(rules)); // JSON is YAML
    writeFileSync(join(folder, "rules_test.yaml"), JSON.stringify(tests));
    const { status, stdout, stderr } = spawnSync("promtool", ["test", "rules", "rules_test.yaml"], {
      cwd: folder,
      encoding: "utf8",
    });
    return status === 0 ? "" : `${stdout}${stderr}`;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** What queries select: of which sample of ours, and by which labels. */
function selectorsIn(queries: string[]) {
  return queries.flatMap((query) =>
    [...query.matchAll(/\bpull_secret_updater_(\w+)(?:\{(.*?)\})?/g)].map((
      [, name, body = ""],
    ) => ({
      name,
      matchers: [...body.matchAll(/(\w+)(=~?)"([^"]*)"/g)].map((
        [, label = "", operator, values = ""],
      ) => ({ label, operator, values })),
    }))
  );
}

test("Labels and their values in queries are those that the program gives", () => {
  const queries = [...rules.map(({ expr }) => expr), ...panelQueries];
  const found = selectorsIn(queries).flatMap(({ name, matchers }) =>
    matchers.map((matcher) => ({ name, ...matcher }))
  );
  assertEquals(found.length, queries.join("\n").match(/="|=~"/g)?.length, "each is found");
  for (const { name, label, values } of found) {
    if (SCRAPE_LABELS.includes(label)) continue;
    for (const value of values.split("|")) {
      const isGiven = exposition.samples.some((sample) =>
        sample.name === name && sample.labels[label] === value
      );
      assertEquals([name, label, value, isGiven], [name, label, value, true]);
    }
  }
});

test("The dashboard lets choose a Prometheus, and clusters, jobs and instances of what was chosen before", () => {
  const [source, ...variables]: Json[] = DASHBOARD.templating.list;
  assertEquals([source.name, source.type, source.query], [
    "datasource",
    "datasource",
    "prometheus",
  ]);
  assertEquals(variables.map(({ name }) => name), SCRAPE_LABELS);
  for (const [i, { name, type, query, datasource, ...rest }] of variables.entries()) {
    const before = SCRAPE_LABELS.slice(0, i).map((label) => `${label}=~"$${label}"`).join();
    const series = `${METRIC_PREFIX}build_info${before && `{${before}}`}`;
    assertEquals([type, query.query, datasource.uid], [
      "query",
      `label_values(${series}, ${name})`,
      "${datasource}",
    ]);
    // All at first, and also where Prometheus does not add the label.
    assertEquals([rest.multi, rest.includeAll, rest.allValue, rest.current.value], [
      true,
      true,
      ".*",
      ["$__all"],
    ]);
  }
});

test("Each query of the dashboard is for what was chosen", () => {
  const chosen = SCRAPE_LABELS.map((label) => ({ label, operator: "=~", values: `$${label}` }));
  for (const { matchers } of selectorsIn(panelQueries)) assertEquals(matchers, chosen);
  for (const { datasource, targets } of DASHBOARD.panels) {
    for (const each of [{ datasource }, ...targets]) {
      assertEquals(each.datasource.uid, "${datasource}");
    }
  }
});

/** What a replica gives that sees two valid Secrets and two that are skipped, or has listed nothing. */
const seriesOf = (replica: Record<string, string>, expiry: number, hasListed: boolean) =>
  exposition.samples.filter(({ name }) => hasListed || name !== "token_expiry_timestamp_seconds")
    .map(({ name, labels }) => {
      const all = Object.entries({ ...labels, ...replica }).map(([label, value]) =>
        `${label}="${value}"`
      );
      const isSeen = hasListed && ["valid", "skipped"].includes(labels.state ?? "");
      const value = name === "secrets" ? (isSeen ? 2 : 0) : expiry;
      return { series: `${METRIC_PREFIX}${name}{${all}}`, values: `${value}x5` };
    });

test(
  "The dashboard counts each Secret once, of each Deployment in each cluster",
  hasPromtool,
  () => {
    const deployments = [
      { cluster: "east", job: "a", expiry: 100 },
      { cluster: "west", job: "a", expiry: 200 },
      { cluster: "west", job: "b", expiry: 300 },
    ];
    const input_series = deployments.flatMap(({ expiry, ...labels }) => [
      ...seriesOf({ ...labels, instance: "1" }, expiry, true),
      ...seriesOf({ ...labels, instance: "2" }, expiry, true),
      ...seriesOf({ ...labels, instance: "3" }, expiry, false),
    ]);
    const [states, lives] = DASHBOARD.panels.map(({ targets }: Json) =>
      targets.map(({ expr }: Json) => fillIn(expr, DASHBOARD.templating.list))
    );
    const samples = Object.entries({ expired: 0, missing: 0, skipped: 6, valid: 6 }).map((
      [state, value],
    ) => ({ labels: `{state="${state}"}`, value }));
    const promql_expr_test = [
      { expr: states[0], eval_time: "1m", exp_samples: samples },
      { expr: lives[0], eval_time: "1m", exp_samples: [{ labels: "{}", value: 40 }] },
      { expr: lives[1], eval_time: "1m", exp_samples: [{ labels: "{}", value: 140 }] },
    ];
    assertEquals(promtoolTest({ tests: [{ interval: "1m", input_series, promql_expr_test }] }), "");
  },
);

test("The dashboard colours names that the program gives", () => {
  const values = [
    ...exposition.samples.flatMap(({ labels }) => Object.values(labels)),
    ...DASHBOARD.panels.flatMap(({ targets }: Json) =>
      targets.map(({ legendFormat }: Json) => legendFormat)
    ),
  ];
  const coloured: string[] = DASHBOARD.panels.flatMap(({ fieldConfig }: Json) =>
    fieldConfig.overrides.map(({ matcher }: Json) => matcher.options)
  );
  assertEquals(coloured.filter((name) => !values.includes(name)), []);
});

test("The rules are tested with series that the program gives, and counters from their 0 on", () => {
  const text = read("docs/alerts/rules_test.yaml");
  const series = samplesIn(text.replace(/^ *- series: /gm, ""));
  assert(series.length > 20, "the series are found");
  const formOf = ({ name, labels }: Sample) =>
    JSON.stringify([
      name,
      Object.entries(labels).filter(([label]) => !SCRAPE_LABELS.includes(label))
        .map(([label, value]) => [label, FREE_LABELS.includes(label) ? "" : value]).sort(),
    ]);
  const forms = new Set(exposition.samples.map(formOf));
  assertEquals(series.filter((each) => !forms.has(formOf(each))), []);
  const counters = [...text.matchAll(/series: \S+_total\S*\n +values: (\S+)/g)];
  assert(counters.length > 5, "the counters are found");
  for (const [found, values] of counters) assert(!values!.startsWith("_"), found);
});

test("Each replica in the tests of the rules is scraped by its address, and counts its Secrets in all states", () => {
  const states = statesIn(exposition.samples);
  for (const { name, input_series } of parse(read("docs/alerts/rules_test.yaml")).tests) {
    const series = samplesIn(input_series.map((each: Json) => each.series).join("\n"));
    assertEquals(series.length, input_series.length, name);
    const replicas = Map.groupBy(
      series,
      ({ labels }) => JSON.stringify(SCRAPE_LABELS.map((label) => labels[label])),
    );
    for (const [replica, samples] of replicas) {
      assert(samples[0]?.labels.instance, `${name}: ${replica}`);
      const given = statesIn(samples);
      assertEquals(given, given.length === 0 ? [] : states, `${name}: ${replica}`);
    }
  }
});

test("The PrometheusRule has the rules of the rule file", () => {
  const resource = parse(read("docs/alerts/prometheusrule.yaml"));
  assertEquals([resource.apiVersion, resource.kind], [
    "monitoring.coreos.com/v1",
    "PrometheusRule",
  ]);
  assertEquals(resource.spec, RULES);
});

test("Each alert's name begins with the program's, and it says how bad it is, what to do, and where to read on", () => {
  for (const { alert, labels, annotations, ...rest } of rules) {
    assertMatch(alert, /^PullSecretUpdater[A-Z]/);
    assertMatch(labels.severity, /^(critical|warning|info)$/, alert);
    assertEquals(Object.keys(annotations), ["summary", "description", "runbook_url"], alert);
    assertEquals(Object.keys(rest).filter((key) => !["expr", "for"].includes(key)), []);
    assertEquals(annotations.runbook_url, `${RUNBOOKS}/docs/troubleshooting.md`, alert);
  }
});

test("Each file of rules names the address of the runbook once, and the page on it what to put there", () => {
  for (const name of ["rules.yaml", "prometheusrule.yaml"]) {
    assertEquals(read(`docs/alerts/${name}`).split(RUNBOOKS).length - 1, 1, name);
  }
  assert(read("docs/monitoring.md").includes(`\`${RUNBOOKS}\``));
});

test("Each alert has a test in which it fires, and one in which it does not", () => {
  const cases: Json[] = parse(read("docs/alerts/rules_test.yaml")).tests.flatMap((each: Json) =>
    each.alert_rule_test
  );
  const names = (fires: boolean) =>
    new Set(
      cases.filter(({ exp_alerts }) => Boolean(exp_alerts) === fires).map(({ alertname }) =>
        alertname
      ),
    );
  const alerts = new Set(rules.map(({ alert }) => alert));
  assertEquals([...names(true)].sort(), [...alerts].sort());
  assertEquals([...names(false)].sort(), [...alerts].sort());
});

test("promtool takes the rules, and their tests pass", hasPromtool, () => {
  execFileSync("promtool", ["check", "rules", "docs/alerts/rules.yaml"], {
    cwd: ROOT,
    stdio: "pipe",
  });
  execFileSync("promtool", ["test", "rules", "docs/alerts/rules_test.yaml"], {
    cwd: ROOT,
    stdio: "pipe",
  });
});

/** The alerts whose tests fail with other queries. */
function failingWith(change: (expr: string) => string): string[] {
  const groups = RULES.groups.map((group: Json) => ({
    ...group,
    rules: group.rules.map((rule: Json) => ({ ...rule, expr: change(rule.expr) })),
  }));
  const file = parse(read("docs/alerts/rules_test.yaml"));
  // The one of a day takes longer than all others together.
  const tests = file.tests.filter((each: Json) =>
    each.alert_rule_test.every(({ eval_time }: Json) => eval_time.endsWith("m"))
  );
  const found = promtoolTest({ ...file, tests }, { groups }).matchAll(/^ *alertname: ?(\w+)/gm);
  return [...new Set([...found].map(([, name = ""]) => name))].sort();
}

test("The tests of each alert fail if it joins clusters, or jobs", hasPromtool, () => {
  const alerts = rules.map(({ alert }) => alert).sort();
  assertEquals(failingWith((expr) => expr.replaceAll("cluster, ", "")), alerts);
  assertEquals(failingWith((expr) => expr.replaceAll(/, job\b/g, "")), alerts);
});

test("The tests of each alert on one kind of count fail if it takes all", hasPromtool, () => {
  const selective = rules.filter(({ expr }) => expr.includes('="') || expr.includes('=~"'));
  assert(selective.length > 3, "they are found");
  assertEquals(
    failingWith((expr) => expr.replaceAll(/\{.*?\}/g, "")),
    selective.map(({ alert }) => alert).sort(),
  );
});
