// Compiles the front end's pure modules in memory and runs one of the checks below on JSON from stdin.
// Called by the Python tests beside it, with the path of `labextension/` as its argument.
const fs = require('fs');
const Module = require('module');
const path = require('path');

const root = process.argv[2];
const check = process.argv[3];
const ts = Module.createRequire(path.join(root, 'package.json'))('typescript');

Module._extensions['.ts'] = (module, file) => {
  const compilerOptions = { module: 'commonjs', target: 'es2020' };
  module._compile(ts.transpileModule(fs.readFileSync(file, 'utf8'), { compilerOptions }).outputText, file);
};
const load = name => require(path.join(root, 'src', `${name}.ts`));

// Gettext without a catalogue, as JupyterLab's own null translator: only the arguments are put in.
const fill = (text, args) => text.replace(/%(\d+)/g, (_, n) => args[n - 1]);
const trans = {
  __: (text, ...args) => fill(text, args),
  _n: (one, many, n, ...args) => fill(n === 1 ? one : many, args)
};

const checks = {
  amounts: rows => rows.map(([value, decimals]) => load('format').formatAmount(BigInt(value), decimals)),
  short: rows => rows.map(([value, decimals]) => load('format').formatShort(BigInt(value), decimals)),
  clock: rows => rows.map(ns => load('format').formatClock(BigInt(ns))),

  // Each wire report is taken in at `at` ms and read at `now` ms.
  bar: rows =>
    rows.map(({ wire, at, now }) => {
      const messages = load('messages');
      const rental = new (load('model').Rentals)({}, () => at).report(wire);
      return [messages.shape(rental.state), rental.title, ...messages.barParts(trans, rental, now)].join(' · ');
    }),
  label: rows =>
    rows.map(({ wire, at, now }) => {
      const rental = new (load('model').Rentals)({}, () => at).report(wire);
      return load('messages').buttonLabel(trans, rental, now);
    }),
  link: rows => rows.map(wire => load('messages').link(trans, new (load('model').Rentals)({}, () => 0).report(wire))),
  saving: rows =>
    rows.map(wire => load('messages').saving(trans, new (load('model').Rentals)({}, () => 0).report(wire))),
  reasons: codes => codes.map(code => load('messages').reason(trans, { code, facts: {} })),

  // A play: reports by event, and lists that answer a request made before them.
  play: async steps => {
    let answer;
    const model = new (load('model').Rentals)({ list: () => new Promise(resolve => (answer = resolve)) }, () => 0);
    let pending = Promise.resolve();
    const seen = [];
    for (const [step, value] of steps) {
      if (step === 'event') model.report(value);
      if (step === 'ask') pending = model.refresh();
      if (step === 'reply') {
        answer(value);
        await pending;
      }
      seen.push(model.live().map(rental => rental.spent.toString()));
    }
    return seen;
  }
};

Promise.resolve(checks[check](JSON.parse(fs.readFileSync(0, 'utf8')))).then(result =>
  process.stdout.write(JSON.stringify(result))
);
