/** What is done to etcd: its disk is filled and made free again; it is restored from a backup. As operators do it. */
import { Buffer } from "node:buffer";
import { cpSync, renameSync, rmSync } from "node:fs";
import { request } from "undici";
import type { Cluster } from "../cluster.ts";
import { etcdAddress, type Options, paths } from "../components.ts";
import type { Json } from "../../support/json.ts";

/** Below the 1.5 MiB that etcd takes for one request. */
const JUNK_BYTES = 1024 * 1024;

const base64 = (text: string) => Buffer.from(text).toString("base64");
/** All keys from `junk/` on, before `junk0`. */
const JUNK = { key: base64("junk/"), range_end: base64("junk0") };

/** Fills it up to its quota, over its JSON gateway; returns what makes it free again. */
export async function fillEtcd(options: Options): Promise<() => Promise<void>> {
  async function ask(path: string, body: object): Promise<Json> {
    const url = `${etcdAddress(options)}/v3/${path}`;
    const answer = await request(url, { method: "POST", body: JSON.stringify(body) });
    const text = await answer.body.text();
    if (answer.statusCode !== 200) throw new Error(`etcd, ${path}: ${answer.statusCode} ${text}`);
    return JSON.parse(text);
  }

  const value = Buffer.alloc(JUNK_BYTES).toString("base64");
  for (let count = 0; count <= options.etcdQuotaMB; count++) {
    const full = await ask("kv/put", { key: base64(`junk/${count}`), value }).then(
      () => false,
      () => true,
    );
    if (full) break;
  }
  const { alarms = [] } = await ask("maintenance/alarm", { action: "GET" });
  if (alarms.length === 0) throw new Error(`etcd is not full after ${options.etcdQuotaMB} MB`);

  return async () => {
    const { header: { revision } } = await ask("kv/deleterange", JUNK);
    await ask("kv/compaction", { revision, physical: true });
    await ask("maintenance/defragment", {});
    for (const alarm of alarms) await ask("maintenance/alarm", { ...alarm, action: "DEACTIVATE" });
  };
}

/** Makes a backup; returns what restores it. The API server is stopped for either. */
export async function backUpEtcd(cluster: Cluster): Promise<() => Promise<void>> {
  const data = paths(cluster.options.dir).etcd;
  const backup = `${data}-backup`;
  async function whileStopped(act: () => void): Promise<void> {
    await cluster.stop("kube-apiserver");
    await cluster.stop("etcd");
    act();
    await cluster.start("etcd");
    await cluster.start("kube-apiserver");
    await cluster.apiServerReady();
  }
  await whileStopped(() => cpSync(data, backup, { recursive: true }));
  return () =>
    whileStopped(() => {
      rmSync(data, { recursive: true });
      renameSync(backup, data);
    });
}
