// The cluster's programs, built by Go from the two modules beside this file, once for each state of
// their go.mod and go.sum, and kept in the user's cache folder.

import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { run } from "../support/processes.ts";

const HERE = fileURLToPath(new URL(".", import.meta.url));

interface Build {
  what: string;
  module: "kubernetes" | "containerd";
  /** Names of the programs, and the Go packages they are made of. */
  programs: Record<string, string>;
  /** The first build on two cores; Go's own cache makes later ones a matter of seconds. */
  minutes: number;
}

const KUBERNETES = "k8s.io/kubernetes/cmd";
const CONTAINERD = "github.com/containerd/containerd/v2/cmd";

const CONTROL_PLANE: Build = {
  what: "the control plane",
  module: "kubernetes",
  programs: {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": `${KUBERNETES}/kube-apiserver`,
    "kube-controller-manager": `${KUBERNETES}/kube-controller-manager`,
    "kubectl": `${KUBERNETES}/kubectl`,
  },
  minutes: 5,
};
const NODE: Build[] = [{
  what: "scheduler and kubelet",
  module: "kubernetes",
  programs: {
    "kube-scheduler": `${KUBERNETES}/kube-scheduler`,
    "kubelet": `${KUBERNETES}/kubelet`,
  },
  minutes: 1,
}, {
  what: "containerd",
  module: "containerd",
  programs: {
    "containerd": `${CONTAINERD}/containerd`,
    "containerd-shim-runc-v2": `${CONTAINERD}/containerd-shim-runc-v2`,
    "ctr": `${CONTAINERD}/ctr`,
  },
  minutes: 1,
}];
const stepsFor = (node: boolean) => [CONTROL_PLANE, ...node ? NODE : []];

export const PAUSE_IMAGE = "localhost/pause:1";

/** The process that holds a Pod's namespaces. */
const PAUSE_PROGRAM = `package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
}
`;

/** The folder of the programs; its name changes whenever one of the modules does. */
export function binFolder(): string {
  const hash = createHash("sha256");
  for (const module of ["kubernetes", "containerd"]) {
    for (const file of ["go.mod", "go.sum"]) hash.update(fs.readFileSync(join(HERE, module, file)));
  }
  const cache = process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
  return join(cache, "pull-secret-updater", `cluster-${hash.digest("hex").slice(0, 12)}`, "bin");
}

/** Builds what is not there yet, and gives the folder that holds it. */
export async function build(node: boolean, say: (line: string) => void): Promise<string> {
  const bin = binFolder();
  fs.mkdirSync(bin, { recursive: true });
  for (const step of stepsFor(node)) {
    const names = Object.keys(step.programs).filter((name) => !fs.existsSync(join(bin, name)));
    if (names.length === 0) continue;
    const began = Date.now();
    say(`building ${step.what} (${names.join(", ")}), about ${step.minutes} min the first time`);
    await goBuild(step, names, bin);
    say(`built ${step.what} in ${seconds(began)}, kept in ${bin}`);
  }
  if (node && !fs.existsSync(join(bin, "pause.tar"))) await makePauseImage(bin);
  return bin;
}

/** Whether there is anything to build, and Go needed for it. */
export function isBuilt(node: boolean): boolean {
  const files = stepsFor(node).flatMap((step) => Object.keys(step.programs));
  if (node) files.push("pause.tar");
  return files.every((name) => fs.existsSync(join(binFolder(), name)));
}

/**
 * One `go build`, into a folder of its own: whole programs are then moved to their place, so that a
 * build that was broken off leaves nothing half written there. Go names a program by the last part of
 * its package's path that is no version: etcd's is `server`.
 */
const BUILD_SCRIPT = `
flags=$1 out=$2 bin=$3
shift 3
rm -rf "$out"
nice go build -trimpath -ldflags "$flags" -o "$out/" "$@"
if [ -e "$out/server" ]; then mv "$out/server" "$out/etcd"; fi
mv "$out"/* "$bin"
rmdir "$out"
`;

