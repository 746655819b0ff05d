/**
 * Amounts and times as text. Pure, and free of imports, so that it can be tested alone.
 *
 * Amounts are BigInt base units. Their decimals are cut, never rounded up or passed through `number`, and written
 * with a point in every language, so that a figure here can be compared letter by letter with the command line's.
 */

const NS_PER_MS = 1_000_000n;
const NS_PER_SECOND = 1_000_000_000n;
const NS_PER_HOUR = 3_600n * NS_PER_SECOND;

/** How long the seconds may be counted on without a report: three ticks of the meter. */
const COUNT_ON_MS = 15_000;

/** Exact decimal text of base units, without trailing zeros: the same text as Python's `format_amount`. */
export function formatAmount(value: bigint, decimals: number): string {
  const digits = value.toString().padStart(decimals + 1, '0');
  const whole = digits.slice(0, digits.length - decimals);
  const part = digits.slice(digits.length - decimals).replace(/0+$/, '');
  return part ? `${whole}.${part}` : whole;
}

/** The same, cut after four decimals, or after the second digit that is not zero, for places with little room. */
export function formatShort(value: bigint, decimals: number): string {
  const [whole, part = ''] = formatAmount(value, decimals).split('.');
  const leading = whole === '0' ? part.search(/[1-9]/) : 0;
  const cut = part.slice(0, Math.max(4, leading + 2)).replace(/0+$/, '');
  return cut ? `${whole}.${cut}` : whole;
}

/** Hours, minutes and seconds as `00:01:23`; hours may have more digits. */
export function formatClock(servedNs: bigint): string {
  const total = servedNs / NS_PER_SECOND;
  const pad = (n: bigint) => n.toString().padStart(2, '0');
  return `${pad(total / 3600n)}:${pad((total / 60n) % 60n)}:${pad(total % 60n)}`;
}

/** Bytes with the unit that leaves one to four digits. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.floor(value) : value.toFixed(1)} ${units[unit]}`;
}

/**
 * The time to show between two reports. Only the time is counted on, and only while the kernel runs and reports are
 * due; what it costs is always a reported figure.
 */
export function servedNow(
  rental: { state: string; servedNs: bigint; reportedAt: number },
  now: number
): bigint {
  if (rental.state !== 'running') {
    return rental.servedNs;
  }
  const elapsed = Math.min(Math.max(0, now - rental.reportedAt), COUNT_ON_MS);
  return rental.servedNs + BigInt(Math.floor(elapsed)) * NS_PER_MS;
}

/** Whole seconds since the last report of a running rental, when one is overdue; else null. */
export function overdueSeconds(rental: { state: string; reportedAt: number }, now: number): number | null {
  const silent = now - rental.reportedAt;
  return rental.state === 'running' && silent > 2 * COUNT_ON_MS ? Math.floor(silent / 1000) : null;
}

/** How long what is left under the limit lasts, in ns; null where nothing is charged. */
export function remainingNs(rental: { ratePerHour: bigint; spent: bigint; cap: bigint }): bigint | null {
  if (rental.ratePerHour === 0n) {
    return null;
  }
  const left = rental.cap > rental.spent ? rental.cap - rental.spent : 0n;
  return (left * NS_PER_HOUR) / rental.ratePerHour;
}
