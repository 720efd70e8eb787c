/** The files of a service account, as the kubelet keeps them in a Pod. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Admin } from "./admin.ts";

export type Account = Awaited<ReturnType<typeof mountAccount>>;

interface Mount {
  dir: string;
  namespace: string;
  account: string;
  /** Of the subject token, which is beside the account's own. */
  audiences: string[];
  /** Default: the API server's. */
  readCa?: () => string;
}

/** In a folder. */
export async function mountAccount(
  admin: Admin,
  { dir, namespace, account, audiences, readCa = admin.readCa }: Mount,
) {
  mkdirSync(dir, { recursive: true });
  /** All tokens, none of which may be told. */
  const given: string[] = [];
  const write = (name: string, text: string) => {
    writeFileSync(join(dir, name), text);
    return join(dir, name);
  };
  const writeToken = async (name: string, ...audiences: string[]) => {
    const token = await admin.token(namespace, account, ...audiences);
    given.push(token);
    return write(name, token);
  };
  const giveToken = () => writeToken("token");
  const giveSubjectToken = () => writeToken("subject-token", ...audiences);
  const giveCa = () => write("ca.crt", readCa());
  write("namespace", namespace);
  giveCa();
  await giveToken();
  return {
    dir,
    given,
    write,
    giveToken,
    giveSubjectToken,
    giveCa,
    /** Variables that tell the program where they are. */
    settings: { SERVICE_ACCOUNT_DIR: dir, SUBJECT_TOKEN_FILE: await giveSubjectToken() },
  };
}