/** `flock` lets a second build wait for the first; it then finds everything in Go's own cache. */
async function goBuild(step: Build, names: string[], bin: string): Promise<void> {
  const packages = names.map((name) => step.programs[name] as string);
  const args = [linkerFlags(step), `${bin}.build`, bin, ...packages];
  await run("flock", [`${bin}.lock`, "sh", "-ec", BUILD_SCRIPT, "build", ...args], {
    cwd: join(HERE, step.module),
    env: { CGO_ENABLED: "0" },
  });
}

/** Kubernetes' programs tell their version only if the linker puts it in; clients parse it. */
function linkerFlags(step: Build): string {
  if (step.module !== "kubernetes") return "-s -w";
  const goMod = fs.readFileSync(join(HERE, "kubernetes", "go.mod"), "utf8");
  const [version, major, minor] = /k8s\.io\/kubernetes v(\d+)\.(\d+)\.\d+/.exec(goMod) ?? [];
  if (version === undefined) {
    throw new Error("kubernetes/go.mod does not require k8s.io/kubernetes");
  }
  const set = {
    gitVersion: version.split(" ")[1],
    gitMajor: major,
    gitMinor: minor,
  };
  const flags = Object.entries(set).map(([key, value]) =>
    `-X k8s.io/component-base/version.${key}=${value}`
  );
  return ["-s -w", ...flags].join(" ");
}

/** An OCI image of one static program, as an archive for `ctr image import`. */
async function makePauseImage(bin: string): Promise<void> {
  const work = fs.mkdtempSync(join(tmpdir(), "pause-"));
  try {
    fs.writeFileSync(join(work, "pause.go"), PAUSE_PROGRAM);
    await run("go", ["build", "-trimpath", "-ldflags", "-s -w", "-o", "pause", "pause.go"], {
      cwd: work,
      env: { CGO_ENABLED: "0" },
    });
    await run("tar", ["--owner=0", "--group=0", "-cf", "layer.tar", "pause"], { cwd: work });

    const blobs = join(work, "image", "blobs", "sha256");
    fs.mkdirSync(blobs, { recursive: true });
    const addBlob = (mediaType: string, content: Uint8Array) => {
      const hex = createHash("sha256").update(content).digest("hex");
      fs.writeFileSync(join(blobs, hex), content);
      return { mediaType, digest: `sha256:${hex}`, size: content.length };
    };
    const json = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));

    const type = "application/vnd.oci.image";
    const layer = addBlob(`${type}.layer.v1.tar`, fs.readFileSync(join(work, "layer.tar")));
    const config = addBlob(
      `${type}.config.v1+json`,
      json({
        architecture: process.arch === "x64" ? "amd64" : process.arch,
        os: "linux",
        config: { Entrypoint: ["/pause"] },
        rootfs: { type: "layers", diff_ids: [layer.digest] },
      }),
    );
    const manifest = addBlob(
      `${type}.manifest.v1+json`,
      json({ schemaVersion: 2, mediaType: `${type}.manifest.v1+json`, config, layers: [layer] }),
    );
    const annotations = { "io.containerd.image.name": PAUSE_IMAGE };
    const index = { schemaVersion: 2, manifests: [{ ...manifest, annotations }] };
    fs.writeFileSync(join(work, "image", "index.json"), json(index));
    fs.writeFileSync(join(work, "image", "oci-layout"), json({ imageLayoutVersion: "1.0.0" }));

    await run("tar", ["-C", "image", "-cf", "pause.tar", "."], { cwd: work });
    fs.copyFileSync(join(work, "pause.tar"), `${bin}.pause`);
    fs.renameSync(`${bin}.pause`, join(bin, "pause.tar"));
  } finally {
    fs.rmSync(work, { recursive: true });
  }
}

export function seconds(since: number): string {
  return `${((Date.now() - since) / 1000).toFixed(1)} s`;
}
