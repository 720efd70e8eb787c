/**
 * The images: the program's, built from the Containerfile on bases that are made of what `npm ci` brought (this machine
 * need not reach a public registry), and small private ones for Pods to pull.
 */
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { run } from "../../support/processes.ts";
import { ROOT } from "../../support/paths.ts";

/**
 * buildah's own storage: kept from run to run, so that only what has changed is built. It is begun anew when the
 * dependencies change: hardly a layer would serve again, and they are large.
 */
const CACHE = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "pull-secret-updater");
const STORAGES = "e2e-containers-";
const lock = fs.readFileSync(join(ROOT, "package-lock.json"));
const STORAGE = join(
  CACHE,
  STORAGES + createHash("sha256").update(lock).digest("hex").slice(0, 12),
);

/** 65532 is distroless' own user. */
const PASSWD =
  "root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
const GROUP = "root:x:0:\nnonroot:x:65532:\n";
/** What the public Deno image sets. */
const DENO_ENV = "DENO_DIR=/deno-dir/ DENO_INSTALL_ROOT=/usr/local DENO_USE_CGROUPS=1";
const CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt";

const buildah = (args: string[], cwd = ROOT) =>
  run("buildah", ["--root", STORAGE, "--runroot", join(STORAGE, "run"), ...args], { cwd });
const buildImage = (tag: string, ...args: string[]) =>
  buildah(["bud", "--quiet", "--layers", "--isolation", "chroot", "--tag", tag, ...args]);

/** Stand-ins for the public images of both runtimes, by the names that the Containerfile's arguments have. */
export interface Bases {
  BASE: string;
  BUILD: string;
}

export async function buildBases(work: string): Promise<Bases> {
  fs.mkdirSync(STORAGE, { recursive: true });
  for (const name of fs.readdirSync(CACHE).filter((name) => name.startsWith(STORAGES))) {
    if (join(CACHE, name) !== STORAGE) fs.rmSync(join(CACHE, name), { recursive: true });
  }
  return {
    BASE: await makeBase(
      work,
      "base",
      (folder) => addProgram(folder, "/bin/deno", require("deno/deno")),
      DENO_ENV,
    ),
    BUILD: await makeBase(work, "build", addNode),
  };
}

/** Builds the program's image; `archive` is for `ctr image import`. */
export async function buildProgram(
  { BASE, BUILD }: Bases,
  image: string,
  archive: string,
): Promise<void> {
  await buildImage(image, "--build-arg", `BASE=${BASE}`, "--build-arg", `BUILD=${BUILD}`, ".");
  await save(image, archive);
}

/** Writes an image into a file for `ctr image import`. */
export async function save(image: string, archive: string): Promise<void> {
  await buildah(["push", "--quiet", image, `docker-archive:${archive}:${image}`]);
}

/** Makes a private image that runs until it is ended; each has other content, as the kubelet goes by the image's ID. */
export async function buildApp(
  work: string,
  bin: string,
  version: string,
  archive: string,
): Promise<void> {
  const folder = join(work, `app-${version}`);
  fs.mkdirSync(folder);
  fs.writeFileSync(join(folder, "version"), `${version}\n`);
  // The program that holds a Pod's namespaces runs until it is ended.
  fs.writeFileSync(
    join(folder, "Containerfile"),
    `FROM oci-archive:${join(bin, "pause.tar")}\nCOPY version /\n`,
  );
  await buildImage(`app:${version}`, folder);
  await save(`app:${version}`, archive);
}

/** An image from scratch, of what `fill` puts into its folder. */
async function makeBase(
  work: string,
  name: string,
  fill: (folder: string) => Promise<void>,
  env = "",
): Promise<string> {
  const folder = join(work, name);
  for (const each of ["etc", "tmp", "root"]) fs.mkdirSync(join(folder, each), { recursive: true });
  fs.chmodSync(join(folder, "tmp"), 0o1777);
  fs.writeFileSync(join(folder, "etc", "passwd"), PASSWD);
  fs.writeFileSync(join(folder, "etc", "group"), GROUP);
  fs.writeFileSync(join(folder, "etc", "nsswitch.conf"), "hosts: files dns\n");
  await fill(folder);
  // With a tag of its own: `latest` is always pulled.
  const tag = `localhost/pull-secret-updater-${name}:e2e`;
  const file = join(work, `${name}.containerfile`);
  fs.writeFileSync(file, `FROM scratch\nCOPY . /\nENV PATH=/bin ${env}\n`);
  await buildImage(tag, "--file", file, folder);
  fs.rmSync(folder, { recursive: true });
  return tag;
}

/** Node, npm and a shell, with this machine's certificates for npm: nothing of it comes into the image. */
async function addNode(folder: string): Promise<void> {
  await addProgram(
    folder,
    "/bin/node",
    require(`node-${process.platform}-${process.arch}/bin/node`),
  );
  await addProgram(folder, "/bin/sh", "/bin/sh");
  await addProgram(folder, "/bin/env", "/usr/bin/env");
  fs.mkdirSync(join(folder, "usr"));
  fs.symlinkSync("/bin", join(folder, "usr/bin"));
  const npm = dirname(dirname(fs.realpathSync((await run("sh", ["-c", "command -v npm"])).trim())));
  fs.cpSync(npm, join(folder, "lib/npm"), { recursive: true, dereference: true });
  fs.symlinkSync("../lib/npm/bin/npm-cli.js", join(folder, "bin/npm"));
  fs.mkdirSync(join(folder, "etc/ssl/certs"), { recursive: true });
  fs.copyFileSync(CERTIFICATES, join(folder, CERTIFICATES));
  fs.writeFileSync(join(folder, "root/.npmrc"), `cafile=${CERTIFICATES}\nupdate-notifier=false\n`);
  for (const name of ["resolv.conf", "hosts"]) {
    fs.copyFileSync(`/etc/${name}`, join(folder, "etc", name));
  }
}

/** A program, and the libraries that it is linked with, at their own places. */
async function addProgram(folder: string, name: string, program: string): Promise<void> {
  const linked = await run("ldd", [program]);
  const files = linked.match(/(?<=^\s|=> )\/\S+/gm) ?? [];
  // The resolver loads these by name, when it is first asked.
  const resolver = files.filter((file) => file.includes("/libc.so")).flatMap((libc) =>
    ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"].map((library) =>
      join(dirname(libc), library)
    )
  );
  for (const file of [...files, ...resolver].filter((each) => fs.existsSync(each))) {
    copy(file, join(folder, file));
  }
  copy(program, join(folder, name));
}

function copy(from: string, to: string): void {
  fs.mkdirSync(dirname(to), { recursive: true });
  fs.copyFileSync(fs.realpathSync(from), to);
  fs.chmodSync(to, 0o755);
}

const require = (file: string) => join(ROOT, "node_modules", file);
