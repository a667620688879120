// An independent reader of the reference vectors: its own unzip, its own NPY parser, its own attention. No packages.
// node read_vectors.js FOLDER   prints one JSON object: arrays read, cases recomputed, largest relative errors.
'use strict';
const fs = require('fs');
const path = require('path');
const crypto = require('crypto');

function unzip(bytes) {
  let end = bytes.length - 22;
  while (bytes.readUInt32LE(end) !== 0x06054b50) end--;
  const count = bytes.readUInt16LE(end + 10);
  let at = bytes.readUInt32LE(end + 16);
  const files = {};
  for (let i = 0; i < count; i++) {
    if (bytes.readUInt32LE(at) !== 0x02014b50) throw new Error('no central directory');
    if (bytes.readUInt16LE(at + 10) !== 0) throw new Error('compressed');
    const size = bytes.readUInt32LE(at + 24);
    const [name, extra, comment] = [28, 30, 32].map((o) => bytes.readUInt16LE(at + o));
    const local = bytes.readUInt32LE(at + 42);
    const start = local + 30 + bytes.readUInt16LE(local + 26) + bytes.readUInt16LE(local + 28);
    files[bytes.toString('utf8', at + 46, at + 46 + name)] = bytes.subarray(start, start + size);
    at += 46 + name + extra + comment;
  }
  return files;
}

function parseNpy(bytes) {
  if (bytes.toString('latin1', 0, 6) !== '\x93NUMPY' || bytes[6] !== 1) throw new Error('not NPY 1.0');
  const length = bytes.readUInt16LE(8);
  const header = bytes.toString('latin1', 10, 10 + length);
  const descr = /'descr': '([^']+)'/.exec(header)[1];
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(',').map((s) => s.trim()).filter((s) => s).map(Number);
  const body = bytes.subarray(10 + length);
  const read = {
    '<f8': [8, (o) => body.readDoubleLE(o)],
    '<i8': [8, (o) => Number(body.readBigInt64LE(o))],
    '|u1': [1, (o) => body[o]],
  }[descr];
  const total = shape.reduce((a, b) => a * b, 1);
  if (body.length !== total * read[0]) throw new Error('wrong length');
  return { shape, data: Array.from({ length: total }, (_, i) => read[1](i * read[0])) };
}

const worst = {};
function compare(kind, got, want) {
  const size = Math.max(...want.data.map(Math.abs).filter(Number.isFinite), 0) || 1;
  if (got.length !== want.data.length) throw new Error(`${kind}: length`);
  let error = 0;
  got.forEach((x, i) => {
    const here = x === want.data[i] ? 0 : Math.abs(x - want.data[i]) / size;
    if (!(here <= error)) error = Number.isNaN(here) ? Infinity : here;
  });
  worst[kind] = Math.max(worst[kind] || 0, error);
}

// Softmax attention of one head and its gradients; logits(i, j) returns undefined where query i may not see key j.
function attend(n, m, logits, v, dv_, dout) {
  const out = [], lse = [], dlogits = [], dv = new Array(m * dv_).fill(0);
  for (let i = 0; i < n; i++) {
    const s = Array.from({ length: m }, (_, j) => logits(i, j));
    const seen = s.filter((x) => x !== undefined);
    const top = seen.length ? Math.max(...seen) : 0;
    const w = s.map((x) => (x === undefined ? 0 : Math.exp(x - top)));
    const total = w.reduce((a, b) => a + b, 0);
    lse.push(total ? top + Math.log(total) : -Infinity);
    const p = w.map((x) => (total ? x / total : 0));
    const row = Array.from({ length: dv_ }, (_, a) => p.reduce((t, x, j) => t + x * v[j * dv_ + a], 0));
    out.push(...row);
    const dp = p.map((_, j) => row.reduce((t, _, a) => t + dout[i * dv_ + a] * v[j * dv_ + a], 0));
    const mean = p.reduce((t, x, j) => t + x * dp[j], 0);
    dlogits.push(p.map((x, j) => x * (dp[j] - mean)));
    p.forEach((x, j) => { for (let a = 0; a < dv_; a++) dv[j * dv_ + a] += x * dout[i * dv_ + a]; });
  }
  return { out, lse, dlogits, dv };
}

