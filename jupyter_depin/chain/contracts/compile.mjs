// Compiles the contracts with solcjs and writes their artifacts and the manifest: `node compile.mjs [output folder]`.
// The output depends on nothing but the sources, the lockfile and the settings below: no path, no time, no metadata hash.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const output = process.argv[2] ?? join(here, "..", "abi");
const solc = createRequire(import.meta.url)("solc");

const PUBLISHED = ["DemoToken", "ProviderRegistry", "SessionVault"];
const settings = {
  evmVersion: "cancun",
  viaIR: true,
  optimizer: { enabled: true, runs: 1_000_000 },
  metadata: { bytecodeHash: "none", appendCBOR: false },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
};

const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const own = readdirSync(here, { recursive: true })
  .map((name) => name.replaceAll("\\", "/"))
  .filter((name) => name.endsWith(".sol") && !name.startsWith("node_modules/"))
  .sort();
const sources = Object.fromEntries(own.map((name) => [name, { content: readFileSync(join(here, name), "utf8") }]));

const imported = {};
function readImport(path) {
  const file = join(here, "node_modules", path);
  if (!existsSync(file)) return { error: `${path} not found; run npm ci first` };
  const contents = readFileSync(file, "utf8");
  imported[path] = sha256(contents);
  return { contents };
}

const compiled = JSON.parse(
  solc.compile(JSON.stringify({ language: "Solidity", sources, settings }), { import: readImport }),
);
// Any warning stops the build, but for 2394: OpenZeppelin's guard clears its transient slot, which solc cannot see.
const complaints = (compiled.errors ?? []).filter(({ errorCode }) => errorCode !== "2394");
for (const { formattedMessage } of complaints) console.error(formattedMessage);
if (complaints.length > 0) process.exit(1);

mkdirSync(output, { recursive: true });
const artifacts = {};
for (const name of PUBLISHED) {
  const { abi, evm } = compiled.contracts[`${name}.sol`][name];
  const text = JSON.stringify({ abi, bytecode: `0x${evm.bytecode.object}` }, null, 1) + "\n";
  writeFileSync(join(output, `${name}.json`), text);
  artifacts[`${name}.json`] = sha256(text);
}

const sorted = (object) => Object.fromEntries(Object.entries(object).sort(([a], [b]) => (a < b ? -1 : 1)));
const compiler = { solc: solc.version(), settings };
const manifest = {
  compiler,
  compilerSha256: sha256(JSON.stringify(compiler)),
  sources: Object.fromEntries(own.map((name) => [name, sha256(sources[name].content)])),
  imports: sorted(imported),
  artifacts,
};
writeFileSync(join(output, "manifest.json"), JSON.stringify(manifest, null, 1) + "\n");
