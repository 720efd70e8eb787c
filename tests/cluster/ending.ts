/** Ends a run of its own cluster: with the exit status that it gives, and never without taking everything down. */
import process from "node:process";

/** Runs `main`; then, or upon a failure or a signal, takes everything down and ends the process. */
export function runToTheEnd(main: () => Promise<number>, takeDown: () => Promise<unknown>): void {
  let isEnding = false;

  async function end(status: number): Promise<void> {
    if (isEnding) return;
    isEnding = true;
    await takeDown().catch((error) => {
      console.error(error);
      status ||= 1;
    });
    process.exit(status);
  }

  function fail(error: Error): Promise<void> {
    console.error(error);
    return end(1);
  }

  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.on(signal, () => void fail(new Error(signal)));
  }
  process.on("uncaughtException", (error) => void fail(error));
  main().then(end, fail);
}
