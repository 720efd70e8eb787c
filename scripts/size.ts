/**
 * Is the product still small and simple enough to be read? Prints how large `main.ts`, `k8s.ts` and
 * `sts.ts` are, and how complex, beside the budget. Exit status 1 if anything is over it, and a
 * line for each thing that is.
 *
 * Usage: node scripts/size.ts
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import {
  createScanner,
  isBinaryExpression,
  isFunctionLikeDeclaration,
  isIfStatement,
  isPropertyAssignment,
  isVariableDeclaration,
  type Node,
  type SourceFile,
  SyntaxKind,
} from "typescript/unstable/ast";
// TypeScript calls its API unstable: another version may ask for changes here. On Deno its
// `unstable/sync` fails.
import { API } from "typescript/unstable/async";
import { createVirtualFileSystem } from "typescript/unstable/fs";

const ROOT = join(import.meta.dirname!, "..");
export const PRODUCT = ["main.ts", "k8s.ts", "sts.ts"];

/**
 * Of the files together: some 1,400 lines at width 100, which one reads in an afternoon. Not lines,
 * as no comment and no layout changes the count of tokens.
 */
export const MAX_TOKENS = 12_500;
/** Of a function: the limit that Sonar sets. */
export const MAX_COMPLEXITY = 15;
/** Of a function, its comments included: what fits on a printed page. */
export const MAX_LINES = 60;
/** Of a line: as in `deno.json`. `deno fmt` leaves long texts and comments as they are. */
export const MAX_COLUMNS = 100;

export interface FunctionSize {
  name: string;
  file: string;
  /** Where it begins, from 1 on. */
  line: number;
  lines: number;
  /** Cognitive complexity. */
  complexity: number;
}

export interface FileSize {
  file: string;
  tokens: number;
  functions: FunctionSize[];
  /** Of each line. */
  columns: number[];
}

/** Measures files of these names and texts. */
export async function measure(texts: Record<string, string>): Promise<FileSize[]> {
  // The compiler takes no file but in a project. This one has no libraries, which would take time.
  const config = "/project/tsconfig.json";
  const pathOf = (file: string) => `/project/${file}`;
  const compilerOptions = { noLib: true, noResolve: true, types: [] };
  const files: Record<string, string> = {
    [config]: JSON.stringify({ compilerOptions, files: Object.keys(texts) }),
  };
  for (const [file, text] of Object.entries(texts)) files[pathOf(file)] = text;
  const api = new API({ cwd: "/project", fs: createVirtualFileSystem(files) });
  try {
    const snapshot = await api.updateSnapshot({ openProjects: [config] });
    const { program } = snapshot.getProject(config)!;
    const sizes: FileSize[] = [];
    for (const [file, text] of Object.entries(texts)) {
      const source = (await program.getSourceFile(pathOf(file)))!;
      sizes.push({
        file,
        tokens: countTokens(source),
        functions: functionsIn(source, file),
        columns: text.split("\n").map((line) => line.length),
      });
    }
    return sizes;
  } finally {
    await api.close();
  }
}

function countTokens(source: SourceFile): number {
  const scanner = createScanner(true, source.languageVariant, source.text);
  let [count, position] = [0, 0];
  function visit(node: Node): undefined {
    if (node.kind > SyntaxKind.LastToken) {
      node.forEachChild(visit);
      return;
    }
    // The tree has the tokens that the scanner cannot tell by itself, as regular expressions and
    // templates, but no brackets, and not each keyword. Those are scanned, from token to token.
    const start = node.getStart(source);
    scanner.resetTokenState(position);
    while (scanner.scan() !== SyntaxKind.EndOfFile && scanner.getTokenStart() < start) count++;
    if (node.kind !== SyntaxKind.EndOfFile) count++;
    position = node.end;
  }
  visit(source);
  return count;
}

/** The functions that have a name, and those that stand in no other. */
function functionsIn(source: SourceFile, file: string): FunctionSize[] {
  const functions: FunctionSize[] = [];
  const lineOf = (position: number) => source.getLineAndCharacterOfPosition(position).line + 1;
  function visit(node: Node, isInner: boolean): undefined {
    const isFunction = isFunctionLikeDeclaration(node) && node.body !== undefined;
    const name = isFunction ? nameOf(node) : undefined;
    if (isFunction && (name !== undefined || !isInner)) {
      const line = lineOf(node.getStart(source));
      functions.push({
        name: name ?? "a function without a name",
        file,
        line,
        lines: lineOf(node.end) - line + 1,
        complexity: complexityOf(node.body!),
      });
    }
    node.forEachChild((child) => visit(child, isInner || isFunction));
  }
  visit(source, false);
  return functions;
}

