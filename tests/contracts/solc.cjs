#!/usr/bin/env node
// Stands in for the native compiler, which npm does not have: forge runs it, solcjs does the work.
const fs = require("fs");
const path = require("path");
const solc = require(path.join(process.cwd(), "node_modules", "solc"));

const given = process.argv.slice(2);
if (given.includes("--version")) {
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}`);
} else if (given.includes("--standard-json")) {
  const readImport = (name) => {
    const found = [name, path.join("node_modules", name)].find((file) => fs.existsSync(file));
    return found ? { contents: fs.readFileSync(found, "utf8") } : { error: `${name} not found` };
  };
  process.stdout.write(solc.compile(fs.readFileSync(0, "utf8"), { import: readImport }));
} else {
  console.error(`solc.cjs does not understand ${given.join(" ")}`);
  process.exitCode = 1;
}