function dense(c, x) {
  const [heads, n, d] = x.q.shape, [kv, m, width] = x.v.shape;
  const got = { out: [], log_sum_exp: [], dq: [], dk: new Array(kv * m * d).fill(0), dv: new Array(kv * m * width).fill(0) };
  for (let h = 0; h < heads; h++) {
    const g = Math.floor((h * kv) / heads);
    const q = x.q.data.slice(h * n * d, (h + 1) * n * d), k = x.k.data.slice(g * m * d, (g + 1) * m * d);
    const v = x.v.data.slice(g * m * width, (g + 1) * m * width);
    const dout = x.dout.data.slice(h * n * width, (h + 1) * n * width);
    const logits = (i, j) => {
      if ((c.options.causal && j > i) || (x.mask && !x.mask.data[i * m + j])) return undefined;
      let s = 0;
      for (let a = 0; a < d; a++) s += q[i * d + a] * k[j * d + a];
      return s * c.options.scale;
    };
    const r = attend(n, m, logits, v, width, dout);
    got.out.push(...r.out);
    got.log_sum_exp.push(...r.lse);
    for (let i = 0; i < n; i++) for (let a = 0; a < d; a++) {
      got.dq.push(c.options.scale * r.dlogits[i].reduce((t, w, j) => t + w * k[j * d + a], 0));
      for (let j = 0; j < m; j++) got.dk[(g * m + j) * d + a] += c.options.scale * r.dlogits[i][j] * q[i * d + a];
    }
    r.dv.forEach((w, i) => { got.dv[g * m * width + i] += w; });
  }
  for (const name of c.results) compare(`dense ${name}`, got[name], x[name]);
}

function conv(c, x) {
  const [n, d] = x.q.shape, width = x.v.shape[1];
  const start = (j) => Math.max(...x.starts.data.filter((s) => s <= j));
  const logits = (i, j) => {
    if (j > i) return undefined;
    const s = start(j), row = s + i - j;
    let sum = 0;
    for (let a = 0; a < d; a++) sum += x.q.data[row * d + a] * x.k.data[s * d + a];
    return sum * c.options.scale;
  };
  const r = attend(n, n, logits, x.v.data, width, x.dout.data);
  compare('conv out', r.out, x.out);
  compare('conv dv', r.dv, x.dv);
}

// Smallest t with the sum of clip(z - t, 0, 1) at most k, by bisection; -Infinity where everything fits.
function threshold(z, k) {
  const finite = z.filter(Number.isFinite);
  if (finite.length <= k) return -Infinity;
  const spent = (t) => finite.reduce((sum, x) => sum + Math.min(Math.max(x - t, 0), 1), 0);
  let low = Math.min(...finite) - 1, high = Math.max(...finite);
  for (let i = 0; i < 200; i++) {
    const middle = low / 2 + high / 2;
    if (spent(middle) <= k) high = middle; else low = middle;
  }
  return high;
}

function operator(c, x) {
  const tau = threshold(x.z.data, c.options.k);
  compare('sparsek tau', [tau], x.tau);
  compare('sparsek p', x.z.data.map((z) => (z === -Infinity ? 0 : Math.min(Math.max(z - tau, 0), 1))), x.p);
}

function thresholds(c, x) {
  compare('prefix tau', x.z.data.map((_, i) => threshold(x.z.data.slice(0, i + 1), c.options.k)), x.tau);
}

const folder = process.argv[2];
const manifest = JSON.parse(fs.readFileSync(path.join(folder, 'manifest.json'), 'utf8'));
let arrays = 0, cases = 0;
for (const [file, described] of Object.entries(manifest.files)) {
  const bytes = fs.readFileSync(path.join(folder, file));
  if (crypto.createHash('sha256').update(bytes).digest('hex') !== described.sha256) throw new Error(`${file}: hash`);
  const stored = unzip(bytes);
  for (const c of described.cases) {
    const x = {};
    for (const [name, kind] of Object.entries(c.arrays)) {
      x[name] = parseNpy(stored[`${c.name}.${name}.npy`]);
      if (JSON.stringify(x[name].shape) !== JSON.stringify(kind.shape)) throw new Error(`${c.name}.${name}: shape`);
      arrays++;
    }
    const check = { dense, conv, 'sparsek-operator': operator, 'sparsek-thresholds': thresholds }[c.operation];
    if (check) { check(c, x); cases++; }
  }
}
console.log(JSON.stringify({ arrays, cases, worst }));