/** The name of a function: its own, or that of the constant or the property that it is. */
function nameOf(node: Node & { name?: Node }): string | undefined {
  const { name, parent } = node;
  if (name !== undefined) return name.getText();
  const isNamed = isVariableDeclaration(parent) || isPropertyAssignment(parent);
  return isNamed ? parent.name.getText() : undefined;
}

/** What costs one, and one more for each of them and each function that it stands in. */
const NESTING = new Set([
  SyntaxKind.CatchClause,
  SyntaxKind.ConditionalExpression,
  SyntaxKind.DoStatement,
  SyntaxKind.ForInStatement,
  SyntaxKind.ForOfStatement,
  SyntaxKind.ForStatement,
  SyntaxKind.IfStatement,
  SyntaxKind.SwitchStatement,
  SyntaxKind.WhileStatement,
]);

/**
 * Sonar's cognitive complexity, but that what stands in an `else if` is one deeper than what stands
 * in its `if`, and that a jump to a label is free. A function without a name is a part of the one
 * that it stands in.
 */
function complexityOf(node: Node, depth = 0): number {
  const isFunction = isFunctionLikeDeclaration(node);
  if (isFunction && nameOf(node) !== undefined) return 0;
  let sum = ownComplexity(node, depth);
  const inner = isFunction || NESTING.has(node.kind) ? depth + 1 : depth;
  node.forEachChild((child) => {
    sum += complexityOf(child, inner);
  });
  return sum;
}

function ownComplexity(node: Node, depth: number): number {
  const { parent } = node;
  const isElse = isIfStatement(parent) && parent.elseStatement === node;
  if (isElse && isIfStatement(node)) return 1;
  const operator = sequenceOf(node);
  const beginsSequence = operator !== undefined && operator !== sequenceOf(parent);
  return Number(isElse) + Number(beginsSequence) + (NESTING.has(node.kind) ? 1 + depth : 0);
}

/** The operator of a sequence of conditions, which costs one however long it is. */
function sequenceOf(node: Node): SyntaxKind | undefined {
  const kind = isBinaryExpression(node) ? node.operatorToken.kind : undefined;
  return [SyntaxKind.AmpersandAmpersandToken, SyntaxKind.BarBarToken].find((each) => each === kind);
}

/** What is over the budget, a line for each. */
export function findExcesses(files: FileSize[]): string[] {
  const sizes: [where: string, size: number, unit: string, most: number][] = [
    [files.map(({ file }) => file).join(", "), totalOf(files), "tokens", MAX_TOKENS],
  ];
  for (const { file, line, name, lines, complexity } of files.flatMap((each) => each.functions)) {
    const where = `${file}:${line}: ${name}`;
    sizes.push([where, lines, "lines", MAX_LINES]);
    sizes.push([where, complexity, "points of complexity", MAX_COMPLEXITY]);
  }
  for (const { file, columns } of files) {
    columns.forEach((size, index) =>
      sizes.push([`${file}:${index + 1}`, size, "columns", MAX_COLUMNS])
    );
  }
  return sizes.filter(([, size, , most]) => size > most).map(([where, size, unit, most]) =>
    `${where}: ${size} ${unit}, ${size - most} over the budget of ${most}`
  );
}

const totalOf = (files: FileSize[]) => files.reduce((sum, { tokens }) => sum + tokens, 0);

async function main(): Promise<void> {
  const texts = PRODUCT.map((file) => [file, readFileSync(join(ROOT, file), "utf8")]);
  const files = await measure(Object.fromEntries(texts));
  for (const { file, tokens } of files) console.log(`${file}: ${tokens} tokens`);
  console.log(`in all: ${totalOf(files)} tokens of ${MAX_TOKENS}`);
  const functions = files.flatMap((each) => each.functions);
  const most = (key: "lines" | "complexity") => functions.reduce((a, b) => b[key] > a[key] ? b : a);
  const [longest, worst] = [most("lines"), most("complexity")];
  console.log(`longest function: ${longest.name}, ${longest.lines} lines of ${MAX_LINES}`);
  console.log(`most complex function: ${worst.name}, ${worst.complexity} of ${MAX_COMPLEXITY}`);
  const excesses = findExcesses(files);
  for (const excess of excesses) console.log(`over budget: ${excess}`);
  if (excesses.length > 0) process.exitCode = 1;
}

if (import.meta.main) await main();
